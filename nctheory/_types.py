"""Array annotations shared by the whole package.

Shapes live in `jaxtyping` annotations such as `Float[AnyArray, "N d"]`. They are documentation at run time;
the tests switch their enforcement on (see tests/conftest.py).
"""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
