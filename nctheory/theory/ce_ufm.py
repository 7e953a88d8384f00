r"""Cross-entropy with free features, balanced classes, one linear layer: the simplex ETF in closed form.

    L(W, H, b) = (1/N) sum_i [logsumexp(z_i) - z_{i,y_i}] + (lambda_W/2)|W|_F^2 + (lambda_H/2)|H|_F^2
                 + (lambda_b/2)|b|^2,      z_i = W h_i + b,   n samples in each of K classes, N = n K.

**Bias-free.** Derived in `free_features`: with tau = sqrt(n lambda_W lambda_H) zero is the minimiser iff K tau >= 1;
otherwise the class logits are rho C, C = I - 11^T/K, rho = log(1/tau - K + 1).

**Samples per class.** Features of one class agree at the minimum (Jensen), so H may be replaced by one vector a class
with decay n lambda_H: the problem with n samples is the problem with one sample and feature decay n lambda_H.

**Bias.** After the reduction |W|, |H| -> sqrt(lambda_W lambda_H)|Z|_* the problem is jointly convex in (Z, b) and
unchanged by permuting classes, so averaging gives a minimiser with b = t 1. A constant bias moves no probability, so Z
and the loss are those without bias: t = 0 for lambda_b > 0, any t for a free bias (0 is returned).

**Unique.** Cross-entropy is strictly convex in C(Z + b 1^T), so this matrix is the same, rho C, at every minimiser.
Centring lowers |Z|_* strictly unless 1^T Z = 0, hence Z = rho C - c 1^T with 1^T c = 0; as C 1 = 0, Z Z^T = rho^2 C +
K c c^T, whose root has a larger trace unless c = 0. So every minimiser has these Gram matrices, and an explicit one is
W = s F, h_k = s' f_k with f_k the rows of F = sqrt(K/(K-1)) C or any rotation of it, s^2 = rho ((K-1)/K) sqrt(n
lambda_H/lambda_W) and s'^2 = rho ((K-1)/K) sqrt(lambda_W/(n lambda_H)). It needs dimension >= K - 1; narrower networks
have no closed form here and a higher minimum.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.frames import simplex_etf
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import Bias, Count, check_bias, check_count, check_decays
from nctheory.theory.free_features import free_features_minimizer

_ASSUMPTIONS = (
    "features are free parameters, one vector a sample",
    "balanced classes",
    "one linear layer; bias absent, free, or with a squared-norm penalty",
    "feature dimension >= num_classes - 1",
    "weight_decay and feature_decay are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CeUfmMinimizer:
    """Global minimiser of balanced cross-entropy over a linear layer and free features.

    Attributes:
        loss: minimal regularised loss L*.
        trivial_loss: loss at zero, log K.
        is_trivial: whether zero is the minimiser.
        threshold_ratio: K tau; zero is the minimiser iff it is >= 1.
        logit_scale: rho, difference between the true logit and any other.
        logits: W times the class features, one column a class; without the bias.
        singular_values: of the class logits, decreasing: rho (K-1 times) and 0.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the K class features.
        class_weight_norms: lengths of the rows of W.
        class_feature_norms: lengths of the class features.
        active: modes (singular directions of the class logits, in the order of `singular_values`) that are not zero.
        active_classes: classes with a nonzero row of W: all or none.
        layer_singular_values: of W and of H (all samples), a row each, one column a mode.
        layer_norms: |W|_F^2 and |H|_F^2, the latter over all samples.
        bias: b, zero; a free bias may be shifted by any constant.
        weight: one representative W.
        class_features: the class features that go with `weight`, one a row.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    threshold_ratio: Float[jax.Array, "..."]
    logit_scale: Float[jax.Array, "..."]
    logits: Float[jax.Array, "... K K"]
    singular_values: Float[jax.Array, "... K"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    class_weight_norms: Float[jax.Array, "... K"]
    class_feature_norms: Float[jax.Array, "... K"]
    active: Bool[jax.Array, "... K"]
    active_classes: Bool[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... 2 K"]
    layer_norms: Float[jax.Array, "... 2"]
    bias: Float[jax.Array, "... K"]
    weight: Float[jax.Array, "... K d"]
    class_features: Float[jax.Array, "... K d"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def ce_ufm_minimizer(
    num_classes: int,
    samples_per_class: Count,
    *,
    weight_decay: Scalar,
    feature_decay: Scalar,
    bias: Bias = "none",
    feature_dim: int | None = None,
) -> CeUfmMinimizer:
    """Global minimiser of balanced one-layer cross-entropy with free features and any kind of bias.

    With tau = sqrt(n lambda_W lambda_H): zero, L* = log K, iff K tau >= 1. Otherwise logits rho (I - 11^T/K),
    rho = log(1/tau - K + 1), L* = log(1 + (K-1) e^-rho) + (K-1) tau rho, W W^T = rho sqrt(n lambda_H/lambda_W)
    (I - 11^T/K), feature Gram = rho sqrt(lambda_W/(n lambda_H)) (I - 11^T/K), b = 0. The three kinds of bias share
    these values. Limits: rho grows like log(1/tau) as the decays vanish, and is continuous (0) at K tau = 1. Nothing is
    undefined for valid arguments; traced arguments out of range make all floats of the record NaN. Unequal classes
    have no closed form: `ce_ufm_convex`.

    Args:
        num_classes: K >= 2.
        samples_per_class: n >= 1, whole; may be traced.
        weight_decay: lambda_W > 0, coefficient of |W|^2/2 (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all N = n K samples (dimensionless).
        bias: "none", "free" (no decay; 0 is refused), or lambda_b > 0, coefficient of |b|^2/2 (dimensionless).
        feature_dim: d >= K - 1, width of the representative; K if not given.

    Returns:
        Record of the minimiser; unique up to rotations of the feature space (and a constant in a free bias).

    Raises:
        ValueError: if an argument is out of range, or `feature_dim` < K - 1.

    References:
        Setting and geometry of Zhu et al. (2021); values derived here (module docstring).
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    check_count("samples_per_class", samples_per_class)
    _checks.shape("weight_decay", weight_decay, ())
    check_decays(weight_decay, feature_decay)
    dtype = float_dtype(weight_decay, feature_decay)
    check_bias(bias, dtype=dtype)
    dim = num_classes if feature_dim is None else _checks.integer("feature_dim", feature_dim, minimum=1)
    if dim < num_classes - 1:
        raise ArgumentError(
            f"Argument `feature_dim` must be >= num_classes - 1 = {num_classes - 1}, the width of the theorem "
            f"(narrower cross-entropy has no closed form), but is {dim}."
        )
    # The decay of the bias changes nothing: it is passed on only because a traced one may be out of range.
    bias_decay = None if isinstance(bias, str) else as_float(bias, dtype)
    arguments = (as_float(value, dtype) for value in (samples_per_class, weight_decay, feature_decay))
    return _minimizer(num_classes, dim, *arguments, bias_decay)


@partial(jax.jit, static_argnames=("num_classes", "dim"))
def _minimizer(num_classes: int, dim: int, n, weight_decay, feature_decay, bias_decay) -> CeUfmMinimizer:
    one = free_features_minimizer(
        num_classes, 1, weight_decay=weight_decay, feature_decay=n * feature_decay, loss="cross_entropy"
    )
    height = one.logits[0, 0] - one.logits[0, 1]
    # Gram matrix g (I - 11^T/K) means rows of squared length g (K-1)/K along a simplex ETF.
    frame = simplex_etf(num_classes, dim).astype(n.dtype)
    weight_norms = jnp.sqrt(jnp.diagonal(one.weight_gram))
    feature_norms = jnp.sqrt(jnp.diagonal(one.feature_gram))
    trace_w, trace_h = jnp.trace(one.weight_gram), jnp.trace(one.feature_gram)
    norms = jnp.stack([trace_w, n * trace_h])
    modes = jnp.arange(num_classes) < num_classes - 1
    record = CeUfmMinimizer(
        loss=one.loss_value,
        trivial_loss=jnp.log(jnp.asarray(num_classes, n.dtype)),
        is_trivial=one.is_trivial,
        threshold_ratio=num_classes * jnp.sqrt(n * weight_decay) * jnp.sqrt(feature_decay),
        logit_scale=height,
        logits=one.logits,
        singular_values=jnp.where(modes, height, 0.0),
        weight_gram=one.weight_gram,
        feature_gram=one.feature_gram,
        class_weight_norms=weight_norms,
        class_feature_norms=feature_norms,
        active=modes & ~one.is_trivial,
        active_classes=jnp.broadcast_to(~one.is_trivial, (num_classes,)),
        # K - 1 equal ones in each layer.
        layer_singular_values=jnp.where(modes[None, :], jnp.sqrt(norms / (num_classes - 1))[:, None], 0.0),
        layer_norms=norms,
        bias=jnp.zeros(num_classes, n.dtype),
        weight=weight_norms[:, None] * frame,
        class_features=feature_norms[:, None] * frame,
    )
    return nan_unless(all_counts(n) & all_positive(weight_decay, feature_decay, bias_decay), record)
