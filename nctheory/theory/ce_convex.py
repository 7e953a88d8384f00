r"""Cross-entropy with free features, one layer, any class sizes: a certified numerical minimiser.

    L(W, H, b) = (1/N) sum_i [logsumexp(z_i) - z_{i,y_i}] + (lambda_W/2)|W|_F^2 + (lambda_H/2)|H|_F^2
                 + (lambda_b/2)|b|^2,      z_i = W h_i + b,   n_k samples in class k.

For fixed Z = W H the least penalty is sqrt(lambda_W lambda_H)|Z|_*. Averaging the features of a class lowers |Z|_* and
raises no loss (Jensen), so Z repeats class logits Zbar (K K) and |Z|_* = |Zbar diag(sqrt n_k)|_*. With X = Zbar
diag(sqrt n_k) the problem is convex in K^2 (+ K) numbers whatever the number of samples,

    min over X, b of sum_k (n_k/N) CE_k(X_k/sqrt(n_k) + b) + tau |X|_* + (lambda_b/2)|b|^2

with tau = sqrt(lambda_W lambda_H), optimal iff G, the gradient in X, has |G|_2 <= tau and <G, X> = -tau |X|_*, and the
gradient in b is zero. Without bias the minimiser is unique (strict convexity up to column shifts, which |X|_* fixes by
centring), hence so are the Gram matrices W W^T = sqrt(lambda_H/lambda_W) U S U^T and H^T H = sqrt(lambda_W/lambda_H) D
V S V^T D, D = diag(n_k^{-1/2}), of X = U S V^T. The solver and the bound on the loss that it reports are in
`_ce_solver`.

Equal classes have the closed form `ce_ufm_minimizer`; there is none in general otherwise, except what
`minority_collapse` says about thresholds and `ce_nonnegative` about non-negative features.
"""

from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from nctheory import _checks
from nctheory.theory._ce_solver import Problem, certify, solve
from nctheory.theory._common import Scalar
from nctheory.theory._cross_entropy import (
    Bias,
    ClassSizes,
    check_bias,
    check_class_sizes,
    check_decays,
    require_concrete,
)

