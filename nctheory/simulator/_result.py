"""What a sweep gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from nctheory.simulator._parts import ChunkChoice


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep on the host, row order = condition, then seed.

    Attributes:
        history: what `train` returned, as NumPy arrays with two leading axes (condition, seed).
        conditions: the varied fields of every condition, by dotted name.
        seeds: the seeds of the second axis.
        finite: rows whose every number stayed finite as reported by `history.finite`, or by the arrays themselves when
            `train` reports none. Rows that are not finite keep their place and their NaN: never average them silently.
        chunk_size: rows that ran, and were stored, together.
        share: rows of one compiled call, of which a chunk holds a whole number.
        chunk_choice: how these sizes were chosen, and what was measured for it.
        num_workers: compiled calls, each on a share, that ran side by side; more than
            a chunk has, if fewer cores began it.
        compile_seconds: wall time of tracing and compiling, once for the sweep; 0 when every chunk was read back. Of
            several processes, that of process 0.
        run_seconds: wall time of running, without compilation; of several processes, that of process 0.
        num_resumed: rows read back from the checkpoint instead of being run.
        process_seconds: wall time that each process spent on its own chunks.
    """

    history: Any
    conditions: tuple[Mapping[str, Any], ...]
    seeds: Int[np.ndarray, " S"]
    finite: Bool[np.ndarray, "C S"]
    chunk_size: int
    share: int
    chunk_choice: ChunkChoice
    num_workers: int
    compile_seconds: float
    run_seconds: float
    num_resumed: int
    process_seconds: tuple[float, ...]

    @property
    def num_nonfinite(self) -> Int[np.ndarray, " C"]:
        """Number of seeds of each condition that became non-finite."""
        return (~self.finite).sum(axis=1)
