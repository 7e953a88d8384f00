"""What every law's measurement shares: sizes, seeds, and sweeps that resume and are timed."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

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


class Bench:
    """Compiles the sweeps of one experiment side by side, runs them one by one, and adds up their times.

    Attributes:
        scale: sizes of the runs.
        seeds: seeds of every law.
        compile_seconds: time spent tracing and compiling so far, added up over sweeps that compile at the same time.
        run_seconds: time spent training so far.
        log: one record a sweep, for the manifest.
    """

    def __init__(self, scale: Scale, seeds: list[int], parts: Path, *, progress: bool = True):
        """Keep every sweep's finished chunks in a folder of its own under `parts`."""
        self.scale, self.seeds = scale, seeds
        self.compile_seconds = self.run_seconds = 0.0
        self.log: dict[str, dict[str, Any]] = {}
        self._parts, self._progress = parts, progress
        self._compilers = ThreadPoolExecutor(2)
        self._ready: dict[str, Future[simulator.PreparedSweep]] = {}

    def __enter__(self) -> "Bench":
        """Nothing to do: compiling starts with the first sweep that is announced."""
        return self

    def __exit__(self, *_: object) -> None:
        """Compile nothing more."""
        self._compilers.shutdown(cancel_futures=True)

    def prepare(self, name: str, configs: Any, *, seeds: list[int] | None = None) -> None:
        """Announce a sweep, which then compiles in the background in the precision that is on now."""
        wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def compile_it() -> simulator.PreparedSweep:
            # Both settings belong to the thread. Accelerators multiply float32 matrices in fewer bits unless told
            # otherwise; the exact laws would notice.
            with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
                return simulator.prepare(
                    simulator.train, configs, self.seeds if seeds is None else seeds, checkpoint=self._parts / name
                )

        self._ready[name] = self._compilers.submit(compile_it)

    def sweep(self, name: str) -> simulator.SweepResult:
        """Run an announced sweep, resuming what its folder holds."""
        result = self._ready.pop(name).result().run(progress=self._progress, description=name)
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


def dimensionless(definition: str) -> dict[str, str]:
    """Attributes of a stored variable."""
    return {"units": "dimensionless", "definition": definition}


def same_label_pairs(labels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clusters (i < j), and whether each pair shares a label."""
    pairs = np.asarray([(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))])
    tags = np.asarray(labels)
    return pairs, tags[pairs[:, 0]] == tags[pairs[:, 1]]
