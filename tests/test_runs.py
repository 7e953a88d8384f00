"""Run folders: what is refused, what survives a fault, and that arrays come back as they were."""

import dataclasses
import enum
import errno
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from nctheory import ArgumentError, _provenance, runs
from nctheory._cli import RunOptions, run_main
from nctheory.runs import RunFolder, RunFolderError, atomic_write, free_path, latest_path, read_json, write_json


class Loss(enum.Enum):
    """A choice in a configuration."""

    MSE = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration with everything that needs translation."""

    out: Path = Path("x")
    width: int = 8
    rates: tuple[float, ...] = (0.1, math.inf)
    loss: Loss = Loss.MSE
    resume: bool = False


def create(path, config=None, **options):
    return RunFolder.create(path, Config() if config is None else config, experiment="laws", **options)


def dataset() -> xr.Dataset:
    weights = np.array([1 + 2j, complex(math.inf, 1), complex(0, math.nan)], np.complex64)
    return xr.Dataset(
        {
            "nc1": (("seed", "step"), np.arange(6, dtype=np.float32).reshape(3, 2), {"units": "dimensionless"}),
            "seconds": (("seed",), np.array([1.5, math.nan, -math.inf]), {"units": "seconds", "definition": "Zeit"}),
            "weights": (("seed",), weights, {"units": "dimensionless"}),
            "finite": (("seed",), np.array([True, False, True])),
            "count": (("seed",), np.array([1, 2**60, -3])),
            "phase": ((), np.complex128(2 - 1j)),
        },
        coords={
            "seed": np.array([3, 5, 7]),
            "step": ("step", np.array([1, 10]), {"units": "gradient steps"}),
            "condition": ("seed", np.array(["plain", "", "weight décay"])),
        },
        attrs={"units": "none", "width": 64, "rates": [0.1, 0.2]},
    )


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_leaves_the_earlier_file(tmp_path, number):
    path = tmp_path / "claims.json"
    write_json(path, {"a": 1})

    def writer(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(
        RunFolderError, match=f"Cannot write {path}: {os.strerror(number)}. The earlier file is unchang"
    ):
        atomic_write(path, writer)
    assert read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["claims.json"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TypeError])
def test_other_faults_pass_and_leave_nothing(tmp_path, kind):
    def writer(temporary):
        temporary.write_text("half")
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        atomic_write(tmp_path / "a", writer)
    assert list(tmp_path.iterdir()) == []


def test_temporary_name_keeps_folder_and_suffix(tmp_path):
    seen = []

    def writer(temporary):
        seen.append(temporary)
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "fig.pdf").exists()

    atomic_write(tmp_path / "new" / "fig.pdf", writer)
    assert seen[0].parent == tmp_path / "new"
    assert seen[0].suffix == ".pdf"
    assert (tmp_path / "new" / "fig.pdf").read_text() == "whole"


LIMITED = """
import resource, signal, sys
import numpy as np, xarray as xr
from nctheory.runs import RunFolder, RunFolderError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with RunFolder.create(sys.argv[1], {}, experiment="laws") as folder:
    folder.write_history(xr.Dataset({"a": ("x", np.arange(3.0))}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        folder.write_history(xr.Dataset({"a": ("x", np.random.default_rng(0).normal(size=100_000))}))
    except RunFolderError as error:
        print(error)
    print(folder.read_history().a.values.tolist(), flush=True)
"""


def test_history_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    """A real refusal by the operating system, in the middle of the file."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"Cannot write {tmp_path / 'history.nc'}: " in done.stdout, done.stderr
    assert "The earlier file is unchanged." in done.stdout
    assert "[0.0, 1.0, 2.0]" in done.stdout
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "config.json", "history.nc"]


def test_history_comes_back_identical(tmp_path):
    with create(tmp_path) as folder:
        folder.write_history(dataset())
        again = folder.read_history()
        folder.write_history(again)  # And once more from what was read.
        again = folder.read_history()
    want = dataset()
    for name, variable in want.variables.items():
        got = again.variables[name]
        if variable.dtype.kind != "U":
            assert got.dtype == variable.dtype, name
        assert got.dims == variable.dims
        assert got.attrs == variable.attrs
        np.testing.assert_array_equal(got.values, variable.values, strict=variable.dtype.kind != "U")
    assert set(again.coords) == set(want.coords)
    assert again.sel(seed=5).condition.item() == ""
    attrs = dict(again.attrs)
    np.testing.assert_array_equal(attrs.pop("rates"), [0.1, 0.2])
    assert attrs == {"units": "none", "width": 64}


def test_tree_comes_back_identical(tmp_path):
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(attrs={"title": "laws"}), "/l1": dataset(), "/l2/deep": dataset().isel(seed=slice(2))}
    )
    with create(tmp_path) as folder:
        folder.write_history(tree)
        again = folder.read_history()
    assert isinstance(again, xr.DataTree)
    assert again.attrs == {"title": "laws"}
    for path in ("l1", "l2/deep"):
        want, got = tree[path].to_dataset(), again[path].to_dataset()
        for name, variable in want.variables.items():
            np.testing.assert_array_equal(got[name].values, variable.values)
            assert got[name].attrs == variable.attrs


def test_coordinates_of_a_parent_stay_with_the_parent(tmp_path):
    parent = xr.Dataset(coords={"seed": [1, 2], "root": ("seed", np.array([1j, 2.0]))})
    child = xr.Dataset({"loss": ("seed", np.array([0.5, 0.25]))})
    with create(tmp_path) as folder:
        folder.write_history(xr.DataTree.from_dict({"/": parent, "/child": child}))
        again = folder.read_history()
    np.testing.assert_array_equal(again["child"].sel(seed=2)["loss"], 0.25)
    np.testing.assert_array_equal(again["root"], [1j, 2.0])


