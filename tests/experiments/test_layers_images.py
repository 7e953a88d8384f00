"""Training with every layer measured at checkpoints: against separate measurements, resumed, milestones."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from _layers import record
from _layers.image_sets import official_split, outsiders
from _layers.images import _measure, first_epochs, train_and_measure
from _layers.options import ImageOptions

from nctheory import vision
from nctheory.runs import RunFolderError
from nctheory.vision import _together, networks
from nctheory.vision.images import Images
from nctheory.vision.layers import layer_collapse
from tests.vision import small_networks
from tests.vision.tiny_networks import blobs, splits

SPEC = networks.MlpSpec(widths=(8, 6))
CONFIG = vision.ImageTrainConfig(
    learning_rate=0.05, weight_decay=1e-3, batch_size=15, num_epochs=4, schedule="constant", loss="mse"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with its folder and data; read only."""
    data = splits(60, 30)
    folder = tmp_path_factory.mktemp("layers") / "run"
    options = {"measure_epochs": (0, 2, 4), "spectra": "all", "max_spectrum_dim": 2048, "progress": False}
    return train_and_measure(SPEC, CONFIG, *data, seed=1, folder=folder, **options), folder, data


def test_measurements_are_those_of_the_checkpoints(run):
    found, folder, (train, test) = run
    assert found.names == ("input", "layer1", "features")
    assert found.dims == (108, 8, 6)
    np.testing.assert_array_equal(found.epochs, [0, 2, 4])
    for row, epoch in enumerate(found.epochs):
        network = vision.load_network(SPEC, folder, int(epoch))
        wanted = layer_collapse(network, train, test)
        for column, split in enumerate((wanted.train, wanted.test)):
            every = vars(split.collapse) | vars(split.centers) | vars(split.directions)
            assert set(found.metrics) == set(every) == set(record.METRICS)
            for name, value in every.items():
                # The same program on the same numbers.
                np.testing.assert_allclose(found.metrics[name][row, column], value, rtol=1e-5, err_msg=name)
        for column, part in enumerate((train, test)):
            loss, accuracy = vision.evaluate(network, part, loss="mse")
            assert found.losses[row, column] == pytest.approx(loss, rel=1e-5)
            assert found.accuracies[row, column] == accuracy
    assert all(values.shape == (3, 2, 3) for values in found.metrics.values())
    # Training changed what is measured, and the splits differ.
    nc1 = found.metrics["nc1"]
    assert np.isfinite(nc1).all()
    assert (np.abs(nc1[0, :, 1:] / nc1[2, :, 1:] - 1) > 0.01).all()
    np.testing.assert_array_equal(nc1[0, :, 0], nc1[2, :, 0])
    assert (nc1[:, 0] != nc1[:, 1]).all()


def test_spectra_are_those_of_the_networks_of_every_checkpoint(run):
    found, folder, data = run
    for row, epoch in enumerate((0, 2, 4)):
        for column, part in enumerate(data):
            wanted = vision.layer_spectra(vision.load_network(SPEC, folder, epoch), part).spectrum
            for name, values in found.spectra.items():
                np.testing.assert_allclose(values[row, column], getattr(wanted, name), rtol=1e-4, err_msg=name)
    rank, index = found.spectra["effective_rank"], found.spectra["variability_collapse_index"]
    assert np.isfinite(rank).all()
    # 60 and 30 images have fewer directions about their mean than the 108 pixels.
    assert np.isnan(index[..., 0]).all()
    assert np.isfinite(index[..., 1:]).all()
    assert (rank[0, 0, 1:] != rank[2, 0, 1:]).all()
    assert (rank[:, 0] != rank[:, 1]).all()


@pytest.mark.parametrize("spectra", ["ends", "none"])
def test_fewer_spectra_are_those_of_all_where_they_are_measured(run, spectra):
    found, _, data = run
    options = {"measure_epochs": (0, 2, 4), "max_spectrum_dim": 2048, "progress": False}
    few = train_and_measure(SPEC, CONFIG, *data, seed=1, spectra=spectra, **options)
    for name, values in few.spectra.items():
        assert np.isnan(values[1]).all()
        assert np.isnan(values[:, 1]).all()
        ends = np.full((2, 3), np.nan) if spectra == "none" else found.spectra[name][[0, 2], 0]
        np.testing.assert_array_equal(values[[0, 2], 0], ends)


