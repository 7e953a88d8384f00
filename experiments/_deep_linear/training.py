"""Full-batch training of an MLP with a deep linear head under the penalties of the theory, for `simulator.sweep`.

`simulator.train` decays every weight alike; here the decay falls on the linear layers and on the features that enter
them, and on nothing else.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from nctheory import objectives, simulator
from nctheory._types import AnyArray

# The streams of `simulator.train`: data 0, initial weights 1. Nothing else is random.
MODEL_STREAM = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadConfig:
    """One condition: data, network with its decays, and optimiser.

    Attributes:
        data: the images.
        model: network; its `linear_decay` and `feature_decay` are the theory's lambda_m and lambda_H.
        targets: predicted squared lengths, to compare every layer with.
        learning_rate: first step size of Adam; it falls to 0 along a half cosine.
        num_steps: full-batch updates.
        num_records: log-spaced measurements, first before training, last at the end.
    """

    data: simulator.FixedData
    model: simulator.DeepLinearSpec
    targets: simulator.FrameTargets
    learning_rate: float | Float[Array, ""]
    num_steps: int = field(metadata={"static": True})
    num_records: int = field(metadata={"static": True})

    @property
    def record_steps(self) -> Int[np.ndarray, " T"]:
        """Steps that are measured: 0, then log-spaced up to `num_steps`, without repetitions."""
        return simulator.record_steps(self.num_steps, self.num_records)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadHistory:
    """Measurements of one run at T records.

    Attributes:
        objective: |f - y|^2/(2N) + sum_m (lambda_m/2)|W_m|^2 + (lambda_H/2) sum_i |F_1(x_i)|^2.
        data_loss: its first term.
        gradient_norm: Euclidean norm of the objective's gradient.
        train_accuracy: share of training images whose class is right.
        test_accuracy: the same on held-out images.
        geometry: distances from collapse at every layer.
        weight_squares: |row k of A_m|^2, A_m = W_M ... W_m.
        feature_squares: |mean of class k in F_m|^2.
        logits: row k of A_1 times the mean of class k, the mean output of class k for itself.
        finite: whether the objective stayed finite at every record.
    """

    objective: Float[Array, "*batch T"]
    data_loss: Float[Array, "*batch T"]
    gradient_norm: Float[Array, "*batch T"]
    train_accuracy: Float[Array, "*batch T"]
    test_accuracy: Float[Array, "*batch T"]
    geometry: simulator.LayerGeometry
    weight_squares: Float[Array, "*batch T M K"]
    feature_squares: Float[Array, "*batch T M K"]
    logits: Float[Array, "*batch T K"]
    finite: Bool[Array, "*batch"]


class _State(NamedTuple):
    params: Any
    optimizer: Any


def train(config: HeadConfig, key: Key[Array, ""]) -> HeadHistory:
    """Train one network and measure every layer of its head at log-spaced steps.

    Pure, and a function of the seed's key alone: the images are the same for every seed, the initial weights come from
    the stream `MODEL_STREAM`.

    Args:
        config: the condition.
        key: PRNG key of the seed.

    Returns:
        The measurements, NaN from the first non-finite step on.
    """
    samples, fresh = config.data.draw(key)
    rngs = nnx.Rngs(jax.random.fold_in(key, MODEL_STREAM))
    graph, params, frozen = nnx.split(
        config.model.build(samples.inputs.shape[1], config.data.num_labels, rngs), nnx.Param, ...
    )
    targets = jax.nn.one_hot(samples.labels, config.data.num_labels, dtype=samples.inputs.dtype)

    def objective(params):
        return head_objective(config.model, nnx.merge(graph, params, frozen), samples.inputs, targets)

    optimizer = optax.adam(_schedule(config))

    def update(_, state: _State) -> _State:
        gradient = jax.grad(lambda p: objective(p)[0])(state.params)
        change, memory = optimizer.update(gradient, state.optimizer, state.params)
        return _State(optax.apply_updates(state.params, change), memory)

    def to_next_record(state: _State, gap: jax.Array) -> tuple[_State, HeadHistory]:
        state = lax.fori_loop(0, gap, update, state)
        (value, data_loss), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        measured = _measure(config, nnx.merge(graph, state.params, frozen), samples, fresh)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value)
        return state, HeadHistory(value, data_loss, norm, **measured, finite=finite)

    gaps = jnp.asarray(np.diff(config.record_steps, prepend=0), dtype=jnp.int32)
    _, history = lax.scan(to_next_record, _State(params, optimizer.init(params)), gaps)
    return replace(history, finite=jnp.all(history.finite))


def head_objective(
    spec: simulator.DeepLinearSpec,
    model: simulator.DeepLinear,
    inputs: Float[AnyArray, "N d"],
    targets: Float[AnyArray, "N K"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Objective of the theory and its data term: the loss plus `DeepLinear.penalty`, in one pass of the backbone.

    Args:
        spec: holds the decays.
        model: the network.
        inputs: images.
        targets: one-hot labels.

    Returns:
        Objective and data term, dimensionless.
    """
    entering = model.linear_features(inputs)
    kernels = [*(kernel[...] for kernel in model.linear), model.readout[...]]
    data_loss = objectives.mse(model.outputs(entering[-1]), targets)
    decays = jnp.broadcast_to(jnp.asarray(spec.linear_decay), (len(kernels),)).astype(inputs.dtype)
    total = data_loss + jnp.asarray(spec.feature_decay).astype(inputs.dtype) / 2 * jnp.sum(entering[0] ** 2)
    for m, kernel in enumerate(kernels):
        total = total + decays[m] / 2 * jnp.sum(kernel**2)
    return total, data_loss


def _schedule(config: HeadConfig):
    shape = optax.cosine_decay_schedule(1.0, config.num_steps)
    return lambda step: config.learning_rate * shape(step)


def _measure(config: HeadConfig, model: simulator.DeepLinear, samples, fresh) -> dict[str, Any]:
    features, products = model.linear_features(samples.inputs), model.left_products()
    num_classes = config.data.num_labels
    geometry = simulator.layer_geometry(
        features, products, samples.labels, num_classes=num_classes, targets=config.targets
    )
    members = jax.nn.one_hot(samples.labels, num_classes, axis=0, dtype=samples.inputs.dtype)
    means = [members @ entering / jnp.sum(members, axis=1)[:, None] for entering in features]
    return {
        "train_accuracy": objectives.accuracy(model.outputs(features[-1]), samples.labels),
        "test_accuracy": objectives.accuracy(model(fresh.inputs), fresh.labels),
        "geometry": geometry,
        "weight_squares": jnp.stack([jnp.sum(product**2, axis=1) for product in products]),
        "feature_squares": jnp.stack([jnp.sum(mean**2, axis=1) for mean in means]),
        "logits": jnp.sum(products[0] * means[0], axis=1),
    }
