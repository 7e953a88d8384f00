"""Point of smallest norm in a convex hull: Wolfe's active-set method, traceable, exact up to rounding.

Wolfe (1976): keep an affinely independent set of points ("corral") and the point of smallest norm in its affine hull.
Add the point that lies furthest below the supporting hyperplane; while the new affine minimiser has a negative
coefficient, walk towards it until a coefficient vanishes and drop that point. Finite in exact arithmetic.
"""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


def nearest_in_hull(points: jax.Array, allowed: jax.Array) -> jax.Array:
    """Convex coefficients of the point of smallest norm in the hull of the allowed rows of `points`."""
    gram = jnp.matmul(points, points.T, precision=_HIGHEST)
    squares = jnp.diagonal(gram)
    count = points.shape[0]
    tolerance = 16 * jnp.finfo(points.dtype).eps * jnp.max(jnp.where(allowed, squares, 0.0))
    start = jax.nn.one_hot(jnp.argmin(jnp.where(allowed, squares, jnp.inf)), count, dtype=points.dtype)

    def body(carry):
        coefficients, corral, add, steps, _ = carry
        products = jnp.matmul(points, jnp.matmul(coefficients, points, precision=_HIGHEST), precision=_HIGHEST)
        entering = jnp.argmin(jnp.where(allowed, products, jnp.inf))
        norm = jnp.sum(coefficients * products)
        # An entering point that is in the corral already can only be rounding.
        is_optimal = add & ((products[entering] >= norm - tolerance) | corral[entering])
        corral = jnp.where(add & ~is_optimal, corral | (jnp.arange(count) == entering), corral)
        target = _affine_minimum(gram, corral)
        is_inside = jnp.all(jnp.where(corral, target > 0, True))
        partial, leaving = _walk(coefficients, target, corral)
        is_sound = jnp.all(jnp.isfinite(target))
        stop = is_optimal | ~is_sound
        new = jnp.where(stop, coefficients, jnp.where(is_inside, target, partial))
        return new, jnp.where(is_inside, corral, corral & ~leaving), is_inside, steps + 1, stop

    first = (start, start > 0, jnp.asarray(True), jnp.asarray(0), jnp.asarray(False))
    limit = 20 * count + 50
    return jax.lax.while_loop(lambda carry: ~carry[-1] & (carry[-2] < limit), body, first)[0]


def _affine_minimum(gram: jax.Array, corral: jax.Array) -> jax.Array:
    """Affine coefficients of the point of smallest norm in the affine hull of the corral."""
    # (G + 11^T) mu = 1 on the corral; coefficients mu/sum(mu). Rows outside are the identity, with value 0.
    both = corral[:, None] & corral[None, :]
    matrix = jnp.where(both, gram + 1.0, 0.0) + jnp.diag(jnp.where(corral, 0.0, 1.0).astype(gram.dtype))
    mu = jnp.linalg.solve(matrix, corral.astype(gram.dtype))
    mu = jnp.where(corral, mu, 0.0)
    return mu / jnp.sum(mu)


def _walk(coefficients: jax.Array, target: jax.Array, corral: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients where the way to the target leaves the hull, and the point that leaves the corral there."""
    falls = corral & (target <= 0)
    drop = coefficients - target
    ratio = jnp.where(falls, coefficients / jnp.where(drop > 0, drop, 1.0), jnp.inf)
    step = jnp.clip(jnp.min(ratio), 0.0, 1.0)
    partial = jnp.maximum(coefficients + step * (target - coefficients), 0.0)
    leaving = jnp.arange(len(ratio)) == jnp.argmin(ratio)
    partial = jnp.where(leaving, 0.0, partial)
    return partial / jnp.sum(partial), leaving
