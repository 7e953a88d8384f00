"""Predictions, one law a file; nothing here trains a network, so agreement with a simulation is evidence."""

from nctheory.theory.free_features import FreeFeaturesMinimizer as FreeFeaturesMinimizer
from nctheory.theory.free_features import free_features_minimizer as free_features_minimizer
from nctheory.theory.geometry import GeometrySolution as GeometrySolution
from nctheory.theory.geometry import GramStructure as GramStructure
from nctheory.theory.geometry import fine_structure_from_gram as fine_structure_from_gram
from nctheory.theory.geometry import ridge_solution as ridge_solution
from nctheory.theory.geometry import solve_nuclear_norm as solve_nuclear_norm
from nctheory.theory.kernels import ReluInitialStructure as ReluInitialStructure
from nctheory.theory.kernels import expected_relu_distances as expected_relu_distances
from nctheory.theory.kernels import relu_kernel as relu_kernel
from nctheory.theory.memory import expected_initial_distance as expected_initial_distance
from nctheory.theory.memory import memory_distance as memory_distance
from nctheory.theory.memory import memory_factor as memory_factor
from nctheory.theory.memory import memory_half_life as memory_half_life
from nctheory.theory.relu_limits import ReluLimit as ReluLimit
from nctheory.theory.relu_limits import relu_features as relu_features
from nctheory.theory.relu_limits import relu_limit as relu_limit
