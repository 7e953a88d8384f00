"""Two limits of one layer: vanishing decay with unequal classes (SELI), and no decay from a small start.

**Vanishing decay.** At decay lambda the margins are m = log(1/lambda) + O(1), and the logits are m times those of SELI
plus O(1): the geometry is O(1/m) away from its limit, 3 % at lambda = 1e-8. So minima are solved along a ladder of
decays, and what is compared with SELI is the value at 1/m = 0 of the polynomial in 1/m through the last rungs.

**Small start.** Gradient descent without decay stops where it first fits the labels. What of the start lies outside the
fitted modes hardly moves, so that the end is as far from the limit as the start was large: starts of several sizes are
run. That this distance is proportional to the size of the start is observed, not proved.

A run of fewer than `SMOKE_SEEDS` seeds descends for one number of classes only, to compile less.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from jaxtyping import Array, Bool, Float, Key

from _ufm.grams import Minimum, distance, minimum_from, stored
from _ufm.sizes import SizedProblem, sized_problem
from nctheory.claims import AtLeast, AtMost, Claim, ClaimSpec, range_interval
from nctheory.simulator.descent import DescentConfig, descend
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.theory.mse_ufm_limits import unregularized_mse_limit
from nctheory.theory.seli import seli

SMOKE_SEEDS, WIDTH = 8, 8
SIZES = ((4, 4, 1, 1), (10, 10, 1, 1), (21, 11, 6, 2))
DECAYS = tuple(10.0**-power for power in range(2, 9))
# Gradients are of the order of the decay.
TOLERANCE, MAX_EVALUATIONS = 1e-15, 4000
EXTRAPOLATED = 4
# Classes and samples of each; the first alone in smoke runs.
SHAPES = ((4, 10), (3, 12))
INIT_STDS = (0.3, 0.1, 0.01, 0.001, 0.0001)
LEARNING_RATE, NUM_STEPS = 0.5, 3000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RestingBiasProblem(UfmProblem):
    """`UfmProblem` whose bias starts at zero."""

    def init(self, key: Key[Array, ""]) -> UfmParams:
        """Draw W and H as `UfmProblem` does."""
        start = super().init(key)
        return start if start.bias is None else replace(start, bias=jnp.zeros_like(start.bias))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LimitConfig:
    """A descent, and the limit that its end is compared with.

    Attributes:
        descent: the run; keeps its parameters.
        weight_gram: W W^T of the limit.
        feature_gram: inner products of its class features.
        bias: its bias.
        samples: of each class.
    """

    descent: DescentConfig
    weight_gram: Any
    feature_gram: Any
    bias: Any
    samples: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ending:
    """Where a descent ended, against its limit."""

    loss: Float[Array, ""]
    finite: Bool[Array, ""]
    weight_distance: Float[Array, ""]
    feature_distance: Float[Array, ""]
    bias_distance: Float[Array, ""]
    orthogonal_distance: Float[Array, ""]
    within_class: Float[Array, ""]


def solve_seli(problem: SizedProblem, key: Key[Array, ""]) -> Minimum:
    """Minimise from the start of this key; pure, for `simulator.sweep`."""
    return minimum_from(problem, problem.init(key), tolerance=TOLERANCE, max_evaluations=MAX_EVALUATIONS)


def descend_to_limit(config: LimitConfig, key: Key[Array, ""]) -> Ending:
    """Descend from the start of this key and compare the end with the limit; pure, for `simulator.sweep`."""
    history = descend(config.descent, key)
    assert history.params is not None
    assert history.params.bias is not None
    weight, bias = jnp.asarray(history.params.weights[0]), jnp.asarray(history.params.bias)
    samples = jnp.reshape(history.params.features, (weight.shape[0], config.samples, -1))
    means = jnp.mean(samples, axis=1)
    weight_gram, feature_gram = weight @ weight.T, means @ means.T
    eye = jnp.eye(weight.shape[0], dtype=weight.dtype)
    return Ending(
        loss=history.objective[-1],
        finite=history.finite,
        weight_distance=distance(weight_gram, config.weight_gram),
        feature_distance=distance(feature_gram, config.feature_gram),
        bias_distance=jnp.max(jnp.abs(bias - jnp.asarray(config.bias).astype(bias.dtype))),
        orthogonal_distance=distance(weight_gram, eye * jnp.diagonal(jnp.asarray(config.weight_gram))[:, None]),
        within_class=jnp.sqrt(jnp.sum((samples - means[:, None]) ** 2) / jnp.sum(samples**2)),
    )


def shapes(bench: Bench) -> tuple[tuple[int, int], ...]:
    """Classes and samples a class of the descents."""
    return SHAPES[:1] if len(bench.seeds) < SMOKE_SEEDS else SHAPES


def prepare(bench: Bench) -> None:
    """Announce the sweeps, in float64."""
    with jax.enable_x64(True):
        bench.prepare("limits_seli", seli_problems(), seeds=bench.seeds, train=solve_seli)
        for shape in shapes(bench):
            configs = [limit_config(*shape, std) for std in INIT_STDS]
            bench.prepare(f"limits_K{shape[0]}", configs, seeds=bench.seeds, train=descend_to_limit)


def seli_problems() -> list[SizedProblem]:
    """Every decay for every choice of class sizes."""
    named = {"loss": "cross_entropy", "init_std": 0.2, "init_spread": 3.0}
    return [
        sized_problem(sizes, WIDTH, 1, weight_decay=decay, feature_decay=decay, **named)
        for sizes in SIZES
        for decay in DECAYS
    ]


def limit_config(num_classes: int, samples: int, init_std: float, num_steps: int = NUM_STEPS) -> LimitConfig:
    """Descent without decay from this scale, with its limit; call with 64-bit numbers on."""
    problem = RestingBiasProblem(
        (samples,) * num_classes, WIDTH, 1, weight_decay=0.0, feature_decay=0.0, bias="free", init_std=init_std
    )
    limit = unregularized_mse_limit(num_classes, samples)
    return LimitConfig(
        DescentConfig(problem, LEARNING_RATE, 0.0, num_steps, 2, keep_params=True),
        np.asarray(limit.weight_gram),
        np.asarray(limit.feature_gram),
        np.asarray(limit.bias),
        samples,
    )


def measure(bench: Bench) -> xr.Dataset:
    """Solve and descend over seeds, and put the predictions beside the results."""
    solved = bench.sweep("limits_seli").history
    endings = [bench.sweep(f"limits_K{num_classes}").history for num_classes, _ in shapes(bench)]
    with jax.enable_x64(True):
        return dataset(bench.seeds, solved, endings, shapes(bench))


ENDING_WORDS = {
    "descent_loss": ("loss", "squared error where the descent ended"),
    "descent_finite": ("finite", "whether it stayed finite"),
    "weight_distance": ("weight_distance", "|W W^T - limit|/|limit|, Frobenius"),
    "feature_distance": ("feature_distance", "|Gram matrix of the class means - limit|/|limit|, Frobenius"),
    "bias_distance": ("bias_distance", "largest distance of an entry of the bias from 1/K"),
    "orthogonal_distance": ("orthogonal_distance", "as weight_distance, from orthogonal rows of the same lengths"),
    "within_class": ("within_class", "root mean square of features minus class mean, over that of features"),
}


def dataset(seeds: list[int], solved: Minimum, endings: list[Ending], listed) -> xr.Dataset:
    """Results of the ladder of decays and of the descents, and what SELI predicts."""
    arrays: dict[str, tuple] = {}
    for name, (dims, values, words) in stored([solved]).items():
        split = values.reshape(len(SIZES), len(DECAYS), *values.shape[1:])
        arrays[name] = (("problem", "decay", *dims[1:]), split, words)
    for name, (attribute, words) in ENDING_WORDS.items():
        values = np.stack([np.asarray(getattr(ending, attribute)) for ending in endings])
        arrays[name] = (("shape", "init_std", "seed"), values, dimensionless(words))
    geometries = [seli(sizes) for sizes in SIZES]
    for name, words in (("weight_gram", "W W^T of SELI"), ("feature_gram", "inner products of SELI's class features")):
        values = np.stack([np.asarray(getattr(geometry, name)) for geometry in geometries])
        arrays[f"predicted_{name}"] = (("problem", "class", "other_class"), values, dimensionless(words))
    values = np.asarray([float(geometry.value) for geometry in geometries])
    arrays["predicted_value"] = ("problem", values, dimensionless("least nuclear norm of logits of margin 1"))
    certified = np.asarray([bool(geometry.is_certified) for geometry in geometries])
    arrays["is_certified"] = (
        "problem",
        certified,
        dimensionless("whether SELI is the optimum, by its dual certificate"),
    )
    counts = {"units": "samples", "definition": "n_k"}
    arrays["class_sizes"] = (("problem", "class"), np.asarray(SIZES, dtype=float), counts)
    coords: dict[str, Any] = {"seed": seeds, "decay": list(DECAYS), "init_std": list(INIT_STDS)}
    for index, name in enumerate(("shape_num_classes", "shape_samples")):
        coords[name] = ("shape", np.asarray([shape[index] for shape in listed]))
    return xr.Dataset(arrays, coords=coords)


SELI = "Thrampoulidis et al. (2022); values derived here (theory.seli)"
MIXON = "setting: Mixon, Parshall and Pi (2020); values derived here (theory.mse_ufm_limits)"
CLAIMS = {
    "bound": ClaimSpec(
        "CE/seli-bound",
        SELI,
        "Decay 1e-2 to 1e-8: nuclear norm of the logits over their least margin is never below that of SELI: ratio "
        "minus 1, least of class sizes and decays",
        0.0,
        AtLeast(-1e-10),
    ),
    "value": ClaimSpec(
        "CE/seli-value",
        SELI,
        "The same ratio minus 1, continued to infinite margin from the last four decays: largest magnitude",
        0.0,
        AtMost(1e-3),
    ),
    "approach": ClaimSpec(
        "CE/seli-approach",
        "derived here (experiments/_ufm/limits.py)",
        "The same ratio minus 1 falls like the inverse margin: log-log slope plus 1 over the last four decays, largest "
        "magnitude",
        0.0,
        AtMost(0.1),
    ),
    "geometry": ClaimSpec(
        "CE/seli-geometry",
        SELI,
        "Gram matrices of weights and features, scaled to norm 1 and continued to infinite margin, against SELI: "
        "largest distance",
        0.0,
        AtMost(2e-3),
    ),
    "limit": ClaimSpec(
        "MSE/no-decay-limit",
        MIXON,
        "Gradient descent without decay from init_std 1e-4: distance of weights, class means and bias from the limit, "
        "largest",
        0.0,
        AtMost(1e-3),
    ),
    "order": ClaimSpec(
        "MSE/no-decay-order",
        "observed here, not proved (experiments/_ufm/limits.py)",
        "The same distance is proportional to the size of the start: log-log slope minus 1 for init_std 1e-2 to 1e-4, "
        "largest magnitude",
        0.0,
        AtMost(0.1),
    ),
}


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge every claim from the stored arrays."""
    return [*_values(data), *_geometry(data), *_descents(data)]


