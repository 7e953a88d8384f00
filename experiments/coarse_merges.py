"""How well do the original classes come back under different merges, and does it depend on how alike they were?

A network is trained on pairs of merged classes: class c with c + F/2 ("mod"), neighbours in number ("consecutive"),
classes that a person would merge ("semantic"), and random pairings, by default as many as make every pair of ten
classes occur once. The original classes are rebuilt from its features by cluster-and-linear-probe and scored pair by
pair on held-out images, against how far apart the two classes lie on the images alone.

    python experiments/coarse_merges.py
    python experiments/coarse_merges.py --dataset cifar10 --network resnet-small --data-dir FOLDER

The MLP is trained over all merges and seeds at once; every other network is an image network, trained one by one with
the options under `--images`.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _coarse.options import MLP_OPTIONS, MlpOptions
from _merges.claims import judge, table
from _report import print_verdict, redraw, store

from nctheory._cli import check_integer, compile_in_a_hurry, keep_freed_memory, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from _coarse import images as image_runs
    from _merges.pairings import Merge

EXPERIMENT = "coarse_merges"


@dataclasses.dataclass(frozen=True)
class Config(MlpOptions):
    """Train on merged pairs of classes, rebuild the classes, and compare merges.

    Defaults and criteria were chosen on seeds from 1000 on; the reported seeds took no part.
    """

    num_seeds: int | None = None
    """Number of seeds, at least 2 (8 for the MLP's control that compares two halves of them); the intervals are over
    them. Default: 8 with the MLP, 4 with an image network."""
    num_random: int = 9
    """Number of random pairings; F - 1 of them hold every pair of F classes once."""
    num_train: int | None = None
    """MLP: train images to use, the first of the set; all by default."""

    def __post_init__(self):
        """Check what needs no data."""
        super().__post_init__()
        check_integer("num_random", self.num_random, minimum=2)
        check_integer("merge_seed", self.merge_seed, minimum=0)
        if self.num_train is not None:
            check_integer("num_train", self.num_train, minimum=1)
        self.images.check()
        if self.images.checkpoint_epochs:
            raise ArgumentError("Argument `images.checkpoint_epochs` must be left alone: both ends are measured.")
        self.check_foreign("num_train")

    @property
    def stored(self) -> dict[str, Any]:
        """What config.json holds; where the data lie does not make another run."""
        foreign = ("data_dir", *((*MLP_OPTIONS, "num_train") if self.takes_images else ("images",)))
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in foreign}

    @property
    def sized(self) -> "Config":
        """This configuration with its number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        small: dict[str, Any] = {"num_random": 2}
        if self.takes_images:
            small["images"] = dataclasses.replace(self.images.smaller, num_epochs=1)
        else:
            small |= {"num_steps": 60, "widths": (32, 32)}
        changed = {name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]}
        count = self.num_seeds or (2 if self.smoke else 4 if self.takes_images else 8)
        return dataclasses.replace(self, num_seeds=count, **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of a sized configuration."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))

    @property
    def image_job(self) -> "image_runs.Job":
        """What a sized configuration says about an image network."""
        from _coarse import images as image_runs

        images = dataclasses.replace(self.images, checkpoint_epochs=(0, self.images.num_epochs))
        return image_runs.Job(
            dataset=self.dataset,
            labels="pairs",
            network=self.network,
            num_coarse=0,
            merge_seed=self.merge_seed,
            num_seeds=self.num_seeds or 0,
            seed=self.seed,
            num_tsne_seeds=0,
            tsne_iterations=0,
            smoke=self.smoke,
            images=images,
        )


def number_of_classes(config: Config) -> int:
    """Number of classes of the data set, which must be even."""
    from nctheory import vision

    if config.dataset not in vision.dataset_names():
        known = list(vision.dataset_names())
        raise ArgumentError(f"Argument `dataset` must be one of {known}, but is {config.dataset!r}.")
    data_dir = None if config.data_dir is None else str(config.data_dir)
    count = vision.load(config.dataset, "test", data_dir).num_classes
    if count % 2 or count < 4:
        raise ArgumentError(
            f"Argument `dataset` must have an even number of classes, at least 4, but {config.dataset} has {count}."
        )
    return count


class Plan(NamedTuple):
    """Everything that a run needs, checked before its folder is made.

    Attributes:
        merges: the merges.
        class_names: of the original classes.
        rows: train and test images as rows.
        fine: their classes.
        train_all: trains and scores, from the folder of finished parts; returns scores, and times for the manifest.
    """

    merges: "list[Merge]"
    class_names: tuple[str, ...]
    rows: "tuple[np.ndarray, np.ndarray]"
    fine: "tuple[np.ndarray, np.ndarray]"
    train_all: Callable[[Path], tuple[list[dict[str, Any]], dict[str, Any]]]


def plan_mlp(config: Config) -> Plan:
    """Load the images and configure every run of the MLP."""
    from _merges import mlp
    from _merges.pairings import all_merges
    from _merges.scoring import Labelled

    from nctheory import vision

    count = number_of_classes(config)
    data_dir = None if config.data_dir is None else str(config.data_dir)
    data = vision.load_coarse(config.dataset, "mod", num_coarse=count // 2, data_dir=data_dir)
    num_train, num_test = (500, 200) if config.smoke else (config.num_train or len(data.fine[0]), len(data.fine[1]))
    data = data.head(num_train, num_test)
    if config.batch_size > len(data.fine[0]):
        raise ArgumentError(
            f"Argument `batch_size` must be at most {len(data.fine[0])} images, but is {config.batch_size}."
        )
    merges = all_merges(config.dataset, data.class_names, num_random=config.num_random, seed=config.merge_seed)
    settings = [mlp.train_config(config, data, Labelled(data.fine, merge.label_map)) for merge in merges]
    train_all = partial(mlp.run_all, config, settings, data, merges)
    return Plan(merges, data.class_names, data.inputs, data.fine, train_all)


def plan_images(config: Config) -> Plan:
    """Load the images and configure every run of an image network."""
    import numpy as np
    from _coarse import images as image_runs
    from _coarse import images_data
    from _merges import networks
    from _merges.pairings import all_merges

    half, job = number_of_classes(config) // 2, config.image_job
    data = images_data.load(
        job.dataset,
        "mod",
        num_coarse=half,
        merge_seed=0,
        data_dir=config.data_dir,
        num_train=job.images.num_train,
        num_test=job.images.num_test,
    )
    spec = image_runs.check(job, data)
    merges = all_merges(config.dataset, data.class_names, num_random=config.num_random, seed=config.merge_seed)
    rows = [np.asarray(part.images, np.float32).reshape(part.num_samples, -1) for part in data.ordinary]
    train_all = partial(networks.run_all, job, spec, data, merges)
    return Plan(merges, data.class_names, (rows[0], rows[1]), data.labels[1], train_all)


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from nctheory.figures import coarse_merges as figure

    ledger = judge(history)
    store(folder, ledger, {"coarse_merges": figure.draw(history)})
    heading = f"{history.attrs['title']}: mean over merges, then over seeds with 95 % interval\n{table(history)}"
    return print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    name = f"{config.dataset}-{config.network}" if config.takes_images else config.dataset
    path = config.run_path(EXPERIMENT, name)
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    if config.smoke:
        compile_in_a_hurry()
    elif config.takes_images:
        keep_freed_memory()
    sized = config.sized
    # Built before the folder is: a bad number must not leave a folder behind.
    plan = plan_images(sized) if sized.takes_images else plan_mlp(sized)
    with RunFolder.create(path, sized.stored, experiment=EXPERIMENT, resume=config.resume) as folder:
        import jax
        from _merges.record import INPUT_NAMES, collect, of_inputs
        from _shared.store import cached

        began = time.perf_counter()
        inputs = cached(folder.parts / "inputs.npz", INPUT_NAMES, lambda: of_inputs(plan.rows, plan.fine, plan.merges))
        scores, seconds = plan.train_all(folder.parts)
        attributes = {
            "title": f"{sized.dataset}, pairs of classes merged, network {sized.network}",
            "dataset": sized.dataset,
            "network": sized.network,
            "smoke": int(sized.smoke),
        }
        history = collect(plan.merges, sized.seeds, plan.class_names, scores, inputs, attributes)
        folder.write_history(history)
        folder.write_manifest(
            device=str(jax.devices()[0].device_kind),
            dtype="float32",
            wall_seconds=time.perf_counter() - began,
            **seconds,
        )
        return finish(folder, history)


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
