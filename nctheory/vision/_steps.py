"""Compiled parts of the training loop: first state, one SGD step, a whole epoch as one program.

The step is one function; `single_step` compiles it alone, for a loop on the host, and `scanned_epoch` compiles an
epoch of it. All are compiled once for a network, image shape and recipe, and shared by all runs of a process: learning
rates, weight decay and momentum are arguments, not constants.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nctheory import objectives
from nctheory._errors import ArgumentError
from nctheory.vision._augment import augment
from nctheory.vision._train_config import ImageTrainConfig
from nctheory.vision.images import Images, normalise

MODEL_STREAM, SHUFFLE_STREAM, AUGMENT_STREAM = 1, 2, 3
# Axes of a mesh: that over which a batch is spread, and that over which seeds are.
DATA_AXIS, SEED_AXIS = "data", "seeds"


@dataclass(frozen=True)
class Program:
    """What the compiled functions are specialised to.

    Attributes:
        spec: network specification.
        image_shape: height, width, channels.
        num_outputs: number of labels.
        dtype: name of the compute dtype.
        loss: name of the loss.
        augment: name of the augmentation.
        pad: its padding in pixels.
        nesterov: form of the momentum.
        decay_vectors: whether parameters with one axis decay.
        mesh: devices over which a batch is spread, or with several seeds the seeds; or None.
        vmapped: whether states and keys carry a leading axis of seeds.
    """

    spec: Any
    image_shape: tuple[int, int, int]
    num_outputs: int
    dtype: str
    loss: str
    augment: str
    pad: int
    nesterov: bool
    decay_vectors: bool
    mesh: Mesh | None
    vmapped: bool

    @classmethod
    def of(
        cls, spec: Any, config: ImageTrainConfig, images: Images, *, mesh: Mesh | None = None, vmapped: bool = False
    ) -> "Program":
        """Collect the static parts of a run."""
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        names = ("loss", "augment", "pad", "nesterov", "decay_vectors")
        made = cls(
            spec=spec,
            image_shape=images.image_shape,
            num_outputs=images.num_classes,
            dtype=config.dtype_on(platform),
            **{name: getattr(config, name) for name in names},
            mesh=mesh,
            vmapped=vmapped,
        )
        _check_network(made)
        return made

    def build(self, key: Any) -> nnx.Module:
        """A network with random parameters."""
        rngs = nnx.Rngs(jax.random.fold_in(key, MODEL_STREAM))
        return self.spec.build(self.image_shape, self.num_outputs, rngs, dtype=jnp.dtype(self.dtype))

    def sharding(self, *spec: str | None) -> NamedSharding | None:
        """Placement of an array whose axes are spread as named; None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*spec))

    @property
    def state_axis(self) -> str | None:
        """Axis of the mesh over which the first axis of states and keys is spread; None copies them everywhere."""
        return SEED_AXIS if self.vmapped else None

    def batch_axis(self, batch_size: int) -> str | None:
        """Axis of the mesh over which the first axis of batches is spread: seeds, or images where that divides."""
        if self.mesh is None or self.vmapped:
            return self.state_axis
        return DATA_AXIS if batch_size % self.mesh.shape[DATA_AXIS] == 0 else None


class Graphs(NamedTuple):
    """Structure of a network in its two modes."""

    train: Any
    eval: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What a step changes.

    Attributes:
        params: trained parameters.
        others: running statistics of batch norm.
        optimizer: momentum.
    """

    params: Any
    others: Any
    optimizer: Any


class Rates(NamedTuple):
    """Numbers of the optimiser: scalars of one step, or `learning_rate` with an axis of steps."""

    learning_rate: Any
    weight_decay: Any
    momentum: Any


@lru_cache(maxsize=64)
def _graphs(spec: Any, image_shape: tuple[int, int, int], num_outputs: int, dtype: str) -> Graphs:
    """Trace the construction once, because a graph made anew may compare unequal and so cause another compilation."""
    model = nnx.eval_shape(
        lambda: spec.build(image_shape, num_outputs, nnx.Rngs(jax.random.key(0)), dtype=jnp.dtype(dtype))
    )
    model.train()
    training = nnx.split(model, nnx.Param, ...)[0]
    model.eval()
    return Graphs(training, nnx.split(model, nnx.Param, ...)[0])


def graphs(program: Program) -> Graphs:
    """Structure of the program's network."""
    return _graphs(program.spec, program.image_shape, program.num_outputs, program.dtype)


