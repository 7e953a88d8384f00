"""What the measurements of one experiment share: seeds, and sweeps that compile side by side, resume and are timed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nctheory import simulator
from nctheory.simulator._chunks import ChunkSize


class Bench:
    """Compiles the sweeps of one experiment side by side, runs them one by one, and adds up their times.

    Attributes:
        scale: sizes of the runs.
        seeds: seeds of every law.
        compile_seconds: time spent tracing and compiling so far, added up over sweeps that compile at the same time.
        run_seconds: time spent training so far.
        log: one record a sweep, for the manifest.
    """

    def __init__(
        self, scale: Any, seeds: list[int], parts: Path, *, progress: bool = True, chunk_size: int | str = "auto"
    ):
        """Keep every sweep's finished chunks in a folder of its own under `parts`; `chunk_size` is the option."""
        self.scale, self.seeds = scale, seeds
        self.compile_seconds = self.run_seconds = 0.0
        self.log: dict[str, dict[str, Any]] = {}
        self._parts, self._progress, self._chunk_size = parts, progress, chunk_size
        self._compilers = ThreadPoolExecutor(2)
        self._ready: dict[str, Future[simulator.PreparedSweep]] = {}

    def __enter__(self) -> "Bench":
        """Nothing to do: compiling starts with the first sweep that is announced."""
        return self

    def __exit__(self, *_: object) -> None:
        """Compile nothing more."""
        self._compilers.shutdown(cancel_futures=True)

    def prepare(
        self,
        name: str,
        configs: Any,
        *,
        seeds: list[int] | None = None,
        train: Callable[[Any, jax.Array], Any] = simulator.train,
    ) -> None:
        """Announce a sweep of `train`, which then compiles in the background in the precision that is on now."""
        wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def compile_it() -> simulator.PreparedSweep:
            # Both settings belong to the thread. Accelerators multiply float32 matrices in fewer bits unless told
            # otherwise; the exact laws would notice.
            with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
                return simulator.prepare(
                    train,
                    configs,
                    self.seeds if seeds is None else seeds,
                    chunk_size=asked_size(self._chunk_size, self._parts / name),
                    checkpoint=self._parts / name,
                )

        self._ready[name] = self._compilers.submit(compile_it)

    def sweep(self, name: str) -> simulator.SweepResult:
        """Run an announced sweep, resuming what its folder holds."""
        result = self._ready.pop(name).result().run(progress=self._progress, description=name)
        self.compile_seconds += result.compile_seconds
        self.run_seconds += result.run_seconds
        self.log[name] = log_of(result)
        return result


def asked_size(option: int | str, checkpoint: Path) -> ChunkSize:
    """What to ask a sweep for: a number is for new sweeps, and those that have begun keep theirs.

    Args:
        option: the option, which was checked.
        checkpoint: folder of the sweep.
    """
    if isinstance(option, int) and (checkpoint / "sweep.json").exists():
        return "auto"
    return option  # pyright: ignore[reportReturnType]


def log_of(result: simulator.SweepResult) -> dict[str, Any]:
    """What a manifest says of a sweep."""
    return {
        "rows": int(result.finite.size),
        "nonfinite_rows": int((~result.finite).sum()),
        "resumed_rows": result.num_resumed,
        "chunk_size": result.chunk_size,
        "share": result.share,
        "chunk_choice": result.chunk_choice.to_json(),
        "compile_seconds": result.compile_seconds,
        "run_seconds": result.run_seconds,
    }


def seed_keys(seeds: list[int]) -> jax.Array:
    """The keys that a sweep gives these seeds."""
    return jax.vmap(jax.random.key)(np.asarray(seeds, dtype=np.uint32))


def dimensionless(definition: str) -> dict[str, str]:
    """Attributes of a stored variable."""
    return {"units": "dimensionless", "definition": definition}
