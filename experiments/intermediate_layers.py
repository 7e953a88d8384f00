"""Does neural collapse happen in the intermediate layers, and what does each layer do?

An MLP of five hidden layers is trained on digits and measured in every layer: before training, at train accuracies of
0.90 to 0.99, at log-spaced epochs and at the end. Beside it: the same without weight decay, easier data (one Gaussian a
class), harder data (wrong train labels), and a deep linear network whose layers are known in closed form.

    python experiments/intermediate_layers.py
    python experiments/intermediate_layers.py --conditions all --activation tanh
    python experiments/intermediate_layers.py --dataset mnist cifar10 --network vgg11 --data-dir FOLDER_OF_TFDS_SETS

Parker, Onal, Stengel and Intrater (2023) put the findings into words; the criteria by which they are judged here are
this project's, fixed before the run. The learning rate and the units are those of their public code, whose squared
error is averaged over outputs too (with K classes it is 2/K times `nctheory.objectives.mse`; the experiment converts).
That code has no weight decay: the 5e-4 is ours.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _layers.options import ImageOptions, check_foreign, check_names, check_run_options
from _report import print_verdict, redraw, store

from nctheory._cli import RunOptions, check_integer, compile_in_a_hurry, keep_freed_memory, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr
    from _bench import Bench

EXPERIMENT = "intermediate_layers"
_IMAGE_DEFAULTS = ImageOptions()


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Train networks and measure the collapse of every layer.

    Defaults were chosen on seeds from 1000 on; the reported seeds took no part.
    """

    num_seeds: int | None = None
    """Number of seeds; the claims are about them. MLP on digits: at least 2, default 8. Image networks: default 1,
    which decides no claim."""
    dataset: tuple[str, ...] = ("digits",)
    """Image sets, names of nctheory.vision.dataset_names(); several, easiest first, compare their effective depth."""
    data_dir: Path | None = None
    """Folder of prepared sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    network: str | None = None
    """Image network, a name of nctheory.vision.networks.network_names(); by default the MLP of this experiment, on
    digits, with all its conditions."""
    conditions: tuple[Literal["gmm_easy", "gmm_multi8", "digits_noise20", "digits_noise50", "all"], ...] = (
        "gmm_easy",
        "digits_noise20",
    )
    """MLP: what to run beside digits and its control without weight decay: mixtures with one or eight Gaussians a
    class, digits with 20 or 50 percent of the train labels redrawn (twice the epochs), or all."""
    activation: Literal["relu", "leaky_relu", "tanh", "sigmoid", "silu"] = "relu"
    """MLP: activation."""
    loss: Literal["mse", "cross_entropy"] = "mse"
    """Training loss, on one-hot labels."""
    depth: int = 5
    """MLP: number of hidden layers."""
    width: int = 256
    """MLP: their width."""
    learning_rate: float = 0.1
    """Largest step size of momentum 0.9, for a squared error averaged over samples and outputs. Cross-entropy wants a
    fifth of it, 0.02: at 0.1 it diverges."""
    weight_decay: float = 5e-4
    """L2 on all parameters: this multiple of them is added to that loss's gradient."""
    num_epochs: int = 150
    """MLP: passes over the train samples."""
    batch_size: int = 16
    """MLP: samples an update."""
    num_records: int = 14
    """MLP: log-spaced epochs at which every layer is measured, the first before training."""
    spectra: Literal["none", "ends", "all"] = "ends"
    """When effective rank and variability collapse index of every layer are measured: "ends", train split at the first
    and the last measured epoch; "all", both splits at all of them and at the milestones, 0.19 s a
    network for the MLP on 2 CPU cores, from which a fifth more time than "ends" is expected with its defaults."""
    images: ImageOptions = _IMAGE_DEFAULTS
    """Training of image networks."""
    quiet: bool = False
    """Show no progress bars."""

    def __post_init__(self):
        """Check what needs no data."""
        check_run_options(self, alone=self.network is not None)
        for name, minimum in (("depth", 2), ("width", 1), ("num_epochs", 1), ("batch_size", 1), ("num_records", 2)):
            check_integer(name, getattr(self, name), minimum=minimum)
        for name, lowest in (("learning_rate", "> 0"), ("weight_decay", "> 0")):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"Argument `{name}` must be {lowest} and finite, but is {getattr(self, name)}.")
        if self.conditions:
            check_names("conditions", self.conditions)
        if not self.dataset or len(set(self.dataset)) < len(self.dataset):
            raise ArgumentError(f"Argument `dataset` must list different image sets, but is {self.dataset}.")
        if self.network is None and self.dataset != ("digits",):
            raise ArgumentError(
                f"Argument `network` must name an image network for other sets than digits, but is None for "
                f"{list(self.dataset)}."
            )
        self.images.check()
        self._check_foreign()

    def _check_foreign(self) -> None:
        """Refuse options of the other kind of network."""
        mine = ("conditions", "activation", "depth", "width", "num_epochs", "batch_size", "num_records")
        if self.network is None:
            check_foreign(self, ("images",), network="this network", owner="image networks")
        else:
            owner = "the MLP; image networks have theirs under --images"
            check_foreign(self, mine, network="this network", owner=owner)
            check_foreign(self, ("chunk_size",), network="this network", owner="the MLP")

    @property
    def name(self) -> str:
        """Of the run folder."""
        default = {each.name: each.default for each in dataclasses.fields(self)}
        parts = [*self.dataset, *([] if self.network is None else [self.network])]
        # What changes the question has a folder of its own; other settings share one, in which a second run is refused.
        parts += [str(getattr(self, name)) for name in ("activation", "loss") if getattr(self, name) != default[name]]
        if self.conditions != default["conditions"]:
            parts += sorted(self.conditions)
        return "-".join(parts)

    @property
    def sized(self) -> "Config":
        """This configuration with its number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {each.name: each.default for each in dataclasses.fields(self)}
        small = {"num_epochs": 3, "num_records": 3, "width": 16, "batch_size": 64}
        if self.network is not None:
            small = {}
        changed: dict[str, Any] = {
            name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]
        }
        if self.network is not None:
            changed["images"] = self.images.smaller if self.smoke else self.images
        usual = 1 if self.network is not None else 2 if self.smoke else 8
        return dataclasses.replace(self, num_seeds=self.num_seeds or usual, **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of a sized configuration."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked before its folder is made.

    Attributes:
        groups: conditions that share a program, with their training configurations, by the name of their sweep.
        chain: numbers of the deep linear network.
    """

    groups: dict[str, list[tuple[Any, Any]]]
    chain: Any


