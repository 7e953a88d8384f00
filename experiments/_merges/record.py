"""What the experiment stores: one labelled data set over merges, seeds and pairs."""

from typing import TYPE_CHECKING, Any

from _merges import similarity
from _merges.scoring import EITHER_END, TRAINED_ONLY, Labelled, recovery_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import xarray as xr

    from _merges.pairings import Merge

_UNIT = {"units": "dimensionless"}
_DIMS: dict[str, tuple[str, ...]] = {
    "surrogate": ("draw",),
    "surrogate_recovery": ("pair",),
    "probe_recovery": ("pair",),
    "recovery": ("end", "pair"),
    "separation": ("end", "pair"),
    "fine_probe": (),
}
_MEANING = {
    "clp": "test accuracy on original classes, rebuilt by cluster-and-linear-probe",
    "clp_ceiling": "share of test images whose super-class the probe on clusters predicts",
    "clp_chance": "expected clp if the class were drawn at random inside the predicted super-class",
    "recovery": "clp inside a pair: share right among its test images rebuilt to one of its two classes; 1/2 is a coin",
    "separation": "squared distance of a pair's class means over its within-class variance, train features",
    "surrogate": "clp of Gaussian features with the same super-class means and covariances, no sub-clusters",
    "surrogate_recovery": "recovery of the first surrogate",
    "fine_probe": "test accuracy of a linear probe trained with the original classes",
    "probe_recovery": "recovery of that probe",
    "train_accuracy": "accuracy on super-classes",
    "test_accuracy": "accuracy on super-classes",
}


def of_inputs(
    rows: "tuple[np.ndarray, np.ndarray]", fine: "tuple[np.ndarray, np.ndarray]", merges: "list[Merge]"
) -> "dict[str, np.ndarray]":
    """Everything that needs images alone: likeness of classes, and cluster-and-probe on pixels under every merge.

    Args:
        rows: train and test images as rows.
        fine: their classes.
        merges: the merges.

    Returns:
        Arrays by name.
    """
    import numpy as np

    from nctheory import metrics

    components = similarity.principal_components(rows)
    found = similarity.of_classes(components, fine, merges[0].label_map.num_fine)
    accuracies, recoveries = [], []
    for merge in merges:
        labels = Labelled(fine, merge.label_map)
        coarse = labels.coarse
        arguments = (components[0], coarse[0], components[1], coarse[1], *fine)
        probe = metrics.cluster_and_probe(*arguments, clusters_per_label=2, seed=0)
        accuracies.append(probe.accuracy)
        recoveries.append(recovery_of(probe.test_predictions, labels))
    return {**found, "raw_clp": np.array(accuracies), "raw_recovery": np.stack(recoveries)}


INPUT_NAMES = ("input_distance", "input_probe_error", "raw_clp", "raw_recovery")


def collect(
    merges: "list[Merge]",
    seeds: "Sequence[int]",
    class_names: "Sequence[str]",
    rows: list[dict[str, Any]],
    inputs: "dict[str, np.ndarray]",
    attributes: dict[str, Any],
) -> "xr.Dataset":
    """Put what claims, table and figure need into one data set.

    Args:
        merges: the merges.
        seeds: the seeds.
        class_names: of the original classes.
        rows: scores of every (merge, seed), seed fastest.
        inputs: what `of_inputs` returns.
        attributes: of the data set.

    Returns:
        The record, with dimensions merge, seed, end, pair, draw, fine, other_fine.
    """
    import numpy as np
    import xarray as xr

    variables: dict[str, Any] = {}
    for name in (*EITHER_END, *TRAINED_ONLY, "train_accuracy", "test_accuracy"):
        values = np.stack([np.asarray(row[name], np.float64) for row in rows])
        dims = ("merge", "seed", *_DIMS.get(name, ("end",)))
        values = values.reshape(len(merges), len(seeds), *values.shape[1:])
        variables[name] = (dims, values, {**_UNIT, "definition": _MEANING[name]})
    of_pairs = {"input_distance": ("fine", "other_fine"), "input_probe_error": ("fine", "other_fine")}
    of_pairs |= {"raw_clp": ("merge",), "raw_recovery": ("merge", "pair")}
    for name, dims in of_pairs.items():
        variables[name] = (dims, inputs[name], _UNIT)
    members = [[merge.label_map.members(label) for label in range(merge.label_map.num_coarse)] for merge in merges]
    variables["member"] = (("merge", "pair", "side"), np.array(members), {"definition": "number of the class"})
    coordinates = {
        "merge": [merge.name for merge in merges],
        "scheme": ("merge", [merge.scheme for merge in merges]),
        "seed": np.asarray(seeds, np.int64),
        "end": ["initial", "final"],
        "fine": list(class_names),
        "other_fine": list(class_names),
    }
    return xr.Dataset(variables, coordinates, attributes)
