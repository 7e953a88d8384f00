"""Speed and memory of `collapse_metrics` and `fine_structure` beside plain NumPy with a d x d covariance.

Run: python -m benchmarks.metrics_speed [--quick] [--out FILE.json] [--num-classes 10 100 1000]

Where the PyTorch library `neural_collapse` is installed it takes turns with ours, and so does the roof: reading the
features once, with every core. Ours reads them twice (once for the class means, once for the residuals) and multiplies
twice 2 N d K, 1 GFLOP at K = 10; no d x d matrix is formed.

Targets on 2 cores, 50,000 x 512 float32, after compilation: K = 10 in 0.1 s; K = 1,000 in 2 s with at most 500 MB above
the features. The NumPy version computes nc1, trace ratio, nc2 and cdnv, the full one here nc3 and nc4 as well.
"""

import gc
import multiprocessing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import _library_peer, _timing
from benchmarks._table import Row, within
from nctheory.metrics import collapse_metrics, fine_structure


@dataclass(frozen=True)
class Config:
    """Sizes of the benchmark."""

    num_samples: int = 50_000
    """Samples N."""
    feature_dim: int = 512
    """Feature dimension d."""
    num_classes: tuple[int, ...] = (10, 100, 1000)
    """Class counts K, one table row group each."""
    repeats: int = 5
    """Timed calls after the first."""
    memory: bool = True
    """Whether to measure memory, in processes of its own."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def draw(config: Config, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian classes in float32, built in place so that building sets no memory peak."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(config.num_samples) % num_classes).astype(np.int32)
    means = rng.standard_normal((num_classes, config.feature_dim), dtype=np.float32)
    features = np.empty((config.num_samples, config.feature_dim), np.float32)
    for rows in np.array_split(np.arange(config.num_samples), 50):
        noise = rng.standard_normal((len(rows), config.feature_dim), dtype=np.float32)
        features[rows] = means[labels[rows]] + np.float32(0.5) * noise
    return features, labels, means


def plain_numpy(features: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float]:
    """Textbook metrics through the d x d within-class covariance; the pseudo-inverse has the explicit rank."""
    dim = features.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means = np.add.reduceat(features[order], starts, axis=0) / counts[:, None].astype(np.float32)
    residual = features - means[labels]
    within = residual.T @ residual / np.float32(len(labels))
    g = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(g.T @ g / np.float32(num_classes))
    rank = min(num_classes - 1, dim)
    nc1 = np.sum(np.sum(vectors[:, -rank:] * (within @ vectors[:, -rank:]), axis=0) / values[-rank:]) / num_classes
    norms = np.linalg.norm(g, axis=1)
    gram = g @ g.T
    off = ~np.eye(num_classes, dtype=bool)
    angles = np.abs(gram / np.outer(norms, norms) + 1 / (num_classes - 1))[off].mean()
    var = np.bincount(labels, weights=np.einsum("nd,nd->n", residual, residual), minlength=num_classes) / counts
    distances = np.add.outer(norms**2, norms**2) - 2 * gram
    cdnv = (np.add.outer(var, var)[off] / 2 / distances[off]).mean()
    return [nc1, np.trace(within) / np.mean(norms**2), norms.std() / norms.mean(), angles, cdnv]


def added_memory(config: Config, num_classes: int, who: str) -> int:
    """Peak resident bytes above the state with the features in place; run in a fresh process."""
    if who == "nctheory":
        x, y, w = jax.block_until_ready([jnp.array(a) for a in draw(config, num_classes)])
        call = lambda: collapse_metrics(x, y, num_classes=num_classes, weight=w)  # noqa: E731
        jax.block_until_ready(jnp.linalg.svd(jnp.ones((3, 2))))  # the compiler itself is loaded
    else:
        features, labels, _ = draw(config, num_classes)
        call = lambda: plain_numpy(features, labels, num_classes)  # noqa: E731
    gc.collect()
    _timing.reset_peak()
    before = _timing.resident_bytes()
    jax.block_until_ready(call())
    return max(0, _timing.peak_bytes() - before)


def memory_in_fresh_process(config: Config, num_classes: int, who: str) -> float:
    """Megabytes of `added_memory`, measured in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(added_memory, (config, num_classes, who)) / 1e6


