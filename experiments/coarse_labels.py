"""Does the structure of the original classes survive training on merged labels? The test on real images.

A network is trained on super-classes only. The original classes are then rebuilt from its features by
cluster-and-linear-probe (`nctheory.metrics.cluster_and_probe`) and scored on held-out images, beside every control.

    python experiments/coarse_labels.py --dataset digits --labels mod
    python experiments/coarse_labels.py --dataset cifar10 --network resnet-small --data-dir FOLDER

The MLP is trained over all seeds at once; every other network is an image network, trained seed by seed with the
options under `--images`.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _coarse import images as image_runs
from _coarse.claims import ARMS, controls_table, judge
from _coarse.options import MlpOptions
from _coarse.record import collect, score_names
from _coarse.scoring import score_run
from _report import print_verdict, redraw, store
from _shared.pool import score_all
from _shared.store import cached

from nctheory._cli import RunOptions, check_integer, compile_in_a_hurry, keep_freed_memory, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.vision import CoarseData

EXPERIMENT = "coarse_labels"
# Beyond the streams that training derives from a key.
REPLICA_STREAM = 1000


@dataclasses.dataclass(frozen=True)
class Config(MlpOptions):
    """Train on merged labels, then rebuild the original classes from the features.

    Defaults were chosen on seeds from 1000 on; the reported seeds took no part. Image networks (--network other than
    mlp) are trained by the options under --images; the options of the MLP say so.
    """

    num_seeds: int | None = None
    """Number of seeds; the intervals are over them. MLP: at least 2, default 8. Image networks: default 1, which
    decides no claim."""

    labels: Literal["mod", "consecutive", "random", "semantic"] = "mod"
    """How original classes are merged: class mod C, neighbours in number, at random, or by likeness."""
    num_coarse: int = 5
    """Number of super-classes C."""
    init_scale: float = 0.3
    """MLP: initial weights of the arms "plain" and "decay", as a multiple of He-normal; "standard_init" uses 1."""
    weight_decay: float = 0.01
    """MLP: weight decay lambda of the arm "decay" (objective: loss + lambda/2 |weights|^2); the others have none."""
    num_records: int = 7
    """MLP: log-spaced steps at which everything is measured, the first before training."""
    num_tsne_seeds: int = 3
    """Seeds on which the slow t-SNE variant runs, at both ends of training (image networks: at the last checkpoint)."""
    tsne_iterations: int = 300
    """Gradient steps of t-SNE; 0 leaves it out (image networks only)."""

    def __post_init__(self):
        """Check what needs no data."""
        # One image network may stand alone; all else is checked as for every experiment.
        shared: dict[str, Any] = {}
        shared.update((f.name, getattr(self, f.name)) for f in dataclasses.fields(RunOptions))
        if self.takes_images and self.num_seeds is not None:
            check_integer("num_seeds", self.num_seeds, minimum=1)
            shared["num_seeds"] = max(self.num_seeds, 2)
        RunOptions(**shared)
        fewest = 0 if self.takes_images and self.tsne_iterations == 0 else 3
        bounds = (("num_coarse", 2), ("merge_seed", 0), ("num_tsne_seeds", 0), ("tsne_iterations", fewest))
        for name, minimum in bounds:
            check_integer(name, getattr(self, name), minimum=minimum)
        if not self.weight_decay > 0:
            raise ArgumentError(f"Argument `weight_decay` must be > 0, but is {self.weight_decay}.")
        self.images.check()
        self.check_foreign("num_records")

    @property
    def stored(self) -> dict[str, Any]:
        """What config.json holds of a run with the MLP; where the data lie does not make another run."""
        fields = (f.name for f in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in ("images", "data_dir")}

    @property
    def image_job(self) -> image_runs.Job:
        """What this configuration says about an image network, small with `smoke`."""
        given: dict[str, Any] = {}
        given.update((f.name, getattr(self, f.name)) for f in dataclasses.fields(image_runs.Job))
        given.update(num_seeds=self.num_seeds or 1)
        if self.smoke:
            given.update(images=self.images.smaller, tsne_iterations=0)
        return image_runs.Job(**given)

    @property
    def sized(self) -> "Config":
        """This configuration with its number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        small = {"num_steps": 60, "num_records": 2, "widths": (32, 32), "num_tsne_seeds": 0, "tsne_iterations": 30}
        changed = {name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]}
        count = self.num_seeds or (2 if self.smoke else 8)
        return dataclasses.replace(self, num_seeds=count, **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of a sized configuration."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))


def _mlp(config: Config, init_scale: float):
    from nctheory import simulator

    return simulator.MLPSpec(widths=config.widths, activation="relu", init_scale=init_scale)


def train_config(config: Config, data: "CoarseData", arm: str, *, num_labels: int | None = None):
    """Training run of one arm; with `num_labels` = number of original classes, ordinary training on those."""
    from nctheory import simulator

    labels = data.coarse if num_labels is None else data.fine
    sets = [simulator.Samples(*part) for part in zip(data.inputs, labels, data.fine, strict=True)]
    fixed = simulator.FixedData(*sets, num_labels=num_labels or config.num_coarse, num_fine=len(data.class_names))
    return simulator.TrainConfig(
        data=fixed,
        model=_mlp(config, 1.0 if arm == "standard_init" else config.init_scale),
        loss="cross_entropy",
        optimizer="momentum",
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay if arm == "decay" else 0.0,
        batch_size=config.batch_size,
        schedule="cosine",
        num_steps=config.num_steps,
        num_records=config.num_records,
        keep_params=True,
    )


def evaluate(config: Config, data: "CoarseData", sweeps: dict[str, Any], parts: Path) -> dict[str, dict[str, Any]]:
    """Score every (arm, seed); finished units are kept in `parts`, so that a killed run continues from them."""
    parts.mkdir(exist_ok=True)
    result, features_of = sweeps["coarse"], make_features(config, data)

    def unit(score: Callable[..., dict[str, Any]], arm: str, row: int, column: int) -> dict[str, Any]:
        seed = int(result.seeds[column])
        iterations = {"embedding": config.tsne_iterations if column == 0 else None}
        iterations["scores"] = config.tsne_iterations if column < config.num_tsne_seeds else None

        def compute():
            return score(data, features_of(result.history.params, row, column), arm, seed, iterations)

        return cached(parts / f"{arm}-{seed}.npz", score_names(arm, first=column == 0), compute)

    jobs = [(arm, i, j) for j in range(len(config.seeds)) for i, arm in enumerate((*ARMS, "replica"))]
    done = score_all(jobs, unit, score_run, alone=config.smoke)
    return {f"{arm}/{j}": scores for (arm, _, j), scores in zip(jobs, done, strict=True)}


def make_features(config: Config, data: "CoarseData"):
    """Build the function from (all kept parameters, row, column) to (train, test) features of one run.

    Features are those of the last hidden layer at every record, arrays (record, N, d) in the dtype of training.
    """
    import jax
    import numpy as np

    from nctheory import simulator

    # Arms differ in numbers alone, so one arm's configuration rebuilds the network of every one of them.
    setting = train_config(config, data, "plain")

    def features(parameters, inputs):
        return simulator.trained_model(setting, jax.random.key(0), parameters).features(inputs)

    apply = jax.jit(jax.vmap(features, in_axes=(0, None)))

    def of_run(params, row: int, column: int):
        mine = jax.tree.map(lambda leaf: leaf[row, column], params)
        train, test = (np.asarray(apply(mine, part)) for part in data.inputs)
        return train, test

    return of_run


def train(condition, key):
    """Train as `simulator.train` does; `condition` is (configuration, stream), streams above 0 are independent runs.

    Keeps what is stored, so that nothing else is compiled.
    """
    import jax
    import jax.numpy as jnp

    from nctheory import simulator

    config, stream = condition
    history = simulator.train(config, jax.lax.cond(jnp.asarray(stream) > 0, jax.random.fold_in, _first, key, stream))
    assert history.fresh is not None
    return dataclasses.replace(
        history,
        train=dataclasses.replace(history.train, collapse=None, cluster_outputs=None),
        fresh=dataclasses.replace(history.fresh, collapse=None, cluster_outputs=None, fine=None),
        objective=None,
        gradient_norm=None,
    )


def _first(key, stream):
    del stream
    return key


def plan_sweeps(config: Config, data: "CoarseData") -> dict[str, list[Any]]:
    """The coarse arms with a replica of "plain" on other streams, and the ordinary network."""
    num_images, num_fine = len(data.fine[0]), len(data.class_names)
    if config.num_coarse >= num_fine:
        raise ArgumentError(f"Argument `num_coarse` must be below the {num_fine} classes, but is {config.num_coarse}.")
    if config.batch_size > num_images:
        raise ArgumentError(f"Argument `batch_size` must be at most {num_images} images, but is {config.batch_size}.")
    coarse = [(train_config(config, data, arm), 0) for arm in ARMS]
    return {
        "coarse": [*coarse, (train_config(config, data, "plain"), REPLICA_STREAM)],
        "ordinary": [(train_config(config, data, "plain", num_labels=len(data.class_names)), 0)],
    }


def run_sweeps(config: Config, plans: dict[str, list[Any]], parts: Path) -> dict[str, Any]:
    """Train every plan over the seeds; `parts` keeps the finished chunks."""
    from _bench import asked_size

    from nctheory import simulator

    return {
        name: simulator.sweep(
            train,
            plan,
            config.seeds,
            chunk_size=asked_size(config.chunk_size, parts / f"sweep-{name}"),
            checkpoint=parts / f"sweep-{name}",
            description=name,
        )
        for name, plan in plans.items()
    }


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from nctheory.figures import coarse_labels as coarse_figure

    if history.attrs.get("kind") == image_runs.KIND:
        return image_runs.finish(folder, history)
    ledger = judge(history)
    store(folder, ledger, {"coarse_labels": coarse_figure.draw(history)})
    heading = f"{history.attrs['title']}: test accuracy on the original classes\n{controls_table(history)}"
    return print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, f"{config.dataset}-{config.labels}-{config.network}")
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    from nctheory import vision

    if config.dataset not in vision.dataset_names():
        known = list(vision.dataset_names())
        raise ArgumentError(f"Argument `dataset` must be one of {known}, but is {config.dataset!r}.")
    if config.smoke:
        compile_in_a_hurry()
    elif config.takes_images:
        keep_freed_memory()
    if config.takes_images:
        return image_runs.run(config.image_job, path, data_dir=config.data_dir, resume=config.resume)
    return run_mlp(config, path)


