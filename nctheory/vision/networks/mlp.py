"""Multi-layer perceptrons on flattened images."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nctheory import _checks
from nctheory.vision.networks._base import Activation, ImageNetwork, check_build, flag, sizes
from nctheory.vision.networks._layers import ACTIVATIONS, DenseUnit, linear_classifier


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MlpSpec:
    """Specification of a multi-layer perceptron on flattened images.

    Hidden layers are "layer1", "layer2", ...; the last one is "features", and has no second entry.

    Attributes:
        widths: width of every hidden layer.
        activation: "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid" or "identity".
        batch_norm: whether every hidden layer is normalised before its activation; it then has no bias.

    Raises:
        ValueError: on no width or one below 1, an unknown activation, or something else than a truth value.
    """

    widths: tuple[int, ...] = field(default=(256, 256), metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})
    batch_norm: bool = field(default=False, metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "widths", sizes("widths", self.widths))
        _checks.choice("activation", self.activation, ACTIVATIONS)
        flag("batch_norm", self.batch_norm)

    @property
    def smallest_side(self) -> int:
        """Smallest height and width, in pixels: 1."""
        return 1

    def build(
        self, image_shape: tuple[int, int, int], num_outputs: int, rngs: nnx.Rngs, *, dtype: Any = jnp.float32
    ) -> ImageNetwork:
        """Build the network with weights drawn from `rngs`; see `NetworkSpec.build`."""
        image_shape, dtype = check_build(image_shape, num_outputs, dtype, smallest=self.smallest_side)
        *hidden, last = [
            DenseUnit(fan_in, fan_out, rngs, dtype, activation=self.activation, normalised=self.batch_norm)
            for fan_in, fan_out in pairwise((math.prod(image_shape), *self.widths))
        ]
        layers: dict[str, Activation] = {f"layer{depth}": unit for depth, unit in enumerate(hidden, start=1)}
        classifier = linear_classifier(self.widths[-1], num_outputs, rngs)
        return ImageNetwork(image_shape, layers, last, classifier, dtype)
