"""What the layer experiment stores: one labelled data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

SPLITS = ("train", "test")
COLLAPSE = {
    "nc1": "tr(Sigma_W Sigma_B^+)/K about the split's own class means",
    "within_between_ratio": "tr Sigma_W / tr Sigma_B about the split's own class means",
    "nc2_equinorm": "std/mean of the norms of the centred class means",
    "nc2_equiangular": "mean |cos + 1/(K-1)| over pairs of centred class means",
    "nc2_etf_distance": "distance of the centred class means from a simplex ETF",
    "cdnv": "mean over pairs of classes of (var_c + var_c')/(2 |mu_c - mu_c'|^2)",
    "nc3_duality": "|W/|W| - M/|M|| at the layer that the classifier W reads, M its centred class means",
    "nc4_ncc_mismatch": "share of samples whose nearest own class mean is not the network's prediction, at that layer",
}
CENTERS = {
    "strong": "mean |h - mu_y|^2 / tr Sigma_B about the train class means",
    "weak": "mean min_c |h - mu_c|^2 / tr Sigma_B about the train class means",
    "near_share": "share of samples with min_c |h - mu_c|^2 < 0.1 tr Sigma_B",
    "label_mismatch": "share of samples whose nearest train class mean is not that of their label",
    "prediction_mismatch": "share of samples whose nearest train class mean is not that of the network's prediction",
}
DIRECTIONS = {
    "hyperspherical_energy": "mean over pairs of log(1/|u_c - u_c'|), u_c the directions of the centred class means",
    "hyperspherical_excess": "that energy minus a simplex ETF's, -log(2K/(K-1))/2; 0 for a simplex ETF",
    "class_alignment_mean": "mean over classes of the cosine between the classifier's row and the centred class mean, "
    "at the layer that the classifier reads",
    "class_alignment_min": "minimum over classes of that cosine",
}
OUTSIDE = {
    "ood_orthogonality": "NC5: mean over classes of |cos| between the centred class mean and the mean of "
    "out-of-distribution images, both about the global mean",
}
"""What image networks are measured by where out-of-distribution images are given; dimensionless."""
METRICS = COLLAPSE | CENTERS | DIRECTIONS
"""Every metric of a layer with its definition; all dimensionless."""
SPECTRUM = {
    "effective_rank": "exp of the entropy of the normalised singular values of the features about their mean",
    "variability_collapse_index": "1 - tr(Sigma_T^+ Sigma_B)/rank(Sigma_B)",
}
"""What is measured when `--spectra` says so, NaN elsewhere; dimensionless."""


@dataclass(frozen=True)
class ConditionRuns:
    """Everything measured of one condition; leading axis seeds, NaN where a run diverged.

    Attributes:
        epochs: measured epochs, the last one the end of training.
        metrics: by name, (seed, record, split, layer); all of `METRICS`, and those of `OUTSIDE` that were measured.
        losses: (seed, record, split), in the unit of the loss.
        accuracies: (seed, record, split).
        epoch_accuracy: train accuracy of every epoch, (seed, epoch).
        milestone_epochs: (seed, milestone); -1 where never reached.
        milestone_metrics: by name, (seed, milestone, split, layer).
        finite: (seed).
        reached_epochs: (seed, milestone), the epochs that reached them where only some of the epochs are measured; by
            default the measured ones.
        spectra: by name of `SPECTRUM`, (seed, record, split, layer), NaN where not measured; None if nowhere.
        milestone_spectra: by name, (seed, milestone, split, layer).
    """

    epochs: Sequence[int]
    metrics: Mapping[str, np.ndarray]
    losses: np.ndarray
    accuracies: np.ndarray
    epoch_accuracy: np.ndarray
    milestone_epochs: np.ndarray
    milestone_metrics: Mapping[str, np.ndarray]
    finite: np.ndarray
    reached_epochs: np.ndarray | None = None
    spectra: Mapping[str, np.ndarray] | None = None
    milestone_spectra: Mapping[str, np.ndarray] | None = None


def of_sweep(history: Any, row: int, finite: np.ndarray) -> ConditionRuns:
    """Take one condition out of a sweep of `simulator.train_layers`.

    Args:
        history: of the sweep, leading axes (condition, seed).
        row: which condition.
        finite: (condition, seed), runs that did not diverge.

    Returns:
        The condition.
    """

    def both(name: str) -> np.ndarray:
        return np.stack([np.float64(getattr(history, f"{split}_{name}")[row]) for split in SPLITS], axis=-1)

    def stacked(named: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        return {
            name: np.stack([np.float64(getattr(part, name)[row]) for part in records], axis=-2)
            for name, records in named.items()
        }

    def metrics(prefix: str) -> dict[str, np.ndarray]:
        parts = [getattr(history, f"{prefix}{split}") for split in SPLITS]
        named = {name: [part.collapse for part in parts] for name in COLLAPSE}
        named |= {name: [part.centers for part in parts] for name in CENTERS}
        named |= {name: [part.directions for part in parts] for name in DIRECTIONS}
        return stacked(named)

    def spectra(prefix: str) -> dict[str, np.ndarray] | None:
        if history.spectra is None:
            return None
        parts = [getattr(history.spectra, f"{prefix}{split}") for split in SPLITS]
        return stacked(dict.fromkeys(SPECTRUM, parts))

    return ConditionRuns(
        epochs=[int(each) for each in history.epochs[row, 0]],
        metrics=metrics(""),
        losses=both("loss"),
        accuracies=both("accuracy"),
        epoch_accuracy=np.asarray(history.epoch_accuracy[row], dtype=np.float64),
        milestone_epochs=np.asarray(history.milestone_epochs[row], dtype=np.int64),
        milestone_metrics=metrics("milestone_"),
        finite=finite[row],
        spectra=spectra(""),
        milestone_spectra=spectra("milestone_"),
    )


def collect(
    runs: Mapping[str, ConditionRuns],
    *,
    seeds: Sequence[int],
    milestones: Sequence[float],
    layers: Sequence[str],
    attributes: Mapping[str, Any],
    chain: Mapping[str, np.ndarray] | None = None,
) -> "xr.Dataset":
    """Put all conditions into one data set.

    `epoch` is the union of the measured epochs of all conditions: a condition is NaN at those of the others, and
    `num_epochs` is its last.

    Args:
        runs: by condition.
        seeds: of the runs.
        milestones: train accuracies of the further measurements.
        layers: names of the layers, "input" first.
        attributes: of the data set.
        chain: what `_layers.chain.measure` found of deep linear networks, with "objective" (seed, record).

    Returns:
        The record.
    """
    import xarray as xr

    parts = [_of_condition(each, seeds, milestones, len(layers)) for each in runs.values()]
    # Epochs that one condition lacks become NaN; every part has the same other coordinates.
    history = xr.concat(parts, dim="condition", join="outer", coords="minimal", compat="override")
    history = history.assign_coords(condition=list(runs), layer_name=("layer", list(layers)))
    for name, words in _chain(chain).items():
        history[name] = words
    history.attrs = dict(attributes)
    return history


def _of_condition(
    runs: ConditionRuns, seeds: Sequence[int], milestones: Sequence[float], num_layers: int
) -> "xr.Dataset":
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, meaning in (METRICS | {name: OUTSIDE[name] for name in OUTSIDE if name in runs.metrics}).items():
        words = {"units": "dimensionless", "definition": meaning}
        variables[name] = (("seed", "epoch", "split", "layer"), runs.metrics[name], words)
        marked = (("seed", "milestone", "split", "layer"), runs.milestone_metrics[name], words)
        variables[f"milestone_{name}"] = marked
    variables |= _of_epochs(runs) | _of_milestones(runs) | _of_spectra(runs)
    variables["finite"] = (("seed",), np.asarray(runs.finite, dtype=bool))
    variables["num_epochs"] = ((), runs.epochs[-1], {"units": "epochs", "definition": "length of training"})
    coordinates = {
        "seed": np.asarray(seeds, dtype=np.int64),
        "epoch": np.asarray(runs.epochs, dtype=np.int64),
        "training_epoch": np.arange(1, runs.epoch_accuracy.shape[1] + 1),
        "split": list(SPLITS),
        "layer": np.arange(num_layers),
        "milestone": np.asarray(milestones, dtype=np.float64),
    }
    return xr.Dataset(variables, coordinates)


def _of_spectra(runs: ConditionRuns) -> dict[str, Any]:
    """Spectra on the axes of the other metrics."""
    variables: dict[str, Any] = {}
    for prefix, axis, found in (("", "epoch", runs.spectra), ("milestone_", "milestone", runs.milestone_spectra)):
        for name, values in (found or {}).items():
            words = {"units": "dimensionless", "definition": f"{SPECTRUM[name]}; NaN where not measured"}
            variables[f"{prefix}{name}"] = (("seed", axis, "split", "layer"), values, words)
    return variables


def _of_epochs(runs: ConditionRuns) -> dict[str, Any]:
    """Variables of the network as a whole at measured epochs and at all of them."""
    shares = {"units": "dimensionless", "definition": "share of right answers, train labels as trained on"}
    running = {"units": "dimensionless", "definition": "train accuracy of every epoch, each batch before its step"}
    losses = {"units": "unit of the loss", "definition": "data term of the objective"}
    return {
        "loss": (("seed", "epoch", "split"), runs.losses, losses),
        "accuracy": (("seed", "epoch", "split"), runs.accuracies, shares),
        "epoch_accuracy": (("seed", "training_epoch"), runs.epoch_accuracy, running),
    }


def _of_milestones(runs: ConditionRuns) -> dict[str, Any]:
    """When the milestones were reached."""
    reached = runs.milestone_epochs if runs.reached_epochs is None else runs.reached_epochs
    words = "first epoch{} whose train accuracy reaches it; -1 where none does"
    measured = words.format(" (image networks: first measured one)")
    of_all = words.format(", measured or not,")
    return {
        "milestone_epoch": (("seed", "milestone"), runs.milestone_epochs, {"units": "epochs", "definition": measured}),
        "reached_epoch": (("seed", "milestone"), reached, {"units": "epochs", "definition": of_all}),
    }


def _chain(chain: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    """Variables of the deep linear networks; record 0 is untrained, record 1 trained."""
    if chain is None:
        return {}
    meanings = {
        "ratio": "tr Sigma_W / tr Sigma_B of the deep linear network's layers",
        "discrimination": "1 - largest cosine between two class means",
    }
    variables: dict[str, Any] = {}
    for name, meaning in meanings.items():
        words = {"units": "dimensionless", "definition": meaning}
        variables[f"chain_{name}"] = (("seed", "chain_record", "chain_layer"), chain[name], words)
        predicted = {"units": "dimensionless", "definition": f"prediction of {meaning}"}
        variables[f"chain_predicted_{name}"] = (("chain_layer",), chain[f"predicted_{name}"], predicted)
    objective = {"units": "dimensionless", "definition": "|f - y|^2/(2N) of the deep linear network"}
    variables["chain_objective"] = (("seed", "chain_record"), chain["objective"], objective)
    return variables
