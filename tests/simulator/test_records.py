"""At which steps a run is measured: values worked out by hand, a plain loop, ends of the range, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory.simulator import record_steps


@pytest.mark.parametrize(
    ("num_steps", "num_records", "expected"),
    [
        (1000, 5, [0, 1, 10, 100, 1000]),
        (16, 6, [0, 1, 2, 4, 8, 16]),
        # Cube roots of 50 are 3.68, of 2500 13.57: rounded, not cut off.
        (50, 5, [0, 1, 4, 14, 50]),
        (7, 2, [0, 7]),
        (7, 3, [0, 1, 7]),
        # Fewer different steps than asked for: none appears twice.
        (1, 2, [0, 1]),
        (1, 30, [0, 1]),
        (3, 100, [0, 1, 2, 3]),
    ],
)
def test_steps_worked_out_by_hand(num_steps, num_records, expected):
    steps = record_steps(num_steps, num_records)
    assert steps.tolist() == expected
    assert steps.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(1, 10**9), num_records=st.integers(2, 60))
def test_steps_are_those_of_a_plain_loop(num_steps, num_records):
    steps = record_steps(num_steps, num_records)
    intervals = num_records - 2
    # Such a root is an integer or irrational, never half-way between two: rounding errors of 1e-7 steps do not show.
    spaced = [num_steps ** (i / intervals) for i in range(intervals)] if intervals else []
    wanted = sorted({0, num_steps, *(round(each) for each in spaced)})
    assert steps[0] == 0
    assert steps[-1] == num_steps
    assert (np.diff(steps) > 0).all()
    assert len(steps) <= num_records
    assert steps.tolist() == wanted


def test_whole_numbers_of_numpy_count_as_integers(own_errors):
    np.testing.assert_array_equal(record_steps(np.int64(100), np.int32(4)), [0, 1, 10, 100])


@pytest.mark.parametrize(
    ("num_steps", "num_records", "message"),
    [
        (0, 5, "Argument `num_steps` must be an integer >= 1, but is 0"),
        (-3, 5, "Argument `num_steps` must be an integer >= 1, but is -3"),
        (10.0, 5, "Argument `num_steps` must be an integer >= 1, but is 10.0"),
        (True, 5, "Argument `num_steps` must be an integer >= 1, but is True"),
        (10, 1, "Argument `num_records` must be an integer >= 2, but is 1"),
        (10, 2.5, "Argument `num_records` must be an integer >= 2, but is 2.5"),
        (10, None, "Argument `num_records` must be an integer >= 2, but is None"),
    ],
)
def test_errors(own_errors, num_steps, num_records, message):
    with pytest.raises(ValueError, match=message):
        record_steps(num_steps, num_records)
