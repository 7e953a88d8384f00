"""Claims on collapse in every layer: made-up records that obey them pass, and each fault fails its claims."""

import numpy as np
import pytest
from _layers import claims, record, scores, tables

from nctheory.figures import intermediate_layers as figure


def _geometric(factor, depth=5, seeds=2, start=1.0):
    return np.tile(start * factor ** np.arange(depth + 1.0), (seeds, 1))


def test_shares_and_fits_of_known_curves():
    values = np.array([[10.0, 6.0, 3.0, 1.5, 1.0, 0.5]])
    assert scores.shallow_share(values)[0] == pytest.approx(8.5 / 9.5)
    assert scores.shallow_share(values, first=1)[0] == pytest.approx(4.5 / 5.5)
    assert scores.shallow_share(_geometric(0.4), log=True) == pytest.approx([0.6, 0.6])
    slope, even = scores.line_fit(np.log(_geometric(0.4)))
    assert np.exp(slope) == pytest.approx([0.4, 0.4])
    assert even == pytest.approx([1, 1])
    rising = np.array([[0.0, 1.0, 0.0, 1.0]])
    slope, explained = scores.line_fit(rising)
    assert slope[0] == pytest.approx(np.polyfit(np.arange(4), rising[0], 1)[0])
    assert explained[0] == pytest.approx(np.corrcoef(np.arange(4), rising[0])[0, 1] ** 2)
    assert np.isnan(scores.line_fit(np.ones((1, 4)))[1][0])


@pytest.mark.parametrize("depth", [3, 5, 9])
def test_largest_geometric_factor_is_where_the_criterion_turns(depth):
    factor = scores.largest_geometric_factor(depth)
    below, above = (scores.shallow_share(_geometric(factor + step, depth))[0] for step in (-1e-3, 1e-3))
    assert below > scores.SHALLOW_SHARE > above


@pytest.mark.parametrize("depth", [5, 10])
def test_largest_geometric_factor_without_the_input(depth):
    factor = scores.largest_geometric_factor(depth, first=1)
    below, above = (scores.shallow_share(_geometric(factor + step, depth), first=1)[0] for step in (-1e-3, 1e-3))
    assert below > scores.SHALLOW_SHARE > above


def test_no_decay_passes_where_the_shallow_half_is_the_first_layer():
    assert scores.largest_geometric_factor(2, first=1) == pytest.approx(0, abs=1e-12)
    assert np.all(scores.shallow_share(_geometric(1e-3, 2), first=1) < scores.SHALLOW_SHARE)


def test_an_even_rise_is_no_even_fall():
    down, up = np.log(_geometric(0.5)), np.log(_geometric(2.0))
    np.testing.assert_allclose(scores.falling(down), [1, 1])
    np.testing.assert_allclose(scores.falling(up), [-1, -1])


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0, 1, 2, 7], [2, 5]), ([1.0, 9, 4], [8]), ([2.0, 2, 2, 2], [0, 0]), ([1.0], [])]
)
def test_the_scatter_of_halves(values, expected):
    np.testing.assert_array_equal(scores.upper_half(np.array(values)), expected)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_angles_of_shallow_networks_are_compared_too(depth):
    """The last floor(L/2) layers are one or none below four, which compares nothing; two always do."""
    blank = {name: np.ones((1, depth + 1)) for name in vars(_layers())}
    down = scores.Layers(**blank | {"angles": np.linspace(1, 0.1, depth + 1)[None]})
    up = scores.Layers(**blank | {"angles": np.where(np.arange(depth + 1) == depth, 0.6, 0.5)[None]})
    assert scores.separates(down)["c does not rise in the last layers"].all()
    assert not scores.separates(up)["c does not rise in the last layers"].any()


def test_effective_depth_is_the_first_layer_that_decides():
    mismatch = np.array([[0.2, 0.05, 0.01, 0.0], [0.0] * 4, [0.5, 0.4, 0.3, 0.2], [0.2, np.nan, 0.0, 0.0]])
    np.testing.assert_array_equal(scores.effective_depth(mismatch), [2, 0, np.nan, np.nan])


def test_ordered_asks_for_a_whole_layer_and_fails_nan():
    easy, middle, hard = np.array([0.0, 0, 0, np.nan]), np.array([1.0, 2, 0, 2]), np.array([2.0, 2, 3, 3])
    np.testing.assert_array_equal(scores.ordered(easy, middle, hard), [True, False, False, False])


