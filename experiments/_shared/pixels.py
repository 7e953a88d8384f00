"""Images as rows of numbers."""

import numpy as np
from jaxtyping import Float

from nctheory._types import AnyArray


def standardised(*splits: Float[AnyArray, "N ..."]) -> list[Float[np.ndarray, "N d"]]:
    """Flatten images to rows and give the first split mean 0 and standard deviation 1 over all its numbers together.

    Args:
        splits: images of any shape, any unit; all get the shift and the scale of the first.

    Returns:
        One array a split, double precision, dimensionless.
    """
    rows = [np.asarray(split).reshape(len(split), -1).astype(np.float64) for split in splits]
    mean, std = rows[0].mean(), rows[0].std()
    return [(each - mean) / std for each in rows]
