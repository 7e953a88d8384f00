"""Rank correlations of a score with a quantity, and what is left of them when the score is shuffled."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def rank_correlation(first: Any, second: Any) -> "np.ndarray":
    """Spearman's rank correlation of two vectors, or of the first with every row of the second.

    NaN where an entry is not finite or all entries of a vector are equal.
    """
    import numpy as np
    from scipy.stats import spearmanr

    first = np.asarray(first)

    def one(row: "np.ndarray") -> float:
        if not (np.isfinite(first).all() and np.isfinite(row).all()) or np.ptp(first) == 0 or np.ptp(row) == 0:
            return float("nan")
        found: Any = spearmanr(first, row)
        return float(found.statistic)

    return np.array([one(row) for row in np.atleast_2d(second)])


def permuted_correlation(first: Any, second: Any, *, num_permutations: int) -> "np.ndarray":
    """As `rank_correlation`, with the entries of every row permuted at random; mean over several permutations a row."""
    import numpy as np

    generator = np.random.default_rng(0)
    rows = [[generator.permutation(row) for _ in range(num_permutations)] for row in np.atleast_2d(second)]
    return np.array([rank_correlation(first, deals).mean() for deals in rows])
