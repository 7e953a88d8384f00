"""Claims on train against test: made-up records that obey them pass, and each fault fails its claims."""

import numpy as np
import pytest
import xarray as xr
from _generalisation import claims, numbers, probing, runs

from nctheory.claims import Ledger
from nctheory.figures import train_vs_test as figures

SEEDS = 8
EPOCHS = np.array([0, 5, 10, 20, 50, 100, 200, 400])


def _falling(start, end):
    """From start to end along the records, in equal ratios."""
    return np.geomspace(start, end, EPOCHS.size)


def _made_up_collapse(**changes):
    """A record with everything that the claims ask for, without decay no collapse; `changes` of the decaying runs."""
    options = {"accuracy": 1.0, "q_train": 0.01, "q_test": 0.08, "weak": 0.06, "last": 0.01, "ratio": 4.0, "first": 0.3}
    options |= changes
    layers = 5
    shape = (2, SEEDS, EPOCHS.size, layers + 1, 2)
    q, r = np.ones(shape), np.ones(shape)
    q[0, ..., 0] *= _falling(0.5, options["q_train"])[:, None]
    q[0, ..., 1] *= _falling(0.6, options["q_test"])[:, None]
    q[1] *= _falling(0.5, 0.2)[:, None, None]
    ends = np.geomspace(options["first"], options["last"], layers)
    for layer in range(layers):
        # Deeper layers fall earlier and further.
        r[0, :, :, layer + 1, 0] = np.maximum(ends[layer], 3.0 ** -(EPOCHS / (100 / (layer + 1))))
        r[1, :, :, layer + 1, 0] = np.linspace(1, 0.9, EPOCHS.size)
        r[:, :, 1:, layer + 1, 1] = r[:, :, 1:, layer + 1, 0] * np.linspace(1.2, options["ratio"], layers)[layer]
    # Untrained layers differ, but not in the order of their depth.
    r *= np.array([1, 1, 1.02, 0.98, 1.01, 0.99])[:, None]
    r[:, :, 0, :, 1] *= np.array([1, 1.02, 1, 1.03, 0.99, 1.01])
    # Without decay the gap does not grow with depth.
    r[1, :, 1:, :, 1] = r[1, :, 1:, :, 0] * np.array([1, 1.3, 1.2, 1.4, 1.2, 1.3])
    accuracy = np.ones((2, SEEDS, EPOCHS.size, 2))
    accuracy[:, :, 0] = 0.1
    accuracy[0, :, -1, 0] = options["accuracy"]
    weak = np.broadcast_to(np.array([0.5, 1.0]), shape) * options["weak"]
    layered = ("condition", "seed", "epoch", "layer", "split")
    variables = {
        "nc1": (layered, q),
        "within_between_ratio": (layered, r),
        "weak": (layered, np.where(np.arange(2) == 0, r * 0.9, weak)),
        "strong": (layered, weak * 1.2),
        "near_share": (layered, np.full(shape, 0.8)),
        "accuracy": (("condition", "seed", "epoch", "split"), accuracy),
        "finite": (("condition", "seed"), np.ones((2, SEEDS), bool)),
    }
    coordinates = {"condition": list(runs.CONDITIONS), "seed": np.arange(SEEDS), "epoch": EPOCHS}
    return xr.Dataset(variables, {**coordinates, "layer": np.arange(layers + 1), "split": ["train", "test"]})


