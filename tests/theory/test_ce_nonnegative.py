"""Cross-entropy with non-negative features: closed form against bounded minimisation, thresholds, gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_nonnegative import ce_nonnegative_minimizer
from tests.theory.ce_brute_force import loss_and_gradient, train

X64 = jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("sizes", "decay_w", "decay_h"),
    [([5, 2], 0.02, 0.01), ([6, 3, 1], 0.01, 0.01), ([6, 3, 1], 0.1, 0.07), ([4, 4, 2, 1], 5e-3, 2e-3)],
)
def test_against_direct_minimisation(sizes, decay_w, decay_h):
    record = ce_nonnegative_minimizer(sizes, weight_decay=decay_w, feature_decay=decay_h)
    runs = [train(sizes, [decay_w], decay_h, seed=s, dim=len(sizes) + 1, nonnegative=True) for s in range(4)]
    best = min(runs, key=lambda run: run.loss)
    assert best.loss > float(record.loss) - (1e-10 if X64 else 1e-6)
    assert best.loss == pytest.approx(float(record.loss), rel=1e-8 if X64 else 1e-5)
    # The bounded solver stops at a projected gradient of 1e-11; curvatures are >= 1e-4.
    np.testing.assert_allclose(best.head @ best.head.T, record.weight_gram, atol=1e-5)
    np.testing.assert_allclose(best.class_features @ best.class_features.T, record.feature_gram, atol=1e-5)
    np.testing.assert_allclose(best.head @ best.class_features.T, record.logits, atol=1e-5)
    # The sign constraint binds: without it the minimum is lower (for K >= 3 ETF features have obtuse angles).
    if len(sizes) > 2:
        free = ce_ufm_convex(sizes, weight_decay=decay_w, feature_decay=decay_h)
        assert float(free.loss) < float(record.loss) - 1e-6


def test_first_order_conditions_at_the_representative():
    """Zero gradient in W; in H zero where H > 0 and non-negative where H = 0."""
    sizes = np.array([9, 4, 2, 1])
    record = ce_nonnegative_minimizer(sizes, weight_decay=0.0733, feature_decay=0.06)
    assert np.asarray(record.active).tolist() == [True, True, True, False]
    features = np.repeat(np.asarray(record.class_features, np.float64).T, sizes, axis=1)
    value, by_weight, by_features, _ = loss_and_gradient(
        [np.asarray(record.weight, np.float64)], features, np.zeros(4), sizes, [0.0733], 0.06, None
    )
    tolerance = 1e-12 if X64 else 1e-6
    assert np.abs(by_weight[0]).max() < tolerance
    assert np.abs(by_features[features > 0]).max() < tolerance
    assert by_features.min() > -tolerance
    assert value == pytest.approx(float(record.loss), rel=1e-12 if X64 else 1e-5)
    np.testing.assert_allclose(record.layer_norms[0] * 0.0733, record.layer_norms[1] * 0.06, rtol=1e-5)


@pytest.mark.parametrize("decay", [1e-3, 0.0733, 10.0])
def test_singular_values_and_bias(decay):
    """All classes active, three of four, none: the values of the explicit matrices, zeros exact."""
    sizes = np.array([9, 4, 2, 1])
    record = ce_nonnegative_minimizer(sizes, weight_decay=decay, feature_decay=0.06)
    all_features = np.repeat(np.asarray(record.class_features).T, sizes, axis=1)
    tolerance = 1e-12 if X64 else 1e-5
    for values, matrix in [
        (record.singular_values, record.logits),
        (record.layer_singular_values[0], record.weight),
        (record.layer_singular_values[1], all_features),
    ]:
        expected = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(values, expected, atol=tolerance * (1 + expected[0]))
    np.testing.assert_allclose(np.sum(record.layer_singular_values**2, axis=1), record.layer_norms, rtol=tolerance)
    num_active = {1e-3: 4, 0.0733: 3, 10.0: 0}[decay]
    assert int(record.active.sum()) == num_active
    np.testing.assert_array_equal(record.active_classes, record.active)
    assert int((record.singular_values > 0).sum()) == min(num_active, 3)
    assert int((record.layer_singular_values[1] > 0).sum()) == num_active
    np.testing.assert_array_equal(record.bias, np.zeros(4))


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_threshold(factor):
    """The smallest class vanishes at n = N^2 lambda_W lambda_H K/(K-1), not at N^2 lambda_W lambda_H."""
    sizes = [6, 4, 2]
    decay = factor * 2 * (2 / 3) / 144 / 0.1
    record = ce_nonnegative_minimizer(sizes, weight_decay=decay, feature_decay=0.1)
    assert bool(record.active[2]) == (factor < 1)
    assert float(record.size_threshold) == pytest.approx(2 * factor, rel=1e-5)
    runs = [train(sizes, [decay], 0.1, seed=s, dim=9, nonnegative=True) for s in range(12)]
    run = min(runs, key=lambda run: run.loss)
    assert (np.linalg.norm(run.class_features[2]) > 1e-2) == (factor < 1)
    assert run.loss == pytest.approx(float(record.loss), rel=1e-8 if X64 else 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 5, 12]), st.integers(0, 10**6), st.floats(-7, 1), st.floats(-7, 1))
def test_whole_argument_space(k, seed, log_w, log_h):
    sizes = np.random.default_rng(seed).integers(1, 201, k)
    record = ce_nonnegative_minimizer(sizes, weight_decay=10**log_w, feature_decay=10**log_h)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(record))
    assert 0 < float(record.loss) <= float(record.trivial_loss) * (1 + 1e-6)
    assert bool(record.is_trivial) == (float(jnp.max(record.margins)) == 0)
    order = np.argsort(sizes)
    assert np.all(np.diff(np.asarray(record.margins)[order]) >= 0)


def test_transformations_and_dtype():
    sizes = jnp.array([[5, 3, 1], [2, 2, 2]])
    decays = jnp.array([0.01, 3.0])

    def solve(sizes, decay):
        return ce_nonnegative_minimizer(sizes, weight_decay=decay, feature_decay=0.02)

    mapped = jax.jit(jax.vmap(solve))(sizes, decays)
    for i in range(2):
        np.testing.assert_allclose(mapped.loss[i], solve(sizes[i], decays[i]).loss, rtol=1e-6)
        np.testing.assert_allclose(mapped.weight[i], solve(sizes[i], decays[i]).weight, atol=1e-5)
    assert solve(sizes[0], jnp.float32(0.01)).loss.dtype == jnp.float32


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    for sizes, options, message in [
        ([3], good, "`class_sizes` must hold at least 2 classes"),
        ([3, -1], good, "`class_sizes` must be finite and >= 1"),
        ([3, 1.5], good, "`class_sizes` must hold whole numbers"),
        ([3, 1], good | {"weight_decay": 0.0}, "`weight_decay` must be finite and > 0"),
        ([3, 1], good | {"feature_decay": float("nan")}, "`feature_decay` must be finite and > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ce_nonnegative_minimizer(sizes, **options)