def _layers(**changes):
    """Two seeds like those of trained digits."""
    shared = {
        "nc1": _geometric(0.42),
        "ratio": _geometric(0.42, start=1.4),
        "angles": np.tile([0.2, 0.21, 0.23, 0.2, 0.14, 0.06], (2, 1)),
        "norms": np.tile([0.18, 0.22, 0.2, 0.18, 0.14, 0.07], (2, 1)),
        "mismatch": np.tile([0.1, 0.04, 0.002, 0.0, 0.0, 0.0], (2, 1)),
    }
    return scores.Layers(**(shared | changes))


def test_criteria_pass_what_they_should_and_each_part_fails_alone():
    """Each change breaks one part of a criterion, and only it; NaN breaks it too."""
    untrained = _layers(nc1=np.full((2, 6), 2.0), ratio=_geometric(1.1))
    for parts in (scores.emerges(_layers(), untrained), scores.shallow(_layers()), scores.separates(_layers())):
        assert all(part.all() for part in parts.values())
    flat = np.tile([0.1, 0.04, 0.002, 0.0, 0.0, 0.006], (2, 1))
    assert not scores.emerges(_layers(mismatch=flat), untrained)["m_L <= 0.005"].any()
    assert not scores.emerges(_layers(), _layers())["q_l halved by training in half of the layers"].any()
    slow = _layers(nc1=_geometric(0.6), ratio=_geometric(0.6))
    assert not scores.shallow(slow)["S_h of q >= 0.9"].any()
    late = np.tile([0.2, 0.3, 0.23, 0.2, 0.1, 0.11], (2, 1))
    found = scores.separates(_layers(angles=late))
    assert found["c_L <= 0.7 c_1"].all()
    assert not found["c does not rise in the last layers"].any()
    assert scores.separates(_layers(angles=np.where(late == 0.11, 0.104, late)))[
        "c does not rise in the last layers"
    ].all()
    broken = _layers(angles=np.full((2, 6), np.nan), norms=np.full((2, 6), np.nan))
    assert not any(part.any() for part in scores.separates(broken).values())
    assert "v_L <= 0.6 v_1" not in scores.separates(_layers(), norms=False)


def test_share_of_seeds_counts_diverged_seeds_as_failed():
    interval = claims.share_of_seeds([True] * 6 + [False, True], [True] * 7 + [False])
    assert (interval.measured, interval.low, interval.high) == (0.75, 0.75, 0.75)
    assert (interval.num_seeds, interval.num_nonfinite) == (8, 1)


def test_one_seed_decides_nothing():
    interval = claims.share_of_seeds([True], [True])
    assert interval.measured == 1
    assert np.isnan([interval.low, interval.high]).all()


def _made_up_runs(layers, epochs, seeds):
    """A condition that is `layers` at the end and, untrained, worse the deeper."""
    first = {
        "nc1": 1.2 ** np.arange(6.0),
        "within_between_ratio": 1.1 ** np.arange(6.0),
        "nc2_equiangular": np.linspace(0.18, 0.21, 6),
        "nc2_equinorm": np.linspace(0.15, 0.2, 6),
        "prediction_mismatch": np.linspace(0.9, 0.8, 6),
    }
    last = {
        "nc1": layers.nc1,
        "within_between_ratio": layers.ratio,
        "nc2_equiangular": layers.angles,
        "nc2_equinorm": layers.norms,
        "prediction_mismatch": layers.mismatch,
    }

    def values(name):
        ends = np.stack([np.broadcast_to(first.get(name, np.ones(6)), (seeds, 6)), last.get(name, np.ones((seeds, 6)))])
        return np.repeat(np.moveaxis(ends, 0, 1)[:, :, None], 2, axis=2)

    return record.ConditionRuns(
        epochs=(0, epochs),
        metrics={name: values(name) for name in record.METRICS},
        losses=np.ones((seeds, 2, 2)),
        accuracies=np.ones((seeds, 2, 2)),
        epoch_accuracy=np.full((seeds, epochs), 0.9),
        milestone_epochs=np.array([[1, -1]] * seeds),
        milestone_metrics={name: values(name) for name in record.METRICS},
        finite=np.ones(seeds, bool),
        spectra=dict.fromkeys(record.SPECTRUM, _of_the_ends(np.arange(12.0).reshape(2, 6), seeds)),
        milestone_spectra=dict.fromkeys(record.SPECTRUM, np.full((seeds, 2, 2, 6), np.nan)),
    )


def _of_the_ends(values, seeds):
    """Numbers (record, layer) of the train split of every seed; NaN on the test split."""
    both = np.stack([values, np.full_like(values, np.nan)], axis=1)
    return np.broadcast_to(both, (seeds, *both.shape))


