"""Samples about the train class means against a literal reference; batches, transformations, degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.metrics import CollapseAccumulator, HeldOutAccumulator, collapse_metrics, held_out_collapse

X64 = jax.config.read("jax_enable_x64")
DTYPES = ["float32", "float64"] if X64 else ["float32"]
NAMES = ("strong", "weak", "near_share", "label_mismatch", "prediction_mismatch")


def draw(seed=0, num_classes=4, dim=7, spread=0.6, offset=0.0, dtype="float64"):
    """Train and test samples of a mixture, and made-up predictions of a network."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_classes, dim))
    parts = []
    for count in (60, 45):
        labels = rng.permutation(np.arange(count) % num_classes)
        features = means[labels] + spread * rng.normal(size=(count, dim)) + offset
        parts += [features.astype(dtype), labels.astype(np.int32)]
    return *parts, rng.integers(0, num_classes, 45).astype(np.int32)


def literal(train, train_labels, test, test_labels, predictions, num_classes, radius=0.1):
    """Every definition sample by sample, in float64."""
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    means = np.stack([train[train_labels == c].mean(axis=0) for c in range(num_classes)])
    between = np.mean(np.sum((means - means.mean(axis=0)[None]) ** 2, axis=1))
    squares = np.array([[np.sum((h - mean) ** 2) for mean in means] for h in test])
    own = squares[np.arange(len(test)), test_labels]
    nearest = squares.argmin(axis=1)
    values = (
        own.mean() / between,
        squares.min(axis=1).mean() / between,
        np.mean(squares.min(axis=1) < radius * between),
        np.mean(nearest != test_labels),
        np.mean(nearest != predictions),
    )
    return dict(zip(NAMES, values, strict=True))


def assert_equal(found, expected, rtol):
    for name in NAMES:
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [0.4, 1.0])
def test_every_definition_against_the_literal_reference(dtype, radius):
    *data, predictions = draw(dtype=dtype)
    found = held_out_collapse(*data, num_classes=4, predictions=predictions, radius=radius)
    # Sums of about a hundred rounded squares.
    assert_equal(found, literal(*data, predictions, 4, radius), 1e-12 if dtype == "float64" else 1e-5)
    assert 0 < float(found.near_share) < 1
    assert 0 < float(found.label_mismatch) < 1
    assert float(found.weak) < float(found.strong)


def test_of_the_train_split_the_strong_form_is_the_trace_ratio():
    train, labels, *_ = draw()
    found = held_out_collapse(train, labels, train, labels, num_classes=4)
    ratio = collapse_metrics(train, labels, num_classes=4).within_between_ratio
    np.testing.assert_allclose(found.strong, ratio, rtol=1e-5)
    assert np.isnan(found.prediction_mismatch)


@pytest.mark.parametrize("size", [1, 16, 45])
def test_batches_of_any_size_and_merged_shards_equal_one_call(size):
    train, labels, test, answers, predictions = draw(dtype="float32")
    whole = held_out_collapse(train, labels, test, answers, num_classes=4, predictions=predictions)
    first = CollapseAccumulator.init(num_classes=4, feature_dim=7)
    for at in range(0, 60, 16):
        first = first.update(train[at : at + 16], labels[at : at + 16])
    shards = []
    for start in (0, 20):
        total = HeldOutAccumulator.about(first)
        stop = 20 if start == 0 else 45
        for at in range(start, stop, size):
            part = slice(at, min(at + size, stop))
            total = total.update(test[part], answers[part], predictions[part])
        shards.append(total)
    merged = shards[0].merge(shards[1]).compute()
    assert_equal(merged, {name: getattr(whole, name) for name in NAMES}, 2e-5)


def test_a_large_common_offset_and_strong_collapse_cost_no_digits():
    """Float32 features 1e3 from the origin whose distance to their mean is 1e-3 of the distance of the means."""
    data = draw(spread=1e-2, offset=1e3, dtype="float32")
    *parts, predictions = data
    found = held_out_collapse(*parts, num_classes=4, predictions=predictions)
    # The features themselves are rounded to 6e-5, 0.6 % of the spread; the reference reads the rounded ones.
    assert_equal(found, literal(*data, 4), 1e-3)
    assert float(found.near_share) == 1.0


def test_invariance_under_rotation_scale_and_offset():
    train, labels, test, answers, predictions = draw()
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))
    moved = [7 * part @ turn + 5 for part in (train, test)]
    one = held_out_collapse(train, labels, test, answers, num_classes=4, predictions=predictions)
    other = held_out_collapse(moved[0], labels, moved[1], answers, num_classes=4, predictions=predictions)
    assert_equal(other, {name: getattr(one, name) for name in NAMES}, 1e-9 if X64 else 1e-4)