def test_another_choice_of_spectra_is_refused_before_training(run, tmp_path):
    _, _, data = run
    with pytest.raises(ValueError, match=r"`spectra` must be one of .* but is 'first'"):
        train_and_measure(SPEC, CONFIG, *data, seed=1, spectra="first", folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_out_of_distribution_images_are_measured_at_every_checkpoint_and_milestone(run, tmp_path):
    found, folder, data = run
    ood = outsiders(data[0], None, ImageOptions(ood_dataset="noise"), progress=False)
    assert ood.images.shape == (1000, *data[0].image_shape)
    options = {"measure_epochs": (0, 2, 4), "spectra": "none", "progress": False}
    with_them = train_and_measure(SPEC, CONFIG, *data, seed=1, folder=tmp_path / "run", ood=ood, **options)
    values = with_them.metrics["ood_orthogonality"]
    assert values.shape == (3, 2, 3)
    for row, epoch in enumerate((0, 2, 4)):
        wanted = layer_collapse(vision.load_network(SPEC, folder, epoch), *data, ood=ood).ood_orthogonality
        np.testing.assert_allclose(values[row], wanted, rtol=1e-5)
    assert ((values > 0) & (values <= 1)).all()
    assert (values[0, :, 1:] != values[2, :, 1:]).all()
    np.testing.assert_array_equal(with_them.metrics["nc1"], found.metrics["nc1"])
    assert "ood_orthogonality" in with_them.at_milestones()


def test_measurements_of_an_earlier_version_are_named(run):
    """The folder was trained without out-of-distribution images: their column is what its checkpoints lack."""
    _, folder, data = run
    options = {"measure_epochs": (0, 2, 4), "progress": False}
    ood = outsiders(data[0], None, ImageOptions(ood_dataset="noise"), progress=False)
    with pytest.raises(RunFolderError, match="measurements of epoch 0 were stored without ood_orthogonality"):
        train_and_measure(SPEC, CONFIG, *data, seed=1, folder=folder, ood=ood, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("noises", r"`images.ood_dataset` must be one of \['cifar10', .*'noise'\], but is 'noises'"),
        ("digits", r"`images.ood_dataset` must name images of shape \(6, 6, 3\), but those of digits have shape"),
    ],
)
def test_outsiders_of_another_shape_or_name_are_refused(run, name, message):
    with pytest.raises(ValueError, match=message):
        outsiders(run[2][0], None, ImageOptions(ood_dataset=name), progress=False)


def test_test_accuracy_is_that_of_the_training(run):
    found, _, _ = run
    np.testing.assert_allclose(found.accuracies[1:, 1], found.curves["test_accuracy"][[1, 3]], atol=1e-6)
    np.testing.assert_allclose(found.losses[1:, 1], found.curves["test_loss"][[1, 3]], rtol=1e-5)
    assert found.curves["train_accuracy"].shape == (4,)


def test_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    found, folder, data = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "epoch_000004")
    for _ in range(2):  # The second time nothing is left to train.
        options = {"measure_epochs": (0, 2, 4), "spectra": "all", "max_spectrum_dim": 2048, "progress": False}
        again = train_and_measure(SPEC, CONFIG, *data, seed=1, folder=copy, **options)
        assert again.names == found.names
        assert again.dims == found.dims
        for name, values in found.metrics.items():
            np.testing.assert_array_equal(again.metrics[name], values, err_msg=name)
        for name, values in found.spectra.items():
            np.testing.assert_array_equal(again.spectra[name], values, err_msg=name)
        for name in ("train_loss", "test_accuracy"):
            np.testing.assert_array_equal(again.curves[name], found.curves[name])
        np.testing.assert_array_equal(again.milestone_epochs, found.milestone_epochs)


def test_metrics_at_milestones_are_those_of_their_epochs(run):
    found, _, _ = run
    made_up = dataclasses.replace(found, milestone_epochs=np.array([2, 4, -1]))
    both = {**found.metrics, **found.spectra}
    assert set(made_up.at_milestones()) == set(both)
    for name, values in made_up.at_milestones().items():
        np.testing.assert_array_equal(values[:2], both[name][1:])
        assert np.isnan(values[2]).all()
        assert values.shape == (3, 2, 3)


def test_milestones_are_the_first_epochs_that_reach_them():
    accuracy = np.array([0.5, 0.91, 0.89, 0.96, 0.97])
    np.testing.assert_array_equal(first_epochs(accuracy, (0.9, 0.95, 0.975, 0.97)), [2, 4, -1, 5])
    np.testing.assert_array_equal(first_epochs(accuracy, (0.9, 0.95, 0.99), among=(0, 1, 3, 5)), [5, 5, -1])
    np.testing.assert_array_equal(first_epochs(accuracy, (0.0,), among=(0, 1)), [1])
    np.testing.assert_array_equal(first_epochs(accuracy, (0.0,), among=(0,)), [-1])


