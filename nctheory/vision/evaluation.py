"""Trained networks on images: loss and accuracy, features, logits, collapse. Always in evaluation mode."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from nctheory import _checks, metrics
from nctheory._errors import ArgumentError
from nctheory.vision import _steps
from nctheory.vision._train_config import LOSSES
from nctheory.vision.images import Images, normalise

FEATURES = "features"
_LOGITS = "logits"
# Batches that may be under way before the host waits for the first of them: enough to keep a device busy.
_UNDER_WAY = 4


class Evaluation(NamedTuple):
    """Performance on one split.

    Attributes:
        loss: mean loss a sample, in the unit of the loss.
        accuracy: share of right answers in [0, 1]; NaN if any logit is NaN.
    """

    loss: Any
    accuracy: Any


def evaluate(network: nnx.Module, images: Images, *, batch_size: int = 500, loss: str = "cross_entropy") -> Evaluation:
    """Mean loss and accuracy of a network in evaluation mode, without augmentation.

    Args:
        network: maps normalised images to logits; its own mode is left as it is.
        images: the split, with the statistics of the training split.
        batch_size: images at a time, >= 1; the result does not depend on it beyond rounding.
        loss: "cross_entropy" or "mse".

    Returns:
        Loss and accuracy as Python floats.

    Raises:
        ValueError: for an unknown loss or a batch size below 1.
    """
    _checks.choice("loss", loss, LOSSES)
    graph, state = _eval_mode(network)
    found = evaluate_state(graph, state, images, batch_size=batch_size, loss=loss)
    return Evaluation(float(found.loss), float(found.accuracy))


def evaluate_state(
    graph: Any,
    state: tuple[Any, Any],
    images: Images,
    *,
    batch_size: int,
    loss: str,
    mesh: Mesh | None = None,
    vmapped: bool = False,
    numbers: Callable[[Any], Any] = lambda sums: sums,
) -> Evaluation:
    """`evaluate` of a split network, or of several at once along a leading axis of their states.

    `numbers` brings sums over a batch to the host, where they lie on devices of other processes.
    """
    totals = []
    # Every seed sees all images; alone, a network has its devices share them.
    for batch, labels, count in _batches(images, batch_size, None if vmapped else mesh):
        weights = (np.arange(len(labels)) < count).astype(np.float32)
        args = (state, batch, labels, weights, (images.mean, images.std))
        totals.append(_score(*args, graph=graph, loss=loss, vmapped=vmapped, mesh=mesh if vmapped else None))
    totals = [numbers(each) for each in totals]
    loss_sum, hits = (np.sum([np.asarray(each[k], np.float64) for each in totals], axis=0) for k in (0, 1))
    return Evaluation(loss_sum / images.num_samples, hits / images.num_samples)


def extract_features(
    network: nnx.Module, images: Images, *, layer: str = FEATURES, batch_size: int = 500, pool: bool = True
) -> Float[np.ndarray, "N d"]:
    """Activations of one layer for all images, in evaluation mode and without augmentation.

    Args:
        network: has `features(images)`, and `layer_features(images)` for other layers.
        images: the split, with the statistics of the training split.
        layer: name of the layer; "features" is the input of the classifier.
        batch_size: images at a time, >= 1.
        pool: whether a layer with height and width is averaged over them; otherwise it is flattened.

    Returns:
        One row an image, float32, on the host.

    Raises:
        ValueError: if the network has no such layer (the message lists those it has), or a batch size is below 1.
    """
    graph, state = _eval_mode(network)
    if layer != FEATURES:
        _check_layer(graph, state, images, layer)
    return _extract(graph, state, images, layer, batch_size, pool)


def extract_logits(network: nnx.Module, images: Images, *, batch_size: int = 500) -> Float[np.ndarray, "N K"]:
    """Logits of all images, in evaluation mode and without augmentation; arguments as in `extract_features`."""
    graph, state = _eval_mode(network)
    return _extract(graph, state, images, _LOGITS, batch_size, False)


def collapse_of(
    network: nnx.Module, images: Images, *, num_classes: int | None = None, batch_size: int = 500
) -> metrics.CollapseMetrics:
    """Neural-collapse metrics of the classifier's inputs and of the classifier, with respect to the images' labels.

    The images pass through the network once; the two passes of the accumulator read the features (N x d float32), which
    stay on the devices that computed them. Where these are several, also of other processes, each adds up its own rows.

    Args:
        network: has `features(images)` and `classifier`, a linear layer with `kernel` (d, K) and `bias` (K) or None.
        images: the split; every label must occur in it.
        num_classes: number of labels K; that of `images` if None.
        batch_size: images at a time, >= 1.

    Returns:
        The metrics as `metrics.collapse_metrics` defines them.

    Raises:
        ValueError: if a label does not occur, or features are not finite.
    """
    num_classes = images.num_classes if num_classes is None else num_classes
    _checks.labels("images.labels", images.labels, num_classes=num_classes)
    classifier: Any = network.classifier  # pyright: ignore[reportAttributeAccessIssue]
    weight = np.asarray(classifier.kernel[...], np.float32).T
    bias = None if getattr(classifier, "bias", None) is None else np.asarray(classifier.bias[...], np.float32)
    graph, state = _eval_mode(network)
    total: Any = metrics.CollapseAccumulator.init(num_classes=num_classes, feature_dim=weight.shape[1])
    parts, mesh = [], _mesh_of(state)
    for index, (batch, labels, count) in enumerate(_batches(images, batch_size, mesh)):
        moments = (images.mean, images.std)
        rows = _read(state, batch, moments, graph=graph, layer=FEATURES, pool=True, mesh=None)
        parts.append((rows, labels, count))
        total = _add(total, *parts[-1], mesh)
        if index % _UNDER_WAY == 0:
            jax.block_until_ready(total)
    total = total.second_pass(weight, bias)
    for part in parts:
        total = _add(total, *part, mesh)
    found = total.compute()
    if not np.isfinite(found.within_between_ratio) and not all(bool(_are_finite(rows)) for rows, *_ in parts):
        raise ArgumentError("Argument `network` must give finite features, but some are NaN or infinite.")
    return found


@partial(jax.jit, static_argnums=(3, 4))
def _add(total: Any, rows: jax.Array, labels: jax.Array, count: int, mesh: Mesh | None) -> Any:
    """The accumulator with the first rows of a batch, on all devices."""
    found = total.update(rows[:count], labels[:count])
    return found if mesh is None else lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))


@jax.jit
def _are_finite(rows: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(rows))


def _eval_mode(network: nnx.Module) -> tuple[Any, Any]:
    """Structure and state of a network in evaluation mode, without touching the network."""
    model = nnx.merge(*nnx.split(network))
    model.eval()
    graph, params, others = nnx.split(model, nnx.Param, ...)
    return graph, (params, others)


def _mesh_of(state: Any) -> Mesh | None:
    """The mesh over which a network was trained, so that all its devices share the work."""
    for leaf in jax.tree.leaves(state):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and _steps.DATA_AXIS in sharding.mesh.axis_names:
            return sharding.mesh if isinstance(sharding.mesh, Mesh) else None
    return None


def _batches(images: Images, batch_size: int, mesh: Mesh | None) -> Iterator[tuple[Any, Any, int]]:
    """Batches of one size, so that one program serves all: the last is filled up with its first image."""
    _checks.integer("batch_size", batch_size, minimum=1)
    size = min(batch_size, images.num_samples)
    if mesh is not None:
        size += -size % mesh.shape[_steps.DATA_AXIS]
    pixels, answers = np.asarray(images.images), np.asarray(images.labels)
    for start in range(0, images.num_samples, size):
        rows = np.arange(start, start + size)
        count = min(size, images.num_samples - start)
        rows[count:] = start
        yield put(pixels[rows], mesh), put(answers[rows], mesh), count


def put(batch: np.ndarray, mesh: Mesh | None, axis: str | None = _steps.DATA_AXIS) -> Any:
    """Spread the first axis of a batch over a mesh, or copy it to all devices if `axis` is None."""
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    # Also right when the mesh spans processes: each hands over the shards of its own devices.
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


@partial(jax.jit, static_argnames=("graph", "loss", "vmapped", "mesh"))
def _score(
    state: Any,
    batch: Any,
    labels: Any,
    weights: Any,
    moments: Any,
    *,
    graph: Any,
    loss: str,
    vmapped: bool,
    mesh: Mesh | None,
) -> Any:
    def one(state: Any, inputs: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, *state)(inputs)
        hits = (jnp.argmax(logits, axis=1).astype(labels.dtype) == labels).astype(jnp.float32)
        # Padding may hold anything; `where` keeps even its NaN out.
        hits = jnp.where(jnp.any(jnp.isnan(logits), axis=1), jnp.nan, hits)
        losses = _steps.sample_losses(loss, logits, labels)
        return jnp.sum(jnp.where(weights > 0, losses, 0)), jnp.sum(jnp.where(weights > 0, hits, 0))

    each = _steps.over_seeds(one, (0, None, None, None), mesh=mesh, vmapped=vmapped)
    return each(state, normalise(batch, *moments), labels, weights)


def _activations(model: Any, inputs: jax.Array, layer: str, pool: bool) -> jax.Array:
    if layer == _LOGITS:
        return model(inputs).astype(jnp.float32)
    found = model.features(inputs) if layer == FEATURES else model.layer_features(inputs)[layer]
    found = found.astype(jnp.float32)
    if found.ndim == 4 and pool:
        return jnp.mean(found, axis=(1, 2))
    return found.reshape(found.shape[0], -1)


@partial(jax.jit, static_argnames=("graph", "layer", "pool", "mesh"))
def _read(state: Any, batch: Any, moments: Any, *, graph: Any, layer: str, pool: bool, mesh: Mesh | None) -> jax.Array:
    found = _activations(nnx.merge(graph, *state), normalise(batch, *moments), layer, pool)
    return found if mesh is None else lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))


def _extract(graph: Any, state: Any, images: Images, layer: str, batch_size: int, pool: bool) -> np.ndarray:
    mesh = _mesh_of(state)
    read: Callable[[Any], jax.Array] = lambda batch: _read(  # noqa: E731
        state, batch, (images.mean, images.std), graph=graph, layer=layer, pool=pool, mesh=mesh
    )
    waiting, rows = [], []
    for batch, _, count in _batches(images, batch_size, mesh):
        waiting.append((read(batch), count))
        if len(waiting) > _UNDER_WAY:
            found, size = waiting.pop(0)
            rows.append(np.asarray(found)[:size])
    return np.concatenate([*rows, *(np.asarray(found)[:size] for found, size in waiting)])


def _check_layer(graph: Any, state: Any, images: Images, layer: str) -> None:
    example = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
    names = jax.eval_shape(lambda state, x: nnx.merge(graph, *state).layer_features(x), state, example)
    if layer not in names:
        raise ArgumentError(f"Argument `layer` must be one of {list(names)}, but is {layer!r}.")
