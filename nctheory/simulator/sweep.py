"""Sweeps over conditions and seeds: compiled once, run in chunks, resumable, failures recorded."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.simulator import _program
from nctheory.simulator._parts import PartStore

# On a CPU, a batch of LAPACK calls (and a Fourier transform) is spread over the threads that also run programs, and one
# of these threads waits for it. Two programs with such batches can wait for each other for ever (JAX 0.10.2), so they
# take turns, also between sweeps; programs without them run side by side.
_ONE_WAITING_PROGRAM_AT_A_TIME = threading.Lock()


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
        compile_seconds: wall time of tracing and compiling, once for the sweep; 0 when every chunk was read back.
        run_seconds: wall time of running, without compilation.
        num_resumed: rows read back from the checkpoint instead of being run.
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

    @property
    def num_nonfinite(self) -> Int[np.ndarray, " C"]:
        """Number of seeds of each condition that became non-finite."""
        return (~self.finite).sum(axis=1)


@dataclass(frozen=True)
class Grid:
    """Conditions of a sweep: configurations and, for each, the fields that were varied.

    Attributes:
        configs: one configuration a condition.
        conditions: the varied fields, by dotted name.
    """

    configs: tuple[Any, ...]
    conditions: tuple[Mapping[str, Any], ...]


def grid(config: Any, **axes: Sequence[Any]) -> Grid:
    """Cartesian product over fields of a configuration; the last axis varies fastest.

    Args:
        config: the configuration that holds everything else.
        axes: values by field name; `__` reaches into nested fields, `model__init_std=[0.1, 1.0]`.

    Returns:
        The grid. Without axes, its one condition is `config` itself.

    Raises:
        ValueError: if a field does not exist or an axis has no values.
    """
    configs, conditions = [], []
    for name, values in axes.items():
        if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not len(values):
            raise ArgumentError(f"Argument `{name}` must list at least one value, but is {values!r}.")
    for values in product(*axes.values()):
        changed = config
        for name, value in zip(axes, values, strict=True):
            changed = _replace(changed, name.split("__"), value, name)
        configs.append(changed)
        conditions.append({name.replace("__", "."): value for name, value in zip(axes, values, strict=True)})
    return Grid(tuple(configs), tuple(conditions))


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

    Args:
        train: pure function of (config, key) that returns a pytree of arrays.
        configs: one configuration, a sequence of them, or a `Grid`.
        seeds: number of seeds (0..n-1) or the seeds themselves, each in 0..2**32-1, without repetitions.
        chunk_size: rows that run, and are stored, together. "auto" fits every core's share into its cache, or the chunk
            into half of the accelerator's memory, as estimated from the traced program. Of a given size, as many cores
            take a share as divide it evenly.
        mesh: devices to shard the rows of a chunk over; the chunk size is rounded up to a multiple of their number.
        checkpoint: folder that receives every finished chunk. If it already holds chunks of the same sweep they are
            read back instead of being run, with their chunk size; a folder of another sweep is refused.
        progress: whether to show a progress bar.
        description: text before the progress bar.

    Returns:
        All rows, those that became non-finite marked as such.

    Raises:
        ValueError: on bad seeds or chunk size, or when conditions differ in a static field or a shape.
        RunFolderError: if `checkpoint` belongs to another sweep or holds a damaged file.
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
        mesh: devices to shard the rows of a chunk over; the chunk size is rounded up to a multiple of their number.
        checkpoint: folder that receives every finished chunk. If it already holds chunks of the same sweep they are
            read back instead of being run, with their chunk size; a folder of another sweep is refused.

    Returns:
        The compiled sweep. If `checkpoint` holds every chunk, nothing was compiled.

    Raises:
        ValueError: on bad seeds or chunk size, or when conditions differ in a static field or a shape.
        RunFolderError: if `checkpoint` belongs to another sweep or holds a damaged header.
    """
    conditions = configs if isinstance(configs, Grid) else _as_grid(configs)
    seed_list = _check_seeds(seeds)
    rows = _program.Rows.from_configs(conditions.configs, seed_list)
    if chunk_size != "auto":
        _checks.integer("chunk_size", chunk_size, minimum=1)
    program = _program.Program.trace(train, rows)
    store = None if checkpoint is None else PartStore.open(Path(checkpoint), program.fingerprint())
    if chunk_size != "auto":
        chunk_size = min(chunk_size, rows.count)
    elif store is not None and store.chunk_size is not None:
        chunk_size = store.chunk_size
    else:
        chunk_size = _program.auto_chunk_size(program, mesh)
    num_devices = 1 if mesh is None else mesh.size
    chunk_size = -(-chunk_size // num_devices) * num_devices
    if store is not None:
        store.begin(chunk_size)
    return PreparedSweep(conditions.conditions, seed_list, program, chunk_size, mesh, store)


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
        conditions: tuple[Mapping[str, Any], ...],
        seeds: np.ndarray,
        program: _program.Program,
        chunk_size: int,
        mesh: Mesh | None,
        store: PartStore | None,
    ):
        self.conditions, self.seeds, self.chunk_size = conditions, seeds, chunk_size
        self.num_workers = 1 if mesh is not None else _program.largest_divisor(chunk_size, _program.num_cores())
        self._program, self._rows, self._mesh, self._store = program, program.rows, mesh, store
        self._starts = range(0, self._rows.count, chunk_size)
        self._wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.compile_seconds = 0.0
        self._compiled = self._compile() if self._missing() else None

    def run(self, *, progress: bool = True, description: str | None = None) -> SweepResult:
        """Run the chunks that the checkpoint does not hold, read back the others.

        Args:
            progress: whether to show a progress bar.
            description: text before the progress bar.

        Returns:
            All rows, those that became non-finite marked as such.

        Raises:
            RunFolderError: if the checkpoint holds a damaged file.
        """
        missing = self._missing()
        parts = {i: self._load(i) for i in range(len(self._starts)) if i not in set(missing)}
        resumed = sum(self._num_rows(i) for i in parts)
        began = time.perf_counter()
        if missing:
            with tqdm(
                total=self._rows.count, initial=resumed, unit="seed", disable=not progress, desc=description
            ) as bar:
                for i, part in self._run_chunks(missing):
                    parts[i] = part
                    bar.update(self._num_rows(i))
        shape = (len(self.conditions), len(self.seeds))
        history = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[: self._rows.count].reshape(*shape, *leaves[0].shape[1:]),
            *(parts[i] for i in range(len(self._starts))),
        )
        return SweepResult(
            history=history,
            conditions=self.conditions,
            seeds=self.seeds,
            finite=_finite_rows(history, shape),
            chunk_size=self.chunk_size,
            num_workers=self.num_workers,
            compile_seconds=self.compile_seconds,
            run_seconds=time.perf_counter() - began if missing else 0.0,
            num_resumed=resumed,
        )

    def _missing(self) -> list[int]:
        return [i for i in range(len(self._starts)) if self._store is None or not self._store.has(i)]

    def _num_rows(self, chunk: int) -> int:
        return min(self.chunk_size, self._rows.count - self._starts[chunk])

    def _load(self, chunk: int) -> Any:
        assert self._store is not None

        def of_chunk(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.chunk_size, *leaf.shape), leaf.dtype)

        return self._store.load(chunk, jax.tree.map(of_chunk, self._program.structure))

    def _run_chunks(self, chunks: list[int]) -> Iterator[tuple[int, Any]]:
        """Run chunks one after the other, the shares of each side by side, and store them."""
        if self._compiled is None:
            self._compiled = self._compile()
        compiled, share = self._compiled, self.chunk_size // self.num_workers
        turn = _ONE_WAITING_PROGRAM_AT_A_TIME if _program.waits_for_threads(compiled) else nullcontext()

        def run_share(start: int) -> Any:
            # Which precision is on is a matter of the thread.
            with turn, jax.enable_x64(self._wide):
                return jax.tree.map(np.asarray, compiled(*self._inputs(start, share)))

        with ThreadPoolExecutor(self.num_workers) as workers:
            for i in chunks:
                first = self._starts[i]
                shares = workers.map(run_share, range(first, first + self.chunk_size, share))
                part = jax.tree.map(lambda *leaves: np.concatenate(leaves), *shares)
                if self._store is not None:
                    self._store.save(i, part)
                yield i, part

    def _inputs(self, start: int, size: int):
        seeds, varying = self._rows.batch(start, size)
        batched, shared = (seeds, varying), self._rows.shared
        if self._mesh is not None:
            batched = jax.device_put(batched, NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names)))
            shared = jax.device_put(shared, NamedSharding(self._mesh, PartitionSpec()))
        return batched[0], shared, batched[1]

    def _compile(self):
        began = time.perf_counter()
        inputs = self._inputs(0, self.chunk_size // self.num_workers)
        with jax.enable_x64(self._wide):
            compiled = jax.jit(self._program.batched()).lower(*inputs).compile()
        self.compile_seconds = self._program.trace_seconds + time.perf_counter() - began
        return compiled


def _as_grid(configs: Any) -> Grid:
    if isinstance(configs, list | tuple):
        if not configs:
            raise ArgumentError("Argument `configs` must hold at least one configuration, but is empty.")
        return Grid(tuple(configs), tuple({"condition": i} for i in range(len(configs))))
    return Grid((configs,), ({},))


def _replace(config: Any, path: Sequence[str], value: Any, name: str) -> Any:
    fields = list(getattr(config, "__dataclass_fields__", ()))
    if path[0] not in fields:
        raise ArgumentError(f"Argument `{name}` must name a field of {type(config).__name__}, one of {fields}.")
    new = value if len(path) == 1 else _replace(getattr(config, path[0]), path[1:], value, name)
    return dataclasses.replace(config, **{path[0]: new})


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
