"""What the measurements on the host share: checked copies of the arguments, one thread, nearest class means."""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

# Numbers within this and its inverse have squares, and sums of squares, far from the ends of double precision.
_SMALL = 1e-100


def one_thread():
    """Keep BLAS and OpenMP to one thread: problems of this size only wait for each other, and sums stay in order.

    Measured on 1,437 x 256 features on two busy cores: 0.19 s a clustering with probe instead of 5 s.
    """
    return _thread_pools(len(sys.modules)).limit(limits=1)


@lru_cache(maxsize=1)
def _thread_pools(num_modules: int) -> "ThreadpoolController":
    """The pools of all loaded libraries; looking for them takes milliseconds, and a new one comes with an import."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def host_rows(name: str, value: AnyArray) -> np.ndarray:
    """Copy an array to the host as float64 rows, refusing NaN and infinity."""
    _checks.finite(name, value)
    return np.asarray(value, dtype=np.float64)


def checked_pair(train_features, test_features) -> tuple[np.ndarray, np.ndarray]:
    """Check train and test features against each other and copy both to the host, in a unit whose squares are numbers.

    No probe on the host depends on a common scale; the power of two by which both are divided changes no digit.
    """
    _checks.shape("train_features", train_features, ("N", "d"))
    _checks.shape("test_features", test_features, ("M", np.shape(train_features)[1]))
    for name, value in (("train_features", train_features), ("test_features", test_features)):
        if 0 in np.shape(value):
            raise ArgumentError(f"Argument `{name}` must not be empty, but has shape {np.shape(value)}.")
    train, test = host_rows("train_features", train_features), host_rows("test_features", test_features)
    largest = max(np.max(np.abs(each)) for each in (train, test))
    if not largest or _SMALL < largest < 1 / _SMALL:
        return train, test
    exponent = -int(np.frexp(largest)[1])
    return np.ldexp(train, exponent), np.ldexp(test, exponent)


def checked_labels(name: str, labels, length: int, num_classes: int | None = None) -> np.ndarray:
    """Check labels, of any size if `num_classes` is None, and copy them to the host."""
    bound = np.iinfo(np.int32).max if num_classes is None else num_classes
    _checks.labels(name, labels, num_classes=bound, length=length)
    return np.asarray(labels).astype(np.int64)


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squared distances (M K), both sets shifted to the centres' mean so that a common offset costs no digits."""
    shift = centers.mean(axis=0)[None, :]
    points, centers = points - shift, centers - shift
    cross = points @ centers.T
    return np.sum(points**2, axis=1)[:, None] + np.sum(centers**2, axis=1)[None, :] - 2 * cross


def nearest_center(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Label of the nearest class mean for each test row, means from the train rows; ties go to the smaller label."""
    present = np.unique(labels)
    centers = np.stack([train[labels == label].mean(axis=0) for label in present])
    return present[np.argmin(_squared_distances(test, centers), axis=1)]
