r"""Minority collapse in the layer-peeled model: the exact imbalance ratio, from a convex problem in three variables.

    min (1/N) sum_i CE(W h_i, y_i)   subject to   (1/K) sum_k |w_k|^2 <= E_W
                                           and (1/K) sum_k (1/n_k) sum_i |h_ki|^2 <= E_H,

K_A majority classes of size R n_B, K_B >= 2 minority classes of size n_B, no bias; dimension >= K - 1.

**Reduction.** Features of one class may be averaged (Jensen). Class logits Z = W Hbar (K K) are reachable iff |Z|_* <=
c = K sqrt(E_W E_H), as |Z|_* = min |W|_F |Hbar|_F. So the problem is min sum_k (n_k/N) CE_k(Z) with |Z|_* <= c, convex.
Let mu be the multiplier of the constraint, G = (P - I) diag(n_k/N) the gradient: |G|_2 <= mu, <G, Z> = -mu |Z|_*.

**Merging.** As in `minority_collapse`: on differences d of minority classes Z d = a_B d and G d = -(1 - p_own +
p_other) (n_B/N) d, so the minority classes share one weight and one feature vector iff n_B/N <= mu. mu falls as c
grows, hence they merge iff c <= c_0(R), the nuclear norm of the minimiser of the problem with the penalty (n_B/N)|Z|_*.
R_0 is where c_0(R) = c.

**Three variables.** That minimiser is unique (columns centred) and unchanged by permuting classes within each kind, and
its minority differences vanish: Z = a (I - 11^T/K_A) on the majority, a >= 0, plus a rank-one cross mode xi (u 1_A^T/
sqrt(K_A) + v 1_B^T/sqrt(K_B)), xi the unit vector along 1_A/K_A - 1_B/K_B. Times N/n_B, with g^2 = 1/K_A + 1/K_B,

    J = R K_A log(1 + (K_A-1) e^-a + K_B e^{-a (K_A-1)/K_A - g u/sqrt(K_A)}) + K_B log(K_B + K_A e^{g v/sqrt(K_B)})
        + (K_A - 1) a + sqrt(u^2 + v^2).

**No kink.** For R > 1: dJ/da = -(R-1)(K_A-1) < 0 at a = 0 for every u, so a > 0. At u = v = 0 with dJ/da = 0 the slopes
satisfy J_u^2 >= K_B/K, strictly for a > 0 (or for K_A = 1, R > 1), and J_v^2 = K_A/K, sum > 1: so (u, v) != 0. J is
smooth at its minimiser. Newton's method with step halving, started below the least value on the kink, never meets it.
At R = 1 all is zero, c_0 = 0.

That c_0 increases in R, so that the crossing is the only one, was checked numerically and is not proved here.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory.theory._common import Scalar
from nctheory.theory._cross_entropy import log_softmax, require_concrete, softmax_residual

_LARGEST_LOG_RATIO = 500.0
_ASSUMPTIONS = (
    "features are free parameters, one vector a sample; one linear layer, no bias",
    "cross-entropy with bounds on mean squared norms, two class sizes",
    "feature dimension >= num_majority + num_minority - 1",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerPeeledThreshold:
    """Imbalance ratio at which minority classes merge in the layer-peeled model, and the solution there.

    Attributes:
        loss: mean cross-entropy at R_0, the minimum under the bounds.
        trivial_loss: loss at zero, log K.
        is_trivial: whether zero is the minimiser: False, budgets being positive.
        ratio: R_0; minority classes share one weight and one feature vector iff n_A/n_B >= R_0.
        log_ratio: its natural logarithm.
        logits: class logits at R_0, majority classes first, one column a class.
        nuclear_norm: |Z|_* of these logits: the budget K sqrt(E_W E_H).
        singular_values: of the logits, decreasing (K of them).
        active: singular values that are not zero, to rounding: at most K_A, as the minority classes are merged.
        active_classes: classes that are not zero.
        layer_singular_values: of W, one row, one column for each of `singular_values`.
        layer_norms: |W|_F^2 = K E_W, one entry.
        class_feature_singular_values: of the matrix of the K class features, whose squares sum to K E_H.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the K class features.
        bias: zero, there is none.
        weight: one representative W, d = K - 1.
        class_features: the class features that go with `weight`, one a row.
        multiplier: n_B/N at R_0, multiplier of the constraint.
        spectral_certificate: |G|_2/multiplier, 1 at the optimum.
        alignment_residual: |multiplier |Z|_* + <G, Z>| / (multiplier |Z|_*), 0 at the optimum.
        budget_residual: relative distance of the nuclear norm from the budget.
        converged: whether the three are within the tolerance.
        assumptions: what must hold.
    """

    loss: Float[np.ndarray, ""]
    trivial_loss: Float[np.ndarray, ""]
    is_trivial: Bool[np.ndarray, ""]
    ratio: Float[np.ndarray, ""]
    log_ratio: Float[np.ndarray, ""]
    logits: Float[np.ndarray, "K K"]
    nuclear_norm: Float[np.ndarray, ""]
    singular_values: Float[np.ndarray, " K"]
    active: Bool[np.ndarray, " K"]
    active_classes: Bool[np.ndarray, " K"]
    layer_singular_values: Float[np.ndarray, "1 K"]
    layer_norms: Float[np.ndarray, " 1"]
    class_feature_singular_values: Float[np.ndarray, " K"]
    weight_gram: Float[np.ndarray, "K K"]
    feature_gram: Float[np.ndarray, "K K"]
    bias: Float[np.ndarray, " K"]
    weight: Float[np.ndarray, "K K-1"]
    class_features: Float[np.ndarray, "K K-1"]
    multiplier: Float[np.ndarray, ""]
    spectral_certificate: Float[np.ndarray, ""]
    alignment_residual: Float[np.ndarray, ""]
    budget_residual: Float[np.ndarray, ""]
    converged: Bool[np.ndarray, ""]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def layer_peeled_threshold(
    num_majority: int,
    num_minority: int,
    *,
    feature_budget: Scalar,
    weight_budget: Scalar,
    tolerance: float = 1e-9,
) -> LayerPeeledThreshold:
    """Exact imbalance ratio R_0 of minority collapse in the layer-peeled model, with a certificate.

    Minority classes merge iff R = n_A/n_B >= R_0, where the minimiser of the loss plus (n_B/N)|Z|_* has nuclear norm K
    sqrt(E_W E_H). Limits: R_0 -> 1 for a vanishing budget; it grows exponentially with sqrt(E_W E_H). Beyond R_0 =
    e^500 the answer is NaN and `converged` False; below sqrt(E_W E_H) near 1e-3 rounding of the loss may keep
    `converged` False. In NumPy and float64 whatever JAX's setting.

    Args:
        num_majority: K_A >= 1 classes.
        num_minority: K_B >= 2 classes.
        feature_budget: E_H > 0, bound on the mean over classes of the mean squared feature norm.
        weight_budget: E_W > 0, bound on the mean squared norm of the rows of W.
        tolerance: > 0, for the three residuals of the certificate.

    Returns:
        Record in NumPy.

    Raises:
        ValueError: if an argument is out of range or traced.

    References:
        Model: Fang et al. (2021), who prove the limit R -> infinity; the threshold is derived here.
    """
    num_majority = _checks.integer("num_majority", num_majority, minimum=1)
    num_minority = _checks.integer("num_minority", num_minority, minimum=2)
    for name, value in (("feature_budget", feature_budget), ("weight_budget", weight_budget), ("tolerance", tolerance)):
        if value is not None:
            require_concrete(**{name: value})
        _checks.number(name, value, minimum=0.0, exclusive_minimum=True)
        _checks.shape(name, value, ())
    roots = float(np.sqrt(float(weight_budget))), float(np.sqrt(float(feature_budget)))
    budget = (num_majority + num_minority) * roots[0] * roots[1]
    log_ratio, point = _crossing(num_majority, num_minority, budget)
    return _record(num_majority, num_minority, roots, log_ratio, point, float(tolerance))


def _directions(ka: int, kb: int) -> tuple[np.ndarray, float]:
    """Margins of a majority class over its rivals, linear in (a, u, v), and the slope of a minority class in v."""
    g = np.sqrt(1 / ka + 1 / kb)
    return np.array([[1.0, 0.0, 0.0], [(ka - 1) / ka, g / np.sqrt(ka), 0.0]]), g / np.sqrt(kb)


def _value(ka: int, kb: int, log_ratio: float, point: np.ndarray) -> float:
    """J minus its value at zero, without cancellation of the two."""
    directions, slope = _directions(ka, kb)
    # A trial step may go far astray; a bounded exponent keeps its value finite, and far too high to be accepted.
    majority = np.array([ka - 1, kb]) @ np.expm1(np.minimum(-directions @ point, 600.0))
    minority = ka * np.expm1(min(slope * point[2], 600.0))
    fit = ka * np.exp(log_ratio) * np.log1p(majority / (ka + kb)) + kb * np.log1p(minority / (ka + kb))
    return fit + _nuclear_norm(ka, point)


def _derivatives(ka: int, kb: int, log_ratio: float, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of J at (a, u, v); at (u, v) = 0 those of the part without the root."""
    _, u, v = point
    directions, slope = _directions(ka, kb)
    errors = np.array([ka - 1, kb]) * np.exp(np.minimum(-directions @ point, 600.0))
    shares = errors / (1 + errors.sum())
    weight = ka * np.exp(log_ratio)
    mean = shares @ directions
    odds = ka * np.exp(min(slope * v, 600.0))
    miss = odds / (kb + odds)
    axis = np.array([0.0, 0.0, 1.0])
    gradient = -weight * mean + kb * slope * miss * axis + np.array([ka - 1.0, 0.0, 0.0])
    hessian = weight * (directions.T @ (shares[:, None] * directions) - np.outer(mean, mean))
    hessian += kb * slope**2 * miss * (1 - miss) * np.outer(axis, axis)
    radius = np.hypot(u, v)
    if radius > 0:
        across = np.array([0.0, -v, u]) / radius
        gradient += np.array([0.0, u, v]) / radius
        hessian += np.outer(across, across) / radius
    return gradient, hessian


