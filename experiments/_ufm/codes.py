"""More classes than dimensions: at a low temperature cross-entropy on the sphere trains softmax codes."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from jaxtyping import Array, Float, Key

from _ufm.outcome import EFFORT_WORDS, Outcome, outcome
from _ufm.ranges import only, over_seeds, over_starts
from nctheory.claims import AtMost, Claim, ClaimSpec, Within
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import solve
from nctheory.theory.softmax_codes import one_vs_rest_distance, softmax_code

TOLERANCE, MAX_EVALUATIONS = 1e-9, 500
SAMPLES = 3
TEMPERATURES = (1.0, 1 / 5, 1 / 20, 1 / 50)
SMALL = 8
# Of the search for a code where theory has no closed value.
SEARCH_SEED = 1000
# Starts whose loss exceeds the least one by less, relatively, have reached the same minimum.
SAME_LOSS = 1e-6
WITHIN = Within(0.999, 1 + 1e-6)
SOURCE = "Jiang et al. (2024), as quoted in secondary sources; values proven or searched in theory.softmax_codes"

CLAIMS = {
    "margin": ClaimSpec(
        "codes/one-vs-rest-margin",
        SOURCE,
        "GNC2, K > d+1, temperature 1/50: the weights of least loss have the one-vs-rest margin of a softmax code; "
        "ratio to it",
        1.0,
        WITHIN,
    ),
    "bound": ClaimSpec(
        "codes/never-above-one",
        "derived here (theory.softmax_codes): Radon partition",
        "K > d+1: no trained weights, at any temperature, have a one-vs-rest margin above 1; largest",
        float("nan"),
        AtMost(1 + 1e-9),
    ),
    "within": ClaimSpec(
        "codes/within-class-collapse",
        SOURCE,
        "GNC1, K > d+1, temperature 1/50: largest distance of a unit feature from the mean of its class",
        0.0,
        AtMost(1e-6),
    ),
    "duality": ClaimSpec(
        "codes/self-duality",
        SOURCE,
        "GNC3, K > d+1, temperature 1/50: mean over classes of 1 - cosine(class mean, weight)",
        0.0,
        AtMost(1e-6),
    ),
}


@dataclass(frozen=True)
class Scale:
    """Which codes are trained.

    Attributes:
        codes: classes and dimensions; K = d+1 serves as a control.
    """

    codes: tuple[tuple[int, int], ...] = ((8, 3), (6, 3), (5, 2), (4, 3))


DEFAULT = Scale()
SMOKE = Scale(codes=((5, 2),))


def scale_of(bench: Bench) -> Scale:
    """The smallest size where the experiment's own scale has few starts."""
    return SMOKE if bench.scale.num_seeds < SMALL else DEFAULT


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogProblem(UfmProblem):
    """The problem without decay, its objective replaced by the logarithm of the loss.

    The minimisers are the same. At a low temperature the loss and its gradient are tiny everywhere (exp(-35) at 1/50),
    so that a gradient norm would say nothing; that of the logarithm is relative.
    """

    def objective(self, params: UfmParams) -> Float[Array, ""]:
        """Evaluate the logarithm of the mean cross-entropy."""
        return jnp.log(self.data_loss(params))


