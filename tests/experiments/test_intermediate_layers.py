"""The layer experiment: its units, data, criteria and predictions, files of a smoke run, verdict logic."""

import csv
import dataclasses
import io
import json
import shutil

import activations
import intermediate_layers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _layers import chain, conditions
from _layers.recipes import Recipe, library_units

from nctheory import simulator
from nctheory._errors import ArgumentError
from tests.experiments.conftest import ROOT, assert_refused, history_of, run_here, run_script

SCRIPT = "experiments/intermediate_layers.py"
NAMES = ("digits", "digits_no_decay", "gmm_easy", "digits_noise20")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--quiet", "--out", out)


@pytest.mark.parametrize("wrong", [False, True])
def test_library_units_give_the_updates_of_a_loss_averaged_over_outputs(key, wrong):
    """One step by hand on the mean over samples and outputs; the same step through the library; K = 10."""
    inputs = jax.random.normal(jax.random.fold_in(key, 0), (6, 4), dtype=float)
    targets = jax.nn.one_hot(jnp.arange(6), 10, dtype=inputs.dtype)
    weight = jax.random.normal(jax.random.fold_in(key, 1), (4, 10), dtype=float)
    by_hand = weight - 0.1 * (jax.grad(lambda w: jnp.mean((inputs @ w - targets) ** 2))(weight) + 5e-2 * weight)
    rate, decay = (0.1, 5e-2) if wrong else library_units("mse", 10, learning_rate=0.1, weight_decay=5e-2)

    def objective(w):
        return jnp.sum((inputs @ w - targets) ** 2) / (2 * 6) + decay / 2 * jnp.sum(w**2)

    same = np.allclose(weight - rate * jax.grad(objective)(weight), by_hand, rtol=1e-5)
    assert same is not wrong


def test_cross_entropy_keeps_its_units():
    assert library_units("cross_entropy", 10, learning_rate=0.1, weight_decay=5e-4) == (0.1, 5e-4)


def test_conditions_are_the_reference_its_control_and_what_is_asked_for():
    names = [each.name for each in conditions.conditions(("digits_noise20", "digits", "gmm_easy"))]
    assert names == ["digits", "gmm_easy", "digits_noise20"]
    assert len(conditions.conditions(("all",))) == len(conditions.CONDITIONS) == 6


def test_digits_are_standardised_by_two_numbers_and_split_by_seed():
    source = conditions.source(conditions.CONDITIONS[0], 0)
    inputs = np.asarray(source.samples.inputs)
    assert inputs.shape == (1797, 64)
    assert inputs.mean() == pytest.approx(0, abs=1e-12)
    assert inputs.std() == pytest.approx(1, abs=1e-12)
    first, second = (source.draw(jax.random.key(seed)) for seed in (0, 1))
    assert (first[0].inputs.shape, first[1].inputs.shape) == ((1437, 64), (360, 64))
    assert not np.array_equal(first[0].inputs, second[0].inputs)


def test_mixtures_have_their_centres_noise_and_hardness():
    """Nearest class means separate one Gaussian a class and not eight."""
    easy, multi = (conditions.mixture(count, 3) for count in (1, 8))
    for each in (easy, multi):
        assert each.inputs.shape == (1800, 64)
        assert np.asarray(each.inputs).std() == pytest.approx(1)
        np.testing.assert_array_equal(np.bincount(each.labels), [180] * 10)
    within = np.concatenate([easy.inputs[easy.labels == k] - easy.inputs[easy.labels == k].mean(0) for k in range(10)])
    means = np.stack([easy.inputs[easy.labels == k].mean(0) for k in range(10)])
    # Norm 8 over unit noise, whatever the common scale; 1,800 x 64 draws and sqrt(64/180) of noise in the means.
    assert np.linalg.norm(means, axis=1).mean() / within.std() == pytest.approx(8, rel=0.02)

    def mismatch(samples):
        centres = np.stack([samples.inputs[samples.labels == k].mean(0) for k in range(10)])
        distances = ((samples.inputs[:, None] - centres[None]) ** 2).sum(-1)
        return (distances.argmin(1) != samples.labels).mean()

    assert mismatch(easy) < 0.001
    assert mismatch(multi) > 0.1
    again = conditions.mixture(1, 3)
    np.testing.assert_array_equal(again.inputs, easy.inputs)
    assert not np.array_equal(conditions.mixture(1, 4).inputs, easy.inputs)


