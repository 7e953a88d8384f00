r"""Minority collapse of free features under weight decay: at which class size classes merge, vanish, or all is zero.

Losses as in `ce_convex` (cross-entropy, one layer) and 1/(2N) |W_M ... W_1 H + b 1^T - Y|_F^2 + sum_m
(lambda_m/2)|W_m|_F^2 + (lambda_H/2)|H|_F^2 (squared error, M layers); a bias is free or absent. D = diag(n_k).

**Cross-entropy, equal classes merge.** Let a group of g >= 2 classes have one size n. The convex problem of `ce_convex`
is unchanged by permuting them and its minimiser unique (up to a constant bias), so on vectors d supported on the group
with zero sum X d = a sqrt(n) d, and the gradient G d = -(1 - p_own + p_other) (sqrt(n)/N) d, with the probabilities
that a class of the group gives itself and another of the group; they are ordered like the logits, so p_own - p_other
has the sign of a. Optimality asks G d = -tau d if a > 0, G d = +tau d if a < 0 and |G d| <= tau |d| if a = 0, with tau
= sqrt(lambda_W lambda_H). a < 0 would need a negative 1 - p_own + p_other: impossible. a > 0 needs sqrt(n)/N > tau; a =
0 needs sqrt(n)/N <= tau. Hence the g classes share one weight and one feature vector (in general not zero) iff

    n <= N^2 lambda_W lambda_H,

with or without bias, whatever the other classes. Classes of different sizes never merge exactly while something else is
learnt: this is a statement about groups of equal size. With K_A classes of size r n_B and K_B of size n_B it reads
r >= (1/sqrt(n_B lambda_W lambda_H) - K_B)/K_A.

**Cross-entropy, everything vanishes.** At X = 0 the gradient is -C D^{1/2}/N (no bias), or -(I - pi 1^T) D^{1/2}/N with
pi = n/N and the bias log pi. Zero is the minimiser iff its spectral norm is <= tau: the largest eigenvalue of C D C
resp. D - n n^T/N is <= N^2 lambda_W lambda_H.

**Squared error.** The problem splits over the singular values of Y (no bias; sqrt(n_k), one class each) or Y(I -
11^T/N) (free bias; the roots of the eigenvalues of D - n n^T/N). A mode sigma vanishes iff q/sigma^2 >= thr_M, with

    q = M N (N P lambda_H)^{1/M},   P = prod_m lambda_m,   thr_M = (M-1)^{(M-1)/M}/M,  thr_1 = 1:

1/(1+x^M) + beta x falls below its value 1 at x = 0 iff beta < x^{M-1}/(1+x^M) for some x, a function whose maximum
thr_M is at x^M = M - 1. So the critical size is q/thr_M (N^2 lambda_W lambda_H for M = 1, as for cross-entropy).
Without bias class k vanishes (weight and feature zero) iff n_k <= q/thr_M. With a free bias differences of classes of
one size n are modes with sigma^2 = n exactly, so such classes merge at the same size; other classes follow modes that
mix them. For M >= 2 the collapse is a jump and at the critical size both solutions are minimisers.
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import (
    ClassSizes,
    Count,
    LayerDecay,
    check_bias,
    check_class_sizes,
    check_count,
    check_decays,
)
from nctheory.theory._modes import threshold as mode_threshold

_ASSUMPTIONS = (
    "features are free parameters, one vector a sample; linear layers",
    "every width >= num_classes (>= num_classes - 1 with cross-entropy or a free bias)",
    "bias absent, or free and not regularised",
    "decays are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MinorityCollapse:
    """Which classes collapse at the global minimiser.

    Where the numbers are NaN, because a traced argument was out of range, the truth values are False.

    Attributes:
        size_threshold: critical class size; a class (kind "zero") or group of equal classes ("merge") of at most this
            size collapses.
        collapsed: classes that do; for "merge" only classes that have a partner of equal size.
        largest_mode: largest squared singular value of the target's linear part, in the unit of class sizes.
        is_trivial: whether all weights and features vanish: `largest_mode` <= `size_threshold`.
        kind: "merge" (one common vector a group) or "zero" (class vector zero).
        assumptions: what must hold.
    """

    size_threshold: Float[jax.Array, "..."]
    collapsed: Bool[jax.Array, "... K"]
    largest_mode: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    kind: str = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def ce_minority_collapse(
    class_sizes: ClassSizes, *, weight_decay: Scalar, feature_decay: Scalar, bias: str = "none"
) -> MinorityCollapse:
    """Classes that merge under one-layer cross-entropy with free features, and whether everything vanishes.

    Classes of one size n merge into one vector iff n <= N^2 lambda_W lambda_H (bias or not). Everything is zero iff the
    largest eigenvalue of C D C (no bias) or D - n n^T/N (free bias) is <= N^2 lambda_W lambda_H. A class without a
    partner of equal size never merges exactly. NaN where a traced argument is out of range.

    Args:
        class_sizes: n_1..n_K, whole numbers >= 1 (samples), K >= 2; may be traced.
        weight_decay: lambda_W > 0, coefficient of |W|^2/2 (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).
        bias: "none" or "free".

    Returns:
        Record of kind "merge".

    Raises:
        ValueError: if an argument is out of range.

    References:
        Phenomenon: Fang et al. (2021); under weight decay Hong and Ling (2023). Condition and proof derived here.
    """
    _checks.shape("weight_decay", weight_decay, ())
    sizes, decays, feature_decay = _prepare(class_sizes, weight_decay, feature_decay, 1, bias)
    threshold = (jnp.sum(sizes) * jnp.sqrt(decays[0]) * jnp.sqrt(feature_decay)) ** 2
    record = _record(sizes, threshold, centring="mean" if bias == "none" else "shares", kind="merge")
    return nan_unless(all_counts(sizes) & all_positive(decays, feature_decay), record)


def ce_minority_ratio(
    num_majority: int,
    num_minority: int,
    minority_size: Count,
    *,
    weight_decay: Scalar,
    feature_decay: Scalar,
) -> Float[jax.Array, "..."]:
    """Critical imbalance ratio n_A/n_B under one-layer cross-entropy: minority classes merge iff the ratio is >= it.

    r* = (1/sqrt(n_B lambda_W lambda_H) - K_B)/K_A at fixed minority size n_B: the form of n_B <= N^2 lambda_W lambda_H
    with N = n_B (K_A r + K_B). A value <= 0 means that they merge at any ratio. NaN where a traced argument is out of
    range.

    Args:
        num_majority: K_A >= 1 classes.
        num_minority: K_B >= 2 classes.
        minority_size: n_B >= 1, whole (samples); may be traced.
        weight_decay: lambda_W > 0 (dimensionless).
        feature_decay: lambda_H > 0, summed over all samples (dimensionless).

    Returns:
        The ratio, dimensionless.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Derived here (module docstring).
    """
    num_majority = _checks.integer("num_majority", num_majority, minimum=1)
    num_minority = _checks.integer("num_minority", num_minority, minimum=2)
    check_count("minority_size", minority_size)
    _checks.shape("weight_decay", weight_decay, ())
    check_decays(weight_decay, feature_decay)
    dtype = float_dtype(weight_decay, feature_decay)
    n, decay_w, decay_h = (as_float(value, dtype) for value in (minority_size, weight_decay, feature_decay))
    ratio = (1 / (jnp.sqrt(n * decay_w) * jnp.sqrt(decay_h)) - num_minority) / num_majority
    return nan_unless(all_counts(n) & all_positive(decay_w, decay_h), ratio)


def mse_minority_collapse(
    class_sizes: ClassSizes,
    *,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
    depth: int = 1,
    bias: str = "none",
) -> MinorityCollapse:
    """Classes that vanish (no bias) or merge (free bias) under squared error with M linear layers and free features.

    Critical size q/thr_M, q = M N (N P lambda_H)^{1/M}, thr_M = (M-1)^{(M-1)/M}/M, thr_1 = 1. Without bias class k is
    zero iff n_k <= q/thr_M; with a free bias classes of one size n merge iff n <= q/thr_M, and a class without a
    partner of equal size is not described by a size alone. Everything is zero iff the largest class (no bias) or the
    largest eigenvalue of D - n n^T/N (free bias) is <= q/thr_M. For M >= 2 the change is a jump and at equality both
    solutions are minimisers; the collapsed one is reported. NaN where a traced argument is out of range.

    Args:
        class_sizes: n_1..n_K, whole numbers >= 1 (samples), K >= 2; may be traced.
        weight_decay: lambda_m > 0, one number or one a layer from W_1 to W_M (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).
        depth: M >= 1 linear layers.
        bias: "none" or "free".

    Returns:
        Record of kind "zero" without bias, "merge" with.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Derived here (module docstring); setting of Dang et al. (2023).
    """
    depth = _checks.integer("depth", depth, minimum=1)
    sizes, decays, feature_decay = _prepare(class_sizes, weight_decay, feature_decay, depth, bias)
    total = jnp.sum(sizes)
    log_product = jnp.sum(jnp.log(decays)) + jnp.log(feature_decay) + jnp.log(total)
    threshold = depth / mode_threshold(depth) * total * jnp.exp(log_product / depth)
    centring, kind = ("none", "zero") if bias == "none" else ("shares", "merge")
    record = _record(sizes, threshold, centring=centring, kind=kind)
    return nan_unless(all_counts(sizes) & all_positive(decays, feature_decay), record)


def _prepare(class_sizes, weight_decay, feature_decay, depth, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
    check_class_sizes(class_sizes)
    check_bias(bias, regularised=False)
    # Eigenvalues are not available in half precision.
    dtype = np.promote_types(float_dtype(weight_decay, feature_decay), np.float32)
    check_decays(weight_decay, feature_decay, depth, dtype)
    sizes, decays, feature_decay = (as_float(value, dtype) for value in (class_sizes, weight_decay, feature_decay))
    return sizes, jnp.broadcast_to(decays, (depth,)), feature_decay


def _record(sizes, threshold, *, centring: str, kind: str) -> MinorityCollapse:
    k = sizes.shape[0]
    if centring == "none":
        largest = jnp.max(sizes)
    else:
        roots = jnp.sqrt(sizes)
        # C D C and D^(1/2) C D^(1/2) share their eigenvalues, as do the two forms with the shares.
        removed = roots / math.sqrt(k) if centring == "mean" else sizes / jnp.sqrt(jnp.sum(sizes))
        largest = jnp.linalg.eigvalsh(jnp.diag(sizes) - removed[:, None] * removed[None, :])[-1]
    small = sizes <= threshold
    if kind == "merge":
        partners = (sizes[:, None] == sizes[None, :]) & ~jnp.eye(k, dtype=bool)
        small &= jnp.any(partners, axis=1)
    return MinorityCollapse(
        size_threshold=threshold, collapsed=small, largest_mode=largest, is_trivial=largest <= threshold, kind=kind
    )
