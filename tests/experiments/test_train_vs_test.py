"""Train against test: runs and their units, probes in training, verdicts on made-up records, a smoke run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_vs_test
import xarray as xr
from _generalisation import claims, data, images, numbers, probing, runs
from _generalisation.options import MlpOptions
from _generalisation.record import CENTERS, COLLAPSE
from _layers.options import ImageOptions
from _layers.record import METRICS

from nctheory import simulator
from nctheory._errors import ArgumentError
from nctheory.claims import Ledger
from nctheory.figures import train_vs_test as figures
from nctheory.metrics.probes import ridge_probe_accuracy
from nctheory.runs import RunFolder
from nctheory.vision import networks
from tests.experiments.conftest import assert_refused, run_here, run_script

SCRIPT = "experiments/train_vs_test.py"
SEEDS = 8


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--out", out)


@pytest.fixture(scope="module")
def pool():
    return data.load("digits", 300)


def test_images_are_the_whole_set_scaled_once(pool):
    whole = data.load("digits", None)
    assert whole.inputs.shape == (1797, 64)
    assert whole.inputs.mean() == pytest.approx(0, abs=1e-12)
    assert whole.inputs.std() == pytest.approx(1)
    assert whole.super_class.tolist() == [0] * 5 + [1] * 5
    assert len(pool.labels) == 300
    # Evenly over the classes, each of which has about 180 of all images.
    assert np.ptp(np.bincount(pool.labels)) <= 4
    split = data.source(pool, 100, coarse=True)
    train, test = split.draw(jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(train.labels), np.asarray(train.fine_labels) >= 5)
    assert (train.inputs.shape, test.inputs.shape) == ((100, 64), (200, 64))
    with pytest.raises(ArgumentError, match="Argument `num_images` must be at most 1797"):
        data.load("digits", 1798)


def test_recorded_epochs():
    epochs = runs.spaced_epochs(600, fine=50, coarse=10, few=5)
    assert epochs[:12] == (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60)
    assert epochs[-6:] == (150, 240, 330, 420, 510, 600)
    assert runs.spaced_epochs(150, fine=50, coarse=10, few=0)[-2:] == (140, 150)
    assert runs.spaced_epochs(7, fine=50, coarse=10, few=5) == (0, 5, 7)


def test_runs_have_the_units_of_an_averaged_error(pool):
    """Ten outputs: rate/5 and five times the decay; two outputs: as they are; cross-entropy: as they are."""
    options = MlpOptions(num_train=100, num_epochs=3, transfer_epochs=3, sizes=(100, 200), num_passes=1000)
    decays, none = runs.collapse_runs(options, pool)
    assert (float(decays.run.learning_rate), float(decays.run.weight_decay)) == pytest.approx((0.02, 5e-3))
    assert float(none.run.weight_decay) == 0
    two = runs.transfer_runs(options, pool)[0].layers
    assert (float(two.run.learning_rate), float(two.run.weight_decay)) == pytest.approx((0.1, 5e-4))
    assert two.run.data.num_train == 240
    entropy = runs.collapse_runs(dataclasses.replace(options, loss="cross_entropy"), pool)[0]
    assert (float(entropy.run.learning_rate), float(entropy.run.weight_decay)) == pytest.approx((0.1, 1e-3))
    by_size = runs.sample_runs(options, pool)
    assert {size: config.num_epochs for size, config in by_size.items()} == {100: 10, 200: 5}
    assert by_size[100].run.schedule == "step"
    assert float(by_size[100].run.learning_rate) == pytest.approx(0.006)


def test_probes_along_training_are_those_of_the_features(pool):
    options = MlpOptions(transfer_train=200, transfer_epochs=6, depth=2, width=16)
    config = runs.transfer_runs(options, pool)[0]
    assert config.kept_epochs == (0, 5, 6)
    key = jax.random.key(3)
    # Optax raises a float to the power of its integer counter.
    with jax.numpy_dtype_promotion("standard"):
        found = jax.jit(runs.train_transfer)(config, key)
    made = probing.make_features(config.layers.run)(found.layers.params, 3)
    train, fine, test, truth = made
    assert train.shape == (3, 200, 16)
    for name, scaling in runs.RIDGES.items():
        by_hand = [
            float(ridge_probe_accuracy(a, fine, b, truth, scaling=scaling)) for a, b in zip(train, test, strict=True)
        ]
        # One image of 100 may lie on a boundary.
        np.testing.assert_allclose(found.ridge[name], by_hand, atol=1.5 / 100)
    assert found.layer_ridge.shape == (3,)
    assert float(found.layer_ridge[-1]) == pytest.approx(float(found.ridge["ridge"][-1]), abs=1.5 / 100)
    inputs, held_out = config.layers.run.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
    raw = ridge_probe_accuracy(inputs.inputs, inputs.fine_labels, held_out.inputs, held_out.fine_labels)
    assert float(found.layer_ridge[0]) == pytest.approx(float(raw), abs=1.5 / 100)
    scores = probing.score(*made)["accuracy"]
    assert scores.shape == (3, 3)
    assert (scores > 0.2).all()
    broken = probing.score(np.full_like(train, np.nan), fine, test, truth)["accuracy"]
    assert np.isnan(broken).all()


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


def test_folder_names():
    named = {
        "digits-mlp": {},
        "digits-mlp-samples": {"parts": ("samples",)},
        "digits-mlp-collapse-samples": {"parts": ("samples", "collapse")},
        "digits-mlp-all": {"parts": ("all",)},
        "mnist-vgg11": {"dataset": "mnist", "network": "vgg11", "parts": ("all",)},
        "mnist-vgg11-transfer": {"dataset": "mnist", "network": "vgg11", "parts": ("transfer",)},
    }
    assert {name: MlpOptions(**options).name for name, options in named.items()} == {name: name for name in named}
    assert MlpOptions(parts=("transfer", "collapse")).name == "digits-mlp"


def test_definitions_are_those_of_the_layer_experiment():
    for name, text in (COLLAPSE | CENTERS).items():
        assert text.startswith(METRICS[name])


@pytest.mark.slow
def test_image_networks_are_timed_and_quiet(tmp_path, capfd):
    options = MlpOptions(
        network="vgg11",
        num_seeds=1,
        num_probed=100,
        quiet=True,
        images=ImageOptions(num_epochs=1, batch_size=50, num_train=200, num_test=100, control=False),
    )
    job = dataclasses.replace(images.plan(options), spec=networks.MlpSpec(widths=(8, 6)))
    with RunFolder.create(tmp_path / "run", {"smoke": True}, experiment="train_vs_test") as folder:
        tree = images.measure(options, job, folder)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert all(0 < manifest[name] < manifest["wall_seconds"] for name in ("run_seconds", "measure_seconds"))
    assert manifest["compile_seconds"] > 0
    assert capfd.readouterr().err == ""
    assert np.isfinite(tree["transfer"]["probe_accuracy"]).all()
    assert tree["collapse"].sizes["layer"] == 3


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
    assert list(rows) == ["H1", "H1/no-decay", "H3", "H3/no-decay", "H3/untrained", "H2"]
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


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    assert "H2/runs" in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"train_vs_test", "cascade", "transfer", "sample_size"}
    with xr.open_datatree(out / "history.nc") as tree:
        collapse, transfer, samples = (tree[name].to_dataset().load() for name in ("collapse", "transfer", "samples"))
    assert collapse["nc1"].dims == ("condition", "seed", "epoch", "layer", "split")
    assert collapse["strong"].attrs["units"] == "dimensionless"
    # In a few epochs the class means of so narrow a network may lose a dimension, where NC1 is undefined.
    assert np.isfinite(collapse["nc1"].isel(epoch=0)).all()
    assert np.isfinite(collapse["within_between_ratio"]).all()
    assert (collapse["weak"] <= collapse["strong"] * (1 + 1e-6)).all()
    # On the train images the own means are the train means: S is r.
    one = collapse.sel(split="train")
    np.testing.assert_allclose(one["strong"], one["within_between_ratio"], rtol=1e-4)
    cheap, slow = (transfer["probe_accuracy"].sel(probe=list(each)) for each in (runs.RIDGES, probing.PROBES))
    assert np.isfinite(cheap).all()
    assert np.isfinite(slow.isel(epoch=[0, -1])).all()
    assert samples["nc1"].dims == ("size", "seed", "end", "layer", "split")
    assert samples["num_epochs"].values.tolist() == [8, 4]


@pytest.mark.slow
def test_plot_only_gives_the_same_ledger(smoke):
    out, _ = smoke
    before = (out / "claims.json").read_text()
    (out / "claims.json").unlink()
    assert run_here(SCRIPT, "--plot-only", "--out", out).returncode == 0
    assert (out / "claims.json").read_text() == before


@pytest.mark.slow
def test_resume_gives_the_same_ledger(smoke):
    out, _ = smoke
    before = (out / "claims.json").read_text()
    for name in ("history.nc", "manifest.json", "claims.json"):
        (out / name).unlink()
    result = run_script(SCRIPT, "--smoke", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sweeps"]["collapse"]["resumed_rows"] == 4


def test_paper_figures_are_drawn_from_the_folder(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/train_vs_test.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *(
            f"{name}.{end}"
            for name in ("train_vs_test", "cascade", "transfer", "sample_size")
            for end in ("pdf", "png")
        ),
        "train_vs_test.csv",
        "transfer.csv",
    }
    rows = (tmp_path / "train_vs_test.csv").read_text().splitlines()
    assert rows[0] == "part,condition,metric,split,layer,x,mean,low,high"
    # Five metrics, two splits, four layers: epochs 0, 5, 6 and 0, 4 under two conditions, two sizes.
    assert len(rows) == 1 + 40 * (2 * 3 + 2 * 2 + 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "mnits"), "Argument `dataset` must be one of ['cifar10', 'cifar100', 'digits', "),
        (("--weight-decay", "0"), "Argument `weight_decay` must be > 0 and finite, but is 0.0"),
        (("--num-train", "1796"), "Argument `num_train` must leave every class a train and a held-out sample"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
    assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (200, 100)}, "Argument `sizes` must be at least two increasing numbers"),
        ({"sizes": (100,)}, "Argument `sizes` must be at least two increasing numbers"),
        ({"parts": ()}, "Argument `parts` must name different parts"),
        ({"parts": ("all", "all")}, "Argument `parts` must name different parts"),
        ({"depth": 1}, "Argument `depth` must be an integer >= 2, but is 1"),
        ({"learning_rate": float("nan")}, "Argument `learning_rate` must be > 0 and finite, but is nan"),
        ({"num_images": 1}, "Argument `num_images` must be an integer >= 2"),
        (
            {"network": "vgg11", "depth": 3},
            "Argument `depth` must be left alone with network 'vgg11': it is of the MLP",
        ),
        ({"num_probed": 9}, "Argument `num_probed` must be left alone with network 'mlp': it is of image networks"),
        ({"network": "vgg11", "parts": ("samples",)}, "Argument `parts` must not name 'samples' with an image network"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        train_vs_test.Config(**options)


def test_seed_of_a_sweep_has_its_own_split(pool):
    """What the probes on the host are given as labels belongs to the split of that seed."""
    config = runs.transfer_runs(MlpOptions(transfer_train=100, transfer_epochs=1, depth=2, width=4), pool)[0]
    drawn = [
        config.layers.run.data.draw(jax.random.fold_in(jax.random.key(seed), simulator.DATA_STREAM)) for seed in (0, 1)
    ]
    assert not np.array_equal(drawn[0][0].inputs, drawn[1][0].inputs)
    assert jnp.asarray(drawn[0][0].fine_labels).shape == (100,)
