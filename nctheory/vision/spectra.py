"""Effective rank and variability collapse index of every named layer of an image network that is not too wide."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nctheory import _checks
from nctheory.metrics.spectrum import FeatureSpectrum, feature_spectrum
from nctheory.vision.evaluation import _eval_mode, _extract
from nctheory.vision.images import Images, check_images, normalise
from nctheory.vision.layers import INPUT, _chosen, _classifier_of, _sizes

# Compiled: features that are not finite, as of a network that has diverged, give NaN there, an error outside.
_spectrum = jax.jit(feature_spectrum, static_argnames="num_classes")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkSpectra:
    """Spectra of one network at L layers.

    Attributes:
        names: names of the layers, the first layer first.
        dims: number of numbers a sample at each layer.
        spectrum: every array has the layers as its only axis; NaN at layers wider than the limit.
    """

    names: tuple[str, ...] = field(metadata={"static": True})
    dims: tuple[int, ...] = field(metadata={"static": True})
    spectrum: FeatureSpectrum


def layer_spectra(
    network: nnx.Module,
    images: Images,
    *,
    num_classes: int | None = None,
    layers: Sequence[str] | None = None,
    pool: bool = False,
    include_input: bool = True,
    max_dim: int = 2048,
    batch_size: int = 500,
) -> NetworkSpectra:
    """Measure `metrics.feature_spectrum` at every named layer, evaluation mode, no augmentation.

    `layer_collapse` needs K x D numbers a layer; a spectrum needs all of its activations and a decomposition of D^3, so
    layers wider than `max_dim` are left out. Cost: one pass through the network a layer; memory beyond the images and
    the network: the activations of one layer, N x D float32 on the host and the device.

    Args:
        network: has `layer_features(images)`, named activations of which "features" is the input of its linear layer
            `classifier`; its own mode is left as it is.
        images: the split; every class must occur in it.
        num_classes: number of classes K; that of `images` if None.
        layers: names of the layers to measure; all of them if None.
        pool: whether a layer with height and width is averaged over them; otherwise it is flattened.
        include_input: whether the normalised pixels come first, as the layer "input".
        max_dim: widest layer to measure, numbers a sample, >= 1.
        batch_size: images at a time, >= 1.

    Returns:
        The record; dimensionless. The index is NaN also where N - 1 <= D.

    Raises:
        ValueError: for a network without named layers, a layer that it has not or named twice, labels out of range, a
            class without images, or a number below its bound.
    """
    check_images("images", images)
    num_classes = images.num_classes if num_classes is None else _checks.integer("num_classes", num_classes, minimum=2)
    _checks.labels("images.labels", images.labels, num_classes=num_classes)
    _checks.no_empty_class("images.labels", images.labels, num_classes=num_classes)
    _checks.integer("max_dim", max_dim, minimum=1)
    _checks.integer("batch_size", batch_size, minimum=1)
    _classifier_of(network)
    graph, state = _eval_mode(network)
    chosen = _chosen(_sizes(graph, state, images, pool), layers, include_input)
    found = []
    for name, dim in chosen.items():
        if dim > max_dim:
            found.append(FeatureSpectrum(jnp.asarray(jnp.nan, jnp.float32), jnp.asarray(jnp.nan, jnp.float32)))
            continue
        rows = _pixels(images) if name == INPUT else _extract(graph, state, images, name, batch_size, pool)
        found.append(_spectrum(rows, images.labels, num_classes=num_classes))
    spectrum = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    return NetworkSpectra(tuple(chosen), tuple(chosen.values()), spectrum)


def _pixels(images: Images) -> np.ndarray:
    pixels = normalise(np.asarray(images.images), images.mean, images.std)
    return np.asarray(pixels).reshape(images.num_samples, -1)
