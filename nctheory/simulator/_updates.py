"""What training loops of the simulator share: objective, optimiser with its schedule, split of a network."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nctheory import objectives
from nctheory._types import AnyArray
from nctheory.simulator.mixtures import Samples
from nctheory.simulator.models import Model

if TYPE_CHECKING:
    from nctheory.simulator.train import TrainConfig

SCHEDULES = ("constant", "cosine", "step", "one_cycle")
# Of "one_cycle": share of the steps in which the rate rises, peak over first rate, first over last rate.
RISE, RISE_FACTOR, FALL_FACTOR = 0.3, 10.0, 5e4


def data_loss(config: "TrainConfig", outputs: Float[Array, "N C"], labels: Int[AnyArray, " N"]) -> Float[Array, ""]:
    """Data term of the objective: the configured loss without weight decay.

    Args:
        config: the run; names the loss.
        outputs: of the network, one column for the scalar losses, else one a label.
        labels: label of each sample, 0..num_labels-1.

    Returns:
        Mean over samples, in the unit of the loss (nat for the logarithmic ones).
    """
    if config.loss == "cross_entropy":
        return objectives.cross_entropy(outputs, labels)
    if config.loss == "mse":
        return objectives.mse(outputs, jax.nn.one_hot(labels, config.num_outputs, dtype=outputs.dtype))
    signs = (2 * jnp.asarray(labels) - 1).astype(outputs.dtype)
    if config.loss == "logistic":
        return objectives.logistic(outputs[:, 0], signs)
    return objectives.mse(outputs, signs[:, None])


def split(model: Model) -> tuple[Any, Any, Any]:
    """Structure, trained parameters and all else of a network."""
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    return graph, params, frozen


def make_objective(config: "TrainConfig", graph: Any, frozen: Any) -> Any:
    """Regularised objective as a function of (parameters, samples)."""
    scored = make_scored_objective(config, graph, frozen)
    return lambda params, samples: scored(params, samples)[0]


def make_scored_objective(config: "TrainConfig", graph: Any, frozen: Any) -> Any:
    """Regularised objective, and the network's outputs beside it, as a function of (parameters, samples)."""

    def objective(params: Any, samples: Samples) -> tuple[jax.Array, jax.Array]:
        outputs = nnx.merge(graph, params, frozen)(samples.inputs)
        penalty = objectives.l2_penalty(params, config.weight_decay)
        return data_loss(config, outputs, samples.labels) + penalty, outputs

    return objective


def make_optimizer(config: "TrainConfig") -> optax.GradientTransformation:
    """Optimiser of a run, with its schedule."""
    rate: Any = config.learning_rate
    if config.schedule != "constant":
        shape = _shape(config.schedule, config.num_steps)
        # As a real number: some of the schedules compare the step with one.
        rate = lambda step: config.learning_rate * shape(jnp.asarray(step, dtype=float))  # noqa: E731
    if config.optimizer == "adam":
        return optax.adam(rate)
    if config.optimizer in ("momentum", "nesterov"):
        return optax.sgd(rate, momentum=config.momentum, nesterov=config.optimizer == "nesterov")
    return optax.sgd(rate)


def _shape(schedule: str, num_steps: int) -> Any:
    """Rate of each step as a share of the largest."""
    if schedule == "cosine":
        return optax.cosine_decay_schedule(1.0, num_steps)
    if schedule == "step":
        return optax.piecewise_constant_schedule(1.0, {num_steps // 3: 0.1, 2 * num_steps // 3: 0.1})
    # Not optax's one-cycle schedule, which mixes dtypes.
    top = RISE * num_steps
    first, last = 1 / RISE_FACTOR, 1 / (RISE_FACTOR * FALL_FACTOR)

    def between(start: float, end: float, share: jax.Array) -> jax.Array:
        return end + (start - end) * (1 + jnp.cos(jnp.pi * share)) / 2

    def one_cycle(step: jax.Array) -> jax.Array:
        fall = jnp.clip((step - top) / (num_steps - top), 0.0, 1.0)
        return jnp.where(step < top, between(first, 1.0, step / top), between(1.0, last, fall))

    return one_cycle
