"""The parts of the experiment: each announces its sweeps and turns their results into one record."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from _shared.pool import score_all
from _shared.store import cached

from _generalisation import probing
from _generalisation.data import Pool
from _generalisation.options import MlpOptions
from _generalisation.record import dataset, measured
from _generalisation.runs import CONDITIONS, RIDGES, collapse_runs, sample_runs, train_transfer, transfer_runs
from nctheory import simulator

_RUN = ("condition", "seed", "epoch")


@dataclass(frozen=True)
class Job:
    """What every part is given.

    Attributes:
        options: sized.
        pool: the images.
        plans: configurations of every part, checked before the run folder is made.
        bench: compiles and runs the sweeps.
        parts: folder of finished units.
    """

    options: MlpOptions
    pool: Pool
    plans: dict[str, Any]
    bench: Bench
    parts: Path

    @property
    def coordinates(self) -> dict[str, Any]:
        """Axes that the parts with conditions share."""
        return {"condition": list(CONDITIONS), "seed": np.asarray(self.options.seeds, dtype=np.int64)}


class Part(NamedTuple):
    """Plans its runs from options and images, announces its sweeps, and runs them into a record."""

    plan: Callable[[MlpOptions, Pool], Any]
    prepare: Callable[[Job], None]
    measure: Callable[[Job], xr.Dataset]


def _prepare_collapse(job: Job) -> None:
    job.bench.prepare("collapse", job.plans["collapse"], train=simulator.train_layers)


def _measure_collapse(job: Job) -> xr.Dataset:
    found = job.bench.sweep("collapse")
    variables = measured(found.history, _RUN) | _finite(found)
    epochs = job.plans["collapse"][0].record_epochs
    attributes = {"num_train": job.options.num_train, "weight_decay": job.options.weight_decay}
    return dataset(variables, {**job.coordinates, "epoch": list(epochs)}, attributes)


def _finite(found: simulator.SweepResult) -> dict[str, Any]:
    return {"finite": (("condition", "seed"), found.finite)}


def _prepare_transfer(job: Job) -> None:
    job.bench.prepare("transfer", job.plans["transfer"], train=train_transfer)


def _measure_transfer(job: Job) -> xr.Dataset:
    plan, found = job.plans["transfer"][0], job.bench.sweep("transfer")
    history = found.history
    variables = measured(history.layers, _RUN) | _finite(found)
    epochs = list(plan.layers.record_epochs)
    names = [*RIDGES, *probing.PROBES]
    accuracy = np.full((*found.finite.shape, len(names), len(epochs)), np.nan)
    for at, name in enumerate(RIDGES):
        accuracy[:, :, at] = history.ridge[name]
    accuracy[:, :, len(RIDGES) :, list(plan.kept)] = _probe_on_host(job, found)
    text = (
        "share of held-out images whose original class the probe predicts from the last hidden layer; NaN where not run"
    )
    variables["probe_accuracy"] = (("condition", "seed", "probe", "epoch"), accuracy, dimensionless(text))
    text = "the probe `ridge` on the inputs and every hidden layer after the last epoch"
    variables["layer_probe_accuracy"] = (("condition", "seed", "layer"), history.layer_ridge, dimensionless(text))
    variables["super_class"] = ("class", job.pool.super_class)
    coordinates = {**job.coordinates, "epoch": epochs, "probe": names, "class": list(job.pool.class_names)}
    attributes = {"num_train": plan.layers.run.data.num_train, "weight_decay": job.options.transfer_decay}
    return dataset(variables, coordinates, attributes)


def _probe_on_host(job: Job, found: simulator.SweepResult) -> np.ndarray:
    """Accuracy of the slow probes: condition, seed, probe, kept record. Finished runs are kept in a folder."""
    folder = job.parts / "probes"
    folder.mkdir(exist_ok=True)
    features_of = probing.make_features(job.plans["transfer"][0].layers.run)
    rows, columns = found.finite.shape

    def unit(score: Callable[..., dict[str, Any]], row: int, column: int) -> dict[str, Any]:
        seed = int(found.seeds[column])

        def compute() -> dict[str, Any]:
            params = jax.tree.map(lambda leaf: leaf[row, column], found.history.layers.params)
            return score(*features_of(params, seed))

        return cached(folder / f"{CONDITIONS[row]}-{seed}.npz", ("accuracy",), compute)

    jobs = [(row, column) for row in range(rows) for column in range(columns)]
    done = score_all(jobs, unit, probing.score, alone=job.options.smoke)
    return np.stack([each["accuracy"] for each in done]).reshape(rows, columns, len(probing.PROBES), -1)


def _prepare_samples(job: Job) -> None:
    for size, config in job.plans["samples"].items():
        job.bench.prepare(f"samples-{size}", config, train=simulator.train_layers)


def _measure_samples(job: Job) -> xr.Dataset:
    found = {size: job.bench.sweep(f"samples-{size}") for size in job.plans["samples"]}
    # One condition a sweep, whose axis makes room for that of the sizes.
    histories = [jax.tree.map(lambda leaf: leaf[0], each.history) for each in found.values()]
    records = [measured(history, ("seed", "end")) for history in histories]
    variables: dict[str, Any] = {
        name: (("size", *dims), np.stack([record[name][1] for record in records]), words)
        for name, (dims, _, words) in records[0].items()
    }
    variables["finite"] = (("size", "seed"), np.concatenate([each.finite for each in found.values()]))
    epochs = [config.num_epochs for config in job.plans["samples"].values()]
    variables["num_epochs"] = ("size", epochs, {"units": "epochs"})
    coordinates = {"size": list(found), "seed": job.coordinates["seed"], "end": ["initial", "final"]}
    return dataset(variables, coordinates, {"weight_decay": job.options.transfer_decay})


PARTS = {
    "collapse": Part(collapse_runs, _prepare_collapse, _measure_collapse),
    "transfer": Part(transfer_runs, _prepare_transfer, _measure_transfer),
    "samples": Part(sample_runs, _prepare_samples, _measure_samples),
}
