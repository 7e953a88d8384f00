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
    variables = _measured(sweeps, deepest) | _predicted(predictions, deepest)
    variables["class_size"] = (("condition", "class"), np.array(sizes), {"units": "training images"})
    coordinates = {
        "depth": depths,
        "condition": list(CONDITIONS),
        "seed": sweeps[depths[0]].seeds.astype(np.int64),
        "step": np.asarray(steps, dtype=np.int64),
        "layer": np.arange(1, deepest + 1),
        "class": np.arange(len(sizes[0])),
    }
    return xr.Dataset(variables, coordinates, dict(attributes))


def _measured(sweeps: Mapping[int, Any], deepest: int) -> dict[str, Any]:
    """Everything measured in training, and whether it stayed finite."""

    def over_runs(get) -> np.ndarray:
        return np.stack([np.float64(get(sweep.history)) for sweep in sweeps.values()])

    def over_layers(get) -> np.ndarray:
        return np.stack([_layered(get(sweep.history), 3, deepest) for sweep in sweeps.values()])

    variables: dict[str, Any] = {}
    for name, meaning in _SCALARS.items():
        variables[name] = (_RUN, over_runs(lambda history, name=name: getattr(history, name)), _unit(meaning))
    for name, meaning in _GEOMETRY.items():
        values = over_layers(lambda history, name=name: getattr(history.geometry, name))
        variables[name] = ((*_RUN, "layer"), values, _unit(meaning))
    for name, meaning in _LENGTHS.items():
        values = over_layers(lambda history, name=name: getattr(history, name))
        variables[name] = ((*_RUN, "layer", "class"), values, _unit(meaning))
    variables["logits"] = ((*_RUN, "class"), over_runs(lambda h: h.logits), _unit("mean output of class k for itself"))
    variables["finite"] = (("depth", "condition", "seed"), np.stack([sweep.finite for sweep in sweeps.values()]))
    return variables


def _predicted(predictions: Mapping[int, Sequence[Prediction]], deepest: int) -> dict[str, Any]:
    """Everything that theory says, at every depth and condition."""

    def of_theory(get) -> np.ndarray:
        return np.array([[get(each) for each in listed] for listed in predictions.values()])

    variables: dict[str, Any] = {}
    for name, meaning in _LENGTHS.items():
        values = of_theory(lambda each, name=name: _layered(getattr(each, name), 0, deepest))
        words = _unit(f"prediction of {meaning}")
        variables[f"predicted_{name}"] = (("depth", "condition", "layer", "class"), values, words)
    for key, name in (("predicted_logits", "logits"), ("threshold_ratio", "threshold_ratio")):
        values = of_theory(lambda each, name=name: getattr(each, name))
        variables[key] = (("depth", "condition", "class"), values, _unit("of the unconstrained model"))
    for name in BOUNDS:
        values = of_theory(lambda each, name=name: getattr(each, name))
        variables[name] = (("depth", "condition"), values, _unit("of the unconstrained model"))
    return variables


def _layered(values: np.ndarray, axis: int, deepest: int) -> np.ndarray:
    """Pad the layers that a depth lacks with NaN."""
    gap = [(0, 0)] * np.ndim(values)
    gap[axis] = (0, deepest - np.shape(values)[axis])
    return np.pad(np.float64(values), gap, constant_values=np.nan)


def _unit(meaning: str) -> dict[str, str]:
    return {"units": "dimensionless", "definition": meaning}
