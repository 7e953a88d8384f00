"""Densely connected networks for small images (Huang et al. 2017): three dense stages, pre-activation layers."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.vision.networks._base import Activation, ImageNetwork, check_build, flag
from nctheory.vision.networks._layers import ACTIVATIONS, GlobalMean, NormActivation, conv, linear_classifier

_STAGES = 3
# Channels inside a bottleneck, in growth rates.
_BOTTLENECK = 4


class DenseLayer(nnx.Module):
    """Adds `growth` channels to its input: [x, conv3(phi(norm(...)))], the inner part through a 1 x 1 bottleneck."""

    def __init__(self, channels: int, growth: int, rngs: nnx.Rngs, dtype: Any, *, bottleneck: bool, activation: str):
        self.norm1 = NormActivation(channels, rngs, dtype, activation=activation)
        inner = _BOTTLENECK * growth if bottleneck else channels
        self.narrow = conv(channels, inner, 1, rngs, dtype) if bottleneck else None
        self.norm2 = NormActivation(inner, rngs, dtype, activation=activation) if bottleneck else None
        self.conv = conv(inner, growth, 3, rngs, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Append the new channels."""
        y = self.norm1(x)
        if self.narrow is not None and self.norm2 is not None:
            y = self.norm2(self.narrow(y))
        return jnp.concatenate([x, self.conv(y)], axis=-1)


class Transition(nnx.Module):
    """Normalisation, activation, 1 x 1 convolution to fewer channels, 2 x 2 average pool."""

    def __init__(self, channels_in: int, channels_out: int, rngs: nnx.Rngs, dtype: Any, *, activation: str):
        self.norm = NormActivation(channels_in, rngs, dtype, activation=activation)
        self.conv = conv(channels_in, channels_out, 1, rngs, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shrink channels, height and width; an odd last row or column is dropped."""
        x = self.conv(self.norm(x))
        # `nnx.avg_pool` divides by an integer array, which strict dtype promotion refuses.
        return nnx.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") * 0.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseNetSpec:
    """Specification of a densely connected network; the default is DenseNet-BC (L = 100, k = 12).

    A 3 x 3 convolution ("stem") to 2 `growth` channels (16 without bottleneck and compression, as published), three
    stages of dense layers ("stage1.block1", ...; the entry is all channels so far, before the next normalisation)
    joined by "stage1.transition" and "stage2.transition". Features are normalised, activated and averaged over
    positions. The published dropout, used there without augmentation, is left out.

    Attributes:
        depth: number of weighted layers L: 4 plus a multiple of 6 (of 3 without bottleneck).
        growth: channels that a dense layer adds, k.
        compression: share of channels that a transition keeps, in (0, 1]; rounded down.
        bottleneck: whether a 1 x 1 convolution to 4 k channels comes before every 3 x 3 one.
        activation: "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid" or "identity".

    Raises:
        ValueError: on a depth that does not fit, a growth below 1, a compression outside (0, 1] or that would leave no
            channel, something else than a truth value, or an unknown name.
    """

    depth: int = field(default=100, metadata={"static": True})
    growth: int = field(default=12, metadata={"static": True})
    compression: float = field(default=0.5, metadata={"static": True})
    bottleneck: bool = field(default=True, metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})

    def __post_init__(self):
        flag("bottleneck", self.bottleneck)
        _checks.integer("depth", self.depth)
        step = _STAGES * (2 if self.bottleneck else 1)
        if self.depth < 4 + step or (self.depth - 4) % step:
            raise ArgumentError(f"Argument `depth` must be 4 plus a positive multiple of {step}, but is {self.depth}.")
        _checks.integer("growth", self.growth, minimum=1)
        _checks.real("compression", self.compression, minimum=0.0, maximum=1.0, exclusive_minimum=True)
        if int(self.compression * (self.stem_channels + self.layers_per_stage * self.growth)) < 1:
            raise ArgumentError(f"Argument `compression` must leave a channel, but is {self.compression:g}.")
        _checks.choice("activation", self.activation, ACTIVATIONS)

    @property
    def layers_per_stage(self) -> int:
        """Dense layers of a stage: (L - 4) / 6, or (L - 4) / 3 without bottleneck."""
        return (self.depth - 4) // (_STAGES * (2 if self.bottleneck else 1))

    @property
    def stem_channels(self) -> int:
        """Channels of the first convolution."""
        return 2 * self.growth if self.bottleneck and self.compression < 1 else 16

    @property
    def smallest_side(self) -> int:
        """Smallest height and width, in pixels: the last stage still has a pixel."""
        return 2 ** (_STAGES - 1)

    def build(
        self, image_shape: tuple[int, int, int], num_outputs: int, rngs: nnx.Rngs, *, dtype: Any = jnp.float32
    ) -> ImageNetwork:
        """Build the network with weights drawn from `rngs`; see `NetworkSpec.build`."""
        image_shape, dtype = check_build(image_shape, num_outputs, dtype, smallest=self.smallest_side)
        channels, phi = self.stem_channels, self.activation
        layers: dict[str, Activation] = {"stem": conv(image_shape[-1], channels, 3, rngs, dtype)}
        for stage in range(1, _STAGES + 1):
            for block in range(1, self.layers_per_stage + 1):
                layers[f"stage{stage}.block{block}"] = DenseLayer(
                    channels, self.growth, rngs, dtype, bottleneck=self.bottleneck, activation=phi
                )
                channels += self.growth
            if stage < _STAGES:
                kept = int(self.compression * channels)
                layers[f"stage{stage}.transition"] = Transition(channels, kept, rngs, dtype, activation=phi)
                channels = kept
        head = GlobalMean(NormActivation(channels, rngs, dtype, activation=phi))
        classifier = linear_classifier(channels, num_outputs, rngs)
        return ImageNetwork(image_shape, layers, head, classifier, dtype)
