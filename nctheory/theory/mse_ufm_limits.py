r"""Two published forms of the one-layer result: without regularisation, and in another normalisation.

**Without regularisation** (Mixon, Parshall and Pi). Gradient flow on |W H + b 1^T - Y|^2/2 from W, H near zero and b =
0, n samples in each of K classes, N = n K. (1) W^T W - H H^T is constant along the flow, so it stays near zero: the
factors of the limit are balanced. (2) While W H is negligible, b' = Y 1 - N b brings b to 1/K; W and H grow from size
epsilon exponentially, so they become visible only after a time of order log(1/epsilon), when b has arrived. (3) With b
= 1/K the residual is z C - C on class columns, C = I - 11^T/K, as long as W H = z C there; its sum over samples is
zero, so b rests and z rises to 1. Hence, as epsilon -> 0, the flow ends at

    W Hbar = C,  b = 1/K,  W W^T = sqrt(n) C,  Hbar^T Hbar = C/sqrt(n),  W = sqrt(n) Hbar^T,

the balanced factorisation of C with singular values sqrt(n) over all samples. It is the limit lambda_W = lambda_H -> 0
of the regularised minimum with free bias (mse_ufm.py: fitted fraction 1, layer singular values n^(1/4)). The loss alone
does not select it: any invertible factor between W and H leaves the loss at 0.

**Tirer and Bruna** minimise |W H - Y|^2/(2 K n) + lambda_W |W|^2/(2K) + lambda_H |H|^2/(2 K n) without bias. Against
our objective, N = K n: weight_decay = lambda_W/K, feature_decay = lambda_H/N. Then beta = N^2 (lambda_W/K)(lambda_H/N)
/n = lambda_W lambda_H = c^2: zero for c >= 1, and otherwise logits (1 - c) I and |h|^2 = (1-c) sqrt(lambda_W/lambda_H).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory.frames import _hyperplane_basis
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import Count, check_count, check_decays
from nctheory.theory.mse_ufm import MseUfmMinimizer, mse_ufm_minimizer

_ASSUMPTIONS = (
    "features are free parameters, one linear layer with a bias",
    "balanced classes, one-hot targets, squared error without regularisation",
    "gradient flow from weights and features near zero, bias at zero",
    "feature dimension >= num_classes - 1",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnregularizedMseLimit:
    """Where gradient flow from near zero ends without regularisation, up to a rotation of the feature space.

    Attributes:
        loss: 0, every target is fitted.
        trivial_loss: 1/2 - 1/(2K), loss |W H + b 1^T - Y|^2/(2N) with W, H zero and the best bias.
        is_trivial: whether all weights and features vanish: False.
        active: modes that are not zero: all K-1.
        active_classes: classes that are not zero: all.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the K class features.
        logits: W times the class features, without the bias; one column a class.
        bias: b.
        weight_singular_values: of W, K-1 equal ones.
        layer_singular_values: the same as one row, as in `MseUfmMinimizer`.
        layer_norms: |W|_F^2, one entry.
        feature_singular_values: of the matrix H of all samples; equal to those of W.
        feature_norm: |H|_F^2 over all samples.
        weight: one representative W.
        class_features: the class features that go with `weight`, one a row.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    active: Bool[jax.Array, "... R"]
    active_classes: Bool[jax.Array, "... K"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    logits: Float[jax.Array, "... K K"]
    bias: Float[jax.Array, "... K"]
    weight_singular_values: Float[jax.Array, "... R"]
    layer_singular_values: Float[jax.Array, "... 1 R"]
    layer_norms: Float[jax.Array, "... 1"]
    feature_singular_values: Float[jax.Array, "... R"]
    feature_norm: Float[jax.Array, "..."]
    weight: Float[jax.Array, "... K R"]
    class_features: Float[jax.Array, "... K R"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def unregularized_mse_limit(num_classes: int, samples_per_class: Count) -> UnregularizedMseLimit:
    """Limit of gradient flow from near zero on the unregularised squared error with bias, balanced classes.

    Logits C = I - 11^T/K, b = 1/K, W W^T = sqrt(n) C, class features with Gram matrix C/sqrt(n): a simplex ETF with
    W = sqrt(n) times the class features. n = 1: W and the features have equal Gram matrices. NaN where a
    traced n is below 1.

    Args:
        num_classes: K >= 2.
        samples_per_class: n, a whole number >= 1 (samples); may be traced.

    Returns:
        Record of the limit, in JAX's default float dtype unless n is of another.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Setting of Mixon, Parshall and Pi (2020); formula and argument derived here (module docstring).
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    check_count("samples_per_class", samples_per_class)
    return _limit(num_classes, as_float(samples_per_class, float_dtype(samples_per_class)))


def _limit(k: int, n: jax.Array) -> UnregularizedMseLimit:
    centering = jnp.asarray(np.eye(k) - 1 / k, n.dtype)
    values = jnp.broadcast_to(n**0.25, (k - 1,))
    # Its rows have the Gram matrix C.
    frame = jnp.asarray(_hyperplane_basis(k), n.dtype)
    record = UnregularizedMseLimit(
        loss=jnp.zeros((), n.dtype),
        trivial_loss=jnp.asarray((1 - 1 / k) / 2, n.dtype),
        is_trivial=jnp.asarray(False),
        active=jnp.ones(k - 1, bool),
        active_classes=jnp.ones(k, bool),
        weight_gram=n**0.5 * centering,
        feature_gram=n**-0.5 * centering,
        logits=centering,
        bias=jnp.full((k,), 1 / k, n.dtype),
        weight_singular_values=values,
        layer_singular_values=values[None, :],
        layer_norms=(k - 1) * (n**0.5)[None],
        feature_singular_values=values,
        feature_norm=(k - 1) * n**0.5,
        weight=n**0.25 * frame,
        class_features=n**-0.25 * frame,
    )
    return nan_unless(all_counts(n), record)


def tirer_bruna_minimizer(
    num_classes: int, samples_per_class: Count, *, weight_decay: Scalar, feature_decay: Scalar
) -> MseUfmMinimizer:
    """Global minimiser of |WH - Y|^2/(2Kn) + lambda_W |W|^2/(2K) + lambda_H |H|^2/(2Kn), balanced, no bias.

    The same problem as `mse_ufm_minimizer` with weight_decay = lambda_W/K and feature_decay = lambda_H/(K n). With
    c = sqrt(lambda_W lambda_H): zero for c >= 1; otherwise an orthogonal frame with logits (1-c) I,
    |h|^2 = (1-c) sqrt(lambda_W/lambda_H) and w = sqrt(lambda_H/lambda_W) h. The threshold depends on neither K nor n.
    NaN where a traced argument is out of range.

    Args:
        num_classes: K >= 2.
        samples_per_class: n, a whole number >= 1 (samples); may be traced.
        weight_decay: lambda_W > 0 in their normalisation (dimensionless).
        feature_decay: lambda_H > 0 in their normalisation (dimensionless).

    Returns:
        Record of the minimiser; its loss is the value of their objective.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Normalisation of Tirer and Bruna (2022), as restated in later work; derived here (module docstring).
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    check_count("samples_per_class", samples_per_class)
    _checks.shape("weight_decay", weight_decay, ())
    check_decays(weight_decay, feature_decay)
    dtype = float_dtype(weight_decay, feature_decay)
    n, decay_w, decay_h = (as_float(value, dtype) for value in (samples_per_class, weight_decay, feature_decay))
    record = mse_ufm_minimizer(
        jnp.broadcast_to(n, (num_classes,)),
        weight_decay=decay_w / num_classes,
        feature_decay=decay_h / (num_classes * n),
    )
    return nan_unless(all_counts(n) & all_positive(decay_w, decay_h), record)
