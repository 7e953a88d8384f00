"""What frozen features still tell: linear probe, nearest neighbours, nearest class centre.

These run on the host (NumPy and scikit-learn) and are not differentiable; scikit-learn is imported where it is used.
All accuracies are fractions of the test samples in 0..1 (dimensionless), higher is better, chance 1/F for F balanced
classes.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics._host import checked_labels, checked_pair, nearest_center, one_thread


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear probe and what it predicts.

    Attributes:
        train_predictions: Predicted label of each train sample.
        test_predictions: Predicted label of each test sample.
        num_iterations: Optimiser iterations used.
        converged: Whether the optimiser stopped by its tolerance and not by `max_iterations`.
    """

    train_predictions: Int[np.ndarray, " N"]
    test_predictions: Int[np.ndarray, " M"]
    num_iterations: int
    converged: bool


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the train mean and divide by one number, the root mean square of the centred train entries."""
    mean = train.mean(axis=0)
    centred = train - mean[None, :]
    scale = np.sqrt(np.mean(centred**2))
    scale = scale if scale > 0 else 1.0  # Constant features: nothing to scale, the probe sees zeros.
    return centred / scale, (test - mean[None, :]) / scale


def linear_probe(
    train_features: Float[AnyArray, "N d"],
    train_labels: Int[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    *,
    inverse_penalty: float = 1.0,
    max_iterations: int = 1000,
) -> LinearProbe:
    """Fit multinomial logistic regression on frozen features and predict both sets.

    Minimises sum_i -log softmax(W x_i + b)_{y_i} + |W|_F^2 / (2 * inverse_penalty) by L-BFGS, with the features first
    centred by the train mean and divided by one global scale, the root mean square of all centred train entries. One
    scale for all directions, unlike a scale per coordinate, leaves the geometry as it is: predictions do not change
    under rotation, shift or common scaling of the features. Only one label present: that label is predicted throughout.

    Args:
        train_features: Train samples as rows, any unit.
        train_labels: Their labels, any integers >= 0 (gaps allowed).
        test_features: Test samples as rows, in the same unit.
        inverse_penalty: Inverse strength of the ridge penalty, > 0, dimensionless (the scale above makes it so).
        max_iterations: Most L-BFGS iterations; reaching them is reported as `converged=False`, not as an error.

    Returns:
        Predictions and how the fit ended.

    Raises:
        ValueError: If shapes disagree, features are not finite, or an option is out of range.
    """
    train, test = checked_pair(train_features, test_features)
    labels = checked_labels("train_labels", train_labels, len(train))
    _checks.real("inverse_penalty", inverse_penalty, minimum=0.0, exclusive_minimum=True)
    max_iterations = _checks.integer("max_iterations", max_iterations, minimum=1)
    if np.all(labels == labels[0]):
        return LinearProbe(np.full(len(train), labels[0]), np.full(len(test), labels[0]), 0, True)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, test = _standardise(train, test)
    model = LogisticRegression(C=inverse_penalty, max_iter=max_iterations)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Reported in the record instead.
        model.fit(train, labels)
    num_iterations = int(np.max(model.n_iter_))
    predictions = (np.asarray(model.predict(part)) for part in (train, test))
    return LinearProbe(*predictions, num_iterations=num_iterations, converged=num_iterations < max_iterations)


def linear_probe_accuracy(
    train_features: Float[AnyArray, "N d"],
    train_labels: Int[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Int[AnyArray, " M"],
    *,
    inverse_penalty: float = 1.0,
    max_iterations: int = 1000,
) -> float:
    """Score `linear_probe` on held-out samples: the fraction of test labels it predicts.

    Args:
        train_features: Train samples as rows, any unit.
        train_labels: Their labels.
        test_features: Test samples as rows, in the same unit.
        test_labels: Their labels; one that no train sample has is scored as missed.
        inverse_penalty: As in `linear_probe`, dimensionless.
        max_iterations: As in `linear_probe`.

    Returns:
        Accuracy in 0..1, dimensionless.

    Raises:
        ValueError: As `linear_probe`, or if the test labels do not fit.
    """
    truth = checked_labels("test_labels", test_labels, len(test_features))
    probe = linear_probe(
        train_features, train_labels, test_features, inverse_penalty=inverse_penalty, max_iterations=max_iterations
    )
    return float(np.mean(probe.test_predictions == truth))


def knn_accuracy(
    train_features: Float[AnyArray, "N d"],
    train_labels: Int[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Int[AnyArray, " M"],
    *,
    num_neighbors: int = 5,
) -> float:
    """Score the majority vote of the nearest train samples in Euclidean distance.

    Ties in the vote go to the smaller label. `num_neighbors = N` is the majority class of the train set, whatever the
    test sample. Unchanged by rotation, shift and common scaling of the features.

    Args:
        train_features: Train samples as rows, any unit.
        train_labels: Their labels.
        test_features: Test samples as rows, in the same unit.
        test_labels: Their labels.
        num_neighbors: Voters, 1..N.

    Returns:
        Accuracy in 0..1, dimensionless.

    Raises:
        ValueError: If shapes disagree, features are not finite, or `num_neighbors` is out of range.
    """
    train, test = checked_pair(train_features, test_features)
    labels = checked_labels("train_labels", train_labels, len(train))
    truth = checked_labels("test_labels", test_labels, len(test))
    num_neighbors = _checks.integer("num_neighbors", num_neighbors, minimum=1)
    if num_neighbors > len(train):
        raise ArgumentError(f"Argument `num_neighbors` must be <= N = {len(train)}, but is {num_neighbors}.")
    from sklearn.neighbors import KNeighborsClassifier

    # The shift keeps the digits of features that sit far from the origin; it changes no distance.
    offset = train.mean(axis=0)[None, :]
    with one_thread():
        model = KNeighborsClassifier(n_neighbors=num_neighbors).fit(train - offset, labels)
        return float(np.mean(model.predict(test - offset) == truth))


def nearest_center_accuracy(
    train_features: Float[AnyArray, "N d"],
    train_labels: Int[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_labels: Int[AnyArray, " M"],
) -> float:
    """Score assignment to the nearest class mean, with the means taken from the train samples.

    Ties go to the smaller label. This is the classifier of NC4 on fresh samples; at full collapse it equals the
    network's own accuracy.

    Args:
        train_features: Train samples as rows, any unit.
        train_labels: Their labels; labels without a sample have no centre.
        test_features: Test samples as rows, in the same unit.
        test_labels: Their labels.

    Returns:
        Accuracy in 0..1, dimensionless.

    Raises:
        ValueError: If shapes disagree or features are not finite.
    """
    train, test = checked_pair(train_features, test_features)
    labels = checked_labels("train_labels", train_labels, len(train))
    truth = checked_labels("test_labels", test_labels, len(test))
    return float(np.mean(nearest_center(train, labels, test) == truth))
