"""What every law's measurement shares: sizes, seeds, and sweeps that resume and are timed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nctheory import simulator
from nctheory.claims import Interval


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
)
PAPER = Scale(
    relu_width=8192, relu_steps=20000, linear_steps=20000, geometry_steps=20000, phase_points=16, phase_seeds=64
)


@dataclass
class Bench:
    """Runs the sweeps of one experiment and adds up their times.

    Attributes:
        scale: sizes of the runs.
        seeds: seeds of every law.
        parts: folder under which every sweep keeps its finished chunks.
        progress: whether to show progress bars.
        compile_seconds: time spent compiling so far.
        run_seconds: time spent training so far.
        log: one line a sweep, for the manifest.
    """

    scale: Scale
    seeds: list[int]
    parts: Path
    progress: bool = True
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    log: dict[str, dict[str, Any]] = field(default_factory=dict)

    def sweep(self, name: str, configs: Any, *, seeds: list[int] | None = None) -> simulator.SweepResult:
        """Run one named sweep, resuming what its folder holds."""
        result = simulator.sweep(
            simulator.train,
            configs,
            self.seeds if seeds is None else seeds,
            checkpoint=self.parts / name,
            progress=self.progress,
            description=name,
        )
        self.compile_seconds += result.compile_seconds
        self.run_seconds += result.run_seconds
        self.log[name] = {
            "rows": int(result.finite.size),
            "nonfinite_rows": int((~result.finite).sum()),
            "resumed_rows": result.num_resumed,
            "chunk_size": result.chunk_size,
            "compile_seconds": result.compile_seconds,
            "run_seconds": result.run_seconds,
        }
        return result


def seed_keys(seeds: list[int]) -> jax.Array:
    """The keys that a sweep gives these seeds."""
    return jax.vmap(jax.random.key)(np.asarray(seeds, dtype=np.uint32))


def two_layer(config: simulator.TrainConfig, key: jax.Array) -> simulator.TwoLayer:
    """The two-layer network that a run with this key starts from."""
    model = simulator.initial_model(config, key)
    if not isinstance(model, simulator.TwoLayer):
        raise TypeError(f"The laws are about two-layer networks, but the configuration builds {type(model).__name__}.")
    return model


def standard_error_interval(samples: np.ndarray, *, width: float) -> Interval:
    """Mean +- `width` standard errors over the finite seeds."""
    finite = np.asarray(samples)[np.isfinite(samples)]
    mean, sem = float(finite.mean()), float(finite.std(ddof=1) / np.sqrt(finite.size))
    method = f"mean over seeds, +- {width:g} standard errors"
    lost = len(samples) - finite.size
    return Interval(mean, mean - width * sem, mean + width * sem, len(samples), lost, method)


def same_label_pairs(labels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clusters (i < j), and whether each pair shares a label."""
    pairs = np.asarray([(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))])
    tags = np.asarray(labels)
    return pairs, tags[pairs[:, 0]] == tags[pairs[:, 1]]
