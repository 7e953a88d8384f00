"""VGG networks for small images (Simonyan and Zisserman 2015): one linear layer instead of three at the end."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nctheory import _checks
from nctheory.vision.networks._base import Activation, ImageNetwork, check_build, flag
from nctheory.vision.networks._layers import ACTIVATIONS, ConvUnit, GlobalMean, linear_classifier

# Convolutions in each of the five stages, by number of weighted layers in the original network.
_CONVOLUTIONS = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
_WIDTH_FACTORS = (1, 2, 4, 8, 8)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VggSpec:
    """Specification of a VGG network: five stages of 3 x 3 convolutions, each ending in a 2 x 2 max-pool.

    Every convolution with its activation is a block ("stage1.block1", ...), the last one of a stage with the max-pool.
    Features are the average over the remaining positions, 8 `width` of them. Sides that are odd are rounded up by the
    max-pool, so that 28 x 28 images pass (28, 14, 7, 4, 2, 1); for even sides nothing changes.

    Attributes:
        layers: "11", "13", "16" or "19".
        batch_norm: whether every convolution is normalised.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        activation: "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid" or "identity".
        conv_bias: whether convolutions have a bias, as in the published networks. Batch normalisation takes the batch's
            mean away, and any bias with it: with both, these biases have gradient zero and only weight decay moves
            them. False leaves them out of a normalised network without a change of its function.

    Raises:
        ValueError: on an unknown name, a width below 1 or something else than a truth value.
    """

    layers: str = field(default="16", metadata={"static": True})
    batch_norm: bool = field(default=True, metadata={"static": True})
    width: int = field(default=64, metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})
    conv_bias: bool = field(default=True, metadata={"static": True})

    def __post_init__(self):
        _checks.choice("layers", self.layers, _CONVOLUTIONS)
        flag("batch_norm", self.batch_norm)
        _checks.integer("width", self.width, minimum=1)
        _checks.choice("activation", self.activation, ACTIVATIONS)
        flag("conv_bias", self.conv_bias)

    @property
    def smallest_side(self) -> int:
        """Smallest height and width, in pixels: all five max-pools still have something to pool."""
        return 2 ** (len(_WIDTH_FACTORS) - 1) + 1

    def build(
        self, image_shape: tuple[int, int, int], num_outputs: int, rngs: nnx.Rngs, *, dtype: Any = jnp.float32
    ) -> ImageNetwork:
        """Build the network with weights drawn from `rngs`; see `NetworkSpec.build`."""
        image_shape, dtype = check_build(image_shape, num_outputs, dtype, smallest=self.smallest_side)
        channels = image_shape[-1]
        layers: dict[str, Activation] = {}
        stages = zip(_CONVOLUTIONS[self.layers], _WIDTH_FACTORS, strict=True)
        for stage, (count, factor) in enumerate(stages, start=1):
            for block in range(1, count + 1):
                layers[f"stage{stage}.block{block}"] = ConvUnit(
                    channels,
                    factor * self.width,
                    rngs,
                    dtype,
                    activation=self.activation,
                    normalised=self.batch_norm,
                    bias=self.conv_bias,
                    pooled=block == count,
                )
                channels = factor * self.width
        classifier = linear_classifier(channels, num_outputs, rngs)
        return ImageNetwork(image_shape, layers, GlobalMean(), classifier, dtype)