def _start(ka: int, kb: int, log_ratio: float) -> np.ndarray:
    """A point below the least value on the kink (u, v) = 0: descent from it never comes back to the kink."""
    low, high = 0.0, 0.0
    if ka > 1:
        high = 1.0
        while _derivatives(ka, kb, log_ratio, np.array([high, 0.0, 0.0]))[0][0] < 0:
            low, high = high, 2 * high
        for _ in range(50):
            middle = (low + high) / 2
            falling = _derivatives(ka, kb, log_ratio, np.array([middle, 0.0, 0.0]))[0][0] < 0
            low, high = (middle, high) if falling else (low, middle)
    kink = np.array([high, 0.0, 0.0])
    pull = _derivatives(ka, kb, log_ratio, kink)[0] * np.array([0.0, 1.0, 1.0])
    step, lowest = 2.0, _value(ka, kb, log_ratio, kink)
    while step > 1e-12 and _value(ka, kb, log_ratio, kink - step * pull / np.linalg.norm(pull)) >= lowest:
        step /= 2
    # The descent direction suits small ratios; at large ones majority classes are fitted to a margin near log R.
    starts = [kink - step * pull / np.linalg.norm(pull), np.array([high, 0.7 * log_ratio, -1.0])]
    return min(starts, key=lambda point: _value(ka, kb, log_ratio, point))


