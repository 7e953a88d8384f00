"""Checkpoints of sweeps: what was finished is kept, what is foreign or damaged is refused, resuming changes nothing."""

import dataclasses
import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import simulator
from nctheory.runs import RunFolderError
from nctheory.simulator import _parts
from nctheory.simulator._parts import PartStore
from tests.simulator.test_sweep import Toy, assert_identical, sweep, toy, toy_with_poles

GRID = simulator.grid(Toy(), rate=[0.1, 0.4])
SEEDS, CHUNK = 5, 3  # ten rows: chunks of 3, 3, 3 and 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep and its folder, which tests copy before they damage it."""
    path = tmp_path_factory.mktemp("sweep") / "parts"
    return path, sweep(toy, GRID, SEEDS, chunk_size=CHUNK, checkpoint=path)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "parts")


def again(folder, train=toy, configs=GRID, seeds=SEEDS, **options):
    return sweep(train, configs, seeds, checkpoint=folder, **options)


def test_a_checkpoint_changes_no_number(finished):
    path, result = finished
    assert_identical(result.history, sweep(toy, GRID, SEEDS, chunk_size=CHUNK).history)
    names = sorted(each.name for each in path.iterdir())
    assert names == [*(f"chunk-{i:05d}.npz" for i in range(4)), "sweep.json"]


def test_a_finished_sweep_is_read_back_without_compiling(finished, folder):
    result = again(folder)
    assert_identical(result.history, finished[1].history)
    assert result.num_resumed == 10
    assert result.chunk_size == CHUNK
    assert result.compile_seconds == result.run_seconds == 0


@pytest.mark.parametrize(("lost", "num_resumed"), [([0], 7), ([3], 9), ([1, 3], 6), ([0, 1, 2, 3], 0)])
def test_missing_chunks_are_run_again_to_the_same_bits(finished, folder, lost, num_resumed):
    for index in lost:
        (folder / f"chunk-{index:05d}.npz").unlink()
    result = again(folder)
    assert result.num_resumed == num_resumed
    assert_identical(result.history, finished[1].history)
    assert len(list(folder.iterdir())) == 5


def test_resumed_rows_are_read_and_not_computed(finished, folder):
    file = folder / "chunk-00001.npz"
    with np.load(file) as stored:
        leaves = {name: stored[name] for name in stored.files}
    leaves["leaf0000"] = leaves["leaf0000"] + 1
    np.savez(file, **leaves)
    changed = again(folder).history["norm"].ravel() - finished[1].history["norm"].ravel()
    assert np.flatnonzero(changed).tolist() == [3, 4, 5]


def test_nonfinite_rows_survive_the_round_trip(tmp_path):
    first = sweep(toy_with_poles, Toy(), 6, chunk_size=2, checkpoint=tmp_path)
    second = sweep(toy_with_poles, Toy(), 6, checkpoint=tmp_path)
    assert second.num_resumed == 6
    assert_identical(second.history, first.history)
    assert second.finite.tolist() == first.finite.tolist() == [[True, True, False, True, True, False]]


@pytest.mark.parametrize("moment", ["before writing", "while writing"])
def test_an_interrupt_loses_at_most_one_chunk(finished, tmp_path, monkeypatch, moment):
    savez, calls = np.savez, []

    def interrupted(file, **leaves):
        calls.append(None)
        if len(calls) < 3:
            return savez(file, **leaves)
        if moment == "while writing":
            file.write(b"half of a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_parts.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "parts", chunk_size=CHUNK)
    names = sorted(each.name for each in (tmp_path / "parts").iterdir())
    assert names == ["chunk-00000.npz", "chunk-00001.npz", "sweep.json"]
    result = again(tmp_path / "parts")
    assert result.num_resumed == 2 * CHUNK
    assert_identical(result.history, finished[1].history)


def other_function(config, key):
    return toy(config, key)


def edited_toy(config, key):
    """What `toy` might be after an edit: name and configuration are the same."""
    history = toy(config, key)
    return {**history, "norm": 2 * history["norm"]}


edited_toy.__module__, edited_toy.__qualname__ = toy.__module__, toy.__qualname__


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"configs": simulator.grid(Toy(), rate=[0.1, 0.41])}, "config_digest"),
        ({"configs": simulator.grid(dataclasses.replace(Toy(), num_steps=4), rate=[0.1, 0.4])}, "config_digest"),
        ({"configs": simulator.grid(Toy(), rate=[0.4, 0.1])}, "config_digest"),
        ({"train": other_function}, "config_digest"),
        ({"train": edited_toy}, "config_digest"),
        ({"seeds": [0, 1, 2, 3, 5]}, "seeds_digest"),
        ({"seeds": 6}, "num_seeds"),
    ],
)
def test_the_checkpoint_of_another_sweep_is_refused(folder, changes, differing):
    with pytest.raises(RunFolderError, match=rf"parts belongs to another sweep: .*{differing}.* differ"):
        again(folder, **changes)
    assert len(list(folder.iterdir())) == 5


