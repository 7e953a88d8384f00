"""Minima from random starts, stored as loss and Gram matrices of weights and class features."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _bench import dimensionless
from jaxtyping import Array, Float

from _ufm.outcome import EFFORT_WORDS, Outcome, outcome
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import minimize_from


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minimum(Outcome):
    """Where one start of a one-layer problem at class level ended."""

    weight_gram: Float[Array, "K K"]
    feature_gram: Float[Array, "K K"]
    logits: Float[Array, "K K"]


WORDS = {
    "loss": "objective where the start ended, its decay included",
    "gradient_norm": "norm of its gradient, every class feature repeated for its samples; of the part that may move",
    "converged": "whether that is at most the tolerance",
    **EFFORT_WORDS,
    "finite": "whether loss and gradient are finite",
    "weight_gram": "W W^T",
    "feature_gram": "inner products of the class features",
    "logits": "W times the class features, one column a class",
}
_MATRICES = ("weight_gram", "feature_gram", "logits")


def minimum_from(problem: UfmProblem, start: UfmParams, *, tolerance: float, max_evaluations: int) -> Minimum:
    """Minimise a one-layer problem at class level from a start; pure, for `simulator.sweep`.

    Args:
        problem: the problem.
        start: where to start.
        tolerance: of the gradient norm.
        max_evaluations: after which the start gives up.

    Returns:
        The measurements.
    """
    # The gradient is evaluated afresh below: half of the tolerance leaves room for its rounding.
    found = minimize_from(problem, start, tolerance=tolerance / 2, max_evaluations=max_evaluations)
    assert found.params is not None
    features, weight = problem.layer_features(found.params)[0], problem.product(found.params)
    norm = sample_gradient_norm(problem, found.params)
    return Minimum(
        **outcome(found, gradient_norm=norm, converged=norm <= tolerance),
        weight_gram=weight @ weight.T,
        feature_gram=features @ features.T,
        logits=weight @ features.T,
    )


def sample_gradient_norm(problem: UfmProblem, params: UfmParams) -> Float[Array, ""]:
    """Norm of the gradient of the problem in which a class feature is repeated for each of its samples.

    Of non-negative features only the part that may move counts.
    """
    gradient = jax.grad(problem.objective)(params)
    features = gradient.features / jnp.sqrt(jnp.asarray(problem.row_weights, dtype=float))[:, None]
    if problem.features == "nonnegative":
        features = jnp.where((params.features <= 0) & (features > 0), 0.0, features)
    leaves = jax.tree.leaves(replace(gradient, features=features))
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros((), features.dtype)))


def stored(histories: list[Minimum]) -> dict[str, tuple]:
    """Variables of a dataset from sweeps over the same seeds: conditions one after another."""
    arrays: dict[str, tuple] = {}
    for name, words in WORDS.items():
        values = np.concatenate([np.asarray(getattr(each, name)) for each in histories])
        dims = ("condition", "seed", "class", "other_class") if name in _MATRICES else ("condition", "seed")
        arrays[name] = (dims, values, dimensionless(words))
    return arrays


def matrices(values: Any, words: str) -> tuple:
    """Variable that holds one matrix over classes for every condition."""
    return ("condition", "class", "other_class"), np.stack([np.asarray(each) for each in values]), dimensionless(words)


def distance(measured: Any, predicted: Any) -> Any:
    """Frobenius distance over the norm of the prediction, on the last two axes; of JAX arrays inside a sweep, too."""
    library = jnp if isinstance(measured, jax.Array) else np
    predicted = library.asarray(predicted).astype(measured.dtype)
    difference = library.linalg.norm(measured - predicted, axis=(-2, -1))
    return difference / library.linalg.norm(predicted, axis=(-2, -1))
