"""What the processes of the tests run: trainings that are compared, stopped and refused."""

import contextlib
import dataclasses
import json
import os
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
from nctheory.vision import _run, _together
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
    script = f"import sys; from tests.vision import training_processes as t; t.{what}(*sys.argv[1:])"
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


def lone_seeds(folder=None, **named):
    """Three networks at once, an odd number."""
    named = {"spec": DENSE, "seeds": [3, 4, 5], "on_checkpoint": measured_seeds, "progress": False, **named}
    return train_networks(named.pop("spec"), CONFIG, *DATA, folder=folder, **named)


def measured_seeds(epoch, networks):
    return {"kernels": np.stack([each.classifier.kernel[...] for each in networks])}


def save_seeds(path, result):
    arrays = {
        f"leaf-{i}": leaf for i, leaf in enumerate(each for network in result.networks for each in leaves(network))
    }
    arrays |= {f"history-{name}": getattr(result.history, name) for name in MEASURED}
    arrays |= {f"at-{epoch}": found["kernels"] for epoch, found in result.checkpoints.items()}
    np.savez(path, resumed=result.resumed_epochs, **arrays)


def train_seeds(folder, *place):
    """Seeds shared out between the processes; one is told to stop in the second epoch of eight steps."""
    processes.join(*place)
    index, folder = distributed.process_index(), Path(folder)
    own = folder / "run" if index == 0 else Path("/proc/nowhere")
    with signal_after(11 if index == 1 else -1), pytest.raises(Preempted, match="checkpoint after step"):
        lone_seeds(own)
    distributed.barrier("stopped")
    if index == 0:
        shutil.copytree(own, folder / "copy")
    result = lone_seeds(own, resume=True)
    for leaf in jax.tree.leaves([nnx.state(each) for each in result.networks]):
        assert leaf.devices() == {jax.local_devices()[0]}
    save_seeds(folder / f"seeds-{index}.npz", result)
    # Fewer seeds than processes, and a compiled epoch.
    one = lone_seeds(seeds=[4], form="scan")
    np.savez(folder / f"one-{index}.npz", test_loss=one.history.test_loss)


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
