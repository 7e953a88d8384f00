"""Networks of the simulator as Flax NNX modules, and the specifications that build them.

A specification is a frozen pytree: its structure (widths, activation, scale) is static, its scale of initialisation is
a leaf, so that a sweep over initial scales compiles once. Every module has `features(x)`, the last-layer features, and
`__call__(x)`, the outputs. Weights follow Flax's (inputs, outputs) layout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": jax.scipy.special.erf,
}
# Those that are near 0 for negative inputs halve the second moment, which larger initial weights make up for.
HALVING = ("relu", "leaky_relu", "gelu", "silu")
SCALES = ("standard", "mean_field")
READOUTS = ("fixed", "trained")


class Frozen(nnx.Variable):
    """A weight that training leaves alone."""


class Model(nnx.Module):
    """What training and measuring need of a network: a linear readout on named features."""

    readout: nnx.Variable
    readout_bias: nnx.Variable | None

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the features of every hidden layer, the last one last.

        Args:
            x: inputs, one sample a row.

        Returns:
            One array a hidden layer, samples as rows.
        """
        raise TypeError(f"{type(self).__name__} must define layer_features.")

    def features(self, x: Float[AnyArray, "N d"]) -> Float[Array, "N m"]:
        """Return the last-layer features."""
        return self.layer_features(x)[-1]

    def outputs(self, features: Float[Array, "N m"]) -> Float[Array, "N C"]:
        """Apply the linear readout to last-layer features."""
        logits = features @ self.readout[...]
        return logits if self.readout_bias is None else logits + self.readout_bias[...][None, :]

    def __call__(self, x: Float[AnyArray, "N d"]) -> Float[Array, "N C"]:
        """Return the outputs of the network."""
        return self.outputs(self.features(x))


class TwoLayer(Model):
    """Network `f(x) = readout^T phi(kernel^T x)` without biases."""

    def __init__(self, spec: "TwoLayerSpec", input_dim: int, num_outputs: int, rngs: nnx.Rngs):
        self.activation = spec.activation
        self.kernel = nnx.Param(_normal(rngs.params(), (input_dim, spec.width), spec.init_std))
        entry = spec.readout_entry
        if spec.readout == "fixed":
            self.readout = Frozen(entry * _signs(rngs.params(), (spec.width, num_outputs)))
        else:
            std = entry if spec.readout_std is None else spec.readout_std
            self.readout = nnx.Param(_normal(rngs.params(), (spec.width, num_outputs), std))
        self.readout_bias = None

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the features of the one hidden layer."""
        return [ACTIVATIONS[self.activation](jnp.asarray(x) @ self.kernel[...])]


class MLP(Model):
    """Multi-layer perceptron with biases: `h_l = phi(h_{l-1} W_l + b_l)`, then a linear readout with bias."""

    def __init__(self, spec: "MLPSpec", input_dim: int, num_outputs: int, rngs: nnx.Rngs):
        self.activation = spec.activation
        gain = spec.init_scale * (2.0 if spec.activation in HALVING else 1.0) ** 0.5
        sizes = (input_dim, *spec.widths)
        self.kernels = nnx.List(
            [
                nnx.Param(_normal(rngs.params(), (fan_in, fan_out), gain / fan_in**0.5))
                for fan_in, fan_out in pairwise(sizes)
            ]
        )
        self.biases = nnx.List([nnx.Param(jnp.zeros(width, dtype=float)) for width in spec.widths])
        fan_in = spec.widths[-1]
        std = fan_in**-0.5 if spec.scale == "standard" else 1.0 / fan_in
        if spec.readout == "fixed":
            self.readout = Frozen(std * _signs(rngs.params(), (fan_in, num_outputs)))
            self.readout_bias = None
        else:
            self.readout = nnx.Param(_normal(rngs.params(), (fan_in, num_outputs), spec.init_scale * std))
            self.readout_bias = nnx.Param(jnp.zeros(num_outputs, dtype=float))

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the features of every hidden layer, the last one last."""
        activations, h = [], jnp.asarray(x)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            h = ACTIVATIONS[self.activation](h @ kernel[...] + bias[...][None, :])
            activations.append(h)
        return activations


