"""The coarse-label experiment as a user runs it, at its smallest size: files, resume, errors, verdict logic."""

import json

import numpy as np
import pytest
import xarray as xr
from _coarse import claims
from _shared import store

from nctheory.runs import RunFolderError
from tests.experiments.conftest import run_here, run_script

SCRIPT = "experiments/coarse_labels.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--out", out)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    assert "raw pixels, k-means" in result.stdout
    assert "survives/plain" in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png"}
    with xr.open_dataset(out / "history.nc") as history:
        assert history.sizes["seed"] == 2
        assert history["clp"].dims == ("arm", "seed", "step")
        assert history["clp"].attrs["units"] == "dimensionless"
        assert np.isfinite(history["clp"]).all()
        # Initial weights that differ by a scale alone give features that differ by a scale alone.
        start = history["clp"].isel(step=0)
        assert np.abs(start.sel(arm="plain") - start.sel(arm="standard_init")).max() < 0.02
        np.testing.assert_array_equal(start.sel(arm="plain"), start.sel(arm="decay"))
        assert float(history["raw_clp"]) > 0.8
    roles = [claim["role"] for claim in json.loads((out / "claims.json").read_text())]
    assert roles.count("claim") == roles.count("control") == 6


@pytest.mark.slow
def test_plot_only_rewrites_the_same_ledger(smoke):
    out, _ = smoke
    before = (out / "claims.json").read_text()
    (out / "claims.json").unlink()
    result = run_here(SCRIPT, "--plot-only", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == before


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_numbers(smoke):
    out, _ = smoke
    with xr.open_dataset(out / "history.nc") as stored:
        before = stored.load()
    # A run that was killed while scoring: its last files are missing, one of the scores too.
    for name in ("history.nc", "manifest.json", "claims.json", "parts/scores/plain-1.npz"):
        (out / name).unlink()
    result = run_script(SCRIPT, "--smoke", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    with xr.open_dataset(out / "history.nc") as after:
        xr.testing.assert_identical(before, after.load())


@pytest.mark.parametrize("case", ["foreign", "incomplete", "truncated"])
def test_scores_of_something_else_are_refused_by_name(case, tmp_path):
    path = tmp_path / "plain-1.npz"
    arrays = {"clp": np.ones(2), "fine_probe": np.zeros(1)}
    assert store.cached(path, arrays, lambda: arrays).keys() == arrays.keys()
    np.testing.assert_array_equal(store.cached(path, arrays, pytest.fail)["clp"], arrays["clp"])
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.savez(path, **({"x": np.ones(2)} if case == "foreign" else {"clp": np.ones(2)}))
    message = "plain-1.npz is corrupted" if case == "truncated" else r"plain-1.npz is not of this .* 'fine_probe'\]"
    with pytest.raises(RunFolderError, match=message):
        store.cached(path, arrays, pytest.fail)


def test_paper_figure_is_drawn_from_the_folder(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/coarse_digits.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"coarse_digits.{end}" for end in ("pdf", "png", "csv")}
    rows = (tmp_path / "coarse_digits.csv").read_text().splitlines()
    # Three 10 x 10 matrices, three arms at two records, five reference levels, one header.
    assert len(rows) == 1 + 300 + 6 + 5
    assert rows[0] == "panel,arm,step,x,y,value,low,high"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-seeds", "1"), "Argument `num_seeds` must be an integer >= 2"),
        (("--dataset", "mnits"), "Argument `dataset` must be one of ['cifar10', 'cifar100', 'digits', "),
        (("--num-coarse", "11"), "Argument `num_coarse` must be <= num_fine = 10, but is 11"),
        (("--weight-decay", "-0.1"), "Argument `weight_decay` must be > 0, but is -0.1"),
        (("--plot-only",), "must be the folder of a finished run"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new" / "history.nc").exists()


def _record(*, plain=0.85, decay=0.75, standard=0.94, surrogate=0.48, num_seeds=8):
    """A made-up record with the given final levels, untrained level 0.93 and a spread of 0.005 over seeds."""
    generator = np.random.default_rng(0)
    noise = lambda *shape: 0.005 * generator.standard_normal(shape)  # noqa: E731
    final = np.array([plain, decay, standard])[:, None]
    clp = np.stack([np.full((3, num_seeds), 0.93), np.broadcast_to(final, (3, num_seeds))], axis=-1)
    replica = np.stack([0.93 + noise(num_seeds), plain + noise(num_seeds)], axis=-1)
    accuracy = np.stack([np.full((3, num_seeds), 0.2), np.ones((3, num_seeds))], axis=-1)
    return xr.Dataset(
        {
            "clp": (("arm", "seed", "step"), clp + noise(3, num_seeds, 2)),
            "surrogate": (("arm", "seed", "end", "draw"), surrogate + noise(3, num_seeds, 2, 2)),
            "replica_clp": (("seed", "end"), replica),
            "train_accuracy": (("arm", "seed", "step"), accuracy),
        },
        {"arm": list(claims.ARMS)},
    )


def test_expected_levels_pass_and_each_missing_effect_fails_its_claim():
    assert claims.judge(_record()).failures() == []
    wrong = {
        "survives/plain": {"plain": 0.5, "decay": 0.4},
        "eroded": {"plain": 0.93},
        "eroded-by-decay": {"decay": 0.85},
        "memory": {"standard": 0.86},
    }
    for claim, levels in wrong.items():
        verdicts = {row.id: row.verdict for row in claims.judge(_record(**levels)).claims}
        assert verdicts[claim] == "refuted"


def test_diverged_seeds_are_never_averaged_in():
    record = _record()
    record["clp"][0, 3, 1] = np.nan
    rows = {row.id: row for row in claims.judge(record).claims}
    assert rows["eroded"].verdict == "inconclusive"
    assert rows["eroded"].num_nonfinite == 1
    assert rows["survives/decay"].verdict == "supported"
