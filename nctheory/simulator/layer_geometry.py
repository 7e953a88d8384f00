"""Neural collapse of a linear head, layer by layer: what enters layer m (F_m) and what the rest does (A_m = W_M..W_m).

Three target geometries, each compared after division by the Frobenius norm: orthogonal frame (no bias, balanced),
simplex ETF (free bias, balanced) and general orthogonal frame (no bias, unequal classes), the last one against targets
that the caller supplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from nctheory import _checks, frames
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics.collapse import whitening

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameTargets:
    """Squared lengths of the general orthogonal frames to compare with; only ratios within a row matter.

    Attributes:
        weight_squares: predicted diagonal of A_m A_m^T, one row a layer.
        feature_squares: predicted squared norms of the class means of F_m, one row a layer.
        logits: predicted diagonal of A_m F_m, the same for every layer.
    """

    weight_squares: Float[AnyArray, "M K"]
    feature_squares: Float[AnyArray, "M K"]
    logits: Float[AnyArray, " K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerGeometry:
    """Distances from collapse, one entry a layer, dimensionless, 0 at full collapse; NaN where undefined.

    F_m: class means (columns), h_G: sample-weighted global mean, u(X) = X/|X| (Frobenius), C = I - 11^T/K.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+)/K with Sigma_B about h_G; NaN if the centred means span fewer than K-1 dimensions.
        nc2_weight_of: |u(A_m A_m^T) - I/sqrt(K)|.
        nc2_weight_etf: |u(A_m A_m^T) - C/sqrt(K-1)|.
        nc2_weight_gof: |u(A_m A_m^T) - u(diag(weight_squares))|; NaN without targets.
        nc2_feature_of: |u(F_m^T F_m) - I/sqrt(K)|, raw means.
        nc2_feature_etf: the ETF distance of the means minus h_G.
        nc2_feature_gof: |u(F_m^T F_m) - u(diag(feature_squares))|; NaN without targets.
        nc3_of: |u(A_m F_m) - I/sqrt(K)|.
        nc3_etf: |u(A_m (F_m - h_G 1^T)) - C/sqrt(K-1)|.
        nc3_gof: |u(A_m F_m) - u(diag(logits))|; NaN without targets.
        nc3_align: |u(A_m) - u(F_m^T)|, raw means.
        nc3_align_centered: the same with the means minus h_G.
        nc3_align_gof: |u(A_m) - u(diag(logits/feature_squares) F_m^T)|, a class of length 0 counting as 0.
    """

    nc1: Float[Array, "*batch M"]
    nc2_weight_of: Float[Array, "*batch M"]
    nc2_weight_etf: Float[Array, "*batch M"]
    nc2_weight_gof: Float[Array, "*batch M"]
    nc2_feature_of: Float[Array, "*batch M"]
    nc2_feature_etf: Float[Array, "*batch M"]
    nc2_feature_gof: Float[Array, "*batch M"]
    nc3_of: Float[Array, "*batch M"]
    nc3_etf: Float[Array, "*batch M"]
    nc3_gof: Float[Array, "*batch M"]
    nc3_align: Float[Array, "*batch M"]
    nc3_align_centered: Float[Array, "*batch M"]
    nc3_align_gof: Float[Array, "*batch M"]


def layer_geometry(
    features: Sequence[Float[AnyArray, "N _"]],
    products: Sequence[Float[AnyArray, "K _"]],
    labels: Integer[AnyArray, " N"],
    *,
    num_classes: int,
    targets: FrameTargets | None = None,
) -> LayerGeometry:
    """Measure the collapse of every layer of a linear head (formulas: `LayerGeometry`).

    Args:
        features: F_1..F_M, the features that enter each layer, one row a sample.
        products: A_1..A_M, the product of the layers from the m-th to the last, one row a class.
        labels: class of each sample, every class present.
        num_classes: K, at least 2.
        targets: lengths of the general orthogonal frames, or None.

    Returns:
        One number a layer for each metric; smaller is more collapsed.

    Raises:
        ValueError: if numbers of layers or shapes do not fit, a label is out of range, or a class is empty.

    References:
        The metrics of the published code of Dang et al. (2023), with every Gram matrix normalised and general frames
        at every layer (the code has them for the full product only).
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    depth = len(features)
    if depth == 0 or len(products) != depth:
        raise ArgumentError(
            f"Argument `products` must list one matrix for each of {depth} >= 1 layers, but lists {len(products)}."
        )
    _checks.labels("labels", labels, num_classes=num_classes, length=np.shape(features[0])[0])
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    for entering, product in zip(features, products, strict=True):
        _checks.shape("features", entering, (np.shape(labels)[0], "d"))
        _checks.shape("products", product, (num_classes, np.shape(entering)[1]))
    if targets is not None:
        for name in ("weight_squares", "feature_squares"):
            _checks.shape(f"targets.{name}", getattr(targets, name), (depth, num_classes))
            _checks.real(f"targets.{name}", getattr(targets, name), minimum=0)
        _checks.shape("targets.logits", targets.logits, (num_classes,))
        _checks.real("targets.logits", targets.logits, minimum=0)
    members = jnp.asarray(labels)[None, :] == jnp.arange(num_classes, dtype=jnp.asarray(labels).dtype)[:, None]
    layers = []
    for m in range(depth):
        lengths = None
        if targets is not None:
            lengths = (targets.weight_squares[m], targets.feature_squares[m], targets.logits)
        layers.append(_one_layer(jnp.asarray(features[m]), jnp.asarray(products[m]), members, lengths))
    return jax.tree.map(lambda *values: jnp.stack(values), *layers)


