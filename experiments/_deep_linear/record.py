"""What the deep-linear-head experiment stores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from _deep_linear.prediction import BOUNDS, Prediction

if TYPE_CHECKING:
    import xarray as xr

CONDITIONS = ("balanced", "imbalanced")
_RUN = ("depth", "condition", "seed", "step")
_SCALARS = {
    "objective": "loss plus penalties",
    "data_loss": "|f - y|^2/(2N)",
    "gradient_norm": "Euclidean norm of the objective's gradient",
    "train_accuracy": "share of training images whose class is right",
    "test_accuracy": "share of test images whose class is right",
}
_GEOMETRY = {
    "nc1": "tr(Sigma_W Sigma_B^+)/K of the features that enter the layer",
    "nc2_weight_gof": "distance of A_m A_m^T from the predicted frame, both of unit norm",
    "nc2_feature_gof": "distance of the class means' Gram matrix from the predicted frame",
    "nc3_gof": "distance of A_m F_m from its predicted diagonal",
    "nc3_align_gof": "distance of A_m from the rescaled class means",
    "nc2_weight_of": "distance of A_m A_m^T from an orthogonal frame of equal lengths",
    "nc2_feature_of": "distance of the class means' Gram matrix from such a frame",
}
_LENGTHS = {
    "weight_squares": "|row k of A_m|^2, A_m = W_M ... W_m",
    "feature_squares": "|mean of class k in F_m|^2",
}


def collect(
    sweeps: Mapping[int, Any],
    predictions: Mapping[int, Sequence[Prediction]],
    sizes: Sequence[Sequence[int]],
    steps: Sequence[int],
    attributes: Mapping[str, Any],
) -> "xr.Dataset":
    """Put measurements and predictions into one labelled data set; layers that a depth lacks are NaN.

    Args:
        sweeps: result of the sweep of each depth, conditions in the order of `CONDITIONS`.
        predictions: of each depth, in the same order.
        sizes: class sizes of each condition.
        steps: the measured steps.
        attributes: of the data set.

    Returns:
        The record.
    """
    import xarray as xr

    depths, deepest = list(sweeps), max(sweeps)

    def over_runs(get) -> np.ndarray:
        return np.stack([np.float64(get(sweeps[depth].history)) for depth in depths])

    def layered(values: np.ndarray, axis: int) -> np.ndarray:
        gap = [(0, 0)] * values.ndim
        gap[axis] = (0, deepest - values.shape[axis])
        return np.pad(np.float64(values), gap, constant_values=np.nan)

    def over_layers(get, axis: int) -> np.ndarray:
        return np.stack([layered(get(sweeps[depth].history), axis) for depth in depths])

    def of_theory(name: str) -> np.ndarray:
        return np.array([[getattr(each, name) for each in predictions[depth]] for depth in depths])

    variables: dict[str, Any] = {}
    for name, meaning in _SCALARS.items():
        variables[name] = (_RUN, over_runs(lambda history, name=name: getattr(history, name)), _unit(meaning))
    for name, meaning in _GEOMETRY.items():
        values = over_layers(lambda history, name=name: getattr(history.geometry, name), 3)
        variables[name] = ((*_RUN, "layer"), values, _unit(meaning))
    for name, meaning in _LENGTHS.items():
        values = over_layers(lambda history, name=name: getattr(history, name), 3)
        variables[name] = ((*_RUN, "layer", "class"), values, _unit(meaning))
        theirs = [[layered(getattr(each, name), 0) for each in predictions[depth]] for depth in depths]
        variables[f"predicted_{name}"] = (
            ("depth", "condition", "layer", "class"),
            np.array(theirs),
            _unit(f"prediction of {meaning}"),
        )
    variables["logits"] = ((*_RUN, "class"), over_runs(lambda h: h.logits), _unit("mean output of class k for itself"))
    for name in ("logits", "threshold_ratio"):
        key = "predicted_logits" if name == "logits" else name
        variables[key] = (("depth", "condition", "class"), of_theory(name), _unit("of the unconstrained model"))
    for name in BOUNDS:
        variables[name] = (("depth", "condition"), of_theory(name), _unit("of the unconstrained model"))
    variables["class_size"] = (("condition", "class"), np.array(sizes), {"units": "training images"})
    variables["finite"] = (("depth", "condition", "seed"), np.stack([sweeps[depth].finite for depth in depths]))
    coordinates = {
        "depth": depths,
        "condition": list(CONDITIONS),
        "seed": sweeps[depths[0]].seeds.astype(np.int64),
        "step": np.asarray(steps, dtype=np.int64),
        "layer": np.arange(1, deepest + 1),
        "class": np.arange(len(sizes[0])),
    }
    return xr.Dataset(variables, coordinates, dict(attributes))


def _unit(meaning: str) -> dict[str, str]:
    return {"units": "dimensionless", "definition": meaning}
