"""Lengths and directions of class means: the raw numbers behind NC2, NC3 and NC5.

Every function here sees the in-distribution features through their class means alone, so class means that are already
known may stand for them, with the labels 0..K-1 (one sample a class). Class means that coincide up to the rounding of
the features, eps times their size in every coordinate, have no directions about their mean: NaN.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics import _moments
from nctheory.metrics._directions import least_length, lengths, log_energy, row_cosines, unit_vectors
from nctheory.metrics._factors import right_singular_vectors, singular_values
from nctheory.metrics._moments import HIGHEST, ClassMoments
from nctheory.metrics.collapse import check_classifier


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HypersphericalUniformity:
    """How evenly the directions of the centred class means cover the sphere; dimensionless. NaN: undefined.

    Attributes:
        energy: mean over pairs of classes of log(1 / |u_c - u_c'|), u_c the unit vectors; smaller is more even.
        etf_energy: that of a simplex ETF, -log(2K/(K-1)) / 2, which no other K unit vectors reach.
        excess: energy - etf_energy >= 0, found without the difference; 0 for a simplex ETF.
    """

    energy: Float[Array, "*batch"]
    etf_energy: Float[Array, "*batch"]
    excess: Float[Array, "*batch"]


def class_mean_norms(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int
) -> Float[Array, " K"]:
    """Length of every centred class mean, |mu_c - mu_G|.

    mu_G is the UNWEIGHTED mean of the class means mu_c. `CollapseMetrics.nc2_equinorm` is std / mean of these numbers.
    All equal for a simplex ETF and for K = 2; 0 where a class mean is mu_G. Unchanged by a rotation and a common
    offset, proportional to the scale of the features, and permuted as the classes are. Under transformations an empty
    class, an out-of-range label, or a non-finite feature gives NaN throughout.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.

    Returns:
        The lengths, in the unit of the features.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> norms = class_mean_norms(np.array([[3.0, 0.0], [-3.0, 0.0]]), np.arange(2), num_classes=2)
        >>> [float(norm) for norm in norms]
        [3.0, 3.0]

    References:
        Papyan, Han and Donoho (2020), NC2.
    """
    _check(features, labels, num_classes)
    return _norms(features, labels, num_classes=int(num_classes))


def class_mean_cosines(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int
) -> Float[Array, "K K"]:
    """Cosines between all pairs of centred class means, g_c . g_c' / (|g_c| |g_c'|).

    `CollapseMetrics.nc2_equiangular` is the mean of |cos + 1/(K-1)| over the ordered pairs c != c'. A simplex ETF has
    -1/(K-1) throughout, two antipodal pairs have -1 and 0. Unchanged by a rotation, a scale or a common offset of the
    features, permuted as the classes are.

    Undefined, hence NaN: rows and columns of a class whose mean is the mean of the class means (length at most eps K
    times the largest). Under transformations an empty class, an out-of-range label, or a non-finite feature gives NaN
    throughout.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.

    Returns:
        The symmetric matrix of cosines (dimensionless), 1 on the diagonal.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> cosines = class_mean_cosines(np.eye(3), np.arange(3), num_classes=3)
        >>> round(float(cosines[0, 1]), 3)
        -0.5

    References:
        Papyan, Han and Donoho (2020), NC2.
    """
    _check(features, labels, num_classes)
    return _cosines(features, labels, num_classes=int(num_classes))


def hyperspherical_uniformity(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int
) -> HypersphericalUniformity:
    """Measure how evenly the directions of the centred class means cover the sphere: their logarithmic energy.

    energy = mean over pairs c != c' of log(1 / |u_c - u_c'|), u_c = g_c / |g_c|. For K unit vectors the mean of the
    squared distances is at most 2K/(K-1), with equality if they sum to zero, so by Jensen's inequality energy >=
    -log(2K/(K-1)) / 2, with equality for the simplex ETF alone (it needs d >= K-1). Lengths play no part. Unchanged by
    a rotation, a scale, a common offset and a renumbering of the classes; K = 2 has only antipodal means, so the excess
    is 0 by construction there.

    Two classes in one direction give inf. Undefined, hence NaN: a class mean that is the mean of the class means
    (length at most eps K times the largest). Under transformations an empty class, an out-of-range label, or a
    non-finite feature gives NaN.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.

    Returns:
        The energy, that of the simplex ETF, and the excess; smaller is more even.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> antipodal_pairs = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> uniformity = hyperspherical_uniformity(antipodal_pairs, np.arange(4), num_classes=4)
        >>> round(float(uniformity.excess), 4)  # -(log(3/2) + 2 log(3/4)) / 6
        0.0283

    References:
        Liu et al. (2018), minimum hyperspherical energy, of which this is the logarithmic kernel (s = 0), averaged
        over pairs; not the Gaussian potential of Wang and Isola (2020). Bound by the simplex ETF: derived here.
    """
    _check(features, labels, num_classes)
    return _uniformity(features, labels, num_classes=int(num_classes))


def class_alignment(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    weight: Float[AnyArray, "K d"],
    *,
    num_classes: int,
) -> Float[Array, " K"]:
    """NC3 class by class: cosine between each row of a linear classifier and the centred mean of its class.

    cos(w_c, mu_c - mu_G), mu_G the UNWEIGHTED mean of the class means; the rows of the classifier are not centred, as
    in `CollapseMetrics.nc3_duality`. 1 for every class under self-duality, whatever the lengths; -1 if a row points
    away from its class. Unchanged by a rotation of both, a scale of either, and a common offset of the features.

    Undefined, hence NaN: classes with w_c = 0 or whose mean is the mean of the class means (length at most eps K times
    the largest). Under transformations an empty class, an out-of-range label, or a non-finite feature gives NaN.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        weight: classifier matrix, one row a class, any unit.
        num_classes: K, at least 2.

    Returns:
        The cosines (dimensionless), in [-1, 1]; larger is more aligned.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite input.

    Example:
        >>> import numpy as np
        >>> cosines = class_alignment(np.eye(2), np.arange(2), np.array([[2.0, -2.0], [1.0, 1.0]]), num_classes=2)
        >>> [round(float(cosine), 3) for cosine in cosines]
        [1.0, 0.0]

    References:
        Papyan, Han and Donoho (2020), NC3; taken class by class here.
    """
    _check(features, labels, num_classes)
    check_classifier(weight, None, num_classes=num_classes, dim=np.shape(features)[1])
    return _alignment(features, labels, weight, num_classes=int(num_classes))


def ood_orthogonality(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    ood_features: Float[AnyArray, "M d"],
    *,
    num_classes: int,
    about: str = "global_mean",
) -> Float[Array, ""]:
    """NC5: mean over classes of |cos| between the class mean and the mean of out-of-distribution samples.

    (1/K) sum_c |cos(mu_c - a, mu_ood - a)|, mu_ood the mean of all out-of-distribution samples. With `about`
    "global_mean", a is the UNWEIGHTED mean of the class means: unchanged by a common offset, a rotation and a scale of
    the features. With "origin", a = 0: depends on the offset, so that features with a large common offset (as after a
    ReLU) are near 1 whatever their classes. 0 if the out-of-distribution mean is orthogonal to every class mean; for a
    simplex ETF and an out-of-distribution mean in the direction of one class 1/K + 1/K = 2/K about the global mean.

    Undefined, hence NaN: an out-of-distribution mean or a class mean at a (distance at most eps K times the largest of
    the class means'). Under transformations an empty class, an out-of-range label, or a non-finite feature gives NaN.

    Args:
        features: in-distribution activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        ood_features: out-of-distribution activations, at least one row, in the same unit.
        num_classes: K, at least 2.
        about: "global_mean" or "origin".

    Returns:
        Mean absolute cosine (dimensionless), in [0, 1]; smaller is more orthogonal.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, no out-of-distribution sample, NaN
            or infinite features, or another `about`.

    Example:
        >>> import numpy as np
        >>> ood = np.array([[1 / 3, 1 / 3, 1 / 3, 1.0]])
        >>> round(float(ood_orthogonality(np.eye(3, 4), np.arange(3), ood, num_classes=3)), 3)
        0.0

    References:
        Ammar et al. (2024), NC5. Their text was not at hand: public reimplementations that cite its eq. 5 average the
        absolute cosines of the raw means, which is "origin" here; the form about the global mean is the project's own.
    """
    _check(features, labels, num_classes)
    _checks.choice("about", about, ("global_mean", "origin"))
    _checks.shape("ood_features", ood_features, ("M", np.shape(features)[1]))
    _checks.floating("ood_features", ood_features)
    _checks.finite("ood_features", ood_features)
    if np.shape(ood_features)[0] == 0:
        raise ArgumentError("Argument `ood_features` must have at least 1 row, but has none.")
    return _orthogonality(features, labels, ood_features, num_classes=int(num_classes), about=about)


def principal_cosines(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    weight: Float[AnyArray, "m d"],
    *,
    num_classes: int,
    centered: bool = True,
) -> Float[Array, " r"]:
    """Cosines of the principal angles between a layer's leading input directions and the span of the class means.

    The singular values of V^T M: V holds the first r right singular vectors of `weight`, M an orthonormal basis of the
    span of the class means, about their UNWEIGHTED mean (`centered`, r = min(K-1, d)) or as they are (r = min(K, d)).
    All 1 if the layer reads exactly the subspace in which the class means lie, all 0 if it ignores that subspace.
    Unchanged by a rotation of both and by a scale of either; `centered` also by a common offset of the features. Their
    mean summarises them.

    Undefined, hence NaN throughout: class means that span fewer than r dimensions, or a weight of rank below r
    (singular value <= eps max(rows, columns) times the largest). Where the r-th and the next singular value of the
    weight coincide, the leading subspace is not unique and any may be returned. Under transformations an empty class,
    an out-of-range label, or a non-finite feature gives NaN.

    Args:
        features: input activations of the layer, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        weight: weight matrix of the layer, outputs as rows, at least r of them.
        num_classes: K, at least 2.
        centered: whether the class means are taken about their mean.

    Returns:
        The cosines (dimensionless), in [0, 1], falling; larger is more aligned.

    Raises:
        ValueError: for wrong shapes or dtypes, too few rows in `weight`, labels out of range, an empty class, NaN or
            infinite input.

    Example:
        >>> import numpy as np
        >>> cosines = principal_cosines(np.eye(3, 5), np.arange(3), np.eye(4, 5), num_classes=3, centered=False)
        >>> cosines.shape
        (3,)

    References:
        After the public code of Rangamani et al. (2023), which averages these cosines for the first K right singular
        vectors and uncentred means; whether the paper defines them so was not checked.
    """
    _check(features, labels, num_classes)
    _checks.shape("weight", weight, ("m", np.shape(features)[1]))
    _checks.finite("weight", weight)
    rank = min(num_classes - (1 if centered else 0), np.shape(features)[1])
    if np.shape(weight)[0] < rank:
        raise ArgumentError(f"Argument `weight` must have at least {rank} rows, but has {np.shape(weight)[0]}.")
    return _principal(features, labels, weight, num_classes=int(num_classes), rank=rank, centered=bool(centered))


def _check(features: Any, labels: Any, num_classes: int) -> None:
    _moments.check_inputs(features, labels, num_classes=num_classes)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)


def _moments_of(features: Any, labels: Any, num_classes: int) -> ClassMoments:
    return _moments.class_means(jnp.asarray(features), _moments.as_labels(labels, num_classes), num_classes)


@partial(jax.jit, static_argnames="num_classes")
def _norms(features: Any, labels: Any, *, num_classes: int) -> Float[Array, " K"]:
    return lengths(_moments_of(features, labels, num_classes).centered_means())


@partial(jax.jit, static_argnames="num_classes")
def _cosines(features: Any, labels: Any, *, num_classes: int) -> Float[Array, "K K"]:
    means = _moments_of(features, labels, num_classes).means_apart()
    units = unit_vectors(means, least_length(means))
    return jnp.clip(jnp.matmul(units, units.T, precision=HIGHEST), -1, 1)


@partial(jax.jit, static_argnames="num_classes")
def _uniformity(features: Any, labels: Any, *, num_classes: int) -> HypersphericalUniformity:
    energy, etf, excess = log_energy(_moments_of(features, labels, num_classes).means_apart())
    return HypersphericalUniformity(energy=energy, etf_energy=etf, excess=excess)


@partial(jax.jit, static_argnames="num_classes")
def _alignment(features: Any, labels: Any, weight: Any, *, num_classes: int) -> Float[Array, " K"]:
    return row_cosines(jnp.asarray(weight), _moments_of(features, labels, num_classes).means_apart())


@partial(jax.jit, static_argnames=("num_classes", "about"))
def _orthogonality(features: Any, labels: Any, ood_features: Any, *, num_classes: int, about: str) -> Float[Array, ""]:
    moments = _moments_of(features, labels, num_classes)
    none = jnp.zeros(np.shape(ood_features)[0], jnp.int32)
    ood = _moments.class_means(jnp.asarray(ood_features).astype(moments.offsets.dtype), none, 1)
    return orthogonality(moments, ood.reference, ood.offsets[0], about=about)


def orthogonality(
    moments: ClassMoments, reference: Float[Array, " d"], offset: Float[Array, " d"], *, about: str
) -> Float[Array, ""]:
    """`ood_orthogonality` of class means and an out-of-distribution mean `reference + offset`.

    Args:
        moments: of the in-distribution samples.
        reference: a point near the out-of-distribution samples.
        offset: their mean minus `reference`.
        about: "global_mean" or "origin".

    Returns:
        The mean absolute cosine.
    """
    if about == "origin":
        means = jnp.where(moments.is_complete, moments.reference[None, :] + moments.offsets, jnp.nan)
        outside = reference + offset
    else:
        means = moments.means_apart()
        # The two points near the data differ by little, so that a common offset of both costs no digits.
        outside = (reference - moments.reference) - jnp.mean(moments.offsets, axis=0) + offset
    units, least = unit_vectors(means, least_length(means)), least_length(means)
    cosines = jnp.matmul(units, unit_vectors(outside[None, :], least)[0], precision=HIGHEST)
    return jnp.minimum(jnp.mean(jnp.abs(cosines)), 1)


@partial(jax.jit, static_argnames=("num_classes", "rank", "centered"))
def _principal(
    features: Any, labels: Any, weight: Any, *, num_classes: int, rank: int, centered: bool
) -> Float[Array, " r"]:
    moments = _moments_of(features, labels, num_classes)
    raw = jnp.where(moments.is_complete, moments.reference[None, :] + moments.offsets, jnp.nan)
    means = moments.means_apart() if centered else raw
    weight = jnp.asarray(weight).astype(means.dtype)
    overlap = jnp.matmul(_leading(weight, rank), _leading(means, rank).T, precision=HIGHEST)
    return jnp.clip(singular_values(overlap), 0, 1)


def _leading(matrix: Float[Array, "m d"], rank: int) -> Float[Array, "r d"]:
    """First right singular vectors; NaN if the matrix has a smaller rank."""
    sigma, vt = right_singular_vectors(matrix)
    floor = float(jnp.finfo(matrix.dtype).eps) * max(matrix.shape) * sigma[0]
    return jnp.where(sigma[rank - 1] > floor, vt[:rank], jnp.nan)
