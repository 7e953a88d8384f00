"""Sweeps of several processes on one machine: the numbers of a lone run, whatever meets, dies or starts again."""

import json
import shutil

import jax
import numpy as np
import pytest

from nctheory.runs import RunFolderError
from nctheory.simulator import _program
from nctheory.simulator._parts import PartStore
from tests.simulator import processes
from tests.simulator.test_sweep import assert_identical


@pytest.fixture(scope="module")
def alone():
    """The sweep without company, of which the tests below want every bit."""
    return processes.lone()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes gave."""
    folder = tmp_path_factory.mktemp("two")
    ended = processes.together(2, "run_everywhere", folder)
    assert [each.code for each in ended] == [0, 0], ended
    assert [each.out.split()[-3:] for each in ended] == [["done", "2", "1"]] * 2
    return folder


@pytest.mark.parametrize("how", ["shared", "none", "own", "mesh"])
def test_two_processes_give_the_bits_of_one(two, alone, how):
    for index in range(2):
        history, told = processes.read(two / f"{how}-{index}.npz")
        assert_identical(history, alone.history)
        assert told["chunk_size"] == processes.CHUNK
        assert told["num_resumed"] == 0
        assert len(told["process_seconds"]) == 2
        np.testing.assert_array_equal(told["finite"], alone.finite)
    assert alone.num_nonfinite.tolist() == [1, 1, 1]


def test_a_folder_that_is_not_shared_is_completed_by_process_0(two, alone):
    names = sorted(each.name for each in (two / "own-0").iterdir())
    assert names == [*(f"chunk-{i:05d}.npz" for i in range(6)), "sweep.json"]
    assert not (two / "own-1").exists()
    for index in range(2):
        history, told = processes.read(two / f"again-{index}.npz")
        assert_identical(history, alone.history)
        assert told["num_resumed"] == 21


@pytest.mark.parametrize("how", ["shared", "mesh", "own-0"])
def test_one_process_reads_what_two_have_stored(two, alone, how):
    result = processes.lone(checkpoint=two / how)
    assert result.num_resumed == 21
    assert_identical(result.history, alone.history)


def test_two_processes_read_a_finished_folder_that_cannot_be_written(two, alone):
    assert not [each for each in (two / "shared").iterdir() if each.name.startswith(".")]
    for index in range(2):
        history, told = processes.read(two / f"kept-{index}.npz")
        assert_identical(history, alone.history)
        assert told["num_resumed"] == 21


def test_every_error_of_process_0_is_known_to_all_at_once(two):
    main, other = (json.loads((two / f"told-{index}.json").read_text()) for index in range(2))
    reason = "OSError: [Errno 5] Input/output error"
    assert (main["open"][0], other["open"][0]) == (reason, f"DistributedError: Process 0 failed: {reason}")
    assert main["lock"][0] == other["lock"][0]
    assert f"RunFolderError: {two}/held is being written by another run" in other["lock"][0]
    assert max(other["open"][1], other["lock"][1]) < 10


def test_an_automatic_chunk_leaves_no_process_idle(two, alone):
    told = [processes.read(two / f"auto-{index}.npz") for index in range(2)]
    assert told[0][1]["chunk_size"] == told[1][1]["chunk_size"] <= 12
    for history, _ in told:
        for name, leaf in history.items():
            # Shares of another size may round otherwise.
            np.testing.assert_allclose(leaf, alone.history[name], rtol=1e-6)


@pytest.mark.parametrize(("dying", "how"), [(1, "SIGKILL"), pytest.param(0, "SIGTERM", marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_and_the_rest_is_finished_alone(tmp_path, alone, dying, how):
    ended = processes.together(2, "die_half_way", tmp_path, dying, how)
    assert ended[dying].code < 0
    survivor = ended[1 - dying]
    assert survivor.code != 0, survivor
    ours = f"rocess {dying} of 2" in survivor.err and "ended before its work was done" in survivor.err
    # JAX ends a process whose service dies with process 0; sometimes it comes before us.
    assert ours or (dying == 0 and "another task died" in survivor.err)
    assert survivor.seconds < 60
    stored = len(list((tmp_path / "parts").glob("*.npz")))
    assert 1 <= stored <= 5
    result = processes.lone(checkpoint=tmp_path / "parts")
    assert 0 < result.num_resumed < 21
    assert_identical(result.history, alone.history)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 4])
def test_more_or_fewer_processes_finish_a_killed_run(tmp_path, alone, count):
    processes.together(2, "die_half_way", tmp_path, 1, "SIGKILL")
    stored = len(list((tmp_path / "parts").glob("*.npz")))
    ended = processes.together(count, "run_once", tmp_path)
    assert [each.code for each in ended] == [0] * count, ended
    for index in range(count):
        history, told = processes.read(tmp_path / f"result-{index}.npz")
        assert_identical(history, alone.history)
        assert told["num_resumed"] == stored * processes.CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("devices", [3, 8])
def test_more_devices_finish_what_one_began(tmp_path, alone, devices):
    result = processes.lone(checkpoint=tmp_path / "parts")
    for index in (0, 2, 3, 5):
        (tmp_path / "parts" / f"chunk-{index:05d}.npz").unlink()
    (ended,) = processes.finish([processes.start("mesh_of_local_devices", tmp_path, devices=devices)])
    assert ended.code == 0, ended.err
    history, told = processes.read(tmp_path / "result-0.npz")
    assert told["num_resumed"] == 8
    assert told["chunk_size"] == result.chunk_size
    assert_identical(history, alone.history)


@pytest.mark.slow
def test_two_processes_of_several_devices_share_one_mesh(tmp_path, alone):
    ended = processes.together(2, "run_everywhere", tmp_path, devices=3)
    assert [each.code for each in ended] == [0, 0], ended
    # Six devices round a chunk of 4 up to 6, in shares of one row.
    history, told = processes.read(tmp_path / "mesh-1.npz")
    assert told["chunk_size"] == 6
    for name, leaf in history.items():
        np.testing.assert_allclose(leaf, alone.history[name], rtol=1e-6)


@pytest.mark.slow
def test_processes_of_different_sweeps_say_so(tmp_path):
    ended = processes.together(2, "run_another", tmp_path)
    assert [each.code for each in ended] == [1, 1]
    assert "Process 1 waited 2 s for 'sweep " in ended[1].err
    assert "do all processes run the same program?" in ended[1].err
    assert "Process 1 of 2" in ended[0].err


def test_a_second_writer_is_refused(tmp_path):
    result = processes.lone(checkpoint=tmp_path)
    store = PartStore.open(tmp_path, {})
    with store.lock():
        with pytest.raises(RunFolderError, match=r"is being written by another run \(process \d+ on "):
            processes.lone(checkpoint=tmp_path)
    again = processes.lone(checkpoint=tmp_path)
    assert_identical(again.history, result.history)
    assert not (tmp_path / ".lock").exists()


def test_a_writer_is_refused_while_a_sweep_runs_and_after_a_kill_it_is_not(tmp_path):
    holder = processes.start("hold_the_lock", tmp_path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match=f"process {holder.pid} on "):
            processes.lone(checkpoint=tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").exists()
    assert processes.lone(checkpoint=tmp_path).num_resumed == 0


def test_a_finished_folder_that_cannot_be_written_is_read(tmp_path, alone, monkeypatch):
    processes.lone(checkpoint=tmp_path)
    monkeypatch.setattr("nctheory.simulator._parts.os.access", lambda *_: False)
    assert_identical(processes.lone(checkpoint=tmp_path).history, alone.history)


@pytest.mark.parametrize("cores", [1, 3, 4])
def test_other_cores_finish_to_the_same_bits(tmp_path, monkeypatch, cores):
    monkeypatch.setattr(_program, "num_cores", lambda: 2)
    first = processes.lone(checkpoint=tmp_path / "parts", chunk_size=12)
    shutil.copytree(tmp_path / "parts", tmp_path / "rest")
    (tmp_path / "rest" / "chunk-00001.npz").unlink()
    monkeypatch.setattr(_program, "num_cores", lambda: cores)
    again = processes.lone(checkpoint=tmp_path / "rest", chunk_size=12)
    assert again.num_resumed == 12
    assert again.num_workers == min(cores, 2)
    assert_identical(again.history, first.history)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (5, 5), (64, 11)])
def test_chunks_of_fewer_cores_keep_more_cores_busy(tmp_path, monkeypatch, cores, workers):
    monkeypatch.setattr(_program, "num_cores", lambda: 3)
    monkeypatch.setattr(_program, "auto_chunk_size", lambda *_: 6)
    first = processes.lone(checkpoint=tmp_path / "parts", chunk_size="auto")
    assert (first.chunk_size, first.share, first.num_workers) == (6, 2, 3)
    for index in (0, 2, 3):
        (tmp_path / "parts" / f"chunk-{index:05d}.npz").unlink()
    monkeypatch.setattr(_program, "num_cores", lambda: cores)
    again = processes.lone(checkpoint=tmp_path / "parts", chunk_size="auto")
    # Of 21 rows 6 are stored; shares stay as they are.
    assert (again.chunk_size, again.share, again.num_workers, again.num_resumed) == (6, 2, workers, 6)
    assert_identical(again.history, first.history)


@pytest.mark.usefixtures("own_errors")
def test_a_mesh_of_some_other_processes_is_refused(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("rows",))
    monkeypatch.setattr("nctheory.simulator._shares.jax.process_index", lambda: 1)
    monkeypatch.setattr("nctheory.simulator._shares.jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"`mesh` must hold devices of this process alone, .* of processes \[0\]"):
        processes.lone(mesh=mesh)
