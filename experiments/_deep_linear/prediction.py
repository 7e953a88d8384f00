"""What the unconstrained feature model predicts for one network: the bound, wrong bounds, and every layer's lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from nctheory import simulator, theory


@dataclass(frozen=True)
class Prediction:
    """Prediction for one depth and one profile of class sizes, without bias; dimensionless.

    Attributes:
        bound: smallest objective over all features, which no network can go below.
        doubled: the bound for decays twice as large, as for penalties lambda |.|^2 without the 1/2.
        per_class: the bound for decays K times as large, as for a loss averaged over the K outputs too.
        without_depth: the bound of the same formula with q lacking its factor M; equal to `bound` at depth 1.
        halved: the bound for decays half as large.
        trivial: objective of the zero solution.
        threshold_ratio: beta over its threshold, of each class; above 1 the class is zero.
        weight_squares: |row k of A_m|^2 at the minimiser, one row a layer.
        feature_squares: |mean of class k in F_m|^2.
        logits: output of class k for itself.
    """

    bound: float
    doubled: float
    per_class: float
    without_depth: float
    halved: float
    trivial: float
    threshold_ratio: Float[np.ndarray, " K"]
    weight_squares: Float[np.ndarray, "M K"]
    feature_squares: Float[np.ndarray, "M K"]
    logits: Float[np.ndarray, " K"]

    @property
    def targets(self) -> simulator.FrameTargets:
        """The lengths as targets of `simulator.layer_geometry`."""
        return simulator.FrameTargets(self.weight_squares, self.feature_squares, self.logits)


BOUNDS = ("bound", "doubled", "per_class", "without_depth", "halved", "trivial")


def predict(sizes: Sequence[int], depth: int, weight_decay: float, feature_decay: float) -> Prediction:
    """Predict the global minimum of the unconstrained feature model in double precision.

    Args:
        sizes: n_1 ... n_K.
        depth: number M of linear layers.
        weight_decay: lambda_W of every linear layer, > 0.
        feature_decay: lambda_H, > 0.

    Returns:
        The prediction.
    """

    def minimum(scale: float):
        return theory.mse_ufm_minimizer(
            np.asarray(sizes, dtype=np.float64),
            weight_decay=scale * weight_decay,
            feature_decay=scale * feature_decay,
            depth=depth,
        )

    with jax.enable_x64(True):
        record = minimum(1.0)
        # q is proportional to the (M+1)/M-th power of a common factor of all decays.
        wrong = (minimum(2.0), minimum(float(len(sizes))), minimum(depth ** (-depth / (depth + 1))), minimum(0.5))
        shares = np.asarray(record.mode_vectors) ** 2
        layers = np.asarray(record.layer_singular_values) ** 2
        entering = np.concatenate([np.asarray(record.feature_singular_values)[None] ** 2, layers[:-1]])
        means = np.cumprod(entering, axis=0) @ (np.asarray(record.class_coordinates) ** 2).T
        return Prediction(
            float(record.loss),
            *(float(each.loss) for each in wrong),
            trivial=float(record.trivial_loss),
            threshold_ratio=shares @ np.asarray(record.threshold_ratios),
            weight_squares=np.cumprod(layers[::-1], axis=0)[::-1] @ shares.T,
            feature_squares=means,
            logits=np.diagonal(np.asarray(record.logits)).copy(),
        )
