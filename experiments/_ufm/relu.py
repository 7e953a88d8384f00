"""ReLU between the layers: collapse is the minimum for two classes, and is beaten by graphs for many.

Every program solves one (classes, layers) from several kinds of starts, which are leaves: an explicit point of theory
plus noise (the best collapsed solution, or the strongly-regular-graph solution), or noise alone. ReLU has kinks, and
graph solutions lie on them: there no gradient vanishes, `converged` stays false, and a loss is an upper bound only.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from jaxtyping import Array, Float, Key

from _ufm.outcome import EFFORT_WORDS, Outcome, outcome
from _ufm.ranges import bracket, only, over_conditions, over_seeds
from _ufm.relu_problems import AROUND, EXPLICIT_NOISE, RANDOM_START, Condition, conditions, predict, scale_of, width_of
from nctheory.claims import AtMost, Claim, ClaimSpec, Covers, Interval
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import minimize_from

TOLERANCE = 1e-10
# At a kink the gradient does not vanish, and a start only uses up its evaluations: few where it begins near the end,
# more from random starts, of up to four classes.
MAX_EVALUATIONS, MAX_EVALUATIONS_FEW = 300, 700
# A start whose loss is this close to that of zero has gone there.
AT_ZERO = 1e-8
# Where the graph wins by theory, and where it does not.
WINS = ((6, 4), (10, 3), (10, 4))

TWO, MANY = "Sukenik, Mondelli and Lampert (2023)", "Sukenik, Lampert and Mondelli (2024)"
CLAIMS = {
    "two": ClaimSpec(
        "ReLU/two-classes-collapse",
        f"{TWO}; value derived here (theory.deep_relu)",
        "Two classes, ReLU between 3 or 4 layers: the best of random starts has the loss of deep neural collapse, "
        "largest relative difference",
        0.0,
        AtMost(1e-8),
    ),
    "threshold": ClaimSpec(
        "ReLU/two-classes-threshold",
        f"{TWO}, condition as quoted in secondary sources; derived here (theory.deep_relu)",
        "Two classes: the minimum becomes zero at the predicted decay; bracketed by best starts, in units of it",
        1.0,
        Covers(1.0, 0.1),
    ),
    "points": ClaimSpec(
        "ReLU/explicit-points",
        "derived here (theory.deep_relu)",
        "The simulator's loss at the explicit collapsed and graph solutions is theory's, largest relative difference",
        0.0,
        AtMost(1e-12),
    ),
    "graph": ClaimSpec(
        "ReLU/graph-below-collapse",
        f"{MANY} for the structure; scales and (K, L) derived here (theory.deep_relu)",
        "(K, L) in (6, 4), (10, 3), (10, 4): starts near the graph solution end below the best collapsed solution; "
        "ratio of losses, worst (K, L) in every seed",
        float("nan"),
        AtMost(1 - 1e-3),
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StartConfig:
    """A problem, a point of it, and the standard deviation of the noise that is added to every entry of the point."""

    problem: UfmProblem
    point: UfmParams
    noise: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Improved(Outcome):
    """Where the noisy copy of an explicit point ended, and losses at the point itself, with and without ReLU."""

    explicit_loss: Float[Array, ""]
    explicit_linear_loss: Float[Array, ""]


def improve(config: StartConfig, key: Key[Array, ""]) -> Improved:
    """Add this key's noise to the point and minimise from there; pure, for `simulator.sweep`.

    Args:
        config: problem, point and noise.
        key: PRNG key of the noise.

    Returns:
        The losses.
    """
    problem, leaves = config.problem, jax.tree.leaves(config.point)
    noise = jnp.asarray(config.noise, dtype=float)
    noisy = [leaf + noise * jax.random.normal(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)]
    start = jax.tree.unflatten(jax.tree.structure(config.point), noisy)
    limit = MAX_EVALUATIONS if problem.num_classes > 4 else MAX_EVALUATIONS_FEW
    found = minimize_from(problem, start, tolerance=TOLERANCE, max_evaluations=limit)
    return Improved(
        **outcome(found),
        explicit_loss=problem.objective(config.point),
        explicit_linear_loss=replace(problem, activation="identity").objective(config.point),
    )


def config_of(condition: Condition) -> StartConfig:
    """The start of a condition. Call with 64-bit numbers on."""
    problem, known = condition.problem, condition.theory
    if condition.start == "random":
        zero = jax.tree.map(np.zeros_like, known.collapse)
        return StartConfig(problem, zero, RANDOM_START * width_of(condition.num_classes) ** -0.5)
    point = known.collapse if condition.start == "collapse" else known.graph
    assert point is not None
    return StartConfig(problem, point, EXPLICIT_NOISE)


def prepare(bench: Bench) -> None:
    """Announce one sweep for every (classes, layers), in float64."""
    with jax.enable_x64(True):
        for name, group in _programs(bench).items():
            bench.prepare(name, [config_of(each) for each in group], seeds=bench.seeds, train=improve)


def _programs(bench: Bench) -> dict[str, list[Condition]]:
    groups: dict[str, list[Condition]] = {}
    with jax.enable_x64(True):
        for condition in conditions(scale_of(bench)):
            groups.setdefault(condition.program, []).append(condition)
    return groups


SEED_VARIABLES = {
    "loss": "regularised loss where the start ended",
    "gradient_norm": "norm of its gradient; at a kink of ReLU that of one side",
    "converged": "whether that is at most 1e-10",
    "finite": "whether loss and gradient are finite",
    **EFFORT_WORDS,
    "explicit_loss": "the simulator's loss at the explicit point, without noise (zero for random starts)",
    "explicit_linear_loss": "the same with the ReLU left out",
}
PREDICTED = {
    "collapse_loss": "best collapsed solution (theory.deep_relu_collapse)",
    "sampleless_loss": "the same by the formula without the samples n of a class",
    "graph_loss": "best strongly-regular-graph solution (theory.srg_solution); NaN where no graph has K edges",
    "level": "decay over the one at which the best collapsed solution becomes zero",
    "sampleless_level": "the same without n",
}


def measure(bench: Bench) -> xr.Dataset:
    """Minimise from every start and put theory's losses beside the results."""
    listed, results = [], []
    for name, group in _programs(bench).items():
        history = bench.sweep(name).history
        listed += group
        results += [jax.tree.map(lambda leaf, i=index: leaf[i], history) for index in range(len(group))]
    with jax.enable_x64(True):
        predictions = [predict(each) for each in listed]
    arrays: dict[str, tuple] = {}
    for name, words in SEED_VARIABLES.items():
        values = np.stack([np.asarray(getattr(result, name)) for result in results])
        arrays[name] = (("condition", "seed"), values, dimensionless(words))
    for name, words in PREDICTED.items():
        values = np.asarray([prediction[name] for prediction in predictions])
        arrays[f"predicted_{name}"] = ("condition", values, dimensionless(words))
    coords: dict[str, Any] = {"seed": bench.seeds}
    for name in ("num_classes", "depth", "samples", "decay", "start"):
        coords[f"condition_{name}"] = ("condition", np.asarray([getattr(each, name) for each in listed]))
    return xr.Dataset(arrays, coords=coords)


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge every claim from the stored arrays; what no condition was run for is left out."""
    two = only(data, data.condition_num_classes.values == 2)
    explicit = only(data, data.condition_start.values != "random")
    points, no_relu = CLAIMS["points"], only(explicit, explicit.condition_start.values == "graph")
    theirs = explicit.predicted_graph_loss.where(explicit.condition_start == "graph", explicit.predicted_collapse_loss)
    return [
        *_two_classes(data, two),
        *_threshold(two),
        points.judge(over_seeds(abs(explicit.explicit_loss / theirs - 1), explicit)),
        points.control(
            "no-relu",
            "the graph solutions without ReLU",
            over_seeds(abs(no_relu.explicit_linear_loss / no_relu.predicted_graph_loss - 1), no_relu, "min"),
        ),
        *_graphs(data),
    ]


def best(data: xr.Dataset) -> np.ndarray:
    """Least finite loss over the seeds of every condition."""
    return data.loss.where(data.finite == 1).min("seed").values


def _difference(part: xr.Dataset) -> np.ndarray:
    return np.abs(best(part) / part.predicted_collapse_loss.values - 1)


def _two_classes(data: xr.Dataset, two: xr.Dataset) -> list[Claim]:
    claim = CLAIMS["two"]
    alive = only(two, (two.condition_start.values == "random") & (two.predicted_level.values < min(AROUND) - 0.01))
    four = only(data, (data.condition_num_classes.values == 4) & (data.condition_start.values == "random"))
    wrong = np.abs(best(alive) / alive.predicted_sampleless_loss.values - 1)
    claims = [
        claim.judge(over_conditions(_difference(alive), alive)),
        claim.control("no-samples", "the formula without the samples of a class", over_conditions(wrong, alive, "min")),
    ]
    if four.sizes["condition"]:
        # Signed: what counts is a loss below that of collapse, not a start that is still above it.
        below = 1 - best(four) / four.predicted_collapse_loss.values
        words = "four classes, four layers; how far the best start lies below"
        claims.append(claim.control("four-classes", words, over_conditions(below, four)))
    return claims


def _threshold(two: xr.Dataset) -> list[Claim]:
    spec, wrong = CLAIMS["threshold"], "the formula without the samples of a class"
    return [
        spec.judge(_vanishing_level(two, "predicted_level")),
        spec.control("no-samples", wrong, _vanishing_level(two, "predicted_sampleless_level")),
    ]


def _vanishing_level(two: xr.Dataset, name: str) -> Interval:
    """Largest decay with a minimum below zero's loss, smallest without: over the kinds of starts, every depth."""
    groups: dict[tuple[int, float], float] = {}
    for depth, level, loss in zip(two.condition_depth.values, two[name].values, best(two), strict=True):
        key = int(depth), round(float(level), 9)
        groups[key] = min(groups.get(key, np.inf), loss)
    alive = [level for (_, level), loss in groups.items() if loss < 0.5 - AT_ZERO]
    dead = [level for (_, level), loss in groups.items() if loss >= 0.5 - AT_ZERO]
    return bracket(alive, dead, two, "bracket by the best starts of neighbouring decays")


def _graphs(data: xr.Dataset) -> list[Claim]:
    claim = CLAIMS["graph"]
    pairs = list(zip(data.condition_num_classes.values.tolist(), data.condition_depth.values.tolist(), strict=True))
    is_graph = data.condition_start.values == "graph"
    wins = np.asarray([pair in WINS for pair in pairs])

    def ratio(keep: np.ndarray, which: str) -> Interval:
        part = only(data, keep)
        return over_seeds(part.loss / part.predicted_collapse_loss, part, which)

    claims = [
        claim.judge(ratio(wins & is_graph, "max")),
        claim.control(
            "from-collapse",
            "the same problems from starts near the collapsed solution",
            ratio(wins & (data.condition_start.values == "collapse"), "min"),
        ),
    ]
    small = is_graph & np.asarray([pair == (6, 3) for pair in pairs])
    if small.any():
        claims.append(claim.control("six-classes-three-layers", "(K, L) = (6, 3)", ratio(small, "min")))
    return claims
