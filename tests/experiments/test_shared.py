"""What several experiments share: pixels as rows, numbers over seeds as text."""

import numpy as np
import pytest
from _shared.machine import hardware
from _shared.pixels import standardised
from _shared.text import shown
from scipy import stats


def test_the_first_split_has_mean_0_and_deviation_1_and_the_second_its_units():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 255, (7, 4, 3, 1)), draw.integers(0, 255, (5, 4, 3, 1))
    rows, others = standardised(first.astype(np.uint8), second.astype(np.uint8))
    assert rows.shape == (7, 12)
    assert rows.mean() == pytest.approx(0, abs=1e-12)
    assert rows.std() == pytest.approx(1, abs=1e-12)
    # One shift and one scale for all.
    np.testing.assert_allclose(others * first.std() + first.mean(), second.reshape(5, 12), rtol=1e-12)


def test_numbers_over_seeds_have_their_interval():
    values = np.array([0.5, 0.7, np.nan, 0.6])
    half = stats.t.ppf(0.975, 2) * np.std([0.5, 0.7, 0.6], ddof=1) / 3**0.5
    assert shown(values) == f"0.600  [{0.6 - half:.3f}, {0.6 + half:.3f}]  n = 3"
    assert shown(np.array([0.25]), digits=1) == "0.2"
    assert shown(np.array([np.nan])) == "not run"


def test_hardware_names_the_processor_and_its_cores():
    assert hardware().endswith(" cores")
    assert not hardware().startswith(",")
