"""The coarse-label experiment with an image network at its smallest size: record, claims, resume, verdict logic."""

import csv
import json
import os
import shutil
from types import SimpleNamespace

import coarse_images
import coarse_labels
import numpy as np
import pytest
import xarray as xr
from _coarse import images_claims, images_data, images_options, images_record, images_scores

from nctheory._cli import run_main
from tests.experiments.conftest import assert_refused, history_of, run_here, run_script

SCRIPT = "experiments/coarse_labels.py"
# Compiles five times faster than a network of convolutions, whose own run is among the slow tests.
NETWORK = "mlp-3x64"
TIMES = ("curve_seconds", "score_seconds")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One finished smoke run that the tests of this file share; read only."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--network", NETWORK, "--out", out)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    for words in ("scikit-learn's copy", "hardware", "One seed: there is no interval", "control: raw pixels"):
        assert words in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png"}
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["network"] == NETWORK
    assert config["images"]["num_epochs"] == 2
    assert "widths" not in config


def test_record_has_names_and_units(smoke):
    history = history_of(smoke[0])
    assert history["clp"].dims == ("seed", "checkpoint")
    assert history["class_distances"].dims == ("seed", "checkpoint", "fine", "other_fine")
    assert history["class_distances"].attrs["units"] == "squared feature units"
    assert history["curve_train_loss"].dims == ("training", "seed", "epoch")
    assert history["curve_seconds"].attrs["units"] == "s"
    np.testing.assert_array_equal(history["checkpoint"], [0, 1, 2])
    np.testing.assert_array_equal(history["coarse_label"], np.arange(10) % 5)
    for name, variable in history.data_vars.items():
        assert name in ("coarse_label", "sample_class") or variable.attrs["units"], name
        if name in ("clp", "fine_probe", "shuffled", "nc1", "ratio", "separation", "test_accuracy", "raw_clp"):
            assert np.isfinite(variable).all(), name


def test_scores_agree_with_what_training_saw(smoke):
    """The accuracy from stored features is that of the training's own evaluation, whose path is another one."""
    history = history_of(smoke[0])
    own = history["curve_test_accuracy"].sel(training="coarse").values
    np.testing.assert_allclose(history["test_accuracy"].values[:, 1:], own, atol=1e-6)
    ordinary = history["curve_test_accuracy"].sel(training="ordinary").values[:, -1]
    np.testing.assert_allclose(history["ordinary_accuracy"].values, ordinary, atol=1e-6)


def test_controls_are_at_their_levels(smoke):
    """Without sub-clusters half of the ceiling is left; 256 images give a standard error of 0.03."""
    history = history_of(smoke[0])
    ceiling = history["clp_ceiling"].values
    assert (history["clp"].values <= ceiling).all()
    assert np.abs(history["shuffled"].values - ceiling / 2).max() < 0.16
    assert (history["fine_probe"].values > history["shuffled"].values + 0.1).all()
    draws = history["surrogate"].values
    assert np.isfinite(draws[:, :, 0]).all()
    # The second draw, a control of a claim, is made at the end only.
    assert np.isfinite(draws[:, -1, 1]).all()
    assert np.isnan(draws[:, :-1, 1]).all()


def test_every_claim_has_a_control(smoke):
    claims = json.loads((smoke[0] / "claims.json").read_text())
    named = {claim["id"] for claim in claims if claim["role"] == "claim"}
    assert named == {"above-pixels", "above-surrogate", "near-probe", "fitted"}
    assert {claim["claim_id"] for claim in claims if claim["role"] == "control"} == named
    # A single seed decides nothing.
    assert {claim["verdict"] for claim in claims} == {"inconclusive"}


