"""L1: what a linear feature map keeps of its initial weights, seed by seed."""

import dataclasses

import jax
import numpy as np
import xarray as xr

from _laws.bench import Bench, dimensionless, same_label_pairs, seed_keys, two_layer
from nctheory import simulator, theory
from nctheory.claims import AtMost, Claim, ClaimSpec, Within, mean_interval, range_interval

LEARNING_RATE, DECAYS, WIDTH = 0.5, (0.0, 1e-3), 32
LOSSES = ("logistic", "mse_signs")
PRECISIONS = ("float64", "float32")
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
MIXTURE = simulator.cosine_mixture(dim=8, noise_std=0.1)
SOURCE = "derived here (theory.memory)"

CLAIMS = {
    **{
        (loss, precision): ClaimSpec(
            f"L1/exact-{loss}-{precision}",
            SOURCE,
            f"Every feature distance of the linear net is memory plus output ({loss}, {precision}): relative error, "
            "worst of all pairs, records and weight decays 0 and 0.001",
            0.0,
            AtMost(TOLERANCE[precision]),
        )
        for loss in LOSSES
        for precision in PRECISIONS
    },
    "half_life": ClaimSpec(
        "L1/half-life",
        SOURCE,
        "With weight decay the memory halves in ln 2 / (-2 ln(1 - eta lambda)) steps: fitted over predicted half-life",
        1.0,
        Within(0.999, 1.001),
    ),
    "frozen": ClaimSpec(
        "L1/frozen",
        SOURCE,
        "Without weight decay the memory of every pair, |h_A - h_B|^2 - (f_A - f_B)^2, never changes: relative change, "
        "worst pair",
        0.0,
        AtMost(1e-9),
    ),
    "collapse": ClaimSpec(
        "L1/apparent-collapse",
        SOURCE,
        "The same runs show apparent collapse: final fine-to-coarse ratio q (logistic, no weight decay)",
        0.0,
        AtMost(0.05),
    ),
}


def config(bench: Bench, loss: str, readout: str = "fixed") -> simulator.TrainConfig:
    """The linear network of L1."""
    return simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, samples_per_cluster=5),
        model=simulator.TwoLayerSpec(width=WIDTH, activation="identity", readout=readout, init_std=0.1),
        loss=loss,
        learning_rate=LEARNING_RATE,
        num_steps=bench.scale.linear_steps,
        num_records=12,
    )


def _runs(bench: Bench) -> list[tuple[str, str, str]]:
    """Loss, precision and kind of readout of every sweep; the trained readout lies outside the law."""
    return [
        *((loss, precision, "fixed") for loss, precision in bench.scale.memory_runs),
        ("logistic", "float64", "trained"),
    ]


def _name(loss: str, precision: str, readout: str) -> str:
    return f"memory-{loss}-{precision}-{readout}"


def prepare(bench: Bench) -> None:
    """Announce the sweeps of this law, in both precisions."""
    for loss, precision, readout in _runs(bench):
        with jax.enable_x64(precision == "float64"):
            configs = simulator.grid(config(bench, loss, readout), weight_decay=DECAYS)
            bench.prepare(_name(loss, precision, readout), configs)


def measure(bench: Bench) -> xr.Dataset:
    """Train over seeds in both precisions, and predict every distance from initial weights and outputs alone."""
    datasets: list[xr.Dataset] = []
    for loss, precision, readout in _runs(bench):
        with jax.enable_x64(precision == "float64"):
            datasets.append(_measure_one(bench, config(bench, loss, readout), loss, precision, readout))
    return xr.concat(datasets, dim="run", data_vars="all", join="exact", combine_attrs="override")