def _made_up_transfer(**changes):
    options = {"final": 0.3, "coarse": 0.97, "q_train": 1e-4} | changes
    shape = (2, SEEDS, EPOCHS.size, 3, 2)
    q = np.ones(shape) * np.linspace(1, 1.1, SEEDS)[:, None, None, None]
    q[0] *= _falling(0.3, options["q_train"])[:, None, None]
    q[1] *= _falling(0.3, 0.05)[:, None, None]
    probes = [*runs.RIDGES, *probing.PROBES]
    probe = np.ones((2, SEEDS, len(probes), EPOCHS.size)) * np.linspace(0.99, 1, SEEDS)[:, None, None]
    probe[0] *= np.linspace(0.95, options["final"], EPOCHS.size)
    probe[1] *= np.array([0.9, 0.93, 0.95, 0.94, 0.95, 0.93, 0.94, 0.95])
    accuracy = np.ones((2, SEEDS, EPOCHS.size, 2))
    accuracy[:, :, 0] = 0.5
    accuracy[:, :, 1:, 1] = 0.96
    accuracy[0, :, -1, 1] = options["coarse"]
    variables = {
        "nc1": (("condition", "seed", "epoch", "layer", "split"), q),
        "probe_accuracy": (("condition", "seed", "probe", "epoch"), probe),
        "layer_probe_accuracy": (("condition", "seed", "layer"), np.full((2, SEEDS, 3), 0.9)),
        "accuracy": (("condition", "seed", "epoch", "split"), accuracy),
        "finite": (("condition", "seed"), np.ones((2, SEEDS), bool)),
    }
    coordinates = {"condition": list(runs.CONDITIONS), "seed": np.arange(SEEDS), "epoch": EPOCHS, "probe": probes}
    return xr.Dataset(variables, {**coordinates, "layer": np.arange(3), "split": ["train", "test"]})


def _made_up_samples(slope=-0.58, train=0.01, level=0.06):
    sizes = np.array([100, 200, 400, 800])
    q = np.ones((4, SEEDS, 2, 4, 2))
    q[:, :, 1, :, 0] = train
    q[:, :, 1, :, 1] = level * (sizes[:, None, None] / 800) ** slope
    variables = {
        "nc1": (("size", "seed", "end", "layer", "split"), q),
        "finite": (("size", "seed"), np.ones((4, SEEDS), bool)),
    }
    coordinates = {"size": sizes, "seed": np.arange(SEEDS), "end": ["initial", "final"], "layer": np.arange(4)}
    return xr.Dataset(variables, {**coordinates, "split": ["train", "test"]})


def _failures(rows):
    return {row.id for row in rows if not row.holds}


def test_numbers_of_a_made_up_run():
    found = numbers.collapse_numbers(_made_up_collapse()).isel(seed=0)
    decay = found.sel(condition="decay")
    fit = [_falling(0.5, 0.01)[1], _falling(0.6, 0.08)[1]]
    assert float(decay["fit_epoch"]) == 5
    assert float(decay["q_train_change"]) == pytest.approx(0.01 / fit[0])
    assert float(decay["gap"]) == pytest.approx(8)
    assert float(decay["gap_growth"]) == pytest.approx(8 / (fit[1] / fit[0]))
    cascade = numbers.cascade_numbers(_made_up_collapse()).isel(seed=0).sel(condition="decay")
    # 3^-(t/(100/l)) <= 1/2 from t = 63/l on; records at 5, 10, 20, 50, 100.
    np.testing.assert_array_equal(cascade["halving_epoch"], [100, 50, 50, 20, 20])
    np.testing.assert_allclose(cascade["remaining"], np.geomspace(0.3, 0.01, 5))
    samples = numbers.sample_numbers(_made_up_samples()).isel(seed=0)
    assert float(samples["slope_test"]) == pytest.approx(-0.58)
    assert float(samples["slope_train"]) == pytest.approx(0, abs=1e-12)
    transfer = numbers.transfer_numbers(_made_up_transfer()).isel(seed=-1).sel(condition="decay")
    peak = np.linspace(0.95, 0.3, EPOCHS.size)[1]
    assert float(transfer["drop"].sel(probe="knn")) == pytest.approx(peak - 0.3)
    assert float(transfer["with_time"]) == pytest.approx(-1)
    assert float(transfer["with_q"]) == pytest.approx(1)


def test_everything_as_claimed_passes():
    """All but the control that shows that two groups alone meet the criterion of H2/runs."""
    for judge, record in (
        (claims.judge_collapse, _made_up_collapse()),
        (claims.judge_transfer, _made_up_transfer()),
        (claims.judge_samples, _made_up_samples()),
    ):
        assert _failures(judge(record)) - {"H2/runs/within"} == set()


