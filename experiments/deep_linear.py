"""Does an ordinary network with a deep linear head reach the minimum that theory predicts for free features?

An MLP is followed by M = 1, 3, 6 or 9 linear layers without bias. It is trained on all images at once on

    |f - y|_F^2 / (2N) + (lambda_W/2) sum_m |W_m|^2 + (lambda_H/2) sum_i |h_i|^2,

h_i the features that enter the head; nothing else is decayed. Whatever the backbone, this cannot fall below the minimum
over free features, `theory.mse_ufm_minimizer`, which is known exactly for equal and unequal class sizes.

    python experiments/deep_linear.py
    python experiments/deep_linear.py --dataset mnist --data-dir FOLDER_OF_TFDS_SETS

The scripts published with Dang et al. (2023) write the loss as a mean over images and outputs, so their decays are not
the lambdas of the theory and of `--weight-decay`, `--feature-decay`. With K classes: their imbalanced script (that mean
halved) has lambda = K times its decay, 1e-4 for its 1e-5 on ten classes; their balanced script (the mean not halved)
has lambda_W = K/2 times its weight decay, and since it sums the feature penalty over minibatches of B of N images, an
epoch has lambda_H = (K/2)(B/N) times its feature decay. Here the batch is the full set, so no such factor appears.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import print_verdict, redraw, store

from nctheory._cli import RunOptions, check_integer, compile_in_a_hurry, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr
    from _deep_linear.prediction import Prediction

EXPERIMENT = "deep_linear"
# The entries of nctheory.simulator.models.ACTIVATIONS that a backbone can use; listed so that --help stays fast.
ACTIVATIONS = ("gelu", "relu", "tanh")


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Train linear heads of several depths on an MLP and compare with the minimum over free features.

    Defaults were chosen on seeds from 1000 on; the reported seeds took no part.
    """

    dataset: str = "digits"
    """Image set, a name of nctheory.vision.dataset_names()."""
    data_dir: Path | None = None
    """Folder of prepared sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    depths: tuple[int, ...] = (1, 3, 6, 9)
    """Numbers of linear layers M, one sweep each."""
    smallest_class: int = 10
    """Images of the smallest class; class sizes rise to five times that, and the balanced runs have the same total."""
    weight_decay: float = 1e-3
    """lambda_W of every linear layer (penalty lambda_W/2 |W|^2 beside |f - y|^2/(2N))."""
    feature_decay: float = 1e-3
    """lambda_H of the features that enter the head, summed over images."""
    backbone: tuple[int, ...] = (128, 128, 32)
    """Widths of the MLP; the last is the number of features."""
    activation: str = "tanh"
    """Activation of the MLP: "tanh", "relu" or "gelu"."""
    linear_width: int = 32
    """Width between linear layers, at least the number of classes."""
    learning_rate: float = 5e-3
    """First step size of Adam; it falls to 0 along a half cosine."""
    num_steps: int = 3000
    """Full-batch updates."""
    num_records: int = 20
    """Log-spaced steps at which everything is measured, the first before training."""

    def __post_init__(self):
        """Check what needs no data."""
        super().__post_init__()
        for name, minimum in (("smallest_class", 1), ("linear_width", 2), ("num_steps", 1), ("num_records", 2)):
            check_integer(name, getattr(self, name), minimum=minimum)
        for name in ("weight_decay", "feature_decay", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"Argument `{name}` must be > 0 and finite, but is {getattr(self, name)}.")
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(f"Argument `activation` must be one of {ACTIVATIONS}, but is {self.activation!r}.")
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise ArgumentError(f"Argument `depths` must list different numbers of layers, but is {self.depths}.")
        for depth in self.depths:
            check_integer("depths", depth, minimum=1)
        if not self.backbone:
            raise ArgumentError("Argument `backbone` must list at least one width, but is ().")
        for width in self.backbone:
            check_integer("backbone", width, minimum=1)

    @property
    def sized(self) -> "Config":
        """This configuration with its number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        small = {"num_steps": 100, "num_records": 3, "backbone": (32, 16), "linear_width": 16, "depths": (1, 3)}
        changed = {name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]}
        count = self.num_seeds or (2 if self.smoke else 8)
        return dataclasses.replace(self, num_seeds=count, **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of a sized configuration."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked before its folder is made; conditions in the order of the record.

    Attributes:
        sizes: class sizes of each condition.
        predictions: of each depth, one a condition.
        conditions: training configurations of each depth, one a condition.
    """

    sizes: list[tuple[int, ...]]
    predictions: dict[int, list["Prediction"]]
    conditions: dict[int, list[Any]]


def make_plan(config: Config) -> Plan:
    """Load the images, predict every minimum, and configure every run."""
    from _deep_linear import data, training
    from _deep_linear.prediction import predict

    from nctheory import simulator, vision

    num_classes = vision.load(config.dataset, "test", config.data_dir).num_classes
    if min(config.linear_width, config.backbone[-1]) < num_classes:
        raise ArgumentError(
            f"Argument `linear_width` must be at least {num_classes}, the number of classes, as must the last width of "
            f"`backbone`, but they are {config.linear_width} and {config.backbone[-1]}."
        )
    unequal = data.step_sizes(config.smallest_class, num_classes)
    sizes = [data.equal_sizes(sum(unequal), num_classes), unequal]
    sources = data.load(config.dataset, sizes, config.data_dir)
    predictions = {
        depth: [predict(each, depth, config.weight_decay, config.feature_decay) for each in sizes]
        for depth in config.depths
    }

    def condition(depth: int, source: simulator.FixedData, prediction: "Prediction"):
        model = simulator.DeepLinearSpec(
            widths=(config.linear_width,) * (depth - 1),
            backbone=config.backbone,
            activation=config.activation,
            init="orthogonal",
            bias=False,
            linear_decay=config.weight_decay,
            feature_decay=config.feature_decay,
        )
        return training.HeadConfig(
            source, model, prediction.targets, config.learning_rate, config.num_steps, config.num_records
        )

    conditions = {
        depth: [condition(depth, *each) for each in zip(sources, predictions[depth], strict=True)]
        for depth in config.depths
    }
    return Plan(sizes, predictions, conditions)


def run_sweeps(config: Config, plan: Plan, parts: Path) -> dict[int, Any]:
    """Train every depth over the seeds; `parts` keeps the finished chunks. One depth compiles while another runs."""
    from _bench import asked_size
    from _deep_linear import training

    from nctheory import simulator

    def prepared(depth: int):
        checkpoint = parts / f"depth-{depth}"
        return simulator.prepare(
            training.train,
            plan.conditions[depth],
            config.seeds,
            chunk_size=asked_size(config.chunk_size, checkpoint),
            checkpoint=checkpoint,
        )

    with ThreadPoolExecutor(2) as pool:
        waiting = {depth: pool.submit(prepared, depth) for depth in config.depths}
        return {depth: ready.result().run(description=f"depth {depth}") for depth, ready in waiting.items()}


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from _deep_linear.claims import judge, summary

    from nctheory.figures import deep_linear as figure

    ledger = judge(history)
    store(folder, ledger, {"deep_linear": figure.draw(history)})
    heading = f"{history.attrs['title']}: last step, range over seeds\n{summary(history)}"
    return print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, config.dataset)
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    if config.smoke:
        compile_in_a_hurry()
    from nctheory import vision

    if config.dataset not in vision.dataset_names():
        known = list(vision.dataset_names())
        raise ArgumentError(f"Argument `dataset` must be one of {known}, but is {config.dataset!r}.")
    sized = config.sized
    # Built before the folder is: a bad number must not leave a folder behind.
    plan = make_plan(sized)
    with RunFolder.create(path, sized, experiment=EXPERIMENT, resume=config.resume) as folder:
        import jax
        from _bench import log_of
        from _deep_linear.record import collect

        sweeps = run_sweeps(sized, plan, folder.parts)
        title = f"{sized.dataset}, {sum(plan.sizes[0])} images, {sized.activation} MLP"
        attributes = {"title": title, "smoke": int(sized.smoke)}
        steps = next(iter(plan.conditions.values()))[0].record_steps
        history = collect(sweeps, plan.predictions, plan.sizes, steps, attributes)
        folder.write_history(history)
        results = list(sweeps.values())
        folder.write_manifest(
            device=str(jax.devices()[0].device_kind),
            dtype=str(results[0].history.objective.dtype),
            compile_seconds=sum(result.compile_seconds for result in results),
            run_seconds=sum(result.run_seconds for result in results),
            sweeps={f"depth-{depth}": log_of(result) for depth, result in sweeps.items()},
        )
        return finish(folder, history)


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
