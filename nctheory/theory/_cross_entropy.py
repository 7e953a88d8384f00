"""Checks of the arguments that predictions on free features share, and the softmax residual of class logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, check_positive, float_dtype

Count = int | np.integer | Scalar | Int[AnyArray, ""]
ClassSizes = Sequence[Count] | Num[AnyArray, " K"]
LayerDecay = Scalar | Sequence[Scalar] | Float[AnyArray, " M"]
Bias = str | Scalar


def check_class_sizes(class_sizes: Any) -> int:
    """Check K >= 2 whole class sizes >= 1 and return K; the values of tracers pass unchecked."""
    _checks.shape("class_sizes", class_sizes, ("K",))
    num_classes = _checks.shape_of("class_sizes", class_sizes)[0]
    if num_classes < 2:
        raise ArgumentError(f"Argument `class_sizes` must hold at least 2 classes, but has {num_classes}.")
    _checks.number("class_sizes", class_sizes, minimum=1)
    if _checks.is_concrete(class_sizes):
        known = np.asarray(class_sizes, np.float64)
        if (known != np.round(known)).any():
            offender = known[known != np.round(known)][0]
            raise ArgumentError(f"Argument `class_sizes` must hold whole numbers, but has {offender:g}.")
    return num_classes


def check_count(name: str, value: Any) -> None:
    """Check a whole number >= 1, without axes; the value of a tracer passes unchecked."""
    _checks.shape(name, value, ())
    _checks.number(name, value, minimum=1)
    if _checks.is_concrete(value) and (np.asarray(value, np.float64) % 1 != 0).any():
        raise ArgumentError(f"Argument `{name}` must be a whole number, but is {value}.")


def check_decays(weight_decay: Any, feature_decay: Any, depth: int = 1, dtype: np.dtype | None = None) -> None:
    """Check positive decays, in the dtype of the calculation; the weight decay may be one number or one a layer."""
    if _checks.shape_of("weight_decay", weight_decay):
        _checks.shape("weight_decay", weight_decay, (depth,))
    _checks.shape("feature_decay", feature_decay, ())
    dtype = float_dtype(weight_decay, feature_decay) if dtype is None else dtype
    check_positive("weight_decay", weight_decay, dtype)
    check_positive("feature_decay", feature_decay, dtype)


def check_bias(bias: Any, *, regularised: bool = True, dtype: np.dtype | None = None) -> None:
    """Check a kind of bias: "none", "free", or (where allowed) the decay > 0, which multiplies |b|^2/2.

    One rule for all predictions: a decay of 0 is the free bias and must be called "free", because which of the three
    kinds is meant has to be known before a traced decay is.
    """
    if isinstance(bias, str):
        _checks.choice("bias", bias, ("none", "free"))
    elif regularised and bias is None:
        raise ArgumentError('Argument `bias` must be "none", "free" or a number > 0, but is None.')
    elif regularised:
        _checks.shape("bias", bias, ())
        check_positive("bias", bias, float_dtype(bias) if dtype is None else dtype)
    else:
        raise ArgumentError(f'Argument `bias` must be "none" or "free", but is {bias!r}.')


def require_concrete(**arguments: Any) -> None:
    """Refuse tracers where the answer comes from a solver outside JAX."""
    for name, value in arguments.items():
        if not _checks.is_concrete(value):
            raise ArgumentError(
                f"Argument `{name}` must be known before the call, but is traced: this solver runs in NumPy, outside "
                "`jit` and `vmap`."
            )


def log_softmax(logits: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Logarithm of the softmax of each column, in NumPy."""
    shifted = logits - logits.max(axis=0)
    return shifted - np.log(np.exp(shifted).sum(axis=0))


def softmax_residual(logits: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """P - I: softmax of each column minus the one-hot label, without cancellation on the diagonal."""
    residual = np.exp(log_softmax(logits))
    np.fill_diagonal(residual, 0.0)
    np.fill_diagonal(residual, -residual.sum(axis=0))
    return residual
