"""What measuring every layer costs beside the training that it observes.

Run: python -m benchmarks.layers_speed [--quick] [--out FILE.json]

`simulator.train_layers` of an MLP on the scikit-learn digits (1,437 train and 360 held-out images of 64 pixels, which
each seed splits in its own way), measured in the inputs and in every hidden layer on both splits, at log-spaced epochs
and at four accuracy milestones. Beside it the same training alone: the same function without milestones, of which only
the running accuracy of the epochs is kept, so that the compiler drops every measurement; and the same measurements
alone, as often, of networks that are not trained. All three are sweeps, compiled before and run in turns; the best of
the repeats counts. The cost of measuring is that of the measurements alone: the difference of the two trainings, which
is stored too, is smaller than their scatter.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks import _timing
from benchmarks._table import Row
from nctheory import simulator, vision
from nctheory.simulator._layer_measures import measure_layers, measure_spectra
from nctheory.simulator._updates import split
from nctheory.simulator.train import initial_model

NUM_CLASSES = 10
# Measuring may cost a fifth of the training.
REQUIRED = 5.0


@dataclass(frozen=True)
class Config:
    """Sizes of the benchmark."""

    depth: int = 5
    """Hidden layers."""
    width: int = 256
    """Units of each."""
    num_seeds: int = 8
    """Seeds, trained together."""
    num_epochs: int = 150
    """Passes over the train images."""
    num_records: int = 14
    """Log-spaced epochs at which every layer is measured."""
    batch_size: int = 16
    """Images an update."""
    num_train: int = 1437
    """Train images; the rest of the digits is held out."""
    repeats: int = 2
    """Timed runs of each."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def digits(num_train: int) -> simulator.SplitData:
    """All digits, centred and scaled, which every seed splits in its own way."""
    parts = [vision.load("digits", split) for split in vision.SPLITS]
    inputs = np.concatenate([part.images for part in parts]).astype(np.float64)
    labels = np.concatenate([part.labels for part in parts])
    inputs = inputs.reshape(len(labels), -1)
    samples = simulator.Samples((inputs - inputs.mean()) / inputs.std(), labels, labels)
    return simulator.SplitData(samples, num_train=num_train, num_labels=NUM_CLASSES, num_fine=NUM_CLASSES)


def train_config(config: Config) -> simulator.LayerTrainConfig:
    """The recipe of experiments/intermediate_layers.py, rates in the library's units."""
    return simulator.LayerTrainConfig.by_epochs(
        num_epochs=config.num_epochs,
        record_epochs=simulator.log_spaced_epochs(config.num_epochs, config.num_records),
        data=digits(config.num_train),
        model=simulator.MLPSpec(widths=(config.width,) * config.depth),
        loss="mse",
        optimizer="momentum",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=2.5e-3,
        batch_size=config.batch_size,
        schedule="one_cycle",
        spectra="ends",
    )


def train_alone(config: simulator.LayerTrainConfig, key: jax.Array) -> jax.Array:
    """Running accuracy of every epoch; without what it does not depend on, nothing is measured."""
    return simulator.train_layers(replace(config, milestones=(), spectra="none"), key).epoch_accuracy


def measure_alone(config: simulator.LayerTrainConfig, key: jax.Array) -> Any:
    """Measure every layer as often as the training does, each time of another multiple of the first weights.

    Spectra twice, as the training does.
    """
    run = config.run
    train, test = run.data.draw(key)
    assert test is not None
    graph, params, frozen = split(initial_model(run, key))

    def scaled(scale: jax.Array) -> Any:
        return nnx.merge(graph, jax.tree.map(lambda leaf: scale * leaf, params), frozen)

    scales = jnp.linspace(0.9, 1.1, _num_measurements(config), dtype=float)
    spectra = jax.lax.map(lambda scale: measure_spectra(scaled(scale), train, num_classes=NUM_CLASSES), scales[:2])
    return jax.lax.map(lambda scale: measure_layers(run, scaled(scale), train, test), scales), spectra


def _num_measurements(config: simulator.LayerTrainConfig) -> int:
    return len(config.record_epochs) + len(config.milestones)


def measure(config: Config) -> dict[str, Any]:
    """Seconds of all three."""
    run = train_config(config)
    ways = {"measured": simulator.train_layers, "alone": train_alone, "measuring": measure_alone}
    ready = {name: simulator.prepare(train, run, config.num_seeds) for name, train in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for _ in range(config.repeats):
        for name, sweep in ready.items():
            result = sweep.run(progress=False)
            seconds[name].append(result.run_seconds)
            found[name] = result.history
    best = {name: min(each) for name, each in seconds.items()}
    gap = np.abs(found["measured"].epoch_accuracy - found["alone"]).max()
    return {
        "seconds": best,
        "all_seconds": seconds,
        "measuring": best["measuring"],
        "difference": best["measured"] - best["alone"],
        "compile_s": {name: each.compile_seconds for name, each in ready.items()},
        "num_measurements": _num_measurements(run),
        "largest_accuracy_gap": float(gap),
    }


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    size, seconds = record["config"], record["seconds"]
    what = f"metrics of all layers of a {size['depth']} x {size['width']} MLP, {size['num_seeds']} seeds"
    what += f", {record['num_measurements']} times in {size['num_epochs']} epochs"
    options: dict[str, Any] = {"is_rate": False, "required": REQUIRED}
    options |= {"ours_on": record["device"], "peer_on": record["device"]}
    return [Row(what, "s", record["measuring"], "the training that they observe", seconds["alone"], **options)]


def main(config: Config) -> None:
    """Measure, print, store."""
    if config.quick:
        config = replace(config, width=16, num_seeds=2, num_epochs=3, num_records=3, batch_size=64, repeats=1)
    before = _timing.provenance()
    print(before["machine"])
    record = measure(config)
    alone, measuring = record["seconds"]["alone"], record["measuring"]
    print(f"{config.num_seeds} seeds, {config.num_epochs} epochs: training {alone:.2f} s, ", end="")
    print(f"{record['num_measurements']} measurements {measuring:.2f} s, {measuring / alone:.1%} of it; ", end="")
    print(f"training with them {record['seconds']['measured']:.2f} s")
    print(f"compiled in {record['compile_s']}; largest difference of an accuracy {record['largest_accuracy_gap']:.1e}")
    if config.out is not None:
        settings = {"config": asdict(replace(config, out=None)), "device": _timing.device()}
        _timing.store(config.out, before, {**settings, **record})


if __name__ == "__main__":
    main(tyro.cli(Config))
