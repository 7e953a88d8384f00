r"""Squared error on deep free features with ReLU: the collapsed solution, and graph solutions that beat it.

K classes of n samples, N = K n, L layers, free features H (d_1 N), one-hot targets Y:

    (1/(2N)) |W_L relu(W_{L-1} ... relu(W_1 H)) - Y|_F^2 + sum_l (lambda_l/2)|W_l|_F^2 + (lambda_H/2)|H|_F^2.

**Collapse.** Let every layer send axis k to a positive multiple of axis k. ReLU then changes nothing, so the minimum of
the linear network (mse_ufm.py, equal sizes, no bias) is attained: its loss is an upper bound of the ReLU minimum. It is
not zero iff n lambda_1 ... lambda_L lambda_H < (L-1)^(L-1)/(K^(L+1) L^(2L)).

**Graphs**, K = r(r-1)/2, r >= 4, L >= 3. A class is an edge of the complete graph on r vertices; B (r K) is its
incidence matrix. B B^T = (r-2) P + (2r-2) Q with Q = 11^T/r, P = I - Q. Hidden layers 1 ... L-2 carry multiples of B,
of rank r instead of K. From there W_{L-1} = B^T (sigma P + tau Q) reaches exactly the combinations of B^T B and 11^T,

    Z = D I + E A + F A',   D - E = E - F = sigma,   F = (4/r)(tau - sigma),
    |W_{L-1}|^2 = (r-1)(r-2) sigma^2 + (2r-2) tau^2 = w,

A being the adjacency matrix of edges that share a vertex, A' = 11^T - I - A that of disjoint ones. ReLU makes
X = max(Z, 0), of rank K in general. Two branches with one shape s in [-1, 1], where E = (1+s)/2 >= 0:

    line         (D, F) = (1, s);  s = -1 is the strongly regular graph recipe B^T B - 11^T, which ReLU turns into I;
    complement   (D, F) = (s, 1);  s = -1 is its negative, which ReLU turns into A'.

s < -1 leaves X as it is and lengthens W_{L-1}: w is a convex quadratic of s with slope -r(r-1)(r-2)/4 (line) or
-r(r-1)/2 (complement) at s = -1. So the range of s loses nothing.

**Scales and last layer.** For given X the last layer may be averaged over permutations of the vertices (convexity), so
W_L = V is a combination of I, A, A' up to scale. These have common eigenspaces of dimension 1, r-1, r(r-3)/2; let
x_i, v_i be the eigenvalues of X and V there and m_i the dimensions. W_1 H = B costs least with W_1 = (B B^T)^(1/4) and
H = (B B^T)^(-1/4) B up to scale (then |W_1| |H| is nu, the nuclear norm (r-1) sqrt(r-2) + sqrt(2r-2) of B); layers
between are multiples of I. By the inequality of arithmetic and geometric mean the penalties with the best scales leave,
with S = sum_i m_i v_i^2,

    L(s, v) = (1/(2K)) sum_i m_i (v_i x_i - 1)^2 + ((L+1)/2) (C w S)^(1/(L+1)),
    C = n lambda_H lambda_1 nu^2 * prod_{l=2}^{L-2} (lambda_l r) * lambda_{L-1} lambda_L,

and every term lambda_l |W_l|^2, lambda_H |H|^2 equals T = (C w S)^(1/(L+1)). dL/dv = 0 gives v_i = x_i/(x_i^2 + mu)
with one number mu = K T/S. So the whole branch is a function of (s, log mu): searched on a grid that covers it, zoomed
in, then Newton. Non-negative features (H itself after a ReLU) must carry B itself: nu^2 becomes r |B|_F^2 = r^2 (r-1).

The result is the best solution of this structure, an explicit point and so an upper bound of the minimum; no claim is
made that it is the minimum. Where it lies at s = -1 or carries exact zeros, it is stationary only one-sidedly (ReLU).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import Count, LayerDecay, check_count, check_decays
from nctheory.theory._deep_relu_records import DeepReluCollapse, SrgSolution
from nctheory.theory._srg import BRANCHES, best_graph, expansion, scheme_matrix
from nctheory.theory.mse_ufm import UfmParameters, mse_ufm_minimizer

_HIGHEST = jax.lax.Precision.HIGHEST
_GRAPHS = ("best", *BRANCHES)
_COPIED = (
    "active",
    "active_classes",
    "layer_singular_values",
    "layer_norms",
    "feature_singular_values",
    "feature_norm",
    "weight_gram",
    "feature_gram",
    "logits",
    "bias",
)
_FEATURES = ("free", "nonnegative")


def deep_relu_collapse(
    num_classes: int,
    samples_per_class: Count,
    *,
    depth: int,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
) -> DeepReluCollapse:
    """Collapsed solution of the deep ReLU unconstrained feature model, squared error, equal class sizes, no bias.

    Loss of the linear network of the same depth (`mse_ufm_minimizer`), attained in the non-negative orthant; zero iff
    n lambda_1 ... lambda_L lambda_H >= (L-1)^(L-1)/(K^(L+1) L^(2L)), where the loss is 1/2. For K >= 3 and L >= 3 it
    need not be the minimum. NaN where a traced argument is out of range.

    Args:
        num_classes: K >= 2.
        samples_per_class: n, a whole number >= 1 (samples); may be traced.
        depth: L >= 1 layers, ReLU after all but the last.
        weight_decay: lambda_l > 0, one number or one a layer, W_1 first (dimensionless).
        feature_decay: lambda_H > 0 of the squared norm summed over samples (dimensionless).

    Returns:
        Record of the solution.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Derived here. Optimality for K = 2: Sukenik, Mondelli and Lampert (2023), whose text was not at hand; the
        condition quoted from it agrees with the one above at K = 2.
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    dtype = _check_problem(samples_per_class, depth, weight_decay, feature_decay)
    decays = jnp.broadcast_to(as_float(weight_decay, dtype), (depth,))
    sizes = jnp.broadcast_to(as_float(samples_per_class, dtype), (num_classes,))
    feature_decay = as_float(feature_decay, dtype)
    minimizer = mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=feature_decay, depth=depth)
    # 0 log 0 = 0 at depth 1.
    constant = (depth + 1) * math.log(num_classes) + 2 * depth * math.log(depth)
    constant -= (depth - 1) * math.log(max(depth - 1, 1))
    copied: dict[str, Any] = {name: getattr(minimizer, name) for name in _COPIED}
    record = DeepReluCollapse(
        loss=minimizer.loss,
        trivial_loss=minimizer.trivial_loss,
        is_trivial=minimizer.is_trivial,
        condition=jnp.exp(jnp.log(sizes[0]) + jnp.sum(jnp.log(decays)) + jnp.log(feature_decay) + constant),
        minimizer=minimizer,
        **copied,
        is_minimum=depth == 1 or num_classes == 2,
    )
    return nan_unless(all_counts(sizes) & all_positive(decays, feature_decay), record)


