"""Scoring in processes of their own: fitting probes holds Python's lock most of the time."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Score = Callable[..., dict[str, Any]]


@contextmanager
def _elsewhere(function: Score, num_processes: int) -> Iterator[Score]:
    """Yield the function, carried out by other processes if there is to be more than one."""
    if num_processes == 1:
        yield function
        return
    # Forking a process in which JAX has started threads can hang.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker) as processes:
        try:
            yield lambda *arguments, **options: processes.submit(function, *arguments, **options).result()
        except BaseException:
            processes.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    """One thread a process; an interruption is the parent's to handle."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)


def score_all(
    jobs: Sequence[tuple[Any, ...]], unit: Callable[..., dict[str, Any]], function: Score, *, alone: bool
) -> list[dict[str, Any]]:
    """Carry out `unit(score, *job)` for every job, with a progress bar.

    Args:
        jobs: arguments of each unit.
        unit: prepares the arguments of `score` and calls it; runs in threads of this process.
        function: what `score` is, a function of a module; runs in as many processes as there are cores.
        alone: whether to do without other processes.

    Returns:
        What the units return, in the order of the jobs.
    """
    from tqdm.auto import tqdm

    num_workers = 1 if alone else os.cpu_count() or 1
    # A thread for every process computes the features, so that few of them are in memory at once.
    with _elsewhere(function, num_workers) as score, ThreadPoolExecutor(num_workers) as pool:
        try:
            found = pool.map(lambda job: unit(score, *job), jobs)
            return list(tqdm(found, total=len(jobs), desc="cluster and probe"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
