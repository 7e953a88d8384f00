"""Fine structure: distances between original classes inside and across the labels a network was trained on."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from nctheory import _checks
from nctheory._types import AnyArray
from nctheory.metrics import _moments
from nctheory.metrics._moments import ClassMoments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FineStructure:
    """Geometry of fine classes in feature space. Distances and variances in squared feature units. NaN: undefined.

    Attributes:
        class_distances: squared distances |mu_f - mu_f'|^2 between the feature means of fine classes.
        within_variances: trace of the covariance inside each fine class (divisor: its number of samples).
        same_label_distance: mean of `class_distances` over pairs of different fine classes with one label.
        different_label_distance: the same over pairs with different labels.
        within_variance: w, unweighted mean of `within_variances`.
        ratio: q = same_label_distance / different_label_distance; 0 is what neural collapse alone predicts.
        separation: s = same_label_distance / within_variance; large where a clustering can see the fine classes.
        coarse_ratio: tr Sigma_W / tr Sigma_B of the labels, as `CollapseMetrics.within_between_ratio`.
    """

    class_distances: Float[Array, "F F"]
    within_variances: Float[Array, " F"]
    same_label_distance: Float[Array, ""]
    different_label_distance: Float[Array, ""]
    within_variance: Float[Array, ""]
    ratio: Float[Array, ""]
    separation: Float[Array, ""]
    coarse_ratio: Float[Array, ""]

    @property
    def sample_distances(self) -> Float[Array, "*batch F F"]:
        """Mean squared distance of a sample of one fine class to a sample of another, all pairs (i, i') included.

        D(f, f') = |mu_f - mu_f'|^2 + tr S_f + tr S_f'; the diagonal is 2 tr S_f, not 0, and counts a sample's pair
        with itself. Squared feature units; derived here.
        """
        within = self.within_variances
        return self.class_distances + within[..., :, None] + within[..., None, :]


def fine_structure(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    fine_labels: Integer[AnyArray, " N"],
    *,
    num_classes: int,
    num_fine: int,
) -> FineStructure:
    """Measure how far fine classes stay apart within and across labels.

    With mu_f and S_f the mean and covariance (divisor n_f) of fine class f and d(f, f') = |mu_f - mu_f'|^2:
    q = mean of d over pairs with one label / mean of d over pairs with different labels, s = mean of d over pairs with
    one label / mean of tr S_f. Pairs and fine classes weigh equally, whatever their sizes. Collapse onto the labels
    gives q = 0; fine classes equidistant whatever their label give q = 1. q and s do not depend on a rotation, a scale
    or a common offset of the features.

    Undefined, hence NaN: `same_label_distance`, q and s where no two fine classes share a label;
    `different_label_distance` and q where all share one; q, s and `coarse_ratio` where no two means of fine classes
    differ by more than rounding, as with constant features. s = inf where fine classes have no spread but are apart.
    Under transformations, where arguments cannot be inspected, an empty fine class gives NaN throughout, an empty
    label gives NaN in `coarse_ratio`, a fine class with two labels gives NaN in all that depends on labels.

    Args:
        features: activations, one row a sample, any common unit.
        labels: label each sample was trained on, 0..num_classes-1, every label present.
        fine_labels: original class of each sample, 0..num_fine-1, every class present, each within one label.
        num_classes: number of labels, at least 2.
        num_fine: number of fine classes, at least 2.

    Returns:
        The record; larger ratio and separation mean more surviving fine structure.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class or label, a fine class with two
            labels, NaN or infinite features.

    References:
        The question is that of Yang, Steinhardt and Hu (2023); these definitions are the project's own.
    """
    _moments.check_inputs(features, labels, num_classes=num_classes)
    _checks.integer("num_fine", num_fine, minimum=2)
    _checks.labels("fine_labels", fine_labels, num_classes=num_fine, length=np.shape(features)[0])
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    _checks.no_empty_class("fine_labels", fine_labels, num_classes=num_fine)
    _checks.nested("fine_labels", fine_labels, labels)
    return _fine_structure(features, labels, fine_labels, num_classes=int(num_classes), num_fine=int(num_fine))


@partial(jax.jit, static_argnames=("num_classes", "num_fine"))
def _fine_structure(features: Any, labels: Any, fine_labels: Any, *, num_classes: int, num_fine: int) -> FineStructure:
    features = jnp.asarray(features)
    labels = _moments.as_labels(labels, num_classes)
    fine_labels = _moments.as_labels(fine_labels, num_fine)
    fine = _moments.class_moments(features, fine_labels, num_fine)
    means = fine.centered_means()
    dtype = means.dtype
    membership, is_nested = _membership(labels, fine_labels, num_classes, num_fine)
    shares_label = jnp.matmul(membership.astype(dtype), membership.astype(dtype).T) > 0
    distances = _moments.squared_distances(means)
    within = jnp.where(fine.is_complete, fine.scatter / fine.counts.astype(dtype), jnp.nan)
    same = _mean_where(distances, shares_label & ~jnp.eye(num_fine, dtype=bool), is_nested)
    different = _mean_where(distances, ~shares_label, is_nested)
    return FineStructure(
        class_distances=distances,
        within_variances=within,
        same_label_distance=same,
        different_label_distance=different,
        within_variance=jnp.mean(within),
        ratio=jnp.where(fine.are_apart, same / different, jnp.nan),
        separation=jnp.where(fine.are_apart, same / jnp.mean(within), jnp.nan),
        coarse_ratio=jnp.where(is_nested & fine.are_apart, _coarse_ratio(fine, means, membership), jnp.nan),
    )


def _membership(
    labels: Integer[Array, " N"], fine_labels: Integer[Array, " N"], num_classes: int, num_fine: int
) -> tuple[Bool[Array, "F K"], Bool[Array, ""]]:
    """Which fine class occurs under which label, and whether each has exactly one (labels in range included)."""
    joint = _moments.count_labels(
        jnp.where(labels < num_classes, fine_labels * num_classes + labels, num_fine * num_classes),
        num_fine * num_classes,
    )
    membership = joint.reshape(num_fine, num_classes) > 0
    is_nested = jnp.all(jnp.sum(membership, axis=1) == 1) & (jnp.sum(joint) == labels.shape[0])
    return membership, is_nested


def _mean_where(values: Float[Array, "F F"], mask: Bool[Array, "F F"], valid: Bool[Array, ""]) -> Float[Array, ""]:
    """Mean over the masked entries, NaN if there are none."""
    count = jnp.where(valid, jnp.sum(mask), 0).astype(values.dtype)
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.where(count > 0, count, jnp.nan)


def _coarse_ratio(fine: ClassMoments, means: Float[Array, "F d"], membership: Bool[Array, "F K"]) -> Float[Array, ""]:
    """Ratio tr Sigma_W / tr Sigma_B of the labels from the moments of the fine classes (law of total variance)."""
    dtype = means.dtype
    weights = membership.astype(dtype) * fine.counts.astype(dtype)[:, None]
    label_counts = jnp.sum(weights, axis=0)
    label_means = jnp.matmul(weights.T / label_counts[:, None], means, precision=_moments.HIGHEST)
    gaps = means - jnp.matmul(membership.astype(dtype), label_means, precision=_moments.HIGHEST)
    total = jnp.sum(fine.scatter) + jnp.sum(fine.counts.astype(dtype) * jnp.sum(gaps**2, axis=1))
    centered = label_means - jnp.mean(label_means, axis=0)[None, :]
    return (total / fine.num_samples.astype(dtype)) / jnp.mean(jnp.sum(centered**2, axis=1))
