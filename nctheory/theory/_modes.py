r"""One mode of a deep linear network with weight decay: its minimiser, its threshold, its tie.

After everything else is eliminated (see mse_ufm.py) a mode of depth M costs its target times

    f(x) = 1/(1 + x^M) + beta x,   x >= 0;   f(0) = 1.

f'(x) = beta - g(x) with g(x) = M x^(M-1)/(1+x^M)^2. With y = M log x,

    log g = log M + (1 - 1/M) y - 2 log(1 + e^y),   d log g/dy = 1 - 1/M - 2 p,   p = x^M/(1+x^M) = sigmoid(y),

a concave function of y with its peak at x^M = (M-1)/(M+1). So f' = 0 has at most two roots; beyond the peak g falls and
the larger root is the only local minimum besides x = 0. At a root beta x = M p (1-p), hence f = (1-p)(1 + M p), which
is below f(0) = 1 iff p > (M-1)/M, that is x^M > M - 1. Inserting x^M = M - 1 into g gives the threshold

    thr_M = (M-1)^((M-1)/M) / M   (thr_1 = 1):   beta < thr_M: the larger root;   beta > thr_M: zero.

For M >= 2 the fitted fraction p jumps at the threshold from (M-1)/M to 0, and at beta = thr_M both are global. Roots
exist further up, to beta = g at its peak (`root_limit`); between the two values the root is a local minimum, but zero
is lower.

**Numerics.** M = 1: x = beta^(-1/2) - 1. M >= 2: from g(x) < M x^(-M-1) the root lies left of x = (M/beta)^(1/(M+1)).
Newton's method on log g(y) = log beta, started there, moves left and never crosses the root, because log g is concave
and decreasing. For beta <= thr_M its slope stays in [-(M+1)/M, -(M-1)/M] and its curvature above -1/2, so eight steps
reach rounding. Everything runs on log beta, which neither overflows nor underflows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEWTON_STEPS = 8
# Two values of beta this close (in units of the spacing at 1) are the same number after the arithmetic leading to them.
TIE_SPACINGS = 32


class Mode(NamedTuple):
    """Global minimiser of f, element by element."""

    x: jax.Array
    fraction: jax.Array  # p = x^M/(1+x^M)
    log_fraction: jax.Array  # its logarithm; a finite placeholder where the mode is inactive
    value: jax.Array  # f at the minimiser, in (0, 1]
    active: jax.Array
    is_tie: jax.Array  # zero and the larger root are both global, to rounding


def threshold(depth: int) -> float:
    """Largest beta at which a mode is alive at the global minimum: (M-1)^((M-1)/M)/M, and 1 for M = 1."""
    return (depth - 1) ** ((depth - 1) / depth) / depth


def root_limit(depth: int) -> float:
    """Largest beta at which f has a stationary point x > 0; using it as the threshold is an error for M >= 2."""
    m = depth
    return m * ((m - 1) / (m + 1)) ** ((m - 1) / m) * ((m + 1) / (2 * m)) ** 2


def minimize_mode(log_beta: jax.Array, depth: int, *, keep_ties: bool = False) -> Mode:
    """Minimise f for every entry of log beta; `keep_ties` chooses the larger root where both solutions are global."""
    log_threshold = math.log(threshold(depth))
    distance = log_beta - log_threshold
    close = jnp.abs(distance) <= TIE_SPACINGS * jnp.finfo(log_beta.dtype).eps
    is_tie = close if depth > 1 else jnp.zeros_like(close)  # at depth 1 the two solutions are one
    active = jnp.where(is_tie, keep_ties, distance < 0)
    safe = jnp.where(active, jnp.minimum(log_beta, log_threshold), log_threshold - 1.0)
    y = jnp.log(jnp.expm1(-safe / 2)) if depth == 1 else _larger_root(safe, depth)
    fraction, rest = jax.nn.sigmoid(y), jax.nn.sigmoid(-y)
    return Mode(
        x=jnp.where(active, jnp.exp(y / depth), 0.0),
        fraction=jnp.where(active, fraction, 0.0),
        log_fraction=-jax.nn.softplus(-y),
        value=jnp.where(active, jnp.minimum(rest * (1 + depth * fraction), 1.0), 1.0),
        active=active,
        is_tie=is_tie,
    )


def _larger_root(log_beta: jax.Array, depth: int) -> jax.Array:
    """Solve log g(y) = log beta by Newton's method, from the right."""
    rise, log_depth = 1 - 1 / depth, math.log(depth)
    y = depth / (depth + 1) * (log_depth - log_beta)
    for _ in range(_NEWTON_STEPS):
        gap = log_depth + rise * y - 2 * jax.nn.softplus(y) - log_beta
        y = y - gap / (rise - 2 * jax.nn.sigmoid(y))
    return y
