"""Sweeps over conditions and seeds: compiled once, run in chunks, resumable, failures recorded."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from nctheory import distributed
from nctheory.simulator import _chunks, _program, _together
from nctheory.simulator._grid import Grid as Grid
from nctheory.simulator._grid import as_grid
from nctheory.simulator._grid import grid as grid
from nctheory.simulator._parts import ChunkChoice as ChunkChoice
from nctheory.simulator._parts import PartStore
from nctheory.simulator._result import SweepResult as SweepResult
from nctheory.simulator._shares import ShareRunner, default_mesh, spans_processes


def sweep(
    train: Callable[[Any, jax.Array], Any],
    configs: Any,
    seeds: int | Sequence[int],
    *,
    chunk_size: _chunks.ChunkSize = "auto",
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    description: str | None = None,
) -> SweepResult:
    """Run `train(config, key(seed))` for every condition and seed: `prepare`, then `PreparedSweep.run`.

    All rows share one compiled function: numbers may differ between conditions, static fields and shapes may not.
    Row results do not depend on their neighbours, so seed 3 of a sweep equals a lone run of seed 3 to rounding, and
    seed 3 of any other sweep with the same chunk size on the same machine bitwise. On a CPU every core that this
    process may use takes an equal share of each chunk.

    After `distributed.initialize`, all processes must call this with the same arguments, in the same order. Each runs
    its part of the chunks on its own cores or devices, and all return all rows. If they all see the checkpoint folder
    the chunks meet there; if not, they are exchanged, and the folder of process 0 receives them all.

    Args:
        train: pure function of (config, key) that returns a pytree of arrays.
        configs: one configuration, a sequence of them, or a `Grid`.
        seeds: number of seeds (0..n-1) or the seeds themselves, each in 0..2**32-1, without repetitions.
        chunk_size: rows that run, and are stored, together. "auto" fits every core's share into its cache, or the chunk
            into half of the accelerator's memory, as estimated from the traced program. "measured" begins there: on a
            CPU it times whole chunks of that size, of twice and of half of it, keeps the rows of the fastest, and does
            so only where it costs little of the sweep; on an accelerator it halves until the compiled program fits. Of
            a given size, as many cores take a share as divide it evenly. A device that runs out of memory over its
            first chunk takes smaller shares.
        mesh: devices to shard rows over, those of this process or those of all; the size of new chunks is rounded up to
            a multiple of their number. By default all accelerators of this process.
        checkpoint: folder that receives every finished chunk. If it already holds chunks of the same sweep they are
            read back instead of being run, and the others run in shares of the same size, on however many cores,
            devices or processes; a folder of another sweep is refused.
        progress: whether to show a progress bar.
        description: text before the progress bar.

    Returns:
        All rows, those that became non-finite marked as such.

    Raises:
        ValueError: on bad seeds or chunk size, or when conditions differ in a static field or a shape.
        RunFolderError: if `checkpoint` belongs to another sweep, is being written by another run, or holds a damaged
            file.
        DistributedError: if another process ends before the sweep does, or process 0 does not come to it.
    """
    ready = prepare(train, configs, seeds, chunk_size=chunk_size, mesh=mesh, checkpoint=checkpoint)
    return ready.run(progress=progress, description=description)


def prepare(
    train: Callable[[Any, jax.Array], Any],
    configs: Any,
    seeds: int | Sequence[int],
    *,
    chunk_size: _chunks.ChunkSize = "auto",
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> "PreparedSweep":
    """Check, trace and compile a sweep without running it; several can be prepared in threads of their own.

    Args:
        train: pure function of (config, key) that returns a pytree of arrays.
        configs: one configuration, a sequence of them, or a `Grid`.
        seeds: number of seeds (0..n-1) or the seeds themselves, each in 0..2**32-1, without repetitions.
        chunk_size: rows that run, and are stored, together, as for `sweep`; what "measured" times it times in `run`.
        mesh: devices to shard rows over, those of this process or those of all; the size of new chunks is rounded up to
            a multiple of their number. By default all accelerators of this process.
        checkpoint: folder that receives every finished chunk. If it already holds chunks of the same sweep they are
            read back instead of being run, and the others run in shares of the same size, on however many cores,
            devices or processes; a folder of another sweep is refused.

    Returns:
        The compiled sweep. If `checkpoint` holds every chunk, nothing was compiled.

    Raises:
        ValueError: on bad seeds or chunk size, or when conditions differ in a static field or a shape.
        RunFolderError: if `checkpoint` belongs to another sweep or holds a damaged header.
    """
    conditions = configs if isinstance(configs, Grid) else as_grid(configs)
    seed_list = _program.check_seeds(seeds)
    rows = _program.Rows.from_configs(conditions.configs, seed_list)
    asked = _chunks.check(chunk_size)
    mesh = default_mesh() if mesh is None else mesh
    spans_processes(mesh)
    program = _program.Program.trace(train, rows)
    fingerprint = program.fingerprint()
    store, sizes, folder = None, None, None if checkpoint is None else Path(checkpoint)

    def decide() -> _together.Split:
        nonlocal store, sizes
        store = None if folder is None else PartStore.open(folder, fingerprint)
        sizes = _chunks.first_sizes(program, asked, mesh, store)
        # A size that is still to be measured is recorded when it is known.
        if store is not None and not (_chunks.is_timed(asked, mesh) and store.chunk_size is None):
            store.begin(sizes.chunk, sizes.share, asked if isinstance(asked, int) else None, sizes.choice)
        return _together.Split(sizes.chunk, sizes.share, tuple(_missing(rows.count, sizes.chunk, store)))

    # Several sweeps can be prepared at a time, in an order that differs between processes: each needs a name.
    name = f"sweep {hashlib.sha256(str(sorted(fingerprint.items())).encode()).hexdigest()[:16]}"
    split = _together.agree_on_split(name, decide)
    if sizes is None:
        sizes = _chunks.Sizes(split.chunk_size, split.share, ChunkChoice("estimated"))
        store = None if folder is None else PartStore(folder, fingerprint, sizes.chunk, sizes.share)
    ready = PreparedSweep(name, conditions.conditions, seed_list, program, sizes, mesh, store)
    ready._is_open = _chunks.is_timed(asked, mesh)
    ready._compile_for(split.missing)
    return ready


def _missing(num_rows: int, chunk_size: int, store: PartStore | None) -> list[int]:
    return [i for i in range(-(-num_rows // chunk_size)) if store is None or not store.has(i)]


class PreparedSweep:
    """A compiled sweep, ready to run.

    Attributes:
        conditions: the varied fields of every condition, by dotted name.
        seeds: the seeds.
        chunk_size: rows that run, and are stored, together; before `run` measures, if it does, the estimate.
        num_workers: compiled calls, each on a share, that run side by side; more than
            a chunk has, if fewer cores began it.
        compile_seconds: wall time of tracing and compiling; 0 when every chunk is stored already.
    """

    def __init__(
        self,
        name: str,
        conditions: tuple[Mapping[str, Any], ...],
        seeds: np.ndarray,
        program: _program.Program,
        sizes: _chunks.Sizes,
        mesh: Mesh | None,
        store: PartStore | None,
    ):
        self.conditions, self.seeds = conditions, seeds
        self._name, self._program, self._rows, self._store, self._mesh = name, program, program.rows, store, mesh
        self._is_dealt = distributed.process_count() > 1 and not spans_processes(mesh)
        self._wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.compile_seconds = self._own_seconds = self._kept_seconds = 0.0
        self._is_open, self._kept = False, dict[int, Any]()
        self._take(sizes)

    def _take(self, sizes: _chunks.Sizes) -> None:
        """Adopt these sizes, with the program if it is compiled."""
        self.chunk_size, self._share, self._choice = sizes.chunk, sizes.share, sizes.choice
        store = self._store
        is_given = sizes.choice.way == "given" or (store is not None and store.asked is not None)
        # A size that was asked for bounds the rows that run together. Chunks of another size, begun by a run with fewer
        # cores, run side by side.
        rows = sizes.chunk if is_given else self._rows.count
        self.num_workers = 1 if self._mesh is not None else min(_program.num_workers(), -(-rows // sizes.share))
        self._runner = sizes.runner
        if self._runner is not None:
            self.compile_seconds = self._runner.compile_seconds

    def run(self, *, progress: bool = True, description: str | None = None) -> SweepResult:
        """Run the chunks that the checkpoint does not hold, read back the others.

        Args:
            progress: whether to show a progress bar; only process 0 shows one.
            description: text before the progress bar.

        Returns:
            All rows, those that became non-finite marked as such.

        Raises:
            RunFolderError: if the checkpoint holds a damaged file or is being written by another run.
            DistributedError: if another process ends before the sweep does.
        """
        self._settle()
        store = self._store
        with _together.locked(f"{self._name}, chunks", store, self._missing) as missing:
            is_shared = _together.is_shared(f"{self._name}, folder", store)
            parts = dict(self._stored(missing, is_shared))
            resumed = sum(self._num_rows(i) for i in parts)
            began = time.perf_counter()
            hidden = not progress or not missing or not distributed.is_main()
            with tqdm(total=self._rows.count, initial=resumed, unit="seed", disable=hidden, desc=description) as bar:
                for i, part in self._finish(missing, is_shared):
                    parts[i] = part
                    bar.update(self._num_rows(i))
            seconds = time.perf_counter() - began + self._kept_seconds if missing else 0.0
        told = {"compile": self.compile_seconds, "run": seconds, "own": self._own_seconds + self._kept_seconds}
        told |= {"workers": self.num_workers, "share": self._share, "choice": self._choice.to_json()}
        self._kept_seconds = 0.0
        times = [json.loads(each) for each in distributed.exchange(f"{self._name}, times", json.dumps(told))]
        shape = (len(self.conditions), len(self.seeds))
        history = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[: self._rows.count].reshape(*shape, *leaves[0].shape[1:]),
            *(parts[i] for i in sorted(parts)),
        )
        return SweepResult(
            history=history,
            conditions=self.conditions,
            seeds=self.seeds,
            finite=_program.finite_rows(history, shape),
            chunk_size=self.chunk_size,
            share=times[0]["share"],
            chunk_choice=ChunkChoice.from_json(times[0]["choice"]),
            num_workers=times[0]["workers"],
            compile_seconds=times[0]["compile"],
            run_seconds=times[0]["run"],
            num_resumed=resumed,
            process_seconds=tuple(each["own"] for each in times),
        )

    def _settle(self) -> None:
        """Find the size by timing, on process 0 for all, if that is still to be done."""
        if not self._is_open:
            return
        self._is_open = False
        split = _together.agree_on_split(f"{self._name}, measured", self._measure, patiently=True)
        if (split.chunk_size, split.share) != (self.chunk_size, self._share):
            self._take(_chunks.Sizes(split.chunk_size, split.share, self._choice))

    def _measure(self) -> _together.Split:
        store = self._store
        if self._choice.way == "estimated":
            num_shares = self.chunk_size // self._share
            estimate = _chunks.Sizes(self.chunk_size, self._share, self._choice, self._runner)
            with store.lock() if store is not None else nullcontext(), jax.enable_x64(self._wide):
                timer = _chunks.Timer(self._program, self._mesh, num_shares, self.num_workers, self._runner)
                sizes, trial = _chunks.measure(estimate, timer)
                if store is not None:
                    store.begin(sizes.chunk, sizes.share, None, sizes.choice)
            self._take(sizes)
            if trial is not None:
                self._kept, self._kept_seconds = dict(trial.parts), trial.run_seconds
        return _together.Split(self.chunk_size, self._share, tuple(self._missing()))

    def _missing(self) -> list[int]:
        return _missing(self._rows.count, self.chunk_size, self._store)

    def _own(self, missing: Sequence[int]) -> list[int]:
        """The chunks that this process runs: dealt out, or all of them if each is spread over all processes."""
        if not self._is_dealt:
            return list(missing)
        return list(missing[distributed.process_index() :: distributed.process_count()])

    def _num_rows(self, chunk: int) -> int:
        return min(self.chunk_size, self._rows.count - chunk * self.chunk_size)

    @property
    def _structure(self) -> Any:
        def of_chunk(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.chunk_size, *leaf.shape), leaf.dtype)

        return jax.tree.map(of_chunk, self._program.structure)

    def _stored(self, missing: Sequence[int], is_shared: bool) -> Iterator[tuple[int, Any]]:
        """Chunks of the checkpoint; one that only process 0 sees is sent to the others."""
        for i in sorted(set(range(-(-self._rows.count // self.chunk_size))) - set(missing)):
            can_read = self._store is not None and (is_shared or distributed.is_main())
            part = self._store.load(i, self._structure, wait=True) if can_read and self._store is not None else None
            yield i, part if is_shared else _together.exchange_parts(part, self._structure)[0]

    def _finish(self, missing: Sequence[int], is_shared: bool) -> Iterator[tuple[int, Any]]:
        """Run the missing chunks, store them, and yield all of them on every process."""
        self._own_seconds = 0.0
        own = self._run_chunks(self._own(missing))
        if not self._is_dealt:
            for i, part in own:
                if self._store is not None and distributed.is_main():
                    self._store.save(i, part)
                yield i, part
        elif is_shared and self._store is not None:
            done = set()
            for i, part in own:
                self._store.save(i, part)
                done.add(i)
                yield i, part
            distributed.barrier(f"{self._name}, stored")
            for i in sorted(set(missing) - done):
                yield i, self._store.load(i, self._structure, wait=True)
        else:
            yield from self._exchange(missing, own)

    def _exchange(self, missing: Sequence[int], own: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Chunks of all processes where no folder is shared; process 0 stores them, if it has one."""
        if self._store is None:
            # Nothing can be saved, so that nobody need wait for the others before the end.
            own = iter(list(own))
        count = distributed.process_count()
        for first in range(0, len(missing), count):
            group = missing[first : first + count]
            _, part = next(own, (None, None))
            for i, each in zip(group, _together.exchange_parts(part, self._structure), strict=False):
                if self._store is not None and distributed.is_main():
                    self._store.save(i, each)
                yield i, each

    def _run_chunks(self, chunks: list[int]) -> Iterator[tuple[int, Any]]:
        """Run chunks one after the other, the shares of each side by side; those that measuring ran are there."""
        while chunks and chunks[0] in self._kept:
            yield chunks[0], self._kept.pop(chunks[0])
            chunks = chunks[1:]
        started = False
        while chunks:
            self._compile_for(chunks)
            try:
                for i, part in self._run_shares(chunks):
                    started = True
                    yield i, part
                return
            except RuntimeError as error:
                # Later chunks would run in other shares than the first ones.
                if started:
                    raise
                self._shrink(error)

    def _run_shares(self, chunks: list[int]) -> Iterator[tuple[int, Any]]:
        assert self._runner is not None
        began = time.perf_counter()
        first_rows = [i * self.chunk_size + j for i in chunks for j in range(0, self.chunk_size, self._share)]
        shares = self._runner.run(first_rows, self.num_workers)
        for i in chunks:
            distributed.check_peers()
            leaves = islice(shares, self.chunk_size // self._share)
            part = jax.tree.map(lambda *each: np.concatenate(each), *leaves)
            self._own_seconds += time.perf_counter() - began
            yield i, part
            began = time.perf_counter()

    def _compile_for(self, missing: Sequence[int]) -> None:
        """Compile, unless that is done or this process has no chunk to run."""
        while self._runner is None and self._own(missing):
            try:
                with jax.enable_x64(self._wide):
                    self._runner = ShareRunner(self._program, self._share, self._mesh)
            except RuntimeError as error:
                self._shrink(error)
            else:
                self.compile_seconds = self._runner.compile_seconds

    def _shrink(self, error: RuntimeError) -> None:
        """Halve the shares, or the next divisor, after a device ran out of memory; chunks stay as they are.

        Raises:
            RuntimeError: the error, if it is another one, or nothing can be done about it.
        """
        # Devices of other processes would have to shrink at the same time.
        if not _chunks.is_out_of_memory(error) or self._share == 1 or spans_processes(self._mesh):
            raise error
        share = _program.largest_divisor(self._share, self._share // 2)
        reason = f"out of memory with shares of {self._share} rows"
        reasons = [each for each in (self._choice.reason, reason) if each]
        self._share, self._choice, self._runner = share, replace(self._choice, reason="; ".join(reasons)), None
        if self._store is not None and distributed.is_main():
            self._store.change_share(share, self._choice)
