"""Image training in several processes on one machine: the numbers of one process, one writer, exact resume."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory import distributed, vision
from nctheory._preemption import Preempted
from nctheory.runs import RunFolder, RunFolderError
from nctheory.vision import _checkpoints, _run, _together
from nctheory.vision.train import (
    ImageTrainConfig,
    check_batch_size,
    collapse_of,
    extract_features,
    train_network,
    train_networks,
)
from tests.simulator import processes
from tests.vision.tiny_networks import DENSE, TinySpec

# The last batch of an epoch has 36 images, which no 8 devices share evenly.
CONFIG = ImageTrainConfig(
    learning_rate=0.3,
    weight_decay=0.001,
    batch_size=64,
    num_epochs=3,
    schedule="cosine",
    augment="crop",
    pad=1,
    drop_last=False,
    checkpoint_epochs=(0, 2),
)
MEASURED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


def digits(num_train=484, num_test=90):
    train, test = (vision.load("digits", split) for split in ("train", "test"))
    train = vision.Images.of(train.images[:num_train], train.labels[:num_train], num_classes=10)
    return train, vision.Images.of(test.images[:num_test], test.labels[:num_test], num_classes=10, like=train)


def leaves(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


def measured(epoch, network):
    return {"epoch": epoch, "nc1": collapse_of(network, DATA[1]).nc1, "kernel": network.classifier.kernel[...]}


DATA = digits()


def lone(folder=None, **named):
    """The training of all these programs; without processes around it, what they must give."""
    named = {"spec": TinySpec(), "config": CONFIG, "seed": 3, "on_checkpoint": measured, "progress": False, **named}
    spec, config = named.pop("spec"), named.pop("config")
    return train_network(spec, config, *DATA, folder=folder, **named)


def save(path, result):
    arrays = {f"leaf-{i}": leaf for i, leaf in enumerate(leaves(result.network))}
    arrays |= {f"history-{name}": getattr(result.history, name) for name in MEASURED}
    for epoch, found in result.checkpoints.items():
        arrays |= {f"at-{epoch}-{name}": value for name, value in found.items()}
    np.savez(path, resumed=result.resumed_epochs, **arrays)


def read(path):
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def start(what, *arguments, devices=1):
    """Start a program of this module."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(jax.config.jax_enable_x64)}
    flags = os.environ.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    script = f"import sys; from tests.vision import test_train_processes as t; t.{what}(*sys.argv[1:])"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=processes.ROOT, env=environment, **pipes)


def together(count, what, folder, *arguments, devices=1):
    port = processes.free_port()
    started = [start(what, folder, port, count, i, *arguments, devices=devices) for i in range(count)]
    return processes.finish(started)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def assert_close(one, two):
    """Batch norm and the gradient sum over the devices in another order, which 24 steps enlarge."""
    for name, value in one.items():
        if name.startswith(("leaf", "history", "at")):
            np.testing.assert_allclose(value, two[name], rtol=2e-4, atol=2e-5, err_msg=name)