def problem_of(num_classes: int, dim: int, temperature: float) -> LogProblem:
    """Unit weights and features whose inner products are divided by the temperature."""
    radius = temperature**-0.5
    return LogProblem(
        (SAMPLES,) * num_classes,
        dim,
        1,
        loss="cross_entropy",
        weight_decay=0.0,
        feature_decay=0.0,
        features="spherical",
        weights="spherical",
        feature_radius=radius,
        weight_radius=radius,
        init_std=1.0,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trained(Outcome):
    """Where one start ended, and the geometry there; `finite` refers to the margin too."""

    margin: Float[Array, ""]
    margin_lower_bound: Float[Array, ""]
    start_margin: Float[Array, ""]
    gnc1: Float[Array, ""]
    gnc1_shifted: Float[Array, ""]
    gnc3: Float[Array, ""]
    gnc3_shifted: Float[Array, ""]

    @property
    def log_loss(self) -> Float[Array, ""]:
        """The objective, which is the logarithm of the cross-entropy."""
        return self.loss


def train(problem: LogProblem, key: Key[Array, ""]) -> Trained:
    """Minimise from the start of this key and measure the code; pure, for `simulator.sweep`.

    Args:
        problem: unit weights and features at a temperature.
        key: PRNG key of the start.

    Returns:
        The measurements.
    """
    found = solve(problem, key, tolerance=TOLERANCE, max_evaluations=MAX_EVALUATIONS, keep_params=True)
    assert found.params is not None
    weights, features = _unit(found.params.weights[0]), _unit(found.params.features)
    distance = one_vs_rest_distance(weights)
    means, spread = _spread(features)
    return Trained(
        **outcome(found, finite=found.finite & jnp.isfinite(distance.margin)),
        margin=distance.margin,
        margin_lower_bound=distance.margin_lower_bound,
        start_margin=one_vs_rest_distance(_unit(problem.init(key).weights[0])).margin,
        gnc1=spread,
        gnc1_shifted=_spread(jnp.roll(features, 1, axis=0))[1],
        gnc3=_misalignment(means, weights),
        gnc3_shifted=_misalignment(means, jnp.roll(weights, 1, axis=0)),
    )


def _unit(rows: Any) -> jax.Array:
    return rows / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))


