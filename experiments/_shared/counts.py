"""Claims about how many seeds pass."""

from typing import Any

import numpy as np

from nctheory.claims import Interval

# Six of eight seeds; the fact sheet of this project asks for two of three.
PASSING = 0.75


def share_of_seeds(passed: Any, finite: Any) -> Interval:
    """Share of seeds that pass, against a share that was fixed beforehand: a count, hence without an interval.

    A Clopper-Pearson interval would ask for the share among all seeds that could be run, and eight seeds cannot show
    0.75 of those even if all pass.

    Args:
        passed: one truth value a seed.
        finite: seeds whose run did not diverge; the others do not pass, and are counted.

    Returns:
        The share, with ends equal to it; with a single seed ends of NaN, so that no verdict rests on it.
    """
    finite = np.asarray(finite, dtype=bool)
    share = float((np.asarray(passed, dtype=bool) & finite).mean())
    end = share if finite.size > 1 else float("nan")
    return Interval(share, end, end, finite.size, int((~finite).sum()), "share of the seeds run, a count")
