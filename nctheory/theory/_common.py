"""Small things every prediction needs: scalar annotations and one rule for the dtype of the result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nctheory._types import AnyArray

Scalar = float | int | np.floating | Float[AnyArray, ""]


def float_dtype(*values: Any) -> np.dtype:
    """Widest floating dtype among the array arguments; without any, the default of the running JAX configuration."""
    dtypes = [v.dtype for v in values if hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating)]
    widest = np.result_type(*dtypes) if dtypes else np.dtype(np.float64)
    return jax.dtypes.canonicalize_dtype(widest)


def as_float(value: Any, dtype: np.dtype) -> jax.Array:
    """Convert an argument to a JAX array of a given floating dtype."""
    return jnp.asarray(value).astype(dtype)
