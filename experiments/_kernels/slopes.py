"""Exponents of a power law in the width, with one number a seed for intervals over seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np


def mean_slope(series: np.ndarray, widths: Any) -> float:
    """Slope of log mean over seeds against log width, mean over the leading axes of (..., width, seed).

    NaN where a mean over seeds is not positive: a bias of the wrong sign, or of changing sign, follows no power law.
    """
    means = series.mean(axis=-1)
    logs = np.log(np.where(means > 0, means, np.nan))
    at = np.log(np.asarray(widths, dtype=np.float64))
    at = at - at.mean()
    return float(np.mean(logs @ at / (at @ at)))


def magnitude_slope(series: np.ndarray, widths: Any) -> float:
    """As `mean_slope`, of the magnitude of the mean over seeds, whatever its sign; for controls."""
    means = series.mean(axis=-1, keepdims=True)
    return mean_slope(np.abs(means), widths)


def mean_magnitude_slope(series: np.ndarray, widths: Any) -> float:
    """Slope of the log of the mean magnitude of (condition, width, seed): means over seeds, of either sign, count."""
    return mean_slope(np.abs(series.mean(axis=-1, keepdims=True)).mean(axis=0), widths)


def jackknife(statistic: Callable[[np.ndarray], float], series: np.ndarray) -> np.ndarray:
    """Pseudo-values of a statistic of all seeds, one a seed: S T(all) - (S-1) T(all but one).

    Their mean is the estimate with its bias of order 1/S removed, and Student's interval of their mean is the
    jackknife's (Tukey). For a smooth statistic of means, as a log of a mean is. A seed with a number that is not finite
    is left out of all and gets NaN.

    Args:
        statistic: of an array (..., S).
        series: measurements, seeds last.

    Returns:
        Pseudo-values, in units of the statistic; NaN throughout with fewer than three finite seeds.
    """
    count = series.shape[-1]
    kept = np.flatnonzero(np.isfinite(series.reshape(-1, count)).all(axis=0))
    found = np.full(count, np.nan)
    if kept.size < 3:
        return found
    finite = series[..., kept]
    whole = statistic(finite)
    for position, seed in enumerate(kept):
        found[seed] = kept.size * whole - (kept.size - 1) * statistic(np.delete(finite, position, axis=-1))
    return found
