"""Coarse training over learning rate x weight decay: record, resume, what is left of the weights, verdict logic."""

import csv
import json
import shutil
from types import SimpleNamespace

import coarse_grid
import numpy as np
import pytest
import xarray as xr
from _coarse import grid as grid_runs
from _coarse import grid_claims
from flax import nnx

from nctheory import vision
from nctheory._cli import run_main
from nctheory.vision import networks
from tests.experiments.conftest import assert_refused, history_of, run_here, run_script

SCRIPT = "experiments/coarse_grid.py"
# The smallest networks: what is tested is the experiment, not the training.
SMALL = ("--smoke", "--network", "mlp-3x64")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One finished smoke run that the tests of this file share; read only."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, *SMALL, "--out", out)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    for words in ("scikit-learn's copy", "too small to judge", "rank correlation", "cell 2 of 2"):
        assert words in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    names = {"coarse_grid_distances", "coarse_grid_memory"}
    assert {path.name for path in (out / "figures").iterdir()} == {f"{n}.{e}" for n in names for e in ("pdf", "png")}
    rows = json.loads((out / "claims.json").read_text())
    claims = {row["id"] for row in rows if row["role"] == "claim"}
    assert claims == {"forgotten", "eroded", "linear", "falls-with-memory"}
    assert {row["claim_id"] for row in rows if row["role"] == "control"} == claims


def test_record_has_names_units_and_an_independent_memory(smoke):
    history = history_of(smoke[0])
    cell = ("learning_rate", "weight_decay")
    assert history["clp"].dims == (*cell, "seed", "checkpoint")
    assert history["class_distances"].dims == (*cell, "seed", "checkpoint", "fine", "other_fine")
    assert history["surrogate"].dims == (*cell, "seed", "checkpoint", "draw")
    assert history.sizes["weight_decay"] == 2
    for name, variable in history.data_vars.items():
        assert name == "coarse_label" or variable.attrs["units"], name
    assert np.isfinite(history["clp"]).all()
    # 256 images in batches of 16; before training nothing is forgotten, and decay only ever shrinks.
    np.testing.assert_array_equal(history["step"], [0, 16, 32])
    np.testing.assert_array_equal(history["memory_factor"][..., 0], 1)
    np.testing.assert_allclose(history["remaining_share"][..., 0], 1, rtol=1e-12)
    assert (np.diff(history["memory_factor"], axis=-1) < 0).all()
    # The MLP has no normalisation: of its weights about that is left. What the gradients added along the initial
    # weights in 32 steps is the difference.
    left = history["remaining_share"].mean("seed").isel(checkpoint=-1) / history["memory_factor"].isel(checkpoint=-1)
    assert np.abs(left - 1).max() < 0.1
    # Both cells begin with the same network.
    first = history["clp"].isel(checkpoint=0)
    np.testing.assert_array_equal(first.isel(weight_decay=0), first.isel(weight_decay=1))


def test_remaining_share_is_the_projection_on_the_initial_kernels():
    spec = networks.MlpSpec(widths=(6,))

    def build(seed):
        return spec.build((2, 2, 1), 3, nnx.Rngs(seed))

    first, other = build(0), build(1)
    assert grid_runs.remaining_share(first, first) == pytest.approx(1)
    flat = [
        np.concatenate([leaf.ravel() for leaf in _matrices(nnx.to_pure_dict(nnx.state(net)))]) for net in (first, other)
    ]
    assert flat[0].size == 2 * 2 * 6 + 6 * 3
    expected = flat[1] @ flat[0] / (flat[0] @ flat[0])
    assert grid_runs.remaining_share(other, first) == pytest.approx(expected)


def _matrices(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in _matrices(tree[key])]
    return [np.asarray(tree, float)] if np.ndim(tree) > 1 else []