def _minimize(ka: int, kb: int, log_ratio: float) -> np.ndarray:
    """Newton's method with step halving on J; for K_A = 1 there is no a, it stays 0."""
    free = slice(0, 3) if ka > 1 else slice(1, 3)
    point = _start(ka, kb, log_ratio)
    value, (gradient, hessian) = _value(ka, kb, log_ratio, point), _derivatives(ka, kb, log_ratio, point)
    for _ in range(300):
        move = np.zeros(3)
        move[free] = -np.linalg.lstsq(hessian[free, free], gradient[free], rcond=None)[0]
        decrease, step = gradient[free] @ move[free], 1.0
        if not decrease < 0 or np.linalg.norm(gradient[free]) < 1e-14 * ka:
            break
        while step > 1e-10:
            new = point + step * move
            new_value, derivatives = _value(ka, kb, log_ratio, new), _derivatives(ka, kb, log_ratio, new)
            smaller = np.linalg.norm(derivatives[0][free]) < 0.5 * np.linalg.norm(gradient[free])
            # Close to the minimum the value no longer resolves progress, but the gradient does.
            resolved = -decrease > 1e-8 * abs(value)
            if new_value < min(value, value + 0.1 * step * decrease) or (smaller and not resolved):
                break
            step = step / 2 if -decrease > 1e-15 * abs(value) else 0.0
        else:
            break
        point, value, (gradient, hessian) = new, new_value, derivatives
    return point


