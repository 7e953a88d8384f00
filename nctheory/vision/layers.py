"""Collapse at every named layer of an image network, on the train and the test split, without storing activations.

The images pass through the network twice. The first pass finds the class means of every layer and split, the second
what needs them. In each, one compiled program takes a batch of images and the accumulators of all layers, so that
activations stay on the device and only K x D arrays outlive a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.metrics.held_out import HeldOutAccumulator, LayerMetrics
from nctheory.metrics.streaming import CollapseAccumulator, CollapseSecondPass
from nctheory.vision._steps import DATA_AXIS
from nctheory.vision.evaluation import _UNDER_WAY, FEATURES, _eval_mode, _mesh_of, put
from nctheory.vision.images import Images, check_images, normalise

INPUT = "input"

First = tuple[CollapseAccumulator, ...]
Second = tuple[tuple[CollapseSecondPass, HeldOutAccumulator], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkLayers:
    """Collapse of one network at L layers; every array has the layers as its only axis.

    Attributes:
        names: names of the layers, the first layer first.
        dims: number of numbers a sample that were measured at each layer.
        train: the train split, about its own class means.
        test: the test split, about its own class means (`collapse`, `directions`) and about those of the train split
            (`centers`); None without a test split.
        ood_orthogonality: `metrics.ood_orthogonality` about the global mean, a row a split (train, then test, each with
            its own class means); None without out-of-distribution images.
    """

    names: tuple[str, ...] = field(metadata={"static": True})
    dims: tuple[int, ...] = field(metadata={"static": True})
    train: LayerMetrics
    test: LayerMetrics | None
    ood_orthogonality: Float[Array, "S L"] | None = None


@dataclass(frozen=True)
class _Reader:
    """What the compiled programs take besides accumulators and images.

    Attributes:
        graph: structure of the network.
        names: layers to measure.
        dims: their dimensions.
        pool: whether height and width are averaged.
        predicts: whether the network's logits are of the classes measured.
    """

    graph: Any
    names: tuple[str, ...]
    dims: tuple[int, ...]
    pool: bool
    predicts: bool


def layer_collapse(
    network: nnx.Module,
    train: Images,
    test: Images | None = None,
    *,
    ood: Images | None = None,
    num_classes: int | None = None,
    layers: Sequence[str] | None = None,
    pool: bool = False,
    include_input: bool = True,
    batch_size: int = 128,
    require_all_test_classes: bool = True,
) -> NetworkLayers:
    """Measure `metrics.LayerMetrics` at every named layer, evaluation mode, no augmentation.

    Each layer's numbers are those of `metrics.collapse_metrics`, `metrics.held_out_collapse` and
    `metrics.class_directions` of its activations, in float32. `centers.prediction_mismatch` compares with the argmax of
    the network's logits. Only "features", the input of the classifier, has `nc3_duality`, `nc4_ncc_mismatch` and class
    alignments; elsewhere they are NaN. If the classifier has another number of outputs than `num_classes`, it predicts
    none of the classes measured: these and `prediction_mismatch` are then NaN everywhere. Activations that are not
    finite give NaN at their layer.

    Cost: two passes of both splits through the network, one of `ood`, and a few reads of each activation. Memory beyond
    the images and the network: about 20 K sum(D) numbers for all layers, and the activations of one batch.

    Args:
        network: has `layer_features(images)`, named activations of which "features" is the input of its linear layer
            `classifier`; its own mode is left as it is.
        train: the train split; every class must occur in it.
        test: the test split, with the statistics of the train split; None measures the train split alone.
        ood: out-of-distribution images with the statistics of the train split, for NC5; their labels play no part.
        num_classes: number of classes K; that of `train` if None.
        layers: names of the layers to measure, in the order of the result; all of them, the first first, if None.
        pool: whether a layer with height and width is averaged over them; otherwise it is flattened, as in the public
            code of Parker et al. (2023). Pixels are flattened either way.
        include_input: whether the normalised pixels come first, as the layer "input".
        batch_size: most images at a time, >= 1; the result does not depend on it beyond rounding.
        require_all_test_classes: whether a class without test images is an error; otherwise `test.collapse` and
            `test.directions`, which need a mean of every class, are NaN throughout, and `test.centers` is measured all
            the same.

    Returns:
        The record.

    Raises:
        ValueError: for a network without named layers, a layer it has not (the message lists those it has) or named
            twice, splits that do not fit each other, a class without images, labels out of range, or a batch size below
            1.

    References:
        Parker, Onal, Stengel and Intrater (2023), public code: train split only, without the input.
    """
    check_images("train", train)
    if test is not None:
        check_images("test", test)
    num_classes = train.num_classes if num_classes is None else _checks.integer("num_classes", num_classes, minimum=2)
    _check_splits(train, test, num_classes, require_all_test_classes)
    if ood is not None:
        check_images("ood", ood)
        _check_alike("ood", ood, train)
    _checks.integer("batch_size", batch_size, minimum=1)
    weight, bias = _classifier_of(network)
    graph, state = _eval_mode(network)
    predicts = len(weight) == num_classes
    chosen = _chosen(_sizes(graph, state, train, pool), layers, include_input)
    reader = _Reader(graph, tuple(chosen), tuple(chosen.values()), pool, predicts)
    splits = (train,) if test is None else (train, test)
    passes = partial(_fold, state=state, size=_batch_size(splits, batch_size, _mesh_of(state)))
    first = [passes(_update_means, _no_samples(reader, num_classes), part, reader=reader) for part in splits]
    found = []
    for part, moments in zip(splits, first, strict=True):
        second = _about(moments, first[0], *((weight, bias) if predicts else (None, None)), reader=reader)
        found.append(_summaries(passes(_update_about_means, second, part, reader=reader)))
    angles = None
    if ood is not None:
        unlabelled = replace(ood, labels=np.zeros(ood.num_samples, np.int32))
        angles = _against(first, passes(_update_means, _no_samples(reader, num_classes), unlabelled, reader=reader))
    return NetworkLayers(reader.names, reader.dims, found[0], None if test is None else found[1], angles)


def _check_splits(train: Images, test: Images | None, num_classes: int, all_test_classes: bool) -> None:
    _checks.labels("train.labels", train.labels, num_classes=num_classes)
    _checks.no_empty_class("train.labels", train.labels, num_classes=num_classes)
    if test is None:
        return
    _check_alike("test", test, train)
    _checks.labels("test.labels", test.labels, num_classes=num_classes)
    if all_test_classes:
        _checks.no_empty_class("test.labels", test.labels, num_classes=num_classes)


def _check_alike(name: str, images: Images, train: Images) -> None:
    """Refuse images of another shape or with other channel statistics than those of the train split."""
    if images.image_shape != train.image_shape:
        raise ArgumentError(
            f"Argument `{name}` must hold images of shape {train.image_shape} as `train`, but holds "
            f"{images.image_shape}."
        )
    if not (np.array_equal(train.mean, images.mean) and np.array_equal(train.std, images.std)):
        raise ArgumentError(
            f"Argument `{name}` must have the channel statistics of `train` (Images.of(..., like=train)), but has "
            "others."
        )


def _classifier_of(network: Any) -> tuple[jax.Array, jax.Array | None]:
    """Weight (K d) and bias of the last layer, float32."""
    for name in ("layer_features", "classifier"):
        if not hasattr(network, name):
            raise ArgumentError(
                f"Argument `network` must have named layers and a linear classifier, but {type(network).__name__} has "
                f"no `{name}`."
            )
    if not hasattr(network.classifier, "kernel"):
        raise ArgumentError("Argument `network` must have a linear classifier with a `kernel`, but has none.")
    bias = getattr(network.classifier, "bias", None)
    weight = jnp.asarray(network.classifier.kernel[...]).astype(jnp.float32).T
    return weight, None if bias is None else jnp.asarray(bias[...]).astype(jnp.float32)


def _sizes(graph: Any, state: Any, images: Images, pool: bool) -> dict[str, int]:
    """Dimension of every layer of the network by name, the first layer first."""
    names = []

    def named(state: Any, inputs: Any) -> tuple[Any, ...]:
        found = nnx.merge(graph, *state).layer_features(inputs)
        if not isinstance(found, Mapping) or FEATURES not in found or INPUT in found:
            given = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise ArgumentError(
                f"Argument `network` must name its layers, {FEATURES!r} among them and none {INPUT!r}, but "
                f"`layer_features` gives {given}."
            )
        flat = [name for name, each in found.items() if np.ndim(each) < 2]
        if flat:
            raise ArgumentError(
                f"Argument `network` must give activations with an axis of images and at least one of features, but "
                f"layer {flat[0]!r} has shape {np.shape(found[flat[0]])}."
            )
        # Noted here, because `eval_shape` would sort the keys of a plain dictionary.
        names.extend(found)
        return tuple(_flat(each, pool) for each in found.values())

    example = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
    rows = jax.eval_shape(named, state, example)
    return {name: each.shape[1] for name, each in zip(names, rows, strict=True)} | {
        INPUT: int(np.prod(images.image_shape))
    }


def _chosen(sizes: dict[str, int], layers: Sequence[str] | None, include_input: bool) -> dict[str, int]:
    """Dimensions of the layers to measure, in their order."""
    known = [name for name in sizes if name != INPUT]
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise ArgumentError(f"Argument `layers` must be a sequence of names, but is {layers!r}.")
    wanted = known if layers is None else list(layers)
    unknown = [name for name in wanted if not isinstance(name, str) or name not in sizes]
    if unknown or len(set(wanted)) < len(wanted):
        raise ArgumentError(
            f"Argument `layers` must hold different names out of {[INPUT, *known]}, but holds "
            f"{unknown[0] if unknown else wanted!r}."
        )
    if include_input and INPUT not in wanted:
        wanted = [INPUT, *wanted]
    if not wanted:
        raise ArgumentError("Argument `layers` must hold at least one name, but is empty.")
    return {name: sizes[name] for name in wanted}


def _batch_size(splits: tuple[Images, ...], limit: int, mesh: Mesh | None) -> int:
    """Images at a time: a size that divides all splits if one is near the limit, so that one program serves all."""
    if mesh is not None:
        return limit + -limit % mesh.shape[DATA_AXIS]
    common = np.gcd.reduce([each.num_samples for each in splits])
    return next((size for size in range(limit, limit // 2, -1) if common % size == 0), limit)


def _fold(step: Callable[..., Any], totals: Any, images: Images, *, state: Any, size: int, reader: _Reader) -> Any:
    """Take all batches of a split into the accumulators; a last, smaller batch has a program of its own.

    The loop is on the host, because XLA runs convolutions inside `scan` tens of times slower on a CPU.
    """
    for index, (batch, labels) in enumerate(_batches(images, size, _mesh_of(state))):
        totals = step(totals, state, batch, labels, (images.mean, images.std), reader=reader)
        if index % _UNDER_WAY == 0:
            jax.block_until_ready(totals)
    return totals


def _batches(images: Images, size: int, mesh: Mesh | None) -> Iterator[tuple[Any, Any]]:
    pixels, answers = np.asarray(images.images), np.asarray(images.labels)
    for start in range(0, images.num_samples, size):
        rows = slice(start, min(start + size, images.num_samples))
        count = rows.stop - rows.start
        # Spread over the devices where the batch divides.
        axis = DATA_AXIS if mesh is not None and count % mesh.shape[DATA_AXIS] == 0 else None
        yield put(pixels[rows], mesh, axis), put(answers[rows], mesh, axis)


def _flat(activation: jax.Array, pool: bool) -> jax.Array:
    rows = activation.astype(jnp.float32)
    return jnp.mean(rows, axis=(1, 2)) if rows.ndim == 4 and pool else rows.reshape(rows.shape[0], -1)


def _forward(state: Any, batch: Any, moments: Any, reader: _Reader) -> tuple[list[jax.Array], jax.Array]:
    """Activations of the layers, one row a sample, and the network's predictions."""
    model = nnx.merge(reader.graph, *state)
    inputs = normalise(batch, *moments)
    found = model.layer_features(inputs)
    predictions = jnp.argmax(model.classifier(found[FEATURES]), axis=1).astype(jnp.int32)
    rows = [_flat(inputs, False) if name == INPUT else _flat(found[name], reader.pool) for name in reader.names]
    return rows, predictions