def make_plan(config: Config) -> Plan:
    """Load the data and configure every run."""
    from _layers import chain, conditions
    from _layers.recipes import Recipe

    recipe = Recipe(
        depth=config.depth,
        width=config.width,
        activation=config.activation,
        loss=config.loss,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
    )
    groups: dict[str, list[tuple[Any, Any]]] = {}
    for each in conditions.conditions(("digits", "digits_no_decay", *config.conditions)):
        # The first seed names the mixtures too, so that seeds from 1000 on choose nothing on the reported ones.
        source = conditions.source(each, config.seed, num_samples=300 if config.smoke else None)
        setting = conditions.train_config(each, recipe, source, config.num_records, spectra=config.spectra)
        # One draw of data and one number of epochs a program; noise and decay are numbers in it.
        groups.setdefault(f"{each.dataset}-{each.stretch}", []).append((each, setting))
    return Plan(groups, chain.ChainSetting(num_steps=200 if config.smoke else chain.ChainSetting.num_steps))


def run_sweeps(config: Config, plan: Plan, bench: "Bench") -> tuple[dict[str, Any], dict[str, Any]]:
    """Train every condition over the seeds; one program compiles while another runs.

    Returns:
        What was measured of every condition, by name in the order of the conditions, and of the deep linear networks.
    """
    import numpy as np
    from _layers import chain, conditions, record

    from nctheory import simulator

    for name, group in plan.groups.items():
        bench.prepare(name, [setting for _, setting in group], train=simulator.train_layers)
    bench.prepare("linear", chain.train_config(plan.chain), train=chain.train)
    found = {}
    for name, group in plan.groups.items():
        result = bench.sweep(name)
        for row, (condition, _) in enumerate(group):
            found[condition.name] = record.of_sweep(result.history, row, result.finite)
            if lost := int((~result.finite[row]).sum()):
                print(
                    f"{condition.name}: the loss of {lost} of {len(result.seeds)} seeds became infinite or NaN at "
                    f"--learning-rate {config.learning_rate:g}; a smaller one may keep them.",
                    flush=True,
                )
    linear = bench.sweep("linear").history
    chained = chain.measure(plan.chain, [kernel[0] for kernel in linear.kernels])
    chained["objective"] = np.float64(linear.objective[0])
    names = [each.name for each in conditions.CONDITIONS if each.name in found]
    return {name: found[name] for name in names}, chained


def measure(config: Config, plan: Plan, folder: RunFolder) -> "xr.Dataset":
    """Train and measure the MLPs; write record and manifest."""
    import time

    import jax
    from _bench import Bench
    from _layers import record

    from nctheory import simulator

    began = time.perf_counter()
    with Bench(plan, config.seeds, folder.parts, progress=not config.quiet, chunk_size=config.chunk_size) as bench:
        found, chained = run_sweeps(config, plan, bench)
    attributes = {
        "kind": "mlp",
        "title": f"MLP {config.width} x {config.depth}, {config.activation}, {config.loss}",
        "smoke": int(config.smoke),
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "chain_start": plan.chain.start,
        "spectra": config.spectra,
        "inputs": "pixels less their mean over standard deviation, both of all 1,797 digits, held-out ones included",
    }
    history = record.collect(
        found,
        seeds=config.seeds,
        milestones=simulator.MILESTONES,
        layers=["input", *(f"hidden{layer}" for layer in range(1, config.depth + 1))],
        attributes=attributes,
        chain=chained,
    )
    folder.write_history(history)
    folder.write_manifest(
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        dtype="float32",
        compile_seconds=bench.compile_seconds,
        run_seconds=bench.run_seconds,
        wall_seconds=time.perf_counter() - began,
        sweeps=bench.log,
    )
    return history


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code. One seed decides nothing, so fails nothing."""
    from _layers.claims import judge
    from _layers.tables import reading, shortfalls, table

    from nctheory.figures import intermediate_layers as figure

    ledger = judge(history)
    store(folder, ledger, {"intermediate_layers": figure.draw(history)})
    heading = f"{history.attrs['title']}: mean and range over seeds\n{table(history)}\n\n{reading(history)}"
    if missed := shortfalls(history):
        heading = f"{heading}\n\n{missed}"
    code = print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))
    return 0 if history.sizes["seed"] == 1 else code


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, config.name)
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    if config.smoke:
        compile_in_a_hurry()
    elif config.network is not None:
        keep_freed_memory()
    sized = config.sized
    if sized.network is not None:
        from _layers import image_runs

        job = image_runs.plan(sized)
        with RunFolder.create(path, sized, experiment=EXPERIMENT, resume=config.resume) as folder:
            return finish(folder, image_runs.measure(sized, job, folder))
    # Built before the folder is: a bad number must not leave a folder behind.
    plan = make_plan(sized)
    with RunFolder.create(path, sized, experiment=EXPERIMENT, resume=config.resume) as folder:
        return finish(folder, measure(sized, plan, folder))


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
