"""Directions of class means in a few numbers a layer: their uniformity, and their alignment with a classifier.

`nctheory.metrics.directions` has the functions class by class; here is what records of many layers hold.
"""

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
from nctheory.metrics._directions import log_energy, row_cosines
from nctheory.metrics._moments import ClassMoments
from nctheory.metrics.collapse import check_classifier


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassDirections:
    """What the directions of the centred class means say, lengths apart; dimensionless. NaN: undefined.

    Attributes:
        hyperspherical_energy: `hyperspherical_uniformity(...).energy`, mean over pairs of classes of
            log(1 / |u_c - u_c'|), u_c the directions; smaller is more even, inf where two classes share one.
        hyperspherical_excess: that energy minus a simplex ETF's, >= 0; 0 for a simplex ETF.
        class_alignment_mean: mean over classes of `class_alignment`, the cosine between the classifier's row and the
            centred class mean; in [-1, 1], 1 under self-duality.
        class_alignment_min: its minimum over classes.
    """

    hyperspherical_energy: Float[Array, "*batch"]
    hyperspherical_excess: Float[Array, "*batch"]
    class_alignment_mean: Float[Array, "*batch"]
    class_alignment_min: Float[Array, "*batch"]


def class_directions(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    *,
    num_classes: int,
    weight: Float[AnyArray, "K d"] | None = None,
) -> ClassDirections:
    """Measure the uniformity of the class means' directions, and their alignment with a linear classifier.

    Class means alone are needed, so these may stand for the features, with the labels 0..K-1. Unchanged by a rotation
    of features and classifier, a scale of either, a common offset of the features and a renumbering of the classes.
    K = 2 has only antipodal means: the excess is 0 by construction there.

    Undefined, hence NaN: everything if no two class means differ by more than rounding, or if a class mean is the mean
    of the class means (length at most eps K times the largest); the alignments without `weight` and for a row that is
    zero. Under transformations an empty class, an out-of-range label, or a non-finite feature gives NaN.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.
        weight: classifier matrix, one row a class, any unit; not centred.

    Returns:
        The record; `hyperspherical_uniformity` and `class_alignment` give the formulas.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, NaN or infinite input.

    Example:
        >>> import numpy as np
        >>> found = class_directions(np.eye(3), np.arange(3), num_classes=3, weight=np.eye(3))
        >>> round(float(found.hyperspherical_excess), 3), round(float(found.class_alignment_min), 3)
        (0.0, 0.816)

    References:
        Liu et al. (2018), for the energy; Papyan, Han and Donoho (2020), NC3, for the alignment.
    """
    _moments.check_inputs(features, labels, num_classes=num_classes)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    check_classifier(weight, None, num_classes=num_classes, dim=np.shape(features)[1])
    return _of_features(features, labels, weight, num_classes=int(num_classes))


@partial(jax.jit, static_argnames="num_classes")
def _of_features(features: Any, labels: Any, weight: Any, *, num_classes: int) -> ClassDirections:
    moments = _moments.class_means(jnp.asarray(features), _moments.as_labels(labels, num_classes), num_classes)
    return summarize_directions(moments, weight)


@jax.jit
def summarize_directions(moments: ClassMoments, weight: Float[AnyArray, "K d"] | None) -> ClassDirections:
    """Turn class means, and a classifier's matrix where there is one, into the record."""
    means = moments.means_apart()
    energy, _, excess = log_energy(means)
    nan = jnp.full((), jnp.nan, means.dtype)
    cosines = None if weight is None else row_cosines(jnp.asarray(weight), means)
    return ClassDirections(
        hyperspherical_energy=energy,
        hyperspherical_excess=excess,
        class_alignment_mean=nan if cosines is None else jnp.mean(cosines),
        class_alignment_min=nan if cosines is None else jnp.min(cosines),
    )
