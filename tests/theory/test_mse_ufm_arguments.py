"""Deep linear unconstrained features, squared error: order, derivatives, transformations, precision, refusals."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import ArgumentError
from nctheory.theory.mse_ufm import mse_ufm_minimizer, mse_ufm_representative
from tests.theory.mse_direct import GRAM_FIELDS, RTOL, X64, smallest_fit, solve


def test_invariance_under_order():
    """Permuting the classes permutes rows and columns."""
    order = np.array([2, 0, 3, 1])
    sizes = np.array([17, 4, 9, 30])
    for bias, depth in (("none", 2), ("free", 2), (0.2, 1)):
        a = solve(sizes, [0.002] * depth, 0.001, bias)
        b = solve(sizes[order], [0.002] * depth, 0.001, bias)
        np.testing.assert_allclose(a.loss, b.loss, rtol=RTOL)
        scale = float(jnp.abs(a.weight_gram).max())
        for name in ("weight_gram", "feature_gram", "logits"):
            permuted = np.asarray(getattr(a, name))[np.ix_(order, order)]
            np.testing.assert_allclose(permuted, getattr(b, name), atol=RTOL * scale, err_msg=name)


@pytest.mark.slow
def test_derivative_of_the_optimal_loss():
    """Envelope theorem: dL*/d lambda_m = |W_m|^2/2, dL*/d lambda_H = |H|^2/2; no NaN from the dead modes."""
    for sizes, bias in (((30, 10, 1), "free"), ((10, 10, 10), 0.05)):
        decays = jnp.asarray([0.004, 0.008])

        def loss(decays, feature_decay, sizes=sizes, bias=bias):
            return mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=feature_decay, depth=2, bias=bias).loss

        record = mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=0.002, depth=2, bias=bias)
        slopes = jax.grad(loss, argnums=(0, 1))(decays, jnp.asarray(0.002))
        np.testing.assert_allclose(slopes[0], record.layer_norms / 2, rtol=1e-8 if X64 else 1e-3)
        np.testing.assert_allclose(slopes[1], record.feature_norm / 2, rtol=1e-8 if X64 else 1e-3)
    for sizes in ((9, 9, 9), (9, 5, 2)):  # one layer with a decayed bias takes either of two branches

        def one_layer(decay, sizes=sizes):
            return mse_ufm_minimizer(sizes, weight_decay=decay, feature_decay=0.01, bias=0.3).loss

        slope = jax.grad(one_layer)(jnp.asarray(0.01))
        record = solve(sizes, [0.01], 0.01, 0.3)
        np.testing.assert_allclose(slope, record.layer_norms[0] / 2, rtol=1e-8 if X64 else 1e-3)


@pytest.mark.parametrize("bias", ["free", *(pytest.param(each, marks=pytest.mark.slow) for each in ("none", 0.2))])
def test_transformations_and_dtype(bias):
    sizes = np.array([[30, 10, 5], [8, 8, 8], [100, 3, 1]])
    if bias == 0.2:
        sizes = np.array([[30] * 3, [8] * 3, [100] * 3])
    decays = np.array([[1e-3, 2e-3], [1e-2, 1e-3], [0.5, 0.5]])

    def one(sizes, decays):
        return mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=1e-3, depth=2, bias=bias)

    mapped = jax.jit(jax.vmap(one))(jnp.asarray(sizes), jnp.asarray(decays))
    for i in range(3):
        alone = one(sizes[i], decays[i])
        with jax.disable_jit(i == 0 and bias == "free"):  # slow: every operation by itself
            plain = one(jnp.asarray(sizes[i]), jnp.asarray(decays[i]))
        for name in ("loss", "is_trivial", "active", "fitted_fraction", "layer_norms", *GRAM_FIELDS):
            expected, scale = np.asarray(getattr(alone, name)), 1 + float(np.abs(alone.weight_gram).max())
            np.testing.assert_allclose(getattr(mapped, name)[i], expected, atol=RTOL * scale, err_msg=name)
            np.testing.assert_allclose(getattr(plain, name), expected, atol=RTOL * scale, err_msg=name)
    small = mse_ufm_minimizer(
        [3, 2], weight_decay=jnp.float32(0.01), feature_decay=0.01, bias=bias if bias != 0.2 else "none"
    )
    assert small.loss.dtype == jnp.float32
    assert small.mode_x.dtype == jnp.float32
    batch = jax.vmap(mse_ufm_representative)(mapped)
    np.testing.assert_allclose(
        batch.weights[1][0] ** 2, mse_ufm_representative(one(sizes[0], decays[0])).weights[1] ** 2, atol=RTOL * 10
    )


@pytest.mark.slow
def test_float32_against_float64():
    """Single precision keeps five digits across four decades of decay."""
    if not X64:
        pytest.skip("needs both precisions")
    rng = np.random.default_rng(0)
    for depth in (1, 6):
        for bias in ("none", "free"):
            decays = 10 ** rng.uniform(-6, -2, depth + 1)
            sizes = np.array([200, 50, 7, 1])
            wide = solve(sizes, decays[:-1], decays[-1], bias)
            narrow = mse_ufm_minimizer(
                sizes,
                weight_decay=decays[:-1].astype(np.float32),
                feature_decay=np.float32(decays[-1]),
                depth=depth,
                bias=bias,
            )
            assert narrow.loss.dtype == jnp.float32
            np.testing.assert_allclose(narrow.loss, wide.loss, rtol=1e-4)
            scale = float(jnp.abs(wide.weight_gram).max())
            np.testing.assert_allclose(narrow.weight_gram, wide.weight_gram, rtol=1e-4, atol=1e-4 * scale)


def test_uncovered_cases_are_nan_under_tracing_and_errors_outside(own_errors):
    def loss(sizes, depth):
        return mse_ufm_minimizer(sizes, weight_decay=0.01, feature_decay=0.01, depth=depth, bias=0.1).loss

    batch = jnp.asarray([[9, 9, 9], [9, 5, 2]])
    np.testing.assert_array_equal(jnp.isnan(jax.vmap(lambda s: loss(s, 2))(batch)), [False, True])
    np.testing.assert_array_equal(jnp.isnan(jax.vmap(lambda s: loss(s, 1))(batch)), [False, False])
    with pytest.raises(ValueError, match=r"`bias` must be .* unequal class sizes with depth 2"):
        loss(np.array([9, 5, 2]), 2)
    with pytest.raises(ValueError, match=r"`bias` must be .* a width of 2, below the 3 classes"):
        solve((9, 5, 2), [0.01], 0.01, 0.1, [2])
    with pytest.raises(ValueError, match=r"`bias` must be .* decays so strong"):
        solve((9, 5, 2), [0.1], 0.1, 0.1)
    solve((9, 9, 9), [0.1], 0.1, 0.1, [2])


# Every shape is compiled anew: a few shapes, and many values for each.
SHAPES = [
    (2, 1, "none", None),
    (5, 3, "none", [4, 3, 9]),
    (5, 1, "free", [2]),
    (5, 3, "free", None),
    (4, 1, "decayed", None),
    (4, 2, "decayed", [3, 6]),
]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES))
def test_whole_argument_space(data, shape):
    """Finite everywhere, never above the zero solution, thresholds obeyed, collapse in order of size."""
    num_classes, depth, bias, widths = shape
    sizes = data.draw(st.lists(st.integers(1, 200), min_size=num_classes, max_size=num_classes))
    dtype = data.draw(st.sampled_from([np.float64, np.float32])) if X64 else np.float32
    decays = np.array([10 ** data.draw(st.floats(-12, 1)) for _ in range(depth + 1)], dtype)
    if bias == "decayed":
        bias = dtype(10 ** data.draw(st.floats(-3, 3)))
        if depth > 1:
            sizes = [sizes[0]] * len(sizes)
    options = {"weight_decay": decays[:-1], "feature_decay": decays[-1], "depth": depth, "bias": bias}
    try:
        record = mse_ufm_minimizer(sizes, widths=widths, **options)
    except ArgumentError as error:
        refusal, record = str(error), None
    if record is None:
        assert "decays so strong" in refusal
        assert len(set(sizes)) > 1
        assert not isinstance(bias, str)
        assert smallest_fit(sizes, decays, bias) < 1e-12
        return
    assert record.loss.dtype == dtype
    leaves = jax.tree.leaves(record)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    assert float(record.loss) <= float(record.trivial_loss)
    assert float(record.loss) > 0
    active = np.asarray(record.active)
    assert bool(record.is_trivial) == (not active.any())
    assert (np.diff(active.astype(int)) <= 0).all()  # the largest modes survive
    assert active.sum() <= record.rank
    np.testing.assert_array_equal(active, (record.threshold_ratios < 1) & (np.arange(active.size) < record.rank))
    assert (np.asarray(record.fitted_fraction)[active] > (depth - 1) / depth - 1e-5).all()
    if bias == "free":
        np.testing.assert_allclose(record.bias, np.asarray(sizes) / np.sum(sizes), rtol=1e-5)
    if bias == "none":
        np.testing.assert_array_equal(record.active_classes, np.diag(record.weight_gram) > 0)


def test_ten_thousand_problems_in_one_call():
    """One vmapped call; a loose limit, as other programs may be running."""
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.integers(1, 200, (10000, 4)))
    decays, feature_decay = (jnp.asarray(10 ** rng.uniform(-4, 0, s)) for s in ((10000, 3), 10000))
    many = jax.jit(jax.vmap(lambda s, w, h: solve(s, w, h, "free")))
    jax.block_until_ready(many(sizes, decays, feature_decay))
    start = time.perf_counter()
    record = jax.block_until_ready(many(sizes, decays, feature_decay))
    assert time.perf_counter() - start < 5
    assert bool((record.loss <= record.trivial_loss).all())
    assert 0.05 < float(jnp.mean(record.is_trivial)) < 0.95


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    for sizes, message in [
        ([3], "must hold at least 2 classes"),
        ([3, 0], "must be finite and >= 1"),
        ([3, -2], "must be finite and >= 1"),
        ([3, 2.5], "must hold whole numbers"),
        ([[3, 2]], "must have shape"),
        ([3, np.nan], "must be finite"),
    ]:
        with pytest.raises(ValueError, match=f"`class_sizes` {message}"):
            mse_ufm_minimizer(np.array(sizes), **good)
    for decay, message in [
        (0.0, "must be finite and > 0"),
        (-1.0, "must be finite and > 0"),
        ([0.1, 0.0], "must be finite and > 0"),
        ([0.1, 0.1, 0.1], "must have shape"),
        (np.inf, "must be finite"),
    ]:
        with pytest.raises(ValueError, match=f"`weight_decay` {message}"):
            mse_ufm_minimizer([3, 2], weight_decay=decay, feature_decay=0.1, depth=2)
    with pytest.raises(ValueError, match="`feature_decay` must be finite and > 0"):
        mse_ufm_minimizer([3, 2], weight_decay=0.1, feature_decay=0.0)
    with pytest.raises(ValueError, match="`feature_decay` must have shape"):
        mse_ufm_minimizer([3, 2], weight_decay=0.1, feature_decay=np.array([0.1, 0.1]))
    with pytest.raises(ValueError, match="`depth` must be an integer >= 1"):
        mse_ufm_minimizer([3, 2], depth=0, **good)
    with pytest.raises(ValueError, match="`bias` must be one of"):
        mse_ufm_minimizer([3, 2], bias="last", **good)
    with pytest.raises(ValueError, match="`bias` must be finite and > 0"):
        mse_ufm_minimizer([3, 3], bias=0.0, **good)
    with pytest.raises(ValueError, match="`widths` must have one entry a layer, 1 in all, but has 2"):
        mse_ufm_minimizer([3, 2], widths=[4, 4], **good)
    with pytest.raises(ValueError, match="`widths` must be an integer >= 1"):
        mse_ufm_minimizer([3, 2], widths=[0], **good)
    with pytest.raises(ValueError, match="`at_tie` must be one of"):
        mse_ufm_minimizer([3, 2], at_tie="both", **good)
    record = mse_ufm_minimizer([3, 2], weight_decay=0.01, feature_decay=0.01)
    with pytest.raises(ValueError, match="`widths` must be >= 2, the number of modes kept"):
        mse_ufm_representative(record, [1])
