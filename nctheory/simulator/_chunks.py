"""How many rows of a sweep run together: as given, as stored, estimated from the traced program, or measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from nctheory import _checks, distributed
from nctheory._errors import ArgumentError
from nctheory.simulator import _program
from nctheory.simulator._parts import ChunkChoice, PartStore
from nctheory.simulator._shares import ShareRunner, spans_processes

ChunkSize = int | Literal["auto", "measured"]

# Fewer chunks than this are not worth measuring, and measuring may take this share of what the sweep is expected to
# take: the estimate reached 92 to 97 % of the fastest size where it was compared, so that there is little to gain.
FEWEST_CHUNKS = 8
COST_SHARE = 0.05
# Another size must be this much faster than the estimate; sizes are timed at most this often doubled or halved.
MARGIN = 0.05
MOST_STEPS = 2
# Chunks of one size are timed until they took this long, in seconds, but not more than these; the fastest counts.
LEAST_SECONDS = 0.2
MOST_CHUNKS = 4

clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Sizes:
    """Rows of a chunk and of a share, how they were chosen, and what was compiled for it."""

    chunk: int
    share: int
    choice: ChunkChoice
    runner: ShareRunner | None = None


def check(chunk_size: Any) -> ChunkSize:
    """Check the argument of a sweep.

    Raises:
        ValueError: unless it is an integer >= 1, "auto" or "measured".
    """
    if isinstance(chunk_size, str) and chunk_size in ("auto", "measured"):
        return chunk_size
    try:
        return _checks.integer("chunk_size", chunk_size, minimum=1)
    except ArgumentError:
        message = f'Argument `chunk_size` must be an integer >= 1, "auto" or "measured", but is {chunk_size!r}.'
        raise ArgumentError(message) from None


def is_timed(asked: ChunkSize, mesh: Mesh | None) -> bool:
    """Whether this is a size to be found by timing, once the sweep runs; accelerators are asked for their memory.

    Nor can process 0 time alone what all processes run together.
    """
    return asked == "measured" and _program.memory_limit() is None and not spans_processes(mesh)


def first_sizes(program: _program.Program, asked: ChunkSize, mesh: Mesh | None, store: PartStore | None) -> Sizes:
    """The sizes of the stored chunks, or those to begin with; process 0 decides."""
    if store is not None and store.chunk_size is not None:
        if isinstance(asked, str) or asked in (store.asked, store.chunk_size):
            return Sizes(store.chunk_size, store.share or store.chunk_size, store.choice.as_stored())
    num_devices = 1 if mesh is None else mesh.size
    cores = _program.num_cores() if mesh is None else num_devices
    if isinstance(asked, int):
        chunk, choice = min(asked, program.rows.count), ChunkChoice("given")
    else:
        chunk, choice = _program.auto_chunk_size(program, cores, num_dealt(mesh)), ChunkChoice("estimated")
    chunk = -(-chunk // num_devices) * num_devices
    share = chunk // (_program.largest_divisor(chunk, cores) if mesh is None else num_devices)
    if asked != "measured":
        return Sizes(chunk, share, choice)
    limit = _program.memory_limit()
    if limit is not None:
        return fit_memory(program, Sizes(chunk, share, choice), mesh, limit)
    reason = "not measured: the mesh spans processes" if spans_processes(mesh) else ""
    return Sizes(chunk, share, replace(choice, reason=reason))


def num_dealt(mesh: Mesh | None) -> int:
    """Processes among which chunks are dealt out; a mesh that spans all of them needs no dealing."""
    return 1 if spans_processes(mesh) else distributed.process_count()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, as the compiler or the run time say it."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "ut of memory" in text)


def fit_memory(program: _program.Program, sizes: Sizes, mesh: Mesh | None, limit: int) -> Sizes:
    """Halve shares until what the compiled program asks for fits its part of a device's memory, in bytes."""
    budget, found = int(_program.ACCELERATOR_MEMORY_SHARE * limit), {}
    # Compiling for several processes would have to be done by all of them.
    own = None if spans_processes(mesh) else mesh
    num_shares, share, began, reason = sizes.chunk // sizes.share, sizes.share, clock(), ""
    while True:
        runner = _compiled_if_it_fits(program, share, own)
        needed = None if runner is None else runner.memory_bytes()
        if runner is not None and needed is None:
            return replace(sizes, choice=ChunkChoice("estimated", "not measured: the compiler does not say its memory"))
        found[share] = -1 if needed is None else needed
        if needed is not None and needed <= budget:
            break
        if share == 1:
            reason = f"a single row does not fit {budget} bytes"
            break
        share = -(-share // 2)
    kept = 0.0 if runner is None or own is not mesh else runner.compile_seconds - program.trace_seconds
    choice = ChunkChoice("measured", reason, {}, found, max(clock() - began - kept, 0.0))
    return Sizes(share * num_shares, share, choice, runner if own is mesh else None)


def _compiled_if_it_fits(program: _program.Program, share: int, mesh: Mesh | None) -> ShareRunner | None:
    try:
        return ShareRunner(program, share, mesh)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


@dataclass(frozen=True)
class Trial:
    """What timing one size gave.

    Attributes:
        chunk: rows of a chunk.
        share: rows of a share.
        seconds_per_row: of the fastest chunk.
        compile_seconds: wall time of compiling, without tracing.
        parts: results of the chunks that ran, by their number.
        run_seconds: wall time of these chunks.
        runner: the compiled program.
    """

    chunk: int
    share: int
    seconds_per_row: float
    compile_seconds: float = 0.0
    parts: dict[int, Any] = field(default_factory=dict)
    run_seconds: float = 0.0
    runner: Any = None


@runtime_checkable
class Times(Protocol):
    """What the search needs to know of a sweep."""

    num_rows: int
    num_dealt: int

    def time(self, share: int, so_far: Trial | None = None) -> Trial:
        """Time chunks whose shares have this many rows, or one more of a size that was timed."""
        ...


class Timer:
    """Times whole chunks of a sweep, from its first row on, so that the results of the chosen size can be kept."""

    def __init__(
        self,
        program: _program.Program,
        mesh: Mesh | None,
        num_shares: int,
        num_workers: int,
        runner: ShareRunner | None,
    ):
        """Begin with the program that was compiled for the estimate."""
        self.num_rows, self.num_dealt = program.rows.count, num_dealt(mesh)
        self._program, self._mesh, self._runner = program, mesh, runner
        self._num_shares, self._num_workers = num_shares, num_workers

    def time(self, share: int, so_far: Trial | None = None) -> Trial:
        """Time chunks whose shares have this many rows, or one more of a size that was timed."""
        chunk = share * self._num_shares
        if so_far is None:
            runner = self._runner or ShareRunner(self._program, share, self._mesh)
            self._runner = None
            so_far = Trial(chunk, share, np.inf, runner.compile_seconds - self._program.trace_seconds, runner=runner)
            most, least = MOST_CHUNKS, LEAST_SECONDS
        else:
            most, least = len(so_far.parts) + 1, np.inf
        while len(so_far.parts) < most and (not so_far.parts or so_far.run_seconds < least):
            # As this process would take them in turn; none beyond the end, of which rows are repetitions.
            index = len(so_far.parts) * self.num_dealt
            if so_far.parts and (index + 1) * chunk > self.num_rows:
                break
            so_far = self._one_more(so_far, index)
        return so_far

    def _one_more(self, trial: Trial, index: int) -> Trial:
        began = clock()
        first_rows = range(index * trial.chunk, (index + 1) * trial.chunk, trial.share)
        shares = list(trial.runner.run(first_rows, self._num_workers))
        seconds = clock() - began
        part = jax.tree.map(lambda *each: np.concatenate(each), *shares)
        return replace(
            trial,
            seconds_per_row=min(trial.seconds_per_row, seconds / trial.chunk),
            parts={**trial.parts, index: part},
            run_seconds=trial.run_seconds + seconds,
        )


def measure(sizes: Sizes, times: Times) -> tuple[Sizes, Trial | None]:
    """Keep the estimate or take a size that is faster; what ran of it comes back too.

    Twice the share is tried first, then half of it, each once more as long as that helps. A size is tried only if it
    leaves two chunks for every process, and if compiling and timing it is expected to cost little of the whole sweep.
    """
    fewest = FEWEST_CHUNKS * sizes.chunk * times.num_dealt
    if times.num_rows < fewest:
        reason = f"not measured: {times.num_rows} rows are fewer than {fewest}, {FEWEST_CHUNKS} chunks of the estimate"
        return replace(sizes, choice=ChunkChoice("estimated", reason)), None
    began = clock()
    best = first = times.time(sizes.share)
    tried, reason = {first.chunk: first}, ""
    for factor in (2.0, 0.5):
        for _ in range(MOST_STEPS):
            share = int(best.share * factor)
            chunk = share * (sizes.chunk // sizes.share)
            if share < 1 or 2 * chunk * times.num_dealt > times.num_rows:
                break
            reason = _too_dear(first, chunk, clock() - began - first.run_seconds, times)
            if reason:
                break
            tried[chunk] = trial = times.time(share)
            if not _is_faster(trial, best, times):
                break
            # Whatever else ran on the machine may have slowed the other one down.
            tried[best.chunk] = best = times.time(best.share, best)
            if not _is_faster(trial, best, times):
                break
            best = trial
        if best.chunk != first.chunk or reason:
            break
    return _chosen(sizes, best, tried, clock() - began, reason), tried[best.chunk]


def _chosen(sizes: Sizes, best: Trial, tried: dict[int, Trial], wall_seconds: float, reason: str) -> Sizes:
    first = tried[sizes.chunk]
    # The estimate was compiled before; if another size is chosen, that was in vain, and the other one's was not.
    swapped = best.compile_seconds - first.compile_seconds if best.chunk != first.chunk else 0.0
    wasted = wall_seconds - best.run_seconds - swapped
    way = "measured" if len(tried) > 1 else "estimated"
    reason = "" if not reason else f"stopped: {reason}" if way == "measured" else f"not measured: {reason}"
    seconds = {chunk: trial.seconds_per_row for chunk, trial in sorted(tried.items())}
    return Sizes(best.chunk, best.share, ChunkChoice(way, reason, seconds, {}, max(wasted, 0.0)), best.runner)


def _whole_seconds(trial: Trial, times: Times) -> float:
    """Time of the sweep in chunks of this size, the last of them filled up."""
    rounds = -(-times.num_rows // (trial.chunk * times.num_dealt))
    return rounds * trial.chunk * trial.seconds_per_row


def _is_faster(trial: Trial, other: Trial, times: Times) -> bool:
    return _whole_seconds(trial, times) < (1 - MARGIN) * _whole_seconds(other, times)


def _too_dear(first: Trial, chunk: int, spent: float, times: Times) -> str:
    """Why a size is not tried; empty if it is."""
    whole = _whole_seconds(first, times)
    cost = spent + first.compile_seconds + max(first.seconds_per_row * chunk, LEAST_SECONDS)
    return f"timing other sizes would cost {cost:.2g} s of {whole:.2g} s" if cost > COST_SHARE * whole else ""