def _measure_one(bench: Bench, base: simulator.TrainConfig, loss: str, precision: str, readout: str) -> xr.Dataset:
    result = bench.sweep(_name(loss, precision, readout))
    pairs, same = same_label_pairs(MIXTURE.coarse_labels)
    # Stored in float64 whatever the precision of the run, so that both fit one array.
    fine = jax.tree.map(np.float64, result.history.train.fine)
    outputs = result.history.train.cluster_outputs[..., 0]
    shown = outputs[..., pairs[:, 0]] - outputs[..., pairs[:, 1]]
    dims = ("weight_decay", "seed", "step")
    return xr.Dataset(
        {
            **_of_pairs(fine.class_distances[..., pairs[:, 0], pairs[:, 1]], shown, base, bench.seeds),
            "ratio": (dims, fine.ratio, dimensionless("q, fine-to-coarse ratio")),
            "same_label_distance": (dims, fine.same_label_distance, dimensionless("mean over same-label pairs")),
            "different_label_distance": (dims, fine.different_label_distance, dimensionless("mean over other pairs")),
            "objective": (dims, np.float64(result.history.objective), dimensionless("training objective")),
            "half_life": ("weight_decay", _half_lives(), {"units": "steps", "definition": "predicted half-life"}),
        },
        coords={
            "weight_decay": list(DECAYS),
            "seed": bench.seeds,
            "step": base.record_steps,
            "same_label": ("pair", same),
            "loss": ("run", [loss]),
            "precision": ("run", [precision]),
            "readout": ("run", [readout]),
        },
    )


def _of_pairs(
    distance: np.ndarray, shown: np.ndarray, base: simulator.TrainConfig, seeds: list[int]
) -> dict[str, tuple]:
    """Measured and predicted distances of the pairs, and their memory, from the differences of outputs shown."""
    predicted = _predict(base, seeds, shown, base.record_steps)
    found = {
        "distance": (distance, "|h_A - h_B|^2"),
        "predicted": (predicted["law"], "|h_A - h_B|^2 by L1"),
        "no_forgetting": (predicted["no_forgetting"], "L1 without the decay factor"),
        "memory": (distance - np.float64(shown) ** 2, "memory"),
    }
    dims = ("weight_decay", "seed", "step", "pair")
    return {name: (dims, np.float64(values), dimensionless(words)) for name, (values, words) in found.items()}


def _half_lives() -> list[float]:
    return [float(theory.memory_half_life(learning_rate=LEARNING_RATE, weight_decay=decay)) for decay in DECAYS]


def _predict(
    base: simulator.TrainConfig, seeds: list[int], shown: np.ndarray, steps: np.ndarray
) -> dict[str, np.ndarray]:
    """The law, with and without its decay factor, at every (decay, seed, step, pair)."""
    factors = [theory.memory_factor(steps, learning_rate=LEARNING_RATE, weight_decay=decay) for decay in DECAYS]
    factor = np.stack(factors).astype(shown.dtype)
    # The start does not depend on the loss, so one compiled draw serves both.
    starts = _starts(dataclasses.replace(base, loss=LOSSES[0]), seed_keys(seeds))
    law, no_forgetting = _law(*starts, shown, factor), _law(*starts, shown, np.ones_like(factor))
    return {"law": np.asarray(law), "no_forgetting": np.asarray(no_forgetting)}


