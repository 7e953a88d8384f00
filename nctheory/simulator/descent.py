"""Gradient descent with momentum on the unconstrained feature model, as published experiments run it."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.simulator import records
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.layer_geometry import FrameTargets, LayerGeometry, layer_geometry
from nctheory.simulator.solver import gradient_norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DescentConfig:
    """A run of gradient descent with momentum: v <- momentum v + gradient, params <- params - learning_rate v.

    Defaults are those of the published synthetic experiments (Dang et al. 2023, official code), which record every
    step; here `num_records` steps are recorded, log-spaced.

    Attributes:
        problem: what is minimised; non-negative features are set to max(0, H) after every step.
        learning_rate: > 0.
        momentum: in [0, 1).
        num_steps: number of updates, >= 1.
        num_records: number of measurements asked for, first step 0, last step `num_steps`, >= 2.
        targets: lengths of the general orthogonal frames that the layers are compared with, or None.
        keep_params: whether to keep the last parameters.

    Raises:
        ValueError: when a bound above is violated.
    """

    problem: UfmProblem
    learning_rate: Any = 0.1
    momentum: Any = 0.9
    num_steps: int = field(default=30_000, metadata={"static": True})
    num_records: int = field(default=32, metadata={"static": True})
    targets: FrameTargets | None = None
    keep_params: bool = field(default=False, metadata={"static": True})

    def __post_init__(self):
        if type(self.problem) is not object and not isinstance(self.problem, UfmProblem):
            raise ArgumentError(f"Argument `problem` must be a UfmProblem, but is {self.problem!r}.")
        _checks.real("learning_rate", self.learning_rate, minimum=0, exclusive_minimum=True)
        _checks.real("momentum", self.momentum, minimum=0, maximum=1, exclusive_maximum=True)
        _checks.integer("num_steps", self.num_steps, minimum=1)
        _checks.integer("num_records", self.num_records, minimum=2)

    @property
    def record_steps(self) -> Int[np.ndarray, " T"]:
        """Steps that are measured: 0, then log-spaced up to `num_steps`, without repetitions."""
        return records.record_steps(self.num_steps, self.num_records)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DescentHistory:
    """Record of a descent; T measurements.

    Attributes:
        steps: number of updates done at each record.
        objective: objective, decay included.
        gradient_norm: Euclidean norm of its gradient.
        layers: collapse of every layer.
        class_weight_squares: squared norm of every row of A = W_M ... W_1.
        class_feature_squares: squared norm of every class mean of the features.
        params: parameters after the last step, or None unless `keep_params`.
        finite: whether the objective stayed finite at every record.
    """

    steps: Int[Array, "*batch T"]
    objective: Float[Array, "*batch T"]
    gradient_norm: Float[Array, "*batch T"]
    layers: LayerGeometry
    class_weight_squares: Float[Array, "*batch T K"]
    class_feature_squares: Float[Array, "*batch T K"]
    params: UfmParams | None
    finite: Bool[Array, "*batch"]


def descend(config: DescentConfig, key: Key[Array, ""]) -> DescentHistory:
    """Descend from `config.problem.init(key)` and measure at log-spaced steps.

    Pure function of (config, key), so that `simulator.sweep(descend, configs, seeds)` runs many conditions and seeds.

    Args:
        config: the run.
        key: PRNG key of the start.

    Returns:
        The measurements, NaN from the first non-finite step on (see `DescentHistory.finite`).

    Raises:
        ValueError: if the targets do not fit the problem.
    """
    problem = config.problem
    record_steps = config.record_steps
    start = problem.init(key)
    dtype = start.features.dtype
    rate, momentum = (jnp.asarray(value).astype(dtype) for value in (config.learning_rate, config.momentum))

    def update(_, state):
        params, velocity = state
        gradient = jax.grad(problem.objective)(params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
        if problem.features == "nonnegative":
            params = replace(params, features=jnp.maximum(params.features, 0))
        return params, velocity

    def to_next_record(state, gap):
        state = lax.fori_loop(0, gap, update, state)
        return state, _measure(config, state[0])

    gaps = jnp.asarray(np.diff(record_steps, prepend=0), dtype=jnp.int32)
    (params, _), history = lax.scan(to_next_record, (start, jax.tree.map(jnp.zeros_like, start)), gaps)
    return replace(
        history,
        steps=jnp.asarray(record_steps, dtype=jnp.int32),
        params=params if config.keep_params else None,
        finite=jnp.all(history.finite),
    )


def _measure(config: DescentConfig, params: UfmParams) -> DescentHistory:
    problem = config.problem
    value = problem.objective(params)
    features, products = problem.layer_features(params), problem.left_products(params)
    shares = (np.arange(problem.num_classes)[:, None] == problem.labels[None, :]).astype(float)
    shares /= shares.sum(axis=1, keepdims=True)
    means = jnp.asarray(shares, dtype=value.dtype) @ features[0]
    return DescentHistory(
        steps=jnp.zeros((), dtype=jnp.int32),
        objective=value,
        gradient_norm=gradient_norm(problem, params),
        layers=layer_geometry(
            features, products, problem.labels, num_classes=problem.num_classes, targets=config.targets
        ),
        class_weight_squares=jnp.sum(products[0] ** 2, axis=1),
        class_feature_squares=jnp.sum(means**2, axis=1),
        params=None,
        finite=jnp.isfinite(value),
    )
