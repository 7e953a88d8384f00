"""Probes of frozen features: ridge regression in closed form, and every probe by its name.

The verdict of a probe on collapsed features depends on how it scales them: a direction in which the classes of a
downstream task differ by little counts for little under one common scale, and for as much as any other once every
feature has unit variance. So the scaling is part of a probe's name.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._lapack import one_by_one
from nctheory._types import AnyArray
from nctheory.metrics._moments import HIGHEST, check_finite, working_dtype
from nctheory.metrics.transfer import knn_accuracy, linear_probe_accuracy, nearest_center_accuracy

SCALINGS = ("global", "per_feature", "none")
_NUM_NEIGHBORS = 5


def ridge_probe_accuracy(
    train_features: Float[AnyArray, "N d"],
    train_labels: Integer[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Integer[AnyArray, " M"],
    *,
    regularisation: float = 1e-3,
    scaling: str = "global",
    num_classes: int | None = None,
) -> Float[Array, ""]:
    """Score ridge regression on one-hot labels: the share of test samples whose largest output is their label's.

    With X the train features less their mean, scaled, and Y the one-hot labels less their mean (an intercept without
    penalty), W minimises |X W - Y|_F^2 + lambda |W|_F^2. Scalings:

    "global": all features divided by the root of the total variance, lambda = regularisation tr(X^T X)/d. Accuracy
        unchanged under rotation, shift and common scale of the features.
    "per_feature": every feature divided by its own standard deviation (one without spread is left out), lambda as
        before. This undoes part of a collapse; unchanged under shift and any positive scale of each feature.
    "none": features as they are, lambda = regularisation N in their squared unit, so that a common scale matters.

    Single precision is enough while lambda exceeds about 1e-6 of the largest eigenvalue of X^T X, as it does under the
    first two for the default. One program of matrix products and an eigendecomposition of min(N, d) rows, for `jit`,
    `vmap` and `lax.map`.

    Args:
        train_features: train samples as rows, any unit.
        train_labels: their labels, 0..K-1 (gaps allowed).
        test_features: test samples as rows, in the same unit.
        test_labels: their labels; one that no train sample has is missed.
        regularisation: > 0, dimensionless.
        scaling: one of `SCALINGS`.
        num_classes: K; needed under tracing, else the largest label plus one.

    Returns:
        Accuracy in [0, 1], dimensionless, higher is better; ties go to the smaller label. NaN for train features
        without any spread, which hold nothing to probe, and, under tracing, for features that are not finite or a
        label out of range.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, features that are not finite, an option out of
            range, or labels under tracing without `num_classes`.

    References:
        The penalty and the global scale are this project's working definition of a transfer measure after Hui, Belkin
        and Nakkiran (2022), whose own probe was not at hand.
    """
    _check(train_features, train_labels, test_features, test_labels)
    _checks.real("regularisation", regularisation, minimum=0, exclusive_minimum=True)
    _checks.choice("scaling", scaling, SCALINGS)
    if num_classes is None:
        if not (_checks.is_concrete(train_labels) and _checks.is_concrete(test_labels)):
            raise ArgumentError("Argument `num_classes` must be given for labels under tracing, but is None.")
        num_classes = 1 + max(int(np.max(np.asarray(each))) for each in (train_labels, test_labels))
    num_classes = _checks.integer("num_classes", num_classes, minimum=1)
    for name, each in (("train_labels", train_labels), ("test_labels", test_labels)):
        _checks.labels(name, each, num_classes=num_classes)
    arrays = (jnp.asarray(each) for each in (train_features, train_labels, test_features, test_labels))
    return _ridge(*arrays, regularisation, scaling=scaling, num_classes=num_classes)


def _check(train_features: Any, train_labels: Any, test_features: Any, test_labels: Any) -> None:
    _checks.shape("train_features", train_features, ("N", "d"))
    _checks.shape("test_features", test_features, ("M", np.shape(train_features)[1]))
    for name, each in (("train_features", train_features), ("test_features", test_features)):
        if 0 in np.shape(each):
            raise ArgumentError(f"Argument `{name}` must not be empty, but has shape {np.shape(each)}.")
        _checks.floating(name, each)
        check_finite(each, name=name)
    limit = np.iinfo(np.int32).max
    _checks.labels("train_labels", train_labels, num_classes=limit, length=np.shape(train_features)[0])
    _checks.labels("test_labels", test_labels, num_classes=limit, length=np.shape(test_features)[0])


@partial(jax.jit, static_argnames=("scaling", "num_classes"))
def _ridge(
    train: Any, train_labels: Any, test: Any, test_labels: Any, strength: Any, *, scaling: str, num_classes: int
) -> Float[Array, ""]:
    train, test, variance, unit = _scaled(train, test, scaling)
    rows, columns = train.shape
    targets = jax.nn.one_hot(train_labels, num_classes, dtype=train.dtype)
    targets = targets - jnp.mean(targets, axis=0)[None, :]
    product = partial(jnp.matmul, precision=HIGHEST)
    share = jnp.asarray(float(rows), train.dtype) if scaling == "none" else jnp.sum(train**2) / columns
    # One factor after the other: the square of the unit may be out of range.
    penalty = jnp.asarray(strength).astype(train.dtype) * share / unit / unit
    if columns <= rows:
        values, vectors = _eigh(product(train.T, train))
        inner = product(vectors.T, product(train.T, targets))
        outputs = product(product(test, vectors), inner * _inverse(values, penalty)[:, None])
    else:
        # The same minimiser, from the smaller matrix.
        values, vectors = _eigh(product(train, train.T))
        inner = product(vectors.T, targets) * _inverse(values, penalty)[:, None]
        outputs = product(product(test, train.T), product(vectors, inner))
    # Labels come in any integer dtype; the intercept shifts all samples alike and is part of the prediction.
    shares = jnp.mean(jax.nn.one_hot(train_labels, num_classes, dtype=train.dtype), axis=0)
    guesses = jnp.argmax(outputs + shares[None, :], axis=1).astype(jnp.int32)
    hits = jnp.mean((guesses == test_labels.astype(jnp.int32)).astype(train.dtype))
    classes = jnp.concatenate([train_labels.astype(jnp.int32), test_labels.astype(jnp.int32)])
    known = jnp.all((classes >= 0) & (classes < num_classes)) & jnp.isfinite(jnp.sum(outputs))
    return jnp.where((variance > 0) & known, hits, jnp.nan)


def _inverse(values: Any, penalty: Any) -> Any:
    """1 / (eigenvalue + penalty); 0 in directions without features where the penalty is below all numbers."""
    total = jnp.maximum(values, 0) + penalty
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def _scaled(train: Any, test: Any, scaling: str) -> tuple[Any, Any, Any, Any]:
    """Both sets less the train mean and scaled, a total variance, and the unit in which "none" measures them."""
    dtype = working_dtype(train.dtype)
    # About the first sample, so that a common offset costs no digits and equal samples have no spread at all.
    train, test = (each.astype(dtype) - train[0].astype(dtype)[None, :] for each in (train, test))
    mean = jnp.mean(train, axis=0)[None, :]
    train, test = train - mean, test - mean
    # In units of the largest number, of each feature where each has its own scale, so that no square is out of range.
    largest = jnp.max(jnp.abs(train), axis=0)
    units = largest if scaling == "per_feature" else jnp.full_like(largest, jnp.max(largest))
    units = jnp.where(units == 0, 1, units)
    train, test = train / units[None, :], test / units[None, :]
    variances = jnp.mean(train**2, axis=0)
    total = jnp.sum(variances)
    if scaling == "none":
        return train, test, total, units[0]
    squares = jnp.full_like(variances, total) if scaling == "global" else variances
    factor = jnp.where(squares > 0, 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)[None, :]
    return train * factor, test * factor, total, jnp.ones((), dtype)


@one_by_one
def _eigh(matrix: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues and eigenvectors of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


PROBES: dict[str, Callable[..., Any]] = {
    "ridge": ridge_probe_accuracy,
    "ridge_standardised": partial(ridge_probe_accuracy, scaling="per_feature"),
    "logistic": linear_probe_accuracy,
    "knn": partial(knn_accuracy, num_neighbors=_NUM_NEIGHBORS),
    "nearest_center": nearest_center_accuracy,
}
"""Probes by name, functions of (train_features, train_labels, test_features, test_labels) with an accuracy in [0, 1].

