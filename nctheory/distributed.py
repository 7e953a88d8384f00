"""Several processes that compute one thing: start them, tell them apart, let them wait for each other.

Everything works in a single process too, without any start. JAX is imported only once it is needed.
"""

import atexit
import contextlib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nctheory._cores import bind
from nctheory._errors import ArgumentError
from nctheory._rendezvous import DistributedError, Peers, meet

__all__ = [
    "DistributedError",
    "barrier",
    "check_peers",
    "exchange",
    "initialize",
    "is_main",
    "process_count",
    "process_index",
    "processes_on_these_cores",
    "share",
]

_POLL_MS = 500


@dataclass
class _Run:
    """The run that this process belongs to."""

    index: int
    count: int
    peers: Peers | None
    num_on_these_cores: int = 1


_run: _Run | None = None
_turns: Counter[str] = Counter()
_turns_lock = threading.Lock()


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: float = 60,
    bind_cores: bool = True,
) -> None:
    """Join the processes of one run. Call it in every process, before the first JAX computation.

    Without arguments, what JAX detects counts: SLURM, Open MPI, Kubernetes or a TPU pod. All processes meet at the
    coordinator's port first, so that every mistake becomes an exception in every process; then JAX's own service
    listens there. From then on a process that dies ends the others: where they wait for it they raise
    `DistributedError` at once, and 20 s later, if they are stuck inside an operation, they end with exit code 3. On a
    CPU, collective operations use gloo.

    Processes of one machine that may all use the same cores divide them: each is bound to a part of its own, whole
    physical cores where they suffice. Without that the threads of each are spread over the cores of all.

    Example:
        >>> from nctheory import distributed
        >>> distributed.initialize("10.0.0.1:1234", num_processes=2, process_id=0)  # doctest: +SKIP

    Args:
        coordinator: HOST:PORT of process 0, with a port that is free there.
        num_processes: number of processes.
        process_id: which of them this is, in 0..num_processes-1.
        start_timeout: how long to wait for the others, in seconds.
        bind_cores: whether to divide shared cores; the same on all processes. Where another program binds processes to
            cores of their own, such as SLURM or `taskset`, or where there are fewer cores than processes, nothing is
            changed.

    Raises:
        ValueError: if only some of the first three arguments are given, or one is impossible.
        DistributedError: if a process does not come in time, the processes contradict each other, no cluster is
            detected, or this process has started already.
    """
    global _run
    import jax

    check_arguments(coordinator, num_processes, process_id, start_timeout)
    if _run is not None or jax.distributed.is_initialized():
        raise DistributedError("This process has joined a run already.")
    local_devices = None
    if coordinator is None:
        coordinator, num_processes, process_id, local_devices = _detect(start_timeout)
    assert num_processes is not None
    assert process_id is not None
    host, _, port = coordinator.rpartition(":")
    peers = meet(host.strip("[]"), int(port), num_processes, process_id, start_timeout)
    sharing = peers.num_on_these_cores
    if bind_cores and bind(peers.place_on_these_cores, sharing):
        sharing = 1
    _join(coordinator, num_processes, process_id, local_devices, start_timeout)
    _run = _Run(process_id, num_processes, peers, sharing)
    atexit.register(_leave)


def _join(coordinator: str, num_processes: int, process_id: int, local_devices: Any, start_timeout: float) -> None:
    """Start JAX's own service or join it."""
    import jax

    # SIGTERM would be noted and ignored, and the death of a peer would abort this process, with a dump of the stack,
    # where `Peers` lets it end in order.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=local_devices,
            initialization_timeout=max(int(start_timeout), 10),
            heartbeat_timeout_seconds=60,
            shutdown_timeout_seconds=10,
        )
    except RuntimeError as error:
        raise DistributedError(f"JAX could not join the run: {error}") from error


def check_arguments(
    coordinator: str | None, num_processes: int | None, process_id: int | None, start_timeout: float = 60
) -> None:
    """Check what `initialize` is given, without starting anything.

    Raises:
        ValueError: if only some of the first three are given, or one is impossible.
    """
    is_number = isinstance(start_timeout, int | float) and not isinstance(start_timeout, bool)
    if not is_number or not 0 < start_timeout < math.inf:
        raise ArgumentError(f"Argument `start_timeout` must be > 0 and finite, but is {start_timeout!r}.")
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    absent = [name for name, value in given.items() if value is None]
    if len(absent) == 3:
        return
    if absent:
        present = [name for name in given if name not in absent]
        raise ArgumentError(
            f"Argument `{absent[0]}` must be given when `{present[0]}` is: all of {', '.join(given)}, or none of them."
        )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ArgumentError(f"Argument `coordinator` must be HOST:PORT, but is {coordinator!r}.")
    for name, value, minimum in (("num_processes", num_processes, 1), ("process_id", process_id, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ArgumentError(f"Argument `{name}` must be an integer >= {minimum}, but is {value!r}.")
    assert num_processes is not None
    assert process_id is not None
    if process_id >= num_processes:
        raise ArgumentError(f"Argument `process_id` must lie in 0..{num_processes - 1}, but is {process_id}.")


def _detect(timeout_s: float) -> tuple[str, int, int, Any]:
    """Coordinator, number of processes, process and its devices, as the cluster tells JAX."""
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout_s))
    coordinator, num_processes, process_id, local_devices = found
    if coordinator is None or num_processes is None or process_id is None:
        raise DistributedError(
            "No cluster was detected (SLURM, Open MPI, Kubernetes, TPU pod): give the coordinator, the number of "
            "processes and the process id."
        )
    return coordinator, num_processes, process_id, local_devices


