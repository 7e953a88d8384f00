"""Small things every prediction needs: scalar annotations and one rule for the dtype of the result."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nctheory import _checks
from nctheory._types import AnyArray

Record = TypeVar("Record")

Scalar = float | int | np.floating | Float[AnyArray, ""]


def float_dtype(*values: Any) -> np.dtype:
    """Widest floating dtype among the array arguments; without any, the default of the running JAX configuration."""
    dtypes = [v.dtype for v in values if hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating)]
    widest = np.result_type(*dtypes) if dtypes else np.dtype(np.float64)
    return jax.dtypes.canonicalize_dtype(widest)


def as_float(value: Any, dtype: np.dtype) -> jax.Array:
    """Convert an argument to a JAX array of a given floating dtype."""
    return jnp.asarray(value).astype(dtype)


def check_positive(name: str, value: Any, dtype: np.dtype) -> None:
    """Check that known numbers are > 0 and that the dtype of the calculation can hold them; tracers pass unchecked."""
    _checks.real(name, value, minimum=0.0, exclusive_minimum=True)
    # Smaller numbers are rounded to zero on most devices, larger ones to infinity.
    limits = jnp.finfo(dtype)
    _checks.real(name, value, minimum=float(limits.tiny), maximum=float(limits.max))


def all_positive(*values: Any) -> jax.Array:
    """Whether all entries of all arrays are what `check_positive` accepts: for `nan_unless`, inside `jit` and `vmap`."""
    good = [jnp.all((v >= jnp.finfo(v.dtype).tiny) & (v <= jnp.finfo(v.dtype).max)) for v in values]
    return jnp.all(jnp.stack(good))


def nan_unless(valid: Any, record: Record) -> Record:
    """Turn every inexact leaf of a record into NaN where the scalar `valid` is False; integers and bools stay."""

    def mask(leaf):
        return jnp.where(valid, leaf, jnp.nan) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf

    return jax.tree.map(mask, record)
