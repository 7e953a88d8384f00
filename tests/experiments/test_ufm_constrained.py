"""Claims about one layer under constraints: what is solved, what is stored, and what the verdicts hang on."""

from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr
from _ufm import constrained
from _ufm.grams import Minimum

from nctheory.claims import Ledger
from nctheory.simulator.free_features import UfmParams, UfmProblem, repeat_classes
from tests.experiments.conftest import converged, judged

# As many as in a smoke run of the script, which then shares the compiled programs.
SEEDS = [0, 1, 2, 3]
IDS = {
    "CE/nonneg-loss",
    "CE/nonneg-orthogonal",
    "CE/peeled-threshold-E1",
    "CE/peeled-threshold-E2",
    "MSE/tirer-bruna-norm",
    "MSE/tirer-bruna-loss",
}


@pytest.fixture(scope="module")
def measured(measure):
    """The real measurement at smoke size."""
    return measure(constrained, SEEDS)


@pytest.fixture(scope="module")
def ideal():
    """What the starts would store if every prediction were exact."""
    with jax.enable_x64(True):
        listed = constrained.cases()
    histories = [_exact(case) for case in listed]
    return constrained.dataset(SEEDS, histories, listed)


def _exact(case):
    both = (1, len(SEEDS))
    matrices = {name: case.predicted.get(name) for name in ("weight_gram", "feature_gram")}
    if case.kind == "layer_peeled":
        gram = np.eye(4)
        merged = case.problem.sizes[0] > case.predicted["ratio"]
        gram[2, 3] = gram[3, 2] = 1.0 if merged else 0.9
        matrices = dict.fromkeys(matrices, gram)
    filled = {name: np.broadcast_to(value, (*both, 4, 4)) for name, value in matrices.items()}
    return Minimum(**converged(both, loss=case.predicted.get("loss", 1.0)), **filled, logits=np.zeros((*both, 4, 4)))


@pytest.mark.slow
def test_measured_claims_hold_and_their_controls_are_refuted(measured, tmp_path):
    measured.to_netcdf(tmp_path / "data.nc")
    with xr.open_dataset(tmp_path / "data.nc") as stored:
        ledger = Ledger(tuple(constrained.judge(stored.load())))
    assert {claim.id for claim in ledger.claims if claim.role == "claim"} == IDS
    assert ledger.failures() == []
    assert all(claim.num_seeds == 4 and claim.num_nonfinite == 0 for claim in ledger.claims)


@pytest.mark.slow
def test_what_is_stored_has_dimensions_units_and_definitions(measured):
    assert dict(measured.sizes) == {"condition": 33, "seed": 4, "class": 4, "other_class": 4}
    assert measured.loss.dtype == np.float64
    for variable in measured.data_vars.values():
        assert variable.attrs["units"] in ("dimensionless", "samples"), variable.name
        assert variable.attrs["definition"], variable.name
    assert (measured.converged == 1).all()
    # Different starts, and features that stay non-negative: no pair of class means at an obtuse angle.
    assert (measured.evaluations.isel(seed=0) != measured.evaluations.isel(seed=1)).any()
    assert (measured.feature_gram.where(measured.condition_kind == "nonnegative", drop=True) >= 0).all()


def test_exact_predictions_hold(ideal):
    assert Ledger(tuple(constrained.judge(ideal))).failures() == []


def test_the_predictions_are_the_published_formulas(ideal):
    scaled = ideal.isel(condition=np.flatnonzero(ideal.condition_kind == "tirer_bruna"))
    weight, feature = scaled.weight_decay.values, scaled.feature_decay.values
    wanted = np.maximum(1 - np.sqrt(weight * feature), 0) * np.sqrt(weight / feature)
    found = np.diagonal(scaled.predicted_feature_gram.values, axis1=1, axis2=2)
    np.testing.assert_allclose(found, np.tile(wanted[:, None], 4), rtol=1e-12, atol=1e-14)
    assert (wanted == 0).sum() == 2
    # Some classes are dead, so that the closed form's threshold is among what is tested.
    signed = ideal.isel(condition=np.flatnonzero(ideal.condition_kind == "nonnegative"))
    assert (np.diagonal(signed.predicted_feature_gram.values, axis1=1, axis2=2) == 0).sum() == 5
    ratios = np.unique(ideal.predicted_ratio.values[np.isfinite(ideal.predicted_ratio.values)])
    np.testing.assert_allclose(ratios, [3.3805, 7.6180], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "claim"),
    [
        ("loss", "nonnegative", "CE/nonneg-loss"),
        ("feature_gram", "nonnegative", "CE/nonneg-orthogonal"),
        ("weight_gram", "nonnegative", "CE/nonneg-orthogonal"),
        ("feature_gram", "tirer_bruna", "MSE/tirer-bruna-norm"),
        ("loss", "tirer_bruna", "MSE/tirer-bruna-loss"),
    ],
)
def test_a_broken_law_is_refuted(ideal, name, kind, claim):
    broken = ideal.copy(deep=True)
    # A hundred times the tolerance of losses is still the minimum as far as geometry is concerned: see AT_MINIMUM.
    factor = 1 + 1e-6 if name == "loss" else 1 + 1e-3
    broken[name] = broken[name].where(broken.condition_kind != kind, broken[name] * factor)
    assert judged(constrained, broken)[claim].verdict == "refuted"


