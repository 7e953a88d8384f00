"""Class counts, means and scatters in floating-point-safe form; shared by the one-shot and the streaming metrics.

Every mean is kept as an offset from a reference point near the data, so that a large common offset of the features
costs no digits; every scatter is a sum of squared residuals about a mean, never E[x^2] - E[x]^2.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from nctheory import _checks
from nctheory._errors import ArgumentError

HIGHEST = jax.lax.Precision.HIGHEST
# Features are walked in blocks of about this many numbers: temporaries stay in the cache and out of the peak memory.
_BLOCK_NUMBERS = 1 << 20
# Class sums by a matmul with one-hot labels up to this many classes, by segment_sum (cost free of K) above.
_ONE_HOT_LIMIT = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassMoments:
    """Counts, means and within-class scatters of K classes.

    Attributes:
        num_samples: all samples seen, also those of labels outside 0..K-1.
        counts: samples a class.
        reference: a point near the data.
        offsets: class means minus `reference`; 0 for an empty class.
        scatter: sum over the samples of a class of the squared distance to the class mean.
    """

    num_samples: Integer[Array, ""]
    counts: Integer[Array, " K"]
    reference: Float[Array, " d"]
    offsets: Float[Array, "K d"]
    scatter: Float[Array, " K"]

    @property
    def is_complete(self) -> Bool[Array, ""]:
        """Whether every class has a sample and every sample a class."""
        return jnp.all(self.counts > 0) & (jnp.sum(self.counts, dtype=jnp.int32) == self.num_samples)

    def centered_means(self) -> Float[Array, "K d"]:
        """Class means minus their unweighted mean; all NaN unless `is_complete`."""
        centered = self.offsets - jnp.mean(self.offsets, axis=0)[None, :]
        return jnp.where(self.is_complete, centered, jnp.nan)

    @property
    def are_apart(self) -> Bool[Array, ""]:
        """Whether class means differ by more than the rounding of the features, eps |mean|, in some coordinate.

        Means of equal features differ by the rounding of their sums alone, and any ratio of that is a number.
        """
        sizes = jnp.max(jnp.abs(self.reference[None, :] + self.offsets), axis=0)
        gaps = jnp.max(jnp.abs(self.centered_means()), axis=0)
        return jnp.any(gaps > float(jnp.finfo(gaps.dtype).eps) * sizes)

    def means_apart(self) -> Float[Array, "K d"]:
        """`centered_means`; all NaN also unless `are_apart`, where they are rounding and point anywhere."""
        return jnp.where(self.are_apart, self.centered_means(), jnp.nan)


def check_inputs(features: Any, labels: Any, *, num_classes: int) -> None:
    """Check what every metric of features and labels needs, apart from empty classes."""
    check_form(features, labels, num_classes=num_classes)
    check_finite(features)


def check_form(features: Any, labels: Any, *, num_classes: int) -> None:
    """Check all of `check_inputs` but that the features are finite, which takes a pass over them."""
    _checks.integer("num_classes", num_classes, minimum=2)
    _checks.shape("features", features, ("N", "d"))
    _checks.floating("features", features)
    if np.shape(features)[1] == 0:
        raise ArgumentError(f"Argument `features` must have at least 1 column, but has shape {np.shape(features)}.")
    _checks.labels("labels", labels, num_classes=num_classes, length=np.shape(features)[0])


def check_finite(features: Any, *, name: str = "features") -> None:
    """Check that features are finite as they will be measured: a float64 number may be infinite in float32."""
    with np.errstate(over="ignore"):
        measured = jnp.asarray(features) if _checks.is_concrete(features) else features
    _checks.finite(name, measured)


def as_labels(labels: Any, num_classes: int) -> Integer[Array, " N"]:
    """Labels as int32; negative ones, visible only under tracing, become `num_classes`, which no class sum counts."""
    labels = jnp.asarray(labels)
    # Wide enough for num_classes and free of the wrap-around of negative indices.
    return jnp.where(labels < 0, num_classes, labels.astype(jnp.int32))


def working_dtype(dtype: Any) -> Any:
    """Accumulation dtype: float32 for the half-precision types, else the features' own."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def fold_rows(
    step: Callable[[Any, Any, int], Any], carry: Any, *, num_rows: int, num_columns: int, min_rows: int = 256
) -> Any:
    """Fold `step(carry, first_row, number_of_rows)` over blocks of rows, the last of them shorter."""
    block = max(min_rows, _BLOCK_NUMBERS // num_columns)
    if num_rows <= block:
        return step(carry, 0, num_rows)
    full = num_rows // block
    carry = jax.lax.fori_loop(0, full, lambda i, c: step(c, i * block, block), carry)
    rest = num_rows - full * block
    return step(carry, full * block, rest) if rest else carry


def take_rows(array: Array, first: Any, size: int) -> Array:
    """Rows `first` to `first + size`, without a copy where the block is the whole array."""
    return array if size == array.shape[0] else jax.lax.dynamic_slice_in_dim(array, first, size)


def class_sums(values: Float[Array, "N ..."], labels: Integer[Array, " N"], num_classes: int) -> Float[Array, "K ..."]:
    """Sum the rows of each class; a row whose label is out of range is dropped."""
    if num_classes > _ONE_HOT_LIMIT:
        return jax.ops.segment_sum(values, labels, num_segments=num_classes)
    one_hot = (labels[:, None] == jnp.arange(num_classes, dtype=jnp.int32)[None, :]).astype(values.dtype)
    return jnp.matmul(one_hot.T, values, precision=HIGHEST)


def class_means(features: Float[Array, "N d"], labels: Integer[Array, " N"], num_classes: int) -> ClassMoments:
    """Find counts and means in one pass; `scatter` is left at zero."""
    num_samples, dim = features.shape
    dtype = working_dtype(features.dtype)
    reference = _point_near(features, dtype)

    def step(sums, first, size):
        block = take_rows(features, first, size).astype(dtype) - reference[None, :]
        return sums + class_sums(block, take_rows(labels, first, size), num_classes)

    sums = fold_rows(step, jnp.zeros((num_classes, dim), dtype), num_rows=num_samples, num_columns=dim)
    counts = count_labels(labels, num_classes)
    offsets = sums / jnp.maximum(counts, 1).astype(dtype)[:, None]
    total = jnp.asarray(num_samples, dtype=jnp.int32)
    return ClassMoments(total, counts, reference, offsets, jnp.zeros(num_classes, dtype))


def _point_near(features: Float[Array, "N d"], dtype: Any) -> Float[Array, " d"]:
    """Mean of at most about two thousand rows: any point near the data serves, and this one costs no pass.

    Rounded to one bit less than the dtype holds. Without an explicit rounding the compiler may contract the division
    of this mean and the subtraction of it into one operation, and then subtracts a point that differs in the last
    digit from the point that is stored.
    """
    rows = features[:: max(1, features.shape[0] // 1024)].astype(dtype)
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(jnp.mean(rows, axis=0), exponent_bits=info.nexp, mantissa_bits=info.nmant - 1)


def count_labels(labels: Integer[Array, " N"], num_classes: int) -> Integer[Array, " K"]:
    """Count the samples of each class."""
    if num_classes > _ONE_HOT_LIMIT:
        return jax.ops.segment_sum(jnp.ones(labels.shape, jnp.int32), labels, num_segments=num_classes)
    is_class = labels[:, None] == jnp.arange(num_classes, dtype=jnp.int32)[None, :]
    return jnp.sum(is_class, axis=0, dtype=jnp.int32)


def residuals(
    moments: ClassMoments, features: Float[Array, "N d"], labels: Integer[Array, " N"]
) -> Float[Array, "N d"]:
    """Features minus the mean of their class."""
    dtype = moments.offsets.dtype
    return features.astype(dtype) - moments.reference[None, :] - moments.offsets[labels]


def class_moments(features: Float[Array, "N d"], labels: Integer[Array, " N"], num_classes: int) -> ClassMoments:
    """Find counts, means and scatters in two passes over the features."""
    moments = class_means(features, labels, num_classes)

    def step(scatter, first, size):
        rows, classes = take_rows(features, first, size), take_rows(labels, first, size)
        squares = jnp.sum(residuals(moments, rows, classes) ** 2, axis=1)
        return scatter + class_sums(squares, classes, num_classes)

    num_samples, dim = features.shape
    scatter = fold_rows(step, moments.scatter, num_rows=num_samples, num_columns=dim)
    return replace(moments, scatter=scatter)


def squared_distances(vectors: Float[Array, "K d"]) -> Float[Array, "K K"]:
    """Squared distances between all rows, from the differences themselves.

    XLA fuses the sum, so no K x K x d array exists; the Gram matrix would be faster at large K, but loses the
    distance of two vectors that are close compared with their norms.
    """
    return jnp.sum((vectors[:, None, :] - vectors[None, :, :]) ** 2, axis=-1)