def refusal(work):
    """What an error says."""
    try:
        work()
    except (ValueError, RunFolderError, distributed.DistributedError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


@contextlib.contextmanager
def signal_after(steps):
    """Send SIGTERM to this process after so many steps."""
    usual, calls = _run._steps.single_step, []

    class Counted:
        _cache_size = staticmethod(usual._cache_size)

        def __call__(self, *arguments, **named):
            calls.append(1)
            if len(calls) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return usual(*arguments, **named)

    _run._steps.single_step = Counted()
    try:
        yield
    finally:
        _run._steps.single_step = usual


# --- what the processes run ---


def train_together(folder, *place):
    """Trainings in folders that process 0 alone may touch."""
    processes.join(*place)
    index, folder = distributed.process_index(), Path(folder)

    def own(name):
        # The others are given a folder that they could not make.
        return folder / name if index == 0 else Path("/proc/nowhere")

    result = lone(own("run"), resume=True)
    leaf = jax.tree.leaves(nnx.state(result.network))[0]
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == jax.device_count()
    assert extract_features(result.network, DATA[1]).shape == (90, 4)
    save(folder / f"run-{index}.npz", result)
    # One of them is told to stop, in the second epoch of eight steps.
    with signal_after(11 if index == 1 else -1), pytest.raises(Preempted, match="checkpoint after step") as stopped:
        lone(own("stopped"), resume=True)
    distributed.barrier("stopped")
    if index == 0:
        shutil.copytree(folder / "stopped", folder / "stopped-copy")
    again = lone(own("stopped"), resume=True)
    save(folder / f"again-{index}.npz", again)
    told = {
        "stopped": str(stopped.value),
        "batch": refusal(lambda: lone(spec=DENSE, config=dataclasses.replace(CONFIG, batch_size=63))),
        "seed": refusal(lambda: lone(own("other"), spec=DENSE, seed=3 + index)),
        "folder": refusal(lambda: lone(own("run"))),
        "config": refusal(lambda: lone(own("run"), resume=True, spec=DENSE)),
        # What process 0 alone stumbles over, of whatever type.
        "fault": refusal(lambda: _together.SharedStore(lambda: int("a disk that is broken"))),
        "check": refusal(lambda: check_batch_size(63, name="images.batch_size")),
    }
    (folder / f"told-{index}.json").write_text(json.dumps(told))


def train_apart(folder, *place):
    """Trainings of which each process does its own, or all do the same."""
    processes.join(*place)
    index, folder = distributed.process_index(), Path(folder)
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), ("data",))
    save(folder / f"own-{index}.npz", lone(folder / f"own-{index}", spec=DENSE, mesh=mesh, seed=3 + index))
    for _ in range(2):
        found = train_networks(DENSE, CONFIG, *DATA, seeds=[3, 4], folder=folder / "seeds", resume=True, progress=False)
    assert found.resumed_epochs == 3
    np.savez(folder / f"seeds-{index}.npz", test_loss=found.history.test_loss)
    network = vision.load_network(DENSE, folder / "own-0")
    np.savez(folder / f"loaded-{index}.npz", *leaves(network))


def die_elsewhere(folder, port, count, index, where):
    """One training; process 1 is killed where the other is in a callback, or asks whether to stop."""
    processes.join(port, count, index)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def called(epoch, network):
        # Not before the devices have met: where they wait for that, no error reaches them.
        return die() if (index, where, epoch) == ("1", "callback", 2) else measured(epoch, network)

    if index == "1" and where == "question":
        _together.StopSign.is_up = die
    lone(Path(folder) / "run", on_checkpoint=called)


def train_to_the_end(folder, *place):
    """One training, begun or not."""
    form = place[3] if len(place) > 3 else "auto"
    processes.join(*place[:3])
    save(Path(folder) / f"result-{distributed.process_index()}.npz", lone(Path(folder) / "run", resume=True, form=form))


def die_half_way(folder, port, count, index, dying, after):
    """One training; one of the processes is killed before a step."""
    if index == dying:
        os.kill = lambda pid, _, kill=os.kill: kill(pid, signal.SIGKILL)
    processes.join(port, count, index)
    with signal_after(int(after) if index == dying else -1):
        lone(Path(folder) / "run", resume=True)


def stop_by_command(folder, port, count, index, told):
    """One training behind the command line, of which one process gets SIGTERM."""
    from nctheory._cli import run_main
    from tests.test_distributed_start import Options

    flags = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", count, "--process-id", index]

    def run(config):
        with RunFolder.create(config.out, config, experiment="trial", resume=config.resume) as folder:
            with signal_after(11 if index == told else -1):
                lone(folder.parts / "training", resume=True)
        return 0

    raise SystemExit(run_main(Options, run, [*flags, "--out", f"{folder}/run"]))


# --- the tests ---


@pytest.fixture(scope="module")
def alone():
    """The training without company."""
    return as_stored(lone())


def as_stored(result):
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