def _made_up_record(seeds=8, **changes):
    """A record that passes every claim; the reference's layers can be changed."""

    def many(**parts):
        return scores.Layers(**{name: np.resize(part, (seeds, 6)) for name, part in vars(_layers(**parts)).items()})

    slow = {"nc1": _geometric(0.8), "ratio": np.tile([1.4, 1.5, 1.4, 1.2, 0.9, 0.6], (2, 1))}
    slow["mismatch"] = np.tile([0.2, 0.1, 0.1, 0.02, 0.005, 0.0], (2, 1))
    runs = {
        "digits": _made_up_runs(many(**changes), 3, seeds),
        "digits_no_decay": _made_up_runs(many(**slow), 3, seeds),
        "gmm_easy": _made_up_runs(many(mismatch=np.zeros((2, 6))), 3, seeds),
        "digits_noise20": _made_up_runs(many(mismatch=np.tile([0.2, 0.2, 0.1, 0.005, 0, 0], (2, 1))), 6, seeds),
    }
    predicted = {"ratio": 0.4 * 0.07 ** np.arange(5.0), "discrimination": np.array([0.2, 0.2, 0.4, 0.6, 0.8])}
    linear = {"objective": np.tile([0.5, 1e-7], (seeds, 1))}
    for name, values in predicted.items():
        linear[name] = np.tile(np.stack([np.full(5, values[0]), values]), (seeds, 1, 1))
        linear[f"predicted_{name}"] = values
    return record.collect(
        runs,
        seeds=range(seeds),
        milestones=(0.9, 0.99),
        layers=["input", *map(str, range(1, 6))],
        attributes={"kind": "mlp", "title": "made up", "smoke": 0},
        chain=linear,
    )


def test_record_keeps_the_last_epoch_of_every_condition():
    history = _made_up_record(seeds=2)
    assert history["num_epochs"].values.tolist() == [3, 3, 3, 6]
    assert history["epoch"].values.tolist() == [0, 3, 6]
    assert np.isnan(history["nc1"].sel(condition="digits", epoch=6)).all()
    np.testing.assert_allclose(scores.layers_at(history, "digits").nc1, _geometric(0.42))
    assert figure.over_epochs(history, "digits_noise20", "nc1")["epoch"].values.tolist() == [0, 6]
    assert [name for name, _ in figure.stages(history, "digits", "nc1")] == ["untrained", "0.9", "0.99", "end"]
    history["milestone_epoch"][:] = 2
    assert [name for name, _ in figure.stages(history, "digits", "nc1")] == ["untrained", "0.9-0.99", "end"]


def test_layers_at_the_findings_pass_and_each_fault_fails_its_claim():
    assert claims.judge(_made_up_record()).failures() == []
    wrong = {
        "A0": {"mismatch": np.tile([0.1, 0.04, 0.002, 0.0, 0.0, 0.006], (2, 1))},
        "A1": {"nc1": _geometric(0.7)},
        "A2": {"norms": np.full((2, 6), 0.2)},
        "A3": {"mismatch": np.tile([0.1, 0.04, 0.04, 0.02, 0.02, 0.001], (2, 1))},
        "law/even": {"ratio": np.tile([1.4, 0.05, 0.04, 0.03, 0.02, 0.01], (2, 1))},
    }
    for claim, change in wrong.items():
        verdicts = {row.id: row.verdict for row in claims.judge(_made_up_record(**change)).claims}
        assert verdicts[claim] == "refuted", claim


def _controls(history):
    """Controls by claim and name, with whether they were rejected."""
    return {row.id: row.verdict == "refuted" for row in claims.judge(history).rows() if row.role == "control"}


def test_a_control_that_the_data_satisfy_is_not_rejected():
    """Each change of the data outside the claim itself lets a control through; the ledger then fails."""
    history = _made_up_record()
    assert all(_controls(history).values())
    before = {"condition": "digits", "epoch": 0}
    alike = history.copy(deep=True)
    for name in ("nc1", "within_between_ratio", "nc2_equiangular", "nc2_equinorm", "prediction_mismatch"):
        alike[name].loc[before] = history[name].sel(condition="digits", epoch=3).values
    passed = {name for name, rejected in _controls(alike).items() if not rejected}
    assert {"A0/untrained", "A0/rank/untrained", "A2/untrained", "A2/angles/untrained", "law/even/untrained"} <= passed
    scattered = history.copy(deep=True)
    late = np.array([0.1, 0.04, 0.04, 0.04, 0.004, 0.0])
    scattered["prediction_mismatch"].loc[{"condition": "digits", "epoch": 3, "seed": range(4)}] = late
    passed = {name for name, rejected in _controls(scattered).items() if not rejected}
    assert {"A3/easy/scatter", "A3/noisy/scatter", "A3/decay/scatter"} <= passed
    assert claims.judge(scattered).failures() != []


