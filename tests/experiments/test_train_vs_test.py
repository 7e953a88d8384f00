"""Train against test: runs and their units, probes in training, verdicts on made-up records, a smoke run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_vs_test
import xarray as xr
from _generalisation import data, images, probing, runs
from _generalisation.options import MlpOptions
from _generalisation.record import CENTERS, OWN_MEANS
from _layers.options import ImageOptions
from _layers.record import METRICS

from nctheory import simulator
from nctheory._errors import ArgumentError
from nctheory.metrics.probes import ridge_probe_accuracy
from nctheory.runs import RunFolder
from nctheory.vision import networks
from tests.experiments.conftest import assert_refused, run_here, run_script

SCRIPT = "experiments/train_vs_test.py"


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


@pytest.mark.slow
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
    assert (OWN_MEANS | CENTERS).keys() == METRICS.keys()
    for name, text in (OWN_MEANS | CENTERS).items():
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
    for part in ("collapse", "transfer"):
        last = tree[part].isel(layer=-1)
        for name in ("nc2_equinorm", "nc2_etf_distance", "nc3_duality", "nc4_ncc_mismatch", "class_alignment_min"):
            assert np.isfinite(last[name]).all(), name
            assert last[name].attrs["units"] == "dimensionless"
    # Two classes have antipodal means, up to rounding: NC2 says nothing of them.
    assert (
        float(np.abs(tree["transfer"]["nc2_equiangular"]).max())
        < 1e-5
        < float(tree["collapse"]["nc2_equiangular"].min())
    )


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
    # Before training, because a few epochs may kill a class in so narrow a network.
    for part in (collapse.isel(epoch=0), transfer.isel(epoch=0), samples.sel(end="initial")):
        for name in ("nc2_equinorm", "nc2_equiangular", "nc2_etf_distance", "hyperspherical_excess"):
            assert np.isfinite(part[name]).all(), name
        # The classifier reads the last layer alone, on either split.
        for name in ("nc3_duality", "nc4_ncc_mismatch", "class_alignment_mean"):
            assert np.isnan(part[name].isel(layer=slice(None, -1))).all(), name
            assert np.isfinite(part[name].isel(layer=-1)).all(), name
            assert part[name].attrs["definition"] == METRICS[name]
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


@pytest.mark.slow
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
        ({"parts": ()}, "Argument `parts` must list different names"),
        ({"parts": ("all", "all")}, "Argument `parts` must list different names"),
        ({"parts": ("collapse", "all")}, 'must list different names, or "all" alone'),
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
