"""Run folders: what is refused, what is resumed, who holds the lock, and what a finished run must hold."""

import dataclasses
import errno
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nctheory import _provenance, runs
from nctheory._cli import RunOptions
from nctheory.runs import RunFolder, RunFolderError, free_path, latest_path
from tests.run_folders import Config, create, dataset


def test_create_writes_the_configuration(tmp_path):
    with create(tmp_path / "a" / "b") as folder:
        assert not folder.resumed
        stored = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert stored["program"] == "nctheory"
    assert stored["experiment"] == "laws"
    assert stored["config"] == {"out": "x", "width": 8, "rates": [0.1, "inf"], "loss": "MSE", "resume": False}
    assert folder.config == stored["config"]


def test_empty_folder_is_taken_and_full_one_refused(tmp_path):
    create(tmp_path).close()
    (tmp_path / "history.nc").touch()
    message = r"Argument `out` must be a new or empty folder, or be given with --resume, but .* holds 2 entries"
    with pytest.raises(RunFolderError, match=message):
        create(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_folder_is_left_untouched(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(RunFolderError, match=f"{tmp_path}"):
        create(tmp_path, resume=resume)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_places(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match=f"Argument `out` must be a folder, but {file} is a file"):
        create(file)
    with pytest.raises(RunFolderError, match=f"Cannot create the run folder {file / 'run'}: Not a directory"):
        create(file / "run")

    def refuse(*_args, **_named):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(RunFolderError, match=f"Cannot create the run folder {tmp_path / 'new'}: Permission denied"):
            create(tmp_path / "new")
    # A folder that exists but in which nothing can be made.
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(runs.os, "open", refuse)
    with pytest.raises(RunFolderError, match=r"Cannot create the run folder .*empty: Permission denied"):
        create(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        create(tmp_path / "new")
    tmp_path.chmod(0o700)


def test_resume_takes_the_same_configuration(tmp_path):
    create(tmp_path).close()
    with create(tmp_path, Config(out=Path("elsewhere"), resume=True), resume=True) as folder:
        assert folder.resumed
        assert folder.config["width"] == 8
    with pytest.raises(RunFolderError, match="its configuration differs in out") as caught:
        create(tmp_path, Config(out=Path("elsewhere")), resume=True, ignore=())
    assert "(stored 'x', given 'elsewhere')" in str(caught.value)


def test_every_common_option_either_changes_the_numbers_or_is_ignored_on_resume(tmp_path):
    """How a run is started, shown and split is no part of what it computes, nor are options that came later."""
    before = {field.name: field.default for field in dataclasses.fields(RunOptions)} | {"quiet": False}
    decisive = {"smoke", "num_seeds", "seed"}
    RunFolder.create(tmp_path / "run", before, experiment="laws").close()
    for name, value in before.items():
        changed = before | {name: "another" if value is None else not value}
        if name in decisive:
            with pytest.raises(RunFolderError, match=f"its configuration differs in {name} "):
                RunFolder.create(tmp_path / "run", changed, experiment="laws", resume=True)
            continue
        RunFolder.create(tmp_path / "run", changed, experiment="laws", resume=True).close()
        without = {key: each for key, each in before.items() if key != name}
        RunFolder.create(tmp_path / "run", without, experiment="laws", resume=True).close()


def test_a_lock_on_a_full_disk_holds(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "write", full)
        held = runs._take_lock(tmp_path)
    with pytest.raises(RunFolderError, match="is being written by another run"):
        runs._take_lock(tmp_path)
    os.close(held)


def test_resume_lists_what_differs(tmp_path):
    create(tmp_path, {"width": 8, "depth": 2, "rate": 0.1}).close()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(RunFolderError) as caught:
        create(tmp_path, {"width": 9, "rate": 0.1, "loss": "mse"}, resume=True)
    assert str(caught.value) == (
        f"Cannot resume {tmp_path}: its configuration differs in depth (stored 2, given absent), "
        "loss (stored absent, given 'mse'), width (stored 8, given 9)."
    )
    assert (tmp_path / "config.json").read_bytes() == before
    # The failed attempt must not keep the lock.
    create(tmp_path, {"width": 8, "depth": 2, "rate": 0.1}, resume=True).close()


@pytest.mark.parametrize("path_exists", [False, True])
def test_resume_of_nothing_starts_anew(tmp_path, path_exists):
    path = tmp_path / "run"
    if path_exists:  # What a run killed in its first moments leaves.
        path.mkdir()
        (path / ".lock").write_text("process 1")
        (path / ".tmp-1-0-config.json").write_text("{")
    with create(path, resume=True) as folder:
        assert not folder.resumed
    assert sorted(each.name for each in path.iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"program": "ncth', r"config.json is corrupted and cannot be read as JSON"),
        ("[1, 2]", "config.json is corrupted: it must hold an object, but holds list"),
        ('{"model": "resnet"}', "is no run folder of this program: its config.json was written by something else"),
        (None, "is no run folder of this program: it has no config.json"),
        ('{"program": "nctheory", "format": 99, "config": {}}', "has format 99, but this version reads format 1"),
        (
            '{"program": "nctheory", "format": 1, "experiment": "digits", "config": {}}',
            "belongs to the experiment 'digits', but this is 'laws'",
        ),
    ],
)
def test_corrupted_and_foreign_folders(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text("{}")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        create(tmp_path, resume=True)
    with pytest.raises(RunFolderError, match=message):
        RunFolder.load(tmp_path, experiment="laws")


def test_second_writer_refuses_until_the_first_ends(tmp_path):
    first = create(tmp_path)
    message = f"{tmp_path} is being written by another run \\(process {os.getpid()} on "
    with pytest.raises(RunFolderError, match=message):
        create(tmp_path, resume=True)
    first.close()
    first.close()
    create(tmp_path, resume=True).close()


HOLD = """
import sys, time
from nctheory.runs import RunFolder
folder = RunFolder.create(sys.argv[1], {"a": 1}, experiment="laws")
print("locked", flush=True)
time.sleep(60)
"""


def test_lock_of_a_killed_process_is_free(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match=f"being written by another run \\(process {process.pid} on"):
            create(tmp_path, {"a": 1}, resume=True)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    with create(tmp_path, {"a": 1}, resume=True) as folder:
        assert folder.resumed


def test_lock_of_an_abandoned_folder_is_free(tmp_path):
    folder = create(tmp_path)
    del folder
    create(tmp_path, resume=True).close()


def finished(path) -> RunFolder:
    with create(path) as folder:
        folder.write_history(dataset())
        folder.write_manifest(device="cpu", dtype="float32", compile_seconds=1.5, run_seconds=2.0, note=math.nan)
    return folder


def test_load_finished_run(tmp_path):
    finished(tmp_path)
    folder = RunFolder.load(tmp_path, experiment="laws")
    np.testing.assert_array_equal(folder.read_history()["count"], [1, 2**60, -3])
    with pytest.raises(RunFolderError, match="belongs to the experiment 'laws', but this is 'digits'"):
        RunFolder.load(tmp_path, experiment="digits")
    with pytest.raises(
        RunFolderError, match=r"Argument `out` must be the folder of a finished run, but .* is no folder"
    ):
        RunFolder.load(tmp_path / "absent")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "history.nc"])
def test_load_says_which_file_is_missing_or_corrupted(tmp_path, name):
    finished(tmp_path)
    content = (tmp_path / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x00" * 1000):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RunFolderError, match=f"{name} is corrupted"):
            RunFolder.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunFolderError, match=name) as caught:
        RunFolder.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_manifest(tmp_path):
    finished(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(manifest["versions"]) >= {"jax", "jaxlib", "flax", "optax", "nctheory"}
    assert manifest["machine"]["num_cores"] == len(os.sched_getaffinity(0))
    assert (manifest["device"], manifest["dtype"], manifest["compile_seconds"]) == ("cpu", "float32", 1.5)
    assert manifest["note"] is None
    assert manifest["written"].endswith("+00:00")
    assert manifest["started"]["time"] <= manifest["written"]
    assert shlex.split(manifest["command"])[1:] == sys.orig_argv[1:]
    assert {"commit", "dirty"} <= manifest.keys()


def test_commit_is_the_packages_own(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    source = tmp_path / "_provenance.py"
    source.write_text("one")
    monkeypatch.setattr(_provenance, "__file__", str(source))
    assert _provenance.source_state() == {"commit": None, "dirty": None}
    git("init", "-q")
    # Inside a repository that does not hold the package, as a .venv inside somebody's project.
    assert _provenance.source_state() == {"commit": None, "dirty": None}
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    state = _provenance.source_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    source.write_text("two")
    assert _provenance.source_state()["dirty"] is True


def test_subfolders(tmp_path):
    with create(tmp_path) as folder:
        assert folder.figures.is_dir()
        (folder.parts / "0.npz").write_bytes(b"")
        (folder.parts / "1.npz").write_bytes(b"")
        assert folder.saved() == f"{tmp_path} holds config.json and 2 finished parts"


def test_numbered_paths(tmp_path):
    base = tmp_path / "default"
    assert free_path(base) == latest_path(base) == base
    create(base).close()
    assert latest_path(base) == base
    assert free_path(base) == tmp_path / "default-2"
    create(free_path(base)).close()
    assert latest_path(base) == tmp_path / "default-2"
    assert free_path(base) == tmp_path / "default-3"


@pytest.mark.parametrize("name", ["manifest.json", "history.nc", "claims.json"])
def test_a_damaged_result_is_named_on_resume(tmp_path, name):
    with RunFolder.create(tmp_path / "run", {"steps": 3}, experiment="toy") as folder:
        (folder.path / name).write_bytes(b"\x00 no result")
    with pytest.raises(RunFolderError, match=name):
        RunFolder.create(tmp_path / "run", {"steps": 3}, experiment="toy", resume=True)