def _check_network(program: Program) -> None:
    if not hasattr(program.spec, "build"):
        raise ArgumentError(f"Argument `spec` must have a method `build`, but is {program.spec!r}.")
    state = jax.eval_shape(lambda: nnx.state(program.build(jax.random.key(0))))
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
        raise ArgumentError("Argument `spec` must be of a network without random layers, but it holds random keys.")


def sample_losses(loss: str, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of every sample in float32."""
    logits = logits.astype(jnp.float32)
    if loss == "mse":
        targets = jax.nn.one_hot(labels, logits.shape[1], dtype=jnp.float32)
        return jax.vmap(lambda f, y: objectives.mse(f[None], y[None]))(logits, targets)
    return jax.vmap(lambda f, y: objectives.cross_entropy(f[None], y[None]))(logits, labels)


def _decayed(program: Program, gradient: Any, params: Any, weight_decay: jax.Array) -> Any:
    def decay(slope: jax.Array, param: jax.Array) -> jax.Array:
        return slope + weight_decay * param if program.decay_vectors or param.ndim > 1 else slope

    return jax.tree.map(decay, gradient, params)


def _step(
    program: Program, state: State, images: jax.Array, labels: jax.Array, moments: Any, rates: Rates, key: jax.Array
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One SGD step of one network; also the batch's mean loss before it, and the number of right answers."""
    inputs = normalise(augment(program.augment, key, images, pad=program.pad), *moments)

    def objective(params: Any) -> tuple[jax.Array, Any]:
        # A copy, because batch norm writes its statistics into the variables.
        model = nnx.merge(graphs(program).train, params, state.others, copy=True)
        logits = model(inputs)
        right = jnp.sum(jnp.argmax(logits, axis=1).astype(labels.dtype) == labels, dtype=jnp.int32)
        others = nnx.split(model, nnx.Param, ...)[2]
        return jnp.mean(sample_losses(program.loss, logits, labels)), (others, right)

    (loss, (others, right)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    gradient = _decayed(program, gradient, state.params, rates.weight_decay)
    # With a rate of its own for each step, the trace is all that is left of SGD with momentum.
    change, optimizer = optax.trace(rates.momentum, program.nesterov).update(gradient, state.optimizer)
    params = jax.tree.map(lambda param, each: param - rates.learning_rate * each, state.params, change)
    state = State(params, others, optimizer)
    return (state if program.vmapped else _placed(program, state)), (loss, right)


def _placed(program: Program, state: State) -> State:
    """The state where the steps want it."""
    return state if program.mesh is None else lax.with_sharding_constraint(state, program.sharding(program.state_axis))


def over_seeds(function: Any, axes: tuple[int | None, ...], *, mesh: Mesh | None, vmapped: bool) -> Any:
    """A function of one seed for all of them: along the arguments with axis 0, on each device for its own seeds."""
    if not vmapped:
        return function
    together = jax.vmap(function, in_axes=axes)
    if mesh is None:
        return together
    places = tuple(PartitionSpec() if axis is None else PartitionSpec(SEED_AXIS) for axis in axes)
    return jax.shard_map(together, mesh=mesh, in_specs=places, out_specs=PartitionSpec(SEED_AXIS))


def _over_seeds(program: Program, function: Any, axes: tuple[int | None, ...]) -> Any:
    return over_seeds(function, axes, mesh=program.mesh, vmapped=program.vmapped)


@partial(jax.jit, static_argnames="program")
def first_state(keys: jax.Array, *, program: Program) -> State:
    """Parameters before training, and zero momentum; a function of the seed's key alone."""

    def one(key: jax.Array) -> State:
        _, params, others = nnx.split(program.build(key), nnx.Param, ...)
        return State(params, others, optax.trace(0.0).init(params))

    return _placed(program, _over_seeds(program, one, (0,))(keys))


@partial(jax.jit, static_argnames="program")
def copied(state: State, *, program: Program) -> State:
    """The same numbers in memory of their own, placed as the steps want them."""
    return _placed(program, jax.tree.map(jnp.copy, state))


@partial(jax.jit, static_argnames=("count", "program"))
def everywhere(tree: Any, *, count: int, program: Program) -> Any:
    """The first `count` rows of arrays that are spread over the seeds' devices, whole on each of these devices."""
    return lax.with_sharding_constraint(jax.tree.map(lambda leaf: leaf[:count], tree), program.sharding())


@partial(jax.jit, static_argnames="vmapped")
def is_finite(state: State, *, vmapped: bool) -> jax.Array:
    """Whether all numbers of a state are finite, for each seed if there are several."""

    def one(state: State) -> jax.Array:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))

    return jax.vmap(one)(state) if vmapped else one(state)


