"""Each study's own variant of a metric, under the study's name, from the metrics this library measures.

Two numbers called NC1 can differ by the factor K, two called equinorm by sqrt(K/(K-1)), two mismatches by what they
compare with. A record here holds what the named study's code computes; the library's own definitions are those of
`CollapseMetrics`. All values are dimensionless unless said; every one tends to 0 under full collapse, NaN is undefined.
Records may carry leading axes (layers, seeds), as the metrics they come from.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics.collapse import CollapseMetrics
from nctheory.metrics.held_out import HeldOutCollapse
from nctheory.metrics.streaming import CollapseAccumulator


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parker2023:
    """Metrics as the public code of Parker, Onal, Stengel and Intrater (2023) computes them, on the train split.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+), pseudo-inverse of rank K-1, NOT divided by K.
        nc2_equinorm: std / mean of the norms of the centred class means, with the divisor K-1 in the variance.
        nc2_equiangular: mean over ordered pairs of |cos + 1/(K-1)|.
        nc4_mismatch: share of samples whose nearest class mean is not the network's PREDICTION.
    """

    nc1: Float[AnyArray, "*batch"]
    nc2_equinorm: Float[AnyArray, "*batch"]
    nc2_equiangular: Float[AnyArray, "*batch"]
    nc4_mismatch: Float[AnyArray, "*batch"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rangamani2023:
    """Metrics as the public code of Rangamani et al. (2023) computes them.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+), NOT divided by K.
        within_trace: mean over CLASSES of the mean squared distance to the class mean; squared feature units.
        between_trace: mean over classes of the squared distance of the class mean to the mean of all SAMPLES; squared
            feature units.
        nc4_mismatch: share of samples whose nearest train class mean is not their LABEL (1 - the code's accuracy).
    """

    nc1: Float[AnyArray, "*batch"]
    within_trace: Float[AnyArray, "*batch"]
    between_trace: Float[AnyArray, "*batch"]
    nc4_mismatch: Float[AnyArray, "*batch"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hui2022:
    """Measures after Hui, Belkin and Nakkiran (2022), whose text was not at hand.

    Attributes:
        trace_ratio: tr Sigma_W / tr Sigma_B, no pseudo-inverse; a public package attributes it to this study.
        strong: strong collapse onto the train class means, a working definition of this project's.
        weak: weak collapse onto them, a working definition of this project's.
    """

    trace_ratio: Float[AnyArray, "*batch"]
    strong: Float[AnyArray, "*batch"]
    weak: Float[AnyArray, "*batch"]


def parker2023(
    metrics: CollapseMetrics, num_classes: int, *, prediction_mismatch: Float[AnyArray, "*batch"] | None = None
) -> Parker2023:
    """Convert to the metrics of the public code of Parker et al. (2023).

    nc1 = K nc1 and nc2_equinorm = sqrt(K/(K-1)) nc2_equinorm of this library; the angles are the same. Their code
    replaces an exactly zero singular value by 0.01 where this library has NaN, and measures no NC3.

    Args:
        metrics: metrics of the train split about its own class means, one layer or with leading axes.
        num_classes: K, at least 2.
        prediction_mismatch: share of samples whose nearest class mean is not the network's prediction, as
            `HeldOutCollapse.prediction_mismatch` of the train split, for layers that no classifier reads;
            `metrics.nc4_ncc_mismatch` if not given.

    Returns:
        The record; NaN where the metrics are.

    Raises:
        ValueError: if `num_classes` < 2.

    Example:
        >>> import numpy as np
        >>> from nctheory.metrics import collapse_metrics
        >>> features = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.3]])
        >>> metrics = collapse_metrics(features, np.array([0, 0, 1, 1]), num_classes=2)
        >>> bool(np.isclose(parker2023(metrics, 2).nc1, 2 * metrics.nc1))
        True

    References:
        Public code of Parker, Onal, Stengel and Intrater (2023); whether the paper divides NC1 by K was not checked.
    """
    k = _checks.integer("num_classes", num_classes, minimum=2)
    mismatch = metrics.nc4_ncc_mismatch if prediction_mismatch is None else prediction_mismatch
    return Parker2023(
        nc1=k * metrics.nc1,
        nc2_equinorm=math.sqrt(k / (k - 1)) * metrics.nc2_equinorm,
        nc2_equiangular=metrics.nc2_equiangular,
        nc4_mismatch=mismatch,
    )


def rangamani2023(
    metrics: CollapseMetrics,
    num_classes: int,
    *,
    train: CollapseAccumulator | None = None,
    label_mismatch: Float[AnyArray, "*batch"] | None = None,
) -> Rangamani2023:
    """Convert to the metrics of the public code of Rangamani et al. (2023).

    nc1 = K nc1 of this library. Exact on balanced classes only: their class means are taken about the mean of all
    samples, which is the unweighted mean of the class means there. The pair of traces is exact on any classes, but
    cannot be had from `metrics`, which weigh samples and not classes equally within: give the accumulator.

    Args:
        metrics: metrics of the train split about its own class means, one layer or with leading axes.
        num_classes: K, at least 2.
        train: accumulator that has seen the same samples, for the pair of traces.
        label_mismatch: share of samples whose nearest train class mean is not their label, as
            `HeldOutCollapse.label_mismatch`, of the train or of the test split.

    Returns:
        The record; NaN where the metrics are, in the traces without `train` or with an empty class in it, and in the
        mismatch without `label_mismatch`.

    Raises:
        ValueError: if `num_classes` < 2 or `train` has another number of classes.

    Example:
        >>> import numpy as np
        >>> from nctheory.metrics import CollapseAccumulator, collapse_metrics
        >>> features, labels = np.array([[2.0], [4.0], [-3.0]], np.float32), np.array([0, 0, 1])
        >>> train = CollapseAccumulator.init(num_classes=2, feature_dim=1).update(features, labels)
        >>> float(rangamani2023(train.compute(), 2, train=train).within_trace)  # (1 + 0) / 2
        0.5

    References:
        Public code of Rangamani, Lindegaard, Galanti and Poggio (2023).
    """
    k = _checks.integer("num_classes", num_classes, minimum=2)
    unknown = jnp.full_like(jnp.asarray(metrics.nc1), jnp.nan)
    within, between = (unknown, unknown) if train is None else _class_averaged_traces(train, k)
    return Rangamani2023(
        nc1=k * metrics.nc1,
        within_trace=within,
        between_trace=between,
        nc4_mismatch=unknown if label_mismatch is None else label_mismatch,
    )


def hui2022(metrics: CollapseMetrics, *, centers: HeldOutCollapse | None = None) -> Hui2022:
    """Select the measures after Hui et al. (2022).

    Args:
        metrics: metrics of a split about its own class means, one layer or with leading axes.
        centers: the same split about the train class means.

    Returns:
        The record; NaN where the metrics are; `strong` and `weak` NaN without `centers`.

    Example:
        >>> import numpy as np
        >>> from nctheory.metrics import collapse_metrics
        >>> line = np.array([[-2.0], [0.0], [0.0], [2.0]])
        >>> round(float(hui2022(collapse_metrics(line, np.array([0, 0, 1, 1]), num_classes=2)).trace_ratio), 3)
        1.0

    References:
        Trace ratio: attributed to Hui, Belkin and Nakkiran (2022) by a public metrics package, which divides Sigma_B by
        the feature dimension where this library divides by K. `strong`, `weak`: see `HeldOutCollapse`.
    """
    unknown = jnp.full_like(jnp.asarray(metrics.within_between_ratio), jnp.nan)
    return Hui2022(
        trace_ratio=metrics.within_between_ratio,
        strong=unknown if centers is None else centers.strong,
        weak=unknown if centers is None else centers.weak,
    )


def _class_averaged_traces(train: CollapseAccumulator, num_classes: int) -> tuple[Array, Array]:
    """Mean over classes of the variance within, and of the squared distance to the mean of all samples."""
    moments = train.moments
    if moments.offsets.shape[-2] != num_classes:
        raise ArgumentError(f"Argument `train` must hold {num_classes} classes, but holds {moments.offsets.shape[-2]}.")
    counts = moments.counts.astype(moments.offsets.dtype)
    # 0/0 of an empty class is NaN, as is every mean over it.
    within = jnp.mean(moments.scatter / counts, axis=-1)
    shares = (counts / jnp.sum(counts, axis=-1, keepdims=True))[..., None]
    about = moments.offsets - jnp.sum(shares * moments.offsets, axis=-2, keepdims=True)
    between = jnp.mean(jnp.sum(about**2, axis=-1), axis=-1)
    return within, jnp.where(jnp.all(counts > 0, axis=-1), between, jnp.nan)
