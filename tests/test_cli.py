"""From command line to run: options, errors as one line, interrupts."""

import dataclasses
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nctheory import ArgumentError
from nctheory._cli import RunOptions, run_main
from nctheory.runs import RunFolderError
from tests.run_folders import create


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


FAULTS = """
import resource
import sys
import numpy as np
from nctheory._cli import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back in this way")
def test_freed_memory_is_kept():
    """Each of ten arrays of 32 MB takes at least 15 pages of 2 MB from the system, unless the first one's are kept."""
    faults = {}
    for choice in ("keep", "give"):
        command = [sys.executable, "-c", FAULTS, choice]
        faults[choice] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["give"] >= 150
    assert faults["keep"] <= 15


def test_run_path_numbers_new_runs_and_finds_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Options(out=Path("a")).run_path("laws") == Path("a")
    for name in ("default", "default-2"):
        path = Options().run_path("laws")
        assert path == Path("results/laws") / name
        create(path).close()
        assert Options(resume=True).run_path("laws") == Options(plot_only=True).run_path("laws") == path
