"""Image networks on the official split: train, measure every layer, probe, and record as the MLPs are."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from _bench import dimensionless
from _layers.image_sets import measured, official_split, outsiders
from _layers.images import check_measured, train_and_measure
from _layers.recipes import image_training
from _layers.record import OUTSIDE
from _shared.machine import hardware

from _generalisation.data import two_classes
from _generalisation.options import MlpOptions
from _generalisation.record import CENTERS, OWN_MEANS, dataset
from _generalisation.runs import CONDITIONS
from nctheory import vision
from nctheory._errors import ArgumentError
from nctheory.metrics.held_out import LayerMetrics
from nctheory.metrics.probes import PROBES, probe_accuracies
from nctheory.runs import RunFolder
from nctheory.vision import networks
from nctheory.vision.layers import layer_collapse

_RUN = ("condition", "seed", "epoch")
Pair = tuple[vision.Images, vision.Images]


@dataclass(frozen=True)
class Job:
    """What was checked before the run folder is made.

    Attributes:
        spec: of the network.
        splits: train and test images under the original classes.
        merged: the same under the two super-classes.
        class_names: of the original classes.
        super_class: 0 or 1 for each original class.
        configs: training of every condition, by part.
        outside: out-of-distribution images, None without.
    """

    spec: Any
    splits: Pair
    merged: Pair
    class_names: tuple[str, ...]
    super_class: np.ndarray
    configs: dict[str, dict[str, vision.ImageTrainConfig]]
    outside: vision.Images | None


def plan(options: MlpOptions) -> Job:
    """Load the images and configure every training.

    Args:
        options: sized, with an image network.

    Returns:
        The job.

    Raises:
        ValueError: for an unknown set or network, more images a batch than there are, or a class without images.
    """
    spec = networks.network(options.network)
    loaded = official_split(options.dataset, options.data_dir, options.images, progress=not options.quiet)
    splits, names = loaded.images, loaded.class_names
    table = two_classes(options.dataset, len(names))
    merged = tuple(replace(part, labels=table[np.asarray(part.labels)], num_classes=2) for part in splits)
    configs = {part: _trainings(options, part, 2 if part == "transfer" else len(names)) for part in options.chosen}
    outside = outsiders(splits[0], options.data_dir, options.images, progress=not options.quiet)
    return Job(spec, splits, (merged[0], merged[1]), names, table, configs, outside)


def _trainings(options: MlpOptions, part: str, num_classes: int) -> dict[str, vision.ImageTrainConfig]:
    given = options.weight_decay if part == "collapse" else options.transfer_decay
    configs = {}
    for condition in CONDITIONS if options.images.control else CONDITIONS[:1]:
        configs[condition] = image_training(
            options.images,
            options.loss,
            num_classes,
            learning_rate=options.learning_rate,
            weight_decay=given if condition == "decay" else 0.0,
        )
    return configs


def measure(options: MlpOptions, job: Job, folder: RunFolder) -> xr.DataTree:
    """Train and measure every part, condition and seed, resuming what the folder holds; write record and manifest."""
    began = time.perf_counter()
    makers = {"collapse": _collapse, "transfer": _transfer}
    done = {name: makers[name](options, job, folder.parts) for name in options.chosen}
    tree = xr.DataTree.from_dict({name: data for name, (data, _) in done.items()})
    tree.attrs.update(
        kind="images",
        title=f"{options.network} on {options.dataset}, {job.splits[0].num_samples} train images, {options.loss}",
        smoke=int(options.smoke),
        hardware=hardware(),
    )
    folder.write_history(tree)
    config = next(iter(next(iter(job.configs.values())).values()))
    folder.write_manifest(
        device=str(jax.devices()[0].device_kind),
        dtype=config.dtype_on(jax.default_backend()),
        **_added([seconds for _, seconds in done.values()]),
        wall_seconds=time.perf_counter() - began,
    )
    return tree


class Seconds(NamedTuple):
    """Times of training runs, by the names they have in the manifest; those of diverged runs are not known."""

    compile_seconds: float
    run_seconds: float
    measure_seconds: float


def _added(parts: Iterable[Seconds]) -> dict[str, float]:
    """Sum of times, by name."""
    table = np.array(list(parts), dtype=np.float64)
    return dict(zip(Seconds._fields, table.sum(axis=0).tolist(), strict=True))


def _every_run(options: MlpOptions, job: Job, part: str, one: Callable[..., Any]) -> list[list[Any]]:
    """What `one(config, seed, folder name)` gives for every condition and seed; None for a run that diverged."""
    rows = []
    for condition, config in job.configs[part].items():
        row: list[Any] = []
        for seed in options.seeds:
            print(f"{part}, {condition}, seed {seed}", flush=True)
            try:
                row.append(one(config, seed, f"{part}-{condition}-{seed}"))
            except vision.NonFiniteLossError as error:
                print(f"lost: {error}", flush=True)
                row.append(None)
        rows.append(row)
    if all(each is None for row in rows for each in row):
        raise ArgumentError(
            f"Argument `learning_rate` must be smaller, but is {options.learning_rate}: every run of part {part} "
            "diverged."
        )
    return rows


def _stacked(rows: list[list[Any]], get: Callable[[Any], Any]) -> np.ndarray:
    """An array of every run, condition by seed; NaN for a run that diverged."""
    like = next(np.shape(get(each)) for row in rows for each in row if each is not None)
    blank = np.full(like, np.nan)
    return np.stack([[blank if each is None else np.asarray(get(each), np.float64) for each in row] for row in rows])


def _finite(rows: list[list[Any]]) -> tuple[tuple[str, ...], np.ndarray]:
    return ("condition", "seed"), np.array([[each is not None for each in row] for row in rows])


def _coordinates(options: MlpOptions, job: Job, part: str) -> dict[str, Any]:
    epochs = next(iter(job.configs[part].values())).kept_epochs
    return {"condition": list(job.configs[part]), "seed": options.seeds, "epoch": list(epochs)}


def _collapse(options: MlpOptions, job: Job, parts: Path) -> tuple[xr.Dataset, Seconds]:
    def one(config: Any, seed: int, name: str) -> Any:
        few = options.images
        settings: dict[str, Any] = {"pool": few.pool, "max_measured": few.max_measured, "progress": not options.quiet}
        return train_and_measure(
            job.spec, config, *job.splits, seed=seed, folder=parts / name, ood=job.outside, **settings
        )

    rows = _every_run(options, job, "collapse", one)
    variables: dict[str, Any] = {"finite": _finite(rows)}
    for name, text in (OWN_MEANS | CENTERS | ({} if job.outside is None else OUTSIDE)).items():
        values = _stacked(rows, lambda each, name=name: np.swapaxes(each.metrics[name], 1, 2))
        variables[name] = ((*_RUN, "layer", "split"), values, dimensionless(text))
    for name in ("accuracy", "loss"):
        attribute = {"accuracy": "accuracies", "loss": "losses"}[name]
        values = _stacked(rows, lambda each, attribute=attribute: getattr(each, attribute))
        variables[name] = ((*_RUN, "split"), values, dimensionless(f"{name} of the network in evaluation mode"))
    layers = next(each.names for row in rows for each in row if each is not None)
    attributes = {"num_train": job.splits[0].num_samples, "weight_decay": options.weight_decay}
    found = [each for row in rows for each in row if each is not None]
    seconds = [
        Seconds(each.compile_seconds, float(each.curves["seconds"].sum()), float(each.measure_seconds.sum()))
        for each in found
    ]
    record = dataset(variables, _coordinates(options, job, "collapse"), attributes, layers=list(layers))
    return record, Seconds(**_added(seconds))


def _transfer(options: MlpOptions, job: Job, parts: Path) -> tuple[xr.Dataset, Seconds]:
    probed = (job.splits[0].head(min(options.num_probed, job.splits[0].num_samples)), job.splits[1])

    def one(config: Any, seed: int, name: str) -> Any:
        check = partial(_at_checkpoint, config=config, probed=probed, job=job, options=options)
        run = vision.train_network(
            job.spec,
            config,
            *job.merged,
            seed=seed,
            folder=parts / name,
            resume=True,
            on_checkpoint=check,
            progress=not options.quiet,
        )
        for epoch in config.kept_epochs:
            check_measured(run.checkpoints[epoch], (*OWN_MEANS, "accuracy", "probes", "seconds"), parts / name, epoch)
        records = [run.checkpoints[epoch] for epoch in config.kept_epochs]
        seconds.append(_seconds(run, records))
        return records

    seconds: list[Seconds] = []
    rows = _every_run(options, job, "transfer", one)

    def every(name: str) -> np.ndarray:
        return _stacked(rows, lambda run: np.stack([each[name] for each in run]))

    text = "share of test images whose original class the probe predicts from the classifier's input"
    layered, probes = (*_RUN, "layer", "split"), np.swapaxes(every("probes"), 2, 3)
    variables: dict[str, Any] = {
        "finite": _finite(rows),
        "accuracy": ((*_RUN, "split"), every("accuracy"), dimensionless("share of right answers: super-class")),
        "probe_accuracy": (("condition", "seed", "probe", "epoch"), probes, dimensionless(text)),
        "super_class": ("class", job.super_class),
    }
    for name, words in OWN_MEANS.items():
        variables[name] = (layered, every(name)[..., None, :], dimensionless(words))
    coordinates = {**_coordinates(options, job, "transfer"), "probe": list(PROBES), "class": list(job.class_names)}
    attributes = {"num_train": job.merged[0].num_samples, "weight_decay": options.transfer_decay}
    return dataset(variables, coordinates, attributes, layers=["features"]), Seconds(**_added(seconds))


def _seconds(run: Any, records: list[Any]) -> Seconds:
    measuring = sum(float(each["seconds"]) for each in records)
    return Seconds(run.compile_seconds, float(np.sum(run.history.seconds)), measuring)


def _at_checkpoint(
    epoch: int, network: Any, *, config: Any, probed: Pair, job: Job, options: MlpOptions
) -> dict[str, Any]:
    """Collapse of the classifier's input onto the super-classes, accuracy, and every probe of the original classes."""
    del epoch
    began = time.perf_counter()
    used = [measured(part, options.images) for part in job.merged]
    layers = layer_collapse(network, *used, layers=["features"], include_input=False)
    assert layers.test is not None
    features = [vision.extract_features(network, part) for part in probed]
    scores = np.full(len(PROBES), np.nan)
    if all(np.isfinite(each).all() for each in features):
        labels = [np.asarray(part.labels) for part in probed]
        found = probe_accuracies(features[0], labels[0], features[1], labels[1])
        scores = np.array(list(found.values()))
    return {
        **_of_own_means(layers.train, layers.test),
        "accuracy": np.array([float(vision.evaluate(network, part, loss=config.loss).accuracy) for part in job.merged]),
        "probes": scores,
        "seconds": np.array(time.perf_counter() - began),
    }


def _of_own_means(*splits: LayerMetrics) -> dict[str, np.ndarray]:
    """Metrics about each split's own class means at its only layer, by name."""
    found = [vars(each.collapse) | vars(each.directions) for each in splits]
    return {name: np.array([float(each[name][0]) for each in found]) for name in OWN_MEANS}
