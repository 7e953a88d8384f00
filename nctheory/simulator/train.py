"""One training run as a pure function of (config, key), ready for `jit` and `vmap`."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from nctheory import _checks, metrics, objectives
from nctheory._errors import ArgumentError
from nctheory.simulator import records
from nctheory.simulator._updates import SCHEDULES, data_loss, make_objective, make_optimizer, split
from nctheory.simulator.data import DataSource
from nctheory.simulator.mixtures import Samples
from nctheory.simulator.models import Model, ModelSpec, UnconstrainedFeaturesSpec

LOSSES = ("logistic", "mse_signs", "cross_entropy", "mse")
OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam")
DATA_STREAM, MODEL_STREAM, BATCH_STREAM = 0, 1, 2


def _lacks(value: Any, method: str) -> bool:
    """Whether a user's value lacks a method; the bare placeholders that JAX puts into pytrees do not count."""
    return type(value) is not object and not hasattr(value, method)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run but its seed.

    Numbers are pytree leaves, so a sweep over them compiles once; names and counts are static. The objective is
    `loss + weight_decay/2 * |trained parameters|^2`.

    Attributes:
        data: where samples come from.
        model: specification of the network.
        loss: "logistic" (one output, two labels), "mse_signs" (one output, targets -1 and +1), "cross_entropy" or "mse"
            (one output a label, one-hot targets). MSE is |f - y|^2/(2N).
        optimizer: "gd" (full batch), "sgd" (needs `batch_size`), "momentum" (heavy ball), "nesterov" or "adam".
        learning_rate: step size, > 0.
        momentum: coefficient of "momentum" and "nesterov", in [0, 1).
        weight_decay: lambda of the objective, >= 0; the gradient, hence every optimiser, sees it.
        schedule: of the learning rate: "constant"; "cosine" decay to 0 at the last step; "step", a tenth after one and
            a hundredth after two thirds of the steps; or "one_cycle", a tenth at first, the full rate after 30 % of the
            steps, 2e-6 of it at last, half cosines between.
        num_steps: number of updates, >= 1.
        batch_size: samples an update, drawn without replacement epoch by epoch; None is the full batch.
        num_records: number of log-spaced measurements asked for, first step 0, last step `num_steps`.
        keep_params: whether to keep the trained parameters at every record.

    Raises:
        ValueError: when a bound above is violated, a name is unknown, or the loss does not fit the number of labels.
    """

    data: DataSource
    model: ModelSpec
    loss: str = field(default="logistic", metadata={"static": True})
    optimizer: str = field(default="gd", metadata={"static": True})
    learning_rate: float | Float[Array, ""] = 0.1
    momentum: float | Float[Array, ""] = 0.9
    weight_decay: float | Float[Array, ""] = 0.0
    schedule: str = field(default="constant", metadata={"static": True})
    num_steps: int = field(default=1000, metadata={"static": True})
    batch_size: int | None = field(default=None, metadata={"static": True})
    num_records: int = field(default=16, metadata={"static": True})
    keep_params: bool = field(default=False, metadata={"static": True})

    def __post_init__(self):
        for name, value, need in (("data", self.data, "draw"), ("model", self.model, "build")):
            if isinstance(value, str) or (value is None) or _lacks(value, need):
                raise ArgumentError(f"Argument `{name}` must have a method `{need}`, but is {value!r}.")
        _checks.choice("loss", self.loss, LOSSES)
        _checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        _checks.choice("schedule", self.schedule, SCHEDULES)
        _checks.integer("num_steps", self.num_steps, minimum=1)
        _checks.integer("num_records", self.num_records, minimum=2)
        _checks.real("learning_rate", self.learning_rate, minimum=0, exclusive_minimum=True)
        _checks.real("momentum", self.momentum, minimum=0, maximum=1, exclusive_maximum=True)
        _checks.real("weight_decay", self.weight_decay, minimum=0)
        if self.batch_size is not None:
            _checks.integer("batch_size", self.batch_size, minimum=1)
        if (self.batch_size is None) != (self.optimizer == "gd") and self.optimizer in ("gd", "sgd"):
            need = "None for `optimizer` 'gd'" if self.optimizer == "gd" else "set for `optimizer` 'sgd'"
            raise ArgumentError(f"Argument `batch_size` must be {need}, but is {self.batch_size}.")
        num_labels = getattr(self.data, "num_labels", 2)
        if self.num_outputs == 1 and num_labels != 2:
            raise ArgumentError(f"Argument `loss` must be 'cross_entropy' or 'mse' for {num_labels} labels.")

    @property
    def num_outputs(self) -> int:
        """Outputs of the network: 1 for the scalar losses, else one for each label."""
        return 1 if self.loss in ("logistic", "mse_signs") else self.data.num_labels

    @property
    def record_steps(self) -> Int[np.ndarray, " T"]:
        """Steps that are measured: 0, then log-spaced up to `num_steps`, without repetitions."""
        return records.record_steps(self.num_steps, self.num_records)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measurements:
    """What is measured of one sample set at one step; a leading axis is added for each of records, seeds, conditions.

    Attributes:
        loss: data term of the objective.
        accuracy: share of samples whose predicted label is right.
        cluster_outputs: mean output of every cluster.
        collapse: neural-collapse metrics of the last-layer features with respect to the coarse labels.
        fine: class distances, fine-to-coarse ratio q and separation s.
    """

    loss: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]
    cluster_outputs: Float[Array, "*batch F C"]
    collapse: metrics.CollapseMetrics
    fine: metrics.FineStructure


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """Record of a training run; T measurements.

    Attributes:
        steps: number of updates done at each record.
        objective: regularised training objective.
        gradient_norm: Euclidean norm of the objective's full-batch gradient.
        train: measurements on the training samples.
        fresh: measurements on samples that training never saw, or None if the data have none.
        params: trained parameters, stacked over records, or None unless `keep_params`.
        finite: whether the objective stayed finite at every record.
    """

    steps: Int[Array, "*batch T"]
    objective: Float[Array, "*batch T"]
    gradient_norm: Float[Array, "*batch T"]
    train: Measurements
    fresh: Measurements | None
    params: Any
    finite: Any


def train(config: TrainConfig, key: Key[Array, ""]) -> History:
    """Train one network and measure it at log-spaced steps.

    Pure: `jax.jit(jax.vmap(train, in_axes=(None, 0)))(config, keys)` trains one network a key. The streams of data,
    initial weights and batches are `fold_in(key, STREAM)`, so a seed's run does not depend on its neighbours.

    Args:
        config: the run.
        key: PRNG key of the seed.

    Returns:
        The measurements, NaN from the first non-finite step on (see `History.finite`).

    Raises:
        ValueError: if `batch_size` exceeds the number of samples, or free features do not fit the data.
    """
    samples, fresh = config.data.draw(jax.random.fold_in(key, DATA_STREAM))
    _check_free_features(config, samples, fresh)
    graph, params, frozen = split(initial_model(config, key))
    objective = make_objective(config, graph, frozen)
    optimizer = make_optimizer(config)
    update = _make_update(config, objective, optimizer, samples, jax.random.fold_in(key, BATCH_STREAM))
    record_steps = config.record_steps

    def measure(params) -> History:
        value, gradient = jax.value_and_grad(objective)(params, samples)
        model = nnx.merge(graph, params, frozen)
        return History(
            steps=jnp.zeros((), dtype=jnp.int32),
            objective=value,
            gradient_norm=optax.tree.norm(gradient),
            train=measurements(config, model, samples),
            fresh=None if fresh is None else measurements(config, model, fresh),
            params=params if config.keep_params else None,
            finite=jnp.isfinite(value),
        )

    def to_next_record(state: _State, gap: jax.Array) -> tuple["_State", History]:
        state = lax.fori_loop(0, gap, lambda _, s: update(s), state)
        return state, measure(state.params)

    start = _State(params, optimizer.init(params), jnp.zeros((), dtype=jnp.int32))
    gaps = jnp.asarray(np.diff(record_steps, prepend=0), dtype=jnp.int32)
    _, history = lax.scan(to_next_record, start, gaps)
    return History(
        **{name: getattr(history, name) for name in ("objective", "gradient_norm", "train", "fresh", "params")},
        steps=jnp.asarray(record_steps, dtype=jnp.int32),
        finite=jnp.all(history.finite),
    )


def initial_model(config: TrainConfig, key: Key[Array, ""]) -> Model:
    """Build the network that `train(config, key)` starts from.

    Args:
        config: the run.
        key: PRNG key of the seed.

    Returns:
        The network with its initial weights.
    """
    input_dim = jax.eval_shape(config.data.draw, key)[0].inputs.shape[1]
    rngs = nnx.Rngs(jax.random.fold_in(key, MODEL_STREAM))
    return config.model.build(input_dim, config.num_outputs, rngs)


def trained_model(config: TrainConfig, key: Key[Array, ""], params: Any) -> Model:
    """Put parameters that `History.params` kept back into their network.

    Args:
        config: the run.
        key: PRNG key of the seed, for whatever is not trained.
        params: parameters of one seed at one record.

    Returns:
        The network.
    """
    graph, _, frozen = split(initial_model(config, key))
    return nnx.merge(graph, params, frozen)


def measurements(config: TrainConfig, model: Model, samples: Samples) -> Measurements:
    """Measure a network on a sample set.

    Args:
        config: the run that the network belongs to.
        model: the network.
        samples: inputs with both labellings.

    Returns:
        Loss, accuracy, mean outputs and structure of the features, as `Measurements` defines them.
    """
    features = model.features(samples.inputs)
    outputs = model.outputs(features)
    weight, bias = class_readout(model)
    num_labels, num_fine = config.data.num_labels, config.data.num_fine
    labels = jnp.asarray(samples.labels)
    scored = (outputs[:, 0], 2 * labels - 1) if config.num_outputs == 1 else (outputs, labels)
    members = jax.nn.one_hot(samples.fine_labels, num_fine, axis=0, dtype=outputs.dtype)
    return Measurements(
        loss=data_loss(config, outputs, samples.labels),
        accuracy=objectives.accuracy(*scored),
        cluster_outputs=members @ outputs / jnp.sum(members, axis=1)[:, None],
        collapse=metrics.collapse_metrics(features, samples.labels, num_classes=num_labels, weight=weight, bias=bias),
        fine=metrics.fine_structure(
            features, samples.labels, samples.fine_labels, num_classes=num_labels, num_fine=num_fine
        ),
    )


def _check_free_features(config: TrainConfig, samples: Samples, fresh: Samples | None) -> None:
    """Free features belong to the training samples: no other sample has any."""
    if not isinstance(config.model, UnconstrainedFeaturesSpec):
        return
    if config.model.num_samples != samples.inputs.shape[0]:
        raise ArgumentError(
            f"Argument `model.num_samples` must be the number of training samples, {samples.inputs.shape[0]}, "
            f"but is {config.model.num_samples}."
        )
    if fresh is not None:
        raise ArgumentError("Argument `data` must have no fresh samples for free features, but has some.")
    if config.batch_size is not None:
        raise ArgumentError(f"Argument `batch_size` must be None for free features, but is {config.batch_size}.")


class _State(NamedTuple):
    params: Any
    optimizer: Any
    step: jax.Array


def class_readout(model: Model) -> tuple[jax.Array, jax.Array | None]:
    """Readout as one row a label; a scalar output f is the logit pair (-f/2, f/2)."""
    weight = model.readout[...].T
    bias = None if model.readout_bias is None else model.readout_bias[...]
    if weight.shape[0] > 1:
        return weight, bias
    signs = jnp.asarray([-0.5, 0.5], dtype=weight.dtype)
    return signs[:, None] * weight, None if bias is None else signs * bias


def _make_update(config: TrainConfig, objective, optimizer, samples: Samples, key: jax.Array):
    num_samples = samples.inputs.shape[0]
    batch_size = num_samples if config.batch_size is None else config.batch_size
    if batch_size > num_samples:
        raise ArgumentError(f"Argument `batch_size` must be at most {num_samples} samples, but is {batch_size}.")
    batches = math.ceil(num_samples / batch_size)

    def batch(step: jax.Array) -> Samples:
        # The last batch of an epoch starts earlier instead of being smaller, so no sample is left out.
        order = jax.random.permutation(jax.random.fold_in(key, step // batches), num_samples)
        start = jnp.minimum((step % batches) * batch_size, num_samples - batch_size)
        rows = lax.dynamic_slice(order, (start,), (batch_size,))
        return jax.tree.map(lambda leaf: leaf[rows], samples)

    def update(state: _State) -> _State:
        seen = samples if config.batch_size is None else batch(state.step)
        gradient = jax.grad(objective)(state.params, seen)
        change, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        return _State(optax.apply_updates(state.params, change), optimizer_state, state.step + 1)

    return update
