"""Checkpoints of image training: exact resume after a kill, refusals, damage; several devices."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory import metrics
from nctheory.runs import RunFolderError
from nctheory.vision import _checkpoints
from nctheory.vision.train import (
    ImageTrainConfig,
    NonFiniteLossError,
    collapse_of,
    evaluate,
    load_network,
    train_network,
    train_networks,
)
from tests.vision.tiny_networks import DENSE, LINEAR, TinySpec, splits

ROOT = Path(__file__).parents[2]
CONFIG = ImageTrainConfig(
    learning_rate=0.05,
    weight_decay=0.01,
    batch_size=8,
    num_epochs=6,
    schedule="cosine",
    augment="crop_flip",
    pad=1,
    checkpoint_epochs=(0, 2, 4),
)


def leaves(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


def measured(epoch, network):
    return {
        "epoch": epoch,
        "kernel": {"value": network.classifier.kernel[...]},
        "collapse": collapse_of(network, DATA[1]),
    }


DATA = splits(21)


def run(folder=None, *, spec=DENSE, config=CONFIG, data=DATA, seed=3, on_checkpoint=measured, **named):
    return train_network(
        spec, config, *data, seed=seed, folder=folder, progress=False, on_checkpoint=on_checkpoint, **named
    )


def assert_same(one, two):
    for mine, other in zip(leaves(one.network), leaves(two.network), strict=True):
        np.testing.assert_array_equal(mine, other)
    for name in ("epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(getattr(one.history, name), getattr(two.history, name), err_msg=name)
    assert one.checkpoints.keys() == two.checkpoints.keys()
    jax.tree.map(np.testing.assert_array_equal, one.checkpoints, two.checkpoints)


def in_process(script: str, *, devices: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        flags = f"{flags} --xla_force_host_platform_device_count={devices}"
    variables = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT, env=variables
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run(folder), folder


def copy_up_to(folder: Path, target: Path, epoch: int) -> Path:
    """A folder as a run that was killed after an epoch leaves it."""
    target.mkdir(parents=True)
    for each in folder.glob("epoch_*"):
        if int(each.name.removeprefix("epoch_")) <= epoch:
            shutil.copytree(each, target / each.name)
    return target


# --- exact resume ---


def test_kept_and_newest_checkpoints_stay(uninterrupted):
    found, folder = uninterrupted
    assert _checkpoints.stored_epochs(folder) == [0, 2, 4, 6]
    assert sorted(found.checkpoints) == [0, 2, 4]
    assert found.checkpoints[2]["epoch"] == 2
    assert {f.name for f in dataclasses.fields(metrics.CollapseMetrics)} == found.checkpoints[4]["collapse"].keys()
    # Nothing that only Python could read.
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert_same(found, run())


def test_a_run_killed_twice_ends_bitwise_as_an_uninterrupted_one(uninterrupted, tmp_path):
    """First within the callback of epoch 4, then when the checkpoint of epoch 5 is written but not yet moved."""
    script = """
        import os, signal
        from nctheory.vision import _checkpoints
        from tests.vision import test_train_checkpoints as t

        def die(*args):
            os.kill(os.getpid(), signal.SIGKILL)

        def callback(epoch, network):
            return die() if epoch == 4 else t.measured(epoch, network)

        if os.environ["KILL"] == "move":
            move = os.replace
            _checkpoints.os.replace = lambda old, new: die() if "epoch_000005" in str(new) else move(old, new)
            callback = t.measured
        t.run(os.environ["FOLDER"], on_checkpoint=callback, resume=True)
    """
    for kill, newest in (("callback", 3), ("move", 4)):
        done = in_process(script, KILL=kill, FOLDER=str(tmp_path))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert _checkpoints.stored_epochs(tmp_path)[-1] == newest
    assert list(tmp_path.glob(".tmp-*"))
    resumed = run(tmp_path, resume=True)
    assert resumed.resumed_epochs == 4
    assert_same(resumed, uninterrupted[0])
    assert not list(tmp_path.glob(".tmp-*"))
    assert _checkpoints.stored_epochs(tmp_path) == [0, 2, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["host", "scan"])
def test_networks_with_convolutions_and_batch_norm_resume_exactly(form, tmp_path):
    spec, config = TinySpec(), dataclasses.replace(CONFIG, num_epochs=4, drop_last=False, compute_dtype="bfloat16")
    full = run(tmp_path / "a", spec=spec, config=config, form=form)
    part = copy_up_to(tmp_path / "a", tmp_path / "b", 2)
    resumed = run(part, spec=spec, config=config, form=form, resume=True)
    assert resumed.resumed_epochs == 2
    assert_same(resumed, full)


def test_a_finished_run_is_read_back_without_training(uninterrupted):
    found, folder = uninterrupted
    again = run(folder, resume=True)
    assert again.resumed_epochs == 6
    assert_same(again, found)
    np.testing.assert_array_equal(again.history.seconds, found.history.seconds)


def test_resume_without_checkpoints_starts_anew(tmp_path):
    config = dataclasses.replace(CONFIG, num_epochs=1, checkpoint_epochs=())
    assert run(tmp_path, config=config, resume=True).resumed_epochs == 0
    assert _checkpoints.stored_epochs(tmp_path) == [1]


def test_seeds_together_resume_exactly(tmp_path):
    def together(folder, on_checkpoint=None):
        config = dataclasses.replace(CONFIG, num_epochs=3, checkpoint_epochs=(0, 2))
        return train_networks(
            DENSE, config, *DATA, seeds=[1, 5], folder=folder, resume=True, progress=False, on_checkpoint=on_checkpoint
        )

    full = together(tmp_path / "a")
    resumed = together(copy_up_to(tmp_path / "a", tmp_path / "b", 2))
    assert resumed.resumed_epochs == 2
    np.testing.assert_array_equal(resumed.history.test_loss, full.history.test_loss)
    for one, two in zip(resumed.networks, full.networks, strict=True):
        for mine, other in zip(leaves(one), leaves(two), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_checkpoint_gives_its_network_back(uninterrupted, own_errors):
    found, folder = uninterrupted
    assert evaluate(load_network(DENSE, folder), DATA[1]).loss == found.history.test_loss[-1]
    early = load_network(DENSE, folder, 2)
    np.testing.assert_array_equal(early.classifier.kernel[...], found.checkpoints[2]["kernel"]["value"])
    assert evaluate(early, DATA[1]).accuracy == found.history.test_accuracy[1]
    with pytest.raises(ValueError, match=r"Argument `epoch` must be one of \[0, 2, 4, 6\]"):
        load_network(DENSE, folder, 3)
    with pytest.raises(RunFolderError, match="is of the network"):
        load_network(LINEAR, folder)


# --- refusals ---


def test_another_run_is_refused_by_the_names_of_what_differs(uninterrupted):
    _, folder = uninterrupted
    other_labels = dataclasses.replace(DATA[0], labels=(DATA[0].labels + 1) % 3)
    rough = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    cases = [
        (
            {"config": dataclasses.replace(CONFIG, learning_rate=0.1)},
            r"config.learning_rate \(stored 0.05, given 0.1\)",
        ),
        ({"config": dataclasses.replace(CONFIG, milestones=(0.5,), pad=2)}, r"config.milestones .*config.pad"),
        ({"config": rough}, r"differs in dtype \(stored 'float32', given 'bfloat16'\)"),
        ({"spec": dataclasses.replace(DENSE, width=7)}, r"spec.fields.width \(stored 8, given 7\)"),
        ({"seed": 4}, r"seeds \(stored \[3\], given \[4\]\)"),
        ({"data": (other_labels, DATA[1])}, "data.train"),
    ]
    for changes, message in cases:
        with pytest.raises(RunFolderError, match=message):
            run(folder, resume=True, **changes)
    with pytest.raises(RunFolderError, match="already holds 4 checkpoints, up to epoch 6"):
        run(folder)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_last_bytes(path):
    content = bytearray(path.read_bytes())
    content[-20:] = bytes(255 - each for each in content[-20:])
    path.write_bytes(bytes(content))


def _forget_history(path):
    record = json.loads(path.read_text())
    del record["history"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        ("record.json", _truncate, "is corrupted and cannot be read as JSON"),
        ("record.json", _forget_history, "record.json lacks a part"),
        ("record.json", lambda path: path.unlink(), "is missing"),
        ("returned.npz", _truncate, "is damaged: returned.npz is not what was written"),
        ("arrays/d/*", _truncate, "is damaged"),
        ("arrays/ocdbt.process_0/d/*", _flip_last_bytes, "is damaged"),
        ("arrays/ocdbt.process_0/d/*", lambda path: path.unlink(), "is missing. Delete it to go on"),
        ("arrays/_METADATA", _truncate, "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(uninterrupted, tmp_path, pattern, damage, message):
    folder = copy_up_to(uninterrupted[1], tmp_path / "damaged", 4)
    files = list((folder / "epoch_000004").glob(pattern))
    assert files
    for path in files:
        damage(path)
    with pytest.raises(RunFolderError, match=message):
        run(folder, resume=True)
    # As the message says: without it the run goes on from the checkpoint before.
    shutil.rmtree(folder / "epoch_000004")
    assert run(folder, resume=True, on_checkpoint=None).resumed_epochs == 2


def test_arrays_of_a_kept_checkpoint_are_checked_when_they_are_read(uninterrupted, tmp_path):
    folder = copy_up_to(uninterrupted[1], tmp_path / "damaged", 4)
    for path in (folder / "epoch_000002" / "arrays" / "ocdbt.process_0" / "d").glob("*"):
        _flip_last_bytes(path)
    # Of a kept epoch a resumed run wants only what the callback gave.
    assert_same(run(folder, resume=True), uninterrupted[0])
    with pytest.raises(RunFolderError, match=r"epoch_000002 is damaged: arrays/.* is not what was written"):
        load_network(DENSE, folder, 2)
    _truncate(folder / "epoch_000002" / "returned.npz")
    with pytest.raises(RunFolderError, match=r"epoch_000002 is damaged: returned.npz is not what was written"):
        run(folder, resume=True)


def test_a_checkpoint_is_on_the_disk_before_another_is_deleted(tmp_path, monkeypatch):
    store = _checkpoints.CheckpointStore(tmp_path, {"run": 1}, (), resume=True)
    state, begun = {"a": jax.numpy.arange(3.0)}, _checkpoints.Begun(np.ones(2), np.ones(2), 1.0)
    store.save(1, state, {}, {})
    events, sync, move = [], os.fsync, os.replace

    def synced(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def moved(old, new):
        events.append(Path(new).name)
        move(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    # The last takes the name of the one before.
    for arguments, name, earlier in [
        ((2, state, {}, {}), "epoch_000002", "epoch_000001"),
        ((2, state, {}, {}, begun), "begun_000003", None),
        ((2, state, {}, {}, begun), "begun_000003", None),
        ((3, state, {}, {}), "epoch_000003", "begun_000003"),
    ]:
        events.clear()
        store.save(*arguments)
        at = events.index(name)
        files = [tmp_path / name, *(tmp_path / name).rglob("*")]
        assert {each.stat().st_ino for each in files} <= set(events[:at])
        assert len(files) > 10
        until = len(events) if earlier is None else events.index(f".tmp-old-{earlier}")
        assert tmp_path.stat().st_ino in events[at:until]
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "epoch_000003"]
    store.close()


def test_a_folder_in_use_or_not_a_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match="Cannot use the folder"):
        run(file)
    nested = []

    def callback(epoch, network):
        with pytest.raises(RunFolderError, match="is being written by another run"):
            run(tmp_path / "run", on_checkpoint=None)
        nested.append(epoch)

    run(
        tmp_path / "run",
        config=dataclasses.replace(CONFIG, num_epochs=1, checkpoint_epochs=(0,)),
        on_checkpoint=callback,
    )
    assert nested == [0]


def test_a_full_disk_leaves_the_earlier_checkpoints(uninterrupted, tmp_path, monkeypatch):
    folder = copy_up_to(uninterrupted[1], tmp_path / "full", 4)

    def full(path, arrays):
        path.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "_write_arrays", full)
        with pytest.raises(RunFolderError, match=r"epoch_000005.*No space left on device.*Earlier checkpoints are"):
            run(folder, resume=True)
    assert _checkpoints.stored_epochs(folder) == [0, 2, 4]
    assert not list(folder.glob(".tmp-*"))
    assert_same(run(folder, resume=True), uninterrupted[0])


def test_a_non_finite_loss_leaves_the_last_checkpoint(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, schedule="constant", num_epochs=4)
    with pytest.raises(NonFiniteLossError, match="the checkpoint of epoch 0 stays"):
        run(tmp_path, spec=LINEAR, config=config, on_checkpoint=None)
    assert _checkpoints.stored_epochs(tmp_path) == [0]
    load_network(LINEAR, tmp_path, 0)


def test_nan_and_infinity_in_a_history_survive(tmp_path):
    history = {"train_loss": [np.array([0.5, np.nan]), np.array([np.inf, 1.25e-17])]}
    store = _checkpoints.CheckpointStore(tmp_path, {"run": 1}, (0,), resume=True)
    state = {"a": jax.numpy.arange(3.0)}
    store.save(2, state, history, {"x/y": np.array(["text"])})
    found = store.restore(state)
    np.testing.assert_array_equal(found.history["train_loss"], history["train_loss"])
    store.close()
