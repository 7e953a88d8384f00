"""The layer-peeled model's collapse ratio: tabulated values, its certificate, and direct minimisation around it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nctheory.theory.layer_peeled import _derivatives, _minimize, _nuclear_norm, _value, layer_peeled_threshold


@pytest.mark.parametrize(
    ("ka", "kb", "feature_budget", "ratio"),
    [
        (5, 5, 5, 12.192),
        pytest.param(5, 5, 1, 1.735, marks=pytest.mark.slow),
        pytest.param(5, 5, 10, 81.10, marks=pytest.mark.slow),
        (7, 3, 5, 4.000),
        (3, 7, 5, 245.5),
        pytest.param(2, 2, 1, 3.380, marks=pytest.mark.slow),
        (2, 2, 2, 7.618),
    ],
)
def test_tabulated_ratios(ka, kb, feature_budget, ratio):
    """Four printed digits."""
    record = layer_peeled_threshold(ka, kb, feature_budget=feature_budget, weight_budget=1)
    assert record.converged
    assert float(record.ratio) == pytest.approx(ratio, rel=2.5e-4)


def minority_spread(ka, kb, budget, ratio, seed):
    """Direct minimisation over W and class features scaled to their budgets (the constraints are active)."""
    k = ka + kb
    sizes = np.where(np.arange(k) < ka, ratio, 1.0)
    share = sizes / sizes.sum()
    norms = np.sqrt(k * np.array(budget))

    def unpack(flat):
        return flat.reshape(2, k, k)

    def objective(flat):
        (w, h), lengths = unpack(flat), np.linalg.norm(flat.reshape(2, -1), axis=1)
        a, b = norms[0] * w / lengths[0], norms[1] * h / lengths[1]
        z = a @ b
        log_sum = np.log(np.exp(z).sum(axis=0))
        value = share @ (log_sum - np.diagonal(z))
        g = (np.exp(z - log_sum) - np.eye(k)) * share
        gradients = []
        for part, slope, length, norm in ((w, g @ b.T, lengths[0], norms[0]), (h, a.T @ g, lengths[1], norms[1])):
            slope = norm / length * slope
            gradients.append(slope - part * np.sum(slope * part) / length**2)
        return value, np.concatenate([part.ravel() for part in gradients])

    start = np.random.default_rng(seed).normal(size=2 * k * k)
    options = {"maxiter": 20000, "maxfun": 25000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 50}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    w = unpack(best.x)[0]
    w = norms[0] * w / np.linalg.norm(w)
    return best.fun, np.abs(w[ka:] - w[ka:].mean(axis=0)).max()


@pytest.mark.parametrize(("ka", "kb", "budget"), [(2, 2, (1.0, 1.0)), (1, 2, (1.0, 0.4)), (2, 3, (1.0, 2.0))])
def test_direct_minimisation_on_both_sides(ka, kb, budget):
    ratio = float(layer_peeled_threshold(ka, kb, feature_budget=budget[1], weight_budget=budget[0]).ratio)
    below = min(minority_spread(ka, kb, budget, 0.95 * ratio, seed) for seed in range(3))
    above = min(minority_spread(ka, kb, budget, 1.05 * ratio, seed) for seed in range(3))
    assert below[1] > 0.02
    assert above[1] < 1e-3


def test_certificate_by_hand():
    """Spectral norm of the gradient = multiplier = n_B/N, nuclear norm = K sqrt(E_W E_H), from the logits alone."""
    record = layer_peeled_threshold(3, 4, feature_budget=2.0, weight_budget=1.5)
    z, ratio = record.logits, float(record.ratio)
    probabilities = np.exp(z) / np.exp(z).sum(axis=0)
    sizes = np.array([ratio] * 3 + [1.0] * 4)
    gradient = (probabilities - np.eye(7)) * sizes / sizes.sum()
    assert np.linalg.norm(gradient, 2) == pytest.approx(1 / sizes.sum(), rel=1e-10)
    assert np.linalg.norm(z, "nuc") == pytest.approx(7 * np.sqrt(3.0), rel=1e-10)
    assert np.sum(gradient * z) == pytest.approx(-7 * np.sqrt(3.0) / sizes.sum(), rel=1e-10)
    np.testing.assert_allclose(z[:, 3:], z[:, [3] * 4])
    np.testing.assert_allclose(record.loss, -np.diagonal(np.log(probabilities)) @ sizes / sizes.sum(), rtol=1e-12)
    assert float(record.trivial_loss) == pytest.approx(np.log(7))
    assert record.loss < record.trivial_loss
    assert not record.is_trivial


@pytest.mark.parametrize(("ka", "kb"), [(1, 2), (3, 4)])
def test_factors_meet_both_bounds(ka, kb):
    record, k = layer_peeled_threshold(ka, kb, feature_budget=2.0, weight_budget=0.7), ka + kb
    w, h = record.weight, record.class_features
    np.testing.assert_allclose(w @ h.T, record.logits, atol=1e-12)
    assert np.sum(w**2) / k == pytest.approx(0.7, rel=1e-9)
    assert np.sum(h**2) / k == pytest.approx(2.0, rel=1e-9)
    np.testing.assert_allclose(record.layer_norms, [np.sum(w**2)], rtol=1e-12)
    np.testing.assert_allclose(record.weight_gram, w @ w.T, atol=1e-12)
    np.testing.assert_allclose(record.feature_gram, h @ h.T, atol=1e-12)
    np.testing.assert_allclose(record.layer_singular_values[0, :-1], np.linalg.svd(w)[1], atol=1e-7)
    np.testing.assert_allclose(record.class_feature_singular_values[:-1], np.linalg.svd(h)[1], atol=1e-7)
    np.testing.assert_allclose(record.singular_values, np.linalg.svd(record.logits)[1], atol=1e-12)
    assert record.active.sum() == np.linalg.matrix_rank(record.logits) == ka
    assert record.active_classes.all()
    assert not record.bias.any()
    # Minority classes are one vector.
    np.testing.assert_allclose(w[ka:], w[[ka] * kb], atol=1e-6)
    np.testing.assert_allclose(h[ka:], h[[ka] * kb], atol=1e-6)


def test_crossing_is_unique_on_a_grid():
    """The nuclear norm increases with the ratio, so there is one crossing; from 1 to e^20."""
    for ka, kb in [(1, 2), (2, 2), (5, 5), (3, 7), (7, 3)]:
        norms = [_nuclear_norm(ka, _minimize(ka, kb, x)) for x in np.geomspace(0.02, 20, 40)]
        assert np.all(np.diff(norms) > 0), (ka, kb)


def test_newton_derivatives_by_central_differences():
    point, step = np.array([0.7, 0.4, -0.9]), 1e-5
    gradient, hessian = _derivatives(3, 4, 1.2, point)
    for i in range(3):
        move = step * np.eye(3)[i]
        # Error step^2 times third derivatives of order 10, and rounding 1e-15/step.
        rise = _value(3, 4, 1.2, point + move) - _value(3, 4, 1.2, point - move)
        assert rise / (2 * step) == pytest.approx(gradient[i], abs=1e-8)
        turn = _derivatives(3, 4, 1.2, point + move)[0] - _derivatives(3, 4, 1.2, point - move)[0]
        np.testing.assert_allclose(turn / (2 * step), hessian[i], atol=1e-8)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 8), st.integers(2, 8), st.floats(0.01, 30), st.floats(0.1, 3))
def test_whole_argument_space(ka, kb, feature_budget, weight_budget):
    record = layer_peeled_threshold(ka, kb, feature_budget=feature_budget, weight_budget=weight_budget)
    assert record.converged
    assert float(record.ratio) > 1
    swapped = layer_peeled_threshold(ka, kb, feature_budget=weight_budget, weight_budget=feature_budget)
    assert float(swapped.log_ratio) == pytest.approx(float(record.log_ratio), rel=1e-9)


def test_limits():
    assert float(layer_peeled_threshold(4, 4, feature_budget=1e-4, weight_budget=1.0).ratio) == pytest.approx(
        1, abs=5e-3
    )
    far = layer_peeled_threshold(2, 2, feature_budget=1e5, weight_budget=1.0)
    assert np.isnan(far.ratio)
    for leaf in (far.loss, far.weight, far.class_features, far.weight_gram, far.layer_norms):
        assert np.isnan(leaf).all()
    assert not far.active.any()
    assert not far.active_classes.any()
    assert not far.converged


def test_errors(own_errors):
    good = {"feature_budget": 1.0, "weight_budget": 1.0}
    for arguments, options, message in [
        ((0, 2), good, "`num_majority` must be an integer >= 1"),
        ((2, 1), good, "`num_minority` must be an integer >= 2"),
        ((2, 2), good | {"feature_budget": 0.0}, "`feature_budget` must be finite and > 0"),
        ((2, 2), good | {"weight_budget": [1.0]}, "`weight_budget` must have shape"),
        ((2, 2), good | {"tolerance": 0.0}, "`tolerance` must be finite and > 0"),
        ((2, 2), good | {"tolerance": [1e-9]}, "`tolerance` must have shape"),
        ((2, 2), good | {"feature_budget": None}, "`feature_budget` must be a real number, but is None"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer_peeled_threshold(*arguments, **options)
    for transform in (jax.jit, jax.vmap):
        with pytest.raises(ValueError, match="`feature_budget` must be known before the call"):
            transform(lambda x: layer_peeled_threshold(2, 2, feature_budget=x, weight_budget=1.0).ratio)(np.ones(2)[:1])
