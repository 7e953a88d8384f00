"""Processes that meet, miss each other and die: every mistake is an error in every process, and none waits for ever."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from nctheory import _rendezvous, distributed
from nctheory._cli import EXIT_LOST, RunOptions, run_main
from nctheory._rendezvous import DistributedError, meet

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Options of a trial experiment."""


@pytest.fixture(autouse=True)
def given_up(monkeypatch):
    """No process of these tests may be ended by a lost peer."""
    ends = []
    end = _rendezvous.Peers._give_up

    def give_up(self):
        # Also after the test, whose timers may outlive it by `GRACE_S`.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_rendezvous.os, "_exit", ends.append)
            end(self)

    monkeypatch.setattr(_rendezvous.Peers, "_give_up", give_up)
    return ends


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def meetings(port, claims, timeout_s=5.0):
    """What processes that claim (count, index) get out of meeting, each in a thread."""
    results = [None] * len(claims)

    def attend(place, count, index):
        try:
            results[place] = meet("127.0.0.1", port, count, index, timeout_s)
        except DistributedError as error:
            results[place] = str(error)

    threads = [threading.Thread(target=attend, args=(i, *claim)) for i, claim in enumerate(claims)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def close(peers):
    """End processes without a word, as the system does when they are killed."""
    for each in peers:
        each._leaving = True  # A process that is killed notices nothing.
        for connection in list(each._open.values()):
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_meet_and_leave_in_order(port, given_up):
    peers = meetings(port, [(3, 0), (3, 1), (3, 2)])
    assert [each.index for each in peers] == [0, 1, 2]
    assert [each.num_on_these_cores for each in peers] == [3, 3, 3]
    assert [each.place_on_these_cores for each in peers] == [0, 1, 2]
    assert peers[2].names == peers[0].names
    peers[1].leave(failed=False)
    until(lambda: peers[0].has_left(1))
    close([peers[1]])
    time.sleep(0.1)
    for each in peers:
        each.check()
    peers[2].leave(failed=False)
    close([peers[2]])
    peers[0].leave(failed=False)
    assert given_up == []
    assert not any(each._open for each in peers[:1])


@pytest.mark.parametrize("how", ["dies", "fails", "says why"])
def test_the_end_of_one_process_is_known_to_all(port, monkeypatch, given_up, how):
    monkeypatch.setattr(_rendezvous, "GRACE_S", 0.2)
    peers = meetings(port, [(3, 0), (3, 1), (3, 2)])
    if how != "dies":
        peers[1].leave(failed=True, why="OSError: no disk." if how == "says why" else "")
    close([peers[1]])
    what = {"dies": "ended before its work was done", "fails": "failed", "says why": "failed: OSError: no disk"}[how]
    for each in (peers[0], peers[2]):
        until(lambda each=each: each._lost is not None)
    with pytest.raises(DistributedError, match=rf"^Process 1 of 3 \(process \d+ on .*\) {what}\.$"):
        peers[0].check()
    # Process 0 has raised; process 2 is stuck somewhere, and ends.
    until(lambda: given_up)
    time.sleep(0.3)
    assert given_up == [EXIT_LOST]
    close(peers)


def test_the_end_of_process_0_ends_the_others_at_once(port, given_up, capfd):
    peers = meetings(port, [(2, 0), (2, 1)])
    close([peers[0]])
    until(lambda: given_up)
    assert given_up == [EXIT_LOST]
    assert "error: Process 0 of 2 (" in capfd.readouterr().err


def test_a_process_that_does_not_come_is_named_by_all(port):
    began = time.monotonic()
    told = meetings(port, [(4, 0), (4, 2)], timeout_s=1.0)
    assert set(told) == {f"Waited 1 s at 127.0.0.1:{port} for processes 1, 3 of 4, which did not come."}
    assert time.monotonic() - began < 4


def test_a_process_that_goes_again_while_others_are_awaited_is_missed(port):
    with contextlib.ExitStack() as stack:
        hello = {"greeting": "nctheory run", "count": 3, "index": 1, "name": "x", "cores": "y"}
        box = []
        thread = threading.Thread(target=lambda: box.extend(meetings(port, [(3, 0)], timeout_s=1.5)))
        thread.start()
        stack.callback(thread.join)
        time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", port)) as visitor:
            visitor.sendall(json.dumps(hello).encode() + b"\n")
            time.sleep(0.3)
    assert box == [f"Waited 1.5 s at 127.0.0.1:{port} for processes 1, 2 of 3, which did not come."]


def test_processes_that_count_differently_say_so(port):
    told = meetings(port, [(2, 0), (3, 1)])
    assert told == ["Process 1 was started as one of 3 processes, but process 0 as one of 2."] * 2


def test_two_processes_of_one_number_say_so(port):
    told = meetings(port, [(3, 0), (3, 1), (3, 1)])
    assert told == ["Two processes were started as process 1 of 3."] * 3


def test_no_coordinator_is_an_error_in_time(port):
    began = time.monotonic()
    (told,) = meetings(port, [(2, 1)], timeout_s=0.5)
    assert told.startswith(f"Process 1 waited 0.5 s for process 0 (the coordinator) at 127.0.0.1:{port}: ")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_something_else_at_the_coordinator_is_an_error(port, answer):
    with socket.create_server(("127.0.0.1", port)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer is None:
                    time.sleep(2)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        (told,) = meetings(port, [(2, 1)], timeout_s=0.5)
        thread.join()
    where = f"at 127.0.0.1:{port}"
    expected = f"process 0 {where} to let it go on" if answer is None else f"{where} is not process 0 of this run"
    assert expected in told


STRANGERS = [
    b"GET / HTTP/1.1\r\n\r\n",
    b'{"greeting": "nctheory run"}\n',
    b'{"greeting": "nctheory run", "index": [1]}\n',
]


@pytest.mark.parametrize("words", STRANGERS)
def test_a_stranger_does_not_disturb_a_meeting(port, words):
    box = []
    thread = threading.Thread(target=lambda: box.extend(meetings(port, [(2, 0)])))
    thread.start()
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.sendall(words)
    box.extend(meetings(port, [(2, 1)]))
    thread.join()
    assert sorted(each.index for each in box) == [0, 1]
    close(box)


def test_an_address_of_another_machine_is_an_error_on_process_0(port):
    began = time.monotonic()
    # An address that is kept for examples: nobody has it.
    with pytest.raises(DistributedError, match=r"cannot be reached at 192\.0\.2\.1:.* must be an address of its own"):
        meet("192.0.2.1", port, 2, 0, 3.0)
    with pytest.raises(DistributedError, match=r"cannot be reached at no-such-host\.invalid"):
        meet("no-such-host.invalid", port, 1, 0, 3.0)
    assert time.monotonic() - began < 30


def test_a_taken_port_is_an_error(port):
    with socket.create_server(("", port)):
        (told,) = meetings(port, [(2, 0)])
    assert told.startswith(f"Process 0 cannot listen at port {port} (Address already in use")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1234", None, None), "`num_processes` must be given when `coordinator` is: all of coordinator, num_"),
        ((None, 2, None), "`coordinator` must be given when `num_processes` is"),
        ((None, None, 0), "`coordinator` must be given when `process_id` is"),
        (("host", 2, 0), "`coordinator` must be HOST:PORT, but is 'host'"),
        (("host:port", 2, 0), "`coordinator` must be HOST:PORT, but is 'host:port'"),
        (("host:0", 2, 0), "`coordinator` must be HOST:PORT, but is 'host:0'"),
        (("host:70000", 2, 0), "`coordinator` must be HOST:PORT, but is 'host:70000'"),
        (("host:1234", 0, 0), "`num_processes` must be an integer >= 1, but is 0"),
        (("host:1234", 2, -1), "`process_id` must be an integer >= 0, but is -1"),
        (("host:1234", 2, 2), r"`process_id` must lie in 0\.\.1, but is 2"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*arguments)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan"), True])
def test_an_impossible_time_to_wait_is_refused(seconds):
    with pytest.raises(ValueError, match=f"`start_timeout` must be > 0 and finite, but is {seconds!r}"):
        distributed.initialize("host:1234", 2, 0, start_timeout=seconds)


def test_no_cluster_is_an_error():
    with pytest.raises(DistributedError, match="No cluster was detected"):
        distributed.initialize(start_timeout=1)


def test_a_lone_process_needs_no_start():
    assert (distributed.process_count(), distributed.process_index(), distributed.is_main()) == (1, 0, True)
    assert distributed.processes_on_these_cores() == 1
    assert distributed.share("a name", "text") == "text"
    assert distributed.exchange("a name", "text") == ("text",)
    distributed.barrier("a name")
    distributed.check_peers()
    distributed.abandon()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "host:1"], "`distributed` must be on when `coordinator` is given, but is off"),
        (["--process-id", "0"], "`distributed` must be on when `process_id` is given, but is off"),
        (["--distributed", "--plot-only"], "`plot_only` must be off when `distributed` is on"),
        (["--distributed", "--num-processes", "2"], "`coordinator` must be given when `num_processes` is"),
        (
            ["--distributed", "--coordinator", "host:1", "--num-processes", "2", "--process-id", "2"],
            "`process_id` must lie in 0..1, but is 2",
        ),
        (["--start-timeout", "0"], "`start_timeout` must be > 0 and finite, but is 0.0"),
        (["--start-timeout", "inf"], "`start_timeout` must be > 0 and finite, but is inf"),
    ],
)
def test_flags_that_do_not_fit_are_refused(capsys, arguments, message):
    assert run_main(Options, lambda _: 0, arguments) == 2
    assert f"error: Argument {message}" in capsys.readouterr().err