def test_boolean_and_empty_attributes(tmp_path):
    with create(tmp_path) as folder:
        folder.write_history(xr.Dataset({"a": ("x", [1.0], {"frozen": True})}, attrs={"note": None}))
        again = folder.read_history()
    assert again.a.attrs == {"frozen": 1}
    assert again.attrs == {"note": ""}


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
    assert shlex.split(manifest["command"])[1:] == sys.argv
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


def test_json_values(tmp_path):
    path = tmp_path / "a.json"
    values = {
        "nan": math.nan,
        "inf": np.float32(math.inf),
        "minus": -math.inf,
        "array": np.array([[1, 2], [3, 4]]),
        "jax": jnp.array([1.5, math.nan]),
        "bool": np.bool_(True),
        "set": {3, 1},
        4: None,
    }
    write_json(path, values)
    assert read_json(path) == {
        "nan": None,
        "inf": "inf",
        "minus": "-inf",
        "array": [[1, 2], [3, 4]],
        "jax": [1.5, None],
        "bool": True,
        "set": [1, 3],
        "4": None,
    }
    for bad, message in (
        ({"a": [1j]}, r"Argument `obj.a\[0\]` must be rep.*complex"),
        ({"f": len}, "Argument `obj.f`"),
    ):
        with pytest.raises(ValueError, match=message):
            write_json(path, bad)
    with pytest.raises(ValueError, match="Argument `config` must be a mapping or a dataclass record"):
        create(tmp_path / "new", [1, 2])


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


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Options of a trial experiment."""

    num_seeds: int = 4
    """Number of seeds here."""
    width: int = 8
    """Number of neurons."""

    def __post_init__(self):
        super().__post_init__()
        if self.width < 1:
            raise ArgumentError(f"Argument `width` must be >= 1,\nbut is {self.width}.")


def test_main_runs_with_the_parsed_record():
    seen = []
    code = run_main(Options, lambda config: seen.append(config) or 7, ["--width", "3", "--smoke"])
    assert code == 7
    assert seen == [Options(width=3, smoke=True)]
    assert type(seen[0]) is Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0"], "error: Argument `width` must be >= 1, but is 0.\n"),
        (["--num-seeds", "0"], "error: Argument `num_seeds` must be an integer >= 2, but is 0.\n"),
        (["--seed", "-1"], "error: Argument `seed` must be an integer >= 0, but is -1.\n"),
        (
            ["--resume", "--plot-only"],
            "error: Argument `plot_only` must be off when `resume` is on, but both are on.\n",
        ),
    ],
)
def test_main_bad_values_are_one_line(capsys, arguments, message):
    assert run_main(Options, lambda _: 0, arguments) == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("arguments", [["--widht", "3"], ["--width", "three"], ["extra"]])
def test_main_unknown_flags_fail(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run_main(Options, lambda _: 0, arguments)
    assert caught.value.code == 2
    assert arguments[0].strip("-") in capsys.readouterr().err


def test_main_help(capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(Options, lambda _: 0, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("Options of a trial experiment.", "Number of neurons.", "Number of seeds here.", "--plot-only"):
        assert text in shown


def test_main_faults(capsys, tmp_path):
    def raising(error):
        def run(_config):
            raise error

        return run

    assert run_main(Options, raising(RunFolderError("no\nspace")), []) == 2
    assert capsys.readouterr().err == "error: no space\n"
    assert run_main(Options, raising(ArgumentError("Argument `x` must be y,\nbut is z.")), []) == 2
    assert capsys.readouterr().err == "error: Argument `x` must be y, but is z.\n"
    # A fault of the program keeps its traceback, whatever its words.
    for message in ("shapes differ", "Argument `x` of some library is wrong"):
        with pytest.raises(ValueError, match=message):
            run_main(Options, raising(ValueError(message)), [])

    def interrupted(_config):
        with create(tmp_path):
            raise KeyboardInterrupt

    assert run_main(Options, interrupted, []) == 130
    saved = f"{tmp_path} holds config.json"
    assert capsys.readouterr().err == f"\ninterrupted: {saved}; the same command with --resume continues.\n"
    assert run_main(Options, raising(KeyboardInterrupt()), []) == 130
    assert "nothing was saved yet" in capsys.readouterr().err
    create(tmp_path, resume=True).close()  # The interrupt freed the lock.


SLEEP = """
import time
from nctheory._cli import RunOptions, run_main
from nctheory.runs import RunFolder
def run(config):
    with RunFolder.create(config.out, config, experiment="laws", resume=config.resume) as folder:
        (folder.parts / "0").write_bytes(b"")
        print("working", flush=True)
        time.sleep(60)
    return 0
raise SystemExit(run_main(RunOptions, run))
"""


def test_control_c_says_what_is_saved(tmp_path):
    script = tmp_path / "trial.py"
    script.write_text(SLEEP)
    command = [sys.executable, str(script), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    saved = f"{tmp_path / 'run'} holds config.json and 1 finished part"
    assert errors == f"\ninterrupted: {saved}; the same command with --resume continues.\n"


def test_run_path_numbers_new_runs_and_finds_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Options(out=Path("a")).run_path("laws") == Path("a")
    for name in ("default", "default-2"):
        path = Options().run_path("laws")
        assert path == Path("results/laws") / name
        create(path).close()
        assert Options(resume=True).run_path("laws") == Options(plot_only=True).run_path("laws") == path