@pytest.mark.slow
def test_run_killed_between_cells_resumes_to_the_same_numbers(smoke, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(smoke[0], out)
    for name in ("history.nc", "manifest.json", "claims.json"):
        (out / name).unlink()
    # Killed in the last epoch of one network, before the next one: the untrained weights must come from the disk.
    last = sorted((out / "parts").glob("lr0.1-wd5e-05-*"))
    shutil.rmtree(last[0] / "epoch_000002")
    shutil.rmtree(last[1])
    result = run_script(SCRIPT, *SMALL, "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    resumed, whole = (history_of(each).drop_vars("score_seconds") for each in (out, smoke[0]))
    xr.testing.assert_identical(resumed, whole)


@pytest.mark.slow
def test_paper_figure_writes_figures_and_numbers(smoke, tmp_path):
    result = run_here("paper_figs/coarse_grid.py", "--run", smoke[0], "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "coarse_grid.csv") as file:
        rows = list(csv.DictReader(file))
    # In two cells: a 10 x 10 matrix, and eight scores at three checkpoints.
    assert len(rows) == 2 * (100 + 24)
    shown = [float(row["value"]) for row in rows if row["panel"] == "clp"]
    np.testing.assert_allclose(shown, history_of(smoke[0])["clp"].mean("seed").values.ravel(), rtol=1e-5)
    assert (tmp_path / "coarse_grid_memory.pdf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rates", "0.1", "0.1"), "Argument `learning_rates` must hold different numbers"),
        (("--learning-rates", "0.1", "0"), "Argument `learning_rates` must hold numbers > 0"),
        (("--weight-decays", "-1e-3"), "Argument `weight_decays` must hold numbers >= 0"),
        (("--images.weight-decay", "0.1"), "Argument `images.weight_decay` must be left alone"),
        (("--network", "resnet"), "Argument `name` must be one of"),
        (("--images.batch-size", "2000"), "must be at most the 1437 train images"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path, capsys):
    code = run_main(coarse_grid.Config, coarse_grid.run, ["--out", str(tmp_path / "new"), *arguments])
    assert_refused(code, capsys.readouterr().err, message, tmp_path / "new")


def made_up_record(*, num_seeds=3, eroded=0.60, probe_there=0.92, train=1.0, share=0.01):
    """Nine cells; the first has forgotten its weights, recovery falls with the memory, a spread of 0.005 over seeds."""
    generator = np.random.default_rng(0)
    memory = np.array([[1e-8, 0.2, 0.85], [0.2, 0.85, 0.98], [0.85, 0.98, 0.99]])
    recovery = 0.90 - 0.02 * (1 - memory)
    recovery[0, 0] = eroded
    probe = np.full((3, 3), 0.95)
    probe[0, 0] = probe_there
    left = np.sqrt(memory)
    left[0, 0] = share

    def level(cells):
        values = np.broadcast_to(np.asarray(cells, float), (3, 3))[:, :, None, None]
        return values + 0.005 * generator.standard_normal((3, 3, num_seeds, 1))

    dims = ("learning_rate", "weight_decay", "seed", "checkpoint")
    return xr.Dataset(
        {
            "clp": (dims, level(recovery)),
            "fine_probe": (dims, level(probe)),
            "remaining_share": (dims, level(left)),
            "train_accuracy": (dims, np.full((3, 3, num_seeds, 1), train)),
            "surrogate": ((*dims, "draw"), np.stack([level(0.5), level(0.5)], axis=-1)),
            "memory_factor": ((*dims[:2], "checkpoint"), np.sqrt(memory)[..., None]),
        }
    )


def test_expected_levels_pass_and_each_missing_effect_is_refuted():
    assert grid_claims.judge(made_up_record()).failures() == []
    wrong = {"forgotten": {"share": 0.5}, "eroded": {"eroded": 0.88}, "linear": {"probe_there": 0.6}}
    for claim, levels in wrong.items():
        verdicts = {row.id: row.verdict for row in grid_claims.judge(made_up_record(**levels)).claims}
        assert verdicts[claim] == "refuted", claim
    rising = made_up_record()
    rising["clp"] = 1 - rising["clp"]
    verdicts = {row.id: row.verdict for row in grid_claims.judge(rising).claims}
    assert verdicts["falls-with-memory"] == "refuted"


def test_cells_that_do_not_fit_their_labels_do_not_count():
    rows = {row.id: row for row in grid_claims.judge(made_up_record(train=0.98)).claims}
    assert {row.verdict for row in rows.values()} == {"inconclusive"}
    record = made_up_record()
    # A cell far off that does not fit changes nothing.
    record["clp"][2, 2] = 0.0
    record["train_accuracy"][2, 2] = 0.9
    assert grid_claims.judge(record).failures() == []


def test_rank_correlation_equals_that_of_ranks_and_needs_three_cells():
    from scipy.stats import rankdata

    record = made_up_record()
    record["clp"] = record["clp"] + np.random.default_rng(1).normal(0, 0.1, record["clp"].shape)
    memory = record["memory_factor"].values.ravel()
    columns = [record["clp"].values[:, :, seed, 0].ravel() for seed in range(3)]
    expected = [np.corrcoef(rankdata(memory), rankdata(column))[0, 1] for column in columns]
    np.testing.assert_allclose(grid_claims.correlation_with_memory(record), expected, rtol=1e-12)
    # 200 shuffles of nine cells: standard error 1/sqrt(8 * 200) = 0.025.
    assert np.abs(grid_claims.correlation_with_memory(record, num_permutations=200)).max() < 0.1
    record["train_accuracy"][1:] = 0
    record["train_accuracy"][0, 0] = 0
    assert np.isnan(grid_claims.correlation_with_memory(record)).all()


def test_a_grid_whose_every_run_diverged_is_recorded_judged_and_drawn():
    from nctheory.figures import coarse_grid as figures

    config = coarse_grid.Config(smoke=True)
    mapping = vision.label_map("mod", num_fine=4, num_coarse=2)
    split = SimpleNamespace(num_samples=256)
    data = SimpleNamespace(label_map=mapping, class_names=("a", "b", "c", "d"), coarse=(split, split), copy="-")
    raw = {"raw_clp": 0.3, "raw_chance": 0.25, "raw_fine_probe": 0.4}
    history = grid_runs.collect(config.grid, data, [[None, None], [None, None]], raw)
    assert np.isnan(history["clp"]).all()
    assert {row.verdict for row in grid_claims.judge(history).claims} == {"inconclusive"}
    assert "not fitted" in grid_claims.table(history)
    assert set(figures.draw_all(history)) == {"coarse_grid_distances", "coarse_grid_memory"}