def test_a_checkpoint_of_another_precision_is_refused(folder):
    with jax.enable_x64(not jax.config.jax_enable_x64), pytest.raises(RunFolderError, match="belongs to another sweep"):
        again(folder)


def test_a_checkpoint_of_another_chunk_size_is_refused(folder):
    with pytest.raises(RunFolderError, match="has chunks of 3 rows, not 5"):
        again(folder, chunk_size=5)
    assert again(folder, chunk_size=3).num_resumed == 10


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"chunk_size": 3}', '{"chunk_size": "x", "sweep": {}}', '{"sweep": {}}']
)
def test_a_damaged_header_is_refused(folder, text):
    (folder / "sweep.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"Checkpoint header .*sweep\.json is damaged .*delete .*parts"):
        again(folder)


@pytest.mark.parametrize("size", [0, -3])
def test_a_header_with_an_impossible_chunk_size_is_refused(folder, size):
    stored = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**stored, "chunk_size": size}))
    with pytest.raises(RunFolderError, match=r"Checkpoint header .*sweep\.json is damaged"):
        again(folder)


@pytest.mark.parametrize("kept", [0, 30, 0.5, -1])
def test_a_truncated_chunk_is_refused(folder, kept):
    file = folder / "chunk-00002.npz"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(RunFolderError, match=r"chunk-00002\.npz is damaged .*delete it to run it again"):
        again(folder)


def test_a_chunk_with_flipped_bits_is_refused(folder):
    file = folder / "chunk-00002.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"chunk-00002\.npz (is damaged|holds)"):
        again(folder)


def test_a_chunk_of_other_arrays_is_refused(folder):
    file = folder / "chunk-00002.npz"
    with np.load(file) as stored:
        leaves = {name: stored[name] for name in stored.files}
    np.savez(file, **{**leaves, "leaf0000": leaves["leaf0000"][:2]})
    with pytest.raises(RunFolderError, match=r"chunk-00002\.npz holds float\d\d\(2,\) where float\d\d\(3,\) is due"):
        again(folder)
    np.savez(file, **{**leaves, "leaf0000": leaves["leaf0000"].astype(np.float16)})
    with pytest.raises(RunFolderError, match=r"holds float16\(3,\) where float\d\d\(3,\) is due"):
        again(folder)
    np.savez(file, leaf0000=leaves["leaf0000"])
    with pytest.raises(RunFolderError, match=r"chunk-00002\.npz is damaged .*leaf0001"):
        again(folder)


def test_a_pickle_is_never_loaded(folder):
    np.savez(folder / "chunk-00002.npz", leaf0000=np.asarray([{"an": "object"}]))
    with pytest.raises(RunFolderError, match=r"chunk-00002\.npz is damaged .*allow_pickle"):
        again(folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"has no sweep\.json but holds \['letter\.txt'\]"):
        again(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"
    with pytest.raises(RunFolderError, match=r"letter\.txt cannot be made"):
        again(tmp_path / "letter.txt")
    with pytest.raises(RunFolderError, match=r"letter\.txt/parts cannot be made"):
        again(tmp_path / "letter.txt" / "parts")


def test_a_folder_that_cannot_be_locked_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_parts, "take_lock", full)
    with pytest.raises(RunFolderError, match=f"{tmp_path} cannot be locked: {os.strerror(errno.ENOSPC)}"):
        again(tmp_path)


def test_what_a_killed_writer_left_is_no_hindrance(finished, tmp_path):
    # kill -9 while the very first file, the header, is being written.
    (tmp_path / ".tmp-123-0-sweep.json").write_text("{")
    assert_identical(again(tmp_path, chunk_size=CHUNK).history, finished[1].history)


def test_fingerprints_tell_arrays_apart_by_value_shape_and_dtype():
    def fingerprint(array):
        seeds = np.arange(2, dtype=np.uint32)
        return PartStore.fingerprint(structure="s", arrays=[array], seeds=seeds, backend="cpu")

    variants = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.int64), np.ones(4), -np.zeros(4)]
    digests = [fingerprint(array)["config_digest"] for array in variants]
    assert len(set(digests)) == len(variants)
    assert digests[0] == fingerprint(np.zeros(8)[::2])["config_digest"]


def test_half_precision_results_are_read_back(tmp_path):
    def half(config, key):
        return jax.random.normal(key, (2,), jnp.bfloat16) * jnp.asarray(config, jnp.bfloat16)

    first, again = (
        simulator.sweep(half, 1.0, 3, checkpoint=tmp_path, chunk_size=3, progress=False).history for _ in range(2)
    )
    assert again.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again, first)
