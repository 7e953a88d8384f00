"""Image networks: train every set and seed, measure every layer, and put it into the experiment's record."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from _shared.machine import hardware

from _layers import record
from _layers.image_sets import official_split, outsiders
from _layers.images import MeasuredNetwork, train_and_measure
from _layers.recipes import image_training
from nctheory import vision
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder
from nctheory.simulator import MILESTONES
from nctheory.vision import networks

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.vision import Images


@dataclass(frozen=True)
class Job:
    """What was checked before the run folder is made.

    Attributes:
        spec: of the network.
        sets: train and test split by condition; a control shares those of its set.
        configs: training by condition.
        outside: out-of-distribution images by condition, None without.
    """

    spec: Any
    sets: "dict[str, tuple[Images, Images]]"
    configs: dict[str, vision.ImageTrainConfig]
    outside: "dict[str, Images | None]"


def plan(config: Any) -> Job:
    """Load the image sets and configure every training.

    Args:
        config: sized configuration of the experiment, with an image network.

    Returns:
        The job; conditions in the order of the sets, the control after its set.

    Raises:
        ValueError: for unknown names, more images a batch than there are, or a class without images.
    """
    spec = networks.network(config.network)
    sets, configs, outside = {}, {}, {}
    for at, name in enumerate(config.dataset):
        splits = official_split(name, config.data_dir, config.images, progress=not config.quiet).images
        sets[name] = splits
        outside[name] = outsiders(splits[0], config.data_dir, config.images, progress=not config.quiet)
        configs[name] = _training(config, splits[0].num_classes, weight_decay=config.weight_decay)
        if at == 0 and config.images.control:
            sets[f"{name}_no_decay"], outside[f"{name}_no_decay"] = splits, outside[name]
            configs[f"{name}_no_decay"] = _training(config, splits[0].num_classes, weight_decay=0.0)
    return Job(spec, sets, configs, outside)


def _training(config: Any, num_classes: int, *, weight_decay: float) -> vision.ImageTrainConfig:
    given = {"learning_rate": config.learning_rate, "weight_decay": weight_decay}
    return image_training(config.images, config.loss, num_classes, **given)


def measure(config: Any, job: Job, folder: RunFolder) -> "xr.Dataset":
    """Train and measure every condition and seed, resuming what the folder holds; write record and manifest."""
    began = time.perf_counter()
    runs: dict[str, record.ConditionRuns] = {}
    every: list[MeasuredNetwork] = []
    for condition, splits in job.sets.items():
        found = [_one(config, job, condition, splits, seed, folder.parts) for seed in config.seeds]
        finished = [each for each in found if each is not None]
        if not finished:
            raise ArgumentError(
                f"Argument `learning_rate` must be smaller: training on {condition} diverged at {config.learning_rate} "
                f"with every seed."
            )
        every += finished
        runs[condition] = _of_networks(found, finished[0], has_spectra=config.spectra != "none")
    history = record.collect(
        runs,
        seeds=config.seeds,
        milestones=MILESTONES,
        layers=every[0].names,
        attributes=_attributes(config, job),
    )
    folder.write_history(history)
    folder.write_manifest(
        device=str(jax.devices()[0].device_kind),
        dtype=next(iter(job.configs.values())).dtype_on(jax.default_backend()),
        compile_seconds=sum(each.compile_seconds for each in every),
        run_seconds=float(sum(each.curves["seconds"].sum() for each in every)),
        measure_seconds=float(sum(each.measure_seconds.sum() for each in every)),
        wall_seconds=time.perf_counter() - began,
    )
    return history


def _one(
    config: Any, job: Job, condition: str, splits: "tuple[Images, Images]", seed: int, parts: Path
) -> MeasuredNetwork | None:
    """One network, or None if its loss is not finite: its seed counts as lost."""
    print(f"{condition}, seed {seed}", flush=True)
    try:
        return train_and_measure(
            job.spec,
            job.configs[condition],
            *splits,
            seed=seed,
            folder=parts / f"{condition}-{seed}",
            pool=config.images.pool,
            max_measured=config.images.max_measured,
            spectra=config.spectra,
            max_spectrum_dim=config.images.max_spectrum_dim,
            ood=job.outside[condition],
            progress=not config.quiet,
        )
    except vision.NonFiniteLossError as error:
        print(f"{condition}, seed {seed} is lost: {error}", flush=True)
        return None


def _of_networks(
    found: list[MeasuredNetwork | None], like: MeasuredNetwork, *, has_spectra: bool
) -> record.ConditionRuns:
    """All seeds of a condition; a lost one is NaN throughout."""

    def stacked(get: Any) -> np.ndarray:
        blank = np.full(np.shape(get(like)), np.nan)
        return np.stack([blank if each is None else np.asarray(get(each), dtype=np.float64) for each in found])

    marked = [None if each is None else each.at_milestones() for each in found]
    size = (len(like.milestones), *like.metrics["nc1"].shape[1:])

    def at_milestones(names: Iterable[str]) -> dict[str, np.ndarray]:
        blank = np.full(size, np.nan)
        return {name: np.stack([blank if each is None else each[name] for each in marked]) for name in names}

    measured = [*record.METRICS, *(name for name in record.OUTSIDE if name in like.metrics)]
    spectra = {name: stacked(lambda each, name=name: each.spectra[name]) for name in record.SPECTRUM}
    return record.ConditionRuns(
        epochs=[int(each) for each in like.epochs],
        metrics={name: stacked(lambda each, name=name: each.metrics[name]) for name in measured},
        losses=stacked(lambda each: each.losses),
        accuracies=stacked(lambda each: each.accuracies),
        epoch_accuracy=stacked(lambda each: each.curves["train_accuracy"]),
        milestone_epochs=np.stack(
            [np.full(size[0], -1) if each is None else np.asarray(each.milestone_epochs) for each in found]
        ),
        milestone_metrics=at_milestones(measured),
        finite=np.array([each is not None for each in found]),
        spectra=spectra if has_spectra else None,
        milestone_spectra=at_milestones(record.SPECTRUM) if has_spectra else None,
        reached_epochs=np.stack(
            [np.full(size[0], -1) if each is None else np.asarray(each.reached_epochs) for each in found]
        ),
    )


def _attributes(config: Any, job: Job) -> dict[str, Any]:
    """What the record says about itself."""
    options = config.images
    return {
        "kind": "images",
        "title": f"{config.network} on {', '.join(config.dataset)}, {config.loss}",
        "smoke": int(config.smoke),
        "network": config.network,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "batch_size": options.batch_size,
        "schedule": options.schedule,
        "activations": "averaged over height and width" if options.pool else "flattened",
        "spectra": config.spectra,
        # Why wider layers have no effective rank: their numbers are NaN.
        "max_spectrum_dim": options.max_spectrum_dim,
        "ood_dataset": options.ood_dataset or "none",
        "num_train": [splits[0].num_samples for splits in job.sets.values()],
        "hardware": hardware(),
    }
