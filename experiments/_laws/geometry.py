"""L3: a linear network with weight decay on both layers lands where a convex programme says."""

import jax
import numpy as np
import xarray as xr

from _laws.bench import Bench, dimensionless, seed_keys
from nctheory import simulator, theory
from nctheory.claims import AtMost, Claim, ClaimSpec, range_interval

DECAYS = (0.02, 0.035, 0.05, 0.065, 0.08)
NOISE, SAMPLES, DIM, WIDTH = 0.05, 4, 8, 16
SOURCE = "derived here (theory.geometry)"

CLAIMS = {
    "ratio": ClaimSpec(
        "L3/ratio",
        SOURCE,
        f"Trained q equals that of the convex programme, noisy clusters, weight decays {DECAYS}: relative error, worst",
        0.0,
        AtMost(1e-6),
    ),
    "certificate": ClaimSpec(
        "L3/certificate",
        SOURCE,
        "The programme's solution is certified: |largest singular value of the gradient / lambda - 1|, worst decay",
        0.0,
        AtMost(1e-9),
    ),
    "symmetric": ClaimSpec(
        "L3/symmetric-collapse",
        SOURCE,
        "Orthogonal noise-free clusters: weight decay leaves no fine structure, trained q",
        0.0,
        AtMost(1e-9),
    ),
}


def mixtures() -> dict[str, simulator.GaussianMixture]:
    """Symmetric and asymmetric geometry, and the noisy one in which every seed has a geometry of its own."""
    return {
        "noisy": simulator.cross_pair_mixture(cosine=0.6, dim=DIM, noise_std=NOISE),
        "cross_pair": simulator.cross_pair_mixture(cosine=0.6, dim=DIM),
        "orthogonal": simulator.cosine_mixture(dim=DIM),
    }


def config(bench: Bench, mixture: simulator.GaussianMixture) -> simulator.TrainConfig:
    """The linear network of L3: both layers trained, one-hot targets."""
    return simulator.TrainConfig(
        data=simulator.MixtureData(mixture, samples_per_cluster=SAMPLES),
        model=simulator.TwoLayerSpec(
            width=WIDTH, activation="identity", readout="trained", init_std=0.3, readout_std=0.3
        ),
        loss="mse",
        optimizer="momentum",
        learning_rate=0.3,
        momentum=0.9,
        num_steps=bench.scale.geometry_steps,
        num_records=10,
    )


def prepare(bench: Bench) -> None:
    """Announce the sweep of this law, in float64."""
    with jax.enable_x64(True):
        grids = [simulator.grid(config(bench, mixture), weight_decay=DECAYS) for mixture in mixtures().values()]
        bench.prepare("geometry", [each for grid in grids for each in grid.configs])


def measure(bench: Bench) -> xr.Dataset:
    """Train over seeds and solve the convex programme on the same inputs."""
    result = bench.sweep("geometry")
    with jax.enable_x64(True):
        shape = (len(mixtures()), len(DECAYS), len(bench.seeds), -1)
        dims = ("geometry", "weight_decay", "seed", "step")
        arrays: dict[str, tuple] = {
            "ratio": (dims, result.history.train.fine.ratio.reshape(shape), dimensionless("trained q")),
            "gradient_norm": (
                dims,
                result.history.gradient_norm.reshape(shape),
                dimensionless("norm of the objective's gradient"),
            ),
        }
        keys, decays = seed_keys(bench.seeds), np.asarray(DECAYS)
        predictions = [_predict(config(bench, mixture), keys, decays) for mixture in mixtures().values()]
        for name, definition in (
            ("predicted", "q of the convex programme"),
            ("ridge", "q of the ridge solution"),
            ("certificate", "largest singular value of the gradient over lambda"),
            ("ridge_certificate", "the same for the ridge solution"),
        ):
            arrays[name] = (dims[:3], np.stack([np.asarray(p[name]) for p in predictions]), dimensionless(definition))
        steps = config(bench, mixtures()["noisy"]).record_steps
    coords = {"geometry": list(mixtures()), "weight_decay": list(DECAYS), "seed": bench.seeds, "step": steps}
    return xr.Dataset(arrays, coords=coords)


@jax.jit
def _predict(base: simulator.TrainConfig, keys: jax.Array, decays: jax.Array) -> dict[str, jax.Array]:
    """Predicted q, ridge q and both certificates at every (decay, seed), from the inputs of these seeds."""
    groups = {"num_classes": base.data.num_labels, "num_fine": base.data.num_fine}

    def predict(key, decay):
        samples, _ = base.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
        targets = jax.nn.one_hot(samples.labels, base.data.num_labels, dtype=samples.inputs.dtype)
        convex = theory.solve_nuclear_norm(samples.inputs, targets, weight_decay=decay)
        ridge = theory.ridge_solution(samples.inputs, targets, weight_decay=decay)
        found = {}
        for name, solution in (("predicted", convex), ("ridge", ridge)):
            structure = theory.fine_structure_from_gram(
                solution.feature_gram, samples.labels, samples.fine_labels, **groups
            )
            found[name] = structure.ratio
        return {**found, "certificate": convex.certificate, "ridge_certificate": ridge.certificate}

    over_seeds = jax.vmap(predict, in_axes=(0, None))
    return jax.vmap(over_seeds, in_axes=(None, 0))(keys, decays)


def judge(tree: xr.DataTree) -> list[Claim]:
    """Judge the claims of L3 from the stored arrays."""
    data = tree["geometry"].to_dataset().isel(step=-1)
    noisy = data.sel(geometry="noisy")

    def worst(error: xr.DataArray) -> np.ndarray:
        return error.max("weight_decay", skipna=False).values

    ratio, certificate, symmetric = CLAIMS["ratio"], CLAIMS["certificate"], CLAIMS["symmetric"]
    return [
        ratio.judge(range_interval(worst(abs(noisy.ratio / noisy.predicted - 1)))),
        ratio.control("ridge", "q of the ridge solution", range_interval(worst(abs(noisy.ratio / noisy.ridge - 1)))),
        certificate.judge(range_interval(worst(abs(noisy.certificate - 1)))),
        certificate.control(
            "ridge",
            "the ridge solution held against the certificate",
            range_interval(worst(abs(noisy.ridge_certificate - 1))),
        ),
        symmetric.judge(range_interval(worst(data.ratio.sel(geometry="orthogonal")))),
        symmetric.control(
            "cross-pair",
            "one pair of means of different labels at cosine 0.6",
            range_interval(worst(data.ratio.sel(geometry="cross_pair"))),
        ),
    ]