@partial(jax.jit, static_argnames=("reader", "num_classes"))
def _no_samples(reader: _Reader, num_classes: int) -> First:
    return tuple(CollapseAccumulator.init(num_classes=num_classes, feature_dim=dim) for dim in reader.dims)


@partial(jax.jit, static_argnames="reader", donate_argnums=0)
def _update_means(totals: First, state: Any, batch: Any, labels: Any, moments: Any, *, reader: _Reader) -> First:
    rows, _ = _forward(state, batch, moments, reader)
    return tuple(total.update(each, labels) for total, each in zip(totals, rows, strict=True))


@partial(jax.jit, static_argnames="reader")
def _about(own: First, train: First, weight: Any, bias: Any, *, reader: _Reader) -> Second:
    """Accumulators of the second pass: about the split's own class means, and about those of the train split."""
    return tuple(
        (
            mine.second_pass(weight, bias) if name == FEATURES else mine.second_pass(),
            HeldOutAccumulator.about(theirs),
        )
        for name, mine, theirs in zip(reader.names, own, train, strict=True)
    )


@partial(jax.jit, static_argnames="reader")
def _update_about_means(
    totals: Second, state: Any, batch: Any, labels: Any, moments: Any, *, reader: _Reader
) -> Second:
    rows, predictions = _forward(state, batch, moments, reader)
    known = predictions if reader.predicts else None
    return tuple(
        (own.update(each, labels), centers.update(each, labels, known))
        for (own, centers), each in zip(totals, rows, strict=True)
    )


@jax.jit
def _against(splits: Sequence[First], ood: First) -> Float[Array, "S L"]:
    """Orthogonality of every split's class means to the mean of out-of-distribution images, layer by layer."""
    return jnp.stack(
        [jnp.stack([own.ood_orthogonality(other) for own, other in zip(split, ood, strict=True)]) for split in splits]
    )


@jax.jit
def _summaries(totals: Second) -> LayerMetrics:
    """Metrics of all layers, stacked."""
    found = [LayerMetrics(own.compute(), centers.compute(), own.directions()) for own, centers in totals]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