def srg_solution(
    num_classes: int,
    samples_per_class: Count,
    *,
    depth: int,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
    graph: str = "best",
    features: str = "free",
) -> SrgSolution:
    """Best strongly-regular-graph solution of the deep ReLU model for K = r(r-1)/2 classes.

    Hidden layers carry the r x K edge-vertex incidence matrix; shape and scales are optimised (module docstring) and
    satisfy their optimality conditions to rounding. An explicit point, so an upper bound of the minimum, not a claim
    to be it. NaN where a traced argument is out of range; differentiable in decays and sizes through `loss` (envelope
    theorem).

    Args:
        num_classes: K = 6, 10, 15, 21, ...
        samples_per_class: n, a whole number >= 1 (samples); may be traced.
        depth: L >= 3 layers, ReLU after all but the last.
        weight_decay: lambda_l > 0, one number or one a layer, W_1 first (dimensionless).
        feature_decay: lambda_H > 0 of the squared norm summed over samples (dimensionless).
        graph: "line" (the recipe B^T B - 11^T), "complement" (its negative), or the "best" of the two.
        features: "free", or "nonnegative" if the features themselves come out of a ReLU.

    Returns:
        Record with the loss, the ratio to collapse and all scales; `srg_parameters` makes weights and features of it.

    Raises:
        ValueError: if an argument is out of range, or K is not r(r-1)/2 with r >= 4.

    References:
        Structure of the "line" branch: Sukenik, Lampert and Mondelli (2024), as the captions of its figures state it
        (the text was not at hand). Optimised scales and the "complement" branch: derived here.
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    vertices = (1 + math.isqrt(1 + 8 * num_classes)) // 2
    if vertices < 4 or vertices * (vertices - 1) != 2 * num_classes:
        raise ArgumentError(
            f"Argument `num_classes` must be r(r-1)/2 with r >= 4 (6, 10, 15, ...), but is {num_classes}."
        )
    depth = _checks.integer("depth", depth, minimum=3)
    _checks.choice("graph", graph, _GRAPHS)
    _checks.choice("features", features, _FEATURES)
    problem = {"depth": depth, "weight_decay": weight_decay, "feature_decay": feature_decay}
    collapse = deep_relu_collapse(num_classes, samples_per_class, **problem)
    dtype = collapse.loss.dtype
    samples, feature_decay = as_float(samples_per_class, dtype), as_float(feature_decay, dtype)
    decays = jnp.broadcast_to(as_float(weight_decay, dtype), (depth,))
    record = best_graph(
        samples,
        decays,
        feature_decay,
        collapse.loss,
        incidence=edge_incidence(vertices),
        branches=BRANCHES if graph == "best" else (graph,),
        features=features,
    )
    return nan_unless(all_counts(samples) & all_positive(decays, feature_decay), record)


def srg_beats_dnc(
    num_classes: int,
    samples_per_class: Count,
    *,
    depth: int,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
) -> Bool[jax.Array, ""]:
    """Whether a graph solution has a lower loss than deep neural collapse, which is then not the minimum.

    True is a proof by example (to rounding); False says nothing about other solutions.

    Args:
        num_classes: K = 6, 10, 15, 21, ...
        samples_per_class: n >= 1 (samples).
        depth: L >= 3.
        weight_decay: lambda_l > 0 (dimensionless).
        feature_decay: lambda_H > 0 (dimensionless).

    Returns:
        Truth value.

    Raises:
        ValueError: as `srg_solution`.

    References:
        Question of Sukenik, Lampert and Mondelli (2024); the comparison is derived here.
    """
    problem = {"depth": depth, "weight_decay": weight_decay, "feature_decay": feature_decay}
    return srg_solution(num_classes, samples_per_class, **problem).beats_collapse


def edge_incidence(num_vertices: int) -> Float[np.ndarray, "r K"]:
    """Incidence matrix of the complete graph: one column an edge, with ones at its two vertices.

    Args:
        num_vertices: r >= 2.

    Returns:
        Matrix of zeros and ones, K = r(r-1)/2 columns in lexicographic order.

    Raises:
        ValueError: if r < 2.
    """
    r = _checks.integer("num_vertices", num_vertices, minimum=2)
    first, second = np.triu_indices(r, 1)
    return (np.arange(r)[:, None] == first).astype(float) + (np.arange(r)[:, None] == second)


def srg_parameters(solution: SrgSolution, widths: Sequence[int] | None = None) -> UfmParameters:
    """Explicit weights and class features of a graph solution, also where zero would be better.

    Widths above r (above K for the last hidden layer) are filled with dead units. A batched record is refused: use
    `jax.vmap`.

    Args:
        solution: result of `srg_solution`.
        widths: d_1 ... d_L; r, ..., r, K if not given.

    Returns:
        Parameters in the record's dtype; repeat class feature k n times for all samples.

    Raises:
        ValueError: if widths do not fit, or the record is batched.

    References:
        Derived here (module docstring).
    """
    if np.ndim(solution.loss) != 0:
        batch = np.shape(solution.loss)
        raise ArgumentError(f"Argument `solution` must be one record, but is a batch {batch} of them: use `jax.vmap`.")
    r, depth = solution.num_vertices, solution.layer_norms.shape[-1]
    incidence = edge_incidence(r)
    least = (r,) * (depth - 1) + (incidence.shape[1],)
    widths = least if widths is None else _checks.integers("widths", widths, minimum=1)
    if len(widths) != depth or any(width < low for width, low in zip(widths, least, strict=True)):
        raise ArgumentError(f"Argument `widths` must be at least {list(least)}, but is {list(widths)}.")
    dtype = solution.loss.dtype
    share = jnp.full((r, r), 1 / r, dtype)
    rest = jnp.eye(r, dtype=dtype) - share
    b = jnp.asarray(incidence, dtype)
    power = (r - 2) ** 0.25 * rest + (2 * r - 2) ** 0.25 * share
    first, features = power, jnp.linalg.solve(power, b)
    if solution.features == "nonnegative":
        first, features = jnp.eye(r, dtype=dtype), b
    sigma, tau = expansion(solution.pre_activation, r)
    last_hidden = jnp.matmul(b.T, sigma * rest + tau * share, precision=_HIGHEST)
    shapes = (
        [first]
        + [jnp.eye(r, dtype=dtype)] * (depth - 3)
        + [last_hidden, scheme_matrix(solution.last_layer_eigenvalues, b, r)]
    )
    weights = [_rescale(w, norm) for w, norm in zip(shapes, solution.layer_norms, strict=True)]
    features = _rescale(features.T, solution.feature_norm / solution.samples_per_class)
    outer = (*widths[1:], incidence.shape[1])
    return UfmParameters(
        weights=tuple(_pad(w, rows, columns) for w, rows, columns in zip(weights, outer, widths, strict=True)),
        class_features=_pad(features, incidence.shape[1], widths[0]),
        bias=jnp.zeros(incidence.shape[1], dtype),
    )


def _rescale(matrix: jax.Array, squared_norm: jax.Array) -> jax.Array:
    present = jnp.sum(matrix**2)
    return matrix * jnp.sqrt(squared_norm / jnp.where(present > 0, present, 1.0))


def _pad(matrix: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _check_problem(samples_per_class, depth, weight_decay, feature_decay) -> np.dtype:
    depth = _checks.integer("depth", depth, minimum=1)
    check_count("samples_per_class", samples_per_class)
    dtype = float_dtype(samples_per_class, weight_decay, feature_decay)
    check_decays(weight_decay, feature_decay, depth, dtype)
    return dtype
