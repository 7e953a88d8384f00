"""The cores that processes of one machine divide between them."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path


def bind(place: int, count: int) -> bool:
    """Keep this process, with all its threads, to its part of the cores that it may use.

    To be called before JAX computes, which sizes its pool of threads by the cores that it sees.

    Args:
        place: which of the processes on these cores this is, in 0..count-1.
        count: number of processes on these cores.

    Returns:
        Whether it is bound now; not if it has the cores to itself already, if there are fewer cores than processes, or
        where the system offers no binding.
    """
    if count == 1 or not hasattr(os, "sched_setaffinity"):
        return False
    cores = part(os.sched_getaffinity(0), place, count)
    if not cores:
        return False
    # Threads that run already, such as those of a linear algebra library, would stay where they are.
    threads = [int(name) for name in os.listdir("/proc/self/task")] if os.path.isdir("/proc/self/task") else [0]
    for thread in threads:
        # It may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)
    return True


def part(
    cores: Iterable[int], place: int, count: int, position: Callable[[int], tuple[int, ...]] | None = None
) -> list[int]:
    """One of `count` parts of the cores, as equal as can be; none if there are fewer cores than parts.

    Neighbours stay together: threads of one physical core, then cores of one processor.

    Args:
        cores: numbers of the cores, as the system counts them.
        place: which part, in 0..count-1.
        count: number of parts.
        position: processor and physical core of each; None asks the system.

    Returns:
        The cores of that part, neighbours first.
    """
    where = _position if position is None else position
    ordered = sorted(cores, key=lambda core: (*where(core), core))
    if len(ordered) < count:
        return []
    return ordered[place * len(ordered) // count : (place + 1) * len(ordered) // count]


def _position(core: int) -> tuple[int, ...]:
    """Processor and physical core of one of the system's cores; nothing where the system does not say."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        return tuple(int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return ()
