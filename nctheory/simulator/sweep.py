"""Sweeps over conditions and seeds: compiled once, run in chunks, resumable, failures recorded."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from nctheory import _checks, distributed
from nctheory._errors import ArgumentError
from nctheory.simulator import _program, _together
from nctheory.simulator._grid import Grid as Grid
from nctheory.simulator._grid import as_grid
from nctheory.simulator._grid import grid as grid
from nctheory.simulator._parts import PartStore
from nctheory.simulator._shares import ShareRunner, default_mesh, spans_processes


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
        num_workers: compiled calls, on equal shares of a chunk, that ran side by side.
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
    num_workers: int
    compile_seconds: float
    run_seconds: float
    num_resumed: int
    process_seconds: tuple[float, ...]

    @property
    def num_nonfinite(self) -> Int[np.ndarray, " C"]:
        """Number of seeds of each condition that became non-finite."""
        return (~self.finite).sum(axis=1)


def sweep(
    train: Callable[[Any, jax.Array], Any],
    configs: Any,
    seeds: int | Sequence[int],
    *,
    chunk_size: int | Literal["auto"] = "auto",
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
            into half of the accelerator's memory, as estimated from the traced program. Of a given size, as many cores
            take a share as divide it evenly.
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
    chunk_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> "PreparedSweep":
    """Check, trace and compile a sweep without running it; several can be prepared in threads of their own.

    Args:
        train: pure function of (config, key) that returns a pytree of arrays.
        configs: one configuration, a sequence of them, or a `Grid`.
        seeds: number of seeds (0..n-1) or the seeds themselves, each in 0..2**32-1, without repetitions.
        chunk_size: rows that run, and are stored, together. "auto" fits every core's share into its cache, or the chunk
            into half of the accelerator's memory, as estimated from the traced program. Of a given size, as many cores
            take a share as divide it evenly.
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
    seed_list = _check_seeds(seeds)
    rows = _program.Rows.from_configs(conditions.configs, seed_list)
    asked = None if chunk_size == "auto" else _checks.integer("chunk_size", chunk_size, minimum=1)
    mesh = default_mesh() if mesh is None else mesh
    spans_processes(mesh)
    program = _program.Program.trace(train, rows)
    fingerprint = program.fingerprint()
    store, folder = None, None if checkpoint is None else Path(checkpoint)

    def decide() -> _together.Split:
        nonlocal store
        store = None if folder is None else PartStore.open(folder, fingerprint)
        chunk, share = _sizes(program, asked, mesh, store)
        if store is not None:
            store.begin(chunk, share, asked)
        return _together.Split(chunk, share, tuple(_missing(rows.count, chunk, store)))

    # Several sweeps can be prepared at a time, in an order that differs between processes: each needs a name.
    name = f"sweep {hashlib.sha256(str(sorted(fingerprint.items())).encode()).hexdigest()[:16]}"
    split = _together.agree_on_split(name, decide)
    if folder is not None and store is None:
        store = PartStore(folder, fingerprint, split.chunk_size, split.share)
    return PreparedSweep(name, conditions.conditions, seed_list, program, split, mesh, store)


