"""Ridge probe against a literal reference and its invariances; probes by name; every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from nctheory.metrics import probes, transfer
from nctheory.metrics.probes import SCALINGS, probe_accuracies, ridge_probe_accuracy


def _blobs(seed, num_classes=3, per_class=40, dim=5, spread=2.0):
    generator = np.random.default_rng(seed)
    means = 2.0 * generator.standard_normal((num_classes, dim))
    labels = np.repeat(np.arange(num_classes), per_class)
    draw = lambda: means[labels] + spread * generator.standard_normal((labels.size, dim))  # noqa: E731
    return draw(), labels, draw(), labels


def _reference(train, labels, test, truth, strength, scaling):
    """Ridge of scikit-learn, intercept included; None where the two largest outputs nearly tie."""
    centred = train - train.mean(axis=0)
    scale = {"global": np.sqrt((centred**2).mean(axis=0).sum()), "per_feature": centred.std(axis=0), "none": 1.0}
    used, held_out = centred / scale[scaling], (test - train.mean(axis=0)) / scale[scaling]
    penalty = strength * (len(train) if scaling == "none" else np.trace(used.T @ used) / train.shape[1])
    model = Ridge(alpha=penalty).fit(used, np.eye(labels.max() + 1)[labels])
    outputs = model.predict(held_out)
    ordered = np.sort(outputs, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-9
    return float(np.mean(np.argmax(outputs, axis=1) == truth))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("dim", "strength"), [(5, 1e-3), (5, 3.0), (200, 1e-3)])
def test_ridge_equals_scikit_learn_in_both_forms(scaling, dim, strength):
    data = _blobs(dim, dim=dim, spread=4.0)
    # Columns of unlike scales, so that the scalings differ.
    columns = np.geomspace(0.3, 3, dim)
    data = (data[0] * columns, data[1], data[2] * columns, data[3])
    expected = _reference(*data, strength, scaling)
    found = float(ridge_probe_accuracy(*data, regularisation=strength, scaling=scaling))
    # One sample of 120 may lie at a boundary in single precision.
    allowed = 0 if jax.dtypes.canonicalize_dtype(np.float64) == np.float64 else 1.5 / 120
    assert abs(found - expected) <= allowed
    # Above chance and not perfect: the comparison can fail.
    assert 0.35 < expected < 1


def test_scalings_differ_where_one_direction_is_small():
    """What distinguishes the classes is a thousandth of the total: one scale loses it, a scale a feature does not."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 4
    coarse = np.sign(labels - 1.5)[:, None] * np.ones((1, 20))
    fine = 1e-3 * np.where(labels % 2, 1.0, -1.0)[:, None] * np.ones((1, 1))
    features = np.concatenate([coarse + 0.01 * generator.standard_normal((400, 20)), fine], axis=1)
    mixed = np.random.default_rng(1).permutation(400)
    features, labels = features[mixed], labels[mixed]
    halves = (features[:200], labels[:200], features[200:], labels[200:])
    by_one, by_each = (float(ridge_probe_accuracy(*halves, scaling=name)) for name in ("global", "per_feature"))
    assert by_each == 1.0
    assert by_one < 0.7


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_global_scaling_ignores_rotation_scale_and_shift(seed, scale, shift):
    train, labels, test, truth = _blobs(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0]
    moved = [scale * (part @ rotation + shift) for part in (train, test)]
    original = float(ridge_probe_accuracy(train, labels, test, truth))
    # Rounding may flip a sample or two that lie on a boundary.
    assert abs(float(ridge_probe_accuracy(moved[0], labels, moved[1], truth)) - original) <= 2.5 / 120
    columns = np.geomspace(0.1, 10, 5)
    each = [
        float(ridge_probe_accuracy(train * c, labels, test * c, truth, scaling="per_feature")) for c in (1, columns)
    ]
    assert abs(each[0] - each[1]) <= 2.5 / 120


def test_jit_vmap_and_a_loop_agree():
    sets = [_blobs(seed) for seed in range(3)]
    stacked = [jnp.asarray(np.stack(each)) for each in zip(*sets, strict=True)]

    def score(*data):
        return ridge_probe_accuracy(*data, num_classes=3)

    batched = jax.jit(jax.vmap(score))(*stacked)
    mapped = jax.lax.map(lambda data: score(*data), tuple(stacked))
    alone = np.array([float(ridge_probe_accuracy(*each)) for each in sets])
    np.testing.assert_allclose(batched, alone, atol=1.5 / 120)
    np.testing.assert_allclose(mapped, alone, atol=1.5 / 120)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_low_precision_and_far_offsets(dtype):
    train, labels, test, truth = _blobs(4, spread=0.2)
    data = (jnp.asarray(train, dtype), jnp.asarray(labels), jnp.asarray(test, dtype), jnp.asarray(truth))
    assert float(ridge_probe_accuracy(*data)) == 1.0
    far = (train.astype(np.float32) + np.float32(1e4), labels, test.astype(np.float32) + np.float32(1e4), truth)
    assert float(ridge_probe_accuracy(*far)) == 1.0