@jax.jit
def _starts(base: simulator.TrainConfig, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Initial weights, readout, and differences of the clusters' sample means, of every seed."""
    pairs, _ = same_label_pairs(MIXTURE.coarse_labels)

    def one_seed(key):
        samples, _ = base.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
        model = two_layer(base, key)
        members = jax.nn.one_hot(samples.fine_labels, MIXTURE.num_clusters, axis=0, dtype=samples.inputs.dtype)
        means = members @ samples.inputs / members.sum(axis=1)[:, None]
        return model.kernel[...].T, model.readout[...][:, 0], means[pairs[:, 0]] - means[pairs[:, 1]]

    return jax.vmap(one_seed)(keys)


@jax.jit
def _law(weight: jax.Array, readout: jax.Array, delta: jax.Array, shown: jax.Array, factors: jax.Array) -> jax.Array:
    """Predicted distances at every (decay, seed, step, pair), from the start, the trained outputs and the factors."""

    def law(weight, readout, delta, shown, factor):
        return theory.memory_distance(weight, readout, delta, shown, factor=factor)

    over_steps = jax.vmap(law, in_axes=(None, None, None, 0, 0))
    over_seeds = jax.vmap(over_steps, in_axes=(0, 0, 0, 0, None))
    return jax.vmap(over_seeds, in_axes=(None, None, None, 0, 0))(weight, readout, delta, shown, factors)


def judge(tree: xr.DataTree) -> list[Claim]:
    """Judge the claims of L1 from the stored arrays."""
    data = tree["memory"].to_dataset()
    claims = []
    for loss, precision, readout in zip(data.loss.values, data.precision.values, data.readout.values, strict=True):
        if readout == "fixed":
            claims += _judge_exactness(CLAIMS[loss, precision], data, loss, precision)
    return claims + _judge_fading(data) + _judge_frozen(data, tree)


def select(data: xr.Dataset, loss: str, precision: str, readout: str = "fixed") -> xr.Dataset:
    """The runs of one loss, precision and kind of readout."""
    matches = (data.loss == loss) & (data.precision == precision) & (data.readout == readout)
    return data.isel(run=int(np.flatnonzero(matches)[0]))


def _worst_error(data: xr.Dataset, predicted: str) -> np.ndarray:
    error = abs(data[predicted] - data.distance) / data.distance
    return error.max(dim=[d for d in error.dims if d != "seed"], skipna=False).values


def _judge_exactness(spec: ClaimSpec, data: xr.Dataset, loss: str, precision: str) -> list[Claim]:
    run = select(data, loss, precision)
    trained = select(data, "logistic", "float64", "trained")
    return [
        spec.judge(range_interval(_worst_error(run, "predicted"))),
        spec.control(
            "no-forgetting",
            "the law without its weight-decay factor",
            range_interval(_worst_error(run.isel(weight_decay=[1]), "no_forgetting")),
        ),
        spec.control(
            "trained-readout",
            "the law where its assumption fails: the readout is trained too",
            range_interval(_worst_error(trained, "predicted")),
        ),
    ]


def _judge_fading(data: xr.Dataset) -> list[Claim]:
    run = select(data, "logistic", "float64")
    # Slope of the logarithm; without decay it is zero up to rounding, so the fitted half-life is beyond all bounds.
    slope = -run.memory.mean("pair", skipna=False).pipe(np.log).polyfit("step", 1).polyfit_coefficients.sel(degree=1)
    lost = run.memory.isnull().any(["pair", "step"])
    relative = abs(np.log(2) / slope / float(run.half_life[1])).where(~lost).values
    spec = CLAIMS["half_life"]
    return [
        spec.judge(range_interval(relative[1], which="median")),
        spec.control(
            "no-decay", "the same fit to the runs without weight decay", range_interval(relative[0], which="median")
        ),
    ]


def _judge_frozen(data: xr.Dataset, tree: xr.DataTree) -> list[Claim]:
    run = select(data, "logistic", "float64")
    change = abs(run.memory.isel(step=-1) / run.memory.isel(step=0) - 1).max("pair", skipna=False).values
    relu = tree["relu"].to_dataset()
    frozen, collapse = CLAIMS["frozen"], CLAIMS["collapse"]
    return [
        frozen.judge(range_interval(change[0])),
        frozen.control("weight-decay", "the same runs with weight decay 0.001", range_interval(change[1])),
        collapse.judge(mean_interval(run.ratio.isel(step=-1, weight_decay=0).values)),
        collapse.control(
            "relu",
            "a ReLU network on noise-free orthogonal clusters",
            mean_interval(relu.ratio_by_noise.isel(noise=0, step=-1).values),
        ),
    ]