def test_noise_doubles_the_epochs_and_the_control_loses_its_decay():
    recipe = Recipe(num_epochs=3, width=8)
    source = conditions.source(conditions.CONDITIONS[0], 0, num_samples=100)
    settings = {
        each.name: conditions.train_config(each, recipe, source, 3)
        for each in conditions.conditions(("digits", "digits_no_decay", "digits_noise20"))
    }
    assert settings["digits_noise20"].num_epochs == 6
    assert settings["digits_no_decay"].run.weight_decay == 0
    assert settings["digits"].run.weight_decay == pytest.approx(5 * 5e-4)
    assert settings["digits"].run.learning_rate == pytest.approx(0.1 / 5)
    assert settings["digits"].run.num_steps == 3 * 5


def test_chain_prediction_on_orthonormal_images_is_the_closed_form():
    """Four orthonormal images of two classes: sigma = sqrt(2), differences within classes outside the learned plane."""
    setting = chain.ChainSetting(depth=4, start=0.1)
    labels = np.array([0, 0, 1, 1])
    features = chain.predicted_features(np.eye(4, 5), labels, setting)
    gain = 2 ** (1 / 8)
    for layer, each in enumerate(features):
        means = np.stack([each[labels == k].mean(0) for k in (0, 1)])
        within = ((each - means[labels]) ** 2).sum(1).mean()
        between = ((means - means.mean(0)) ** 2).sum(1).mean()
        # |x - mu|^2 = 1/2 at the input, |mu_c - mu_G|^2 = 1/4.
        assert within / between == pytest.approx(2 * (0.1 / gain) ** (2 * layer))


