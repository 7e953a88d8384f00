"""The unconstrained-feature experiment at its smallest size: what it stores and claims, and that both are redrawn."""

import shutil

import jax
import numpy as np
import pytest
import unconstrained_features
import xarray as xr
from _ufm import conditions, predictions
from _ufm.sizes import sized_problem

from nctheory.claims import Ledger
from nctheory.simulator.free_features import UfmParams, UfmProblem, repeat_classes
from nctheory.simulator.solver import gradient_norm
from tests.experiments.conftest import run_here, run_script

SCRIPT = "experiments/unconstrained_features.py"
FIGURES = ("collapse_by_layer", "class_norms", "mode_landscape", "minority_angle", "deep_losses")
DIMS = {
    "minima": {"condition", "seed", "layer", "class"},
    "constrained": {"condition", "seed", "class", "other_class"},
    "limits": {"problem", "decay", "shape", "init_std", "seed", "class", "other_class"},
    "relu": {"condition", "seed"},
    "codes": {"condition", "seed"},
    "descent": {"run", "seed", "step", "layer", "class"},
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder of a finished smoke run."""
    out = tmp_path_factory.mktemp("unconstrained") / "run"
    result = run_script(SCRIPT, "--smoke", "--quiet", "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    out.with_suffix(".txt").write_text(result.stdout)
    return out


@pytest.fixture(scope="module")
def tree(smoke):
    with xr.open_datatree(smoke / "history.nc") as stored:
        return stored.load()


def test_the_history_has_its_groups_dimensions_and_units(tree):
    assert set(tree.children) == {*DIMS, "curves"}
    for name, dims in DIMS.items():
        assert set(tree[name].sizes) == dims
    for group in tree.children.values():
        for variable in group.data_vars.values():
            assert variable.attrs["units"], variable.name
            assert variable.attrs["definition"], variable.name
    minima = tree["minima"].to_dataset()
    assert minima.sizes["seed"] == 4
    assert tree["descent"].sizes["seed"] == 2
    assert (minima.converged == 1).all()
    # Seeds are seeds: trapped or not, no two starts end at the same point.
    assert len(np.unique(minima.class_weight_squares.isel(condition=0, **{"class": 0}))) == 4


def test_claims_hold_and_their_controls_are_refuted(smoke):
    ledger = Ledger.read(smoke / "claims.json")
    claims = {claim.id: claim for claim in ledger.claims if claim.role == "claim"}
    sure = {
        "MSE/never-below",
        "MSE/orthogonal-frames",
        "MSE/simplex-with-bias",
        "MSE/one-layer-no-trap",
        "CE/minimum-loss",
        "CE/simplex",
        "CE/convex-programme-loss",
        "CE/convex-programme-geometry",
        "CE/minority-threshold-M1",
        "MSE/minority-threshold-M1",
        "CE/nonneg-loss",
        "CE/nonneg-orthogonal",
        "CE/peeled-threshold-E1",
        "CE/peeled-threshold-E2",
        "MSE/tirer-bruna-norm",
        "MSE/tirer-bruna-loss",
        "CE/seli-bound",
        "CE/seli-value",
        "CE/seli-geometry",
        "MSE/no-decay-limit",
        "ReLU/explicit-points",
        "codes/one-vs-rest-margin",
        "codes/within-class-collapse",
        "codes/self-duality",
    }
    assert sure <= set(claims)
    for name, claim in claims.items():
        controls = ledger.controls(name)
        assert controls, name
        assert claim.num_nonfinite == 0
        if name in sure:
            assert claim.verdict == "supported", name
            assert {control.verdict for control in controls} == {"refuted"}, name
    printed = smoke.with_suffix(".txt").read_text()
    assert "at minimum" in printed
    assert f"{len(ledger.claims)} records" in printed


def test_figures_are_drawn(smoke):
    names = {path.name for path in (smoke / "figures").iterdir()}
    assert names == {f"{name}.{end}" for name in FIGURES for end in ("png", "pdf")}
    assert all(path.stat().st_size > 8000 for path in (smoke / "figures").iterdir())


def copy_of(smoke, tmp_path):
    """The run folder without what a redraw writes."""
    copy = tmp_path / "copy"
    shutil.copytree(smoke, copy, ignore=shutil.ignore_patterns("figures", "claims.json", ".lock"))
    return copy, (smoke / "claims.json").read_bytes()


@pytest.mark.slow
def test_plot_only_reproduces_the_claims(smoke, tmp_path):
    copy, expected = copy_of(smoke, tmp_path)
    assert run_here(SCRIPT, "--plot-only", "--out", copy).returncode == 0
    assert (copy / "claims.json").read_bytes() == expected


@pytest.mark.slow
def test_resume_reproduces_the_claims(smoke, tmp_path):
    copy, expected = copy_of(smoke, tmp_path)
    # As if the run had been killed before its last sweeps were stored.
    (copy / "history.nc").unlink()
    shutil.rmtree(copy / "parts" / "descent_of_M1")
    result = run_script(SCRIPT, "--smoke", "--quiet", "--resume", "--out", copy)
    assert result.returncode == 0, result.stderr
    assert (copy / "claims.json").read_bytes() == expected


@pytest.mark.slow
def test_the_paper_figures_are_drawn_from_the_folder(smoke, tmp_path):
    result = run_here("paper_figs/unconstrained_features.py", "--run", smoke, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    wanted = {f"{name}.{end}" for name in FIGURES for end in ("png", "pdf")} | {"unconstrained_features.csv"}
    assert {path.name for path in tmp_path.iterdir()} == wanted


def test_a_broken_law_is_refuted_and_a_failed_seed_is_counted(tree):
    broken = tree.copy(deep=True)
    broken["minima"]["predicted_loss"][:] *= 1 + 1e-6
    broken["minima"]["nc2_weight_gof"][:] += 1e-3
    broken["descent"]["nc1"][:] += 1
    verdicts = {claim.id: claim.verdict for claim in unconstrained_features.judge(broken).claims}
    assert verdicts["MSE/never-below"] == "refuted"
    assert verdicts["CE/minimum-loss"] == "refuted"
    assert verdicts["GD/collapse-at-every-layer"] == "refuted"
    damaged = tree.copy(deep=True)
    damaged["minima"]["finite"][:, 2] = 0
    after = {claim.id: claim for claim in unconstrained_features.judge(damaged).claims}
    assert after["MSE/never-below"].num_nonfinite == 1
    assert after["MSE/never-below"].verdict == "inconclusive"


def test_formulas_with_nothing_wrong_are_the_theory():
    with jax.enable_x64(True):
        for condition in conditions.conditions(conditions.DEFAULT):
            if condition.loss == "mse" and condition.bias == "none":
                right = float(predictions.wrong_loss(condition))
                assert right == pytest.approx(float(predictions.predict(condition)["loss"]), rel=1e-12)


@pytest.mark.slow
def test_class_sizes_as_numbers_are_the_problem_with_all_samples():
    with jax.enable_x64(True):
        named = {"loss": "cross_entropy", "weight_decay": 0.02, "feature_decay": 0.03}
        small = sized_problem((5, 2, 1), 4, 2, **named)
        params = small.init(jax.random.key(0))
        full = UfmProblem((5, 2, 1), 4, 2, **named)
        repeated = repeat_classes(UfmProblem((5, 2, 1), 4, 2, level="class", **named), params)
        assert isinstance(repeated, UfmParams)
        np.testing.assert_allclose(small.objective(params), full.objective(repeated), rtol=1e-14)
        assert gradient_norm(full, repeated) <= gradient_norm(small, params)
