"""What the coarse-label experiment stores of image networks: one labelled data set."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from _coarse.images_scores import ACCURACIES, CONTROLS, FINE, TSNE

if TYPE_CHECKING:
    import xarray as xr

    from _coarse.images_data import CoarseImages

TRAININGS = ("coarse", "ordinary")
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
_UNITLESS = {"units": "dimensionless"}
_SQUARED = {"units": "squared feature units"}
_AT = ("seed", "checkpoint")
_DIMS = {
    "class_distances": (*_AT, "fine", "other_fine"),
    "within_variances": (*_AT, "fine"),
    "clp_class_accuracy": (*_AT, "fine"),
    "surrogate": (*_AT, "draw"),
}
_SQUARES = ("class_distances", "within_variances", "same_label_distance", "different_label_distance", "within_variance")


def score_names() -> list[str]:
    """Names of the scores at every checkpoint."""
    import dataclasses

    from nctheory import metrics, vision

    collapse = [each.name for each in dataclasses.fields(metrics.CollapseMetrics)]
    return [*ACCURACIES, *collapse, *FINE, *vision.SCORES, *CONTROLS, *TSNE, *_DIMS, "seconds"]


def _attributes(name: str) -> dict[str, str]:
    if name == "seconds":
        return {"units": "s"}
    return _SQUARED if name in _SQUARES else _UNITLESS


def described(name: str, num_fine: int) -> tuple[tuple[str, ...], tuple[int, ...], dict[str, str]]:
    """Dimensions of a score, its shape in one network at one checkpoint, and its attributes."""
    dims = _DIMS.get(name, _AT)
    sizes = {"fine": num_fine, "other_fine": num_fine, "draw": 2}
    return dims, tuple(sizes[dim] for dim in dims[2:]), _attributes(name)


def collect(
    data: "CoarseImages",
    seeds: Sequence[int],
    epochs: Sequence[int],
    runs: Mapping[str, Sequence[Any]],
    raw: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> "xr.Dataset":
    """Put everything that claims, table and figures need into one data set.

    Args:
        data: the images under merged labels.
        seeds: of the runs.
        epochs: checkpoints at which the coarse networks were scored.
        runs: by training, "coarse" and "ordinary", one `TrainedNetwork` a seed; None for a run that diverged.
        raw: scores of the pixels.
        attributes: of the data set.

    Returns:
        The record; a run that diverged is NaN throughout.
    """
    import numpy as np
    import xarray as xr

    last = epochs[-1]
    variables: dict[str, Any] = {name: ((), value, _UNITLESS) for name, value in raw.items()}
    num_fine = len(data.class_names)
    variables |= _scores(runs["coarse"], epochs, num_fine)
    variables |= _curves(runs, last)
    variables |= _ordinary(runs["ordinary"], last, num_fine)
    variables |= _drawn(data, runs["coarse"], last)
    coordinates = {
        "seed": np.asarray(seeds, np.int64),
        "checkpoint": ("checkpoint", np.asarray(epochs, np.int64), {"units": "epochs"}),
        "epoch": np.arange(1, last + 1),
        "training": list(TRAININGS),
        "fine": list(data.class_names),
        "other_fine": list(data.class_names),
    }
    return xr.Dataset(variables, coordinates, dict(attributes))


def _scores(runs: Sequence[Any], epochs: Sequence[int], num_fine: int) -> dict[str, Any]:
    """Scores of the coarse networks at every checkpoint."""
    import numpy as np

    variables: dict[str, Any] = {}
    for name in score_names():
        dims, shape, of_name = described(name, num_fine)
        empty = np.full(shape, np.nan)
        values = [
            [empty if run is None else np.asarray(run.checkpoints[epoch][name]) for epoch in epochs] for run in runs
        ]
        variables[name if name != "seconds" else "score_seconds"] = (dims, np.array(values, float), of_name)
    return variables


def _curves(runs: Mapping[str, Sequence[Any]], last: int) -> dict[str, Any]:
    """Losses and accuracies of both trainings at every epoch."""
    import numpy as np

    variables: dict[str, Any] = {}
    for name in CURVES:
        values = [
            [np.full(last, np.nan) if run is None else getattr(run.history, name) for run in runs[training]]
            for training in TRAININGS
        ]
        units = {"seconds": "s", "train_loss": "nat", "test_loss": "nat"}.get(name, "dimensionless")
        variables[f"curve_{name}"] = (("training", "seed", "epoch"), np.array(values), {"units": units})
    return variables


def _ordinary(runs: Sequence[Any], last: int, num_fine: int) -> dict[str, Any]:
    """Scores of the networks trained on the original classes, at the end."""
    import numpy as np

    def stacked(name: str, shape: tuple[int, ...] = ()):
        return np.array([np.full(shape, np.nan) if run is None else run.checkpoints[last][name] for run in runs], float)

    dims = ("seed", "fine", "other_fine")
    return {
        "ordinary_accuracy": ("seed", stacked("test_accuracy"), _UNITLESS),
        "ordinary_train_accuracy": ("seed", stacked("train_accuracy"), _UNITLESS),
        "ordinary_nc1": ("seed", stacked("nc1"), _UNITLESS),
        "ordinary_class_distances": (dims, stacked("class_distances", (num_fine, num_fine)), _SQUARED),
        "ordinary_within_variances": (dims[:2], stacked("within_variances", (num_fine,)), _SQUARED),
    }


def _drawn(data: "CoarseImages", runs: Sequence[Any], last: int) -> dict[str, Any]:
    """The merge, and for the figure the embedding of the first seed that has one."""
    import numpy as np

    fine = np.asarray(data.ordinary[1].labels)
    found = [run.checkpoints[last] for run in runs if run is not None]
    planes = next((each["embedding"] for each in found if "embedding" in each), None)
    variables: dict[str, Any] = {
        "coarse_label": ("fine", np.asarray(data.label_map.table)),
        "sample_class": ("sample", fine),
    }
    if planes is not None:
        variables["embedding"] = (("sample", "plane"), np.asarray(planes), _UNITLESS)
    return variables
