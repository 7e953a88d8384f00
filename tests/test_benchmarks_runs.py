"""Benchmarks that run: one command, small versions, what it stores, and the figure of it."""

import csv
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from benchmarks import __main__ as runner
from benchmarks import (
    _library_peer,
    growth,
    layers_speed,
    metrics_speed,
    resume_speed,
    sweep_speed,
)
from nctheory.figures import benchmarks as figure
from paper_figs import benchmarks as paper_figure
from tests.benchmark_rows import ABSENT, FREE, RATE, RESULTS, TIME, stored


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


def curve(name="sweep, 100 steps", variable="seeds", power=1.0):
    sizes = (1, 4, 16, 64)
    return growth.Curve(name, variable, sizes, tuple(0.1 * size**power for size in sizes), (3.0,) * 4).as_record()


@pytest.mark.slow
def test_a_resumed_sweep_ran_one_chunk(tmp_path):
    run, options = resume_speed.run_of(10), {"chunk_size": 4, "checkpoint": tmp_path, "progress": False}
    sweep_speed.simulator.sweep(sweep_speed.simulator.train, run, 12, **options)
    resume_speed.chunk_files(tmp_path)[1].unlink()
    found = resume_speed.resume(tmp_path, 12, 10, 4)
    assert found["overhead"] == pytest.approx(found["wall"] - found["compile"] - found["chunk"])
    assert len(resume_speed.chunk_files(tmp_path)) == 3


@pytest.mark.slow
def test_training_alone_is_the_training_that_is_measured():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        config = layers_speed.Config(
            width=8, depth=2, num_seeds=2, num_epochs=2, num_records=2, batch_size=128, repeats=1
        )
        found = layers_speed.measure(config)
    assert found["largest_accuracy_gap"] == 0
    assert found["num_measurements"] == 6
    # The compiler dropped the measurements.
    assert found["compile_s"]["alone"] < found["compile_s"]["measured"]


def test_growth_measures_each_size(capsys):
    config = growth.Config(num_samples=(50, 200), feature_dim=(4, 8), num_classes=(2, 3), repeats=1)
    curves = growth.over_metrics(config)
    assert [(each.variable, each.sizes) for each in curves] == [("N", (50, 200)), ("d", (4, 8)), ("K", (2, 3))]
    # Also the sizes that all curves share compile in each.
    assert all(min(each.compile_seconds) > max(each.seconds) for each in curves)
    assert "collapse_metrics, d 8, K 3, against N" in capsys.readouterr().out


def test_the_library_is_compared_where_it_is_installed(monkeypatch):
    torch = pytest.importorskip("torch", reason="the library is PyTorch's")
    size = metrics_speed.Config(num_samples=90, feature_dim=5)
    drawn = metrics_speed.draw(size, 3)
    monkeypatch.setattr(_library_peer, "find_spec", lambda name: name == "torch" or None)
    assert _library_peer.prepare(*drawn, 3) == (None, "not installed")
    monkeypatch.setattr(_library_peer, "find_spec", lambda name: True)

    class Accumulator:
        def __init__(self, num_classes, dim, device, **known):
            assert (num_classes, dim, device) == (3, 5, "cpu")
            self.count = 0

        def accumulate(self, x, y, M=None, W=None):
            self.count += len(x)

        def compute(self):
            assert self.count == 90
            return torch.zeros(3, 5), torch.zeros(5)

    names = ("MeanAccumulator", "VarNormAccumulator", "CovarAccumulator", "DecAccumulator")
    accumulate = types.SimpleNamespace(**dict.fromkeys(names, Accumulator))
    measure = types.SimpleNamespace(
        covariance_ratio=lambda M, V_intra, m_G: 1.0,
        variability_cdnv=lambda M, V: 2.0,
        simplex_etf_error=lambda M, m_G: 3.0,
        self_duality_error=lambda W, M, m_G: 4.0,
        clf_ncc_agreement=lambda accumulator: 5.0,
    )
    module = types.SimpleNamespace(accumulate=accumulate, measure=measure)
    monkeypatch.setitem(sys.modules, "neural_collapse", module)
    call, note = _library_peer.prepare(*drawn, 3)
    assert note == "installed"
    assert call is not None
    assert call() == [1, 2, 3, 4, 5]
    del measure.clf_ncc_agreement
    assert _library_peer.prepare(*drawn, 3)[1].startswith("installed, but with another interface")