_ASSUMPTIONS = (
    "features are free parameters, one vector a sample; class sizes may differ",
    "one linear layer; bias absent, free, or with a squared-norm penalty",
    "feature dimension >= rank of the solution (num_classes - 1 always suffices)",
    "weight_decay and feature_decay are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CeConvexMinimizer:
    """Global minimiser to within `duality_gap`, in NumPy and float64.

    Attributes:
        loss: regularised loss of the solution.
        duality_gap: bound on the loss minus the minimum.
        certificate: |G|_2 / tau: 1 at a non-zero minimiser, <= 1 at a zero one.
        bias_residual: norm of the gradient in the bias; 0 without one.
        converged: whether gap, certificate - 1 and bias residual are all within the tolerance.
        trivial_loss: least loss with W = H = 0 (the bias still fits the class shares).
        is_trivial: whether W = H = 0 in the solution.
        rank: number of positive singular values.
        singular_values: of the class logits times diag(sqrt n_k), decreasing.
        active: modes (singular directions, in the order of `singular_values`) that are not zero.
        active_classes: classes with a nonzero row of W; equal classes that merge keep a common nonzero row.
        layer_singular_values: of W and of H (all samples), a row each, one column a mode.
        logits: W times the class features, one column a class; without the bias.
        bias: b; a free one has mean 0.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the class features.
        class_weight_norms: lengths of the rows of W.
        class_feature_norms: lengths of the class features.
        layer_norms: |W|_F^2 and |H|_F^2, the latter over all samples.
        weight: one representative W.
        class_features: the class features that go with `weight`, one a row.
        num_iterations: proximal steps used.
        assumptions: what must hold.
    """

    loss: Float[np.ndarray, ""]
    duality_gap: Float[np.ndarray, ""]
    certificate: Float[np.ndarray, ""]
    bias_residual: Float[np.ndarray, ""]
    converged: Bool[np.ndarray, ""]
    trivial_loss: Float[np.ndarray, ""]
    is_trivial: Bool[np.ndarray, ""]
    rank: Int[np.ndarray, ""]
    singular_values: Float[np.ndarray, " K"]
    active: Bool[np.ndarray, " K"]
    active_classes: Bool[np.ndarray, " K"]
    layer_singular_values: Float[np.ndarray, "2 K"]
    logits: Float[np.ndarray, "K K"]
    bias: Float[np.ndarray, " K"]
    weight_gram: Float[np.ndarray, "K K"]
    feature_gram: Float[np.ndarray, "K K"]
    class_weight_norms: Float[np.ndarray, " K"]
    class_feature_norms: Float[np.ndarray, " K"]
    layer_norms: Float[np.ndarray, " 2"]
    weight: Float[np.ndarray, "K K"]
    class_features: Float[np.ndarray, "K K"]
    num_iterations: Int[np.ndarray, ""]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def ce_ufm_convex(
    class_sizes: ClassSizes,
    *,
    weight_decay: Scalar,
    feature_decay: Scalar,
    bias: Bias = "none",
    tolerance: float = 1e-12,
    max_rounds: int = 40,
) -> CeConvexMinimizer:
    """Certified minimiser of one-layer cross-entropy with free features for any class sizes.

    min over class logits Zbar (and b) of sum_k (n_k/N) CE_k(Zbar + b 1^T) + sqrt(lambda_W lambda_H)
    |Zbar diag(sqrt n_k)|_* + (lambda_b/2)|b|^2. Limits: equal classes give the simplex ETF; large decays zero;
    vanishing decays SELI. In float64 whatever JAX's setting; cost does not depend on the number of samples. Nothing is
    undefined; a solve that misses the tolerance says so in `converged` and bounds its error in `duality_gap`.

    Args:
        class_sizes: n_1..n_K, whole numbers >= 1 (samples), K >= 2.
        weight_decay: lambda_W > 0, coefficient of |W|^2/2 (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).
        bias: "none", "free" (no decay; 0 is refused), or lambda_b > 0, coefficient of |b|^2/2 (dimensionless).
        tolerance: > 0, for the gap, the excess of the certificate over 1, and the bias residual.
        max_rounds: >= 1 rounds of 300 proximal steps, each followed by a Newton polish.

    Returns:
        Record of the minimiser, in NumPy; unique up to rotations of the feature space (and a constant in a free bias).

    Raises:
        ValueError: if an argument is out of range or traced.

    References:
        Convex reduction and certificate derived here (module docstrings).
    """
    check_class_sizes(class_sizes)
    _checks.shape("weight_decay", weight_decay, ())
    check_decays(weight_decay, feature_decay, dtype=np.dtype(np.float64))
    check_bias(bias, dtype=np.dtype(np.float64))
    _checks.shape("tolerance", tolerance, ())
    _checks.number("tolerance", tolerance, minimum=0.0, exclusive_minimum=True)
    max_rounds = _checks.integer("max_rounds", max_rounds, minimum=1)
    require_concrete(class_sizes=class_sizes, weight_decay=weight_decay, feature_decay=feature_decay)
    require_concrete(bias=bias, tolerance=tolerance)
    decay_w, decay_h = float(weight_decay), float(feature_decay)
    bias_decay = {"none": None, "free": 0.0}[bias] if isinstance(bias, str) else float(bias)
    problem = Problem(np.asarray(class_sizes, np.float64), np.sqrt(decay_w) * np.sqrt(decay_h), bias_decay)
    x, fitted_bias, certificate, count = solve(problem, tolerance, max_rounds)
    return _record(problem, x, fitted_bias, certificate, np.sqrt(decay_h) / np.sqrt(decay_w), tolerance, count)


def _trivial_loss(problem: Problem, tolerance: float) -> float:
    """Least loss over the bias alone; a penalty too large for any X to survive leaves the same convex problem."""
    if problem.bias_decay is None:
        return float(np.log(problem.sizes.size))
    if problem.bias_decay == 0:
        return -float(problem.shares @ np.log(problem.shares))
    zero = np.zeros((problem.sizes.size,) * 2)
    bias_only = Problem(problem.sizes, 2.0, problem.bias_decay)
    _, bias, _, _ = solve(bias_only, tolerance, max_rounds=40)
    return certify(bias_only, zero, bias).loss


def _record(problem, x, bias, certificate, balance, tolerance, count) -> CeConvexMinimizer:
    u, s, vt = np.linalg.svd(x)
    # Proximal steps and Newton's factors leave zeros as rounding.
    s = np.where(s > 1e-13 * max(s[0], 1.0), s, 0.0)
    weight = u * np.sqrt(s * balance)
    features = vt.T * np.sqrt(s / balance) / problem.roots[:, None]
    weight_norms, feature_norms = np.linalg.norm(weight, axis=1), np.linalg.norm(features, axis=1)
    spread = max(certificate.gap, certificate.spectral - 1, certificate.bias_residual)
    return CeConvexMinimizer(
        loss=np.asarray(certificate.loss),
        duality_gap=np.asarray(certificate.gap),
        certificate=np.asarray(certificate.spectral),
        bias_residual=np.asarray(certificate.bias_residual),
        converged=np.asarray(spread <= tolerance),
        trivial_loss=np.asarray(_trivial_loss(problem, tolerance)),
        is_trivial=np.asarray(s[0] == 0),
        rank=np.asarray(np.sum(s > 0)),
        singular_values=s,
        active=s > 0,
        active_classes=weight_norms > 1e-13 * max(weight_norms.max(), 1.0),
        layer_singular_values=np.stack([np.sqrt(s * balance), np.sqrt(s / balance)]),
        logits=(u * s) @ vt / problem.roots,
        bias=bias - bias.mean() if problem.bias_decay == 0 else bias,
        weight_gram=weight @ weight.T,
        feature_gram=features @ features.T,
        class_weight_norms=weight_norms,
        class_feature_norms=feature_norms,
        layer_norms=np.array([np.sum(weight**2), problem.sizes @ feature_norms**2]),
        weight=weight,
        class_features=features,
        num_iterations=np.asarray(count),
    )
