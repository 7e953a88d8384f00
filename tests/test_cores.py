"""Processes of one machine divide its cores."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nctheory import _cores

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two = pytest.mark.skipif(len(CORES) < 2, reason="needs a system with binding, and two cores")


def apart(core):
    """A machine without neighbours."""
    return (0, core)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_are_all_cores_once_and_as_equal_as_can_be(count):
    cores = [1, 2, 5, 8, 9]
    parts = [_cores.part(cores, place, count, apart) for place in range(count)]
    assert sorted(core for part in parts for core in part) == cores
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_processes_keep_to_cores_of_their_own():
    parts = [_cores.part([0, 2, 4, 6, 8], index, 2, apart) for index in range(2)]
    assert parts == [[0, 2], [4, 6, 8]]


def test_threads_of_one_physical_core_stay_together():
    # As many systems count: 0..3 are the first threads of four cores of two processors, 4..7 the second ones.
    parts = [_cores.part(range(8), place, 4, lambda core: (core % 4 // 2, core % 4)) for place in range(4)]
    assert parts == [[0, 4], [1, 5], [2, 6], [3, 7]]
    halves = [_cores.part(range(8), place, 2, lambda core: (core % 2, core // 2 % 2)) for place in range(2)]
    assert [sorted(half) for half in halves] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_more_processes_than_cores_get_none():
    assert _cores.part([3, 4], 0, 3, apart) == []


def test_a_lone_process_is_left_alone():
    before = os.sched_getaffinity(0) if CORES else set()
    assert not _cores.bind(0, 1)
    assert not _cores.bind(0, 1 + (os.cpu_count() or 1))
    assert (os.sched_getaffinity(0) if CORES else set()) == before


JOINED = """
    import json, os, sys, threading, time
    busy = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    busy.start()
    from nctheory import distributed
    index, coordinator, bind_cores = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
    distributed.initialize(coordinator, 2, index, bind_cores=bind_cores)
    later = []
    thread = threading.Thread(target=lambda: later.append(sorted(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    cores = [sorted(os.sched_getaffinity(each)) for each in (0, busy.native_id)]
    print(json.dumps({"cores": [*cores, *later], "sharing": distributed.processes_on_these_cores()}))
    distributed.barrier("done")
"""


@needs_two
@pytest.mark.parametrize("bind_cores", [True, False])
def test_processes_divide_the_cores_with_all_their_threads(bind_cores):
    with socket.create_server(("", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    command = [sys.executable, "-c", textwrap.dedent(JOINED)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*command, str(index), coordinator, str(bind_cores)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    expected = [sorted(_cores.part(CORES, place, 2)) if bind_cores else CORES for place in range(2)]
    assert [each["cores"] for each in said] == [[cores] * 3 for cores in expected]
    assert [each["sharing"] for each in said] == [1 if bind_cores else 2] * 2
