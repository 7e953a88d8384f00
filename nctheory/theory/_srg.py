"""Branches of the strongly-regular-graph solution (deep_relu.py): their loss over (s, log mu), minimised.

The number of vertices and the depth are traced, so that one compiled program serves every problem.
"""

import jax
import jax.numpy as jnp
import numpy as np

_GRID, _ZOOMS, _NEWTON_STEPS = 33, 16, 4


def expansion(entries: jax.Array, r: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Sigma and tau of W_{L-1} from (D, E, F)."""
    sigma = (entries[0] - entries[2]) / 2
    return sigma, sigma + entries[2] * r / 4


def entries_of(s: jax.Array, is_complement: jax.Array) -> jax.Array:
    """(D, E, F) of a branch; ReLU is exact at s = -1, where E = 0."""
    one = jnp.ones_like(s)
    return jnp.stack([jnp.where(is_complement, s, one), (1 + s) / 2, jnp.where(is_complement, one, s)])


def loss_parts(s, log_mu, log_scale, r, depth, is_complement):
    """Loss at (s, log mu), and log T and the eigenvalues of V."""
    k = r * (r - 1) / 2
    entries = entries_of(s, is_complement)
    sigma, tau = expansion(entries, r)
    w = (r - 1) * (r - 2) * sigma**2 + (2 * r - 2) * tau**2
    d, e, f = jnp.maximum(entries, 0.0)
    x = jnp.stack([d + 2 * (r - 2) * e + (k - 2 * r + 3) * f, d + (r - 4) * e - (r - 3) * f, d - 2 * e + f])
    mu = jnp.exp(log_mu)
    v = x / (x**2 + mu)
    multiplicity = jnp.stack([jnp.ones_like(r), r - 1, r * (r - 3) / 2])
    square = jnp.sum(multiplicity * v**2)
    misfit = jnp.sum(multiplicity * (mu / (x**2 + mu)) ** 2)
    # x = 0 in every mode only if X = 0, which the branches exclude; so w, S > 0.
    log_penalty = (log_scale + jnp.log(w) + jnp.log(square)) / (depth + 1)
    return misfit / (2 * k) + (depth + 1) / 2 * jnp.exp(log_penalty), (log_penalty, v)


def _minimize_branch(log_scale, r, depth, is_complement):
    """Grid over all of (s, log mu), zoomed in, then guarded Newton steps; s stays put where it is -1."""
    dtype = log_scale.dtype

    def value(point):
        return loss_parts(point[0], point[1], log_scale, r, depth, is_complement)[0]

    def zoom(_, box):
        low, high = box
        steps = jnp.linspace(0.0, 1.0, _GRID, dtype=dtype)
        s = low[0] + (high[0] - low[0]) * steps
        log_mu = low[1] + (high[1] - low[1]) * steps
        values = jax.vmap(lambda a: jax.vmap(lambda b: value(jnp.stack([a, b])))(log_mu))(s)
        best = jnp.argmin(values)
        centre = jnp.stack([s[best // _GRID], log_mu[best % _GRID]])
        reach = (high - low) / 8
        low, high = centre - reach, centre + reach
        return low.at[0].max(-1.0), high.at[0].min(1.0)

    # mu is about K T with T about exp(log_scale/(depth+1)) times sizes that depend on r alone.
    centre = log_scale / (depth + 1)
    low, high = jnp.stack([-jnp.ones_like(centre), centre - 12]), jnp.stack([jnp.ones_like(centre), centre + 12])
    low, high = jax.lax.fori_loop(0, _ZOOMS if dtype == np.float64 else _ZOOMS // 2, zoom, (low, high))
    is_pinned = low[0] <= -1.0
    start = (low + high) / 2
    start = start.at[0].set(jnp.where(is_pinned, -1.0, start[0]))
    free = jnp.stack([jnp.where(is_pinned, 0.0, 1.0).astype(dtype), jnp.ones_like(centre)])
    return jax.lax.fori_loop(0, _NEWTON_STEPS, lambda _, point: _newton_step(value, point, free), start)


def _newton_step(value, point, free):
    """Newton step on the free coordinates, kept only if it shrinks the gradient."""

    def gradient_of(at):
        gradient = free * jax.grad(value)(at)
        return gradient, gradient

    hessian, gradient = jax.jacfwd(gradient_of, has_aux=True)(point)
    (a, b), (_, c) = hessian * free[:, None] * free[None, :] + jnp.diag(1 - free)
    move = jnp.stack([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / (a * c - b * b)
    trial = point - move
    new = gradient_of(trial)[0]
    better = (jnp.sum(new**2) < jnp.sum(gradient**2)) & (trial[0] >= -1) & (trial[0] <= 1)
    return jnp.where(better, trial, point)


def scheme_matrix(v: jax.Array, b: jax.Array, r: int) -> jax.Array:
    """V from its eigenvalues: projectors on 1, on the rest of the row space of B, and on its complement."""
    k = b.shape[1]
    ones = jnp.full((k, k), 1 / k, b.dtype)
    rows = (jnp.matmul(b.T, b, precision=jax.lax.Precision.HIGHEST) - 4 / r) / (r - 2)
    return v[0] * ones + v[1] * rows + v[2] * (jnp.eye(k, dtype=b.dtype) - ones - rows)


@jax.jit
def best_point(log_scale: jax.Array, r: jax.Array, depth: jax.Array, allowed: jax.Array) -> tuple[jax.Array, ...]:
    """Best point of the allowed branches (line, complement): loss, branch, s, (D, E, F), v, mu, T."""

    def candidate(is_complement):
        # Envelope theorem: the loss at the optimum moves with its explicit arguments alone.
        s, log_mu = jax.lax.stop_gradient(_minimize_branch(jax.lax.stop_gradient(log_scale), r, depth, is_complement))
        loss, (log_penalty, v) = loss_parts(s, log_mu, log_scale, r, depth, is_complement)
        return loss, is_complement, s, entries_of(s, is_complement), v, jnp.exp(log_mu), jnp.exp(log_penalty)

    found = jax.vmap(candidate)(jnp.asarray([False, True]))
    best = jnp.argmin(jnp.where(allowed, found[0], jnp.inf))
    return tuple(part[best] for part in found)
