"""Claims on kernel limits: made-up records that obey the laws pass, and each fault fails its claims."""

import numpy as np
import pytest
import xarray as xr
from _kernels import claims, limits, slopes, tables

from nctheory.claims import mean_interval
from nctheory.figures import kernel_limits as figure

WIDTHS = np.array([64, 128, 256, 512])


def test_slopes_of_exact_power_laws():
    law = 3.0 / WIDTHS[:, None] ** 1.5 * np.ones((4, 5))
    assert slopes.mean_slope(law, WIDTHS) == pytest.approx(-1.5)
    # Leading axes are averaged.
    assert slopes.mean_slope(np.stack([law, law**2]), WIDTHS) == pytest.approx(-2.25)


def test_a_bias_that_is_not_positive_has_no_exponent():
    law = 3.0 / WIDTHS[:, None] * np.ones((4, 5))
    flipped = law * np.array([1, 1, 1, -1])[:, None]
    for wrong in (-law, flipped, 0 * law, np.stack([law, -law])):
        assert np.isnan(slopes.mean_slope(wrong, WIDTHS))
    # One seed may be negative where the mean is not.
    noisy = law * np.array([-1.0, 2.0, 2.0, 1.0, 1.0])
    assert slopes.mean_slope(noisy, WIDTHS) == pytest.approx(-1.0)
    assert slopes.magnitude_slope(np.stack([law, -law]), WIDTHS) == pytest.approx(-1.0)


def test_a_bias_of_the_wrong_sign_is_not_supported():
    made = _made_up_record()
    made["initial_nc1"] = 2 * 0.5 - made["initial_nc1"]
    rows = {row.id: row for row in claims.judge(made).claims}
    assert rows["start/nc1-bias"].verdict == "inconclusive"
    assert rows["start/nc1-bias"].num_nonfinite == made.sizes["seed"]


def test_jackknife_of_a_mean_is_the_samples_and_of_a_log_covers_the_truth():
    samples = np.random.default_rng(1).normal(size=9)
    np.testing.assert_allclose(slopes.jackknife(lambda x: float(x.mean()), samples), samples)
    rng, hits = np.random.default_rng(2), 0
    for _ in range(80):
        squares = rng.chisquare(3, size=(len(WIDTHS), 16)) / WIDTHS[:, None]
        found = mean_interval(slopes.jackknife(lambda x: slopes.mean_slope(x, WIDTHS), squares))
        hits += found.low <= -1 <= found.high
    # Nominally 76; the standard deviation of a count of 80 at 95 % is 2.
    assert hits >= 68


def test_a_seed_that_failed_is_left_out_and_counted():
    law = np.random.default_rng(3).chisquare(5, size=(4, 8)) / WIDTHS[:, None]
    law[2, 5] = np.nan
    found = slopes.jackknife(lambda x: slopes.mean_slope(x, WIDTHS), law)
    assert np.flatnonzero(np.isnan(found)).tolist() == [5]
    np.testing.assert_allclose(
        np.delete(found, 5), slopes.jackknife(lambda x: slopes.mean_slope(x, WIDTHS), np.delete(law, 5, axis=1))
    )
    assert np.isnan(slopes.jackknife(lambda x: slopes.mean_slope(x, WIDTHS), law[:, :2])).all()


MADE_UP_WIDTHS = np.array([64, 128, 256, 512, 1024, 2048])
SHAPE = (2, 6, 16)
LAYERS = 2
RUN = ("condition", "width", "seed")


def _power(rng, exponent, *tail):
    """Falls with the width, with chance of its own for every run."""
    chance = rng.chisquare(30, size=(*SHAPE, *tail)) / 30
    return chance * (64 / MADE_UP_WIDTHS[:, None].reshape(6, 1, *(1,) * len(tail))) ** exponent / 10


def _with_wrong(rng, right, count, *tail):
    """The deviation from the right one of `count` predictors first, then those from the wrong ones."""
    false = np.full((*SHAPE, *tail, count - 1), 2.0) * rng.uniform(0.99, 1.01, size=(*SHAPE, *tail, count - 1))
    return np.concatenate([right[..., None], false], axis=-1)


def _kernels_and_metrics(rng, when, decay, limit):
    """What is measured before training or after it."""
    variables = {}
    for name in ("kernel", "distances"):
        values = _with_wrong(rng, _power(rng, decay["deviation"], LAYERS), 2, LAYERS)
        variables[f"{when}_{name}_deviation"] = ((*RUN, "layer", "feature_predictor"), values)
    signs = rng.choice([-1.0, 1.0], size=(*SHAPE, LAYERS))
    wave = signs * _power(rng, decay["deviation"], LAYERS) ** 0.5
    variables[f"{when}_within_between_ratio"] = ((*RUN, "layer"), 2 * (1 + 0.1 * wave))
    variables[f"{when}_ratio"] = ((*RUN, "layer"), 0.6 * (1 + 0.1 * wave))
    bias = (64 / MADE_UP_WIDTHS.reshape(6, 1, 1)) ** decay["bias"] * 0.5
    noise = 0.003 * rng.normal(size=(*SHAPE, LAYERS))
    variables[f"{when}_nc1"] = ((*RUN, "layer"), limit * 0.5 * (1 + bias * (1 + noise)))
    excess = (64 / MADE_UP_WIDTHS[:, None]) ** decay["tangent"] * 0.5 * (1 + 0.003 * rng.normal(size=SHAPE))
    variables[f"{when}_ntk_nc1"] = (RUN, 0.2 * (1 + excess))
    return variables