def _one_layer(features: jax.Array, product: jax.Array, members: jax.Array, lengths: Any) -> LayerGeometry:
    dtype = features.dtype
    num_classes = members.shape[0]
    shares = members.astype(dtype)
    means = _multiply(shares / jnp.sum(shares, axis=1)[:, None], features)
    residuals = features - _multiply(shares.T, means)
    centered = means - jnp.mean(features, axis=0)[None, :]
    identity = jnp.eye(num_classes, dtype=dtype)
    simplex = identity - 1 / num_classes
    logits = _multiply(product, means.T)
    nan = jnp.full((), jnp.nan, dtype)
    weight_gof = feature_gof = logits_gof = align_gof = nan
    if lengths is not None:
        weight_squares, feature_squares, diagonal = (jnp.asarray(value).astype(dtype) for value in lengths)
        weight_gof = _distance(_multiply(product, product.T), jnp.diag(weight_squares))
        feature_gof = _distance(_multiply(means, means.T), jnp.diag(feature_squares))
        logits_gof = _distance(logits, jnp.diag(diagonal))
        ratios = jnp.where(feature_squares > 0, diagonal / jnp.where(feature_squares > 0, feature_squares, 1.0), 0.0)
        align_gof = _distance(product, ratios[:, None] * means)
    return LayerGeometry(
        nc1=jnp.sum(_multiply(residuals, whitening(centered)) ** 2) / features.shape[0],
        nc2_weight_of=frames.orthogonal_frame_distance(product),
        nc2_weight_etf=frames.etf_distance(product),
        nc2_weight_gof=weight_gof,
        nc2_feature_of=frames.orthogonal_frame_distance(means),
        nc2_feature_etf=frames.etf_distance(centered),
        nc2_feature_gof=feature_gof,
        nc3_of=_distance(logits, identity),
        nc3_etf=_distance(_multiply(product, centered.T), simplex),
        nc3_gof=logits_gof,
        nc3_align=_distance(product, means),
        nc3_align_centered=_distance(product, centered),
        nc3_align_gof=align_gof,
    )


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """|u(a) - u(b)|; NaN if either is zero."""
    return jnp.sqrt(jnp.sum((_unit(a) - _unit(b)) ** 2))


def _unit(matrix: jax.Array) -> jax.Array:
    # Divided by the largest entry first, so that squares neither overflow nor underflow.
    scaled = matrix / jnp.max(jnp.abs(matrix))
    return scaled / jnp.sqrt(jnp.sum(scaled**2))