def run_mlp(config: Config, path: Path) -> int:
    """Run the experiment with the MLP."""
    from nctheory import vision

    sized = config.sized
    data = vision.load_coarse(
        config.dataset,
        config.labels,
        num_coarse=config.num_coarse,
        seed=config.merge_seed,
        data_dir=None if config.data_dir is None else str(config.data_dir),
    )
    data = data.head(500, 200) if config.smoke else data
    # Built before the folder is: a bad number must not leave a folder behind.
    plans = plan_sweeps(sized, data)
    with RunFolder.create(path, sized.stored, experiment=EXPERIMENT, resume=config.resume) as folder:
        import jax
        from _bench import log_of

        sweeps = run_sweeps(sized, plans, folder.parts)
        began = time.perf_counter()
        scores = evaluate(sized, data, sweeps, folder.parts / "scores")
        title = f"{sized.dataset}, labels {sized.labels}, network {sized.network}"
        attributes = {"title": title, "smoke": int(sized.smoke)}
        history = collect(data, sweeps, scores, attributes, tsne_iterations=sized.tsne_iterations)
        folder.write_history(history)
        folder.write_manifest(
            device=str(jax.devices()[0].device_kind),
            dtype=str(history["loss"].dtype),
            compile_seconds=sum(result.compile_seconds for result in sweeps.values()),
            run_seconds=sum(result.run_seconds for result in sweeps.values()),
            score_seconds=time.perf_counter() - began,
            sweeps={name: log_of(result) for name, result in sweeps.items()},
        )
        return finish(folder, history)


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