def measure(config: Config, num_classes: int) -> dict[str, Any]:
    """Seconds, peak memory and agreement at one number of classes."""
    k = num_classes
    features, labels, weight = draw(config, k)
    x, y, w = jnp.asarray(features), jnp.asarray(labels), jnp.asarray(weight)
    calls = {
        "collapse_metrics": lambda: collapse_metrics(x, y, num_classes=k),
        "collapse_metrics with classifier": lambda: collapse_metrics(x, y, num_classes=k, weight=w),
        "fine_structure": lambda: fine_structure(x, y % (k // 2), y, num_classes=k // 2, num_fine=k),
        "plain NumPy": lambda: plain_numpy(features, labels, k),
    }
    library, note = _library_peer.prepare(features, labels, weight, k)
    if library is not None:
        calls["neural_collapse (PyTorch)"] = library
    # In turns with ours: what memory gives changes from hour to hour.
    reading = _timing.reading_calls(features)
    timings = _timing.time_side_by_side({**calls, **reading}, repeats=config.repeats)
    ours, theirs = collapse_metrics(x, y, num_classes=k), plain_numpy(features, labels, k)
    shared = (ours.nc1, ours.within_between_ratio, ours.nc2_equinorm, ours.nc2_equiangular, ours.cdnv)
    return {
        "num_classes": k,
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "megabytes": {
            name: memory_in_fresh_process(config, k, who)
            for name, who in (("collapse_metrics with classifier", "nctheory"), ("plain NumPy", "numpy"))
            if config.memory
        },
        "read_once_s": min(timings[name].best for name in reading),
        "library": note,
        "largest_relative_gap": max(abs(float(a) / float(b) - 1) for a, b in zip(shared, theirs, strict=True)),
    }


def show(row: dict[str, Any]) -> None:
    """Print the rows of one number of classes."""
    for name, t in row["seconds"].items():
        memory = f"{row['megabytes'][name]:7.0f}" if name in row["megabytes"] else f"{'':>7}"
        print(
            f"{row['num_classes']:>6} {name:<36} {t['first']:>10.3f} {t['best']:>8.3f} {t['median']:>8.3f} {memory}",
            flush=True,
        )
    k = row["num_classes"]
    print(f"{k:>6} largest relative difference between ours and NumPy: {row['largest_relative_gap']:.1e}")
    print(f"{k:>6} features read once in {row['read_once_s']:.4f} s; neural_collapse: {row['library']}", flush=True)


# Limits in seconds and megabytes on 2 cores by number of classes.
_SECONDS, _MEGABYTES, _READS = {10: 0.1, 1000: 2.0}, {1000: 500.0}, {10: 0.2}
_PASSES = "ours needs two passes"


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    rows = []
    is_full = (record["num_samples"], record["feature_dim"]) == (50_000, 512)
    on = record.get("device", "cpu")
    ours: dict[str, Any] = {"is_rate": False, "ours_on": on}
    for each in record["rows"]:
        k, best = each["num_classes"], {name: timing["best"] for name, timing in each["seconds"].items()}
        what = f"collapse_metrics, {record['num_samples']:,} x {record['feature_dim']}, K {k:,}"
        roof = each.get("read_once_s")
        plain, whole = best["collapse_metrics"], best["collapse_metrics with classifier"]
        if is_full and k in _SECONDS:
            rows.append(within(what, "s", plain, _SECONDS[k], roof=roof, ours_on=on))
        options = {**ours, "required": _READS.get(k), "roof": roof, "peer_on": on, "note": _PASSES}
        rows.append(Row(what, "s", plain, "features read once", roof, **options))
        options = {**ours, "roof": roof, "peer_on": "cpu"}
        rows.append(Row(what, "s", plain, "NumPy, d x d covariance", best["plain NumPy"], **options))
        library, note = best.get("neural_collapse (PyTorch)"), each.get("library", "not installed")
        name = f"{what}, with classifier"
        rows.append(Row(name, "s", whole, "neural_collapse", library, note=note, **options))
        memory = each["megabytes"].get("collapse_metrics with classifier")
        if is_full and k in _MEGABYTES:
            rows.append(within(f"{name}, memory above the features", "MB", memory, _MEGABYTES[k], ours_on=on))
    return rows


def main(config: Config) -> None:
    """Print the table, store the result."""
    if config.quick:
        config = replace(config, num_samples=5_000, feature_dim=128, num_classes=(10,), repeats=2, memory=False)
    before = _timing.provenance()
    print(before["machine"])
    print(f"{config.num_samples} x {config.feature_dim} float32; seconds; memory: peak above the features")
    print(f"{'K':>6} {'what':<36} {'first call':>10} {'best':>8} {'median':>8} {'MB':>7}")
    rows = []
    for k in config.num_classes:
        rows.append(measure(config, k))
        show(rows[-1])
    if config.out is not None:
        size = {"num_samples": config.num_samples, "feature_dim": config.feature_dim, "device": _timing.device()}
        bandwidth = _timing.memory_bandwidth(1 << 24 if config.quick else 1 << 29)
        _timing.store(config.out, before, {**size, "rows": rows, "memory_bytes_per_s": bandwidth})


if __name__ == "__main__":
    main(tyro.cli(Config))
