"""Collapse from a kernel against the metrics of features with that Gram matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import metrics
from nctheory.theory.kernel_collapse import kernel_collapse, relative_nc1

X64 = jax.config.jax_enable_x64
# Gram matrices square the condition number: float64 keeps 10 of 16 digits here, float32 three of seven.
RTOL = 1e-9 if X64 else 5e-3


def problem(seed=0, num_fine=6, dim=9, spread=0.7, sizes=(4, 7, 5, 6, 3, 5)):
    rng = np.random.default_rng(seed)
    fine = np.repeat(np.arange(num_fine), sizes)
    features = rng.normal(size=(num_fine, dim))[fine] + spread * rng.normal(size=(len(fine), dim))
    order = rng.permutation(len(fine))
    return features[order], (fine // 2)[order], fine[order]


def gram(features):
    return features @ features.T


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 3.0), st.floats(-3.0, 3.0))
def test_equals_the_metrics_of_the_features(seed, spread, offset):
    features, labels, fine = problem(seed, spread=spread)
    features = features + offset
    found = kernel_collapse(gram(features), labels, num_classes=3, fine_labels=fine, num_fine=6)
    truth = metrics.collapse_metrics(features, labels, num_classes=3)
    detail = metrics.fine_structure(features, labels, fine, num_classes=3, num_fine=6)
    for name in ("nc1", "within_between_ratio", "cdnv"):
        np.testing.assert_allclose(getattr(found, name), getattr(truth, name), rtol=RTOL * (1 + offset**2))
    for name in ("ratio", "separation", "coarse_ratio", "same_label_distance"):
        np.testing.assert_allclose(getattr(found.structure, name), getattr(detail, name), rtol=RTOL * (1 + offset**2))
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    distances = np.sum((means[:, None] - means[None]) ** 2, axis=-1)
    np.testing.assert_allclose(found.class_distances, distances, atol=RTOL * (1 + offset**2))


def test_nc1_against_a_literal_pseudo_inverse_in_float64():
    features, labels, _ = problem(3)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    within = (features - means[labels]).T @ (features - means[labels]) / len(labels)
    centred = means - means.mean(axis=0)
    truth = np.trace(within @ np.linalg.pinv(centred.T @ centred / 3)) / 3
    found = kernel_collapse(gram(features), labels, num_classes=3).nc1
    np.testing.assert_allclose(found, truth, rtol=RTOL)


def test_explicit_rank_where_features_have_few_dimensions():
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(4), 5)
    features = rng.normal(size=(4, 2))[labels] + 0.3 * rng.normal(size=(20, 2))
    truth = metrics.collapse_metrics(features, labels, num_classes=4).nc1
    found = kernel_collapse(gram(features), labels, num_classes=4, feature_dim=2).nc1
    np.testing.assert_allclose(found, truth, rtol=RTOL)
    # Without the dimension three directions are due and one is missing: undefined rather than understated.
    assert np.isnan(kernel_collapse(gram(features), labels, num_classes=4).nc1)


def test_limits_and_undefined():
    labels = np.repeat(np.arange(3), 4)
    means = np.eye(3)[labels]
    collapsed = kernel_collapse(gram(means), labels, num_classes=3)
    for name in ("nc1", "within_between_ratio", "cdnv"):
        assert abs(float(getattr(collapsed, name))) < 1e-6
    np.testing.assert_allclose(collapsed.class_distances, 2 * (1 - np.eye(3)), atol=1e-6)
    assert np.isnan(collapsed.structure.ratio)
    flat = kernel_collapse(np.ones((12, 12)), labels, num_classes=3)
    assert all(np.isnan(getattr(flat, name)) for name in ("nc1", "within_between_ratio", "cdnv"))
    # Equal samples far from the origin: what is left after centring is rounding, and no number comes of it.
    far = kernel_collapse(np.full((12, 12), np.pi * 1e5), labels, num_classes=3)
    assert np.isnan(far.nc1)
    assert np.isnan(far.within_between_ratio)
    # Within-class noise alone: the distances of class means are the reciprocal class sizes.
    noise = kernel_collapse(np.eye(12), labels, num_classes=3)
    assert float(noise.within_between_ratio) == pytest.approx(0.75 / ((1 / 4) * (2 / 3)), rel=RTOL)


def test_factor_and_constant_drop_out():
    features, labels, fine = problem(5)
    options = {"num_classes": 3, "fine_labels": fine, "num_fine": 6}
    plain = kernel_collapse(gram(features), labels, **options)
    moved = kernel_collapse(2.5 * gram(features) + 0.7, labels, **options)
    for name in ("nc1", "within_between_ratio", "cdnv"):
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name), rtol=RTOL)
    np.testing.assert_allclose(moved.class_distances, 2.5 * np.asarray(plain.class_distances), rtol=RTOL, atol=1e-6)


def test_relative_nc1():
    features, labels, _ = problem(6)
    assert float(relative_nc1(gram(features), features, labels, num_classes=3)) == pytest.approx(1.0, rel=RTOL)
    # Far from the origin too.
    shifted = relative_nc1(gram(features), features + 30.0, labels, num_classes=3)
    assert float(shifted) == pytest.approx(1.0, rel=1e-6 if X64 else 5e-2)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])[labels]
    halved = means + (features - means) / 2
    found = relative_nc1(gram(halved), features, labels, num_classes=3)
    assert float(found) == pytest.approx(0.25, rel=RTOL)


def test_relative_nc1_of_data_with_few_dimensions():
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(4), 5)
    features = rng.normal(size=(4, 2))[labels] + 0.3 * rng.normal(size=(20, 2))
    found = relative_nc1(gram(features), features, labels, num_classes=4, feature_dim=2)
    assert float(found) == pytest.approx(1.0, rel=RTOL)
    assert np.isnan(relative_nc1(gram(features), features, labels, num_classes=4))


def test_relative_nc1_of_collapsed_data_is_nan():
    features, labels, _ = problem(6)
    for offset in (0.0, 1.0, 7 / 3):
        means = np.random.default_rng(7).normal(size=(3, 9))[labels] + offset
        assert np.isnan(relative_nc1(gram(features), means, labels, num_classes=3))
        # Spread of a thousandth is above rounding in either precision.
        nearly = means + 1e-3 * np.random.default_rng(8).normal(size=means.shape)
        assert float(relative_nc1(gram(features), nearly, labels, num_classes=3)) > 1


@pytest.mark.parametrize("bad", [-1, 3, 99])
def test_labels_out_of_range_that_only_a_program_sees_give_nan(bad):
    features, labels, fine = problem(9)
    options = {"num_classes": 3, "num_fine": 6}
    measure = jax.jit(lambda y, z: kernel_collapse(gram(features), y, fine_labels=z, **options))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(measure(labels, fine)))
    wrong = np.where(np.arange(len(labels)) == 4, bad, labels)
    found = measure(wrong, fine)
    for name in ("nc1", "within_between_ratio", "cdnv"):
        assert np.isnan(getattr(found, name)), name
    assert np.isnan(found.structure.ratio)
    wrong_fine = measure(labels, np.where(np.arange(len(labels)) == 4, 2 * bad, fine))
    assert np.isnan(wrong_fine.structure.ratio)
    assert np.isfinite(wrong_fine.nc1)


def test_transformations_and_dtype():
    stacked = jnp.stack([jnp.asarray(gram(problem(seed)[0])) for seed in (7, 8)])
    labels = jnp.asarray(np.sort(problem(7)[1]))

    def nc1(kernel):
        return kernel_collapse(kernel, labels, num_classes=3).nc1

    mapped = jax.jit(jax.vmap(nc1))(stacked)
    np.testing.assert_allclose(mapped, [nc1(stacked[0]), nc1(stacked[1])], rtol=RTOL)
    assert nc1(stacked[0].astype(jnp.float32)).dtype == jnp.float32
    step = 1e-6 if X64 else 1e-2
    direction = jnp.asarray(gram(problem(9)[0])).astype(stacked.dtype)
    slope = (nc1(stacked[0] + step * direction) - nc1(stacked[0] - step * direction)) / (2 * step)
    gradient = jnp.sum(jax.grad(nc1)(stacked[0]) * direction)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5 if X64 else 5e-2)


def test_errors(own_errors):
    labels = np.array([0, 0, 1, 1])
    good = np.eye(4)
    for arguments, options, message in (
        ((np.ones((4, 3)), labels), {}, r"`kernel` must have shape \(4, 4\)"),
        ((np.full((4, 4), np.inf), labels), {}, "`kernel` must be finite"),
        ((good, labels[:3]), {}, r"`labels` must have shape \(4,\)"),
        ((good, labels), {"num_classes": 3}, "`labels` must contain every class"),
        ((good, labels), {"num_classes": 1}, "`num_classes` must be an integer >= 2"),
        ((good, labels), {"feature_dim": 0}, "`feature_dim` must be an integer >= 1"),
        ((good, labels), {"fine_labels": np.array([0, 1, 1, 2]), "num_fine": 3}, "within one label"),
        ((good, labels), {"fine_labels": labels}, "`num_fine` must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_collapse(*arguments, **({"num_classes": 2} | options))
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(4, d\)"):
        relative_nc1(good, np.ones((3, 2)), labels, num_classes=2)
    with pytest.raises(ValueError, match=r"`kernel` must have shape \(N, N\), but has shape \(\)"):
        relative_nc1(1.0, np.ones((4, 2)), labels, num_classes=2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_measured_in_single(dtype):
    features, labels, _ = problem(10)
    # Numbers that half precision holds exactly.
    features = np.round(4 * features) / 4
    kernel = gram(features[:, :1])
    rounded = jnp.asarray(kernel, dtype)
    found = kernel_collapse(rounded, labels, num_classes=3, feature_dim=1).nc1
    assert found.dtype == jnp.float32
    single = kernel_collapse(rounded.astype(jnp.float32), labels, num_classes=3, feature_dim=1).nc1
    np.testing.assert_array_equal(found, single)
    assert np.isfinite(single)
