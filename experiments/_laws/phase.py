"""Phase diagram of a ReLU network: fine structure against similarity of the merged clusters and input noise."""

import numpy as np
import xarray as xr

from _laws.bench import Bench, dimensionless
from nctheory import simulator

WIDTH, DIM, SAMPLES, INIT_STD, NUM_STEPS = 128, 16, 8, 0.01, 1000


def _axes(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Same-label cosines and noises of the diagram."""
    points = bench.scale.phase_points
    return np.linspace(0.0, 0.9, points), np.geomspace(0.01, 0.3, points)


def config(bench: Bench, cosine: float, noise: float) -> simulator.TrainConfig:
    """The network at one point of the diagram."""
    return simulator.TrainConfig(
        data=simulator.MixtureData(
            simulator.cosine_mixture(dim=DIM, same_label_cosine=cosine, noise_std=noise), SAMPLES, SAMPLES
        ),
        model=simulator.TwoLayerSpec(width=WIDTH, init_std=INIT_STD),
        learning_rate=2.0,
        num_steps=min(NUM_STEPS, bench.scale.relu_steps),
        num_records=4,
    )


def prepare(bench: Bench) -> None:
    """Announce the sweep of the diagram."""
    cosines, noises = _axes(bench)
    configs = [config(bench, float(cosine), float(noise)) for cosine in cosines for noise in noises]
    bench.prepare("phase", configs, seeds=bench.seeds[: bench.scale.phase_seeds])


def measure(bench: Bench) -> xr.Dataset:
    """Train a grid of mixtures and record q and s on training and on fresh samples."""
    result = bench.sweep("phase")
    cosines, noises = _axes(bench)
    steps = config(bench, 0.0, 0.0).record_steps
    dims = ("same_cosine", "noise", "seed", "step")

    def variable(values: np.ndarray, definition: str) -> tuple:
        return (
            dims,
            values.reshape(cosines.size, noises.size, *values.shape[1:]),
            dimensionless(definition),
        )

    return xr.Dataset(
        {
            "ratio": variable(result.history.train.fine.ratio, "q on training samples"),
            "fresh_ratio": variable(result.history.fresh.fine.ratio, "q on fresh samples"),
            "separation": variable(result.history.train.fine.separation, "s on training samples"),
            "fresh_separation": variable(result.history.fresh.fine.separation, "s on fresh samples"),
            "accuracy": variable(result.history.fresh.accuracy, "coarse accuracy on fresh samples"),
        },
        coords={
            "same_cosine": cosines,
            "noise": noises,
            "seed": result.seeds,
            "step": steps,
        },
    )