def test_degenerate_features():
    train, labels, test, truth = _blobs(5)
    for value in (0.0, 1e4 / 3):
        assert np.isnan(ridge_probe_accuracy(np.full_like(train, value), labels, test, truth))
        assert all(
            np.isnan(each) for each in probe_accuracies(np.full_like(train, value), labels, test, truth).values()
        )
    # A column without spread changes nothing.
    wide = [np.concatenate([part, np.full((120, 1), 7.0)], axis=1) for part in (train, test)]
    plain, padded = (
        float(ridge_probe_accuracy(*data, scaling="per_feature"))
        for data in ((train, labels, test, truth), (wide[0], labels, wide[1], truth))
    )
    assert abs(plain - padded) <= 1.5 / 120
    # A test label that was never seen is missed; gaps are allowed.
    seen = float(ridge_probe_accuracy(train, labels * 2, test, truth * 2))
    assert seen > 0.5
    assert float(ridge_probe_accuracy(train, labels * 2, test, truth * 2 + 1)) == 0.0
    bad = jax.jit(lambda x: ridge_probe_accuracy(x, labels, test, truth, num_classes=3))(np.full_like(train, np.nan))
    assert np.isnan(bad)


@pytest.mark.parametrize("shift", [-1, 3, 30])
def test_labels_out_of_range_that_only_a_program_sees_give_nan(shift):
    train, labels, test, truth = _blobs(5)
    score = jax.jit(lambda y, z: ridge_probe_accuracy(train, y, test, z, num_classes=3))
    assert float(score(labels, truth)) > 0.5
    assert np.isnan(score(labels + shift, truth))
    assert np.isnan(score(labels, np.where(np.arange(len(truth)) == 7, truth + 3 * shift, truth)))


def test_probes_by_name_are_the_functions():
    data = _blobs(6)
    found = probe_accuracies(*data)
    assert list(found) == ["ridge", "ridge_standardised", "logistic", "knn", "nearest_center"]
    assert found["logistic"] == transfer.linear_probe_accuracy(*data)
    assert found["knn"] == transfer.knn_accuracy(*data, num_neighbors=5)
    assert found["nearest_center"] == transfer.nearest_center_accuracy(*data)
    assert found["ridge"] == pytest.approx(_reference(*data, 1e-3, "global"), abs=1.5 / 120)
    assert found["ridge_standardised"] == pytest.approx(_reference(*data, 1e-3, "per_feature"), abs=1.5 / 120)
    assert set(probe_accuracies(*data, probes=["knn"])) == {"knn"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": np.zeros(4)}, r"Argument `train_features` must have shape \(N, d\)"),
        ({"test_features": np.zeros((4, 3))}, r"Argument `test_features` must have shape \(M, 5\)"),
        ({"train_features": np.full((120, 5), np.nan)}, r"Argument `train_features` must be finite, but has 600 NaN"),
        (
            {"train_features": np.zeros((120, 5), int)},
            r"Argument `train_features` must hold real floating-point numbers, but has dtype int64",
        ),
        ({"train_features": [[1.0] * 5] * 120}, "must hold real floating-point numbers, but is no array but a list"),
        ({"test_features": np.zeros((0, 5))}, r"Argument `test_features` must not be empty"),
        ({"train_labels": np.zeros(119, int)}, r"Argument `train_labels` must have shape \(120,\)"),
        ({"test_labels": np.zeros(120)}, r"Argument `test_labels` must hold integers"),
        ({"train_labels": np.full(120, -1)}, r"Argument `train_labels` must lie in 0"),
        ({"num_classes": 2}, r"Argument `train_labels` must lie in 0..1, but spans 0..2"),
        ({"regularisation": 0.0}, r"Argument `regularisation` must be finite and > 0"),
        ({"scaling": "whiten"}, r"Argument `scaling` must be one of \['global', 'none', 'per_feature'\]"),
    ],
)
def test_bad_input(change, message, own_errors):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    good = dict(zip(names, _blobs(7), strict=True))
    with pytest.raises(ValueError, match=message):
        ridge_probe_accuracy(**(good | change))


def test_bad_names_and_tracing_without_classes(own_errors):
    data = _blobs(8)
    with pytest.raises(ValueError, match=r"Argument `probes` must be one of .*'knn'"):
        probe_accuracies(*data, probes=["svm"])
    with pytest.raises(ValueError, match="Argument `num_classes` must be given for labels under tracing"):
        jax.jit(ridge_probe_accuracy)(*data)
    assert set(probes.PROBES) == set(probe_accuracies(*data))


@pytest.mark.parametrize("scaling", ["global", "per_feature"])
@pytest.mark.parametrize("dim", [5, 150])
@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_float32_features_of_any_scale(scaling, dim, scale):
    train, labels, test, truth = _blobs(9, dim=dim, spread=4.0)
    columns = np.ones(dim)
    if scaling == "per_feature":
        columns[::2] = scale
    else:
        columns[:] = scale
    plain, scaled = (
        float(ridge_probe_accuracy(np.float32(train * c), labels, np.float32(test * c), truth, scaling=scaling))
        for c in (1.0, columns)
    )
    assert plain > 0.5
    assert abs(scaled - plain) <= 1.5 / 120


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_a_fixed_penalty_on_features_of_any_scale_gives_a_number(scale):
    train, labels, test, truth = (np.float32(x * scale) if x.dtype == float else x for x in _blobs(9))
    found = float(ridge_probe_accuracy(train, labels, test, truth, scaling="none"))
    # Without weight the penalty leaves least squares; with all of it, the class that is most frequent.
    assert found > 0.5 if scale > 1 else np.isfinite(found)


def test_fewer_samples_than_neighbours_leave_the_other_probes():
    train, labels, test, truth = _blobs(10)
    few = [0, 40, 80, 1]
    found = probe_accuracies(train[few], labels[few], test, truth)
    assert np.isnan(found["knn"])
    assert all(np.isfinite(value) for name, value in found.items() if name != "knn")
