r"""Cross-entropy with unequal classes and non-negative features (as after a ReLU), one layer, no bias: closed form.

    min over W, H >= 0 of (1/N) sum_i [logsumexp(W h_i) - (W h_i)_{y_i}] + (lambda_W/2)|W|_F^2 + (lambda_H/2)|H|_F^2.

Write tau = sqrt(lambda_W lambda_H), C = I - 11^T/K.

**Lower bound.** Averaging the features of a class keeps them non-negative and raises nothing (Jensen), so let h_k be
one vector a class; subtracting the mean row of W changes no probability, so let W = C W. Let m_k be the mean over j !=
k of (w_k - w_j) . h_k = (K/(K-1)) w_k . h_k. By convexity of logsumexp the loss of class k is at least log(1 + (K-1)
e^{-m_k}). Let d_k = sqrt(n_k) if m_k > 0 and 0 otherwise, and D = diag(d_k). With rows of H the class features,

    sum_k d_k w_k.h_k = <W, C D H> <= |W|_F |C D H|_F,
    |C D H|_F^2 = (1 - 1/K) sum_k d_k^2 |h_k|^2 - (1/K) sum_{j != k} d_j d_k h_j.h_k <= (1 - 1/K) sum_k n_k |h_k|^2,

the last step because h_j . h_k >= 0. With 2ab <= a^2 + b^2 the penalty is at least tau sqrt((K-1)/K) sum_k sqrt(n_k)
max(m_k, 0). So the loss is bounded by a sum of scalar problems, none of which gains from m_k < 0:

    L >= sum_k min over m >= 0 of (n_k/N) log(1 + (K-1) e^-m) + tau sqrt(n_k (K-1)/K) m,
    m_k = max(0, log((K-1)(r_k - 1))),   r_k = sqrt(n_k K/(K-1)) / (N tau).

**Attained.** Take orthogonal h_k >= 0 (multiples of unit vectors, dimension >= number of classes with m_k > 0) with
|h_k|^2 = m_k/c_k, c_k = sqrt(n_k lambda_H K/(lambda_W (K-1))), and W = C diag(c_k) H: then (w_k - w_j) . h_k =
c_k |h_k|^2 = m_k for every j, and all inequalities above are equalities.

Class k vanishes iff (K-1)(r_k - 1) <= 1, i.e. n_k <= N^2 lambda_W lambda_H K/(K-1); without the sign constraint
classes of equal size merge at N^2 lambda_W lambda_H instead (`minority_collapse`).
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import ClassSizes, check_class_sizes, check_decays

_ASSUMPTIONS = (
    "features are free non-negative parameters, one vector a sample",
    "one linear layer, no bias; class sizes may differ",
    "feature dimension >= number of active classes",
    "weight_decay and feature_decay are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CeNonnegativeMinimizer:
    """Global minimiser of cross-entropy with non-negative free features, up to a permutation of feature axes.

    Attributes:
        loss: minimal regularised loss L*.
        trivial_loss: loss at zero, log K.
        is_trivial: whether zero is the minimiser.
        active: classes with a non-zero feature.
        active_classes: the same, under the name that the other records use.
        margins: m_k, difference of the true logit and any other.
        size_threshold: N^2 lambda_W lambda_H K/(K-1); classes of at most this size vanish.
        singular_values: of the class logits, decreasing.
        layer_singular_values: of W and of H (all samples), a row each, decreasing; the layers have different singular
            vectors, so column by column they do not multiply to `singular_values`.
        logits: W times the class features, one column a class.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the class features, diagonal.
        class_weight_norms: lengths of the rows of W; a vanished class keeps a non-zero row.
        class_feature_norms: lengths of the class features.
        layer_norms: |W|_F^2 and |H|_F^2, the latter over all samples.
        bias: b, zero.
        weight: one representative W.
        class_features: the class features that go with `weight`, one a row, non-negative.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    active: Bool[jax.Array, "... K"]
    active_classes: Bool[jax.Array, "... K"]
    margins: Float[jax.Array, "... K"]
    size_threshold: Float[jax.Array, "..."]
    singular_values: Float[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... 2 K"]
    logits: Float[jax.Array, "... K K"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    class_weight_norms: Float[jax.Array, "... K"]
    class_feature_norms: Float[jax.Array, "... K"]
    layer_norms: Float[jax.Array, "... 2"]
    bias: Float[jax.Array, "... K"]
    weight: Float[jax.Array, "... K K"]
    class_features: Float[jax.Array, "... K K"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def ce_nonnegative_minimizer(
    class_sizes: ClassSizes, *, weight_decay: Scalar, feature_decay: Scalar
) -> CeNonnegativeMinimizer:
    """Global minimiser of one-layer cross-entropy with non-negative free features, balanced or not.

    m_k = max(0, log((K-1)(r_k - 1))) with r_k = sqrt(n_k K/(K-1))/(N sqrt(lambda_W lambda_H)); features orthogonal with
    |h_k|^2 = m_k/c_k, c_k = sqrt(n_k lambda_H K/(lambda_W (K-1))), W = (I - 11^T/K) diag(c_k) H; L* = sum_k (n_k/N)
    log(1 + (K-1) e^-m_k) + m_k sqrt(lambda_W lambda_H n_k (K-1)/K). Class k vanishes iff n_k <= N^2 lambda_W lambda_H
    K/(K-1), continuously; if all do, L* = log K. Nothing is undefined for valid arguments; traced arguments out of
    range make all floats of the record NaN.

    Args:
        class_sizes: n_1..n_K, whole numbers >= 1 (samples), K >= 2; may be traced.
        weight_decay: lambda_W > 0, coefficient of |W|^2/2 (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).

    Returns:
        Record of the minimiser.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Geometry of Dang et al. (2024), as its abstract states it; formulas and proof derived here (module docstring).
    """
    check_class_sizes(class_sizes)
    _checks.shape("weight_decay", weight_decay, ())
    check_decays(weight_decay, feature_decay)
    dtype = float_dtype(weight_decay, feature_decay)
    return _minimizer(*(as_float(value, dtype) for value in (class_sizes, weight_decay, feature_decay)))


@jax.jit
def _minimizer(sizes, weight_decay, feature_decay) -> CeNonnegativeMinimizer:
    k, total = sizes.shape[0], jnp.sum(sizes)
    tau = jnp.sqrt(weight_decay) * jnp.sqrt(feature_decay)
    # (K-1)(r_k - 1) - 1 = K (sqrt(n_k/threshold) - 1): written so that m_k keeps its digits near the threshold.
    root_threshold = total * tau * math.sqrt(k / (k - 1))
    excess = (k - 1) * (jnp.sqrt(sizes) * math.sqrt(k / (k - 1)) / (total * tau) - k / (k - 1))
    active = jnp.sqrt(sizes) > root_threshold
    margins = jnp.where(active, jnp.log1p(jnp.where(active, jnp.maximum(excess, 0.0), 0.0)), 0.0)
    fit = jnp.sum(sizes / total * jnp.log1p((k - 1) * jnp.exp(-margins)))
    scale = jnp.sqrt(sizes * feature_decay) / jnp.sqrt(weight_decay) * math.sqrt(k / (k - 1))
    centring = jnp.eye(k, dtype=sizes.dtype) - 1 / k
    lengths = jnp.sqrt(margins / scale)
    weight = centring * (scale * lengths)[None, :]
    weight_gram = jnp.matmul(centring * (scale * margins)[None, :], centring, precision=jax.lax.Precision.HIGHEST)
    trivial_loss, is_trivial = jnp.log(jnp.asarray(k, sizes.dtype)), ~jnp.any(active)
    loss = fit + tau * math.sqrt((k - 1) / k) * jnp.sum(jnp.sqrt(sizes) * margins)
    logits = centring * margins[None, :]
    feature_values = jnp.sort(jnp.sqrt(sizes) * lengths, descending=True)
    record = CeNonnegativeMinimizer(
        loss=jnp.where(is_trivial, trivial_loss, loss),
        trivial_loss=trivial_loss,
        is_trivial=is_trivial,
        active=active,
        active_classes=active,
        margins=margins,
        size_threshold=root_threshold**2,
        singular_values=_singular_values(logits, active),
        layer_singular_values=jnp.stack([_singular_values(weight, active), feature_values]),
        logits=logits,
        weight_gram=weight_gram,
        feature_gram=jnp.diag(lengths**2),
        class_weight_norms=jnp.sqrt(jnp.diagonal(weight_gram)),
        class_feature_norms=lengths,
        layer_norms=jnp.stack([jnp.trace(weight_gram), jnp.sum(sizes * lengths**2)]),
        bias=jnp.zeros_like(sizes),
        weight=weight,
        class_features=jnp.diag(lengths),
    )
    return nan_unless(all_counts(sizes) & all_positive(weight_decay, feature_decay), record)


def _singular_values(matrix, active):
    """Singular values of C diag(a) with a > 0 on the active classes; its rank is at most K - 1."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    rank = jnp.minimum(jnp.sum(active), active.size - 1)
    return jnp.where(jnp.arange(active.size) < rank, values, 0.0)
