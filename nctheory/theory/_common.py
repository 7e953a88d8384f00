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
    """Widest floating dtype among the array arguments, at least single precision, which decompositions need.

    Without any array, the default of the running JAX configuration.
    """
    values = tuple(entry for v in values for entry in (v if isinstance(v, list | tuple) else [v]))
    dtypes = [v.dtype for v in values if hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating)]
    wide = [each if jnp.finfo(each).bits >= 32 else np.float32 for each in dtypes]
    widest = np.result_type(*wide) if wide else np.dtype(np.float64)
    return jax.dtypes.canonicalize_dtype(widest)


def as_float(value: Any, dtype: np.dtype) -> jax.Array:
    """Convert an argument to a JAX array of a given floating dtype; lists may hold traced numbers."""
    if isinstance(value, list | tuple) and any(isinstance(entry, jax.Array) for entry in value):
        return jnp.stack([as_float(entry, dtype) for entry in value])
    if not isinstance(value, jax.Array):
        value = np.asarray(value).astype(dtype)  # before JAX may take it for a 32-bit integer
    return jnp.asarray(value).astype(dtype)


def check_positive(name: str, value: Any, dtype: np.dtype) -> None:
    """Check that known numbers are > 0 and that the dtype of the calculation can hold them; tracers pass unchecked."""
    _checks.number(name, value, minimum=0.0, exclusive_minimum=True)
    # Smaller numbers are rounded to zero on most devices, larger ones to infinity.
    limits = jnp.finfo(dtype)
    _checks.real(name, value, minimum=float(limits.tiny), maximum=float(limits.max))


def all_positive(*values: Any) -> jax.Array:
    """Whether all entries of all arrays are what `check_positive` accepts, None aside; for `nan_unless`."""
    arrays = [v for v in values if v is not None]
    good = [jnp.all((v >= jnp.finfo(v.dtype).tiny) & (v <= jnp.finfo(v.dtype).max)) for v in arrays]
    return jnp.all(jnp.stack(good))


def all_counts(*values: Any) -> jax.Array:
    """Whether all entries of all arrays are finite and >= 1, as numbers of samples are."""
    return jnp.all(jnp.stack([jnp.all((v >= 1) & (v <= jnp.finfo(v.dtype).max)) for v in values]))


def nan_unless(valid: Any, record: Record) -> Record:
    """Where the scalar `valid` is False, turn floats of a record into NaN and bools into False; integers stay."""

    def mask(leaf):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            return jnp.where(valid, leaf, jnp.nan)
        return jnp.where(valid, leaf, False) if jnp.issubdtype(dtype, jnp.bool) else leaf

    return jax.tree.map(mask, record)
