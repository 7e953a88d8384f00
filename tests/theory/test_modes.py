"""The scalar problem of one mode against a fine grid and polynomial roots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory.theory._modes import minimize_mode, root_limit, threshold

X64 = jax.config.jax_enable_x64
# Rounding of log beta, at most 30 in size, amplified by dy/dlog beta <= M/(M-1).
RTOL = 1e-13 if X64 else 3e-5


def cost(x, beta, depth):
    return 1 / (1 + x**depth) + beta * x


def grid_minimum(beta, depth):
    """Smallest f over x >= 0 by brute force: a logarithmic grid and zero."""
    x = np.concatenate([[0.0], np.geomspace(1e-8, 10 * (depth / beta) ** (1 / (depth + 1)) + 10, 20001)])
    values = cost(x, beta, depth)
    return values.min(), x[values.argmin()]


def largest_root(beta, depth):
    """Largest real solution of beta (1+x^M)^2 = M x^(M-1), by the companion matrix."""
    coefficients = np.zeros(2 * depth + 1)
    coefficients[[0, depth, 2 * depth]] = beta, 2 * beta, beta
    coefficients[depth + 1] -= depth  # power M - 1
    roots = np.roots(coefficients)
    real = roots[np.abs(roots.imag) < 1e-7].real
    return real.max(initial=0.0)


def test_known_thresholds():
    np.testing.assert_allclose([threshold(m) for m in (1, 2, 3, 6)], [1, 0.5, 0.5291337, 0.6372704], rtol=1e-7)
    np.testing.assert_allclose([root_limit(m) for m in (1, 2, 3, 6)], [1, 0.6495, 0.8399, 1.5425], rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 9, 20])
@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 0.01, 0.5, 0.9, 0.99, 1.01, 1.3, 10.0])
def test_against_a_grid(depth, ratio):
    beta = ratio * threshold(depth)
    mode = minimize_mode(jnp.log(jnp.asarray(beta)), depth)
    value, _ = grid_minimum(beta, depth)
    x = float(mode.x)
    assert bool(mode.active) == (ratio < 1)
    assert float(mode.value) <= value * (1 + 1e-14 if X64 else 1 + 1e-5)
    assert float(mode.value) == pytest.approx(cost(x, beta, depth), rel=max(RTOL, 1e-13))
    assert float(mode.fraction) == pytest.approx(x**depth / (1 + x**depth), rel=10 * RTOL, abs=RTOL)
    if ratio < 1:
        slope = beta - depth * x ** (depth - 1) / (1 + x**depth) ** 2
        assert abs(slope) < 100 * RTOL * beta
        assert float(jnp.exp(mode.log_fraction)) == pytest.approx(float(mode.fraction), rel=10 * RTOL)
    if depth <= 9 and 1e-6 < ratio < 1:
        assert x == pytest.approx(largest_root(beta, depth), rel=1e-8 if X64 else 1e-4)


@pytest.mark.parametrize("depth", [2, 3, 6, 9])
def test_jump_and_tie(depth):
    """At the threshold x^M = M - 1 and both solutions cost 1; the fraction jumps from (M-1)/M to 0."""
    at = jnp.log(jnp.asarray(threshold(depth)))
    kept, dropped = minimize_mode(at, depth, keep_ties=True), minimize_mode(at, depth)
    assert bool(kept.is_tie)
    assert bool(dropped.is_tie)
    assert float(kept.value) == pytest.approx(1.0, abs=RTOL)
    assert float(kept.x) ** depth == pytest.approx(depth - 1, rel=10 * RTOL)
    assert float(dropped.x) == 0.0
    for ratio, fraction in ((0.99, (depth - 1) / depth), (1.01, 0.0)):
        mode = minimize_mode(at + np.log(ratio), depth, keep_ties=True)
        assert not bool(mode.is_tie)
        assert float(mode.fraction) == pytest.approx(fraction, abs=0.02)
        assert (float(mode.fraction) > fraction) == (ratio < 1)


@pytest.mark.parametrize("depth", [2, 3, 6, 9])
def test_the_largest_root_is_not_the_minimum_beyond_the_threshold(depth):
    """A rule that takes every root is refuted: between the threshold and the root limit zero is lower."""
    between = np.linspace(threshold(depth), root_limit(depth), 7)[1:-1]
    for beta in between:
        root = largest_root(beta, depth)
        assert root > 0.1
        assert cost(root, beta, depth) > 1 + 1e-4
        assert float(minimize_mode(jnp.log(jnp.asarray(beta)), depth).value) == 1.0
    assert largest_root(root_limit(depth) * 1.001, depth) == 0.0


def test_depth_one_is_continuous():
    log_beta = jnp.log(jnp.asarray([1.0 - 1e-4, 1.0, 1.0 + 1e-4]))
    mode = minimize_mode(log_beta, 1, keep_ties=True)
    np.testing.assert_array_equal(mode.active, [True, False, False])
    assert not mode.is_tie.any()
    assert float(mode.x[0]) == pytest.approx(0.5e-4, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(log_beta=st.floats(-60.0, 20.0), depth=st.integers(1, 12))
def test_never_above_zero(log_beta, depth):
    mode = minimize_mode(jnp.asarray(log_beta), depth)
    assert all(np.isfinite(np.asarray(part)).all() for part in mode)
    assert 0 < float(mode.value) <= 1
    assert bool(mode.active) == (float(mode.x) > 0)


def test_derivative():
    """df/dbeta = x at the minimum, on both sides of the threshold, by the envelope theorem."""
    for depth, ratio in ((1, 0.3), (3, 0.8), (3, 1.2)):
        beta = jnp.asarray(ratio * threshold(depth))

        def value(beta, depth=depth):
            return minimize_mode(jnp.log(beta), depth).value

        np.testing.assert_allclose(
            jax.grad(value)(beta), minimize_mode(jnp.log(beta), depth).x, rtol=1e-10 if X64 else 1e-3
        )
