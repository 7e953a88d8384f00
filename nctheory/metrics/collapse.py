"""Neural collapse of last-layer (or any layer's) features: NC1 to NC4 and class-distance normalised variance."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from nctheory import _checks, frames
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics import _moments
from nctheory.metrics._factors import right_singular_vectors
from nctheory.metrics._moments import HIGHEST, ClassMoments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CollapseMetrics:
    """Degrees of neural collapse, all dimensionless; every one tends to 0 under full collapse. NaN: undefined.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+) / K, the within-class spread in units of the class means' spread, direction by
            direction.
        within_between_ratio: tr Sigma_W / tr Sigma_B.
        nc2_equinorm: std / mean of the norms of the centred class means (divisor K).
        nc2_equiangular: mean over ordered pairs of |cos + 1/(K-1)| between centred class means.
        nc2_etf_distance: `frames.etf_distance` of the centred class means.
        nc3_duality: |W/|W| - M/|M||, Frobenius norms, not squared, M the centred class means.
        nc4_ncc_mismatch: fraction of samples whose network prediction, the first class of largest logit, is not the
            nearest class centre.
        cdnv: mean over pairs of classes of (var_c + var_c') / (2 |mu_c - mu_c'|^2).
    """

    nc1: Float[Array, ""]
    within_between_ratio: Float[Array, ""]
    nc2_equinorm: Float[Array, ""]
    nc2_equiangular: Float[Array, ""]
    nc2_etf_distance: Float[Array, ""]
    nc3_duality: Float[Array, ""]
    nc4_ncc_mismatch: Float[Array, ""]
    cdnv: Float[Array, ""]


def collapse_metrics(
    features: Float[AnyArray, "N d"],
    labels: Integer[AnyArray, " N"],
    *,
    num_classes: int,
    weight: Float[AnyArray, "K d"] | None = None,
    bias: Float[AnyArray, " K"] | None = None,
) -> CollapseMetrics:
    """Measure the neural collapse of labelled features, and of a linear classifier on them.

    With n_c samples h_i of class c, class means mu_c, their UNWEIGHTED mean mu_G and g_c = mu_c - mu_G:
    Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(...)^T weights samples equally, Sigma_B = (1/K) sum_c g_c g_c^T weights
    classes equally, var_c = (1/n_c) sum over the class of |h_i - mu_c|^2. `CollapseMetrics` gives the formula of each
    metric. The pseudo-inverse in `nc1` has the explicit rank min(K-1, d), without a ridge.

    Limits: features that equal their class mean give nc1 = within_between_ratio = cdnv = 0; class means in a simplex
    ETF give all nc2 = 0; K = 2 has only antipodal means, so all nc2 are 0 by construction there. Nothing depends on a
    rotation, a scale or a common offset of the features, nor on the numbering of classes. Under transformations
    arguments cannot be inspected: an empty class, an out-of-range label, or a non-finite feature gives NaN throughout.

    Undefined, hence NaN: nc3 and nc4 without `weight`; nc1 if the class means span fewer than min(K-1, d) dimensions
    (singular value <= eps max(K, d) times the largest), because dropping directions would understate it; norms and
    angles of zero means; everything if no two class means differ by more than rounding, as with constant features,
    because any ratio of roundings is a number. Two coinciding means of classes that have spread give cdnv = inf.

    Cost O(N d K) time, no d x d matrix; memory beyond the features a few megabytes. Half-precision features are
    measured in float32, and so are float64 NumPy arrays unless JAX's x64 mode is on: means that float32 cannot tell
    apart then count as equal, with NaN as above. Squares must be representable: float32 features and their spread
    within about 1e-15..1e15.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1, every class present.
        num_classes: K, at least 2.
        weight: classifier matrix; logits = features @ weight.T + bias. Not centred for nc3.
        bias: classifier bias, zero if not given; it takes part in the network's prediction for nc4.

    Returns:
        The metrics; smaller is more collapsed.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, an empty class, `num_classes` < 2, a bias without
            a weight, NaN or infinite input.

    References:
        Papyan, Han and Donoho (2020), for NC1 to NC4 (they also average the within-class covariance over samples);
        Galanti, Gyorgy and Hutter (2022), for CDNV. Equivalence of the whitened form of nc1 to the trace: derived here.
    """
    _moments.check_form(features, labels, num_classes=num_classes)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    check_classifier(weight, bias, num_classes=num_classes, dim=np.shape(features)[1])
    metrics = _collapse(features, labels, weight, bias, num_classes=int(num_classes))
    # One NaN or infinite feature makes this ratio NaN: a finite ratio saves a pass over the features to look for them.
    ratio = metrics.within_between_ratio
    if not (_checks.is_concrete(ratio) and np.isfinite(ratio)):
        _moments.check_finite(features)
    return metrics


def check_classifier(weight: Any, bias: Any, *, num_classes: int, dim: int) -> None:
    """Check an optional linear classifier against the features' dimension."""
    if weight is not None:
        _checks.shape("weight", weight, (num_classes, dim))
        _checks.finite("weight", weight)
    if bias is not None:
        if weight is None:
            raise ArgumentError("Argument `weight` must be given with `bias`, but is None.")
        _checks.shape("bias", bias, (num_classes,))
        _checks.finite("bias", bias)


