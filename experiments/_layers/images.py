"""One image network, trained and measured in every layer at its checkpoints."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from _layers.record import METRICS, OUTSIDE, SPECTRUM, SPLITS
from nctheory.runs import RunFolderError
from nctheory.simulator import MILESTONES, SPECTRA

if TYPE_CHECKING:
    from nctheory.vision import Images, ImageTrainConfig
    from nctheory.vision.layers import NetworkLayers


@dataclasses.dataclass(frozen=True)
class MeasuredNetwork:
    """One seed: R measured epochs of E, S = 2 splits (train, test), L layers (the pixels, then the network's), M marks.

    Attributes:
        epochs: measured epochs; 0 is the untrained network.
        names: names of the layers, "input" first.
        dims: numbers an image at each layer.
        metrics: by the name of the field of `CollapseMetrics`, `HeldOutCollapse` or `ClassDirections`; dimensionless.
            `HeldOutCollapse` is about the class means of the train split, the others are about the split's own. With
            out-of-distribution images also "ood_orthogonality".
        losses: mean loss of the measured images after the epoch, in evaluation mode, in the unit of the loss.
        accuracies: share of them that the network gets right.
        curves: by column of `vision.TrainHistory`, one entry an epoch 1..E.
        milestones: train accuracies to reach.
        milestone_epochs: first measured epoch whose running train accuracy reached each; -1 if none did.
        reached_epochs: first epoch at all that reached it, measured or not; -1 if none did.
        measure_seconds: wall time of each measurement, with compilation.
        spectra: by field of `metrics.FeatureSpectrum`, about the split's own class means; NaN at layers that are too
            wide, and wherever they were not asked for.
        compile_seconds: time spent compiling the training in this process.
    """

    epochs: Int[np.ndarray, " R"]
    names: tuple[str, ...]
    dims: tuple[int, ...]
    metrics: Mapping[str, Float[np.ndarray, "R S L"]]
    losses: Float[np.ndarray, "R S"]
    accuracies: Float[np.ndarray, "R S"]
    curves: Mapping[str, Float[np.ndarray, " E"]]
    milestones: tuple[float, ...]
    milestone_epochs: Int[np.ndarray, " M"]
    reached_epochs: Int[np.ndarray, " M"]
    measure_seconds: Float[np.ndarray, " R"]
    spectra: Mapping[str, Float[np.ndarray, "R S L"]]
    compile_seconds: float

    def at_milestones(self) -> dict[str, Float[np.ndarray, "M S L"]]:
        """Metrics and spectra at the measured epochs of the milestones, NaN where one was never reached."""
        rows = [np.flatnonzero(self.epochs == epoch) for epoch in self.milestone_epochs]
        return {
            name: np.stack([values[row[0]] if row.size else np.full(values.shape[1:], np.nan) for row in rows])
            for name, values in {**self.metrics, **self.spectra}.items()
        }


def train_and_measure(
    spec: Any,
    config: "ImageTrainConfig",
    train: "Images",
    test: "Images",
    *,
    seed: int,
    folder: Path | None = None,
    measure_epochs: Sequence[int] | None = None,
    pool: bool = False,
    max_measured: int | None = None,
    milestones: Sequence[float] = MILESTONES,
    spectra: str = "ends",
    max_spectrum_dim: int = 0,
    ood: "Images | None" = None,
    progress: bool = True,
) -> MeasuredNetwork:
    """Train one network and measure `layer_collapse` at its checkpoints; go on from what `folder` holds.

    Args:
        spec: specification of a network with `layer_names`.
        config: how to train.
        train: training split.
        test: test split, with the statistics of the training split.
        seed: seed of the run.
        folder: where checkpoints and measurements go; None keeps none. A folder belongs to one set of the arguments
            here: `pool` and the two limits are not among what a resumed run compares.
        measure_epochs: increasing epochs to measure, 0 before training; `config.kept_epochs` if None.
        pool: whether activations are averaged over height and width; otherwise they are flattened.
        max_measured: images of each split that are measured, the first; all if None. The train class means are those
            of the measured images.
        milestones: shares of right answers in the batches of an epoch, each before its step.
        spectra: when `layer_spectra` are measured too: "none", "ends" (train images at the first and the last epoch) or
            "all" (both splits at every measured epoch).
        max_spectrum_dim: widest layer, numbers a sample, whose spectrum is measured; 0 measures none.
        ood: out-of-distribution images for NC5, with the statistics of the training split.
        progress: whether to show a progress bar.

    Returns:
        The record.

    Raises:
        ValueError: if a class has no measured image in a split, for another `spectra`, or as in `vision.train_network`.
        RunFolderError: as in `vision.train_network`, or if the folder holds measurements that lack one of these.
        NonFiniteLossError: if the training diverges.
    """
    from nctheory import _checks, vision

    _checks.choice("spectra", spectra, SPECTRA)
    if measure_epochs is not None:
        config = dataclasses.replace(config, checkpoint_epochs=tuple(measure_epochs))
    measured = _measured_splits(train, test, max_measured)
    ends = (config.kept_epochs[0], config.kept_epochs[-1])

    def on_checkpoint(epoch: int, network: Any) -> dict[str, Any]:
        few = 1 if spectra == "ends" and epoch in ends else 0
        limits = [max_spectrum_dim if spectra == "all" or at < few else 0 for at in range(len(SPLITS))]
        return _measure(network, measured, loss=config.loss, pool=pool, ood=ood, max_spectrum_dims=limits)

    run = vision.train_network(
        spec, config, train, test, seed=seed, folder=folder, resume=True, progress=progress, on_checkpoint=on_checkpoint
    )
    wanted = METRICS if ood is None else METRICS | OUTSIDE
    for epoch in config.kept_epochs:
        check_measured(run.checkpoints[epoch], ("metrics", "spectra"), folder, epoch)
        check_measured(run.checkpoints[epoch]["metrics"], wanted, folder, epoch)
    return _record(run, config.kept_epochs, tuple(milestones))


def check_measured(stored: Mapping[str, Any], names: Iterable[str], folder: Path | None, epoch: int) -> None:
    """Refuse a checkpoint whose measurements an earlier version of the experiment made, with fewer names.

    Raises:
        RunFolderError: naming what is lacking.
    """
    lacking = [name for name in names if name not in stored]
    if lacking:
        raise RunFolderError(
            f"Cannot resume {folder}: the measurements of epoch {epoch} were stored without {', '.join(lacking)}, as "
            "by an earlier version. Train again into another folder."
        )


def _measured_splits(train: "Images", test: "Images", count: int | None) -> "tuple[Images, Images]":
    """The images to measure; refused before the training, which would otherwise stop at its first checkpoint."""
    from nctheory import _checks

    measured = (train, test) if count is None else (train.head(count), test.head(count))
    for name, part in zip(SPLITS, measured, strict=True):
        _checks.no_empty_class(f"{name}.labels", part.labels, num_classes=train.num_classes)
    return measured


def _measure(
    network: Any,
    splits: tuple["Images", "Images"],
    *,
    loss: str,
    pool: bool,
    ood: "Images | None" = None,
    max_spectrum_dims: Sequence[int] = (0, 0),
) -> dict[str, Any]:
    """Everything of one checkpoint, as arrays by name; widest layer with a spectrum by split."""
    from nctheory import vision
    from nctheory.vision.layers import layer_collapse

    began = time.perf_counter()
    performance = [vision.evaluate(network, part, loss=loss) for part in splits]
    layers = layer_collapse(network, *splits, ood=ood, pool=pool)
    spectra = [
        _spectra(network, part, len(layers.names), pool, limit)
        for part, limit in zip(splits, max_spectrum_dims, strict=True)
    ]
    return {
        "metrics": _by_name(layers),
        "losses": np.array([each.loss for each in performance]),
        "accuracies": np.array([each.accuracy for each in performance]),
        "dims": np.array(layers.dims),
        "spectra": {name: np.stack([each[name] for each in spectra]) for name in SPECTRUM},
        "seconds": np.array(time.perf_counter() - began),
    }


def _spectra(
    network: Any, images: "Images", num_layers: int, pool: bool, max_dim: int
) -> dict[str, Float[np.ndarray, " L"]]:
    from nctheory import vision

    if max_dim == 0:
        return dict.fromkeys(SPECTRUM, np.full(num_layers, np.nan))
    found = vision.layer_spectra(network, images, pool=pool, max_dim=max_dim).spectrum
    return {name: np.asarray(getattr(found, name), np.float64) for name in SPECTRUM}


def _by_name(layers: "NetworkLayers") -> dict[str, Float[np.ndarray, "S L"]]:
    """Metrics of both splits by name; the three records of a layer share none."""
    assert layers.test is not None
    found = [
        vars(split.collapse) | vars(split.centers) | vars(split.directions) for split in (layers.train, layers.test)
    ]
    values = {name: np.stack([np.asarray(each[name], np.float64) for each in found]) for name in found[0]}
    if layers.ood_orthogonality is not None:
        values["ood_orthogonality"] = np.asarray(layers.ood_orthogonality, np.float64)
    return values


def _record(run: Any, epochs: tuple[int, ...], milestones: tuple[float, ...]) -> MeasuredNetwork:
    rows = [run.checkpoints[epoch] for epoch in epochs]
    accuracy = np.asarray(run.history.train_accuracy)
    fields = [field.name for field in dataclasses.fields(run.history)]
    return MeasuredNetwork(
        epochs=np.array(epochs),
        names=("input", *run.network.layer_names),
        dims=tuple(int(dim) for dim in rows[0]["dims"]),
        metrics={name: np.stack([row["metrics"][name] for row in rows]) for name in rows[0]["metrics"]},
        losses=np.stack([row["losses"] for row in rows]),
        accuracies=np.stack([row["accuracies"] for row in rows]),
        curves={name: np.asarray(getattr(run.history, name), np.float64) for name in fields},
        milestones=milestones,
        milestone_epochs=first_epochs(accuracy, milestones, among=epochs),
        reached_epochs=first_epochs(accuracy, milestones),
        spectra={name: np.stack([row["spectra"][name] for row in rows]) for name in SPECTRUM},
        measure_seconds=np.stack([row["seconds"] for row in rows]),
        compile_seconds=run.compile_seconds,
    )


def first_epochs(
    accuracy: Float[np.ndarray, " E"], milestones: Sequence[float], *, among: Sequence[int] | None = None
) -> Int[np.ndarray, " M"]:
    """First epoch whose running train accuracy reached each milestone; -1 where none did.

    Args:
        accuracy: of the epochs 1..E.
        milestones: accuracies to reach.
        among: epochs that count, all if None; 0, before training, has no running accuracy and never counts.
    """
    epochs = [epoch for epoch in (range(1, len(accuracy) + 1) if among is None else among) if epoch > 0]
    return np.array([next((e for e in epochs if accuracy[e - 1] >= mark), -1) for mark in milestones])
