r"""Generalised neural collapse: more classes than dimensions allow a simplex, K > d + 1 (softmax codes).

With unit weights and features and a temperature that goes to zero, cross-entropy maximises the one-vs-rest margin

    rho(W) = min_k dist(w_k, conv{w_j : j != k})   over K unit vectors in R^d;

a maximiser is a softmax code. Values that are known, with the proofs (S = sum_j w_j, "rest" = conv of the others):

* **K <= d+1: K/(K-1)**, the simplex ETF. The mean of the others is in the rest, and sum_k |w_k - (S - w_k)/(K-1)|^2 =
  (K^3 - K |S|^2)/(K-1)^2 <= K (K/(K-1))^2, so some distance is at most K/(K-1); the simplex has S = 0 and equality.
* **K >= d+2: at most 1.** K points in R^d have a Radon partition: a point x = sum_I a_k w_k = sum_J b_j w_j, convex
  combinations over disjoint I and J. sum_I a_k |w_k - x|^2 = 1 - |x|^2 <= 1, so some w_k, k in I, is within 1 of x,
  which lies in its rest.
* **d+2 <= K <= 2d: 1.** Split R^d into K - d >= 2 orthogonal subspaces, each with a simplex of dimension + 1 vectors.
  No other vector has a positive inner product with w_k, so its rest is no closer than 1, and contains 0, at distance 1.
  K = 2d is the cross-polytope.
* **d = 2, K >= 4: 1 - cos(2 pi/K)**, the regular polygon. The two gaps next to some vector add up to 2 s <= 4 pi/K; its
  distance to the chord between its neighbours is cos(delta) - cos(s) <= 1 - cos(2 pi/K), delta being its angle from the
  chord's middle.
* **d = 1, K >= 3: 0**, two vectors coincide.

Otherwise only 0 < rho* <= 1 is known here, and `softmax_code` searches: dist(w_k, rest) = max over |h| <= 1 of
min_j h.(w_k - w_j), so rho* is the maximum over unit W and unit H of min_{k, j != k} h_k.(w_k - w_j). That minimum is
smoothed (log-sum-exp at a temperature lowered step by step) and climbed from many random starts at once. Each distance
of the result is then evaluated with a certificate: Wolfe's algorithm returns a point x of the rest, so |w_k - x| bounds
the distance from above, and min_j u.(w_k - w_j) with u = (w_k - x)/|w_k - x| bounds it from below.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.frames import simplex_etf
from nctheory.theory._common import as_float, float_dtype
from nctheory.theory._wolfe import nearest_in_hull

_HIGHEST = jax.lax.Precision.HIGHEST
_FIRST_TEMPERATURE, _LAST_TEMPERATURE = 0.1, 1e-6
_ASSUMPTIONS = (
    "class weights and features are unit vectors, features free parameters, no bias",
    "cross-entropy in the limit of temperature zero",
    "the best code where `is_optimal`; elsewhere the best one found",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OneVsRestDistance:
    """Distances of vectors from the convex hull of the others, each enclosed between two bounds.

    Attributes:
        distances: distance of w_k from the point of the hull that was found; an upper bound of the true distance.
        lower_bounds: certified lower bounds, from a separating direction; 0 where none separates.
        gap: largest difference of the two; rounding, up to its square root where many vectors support a hull alike.
        margin: smallest of the distances, rho(W).
        margin_lower_bound: smallest of the lower bounds.
        coefficients: convex coefficients of the nearest point, one row a vector, zero on the diagonal.
        directions: unit vectors from the nearest point to w_k (the best feature of class k); 0 where the distance is.
    """

    distances: Float[jax.Array, "... K"]
    lower_bounds: Float[jax.Array, "... K"]
    gap: Float[jax.Array, "..."]
    margin: Float[jax.Array, "..."]
    margin_lower_bound: Float[jax.Array, "..."]
    coefficients: Float[jax.Array, "... K K"]
    directions: Float[jax.Array, "... K d"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftmaxCode:
    """Softmax code, or the best one found.

    Attributes:
        vectors: K unit vectors, one a row.
        margin: its one-vs-rest margin: the closed value where there is one, else what this code was evaluated to.
        margin_lower_bound: certified lower bound of the margin of these vectors, and so of the largest margin rho*.
        upper_bound: proven upper bound of rho*.
        evaluation: distances of `vectors` with their certificates.
        start_margins: margins reached by all random starts, empty for closed values.
        is_optimal: whether `margin` is known to be rho*; False says that a better code may exist.
        kind: "simplex", "orthogonal simplices", "polygon", "degenerate", or "numerical".
        assumptions: what must hold for the code to be the classifier that cross-entropy tends to.
    """

    vectors: Float[jax.Array, "K d"]
    margin: Float[jax.Array, ""]
    margin_lower_bound: Float[jax.Array, ""]
    upper_bound: Float[jax.Array, ""]
    evaluation: OneVsRestDistance
    start_margins: Float[jax.Array, " S"]
    is_optimal: bool = field(metadata={"static": True})
    kind: str = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def one_vs_rest_distance(vectors: Num[AnyArray, "K d"]) -> OneVsRestDistance:
    """Distance of every vector from the convex hull of the others, with a certificate.

    dist(w_k, conv{w_j, j != k}); K/(K-1) for a simplex ETF, 0 for a vector inside the hull of the others, such as one
    of two equal ones. The bounds hold to rounding of the evaluation; vectors need not have unit length.

    Args:
        vectors: K >= 2 vectors, one a row, any unit.

    Returns:
        Record with upper and lower bounds, in the unit of the vectors; larger margins separate better.

    Raises:
        ValueError: if the vectors are not a finite matrix with at least 2 rows and 1 column.

    References:
        Quantity: Jiang et al. (2024). Algorithm: Wolfe (1976), nearest point in a polytope; certificate derived here.
    """
    _checks.number("vectors", vectors)
    _checks.shape("vectors", vectors, ("K", "d"))
    if np.shape(vectors)[0] < 2 or np.shape(vectors)[1] < 1:
        raise ArgumentError(
            f"Argument `vectors` must have at least 2 rows and 1 column, but has shape {np.shape(vectors)}."
        )
    # Linear systems are not solved in half precision.
    return _distances(as_float(vectors, np.promote_types(float_dtype(vectors), np.float32)))


def softmax_code_margin(num_classes: int, dim: int) -> float:
    """Largest one-vs-rest margin of K unit vectors in R^d, where a closed value is known; else NaN.

    K/(K-1) for K <= d+1; 1 for d+2 <= K <= 2d; 1 - cos(2 pi/K) for d = 2; 0 for d = 1, K >= 3.

    Args:
        num_classes: K >= 2.
        dim: d >= 1.

    Returns:
        Margin, dimensionless, in [0, 2]; larger separates better.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Values: Jiang et al. (2024) and later work, as quoted in secondary sources; proofs in the module docstring.
    """
    k = _checks.integer("num_classes", num_classes, minimum=2)
    d = _checks.integer("dim", dim, minimum=1)
    if k <= d + 1:
        return k / (k - 1)
    if d == 1:
        return 0.0
    if d == 2:
        return 1 - math.cos(2 * math.pi / k)
    return 1.0 if k <= 2 * d else math.nan


def softmax_code(
    num_classes: int,
    dim: int,
    *,
    key: Key[Array, ""] | None = None,
    num_starts: int = 32,
    num_steps: int = 4000,
) -> SoftmaxCode:
    """K unit vectors in R^d with a large one-vs-rest margin: exact where known, else the best of many searches.

    Exact for K <= 2d and for d <= 2 (`is_optimal`). Otherwise the margin of the code returned is certified, its being
    the largest possible is not: compare `margin`, `upper_bound`, and the spread of `start_margins`.

    Args:
        num_classes: K >= 2.
        dim: d >= 1.
        key: PRNG key of the starts; needed where no closed value is known.
        num_starts: random starts.
        num_steps: gradient steps of each, spread over the temperatures.

    Returns:
        Record with the vectors, in JAX's default float dtype.

    Raises:
        ValueError: if an argument is out of range, or a key is needed and missing.

    References:
        Jiang et al. (2024) for the notion; values and search derived here (module docstring).
    """
    margin = softmax_code_margin(num_classes, dim)
    _checks.integer("num_starts", num_starts, minimum=1)
    _checks.integer("num_steps", num_steps, minimum=1)
    upper_bound = margin if not math.isnan(margin) else 1.0
    start_margins = jnp.zeros(0)
    if not math.isnan(margin):
        kind, vectors = _closed_code(num_classes, dim)
        vectors = jnp.asarray(vectors, dtype=jnp.result_type(float))
    else:
        if (
            key is None
            or not hasattr(key, "dtype")
            or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            or key.ndim != 0
        ):
            raise ArgumentError(
                f"Argument `key` must be a PRNG key where no closed code is known, here {num_classes} classes in "
                f"dimension {dim}, but is {key!r}."
            )
        kind = "numerical"
        vectors, start_margins = _search(key, num_classes, dim, num_starts, num_steps)
    evaluation = _distances(vectors)
    return SoftmaxCode(
        vectors=vectors,
        margin=evaluation.margin if kind == "numerical" else jnp.asarray(margin, vectors.dtype),
        margin_lower_bound=evaluation.margin_lower_bound,
        upper_bound=jnp.asarray(upper_bound, vectors.dtype),
        evaluation=evaluation,
        start_margins=start_margins,
        is_optimal=kind != "numerical",
        kind=kind,
    )


def _closed_code(k: int, d: int) -> tuple[str, np.ndarray]:
    if k <= d + 1:
        return "simplex", np.asarray(simplex_etf(k, max(d, k - 1)))
    if d == 1:
        return "degenerate", np.where(np.arange(k) % 2 == 0, 1.0, -1.0)[:, None]
    if d == 2:
        angles = 2 * np.pi * np.arange(k) / k
        return "polygon", np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vectors, row, column = np.zeros((k, d)), 0, 0
    for part in np.array_split(np.arange(d), k - d):
        size = len(part)
        vectors[row : row + size + 1, column : column + size] = simplex_etf(size + 1, size)
        row, column = row + size + 1, column + size
    return "orthogonal simplices", vectors


@jax.jit
def _distances(vectors: jax.Array) -> OneVsRestDistance:
    k = vectors.shape[0]
    others = ~jnp.eye(k, dtype=bool)
    # Divided by the largest entry, so that tolerances are relative and squares neither overflow nor underflow.
    scale = jnp.max(jnp.abs(vectors))
    scale = jnp.where(scale > 0, scale, 1.0)
    scaled = vectors / scale

    def one(own, allowed):
        differences = own[None, :] - scaled
        coefficients = nearest_in_hull(differences, allowed)
        # Against rounding: the nearest point is the image of exact convex coefficients.
        residual = jnp.matmul(coefficients, differences, precision=_HIGHEST)
        length = jnp.sqrt(jnp.sum(residual**2))
        direction = jnp.where(length > 0, residual / jnp.where(length > 0, length, 1.0), 0.0)
        supports = jnp.matmul(differences, direction, precision=_HIGHEST)
        lower = jnp.min(jnp.where(allowed, supports, jnp.inf))
        return coefficients, length, jnp.clip(lower, 0.0, length), direction

    coefficients, lengths, lower, directions = jax.vmap(one)(scaled, others)
    return OneVsRestDistance(
        distances=lengths * scale,
        lower_bounds=lower * scale,
        gap=jnp.max(lengths - lower) * scale,
        margin=jnp.min(lengths) * scale,
        margin_lower_bound=jnp.min(lower) * scale,
        coefficients=coefficients,
        directions=directions,
    )


@partial(jax.jit, static_argnames=("k", "d", "num_starts", "num_steps"))
def _search(key, k: int, d: int, num_starts: int, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Best code of all starts, and the margins of all."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_starts))
    codes = jax.vmap(lambda one: _climb(one, k, d, num_steps))(keys)
    margins = jax.vmap(lambda code: _distances(code).margin)(codes)
    return codes[jnp.argmax(margins)], margins


def _climb(key, k: int, d: int, num_steps: int) -> jax.Array:
    """Adam on the smoothed margin of unit W and H, the step shrinking with the temperature."""
    weights = jax.random.normal(key, (k, d), dtype=float)
    off_diagonal = ~jnp.eye(k, dtype=bool)

    def smoothed(params, temperature):
        w, h = _unit(params[0]), _unit(params[1])
        products = jnp.matmul(h, w.T, precision=_HIGHEST)
        margins = jnp.diagonal(products)[:, None] - products
        return temperature * jax.nn.logsumexp(jnp.where(off_diagonal, -margins / temperature, -jnp.inf))

    last = jnp.log(jnp.asarray(_LAST_TEMPERATURE, weights.dtype))
    first = jnp.log(jnp.asarray(_FIRST_TEMPERATURE, weights.dtype))

    def step(i, carry):
        params, first_moment, second_moment = carry
        done = jnp.asarray(i, weights.dtype)
        temperature = jnp.exp(first + (last - first) * done / num_steps)
        gradient = jax.grad(smoothed)(params, temperature)
        first_moment = 0.9 * first_moment + 0.1 * gradient
        second_moment = 0.99 * second_moment + 0.01 * gradient**2
        unbiased = first_moment / (1 - 0.9 ** (done + 1))
        size = jnp.sqrt(second_moment / (1 - 0.99 ** (done + 1)))
        return params - temperature * unbiased / (size + 1e-8), first_moment, second_moment

    # optax's Adam raises a float to an integer power, which strict dtype promotion refuses.
    params = jnp.stack([_unit(weights), _unit(weights)])
    params, *_ = jax.lax.fori_loop(0, num_steps, step, (params, jnp.zeros_like(params), jnp.zeros_like(params)))
    return _unit(params[0])


def _unit(rows: jax.Array) -> jax.Array:
    return rows / jnp.sqrt(jnp.sum(rows**2, axis=1))[:, None]
