"""Image training in several processes on one machine: the numbers of one process, one writer, exact resume."""

import io
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from nctheory.vision import _checkpoints
from nctheory.vision.train import (
    check_batch_size,
)
from tests.vision.tiny_networks import DENSE

# The last batch of an epoch has 36 images, which no 8 devices share evenly.
from tests.vision.training_processes import (
    assert_close,
    assert_same,
    lone,
    lone_seeds,
    read,
    save,
    save_seeds,
    together,
)


@pytest.fixture(scope="module")
def alone():
    """The training without company."""
    return as_stored(lone())


def as_stored(result, save=save):
    file = io.BytesIO()
    save(file, result)
    file.seek(0)
    return read(file)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes gave."""
    folder = tmp_path_factory.mktemp("two")
    ended = together(2, "train_together", folder)
    assert [each.code for each in ended] == [0, 0], ended
    return folder


@pytest.fixture(scope="module")
def told(two):
    return [json.loads((two / f"told-{index}.json").read_text()) for index in range(2)]


def test_two_processes_give_the_numbers_of_one(two, alone):
    found = [read(two / f"run-{index}.npz") for index in range(2)]
    assert_same(*found)
    assert_close(found[0], alone)
    assert np.abs(alone["at-2-kernel"] - alone["at-0-kernel"]).max() > 0.05


def test_process_0_alone_stores(two):
    assert _checkpoints.stored_epochs(two / "run") == [0, 2, 3]
    assert sorted(each.name for each in two.iterdir() if each.is_dir()) == ["run", "stopped", "stopped-copy"]


@pytest.mark.slow
def test_one_process_told_to_stop_stops_both_and_they_go_on_to_the_same_bits(two, told):
    assert told[0]["stopped"] == told[1]["stopped"]
    assert re.fullmatch(rf"the checkpoint after step [345] of 8 of epoch 2 is in {two}/stopped", told[0]["stopped"])
    whole, again = (read(two / f"{name}-0.npz") for name in ("run", "again"))
    assert again.pop("resumed") == 1
    assert whole.pop("resumed") == 0
    assert_same(again, whole)
    assert_same(again, {name: each for name, each in read(two / "again-1.npz").items() if name != "resumed"})


@pytest.mark.slow
def test_one_process_finishes_what_two_have_begun(two, alone, tmp_path):
    assert [each.name for each in (two / "stopped-copy").glob("begun_*")] == ["begun_000002"]
    shutil.copytree(two / "stopped-copy", tmp_path / "run")
    result = as_stored(lone(tmp_path / "run", resume=True))
    assert result["resumed"] == 1
    assert_close(result, alone)
    assert not list((tmp_path / "run").glob("begun_*"))


def test_every_error_of_process_0_is_known_to_all_at_once(told):
    reason = "ValueError: invalid literal for int() with base 10: 'a disk that is broken'"
    assert [each["fault"] for each in told] == [reason, f"DistributedError: Process 0 failed: {reason}"]


def test_a_batch_size_can_be_checked_before_anything_is_written(told):
    for each in told:
        assert each["check"] == (
            "ArgumentError: Argument `images.batch_size` must be a multiple of the 2 devices of the mesh, but is 63."
        )
    check_batch_size(63)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["callback", "question"])
def test_a_process_that_dies_elsewhere_is_named_too(tmp_path, where):
    ended = together(2, "die_elsewhere", tmp_path, where)
    assert ended[1].code == -signal.SIGKILL, ended
    assert re.search(r"DistributedError: Process 1 of 2 \(.*\) ended before its work was done\.", ended[0].err), ended
    assert ended[0].seconds < 60


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(told, two):
    for each in told:
        assert each["batch"] == (
            "ArgumentError: Argument `batch_size` must be a multiple of the 2 devices of the mesh, but is 63."
        )
        assert each["seed"] == (
            "DistributedError: Process 1 trains another run than process 0: it differs in seeds "
            "(stored [3], given [4])."
        )
        assert each["folder"].startswith(f"RunFolderError: {two}/run already holds 3 checkpoints, up to epoch 3")
        assert each["config"].startswith(f"RunFolderError: Cannot resume {two}/run: the run differs in spec.fields")


@pytest.mark.usefixtures("own_errors")
def test_a_mesh_of_some_other_processes_is_refused(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    monkeypatch.setattr("nctheory.vision._together.distributed.process_count", lambda: 2)
    monkeypatch.setattr("nctheory.vision._together.jax.process_index", lambda: 1)
    monkeypatch.setattr("nctheory.vision._together.jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"`mesh` must hold devices of this process alone, .* of processes \[0\]"):
        lone(spec=DENSE, mesh=mesh)


@pytest.mark.slow
def test_processes_with_meshes_of_their_own_train_apart(tmp_path):
    ended = together(2, "train_apart", tmp_path)
    assert [each.code for each in ended] == [0, 0], ended
    for index in range(2):
        own = as_stored(lone(spec=DENSE, seed=3 + index))
        assert_close(read(tmp_path / f"own-{index}.npz"), own)
    seeds = [read(tmp_path / f"seeds-{index}.npz")["test_loss"] for index in range(2)]
    np.testing.assert_array_equal(*seeds)
    np.testing.assert_allclose(seeds[0][1], own["history-test_loss"], rtol=1e-4)
    assert_same(*(read(tmp_path / f"loaded-{index}.npz") for index in range(2)))


@pytest.mark.slow
def test_processes_share_seeds_out_and_one_finishes_what_they_began(tmp_path):
    ended = together(2, "train_seeds", tmp_path)
    assert [each.code for each in ended] == [0, 0], ended
    found = [read(tmp_path / f"seeds-{index}.npz") for index in range(2)]
    assert_same(*found)
    assert found[0].pop("resumed") == 1
    expected = as_stored(lone_seeds(), save_seeds)
    assert_close(found[0], expected)
    for index in range(2):
        # One seed a device is batched otherwise than three, and rounds so; 24 steps enlarge that.
        np.testing.assert_allclose(
            read(tmp_path / f"one-{index}.npz")["test_loss"][0], expected["history-test_loss"][1], rtol=1e-4
        )
    begun = as_stored(lone_seeds(tmp_path / "copy", resume=True), save_seeds)
    assert begun["resumed"] == 1
    assert_close(begun, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_process_ends_the_others_and_more_devices_finish(tmp_path, alone, dying):
    ended = together(2, "die_half_way", tmp_path, dying, 20)
    assert ended[dying].code == -signal.SIGKILL, ended
    assert ended[1 - dying].code != 0
    assert ended[1 - dying].seconds < 60
    assert _checkpoints.stored_epochs(tmp_path / "run") == [0, 2]
    ended = together(2, "train_to_the_end", tmp_path, devices=4)
    assert [each.code for each in ended] == [0, 0], ended
    for index in range(2):
        found = read(tmp_path / f"result-{index}.npz")
        assert found["resumed"] == 2
        assert_close(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "form"), [(4, 1, "host"), (2, 2, "scan")])
def test_more_processes_and_devices_give_the_numbers_of_one(tmp_path, alone, count, devices, form):
    ended = together(count, "train_to_the_end", tmp_path, form, devices=devices)
    assert [each.code for each in ended] == [0] * count, ended
    found = [read(tmp_path / f"result-{index}.npz") for index in range(count)]
    for each in found:
        assert_same(each, found[0])
    assert_close(found[0], alone)


@pytest.mark.slow
def test_every_command_ends_with_the_code_of_a_preemption(tmp_path, alone):
    ended = together(2, "stop_by_command", tmp_path, 1)
    assert [each.code for each in ended] == [143, 143], ended
    for each in ended:
        (line,) = [line for line in each.err.splitlines() if line.startswith("terminated: ")]
        assert "the checkpoint after step" in line
        assert line.endswith("the same command with --resume continues.")
    result = as_stored(lone(tmp_path / "run" / "parts" / "training", resume=True))
    assert result["resumed"] == 1
    assert_close(result, alone)