def test_one_run_stores_rows_curves_and_where_they_come_from(tmp_path, monkeypatch, capsys):
    records = {**stored(), "growth": {"curves": [curve()]}}
    del records["images"]

    def measure(name, config, threads, folder):
        return records.get(name), 1.0

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda *_: None)
    records["metrics"]["memory_bytes_per_s"] = 1e10
    names = ("sweep", "metrics", "images", "growth")
    assert runner.run(runner.Config(only=names, out=tmp_path / "all.json")) == 1
    shown = capsys.readouterr().out
    assert "FAILED: images" in shown
    assert "seeds 1 to 64, s 0.100, 6.40; exponent at the end 1.00" in shown
    assert "roof: memory bandwidth, reading, GB/s 10.0" in shown
    result = json.loads((tmp_path / "all.json").read_text())
    known = {"date", "command", "hardware", "versions", "source", "quick", "threads", "seconds", "failed", "load_after"}
    assert known | {"roofs", "rows", "curves", "records"} <= set(result)
    assert set(result["source"]) == {"commit", "dirty"}
    assert result["failed"] == ["images"]
    assert result["versions"]["jax"] == jax.__version__
    assert "neural_collapse" in result["versions"]
    assert result["rows"][1]["met"] is True
    assert result["curves"][0]["exponent"] == pytest.approx(1)


def test_the_readme_shows_the_figures_of_the_whole_run():
    record = json.loads((RESULTS / "all.json").read_text())
    assert not record["quick"]
    assert record["failed"] == []
    assert list(record["records"]) == list(runner.MODULES)
    rows = {(row["quantity"], row["beside"]): row for row in record["rows"]}
    assert [row["beside"] for row in record["rows"] if row["met"] is False] == ["features read once"]
    text = (RESULTS.parents[1] / "README.md").read_text().split("## Speed")[1].split("\n## ")[0]
    shown = {
        ("sweep, d 16, m 64, N 80, 64 seeds", "PyTorch loop, by hand and in place"): ("ours", "201,000", 0.01),
        ("sweep, d 32, m 256, N 200, 64 seeds", "PyTorch vmap over seeds"): ("peer", "3,230", 0.01),
        ("collapse_metrics, 50,000 x 512, K 10", "features read once"): ("ratio", "0.074", 0.01),
        ("certified minimisers, MSE, depth 3, 256 starts", "PyTorch L-BFGS"): ("ratio", "18", 0.03),
        ("sweep, arithmetic size, 256 seeds, 2 processes", "one process, same cores"): ("ratio", "1.02", 0.01),
        ("training resnet-small, 32 x 32 images, batch 128", "PyTorch, channels last"): ("peer", "956", 0.01),
    }
    for place, (column, words, tolerance) in shown.items():
        assert words in text
        assert rows[place][column] == pytest.approx(float(words.replace(",", "")), rel=tolerance)


def test_a_part_measured_again_takes_its_place_and_a_failed_one_does_not(tmp_path, monkeypatch, own_errors):
    records = {**stored(), "growth": {"curves": [curve()]}}
    records["metrics"] = {**records["metrics"], "memory_bytes_per_s": 1e10}
    monkeypatch.setattr(runner, "measure", lambda name, *_: (records.get(name), 1.0))
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda *_: None)
    out = tmp_path / "all.json"
    with pytest.raises(ValueError, match=r"`out` must be a file that `python -m benchmarks` stored"):
        runner.run(runner.Config(only=("metrics",), update=True, out=out))
    assert runner.run(runner.Config(only=("sweep", "metrics", "growth"), out=out)) == 0
    before = json.loads(out.read_text())
    records["metrics"] = {**records["metrics"], "memory_bytes_per_s": 2.5e9}
    del records["sweep"]
    assert runner.run(runner.Config(only=("metrics", "sweep"), update=True, out=out)) == 1
    after = json.loads(out.read_text())
    assert list(after["records"]) == list(before["records"]) == ["sweep", "metrics", "growth"]
    assert after["roofs"]["memory bandwidth, reading, GB/s"] == 2.5
    assert after["records"]["sweep"] == before["records"]["sweep"]
    assert after["failed"] == ["sweep"]
    assert after["source"] == before["source"]
    assert runner.Config(only=("metrics",), update=True).target == RESULTS / "all.json"
    for options in ({}, {"only": ("metrics",), "quick": True}):
        with pytest.raises(ValueError, match="`update` must be given with `only` and without `quick`"):
            runner.Config(update=True, **options)


def test_what_fails_is_named_and_the_others_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(runner.MODULES, "sweep", "no_such_module")
    assert runner.measure("sweep", runner.Config(), 1, tmp_path)[0] is None
    assert "no_such_module" in capfd.readouterr().err