@partial(jax.jit, static_argnames="num_classes")
def _collapse(features: Any, labels: Any, weight: Any, bias: Any, *, num_classes: int) -> CollapseMetrics:
    """Means in a first pass over the features, everything about them in a second."""
    features, labels = jnp.asarray(features), _moments.as_labels(labels, num_classes)
    moments = _moments.class_means(features, labels, num_classes)
    probe = Probe.build(moments, weight, bias)
    totals = probe.measure(features, labels)
    return summarize(replace(moments, scatter=totals.scatter), probe.weight, totals)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProbeTotals:
    """Sums over samples that need the final class means.

    Attributes:
        counts: samples a class.
        scatter: squared distances to the class mean, summed over the samples of each class.
        whitened: squared length of residuals whitened by the class means, summed over samples; N nc1.
        mismatches: samples whose network prediction is not the nearest class centre.
    """

    counts: Integer[Array, " K"]
    scatter: Float[Array, " K"]
    whitened: Float[Array, ""]
    mismatches: Integer[Array, ""]

    @classmethod
    def zeros(cls, num_classes: int, dtype: Any) -> "ProbeTotals":
        """No samples yet."""
        no_count = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(num_classes, jnp.int32), jnp.zeros(num_classes, dtype), jnp.zeros((), dtype), no_count)

    def __add__(self, other: "ProbeTotals") -> "ProbeTotals":
        """Totals of two disjoint sets of samples."""
        return jax.tree.map(jnp.add, self, other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probe:
    """What a residual z_i = h_i - mu_{y_i} is multiplied with, once the class means are known.

    Attributes:
        moments: the class means.
        whitener: d x r matrix V / sigma from the thin SVD g = U diag(sigma) V^T of the centred class means.
        center_scores: row c holds g_c . g_k - |g_k|^2 / 2 over k, the nearest-centre scores of the class mean itself.
        weight: classifier matrix or None.
        bias: classifier bias or None.
    """

    moments: ClassMoments
    whitener: Float[Array, "d r"]
    center_scores: Float[Array, "K K"]
    weight: Float[Array, "K d"] | None
    bias: Float[Array, " K"] | None

    @classmethod
    def build(cls, moments: ClassMoments, weight: Any, bias: Any) -> "Probe":
        """Prepare the matrices from class means and an optional classifier."""
        means = moments.centered_means()
        gram = jnp.matmul(means, means.T, precision=HIGHEST)
        scores = gram - jnp.diagonal(gram)[None, :] / 2
        weight, bias = (None if each is None else jnp.asarray(each).astype(means.dtype) for each in (weight, bias))
        return cls(moments, whitening(means), scores, weight, bias)

    def measure(self, features: Float[Array, "N d"], labels: Integer[Array, " N"]) -> ProbeTotals:
        """Sum over samples, in blocks of rows."""
        num_samples, dim = features.shape
        num_classes = self.center_scores.shape[0]

        def step(totals, first, size):
            return totals + self._block(
                _moments.take_rows(features, first, size), _moments.take_rows(labels, first, size)
            )

        totals = ProbeTotals.zeros(num_classes, self.whitener.dtype)
        return _moments.fold_rows(step, totals, num_rows=num_samples, num_columns=max(dim, num_classes))

    def _block(self, features: Float[Array, "N d"], labels: Integer[Array, " N"]) -> ProbeTotals:
        num_classes, rank = self.center_scores.shape[0], self.whitener.shape[1]
        residual = _moments.residuals(self.moments, features, labels)
        scatter = _moments.class_sums(jnp.sum(residual**2, axis=1), labels, num_classes)
        factors = [self.whitener] if self.weight is None else [self.whitener, self.moments.centered_means().T]
        # One product for both, because reading the residuals costs more than the arithmetic.
        products = jnp.matmul(residual, jnp.concatenate(factors, axis=1), precision=HIGHEST)
        whitened = jnp.sum(products[:, :rank] ** 2)
        counts = _moments.count_labels(labels, num_classes)
        return ProbeTotals(counts, scatter, whitened, self._mismatches(features, products[:, rank:], labels))

    def _mismatches(
        self, features: Float[Array, "N d"], residual_scores: Float[Array, "N s"], labels: Integer[Array, " N"]
    ) -> Integer[Array, ""]:
        if self.weight is None:
            return jnp.zeros((), jnp.int32)
        # The network's own logits, so that where they tie the first class counts, as it does for the network.
        logits = jnp.matmul(features.astype(self.weight.dtype), self.weight.T, precision=HIGHEST)
        if self.bias is not None:
            logits = logits + self.bias[None, :]
        # Scores as those of the class mean plus those of the residual: near collapse the residual is small, and a
        # product with the whole feature vector would round away what it contributes.
        scores = residual_scores + self.center_scores[labels]
        return jnp.sum(jnp.argmax(scores, axis=1) != jnp.argmax(logits, axis=1), dtype=jnp.int32)


def whitening(means: Float[Array, "K d"]) -> Float[Array, "d r"]:
    """Matrix A with tr(Sigma_W Sigma_B^+) / K = (1/N) sum_i |A^T z_i|^2; NaN if the means have not full rank.

    From the thin SVD U diag(sigma) V^T of the centred means, Sigma_B^+ = K V diag(sigma^-2) V^T, so A = V / sigma with
    the first r = min(K-1, d) columns. The Gram matrix would do in exact arithmetic but squares the condition number.
    """
    num_classes, dim = means.shape
    rank = min(num_classes - 1, dim)
    sigma, vt = right_singular_vectors(means)
    floor = float(jnp.finfo(means.dtype).eps) * max(num_classes, dim) * sigma[0]
    return jnp.where(sigma[rank - 1] > floor, vt[:rank].T / sigma[:rank][None, :], jnp.nan)


@jax.jit
def summarize(moments: ClassMoments, weight: Float[Array, "K d"] | None, totals: ProbeTotals | None) -> CollapseMetrics:
    """Turn moments, and probe totals where there are some, into the metrics."""
    means = moments.means_apart()
    dtype = means.dtype
    num_samples = moments.num_samples.astype(dtype)
    norms = jnp.sqrt(jnp.sum(means**2, axis=1))
    nan = jnp.full((), jnp.nan, dtype)
    ratio = (jnp.sum(moments.scatter) / num_samples) / jnp.mean(norms**2)
    nc1 = nc4 = nan
    if totals is not None:
        nc1 = jnp.where(moments.are_apart, totals.whitened / num_samples, jnp.nan)
        if weight is not None:
            # Argmax of NaN is a number; a NaN anywhere in the features shows in the scatter.
            known = jnp.isfinite(jnp.sum(moments.scatter) + jnp.sum(means))
            nc4 = jnp.where(known, totals.mismatches.astype(dtype) / num_samples, jnp.nan)
    return CollapseMetrics(
        nc1=nc1,
        within_between_ratio=ratio,
        nc2_equinorm=jnp.std(norms) / jnp.mean(norms),
        nc2_equiangular=_equiangular(means, norms),
        nc2_etf_distance=frames.etf_distance(means),
        nc3_duality=nan if weight is None else _duality(weight, means),
        nc4_ncc_mismatch=nc4,
        cdnv=_cdnv(moments, means),
    )


def _equiangular(means: Float[Array, "K d"], norms: Float[Array, " K"]) -> Float[Array, ""]:
    num_classes = means.shape[0]
    directions = means / norms[:, None]
    deviations = jnp.abs(jnp.matmul(directions, directions.T, precision=HIGHEST) + 1 / (num_classes - 1))
    off_diagonal = ~jnp.eye(num_classes, dtype=bool)
    return jnp.sum(jnp.where(off_diagonal, deviations, 0)) / (num_classes * (num_classes - 1))


def _duality(weight: Float[Array, "K d"], means: Float[Array, "K d"]) -> Float[Array, ""]:
    difference = weight / jnp.sqrt(jnp.sum(weight**2)) - means / jnp.sqrt(jnp.sum(means**2))
    return jnp.sqrt(jnp.sum(difference**2))


def _cdnv(moments: ClassMoments, means: Float[Array, "K d"]) -> Float[Array, ""]:
    num_classes = means.shape[0]
    variances = moments.scatter / moments.counts.astype(means.dtype)
    spread = (variances[:, None] + variances[None, :]) / 2
    distances = jnp.where(jnp.eye(num_classes, dtype=bool), jnp.inf, _moments.squared_distances(means))
    return jnp.sum(spread / distances) / (num_classes * (num_classes - 1))
