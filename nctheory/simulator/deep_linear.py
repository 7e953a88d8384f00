"""Deep linear head on an MLP's features, on data: the network whose free-feature limit is the deep linear UFM."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._lapack import one_by_one
from nctheory._types import AnyArray
from nctheory.simulator.models import ACTIVATIONS, Frozen, Model

INITS = ("normal", "orthogonal")


class DeepLinear(Model):
    """MLP backbone, then M linear layers: F_1 = backbone(x), F_{m+1} = F_m V_m, outputs = F_M V_M + b.

    Kernels follow Flax's (inputs, outputs) layout, V_m = W_m^T. Hidden linear layers have no bias. Without hidden
    layers in the backbone, F_1 is the input itself.
    """

    def __init__(self, spec: "DeepLinearSpec", input_dim: int, num_outputs: int, rngs: nnx.Rngs):
        self.activation = spec.activation
        self.linear_decay, self.feature_decay = (Frozen(_like(x)) for x in (spec.linear_decay, spec.feature_decay))
        gain = 2.0 if spec.activation in ("relu", "gelu") else 1.0
        sizes = (input_dim, *spec.backbone)
        self.kernels = nnx.List(
            [
                nnx.Param(_normal(rngs.params(), shape, (gain / shape[0]) ** 0.5 * _like(spec.init_scale)))
                for shape in pairwise(sizes)
            ]
        )
        self.biases = nnx.List([nnx.Param(jnp.zeros(width, dtype=float)) for width in spec.backbone])
        shapes = list(pairwise((sizes[-1], *spec.widths, num_outputs)))
        draw = {"normal": _fan_in_normal, "orthogonal": _orthogonal}[spec.init]
        layers = [draw(rngs.params(), shape) * _like(spec.init_scale) for shape in shapes]
        self.linear = nnx.List([nnx.Param(layer) for layer in layers[:-1]])
        self.readout = nnx.Param(layers[-1])
        self.readout_bias = nnx.Param(jnp.zeros(num_outputs, dtype=float)) if spec.bias else None

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the features of every backbone layer but the last, then `linear_features`."""
        return [*self._backbone_features(x)[:-1], *self.linear_features(x)]

    def linear_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return F_1..F_M, the features that enter each linear layer."""
        entering = self._backbone_features(x)[-1:]
        for kernel in self.linear:
            entering.append(entering[-1] @ kernel[...])
        return entering

    def left_products(self) -> list[Float[Array, "K _"]]:
        """Return A_1..A_M with A_m = W_M ... W_m, one row a class."""
        products = [self.readout[...].T]
        for kernel in reversed(list(self.linear)):
            products.insert(0, products[0] @ kernel[...].T)
        return products

    def penalty(self, x: Float[AnyArray, "N d"]) -> Float[Array, ""]:
        """Decay of the deep linear UFM: sum_m (lambda_m/2)|W_m|^2 + (lambda_H/2) sum_i |F_1(x_i)|^2.

        The feature term is a sum over the rows of `x`, as in theory: on a minibatch of B of N samples, the same
        objective needs feature_decay N/B. Added to a loss with 1/N (and 1/2 for squared errors), the decays are those
        of the theory; `train`'s own weight decay, which falls on the backbone too, then has to be 0.

        Args:
            x: the training inputs.

        Returns:
            The penalty, in units of the loss.
        """
        features = self._backbone_features(x)[-1]
        dtype = features.dtype
        kernels = [*(kernel[...] for kernel in self.linear), self.readout[...]]
        decays = jnp.broadcast_to(self.linear_decay[...], (len(kernels),)).astype(dtype)
        total = self.feature_decay[...].astype(dtype) / 2 * jnp.sum(features**2)
        for m, kernel in enumerate(kernels):
            total = total + decays[m] / 2 * jnp.sum(kernel**2)
        return total

    def _backbone_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        activations = []
        h = jnp.asarray(x)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            h = ACTIVATIONS[self.activation](h @ kernel[...] + bias[...][None, :])
            activations.append(h)
        return activations or [h]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepLinearSpec:
    """Specification of a deep linear head on an MLP.

    Attributes:
        widths: widths between the linear layers, d_2..d_M; () is a depth of one, an ordinary readout.
        backbone: widths of the MLP's hidden layers, the last one d_1; () puts the head on the inputs.
        activation: of the backbone, one of `ACTIVATIONS`.
        init: of the linear layers, "normal" (variance 1/inputs) or "orthogonal" (rows or columns orthonormal).
        init_scale: factor on every initial kernel.
        bias: whether the last layer has a bias.
        linear_decay: lambda_m of `DeepLinear.penalty`, one for all linear layers or one for each, first layer first.
        feature_decay: lambda_H of `DeepLinear.penalty`.

    Raises:
        ValueError: on a width below 1, a negative number, an unknown name or a wrong number of decays.
    """

    widths: tuple[int, ...] = field(metadata={"static": True})
    backbone: tuple[int, ...] = field(default=(), metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})
    init: str = field(default="normal", metadata={"static": True})
    init_scale: Any = 1.0
    bias: bool = field(default=True, metadata={"static": True})
    linear_decay: Any = 0.0
    feature_decay: Any = 0.0

    def __post_init__(self):
        for name in ("widths", "backbone"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise ArgumentError(f"Argument `{name}` must be a sequence of layer widths, but is {value!r}.")
            object.__setattr__(self, name, tuple(_checks.integer(name, width, minimum=1) for width in value))
        _checks.choice("activation", self.activation, ACTIVATIONS)
        _checks.choice("init", self.init, INITS)
        for name in ("init_scale", "linear_decay", "feature_decay"):
            _checks.real(name, getattr(self, name), minimum=0)
        if _checks.is_concrete(self.linear_decay) and jnp.shape(self.linear_decay) not in ((), (self.depth,)):
            raise ArgumentError(
                f"Argument `linear_decay` must be a scalar or have shape ({self.depth},), "
                f"but has shape {jnp.shape(self.linear_decay)}."
            )

    @property
    def depth(self) -> int:
        """Number of linear layers M."""
        return len(self.widths) + 1

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> DeepLinear:
        """Build the network with weights drawn from `rngs`."""
        return DeepLinear(self, input_dim, num_outputs, rngs)


def _like(scale: Any) -> jax.Array:
    return jnp.asarray(scale, dtype=float)


def _normal(key: jax.Array, shape: tuple[int, int], std: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype=float) * std


def _fan_in_normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return _normal(key, shape, shape[0] ** -0.5)


def _orthogonal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    size = max(shape)
    return rotation(jax.random.normal(key, (size, size), dtype=float))[: shape[0], : shape[1]]


@one_by_one
def rotation(draw: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Orthogonal matrix of a normal one, distributed as Haar's measure."""
    orthogonal, upper = jnp.linalg.qr(draw)
    return orthogonal * jnp.sign(jnp.diagonal(upper))[None, :]