def test_every_benchmark_runs_alone_and_has_a_small_version():
    for name in runner.MODULES.values():
        module = importlib.import_module(f"benchmarks.{name}")
        assert f"python -m benchmarks.{name}" in (module.__doc__ or "")
        options = {each.name for each in dataclasses.fields(module.Config)}
        assert {"quick", "out"} <= options
        assert callable(module.main)


@pytest.mark.usefixtures("float32")
def test_small_versions_give_a_table(tmp_path, monkeypatch, capsys):
    """In this process, and of the fastest alone; all of them in new processes below."""

    def measure(name, config, threads, folder):
        out = folder / f"{name}.json"
        module = importlib.import_module(f"benchmarks.{runner.MODULES[name]}")
        module.main(module.Config(quick=config.quick, out=out))
        return json.loads(out.read_text()), 1.0

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda *_: None)
    config = runner.Config(only=("metrics",), quick=True, out=tmp_path / "all.json")
    assert runner.run(config) == 0
    assert "Quick version" in capsys.readouterr().out
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert {"features read once", "NumPy, d x d covariance"} <= {row["beside"] for row in rows}
    assert all(row["required"] is None and row["ours_on"] == "cpu" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", runner.MODULES)
def test_every_small_version_runs(name, tmp_path):
    out = tmp_path / "all.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", name, "--out", str(out)]
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=environment)
    assert done.returncode == 0, done.stderr
    stored = json.loads(out.read_text())
    assert list(stored["records"]) == [name]
    assert (len(stored["rows"]) > 0) == (name != "growth")
    assert all(row["required"] is None for row in stored["rows"])


def test_names_and_threads_are_checked(own_errors):
    with pytest.raises(ValueError, match=r"`only` must be among sweep, .* but is 'swep'"):
        runner.Config(only=("swep",))
    with pytest.raises(ValueError, match="`threads` must be an integer >= 1"):
        runner.Config(threads=0)
    assert runner.Config(only=("growth", "sweep")).names == ("sweep", "growth")
    assert runner.Config().target == RESULTS / "all.json"
    assert runner.Config(quick=True).target is None


def test_the_figure_shows_every_measured_row_and_curve(tmp_path):
    rows = [each.as_record() for each in (RATE, TIME, ABSENT, FREE)]
    others = [curve("collapse_metrics, d 8", "N"), curve("collapse_metrics, N 9", "d", 2.0)]
    record = {"rows": rows, "curves": [curve(), *others]}
    assert [name for name, _ in figure.groups(record["curves"])] == ["sweep over seeds", "collapse_metrics"]
    drawn = figure.draw(record)
    ratios, seeds, metrics = drawn.axes
    assert [len(line.get_xdata()) for line in ratios.lines[1:]] == [1, 1, 1, 2]
    assert ratios.lines[1].get_xdata()[0] == 8
    assert ratios.lines[-1].get_xdata().tolist() == [8.0, 5.0]
    assert ratios.get_yticklabels()[0].get_text() == "sweep\nbeside loop on CPU, ours on GPU"
    assert seeds.lines[0].get_ydata()[-1] == pytest.approx(6.4)
    assert "exponent 2.00" in metrics.lines[1].get_label()
    # One guide of exponent 1 a panel, but none where sharing should cost nothing.
    devices = figure.draw({"rows": [], "curves": [curve("sweep of 8 seeds", "forced host devices", 0.0)]})
    assert (len(seeds.lines), len(devices.axes[0].lines)) == (2, 1)
    formulas = {"rows": [{**rows[0], "beside": "formula"}], "curves": [curve()]}
    assert len(figure.draw(formulas).axes) == len(figure.draw({"rows": rows, "curves": []}).axes) == 1
    with pytest.raises(ValueError, match="neither"):
        figure.draw({"rows": [ABSENT.as_record()], "curves": []})
    (tmp_path / "all.json").write_text(json.dumps(record))
    config = paper_figure.Config(tmp_path / "all.json", tmp_path / "out")
    assert paper_figure.run(config) == 0
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "benchmarks.csv",
        "benchmarks.pdf",
        "benchmarks.png",
    ]
    lines = list(csv.DictReader((tmp_path / "out" / "benchmarks.csv").read_text().splitlines()))
    assert [line["ratio"] for line in lines] == ["8.0", "4.0", "", "3.0"]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{}], "curves": []}', '{"rows": []}'])
def test_another_file_is_refused(tmp_path, text, own_errors):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="`record` must be a file that `python -m benchmarks` stored"):
        paper_figure.read(tmp_path / "x.json")
