"""A sweep as one program: its rows, the traced function, the size of a chunk, and what can run side by side."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, jaxprs_in_params

from nctheory import _checks, distributed
from nctheory._errors import ArgumentError
from nctheory.simulator._parts import PartStore

# Working set of a chunk on a CPU and the share of an accelerator's memory to use. Half of a usual second-level cache:
# beyond it XLA splits every elementwise operation between threads, which cost more than they gained where measured.
CPU_WORKING_SET_BYTES = 1 << 20
ACCELERATOR_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Rows:
    """The rows of a sweep as one flat batch: leaves that vary are stacked by condition, the others are shared."""

    shared: tuple[Any, ...]
    varying: tuple[np.ndarray, ...]
    is_varying: tuple[bool, ...]
    treedef: Any
    seeds: np.ndarray
    num_conditions: int

    @classmethod
    def from_configs(cls, configs: Sequence[Any], seeds: np.ndarray) -> "Rows":
        flat = [jax.tree.flatten(config) for config in configs]
        treedef = flat[0][1]
        for index, (leaves, other) in enumerate(flat):
            if other != treedef or [np.shape(a) for a in leaves] != [np.shape(a) for a in flat[0][0]]:
                raise ArgumentError(
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

    def batch(self, index: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Seeds and varying leaves of these rows; instead of rows past the end comes the last one."""
        index = np.minimum(index, self.count - 1)
        condition, seed = np.divmod(index, len(self.seeds))
        return self.seeds[seed], tuple(leaf[condition] for leaf in self.varying)


@dataclass(frozen=True)
class Program:
    """One row of a sweep, traced once; every later step works on the traced program."""

    name: str
    rows: Rows
    jaxpr: ClosedJaxpr
    structure: Any
    trace_seconds: float

    @classmethod
    def trace(cls, train: Callable[[Any, jax.Array], Any], rows: Rows) -> "Program":
        def row(seed, shared, varying):
            return train(rows.config(shared, varying), jax.random.key(seed))

        began = time.perf_counter()
        seeds, varying = rows.batch(np.arange(1))
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


def _canonical(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array in the dtype JAX would give it now (float32 unless x64 is on)."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def num_cores() -> int:
    """Cores on which compiled calls can run side by side; an accelerator runs one call at a time."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers() -> int:
    """Compiled calls that this process should run side by side: its part of the cores that it may use."""
    return max(1, num_cores() // distributed.processes_on_these_cores())


def largest_divisor(number: int, at_most: int) -> int:
    """Largest divisor of a number up to a bound."""
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def waits_for_threads(compiled: Any) -> bool:
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


def memory_limit() -> int | None:
    """Memory of one accelerator in bytes; None on a CPU, where the size of the cache matters instead."""
    if jax.default_backend() == "cpu":
        return None
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 8 << 30)


def auto_chunk_size(program: Program, num_shares: int, num_chunks: int = 1) -> int:
    """Rows whose working sets fit: on a CPU into the cache of every core, elsewhere into the devices' memory.

    A core's share is a power of two, at least 2, as one row alone ran slower; few rows are split evenly.

    Args:
        program: one row.
        num_shares: shares of a chunk that run side by side, one on each core or device.
        num_chunks: chunks that run side by side, one in each process.
    """
    row_bytes = max(_largest_intermediates(program.jaxpr.jaxpr, count=4), 1)
    limit = memory_limit()
    if limit is None:
        budget, smallest = CPU_WORKING_SET_BYTES, 2
    else:
        budget, smallest = int(ACCELERATOR_MEMORY_SHARE * limit), 1
    share = max(smallest, 1 << max(int(budget // row_bytes).bit_length() - 1, 0))
    return min(share, -(-program.rows.count // (num_shares * num_chunks))) * num_shares


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


def check_seeds(seeds: int | Sequence[int]) -> np.ndarray:
    """The seeds as an array.

    Raises:
        ValueError: unless they are different numbers that a key can be made of, at least one.
    """
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


def finite_rows(history: Any, shape: tuple[int, int]) -> np.ndarray:
    """Which rows of a history stayed finite, by its own report if it has one."""
    flags = getattr(history, "finite", None)
    if flags is not None:
        return np.asarray(flags, dtype=bool).reshape(shape)
    finite = np.ones(shape, dtype=bool)
    for leaf in jax.tree.leaves(history):
        if np.issubdtype(leaf.dtype, np.inexact):
            finite &= np.isfinite(leaf).reshape(*shape, -1).all(axis=-1)
    return finite