def _limits():
    """What the predictors say, and what holds of the raw inputs."""
    variables: dict[str, tuple] = {
        "points_ntk_nc1": (("condition", "ntk_predictor"), np.array([[0.2, 0.22, 0.3], [0.2, 0.18, 0.3]])),
    }
    for name, limit, raw in (("nc1", 0.5, 5.0), ("within_between_ratio", 2.0, 1.5), ("ratio", 0.6, 0.5)):
        variables[f"limit_{name}"] = (("condition", "feature_predictor", "layer"), np.full((2, 2, LAYERS), limit))
        variables[f"raw_{name}"] = (("condition",), np.full(2, raw))
    return variables


def _made_up_record(**changes):
    """A record that obeys the laws, with the exponents or limits given in `changes` in place of the right ones."""
    rng = np.random.default_rng(5)
    decay = {"deviation": 1.0, "bias": 1.0, "change": 2.0, "features": 1.0, "outputs": 1.0, "ntk": 1.0, "tangent": 1.0}
    decay |= changes
    variables = {
        "ntk_change": (RUN, _power(rng, decay["change"])),
        "feature_change": ((*RUN, "layer"), _power(rng, decay["features"], LAYERS)),
    }
    for when in ("initial", "trained"):
        variables |= _kernels_and_metrics(rng, when, decay, changes.get("limit", 1.0))
    variables |= _limits()
    variables["ntk_deviation"] = ((*RUN, "ntk_predictor"), _with_wrong(rng, _power(rng, decay["ntk"]), 3))
    outputs = _with_wrong(rng, _power(rng, decay["outputs"]), 3)[..., None]
    variables["output_deviation"] = ((*RUN, "output_predictor", "step"), outputs)
    coordinates = {
        "condition": ["mixture-erf", "digits-relu"],
        "width": MADE_UP_WIDTHS,
        "seed": np.arange(SHAPE[-1]),
        "layer": [1, 2],
        "feature_predictor": list(limits.FEATURE_PREDICTORS),
        "ntk_predictor": list(limits.NTK_PREDICTORS),
        "output_predictor": list(limits.OUTPUT_PREDICTORS),
        "step": [64],
    }
    return xr.Dataset(variables, coordinates, {"trained_width": 1024, "smoke": 0})


def test_a_record_that_obeys_the_laws_passes_and_each_fault_fails_its_claims():
    assert claims.judge(_made_up_record()).failures() == []
    wrong = {
        "deviation": (0.5, {"start/kernel", "start/distances", "start/trace-ratio", "start/q", "trained/kernel"}),
        "bias": (0.5, {"start/nc1-bias", "trained/nc1-bias"}),
        "ntk": (2.0, {"start/ntk"}),
        "tangent": (0.5, {"start/ntk-nc1", "trained/ntk-nc1"}),
        "change": (1.0, {"lazy/ntk-change"}),
        "outputs": (0.0, {"lazy/outputs"}),
        "limit": (1.2, {"limit/nc1/mixture-erf", "limit/nc1/digits-relu"}),
    }
    for fault, (value, expected) in wrong.items():
        verdicts = {row.id: row.verdict for row in claims.judge(_made_up_record(**{fault: value})).claims}
        assert {name for name in expected if verdicts[name] != "refuted"} == set(), fault


def test_a_claim_whose_control_passes_is_a_failure():
    """Were features to move as little as the kernel, the exponent of the kernel would show nothing."""
    failures = claims.judge(_made_up_record(features=2.0)).failures()
    assert len(failures) == 1
    assert failures[0].startswith("lazy/ntk-change/features: a control that must be refuted")


def test_a_tangent_kernel_that_another_activation_fits_as_well_is_a_failure():
    made = _made_up_record()
    made["points_ntk_nc1"][:, 1] = made["points_ntk_nc1"][:, 0]
    failures = claims.judge(made).failures()
    assert len(failures) == 2
    assert all("/ntk-nc1/activation: a control that must be refuted" in each for each in failures)


def test_a_record_without_collapse_of_tangent_kernels_is_judged_on_the_rest():
    made = _made_up_record()
    old = made.drop_vars(["initial_ntk_nc1", "trained_ntk_nc1", "points_ntk_nc1"])
    missing = {row.id.split("/ntk-nc1")[0] for row in claims.judge(made).claims if "ntk-nc1" in row.id}
    assert missing == {"start", "trained"}
    names = [row.id for row in claims.judge(made).claims if "ntk-nc1" not in row.id]
    assert [row.id for row in claims.judge(old).claims] == names
    old["limit_cdnv"], old["raw_cdnv"] = old["limit_ratio"], old["raw_ratio"]
    assert tables.summary(old).endswith("claims not judged: start/ntk-nc1, trained/ntk-nc1.")
    figure.draw(old)


def test_biases_of_either_sign_in_different_conditions_do_not_cancel():
    law = 0.1 / WIDTHS[:, None] * np.ones((4, 5))
    assert slopes.mean_magnitude_slope(np.stack([law, -law]), WIDTHS) == pytest.approx(-1.0)
    assert slopes.mean_magnitude_slope(np.stack([law, -1 - law]), WIDTHS) == pytest.approx(0.0, abs=0.01)


def test_a_seed_that_became_undefined_is_never_dropped():
    made = _made_up_record()
    made["initial_nc1"][0, 2, 3, 1] = np.nan
    rows = {row.id: row for row in claims.judge(made).claims}
    assert rows["start/nc1-bias"].verdict == "inconclusive"
    assert rows["start/nc1-bias"].num_nonfinite == 1
