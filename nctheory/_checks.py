"""Argument checks: every message says which argument, what it must be, and what it is.

The checks run in Python before any computation. Values that are not known yet (tracers inside `jit` and `vmap`, and
the placeholders JAX puts into pytrees) cannot be inspected and pass through: under a transformation the caller has
checked the arguments outside, or accepts NaN where a quantity is undefined.
"""

import numbers
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from nctheory._errors import ArgumentError


def is_concrete(value: Any) -> bool:
    """Whether the numbers inside `value` can be read now (not a tracer, not a pytree placeholder)."""
    if _holds_tracer(value):
        return False
    return isinstance(value, numbers.Number | np.ndarray | np.generic | jax.Array | Sequence)


def _holds_tracer(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tracer(entry) for entry in value)
    return isinstance(value, jax.core.Tracer)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value) > 0:
        return f"an array of shape {np.shape(value)} and dtype {value.dtype}"
    return repr(value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value)


def integer(name: str, value: Any, *, minimum: int | None = None) -> int:
    """Check an integer argument; a `bool` or a float is refused even if its value is whole."""
    requirement = "be an integer" + (f" >= {minimum}" if minimum is not None else "")
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
    if not is_integer or (minimum is not None and value < minimum):
        raise ArgumentError(f"Argument `{name}` must {requirement}, but is {_describe(value)}.")
    return int(value)


def integers(name: str, values: Any, *, minimum: int | None = None) -> tuple[int, ...]:
    """Check a sequence of integers, each as `integer` does."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or np.ndim(values) != 1:
        raise ArgumentError(f"Argument `{name}` must be a sequence of integers, but is {_describe(values)}.")
    return tuple(integer(name, value, minimum=minimum) for value in values)


def real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: bool = False,
    exclusive_maximum: bool = False,
) -> None:
    """Check a finite real scalar, or every entry of a real array, against bounds; tracers pass unchecked."""
    if not is_concrete(value):
        if isinstance(value, list | tuple):  # some entries are traced, others may be known
            exclusive = {"exclusive_minimum": exclusive_minimum, "exclusive_maximum": exclusive_maximum}
            for entry in value:
                real(name, entry, minimum=minimum, maximum=maximum, **exclusive)
        return
    parts = ["be finite"]
    if minimum is not None:
        parts.append(f"{'>' if exclusive_minimum else '>='} {minimum:g}")
    if maximum is not None:
        parts.append(f"{'<' if exclusive_maximum else '<='} {maximum:g}")
    try:
        # NumPy would turn a truth value next to a float into a number.
        if isinstance(value, list | tuple) and any(isinstance(entry, bool | np.bool_) for entry in value):
            raise TypeError
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" and not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"Argument `{name}` must be a real number, but is {_describe(value)}.") from None
    good = np.isfinite(array)
    if minimum is not None:
        good &= (array > minimum) if exclusive_minimum else (array >= minimum)
    if maximum is not None:
        good &= (array < maximum) if exclusive_maximum else (array <= maximum)
    if not good.all():
        offender = array[~good].flat[0]
        shown = f"{offender:g}" if array.ndim == 0 else f"{offender:g} in one of its {array.size} entries"
        raise ArgumentError(f"Argument `{name}` must {' and '.join(parts)}, but is {shown}.")


def number(name: str, value: Any, **bounds: Any) -> None:
    """As `real`, but None and other objects, which inside a pytree may be JAX's placeholders, are refused."""
    if not (is_concrete(value) or _holds_tracer(value)):
        raise ArgumentError(f"Argument `{name}` must be a real number, but is {_describe(value)}.")
    real(name, value, **bounds)


def choice(name: str, value: Any, options: Collection[str]) -> None:
    """Check that a named option exists."""
    if not isinstance(value, str) or value not in options:
        raise ArgumentError(f"Argument `{name}` must be one of {sorted(options)}, but is {value!r}.")


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """Shape of an array, a number, or nested lists of them, whose entries may be traced."""
    if not isinstance(value, list | tuple):
        return np.shape(value)
    inner = {shape_of(name, entry) for entry in value}
    if len(inner) > 1:
        raise ArgumentError(f"Argument `{name}` must be rectangular, but has entries of shapes {sorted(inner)}.")
    return (len(value), *(inner.pop() if inner else ()))


