"""What every part stores of `simulator.LayerHistory`: labelled arrays with definitions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from _bench import dimensionless
from _layers.record import CENTERS as LAYER_CENTERS
from _layers.record import COLLAPSE, DIRECTIONS, METRICS, SPLITS

OWN_MEANS = COLLAPSE | DIRECTIONS
"""What is stored about the split's own class means; q is `nc1`, r `within_between_ratio`. The two super-classes of part
"transfer" have antipodal means, so NC2 and the hyperspherical excess are 0 by construction there."""
_AFTER_HUI = {name: f"{METRICS[name]} (working definition after Hui et al.)" for name in ("strong", "weak")}
CENTERS = LAYER_CENTERS | _AFTER_HUI
"""What is stored about the train class means; S is `strong`, W `weak`."""


def measured(history: Any, dims: Sequence[str]) -> dict[str, Any]:
    """Variables of one `LayerHistory` with leading axes `dims`, the last of them over records.

    Args:
        history: arrays with these axes, then layers: 0 the inputs, then the hidden ones.
        dims: names of the leading axes.

    Returns:
        Variables with a last axis `split`.
    """
    of_layers, of_network = (*dims, "layer", "split"), (*dims, "split")
    sides = (history.train, history.test)
    variables: dict[str, Any] = {}
    for place, words in (("collapse", COLLAPSE), ("directions", DIRECTIONS), ("centers", CENTERS)):
        for name, text in words.items():
            values = np.stack([np.float64(getattr(getattr(side, place), name)) for side in sides], axis=-1)
            variables[name] = (of_layers, values, dimensionless(text))
    for name, text in (("accuracy", "share of right answers of the network"), ("loss", "data term, mean over samples")):
        values = np.stack([np.float64(getattr(history, f"{split}_{name}")) for split in SPLITS], axis=-1)
        variables[name] = (of_network, values, dimensionless(text))
    return variables


def dataset(
    variables: Mapping[str, Any],
    coordinates: Mapping[str, Any],
    attributes: Mapping[str, Any],
    *,
    layers: Sequence[str] | None = None,
) -> xr.Dataset:
    """One part's record, with the axes that all parts share.

    Args:
        variables: by name.
        coordinates: beside `layer` and `split`.
        attributes: of the record.
        layers: names of the layers; by default their numbers, 0 the inputs.

    Returns:
        The record.
    """
    count = next(np.shape(each[1])[each[0].index("layer")] for each in variables.values() if "layer" in each[0])
    shared = {"layer": np.arange(count) if layers is None else list(layers), "split": list(SPLITS)}
    return xr.Dataset(dict(variables), {**coordinates, **shared}, dict(attributes))
