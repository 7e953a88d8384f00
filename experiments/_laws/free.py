"""L0: free features, the null model in which the label is everything."""

import jax
import numpy as np
import xarray as xr

from _laws.bench import Bench, dimensionless
from nctheory import simulator, theory
from nctheory.claims import AtMost, Claim, ClaimSpec, range_interval

DECAY, SAMPLES, WIDTH = 5e-3, 4, 8
MIXTURE = simulator.cosine_mixture(dim=4, noise_std=0.1)
SOURCE = "Zhu et al. (2021) for the minimiser; values derived here (theory.free_features)"

CLAIMS = {
    "ratio": ClaimSpec(
        "L0/free-features-collapse",
        SOURCE,
        "Unconstrained features forget the clusters: trained q (cross-entropy, weight decay on features and weights)",
        0.0,
        AtMost(1e-9),
    ),
    "loss": ClaimSpec(
        "L0/minimum-loss",
        SOURCE,
        "Training reaches the predicted global minimum: relative excess of the objective",
        0.0,
        AtMost(1e-9),
    ),
}


def config(bench: Bench) -> simulator.TrainConfig:
    """The free features of L0."""
    return simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, samples_per_cluster=SAMPLES),
        model=simulator.UnconstrainedFeaturesSpec(num_samples=SAMPLES * MIXTURE.num_clusters, width=WIDTH),
        loss="cross_entropy",
        optimizer="momentum",
        learning_rate=1.0,
        momentum=0.9,
        weight_decay=DECAY,
        num_steps=bench.scale.geometry_steps,
        num_records=24,
    )


def prepare(bench: Bench) -> None:
    """Announce the sweep of this law, in float64."""
    with jax.enable_x64(True):
        bench.prepare("free", config(bench))


def measure(bench: Bench) -> xr.Dataset:
    """Train free features over seeds; predict the minimum."""
    result = bench.sweep("free")
    with jax.enable_x64(True):
        per_class = SAMPLES * MIXTURE.num_clusters // MIXTURE.num_labels
        decays = {"weight_decay": DECAY, "feature_decay": DECAY}
        minimum = theory.free_features_minimizer(MIXTURE.num_labels, per_class, loss="cross_entropy", **decays)
        more = {name: 1.01 * decay for name, decay in decays.items()}
        wrong = theory.free_features_minimizer(MIXTURE.num_labels, per_class, loss="cross_entropy", **more)
    dims = ("seed", "step")
    return xr.Dataset(
        {
            "ratio": (dims, result.history.train.fine.ratio[0], dimensionless("q")),
            "objective": (dims, result.history.objective[0], dimensionless("training objective")),
            "minimum": ((), float(minimum.loss_value), dimensionless("predicted global minimum")),
            "wrong_minimum": ((), float(wrong.loss_value), dimensionless("global minimum for 1 % more decay")),
        },
        coords={"seed": bench.seeds, "step": config(bench).record_steps},
    )


def judge(tree: xr.DataTree) -> list[Claim]:
    """Judge the claims of L0 from the stored arrays."""
    data = tree["free"].to_dataset().isel(step=-1)
    relu = tree["relu"].to_dataset().isel(step=-1)
    ratio, loss = CLAIMS["ratio"], CLAIMS["loss"]

    def excess(minimum: xr.DataArray) -> np.ndarray:
        return abs(data.objective / minimum - 1).values

    return [
        ratio.judge(range_interval(data.ratio.values)),
        ratio.control(
            "relu", "features bound to inputs by a ReLU layer", range_interval(relu.ratio_by_noise.isel(noise=0).values)
        ),
        loss.judge(range_interval(excess(data.minimum))),
        loss.control("1-percent", "the minimum for 1 % more decay", range_interval(excess(data.wrong_minimum))),
    ]
