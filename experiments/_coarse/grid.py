"""Coarse training over learning rate x weight decay: train every cell, score its checkpoints, collect one record."""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _coarse import images as image_runs
from _coarse.images_record import described, score_names
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from _coarse.images_data import CoarseImages

KIND = "grid"
CELL = ("learning_rate", "weight_decay")


@dataclasses.dataclass(frozen=True)
class GridJob:
    """What the experiment's configuration says.

    Attributes:
        job: training, data and seeds; its learning rate and weight decay are replaced in every cell.
        learning_rates: largest rate of the schedule.
        weight_decays: lambda of the objective.
    """

    job: image_runs.Job
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]

    def cells(self) -> "Iterator[image_runs.Job]":
        """The job of every cell, weight decay fastest."""
        for rate, decay in itertools.product(self.learning_rates, self.weight_decays):
            images = dataclasses.replace(self.job.images, learning_rate=rate, weight_decay=decay)
            yield dataclasses.replace(self.job, images=images)

    @property
    def stored(self) -> dict[str, Any]:
        """What config.json holds."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "smoke": self.job.smoke}

    @property
    def shape(self) -> tuple[int, int]:
        """Number of learning rates and of weight decays."""
        return len(self.learning_rates), len(self.weight_decays)

    @property
    def seeds(self) -> range:
        """Seeds of every cell."""
        return range(self.job.seed, self.job.seed + self.job.num_seeds)


def remaining_share(network: Any, initial: Any) -> float:
    """Share of the initial weights that is left in a network's: <w, w_0> / <w_0, w_0> over kernels together."""
    import numpy as np

    products = [0.0, 0.0]
    for now, first in zip(_kernels(network), _kernels(initial), strict=True):
        products[0] += float(np.sum(now * first))
        products[1] += float(np.sum(first * first))
    return products[0] / products[1]


def _kernels(network: Any) -> "list[np.ndarray]":
    import jax
    import numpy as np
    from flax import nnx

    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    return [np.asarray(leaf, np.float64) for leaf in leaves if np.ndim(leaf) > 1]


def _train_cell(job: image_runs.Job, spec: Any, data: "CoarseImages", seed: int, folder: Path) -> Any:
    """Train one cell with one seed, measuring at its checkpoints; None if it diverged."""
    from _coarse import images_scores
    from nctheory import vision

    first: list[Any] = []

    def scores(epoch: int, network: Any) -> "dict[str, np.ndarray]":
        import numpy as np

        if epoch == 0:
            first.append(network)
        elif not first:  # A resumed run kept the untrained network on disk.
            first.append(vision.load_network(spec, folder, 0))
        last = epoch == job.images.num_epochs
        found = images_scores.at_checkpoint(network, data, seed=seed, last=last, tsne_iterations=0)
        return {**found, "remaining_share": np.array(remaining_share(network, first[0]))}

    what = f"learning rate {job.images.learning_rate:g}, weight decay {job.images.weight_decay:g}"
    return image_runs.train_one(spec, job.training(), data.coarse, seed, folder, what, scores)


def measure(grid: GridJob, spec: Any, data: "CoarseImages", folder: RunFolder) -> "xr.Dataset":
    """Train and score every cell, and write record and manifest; what finished is taken up from the run folder."""
    import jax
    from _shared.store import cached

    from _coarse import images_scores

    began = time.perf_counter()
    names = ("raw_clp", "raw_chance", "raw_fine_probe")
    raw = cached(folder.parts / "pixels.npz", names, lambda: images_scores.of_pixels(data))
    runs = []
    for number, cell in enumerate(grid.cells(), start=1):
        print(f"cell {number} of {grid.shape[0] * grid.shape[1]}", flush=True)
        part = f"lr{cell.images.learning_rate:g}-wd{cell.images.weight_decay:g}"
        runs.append([_train_cell(cell, spec, data, seed, folder.parts / f"{part}-{seed}") for seed in grid.seeds])
    history = collect(grid, data, runs, raw)
    folder.write_history(history)
    finished = [run for row in runs for run in row if run is not None]
    folder.write_manifest(
        device=str(jax.devices()[0].device_kind),
        dtype=grid.job.training().dtype_on(jax.default_backend()),
        compile_seconds=sum(run.compile_seconds for run in finished),
        run_seconds=sum(float(run.history.seconds.sum()) for run in finished),
        score_seconds=float(history["score_seconds"].sum()),
        wall_seconds=time.perf_counter() - began,
    )
    return history


def collect(
    grid: GridJob, data: "CoarseImages", runs: Sequence[Sequence[Any]], raw: "Mapping[str, np.ndarray]"
) -> "xr.Dataset":
    """Put what claims, table and figures need into one data set.

    Args:
        grid: the configuration.
        data: the images under merged labels.
        runs: for every cell, in their order, one `TrainedNetwork` a seed; None for a run that diverged.
        raw: scores of the pixels.

    Returns:
        The record, with dimensions learning_rate, weight_decay, seed, checkpoint; NaN for a run that diverged.
    """
    import numpy as np
    import xarray as xr

    epochs = grid.job.images.epochs
    num_fine = len(data.class_names)
    unitless = {"units": "dimensionless"}
    variables: dict[str, Any] = {name: ((), value, unitless) for name, value in raw.items()}
    for name in (*score_names(), "remaining_share"):
        dims, shape, attributes = described(name, num_fine)
        empty = np.full(shape, np.nan)
        values = [
            [[empty if run is None else run.checkpoints[epoch][name] for epoch in epochs] for run in row]
            for row in runs
        ]
        array = np.array(values, float).reshape(*grid.shape, len(grid.seeds), len(epochs), *shape)
        variables[name if name != "seconds" else "score_seconds"] = ((*CELL, *dims), array, attributes)
    variables |= _decay(grid, data.coarse[0].num_samples, unitless)
    variables["coarse_label"] = ("fine", np.asarray(data.label_map.table))
    coordinates = {
        "learning_rate": list(grid.learning_rates),
        "weight_decay": list(grid.weight_decays),
        "seed": np.asarray(grid.seeds, np.int64),
        "checkpoint": ("checkpoint", np.asarray(epochs, np.int64), {"units": "epochs"}),
        "fine": list(data.class_names),
        "other_fine": list(data.class_names),
    }
    # Rate and decay are coordinates here.
    attributes = {k: v for k, v in image_runs.attributes(grid.job, data).items() if k not in CELL}
    return xr.Dataset(variables, coordinates, {**attributes, "kind": KIND})


def _decay(grid: GridJob, num_samples: int, unitless: dict[str, str]) -> dict[str, Any]:
    """Steps done at every checkpoint, and the share of the initial weights that decay alone leaves then."""
    import numpy as np

    epochs = list(grid.job.images.epochs)
    factors = [cell.training().memory_factors(num_samples)[epochs] for cell in grid.cells()]
    steps = grid.job.training().steps_per_epoch(num_samples)
    return {
        "memory_factor": ((*CELL, "checkpoint"), np.array(factors).reshape(*grid.shape, -1), unitless),
        "step": ("checkpoint", np.array(epochs) * steps, {"units": "steps"}),
    }
