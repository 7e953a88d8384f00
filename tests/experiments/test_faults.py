"""Kills, Ctrl-C, bad folders and bad arguments of the synthetic experiment, as a user meets them."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import synthetic
import xarray as xr

from nctheory._cli import run_main
from tests.experiments.conftest import ROOT, run_script

SCRIPT = "experiments/synthetic.py"


def stop_after(num_chunks, sent, out, *arguments):
    """Start the script, send it a signal once that many chunks are on disk, and return (exit code, stderr)."""
    command = [sys.executable, str(ROOT / SCRIPT), "--smoke", "--quiet", "--out", str(out), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=fresh_compiler()
    )
    limit = time.monotonic() + 300
    while process.poll() is None and len(chunks(out)) < num_chunks and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def chunks(out):
    return sorted(str(path.relative_to(out)) for path in out.glob("parts/*/chunk-*.npz"))


def fresh_compiler():
    """A cache of compiled programs would hide it if compiling anew gave other bits."""
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}


@pytest.mark.slow
def test_an_interrupted_and_a_killed_run_resume_to_the_uninterrupted_bits(synthetic_smoke, tmp_path):
    out = tmp_path / "run"
    code, stderr = stop_after(1, signal.SIGINT, out)
    assert code == 130, stderr
    line = stderr.strip()
    assert line.startswith("interrupted: ")
    assert f"{out} holds config.json" in line
    assert "finished part" in line
    assert line.endswith("the same command with --resume continues.")
    assert line.count("\n") == 0
    kept = chunks(out)
    assert kept
    assert not (out / "history.nc").exists()

    code, _ = stop_after(len(kept) + 2, signal.SIGKILL, out, "--resume")
    assert code == -signal.SIGKILL
    assert set(kept) < set(chunks(out))
    assert not (out / "history.nc").exists()
    times = {name: (out / name).stat().st_mtime_ns for name in chunks(out)}

    result = run_script(SCRIPT, "--smoke", "--quiet", "--resume", "--out", out, env=fresh_compiler())
    assert result.returncode == 0, result.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times, "finished chunks are not run again"
    with (
        xr.open_datatree(synthetic_smoke / "history.nc") as expected,
        xr.open_datatree(out / "history.nc") as resumed,
    ):
        xr.testing.assert_identical(resumed.load(), expected.load())
        for node in expected.subtree:
            for name, variable in node.data_vars.items():
                other = resumed[node.path][name]
                assert other.dtype == variable.dtype
                assert other.values.tobytes() == variable.values.tobytes(), (node.path, name)
    assert (out / "claims.json").read_bytes() == (synthetic_smoke / "claims.json").read_bytes()


def test_an_interrupt_that_falls_into_a_destructor_is_not_lost(capsys):
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        """No options."""

    class Unlucky:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def run(_):
        Unlucky()
        time.sleep(20)
        return 0

    began = time.monotonic()
    assert run_main(Nothing, run, []) == 130
    assert time.monotonic() - began < 10
    assert "interrupted: nothing was saved yet" in capsys.readouterr().err
    assert sys.unraisablehook.__module__ != "nctheory._cli"


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    # The script sets this for a smoke run, and must not for the tests that come after.
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    return synthetic


@pytest.fixture
def refused(script, capsys):
    """Run the script in this process; it must end with code 2 and one line, which is returned."""

    def run(*arguments):
        assert run_main(script.Config, script.run, [str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.fixture
def copy(synthetic_smoke, tmp_path):
    """The finished run without its parts."""
    return shutil.copytree(synthetic_smoke, tmp_path / "copy", ignore=shutil.ignore_patterns("parts", ".lock"))


def content(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-seeds", 0), "Argument `num_seeds` must be an integer >= 2, but is 0."),
        (("--num-seeds", 1), "Argument `num_seeds` must be an integer >= 2, but is 1."),
        (("--num-seeds", -3), "Argument `num_seeds` must be an integer >= 2, but is -3."),
        (("--seed", -1), "Argument `seed` must be an integer >= 0, but is -1."),
        (("--resume", "--plot-only"), "Argument `plot_only` must be off when `resume` is on, but both are on."),
        (("--smoke", "--paper"), "Argument `paper` must be off when `smoke` is on, but both are on."),
    ],
)
def test_bad_values_are_refused(refused, tmp_path, arguments, message):
    assert refused("--out", tmp_path / "new", *arguments) == f"error: {message}\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [("--sede", "3"), ("--seed", "one"), ("--num-seeds", "2.5"), ("stray",)])
def test_unknown_flags_and_unreadable_values_end_with_code_2(script, capsys, tmp_path, arguments):
    with pytest.raises(SystemExit) as stop:
        run_main(script.Config, script.run, ["--out", str(tmp_path / "new"), *arguments])
    assert stop.value.code == 2
    assert arguments[0].lstrip("-") in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_seed_beyond_the_generator_is_refused(refused, tmp_path):
    assert "`seed" in refused("--smoke", "--quiet", "--seed", 2**32 - 2, "--out", tmp_path / "new")


def test_a_folder_in_use_is_refused(refused, copy, tmp_path):
    before = content(copy)
    message = refused("--smoke", "--out", copy)
    assert "Argument `out` must be a new or empty folder, or be given with --resume" in message
    file = tmp_path / "letter.txt"
    file.write_text("mine")
    assert f"Argument `out` must be a folder, but {file} is a file." in refused("--smoke", "--out", file)
    assert content(copy) == before
    assert file.read_text() == "mine"


@pytest.mark.parametrize("flag", ["--resume", "--plot-only"])
def test_a_foreign_folder_is_refused(refused, tmp_path, flag):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"cat")
    message = refused("--smoke", flag, "--out", folder)
    assert f"{folder} is no run folder of this program: it has no config.json." in message
    assert {path.name for path in folder.iterdir()} == {"cat.png"}


def test_the_folder_of_another_experiment_is_refused(refused, copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"experiment": "synthetic"', '"experiment": "coarse_labels"'))
    for flag in ("--resume", "--plot-only"):
        assert "belongs to the experiment 'coarse_labels', but this is 'synthetic'" in refused(
            "--smoke", flag, "--out", copy
        )


def test_another_configuration_is_not_resumed(refused, copy):
    before = content(copy)
    message = refused("--smoke", "--num-seeds", 5, "--resume", "--out", copy)
    assert "its configuration differs in num_seeds (stored None, given 5)" in message
    assert content(copy) == before


@pytest.mark.parametrize("flag", ["--resume", "--plot-only"])
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"program": "another"}'])
def test_a_corrupted_config_is_refused(refused, copy, flag, text):
    (copy / "config.json").write_text(text)
    message = refused("--smoke", flag, "--out", copy)
    assert str(copy) in message
    assert "corrupted" in message or "no run folder of this program" in message


@pytest.mark.parametrize("name", ["history.nc", "manifest.json"])
def test_a_folder_that_was_never_finished_is_not_drawn(refused, copy, name):
    (copy / name).unlink()
    assert f"is not the folder of a finished run: {name} is missing." in refused("--plot-only", "--out", copy)
    assert "must be the folder of a finished run" in refused("--plot-only", "--out", copy / "nowhere")


@pytest.mark.parametrize("damage", ["empty", "text", "half", "middle"])
def test_a_corrupted_history_is_refused(refused, copy, damage):
    file = copy / "history.nc"
    whole = file.read_bytes()
    middle = bytearray(whole)
    middle[: len(whole) // 2] = np.random.default_rng(0).bytes(len(whole) // 2)
    file.write_bytes({"empty": b"", "text": b"no data", "half": whole[: len(whole) // 2], "middle": middle}[damage])
    before = (copy / "claims.json").read_bytes()
    message = refused("--plot-only", "--out", copy)
    assert str(file) in message
    assert (copy / "claims.json").read_bytes() == before


@pytest.mark.slow
def test_a_corrupted_chunk_is_named_on_resume(refused, synthetic_smoke, tmp_path):
    out = shutil.copytree(synthetic_smoke, tmp_path / "copy", ignore=shutil.ignore_patterns(".lock"))
    (out / "history.nc").unlink()
    chunk = out / "parts" / "free" / "chunk-00000.npz"
    chunk.write_bytes(chunk.read_bytes()[:100])
    message = run_script(SCRIPT, "--smoke", "--quiet", "--resume", "--out", out)
    assert message.returncode == 2
    assert f"Checkpoint file {chunk} is damaged" in message.stderr
    assert message.stderr.count("\n") == 1
