"""Balanced one-layer cross-entropy: closed form against direct minimisation, its gradient, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import theory
from nctheory.theory.ce_ufm import ce_ufm_minimizer
from tests.theory.ce_brute_force import gradient_norm, train

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 2e-5


@pytest.mark.parametrize("bias", ["none", "free", 0.01])
@pytest.mark.parametrize(
    ("num_classes", "n", "decay_w", "decay_h"), [(3, 2, 0.02, 0.005), (4, 3, 0.005, 0.003), (3, 2, 0.9, 0.7)]
)
def test_against_direct_minimisation(bias, num_classes, n, decay_w, decay_h):
    record = ce_ufm_minimizer(num_classes, n, weight_decay=decay_w, feature_decay=decay_h, bias=bias)
    bias_decay = {"none": None, "free": 0.0}.get(bias, bias)
    run = train([n] * num_classes, [decay_w], decay_h, seed=0, dim=num_classes - 1, bias_decay=bias_decay)
    assert float(record.loss) == pytest.approx(run.loss, abs=TIGHT)
    # Flat to second order: a gradient of 1e-11 over curvatures >= 1e-3 leaves Gram errors far below 1e-5.
    np.testing.assert_allclose(record.weight_gram, run.head @ run.head.T, atol=1e-5)
    np.testing.assert_allclose(record.feature_gram, run.class_features @ run.class_features.T, atol=1e-5)
    np.testing.assert_allclose(run.bias - run.bias.mean(), 0, atol=1e-6)
    assert bool(record.is_trivial) == (num_classes**2 * n * decay_w * decay_h >= 1)
    # A wrong constant in tau is rejected.
    if not record.is_trivial:
        other = ce_ufm_minimizer(num_classes, n, weight_decay=1.01 * decay_w, feature_decay=decay_h)
        assert abs(float(other.loss) - run.loss) > 1e-4


@pytest.mark.parametrize("feature_dim", [None, 4, 7])
def test_gradient_vanishes_at_the_representative(feature_dim):
    record = ce_ufm_minimizer(5, 7, weight_decay=3e-3, feature_decay=2e-4, feature_dim=feature_dim)
    size = gradient_norm([record.weight], record.class_features, record.bias, [7] * 5, [3e-3], 2e-4)
    assert size < (1e-12 if X64 else 1e-6)
    assert record.weight.shape == (5, feature_dim or 5)
    np.testing.assert_allclose(record.weight @ record.class_features.T, record.logits, atol=1e-12 if X64 else 1e-5)
    np.testing.assert_allclose(record.weight @ record.weight.T, record.weight_gram, rtol=1e-4, atol=1e-12)


def test_record_is_consistent():
    """Norms by hand, K = 4, n = 5, lambda_W = 0.01, lambda_H = 0.001; layers share their penalty."""
    record = ce_ufm_minimizer(4, 5, weight_decay=0.01, feature_decay=0.001)
    tau = np.sqrt(5e-5)
    rho = np.log(1 / tau - 3)
    rel = 1e-12 if X64 else 1e-5
    assert float(record.logit_scale) == pytest.approx(rho, rel=rel)
    assert float(record.loss) == pytest.approx(np.log1p(3 * np.exp(-rho)) + 3 * tau * rho, rel=rel)
    np.testing.assert_allclose(record.class_weight_norms**2, rho * 0.75 * np.sqrt(0.5), rtol=rel)
    np.testing.assert_allclose(record.class_feature_norms**2, rho * 0.75 * np.sqrt(2.0), rtol=rel)
    np.testing.assert_allclose(0.01 * record.layer_norms[0], 0.001 * record.layer_norms[1], rtol=rel)
    np.testing.assert_allclose(record.singular_values, [rho, rho, rho, 0], rtol=rel)
    free = theory.free_features_minimizer(4, 5, weight_decay=0.01, feature_decay=0.001, loss="cross_entropy")
    np.testing.assert_allclose(record.weight_gram, free.weight_gram, rtol=rel, atol=rel)


@pytest.mark.parametrize("decay", [0.01, 5.0])
def test_modes_of_the_layers(decay):
    record = ce_ufm_minimizer(4, 5, weight_decay=decay, feature_decay=0.01, feature_dim=6)
    tolerance = 1e-12 if X64 else 1e-5
    for values, matrix in zip(
        record.layer_singular_values, (record.weight, np.sqrt(5) * np.asarray(record.class_features)), strict=True
    ):
        np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=tolerance, atol=5 * tolerance)
    np.testing.assert_allclose(np.sum(record.layer_singular_values**2, axis=1), record.layer_norms, rtol=tolerance)
    np.testing.assert_array_equal(record.active, np.asarray(record.singular_values) > 0)
    assert np.asarray(record.active).tolist() == [decay < 1] * 3 + [False]
    np.testing.assert_array_equal(record.active_classes, np.linalg.norm(record.weight, axis=1) > 0)


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_threshold(factor):
    decay = factor / (16 * 3 * 0.1)
    record = ce_ufm_minimizer(4, 3, weight_decay=decay, feature_decay=0.1, bias="free")
    assert bool(record.is_trivial) == (factor > 1)
    assert float(record.threshold_ratio) == pytest.approx(np.sqrt(factor), rel=1e-5)
    assert (float(record.logit_scale) > 0) == (factor < 1)
    run = train([3] * 4, [decay], 0.1, seed=1, dim=4, bias_decay=0.0)
    assert (np.abs(run.head).max() > 1e-3) == (factor < 1)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(1, 200),
    st.floats(-7, 1),
    st.floats(-7, 1),
    st.sampled_from(["none", "free", 0.5]),
)
def test_whole_argument_space(num_classes, n, log_w, log_h, bias):
    record = ce_ufm_minimizer(num_classes, n, weight_decay=10**log_w, feature_decay=10**log_h, bias=bias)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(record))
    assert float(record.loss) <= float(record.trivial_loss) * (1 + 1e-6)
    assert float(record.loss) > 0


def test_transformations_and_dtype():
    decays = jnp.array([1e-3, 1e-2, 2.0])
    counts = jnp.array([1, 5, 3])

    def solve(n, decay):
        return ce_ufm_minimizer(3, n, weight_decay=decay, feature_decay=0.01)

    mapped = jax.jit(jax.vmap(solve))(counts, decays)
    for i in range(3):
        alone = solve(int(counts[i]), decays[i])
        np.testing.assert_allclose(mapped.loss[i], alone.loss, rtol=1e-6)
        np.testing.assert_allclose(mapped.weight[i], alone.weight, rtol=1e-5, atol=1e-6)
    assert solve(2, jnp.float32(0.01)).loss.dtype == jnp.float32
    slope = jax.grad(lambda decay: solve(2, decay).loss)(0.02)
    # Envelope theorem: dL*/d lambda_W = |W|^2/2.
    np.testing.assert_allclose(slope, solve(2, 0.02).layer_norms[0] / 2, rtol=1e-9 if X64 else 1e-4)


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    for arguments, options, message in [
        ((1, 3), good, "`num_classes` must be an integer >= 2"),
        ((3, 0), good, "`samples_per_class` must be finite and >= 1"),
        ((3, 2.5), good, "`samples_per_class` must be a whole number"),
        ((3, 3), good | {"weight_decay": 0.0}, "`weight_decay` must be finite and > 0"),
        ((3, 3), good | {"weight_decay": [0.1, 0.1]}, "`weight_decay` must have shape"),
        ((3, 3), good | {"feature_decay": -1.0}, "`feature_decay` must be finite and > 0"),
        ((3, 3), good | {"bias": "some"}, "`bias` must be one of"),
        ((3, 3), good | {"bias": -0.1}, "`bias` must be finite and > 0"),
        ((3, 3), good | {"bias": 0}, "`bias` must be finite and > 0"),
        ((3, np.array([2, 3])), good, r"`samples_per_class` must have shape \(\)"),
        ((5, 3), good | {"feature_dim": 3}, "`feature_dim` must be >= num_classes - 1 = 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            ce_ufm_minimizer(*arguments, **options)