def test_under_jit_and_vmap_every_row_is_the_lone_call():
    rows = [draw(seed) for seed in range(3)]
    stacked = [jnp.stack([jnp.asarray(row[at]) for row in rows]) for at in range(5)]

    def measure(train, labels, test, answers, predictions):
        return held_out_collapse(train, labels, test, answers, num_classes=4, predictions=predictions)

    batched = jax.jit(jax.vmap(measure))(*stacked)
    for at, row in enumerate(rows):
        expected = measure(*row)
        for name in NAMES:
            np.testing.assert_allclose(getattr(batched, name)[at], getattr(expected, name), rtol=1e-5)


def test_a_test_split_without_a_class_is_measured():
    train, labels, test, answers, predictions = draw()
    keep = answers != 2
    found = held_out_collapse(train, labels, test[keep], answers[keep], num_classes=4, predictions=predictions[keep])
    assert_equal(found, literal(train, labels, test[keep], answers[keep], predictions[keep], 4), 1e-5)


def test_undefined_is_nan():
    train, labels, test, answers, _ = draw()
    coincide = held_out_collapse(np.ones_like(train), labels, test, answers, num_classes=4)
    assert all(np.isnan(getattr(coincide, name)) for name in NAMES)
    start = HeldOutAccumulator.about(
        CollapseAccumulator.init(num_classes=4, feature_dim=7).update(train.astype(np.float32), labels)
    )
    assert all(np.isnan(getattr(start.compute(), name)) for name in NAMES)
    half = start.update(test.astype(np.float32), answers, answers).update(test.astype(np.float32), answers)
    assert np.isnan(half.compute().prediction_mismatch)
    assert np.isfinite(half.compute().strong)


@pytest.mark.parametrize("bad", ["feature", "label"])
def test_bad_numbers_that_only_a_program_sees_give_nan(bad):
    train, labels, test, answers, predictions = draw()
    if bad == "feature":
        test[3, 2] = np.nan
    else:
        answers[3] = 9
    measure = jax.jit(lambda *parts: held_out_collapse(*parts, num_classes=4, predictions=predictions))
    found = measure(train, labels, test, answers)
    assert all(np.isnan(getattr(found, name)) for name in NAMES)


@pytest.mark.usefixtures("own_errors")
def test_bad_input_is_refused():
    train, labels, test, answers, predictions = draw()

    def measure(train=train, labels=labels, test=test, answers=answers, **more):
        return held_out_collapse(train, labels, test, answers, **{"num_classes": 4, **more})

    with pytest.raises(ValueError, match=r"`train_labels` must .* class"):
        measure(num_classes=5)
    with pytest.raises(ValueError, match="`features` must have shape"):
        measure(test=test[:, :3])
    with pytest.raises(ValueError, match="`radius` must be finite and > 0, but is 0"):
        measure(radius=0.0)
    with pytest.raises(ValueError, match="`predictions` must"):
        measure(predictions=predictions + 4)
    with pytest.raises(ValueError, match="`features` must be finite"):
        measure(test=np.where(test > 1, np.inf, test))
    with pytest.raises(ValueError, match=r"`train` must have seen every class, but not \[0, 1, 2, 3\]"):
        HeldOutAccumulator.about(CollapseAccumulator.init(num_classes=4, feature_dim=7))


@pytest.mark.usefixtures("own_errors")
def test_shards_about_different_means_do_not_merge():
    train, labels, *_ = draw(dtype="float32")
    first = CollapseAccumulator.init(num_classes=4, feature_dim=7).update(train, labels)
    other = first.update(train + 1, labels)
    with pytest.raises(ValueError, match="must have the same class means"):
        HeldOutAccumulator.about(first).merge(HeldOutAccumulator.about(other))
    with pytest.raises(ValueError, match="must have the same radius"):
        HeldOutAccumulator.about(first).merge(HeldOutAccumulator.about(first, radius=0.2))


def test_train_means_that_coincide_up_to_rounding_give_nan():
    """Their sums over unequal classes are rounded differently, and a ratio of that is 1e30."""
    labels = np.concatenate([np.zeros(5000, int), [1, 2, 3]])
    train = np.full((5003, 3), 0.1, np.float32)
    found = held_out_collapse(train, labels, train + np.float32(0.5), labels, num_classes=4, predictions=labels)
    assert all(np.isnan(getattr(found, name)) for name in NAMES)
    # Means that differ by ten roundings of the features are apart.
    train[-1] *= np.float32(1 + 2e-6)
    assert np.isfinite(held_out_collapse(train, labels, train, labels, num_classes=4).strong)


@pytest.mark.parametrize("bad", [-1, 4, 99])
def test_a_prediction_out_of_range_that_only_a_program_sees_gives_nan(bad):
    *data, predictions = draw()
    measure = jax.jit(lambda guesses: held_out_collapse(*data, num_classes=4, predictions=guesses))
    assert np.isfinite(measure(predictions).prediction_mismatch)
    predictions[3] = bad
    found = measure(predictions)
    assert np.isnan(found.prediction_mismatch)
    assert np.isfinite(found.label_mismatch)
