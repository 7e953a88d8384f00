"""Sweeps that must have given the same."""

import numpy as np

from tests.simulator.test_sweep import tolerance


def assert_close(one, other):
    """Shares of another size may round otherwise, as in the tests of sweeps."""
    limits = tolerance()
    for name in ("path", "norm"):
        np.testing.assert_allclose(one[name], other[name], rtol=limits["rtol"], atol=limits["atol"])
