"""Numbers over seeds as text."""

from typing import Any

from nctheory.claims import mean_interval


def shown(values: Any, *, digits: int = 3) -> str:
    """Mean of the finite values and, for two or more, its 95 % interval and their number; "not run" without any."""
    import numpy as np

    finite = np.atleast_1d(values)[np.isfinite(np.atleast_1d(values))]
    if finite.size < 2:
        return f"{finite[0]:.{digits}f}" if finite.size else "not run"
    interval = mean_interval(finite)
    low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
    return f"{interval.measured:.{digits}f}  [{low}, {high}]  n = {finite.size}"