def test_two_groups_of_runs_alone_give_three_quarters():
    rows = {row.id: row for row in claims.judge_transfer(_made_up_transfer())}
    # Ranks 1 to 16 in two halves: variance of the halves' means 16 of 255/12; the rest, permuted, has mean 0.
    assert rows["H2/runs/within"].measured == pytest.approx(16 / (255 / 12), abs=0.03)
    assert not rows["H2/runs/within"].holds


def test_controls_without_decay_show_what_decay_does_not_cause():
    """Runs without decay that do the same as those with it leave no control of theirs rejected."""
    for judge, record, names in (
        (claims.judge_collapse, _made_up_collapse(), {"H1/weak", "H3/test-over-train", "H3/layers"}),
        (claims.judge_transfer, _made_up_transfer(), {"H2/time", "H2/collapse", "H2/drop"}),
    ):
        same = record.isel(condition=[0, 0]).assign_coords(condition=list(runs.CONDITIONS))
        assert {f"{name}/no-decay" for name in names} <= _failures(judge(same))
        chosen = {row.id for row in claims.judge_image_collapse(same)} if "weak" in same else set()
        assert ({"H1/no-decay", "H3/no-decay"} <= chosen) == ("weak" in same)


@pytest.mark.parametrize(
    ("judge", "made", "fault", "control"),
    [
        (claims.judge_collapse, _made_up_collapse, "decay", "H1/weak/no-decay"),
        (claims.judge_collapse, _made_up_collapse, "decay", "H3/layers/no-decay"),
        (claims.judge_collapse, _made_up_collapse, "images", "H1/q-test/train-images"),
        (claims.judge_collapse, _made_up_collapse, "start", "H3/depth/untrained"),
        (claims.judge_transfer, _made_up_transfer, "decay", "H2/drop/no-decay"),
        (claims.judge_samples, _made_up_samples, "start", "H1-n/untrained"),
        (claims.judge_samples, _made_up_samples, "start", "H1-n/gap/untrained"),
        (claims.judge_samples, _made_up_samples, "images", "H1-n/slope/train-images"),
    ],
)
def test_a_control_that_passes_fails_the_ledger(judge, made, fault, control):
    """Data of the claim put in the place of the control's: the claim stays supported, and the ledger fails."""
    right, wrong = made(), made()
    if fault == "decay":
        wrong = right.isel(condition=[0, 0]).assign_coords(condition=list(runs.CONDITIONS))
    elif fault == "images" and "size" in right.dims:
        wrong["nc1"] = right["nc1"].sel(split=["test", "test"]).assign_coords(split=["train", "test"])
    elif fault == "images":
        wrong = _made_up_collapse(q_train=0.07)
    elif "size" in right.dims:
        wrong["nc1"] = right["nc1"].sel(end=["final", "final"]).assign_coords(end=["initial", "final"])
    else:
        r = right["within_between_ratio"].values.copy()
        r[:, :, 0] = r[:, :, -1]
        wrong["within_between_ratio"].values[...] = r
    before, after = Ledger(judge(right)), Ledger(judge(wrong))
    rows = {row.id: row for row in after.claims}
    assert not any(each.startswith(f"{control}:") for each in before.failures())
    assert rows[control].verdict != "refuted"
    assert any(each.startswith(f"{control}: a control that must be refuted") for each in after.failures())
    assert after.exit_code() == 1