def test_a_flag_says_how_long_the_start_may_take(capsys, port):
    began = time.monotonic()
    flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", "1"]
    assert run_main(Options, lambda _: 0, ["--distributed", *flags, "--start-timeout", "0.4"]) == EXIT_LOST
    assert "error: Process 1 waited 0.4 s for process 0 (the coordinator) at 127.0.0.1:" in capsys.readouterr().err
    assert time.monotonic() - began < 10


def test_a_lost_process_has_an_exit_code_of_its_own(capsys):
    def run(_):
        raise DistributedError("Process 1 of 2 ended.")

    assert run_main(Options, run, []) == EXIT_LOST
    assert capsys.readouterr().err == "error: Process 1 of 2 ended.\n"


def script(text, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


EXPERIMENT = """
    import os, sys, threading, time
    from tests.test_distributed_start import Options
    from nctheory import distributed
    from nctheory._cli import run_main

    def run(config):
        print("index", distributed.process_index(), flush=True)
        print("told", distributed.share("told", f"from {distributed.process_index()}"), file=sys.stderr)
        return 7

    raise SystemExit(run_main(Options, run))
"""


def test_flags_start_the_processes_and_process_0_alone_speaks(port):
    flags = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    started = [script(EXPERIMENT, *flags, index) for index in range(2)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in started]
    assert [code for _, _, code in ended] == [7, 0], ended
    assert [out for out, _, _ in ended] == ["index 0\n", ""]
    assert all("told from 0" in err for _, err, _ in ended)


TERMINATED = """
    import os, signal, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from tests.test_distributed_start import Options
    from nctheory._cli import run_main
    from nctheory.runs import RunFolder

    def run(config):
        with RunFolder.create(config.out, config, experiment="trial") as folder:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            pool = ThreadPoolExecutor(1)
            try:
                # As a chunk that still runs: nobody waits for it.
                pool.submit(time.sleep, 20).result()
            finally:
                pool.shutdown(wait=False)

    raise SystemExit(run_main(Options, run))
"""


def test_termination_says_what_is_saved_and_waits_for_nothing(tmp_path):
    began = time.monotonic()
    process = script(TERMINATED, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"terminated: {tmp_path}/run holds config.json; the same command with --resume continues." in err
    assert time.monotonic() - began < 19


CACHED = """
    import sys
    from tests.test_distributed_start import Options
    from nctheory._cli import run_main

    def run(config):
        import jax
        hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
        jax.jit(lambda x: x * 3 + 1)(2.0)
        print(len(hits))
        return 0

    raise SystemExit(run_main(Options, run))
"""


def test_a_compilation_cache_serves_the_next_run(tmp_path):
    for hits in (0, 1):
        process = script(CACHED, "--compilation-cache", tmp_path / "cache")
        out, err = process.communicate(timeout=60)
        assert int(out) >= hits, err
        assert (int(out) > 0) == (hits > 0)
