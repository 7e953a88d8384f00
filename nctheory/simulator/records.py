"""At which steps a run is measured."""

import numpy as np
from jaxtyping import Int

from nctheory import _checks


def record_steps(num_steps: int, num_records: int) -> Int[np.ndarray, " T"]:
    """Steps that are measured: 0, then log-spaced up to the last one, without repetitions.

    Args:
        num_steps: updates of the run, >= 1 (steps).
        num_records: measurements asked for, >= 2; short runs have fewer different steps.

    Returns:
        T <= num_records increasing steps, the first 0 and the last `num_steps` (steps).

    Raises:
        ValueError: if an argument is not an integer or below its minimum.
    """
    num_steps = _checks.integer("num_steps", num_steps, minimum=1)
    num_records = _checks.integer("num_records", num_records, minimum=2)
    # Backwards from the last step, so that two records are the first and the last.
    spaced = np.geomspace(num_steps, 1, num_records - 1)
    return np.unique(np.concatenate([[0], np.rint(spaced).astype(np.int64)]))