def _spread(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Class means, and the largest distance from them."""
    grouped = features.reshape(-1, SAMPLES, features.shape[1])
    means = jnp.mean(grouped, axis=1)
    return means, jnp.max(jnp.sqrt(jnp.sum((grouped - means[:, None, :]) ** 2, axis=2)))


def _misalignment(means: jax.Array, weights: jax.Array) -> jax.Array:
    return 1 - jnp.mean(jnp.sum(_unit(means) * weights, axis=1))


def prepare(bench: Bench) -> None:
    """Announce one sweep over temperatures for every code, in float64."""
    with jax.enable_x64(True):
        for k, d in scale_of(bench).codes:
            configs = [problem_of(k, d, temperature) for temperature in TEMPERATURES]
            bench.prepare(f"code_K{k}_d{d}", configs, seeds=bench.seeds, train=train)


SEED_VARIABLES = {
    "log_loss": "logarithm of the cross-entropy where the start ended",
    "gradient_norm": "norm of its gradient",
    "converged": f"whether that is at most {TOLERANCE:g}",
    "finite": "whether loss, gradient and margin are finite",
    **EFFORT_WORDS,
    "margin": "one-vs-rest margin of the unit weights",
    "margin_lower_bound": "certified lower bound of it",
    "start_margin": "margin of the random unit vectors that the start began with",
    "gnc1": "largest distance of a unit feature from the mean of its class",
    "gnc1_shifted": "the same with one feature of every class counted to the next",
    "gnc3": "mean over classes of 1 - cosine(class mean, weight)",
    "gnc3_shifted": "the same with the weight of the class before",
}
PREDICTED = {
    "margin": "largest one-vs-rest margin (theory.softmax_code), the best found by a search where is_proven is 0",
    "is_proven": "whether that is a closed value",
    "polygon_margin": "two dimensions: margin of the polygon with one class more; NaN otherwise",
    "simplex_margin": "K/(K-1), margin of a simplex ETF",
}


def predict(num_classes: int, dim: int) -> dict[str, float]:
    """Theory's margin and wrong ones. Call with 64-bit numbers on."""
    code = softmax_code(num_classes, dim, key=jax.random.key(SEARCH_SEED))
    return {
        "margin": float(code.margin),
        "is_proven": float(code.is_optimal),
        "polygon_margin": 1 - math.cos(2 * math.pi / (num_classes + 1)) if dim == 2 else math.nan,
        "simplex_margin": num_classes / (num_classes - 1),
    }


def measure(bench: Bench) -> xr.Dataset:
    """Train every code at every temperature and put theory's margins beside the results."""
    codes = scale_of(bench).codes
    histories = [bench.sweep(f"code_K{k}_d{d}").history for k, d in codes]
    with jax.enable_x64(True):
        predictions = [predict(k, d) for k, d in codes]
    arrays: dict[str, tuple] = {}
    for name, words in SEED_VARIABLES.items():
        values = np.concatenate([np.asarray(getattr(history, name)) for history in histories])
        arrays[name] = (("condition", "seed"), values, dimensionless(words))
    for name, words in PREDICTED.items():
        values = np.repeat([prediction[name] for prediction in predictions], len(TEMPERATURES))
        arrays[f"predicted_{name}"] = ("condition", values, dimensionless(words))
    coords: dict[str, Any] = {"seed": bench.seeds}
    for index, name in enumerate(("num_classes", "dim")):
        coords[f"condition_{name}"] = ("condition", np.repeat([code[index] for code in codes], len(TEMPERATURES)))
    coords["condition_temperature"] = ("condition", np.tile(TEMPERATURES, len(codes)))
    return xr.Dataset(arrays, coords=coords)


def at_least_loss(data: xr.Dataset) -> np.ndarray:
    """Which starts (condition, seed) reached the least loss of their condition."""
    finite = data.log_loss.where(data.finite == 1)
    return (finite <= finite.min("seed") + SAME_LOSS).transpose("condition", "seed").values


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge every claim from the stored arrays; what no condition was run for is left out."""
    crowded = only(data, data.condition_num_classes.values > data.condition_dim.values + 1)
    cold = only(crowded, crowded.condition_temperature.values == min(TEMPERATURES))
    spread, duality = CLAIMS["within"], CLAIMS["duality"]

    def over_best(name: str, which: str = "max"):
        return over_starts(cold[name].values, at_least_loss(cold), cold, which)

    return [
        *_margins(data, crowded, cold),
        spread.judge(over_best("gnc1")),
        spread.control("wrong-classes", "one feature of every class counted to the next", over_best("gnc1_shifted")),
        duality.judge(over_best("gnc3")),
        duality.control("wrong-weights", "the weight of another class", over_best("gnc3_shifted", "min")),
    ]


def _margins(data: xr.Dataset, crowded: xr.Dataset, cold: xr.Dataset) -> list[Claim]:
    margin, bound = CLAIMS["margin"], CLAIMS["bound"]

    def ratio(part: xr.Dataset, name: str, which: str):
        return over_starts((part.margin / part[f"predicted_{name}"]).values, at_least_loss(part), part, which)

    claims = [
        margin.judge(ratio(cold, "margin", "min")),
        margin.control(
            "random-vectors",
            "random unit vectors instead of trained ones",
            over_seeds(cold.start_margin / cold.predicted_margin, cold),
        ),
        margin.control("simplex", "against the margin K/(K-1) of a simplex", ratio(cold, "simplex_margin", "max")),
    ]
    plane = only(cold, cold.condition_dim.values == 2)
    if plane.sizes["condition"]:
        words = "in the plane, against the polygon with one class more"
        claims.append(margin.control("next-polygon", words, ratio(plane, "polygon_margin", "min")))
    # A polygon and a cross-polytope are minima at every temperature, by symmetry.
    warm = only(crowded, (crowded.predicted_is_proven.values == 0) & (crowded.condition_temperature.values == 1))
    if warm.sizes["condition"]:
        words = "at temperature 1, a code that symmetry alone does not fix"
        claims.append(margin.control("high-temperature", words, ratio(warm, "margin", "max")))
    simplex = only(data, data.condition_num_classes.values == data.condition_dim.values + 1)
    simplex = only(simplex, simplex.condition_temperature.values == min(TEMPERATURES))
    if simplex.sizes["condition"]:
        least = over_starts(simplex.margin.values, at_least_loss(simplex), simplex, "min")
        claims.append(bound.judge(over_seeds(crowded.margin, crowded)))
        claims.append(bound.control("simplex-fits", "one class fewer: K = d+1", least))
    return claims
