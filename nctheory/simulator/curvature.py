"""Hessian of the unconstrained feature model at a critical point: strict saddle, or local minimum up to symmetry."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import gradient_norm

MAX_VARIABLES = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HessianSpectrum:
    """Second-order picture of a point.

    Attributes:
        eigenvalues: of the Hessian in the problem's own coordinates, ascending.
        gradient_norm: at the point.
        num_negative: eigenvalues below -threshold.
        num_flat: eigenvalues within +-threshold.
        num_symmetries: dimension of the orbit of the point under the problem's continuous symmetries (rotations of
            hidden spaces, norms that a constraint removes, a common shift of a free bias under cross-entropy); the
            Hessian of a critical point is flat at least along these.
        threshold: absolute size below which an eigenvalue counts as 0.
        is_critical: whether `gradient_norm` is at most the tolerance.
    """

    eigenvalues: Float[Array, " P"]
    gradient_norm: Float[Array, ""]
    num_negative: Int[Array, ""]
    num_flat: Int[Array, ""]
    num_symmetries: Int[Array, ""]
    threshold: Float[Array, ""]
    is_critical: Any

    @property
    def verdict(self) -> str:
        """Say what the point is.

        "not critical"; "strict saddle" (a direction of negative curvature); "local minimum" (every eigenvalue positive
        except the symmetries': strict up to symmetry); or "undecided" (flat directions beyond the symmetries).
        """
        if not bool(self.is_critical):
            return "not critical"
        if int(self.num_negative) > 0:
            return "strict saddle"
        return "local minimum" if int(self.num_flat) == int(self.num_symmetries) else "undecided"


def hessian_spectrum(
    problem: UfmProblem,
    params: UfmParams,
    *,
    gradient_tolerance: float | None = None,
    flat_tolerance: float | None = None,
) -> HessianSpectrum:
    """Compute all eigenvalues of the Hessian at a point, and how many directions are flat by symmetry.

    Cost O(P^3) for P variables: for small problems. Class level leaves out the spread within classes, along which a
    convex loss cannot turn down (`UfmProblem.is_convex_in_features`). With ReLU, curvature is that of the linear piece
    on which the point lies; at a kink it says nothing.

    Args:
        problem: the problem; features other than "nonnegative", whose bounds a Hessian does not see.
        params: the point.
        gradient_tolerance: largest gradient norm of a critical point; 1e-8 in float64, 1e-4 in float32 by default.
        flat_tolerance: eigenvalues up to this times the largest magnitude count as 0; by default 1e-7 in float64 and
            1e-4 in float32.

    Returns:
        The spectrum; its `verdict` says what the point is.

    Raises:
        ValueError: if the problem has bounds or more than 4096 variables, the point does not fit it or is not finite,
            or a tolerance is not positive.
    """
    if problem.features == "nonnegative":
        raise ArgumentError("Argument `problem` must have features without bounds, but has 'nonnegative' ones.")
    params = jax.tree.map(jnp.asarray, params)
    jax.eval_shape(problem.objective, params)
    for leaf in jax.tree.leaves(params):
        _checks.finite("params", leaf)
    vector = ravel_pytree(params)[0]
    if vector.size > MAX_VARIABLES:
        raise ArgumentError(
            f"Argument `problem` must have at most {MAX_VARIABLES} variables for a Hessian, but has {vector.size}."
        )
    is_double = vector.dtype == jnp.float64
    gradient_tolerance = (1e-8 if is_double else 1e-4) if gradient_tolerance is None else gradient_tolerance
    flat_tolerance = (1e-7 if is_double else 1e-4) if flat_tolerance is None else flat_tolerance
    for name, value in (("gradient_tolerance", gradient_tolerance), ("flat_tolerance", flat_tolerance)):
        _checks.real(name, value, minimum=0, exclusive_minimum=True)
    eigenvalues = _eigenvalues(problem, params)
    threshold = flat_tolerance * jnp.max(jnp.abs(eigenvalues))
    norm = gradient_norm(problem, params)
    return HessianSpectrum(
        eigenvalues=eigenvalues,
        gradient_norm=norm,
        num_negative=jnp.sum(eigenvalues < -threshold, dtype=jnp.int32),
        num_flat=jnp.sum(jnp.abs(eigenvalues) <= threshold, dtype=jnp.int32),
        num_symmetries=jnp.asarray(_orbit_dimension(problem, params), dtype=jnp.int32),
        threshold=threshold,
        is_critical=norm <= gradient_tolerance,
    )


@jax.jit
def _eigenvalues(problem: UfmProblem, params: UfmParams) -> jax.Array:
    vector, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda v: problem.objective(unravel(v)))(vector)
    return jnp.linalg.eigvalsh((hessian + hessian.T) / 2)


def _orbit_dimension(problem: UfmProblem, params: UfmParams) -> int:
    """Rank of the tangents of the problem's symmetries at the point."""
    point = jax.tree.map(lambda leaf: np.asarray(leaf, dtype=np.float64), params)
    tangents = [*_rotation_tangents(problem, point), *_scale_tangents(problem, point)]
    if problem.bias == "free" and problem.loss == "cross_entropy" and float(problem.bias_decay) == 0:
        zero = jax.tree.map(np.zeros_like, point)
        tangents.append(replace(zero, bias=np.ones_like(zero.bias)))
    if not tangents:
        return 0
    rows = np.stack([np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(t)]) for t in tangents])
    # An absolute cut: directions in which the point has decayed to rounding error carry no symmetry.
    return int(np.linalg.matrix_rank(rows, tol=1e-5 * max(1e-30, np.linalg.norm(rows, 2))))


def _rotation_tangents(problem: UfmProblem, point: UfmParams) -> list[UfmParams]:
    """Velocity of the point when the space that enters layer m turns in the plane (a, b)."""
    tangents = []
    zero = jax.tree.map(np.zeros_like, point)
    for m, weight in enumerate(point.weights):
        is_turned = problem.features != "relu" if m == 0 else problem.activation == "identity"
        if not is_turned:
            continue
        for a in range(weight.shape[1]):
            for b in range(a):
                turn = np.zeros((weight.shape[1],) * 2)
                turn[a, b], turn[b, a] = 1.0, -1.0
                weights = list(zero.weights)
                weights[m] = weight @ turn.T
                features = zero.features
                if m == 0:
                    features = point.features @ turn.T
                else:
                    weights[m - 1] = turn @ point.weights[m - 1]
                tangents.append(replace(zero, features=features, weights=tuple(weights)))
    return tangents


def _scale_tangents(problem: UfmProblem, point: UfmParams) -> list[UfmParams]:
    """Velocities along the norms that a constraint's map removes."""
    zero = jax.tree.map(np.zeros_like, point)
    tangents = []
    for kind, matrix, put in (
        (problem.features, point.features, lambda t: replace(zero, features=t)),
        (problem.weights, point.weights[0], lambda t: replace(zero, weights=(t,))),
    ):
        if kind == "norm_bounded":
            tangents.append(put(matrix))
        elif kind == "spherical":
            for i in range(matrix.shape[0]):
                tangents.append(put(np.where(np.arange(matrix.shape[0])[:, None] == i, matrix, 0.0)))
    return tangents
