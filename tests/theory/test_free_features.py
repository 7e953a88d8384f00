"""L0 against direct minimisation over all weights and features, no structure imposed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from nctheory import theory

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 1e-5


def brute_force(num_classes, n, decay_w, decay_h, loss, seed, dim):
    """Minimise over W (K dim) and H (dim N) by L-BFGS from a random start."""
    y = np.kron(np.eye(num_classes), np.ones((1, n)))
    size = num_classes * dim

    def objective(flat):
        w, h = flat[:size].reshape(num_classes, dim), flat[size:].reshape(dim, -1)
        z = w @ h
        if loss == "mse":
            fit, g = np.sum((z - y) ** 2) / 2, z - y
        else:
            top = z.max(axis=0)
            log_sum = top + np.log(np.exp(z - top).sum(axis=0))
            fit, g = np.sum(log_sum - np.sum(z * y, axis=0)), np.exp(z - log_sum) - y
        g = g / y.shape[1]
        value = fit / y.shape[1] + decay_w / 2 * np.sum(w**2) + decay_h / 2 * np.sum(h**2)
        return value, np.concatenate([(g @ h.T + decay_w * w).ravel(), (w.T @ g + decay_h * h).ravel()])

    start = np.random.default_rng(seed).normal(size=size + dim * y.shape[1])
    options = {"maxiter": 20000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 50}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return best.fun, best.x[:size].reshape(num_classes, dim), best.x[size:].reshape(dim, -1)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("num_classes", "n", "decay_w", "decay_h"),
    [(3, 2, 0.02, 0.005), (4, 3, 0.005, 0.003), (2, 4, 0.1, 0.4), (3, 2, 0.9, 0.7)],
)
def test_against_direct_minimisation(loss, num_classes, n, decay_w, decay_h):
    result = theory.free_features_minimizer(num_classes, n, weight_decay=decay_w, feature_decay=decay_h, loss=loss)
    assert bool(result.is_trivial) == (num_classes**2 * n * decay_w * decay_h >= 1)
    value, w, h = brute_force(num_classes, n, decay_w, decay_h, loss, seed=0, dim=num_classes + 1)
    assert float(result.loss_value) == pytest.approx(value, abs=TIGHT)
    # The loss is flat to second order: gradient 1e-11 over curvatures >= 1e-3 leaves Gram errors far below 1e-5.
    np.testing.assert_allclose(result.weight_gram, w @ w.T, atol=1e-5)
    np.testing.assert_allclose(result.logits, (w @ h)[:, ::n], atol=1e-5)
    per_sample = np.kron(np.asarray(result.feature_gram), np.ones((n, n)))
    np.testing.assert_allclose(per_sample, h.T @ h, atol=1e-5)
    if result.is_trivial:
        assert np.isnan(result.ratio)
        assert np.abs(h).max() < 1e-5
    else:
        assert result.ratio == 0
        assert np.abs(np.asarray(result.logits)).max() > 0.05
    assert result.same_label_distance == 0
    assert result.within_variance == 0


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_value_is_continuous_at_the_threshold(loss):
    """Both sides of K tau = 1 meet; a step of 1e-4 in the decay moves the loss by its square at most."""
    kwargs = {"feature_decay": 0.5, "loss": loss}
    threshold = 1 / (9 * 2 * 0.5)
    below = theory.free_features_minimizer(3, 2, weight_decay=threshold * (1 - 1e-4), **kwargs)
    above = theory.free_features_minimizer(3, 2, weight_decay=threshold * (1 + 1e-4), **kwargs)
    assert not below.is_trivial
    assert above.is_trivial
    assert abs(float(below.loss_value - above.loss_value)) < (1e-8 if X64 else 1e-6)
    assert float(above.loss_value) == pytest.approx(0.5 if loss == "mse" else np.log(3), rel=1e-6)


def test_balance_and_tabulated_norms():
    """lambda_W |W|^2 = lambda_H |H|^2 at every critical point; norms of a published-style setting, n = 5, K = 4."""
    r = theory.free_features_minimizer(4, 5, weight_decay=0.01, feature_decay=0.001)
    np.testing.assert_allclose(
        0.01 * np.trace(r.weight_gram), 0.001 * 5 * np.trace(r.feature_gram), rtol=1e-6 if not X64 else 1e-12
    )
    assert float(r.weight_gram[0, 0]) == pytest.approx(np.sqrt(5 * 0.1) - 20 * 0.001, rel=1e-6)


def test_transformations_and_dtype():
    decays = jnp.array([1e-3, 1e-2, 2.0])

    def solve(decay):
        return theory.free_features_minimizer(3, 4, weight_decay=decay, feature_decay=0.01, loss="cross_entropy")

    mapped = jax.jit(jax.vmap(solve))(decays)
    for i in range(3):
        alone = solve(decays[i])
        np.testing.assert_allclose(mapped.loss_value[i], alone.loss_value, rtol=1e-6)
        np.testing.assert_allclose(mapped.feature_gram[i], alone.feature_gram, rtol=1e-5, atol=1e-7)
    assert solve(jnp.float32(0.01)).loss_value.dtype == jnp.float32
    assert any("balanced" in text for text in mapped.assumptions)


def test_gradient_of_the_optimal_value():
    """Envelope theorem: dL*/d lambda_W = |W|^2 / 2."""
    decay = jnp.asarray(0.02)
    for loss in ("mse", "cross_entropy"):

        def value(decay, loss=loss):
            return theory.free_features_minimizer(3, 2, weight_decay=decay, feature_decay=0.01, loss=loss).loss_value

        gram = theory.free_features_minimizer(3, 2, weight_decay=decay, feature_decay=0.01, loss=loss).weight_gram
        np.testing.assert_allclose(jax.grad(value)(decay), np.trace(gram) / 2, rtol=1e-9 if X64 else 1e-4)


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
        theory.free_features_minimizer(1, 3, **good)
    with pytest.raises(ValueError, match="`samples_per_class` must be an integer >= 1"):
        theory.free_features_minimizer(3, 0, **good)
    with pytest.raises(ValueError, match="`weight_decay` must be finite and > 0"):
        theory.free_features_minimizer(3, 3, weight_decay=0.0, feature_decay=0.1)
    with pytest.raises(ValueError, match="`feature_decay` must be finite and > 0"):
        theory.free_features_minimizer(3, 3, weight_decay=0.1, feature_decay=-1.0)
    with pytest.raises(ValueError, match="`loss` must be one of"):
        theory.free_features_minimizer(3, 3, loss="hinge", **good)
