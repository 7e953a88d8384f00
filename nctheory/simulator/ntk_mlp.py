"""MLPs in NTK parameterisation, their empirical tangent kernel, and gradient descent in the lazy regime.

    z^1 = (w/sqrt(d)) W^1 x + s b^1,   h^l = phi(z^l),   z^(l+1) = (w/sqrt(n_l)) W^(l+1) h^l + s b^(l+1),   f = z^(L+1),

every entry of W and b drawn from N(0, 1) and trained. The factors stand in the network and not in the initial weights,
so one learning rate suits every width: the function moves at order 1 while each weight moves less the wider the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from nctheory import _checks, objectives
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.simulator.models import ACTIVATIONS, Frozen, Model

# The derivative of ReLU at 0 is 0, as that of `jax.nn.relu`.
SLOPES = {
    "erf": lambda z: 2 / np.sqrt(np.pi) * jnp.exp(-(z**2)),
    "relu": lambda z: (z > 0).astype(z.dtype),
}
PHI = {name: ACTIVATIONS[name] for name in SLOPES}


class NtkMLP(Model):
    """MLP in NTK parameterisation (module docstring). Kernels follow Flax's (inputs, outputs) layout."""

    def __init__(self, spec: "NtkMLPSpec", input_dim: int, num_outputs: int, rngs: nnx.Rngs):
        self.activation = spec.activation
        self.weight_std = Frozen(jnp.asarray(spec.weight_std, dtype=float))
        self.bias_std = None if spec.bias_std is None else Frozen(jnp.asarray(spec.bias_std, dtype=float))

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape, dtype=float))

        sizes = (input_dim, *spec.widths)
        self.kernels = nnx.List([normal(*shape) for shape in pairwise(sizes)])
        self.readout = normal(sizes[-1], num_outputs)
        has_bias = spec.bias_std is not None
        self.biases = nnx.List([normal(width) for width in spec.widths]) if has_bias else None
        self.readout_bias = normal(num_outputs) if has_bias else None

    def layer_features(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return the features of every hidden layer, the last one last."""
        return [PHI[self.activation](z) for z in self.pre_activations(x)]

    def pre_activations(self, x: Float[AnyArray, "N d"]) -> list[Float[Array, "N _"]]:
        """Return z^1..z^L, what enters the activations of every hidden layer."""
        entering, found = jnp.asarray(x), []
        for index, kernel in enumerate(self.kernels):
            found.append(self._affine(entering, kernel, None if self.biases is None else self.biases[index]))
            entering = PHI[self.activation](found[-1])
        return found

    def outputs(self, features: Float[Array, "N m"]) -> Float[Array, "N C"]:
        """Apply the scaled linear readout to last-layer features."""
        return self._affine(features, self.readout, self.readout_bias)

    def kernel_scale(self, kernel: Any) -> Float[Array, ""]:
        """Factor w / sqrt(inputs) in front of a weight matrix."""
        return self.weight_std[...] / kernel[...].shape[0] ** 0.5

    def _affine(self, entering: Array, kernel: Any, bias: Any) -> Array:
        dtype = entering.dtype
        z = entering @ kernel[...].astype(dtype) * self.kernel_scale(kernel).astype(dtype)
        if bias is None or self.bias_std is None:
            return z
        return z + (self.bias_std[...] * bias[...]).astype(dtype)[None, :]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NtkMLPSpec:
    """Specification of an MLP in NTK parameterisation.

    Attributes:
        widths: neurons of each hidden layer.
        activation: "erf" or "relu".
        weight_std: w > 0, dimensionless.
        bias_std: s >= 0, in units of pre-activations; None leaves the biases out.

    Raises:
        ValueError: on no width or one below 1, an unknown activation or a number out of range.
    """

    widths: tuple[int, ...] = field(metadata={"static": True})
    activation: str = field(default="erf", metadata={"static": True})
    weight_std: Any = 1.0
    bias_std: Any = None

    def __post_init__(self):
        if not isinstance(self.widths, Sequence) or isinstance(self.widths, str) or not self.widths:
            raise ArgumentError(f"Argument `widths` must list at least one layer width, but is {self.widths!r}.")
        widths = tuple(_checks.integer("widths", width, minimum=1) for width in self.widths)
        object.__setattr__(self, "widths", widths)
        _checks.choice("activation", self.activation, PHI)
        _checks.real("weight_std", self.weight_std, minimum=0.0, exclusive_minimum=True)
        if self.bias_std is not None:
            _checks.real("bias_std", self.bias_std, minimum=0.0)

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> NtkMLP:
        """Build the network with weights drawn from `rngs`."""
        return NtkMLP(self, input_dim, num_outputs, rngs)


def empirical_ntk(
    model: NtkMLP, x: Float[AnyArray, "N d"], x2: Float[AnyArray, "M d"] | None = None
) -> Float[Array, "N M"]:
    """Tangent kernel of a finite network, mean over its C outputs: (1/C) sum_c df_c(x)/dp . df_c(x')/dp.

    Layer by layer, without a Jacobian: with delta^l_c = df_c/dz^l, the weights of layer l give (w^2/n) (h^(l-1) .
    h'^(l-1)) (delta^l . delta'^l) and its biases s^2 (delta^l . delta'^l). Over initialisations its mean tends to the
    kernel of theory as the widths grow. The cross terms of different outputs, which vanish in the limit, are left out.
    Time N C n^2 + N M C n a layer of n neurons; memory N C n.

    Args:
        model: the network.
        x: inputs, one sample a row.
        x2: inputs to compare with; None means `x`.

    Returns:
        The kernel; units of output squared.

    Raises:
        ValueError: if the inputs do not have the columns of the network.

    References:
        Jacot, Gabriel and Hongler 2018 (definition); the contraction is the chain rule.
    """
    dim = model.kernels[0][...].shape[0]
    _checks.shape("x", x, ("N", dim))
    left = _backward(model, jnp.asarray(x))
    if x2 is not None:
        _checks.shape("x2", x2, ("M", dim))
    right = left if x2 is None else _backward(model, jnp.asarray(x2))
    num_outputs = model.readout[...].shape[1]
    total = jnp.zeros((left[0][0].shape[0], right[0][0].shape[0]), left[0][0].dtype)
    kernels = [*model.kernels, model.readout]
    for kernel, (entering, slope), (entering2, slope2) in zip(kernels, left, right, strict=True):
        inner = entering @ entering2.T * model.kernel_scale(kernel).astype(total.dtype) ** 2
        if model.bias_std is not None:
            inner = inner + model.bias_std[...].astype(total.dtype) ** 2
        flat, flat2 = (each.reshape(each.shape[0], -1) for each in (slope, slope2))
        total = total + inner * (flat @ flat2.T / num_outputs)
    return total


def _backward(model: NtkMLP, x: Float[Array, "N d"]) -> list[tuple[Array, Array]]:
    """What enters each layer, (N n), and the derivatives of all outputs by what the layer gives out, (N C n)."""
    before = model.pre_activations(x)
    entering = [x, *(PHI[model.activation](z) for z in before)]
    num_outputs = model.readout[...].shape[1]
    slope = jnp.broadcast_to(jnp.eye(num_outputs, dtype=x.dtype), (x.shape[0], num_outputs, num_outputs))
    slopes = [slope]
    for kernel, z in zip(reversed([*model.kernels, model.readout][1:]), reversed(before), strict=True):
        weights = kernel[...].astype(x.dtype) * model.kernel_scale(kernel).astype(x.dtype)
        slope = (slope @ weights.T) * SLOPES[model.activation](z)[:, None, :]
        slopes.insert(0, slope)
    return list(zip(entering, slopes, strict=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LazyConfig:
    """Full-batch gradient descent on |f - y|^2/(2N) without weight decay, all parameters trained.

    Attributes:
        inputs: P points, one a row; the first N are trained on.
        targets: of the N training samples, one a row (units of output).
        model: the network.
        learning_rate: size of a step, > 0.
        record_steps: increasing numbers of updates after which the outputs are recorded; the last one ends the run.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or an option is out of range.
    """

    inputs: Float[AnyArray, "P d"]
    targets: Float[AnyArray, "N C"]
    model: NtkMLPSpec
    learning_rate: Any
    record_steps: tuple[int, ...] = field(metadata={"static": True})

    def __post_init__(self):
        if isinstance(self.model, NtkMLPSpec):
            steps = _checks.integers("record_steps", self.record_steps, minimum=0)
            if not steps or list(steps) != sorted(set(steps)):
                raise ArgumentError(f"Argument `record_steps` must be increasing numbers of updates, but is {steps}.")
            object.__setattr__(self, "record_steps", steps)
        if not (_checks.is_concrete(self.inputs) and _checks.is_concrete(self.targets)):
            return
        _checks.shape("inputs", self.inputs, ("P", "d"))
        _checks.shape("targets", self.targets, ("N", "C"))
        if not 1 <= np.shape(self.targets)[0] <= np.shape(self.inputs)[0]:
            raise ArgumentError(
                f"Argument `targets` must have 1 to {np.shape(self.inputs)[0]} rows, one a point, but has "
                f"{np.shape(self.targets)[0]}."
            )
        _checks.finite("inputs", self.inputs)
        _checks.finite("targets", self.targets)
        _checks.real("learning_rate", self.learning_rate, minimum=0.0, exclusive_minimum=True)

    def initial_model(self, key: Key[Array, ""]) -> NtkMLP:
        """Build the network that a seed starts from."""
        return self.model.build(self.inputs.shape[1], self.targets.shape[1], nnx.Rngs(key))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LazyHistory:
    """One run of `descend_lazily`; under vmap with leading axes.

    Attributes:
        outputs: at every recorded step and point.
        loss: |f - y|^2/(2N) at every recorded step.
        finite: whether the loss stayed finite.
    """

    outputs: Float[Array, "*batch T P C"]
    loss: Float[Array, "*batch T"]
    finite: Bool[Array, "*batch"]


def descend_lazily(config: LazyConfig, key: Key[Array, ""]) -> tuple[LazyHistory, NtkMLP]:
    """Train one network by plain gradient descent; pure, and a function of the seed's key alone.

    Args:
        config: data, network and steps.
        key: PRNG key of the seed.

    Returns:
        What was recorded, and the trained network.
    """
    graph, params, frozen = nnx.split(config.initial_model(key), nnx.Param, ...)
    inputs, targets = (jnp.asarray(each, dtype=float) for each in (config.inputs, config.targets))
    count = targets.shape[0]
    rate = jnp.asarray(config.learning_rate, dtype=float)

    def loss(params):
        return objectives.mse(nnx.merge(graph, params, frozen)(inputs[:count]), targets)

    def update(_, params):
        return jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, jax.grad(loss)(params))

    def to_next_record(params, gap):
        params = lax.fori_loop(0, gap, update, params)
        outputs = nnx.merge(graph, params, frozen)(inputs)
        return params, (outputs, objectives.mse(outputs[:count], targets))

    gaps = jnp.asarray(np.diff(config.record_steps, prepend=0), dtype=jnp.int32)
    params, (outputs, losses) = lax.scan(to_next_record, params, gaps)
    return LazyHistory(outputs, losses, jnp.all(jnp.isfinite(losses))), nnx.merge(graph, params, frozen)


def train_lazily(config: LazyConfig, key: Key[Array, ""]) -> LazyHistory:
    """Train one network and return what was recorded: `descend_lazily` in the form that `sweep` takes.

    Args:
        config: data, network and steps.
        key: PRNG key of the seed.

    Returns:
        The history.
    """
    return descend_lazily(config, key)[0]