def _nuclear_norm(ka: int, point: np.ndarray) -> float:
    return float((ka - 1) * point[0] + np.hypot(point[1], point[2]))


def _crossing(ka: int, kb: int, budget: float) -> tuple[float, np.ndarray]:
    """Bisection for log R with c_0(R) = budget."""
    low, high = 0.0, 1.0
    while _nuclear_norm(ka, _minimize(ka, kb, high)) < budget:
        low, high = high, 2 * high
        if high > _LARGEST_LOG_RATIO:
            return np.nan, np.full(3, np.nan)
    while high - low > 4e-16 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _nuclear_norm(ka, _minimize(ka, kb, middle)) < budget:
            low = middle
        else:
            high = middle
    return high, _minimize(ka, kb, high)


def _record(ka, kb, roots, log_ratio, point, tolerance) -> LayerPeeledThreshold:
    k, budget = ka + kb, (ka + kb) * roots[0] * roots[1]
    logits, major = _logits(ka, kb, point), np.arange(k) < ka
    ratio = np.exp(log_ratio)
    multiplier = 1 / (ka * ratio + kb)
    shares = np.where(major, ratio * multiplier, multiplier)
    loss, norm, spectral, alignment = np.nan, np.nan, np.nan, np.nan
    if np.isfinite(log_ratio):
        loss = -shares @ np.diagonal(log_softmax(logits))
        slope = softmax_residual(logits) * shares
        norm = np.linalg.svd(logits, compute_uv=False).sum()
        spectral = np.linalg.norm(slope, 2) / multiplier
        alignment = abs(multiplier * norm + np.sum(slope * logits)) / (multiplier * norm)
    off_budget = abs(norm - budget) / budget
    return LayerPeeledThreshold(
        loss=np.asarray(loss),
        trivial_loss=np.asarray(np.log(k)),
        is_trivial=np.asarray(False),
        ratio=np.asarray(ratio),
        log_ratio=np.asarray(log_ratio),
        logits=logits,
        nuclear_norm=np.asarray(norm),
        **_factors(logits, roots),
        multiplier=np.asarray(multiplier),
        spectral_certificate=np.asarray(spectral),
        alignment_residual=np.asarray(alignment),
        budget_residual=np.asarray(off_budget),
        converged=np.asarray(max(spectral - 1, alignment, off_budget) <= tolerance),
    )


def _logits(ka: int, kb: int, point: np.ndarray) -> np.ndarray:
    a, u, v = point
    major = np.arange(ka + kb) < ka
    cross = np.where(major, 1 / ka, -1 / kb) / np.sqrt(1 / ka + 1 / kb)
    logits = np.outer(cross, np.where(major, u / np.sqrt(ka), v / np.sqrt(kb)))
    logits[:ka, :ka] += a * (np.eye(ka) - 1 / ka)
    return logits


def _factors(logits: np.ndarray, roots: tuple[float, float]) -> dict[str, Any]:
    """W and the class features: the factorisation of least norm, with the budget shared out as the bounds ask."""
    k = len(logits)
    left, values, right = np.full((k, k), np.nan), np.full(k, np.nan), np.full((k, k), np.nan)
    if np.isfinite(logits).all():
        left, values, right = np.linalg.svd(logits)
    # |W|^2 = K E_W and |H|^2 = K E_H from |W| |H| = |Z|_*.
    outer, inner = np.sqrt(values * (roots[0] / roots[1])), np.sqrt(values * (roots[1] / roots[0]))
    # The logits sum to zero over the classes, so the last value is zero.
    weight, features = (left * outer)[:, :-1], (right.T * inner)[:, :-1]
    active = values > 16 * k * np.finfo(float).eps * values[0]
    return {
        "singular_values": values,
        "active": active,
        "active_classes": np.any(np.abs(weight) > 0, axis=1),
        "layer_singular_values": outer[None, :],
        "layer_norms": np.sum(outer**2, keepdims=True),
        "class_feature_singular_values": inner,
        "weight_gram": weight @ weight.T,
        "feature_gram": features @ features.T,
        "bias": np.zeros(k),
        "weight": weight,
        "class_features": features,
    }
