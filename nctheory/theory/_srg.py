"""Branches of the strongly-regular-graph solution (deep_relu.py): their loss over (s, log mu), minimised.

The number of vertices and the depth are traced, so that one compiled program serves every problem.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nctheory.theory._deep_relu_records import SrgSolution

BRANCHES = ("line", "complement")
_HIGHEST = jax.lax.Precision.HIGHEST
_GRID, _ZOOMS, _NEWTON_STEPS = 33, 16, 4


def expansion(entries: jax.Array, r: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Sigma and tau of W_{L-1} from (D, E, F)."""
    sigma = (entries[0] - entries[2]) / 2
    return sigma, sigma + entries[2] * r / 4


def entries_of(s: jax.Array, is_complement: jax.Array) -> jax.Array:
    """(D, E, F) of a branch; ReLU is exact at s = -1, where E = 0."""
    one = jnp.ones_like(s)
    return jnp.stack([jnp.where(is_complement, s, one), (1 + s) / 2, jnp.where(is_complement, one, s)])


def rectified_spectrum(entries: jax.Array, r: jax.Array | int) -> jax.Array:
    """Eigenvalues of X = max(Z, 0) on the eigenspaces of dimension 1, r-1, r(r-3)/2."""
    d, e, f = jnp.maximum(entries, 0.0)
    others = (r - 2) * (r - 3) / 2
    return jnp.stack([d + 2 * (r - 2) * e + others * f, d + (r - 4) * e - (r - 3) * f, d - 2 * e + f])


def loss_parts(s, log_mu, log_scale, r, depth, is_complement):
    """Loss at (s, log mu), and log T and the eigenvalues of V."""
    k = r * (r - 1) / 2
    entries = entries_of(s, is_complement)
    sigma, tau = expansion(entries, r)
    w = (r - 1) * (r - 2) * sigma**2 + (2 * r - 2) * tau**2
    x = rectified_spectrum(entries, r)
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
    rows = (jnp.matmul(b.T, b, precision=_HIGHEST) - 4 / r) / (r - 2)
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


def best_graph(samples, decays, feature_decay, collapse_loss, *, incidence, branches, features) -> SrgSolution:
    """Record of the best point of the allowed branches; `incidence` is the matrix B."""
    r, depth, dtype = incidence.shape[0], decays.shape[0], collapse_loss.dtype
    nuclear = (r - 1) * math.sqrt(r - 2) + math.sqrt(2 * r - 2)
    carrier = r**2 * (r - 1) if features == "nonnegative" else nuclear**2
    logs = jnp.log(decays)
    log_scale = jnp.log(samples) + jnp.log(feature_decay) + jnp.sum(logs)
    log_scale = log_scale + math.log(carrier) + (depth - 3) * math.log(r)
    # For r = 4 the two branches are one solution with the classes renamed.
    allowed = jnp.asarray([branch in branches for branch in BRANCHES])
    loss, is_complement, s, entries, v, mu, penalty = best_point(
        log_scale, jnp.asarray(r, dtype), jnp.asarray(depth, dtype), allowed
    )
    trivial = jnp.asarray(0.5, dtype)
    is_trivial, final = loss >= trivial, jnp.minimum(loss, trivial)
    penalty = jnp.where(is_trivial, 0.0, penalty)
    entries, v = jnp.where(is_trivial, 0.0, entries), jnp.where(is_trivial, 0.0, v)
    norms = penalty / decays
    return SrgSolution(
        loss=final,
        trivial_loss=trivial,
        is_trivial=is_trivial,
        collapse_loss=collapse_loss,
        ratio=final / collapse_loss,
        beats_collapse=final < collapse_loss * (1 - 64 * float(jnp.finfo(dtype).eps)),
        is_complement=is_complement,
        shape=jnp.where(is_trivial, jnp.nan, s),
        pre_activation=entries,
        last_layer_eigenvalues=v,
        ridge=jnp.where(is_trivial, jnp.nan, mu),
        penalty=penalty,
        layer_norms=norms,
        feature_norm=penalty / feature_decay,
        **_geometry(entries, v, norms, penalty / feature_decay, samples, incidence, features),
        samples_per_class=samples,
        num_vertices=r,
        features=features,
    )


def _geometry(entries, v, layer_norms, feature_norm, samples, incidence, features) -> dict[str, Any]:
    """Singular values and Gram matrices from the eigenvalues of every factor, known up to scale."""
    r, k = incidence.shape
    dtype, depth = v.dtype, layer_norms.shape[0]
    b = jnp.asarray(incidence, dtype)
    # On the three eigenspaces: B has singular values sqrt(2r-2), sqrt(r-2), 0.
    carrier = jnp.asarray([math.sqrt(2 * r - 2), math.sqrt(r - 2), 0.0], dtype)
    identity = jnp.asarray([1.0, 1.0, 0.0], dtype)
    half = carrier if features == "nonnegative" else jnp.sqrt(carrier)
    first = identity if features == "nonnegative" else half
    sigma, tau = expansion(entries, r)
    factors = [first, *[identity] * (depth - 3), carrier * jnp.abs(jnp.stack([tau, sigma, jnp.zeros_like(tau)])), v]
    layers = jnp.stack([_spread(factor, norm, r) for factor, norm in zip(factors, layer_norms, strict=True)])
    hidden = _spread(half, feature_norm, r)
    # One value of each eigenspace: columns 0, 1, and the last one.
    ends = np.array([0, 1, k - 1])
    return {
        "active": layers[-1] > 0,
        "active_classes": jnp.broadcast_to(feature_norm > 0, (k,)),
        "layer_singular_values": layers,
        "feature_singular_values": hidden,
        "weight_gram": scheme_matrix(layers[-1][ends] ** 2, b, r),
        "feature_gram": scheme_matrix(hidden[ends] ** 2 / samples, b, r),
        "logits": scheme_matrix(v * rectified_spectrum(entries, r), b, r),
        "bias": jnp.zeros(k, dtype),
    }


def _spread(values: jax.Array, squared_norm: jax.Array, r: int) -> jax.Array:
    """Singular values, one a mode, of a matrix with these values on the eigenspaces up to scale, and this norm."""
    multiplicity = np.array([1, r - 1, r * (r - 3) // 2])
    modes = jnp.repeat(jnp.abs(values), multiplicity, total_repeat_length=int(multiplicity.sum()))
    present = jnp.sum(modes**2)
    return modes * jnp.sqrt(squared_norm / jnp.where(present > 0, present, 1.0))