class UnconstrainedFeatures(Model):
    """Free features: row i of a trained matrix is the feature of training sample i, whatever its input.

    Only the training samples have features; for any other number of samples `features` returns NaN.
    """

    def __init__(self, spec: "UnconstrainedFeaturesSpec", num_outputs: int, rngs: nnx.Rngs):
        shape = (spec.num_samples, spec.width)
        self.free_features = nnx.Param(_normal(rngs.params(), shape, spec.init_std))
        self.readout = nnx.Param(_normal(rngs.params(), (spec.width, num_outputs), spec.init_std))
        self.readout_bias = None

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the free features; NaN when `x` cannot be the training samples."""
        features = self.free_features[...]
        if x.shape[0] == features.shape[0]:
            return [features]
        return [jnp.full((x.shape[0], features.shape[1]), jnp.nan, dtype=features.dtype)]


@runtime_checkable
class ModelSpec(Protocol):
    """A specification that builds a `Model` for given input and output sizes."""

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> Model:
        """Build the module with weights drawn from `rngs`.

        Args:
            input_dim: columns of the inputs.
            num_outputs: columns of the outputs.
            rngs: random streams of the initial weights.

        Returns:
            The module.
        """
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TwoLayerSpec:
    """Specification of a two-layer network `f(x) = a^T phi(W x)`.

    Attributes:
        width: number of hidden neurons m.
        activation: one of `ACTIVATIONS`.
        readout: "fixed" at random signs times the scale's entry (for one output exactly half of them +), or "trained".
        scale: "standard", readout entries of size 1/sqrt(m), so that |a| = 1; or "mean_field", 1/m, where a learning
            rate proportional to m gives a width-independent limit.
        init_std: standard deviation omega of every entry of W(0).
        readout_std: standard deviation of a trained readout's entries; None takes the scale's entry size.

    Raises:
        ValueError: on a width below 1, a negative standard deviation or an unknown name.
    """

    width: int = field(metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})
    readout: str = field(default="fixed", metadata={"static": True})
    scale: str = field(default="standard", metadata={"static": True})
    init_std: float | Float[Array, ""] = 0.1
    readout_std: float | Float[Array, ""] | None = None

    def __post_init__(self):
        _checks.integer("width", self.width, minimum=1)
        _check_names(self.activation, self.readout, self.scale)
        _checks.real("init_std", self.init_std, minimum=0)
        _checks.real("readout_std", self.readout_std, minimum=0)

    @property
    def readout_entry(self) -> float:
        """Size of one readout entry: 1/sqrt(m) or 1/m."""
        return self.width**-0.5 if self.scale == "standard" else 1.0 / self.width

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> TwoLayer:
        """Build the network with weights drawn from `rngs`."""
        return TwoLayer(self, input_dim, num_outputs, rngs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MLPSpec:
    """Specification of a multi-layer perceptron.

    Attributes:
        widths: width of every hidden layer.
        activation: one of `ACTIVATIONS`.
        readout: "trained" (with bias) or "fixed" random signs.
        scale: size of a readout entry, "standard" 1/sqrt(m) or "mean_field" 1/m.
        init_scale: factor on every trained initial weight; 1 is He-normal for ReLU, leaky ReLU, GELU and SiLU,
            LeCun-normal otherwise.

    Raises:
        ValueError: on an empty list of widths, a width below 1, a negative scale or an unknown name.
    """

    widths: tuple[int, ...] = field(metadata={"static": True})
    activation: str = field(default="relu", metadata={"static": True})
    readout: str = field(default="trained", metadata={"static": True})
    scale: str = field(default="standard", metadata={"static": True})
    init_scale: float | Float[Array, ""] = 1.0

    def __post_init__(self):
        if not isinstance(self.widths, Sequence):
            raise ArgumentError(f"Argument `widths` must be a sequence of layer widths, but is {self.widths!r}.")
        object.__setattr__(self, "widths", tuple(_checks.integer("widths", w, minimum=1) for w in self.widths))
        if not self.widths:
            raise ArgumentError("Argument `widths` must name at least one hidden layer, but is ().")
        _check_names(self.activation, self.readout, self.scale)
        _checks.real("init_scale", self.init_scale, minimum=0)

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> MLP:
        """Build the network with weights drawn from `rngs`."""
        return MLP(self, input_dim, num_outputs, rngs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnconstrainedFeaturesSpec:
    """Specification of the unconstrained feature model: free features and a linear readout, both trained.

    Attributes:
        num_samples: number of training samples, each with a free feature of its own.
        width: feature dimension.
        init_std: standard deviation of every initial entry.

    Raises:
        ValueError: on a count below 1 or a negative standard deviation.
    """

    num_samples: int = field(metadata={"static": True})
    width: int = field(metadata={"static": True})
    init_std: float | Float[Array, ""] = 0.1

    def __post_init__(self):
        _checks.integer("num_samples", self.num_samples, minimum=1)
        _checks.integer("width", self.width, minimum=1)
        _checks.real("init_std", self.init_std, minimum=0)

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> UnconstrainedFeatures:
        """Build the model with entries drawn from `rngs`; the inputs' dimension plays no part."""
        del input_dim
        return UnconstrainedFeatures(self, num_outputs, rngs)


def _check_names(activation: str, readout: str, scale: str) -> None:
    _checks.choice("activation", activation, ACTIVATIONS)
    _checks.choice("readout", readout, READOUTS)
    _checks.choice("scale", scale, SCALES)


def _normal(key: jax.Array, shape: tuple[int, int], std: float | jax.Array) -> jax.Array:
    draw = jax.random.normal(key, shape, dtype=float)
    return draw * jnp.asarray(std, dtype=draw.dtype)


def _signs(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Random signs; for one output, as many + as - (one more + when the width is odd)."""
    if shape[1] == 1:
        signs = np.where(np.arange(shape[0]) % 2 == 0, 1.0, -1.0)[:, None]
        return jnp.asarray(signs, dtype=float)
    return jax.random.rademacher(key, shape, dtype=float)
