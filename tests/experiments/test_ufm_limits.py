"""Claims about vanishing decay and small starts: the continuation to infinite margin, and what the verdicts hang on."""

import jax
import numpy as np
import pytest
import xarray as xr
from _ufm import limits
from _ufm.grams import Minimum

from nctheory.claims import Ledger
from nctheory.simulator.free_features import UfmProblem
from nctheory.theory.seli import seli
from tests.experiments.conftest import converged, judged

# As many as in a smoke run of the script, which then shares the compiled programs.
SEEDS = [0, 1, 2, 3]
SELI = {"CE/seli-bound", "CE/seli-value", "CE/seli-approach", "CE/seli-geometry"}
DESCENT = {"MSE/no-decay-limit", "MSE/no-decay-order"}


@pytest.fixture(scope="module")
def measured(measure):
    """The real measurement at smoke size."""
    return measure(limits, SEEDS)


@pytest.fixture(scope="module")
def ideal():
    """Seeds that approach both limits as they should: SELI plus a constant over the margin."""
    with jax.enable_x64(True):
        parts: dict[str, list] = {"weight_gram": [], "feature_gram": [], "logits": []}
        for sizes in limits.SIZES:
            geometry, offset = seli(sizes), np.diag([-0.5, 0.0, 0.0, 0.3])
            for decay in limits.DECAYS:
                margin = -np.log(decay)
                parts["logits"].append(margin * np.asarray(geometry.logits) + offset)
                for name in ("weight_gram", "feature_gram"):
                    parts[name].append(np.asarray(getattr(geometry, name)) + offset / margin)
        rows = len(limits.SIZES) * len(limits.DECAYS)
        matrices = {name: np.repeat(np.stack(each)[:, None], len(SEEDS), axis=1) for name, each in parts.items()}
        solved = Minimum(**converged((rows, len(SEEDS))), **matrices)
        stds = np.asarray(limits.INIT_STDS)[:, None] * np.asarray([[1.0, 2.0, 0.5, 1.5]])
        ending = limits.Ending(
            loss=stds**2,
            finite=stds > 0,
            weight_distance=stds**2,
            feature_distance=stds,
            bias_distance=stds / 2,
            orthogonal_distance=0.5 + stds,
            within_class=stds,
        )
        return limits.dataset(SEEDS, solved, [ending], limits.SHAPES[:1])


@pytest.mark.slow
def test_measured_claims_hold_and_their_controls_are_refuted(measured, tmp_path):
    measured.to_netcdf(tmp_path / "data.nc")
    with xr.open_dataset(tmp_path / "data.nc") as stored:
        ledger = Ledger(tuple(limits.judge(stored.load())))
    assert {claim.id for claim in ledger.claims if claim.role == "claim"} == SELI | DESCENT
    assert ledger.failures() == []
    assert all(claim.num_seeds == 4 and claim.num_nonfinite == 0 for claim in ledger.claims)


@pytest.mark.slow
def test_what_is_stored_has_dimensions_units_and_definitions(measured):
    wanted = {"problem": 3, "decay": 7, "seed": 4, "class": 4, "other_class": 4, "shape": 1, "init_std": 5}
    assert dict(measured.sizes) == wanted
    assert measured.loss.dtype == np.float64
    for variable in measured.data_vars.values():
        assert variable.attrs["units"] in ("dimensionless", "samples"), variable.name
        assert variable.attrs["definition"], variable.name
    assert (measured.converged == 1).all()
    assert (measured.is_certified == 1).all()
    assert (measured.weight_distance.isel(seed=0) != measured.weight_distance.isel(seed=1)).all()


@pytest.mark.slow
def test_the_excess_over_seli_falls_with_the_decay(measured):
    excess = limits.value_ratio(measured) - 1
    assert (excess > 0).all()
    assert (np.diff(excess, axis=1) < 0).all()


def test_the_ideal_approach_holds(ideal):
    assert Ledger(tuple(limits.judge(ideal))).failures() == []


