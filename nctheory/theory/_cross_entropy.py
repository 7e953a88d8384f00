"""What the cross-entropy predictions share: checks of their arguments, and the softmax residual of class logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar

ClassSizes = Sequence[int] | Num[AnyArray, " K"]
Count = int | np.integer | Scalar | Int[AnyArray, ""]
LayerDecay = Scalar | Sequence[float] | Float[AnyArray, " M"]
Bias = str | float


def check_class_sizes(class_sizes: Any) -> int:
    """Check K >= 2 whole class sizes >= 1 and return K; the values of tracers pass unchecked."""
    _checks.shape("class_sizes", class_sizes, ("K",))
    num_classes = int(np.shape(class_sizes)[0])
    if num_classes < 2:
        raise ArgumentError(f"Argument `class_sizes` must hold at least 2 classes, but has {num_classes}.")
    if _checks.is_concrete(class_sizes):
        _checks.real("class_sizes", class_sizes, minimum=1)
        known = np.asarray(class_sizes, np.float64)
        if (known != np.round(known)).any():
            offender = known[known != np.round(known)][0]
            raise ArgumentError(f"Argument `class_sizes` must hold whole numbers, but has {offender:g}.")
    return num_classes


def check_count(name: str, value: Any) -> None:
    """Check a whole number >= 1 that may be traced or an array."""
    _checks.real(name, value, minimum=1)
    if _checks.is_concrete(value) and (np.asarray(value, np.float64) % 1 != 0).any():
        raise ArgumentError(f"Argument `{name}` must be a whole number, but is {value}.")


def check_decays(weight_decay: Any, feature_decay: Any, depth: int = 1) -> None:
    """Check positive decays; the weight decay may be one number or one a layer."""
    if np.ndim(weight_decay) > 0:
        _checks.shape("weight_decay", weight_decay, (depth,))
    _checks.shape("feature_decay", feature_decay, ())
    _checks.real("weight_decay", weight_decay, minimum=0.0, exclusive_minimum=True)
    _checks.real("feature_decay", feature_decay, minimum=0.0, exclusive_minimum=True)


def check_bias(bias: Any, *, regularised: bool = True) -> None:
    """Check a kind of bias: "none", "free", or (where allowed) the coefficient >= 0 of |b|^2/2."""
    if isinstance(bias, str):
        _checks.choice("bias", bias, ("none", "free"))
    elif regularised:
        _checks.real("bias", bias, minimum=0.0)
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