def test_a_run_that_falls_without_decay_is_marked_in_the_figure():
    record = _made_up_transfer()
    record["probe_accuracy"][1, 3] *= np.linspace(1, 0.5, EPOCHS.size)
    for each, marks in ((record, {"seed 3"}), (_made_up_transfer(), set())):
        tree = xr.DataTree.from_dict({"transfer": each})
        panels = figures.draw_all(tree)["transfer"].axes
        assert {text.get_text() for text in panels[3].texts} == marks
        assert (panels[1].get_legend() is not None) == bool(marks)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"accuracy": 0.998}, {"H1"}),
        ({"q_train": 0.1, "q_test": 0.8}, {"H1", "H1/q-train"}),
        ({"q_test": 0.02}, {"H1", "H1/gap", "H1/gap-growth", "H1/q-test"}),
        ({"weak": 0.015}, {"H1", "H1/weak"}),
        ({"last": 0.2}, {"H3", "H3/layers"}),
        ({"last": 0.5, "first": 0.01}, {"H3", "H3/depth"}),
        ({"ratio": 1.0}, {"H3", "H3/test-over-train"}),
    ],
)
def test_each_fault_of_collapse_fails_its_claims(changes, failing):
    found = _failures(claims.judge_collapse(_made_up_collapse(**changes)))
    assert failing <= found
    assert found - failing <= {"H1", "H3", "H1/q-test/train-images", "H1/weak", "H3/layers", "H3/depth"}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"coarse": 0.9}, {"H2"}),
        ({"final": 0.9}, {"H2", "H2/drop"}),
        ({"q_train": 1.0}, {"H2", "H2/collapse", "H2/runs"}),
    ],
)
def test_each_fault_of_transfer_fails_its_claims(changes, failing):
    found = _failures(claims.judge_transfer(_made_up_transfer(**changes)))
    assert failing <= found


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"slope": -0.1, "level": 0.2}, {"H1-n", "H1-n/slope"}),
        ({"train": 0.03}, {"H1-n", "H1-n/gap"}),
        ({"level": 0.02, "train": 0.001}, {"H1-n"}),
    ],
)
def test_each_fault_of_samples_fails_its_claims(changes, failing):
    assert _failures(claims.judge_samples(_made_up_samples(**changes))) == failing


def test_image_networks_are_judged_by_counts_of_seeds_alone():
    """Layers bear names; a control may be left out; one seed gives numbers and no verdict."""
    collapse = _made_up_collapse(ratio=6.0).isel(seed=[0, 1]).assign_coords(layer=list("abcdef"))
    transfer = _made_up_transfer().isel(seed=[0, 1], condition=[0])
    tree = xr.DataTree.from_dict({"collapse": collapse, "transfer": transfer})
    tree.attrs["kind"] = "images"
    rows = {row.id: row for row in claims.judge_all(tree)}
    assert list(rows) == ["H1", "H1/no-decay", "H3", "H3/no-decay", "H2"]
    assert _failures(rows.values()) == set()
    # Without its control, H2 does not count.
    assert Ledger(tuple(rows.values())).failures() == ["H2: no control, so the claim does not count."]
    alone = {row.id: row for row in claims.judge_image_collapse(collapse.isel(seed=[0]))}
    assert {row.verdict for row in alone.values()} == {"inconclusive"}
    assert alone["H1"].measured == 1
    fallen = {row.id: row.verdict for row in claims.judge_image_collapse(_made_up_collapse(q_test=0.03, last=0.2))}
    assert (fallen["H1"], fallen["H3"]) == ("refuted", "refuted")
    kept = {row.id: row.verdict for row in claims.judge_image_transfer(_made_up_transfer(final=0.93))}
    assert kept["H2"] == "refuted"


def test_six_of_eight_seeds_are_enough_and_five_are_not():
    for lost, verdict in ((2, "supported"), (3, "refuted")):
        record = _made_up_collapse()
        record["accuracy"][0, :lost, -1, 0] = 0.998
        rows = {row.id: row for row in claims.judge_collapse(record)}
        assert rows["H1"].verdict == verdict
        assert rows["H1"].measured == 1 - lost / 8


def test_a_run_that_never_fits_is_undefined_and_does_not_pass():
    record = _made_up_collapse()
    record["accuracy"][0, 1, :, 0] = 0.9
    found = numbers.collapse_numbers(record)
    assert np.isnan(found["q_train_change"].sel(condition="decay")[1])
    assert np.isfinite(found["q_train_change"].sel(condition="decay")[0])
    rows = {row.id: row for row in claims.judge_collapse(record)}
    assert rows["H1"].measured == 7 / 8
    assert (rows["H1/q-train"].verdict, rows["H1/q-train"].num_nonfinite) == ("inconclusive", 1)


def test_a_run_that_diverged_leaves_the_question_open():
    record = _made_up_collapse()
    record["finite"][0, 0] = False
    rows = {row.id: row for row in claims.judge_collapse(record)}
    assert (rows["H1"].verdict, rows["H1"].num_nonfinite) == ("inconclusive", 1)
