"""Minima from random starts: every condition solved to machine accuracy over seeds, beside what theory predicts."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from jaxtyping import Array, Float, Int, Key

from _ufm.conditions import Condition, conditions, padded
from _ufm.grams import distance, sample_gradient_norm
from _ufm.outcome import EFFORT_WORDS, Outcome, outcome
from _ufm.predictions import predict, targets
from _ufm.sizes import SizedProblem
from nctheory.simulator.layer_geometry import FrameTargets, LayerGeometry, layer_geometry
from nctheory.simulator.solver import solve

MAX_EVALUATIONS, TOLERANCE = 4000, 1e-10
# A class is dead if its feature is this much shorter than the longest one, or all are as good as zero.
DEAD_LENGTH = 1e-4
LAYER_METRICS = tuple(LayerGeometry.__dataclass_fields__)
# Far below the tolerance of every claim, far above rounding.
AT_MINIMUM = 1e-8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SolveConfig:
    """A problem and the frames that its layers are compared with."""

    problem: SizedProblem
    targets: FrameTargets
    weight_gram: Any
    feature_gram: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solved(Outcome):
    """Where one start ended, and the geometry there."""

    num_dead: Int[Array, ""]
    class_weight_squares: Float[Array, " K"]
    class_feature_squares: Float[Array, " K"]
    class_logits: Float[Array, " K"]
    fitted_fractions: Float[Array, " K"]
    weight_gram_distance: Float[Array, ""]
    feature_gram_distance: Float[Array, ""]
    last_pair_cosine: Float[Array, ""]
    last_pair_distance: Float[Array, ""]
    layers: LayerGeometry


def solve_and_measure(config: SolveConfig, key: Key[Array, ""]) -> Solved:
    """Minimise from the start of this key and measure every layer; pure, for `simulator.sweep`.

    Args:
        config: the problem and the predicted frames.
        key: PRNG key of the start.

    Returns:
        The measurements.
    """
    found = solve(config.problem, key, tolerance=TOLERANCE, max_evaluations=MAX_EVALUATIONS, keep_params=True)
    assert found.params is not None
    problem, params = config.problem, found.params
    gradient_norm = sample_gradient_norm(problem, params)
    features, products = problem.layer_features(params), problem.left_products(params)
    logits = products[0] @ features[0].T
    lengths = jnp.sum(features[0] ** 2, axis=1)
    pair = products[0][-2:]
    norms = jnp.sqrt(jnp.sum(pair**2, axis=1))
    return Solved(
        **outcome(found, gradient_norm=gradient_norm, converged=gradient_norm <= TOLERANCE),
        num_dead=jnp.sum(lengths <= DEAD_LENGTH**2 * jnp.maximum(jnp.max(lengths), DEAD_LENGTH), dtype=jnp.int32),
        class_weight_squares=jnp.sum(products[0] ** 2, axis=1),
        class_feature_squares=lengths,
        class_logits=jnp.diagonal(logits),
        # Modes of equal classes may be any rotation of the classes; singular values tell them apart.
        fitted_fractions=jnp.linalg.svd(jnp.sqrt(problem.sizes)[None, :] * logits, compute_uv=False)
        / jnp.sqrt(jnp.sort(problem.sizes)[::-1]),
        weight_gram_distance=distance(products[0] @ products[0].T, config.weight_gram),
        feature_gram_distance=distance(features[0] @ features[0].T, config.feature_gram),
        last_pair_cosine=jnp.sum(pair[0] * pair[1]) / (norms[0] * norms[1]),
        last_pair_distance=jnp.sqrt(jnp.sum((pair[0] - pair[1]) ** 2)) / jnp.sqrt(jnp.max(lengths)),
        layers=layer_geometry(
            features, products, problem.labels, num_classes=problem.num_classes, targets=config.targets
        ),
    )


def prepare(bench: Bench) -> None:
    """Announce one sweep for every compiled program, in float64."""
    with jax.enable_x64(True):
        for name, group in _programs(bench):
            configs = [_config(condition) for condition in group]
            bench.prepare(name, configs, seeds=bench.seeds, train=solve_and_measure)


def _programs(bench: Bench) -> list[tuple[str, list[Condition]]]:
    # The deepest first: they compile longest.
    ordered = sorted(conditions(bench.scale), key=lambda each: (-each.depth, each.program))
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda each: each.program)]


def _config(condition: Condition) -> SolveConfig:
    prediction = predict(condition)
    return SolveConfig(condition.problem, targets(prediction), prediction["weight_gram"], prediction["feature_gram"])


def measure(bench: Bench) -> xr.Dataset:
    """Solve every condition over seeds and put the predictions beside the results."""
    listed, results, predictions = [], [], []
    for name, group in _programs(bench):
        history = bench.sweep(name).history
        for index, condition in enumerate(group):
            listed.append(condition)
            results.append(jax.tree.map(lambda leaf, i=index: leaf[i], history))
            with jax.enable_x64(True):
                predictions.append(predict(condition))
    return _dataset(bench, listed, results, predictions)


SEED_VARIABLES = {
    "loss": "regularised loss where the start ended",
    "gradient_norm": "norm of its gradient",
    "converged": "whether that is at most 1e-10",
    "finite": "whether loss and gradient are finite",
    **EFFORT_WORDS,
    "num_dead": f"classes whose feature is shorter than {DEAD_LENGTH:g} times the longest",
    "weight_gram_distance": "|A A^T - predicted|/|predicted|, Frobenius",
    "feature_gram_distance": "|Gram matrix of the class features - predicted|/|predicted|, Frobenius",
    "last_pair_cosine": "cosine between the rows of A of the two last classes",
    "last_pair_distance": "distance between these rows over the length of the longest class feature",
}
CLASS_VARIABLES = {
    "class_weight_squares": "squared norm of a class's row of A = W_M ... W_1",
    "class_feature_squares": "squared norm of a class's feature",
    "class_logits": "diagonal of A times the class features",
    "fitted_fractions": "fitted fraction of every mode, for equal classes; largest first",
}
PREDICTED = {
    "loss": "global minimum by theory; NaN where theory has none",
    "num_dead": "dead classes at the global minimum",
    "published_loss": "the same with the published code's threshold",
    "missing_factor_loss": "the same without the factor M in q",
    "etf_loss": "best loss with simplex-ETF logits (one layer: balanced classes of the mean size)",
    "low_rank_loss": "loss of the explicit low-rank solution",
    "is_unique": "whether the Gram matrices of all global minimisers agree",
}


def _dataset(bench: Bench, listed: list[Condition], results: list[Solved], predictions) -> xr.Dataset:
    most, deepest = max(each.num_classes for each in listed), max(each.depth for each in listed)
    arrays: dict[str, tuple] = {}
    for name, words in SEED_VARIABLES.items():
        values = np.stack([np.asarray(getattr(result, name)) for result in results])
        arrays[name] = (("condition", "seed"), values, dimensionless(words))
    for name, words in CLASS_VARIABLES.items():
        values = np.stack([padded(getattr(result, name), most) for result in results])
        arrays[name] = (("condition", "seed", "class"), values, dimensionless(words))
    for name in LAYER_METRICS:
        values = np.stack([padded(getattr(result.layers, name), deepest) for result in results])
        words = "distance from collapse at every layer, as in simulator.LayerGeometry"
        arrays[name] = (("condition", "seed", "layer"), values, dimensionless(words))
    for name, words in PREDICTED.items():
        values = np.asarray([prediction[name] for prediction in predictions])
        arrays[f"predicted_{name}"] = ("condition", values, dimensionless(words))
    for kind in ("weight", "feature"):
        squares = [padded(np.diag(prediction[f"{kind}_gram"]), most) for prediction in predictions]
        words = dimensionless("predicted squared norm of a class")
        arrays[f"predicted_{kind}_squares"] = (("condition", "class"), np.stack(squares), words)
    sizes = np.stack([padded(np.asarray(each.class_sizes), most) for each in listed])
    arrays["class_sizes"] = (("condition", "class"), sizes, {"units": "samples", "definition": "n_k"})
    coords: dict[str, Any] = {"seed": bench.seeds, "layer": np.arange(1, deepest + 1), "class": np.arange(most)}
    for name in ("kind", "loss", "depth", "balance", "width", "decay", "bias", "num_classes"):
        coords[f"condition_{name}"] = ("condition", np.asarray([getattr(each, name) for each in listed]))
    return xr.Dataset(arrays, coords=coords)


def relative_gap(data: xr.Dataset) -> xr.DataArray:
    """Loss over the predicted minimum, minus 1."""
    return data.loss / data.predicted_loss - 1


def is_at_minimum(data: xr.Dataset) -> xr.DataArray:
    """Which starts ended at the global minimum: loss within 1e-8 of it, gradient zero to 1e-10."""
    return (abs(relative_gap(data)) <= AT_MINIMUM) & (data.converged == 1)


def is_caught(data: xr.Dataset) -> xr.DataArray:
    """Which starts converged elsewhere with more dead classes than the global minimum has."""
    return (data.converged == 1) & ~is_at_minimum(data) & (data.num_dead > data.predicted_num_dead)