"ridge", "logistic" and the two by distance see all features under one common scale (that of the distances does not
matter); "ridge_standardised" gives every feature unit variance.
"""


def probe_accuracies(
    train_features: Float[AnyArray, "N d"],
    train_labels: Integer[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Integer[AnyArray, " M"],
    *,
    probes: Collection[str] = tuple(PROBES),
) -> dict[str, float]:
    """Score several probes on the host.

    Args:
        train_features: train samples as rows, any unit.
        train_labels: their labels.
        test_features: test samples as rows, in the same unit.
        test_labels: their labels.
        probes: names in `PROBES`.

    Returns:
        Accuracy of each, in [0, 1] (dimensionless); NaN for all if the train features are constant, because whatever a
        probe then answers tells of the labels alone, and NaN for "knn" with fewer train samples than its 5 neighbours.

    Raises:
        ValueError: for an unknown probe, or as the probes do.
    """
    for name in probes:
        _checks.choice("probes", name, PROBES)
    _check(train_features, train_labels, test_features, test_labels)
    rows = np.asarray(train_features)
    if (rows == rows[:1]).all():
        return dict.fromkeys(probes, float("nan"))
    data = (train_features, train_labels, test_features, test_labels)
    few = {"knn"} if len(rows) < _NUM_NEIGHBORS else set()
    return {name: float("nan") if name in few else float(PROBES[name](*data)) for name in probes}