def test_fewer_images_measured_train_no_less(run):
    _, _, (train, test) = run
    config = dataclasses.replace(CONFIG, num_epochs=1, checkpoint_epochs=(1,))
    found = train_and_measure(SPEC, config, train, test, seed=1, max_measured=21, progress=False)
    whole = train_and_measure(SPEC, config, train, test, seed=1, progress=False)
    np.testing.assert_array_equal(found.epochs, [1])
    assert all(np.isnan(values).all() and values.shape == (1, 2, 3) for values in found.spectra.values())
    np.testing.assert_array_equal(found.curves["train_loss"], whole.curves["train_loss"])
    assert found.metrics["nc1"][0, 0, -1] != whole.metrics["nc1"][0, 0, -1]
    assert found.accuracies[0, 0] * 21 == pytest.approx(round(found.accuracies[0, 0] * 21), abs=1e-6)


@pytest.mark.parametrize(
    ("pool", "dims"),
    [
        (True, (84, 4, 4, 4, 6, 6)),
        pytest.param(False, (84, 168, 168, 168, 72, 6), marks=pytest.mark.slow),
    ],
)
def test_pooling_reaches_the_measurement(pool, dims, monkeypatch):
    monkeypatch.setattr(vision, "evaluate", lambda *args, **kwargs: vision.Evaluation(0.0, 0.0))
    draw = np.random.default_rng(0)
    part = Images.of(draw.integers(0, 255, (12, 7, 6, 2)).astype(np.uint8), np.arange(12) % 3, num_classes=3)
    found = _measure(small_networks.build("resnet"), (part, part), loss="mse", pool=pool)
    np.testing.assert_array_equal(found["dims"], dims)


def test_a_class_without_measured_images_is_refused_before_training(run, own_errors, tmp_path):
    _, _, (train, test) = run
    out = tmp_path / "new"
    with pytest.raises(ValueError, match=r"`train.labels` must contain every class .* no sample of \[2\]"):
        train_and_measure(SPEC, CONFIG, train, test, seed=1, folder=out, max_measured=2, progress=False)
    keep = test.labels != 0
    part = Images.of(test.images[keep], test.labels[keep], num_classes=3, like=train)
    with pytest.raises(ValueError, match=r"`test.labels` must contain every class .* no sample of \[0\]"):
        train_and_measure(SPEC, CONFIG, train, part, seed=1, folder=out, progress=False)
    assert not out.exists()


def test_pixels_collapse_more_where_classes_are_farther():
    """What is stored as the layer "input" is the pixels: brighter class differences give a smaller nc1."""
    train = blobs(60)
    levels = train.images.astype(np.int64) // 2
    levels[np.arange(60), :, :, train.labels] += 120
    bright = Images.of(levels.astype(np.uint8), train.labels, num_classes=3)
    config = dataclasses.replace(CONFIG, num_epochs=1, checkpoint_epochs=(0,))
    found = [train_and_measure(SPEC, config, part, part, seed=1, progress=False) for part in (train, bright)]
    assert found[1].metrics["nc1"][0, 0, 0] < 0.5 * found[0].metrics["nc1"][0, 0, 0]


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_made(monkeypatch):
    three = SimpleNamespace(axis_names=("data",), shape={"data": 3})
    monkeypatch.setattr(_together, "mesh_of_all", lambda axis: three)
    with pytest.raises(ValueError, match=r"`images\.batch_size` must be a multiple of the 3 devices .* but is 16"):
        official_split("digits", None, ImageOptions(batch_size=16), progress=False)
    assert official_split("digits", None, ImageOptions(batch_size=18), progress=False).train.num_samples > 1000


def test_layers_beyond_the_limit_have_no_spectrum(run):
    found, _, data = run
    options = {"measure_epochs": (0, 2, 4), "max_spectrum_dim": found.dims[-1], "progress": False}
    options["spectra"] = "all"
    few = train_and_measure(SPEC, CONFIG, *data, seed=1, **options)
    is_measured = np.array(found.dims) <= found.dims[-1]
    assert 0 < is_measured.sum() < len(is_measured)
    for name, values in found.spectra.items():
        np.testing.assert_array_equal(few.spectra[name], np.where(is_measured, values, np.nan), err_msg=name)
    with pytest.raises(ValueError, match=r"`images.max_spectrum_dim` must be an integer >= 0, but is -1"):
        ImageOptions(max_spectrum_dim=-1).check()