def test_continuation_is_exact_for_cubics_in_the_inverse_margin(key):
    coefficients = np.asarray(jax.random.normal(key, (4, 2, 3, 5, 5)), dtype=np.float64)
    margins = np.asarray([4.0, 6.0, 9.0, 11.0, 16.0])[None, :, None] * np.asarray([1.0, 1.1, 0.9])[None, None]
    margins = np.repeat(margins, 2, axis=0)
    x = 1 / margins[..., None, None]
    values = sum(coefficients[power][:, None] * x**power for power in range(4))
    # Lagrange's factors reach some tens at these margins.
    tolerance = 1e-12 if coefficients.dtype == jax.random.normal(key).dtype else 1e-10
    np.testing.assert_allclose(limits.continued(values, margins), coefficients[0], rtol=tolerance, atol=tolerance)


def test_margin_and_slope(ideal):
    logits = ideal.logits.values[0, 2, 0]
    margins = [logits[y, y] - logits[c, y] for y in range(4) for c in range(4) if c != y]
    assert limits.least_margin(ideal)[0, 2, 0] == pytest.approx(min(margins), rel=1e-14)
    at = np.asarray([[1.0, 2.0, 8.0]])
    np.testing.assert_allclose(limits.slope(3 * at**-1.7, at), [-1.7], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "factor", "claim"),
    [
        # The constraint that the factor breaks: a nuclear norm below the least one for its margin.
        ("predicted_value", 1.1, "CE/seli-bound"),
        ("predicted_value", 1.002, "CE/seli-value"),
        ("predicted_value", 0.9, "CE/seli-approach"),
        ("feature_distance", 50.0, "MSE/no-decay-limit"),
    ],
)
def test_a_broken_law_is_refuted(ideal, name, factor, claim):
    broken = ideal.copy(deep=True)
    broken[name] *= factor
    assert judged(limits, broken)[claim].verdict == "refuted"


def test_a_wrong_geometry_and_a_wrong_order_are_refuted(ideal):
    broken = ideal.copy(deep=True)
    broken["predicted_feature_gram"][:] += 0.02 * np.eye(4)
    broken["feature_distance"] = np.sqrt(broken.feature_distance)
    found = judged(limits, broken)
    assert found["CE/seli-geometry"].verdict == "refuted"
    assert found["MSE/no-decay-order"].verdict == "refuted"


def test_failed_seeds_are_counted(ideal):
    damaged = ideal.copy(deep=True)
    damaged["converged"][1, 3, 1] = False
    found = judged(limits, damaged)
    assert {found[name].num_nonfinite for name in SELI} == {1}
    assert {found[name].verdict for name in SELI} == {"inconclusive"}
    assert {found[name].verdict for name in DESCENT} == {"supported"}
    damaged = ideal.copy(deep=True)
    damaged["descent_finite"][0, 2, 0] = False
    found = judged(limits, damaged)
    assert {found[name].num_nonfinite for name in DESCENT} == {1}
    assert {found[name].verdict for name in DESCENT} == {"inconclusive"}
    assert {found[name].verdict for name in SELI} == {"supported"}


def test_the_descent_starts_at_a_zero_bias():
    with jax.enable_x64(True):
        config = limits.limit_config(3, 2, 0.1, num_steps=2)
        start = config.descent.problem.init(jax.random.key(0))
        usual = UfmProblem((2, 2, 2), limits.WIDTH, 1, bias="free", init_std=0.1).init(jax.random.key(0))
        assert (np.asarray(start.bias) == 0).all()
        assert (np.asarray(usual.bias) != 0).all()
        np.testing.assert_array_equal(start.features, usual.features)
        ending = limits.descend_to_limit(config, jax.random.key(0))
        assert bool(ending.finite)
        # Two steps from the start the features are still far from the limit and spread within their classes.
        assert ending.feature_distance > 0.5
        assert ending.within_class > 0.1