@pytest.mark.slow
def test_plot_only_rewrites_the_same_ledger(smoke, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(smoke[0], out, ignore=shutil.ignore_patterns("parts", "claims.json", "figures"))
    result = run_here(SCRIPT, "--plot-only", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == (smoke[0] / "claims.json").read_text()
    assert (out / "figures" / "coarse_images.pdf").is_file()


@pytest.mark.slow
def test_run_killed_in_training_resumes_to_the_same_numbers(smoke, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(smoke[0], out)
    # Killed in the second epoch of the coarse network: neither its last checkpoint nor what followed was written.
    for name in ("history.nc", "manifest.json", "claims.json"):
        (out / name).unlink()
    shutil.rmtree(out / "parts" / "coarse-0" / "epoch_000002")
    result = run_script(SCRIPT, "--smoke", "--network", NETWORK, "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    xr.testing.assert_identical(history_of(out).drop_vars(TIMES), history_of(smoke[0]).drop_vars(TIMES))
    assert (out / "claims.json").read_text() == (smoke[0] / "claims.json").read_text()


def test_another_configuration_is_not_resumed(smoke, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # A smoke run changes it for its process.
    arguments = ["--smoke", "--network", "resnet-small", "--images.learning-rate", "0.1", "--resume"]
    code = run_main(coarse_labels.Config, coarse_labels.run, [*arguments, "--out", str(smoke[0])])
    assert code == 2
    assert "configuration differs in images" in capsys.readouterr().err


@pytest.mark.slow
def test_paper_figure_writes_figure_and_numbers(smoke, tmp_path):
    assert coarse_images.run(coarse_images.Config(run=smoke[0], out=tmp_path)) == 0
    with open(tmp_path / "coarse_images.csv") as file:
        rows = list(csv.DictReader(file))
    # Two 10 x 10 matrices, eight curves at three checkpoints, two levels.
    assert len(rows) == 200 + 24 + 2
    history = history_of(smoke[0])
    shown = [float(row["value"]) for row in rows if row["panel"] == "clp"]
    np.testing.assert_allclose(shown, history["clp"].values[0], rtol=1e-5)
    assert (tmp_path / "coarse_images.pdf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "resnet-smal"), "Argument `name` must be one of"),
        (("--network", "resnet-small", "--learning-rate", "0.2"), "Argument `learning_rate` must be left alone"),
        (("--images.num-epochs", "3"), "Argument `images` must be left alone with network 'mlp'"),
        (("--network", "resnet-small", "--num-seeds", "0"), "Argument `num_seeds` must be an integer >= 1"),
        (("--network", "resnet-small", "--images.num-train", "9"), "at least two images of every class"),
        (("--network", "resnet-small", "--images.batch-size", "2000"), "must be at most the 1437 train images"),
        (("--network", "resnet-small", "--images.checkpoint-epochs", "0", "5"), "end with the last epoch 20"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path, capsys):
    code = run_main(coarse_labels.Config, coarse_labels.run, ["--out", str(tmp_path / "new"), *arguments])
    assert_refused(code, capsys.readouterr().err, message, tmp_path / "new")


def test_default_checkpoints_are_log_spaced_with_both_ends():
    options = images_options.ImageOptions
    assert options().epochs == (0, 1, 2, 4, 8, 16, 20)
    assert options(num_epochs=1).epochs == (0, 1)
    assert options(num_epochs=16).epochs == (0, 1, 2, 4, 8, 16)
    assert options().augmentation("cifar10") == "crop_flip"
    assert options().augmentation("mnist") == "none"


def made_up_record(num_seeds=3, *, last=0.80, raw=0.29, surrogate=0.43, probe=0.82, coarse=0.87, untrained=0.35):
    """A record with the given levels, a spread of 0.005 over seeds, and everything at its level by default."""
    generator = np.random.default_rng(0)

    def level(*values):
        return np.array(values)[None, :] + 0.005 * generator.standard_normal((num_seeds, len(values)))

    at = ("seed", "checkpoint")
    draws = np.stack([level(surrogate, surrogate), level(surrogate, surrogate)], axis=-1)
    return xr.Dataset(
        {
            "clp": (at, level(untrained, last)),
            "surrogate": ((*at, "draw"), draws),
            "fine_probe": (at, level(0.40, probe)),
            "test_accuracy": (at, level(0.20, coarse)),
            "raw_clp": ((), raw),
        },
        attrs={"dataset": "cifar10"},
    )


def test_expected_levels_pass_and_each_missing_effect_is_refuted():
    judge = images_claims.judge
    assert judge(made_up_record()).failures() == []
    wrong = {
        "above-pixels": {"raw": 0.60},
        "above-surrogate": {"last": 0.44},
        "near-probe": {"last": 0.70},
        "fitted": {"coarse": 0.80},
    }
    for claim, levels in wrong.items():
        verdicts = {row.id: row.verdict for row in judge(made_up_record(3, **levels)).claims}
        assert verdicts[claim] == "refuted", claim


def test_a_control_that_shows_the_effect_fails_the_ledger():
    failures = images_claims.judge(made_up_record(untrained=0.80)).failures()
    assert any(line.startswith("above-pixels/untrained: a control that must be refuted") for line in failures)


def test_diverged_seeds_leave_the_verdict_open():
    record = made_up_record(num_seeds=4)
    record["clp"][1, 1] = np.nan
    rows = {row.id: row for row in images_claims.judge(record).claims}
    assert rows["above-pixels"].verdict == "inconclusive"
    assert rows["above-pixels"].num_nonfinite == 1
    assert rows["fitted"].verdict == "supported"


def test_a_run_whose_every_seed_diverged_is_recorded_and_drawn():
    from nctheory import vision
    from nctheory.figures.coarse_images import draw

    mapping = vision.label_map("mod", num_fine=4, num_coarse=2)
    labels = np.arange(8) % 4
    data = SimpleNamespace(
        label_map=mapping, class_names=("a", "b", "c", "d"), ordinary=(None, SimpleNamespace(labels=labels))
    )
    facts = dict.fromkeys(("copy", "num_train", "num_test", "num_coarse", "network", "augment", "hardware"), "-")
    facts |= {"dataset": "cifar10", "labels": "mod"}
    raw = {"raw_clp": 0.3, "raw_chance": 0.25, "raw_fine_probe": 0.4}
    lost = {"coarse": [None, None], "ordinary": [None, None]}
    history = images_record.collect(data, [0, 1], (0, 1, 2), lost, raw, facts)
    assert np.isnan(history["clp"]).all()
    assert {row.verdict for row in images_claims.judge(history).claims} == {"inconclusive"}
    assert "not run" in images_claims.table(history)
    draw(history).savefig(os.devnull, format="png")


def test_copy_is_named_by_its_description(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for description, name in (("CIFAR-10, JPEG-compressed copy.", "JPEG copy"), ("60,000 images.", "as published")):
        (folder / "dataset_info.json").write_text(json.dumps({"description": description}))
        assert images_data.data_copy("cifar10", tmp_path) == name
    assert images_data.data_copy("digits", None) == "scikit-learn's copy"


def test_shuffled_classes_leave_half_of_what_two_perfect_clusters_give():
    """Clusters that are the classes score 1; after shuffling, about a half, and never above what matching can gain."""
    from nctheory import vision

    fine = np.tile(np.arange(10), 200)
    mapping = vision.label_map("mod", num_fine=10, num_coarse=5)
    coarse = vision.coarse_labels(fine, mapping)
    data = SimpleNamespace(labels=((coarse, coarse), (fine, fine)), label_map=mapping)
    probe = SimpleNamespace(matching=np.arange(10), pseudo_labels=fine, test_predictions=fine)
    found = [images_scores.shuffled_accuracy(data, probe, seed) for seed in range(20)]
    # 2,000 images: standard error 0.011 a draw.
    assert np.abs(np.array(found) - 0.5).max() < 0.06
    assert images_scores.shuffled_accuracy(data, probe, 3) == found[3]
    lost = SimpleNamespace(matching=np.arange(10), pseudo_labels=fine, test_predictions=np.full(2000, -1))
    assert images_scores.shuffled_accuracy(data, lost, 0) == 0
