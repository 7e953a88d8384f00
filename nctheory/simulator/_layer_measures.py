"""What `layerwise` measures of a network: loss, accuracy and collapse of every layer, on two splits."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nctheory import metrics, objectives
from nctheory.metrics.held_out import LayerMetrics, held_out_collapse
from nctheory.metrics.spectrum import FeatureSpectrum, feature_spectrum
from nctheory.simulator._updates import data_loss
from nctheory.simulator.mixtures import Samples
from nctheory.simulator.models import Model
from nctheory.simulator.train import TrainConfig, class_readout


class Scores(NamedTuple):
    """One network on one split.

    Attributes:
        loss: mean data loss, in the unit of the loss.
        accuracy: share of right answers.
        layers: every layer, the layers on the last axis.
    """

    loss: jax.Array
    accuracy: jax.Array
    layers: LayerMetrics


def measure_layers(run: TrainConfig, model: Model, train: Samples, test: Samples) -> tuple[Scores, Scores]:
    """Measure every layer on both splits.

    Args:
        run: loss and number of classes.
        model: the network.
        train: train samples; their class means are those that both splits are held against.
        test: held-out samples.

    Returns:
        Loss, accuracy and layers of each split.
    """
    layers, outputs = zip(*(_layers_and_outputs(model, part) for part in (train, test)), strict=True)
    predictions = [jnp.argmax(each, axis=1).astype(jnp.int32) for each in outputs]
    num_classes = run.data.num_labels

    def measured(features: tuple[jax.Array, jax.Array]) -> tuple[LayerMetrics, LayerMetrics]:
        def of(at: int, part: Samples) -> LayerMetrics:
            return LayerMetrics(
                metrics.collapse_metrics(features[at], part.labels, num_classes=num_classes),
                held_out_collapse(
                    features[0],
                    train.labels,
                    features[at],
                    part.labels,
                    num_classes=num_classes,
                    predictions=predictions[at],
                ),
                metrics.class_directions(features[at], part.labels, num_classes=num_classes),
            )

        return of(0, train), of(1, test)

    found = _over_layers(measured, list(zip(*layers, strict=True)))
    found = [
        _with_classifier(each, model, part_layers[-1], part.labels, num_classes)
        for each, part_layers, part in zip(found, layers, (train, test), strict=True)
    ]
    on_train, on_test = (
        Scores(data_loss(run, out, part.labels), objectives.accuracy(out, part.labels), record)
        for out, part, record in zip(outputs, (train, test), found, strict=True)
    )
    return on_train, on_test


def _with_classifier(found: LayerMetrics, model: Model, features: Any, labels: Any, num_classes: int) -> LayerMetrics:
    """Add what the readout decides, at the layer that it reads."""
    weight, bias = class_readout(model)
    last = metrics.collapse_metrics(features, labels, num_classes=num_classes, weight=weight, bias=bias)
    aligned = metrics.class_directions(features, labels, num_classes=num_classes, weight=weight)
    return replace(
        found,
        collapse=_at_last(found.collapse, last, ("nc3_duality", "nc4_ncc_mismatch")),
        directions=_at_last(found.directions, aligned, ("class_alignment_mean", "class_alignment_min")),
    )


def _at_last(layers: Any, last: Any, names: tuple[str, ...]) -> Any:
    """A record of all layers with some fields of the last one replaced."""
    return replace(layers, **{name: getattr(layers, name).at[-1].set(getattr(last, name)) for name in names})


def _layers_and_outputs(model: Model, samples: Samples) -> tuple[list[jax.Array], jax.Array]:
    hidden = model.layer_features(samples.inputs)
    return [jnp.asarray(samples.inputs), *hidden], model.outputs(hidden[-1])


def _over_layers(measured: Any, layers: list[Any]) -> Any:
    """Measure every layer, with the layers on the last axis; layers of one width are one batched program."""
    widths = [pair[0].shape[1] for pair in layers]
    found: list[Any] = [None] * len(layers)
    for width in dict.fromkeys(widths):
        members = [at for at, each in enumerate(widths) if each == width]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *(layers[at] for at in members))
        together = lax.map(measured, stacked)
        for row, at in enumerate(members):
            found[at] = jax.tree.map(lambda leaf, row=row: leaf[row], together)
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def measure_spectra(model: Model, samples: Samples, *, num_classes: int) -> FeatureSpectrum:
    """Measure the spectrum of every layer's features, the layers on the last axis."""
    layers, _ = _layers_and_outputs(model, samples)

    def measured(features: tuple[jax.Array]) -> FeatureSpectrum:
        return feature_spectrum(features[0], samples.labels, num_classes=num_classes)

    return _over_layers(measured, [(each,) for each in layers])
