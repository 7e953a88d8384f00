"""Theory's answer for a condition, and the answers of formulas with one thing wrong."""

from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq

from _ufm.conditions import Condition, gof_targets
from nctheory.simulator.layer_geometry import FrameTargets
from nctheory.theory._modes import root_limit, threshold
from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_deep import ce_deep_etf_loss, ce_deep_low_rank_loss
from nctheory.theory.ce_ufm import ce_ufm_minimizer
from nctheory.theory.mse_ufm import mse_ufm_minimizer


@cache
def predict(condition: Condition) -> dict[str, np.ndarray]:
    """Predicted loss, Gram matrices and frames of a condition; NaN where theory has no closed form.

    Args:
        condition: the problem. Call with 64-bit numbers on.

    Returns:
        Arrays by name: `loss`, `weight_gram`, `feature_gram`, `weight_squares`, `feature_squares`, `logits`,
        `num_dead` (dead classes), `is_unique`, and the losses of the wrong formulas.
    """
    k, depth = condition.num_classes, condition.depth
    found: dict[str, np.ndarray] = {
        name: np.full((), np.nan)
        for name in ("loss", "num_dead", "published_loss", "missing_factor_loss", "etf_loss", "low_rank_loss")
    }
    found |= {name: np.full((k, k), np.nan) for name in ("weight_gram", "feature_gram")}
    found |= {name: np.ones((depth, k)) for name in ("weight_squares", "feature_squares")}
    found |= {"logits": np.ones(k), "is_unique": np.asarray(False)}
    decays: dict[str, Any] = {"weight_decay": condition.decay, "feature_decay": condition.decay}
    if condition.loss == "mse":
        return found | _mse(condition, decays)
    if depth == 1:
        return found | _one_layer(condition, decays)
    if len(set(condition.class_sizes)) > 1:
        return found
    shared = {**decays, "depth": depth}
    samples = condition.class_sizes[0]
    etf = ce_deep_etf_loss(k, samples, **shared)
    low_rank = ce_deep_low_rank_loss(k, samples, **shared)
    return found | {"etf_loss": np.asarray(etf.loss), "low_rank_loss": np.asarray(low_rank.loss)}


def _mse(condition: Condition, decays: dict[str, Any]) -> dict[str, np.ndarray]:
    widths = (condition.width,) * condition.depth
    minimum = mse_ufm_minimizer(
        condition.class_sizes, **decays, depth=condition.depth, bias=condition.bias, widths=widths
    )
    found = {
        "loss": np.asarray(minimum.loss),
        "num_dead": np.sum(~np.asarray(minimum.active_classes)).astype(float),
        "weight_gram": np.asarray(minimum.weight_gram),
        "feature_gram": np.asarray(minimum.feature_gram),
        "is_unique": np.asarray(minimum.gram_is_unique),
    }
    if condition.bias == "none":
        found |= gof_targets(minimum)
        found["published_loss"] = wrong_loss(condition, use_root_limit=True)
        found["missing_factor_loss"] = wrong_loss(condition, drop_factor=True)
    return found


def _one_layer(condition: Condition, decays: dict[str, Any]) -> dict[str, np.ndarray]:
    sizes = condition.class_sizes
    if len(set(sizes)) == 1:
        minimum = ce_ufm_minimizer(len(sizes), sizes[0], **decays)
    else:
        minimum = ce_ufm_convex(sizes, **decays)
        if not minimum.converged:
            raise RuntimeError(f"The convex programme of {condition} is not solved: gap {minimum.duality_gap:g}.")
    # The neighbouring theorem: balanced classes of the mean size.
    balanced = ce_ufm_minimizer(
        len(sizes), 1, weight_decay=condition.decay, feature_decay=_mean_size(sizes) * condition.decay
    )
    return {
        "loss": np.asarray(minimum.loss),
        "etf_loss": np.asarray(balanced.loss),
        "weight_gram": np.asarray(minimum.weight_gram),
        "feature_gram": np.asarray(minimum.feature_gram),
        "is_unique": np.asarray(True),
    }


def _mean_size(sizes: tuple[int, ...]) -> float:
    return sum(sizes) / len(sizes)


def targets(prediction: dict[str, np.ndarray]) -> FrameTargets:
    """The general orthogonal frames that every layer is compared with."""
    return FrameTargets(*(prediction[name] for name in ("weight_squares", "feature_squares", "logits")))


def wrong_loss(condition: Condition, *, use_root_limit: bool = False, drop_factor: bool = False) -> np.ndarray:
    """Minimum of squared error without bias by a formula with one thing wrong; the right one if nothing is.

    Args:
        condition: the problem.
        use_root_limit: take a mode as alive wherever it has a stationary point, as the published code does.
        drop_factor: leave the factor M out of q = M N (N P lambda_H)^(1/M).

    Returns:
        The loss.
    """
    depth, total = condition.depth, sum(condition.class_sizes)
    q = depth * total * (total * condition.decay ** (depth + 1)) ** (1 / depth)
    q = q / depth if drop_factor else q
    limit = root_limit(depth) if use_root_limit else threshold(depth)
    kept = sorted(condition.class_sizes, reverse=True)[: min(condition.width, condition.num_classes)]
    loss = sum(condition.class_sizes) - sum(kept)
    for size in kept:
        x = larger_root(q / size, depth) if q / size < limit else 0.0
        loss += size / (1 + x**depth) + q * x
    return np.asarray(loss / (2 * total))


def larger_root(beta: float, depth: int) -> float:
    """Larger root of beta = M x^(M-1)/(1+x^M)^2 for beta below the top of the right side."""
    if depth == 1:
        return beta**-0.5 - 1
    peak = ((depth - 1) / (depth + 1)) ** (1 / depth)
    right = (depth / beta) ** (1 / (depth + 1)) * (1 + 1e-12)
    root: Any = brentq(lambda x: depth * x ** (depth - 1) / (1 + x**depth) ** 2 - beta, peak, right, xtol=1e-15)
    return float(root)
