"""Do the original classes survive when weight decay has erased the initial weights? Learning rate x weight decay.

A network is trained on merged labels in every cell of a grid of learning rates and weight decays. Decay multiplies the
initial weights by a factor whose square, exp(-2 lambda sum(rates) / (1 - momentum)), falls over many decades across the
grid and along training. At every checkpoint the original classes are rebuilt from the features, beside every control.

    python experiments/coarse_grid.py
    python experiments/coarse_grid.py --dataset cifar10 --network resnet18 --images.num-epochs 350 --data-dir FOLDER
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from _coarse import images as image_runs
from _coarse.grid import GridJob, measure
from _coarse.grid_claims import judge, table
from _coarse.images_options import ImageOptions
from _coarse.options import DataOptions
from _layers.options import check_foreign
from _report import print_verdict, redraw, store

from nctheory._cli import check_integer, compile_in_a_hurry, keep_freed_memory, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

EXPERIMENT = "coarse_grid"
# Digits need small batches to make enough steps for six decades.
IMAGE_DEFAULTS = ImageOptions(num_epochs=50, batch_size=16, schedule="step")
DEFAULT_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Config(DataOptions):
    """Train on merged labels over learning rates and weight decays, and rebuild the original classes in every cell."""

    num_seeds: int | None = None
    """Number of seeds in every cell, at least 2; default 3. The intervals are over them."""
    labels: Literal["mod", "consecutive", "random", "semantic"] = "mod"
    """How original classes are merged: class mod C, neighbours in number, at random, or by likeness."""
    num_coarse: int = 5
    """Number of super-classes C."""
    learning_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    """Largest rates of the schedule."""
    weight_decays: tuple[float, ...] = (5e-3, 5e-4, 5e-5)
    """Weight decays lambda of the objective loss + lambda/2 |parameters|^2."""
    images: ImageOptions = IMAGE_DEFAULTS
    """Training; learning rate and weight decay are those of the grid."""

    def __post_init__(self):
        """Check what needs no data."""
        super().__post_init__()
        check_integer("num_coarse", self.num_coarse, minimum=2)
        check_integer("merge_seed", self.merge_seed, minimum=0)
        for name, positive in (("learning_rates", True), ("weight_decays", False)):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ArgumentError(f"Argument `{name}` must hold different numbers, at least one, but is {given}.")
            if not all(each > 0 if positive else each >= 0 for each in given):
                bound = "> 0" if positive else ">= 0"
                raise ArgumentError(f"Argument `{name}` must hold numbers {bound}, but is {given}.")
        self.images.check()
        check_foreign(self, ("chunk_size",), network="image networks", owner="sweeps")
        for name in ("learning_rate", "weight_decay"):
            if getattr(self.images, name) != getattr(IMAGE_DEFAULTS, name):
                raise ArgumentError(f"Argument `images.{name}` must be left alone: the grid is set by `{name}s`.")

    @property
    def grid(self) -> GridJob:
        """What this configuration says, small with `smoke`."""
        images, num_seeds = self.images, self.num_seeds or DEFAULT_SEEDS
        rates, decays = self.learning_rates, self.weight_decays
        if self.smoke:
            small = {"num_epochs": 2, "num_train": 256, "num_test": 256}
            images = dataclasses.replace(images, **small)
            num_seeds, rates, decays = 2, rates[:1], (decays[0], decays[-1]) if len(decays) > 1 else decays
        job = image_runs.Job(
            dataset=self.dataset,
            labels=self.labels,
            network=self.network,
            num_coarse=self.num_coarse,
            merge_seed=self.merge_seed,
            num_seeds=num_seeds,
            seed=self.seed,
            num_tsne_seeds=0,
            tsne_iterations=0,
            smoke=self.smoke,
            images=images,
        )
        return GridJob(job, tuple(rates), tuple(decays))


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from nctheory.figures import coarse_grid as figures

    ledger = judge(history)
    store(folder, ledger, figures.draw_all(history))
    heading = f"Test accuracy on the original classes at the end of every cell:\n{table(history)}"
    return print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))


def run(config: Config) -> int:
    """Run or resume the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, f"{config.dataset}-{config.labels}-{config.network}")
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    if config.smoke:
        compile_in_a_hurry()
    else:
        keep_freed_memory()
    from _coarse import images_data

    grid = config.grid
    given: dict[str, Any] = {name: getattr(grid.job, name) for name in ("num_coarse", "merge_seed")}
    given |= {name: getattr(grid.job.images, name) for name in ("num_train", "num_test")}
    data = images_data.load(config.dataset, config.labels, data_dir=config.data_dir, **given)
    # Before the folder: a bad number must not leave one behind.
    spec = image_runs.check(grid.job, data)
    with RunFolder.create(path, grid.stored, experiment=EXPERIMENT, resume=config.resume) as folder:
        return finish(folder, measure(grid, spec, data, folder))


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
