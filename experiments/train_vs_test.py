"""Does a network that collapses on its train set collapse on fresh images, and what does collapse cost in transfer?

Three parts, each with its controls. "collapse": an MLP trained to collapse on few images, q = NC1 and distances to the
train class means on train and on held-out images, and the cascade over hidden layers. "transfer": an MLP trained on two
super-classes, whose features are probed for the original classes along training. "samples": collapse on train and test
against the number of train images.

    python experiments/train_vs_test.py
    python experiments/train_vs_test.py --parts all
    python experiments/train_vs_test.py --dataset mnist --data-dir FOLDER_OF_TFDS_SETS
    python experiments/train_vs_test.py --dataset cifar10 --network resnet-small --data-dir FOLDER_OF_TFDS_SETS

Statements are those of the abstract of Hui, Belkin and Nakkiran (2022); its text was not at hand, so that definitions,
settings and criteria are this project's. Rates and decays are in the units of a squared error averaged over outputs.
"""

import dataclasses
import time
from typing import TYPE_CHECKING

from _generalisation.options import MlpOptions
from _report import print_verdict, redraw, store

from nctheory._cli import compile_in_a_hurry, keep_freed_memory, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr
    from _generalisation.data import Pool

EXPERIMENT = "train_vs_test"


@dataclasses.dataclass(frozen=True)
class Config(MlpOptions):
    """Compare collapse on train images with collapse on held-out images, and probe what collapse leaves.

    The criteria stood before any run; the defaults were tried on seeds from 1000 on.
    """


def make_plans(options: MlpOptions) -> "tuple[Pool, dict]":
    """Load the images and configure every run, before the run folder is made."""
    from _generalisation.data import load
    from _generalisation.parts import PARTS

    pool = load(options.dataset, options.num_images, options.data_dir)
    return pool, {name: PARTS[name].plan(options, pool) for name in options.chosen}


def measure(options: MlpOptions, pool: "Pool", plans: dict, folder: RunFolder) -> "xr.DataTree":
    """Run every part, or read back what an interrupted run has finished, and write the history."""
    import jax
    import xarray as xr
    from _bench import Bench
    from _generalisation.parts import PARTS, Job

    began = time.perf_counter()
    with Bench(None, options.seeds, folder.parts, progress=not options.quiet, chunk_size=options.chunk_size) as bench:
        job = Job(options, pool, plans, bench, folder.parts)
        for name in plans:
            PARTS[name].prepare(job)
        groups = {name: PARTS[name].measure(job) for name in plans}
    tree = xr.DataTree.from_dict(groups)
    title = f"{options.dataset}, MLP {options.depth} x {options.width}"
    if "samples" in plans:
        # That part has a network of its own.
        sampled = next(iter(plans["samples"].values())).run.model
        widths = f"{len(sampled.widths)} x {sampled.widths[0]}"
        title = f"{options.dataset}, MLP {widths}" if len(plans) == 1 else f"{title} (samples: {widths})"
    tree.attrs.update(title=title, smoke=int(options.smoke))
    folder.write_history(tree)
    folder.write_manifest(
        device=str(jax.devices()[0].device_kind),
        dtype="float32",
        compile_seconds=bench.compile_seconds,
        run_seconds=bench.run_seconds,
        wall_seconds=time.perf_counter() - began,
        sweeps=bench.log,
    )
    return tree


def finish(folder: RunFolder, tree: "xr.DataTree") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from _generalisation.claims import judge_all
    from _generalisation.tables import TABLES

    from nctheory.claims import Ledger
    from nctheory.figures import train_vs_test as figures

    ledger = Ledger(judge_all(tree))
    store(folder, ledger, figures.draw_all(tree))
    shown = [table(tree[name].to_dataset()) for name, table in TABLES.items() if name in tree]
    heading = "\n\n".join([tree.attrs["title"], *shown])
    code = print_verdict(folder, ledger, heading, smoke=bool(tree.attrs["smoke"]))
    # One seed decides nothing, so fails nothing.
    return 0 if next(iter(tree.children.values())).sizes["seed"] == 1 else code


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, config.name)
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish, RunFolder.read_tree)
    if config.smoke:
        compile_in_a_hurry()
    elif config.takes_images:
        keep_freed_memory()
    from nctheory import vision

    if config.dataset not in vision.dataset_names():
        known = list(vision.dataset_names())
        raise ArgumentError(f"Argument `dataset` must be one of {known}, but is {config.dataset!r}.")
    sized = config.sized
    # What changes no number may change when a run goes on.
    kept = [each.name for each in dataclasses.fields(sized) if each.name not in ("data_dir", "quiet")]
    stored = {name: getattr(sized, name) for name in kept}
    # Planned before the folder is made: a bad number must not leave a folder behind.
    if sized.takes_images:
        from _generalisation import images

        job = images.plan(sized)
        with RunFolder.create(path, stored, experiment=EXPERIMENT, resume=config.resume) as folder:
            return finish(folder, images.measure(sized, job, folder))
    pool, plans = make_plans(sized)
    with RunFolder.create(path, stored, experiment=EXPERIMENT, resume=config.resume) as folder:
        return finish(folder, measure(sized, pool, plans, folder))


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
