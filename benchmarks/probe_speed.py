"""Cluster-and-linear-probe of 50,000 x 512 features beside the same test written with scikit-learn alone.

Run: python -m benchmarks.probe_speed [--quick] [--out FILE.json]

Five labels of two Gaussian sub-clusters each, which overlap so much that clusters and probe take long to settle. Beside
ours: scikit-learn's KMeans within every label, LogisticRegression (L-BFGS) on the clusters with the same number of
iterations, and the best matching on the training split; both with k-means started ten times. Target: ours in at most 5
minutes on 2 cores.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import _timing
from benchmarks._table import Row, within
from nctheory import metrics

NUM_STARTS = 10


@dataclass(frozen=True)
class Config:
    """Sizes of the benchmark."""

    num_train: int = 50_000
    """Training samples."""
    num_test: int = 10_000
    """Test samples."""
    feature_dim: int = 512
    """Feature dimension."""
    num_coarse: int = 5
    """Labels, each of two sub-clusters."""
    separation: float = 3.0
    """Distance of two sub-clusters over the standard deviation along it."""
    max_iterations: int = 1000
    """Iterations of the probe."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


@dataclass(frozen=True)
class Sample:
    """Features with both labellings."""

    features: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def draw(config: Config) -> tuple[Sample, Sample]:
    """Train and test samples; class spectra fall off, as those of trained features do."""
    rng = np.random.default_rng(0)
    dim, num_fine = config.feature_dim, 2 * config.num_coarse
    scale = (1 + np.arange(dim, dtype=np.float32)) ** np.float32(-0.5)
    labels = rng.standard_normal((config.num_coarse, dim), dtype=np.float32) * 10 * scale
    halves = rng.standard_normal((config.num_coarse, dim), dtype=np.float32) * scale
    halves *= config.separation / 2 / np.sqrt((halves**2 / scale**2).sum(axis=1, keepdims=True))
    means = np.concatenate([labels + halves, labels - halves])

    def sample(count: int) -> Sample:
        fine = rng.permutation(np.arange(count) % num_fine)
        features = means[fine] + rng.standard_normal((count, dim), dtype=np.float32) * scale
        return Sample(features.astype(np.float32), fine % config.num_coarse, fine)

    return sample(config.num_train), sample(config.num_test)


def ours(config: Config, train: Sample, test: Sample) -> float:
    """Accuracy of `metrics.cluster_and_probe`."""
    return metrics.cluster_and_probe(
        train.features,
        train.coarse,
        test.features,
        test.coarse,
        train.fine,
        test.fine,
        clusters_per_label=2,
        seed=0,
        max_iterations=config.max_iterations,
    ).accuracy


def plain_sklearn(config: Config, train: Sample, test: Sample) -> float:
    """The same test with scikit-learn."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression

    clusters = np.empty(len(train.fine), int)
    names = np.empty(2 * config.num_coarse, int)
    for label in range(config.num_coarse):
        mine = train.coarse == label
        options: dict[str, Any] = {"n_init": NUM_STARTS, "random_state": 0}
        found = KMeans(2, **options).fit_predict(train.features[mine])
        clusters[mine] = 2 * label + found
        fine = np.unique(train.fine[mine])
        votes = [[np.sum((found == k) & (train.fine[mine] == c)) for c in fine] for k in range(2)]
        rows, columns = linear_sum_assignment(np.array(votes), maximize=True)
        names[2 * label + rows] = fine[columns]
    probe = LogisticRegression(max_iter=config.max_iterations).fit(train.features, clusters)
    return float(np.mean(names[probe.predict(test.features)] == test.fine))


def timed(call: Callable[[], float]) -> dict[str, float]:
    """Accuracy and seconds of one call, compilation included."""
    start = time.perf_counter()
    accuracy = call()
    return {"accuracy": accuracy, "seconds": time.perf_counter() - start}


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    size = record.get("config", {"num_train": 50_000, "feature_dim": 512})
    what = f"cluster-and-probe, {size['num_train']:,} x {size['feature_dim']}, with compilation"
    ours, peer = record["ours"], record["scikit-learn"]
    note = f"accuracy {ours['accuracy']:.3f} and {peer['accuracy']:.3f}"
    on = record.get("device", "cpu")
    options: dict[str, Any] = {"is_rate": False, "note": note, "ours_on": on, "peer_on": "cpu"}
    rows = [Row(what, "s", ours["seconds"], "scikit-learn", peer["seconds"], **options)]
    if size["num_train"] == 50_000:
        rows.append(within(what, "s", ours["seconds"], 300.0, ours_on=on))
    return rows


def main(config: Config) -> None:
    """Measure both, print, store."""
    if config.quick:
        config = replace(config, num_train=2_000, num_test=500, feature_dim=32, max_iterations=100)
    before = _timing.provenance()
    train, test = draw(config)
    peers = {"ours": ours, "scikit-learn": plain_sklearn}
    found: dict[str, Any] = {name: timed(lambda peer=peer: peer(config, train, test)) for name, peer in peers.items()}
    print(before["machine"])
    for name, each in found.items():
        print(f"{name:<14}{each['seconds']:8.1f} s   accuracy {each['accuracy']:.4f}")
    if config.out is not None:
        settings = {"config": asdict(replace(config, out=None)), "device": _timing.device()}
        _timing.store(config.out, before, {**found, **settings})


if __name__ == "__main__":
    main(tyro.cli(Config))
