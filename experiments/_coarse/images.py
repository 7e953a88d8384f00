"""Image networks on merged labels: train, score every checkpoint, record, judge."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import print_verdict, store
from _shared.machine import hardware

from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

    from _coarse.images_data import CoarseImages
    from _coarse.images_options import ImageOptions
    from nctheory.vision import ImageTrainConfig

KIND = "images"


@dataclasses.dataclass(frozen=True)
class Job:
    """What the experiment's configuration says about image networks; as stored in config.json.

    Attributes:
        dataset: name of the image set.
        labels: scheme of the merge.
        network: name of the network.
        num_coarse: number of super-classes.
        merge_seed: names a random merge.
        num_seeds: number of seeds.
        seed: the first of them.
        num_tsne_seeds: seeds with the t-SNE variant.
        tsne_iterations: of t-SNE; 0 leaves it out.
        smoke: whether this is the smallest version.
        images: training.
    """

    dataset: str
    labels: str
    network: str
    num_coarse: int
    merge_seed: int
    num_seeds: int
    seed: int
    num_tsne_seeds: int
    tsne_iterations: int
    smoke: bool
    images: "ImageOptions"

    def training(self, *, last_only: bool = False) -> "ImageTrainConfig":
        """How every network is trained; with `last_only`, checkpoints are kept of the last epoch alone."""
        from nctheory import vision

        options = self.images
        return vision.ImageTrainConfig(
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            nesterov=True,
            batch_size=options.batch_size,
            num_epochs=options.num_epochs,
            schedule=options.schedule,
            augment=options.augmentation(self.dataset),
            compute_dtype=options.compute_dtype,
            checkpoint_epochs=(options.num_epochs,) if last_only else options.epochs,
        )


def check(job: Job, data: "CoarseImages") -> Any:
    """Check what would fail later, and return the network's specification.

    A bad number must not leave a folder behind.
    """
    from nctheory.vision import networks
    from nctheory.vision.train import check_batch_size

    config = job.training()
    count = data.coarse[0].num_samples
    if config.steps_per_epoch(count) == 0:
        raise ArgumentError(
            f"Argument `images.batch_size` must be at most the {count} train images, but is {config.batch_size}."
        )
    check_batch_size(config.batch_size, name="images.batch_size")
    return networks.network(job.network)


def train(job: Job, spec: Any, data: "CoarseImages", parts: Path) -> dict[str, list[Any]]:
    """Train every seed on super-classes and on original classes; what finished is taken up from `parts`.

    A run whose loss is not finite is None: its seed counts as lost.
    """
    runs: dict[str, list[Any]] = {"coarse": [], "ordinary": []}
    for index, seed in enumerate(range(job.seed, job.seed + job.num_seeds)):
        iterations = job.tsne_iterations if index < job.num_tsne_seeds else 0
        runs["coarse"].append(_train_coarse(job, spec, data, seed, iterations, parts / f"coarse-{seed}"))
        runs["ordinary"].append(_train_ordinary(job, spec, data, seed, parts / f"ordinary-{seed}"))
    return runs


def _train_coarse(job: Job, spec: Any, data: "CoarseImages", seed: int, iterations: int, folder: Path) -> Any:
    from _coarse import images_scores

    def scores(epoch: int, network: Any) -> dict[str, Any]:
        last = epoch == job.images.num_epochs
        return images_scores.at_checkpoint(network, data, seed=seed, last=last, tsne_iterations=iterations)

    return train_one(
        spec, job.training(), data.coarse, seed, folder, f"{data.label_map.num_coarse} super-classes", scores
    )


def _train_ordinary(job: Job, spec: Any, data: "CoarseImages", seed: int, folder: Path) -> Any:
    from _coarse import images_scores

    num_fine = len(data.class_names)

    def scores(epoch: int, network: Any) -> dict[str, Any]:
        del epoch
        return images_scores.geometry(network, data.ordinary, data.labels[1][0], num_fine=num_fine)[0]

    config = job.training(last_only=True)
    return train_one(spec, config, data.ordinary, seed, folder, f"all {num_fine} classes", scores)


def train_one(spec: Any, config: Any, images: Any, seed: int, folder: Path, what: str, scores: Any) -> Any:
    """Train one network, or take up what `folder` holds of it; None if its loss is not finite."""
    from nctheory import vision

    print(f"seed {seed}: training on {what}", flush=True)
    run = partial(vision.train_network, spec, config, *images, seed=seed, folder=folder)
    try:
        # Always from what is there: a folder of another configuration has been refused before.
        return run(resume=True, on_checkpoint=scores)
    except vision.NonFiniteLossError as error:
        print(f"seed {seed} is lost: {error}", flush=True)
        return None


def measure(job: Job, spec: Any, data: "CoarseImages", folder: RunFolder) -> "xr.Dataset":
    """Train, score, and write record and manifest."""
    import jax
    from _shared.store import cached

    from _coarse import images_record, images_scores

    began = time.perf_counter()
    names = ("raw_clp", "raw_chance", "raw_fine_probe")
    raw = cached(folder.parts / "pixels.npz", names, lambda: images_scores.of_pixels(data))
    runs = train(job, spec, data, folder.parts)
    seeds = range(job.seed, job.seed + job.num_seeds)
    facts = attributes(job, data)
    history = images_record.collect(data, seeds, job.images.epochs, runs, raw, facts)
    folder.write_history(history)
    finished = [run for each in runs.values() for run in each if run is not None]
    folder.write_manifest(
        device=str(jax.devices()[0].device_kind),
        dtype=job.training().dtype_on(jax.default_backend()),
        compile_seconds=sum(run.compile_seconds for run in finished),
        run_seconds=float(history["curve_seconds"].sum()),
        score_seconds=float(history["score_seconds"].sum()),
        wall_seconds=time.perf_counter() - began,
        images_per_second=[float(run.history.images_per_second.mean()) for run in finished],
    )
    return history


def attributes(job: Job, data: "CoarseImages") -> dict[str, Any]:
    """What the record says about itself."""
    return {
        "kind": KIND,
        "title": f"{job.dataset} ({data.copy}), labels {job.labels}, network {job.network}",
        "dataset": job.dataset,
        "copy": data.copy,
        "labels": job.labels,
        "network": job.network,
        "num_coarse": job.num_coarse,
        "num_train": data.coarse[0].num_samples,
        "num_test": data.coarse[1].num_samples,
        "augment": job.images.augmentation(job.dataset),
        "learning_rate": job.images.learning_rate,
        "weight_decay": job.images.weight_decay,
        "batch_size": job.images.batch_size,
        "schedule": job.images.schedule,
        "hardware": hardware(),
        "smoke": int(job.smoke),
    }


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code.

    One seed decides nothing, so that it fails nothing either.
    """
    from _coarse.images_claims import judge, table
    from nctheory.figures import coarse_images as figure

    ledger = judge(history)
    store(folder, ledger, {"coarse_images": figure.draw(history)})
    heading = f"Test accuracy on the original classes, where nothing else is said:\n{table(history)}"
    code = print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))
    return 0 if history.sizes["seed"] == 1 else code


def run(job: Job, path: Path, *, data_dir: Path | None, resume: bool) -> int:
    """Run or resume the experiment with an image network."""
    from _coarse import images_data

    data = images_data.load(
        job.dataset,
        job.labels,
        num_coarse=job.num_coarse,
        merge_seed=job.merge_seed,
        data_dir=data_dir,
        num_train=job.images.num_train,
        num_test=job.images.num_test,
    )
    spec = check(job, data)
    with RunFolder.create(path, job, experiment="coarse_labels", resume=resume) as folder:
        return finish(folder, measure(job, spec, data, folder))
