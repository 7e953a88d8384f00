r"""L0. Free features: what neural collapse alone predicts, before the input distribution has a say.

The unconstrained feature model replaces the network below the last layer by free vectors H (one per sample):

    L(W, H) = fit(W H) + (lambda_W/2) |W|_F^2 + (lambda_H/2) |H|_F^2,   n samples in each of K classes, N = n K,
    fit(Z)  = |Z - Y|_F^2 / (2N)  or  mean cross-entropy of the columns of Z.

**Reduction.** For fixed Z = W H, min (lambda_W/2)|W|^2 + (lambda_H/2)|H|^2 = sqrt(lambda_W lambda_H) |Z|_* (width >=
rank Z), reached only by W = (lambda_H/lambda_W)^(1/4) U S^(1/2) R^T, H = (lambda_W/lambda_H)^(1/4) R S^(1/2) V^T for Z
= U S V^T. So L* = min_Z fit(Z) + sqrt(lambda_W lambda_H) |Z|_*, a convex problem; write tau = sqrt(n lambda_W
lambda_H).

**MSE.** Y (K N) has K singular values sqrt(n); each is soft-thresholded by N sqrt(lambda_W lambda_H). Fitted fraction
phi = 1 - K tau, so logits = phi I, W W^T = s^2 I with s^2 = phi sqrt(n lambda_H/lambda_W), class means with Gram matrix
phi sqrt(lambda_W/(n lambda_H)) I, and L* = K tau - (K tau)^2 / 2. For K tau >= 1 all is zero and L* = 1/2.

**Cross-entropy.** The problem is convex and unchanged by permuting classes or the samples of a class, so averaging over
these permutations gives a minimiser with class logits alpha I + beta 11^T; removing the mean over classes changes no
probability and lowers |Z|_*. Hence logits = rho C, C = I - 11^T/K, |Z|_* = rho (K-1) sqrt(n), and

    L = log(1 + (K-1) e^-rho) + (K-1) tau rho,   minimal at 1/(e^rho + K - 1) = tau,  rho = log(1/tau - (K-1)).

For K tau >= 1: rho = 0, all is zero and L* = log K. Otherwise W W^T = rho sqrt(n lambda_H/lambda_W) C and class means
have Gram matrix rho sqrt(lambda_W/(n lambda_H)) C.

In both cases samples of one class share one feature vector. Merge sub-clusters into a label and nothing of them is
left.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory.theory._common import Scalar, as_float, float_dtype

_ASSUMPTIONS = (
    "features are free parameters, one vector a sample",
    "balanced classes",
    "one linear layer, no bias",
    "feature dimension >= num_classes (mse) or >= num_classes - 1 (cross_entropy)",
    "weight_decay and feature_decay are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FreeFeaturesMinimizer:
    """Global minimiser of the free-feature problem, up to a rotation of the feature space.

    Attributes:
        loss_value: minimal regularised loss L*.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the K feature vectors, one a class.
        logits: W times the class features, one column a class.
        is_trivial: whether zero is the minimiser.
        same_label_distance: squared distance of sub-clusters that share a label: 0.
        within_variance: trace of the within-class covariance of features: 0.
        ratio: same-label over different-label squared distance: 0, or NaN if all features vanish.
        loss: name of the loss.
        assumptions: what must hold.
    """

    loss_value: Float[jax.Array, "..."]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    logits: Float[jax.Array, "... K K"]
    is_trivial: Bool[jax.Array, "..."]
    same_label_distance: Float[jax.Array, "..."]
    within_variance: Float[jax.Array, "..."]
    ratio: Float[jax.Array, "..."]
    loss: str = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def free_features_minimizer(
    num_classes: int,
    samples_per_class: int,
    *,
    weight_decay: Scalar,
    feature_decay: Scalar,
    loss: str = "mse",
) -> FreeFeaturesMinimizer:
    """Global minimiser of the balanced one-layer unconstrained feature model without bias.

    With tau = sqrt(n lambda_W lambda_H), zero is the minimiser iff K tau >= 1. Otherwise, with g = phi I (mse,
    phi = 1 - K tau) or g = rho (I - 11^T/K) (cross_entropy, rho = log(1/tau - K + 1)): logits = g,
    W W^T = sqrt(n lambda_H/lambda_W) g, feature Gram = sqrt(lambda_W/(n lambda_H)) g. L* = K tau - (K tau)^2/2 or
    log(1 + (K-1) e^-rho) + (K-1) tau rho. `ratio` is NaN at the trivial minimiser, where no distance is left to divide
    by.

    Args:
        num_classes: K >= 2.
        samples_per_class: n >= 1.
        weight_decay: lambda_W > 0, coefficient of |W|^2/2 (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all N = n K samples (dimensionless).
        loss: "mse" (|WH - Y|^2/(2N), one-hot Y) or "cross_entropy" (mean over samples).

    Returns:
        Record of the minimiser; unique up to rotations of the feature space.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Derived here (module docstring); setting of Zhu et al. 2021 (cross-entropy) and of Dang et al. 2023 (one layer).
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    n = _checks.integer("samples_per_class", samples_per_class, minimum=1)
    _checks.real("weight_decay", weight_decay, minimum=0.0, exclusive_minimum=True)
    _checks.real("feature_decay", feature_decay, minimum=0.0, exclusive_minimum=True)
    _checks.choice("loss", loss, ("mse", "cross_entropy"))
    dtype = float_dtype(weight_decay, feature_decay)
    return _minimizer(num_classes, n, as_float(weight_decay, dtype), as_float(feature_decay, dtype), loss)


@partial(jax.jit, static_argnames=("num_classes", "n", "loss"))
def _minimizer(num_classes: int, n: int, weight_decay, feature_decay, loss: str) -> FreeFeaturesMinimizer:
    # Square roots apart: the product of two small decays can underflow in float32.
    tau = jnp.sqrt(n * weight_decay) * jnp.sqrt(feature_decay)
    is_trivial = num_classes * tau >= 1
    safe = jnp.where(is_trivial, 0.5 / num_classes, tau)
    identity = jnp.eye(num_classes, dtype=tau.dtype)
    if loss == "mse":
        height, frame = 1 - num_classes * safe, identity
        value = num_classes * safe - (num_classes * safe) ** 2 / 2
        trivial_value = jnp.asarray(0.5, tau.dtype)
    else:
        others = num_classes - 1
        height, frame = jnp.log(1 / safe - others), identity - 1 / num_classes
        value = jnp.log1p(others * jnp.exp(-height)) + others * safe * height
        trivial_value = jnp.log(jnp.asarray(num_classes, tau.dtype))
    height = jnp.where(is_trivial, 0.0, height)
    balance = jnp.sqrt(n * feature_decay) / jnp.sqrt(weight_decay)
    zero = jnp.zeros_like(tau)
    return FreeFeaturesMinimizer(
        loss_value=jnp.where(is_trivial, trivial_value, value),
        weight_gram=balance * height * frame,
        feature_gram=height / balance * frame,
        logits=height * frame,
        is_trivial=is_trivial,
        same_label_distance=zero,
        within_variance=zero,
        ratio=jnp.where(is_trivial, jnp.nan, zero),
        loss=loss,
    )
