"""Objectives against SciPy and literal formulas, at large margins, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from nctheory import objectives

X64 = jax.config.read("jax_enable_x64")
RTOL = 1e-12 if X64 else 1e-5


def test_logistic_is_the_mean_of_log1p_exp_at_any_margin():
    rng = np.random.default_rng(1)
    outputs, signs = 3 * rng.standard_normal(50), rng.choice([-1, 1], 50)
    expected = np.mean(np.log1p(np.exp(-signs * outputs)))
    np.testing.assert_allclose(objectives.logistic(outputs, signs), expected, rtol=RTOL)
    np.testing.assert_allclose(objectives.logistic(np.zeros(3), np.array([1, -1, 1])), np.log(2), rtol=RTOL)
    np.testing.assert_allclose(objectives.logistic(np.array([60.0]), np.array([1])), np.exp(-60.0), rtol=1e-5)
    np.testing.assert_allclose(objectives.logistic(np.array([1e4]), np.array([-1])), 1e4, rtol=1e-6)


def test_logistic_gradient_is_exact_at_any_margin():
    outputs, signs = np.array([-1e4, -30.0, 0.0, 2.0, 50.0]), np.array([1, -1, 1, -1, 1])
    gradient = jax.grad(lambda f: objectives.logistic(f, signs))(jnp.asarray(outputs))
    np.testing.assert_allclose(gradient, -signs * expit(-signs * outputs) / 5, rtol=1e-5)


def test_cross_entropy_matches_scipy_and_the_logistic_loss():
    rng = np.random.default_rng(2)
    logits, labels = 4 * rng.standard_normal((40, 5)), rng.integers(0, 5, 40)
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(40), labels])
    np.testing.assert_allclose(objectives.cross_entropy(logits, labels), expected, rtol=RTOL)
    two, signs = logits[:, :2], rng.choice([-1, 1], 40)
    np.testing.assert_allclose(
        objectives.cross_entropy(two, (signs + 1) // 2), objectives.logistic(two[:, 1] - two[:, 0], signs), rtol=RTOL
    )
    uniform = objectives.cross_entropy(np.zeros((2, 300)), np.array([0, 255], np.uint8))
    np.testing.assert_allclose(uniform, np.log(300), rtol=RTOL)


def test_cross_entropy_keeps_its_digits_when_it_is_tiny():
    # log(1 + 2 exp(-40)); logsumexp(f) - f_y would give 0 in float32 and 0 or 7e-15 in float64.
    logits = np.array([[40.0, 0.0, 0.0]])
    np.testing.assert_allclose(objectives.cross_entropy(logits, np.array([0])), 2 * np.exp(-40.0), rtol=1e-5)
    np.testing.assert_allclose(objectives.cross_entropy(1e3 * logits, np.array([1])), 4e4, rtol=1e-6)
    gradient = jax.grad(objectives.cross_entropy)(jnp.asarray(logits), jnp.array([0]))
    np.testing.assert_allclose(gradient[0], np.exp(-40.0) * np.array([-2, 1, 1]), rtol=1e-5)


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    rng = np.random.default_rng(3)
    logits, labels = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    gradient = jax.grad(objectives.cross_entropy)(jnp.asarray(logits), labels)
    expected = (np.exp(log_softmax(logits, axis=1)) - np.eye(4)[labels]) / 6
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-12 if X64 else 1e-7)


def test_mse_has_its_half_and_divides_by_samples_only():
    rng = np.random.default_rng(4)
    outputs, targets = rng.standard_normal((7, 3)), rng.integers(0, 2, (7, 3))
    np.testing.assert_allclose(objectives.mse(outputs, targets), np.sum((outputs - targets) ** 2) / 14, rtol=RTOL)
    gradient = jax.grad(objectives.mse)(jnp.asarray(outputs), targets)
    np.testing.assert_allclose(gradient, (outputs - targets) / 7, rtol=1e-4, atol=1e-7)


def test_l2_penalty_sums_over_all_leaves_and_its_gradient_is_decay_times_params():
    rng = np.random.default_rng(5)
    params = {"a": rng.standard_normal((3, 2)), "b": [rng.standard_normal(4).astype(np.float32)]}
    expected = 0.05 * (np.sum(params["a"] ** 2) + np.sum(params["b"][0].astype(float) ** 2))
    np.testing.assert_allclose(objectives.l2_penalty(params, 0.1), expected, rtol=1e-6)
    gradient = jax.grad(objectives.l2_penalty)(jax.tree.map(jnp.asarray, params), 0.1)
    np.testing.assert_allclose(gradient["a"], 0.1 * params["a"], rtol=1e-6)
    assert float(objectives.l2_penalty({}, 0.1)) == 0
    swept = jax.jit(jax.vmap(lambda decay: objectives.l2_penalty(params, decay)))(jnp.array([0.0, 0.1, 0.2]))
    np.testing.assert_allclose(swept, expected * np.array([0, 1, 2]), rtol=1e-6)


def test_accuracy_of_logits_and_of_signs():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [1.0, 1.0]])
    np.testing.assert_allclose(objectives.accuracy(logits, np.array([0, 1, 1, 0])), 0.75)
    outputs = np.array([0.1, -2.0, 0.0, 3.0])
    np.testing.assert_allclose(objectives.accuracy(outputs, np.array([1, -1, 1, -1])), 0.5)
    assert np.isnan(objectives.accuracy(np.array([[np.nan, 1.0], [2.0, 1.0]]), np.array([1, 0])))
    assert np.isnan(objectives.accuracy(np.array([np.nan, 1.0]), np.array([1, 1])))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jit_and_vmap_equal_a_loop_in_the_dtype_of_the_outputs(dtype):
    rng = np.random.default_rng(6)
    stack = jnp.asarray(rng.standard_normal((3, 8, 4)).astype(dtype))
    labels, signs = jnp.asarray(rng.integers(0, 4, 8)), jnp.asarray(rng.choice([-1, 1], 8))
    for function, argument, target in (
        (objectives.cross_entropy, stack, labels),
        (objectives.accuracy, stack, labels),
        (objectives.mse, stack, stack[0]),
        (objectives.logistic, stack[:, :, 0], signs),
    ):
        batched = jax.jit(jax.vmap(function, in_axes=(0, None)))(argument, target)
        assert batched.dtype == argument.dtype
        np.testing.assert_allclose(batched, [float(function(a, target)) for a in argument], rtol=1e-5, atol=1e-7)


def test_out_of_range_labels_give_nan_under_jit():
    assert np.isnan(jax.jit(objectives.cross_entropy)(jnp.zeros((2, 3)), jnp.array([0, 3])))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.logistic(np.ones(2), np.array([0, 1])), "`signs` must hold only -1 and"),
        (lambda: objectives.logistic(np.ones(2), np.ones(3)), r"`signs` must have shape \(2,\)"),
        (lambda: objectives.logistic(np.ones((2, 1)), np.ones(2)), r"`outputs` must have shape \(N,\)"),
        (lambda: objectives.logistic(np.ones(0), np.ones(0)), "`outputs` must hold at least one sample"),
        (lambda: objectives.cross_entropy(np.ones((2, 3)), np.array([0, 3])), r"`labels` must lie in 0\.\.2"),
        (lambda: objectives.cross_entropy(np.ones((2, 3)), np.zeros(2)), "`labels` must hold integers"),
        (lambda: objectives.cross_entropy(np.ones((2, 1)), np.zeros(2, int)), "`logits` must have at least 2 columns"),
        (lambda: objectives.cross_entropy(np.ones((0, 2)), np.zeros(0, int)), "`logits` must hold at least one sample"),
        (lambda: objectives.mse(np.ones((2, 3)), np.ones((2, 1))), r"`targets` must have shape \(2, 3\)"),
        (lambda: objectives.mse(np.ones((0, 3)), np.ones((0, 3))), "`outputs` must hold at least one sample"),
        (lambda: objectives.l2_penalty({"a": np.ones(2)}, -0.1), "`weight_decay` must be finite and >= 0"),
        (lambda: objectives.l2_penalty({"a": np.ones(2)}, np.nan), "`weight_decay` must be finite"),
        (lambda: objectives.l2_penalty({"a": np.ones(2, int)}, 0.1), "`params` must hold floating-point leaves"),
        (lambda: objectives.accuracy(np.ones(2), np.array([0, 1])), "`labels` must hold only -1 and"),
        (lambda: objectives.accuracy(np.ones((2, 3)), np.array([0, 5])), r"`labels` must lie in 0\.\.2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
