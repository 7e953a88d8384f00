"""Neural-collapse metrics from batches, shards or devices: what `collapse_metrics` gives for all at once.

Two passes, because the whitening in nc1 and the nearest class centres in nc4 need the final class means:

    first = CollapseAccumulator.init(num_classes=10, feature_dim=512)
    for features, labels in batches:
        first = first.update(features, labels)
    second = first.second_pass(weight, bias)
    for features, labels in batches:
        second = second.update(features, labels)
    metrics = second.compute()

Accumulators are immutable pytrees: they go through `jit`, `lax.scan` and `vmap`, and shards combine by `merge`.
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
from nctheory.metrics._moments import ClassMoments
from nctheory.metrics.class_directions import ClassDirections, summarize_directions
from nctheory.metrics.collapse import CollapseMetrics, Probe, ProbeTotals, check_classifier, summarize
from nctheory.metrics.directions import orthogonality


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CollapseAccumulator:
    """Counts, class means and within-class scatters of all samples so far (first pass).

    Means and scatters are combined by the pairwise update of Chan, Golub and LeVeque, with every mean kept as an offset
    from a point near the data: neither many small batches nor a large common offset of the features costs the digits
    that E[x^2] - E[x]^2 would lose. At most 2^31 - 1 samples.

    Attributes:
        moments: the statistics; use the methods instead.
    """

    moments: ClassMoments

    @classmethod
    def init(cls, *, num_classes: int, feature_dim: int, dtype: Any = jnp.float32) -> "CollapseAccumulator":
        """Start without samples.

        Args:
            num_classes: K, at least 2.
            feature_dim: d, at least 1.
            dtype: accumulation dtype, float32 or float64 (float64 needs JAX's x64 mode).

        Returns:
            The empty accumulator.

        Raises:
            ValueError: for sizes out of range or another dtype.
        """
        _checks.integer("num_classes", num_classes, minimum=2)
        _checks.integer("feature_dim", feature_dim, minimum=1)
        name = str(np.dtype(dtype))
        _checks.choice("dtype", name, ("float32", "float64"))
        if name == "float64" and not jax.config.read("jax_enable_x64"):
            raise ArgumentError("Argument `dtype` must be float32 unless JAX's x64 mode is on, but is float64.")
        return cls(
            ClassMoments(
                num_samples=jnp.zeros((), jnp.int32),
                counts=jnp.zeros(num_classes, jnp.int32),
                reference=jnp.zeros(feature_dim, dtype),
                offsets=jnp.zeros((num_classes, feature_dim), dtype),
                scatter=jnp.zeros(num_classes, dtype),
            )
        )

    def update(self, features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"]) -> "CollapseAccumulator":
        """Add a batch, of any size and with any of the classes in it.

        Args:
            features: activations, one row a sample, the same unit in all batches.
            labels: class of each sample, 0..K-1.

        Returns:
            A new accumulator.

        Raises:
            ValueError: for wrong shapes or dtypes, labels out of range, NaN or infinite features. Under
                transformations such values give NaN metrics.
        """
        num_classes = _check_batch(self.moments, features, labels)
        if np.shape(features)[0] == 0:
            return self
        return CollapseAccumulator(_add_batch(self.moments, features, labels, num_classes=num_classes))

    def merge(self, other: "CollapseAccumulator") -> "CollapseAccumulator":
        """Combine with the accumulator of other samples; associative and commutative up to rounding.

        Args:
            other: accumulator of the same number of classes, dimension and dtype.

        Returns:
            A new accumulator of both sets of samples.

        Raises:
            ValueError: if shapes or dtypes differ.
        """
        _check_same_form(self.moments.offsets, other.moments.offsets)
        return CollapseAccumulator(_merge(self.moments, other.moments))

    def compute(self, weight: Float[AnyArray, "K d"] | None = None) -> CollapseMetrics:
        """Metrics that one pass determines; nc1 and nc4 are NaN (see `second_pass`).

        Args:
            weight: classifier matrix for nc3, which is NaN without it.

        Returns:
            The metrics as `collapse_metrics` defines them. NaN throughout while a class has no sample.

        Raises:
            ValueError: if `weight` has the wrong shape or is not finite.
        """
        num_classes, dim = self.moments.offsets.shape
        check_classifier(weight, None, num_classes=num_classes, dim=dim)
        if weight is not None:
            weight = jnp.asarray(weight).astype(self.moments.offsets.dtype)
        return summarize(self.moments, weight, None)

    def directions(self, weight: Float[AnyArray, "K d"] | None = None) -> ClassDirections:
        """Directions of the class means, for which one pass is enough.

        Args:
            weight: classifier matrix for the alignments, which are NaN without it.

        Returns:
            The record as `class_directions` defines it. NaN throughout while a class has no sample.

        Raises:
            ValueError: if `weight` has the wrong shape or is not finite.
        """
        num_classes, dim = self.moments.offsets.shape
        check_classifier(weight, None, num_classes=num_classes, dim=dim)
        return summarize_directions(self.moments, weight)

    def ood_orthogonality(self, ood: "CollapseAccumulator", *, about: str = "global_mean") -> Float[Array, ""]:
        """NC5 of the samples so far against the mean of out-of-distribution samples, for which one pass is enough.

        Args:
            ood: accumulator of the out-of-distribution samples, of the same dimension and dtype; its classes, however
                many, play no part.
            about: "global_mean" or "origin".

        Returns:
            The mean absolute cosine as `metrics.ood_orthogonality` defines it. NaN while a class of `self` has no
            sample, or `ood` has none, or has one outside its classes.

        Raises:
            ValueError: if dimensions or dtypes differ, or for another `about`.
        """
        _checks.choice("about", about, ("global_mean", "origin"))
        mine, theirs = self.moments.offsets, ood.moments.offsets
        if mine.shape[1] != theirs.shape[1] or mine.dtype != theirs.dtype:
            raise ArgumentError(
                f"Argument `ood` must hold class means of dimension {mine.shape[1]} and dtype {mine.dtype}, but holds "
                f"dimension {theirs.shape[1]} and dtype {theirs.dtype}."
            )
        return _orthogonality(self.moments, ood.moments, about=about)

    def second_pass(
        self, weight: Float[AnyArray, "K d"] | None = None, bias: Float[AnyArray, " K"] | None = None
    ) -> "CollapseSecondPass":
        """Fix the class means and start the second pass over the same samples.

        Args:
            weight: classifier matrix for nc3 and nc4; logits = features @ weight.T + bias.
            bias: classifier bias, zero if not given.

        Returns:
            An accumulator without samples, to be updated with every sample of the first pass once, in any batches.

        Raises:
            ValueError: if the classifier has the wrong shape or is not finite, or a class has no sample.
        """
        num_classes, dim = self.moments.offsets.shape
        check_classifier(weight, bias, num_classes=num_classes, dim=dim)
        counts = self.moments.counts
        if _checks.is_concrete(counts) and not np.all(np.asarray(counts) > 0):
            missing = np.unique(np.argwhere(np.asarray(counts) == 0)[:, -1]).tolist()
            raise ArgumentError(
                f"Argument `labels` must have covered every class in the first pass, but not {missing}."
            )
        probe = Probe.build(self.moments, weight, bias)
        return CollapseSecondPass(probe, ProbeTotals.zeros(num_classes, self.moments.offsets.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CollapseSecondPass:
    """Sums about the fixed class means of a first pass; made by `CollapseAccumulator.second_pass`.

    Attributes:
        probe: class means of the first pass and the matrices that depend on them.
        totals: sums over the samples seen in this pass.
    """

    probe: Probe
    totals: ProbeTotals

    def update(self, features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"]) -> "CollapseSecondPass":
        """Add a batch; arguments, return and errors as in `CollapseAccumulator.update`."""
        num_classes = _check_batch(self.probe.moments, features, labels)
        if np.shape(features)[0] == 0:
            return self
        totals = _measure(self.probe, features, labels, num_classes=num_classes)
        return CollapseSecondPass(self.probe, self.totals + totals)

    def merge(self, other: "CollapseSecondPass") -> "CollapseSecondPass":
        """Combine with the second pass over other samples of the same first pass; associative and commutative.

        Args:
            other: second pass that started from the same `CollapseAccumulator`.

        Returns:
            A new accumulator of both sets of samples.

        Raises:
            ValueError: if the two started from different class means (where the values can be read).
        """
        mine, theirs = self.probe.moments, other.probe.moments
        _check_same_form(mine.offsets, theirs.offsets)
        if _checks.is_concrete(mine.offsets) and _checks.is_concrete(theirs.offsets):
            same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), mine, theirs)
            if not jax.tree.all(same):
                raise ArgumentError("Argument `other` must come from the same first pass, but its class means differ.")
        return CollapseSecondPass(self.probe, self.totals + other.totals)

    def compute(self) -> CollapseMetrics:
        """All metrics, as `collapse_metrics` gives them for all samples at once.

        Returns:
            The metrics; NaN in those that need the second pass (nc1, nc4) if its samples of a class are not as many as
            in the first, so that a dropped partial batch cannot pass unseen.
        """
        moments = self.probe.moments
        same = jnp.all(self.totals.counts == moments.counts)
        moments = replace(moments, scatter=jnp.where(same, self.totals.scatter, moments.scatter))
        metrics = summarize(moments, self.probe.weight, self.totals)
        return replace(
            metrics,
            nc1=jnp.where(same, metrics.nc1, jnp.nan),
            nc4_ncc_mismatch=jnp.where(same, metrics.nc4_ncc_mismatch, jnp.nan),
        )

    def directions(self) -> ClassDirections:
        """Directions of the class means of the first pass, with the classifier given to `second_pass`."""
        return summarize_directions(self.probe.moments, self.probe.weight)


def _check_batch(moments: ClassMoments, features: Any, labels: Any) -> int:
    num_classes, dim = moments.offsets.shape
    _moments.check_inputs(features, labels, num_classes=num_classes)
    _checks.shape("features", features, ("N", dim))
    return num_classes


def _check_same_form(mine: Array, theirs: Array) -> None:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        raise ArgumentError(
            f"Argument `other` must hold class means of shape {mine.shape} and dtype {mine.dtype}, "
            f"but holds shape {theirs.shape} and dtype {theirs.dtype}."
        )


@partial(jax.jit, static_argnames="num_classes")
def _add_batch(moments: ClassMoments, features: Any, labels: Any, *, num_classes: int) -> ClassMoments:
    features = jnp.asarray(features).astype(moments.offsets.dtype)
    return _merge(moments, _moments.class_moments(features, _moments.as_labels(labels, num_classes), num_classes))


@partial(jax.jit, static_argnames="num_classes")
def _measure(probe: Probe, features: Any, labels: Any, *, num_classes: int) -> ProbeTotals:
    features = jnp.asarray(features).astype(probe.whitener.dtype)
    return probe.measure(features, _moments.as_labels(labels, num_classes))


@partial(jax.jit, static_argnames="about")
def _orthogonality(moments: ClassMoments, ood: ClassMoments, *, about: str) -> Float[Array, ""]:
    counted = jnp.sum(ood.counts, dtype=jnp.int32)
    shares = ood.counts.astype(ood.offsets.dtype) / counted.astype(ood.offsets.dtype)
    offset = jnp.matmul(shares, ood.offsets, precision=_moments.HIGHEST)
    is_whole = (counted > 0) & (counted == ood.num_samples)
    return orthogonality(moments, ood.reference, jnp.where(is_whole, offset, jnp.nan), about=about)


@jax.jit
def _merge(mine: ClassMoments, theirs: ClassMoments) -> ClassMoments:
    """Pairwise update of class means and scatters; an empty side leaves the other as it is."""
    dtype = mine.offsets.dtype
    counts = mine.counts + theirs.counts
    # Two points near the same data: their difference is small, so moving to one reference rounds little.
    reference = jnp.where(mine.num_samples > 0, mine.reference, theirs.reference)
    difference = theirs.offsets + (theirs.reference - reference)[None, :] - mine.offsets
    fraction = theirs.counts.astype(dtype) / jnp.maximum(counts, 1).astype(dtype)
    between = jnp.sum(difference**2, axis=1) * mine.counts.astype(dtype) * fraction
    return ClassMoments(
        num_samples=mine.num_samples + theirs.num_samples,
        counts=counts,
        reference=reference,
        offsets=mine.offsets + difference * fraction[:, None],
        scatter=mine.scatter + theirs.scatter + between,
    )
