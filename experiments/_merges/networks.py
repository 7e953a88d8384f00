"""Image networks under every merge, trained one after the other through `nctheory.vision`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _coarse import images as image_runs

from _merges.mlp import join
from _merges.scoring import Labelled, nothing, score

if TYPE_CHECKING:
    from _coarse.images_data import CoarseImages

    from _merges.pairings import Merge

ACCURACIES = ("train_accuracy", "test_accuracy")


def relabelled(data: "CoarseImages", labels: Labelled) -> "CoarseImages":
    """The same images under another merge."""
    coarse = [
        dataclasses.replace(part, labels=each, num_classes=labels.label_map.num_coarse)
        for part, each in zip(data.ordinary, labels.coarse, strict=True)
    ]
    return dataclasses.replace(data, coarse=(coarse[0], coarse[1]), label_map=labels.label_map)


def run_all(
    job: image_runs.Job, spec: Any, data: "CoarseImages", merges: "list[Merge]", parts: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train and score every (merge, seed); what finished is taken up from `parts`.

    Args:
        job: training, data and seeds.
        spec: the network.
        data: the images under any merge.
        merges: the merges.
        parts: folder of finished parts.

    Returns:
        Scores of every (merge, seed), seed fastest, with a leading axis of ends; and times in seconds.
    """
    last, rows, finished = job.images.num_epochs, [], []
    for number, merge in enumerate(merges):
        labels = Labelled(data.labels[1], merge.label_map)
        mine = relabelled(data, labels)
        print(f"merge {number + 1} of {len(merges)}: {', '.join(merge.label_map.coarse_names)}", flush=True)
        for seed in range(job.seed, job.seed + job.num_seeds):
            run = _train(job, spec, mine, labels, seed, number, parts / f"{merge.name}-{seed}")
            if run is None:
                rows.append(_lost(merge.label_map.num_coarse))
                continue
            rows.append(join(run.checkpoints[0], run.checkpoints[last]))
            finished.append(run)
    return rows, {
        "compile_seconds": sum(run.compile_seconds for run in finished),
        "run_seconds": sum(float(run.history.seconds.sum()) for run in finished),
    }


def _train(
    job: image_runs.Job, spec: Any, data: "CoarseImages", labels: Labelled, seed: int, number: int, folder: Path
) -> Any:
    from _coarse import images_scores

    def scores(epoch: int, network: Any) -> dict[str, Any]:
        num_fine, trained = labels.label_map.num_fine, epoch > 0
        found, features = images_scores.geometry(network, data.coarse, labels.fine[0], num_fine=num_fine)
        accuracies = {name: found[name] for name in ACCURACIES}
        if features is None:
            return {**nothing(labels.label_map.num_coarse, trained=trained), **accuracies}
        return {**score(features, labels, seed, trained=trained, merge=number), **accuracies}

    what = f"{labels.label_map.num_coarse} super-classes"
    return image_runs.train_one(spec, job.training(), data.coarse, seed, folder, what, scores)


def _lost(num_pairs: int) -> dict[str, Any]:
    import numpy as np

    accuracies = {name: np.full(2, np.nan) for name in ACCURACIES}
    first, last = (nothing(num_pairs, trained=trained) for trained in (False, True))
    return join(first, last) | accuracies
