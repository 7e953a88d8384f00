"""What every law's measurement shares: sizes, and the sweeps of `_bench`."""

from dataclasses import dataclass

import jax
import numpy as np
from _bench import Bench as Bench
from _bench import dimensionless as dimensionless
from _bench import seed_keys as seed_keys

from nctheory import simulator


@dataclass(frozen=True)
class Scale:
    """Sizes of the runs.

    Attributes:
        relu_width: width of the ReLU networks of L2.
        relu_steps: training steps of the ReLU networks.
        linear_steps: training steps of L1.
        geometry_steps: training steps of L3 and L0.
        phase_points: grid points along each axis of the phase diagram.
        phase_seeds: seeds of every point of the phase diagram.
        memory_runs: losses and precisions in which L1 is verified.
        more_clusters: numbers of clusters a label, beside 2, in which L2 is verified.
        late_draws: initial weights in the expectations of L2.
    """

    relu_width: int = 512
    relu_steps: int = 4000
    linear_steps: int = 2000
    geometry_steps: int = 6000
    phase_points: int = 7
    phase_seeds: int = 8
    memory_runs: tuple[tuple[str, str], ...] = tuple(
        (loss, precision) for precision in ("float64", "float32") for loss in ("logistic", "mse_signs")
    )
    more_clusters: tuple[int, ...] = (3, 4)
    late_draws: int = 4000


DEFAULT = Scale()
# Compiling dominates the smallest run, hence fewer programs.
SMOKE = Scale(
    relu_width=256,
    relu_steps=300,
    linear_steps=200,
    geometry_steps=2000,
    phase_points=2,
    phase_seeds=2,
    memory_runs=(("logistic", "float64"),),
    more_clusters=(),
    late_draws=200,
)
PAPER = Scale(
    relu_width=8192, relu_steps=20000, linear_steps=20000, geometry_steps=20000, phase_points=16, phase_seeds=64
)


def two_layer(config: simulator.TrainConfig, key: jax.Array) -> simulator.TwoLayer:
    """The two-layer network that a run with this key starts from."""
    model = simulator.initial_model(config, key)
    if not isinstance(model, simulator.TwoLayer):
        raise TypeError(f"The laws are about two-layer networks, but the configuration builds {type(model).__name__}.")
    return model


def same_label_pairs(labels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clusters (i < j), and whether each pair shares a label."""
    pairs = np.asarray([(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))])
    tags = np.asarray(labels)
    return pairs, tags[pairs[:, 0]] == tags[pairs[:, 1]]