def shape(name: str, value: Any, expected: tuple[int | str, ...]) -> None:
    """Check an array's shape; an integer is a required size, a string names a free axis."""
    actual = shape_of(name, value)
    fits = len(actual) == len(expected) and all(
        isinstance(want, str) or want == have for want, have in zip(expected, actual, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
        raise ArgumentError(f"Argument `{name}` must have shape {wanted}, but has shape {actual}.")


def floating(name: str, value: Any) -> None:
    """Check that an argument is an array of floating-point numbers; the dtype is checked under tracing too."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        found = f"is no array but a {type(value).__name__}" if dtype is None else f"has dtype {dtype}"
        raise ArgumentError(f"Argument `{name}` must hold real floating-point numbers, but {found}.")


def finite(name: str, value: Any) -> None:
    """Check that an array holds neither NaN nor infinity; tracers pass unchecked."""
    if not is_concrete(value) or _sums_are_finite(value):
        return
    bad = int(np.size(value) - np.isfinite(np.asarray(value)).sum())
    if bad:
        raise ArgumentError(
            f"Argument `{name}` must be finite, but has {bad} NaN or infinite of {np.size(value)} entries."
        )


def _sums_are_finite(value: Any) -> bool:
    """Whether all column sums are finite, which proves all entries finite at a fifth of the price of a look at each."""
    if np.ndim(value) < 2 or not isinstance(value, np.ndarray | jax.Array):
        return False
    if isinstance(value, jax.Array):
        # Inside `jit` the value of a closed-over array is known, but operations on it would be traced.
        with jax.ensure_compile_time_eval():
            return bool(jax.numpy.isfinite(jax.numpy.sum(value, axis=0)).all())
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(value.sum(axis=0)).all())


def labels(name: str, value: Any, *, num_classes: int, length: int | None = None) -> None:
    """Check integer labels in 0..num_classes-1; their dtype and shape are checked under tracing too."""
    if length is not None:
        shape(name, value, (length,))
    else:
        shape(name, value, ("N",))
    dtype = getattr(value, "dtype", np.asarray(value).dtype if is_concrete(value) else None)
    if dtype is None or not np.issubdtype(dtype, np.integer):
        raise ArgumentError(f"Argument `{name}` must hold integers, but has dtype {dtype}.")
    if not is_concrete(value) or np.size(value) == 0:
        return
    # NumPy first: inside `jit`, an operation on a concrete JAX array yields a tracer.
    known = np.asarray(value)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= num_classes:
        raise ArgumentError(f"Argument `{name}` must lie in 0..{num_classes - 1}, but spans {low}..{high}.")


def no_empty_class(name: str, value: Any, *, num_classes: int) -> None:
    """Check that every class 0..num_classes-1 occurs; tracers pass unchecked."""
    if not is_concrete(value):
        return
    missing = np.flatnonzero(np.bincount(np.asarray(value), minlength=num_classes) == 0)
    if missing.size:
        raise ArgumentError(
            f"Argument `{name}` must contain every class 0..{num_classes - 1}, but has no sample of {missing.tolist()}."
        )


def nested(name: str, fine_labels: Any, labels: Any) -> None:
    """Check that the samples of each fine class share one label; tracers pass unchecked."""
    if not (is_concrete(labels) and is_concrete(fine_labels)):
        return
    pairs = np.unique(np.stack([np.asarray(fine_labels), np.asarray(labels)]).astype(np.int64), axis=1)
    fine, times = np.unique(pairs[0], return_counts=True)
    if (times > 1).any():
        raise ArgumentError(
            f"Argument `{name}` must hold classes that lie within one label each, but classes "
            f"{fine[times > 1].tolist()} occur under several labels."
        )