def _leave() -> None:
    """At the end of the process, before JAX's service ends."""
    if _run is not None and _run.peers is not None:
        # Set when an exception ended the program.
        error = getattr(sys, "last_value", None)
        _run.peers.leave(failed=error is not None, why="" if error is None else _in_short(error))


def abandon(why: str = "") -> None:
    """Tell the other processes that, and why, this one cannot go on, and give them a moment to end.

    Nothing in a lone process.
    """
    if _run is not None and _run.peers is not None:
        _run.peers.leave(failed=True, patience_s=5, why=why)


def _in_short(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def _current() -> _Run | None:
    """The run of this process, also of one that called `jax.distributed.initialize` itself."""
    if _run is None and "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return _Run(jax.process_index(), jax.process_count(), None)
    return _run


def process_count() -> int:
    """Number of processes of this run; 1 without a start."""
    run = _current()
    return 1 if run is None else run.count


def process_index() -> int:
    """Which process this is, from 0."""
    run = _current()
    return 0 if run is None else run.index


def is_main() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return process_index() == 0


def processes_on_these_cores() -> int:
    """Number of processes of this run that may use the same cores of the same machine, this one included."""
    run = _current()
    return 1 if run is None else run.num_on_these_cores


def check_peers() -> None:
    """Do nothing while all processes of this run live.

    Raises:
        DistributedError: naming a process that ended before its work was done.
    """
    run = _current()
    if run is not None and run.peers is not None:
        run.peers.check()


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Around operations of all devices: when they fail because a process died, say so.

    Raises:
        DistributedError: naming the process, instead of whatever the operation raised.
    """
    try:
        yield
    except DistributedError:
        raise
    except Exception as error:
        # The operation may fail a moment before the end of the process is known.
        until = time.monotonic() + 2
        while time.monotonic() < until:
            try:
                check_peers()
            except DistributedError as lost:
                raise lost from error
            time.sleep(0.05)
        raise


def barrier(name: str) -> None:
    """Wait until every process is here.

    Args:
        name: what is waited for; every process must use the same names, each as often as the others.

    Raises:
        DistributedError: if a process ends without coming here.
    """
    exchange(name, "")


def share(name: str, text: str | None = None, *, timeout_s: float | None = None) -> str:
    """The text of process 0, on every process; also in several threads at a time, if names differ.

    Args:
        name: what the text is; every process must use the same names, each as often as the others.
        text: the text on process 0; what the others pass is ignored.
        timeout_s: how long to wait for process 0, in seconds; None for as long as it lives.

    Returns:
        The text of process 0.

    Raises:
        DistributedError: if process 0 ends, or does not share in time.
    """
    run = _current()
    if run is None or run.count == 1:
        return text or ""
    key = _key(name)
    if run.index == 0:
        _client().key_value_set(key, text or "")
        return text or ""
    return _wait_for(run, key, name, 0, timeout_s)


def agree(name: str, act: Callable[[], str], *passing: type[Exception], timeout_s: float | None = None) -> str:
    """What process 0 does and says, on every process; where it fails all fail, and none waits for it.

    Args:
        name: as for `share`.
        act: called in process 0 alone.
        passing: errors of `act` that every process raises as what they are, each made from its message.
        timeout_s: as for `share`.

    Returns:
        What `act` returned.

    Raises:
        DistributedError: in the other processes, naming what else `act` raised in process 0; as in `share`.
        Exception: what `act` raises, in process 0.
    """
    if process_count() == 1:
        return act()
    if is_main():
        try:
            text = act()
        except Exception as error:
            kind = next((i for i, each in enumerate(passing) if isinstance(error, each)), None)
            share(name, json.dumps({"kind": kind, "error": _in_short(error) if kind is None else str(error)}))
            raise
        share(name, json.dumps({"text": text}))
        return text
    told = json.loads(share(name, timeout_s=timeout_s))
    if "text" in told:
        return told["text"]
    if told["kind"] is not None:
        raise passing[told["kind"]](told["error"])
    raise DistributedError(f"Process 0 failed: {told['error']}")


def exchange(name: str, text: str) -> tuple[str, ...]:
    """The texts of all processes, on every process.

    Args:
        name: what the texts are; every process must use the same names, each as often as the others.
        text: the text of this process.

    Returns:
        One text a process.

    Raises:
        DistributedError: if a process ends without giving its text.
    """
    run = _current()
    if run is None or run.count == 1:
        return (text,)
    key = _key(name)
    _client().key_value_set(f"{key}/{run.index}", text)
    return tuple(_wait_for(run, f"{key}/{i}", name, i, None) for i in range(run.count))


def _key(name: str) -> str:
    """A name of its own for every use of a name."""
    with _turns_lock:
        _turns[name] += 1
        return f"nctheory/{name}/{_turns[name]}"


def _client() -> Any:
    # JAX has no public door to the key-value store of its service.
    from jax._src.distributed import global_state

    assert global_state.client is not None
    return global_state.client


def _wait_for(run: _Run, key: str, name: str, source: int, timeout_s: float | None) -> str:
    began = time.monotonic()
    while True:
        # Looked at first: what a process gave before it left is still there.
        left = run.peers is not None and run.peers.has_left(source)
        try:
            return _client().blocking_key_value_get(key, _POLL_MS)
        except Exception as error:
            check_peers()
            if "DEADLINE_EXCEEDED" not in str(error):
                time.sleep(1)
                check_peers()
                raise DistributedError(f"Process {run.index} lost the others while it waited for {name!r}.") from error
            if left:
                raise DistributedError(f"Process {source} ended without {name!r}.") from error
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise DistributedError(
                    f"Process {run.index} waited {timeout_s:g} s for {name!r} of process {source}; "
                    "do all processes run the same program?"
                ) from error
