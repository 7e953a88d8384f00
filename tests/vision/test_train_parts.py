"""Parts of image training that need no training: images, schedules, augmentation, configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from nctheory import theory
from nctheory.vision._augment import augment
from nctheory.vision._schedules import learning_rates
from nctheory.vision._train_config import ImageTrainConfig
from nctheory.vision.images import Images, normalise


def random_levels(shape=(9, 5, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# --- images ---


def test_normalised_channels_have_mean_zero_and_unit_spread():
    levels = random_levels((5000, 5, 4, 3)) // np.array([1, 2, 5], np.uint8)
    images = Images.of(levels, np.arange(5000) % 2, num_classes=2)
    exact = levels.astype(np.float64)
    # One rounding to float32.
    np.testing.assert_allclose(images.mean, exact.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(images.std, exact.std((0, 1, 2)), rtol=1e-7)
    inputs = normalise(jnp.asarray(levels), images.mean, images.std)
    assert inputs.dtype == jnp.float32
    # Three float32 operations on numbers up to 2.
    np.testing.assert_allclose(inputs, (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2)), atol=1e-6)


def test_a_test_split_takes_the_statistics_of_the_training_split():
    train = Images.of(random_levels(), np.zeros(9, int), num_classes=2)
    test = Images.of(random_levels(seed=1) // 2, np.ones(9, np.int8), num_classes=2, like=train)
    np.testing.assert_array_equal(test.mean, train.mean)
    np.testing.assert_array_equal(test.std, train.std)
    assert test.labels.dtype == np.int32
    assert (test.image_shape, test.num_samples, test.head(4).num_samples) == ((5, 4, 3), 9, 4)


def test_a_blank_channel_becomes_zero():
    levels = random_levels()
    levels[..., 1] = 17
    images = Images.of(levels, np.zeros(9, int), num_classes=2)
    inputs = np.asarray(normalise(levels, images.mean, images.std))
    assert (inputs[..., 1] == 0).all()
    assert np.isfinite(inputs).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": random_levels().astype(np.float32)}, "Argument `images` must have dtype uint8"),
        ({"images": random_levels((9, 5, 4))}, "Argument `images` must have shape"),
        ({"images": random_levels((0, 5, 4, 3)), "labels": np.zeros(0, int)}, "at least one pixel"),
        ({"labels": np.full(9, 2)}, r"Argument `labels` must lie in 0\.\.1"),
        ({"labels": np.zeros(8, int)}, "Argument `labels` must have shape"),
        ({"num_classes": 1}, "Argument `num_classes` must be an integer >= 2"),
        ({"like": Images.of(random_levels((3, 4, 4, 3)), np.zeros(3, int), num_classes=2)}, "must have shape"),
        ({"like": Images.of(random_levels(), np.zeros(9, int), num_classes=3)}, "`num_classes` must be 3"),
    ],
)
def test_bad_images_are_refused(own_errors, changes, message):
    given = {"images": random_levels(), "labels": np.zeros(9, int), "num_classes": 2} | changes
    with pytest.raises(ValueError, match=message):
        Images.of(given.pop("images"), given.pop("labels"), **given)


# --- schedules ---


def test_constant_step_and_cosine_follow_their_formulas():
    np.testing.assert_array_equal(learning_rates("constant", 0.3, 4), np.full(4, np.float32(0.3)))
    rates = learning_rates("step", 0.3, 300, milestones=(1 / 3, 2 / 3, 0.9), factor=0.1)
    expected = [0.3] * 100 + [0.03] * 100 + [0.003] * 70 + [0.0003] * 30
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    cosine = learning_rates("cosine", 0.2, 10)
    np.testing.assert_allclose(cosine, [0.1 * (1 + np.cos(np.pi * t / 10)) for t in range(10)], rtol=1e-6)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (37, 0.25), (10, 0.5)])
def test_one_cycle_equals_that_of_pytorch(steps, warmup):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        if len(expected) < steps:
            schedule.step()
    # float32 rounding of our rates, and cancellation in the cosine near the end.
    np.testing.assert_allclose(learning_rates("one_cycle", 0.2, steps, warmup=warmup), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_stays_in_range(steps):
    for warmup in (0.0, 0.3, 0.9):
        rates = learning_rates("one_cycle", 0.2, steps, warmup=warmup)
        assert rates.shape == (steps,)
        assert ((rates > 0) & (rates <= np.float32(0.2))).all()


# --- augmentation ---


def test_every_view_is_a_crop_of_the_padded_image_or_its_mirror_image(key):
    images, pad = random_levels((400, 5, 4, 3)), 2
    views = np.asarray(augment("crop_flip", key, jnp.asarray(images), pad=pad))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # Every placing and mirroring, compared with the view of the same image.
    matches = np.zeros((400, 5, 5, 2), bool)
    for row in range(5):
        for column in range(5):
            crop = padded[:, row : row + 5, column : column + 4]
            for flip, candidate in enumerate((crop, crop[:, :, ::-1])):
                matches[:, row, column, flip] = (views == candidate).all(axis=(1, 2, 3))
    # Corners of different crops may agree, as all of them would be black; random pixels make that impossible here.
    np.testing.assert_array_equal(matches.sum(axis=(1, 2, 3)), 1)
    counts = matches.sum(axis=0)
    # False alarms of all three together below 1e-6.
    assert stats.binomtest(int(counts[..., 1].sum()), 400, 0.5).pvalue > 3e-7
    assert stats.chisquare(counts.sum(axis=2).ravel()).pvalue > 3e-7
    assert (counts.sum(axis=2) > 0).all()


def test_augmentation_is_a_function_of_its_key(key):
    images = jnp.asarray(random_levels((20, 5, 4, 3)))
    first = augment("crop_flip", key, images, pad=1)
    np.testing.assert_array_equal(jax.jit(lambda k, x: augment("crop_flip", k, x, pad=1))(key, images), first)
    assert (np.asarray(augment("crop_flip", jax.random.fold_in(key, 1), images, pad=1)) != np.asarray(first)).any()
    assert augment("none", key, images, pad=1) is images
    unmoved = np.asarray(augment("crop_flip", key, images, pad=0))
    same = (unmoved == images).all(axis=(1, 2, 3))
    mirrored = (unmoved == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0 < same.sum() < 20


def test_crop_only_draws_the_same_crops_and_never_mirrors(key):
    images = jnp.asarray(random_levels((200, 5, 4, 3)))
    crops, mirrored = (np.asarray(augment(name, key, images, pad=1)) for name in ("crop", "crop_flip"))
    same = (crops == mirrored).all(axis=(1, 2, 3))
    turned = (crops == mirrored[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ turned).all()
    assert 50 < turned.sum() < 150
    np.testing.assert_array_equal(augment("crop", key, images, pad=0), images)


# --- configuration ---


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_memory_factors_are_what_sgd_leaves_of_a_parameter_without_gradients(nesterov, schedule):
    config = ImageTrainConfig(
        learning_rate=0.3,
        weight_decay=0.02,
        momentum=0.8,
        nesterov=nesterov,
        schedule=schedule,
        num_epochs=4,
        batch_size=8,
    )
    rates = config.rates(40)
    optimizer = optax.chain(
        optax.add_decayed_weights(0.02),
        optax.sgd(lambda step: jnp.asarray(rates.ravel(), jnp.float32)[step], 0.8, nesterov=nesterov),
    )
    parameter = jnp.ones(())
    state = optimizer.init(parameter)
    expected = [1.0]
    for step in range(1, rates.size + 1):
        change, state = optimizer.update(jnp.zeros(()), state, parameter)
        parameter = optax.apply_updates(parameter, change)
        if step % 5 == 0:
            expected.append(float(parameter))
    # 20 float32 steps.
    np.testing.assert_allclose(config.memory_factors(40), expected, rtol=1e-5, atol=1e-6)


def test_memory_factors_are_the_closed_form_of_the_theory_and_one_without_decay():
    config = ImageTrainConfig(learning_rate=0.1, weight_decay=5e-3, schedule="constant", num_epochs=6, batch_size=10)
    steps = np.arange(7) * 10
    expected = theory.memory_factor(steps, learning_rate=0.1, weight_decay=5e-3, momentum=0.9)
    np.testing.assert_allclose(config.memory_factors(100), expected, rtol=1e-5)
    none = dataclasses.replace(config, weight_decay=0.0)
    np.testing.assert_array_equal(none.memory_factors(100), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "Argument `learning_rate` must be finite and > 0"),
        ({"weight_decay": -1.0}, "Argument `weight_decay` must be"),
        ({"momentum": 1.0}, "Argument `momentum` must be"),
        ({"batch_size": 0}, "Argument `batch_size` must be an integer >= 1"),
        ({"num_epochs": 1.5}, "Argument `num_epochs` must be an integer"),
        ({"schedule": "linear"}, "Argument `schedule` must be one of"),
        ({"milestones": (0.6, 0.3)}, "Argument `milestones` must be increasing"),
        ({"milestones": (0.0,)}, "Argument `milestones` must be increasing"),
        ({"factor": 0.0}, "Argument `factor` must be"),
        ({"warmup": 1.0}, "Argument `warmup` must be"),
        ({"loss": "hinge"}, "Argument `loss` must be one of"),
        ({"augment": "mixup"}, "Argument `augment` must be one of"),
        ({"pad": -1}, "Argument `pad` must be"),
        ({"compute_dtype": "float16"}, "Argument `compute_dtype` must be one of"),
        ({"num_epochs": 5, "checkpoint_epochs": (0, 6)}, r"`checkpoint_epochs` must be increasing epochs in 0\.\.5"),
        ({"checkpoint_epochs": (3, 3)}, "`checkpoint_epochs` must be increasing"),
        ({"checkpoint_epochs": (-1,)}, "`checkpoint_epochs` must be an integer >= 0"),
    ],
)
def test_bad_settings_are_refused(own_errors, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ImageTrainConfig(), **changes)


def test_default_checkpoints_are_log_spaced_from_before_training_to_the_end():
    epochs = ImageTrainConfig(num_epochs=350).kept_epochs
    assert epochs[:3] == (0, 1, 2)
    assert epochs[-1] == 350
    assert list(epochs) == sorted(set(epochs))
    gaps = np.diff(np.log(epochs[3:]))
    assert gaps.max() < 1.3 * gaps.min()
    assert ImageTrainConfig(num_epochs=1).kept_epochs == (0, 1)
    assert ImageTrainConfig(checkpoint_epochs=()).kept_epochs == ()


def test_steps_and_rates_count_the_last_batch_only_if_it_is_kept():
    config = ImageTrainConfig(batch_size=8, num_epochs=3, schedule="constant", learning_rate=0.5)
    for samples, drop, expected in ((20, True, 2), (20, False, 3), (16, False, 2), (7, True, 0), (7, False, 1)):
        each = dataclasses.replace(config, drop_last=drop)
        assert each.steps_per_epoch(samples) == expected
    np.testing.assert_array_equal(config.rates(20), np.full((3, 2), 0.5))
    assert (config.dtype_on("cpu"), config.dtype_on("gpu")) == ("float32", "bfloat16")
