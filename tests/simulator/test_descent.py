"""Gradient descent with momentum against a literal loop, and the layer metrics against literal formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import simulator
from nctheory.simulator.descent import DescentConfig, descend
from nctheory.simulator.free_features import UfmProblem
from nctheory.simulator.layer_geometry import FrameTargets, layer_geometry

X64 = jax.config.jax_enable_x64
TOLERANCE = 1e-10 if X64 else 1e-4
SIZES = (4, 2, 3)
LABELS = np.repeat(np.arange(3), SIZES)
PROBLEM = UfmProblem(SIZES, (5, 4), weight_decay=np.array([0.02, 0.03]), feature_decay=0.01, init_std=0.4)


def unit(matrix):
    return matrix / np.linalg.norm(matrix)


def reference_metrics(f, a, targets):
    """One layer: F (N, d), A (K, d), squares of weights and features, logits; float64, d x d covariances."""
    k, (num, _) = len(SIZES), f.shape
    means = np.stack([f[LABELS == c].mean(axis=0) for c in range(k)]).T
    grand = f.mean(axis=0)[:, None]
    within = sum(np.outer(f[i] - means[:, LABELS[i]], f[i] - means[:, LABELS[i]]) for i in range(num)) / num
    between = (means - grand) @ (means - grand).T / k
    frame, simplex = np.eye(k), np.eye(k) - 1 / k
    weight_squares, feature_squares, logits = (np.diag(t) for t in targets)
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / k,
        "nc2_weight_of": np.linalg.norm(unit(a @ a.T) - unit(frame)),
        "nc2_weight_etf": np.linalg.norm(unit(a @ a.T) - unit(simplex)),
        "nc2_weight_gof": np.linalg.norm(unit(a @ a.T) - unit(weight_squares)),
        "nc2_feature_of": np.linalg.norm(unit(means.T @ means) - unit(frame)),
        "nc2_feature_etf": np.linalg.norm(unit((means - grand).T @ (means - grand)) - unit(simplex)),
        "nc2_feature_gof": np.linalg.norm(unit(means.T @ means) - unit(feature_squares)),
        "nc3_of": np.linalg.norm(unit(a @ means) - unit(frame)),
        "nc3_etf": np.linalg.norm(unit(a @ (means - grand)) - unit(simplex)),
        "nc3_gof": np.linalg.norm(unit(a @ means) - unit(logits)),
        "nc3_align": np.linalg.norm(unit(a) - unit(means.T)),
        "nc3_align_centered": np.linalg.norm(unit(a) - unit((means - grand).T)),
        "nc3_align_gof": np.linalg.norm(unit(a) - unit(logits @ np.linalg.pinv(feature_squares) @ means.T)),
    }


TARGETS = FrameTargets(
    weight_squares=np.array([[3.0, 1.0, 2.0], [2.0, 1.5, 0.5]]),
    feature_squares=np.array([[1.0, 2.0, 1.5], [0.7, 0.0, 0.9]]),
    logits=np.array([0.9, 0.0, 0.8]),
)


def test_layer_metrics_are_the_written_formulas(key):
    params = PROBLEM.init(key)
    features, products = PROBLEM.layer_features(params), PROBLEM.left_products(params)
    result = jax.jit(lambda f, a: layer_geometry(f, a, LABELS, num_classes=3, targets=TARGETS))(features, products)
    for m in range(2):
        targets = (TARGETS.weight_squares[m], TARGETS.feature_squares[m], TARGETS.logits)
        f, a = (np.asarray(x[m], dtype=np.float64) for x in (features, products))
        for name, expected in reference_metrics(f, a, targets).items():
            np.testing.assert_allclose(getattr(result, name)[m], expected, rtol=TOLERANCE, err_msg=name)
    bare = layer_geometry(features, products, LABELS, num_classes=3)
    assert np.isnan(bare.nc2_weight_gof).all()
    assert np.isnan(bare.nc3_align_gof).all()
    np.testing.assert_allclose(bare.nc3_align, result.nc3_align, rtol=TOLERANCE)


def test_layer_metrics_vanish_at_their_frames_and_ignore_rotations(key):
    norms = np.array([1.0, 0.5, 2.0])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    means = np.pad(np.diag(norms), ((0, 0), (0, 1))) @ turn
    products = np.pad(np.diag(norms**-1.0), ((0, 0), (0, 1))) @ turn
    targets = FrameTargets(weight_squares=norms[None] ** -2.0, feature_squares=norms[None] ** 2, logits=np.ones(3))
    result = layer_geometry(
        [jnp.asarray(means[LABELS], dtype=float)], [jnp.asarray(products, dtype=float)], LABELS, num_classes=3,
        targets=targets,
    )  # fmt: skip
    for name in ("nc1", "nc2_weight_gof", "nc2_feature_gof", "nc3_gof", "nc3_of", "nc3_align_gof"):
        assert float(getattr(result, name)[0]) < (1e-12 if X64 else 1e-5), name
    for name in ("nc2_weight_of", "nc2_feature_of", "nc2_weight_etf", "nc3_etf", "nc3_align"):
        assert float(getattr(result, name)[0]) > 0.1, name


def literal_descent(problem, params, rate, momentum, num_steps):
    """Momentum with hand-written gradients of the two-layer squared error, in NumPy float64."""
    h, w1, w2 = (np.asarray(x, dtype=np.float64) for x in (params.features, *params.weights))
    lam1, lam2 = problem.weight_decay
    y = np.eye(3)[LABELS]
    velocity = [0.0, 0.0, 0.0]
    for _ in range(num_steps):
        error = (h @ w1.T @ w2.T - y) / len(LABELS)
        gradients = [
            error @ w2 @ w1 + problem.feature_decay * h,
            w2.T @ error.T @ h + lam1 * w1,
            error.T @ h @ w1.T + lam2 * w2,
        ]
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        h, w1, w2 = (x - rate * v for x, v in zip((h, w1, w2), velocity, strict=True))
    return h, w1, w2


def test_steps_are_the_written_ones(key):
    config = DescentConfig(PROBLEM, learning_rate=0.2, momentum=0.8, num_steps=7, num_records=4, keep_params=True)
    history = jax.jit(descend)(config, key)
    np.testing.assert_array_equal(history.steps, [0, 1, 3, 7])
    start = PROBLEM.init(key)
    for i, step in enumerate(history.steps):
        h, w1, w2 = literal_descent(PROBLEM, start, 0.2, 0.8, int(step))
        np.testing.assert_allclose(history.class_weight_squares[i], np.sum((w2 @ w1) ** 2, axis=1), rtol=TOLERANCE)
        means = np.stack([h[LABELS == c].mean(axis=0) for c in range(3)])
        np.testing.assert_allclose(history.class_feature_squares[i], np.sum(means**2, axis=1), rtol=TOLERANCE)
        value = np.sum((h @ (w2 @ w1).T - np.eye(3)[LABELS]) ** 2) / 18 + 0.005 * np.sum(h**2)
        value += 0.01 * np.sum(w1**2) + 0.015 * np.sum(w2**2)
        np.testing.assert_allclose(history.objective[i], value, rtol=TOLERANCE)
    np.testing.assert_allclose(history.params.features, h, rtol=10 * TOLERANCE, atol=TOLERANCE)
    gradient = jax.grad(PROBLEM.objective)(history.params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(history.gradient_norm[-1], norm, rtol=100 * TOLERANCE)


@pytest.mark.skipif(not X64, reason="float32 stops above this floor")
def test_descent_collapses_every_layer(key):
    """Balanced, no bias: orthogonal frames at the minimum, not simplex ETFs, at both layers."""
    problem = UfmProblem((3, 3, 3), 6, 2, weight_decay=0.01, feature_decay=0.01, init_std=0.5)
    config = DescentConfig(problem, learning_rate=0.3, num_steps=3000, num_records=2)
    history = jax.jit(descend)(config, key)
    assert float(history.gradient_norm[-1]) < 1e-7
    last = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), history.layers)
    for name in ("nc1", "nc2_weight_of", "nc2_feature_of", "nc3_of", "nc3_align"):
        assert getattr(last, name).max() < 1e-5, name
    assert last.nc2_weight_etf.min() > 0.3


def test_sweep_and_divergence():
    config = DescentConfig(PROBLEM, num_steps=200, num_records=3, targets=TARGETS)
    result = simulator.sweep(descend, simulator.grid(config, learning_rate=[0.1, 500.0]), 2, progress=False)
    np.testing.assert_array_equal(result.finite, [[True, True], [False, False]])
    alone = descend(config, jax.random.key(1))
    np.testing.assert_allclose(result.history.objective[0, 1], alone.objective, rtol=100 * TOLERANCE)
    assert result.history.layers.nc1.shape == (2, 2, 3, 2)
    assert np.isnan(result.history.objective[1, 0, -1]) or np.isinf(result.history.objective[1, 0, -1])


def test_nonnegative_features_stay_nonnegative(key):
    problem = replace(PROBLEM, features="nonnegative", loss="cross_entropy")
    config = DescentConfig(problem, num_steps=50, num_records=2, keep_params=True)
    history = descend(config, key)
    features = np.asarray(history.params.features)
    assert features.min() == 0
    assert float(history.objective[-1]) < float(history.objective[0])


def test_errors(own_errors, key):
    with pytest.raises(ValueError, match="`problem` must be a UfmProblem"):
        DescentConfig("mse")
    with pytest.raises(ValueError, match="`learning_rate` must be finite and > 0"):
        DescentConfig(PROBLEM, learning_rate=0.0)
    with pytest.raises(ValueError, match="`momentum` must be finite and >= 0 and < 1"):
        DescentConfig(PROBLEM, momentum=1.0)
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 1"):
        DescentConfig(PROBLEM, num_steps=0)
    with pytest.raises(ValueError, match="`num_records` must be an integer >= 2"):
        DescentConfig(PROBLEM, num_records=1)
    f, a = [np.ones((9, 4))], [np.ones((3, 4))]
    with pytest.raises(ValueError, match="`products` must list one matrix for each"):
        layer_geometry(f, [], LABELS, num_classes=3)
    with pytest.raises(ValueError, match=r"`products` must have shape \(3, 4\)"):
        layer_geometry(f, [np.ones((3, 5))], LABELS, num_classes=3)
    with pytest.raises(ValueError, match="`labels` must contain every class"):
        layer_geometry(f, a, np.zeros(9, dtype=int), num_classes=3)
    with pytest.raises(ValueError, match=r"`targets\.weight_squares` must have shape \(1, 3\)"):
        layer_geometry(f, a, LABELS, num_classes=3, targets=TARGETS)
