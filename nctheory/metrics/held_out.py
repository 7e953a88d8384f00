"""How samples, of the train or of the test split, lie about the class means of the TRAIN split.

Collapse on the test distribution means that fresh samples fall onto the train class means: onto that of their own
class (strong form) or onto any of them (weak form). These are working definitions after Hui, Belkin and Nakkiran
(2022), whose text was not at hand. The test split's collapse about its own class means is `collapse_metrics` of it.
"""

from dataclasses import dataclass, replace
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
from nctheory.metrics._moments import HIGHEST, ClassMoments
from nctheory.metrics.class_directions import ClassDirections
from nctheory.metrics.collapse import CollapseMetrics
from nctheory.metrics.streaming import CollapseAccumulator


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOutCollapse:
    """Samples about the train class means mu_c, in units of s_B = tr Sigma_B of the train split; dimensionless.

    NaN: undefined. Measured on the train split itself, `strong` is its within_between_ratio.

    Attributes:
        strong: mean of |h - mu_y|^2 / s_B, y the label; 0 under strong collapse.
        weak: mean of min_c |h - mu_c|^2 / s_B <= `strong`; 0 under weak collapse.
        near_share: share of samples with min_c |h - mu_c|^2 < radius s_B, in [0, 1]; 1 under weak collapse.
        label_mismatch: share of samples whose nearest train class mean is not that of their label.
        prediction_mismatch: share of samples whose nearest train class mean is not that of the network's prediction.
    """

    strong: Float[Array, "*batch"]
    weak: Float[Array, "*batch"]
    near_share: Float[Array, "*batch"]
    label_mismatch: Float[Array, "*batch"]
    prediction_mismatch: Float[Array, "*batch"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerMetrics:
    """Collapse of one split at one layer, or at several with the layers on the last axis.

    Attributes:
        collapse: about the split's own class means.
        centers: about the train class means.
        directions: of the split's own class means.
    """

    collapse: CollapseMetrics
    centers: HeldOutCollapse
    directions: ClassDirections


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Totals:
    """Sums over samples."""

    num_samples: Integer[Array, ""]
    num_predicted: Integer[Array, ""]
    strong: Float[Array, ""]
    weak: Float[Array, ""]
    near: Integer[Array, ""]
    label_misses: Integer[Array, ""]
    prediction_misses: Integer[Array, ""]

    def __add__(self, other: "_Totals") -> "_Totals":
        return jax.tree.map(jnp.add, self, other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldOutAccumulator:
    """`held_out_collapse` from batches, shards or devices.

    first = CollapseAccumulator.init(...), updated with all train batches
    held_out = HeldOutAccumulator.about(first), updated with the batches of the split in question

    Attributes:
        moments: class means of the train split; use the methods instead.
        radius: squared radius of `near_share` in units of s_B.
        totals: sums over the samples so far.
    """

    moments: ClassMoments
    radius: Float[Array, ""]
    totals: _Totals

    @classmethod
    def about(cls, train: CollapseAccumulator, *, radius: float = 0.1) -> "HeldOutAccumulator":
        """Start without samples.

        Args:
            train: accumulator that has seen the train split.
            radius: squared radius of `near_share` in units of s_B, > 0 (dimensionless).

        Returns:
            The empty accumulator.

        Raises:
            ValueError: if a class has no train sample or the radius is not positive.
        """
        _checks.real("radius", radius, minimum=0, exclusive_minimum=True)
        counts = train.moments.counts
        if _checks.is_concrete(counts) and not np.all(np.asarray(counts) > 0):
            missing = np.unique(np.argwhere(np.asarray(counts) == 0)[:, -1]).tolist()
            raise ArgumentError(f"Argument `train` must have seen every class, but not {missing}.")
        return _start(train.moments, radius)

    def update(
        self,
        features: Float[AnyArray, "N d"],
        labels: Integer[AnyArray, " N"],
        predictions: Integer[AnyArray, " N"] | None = None,
    ) -> "HeldOutAccumulator":
        """Add a batch, of any size and with any of the classes in it.

        Args:
            features: activations, one row a sample, in the unit of the train split's.
            labels: class of each sample, 0..K-1.
            predictions: class that the network predicts for each sample; given for all batches or for none.

        Returns:
            A new accumulator.

        Raises:
            ValueError: for wrong shapes or dtypes, labels or predictions out of range, NaN or infinite features. Under
                transformations such values give NaN, predictions in `prediction_mismatch` alone.
        """
        num_classes, dim = self.moments.offsets.shape
        _moments.check_inputs(features, labels, num_classes=num_classes)
        _checks.shape("features", features, ("N", dim))
        if predictions is not None:
            _checks.labels("predictions", predictions, num_classes=num_classes, length=np.shape(features)[0])
        if np.shape(features)[0] == 0:
            return self
        totals = _measure(self.moments, self.radius, features, labels, predictions)
        return replace(self, totals=self.totals + totals)

    def merge(self, other: "HeldOutAccumulator") -> "HeldOutAccumulator":
        """Combine with the accumulator of other samples about the same means; associative and commutative.

        Args:
            other: accumulator about the same train class means, with the same radius.

        Returns:
            A new accumulator of both sets of samples.

        Raises:
            ValueError: if class means or radius differ (where the values can be read).
        """
        for name, mine, theirs in (
            ("class means", self.moments, other.moments),
            ("radius", self.radius, other.radius),
        ):
            pairs = list(zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True))
            if all(_checks.is_concrete(leaf) for pair in pairs for leaf in pair) and not all(
                np.array_equal(*pair, equal_nan=True) for pair in pairs
            ):
                raise ArgumentError(f"Argument `other` must have the same {name}, but they differ.")
        return replace(self, totals=self.totals + other.totals)

    def compute(self) -> HeldOutCollapse:
        """All measures of the samples so far.

        Returns:
            The record; NaN throughout without samples or when the train class means coincide up to the rounding of
            the features (eps times their size), and NaN in `prediction_mismatch` unless every batch came with
            predictions.
        """
        return _compute(self.moments, self.totals)


def held_out_collapse(
    train_features: Float[AnyArray, "N d"],
    train_labels: Integer[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Integer[AnyArray, " M"],
    *,
    num_classes: int,
    predictions: Integer[AnyArray, " M"] | None = None,
    radius: float = 0.1,
) -> HeldOutCollapse:
    """Measure how a split lies about the train class means.

    `HeldOutCollapse` gives the formulas. Unchanged by rotation, common scale and common offset of the features. A test
    split that lacks a class is measured all the same: only the train split needs every class. Ties for the nearest mean
    go to the smaller label.

    Args:
        train_features: train samples as rows, any common unit; they fix the class means.
        train_labels: their classes, 0..K-1, every class present.
        test_features: samples to measure, of any split, in the same unit.
        test_labels: their classes.
        num_classes: K, at least 2.
        predictions: classes that the network predicts for the samples to measure.
        radius: squared radius of `near_share` in units of s_B, > 0 (dimensionless).

    Returns:
        The record; NaN throughout if the train class means coincide up to the rounding of the features (eps times
        their size); `prediction_mismatch` is NaN without `predictions`.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, a class without train samples, NaN or infinite
            input, or a radius that is not positive.

    References:
        Strong and weak test collapse: working definitions after Hui, Belkin and Nakkiran (2022). Mismatch with the
        prediction: public code of Parker, Onal, Stengel and Intrater (2023); with the label: that of Rangamani et al.
        (2023).
    """
    _moments.check_inputs(train_features, train_labels, num_classes=num_classes)
    _checks.no_empty_class("train_labels", train_labels, num_classes=num_classes)
    _checks.real("radius", radius, minimum=0, exclusive_minimum=True)
    moments = _train_means(train_features, train_labels, num_classes=int(num_classes))
    return _start(moments, radius).update(test_features, test_labels, predictions).compute()


@partial(jax.jit, static_argnames="num_classes")
def _train_means(features: Any, labels: Any, *, num_classes: int) -> ClassMoments:
    return _moments.class_means(jnp.asarray(features), _moments.as_labels(labels, num_classes), num_classes)


def _start(moments: ClassMoments, radius: Any) -> HeldOutAccumulator:
    dtype, none = moments.offsets.dtype, jnp.zeros((), jnp.int32)
    nothing = jnp.zeros((), dtype)
    totals = _Totals(none, none, nothing, nothing, none, none, none)
    return HeldOutAccumulator(moments, jnp.asarray(radius, dtype=dtype), totals)


@jax.jit
def _measure(moments: ClassMoments, radius: Any, features: Any, labels: Any, predictions: Any) -> _Totals:
    num_classes, dim = moments.offsets.shape
    means = moments.centered_means()
    gram = jnp.matmul(means, means.T, precision=HIGHEST)
    scores = gram - jnp.diagonal(gram)[None, :] / 2
    features, labels = jnp.asarray(features), _moments.as_labels(labels, num_classes)
    predicted = None if predictions is None else _moments.as_labels(predictions, num_classes)
    limit = radius * _between(means)

    def step(totals: _Totals, first: Any, size: int) -> _Totals:
        rows, answers = _moments.take_rows(features, first, size), _moments.take_rows(labels, first, size)
        residual = _moments.residuals(moments, rows, answers)
        # About the mean of the label, whose distance near collapse is small: what is left out of the product is large.
        nearest = jnp.argmax(jnp.matmul(residual, means.T, precision=HIGHEST) + scores[answers], axis=1).astype(
            answers.dtype
        )
        # A label out of range, visible only under tracing, must not pass as another class.
        own = jnp.where(answers < num_classes, jnp.sum(residual**2, axis=1), jnp.nan)
        closest = jnp.minimum(own, jnp.sum(_moments.residuals(moments, rows, nearest) ** 2, axis=1))
        misses = num_predicted = jnp.zeros((), jnp.int32)
        if predicted is not None:
            guesses = _moments.take_rows(predicted, first, size)
            misses = jnp.sum(nearest != guesses, dtype=jnp.int32)
            # One out of range, visible only under tracing, is no prediction, and a sample without one gives NaN.
            num_predicted = jnp.sum(guesses < num_classes, dtype=jnp.int32)
        return totals + _Totals(
            num_samples=jnp.asarray(size, dtype=jnp.int32),
            num_predicted=num_predicted,
            strong=jnp.sum(own),
            weak=jnp.sum(closest),
            near=jnp.sum(closest < limit, dtype=jnp.int32),
            label_misses=jnp.sum(nearest != answers, dtype=jnp.int32),
            prediction_misses=misses,
        )

    start = _start(moments, radius).totals
    return _moments.fold_rows(step, start, num_rows=features.shape[0], num_columns=max(dim, num_classes))


@jax.jit
def _compute(moments: ClassMoments, totals: _Totals) -> HeldOutCollapse:
    between = _between(moments.centered_means())
    dtype = between.dtype
    count = totals.num_samples.astype(dtype)
    # Argmax of NaN is a number; a NaN anywhere in the features shows in the sums of squares.
    known = moments.are_apart & (between > 0) & jnp.isfinite(totals.strong) & (totals.num_samples > 0)
    predicted = known & (totals.num_predicted == totals.num_samples)

    def share(misses: Array, defined: Array) -> Array:
        return jnp.where(defined, misses.astype(dtype) / count, jnp.nan)

    return HeldOutCollapse(
        strong=jnp.where(known, totals.strong / (count * between), jnp.nan),
        weak=jnp.where(known, totals.weak / (count * between), jnp.nan),
        near_share=share(totals.near, known),
        label_mismatch=share(totals.label_misses, known),
        prediction_mismatch=share(totals.prediction_misses, predicted),
    )


def _between(means: Float[Array, "K d"]) -> Float[Array, ""]:
    """Trace of Sigma_B from centred class means."""
    return jnp.mean(jnp.sum(means**2, axis=1))
