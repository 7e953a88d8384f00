"""Residual networks for small images: 3 x 3 first convolution, no max-pool, basic blocks (He et al. 2016)."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.vision.networks._base import Activation, ImageNetwork, check_build, sizes
from nctheory.vision.networks._layers import (
    ACTIVATIONS,
    BatchNorm,
    ConvUnit,
    GlobalMean,
    conv,
    linear_classifier,
)


class BasicBlock(nnx.Module):
    """`phi(norm(conv(phi(norm(conv(x))))) + shortcut(x))` with 3 x 3 convolutions, the first with the stride.

    The shortcut is the identity where the shape stays, otherwise a 1 x 1 convolution with the stride, normalised.
    """

    def __init__(
        self, channels_in: int, channels_out: int, rngs: nnx.Rngs, dtype: Any, *, stride: int, activation: str
    ):
        self.conv1 = conv(channels_in, channels_out, 3, rngs, dtype, stride=stride)
        self.norm1 = BatchNorm(channels_out, rngs, dtype)
        self.conv2 = conv(channels_out, channels_out, 3, rngs, dtype)
        self.norm2 = BatchNorm(channels_out, rngs, dtype)
        self.activation = activation
        changes = stride != 1 or channels_in != channels_out
        self.shortcut = conv(channels_in, channels_out, 1, rngs, dtype, stride=stride) if changes else None
        self.shortcut_norm = BatchNorm(channels_out, rngs, dtype) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block."""
        phi = ACTIVATIONS[self.activation]
        y = self.norm2(self.conv2(phi(self.norm1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return phi(y + x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResNetSpec:
    """Specification of a residual network; the default is ResNet-18 for small images.

    A 3 x 3 convolution ("stem"), then stages of basic blocks ("stage1.block1", ...); each stage but the first halves
    height and width. Features are the average over positions, as many as the last width.

    Attributes:
        blocks: number of basic blocks in every stage.
        widths: channels of every stage; the stem has the first.
        activation: "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid" or "identity".

    Raises:
        ValueError: if `blocks` and `widths` are not equally many positive integers, or the activation is unknown.
    """

    blocks: tuple[int, ...] = field(default=(2, 2, 2, 2), metadata={"static": True})
    widths: tuple[int, ...] = field(default=(64, 128, 256, 512), metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "blocks", sizes("blocks", self.blocks))
        object.__setattr__(self, "widths", sizes("widths", self.widths))
        if len(self.widths) != len(self.blocks):
            raise ArgumentError(
                f"Argument `widths` must have one entry a stage, {len(self.blocks)} as `blocks`, but is {self.widths}."
            )
        _checks.choice("activation", self.activation, ACTIVATIONS)

    @property
    def smallest_side(self) -> int:
        """Smallest height and width, in pixels: the last stage still has a pixel of its own."""
        return 2 ** (len(self.blocks) - 1)

    def build(
        self, image_shape: tuple[int, int, int], num_outputs: int, rngs: nnx.Rngs, *, dtype: Any = jnp.float32
    ) -> ImageNetwork:
        """Build the network with weights drawn from `rngs`; see `NetworkSpec.build`."""
        image_shape, dtype = check_build(image_shape, num_outputs, dtype, smallest=self.smallest_side)
        channels = self.widths[0]
        layers: dict[str, Activation] = {
            "stem": ConvUnit(image_shape[-1], channels, rngs, dtype, activation=self.activation)
        }
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                layers[f"stage{stage}.block{block}"] = BasicBlock(
                    channels, width, rngs, dtype, stride=stride, activation=self.activation
                )
                channels = width
        classifier = linear_classifier(channels, num_outputs, rngs)
        return ImageNetwork(image_shape, layers, GlobalMean(), classifier, dtype)
