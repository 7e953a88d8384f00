"""Exponents of a power law in the width, with one number a seed for intervals over seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np


def mean_slope(series: np.ndarray, widths: Any) -> float:
    """Slope of log mean over seeds against log width, mean over the leading axes of (..., width, seed)."""
    return _slope(np.log(np.abs(series.mean(axis=-1))), widths)


def variance_slope(series: np.ndarray, widths: Any) -> float:
    """Slope of log variance over seeds (divisor S - 1) against log width, likewise."""
    return _slope(np.log(series.var(axis=-1, ddof=1)), widths)


def _slope(logs: np.ndarray, widths: Any) -> float:
    at = np.log(np.asarray(widths, dtype=np.float64))
    at = at - at.mean()
    return float(np.mean(logs @ at / (at @ at)))


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
