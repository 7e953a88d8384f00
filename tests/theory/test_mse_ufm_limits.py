"""Limit without regularisation against a simulated flow; another normalisation against direct minimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from nctheory._errors import ArgumentError
from nctheory.theory.mse_ufm import mse_ufm_minimizer
from nctheory.theory.mse_ufm_limits import tirer_bruna_minimizer, unregularized_mse_limit

X64 = jax.config.jax_enable_x64


@pytest.mark.parametrize(("num_classes", "n"), [(3, 4), (2, 3), (4, 1)])
def test_gradient_flow_from_near_zero(num_classes, n):
    """The flow's Gram matrices are off by the start's size times its growth; 2e-4 at a start of 1e-6."""
    dim, total = num_classes + 1, num_classes * n
    y = np.kron(np.eye(num_classes), np.ones((1, n)))
    size = num_classes * dim

    def velocity(_, flat):
        w, h = flat[:size].reshape(num_classes, dim), flat[size : size + dim * total].reshape(dim, total)
        r = w @ h + flat[size + dim * total :][:, None] - y
        return -np.concatenate([(r @ h.T).ravel(), (w.T @ r).ravel(), r.sum(axis=1)])

    start = np.concatenate([np.random.default_rng(1).normal(size=size + dim * total) * 1e-6, np.zeros(num_classes)])
    end = solve_ivp(velocity, (0.0, 60.0), start, method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
    w, h = end[:size].reshape(num_classes, dim), end[size : size + dim * total].reshape(dim, total)
    limit = unregularized_mse_limit(num_classes, n)
    np.testing.assert_allclose(limit.weight_gram, w @ w.T, atol=2e-4)
    np.testing.assert_allclose(np.kron(limit.feature_gram, np.ones((n, n))), h.T @ h, atol=2e-4)
    np.testing.assert_allclose(limit.logits, (w @ h)[:, ::n], atol=2e-4)
    np.testing.assert_allclose(limit.bias, end[size + dim * total :], atol=2e-4)
    np.testing.assert_allclose(limit.weight_singular_values, np.linalg.svd(w)[1][: num_classes - 1], atol=2e-4)
    np.testing.assert_allclose(limit.layer_singular_values, [limit.weight_singular_values])
    np.testing.assert_allclose(limit.feature_singular_values, np.linalg.svd(h)[1][: num_classes - 1], atol=2e-4)
    np.testing.assert_allclose(limit.layer_norms, [np.sum(w**2)], atol=1e-3)
    np.testing.assert_allclose(limit.feature_norm, np.sum(h**2), atol=1e-3)
    assert not limit.is_trivial
    assert int(np.sum(limit.active)) == np.linalg.matrix_rank(w @ h, tol=0.1)
    assert np.asarray(limit.active_classes).tolist() == [True] * num_classes
    np.testing.assert_allclose(limit.trivial_loss, np.sum((y - y.mean(axis=1)[:, None]) ** 2) / (2 * total))


@pytest.mark.parametrize(("num_classes", "n"), [(2, 1), (5, 7)])
def test_representative_of_the_limit(num_classes, n):
    limit = unregularized_mse_limit(num_classes, n)
    w, h = np.asarray(limit.weight), np.asarray(limit.class_features)
    close = {"rtol": 1e-12 if X64 else 1e-5, "atol": 1e-12 if X64 else 1e-6}
    np.testing.assert_allclose(w @ w.T, limit.weight_gram, **close)
    np.testing.assert_allclose(h @ h.T, limit.feature_gram, **close)
    np.testing.assert_allclose(w @ h.T, limit.logits, **close)
    np.testing.assert_allclose(w @ h.T + np.asarray(limit.bias)[:, None], np.eye(num_classes), **close)


def test_limit_maps_over_the_class_size():
    mapped = jax.jit(jax.vmap(lambda n: unregularized_mse_limit(3, n)))(jnp.asarray([4.0, 0.0, np.nan, -1.0]))
    for leaf in map(np.asarray, jax.tree.leaves(mapped)):
        assert np.isnan(leaf[1:]).all() if leaf.dtype.kind == "f" else not leaf[1:].any()
    np.testing.assert_allclose(mapped.weight_gram[0], unregularized_mse_limit(3, 4).weight_gram, rtol=1e-6, atol=1e-7)
    whole = jax.jit(lambda n: unregularized_mse_limit(3, n).layer_norms)(jnp.asarray(4))
    np.testing.assert_allclose(whole, unregularized_mse_limit(3, 4).layer_norms, rtol=1e-6)


def test_limit_of_vanishing_decay():
    """The regularised minimum approaches it linearly in the decay, and not if the two decays differ."""
    limit = unregularized_mse_limit(4, 5)
    for decay in (1e-4, 1e-6):
        near = mse_ufm_minimizer([5] * 4, weight_decay=decay, feature_decay=decay, bias="free")
        for name in ("weight_gram", "feature_gram", "logits", "bias"):
            np.testing.assert_allclose(
                getattr(near, name), getattr(limit, name), atol=30 * decay + (0 if X64 else 1e-5)
            )
    uneven = mse_ufm_minimizer([5] * 4, weight_decay=1e-6, feature_decay=4e-6, bias="free")
    np.testing.assert_allclose(uneven.weight_gram, 2 * limit.weight_gram, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "n", "decay_w", "decay_h"), [(3, 4, 0.2, 0.1), (4, 2, 0.9, 0.8), (2, 3, 1.3, 0.9)]
)
def test_their_objective(num_classes, n, decay_w, decay_h):
    y = np.kron(np.eye(num_classes), np.ones((1, n)))
    total, dim = num_classes * n, num_classes + 1
    size = num_classes * dim

    def objective(flat):
        w, h = flat[:size].reshape(num_classes, dim), flat[size:].reshape(dim, total)
        r = w @ h - y
        value = np.sum(r**2) / (2 * total) + decay_w / (2 * num_classes) * np.sum(w**2)
        value += decay_h / (2 * total) * np.sum(h**2)
        grads = r @ h.T / total + decay_w / num_classes * w, w.T @ r / total + decay_h / total * h
        return value, np.concatenate([g.ravel() for g in grads])

    start = np.random.default_rng(0).normal(size=size + dim * total)
    options = {"maxiter": 20000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-12}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    result = tirer_bruna_minimizer(num_classes, n, weight_decay=decay_w, feature_decay=decay_h)
    c = np.sqrt(decay_w * decay_h)
    assert float(result.loss) == pytest.approx(best.fun, abs=1e-12 if X64 else 1e-6)
    h = best.x[size:].reshape(dim, total)[:, ::n]
    # Gradient 1e-10 over the smallest curvature, that of the features: decay_h/total > 1e-2, or (c - 1) times it.
    np.testing.assert_allclose(result.feature_gram, h.T @ h, atol=1e-6)
    square = max(1 - c, 0.0) * np.sqrt(decay_w / decay_h)
    np.testing.assert_allclose(
        result.feature_gram, square * np.eye(num_classes), rtol=1e-10 if X64 else 1e-5, atol=1e-10 if X64 else 1e-6
    )
    assert bool(result.is_trivial) == (c > 1)


def test_numpy_and_transformations():
    decays = jnp.asarray([0.1, 0.5, 2.0])

    def solve(decay):
        return tirer_bruna_minimizer(3, 2, weight_decay=decay, feature_decay=1.0)

    mapped = jax.jit(jax.vmap(solve))(decays)
    for i in range(3):
        alone = solve(np.asarray(decays)[i])
        np.testing.assert_allclose(mapped.logits[i], alone.logits, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(mapped.is_trivial, [False, False, True])
    other = tirer_bruna_minimizer(3, jnp.asarray(2), weight_decay=decays[0], feature_decay=1.0)
    np.testing.assert_allclose(other.loss, mapped.loss[0], rtol=1e-6)


def test_bad_numbers_under_vmap_give_nan():
    def loss(n, weight_decay, feature_decay):
        return tirer_bruna_minimizer(3, n, weight_decay=weight_decay, feature_decay=feature_decay).loss

    rows = [(2, 0.1, 0.1), (0, 0.1, 0.1), (np.nan, 0.1, 0.1), (2, -0.1, -0.1), (2, np.nan, 0.1), (2, 0.1, 0.0)]
    found = jax.jit(jax.vmap(loss))(*jnp.asarray(rows).T)
    assert np.isnan(found).tolist() == [False] + [True] * 5


def test_errors(own_errors):
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
        unregularized_mse_limit(1, 3)
    for n, message in ((0, "be finite and >= 1"), (2.5, "be a whole number"), ([2, 3], "have shape"), (None, "be a")):
        with pytest.raises(ValueError, match=f"`samples_per_class` must {message}"):
            unregularized_mse_limit(3, n)
        with pytest.raises(ValueError, match=f"`samples_per_class` must {message}"):
            tirer_bruna_minimizer(3, n, weight_decay=0.1, feature_decay=0.1)
    with pytest.raises(ArgumentError, match="`samples_per_class` must be"):
        tirer_bruna_minimizer(3, 10**40, weight_decay=0.1, feature_decay=0.1)
    for decay in ([0.1], [0.1, 0.1]):
        with pytest.raises(ValueError, match=r"`weight_decay` must have shape \(\)"):
            tirer_bruna_minimizer(3, 3, weight_decay=decay, feature_decay=0.1)
    with pytest.raises(ArgumentError, match="`weight_decay` must be a real number, but is None"):
        tirer_bruna_minimizer(3, 3, weight_decay=None, feature_decay=0.1)
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
        tirer_bruna_minimizer(1, 3, weight_decay=0.1, feature_decay=0.1)
    with pytest.raises(ValueError, match="`weight_decay` must be finite and > 0"):
        tirer_bruna_minimizer(3, 3, weight_decay=-0.1, feature_decay=0.1)
    with pytest.raises(ValueError, match="`feature_decay` must be finite and > 0"):
        tirer_bruna_minimizer(3, 3, weight_decay=0.1, feature_decay=0.0)
