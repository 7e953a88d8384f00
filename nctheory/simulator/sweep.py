"""Sweeps over conditions and seeds: compiled once, run in chunks, resumable, failures recorded."""

import dataclasses
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from nctheory import _checks
from nctheory.simulator._parts import PartStore

# Working set of a chunk on a CPU and the share of an accelerator's memory to use. Half of a usual second-level cache:
# beyond it XLA splits every elementwise operation between threads, which cost more than they gained where measured.
CPU_WORKING_SET_BYTES = 1 << 20
ACCELERATOR_MEMORY_SHARE = 0.5
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
            raise ValueError(f"Argument `{name}` must list at least one value, but is {values!r}.")
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
    """Run `train(config, key(seed))` for every condition and seed.

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
    conditions = configs if isinstance(configs, Grid) else _as_grid(configs)
    seed_list = _check_seeds(seeds)
    rows = _Rows.from_configs(conditions.configs, seed_list)
    if chunk_size != "auto":
        _checks.integer("chunk_size", chunk_size, minimum=1)
    num_devices = 1 if mesh is None else mesh.size
    program = _Program.trace(train, rows)
    store = None if checkpoint is None else PartStore.open(Path(checkpoint), program.fingerprint())
    if chunk_size != "auto":
        chunk_size = min(chunk_size, rows.count)
    elif store is not None and store.chunk_size is not None:
        chunk_size = store.chunk_size
    else:
        chunk_size = _auto_chunk_size(program, num_devices, 1 if mesh is not None else _num_cores())
    chunk_size = -(-chunk_size // num_devices) * num_devices
    if store is not None:
        store.begin(chunk_size)
    runner = _Runner(program, chunk_size, mesh, store)
    parts = runner.run(progress, description)
    shape = (len(conditions.configs), len(seed_list))
    history = jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[: rows.count].reshape(*shape, *leaves[0].shape[1:]), *parts
    )
    return SweepResult(
        history=history,
        conditions=conditions.conditions,
        seeds=seed_list,
        finite=_finite_rows(history, shape),
        chunk_size=chunk_size,
        num_workers=runner.num_workers,
        compile_seconds=runner.compile_seconds,
        run_seconds=runner.run_seconds,
        num_resumed=runner.num_resumed,
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of a sweep as one flat batch: leaves that vary are stacked by condition, the others are shared."""

    shared: tuple[Any, ...]
    varying: tuple[np.ndarray, ...]
    is_varying: tuple[bool, ...]
    treedef: Any
    seeds: np.ndarray
    num_conditions: int

    @classmethod
    def from_configs(cls, configs: Sequence[Any], seeds: np.ndarray) -> "_Rows":
        flat = [jax.tree.flatten(config) for config in configs]
        treedef = flat[0][1]
        for index, (leaves, other) in enumerate(flat):
            if other != treedef or [np.shape(a) for a in leaves] != [np.shape(a) for a in flat[0][0]]:
                raise ValueError(
                    f"Argument `configs` must share static fields and shapes, but condition {index} differs from 0; "
                    "run one sweep for each."
                )
        columns = [
            [_canonical(leaf) for leaf in column] for column in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        is_varying = tuple(any(not np.array_equal(leaf, column[0]) for leaf in column[1:]) for column in columns)
        shared = tuple(column[0] for column, varies in zip(columns, is_varying, strict=True) if not varies)
        varying = tuple(np.stack(column) for column, varies in zip(columns, is_varying, strict=True) if varies)
        return cls(shared, varying, is_varying, treedef, seeds, len(configs))

    @property
    def count(self) -> int:
        return self.num_conditions * len(self.seeds)

    def config(self, shared: Sequence[Any], varying: Sequence[Any]) -> Any:
        """Rebuild a configuration from its shared and its varying leaves."""
        sources = iter(shared), iter(varying)
        return jax.tree.unflatten(self.treedef, [next(sources[varies]) for varies in self.is_varying])

    def batch(self, start: int, size: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Seeds and varying leaves of rows start..start+size-1; past the end the last row is repeated."""
        index = np.minimum(np.arange(start, start + size), self.count - 1)
        condition, seed = np.divmod(index, len(self.seeds))
        return self.seeds[seed], tuple(leaf[condition] for leaf in self.varying)


@dataclass(frozen=True)
class _Program:
    """One row of a sweep, traced once; every later step works on the traced program."""

    name: str
    rows: _Rows
    jaxpr: ClosedJaxpr
    structure: Any
    trace_seconds: float

    @classmethod
    def trace(cls, train: Callable[[Any, jax.Array], Any], rows: _Rows) -> "_Program":
        def row(seed, shared, varying):
            return train(rows.config(shared, varying), jax.random.key(seed))

        began = time.perf_counter()
        seeds, varying = rows.batch(0, 1)
        jaxpr, structure = jax.make_jaxpr(row, return_shape=True)(seeds[0], rows.shared, tuple(v[0] for v in varying))
        name = f"{getattr(train, '__module__', '')}.{getattr(train, '__qualname__', repr(type(train)))}"
        return cls(name, rows, jaxpr, structure, time.perf_counter() - began)

    def fingerprint(self) -> dict[str, Any]:
        """What makes two sweeps the same: function, structure, numbers, seeds, precision, backend, versions."""
        return PartStore.fingerprint(
            # The traced program tells an edited `train` from the one that made the chunks; addresses mean nothing.
            structure=f"{self.name} {self.rows.treedef} {re.sub('0x[0-9a-f]+', '', str(self.jaxpr))}",
            arrays=[*self.rows.shared, *self.rows.varying, *(np.asarray(const) for const in self.jaxpr.consts)],
            seeds=self.rows.seeds,
            backend=f"{jax.default_backend()}, jax {jax.__version__}, nctheory {version('nctheory')}",
        )

    def batched(self) -> Callable[..., Any]:
        """The program over (seeds, shared leaves, varying leaves), batched over the first and the last."""
        function, treedef = jaxpr_as_fun(self.jaxpr), jax.tree.structure(self.structure)

        def row(seed, shared, varying):
            return jax.tree.unflatten(treedef, function(*jax.tree.leaves((seed, shared, varying))))

        return jax.vmap(row, in_axes=(0, None, 0))


class _Runner:
    """Compiles the batched program once and runs the chunks that the store does not hold yet."""

    def __init__(self, program: _Program, chunk_size: int, mesh: Mesh | None, store: PartStore | None):
        self.program, self.rows, self.chunk_size = program, program.rows, chunk_size
        self.mesh, self.store = mesh, store
        self.num_workers = 1 if mesh is not None else _largest_divisor(chunk_size, at_most=_num_cores())
        self.compile_seconds = self.run_seconds = 0.0
        self.num_resumed = 0

    def run(self, progress: bool, description: str | None) -> list[Any]:
        starts = range(0, self.rows.count, self.chunk_size)
        missing = [i for i in range(len(starts)) if self.store is None or not self.store.has(i)]
        parts: dict[int, Any] = {}
        if self.store is not None:
            structure = jax.tree.map(self._chunk_of, self.program.structure)
            done = [i for i in range(len(starts)) if i not in set(missing)]
            parts = {i: self.store.load(i, structure) for i in done}
            self.num_resumed = sum(min(self.chunk_size, self.rows.count - starts[i]) for i in done)
        if missing:
            compiled = self._compile()
            began = time.perf_counter()
            bar = tqdm(
                total=self.rows.count, initial=self.num_resumed, unit="seed", disable=not progress, desc=description
            )
            with bar:
                self._run_missing(compiled, missing, starts, parts, bar)
            self.run_seconds = time.perf_counter() - began
        return [parts[i] for i in range(len(starts))]

    def _run_missing(self, compiled, missing, starts, parts, bar) -> None:
        turn = _ONE_WAITING_PROGRAM_AT_A_TIME if _waits_for_threads(compiled) else nullcontext()
        wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        share = self.chunk_size // self.num_workers

        def run_share(start: int) -> Any:
            # Which precision is on is a matter of the thread.
            with turn, jax.enable_x64(wide):
                return jax.tree.map(np.asarray, compiled(*self._inputs(start, share)))

        with ThreadPoolExecutor(self.num_workers) as workers:
            for i in missing:
                shares = workers.map(run_share, range(starts[i], starts[i] + self.chunk_size, share))
                part = jax.tree.map(lambda *leaves: np.concatenate(leaves), *shares)
                if self.store is not None:
                    self.store.save(i, part)
                parts[i] = part
                bar.update(min(self.chunk_size, self.rows.count - starts[i]))

    def _chunk_of(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.chunk_size, *leaf.shape), leaf.dtype)

    def _inputs(self, start: int, size: int):
        seeds, varying = self.rows.batch(start, size)
        batched, shared = (seeds, varying), self.rows.shared
        if self.mesh is not None:
            batched = jax.device_put(batched, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names)))
            shared = jax.device_put(shared, NamedSharding(self.mesh, PartitionSpec()))
        return batched[0], shared, batched[1]

    def _compile(self):
        began = time.perf_counter()
        inputs = self._inputs(0, self.chunk_size // self.num_workers)
        compiled = jax.jit(self.program.batched()).lower(*inputs).compile()
        self.compile_seconds = self.program.trace_seconds + time.perf_counter() - began
        return compiled


def _num_cores() -> int:
    """Cores on which compiled calls can run side by side; an accelerator runs one call at a time."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _largest_divisor(number: int, *, at_most: int) -> int:
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def _waits_for_threads(compiled: Any) -> bool:
    """Whether a CPU program holds an operation that waits for the thread pool from within it.

    These are LAPACK calls on batches and Fourier transforms; of calls that are not known here it is assumed.
    """
    if jax.default_backend() != "cpu":
        return False
    for line in compiled.as_text().splitlines():
        if " fft(" in line:
            return True
        if " custom-call(" in line:
            results = line.split(" custom-call(")[0]
            is_batch = re.search(r"\[\d+,\d+,\d", results) is not None
            if is_batch or 'custom_call_target="lapack_' not in line:
                return True
    return False


def _canonical(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array in the dtype JAX would give it now (float32 unless x64 is on)."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def _as_grid(configs: Any) -> Grid:
    if isinstance(configs, list | tuple):
        if not configs:
            raise ValueError("Argument `configs` must hold at least one configuration, but is empty.")
        return Grid(tuple(configs), tuple({"condition": i} for i in range(len(configs))))
    return Grid((configs,), ({},))


def _replace(config: Any, path: Sequence[str], value: Any, name: str) -> Any:
    fields = list(getattr(config, "__dataclass_fields__", ()))
    if path[0] not in fields:
        raise ValueError(f"Argument `{name}` must name a field of {type(config).__name__}, one of {fields}.")
    new = value if len(path) == 1 else _replace(getattr(config, path[0]), path[1:], value, name)
    return dataclasses.replace(config, **{path[0]: new})


def _check_seeds(seeds: int | Sequence[int]) -> np.ndarray:
    if isinstance(seeds, Sequence | np.ndarray):
        values = [_checks.integer("seeds", seed, minimum=0) for seed in seeds]
    else:
        values = list(range(_checks.integer("seeds", seeds, minimum=1)))
    if not values:
        raise ValueError("Argument `seeds` must hold at least one seed, but is empty.")
    if len(set(values)) < len(values):
        raise ValueError(f"Argument `seeds` must not repeat a seed, but has {len(values) - len(set(values))} repeats.")
    if max(values) >= 2**32:
        raise ValueError(f"Argument `seeds` must lie below 2**32, but reaches {max(values)}.")
    return np.asarray(values, dtype=np.uint32)


def _auto_chunk_size(program: _Program, num_devices: int, num_workers: int) -> int:
    """Largest power of two whose working set fits, for every worker; on a CPU at least 2, as one alone ran slower."""
    row_bytes = max(_largest_intermediates(program.jaxpr.jaxpr, count=4), 1)
    if jax.default_backend() == "cpu":
        budget = CPU_WORKING_SET_BYTES
    else:
        stats = jax.local_devices()[0].memory_stats() or {}
        budget = int(ACCELERATOR_MEMORY_SHARE * stats.get("bytes_limit", 8 << 30)) * num_devices
    smallest = 2 if jax.default_backend() == "cpu" else 1
    share = max(smallest, 1 << max(int(budget // row_bytes).bit_length() - 1, 0))
    # Few rows are split evenly, too.
    return min(share, -(-program.rows.count // num_workers)) * num_workers


def _largest_intermediates(jaxpr, count: int) -> int:
    """Bytes of the `count` largest arrays that the program makes, loops and inner functions included."""
    sizes: list[int] = []

    def visit(inner) -> None:
        for equation in inner.eqns:
            for variable in equation.outvars:
                aval = variable.aval
                if hasattr(aval, "shape") and hasattr(aval.dtype, "itemsize"):
                    sizes.append(int(np.prod(aval.shape, dtype=np.int64)) * aval.dtype.itemsize)
            for sub in jaxprs_in_params(equation.params):
                visit(sub)

    visit(jaxpr)
    return sum(sorted(sizes)[-count:])


def _finite_rows(history: Any, shape: tuple[int, int]) -> np.ndarray:
    flags = getattr(history, "finite", None)
    if flags is not None:
        return np.asarray(flags, dtype=bool).reshape(shape)
    finite = np.ones(shape, dtype=bool)
    for leaf in jax.tree.leaves(history):
        if np.issubdtype(leaf.dtype, np.inexact):
            finite &= np.isfinite(leaf).reshape(*shape, -1).all(axis=-1)
    return finite
