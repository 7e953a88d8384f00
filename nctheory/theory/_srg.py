"""One branch of the strongly-regular-graph solution (deep_relu.py): its loss over (s, log mu), minimised."""

import jax
import jax.numpy as jnp
import numpy as np

_GRID, _ZOOMS, _NEWTON_STEPS = 33, 16, 4


def expansion(entries: jax.Array, r: int) -> tuple[jax.Array, jax.Array]:
    """Sigma and tau of W_{L-1} from (D, E, F)."""
    sigma = (entries[0] - entries[2]) / 2
    return sigma, sigma + entries[2] * r / 4


def entries_of(s: jax.Array, is_complement: bool) -> jax.Array:
    """(D, E, F) of a branch; ReLU is exact at s = -1, where E = 0."""
    ends = [s, jnp.ones_like(s)] if is_complement else [jnp.ones_like(s), s]
    return jnp.stack([ends[0], (1 + s) / 2, ends[1]])


def loss_parts(s, log_mu, log_scale, r: int, depth: int, is_complement: bool):
    """Loss at (s, log mu), and log T and the eigenvalues of V."""
    k = r * (r - 1) // 2
    entries = entries_of(s, is_complement)
    sigma, tau = expansion(entries, r)
    w = (r - 1) * (r - 2) * sigma**2 + (2 * r - 2) * tau**2
    d, e, f = jnp.maximum(entries, 0.0)
    x = jnp.stack([d + 2 * (r - 2) * e + (k - 2 * r + 3) * f, d + (r - 4) * e - (r - 3) * f, d - 2 * e + f])
    mu = jnp.exp(log_mu)
    v = x / (x**2 + mu)
    multiplicity = (1, r - 1, r * (r - 3) // 2)
    square = sum(m * v[i] ** 2 for i, m in enumerate(multiplicity))
    misfit = sum(m * (mu / (x[i] ** 2 + mu)) ** 2 for i, m in enumerate(multiplicity))
    # x = 0 in every mode only if X = 0, which the branches exclude; so w, S > 0.
    log_penalty = (log_scale + jnp.log(w) + jnp.log(square)) / (depth + 1)
    return misfit / (2 * k) + (depth + 1) / 2 * jnp.exp(log_penalty), (log_penalty, v)


def minimize_branch(log_scale, r: int, depth: int, is_complement: bool):
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
    start = (low + high) / 2
    start = start.at[0].set(jnp.where(low[0] <= -1.0, -1.0, start[0]))
    return _newton(value, start, jnp.stack([jnp.where(low[0] <= -1.0, 0.0, 1.0), jnp.ones_like(centre)]).astype(dtype))


def _newton(value, point, free):
    """Newton steps on the free coordinates, each kept only if it shrinks the gradient."""
    for _ in range(_NEWTON_STEPS):
        gradient = free * jax.grad(value)(point)
        hessian = jax.hessian(value)(point) * free[:, None] * free[None, :]
        hessian = hessian + jnp.diag(1 - free)
        trial = point - jnp.linalg.solve(hessian, gradient)
        new = free * jax.grad(value)(trial)
        better = jnp.sum(new**2) < jnp.sum(gradient**2)
        point = jnp.where(better & (trial[0] >= -1) & (trial[0] <= 1), trial, point)
    return point


def scheme_matrix(v: jax.Array, b: jax.Array, r: int) -> jax.Array:
    """V from its eigenvalues: projectors on 1, on the rest of the row space of B, and on its complement."""
    k = b.shape[1]
    ones = jnp.full((k, k), 1 / k, b.dtype)
    rows = (jnp.matmul(b.T, b, precision=jax.lax.Precision.HIGHEST) - 4 / r) / (r - 2)
    return v[0] * ones + v[1] * rows + v[2] * (jnp.eye(k, dtype=b.dtype) - ones - rows)


def candidate(log_scale: jax.Array, r: int, depth: int, is_complement: bool) -> tuple[jax.Array, ...]:
    """Best point of a branch: loss, branch, s, (D, E, F), v, mu, T."""
    # Envelope theorem: the loss at the optimum moves with its explicit arguments alone.
    s, log_mu = jax.lax.stop_gradient(minimize_branch(jax.lax.stop_gradient(log_scale), r, depth, is_complement))
    loss, (log_penalty, v) = loss_parts(s, log_mu, log_scale, r, depth, is_complement)
    entries = entries_of(s, is_complement)
    return loss, jnp.asarray(is_complement), s, entries, v, jnp.exp(log_mu), jnp.exp(log_penalty)