def _sizes(program: _program.Program, asked: int | None, mesh: Mesh | None, store: PartStore | None) -> tuple[int, int]:
    """Rows of a chunk and of a share: those of the stored chunks, or new ones."""
    if store is not None and store.chunk_size is not None and asked in (None, store.asked, store.chunk_size):
        return store.chunk_size, store.share or store.chunk_size
    num_devices = 1 if mesh is None else mesh.size
    cores = _program.num_cores() if mesh is None else num_devices
    num_dealt = 1 if spans_processes(mesh) else distributed.process_count()
    chunk = _program.auto_chunk_size(program, cores, num_dealt) if asked is None else min(asked, program.rows.count)
    chunk = -(-chunk // num_devices) * num_devices
    return chunk, chunk // (_program.largest_divisor(chunk, cores) if mesh is None else num_devices)


def _missing(num_rows: int, chunk_size: int, store: PartStore | None) -> list[int]:
    return [i for i in range(-(-num_rows // chunk_size)) if store is None or not store.has(i)]


class PreparedSweep:
    """A compiled sweep, ready to run.

    Attributes:
        conditions: the varied fields of every condition, by dotted name.
        seeds: the seeds.
        chunk_size: rows that run, and are stored, together.
        num_workers: compiled calls, on equal shares of a chunk, that run side by side.
        compile_seconds: wall time of tracing and compiling; 0 when every chunk is stored already.
    """

    def __init__(
        self,
        name: str,
        conditions: tuple[Mapping[str, Any], ...],
        seeds: np.ndarray,
        program: _program.Program,
        split: _together.Split,
        mesh: Mesh | None,
        store: PartStore | None,
    ):
        self.conditions, self.seeds, self.chunk_size = conditions, seeds, split.chunk_size
        num_shares = split.chunk_size // split.share
        self.num_workers = 1 if mesh is not None else min(_program.num_workers(), num_shares)
        self._name, self._program, self._rows, self._store = name, program, program.rows, store
        self._share, self._mesh = split.share, mesh
        self._is_dealt = distributed.process_count() > 1 and not spans_processes(mesh)
        self._wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.compile_seconds = self._own_seconds = 0.0
        self._runner = self._compile() if self._own(split.missing) else None

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
        store = self._store
        with store.lock() if store is not None and distributed.is_main() else nullcontext():
            missing = _together.agree_on_missing(f"{self._name}, chunks", self._missing())
            is_shared = _together.is_shared(f"{self._name}, folder", store)
            parts = dict(self._stored(missing, is_shared))
            resumed = sum(self._num_rows(i) for i in parts)
            began = time.perf_counter()
            hidden = not progress or not missing or not distributed.is_main()
            with tqdm(total=self._rows.count, initial=resumed, unit="seed", disable=hidden, desc=description) as bar:
                for i, part in self._finish(missing, is_shared):
                    parts[i] = part
                    bar.update(self._num_rows(i))
            seconds = time.perf_counter() - began if missing else 0.0
        told = {"compile": self.compile_seconds, "run": seconds, "own": self._own_seconds, "workers": self.num_workers}
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
            finite=_finite_rows(history, shape),
            chunk_size=self.chunk_size,
            num_workers=times[0]["workers"],
            compile_seconds=times[0]["compile"],
            run_seconds=times[0]["run"],
            num_resumed=resumed,
            process_seconds=tuple(each["own"] for each in times),
        )

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
        """Run chunks one after the other, the shares of each side by side."""
        if not chunks:
            return
        if self._runner is None:
            self._runner = self._compile()
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

    def _compile(self) -> ShareRunner:
        with jax.enable_x64(self._wide):
            runner = ShareRunner(self._program, self._share, self._mesh)
        self.compile_seconds = runner.compile_seconds
        return runner


def _check_seeds(seeds: int | Sequence[int]) -> np.ndarray:
    if isinstance(seeds, Sequence | np.ndarray):
        values = [_checks.integer("seeds", seed, minimum=0) for seed in seeds]
    else:
        values = list(range(_checks.integer("seeds", seeds, minimum=1)))
    if not values:
        raise ArgumentError("Argument `seeds` must hold at least one seed, but is empty.")
    if len(set(values)) < len(values):
        repeats = len(values) - len(set(values))
        raise ArgumentError(f"Argument `seeds` must not repeat a seed, but has {repeats} repeats.")
    if max(values) >= 2**32:
        raise ArgumentError(f"Argument `seeds` must lie below 2**32, but reaches {max(values)}.")
    return np.asarray(values, dtype=np.uint32)


def _finite_rows(history: Any, shape: tuple[int, int]) -> np.ndarray:
    flags = getattr(history, "finite", None)
    if flags is not None:
        return np.asarray(flags, dtype=bool).reshape(shape)
    finite = np.ones(shape, dtype=bool)
    for leaf in jax.tree.leaves(history):
        if np.issubdtype(leaf.dtype, np.inexact):
            finite &= np.isfinite(leaf).reshape(*shape, -1).all(axis=-1)
    return finite
