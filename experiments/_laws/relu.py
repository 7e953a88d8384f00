"""L2: what a ReLU layer keeps although no initial weight survives, and how its features start."""

import dataclasses

import jax
import numpy as np
import xarray as xr

from _laws.bench import Bench, dimensionless, same_label_pairs, seed_keys
from _laws.relu_late import expected_late, late_values, orthogonal_mixture, predicted_features
from nctheory import simulator, theory
from nctheory.claims import (
    AtLeast,
    AtMost,
    Claim,
    ClaimSpec,
    Covers,
    Interval,
    Within,
    mean_interval,
    range_interval,
    standard_error_interval,
)

LEARNING_RATE, INIT_STD, DIM, SAMPLES = 2.0, 0.01, 8, 4
NOISE = (0.0, 1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
SAME_COSINES = (0.0, 0.05, 0.2, 0.5)
CROSS_COSINES = (0.0, 0.05, 0.1, 0.2)
KERNEL_NOISE = 0.3
CLUSTERS = (2, 3, 4)
# Four limits are covered at once: at 99 % each, chance misses one of them in 4 % of experiments.
CONFIDENCE = 0.99
NORMAL_QUANTILE = 2.576
# Training stops at a loss of 0.002, which leaves the values 0.0003 to 0.003 below their limits. Intervals are narrow
# enough to see that, so they are asked to lie near the limit and not to cover it.
LIMIT_MARGIN = 0.01
# Index of the noise at which the limits' controls stay instead of extrapolating: a tenth off, no more.
WITH_NOISE = 4
SOURCE = "derived here (theory.relu_limits)"
LIMITS = {s: float(theory.relu_limit(s).coarse_ratio) for s in CLUSTERS}

CLAIMS = {
    "exact": ClaimSpec(
        "L2/exact-features",
        SOURCE,
        "Noise-free orthogonal clusters: every trained distance follows from initial weights and margins; relative "
        "error, worst pair",
        0.0,
        AtMost(1e-4),
    ),
    "ratio": ClaimSpec(
        "L2/ratio-limit",
        SOURCE,
        "q extrapolated to zero noise and infinite width; what a seed's initial weights predict is a control variate",
        0.5,
        Within(0.5 - LIMIT_MARGIN, 0.5 + LIMIT_MARGIN),
    ),
    "coarse": ClaimSpec(
        "L2/coarse-ratio-limit",
        SOURCE,
        "tr Sigma_W / tr Sigma_B extrapolated likewise",
        LIMITS[2],
        Within(LIMITS[2] - LIMIT_MARGIN, LIMITS[2] + LIMIT_MARGIN),
    ),
    "monotone_ratio": ClaimSpec(
        "L2/monotone-in-noise-q",
        "derived here",
        "q rises by at least 0.001 at every halving of the noise: smallest mean rise",
        float("nan"),
        AtLeast(0.001),
    ),
    "monotone_coarse": ClaimSpec(
        "L2/monotone-in-noise-coarse",
        "derived here",
        "tr Sigma_W / tr Sigma_B rises by at least 0.001 at every halving of the noise: smallest mean rise",
        float("nan"),
        AtLeast(0.001),
    ),
    **{
        s: ClaimSpec(
            f"L2/coarse-ratio-{s}-clusters",
            SOURCE,
            f"tr Sigma_W / tr Sigma_B with {s} clusters a label, no noise, infinite width: 2(S-1)/(S+1) to within 0.01",
            LIMITS[s],
            Within(LIMITS[s] - LIMIT_MARGIN, LIMITS[s] + LIMIT_MARGIN),
        )
        for s in CLUSTERS[1:]
    },
    "order": ClaimSpec(
        "L2/order-in-similarity",
        "derived here",
        "The more similar the merged clusters, the lower the final q: smallest drop between neighbouring cosines "
        f"{SAME_COSINES}",
        float("nan"),
        AtLeast(0.0),
    ),
    **{
        name: ClaimSpec(
            f"L2/kernel-{name}",
            "Cho and Saul (2009), arc-cosine kernel of degree 1",
            f"{words}-label distance at initialisation over its expectation (input noise {KERNEL_NOISE}), 4 standard "
            "errors",
            1.0,
            Covers(1.0, 0.1),
        )
        for name, words in (("same", "Same"), ("different", "Different"))
    },
}


def mixture_data(mixture: simulator.GaussianMixture, samples: int = SAMPLES) -> simulator.MixtureData:
    """Training samples of L2; nothing is measured on fresh ones."""
    return simulator.MixtureData(mixture, samples_per_cluster=samples)


def config(bench: Bench, mixture: simulator.GaussianMixture, samples: int = SAMPLES) -> simulator.TrainConfig:
    """The ReLU network of L2."""
    return simulator.TrainConfig(
        data=mixture_data(mixture, samples),
        model=simulator.TwoLayerSpec(width=bench.scale.relu_width, activation="relu", init_std=INIT_STD),
        loss="logistic",
        learning_rate=LEARNING_RATE,
        num_steps=bench.scale.relu_steps,
        num_records=10,
    )


def conditions() -> list[tuple[str, float, simulator.GaussianMixture]]:
    """Kind, value and mixture of every condition with two clusters a label; the first belongs to all kinds."""
    rows = [("noise", v, simulator.cosine_mixture(dim=DIM, noise_std=v)) for v in NOISE]
    rows += [("same_cosine", v, simulator.cosine_mixture(dim=DIM, same_label_cosine=v)) for v in SAME_COSINES[1:]]
    rows += [("cross_cosine", v, simulator.cosine_mixture(dim=DIM, cross_label_cosine=v)) for v in CROSS_COSINES[1:]]
    return [*rows, ("kernel", KERNEL_NOISE, simulator.cosine_mixture(dim=DIM, noise_std=KERNEL_NOISE))]


def more_clusters(bench: Bench, clusters: int) -> simulator.TrainConfig:
    """The same with more than two orthogonal, noise-free clusters a label."""
    return config(bench, simulator.cosine_mixture(clusters_per_label=clusters, dim=2 * clusters), samples=1)


def prepare(bench: Bench) -> None:
    """Announce the sweeps of this law."""
    bench.prepare("relu", [config(bench, mixture) for _, _, mixture in conditions()])
    for s in bench.scale.more_clusters:
        bench.prepare(f"relu-{s}-clusters", more_clusters(bench, s))


def measure(bench: Bench) -> xr.Dataset:
    """Train over seeds on every mixture, and predict what theory predicts of these very seeds."""
    rows = conditions()
    base = config(bench, rows[0][2])
    result = bench.sweep("relu")
    fine, steps = result.history.train.fine, base.record_steps
    arrays: dict[str, tuple] = {}
    for kind in ("noise", "same_cosine", "cross_cosine"):
        # Orthogonal noise-free clusters, row 0, are the first point of every axis.
        index = [0, *(i for i, row in enumerate(rows) if i and row[0] == kind)]
        dims = (kind, "seed", "step")
        arrays[f"ratio_by_{kind}"] = (dims, fine.ratio[index], dimensionless("q, fine-to-coarse ratio"))
        arrays[f"coarse_ratio_by_{kind}"] = (dims, fine.coarse_ratio[index], dimensionless("tr Sigma_W / tr Sigma_B"))
    arrays["objective"] = (
        ("noise", "seed", "step"),
        result.history.objective[: len(NOISE)],
        dimensionless("logistic loss"),
    )
    arrays |= _exact_features(base, bench.seeds, result)
    arrays |= _kernel(mixture_data(rows[-1][2]), bench.scale.relu_width, bench.seeds, fine)
    arrays |= late_values(base, bench.seeds)
    arrays |= expected_late(2, bench.scale.relu_width, bench.scale.late_draws)
    for s in bench.scale.more_clusters:
        arrays |= late_values(more_clusters(bench, s), bench.seeds)
        arrays |= expected_late(s, bench.scale.relu_width, bench.scale.late_draws)
        final = bench.sweep(f"relu-{s}-clusters").history.train.fine.coarse_ratio[0, :, -1]
        arrays[f"coarse_ratio_{s}_clusters"] = ("seed", final, dimensionless("final tr Sigma_W / tr Sigma_B"))
    coords = {"noise": list(NOISE), "same_cosine": list(SAME_COSINES), "cross_cosine": list(CROSS_COSINES)}
    return xr.Dataset(arrays, coords={**coords, "seed": bench.seeds, "step": steps})


def _exact_features(base: simulator.TrainConfig, seeds: list[int], result: simulator.SweepResult) -> dict[str, tuple]:
    """Measured and predicted final distances without noise, and the same prediction held against the noisiest runs."""
    pairs, _ = same_label_pairs(orthogonal_mixture(base).coarse_labels)

    def predict(key, outputs):
        features = predicted_features(base, key, outputs)
        return ((features[pairs[:, 0]] - features[pairs[:, 1]]) ** 2).sum(axis=1)

    predict_all = jax.jit(jax.vmap(predict))
    arrays = {}
    for name, row in (("exact", 0), ("exact_noisy", len(NOISE) - 1)):
        outputs = result.history.train.cluster_outputs[row, :, -1, :, 0]
        predicted = np.asarray(predict_all(seed_keys(seeds), outputs))
        measured = result.history.train.fine.class_distances[row, :, -1][:, pairs[:, 0], pairs[:, 1]]
        arrays[f"{name}_measured"] = (("seed", "pair"), measured, dimensionless("final |h_A - h_B|^2"))
        arrays[f"{name}_predicted"] = (("seed", "pair"), predicted, dimensionless("|h_A - h_B|^2 by L2"))
    return arrays


def _kernel(data: simulator.MixtureData, width: int, seeds: list[int], fine) -> dict[str, tuple]:
    """Distances at initialisation over their expectation, by the ReLU kernel and by the linear one."""
    mixture = data.mixture

    def predict(key):
        samples, _ = data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
        labels = {"num_classes": mixture.num_labels, "num_fine": mixture.num_clusters}
        relu = theory.expected_relu_distances(
            samples.inputs, samples.labels, samples.fine_labels, init_std=INIT_STD, width=width, **labels
        ).structure
        gram = width * INIT_STD**2 * samples.inputs @ samples.inputs.T
        linear = theory.fine_structure_from_gram(gram, samples.labels, samples.fine_labels, **labels)
        return [(s.same_label_distance, s.different_label_distance) for s in (relu, linear)]

    predicted = jax.jit(jax.vmap(predict))(seed_keys(seeds))
    measured = (fine.same_label_distance[-1, :, 0], fine.different_label_distance[-1, :, 0])
    return {
        f"kernel_{name}_{kernel}": (
            "seed",
            measured[i] / np.asarray(expected[i]),
            dimensionless("measured over expected distance"),
        )
        for kernel, expected in zip(("relu", "linear"), predicted, strict=True)
        for i, name in enumerate(("same", "different"))
    }


def extrapolate(values: xr.DataArray) -> np.ndarray:
    """Zero-noise value of every seed: intercept of a quadratic through the runs with noise > 0."""
    noisy = values.isel(noise=slice(1, None))
    intercept = noisy.polyfit("noise", 2).polyfit_coefficients.sel(degree=0)
    # The fit would pass over a run that became non-finite.
    return intercept.where(noisy.notnull().all("noise")).values


def judge(tree: xr.DataTree) -> list[Claim]:
    """Judge the claims of L2 from the stored arrays."""
    data, memory = tree["relu"].to_dataset(), tree["memory"].to_dataset()
    return [
        *_judge_exact(data),
        *_judge_limits(data, memory),
        *_judge_more_clusters(data),
        *_judge_orders(data),
        *_judge_kernel(data),
    ]


def _judge_exact(data: xr.Dataset) -> list[Claim]:
    def worst(name: str) -> np.ndarray:
        error = abs(data[f"{name}_predicted"] / data[f"{name}_measured"] - 1)
        return error.max("pair", skipna=False).values

    spec = CLAIMS["exact"]
    return [
        spec.judge(range_interval(worst("exact"))),
        spec.control(
            "with-noise",
            f"the same prediction for runs with input noise {NOISE[-1]}",
            range_interval(worst("exact_noisy")),
        ),
    ]


def _judge_limits(data: xr.Dataset, memory: xr.Dataset) -> list[Claim]:
    final = data.isel(step=-1)
    linear = memory.isel(step=-1, weight_decay=0).isel(run=int(np.flatnonzero(memory.readout == "fixed")[0]))
    ratio, coarse = CLAIMS["ratio"], CLAIMS["coarse"]
    similar = final.isel(same_cosine=1)

    def shifted(values: xr.DataArray | np.ndarray, name: str) -> Interval:
        return _at_infinite_width(np.asarray(values), data, name)

    return [
        ratio.judge(shifted(extrapolate(final.ratio_by_noise), "ratio")),
        ratio.control("linear", "final q of the linear network", shifted(linear.ratio, "ratio")),
        ratio.control(
            "similar-clusters",
            f"final q with merged clusters at cosine {SAME_COSINES[1]}",
            shifted(similar.ratio_by_same_cosine, "ratio"),
        ),
        ratio.control(
            "with-noise",
            f"q at input noise {NOISE[WITH_NOISE]} instead of its extrapolation",
            shifted(final.ratio_by_noise.isel(noise=WITH_NOISE), "ratio"),
        ),
        coarse.judge(shifted(extrapolate(final.coarse_ratio_by_noise), "coarse_ratio")),
        coarse.control(
            "with-noise",
            f"the same at input noise {NOISE[WITH_NOISE]} instead of its extrapolation",
            shifted(final.coarse_ratio_by_noise.isel(noise=WITH_NOISE), "coarse_ratio"),
        ),
        coarse.control(
            "similar-clusters",
            f"the same with merged clusters at cosine {SAME_COSINES[1]}",
            shifted(similar.coarse_ratio_by_same_cosine, "coarse_ratio"),
        ),
    ]


def _at_infinite_width(values: np.ndarray, data: xr.Dataset, name: str, clusters: int = 2) -> Interval:
    """Trained minus predicted for the same weights, plus the expectation over weights.

    The scatter of the weights cancels, and the limit plays no part.
    """
    around = mean_interval(values - data[f"late_{name}_{clusters}_clusters"].values, confidence=CONFIDENCE)
    expected = float(data[f"expected_{name}_{clusters}_clusters"])
    spread = NORMAL_QUANTILE * float(data[f"expected_{name}_{clusters}_clusters_error"])
    half = float(np.hypot((around.high - around.low) / 2, spread))
    centre = around.measured + expected
    return dataclasses.replace(around, measured=centre, low=centre - half, high=centre + half)


def _judge_more_clusters(data: xr.Dataset) -> list[Claim]:
    """Three and four clusters a label, each the control of the other; nothing where they were not run."""
    claims = []
    for s, other in ((3, 4), (4, 3)):
        if f"coarse_ratio_{max(s, other)}_clusters" in data:
            found, wrong = (
                _at_infinite_width(data[f"coarse_ratio_{each}_clusters"].values, data, "coarse_ratio", s)
                for each in (s, other)
            )
            claims += [
                CLAIMS[s].judge(found),
                CLAIMS[s].control(f"{other}-clusters", f"{other} clusters a label", wrong),
            ]
    return claims


def _halvings(by_noise: xr.DataArray) -> np.ndarray:
    """Values (noise, seed) from the highest noise down to the lowest above zero."""
    return by_noise.values[:0:-1]


def _smallest_step(values: np.ndarray) -> Interval:
    """Interval of the smallest mean difference between neighbours on axis 0; seeds are on axis 1.

    All differences are at least b if the lowest of their lower ends is, and one of them is below b if the lowest of
    their upper ends is. At 99 % each, they hold at once with at least 95 %.
    """
    steps = [mean_interval(step, confidence=CONFIDENCE) for step in np.diff(values, axis=0)]
    least = min(steps, key=lambda step: step.measured)
    return dataclasses.replace(least, low=min(s.low for s in steps), high=min(s.high for s in steps))


def _judge_orders(data: xr.Dataset) -> list[Claim]:
    final = data.isel(step=-1)
    claims = []
    for name, variable in (("monotone_ratio", "ratio_by_noise"), ("monotone_coarse", "coarse_ratio_by_noise")):
        claims.append(CLAIMS[name].judge(_smallest_step(_halvings(final[variable]))))
        claims.append(
            CLAIMS[name].control(
                "untrained", "the same networks before training", _smallest_step(_halvings(data[variable].isel(step=0)))
            )
        )
    order = CLAIMS["order"]
    claims.append(order.judge(_smallest_step(-final.ratio_by_same_cosine.values)))
    claims.append(
        order.control(
            "cross-label",
            f"cosines {CROSS_COSINES} between clusters of different labels instead",
            _smallest_step(-final.ratio_by_cross_cosine.values),
        )
    )
    return claims


def _judge_kernel(data: xr.Dataset) -> list[Claim]:
    claims = []
    for name in ("same", "different"):
        spec = CLAIMS[name]
        claims.append(spec.judge(standard_error_interval(data[f"kernel_{name}_relu"].values, width=4)))
        claims.append(
            spec.control(
                "linear-kernel",
                "expectation without the ReLU",
                standard_error_interval(data[f"kernel_{name}_linear"].values, width=4),
            )
        )
    return claims
