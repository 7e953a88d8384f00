"""How many directions features use, and how much of their spread lies between classes: measures of a spectrum.

All of them come from the singular values of centred features, never from a covariance, whose small eigenvalues lose
half of the digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from nctheory import _checks
from nctheory._types import AnyArray
from nctheory.metrics import _moments
from nctheory.metrics._factors import (
    left_singular_vectors,
    residual_factor,
    residual_triangle,
    right_singular_vectors,
    singular_values,
)
from nctheory.metrics._moments import ClassMoments


def effective_rank(features: Float[AnyArray, "N d"]) -> Float[Array, ""]:
    """Effective rank of centred features: exp of the entropy of their normalised singular values.

    exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j, sigma the singular values of the features minus their mean
    over samples. 1 for features on a line, r for r equal singular values; at most min(N-1, d). K class means in a
    simplex ETF give K-1. Unchanged by a rotation, a scale or a common offset of the features; not by samples given
    twice unequally. Singular values up to eps min(N, d) times the largest count as 0: they are rounding.

    Undefined, hence NaN: features that are all equal, or a single sample. Under transformations a non-finite feature
    gives NaN.

    Cost O(N d min(N, d)) time; the memory beyond the features is O(d^2), or a copy of the features if N < d.
    Half-precision features are measured in float32, and so are float64 NumPy arrays unless JAX's x64 mode is on.

    Args:
        features: activations, one row a sample, any common unit. For the spread within classes, subtract the class
            means before; for the class means alone, give these as rows.

    Returns:
        The effective rank (dimensionless), in [1, min(N-1, d)]; a collapsed layer has about K-1.

    Raises:
        ValueError: for a wrong shape or dtype, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> round(float(effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 3)
        2.0

    References:
        Roy and Vetterli (2007), of a matrix of any kind; the centring is the project's own.
    """
    _check(features)
    return _of_spectrum(features, measure=_effective_rank)


def stable_rank(features: Float[AnyArray, "N d"]) -> Float[Array, ""]:
    """Stable rank of centred features: squared Frobenius norm / squared spectral norm.

    sum_i sigma_i^2 / sigma_1^2, sigma the singular values of the features minus their mean over samples: the total
    variance in units of the largest principal variance. 1 for features on a line, r for r equal singular values; at
    most the rank, and continuous, so that it needs no rule which singular values are 0. Unchanged by a rotation, a
    scale or a common offset of the features.

    Undefined, hence NaN: features that are all equal, or a single sample. Under transformations a non-finite feature
    gives NaN. Cost and precision as for `effective_rank`.

    Args:
        features: activations, one row a sample, any common unit; see `effective_rank`.

    Returns:
        The stable rank (dimensionless), in [1, min(N-1, d)].

    Raises:
        ValueError: for a wrong shape or dtype, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> round(float(stable_rank(np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 3)
        1.25

    References:
        Standard; Rangamani et al. (2023) follow that of the within-class activations in their public code.
    """
    _check(features)
    return _of_spectrum(features, measure=_stable_rank)


def variability_collapse_index(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int
) -> Float[Array, ""]:
    """Variability collapse index: the share of the class directions' spread that lies within classes.

    VCI = 1 - tr(Sigma_T^+ Sigma_B) / rank(Sigma_B), Sigma_T = Sigma_W + Sigma_B with Sigma_W and Sigma_B as in
    `collapse_metrics`; on balanced classes Sigma_T is the covariance of all features. 0 if every feature equals its
    class mean; towards 1 as the class means' spread vanishes against the spread within classes. With spread s within
    and b between classes in each direction of the class means, s / (s + b). Unchanged by every INVERTIBLE linear map
    and a common offset of the features, and by a renumbering of the classes.

    Rank rule: directions in which A = [Z / sqrt(N); G / sqrt(K)], the features and the class means about their means
    (Sigma_T = A^T A), has a singular value of at most eps d times the largest count as absent;
    rank(Sigma_B) counts the singular values of G / sqrt(K) above the same floor. Summed as squares of residuals, so
    that it keeps its digits near collapse; directions of the residuals below that floor are left out, and the value is
    then a rough one (a fifth too large in float32 with 256 dimensions and residuals of 1e-4 of the means).

    Flattering for N not much larger than d: Gaussian features without any class structure have E[VCI] =
    1 - max(d, K-1)/(N-1) on balanced classes, the share of sample space that d directions leave, and not 1; with d = 20
    that is 0.17 for N = 25 and 0.90 for N = 200, and less for unequal classes. Compare only equal N and d, or take
    N >> d.

    Undefined, hence NaN: class means that coincide, also those whose spread is below that floor or below the rounding
    of the features, eps times their size; and N - 1 <= d, where residuals and class means in general position are
    linearly independent, so that the formula gives 0 for any data.
    Under transformations an empty class, an out-of-range label, or a non-finite feature gives NaN.

    Cost O(N d^2) time; memory and precision as for `effective_rank`.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.

    Returns:
        The index (dimensionless), in [0, 1]; smaller is more collapsed.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite features.

    Example:
        >>> import numpy as np
        >>> line = np.array([[-2.0], [0.0], [0.0], [2.0]])  # class means -1 and 1, spread 1 about each
        >>> round(float(variability_collapse_index(line, np.array([0, 0, 1, 1]), num_classes=2)), 3)
        0.5

    References:
        Xu and Liu (2023), as public code that computes the index writes it (the paper was not at hand); Sigma_T of
        unbalanced classes, the rank rule and the NaN for N - 1 <= d are the project's own.
    """
    _check_classes(features, labels, num_classes)
    return _vci(features, labels, num_classes=int(num_classes))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeatureSpectrum:
    """What the spectrum of labelled features says, at one layer or at several with the layers on the last axis.

    Attributes:
        effective_rank: of the features about their mean.
        variability_collapse_index: share of the class directions' spread that lies within classes.
    """

    effective_rank: Float[Array, "*batch"]
    variability_collapse_index: Float[Array, "*batch"]


def feature_spectrum(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int
) -> FeatureSpectrum:
    """Measure `effective_rank` and `variability_collapse_index` of the same features.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.

    Returns:
        Both, dimensionless; NaN where undefined, as the functions say.

    Raises:
        ValueError: as the functions do.
    """
    _check_classes(features, labels, num_classes)
    return _spectrum(features, labels, num_classes=int(num_classes))


def _check(features: Any) -> None:
    _checks.shape("features", features, ("N", "d"))
    _moments.check_inputs(features, np.zeros(np.shape(features)[0], np.int32), num_classes=2)


def _check_classes(features: Any, labels: Any, num_classes: Any) -> None:
    _moments.check_inputs(features, labels, num_classes=num_classes)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)


@partial(jax.jit, static_argnames="measure")
def _of_spectrum(features: Any, *, measure: Callable[[Array, float], Array]) -> Float[Array, ""]:
    features = jnp.asarray(features)
    num_samples, dim = features.shape
    labels = jnp.zeros(num_samples, jnp.int32)
    moments = _moments.class_means(features, labels, 1)
    nothing = jnp.zeros((0, dim), moments.offsets.dtype)
    if num_samples < 2:
        return jnp.full((), jnp.nan, moments.offsets.dtype)
    sigma = singular_values(residual_factor(moments, features, labels, nothing))
    return _of_values(sigma, moments.offsets, min(num_samples, dim), measure)


def _of_values(
    sigma: Float[Array, " r"], mean: Float[Array, "..."], size: int, measure: Callable[[Array, float], Array]
) -> Float[Array, ""]:
    """A measure of the singular values of features about their mean, itself about the point near the features."""
    floor = float(jnp.finfo(sigma.dtype).eps) * size
    # Equal features leave nothing, or the rounding of their mean.
    spread = sigma[0] > floor * jnp.max(jnp.abs(mean))
    return jnp.where(spread, measure(sigma / sigma[0], floor), jnp.nan)


def _effective_rank(ratios: Float[Array, " r"], floor: float) -> Float[Array, ""]:
    ratios = jnp.where(ratios <= floor, 0, ratios)
    shares = ratios / jnp.sum(ratios)
    return jnp.exp(-jnp.sum(shares * jnp.log(jnp.where(shares == 0, 1, shares))))


def _stable_rank(ratios: Float[Array, " r"], floor: float) -> Float[Array, ""]:
    return jnp.sum(ratios**2)


@partial(jax.jit, static_argnames="num_classes")
def _spectrum(features: Any, labels: Any, *, num_classes: int) -> FeatureSpectrum:
    """Both from one triangular factor of the residuals, where these are enough to have one."""
    features = jnp.asarray(features)
    if features.shape[0] - 1 <= features.shape[1]:
        index = _vci(features, labels, num_classes=num_classes)
        return FeatureSpectrum(_of_spectrum(features, measure=_effective_rank), index)
    moments, triangle = _moments_and_triangle(features, labels, num_classes)
    # About the mean of all samples the spread is that about the class means, and theirs, by their samples.
    shares = moments.counts.astype(triangle.dtype) / features.shape[0]
    mean = jnp.sum(shares[:, None] * moments.offsets, axis=0)
    between = jnp.sqrt(shares)[:, None] * (moments.offsets - mean[None, :])
    between = jnp.where(moments.is_complete, between, jnp.nan)
    sigma = singular_values(jnp.concatenate([triangle, between]))
    rank = _of_values(sigma, mean, features.shape[1], _effective_rank)
    return FeatureSpectrum(rank, _index(moments, triangle))


@partial(jax.jit, static_argnames="num_classes")
def _vci(features: Any, labels: Any, *, num_classes: int) -> Float[Array, ""]:
    features = jnp.asarray(features)
    if features.shape[0] - 1 <= features.shape[1]:
        return jnp.full((), jnp.nan, _moments.working_dtype(features.dtype))
    return _index(*_moments_and_triangle(features, labels, num_classes))


def _moments_and_triangle(
    features: Float[Array, "N d"], labels: Any, num_classes: int
) -> tuple[ClassMoments, Float[Array, "d d"]]:
    labels = _moments.as_labels(labels, num_classes)
    moments = _moments.class_means(features, labels, num_classes)
    return moments, residual_triangle(moments, features, labels)


def _index(moments: ClassMoments, triangle: Float[Array, "d d"]) -> Float[Array, ""]:
    """1 - tr(Sigma_T^+ Sigma_B) / rank(Sigma_B), as a sum of squares that near collapse loses no digits.

    A = [triangle; G / sqrt(K)] has A^T A = Sigma_T. With its left singular vectors U, split in the same rows, the trace
    is |U_G|^2, and rank - trace is |U_Z W|^2, W the right singular vectors of U_G in the directions of the means.
    """
    means = moments.centered_means() * float(moments.counts.shape[0]) ** -0.5
    dim = triangle.shape[1]
    vectors, sigma = left_singular_vectors(jnp.concatenate([triangle, means]))
    floor = float(jnp.finfo(means.dtype).eps) * dim * sigma[0]
    # Directions that only rounding spans count as none.
    vectors = jnp.where((sigma > floor)[None, :], vectors, 0)
    rank = jnp.sum(singular_values(means) > floor, dtype=jnp.int32)
    _, directions = right_singular_vectors(vectors[dim:])
    within = jnp.matmul(vectors[:dim], directions.T, precision=_moments.HIGHEST)
    is_counted = jnp.arange(directions.shape[0], dtype=jnp.int32) < rank
    total = jnp.sum(jnp.where(is_counted[None, :], within**2, 0))
    # A comparison with NaN is false and would pass as a direction left out.
    known = (rank > 0) & jnp.isfinite(sigma[0]) & moments.are_apart
    return jnp.where(known, jnp.clip(total / jnp.maximum(rank, 1).astype(means.dtype), 0, 1), jnp.nan)
