"""Curvature at constructed critical points: dead classes are saddles at depth 1 and spurious minima beyond."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from nctheory.simulator.curvature import hessian_spectrum
from nctheory.simulator.free_features import UfmParams, UfmProblem

X64 = jax.config.jax_enable_x64
SIZES, DECAY, WIDTH = (6, 4, 3), 4e-3, 4
needs_x64 = pytest.mark.skipif(not X64, reason="eigenvalues of flat directions need float64")


def critical_point(depth, active):
    """One diagonal mode a class: s^(2M) = N lam x^M and |h|^2 = x^M / (N lam (1 + x^M)^2), x the largest root."""
    total = sum(SIZES)
    weights = [np.zeros((3 if m == depth - 1 else WIDTH, WIDTH)) for m in range(depth)]
    features = np.zeros((total, WIDTH))
    labels = np.repeat(np.arange(3), SIZES)
    for k in active:
        beta = depth * total * (total * DECAY ** (depth + 1)) ** (1 / depth) / SIZES[k]
        if depth == 1:
            x = beta**-0.5 - 1
        else:
            low, high = (depth - 1) ** (1 / depth), (depth / beta) ** (1 / (depth + 1))
            x = brentq(lambda x, b=beta: depth * x ** (depth - 1) / (1 + x**depth) ** 2 - b, low, high, xtol=1e-14)
        for weight in weights:
            weight[k, k] = (total * DECAY * x**depth) ** (1 / (2 * depth))
        features[labels == k, k] = np.sqrt(x**depth / (total * DECAY)) / (1 + x**depth)
    return UfmParams(jnp.asarray(features), tuple(jnp.asarray(w) for w in weights), None)


def spectrum(depth, active):
    problem = UfmProblem(SIZES, WIDTH, depth, weight_decay=DECAY, feature_decay=DECAY)
    return hessian_spectrum(problem, critical_point(depth, active))


@needs_x64
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_global_minimum_is_flat_along_rotations_only(depth):
    result = spectrum(depth, (0, 1, 2))
    assert float(result.gradient_norm) < 1e-12
    assert result.verdict == "local minimum"
    # Each of the `depth` hidden spaces has four dimensions, hence 6 planes, and every one of them moves a live class.
    assert int(result.num_symmetries) == depth * 6
    assert int(result.num_flat) == depth * 6


@needs_x64
@pytest.mark.parametrize("active", [(), (0,), (1,), (0, 1), (0, 2), (1, 2)])
def test_dead_classes_at_depth_one_are_strict_saddles(active):
    result = spectrum(1, active)
    assert result.verdict == "strict saddle"
    if active:
        assert -0.19 < float(result.eigenvalues[0]) < -0.12


@needs_x64
@pytest.mark.parametrize("depth", [2, 3])
def test_dead_classes_of_deeper_networks(depth):
    """Only the smallest classes dead: a spurious minimum. A larger one dead beside a smaller alive: a saddle."""
    for active in ((), (0,), (0, 1)):
        assert spectrum(depth, active).verdict == "local minimum"
    saddles = {active: spectrum(depth, active) for active in ((1,), (2,), (1, 2), (0, 2))}
    assert all(result.verdict == "strict saddle" for result in saddles.values())


@pytest.mark.slow
@needs_x64
def test_eigenvalues_by_central_differences_and_transformed():
    problem = UfmProblem((2, 1), 2, 2, weight_decay=0.05, feature_decay=0.1, bias="free", loss="cross_entropy")
    params = problem.init(jax.random.key(3))
    result = hessian_spectrum(problem, params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.jit(jax.grad(lambda v: problem.objective(unravel(v))))
    step = 1e-5 * np.eye(flat.size)
    hessian = np.stack([(gradient(flat + s) - gradient(flat - s)) / 2e-5 for s in step])
    np.testing.assert_allclose(result.eigenvalues, np.linalg.eigvalsh((hessian + hessian.T) / 2), atol=1e-8)
    assert result.verdict == "not critical"


@pytest.mark.slow
@needs_x64
def test_symmetries_of_constraints_bias_and_relu():
    constrained = UfmProblem((2, 2), 3, features="spherical", weights="norm_bounded", loss="cross_entropy", bias="free")
    result = hessian_spectrum(constrained, constrained.init(jax.random.key(1)))
    # 3 rotations of three dimensions, 4 lengths of features, 1 length of the weights, 1 shift of the bias.
    assert int(result.num_symmetries) == 9
    relu = UfmProblem((2, 2), 3, 2, activation="relu")
    assert int(hessian_spectrum(relu, relu.init(jax.random.key(1))).num_symmetries) == 3


def test_float32_sees_the_saddle_at_zero():
    problem = UfmProblem((4, 4), 3)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=jnp.float32), problem.init(jax.random.key(0)))
    result = hessian_spectrum(problem, zero)
    assert result.eigenvalues.dtype == jnp.float32
    assert result.verdict == "strict saddle"


def test_errors(own_errors):
    problem = UfmProblem((3, 3), 4)
    params = problem.init(jax.random.key(0))
    with pytest.raises(ValueError, match="`problem` must have features without bounds"):
        hessian_spectrum(replace(problem, features="nonnegative"), params)
    with pytest.raises(ValueError, match=r"`params\.features` must have shape"):
        hessian_spectrum(problem, replace(params, features=params.features[1:]))
    with pytest.raises(ValueError, match="`params` must be finite"):
        hessian_spectrum(problem, replace(params, features=params.features * jnp.nan))
    with pytest.raises(ValueError, match="`flat_tolerance` must be finite and > 0"):
        hessian_spectrum(problem, params, flat_tolerance=0.0)
    large = UfmProblem((100, 100), 64)
    with pytest.raises(ValueError, match="`problem` must have at most 4096 variables"):
        hessian_spectrum(large, large.init(jax.random.key(0)))