def test_the_reversed_order_of_hardness_is_what_reversed_data_show():
    """Noise at the first layer and the mixture at the last: then the control passes and the claim does not."""
    history = _made_up_record()
    for condition, depth in (("gmm_easy", 5), ("digits", 3), ("digits_noise20", 1)):
        last = int(history["num_epochs"].sel(condition=condition))
        steps = np.where(np.arange(6) >= depth, 0.001, 0.1)
        history["prediction_mismatch"].loc[{"condition": condition, "epoch": last}] = steps
    rows = {row.id: row for row in claims.judge(history).rows()}
    assert rows["A3/reversed"].measured == 1
    assert rows["A3"].measured == 0


def test_six_of_eight_seeds_pass_and_five_do_not():
    for bad, verdict in ((2, "supported"), (3, "refuted")):
        history = _made_up_record()
        history["nc2_equinorm"].loc[{"condition": "digits", "epoch": 3, "seed": range(bad)}] = 0.2
        assert {row.id: row.verdict for row in claims.judge(history).claims}["A2"] == verdict


def test_a_diverged_seed_is_never_dropped():
    history = _made_up_record()
    history["finite"].loc[{"condition": "digits", "seed": 3}] = False
    rows = {row.id: row for row in claims.judge(history).claims}
    assert rows["A1"].verdict == "inconclusive"
    assert rows["A1"].num_nonfinite == 1
    assert rows["A1"].measured == 7 / 8


def test_spectra_stand_at_the_first_and_the_last_epoch_of_the_train_split():
    history = _made_up_record()
    one = history["effective_rank"].sel(condition="digits")
    last = int(history["num_epochs"].sel(condition="digits"))
    np.testing.assert_array_equal(one.sel(split="train", epoch=0, seed=2), np.arange(6.0))
    np.testing.assert_array_equal(one.sel(split="train", epoch=last, seed=2), np.arange(6.0, 12))
    assert int(one.notnull().sum()) == 2 * 8 * 6
    assert history["milestone_effective_rank"].dims == history["milestone_nc1"].dims
    row = next(line for line in tables.table(history).splitlines() if line.startswith("effective rank, layer 5"))
    assert row.split()[-4:] == ["11", "11", "11", "11"]
    without = tables.table(history.drop_vars(list(record.SPECTRUM)))
    assert "effective rank" not in without


def test_table_and_reading_hold_the_measured_numbers():
    history = _made_up_record()
    shown = tables.table(history)
    row = next(line for line in shown.splitlines() if line.startswith("effective depth"))
    assert row.split()[-4:] == ["2", "4", "0", "3"]
    assert "8 of 8" in shown
    assert "0.507" in tables.reading(history)
    assert tables.shortfalls(history) == ""
    alone = history.sel(condition=["digits", "digits_no_decay"])
    assert tables.shortfalls(alone) == (
        "A3 is not judged: it needs the conditions gmm_easy and digits_noise20 or digits_noise50"
    )
    history["prediction_mismatch"].loc[{"condition": "digits", "epoch": 3, "seed": 5, "layer": range(2, 6)}] = 0.0
    assert "A0 on digits: rank(m, l) <= -0.8 fails with seeds [5]" in tables.shortfalls(history)


def _image_record(**changes):
    """Three seeds of two image sets, the second harder, and the first without decay."""
    history = _made_up_record(seeds=3).sel(condition=["digits", "digits_no_decay", "digits_noise20"])
    history = history.assign_coords(condition=["mnist", "mnist_no_decay", "cifar10"])
    history.attrs["kind"] = "images"
    for name, (condition, value) in changes.items():
        last = int(history["num_epochs"].sel(condition=condition))
        history[name].loc[{"condition": condition, "epoch": last}] = value
    return history


def test_image_sets_are_judged_each_and_in_order():
    ledger = claims.judge(_image_record())
    assert [row.id for row in ledger.claims if row.role == "claim"] == [
        *(f"A{number}/{name}" for name in ("mnist", "cifar10") for number in range(3)),
        "A3",
    ]
    rows = {row.id: row for row in ledger.rows()}
    # A decay by 0.42 a layer has 0.849 of its fall from layer 1 before layer 3: the sheet's 0.9 is not met.
    assert rows["A1/mnist"].verdict == "refuted"
    assert "A3/reversed" in rows
    assert [row for row in rows.values() if not row.holds and not row.id.startswith("A1")] == []
    wrong = {row.id: row for row in claims.judge(_image_record(prediction_mismatch=("cifar10", 0.0))).rows()}
    assert wrong["A3"].verdict == "refuted"


def test_no_share_of_a_fall_that_does_not_happen():
    rising = _geometric(1.2)
    assert np.isnan(scores.shallow_share(rising)).all()
    assert not any(part.any() for part in scores.shallow(_layers(nc1=rising, ratio=rising)).values())
