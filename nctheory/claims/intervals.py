"""Intervals over seeds. Seeds that gave NaN or infinity are left out and counted, never averaged in."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nctheory._errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np

_CENTRES = ("max", "mean", "median", "min")


@dataclass(frozen=True)
class Interval:
    """A measurement over seeds with its interval, all in the unit of the samples.

    Attributes:
        measured: point estimate over the finite seeds; NaN if there is none.
        low: lower end; NaN if undefined.
        high: upper end; NaN if undefined.
        num_seeds: number of seeds that were run, the non-finite ones among them.
        num_nonfinite: how many of them gave NaN or infinity.
        method: how the interval was formed.
    """

    measured: float
    low: float
    high: float
    num_seeds: int
    num_nonfinite: int = 0
    method: str = ""

    def __post_init__(self):
        for name in ("measured", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.low > self.high:
            raise ArgumentError(f"Argument `high` must be >= low = {self.low:g}, but is {self.high:g}.")
        if not 0 <= self.num_nonfinite <= self.num_seeds:
            raise ArgumentError(
                f"Argument `num_nonfinite` must lie in 0..num_seeds = {self.num_seeds}, but is {self.num_nonfinite}."
            )


def _finite_part(name: str, samples: Iterable[Any]) -> tuple["np.ndarray", int]:
    """Return the finite samples in float64 and the number of all samples."""
    import numpy as np

    array = np.asarray(samples if hasattr(samples, "__array__") else list(samples))
    if array.ndim != 1 or array.size == 0:
        raise ArgumentError(f"Argument `{name}` must hold one number a seed, but has shape {array.shape}.")
    # "V" is how NumPy files bfloat16 and its kin.
    if array.dtype.kind not in "biufV":
        raise ArgumentError(f"Argument `{name}` must hold real numbers, but has dtype {array.dtype}.")
    values = array.astype(np.float64)
    return values[np.isfinite(values)], int(array.size)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ArgumentError(f"Argument `confidence` must lie strictly between 0 and 1, but is {confidence!r}.")


def mean_interval(samples: Iterable[Any], *, confidence: float = 0.95) -> Interval:
    """Mean over seeds with its Student interval.

    mean +- t_{n-1}((1 + confidence)/2) s/sqrt(n), with s the standard deviation of divisor n - 1 over the n finite
    samples. Exact if the samples are independent and normal; close for large n. Equal samples give an interval of
    width 0. With fewer than two finite samples the interval is NaN, so that every verdict on it is inconclusive.

    Args:
        samples: one number a seed, any unit; NaN and infinity are left out and counted.
        confidence: probability that the interval covers the true mean, in (0, 1), dimensionless.

    Returns:
        Mean and interval in the unit of the samples.

    Raises:
        ValueError: if `samples` is not a non-empty vector of real numbers, or `confidence` is not in (0, 1).

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0, float("nan")]).measured)
        2.0

    References:
        Student's t interval, as in any textbook of statistics; quantile from `scipy.stats.t`.
    """
    _check_confidence(confidence)
    from scipy import stats

    values, num_seeds = _finite_part("samples", samples)
    # For fewer than two samples, which have no interval, any number of degrees of freedom serves.
    quantile = float(stats.t.ppf((1 + confidence) / 2, max(values.size - 1, 1)))
    method = f"mean over seeds, Student t {100 * confidence:g} %"
    return _around_mean(values, num_seeds, quantile, method)


def standard_error_interval(samples: Iterable[Any], *, width: float) -> Interval:
    """Mean over seeds and a fixed number of standard errors to each side.

    mean +- width s/sqrt(n), with s the standard deviation of divisor n - 1 over the n finite samples: the criterion
    "within `width` standard errors" as an interval. Its coverage depends on n; `mean_interval` fixes the coverage
    instead. Equal samples give an interval of width 0. With fewer than two finite samples the interval is NaN, so that
    every verdict on it is inconclusive.

    Args:
        samples: one number a seed, any unit; NaN and infinity are left out and counted.
        width: number of standard errors to each side, > 0 and finite, dimensionless.

    Returns:
        Mean and interval in the unit of the samples.

    Raises:
        ValueError: if `samples` is not a non-empty vector of real numbers, or `width` is not positive and finite.
    """
    if not 0 < width < math.inf:
        raise ArgumentError(f"Argument `width` must be > 0 and finite, but is {width!r}.")
    values, num_seeds = _finite_part("samples", samples)
    method = f"mean over seeds, +- {width:g} standard errors"
    return _around_mean(values, num_seeds, width, method)


def _around_mean(values: "np.ndarray", num_seeds: int, width: float, method: str) -> Interval:
    """Mean of finite samples +- `width` standard errors; NaN ends for fewer than two."""
    count = values.size
    mean = float(values.mean()) if count else math.nan
    half = float(width * values.std(ddof=1) / math.sqrt(count)) if count >= 2 else math.nan
    return Interval(mean, mean - half, mean + half, num_seeds, num_seeds - count, method)


def range_interval(samples: Iterable[Any], *, which: str = "max") -> Interval:
    """Smallest to largest value over seeds, for laws that hold exactly in every seed.

    The interval is [min, max] over the finite samples; `which` chooses the point estimate, by default the largest,
    which is the worst seed when the samples are errors. A claim on it is supported only if every finite seed satisfies
    the criterion, and refuted only if every one violates it. With fewer than two finite samples the interval is NaN.

    Args:
        samples: one number a seed, any unit; NaN and infinity are left out and counted.
        which: "max", "min", "median" or "mean".

    Returns:
        Point estimate and range in the unit of the samples.

    Raises:
        ValueError: if `samples` is not a non-empty vector of real numbers, or `which` is unknown.
    """
    import numpy as np

    if which not in _CENTRES:
        raise ArgumentError(f"Argument `which` must be one of {list(_CENTRES)}, but is {which!r}.")
    values, num_seeds = _finite_part("samples", samples)
    count = values.size
    centre = float(getattr(np, which)(values)) if count else math.nan
    low, high = (float(values.min()), float(values.max())) if count >= 2 else (math.nan, math.nan)
    return Interval(centre, low, high, num_seeds, num_seeds - count, f"{which} over seeds, range over seeds")


def fraction_interval(successes: Iterable[Any], *, confidence: float = 0.95) -> Interval:
    """Fraction of seeds in which something happened, with its Clopper-Pearson interval.

    k/n with the set of probabilities that neither one-sided binomial test rejects at (1 - confidence)/2: coverage is at
    least `confidence` for every n. With fewer than two finite samples the interval is NaN.

    Args:
        successes: True or False (1 or 0) a seed; NaN for a seed that failed, which is left out and counted.
        confidence: least probability that the interval covers the true fraction, in (0, 1), dimensionless.

    Returns:
        Fraction and interval, dimensionless, in [0, 1].

    Raises:
        ValueError: if `successes` is not a non-empty vector of 0, 1 and NaN, or `confidence` is not in (0, 1).

    References:
        Clopper-Pearson interval, from `scipy.stats.binomtest(...).proportion_ci(method="exact")`.
    """
    _check_confidence(confidence)
    from scipy import stats

    values, num_seeds = _finite_part("successes", successes)
    if not ((values == 0) | (values == 1)).all():
        raise ArgumentError("Argument `successes` must hold True, False or NaN, but holds other numbers.")
    count, happened = values.size, int(values.sum())
    low = high = math.nan
    if count >= 2:
        limits = stats.binomtest(happened, count).proportion_ci(confidence_level=confidence, method="exact")
        low, high = float(limits.low), float(limits.high)
    fraction = happened / count if count else math.nan
    method = f"fraction of seeds, Clopper-Pearson {100 * confidence:g} %"
    return Interval(fraction, low, high, num_seeds, num_seeds - count, method)