def _soundly(values: np.ndarray, data: xr.Dataset) -> np.ndarray:
    """Values of (..., seed), NaN for every seed of which a start did not converge."""
    is_sound = ((data.converged == 1) & (data.finite == 1)).all(("problem", "decay")).values
    return np.where(is_sound, values, np.nan)


def least_margin(data: xr.Dataset) -> np.ndarray:
    """Smallest difference between the logit of a class's label and any other, (problem, decay, seed)."""
    logits = data.logits.values
    own = np.diagonal(logits, axis1=-2, axis2=-1)[..., None, :]
    return np.where(np.eye(logits.shape[-1], dtype=bool), np.inf, own - logits).min(axis=(-2, -1))


def value_ratio(data: xr.Dataset) -> np.ndarray:
    """Nuclear norm over least margin over SELI's, (problem, decay, seed)."""
    counts = data.class_sizes.values[:, None, None, None, :]
    nuclear = np.linalg.svd(data.logits.values * np.sqrt(counts), compute_uv=False).sum(axis=-1)
    return nuclear / least_margin(data) / data.predicted_value.values[:, None, None]


def continued(values: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Value at infinite margin of the polynomial in the inverse margin through the last rungs.

    Args:
        values: (problem, decay, seed, ...).
        margins: (problem, decay, seed).

    Returns:
        Lagrange's formula at zero, (problem, seed, ...).
    """
    x = 1 / margins[:, -EXTRAPOLATED:]
    total = np.zeros_like(values[:, -1])
    for i in range(EXTRAPOLATED):
        factors = [x[:, j] / (x[:, j] - x[:, i]) for j in range(EXTRAPOLATED) if j != i]
        factor = np.prod(factors, axis=0)
        total += factor.reshape(factor.shape + (1,) * (values.ndim - 3)) * values[:, i - EXTRAPOLATED]
    return total


def slope(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Log-log slope by least squares along axis 1."""
    x, y = np.log(at), np.log(values)
    x = x - x.mean(axis=1, keepdims=True)
    return (x * y).sum(axis=1) / (x**2).sum(axis=1)


def _values(data: xr.Dataset) -> list[Claim]:
    bound, value, approach = CLAIMS["bound"], CLAIMS["value"], CLAIMS["approach"]
    margins, right = least_margin(data), value_ratio(data)
    # Simplex of balanced classes of the mean size.
    k, total = data.sizes["class"], data.class_sizes.sum("class").values
    balanced = (k - 1) * np.sqrt(total / k)
    wrong = right * (data.predicted_value.values / balanced)[:, None, None]

    def below(ratio: np.ndarray) -> np.ndarray:
        return _soundly((ratio - 1).min(axis=(0, 1)), data)

    def limit(ratio: np.ndarray) -> np.ndarray:
        return _soundly(np.abs(continued(ratio, margins) - 1).max(axis=0), data)

    def order(ratio: np.ndarray) -> np.ndarray:
        last = np.abs(ratio - 1)[:, -EXTRAPOLATED:]
        return _soundly(np.abs(slope(last, margins[:, -EXTRAPOLATED:]) + 1).max(axis=0), data)

    mean = "nuclear norm of the simplex for equal classes of the mean size"
    unfinished = _soundly(np.abs(right[:, -1] - 1).min(axis=0), data)
    return [
        bound.judge(range_interval(below(right), which="min")),
        bound.control("simplex", mean, range_interval(below(wrong))),
        value.judge(range_interval(limit(right))),
        value.control("simplex", mean, range_interval(limit(wrong), which="min")),
        value.control("last-decay", "the smallest decay itself", range_interval(unfinished, which="min")),
        approach.judge(range_interval(order(right))),
        approach.control("simplex", mean, range_interval(order(wrong), which="min")),
    ]


def unit(matrix: np.ndarray) -> np.ndarray:
    """Scaled to Frobenius norm 1 over the last two axes."""
    return matrix / np.linalg.norm(matrix, axis=(-2, -1), keepdims=True)


def _geometry(data: xr.Dataset) -> list[Claim]:
    spec, margins, k = CLAIMS["geometry"], least_margin(data), data.sizes["class"]
    found = {name: continued(unit(data[name].values), margins) for name in ("weight_gram", "feature_gram")}

    def farthest(wanted: dict[str, np.ndarray]) -> np.ndarray:
        """Larger distance of weights and features, (problem, seed)."""
        return np.max([distance(found[name], unit(wanted[name])[:, None]) for name in found], axis=0)

    right = {name: data[f"predicted_{name}"].values for name in found}
    simplex = dict.fromkeys(found, np.broadcast_to(np.eye(k) - 1 / k, right["weight_gram"].shape))
    others = {name: np.roll(matrices, 1, axis=0) for name, matrices in right.items()}
    return [
        spec.judge(range_interval(_soundly(farthest(right).max(axis=0), data))),
        spec.control(
            "simplex", "the simplex ETF", range_interval(_soundly(farthest(simplex).min(axis=0), data), which="min")
        ),
        spec.control(
            "other-sizes",
            "SELI of other class sizes",
            range_interval(_soundly(farthest(others).min(axis=0), data), which="min"),
        ),
    ]


def _descents(data: xr.Dataset) -> list[Claim]:
    limit, order, scales = CLAIMS["limit"], CLAIMS["order"], data.init_std.values
    is_sound = (data.descent_finite == 1).all(("shape", "init_std")).values
    worst = np.max([data[f"{name}_distance"].values for name in ("weight", "feature", "bias")], axis=0)
    orthogonal = data.orthogonal_distance.values
    small = np.flatnonzero(scales <= 0.011)

    def at(distances: np.ndarray, index: int, reduce: Any) -> np.ndarray:
        return np.where(is_sound, reduce(distances[:, index], axis=0), np.nan)

    def off_order(distances: np.ndarray, reduce: Any) -> np.ndarray:
        found = slope(distances[:, small], np.broadcast_to(scales[small][:, None], distances[:, small].shape))
        return np.where(is_sound, reduce(np.abs(found - 1), axis=0), np.nan)

    smallest, largest = int(scales.argmin()), int(scales.argmax())
    frame = "orthogonal rows of the same lengths"
    return [
        limit.judge(range_interval(at(worst, smallest, np.max))),
        limit.control("large-start", "init_std 0.3", range_interval(at(worst, largest, np.min), which="min")),
        limit.control("orthogonal", frame, range_interval(at(orthogonal, smallest, np.min), which="min")),
        order.judge(range_interval(off_order(worst, np.max))),
        order.control("orthogonal", frame, range_interval(off_order(orthogonal, np.min), which="min")),
    ]