def _order(key: jax.Array, epoch: jax.Array, num_samples: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(key, SHUFFLE_STREAM), epoch)
    return jax.random.permutation(key, jnp.arange(num_samples, dtype=jnp.int32))


@partial(jax.jit, static_argnames=("num_samples", "vmapped"))
def orders(keys: jax.Array, epoch: jax.Array, *, num_samples: int, vmapped: bool) -> jax.Array:
    """Order of the training images in an epoch, one row a seed if there are several."""
    one = partial(_order, epoch=epoch, num_samples=num_samples)
    return jax.vmap(one)(keys) if vmapped else one(keys)


def _step_key(key: jax.Array, epoch: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), epoch), index)


@partial(jax.jit, static_argnames="program", donate_argnames="state")
def single_step(
    state: State,
    images: jax.Array,
    labels: jax.Array,
    moments: Any,
    rates: Rates,
    keys: jax.Array,
    position: tuple[jax.Array, jax.Array],
    *,
    program: Program,
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One step on a batch that the host has chosen; `position` is epoch and step within it."""

    def one(state: State, images: jax.Array, labels: jax.Array, key: jax.Array, *shared: Any) -> Any:
        moments, rates, position = shared
        return _step(program, state, images, labels, moments, rates, _step_key(key, *position))

    axes = (0, 0, 0, 0, None, None, None)
    return _over_seeds(program, one, axes)(state, images, labels, keys, moments, rates, position)


@partial(jax.jit, static_argnames=("batch_size", "program"), donate_argnames="state")
def scanned_epoch(
    state: State,
    data: Images,
    rates: Rates,
    keys: jax.Array,
    epoch: jax.Array,
    *,
    batch_size: int,
    program: Program,
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """All steps of an epoch on images that lie on the device; losses and right answers of every step."""
    num_steps = rates.learning_rate.shape[0]
    full = min(num_steps, data.num_samples // batch_size)

    def one(state: State, key: jax.Array, data: Images, rates: Rates, epoch: jax.Array) -> Any:
        order = _order(key, epoch, data.num_samples)

        def step(state: State, given: Any) -> Any:
            rows, rate, index = given
            batch: Any = (data.images[rows], data.labels[rows])
            axis = program.batch_axis(rows.shape[0])
            if axis == DATA_AXIS:
                batch = lax.with_sharding_constraint(batch, program.sharding(axis))
            now = Rates(rate, rates.weight_decay, rates.momentum)
            moments = (data.mean, data.std)
            return _step(program, state, batch[0], batch[1], moments, now, _step_key(key, epoch, index))

        rows = order[: full * batch_size].reshape(full, batch_size)
        index = jnp.arange(num_steps, dtype=jnp.int32)
        state, seen = lax.scan(step, state, (rows, rates.learning_rate[:full], index[:full]))
        if full < num_steps:
            state, last = step(state, (order[full * batch_size :], rates.learning_rate[full], index[full]))
            seen = jax.tree.map(lambda these, final: jnp.concatenate([these, final[None]]), seen, last)
        return state, seen

    return _over_seeds(program, one, (0, 0, None, None, None))(state, keys, data, rates, epoch)


def batch_slices(num_samples: int, batch_size: int, num_steps: int) -> list[slice]:
    """Places of an epoch's batches in the order of its images."""
    return [slice(k * batch_size, min((k + 1) * batch_size, num_samples)) for k in range(num_steps)]


def scalar(value: Any) -> np.ndarray:
    """A float32 scalar as an argument of a compiled function, the same type in x64 mode."""
    return np.asarray(value, dtype=np.float32)


def whole(value: Any) -> np.ndarray:
    """An int32 scalar as an argument of a compiled function."""
    return np.asarray(value, dtype=np.int32)