def test_a_start_that_is_at_no_minimum_leaves_geometry_open(ideal):
    stuck = ideal.copy(deep=True)
    stuck["loss"][0] *= 1.1
    claims = judged(constrained, stuck)
    assert claims["CE/nonneg-orthogonal"].verdict == "inconclusive"
    assert claims["CE/nonneg-loss"].verdict != "supported"


def test_a_shifted_threshold_is_refuted_and_a_blurred_one_is_open(ideal):
    peeled = ideal.condition_kind == "layer_peeled"
    shifted = ideal.copy(deep=True)
    # Every minority apart up to twice the predicted ratio: the bracket lies above it.
    level = shifted.class_sizes.isel({"class": 0}) / shifted.predicted_ratio
    shifted["weight_gram"] = shifted.weight_gram.where(~(peeled & (level < 1.5)), np.diag([1.0, 1.0, 1.0, 0.5]))
    assert judged(constrained, shifted)["CE/peeled-threshold-E1"].verdict == "refuted"
    blurred = ideal.copy(deep=True)
    where = int(np.flatnonzero(peeled.values)[-1])
    blurred["weight_gram"][where, 1] = np.eye(4)
    found = judged(constrained, blurred)
    assert found["CE/peeled-threshold-E2"].verdict == "inconclusive"
    assert found["CE/peeled-threshold-E1"].verdict == "supported"


def test_failed_seeds_are_counted(ideal):
    damaged = ideal.copy(deep=True)
    damaged["finite"][:, 1] = False
    damaged["converged"][:, 1] = False
    damaged["loss"][:, 1] = np.nan
    found = judged(constrained, damaged)
    for name in IDS:
        assert found[name].num_nonfinite == 1, name
        assert found[name].verdict == "inconclusive", name


def test_class_level_problems_are_those_with_all_samples():
    with jax.enable_x64(True):
        sizes, radii = (5, 3, 2, 1), {"feature_radius": 1.3, "weight_radius": 0.7}
        bounded: dict[str, Any] = {"loss": "cross_entropy", "features": "norm_bounded", "weights": "norm_bounded"}
        bounded |= {"weight_decay": 0.0, "feature_decay": 0.0} | radii
        small = constrained._problem(constrained.SizedProblem, sizes, **bounded)
        params = small.init(jax.random.key(0))
        at_class = UfmProblem(sizes, constrained.WIDTH, 1, level="class", **bounded)
        full = UfmProblem(sizes, constrained.WIDTH, 1, **bounded)
        np.testing.assert_allclose(
            small.objective(params), full.objective(repeat_classes(at_class, params)), rtol=1e-14
        )
        norms = np.sum(np.asarray(small.layer_features(params)[0]) ** 2, axis=1)
        assert norms.mean() == pytest.approx(1.3**2, rel=1e-12)


def test_the_other_normalisation_is_written_out_rightly():
    with jax.enable_x64(True):
        problem = constrained._problem(
            constrained.TirerBrunaProblem, (3,) * 4, loss="mse", weight_decay=0.3, feature_decay=0.2
        )
        params = problem.init(jax.random.key(1))
        assert isinstance(params, UfmParams)
        weight, means = np.asarray(params.weights[0]), np.asarray(params.features)
        features, targets = np.repeat(means, 3, axis=0).T, np.repeat(np.eye(4), 3, axis=0).T
        literal = np.sum((weight @ features - targets) ** 2) / (2 * 12)
        literal += 0.3 / (2 * 4) * np.sum(weight**2) + 0.2 / (2 * 12) * np.sum(features**2)
        np.testing.assert_allclose(problem.objective(params), literal, rtol=1e-14)
