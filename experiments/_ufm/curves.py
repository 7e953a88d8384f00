"""Predicted curves of the figures, by theory, on finer grids than anything is trained on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import dimensionless

from _ufm import relu_problems
from _ufm.conditions import (
    CRITICAL_RATIO,
    DEEP_DECAY,
    DEEP_SAMPLES,
    GRADED,
    MINORITY_SIZE,
    Scale,
    conditions,
    decay_at,
)
from nctheory.theory._modes import minimize_mode, threshold
from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_deep import ce_deep_low_rank_loss

CURVE_DEPTHS = (1, 2, 3, 6)
# With each depth of the scale one compiled program.
DEEP_CLASSES = (3, 4, 6, 10)
_DEEP_DECAYS: dict[str, Any] = {"weight_decay": DEEP_DECAY, "feature_decay": DEEP_DECAY}
GRADED_TOTAL = sum(GRADED)


def measure(scale: Scale) -> xr.Dataset:
    """Every curve, in one dataset."""
    with jax.enable_x64(True):
        arrays = {**_modes(), **_class_norms(), **_angle(scale), **_deep(scale), **relu_problems.curves(scale)}
    coords = {
        "depth": list(CURVE_DEPTHS),
        "ratio_to_threshold": _levels(),
        "class_size": _class_sizes(),
        "imbalance": _imbalances(scale),
        "deep_depth": list(scale.curve_depths),
        "deep_classes": list(DEEP_CLASSES),
    }
    return xr.Dataset(arrays, coords=coords)


def _levels() -> np.ndarray:
    return np.sort(np.concatenate([np.linspace(0.1, 1.4, 261), [1 - 1e-9, 1 + 1e-9]]))


def _class_sizes() -> np.ndarray:
    return np.geomspace(min(GRADED) * 0.8, max(GRADED) * 1.2, 240)


def _imbalances(scale: Scale) -> np.ndarray:
    # Whole class sizes: the curve is a minimum of a real problem at every point.
    largest = max(max(ratios) for loss, _, ratios in scale.minority_ratios if loss == "cross_entropy")
    return (
        np.unique(np.round(np.concatenate([np.linspace(1, largest, 16), [4.5, 4.9, 5.0, 5.1]]) * MINORITY_SIZE))
        / MINORITY_SIZE
    )


def _modes() -> dict[str, tuple]:
    betas = [np.log(_levels() * threshold(depth)) for depth in CURVE_DEPTHS]
    found = [minimize_mode(jnp.asarray(beta), depth) for beta, depth in zip(betas, CURVE_DEPTHS, strict=True)]
    fraction = np.stack([np.asarray(mode.fraction) for mode in found])
    words = dimensionless("fitted fraction of a mode, against beta over its threshold")
    levels = np.asarray([threshold(depth) for depth in CURVE_DEPTHS])
    return {
        "fraction": (("depth", "ratio_to_threshold"), fraction, words),
        "threshold": ("depth", levels, dimensionless("largest beta at which a mode is alive")),
    }


def graded_decay(depth: int) -> float:
    """Decay of the graded condition of this depth."""
    return next(
        each.decay
        for each in conditions(Scale(graded_depths=(depth,)))
        if each.kind == "graded" and each.depth == depth
    )


def _class_norms() -> dict[str, tuple]:
    weights, features, critical = [], [], []
    for depth in CURVE_DEPTHS:
        decay = graded_decay(depth)
        q = depth * GRADED_TOTAL * (GRADED_TOTAL * decay ** (depth + 1)) ** (1 / depth)
        mode = minimize_mode(jnp.log(q / jnp.asarray(_class_sizes())), depth)
        power = np.asarray(mode.x) ** depth
        weights.append(GRADED_TOTAL * decay * power)
        features.append(power / (GRADED_TOTAL * decay * (1 + power) ** 2))
        critical.append(q / threshold(depth))
    dims = ("depth", "class_size")
    return {
        "weight_squares": (dims, np.stack(weights), dimensionless("predicted squared norm of a class's row of A")),
        "feature_squares": (dims, np.stack(features), dimensionless("predicted squared norm of a class's feature")),
        "critical_size": ("depth", np.asarray(critical), {"units": "samples", "definition": "largest dead class"}),
    }


def _angle(scale: Scale) -> dict[str, tuple]:
    key = ("cross_entropy", 1)
    total = round(MINORITY_SIZE * 2 * (CRITICAL_RATIO[key] + 1))
    decay = decay_at(MINORITY_SIZE, total, 1)
    cosines = []
    for ratio in _imbalances(scale):
        large = round(MINORITY_SIZE * ratio)
        found = ce_ufm_convex((large, large, MINORITY_SIZE, MINORITY_SIZE), weight_decay=decay, feature_decay=decay)
        gram = np.asarray(found.weight_gram)
        cosines.append(gram[2, 3] / np.sqrt(gram[2, 2] * gram[3, 3]))
    critical = [CRITICAL_RATIO[each] for each in (key, ("mse", 1), ("mse", 3))]
    return {
        "minority_cosine": ("imbalance", np.asarray(cosines), dimensionless("predicted cosine of the minority's rows")),
        "critical_ratio": ("minority", np.asarray(critical), dimensionless("cross-entropy, MSE M 1, MSE M 3")),
    }


def _deep(scale: Scale) -> dict[str, tuple]:
    found = [
        [ce_deep_low_rank_loss(k, DEEP_SAMPLES, **_DEEP_DECAYS, depth=depth) for depth in scale.curve_depths]
        for k in DEEP_CLASSES
    ]
    return {
        f"{name}_loss": (
            ("deep_classes", "deep_depth"),
            np.asarray([[float(getattr(each, field)) for each in row] for row in found]),
            dimensionless("cross-entropy, balanced"),
        )
        for name, field in (("etf", "etf_loss"), ("low_rank", "loss"))
    }
