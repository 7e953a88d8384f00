"""Shares: rows that one compiled call runs on one core or device; how many run side by side changes no number."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nctheory import distributed
from nctheory._errors import ArgumentError
from nctheory.simulator import _program

# On a CPU, a batch of LAPACK calls (and a Fourier transform) is spread over the threads that also run programs, and one
# of these threads waits for it. Two programs with such batches can wait for each other for ever (JAX 0.10.2), so they
# take turns, also between sweeps; programs without them run side by side.
_ONE_WAITING_PROGRAM_AT_A_TIME = threading.Lock()


def default_mesh() -> Mesh | None:
    """All accelerators of this process, if it has several; a CPU's cores need no mesh."""
    if jax.default_backend() == "cpu" or jax.local_device_count() == 1:
        return None
    return Mesh(np.asarray(jax.local_devices()), ("rows",))


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether the devices of a mesh are those of every process, not of this one alone.

    Raises:
        ValueError: if they are neither.
    """
    if mesh is None:
        return False
    owners = sorted({device.process_index for device in mesh.devices.flat})
    if owners == [jax.process_index()]:
        return False
    if owners != list(range(jax.process_count())):
        raise ArgumentError(
            "Argument `mesh` must hold devices of this process alone, or of every process, but holds those of "
            f"processes {owners}."
        )
    return True


class _OneBlasThreadEach:
    """One thread for each call of LAPACK while anyone is inside, as the programs side by side have the cores already.

    With more, the threads wait for each other by spinning: with decompositions of 256 x 256 matrices a sweep took
    twenty times as long beside other work on two cores. Also for one program alone: sums over threads have other
    digits. The limit is the process's, so the last of several sweeps to leave lifts what the first to enter set.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if self._inside == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limits.restore_original_limits()


_ONE_BLAS_THREAD_EACH = _OneBlasThreadEach()


class ShareRunner:
    """A compiled program over shares of equal size.

    Attributes:
        compile_seconds: wall time of tracing and compiling.
    """

    def __init__(self, program: _program.Program, share: int, mesh: Mesh | None):
        """Compile for one share, or with a mesh for one share on each of its devices."""
        began = time.perf_counter()
        self._rows, self._share = program.rows, share
        # Which precision is on is a matter of the thread.
        self._wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self._mesh, self._spans = mesh, spans_processes(mesh)
        self._compiled = self._compile(program)
        if mesh is not None and self._waits() and not self._spans:
            # Its devices are threads of this process and could wait for each other: one share after the other.
            self._mesh = None
            self._compiled = self._compile(program)
        self._turn = _ONE_WAITING_PROGRAM_AT_A_TIME if self._waits() else nullcontext()
        self.compile_seconds = program.trace_seconds + time.perf_counter() - began

    def _compile(self, program: _program.Program) -> Any:
        function = program.batched()
        if self._mesh is not None:
            rows, everywhere = PartitionSpec(self._mesh.axis_names), PartitionSpec()
            # Left to itself, the compiler may gather all rows on every device, as it does for LAPACK calls.
            function = jax.shard_map(
                function, mesh=self._mesh, in_specs=(rows, everywhere, rows), out_specs=rows, check_vma=False
            )
        with jax.enable_x64(self._wide):
            return jax.jit(function).lower(*self._inputs([0])).compile()

    def memory_bytes(self) -> int | None:
        """Memory that a call needs on one device, as the compiler says: arguments, results and what lies between."""
        told = self._compiled.memory_analysis()
        if told is None:
            return None
        return told.temp_size_in_bytes + told.output_size_in_bytes + told.argument_size_in_bytes

    def _waits(self) -> bool:
        return _program.waits_for_threads(self._compiled)

    def run(self, starts: Sequence[int], num_workers: int) -> Iterator[Any]:
        """Run shares, several side by side, and yield their results as NumPy arrays, in order.

        Args:
            starts: first row of every share.
            num_workers: how many run side by side; with a mesh, one on each of its devices.
        """
        if self._mesh is None:
            yield from self._run_in_threads(starts, num_workers)
            return
        size = self._mesh.size
        for first in range(0, len(starts), size):
            group = starts[first : first + size]
            parts = self._call(group)
            for i in range(len(group)):
                here = slice(i * self._share, (i + 1) * self._share)
                yield jax.tree.map(lambda leaf, here=here: leaf[here], parts)

    def _run_in_threads(self, starts: Sequence[int], num_workers: int) -> Iterator[Any]:
        pool, pending = ThreadPoolExecutor(num_workers), deque[Future]()
        try:
            with _ONE_BLAS_THREAD_EACH:
                for start in starts:
                    pending.append(pool.submit(self._call, [start]))
                    # Some ahead, so that no core waits for a chunk to be stored.
                    if len(pending) >= 2 * num_workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
        finally:
            # After an interrupt nobody wants the shares that still run.
            pool.shutdown(wait=not pending, cancel_futures=True)

    def _call(self, starts: Sequence[int]) -> Any:
        with self._turn, jax.enable_x64(self._wide):
            if not self._spans:
                return jax.tree.map(np.asarray, self._compiled(*self._inputs(starts)))
            with distributed.collective():
                outputs = self._compiled(*self._inputs(starts))
                return multihost_utils.process_allgather(outputs, tiled=True)

    def _inputs(self, starts: Sequence[int]) -> tuple[Any, Any, Any]:
        num_devices = 1 if self._mesh is None else self._mesh.size
        starts = [*starts, *[starts[-1]] * (num_devices - len(starts))]
        seeds, varying = self._rows.batch(np.concatenate([np.arange(start, start + self._share) for start in starts]))
        if self._mesh is None:
            return seeds, self._rows.shared, varying
        rows = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        everywhere = NamedSharding(self._mesh, PartitionSpec())

        def place(tree: Any, sharding: NamedSharding) -> Any:
            # Of an array that spans processes, each gives its own part.
            return jax.tree.map(
                lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]), tree
            )

        return place(seeds, rows), place(self._rows.shared, everywhere), place(varying, rows)