def test_trained_chain_follows_its_prediction_and_the_untrained_one_does_not():
    setting = chain.ChainSetting(depth=3, start=0.3, num_steps=8000)
    with jax.numpy_dtype_promotion("standard"):
        result = simulator.sweep(chain.train, chain.train_config(setting), 2, progress=False)
    found = chain.measure(setting, [kernel[0] for kernel in result.history.kernels])
    assert result.history.objective[0, :, -1].max() < 1e-4
    # First order in eps: 0.3 squared, and what is left of the loss.
    np.testing.assert_allclose(found["ratio"][:, 1], np.tile(found["predicted_ratio"], (2, 1)), rtol=0.1)
    np.testing.assert_allclose(
        found["discrimination"][:, 1], np.tile(found["predicted_discrimination"], (2, 1)), atol=0.02
    )
    # Orthogonal layers change no distance: nothing is compressed before training.
    np.testing.assert_allclose(found["ratio"][:, 0], np.full((2, 3), found["predicted_ratio"][0]), rtol=1e-4)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "any geometric decay" in result.stdout or "every geometric decay" in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png"}
    history = history_of(out)
    assert history["condition"].values.tolist() == list(NAMES)
    assert history["nc1"].dims == ("condition", "seed", "epoch", "split", "layer")
    assert history["milestone_nc1"].dims == ("condition", "seed", "milestone", "split", "layer")
    assert history["nc1"].attrs["units"] == "dimensionless"
    # Three epochs reach no milestone: that is said, not made up.
    assert (history["milestone_epoch"] == -1).any()
    assert np.isnan(history["milestone_nc1"].where(history["milestone_epoch"] < 0)).all()
    assert np.isfinite(history["nc1"].sel(condition="digits", epoch=3)).all()
    for name in ("effective_rank", "variability_collapse_index"):
        assert np.isfinite(history[name].sel(condition="digits", epoch=[0, 3], split="train")).all()
        # Spectra of the ends of the train split unless more are asked for.
        assert int(np.isfinite(history[name].sel(condition="digits")).sum()) == 2 * 2 * 6
    # The classifier reads the last layer alone.
    for name in ("nc3_duality", "class_alignment_mean", "class_alignment_min"):
        known = np.isfinite(history[name].sel(condition="digits", epoch=3)).all(["seed", "split"])
        assert known.values.tolist() == [False] * 5 + [True], name
    assert (history["hyperspherical_excess"].sel(condition="digits", epoch=3) > 0).all()
    assert "milestone_hyperspherical_energy" in history
    ledger = [claim["id"] for claim in json.loads((out / "claims.json").read_text())]
    assert {"A0", "A1", "A2", "A3", "law/even", "deep-linear/rate"} <= set(ledger)


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
    result = run_script(SCRIPT, "--smoke", "--quiet", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == before


def test_paper_figure_is_drawn_from_the_folder(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/intermediate_layers.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"intermediate_layers.{end}" for end in ("pdf", "png", "csv")}
    rows = (tmp_path / "intermediate_layers.csv").read_text().splitlines()
    assert rows[0] == "panel,condition,metric,stage,epoch,layer,median,low,high,predicted"
    assert sum(row.startswith("conditions,") for row in rows) == 4 * 2 * 6
    assert sum(row.startswith("chain,") for row in rows) == 2 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "mnist"), "Argument `network` must name an image network for other sets than digits"),
        (("--weight-decay", "0"), "Argument `weight_decay` must be > 0 and finite, but is 0.0"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
    assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "Argument `depth` must be an integer >= 2, but is 1"),
        ({"num_records": 1}, "Argument `num_records` must be an integer >= 2"),
        ({"learning_rate": float("nan")}, "Argument `learning_rate` must be > 0 and finite, but is nan"),
        ({"dataset": ("digits", "digits")}, "Argument `dataset` must list different image sets"),
        ({"conditions": ("gmm_easy", "gmm_easy")}, "Argument `conditions` must list different names"),
        ({"conditions": ("all", "gmm_easy")}, 'must list different names, or "all" alone'),
        ({"network": "vgg11", "depth": 3}, "Argument `depth` must be left alone with this network"),
        ({"num_seeds": 1}, "Argument `num_seeds` must be an integer >= 2"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        intermediate_layers.Config(**options)


def test_image_options_belong_to_image_networks():
    images = dataclasses.replace(intermediate_layers.Config().images, num_epochs=3)
    with pytest.raises(ArgumentError, match="Argument `images` must be left alone"):
        intermediate_layers.Config(images=images)
    assert intermediate_layers.Config(network="vgg11", images=images, num_seeds=1).sized.num_seeds == 1


@pytest.mark.parametrize(("activation", "loss"), [("leaky_relu", "mse"), ("silu", "cross_entropy")])
def test_activation_and_loss_reach_every_condition(activation, loss):
    config = intermediate_layers.Config(smoke=True, activation=activation, loss=loss, conditions=("all",)).sized
    plan = intermediate_layers.make_plan(config)
    settings = {condition.name: setting for group in plan.groups.values() for condition, setting in group}
    assert set(settings) == {each.name for each in conditions.CONDITIONS}
    for name, setting in settings.items():
        assert (setting.run.model.activation, setting.run.loss) == (activation, loss)
        assert setting.run.learning_rate == pytest.approx(0.02 if loss == "mse" else 0.1)
        assert (setting.run.weight_decay == 0) is (name == "digits_no_decay")


@pytest.mark.slow
def test_image_network_smoke_measures_its_layers(tmp_path):
    out = tmp_path / "images"
    outside = ("--images.ood-dataset", "noise")
    result = run_script(SCRIPT, "--smoke", "--quiet", "--network", "mlp", *outside, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "NC5, layer 2" in result.stdout
    history = history_of(out)
    assert history["condition"].values.tolist() == ["digits", "digits_no_decay"]
    assert history["layer_name"].values.tolist() == ["input", "layer1", "features"]
    assert np.isfinite(history["nc1"].sel(epoch=2)).all()
    assert np.isfinite(history["ood_orthogonality"].sel(epoch=2)).all()
    assert (out / "figures" / "intermediate_layers.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", [None, "mlp"])
def test_spectra_of_all_records_are_stored(network, tmp_path):
    which = () if network is None else ("--network", network, "--images.no-control")
    few = ("--smoke", "--quiet", "--spectra", "all", *which)
    assert run_script(SCRIPT, *few, "--out", tmp_path / "all").returncode == 0
    history = history_of(tmp_path / "all").sel(condition="digits")
    assert history.attrs["spectra"] == "all"
    last = int(history["num_epochs"])
    measured = history["epoch"] <= last
    assert np.isfinite(history["effective_rank"].sel(epoch=measured)).all()
    reached = history["milestone_epoch"] > 0
    assert (np.isfinite(history["milestone_effective_rank"]).all(["split", "layer"]) == reached).all()


@pytest.mark.parametrize("spectra", ["none", "ends", "all"])
def test_spectra_reach_every_condition(spectra):
    config = intermediate_layers.Config(smoke=True, spectra=spectra).sized
    settings = [each for group in intermediate_layers.make_plan(config).groups.values() for _, each in group]
    assert {each.spectra for each in settings} == {spectra}


def test_what_changes_the_question_names_the_folder():
    assert intermediate_layers.Config().name == "digits"
    assert intermediate_layers.Config(activation="tanh", conditions=("all",)).name == "digits-tanh-all"
    assert intermediate_layers.Config(network="vgg11", loss="cross_entropy").name == "digits-vgg11-cross_entropy"


def test_unknown_names_list_the_known_ones(tmp_path):
    for arguments, message in (
        (("--network", "vgg12"), "Argument `name` must be one of ['densenet"),
        (("--network", "mlp", "--dataset", "mnits"), "Argument `dataset` must name sets among ['cifar10'"),
    ):
        result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
        assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


def test_figure_of_activations_refuses_runs_of_another_kind(tmp_path):
    runs = (ROOT / "results/intermediate_layers/mnist-mlp-5x256",)
    with pytest.raises(
        ValueError, match=r"`runs` must hold runs of the MLP on digits .*x256 has no condition 'digits'"
    ):
        activations.run(activations.Config(runs=runs, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_figure_of_activations_has_a_row_a_run(smoke, tmp_path):
    out, _ = smoke
    other = shutil.copytree(out, tmp_path / "other", ignore=shutil.ignore_patterns("parts", ".lock"))
    config = json.loads((other / "config.json").read_text())
    config["config"] |= {"activation": "tanh", "loss": "cross_entropy"}
    (other / "config.json").write_text(json.dumps(config))
    found = tmp_path / "figures"
    assert activations.run(activations.Config(runs=(out, other), out=found)) == 0
    assert {path.name for path in found.iterdir()} == {f"activations.{end}" for end in ("pdf", "png", "csv")}
    rows = list(csv.DictReader(io.StringIO((found / "activations.csv").read_text())))
    assert [(row["activation"], row["loss"]) for row in rows] == [("relu", "mse"), ("tanh", "cross_entropy")]
    claims = {claim["id"]: claim for claim in json.loads((out / "claims.json").read_text())}
    for name in ("A0", "A1", "A2"):
        assert float(rows[0][name]) == pytest.approx(claims[name]["measured"], abs=5e-3)
    history = history_of(out)
    last = history.sel(split="train", epoch=3)["nc1"].median("seed")
    for name, column in (("digits", "nc1_last"), ("digits_no_decay", "nc1_last_no_decay")):
        assert float(rows[0][column]) == pytest.approx(float(last.sel(condition=name)[-1]), rel=5e-3)
    with pytest.raises(ValueError, match=r"must hold one run of \('relu', 'mse'\), but holds"):
        activations.run(activations.Config(runs=(out, out), out=found))
