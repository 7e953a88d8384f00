"""Arguments that cannot be refused because they are traced: NaN, never a number; and the refusals of known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import ArgumentError
from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_deep import ce_deep_etf_loss, ce_deep_low_rank_loss
from nctheory.theory.ce_nonnegative import ce_nonnegative_minimizer
from nctheory.theory.ce_ufm import ce_ufm_minimizer
from nctheory.theory.mse_ufm import mse_ufm_minimizer, mse_ufm_representative

X64 = jax.config.jax_enable_x64
TINY = float(jnp.finfo(jnp.zeros(0)).tiny)

# Each takes a number of samples, a decay of the weights, of the features, and of the bias (where there is one).
PREDICTIONS = {
    "mse": lambda n, w, h, b: mse_ufm_minimizer([n, 3], weight_decay=w, feature_decay=h),
    "mse-deep": lambda n, w, h, b: mse_ufm_minimizer(
        [n, 3, 7], weight_decay=[1e-3, w], feature_decay=h, depth=2, bias="free"
    ),
    "mse-decayed": lambda n, w, h, b: mse_ufm_minimizer([n, 3], weight_decay=w, feature_decay=h, bias=b),
    "mse-decayed-equal": lambda n, w, h, b: mse_ufm_minimizer([n, n], weight_decay=w, feature_decay=h, depth=2, bias=b),
    "ce": lambda n, w, h, b: ce_ufm_minimizer(3, n, weight_decay=w, feature_decay=h, bias=b),
    "etf": lambda n, w, h, b: ce_deep_etf_loss(3, n, weight_decay=w, feature_decay=h, depth=2),
    "low-rank": lambda n, w, h, b: ce_deep_low_rank_loss(4, n, weight_decay=[w, 1e-3], feature_decay=h, depth=2),
    "nonnegative": lambda n, w, h, b: ce_nonnegative_minimizer([n, 4], weight_decay=w, feature_decay=h),
}
GOOD = (5.0, 1e-3, 1e-4, 0.3)
BAD = [float("nan"), -1.0, 0.0, float("inf"), float("-inf"), TINY / 4]
WITH_BIAS = {"mse-decayed", "mse-decayed-equal", "ce"}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_traced_arguments_out_of_range_give_nan(name):
    """A batch of one good and all bad problems: only the good one has numbers, and it has those of a plain call."""
    positions = range(4 if name in WITH_BIAS else 3)
    problems = [GOOD] + [(*GOOD[:i], bad, *GOOD[i + 1 :]) for i in positions for bad in BAD]
    problems = jnp.asarray(problems)
    batch = jax.jit(jax.vmap(PREDICTIONS[name]))(*problems.T)
    alone = jax.tree.leaves(PREDICTIONS[name](5, *GOOD[1:]))
    for leaf, expected in zip(jax.tree.leaves(batch), alone, strict=True):
        leaf = np.asarray(leaf)
        if leaf.dtype == bool:
            assert not leaf[1:].any()
            np.testing.assert_array_equal(leaf[0], expected)
        elif np.issubdtype(leaf.dtype, np.floating):
            assert np.isnan(leaf[1:]).all()
            assert np.isfinite(leaf[0]).all()
            np.testing.assert_allclose(leaf[0], expected, rtol=1e-9 if X64 else 1e-3, atol=1e-9 if X64 else 1e-4)
    assert not np.isnan(batch.loss[0])


@pytest.mark.parametrize("name", ["mse-decayed", "ce", "low-rank", "nonnegative"])
def test_gradients_pass_the_mask(name):
    """The derivative of the loss against a central difference."""

    def loss(h):
        return PREDICTIONS[name](5, 1e-3, h, 0.3).loss

    h = 1e-4
    step = h * (1e-4 if X64 else 1e-2)
    finite_difference = (float(loss(h + step)) - float(loss(h - step))) / (2 * step)
    assert float(jax.grad(loss)(h)) == pytest.approx(finite_difference, rel=1e-5 if X64 else 2e-2)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_known_arguments_out_of_range_are_refused(name, own_errors):
    """Also what NumPy and JAX would report in words of their own: None, strings, ragged and empty lists, axes."""
    call = PREDICTIONS[name]
    words = ["weight_decay", "feature_decay", "bias"][: 3 if name in WITH_BIAS else 2]
    for i, word in enumerate(words, start=1):
        for bad in [*BAD, None, True, "x", {}, [[1.0], [1.0, 2.0]], [[1e-3] * 2] * 2, [1e-3] * 5, 10**400, 1j]:
            with pytest.raises(ArgumentError, match=f"Argument `{word}`"):
                call(*GOOD[:i], bad, *GOOD[i + 1 :])
    for bad in [*BAD[:5], 0.5, 2.5, None, "x", [2, 3], np.array([2, 3]), [5]]:
        with pytest.raises(ArgumentError, match=r"Argument `(samples_per_class|class_sizes)`"):
            call(bad, *GOOD[1:])


def test_bias_has_one_rule(own_errors):
    """A number > 0 without axes; 0 is the free bias and must be called so."""
    calls = [
        lambda bias: mse_ufm_minimizer([5, 5], weight_decay=1e-3, feature_decay=1e-3, bias=bias),
        lambda bias: ce_ufm_minimizer(2, 5, weight_decay=1e-3, feature_decay=1e-3, bias=bias),
        lambda bias: ce_ufm_convex([5, 5], weight_decay=1e-3, feature_decay=1e-3, bias=bias),
    ]
    for call in calls:
        for bad, message in [
            (None, 'must be "none", "free" or a number > 0, but is None'),
            (0, "must be finite and > 0, but is 0"),
            (0.0, "must be finite and > 0, but is 0"),
            ([0.1], r"must have shape \(\), but has shape \(1,\)"),
            (np.array([0.1]), r"must have shape \(\), but has shape \(1,\)"),
            (True, "must be a real number"),
            ("some", "must be one of"),
        ]:
            with pytest.raises(ArgumentError, match=f"Argument `bias` {message}"):
                call(bad)
        assert float(call(jnp.asarray(0.1)).loss) == pytest.approx(float(call(0.1).loss), rel=1e-5)


def test_sequences_of_integers(own_errors):
    good = {"weight_decay": 1e-3, "feature_decay": 1e-3, "depth": 2}
    for bad in (5, 2.5, "22", np.array([[2, 2]])):
        with pytest.raises(ArgumentError, match="Argument `block_sizes` must be a sequence of integers"):
            ce_deep_low_rank_loss(4, 2, block_sizes=bad, **good)
        with pytest.raises(ArgumentError, match="Argument `widths` must be a sequence of integers"):
            mse_ufm_minimizer([4, 2], widths=bad, **good)
    arrays = ce_deep_low_rank_loss(4, 2, block_sizes=np.array([2, 2]), **good)
    assert arrays.block_sizes == (2, 2)


def test_a_batched_record_has_no_single_representative(own_errors):
    batch = jax.vmap(lambda w: mse_ufm_minimizer([5, 9], weight_decay=w, feature_decay=1e-3))(jnp.array([1e-3, 1e-2]))
    with pytest.raises(ArgumentError, match=r"`minimizer` must be one record, but is a batch \(2,\) of them"):
        mse_ufm_representative(batch)
    weights = jax.vmap(mse_ufm_representative)(batch).weights
    assert weights[0].shape == (2, 2, 2)


def test_lists_of_traced_numbers():
    """Lists whose entries are partly traced are arrays like any other."""
    cases = [
        lambda n, w: mse_ufm_minimizer([n, 3], weight_decay=[w, 2e-3], feature_decay=w, depth=2),
        lambda n, w: ce_deep_low_rank_loss(4, n, weight_decay=(w, 2e-3), feature_decay=w, depth=2),
        lambda n, w: ce_nonnegative_minimizer([n, 3], weight_decay=w, feature_decay=w),
    ]
    for call in cases:
        assert float(jax.jit(call)(4, 1e-3).loss) == pytest.approx(float(call(4, 1e-3).loss), rel=1e-6)


def test_known_entries_of_traced_lists_are_checked(own_errors):
    with pytest.raises(ArgumentError, match="`weight_decay` must be finite and > 0"):
        jax.jit(lambda w: mse_ufm_minimizer([3, 3], weight_decay=[w, -1.0], feature_decay=w, depth=2).loss)(0.1)
    with pytest.raises(ArgumentError, match="`class_sizes` must be finite and >= 1"):
        jax.jit(lambda n: ce_nonnegative_minimizer([n, 0], weight_decay=0.1, feature_decay=0.1).loss)(3)


def test_smallest_normal_decays():
    """The least decays that are accepted give finite losses; anything smaller is refused above."""
    for name, call in PREDICTIONS.items():
        record = call(5, 1.01 * TINY, 1e-3, 0.3)
        assert 0 <= float(record.loss) < 1e-4, name
