"""The layers that image networks are made of, each with float32 parameters and a chosen dtype of computation.

**Convolutions** start He-normal over fan_out, `std = sqrt(2 / (h w c_out))`: it keeps the size of gradients from layer
to layer, and it is what the published residual, VGG and densely connected networks used, so their learning rates carry
over. Before batch normalisation the scale does not change the outputs, only how fast a weight turns.

**Batch normalisation** has `running = 0.9 running + 0.1 batch` and epsilon 1e-5. That is PyTorch's momentum 0.1, but
the running variance takes the batch's variance with divisor n, PyTorch's with n - 1. Means and variances are taken in
float32 also when the convolutions compute in bfloat16.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from nctheory.vision.networks._base import Activation
from nctheory.vision.networks._convolution import convolution

ACTIVATIONS: dict[str, Activation] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
# Those that are near 0 for negative inputs halve the second moment, which the weights make up for.
HALVING = ("relu", "leaky_relu", "gelu", "silu")
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

_HE_CONV = initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform within 1/sqrt(d), with which the published learning rates were tuned; a zero bias favours no class.
_CLASSIFIER = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(channels_in: int, channels_out: int, size: int, rngs: nnx.Rngs, dtype: Any, *, stride: int = 1, bias=False):
    """Square convolution that keeps height and width (divided by the stride, rounded up).

    Padded by size // 2 on every side: "SAME" pads one side only at stride 2, unlike the published networks.
    """
    return nnx.Conv(
        channels_in,
        channels_out,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias,
        kernel_init=_HE_CONV,
        dtype=dtype,
        param_dtype=jnp.float32,
        conv_general_dilated=convolution,
        rngs=rngs,
    )


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over all axes but the last, in float32 throughout, its result cast to `dtype`.

    Given a lower dtype itself, Flax's layer would round the running statistics, scale and shift to it.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs, dtype: Any):
        super().__init__(
            channels, momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=jnp.float32, rngs=rngs
        )
        self.result_dtype = jnp.dtype(dtype)

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalise; in training mode also move the running statistics."""
        return super().__call__(x, use_running_average, mask=mask).astype(self.result_dtype)


def linear_classifier(feature_dim: int, num_outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Last layer: float32 also where float32 products are rounded to fewer bits by default."""
    return nnx.Linear(
        feature_dim,
        num_outputs,
        kernel_init=_CLASSIFIER,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        rngs=rngs,
    )


class ConvUnit(nnx.Module):
    """Convolution, batch normalisation if asked for, activation, and a 2 x 2 max-pool if asked for."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        rngs: nnx.Rngs,
        dtype: Any,
        *,
        activation: str,
        normalised: bool = True,
        bias: bool = False,
        pooled: bool = False,
    ):
        self.conv = conv(channels_in, channels_out, 3, rngs, dtype, bias=bias)
        self.norm = BatchNorm(channels_out, rngs, dtype) if normalised else None
        self.activation = activation
        self.pooled = pooled

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the unit."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        x = ACTIVATIONS[self.activation](x)
        # "SAME": an odd last row or column is pooled by itself instead of being dropped.
        return nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME") if self.pooled else x


class NormActivation(nnx.Module):
    """Batch normalisation, then the activation: the first half of a pre-activation layer."""

    def __init__(self, channels: int, rngs: nnx.Rngs, dtype: Any, *, activation: str):
        self.norm = BatchNorm(channels, rngs, dtype)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply both."""
        return ACTIVATIONS[self.activation](self.norm(x))


class GlobalMean(nnx.Module):
    """Average over height and width, summed in float32; `before` comes first if given."""

    def __init__(self, before: Activation | None = None):
        self.before = before

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool (N, h, w, c) to (N, c)."""
        x = x if self.before is None else self.before(x)
        return x.astype(jnp.float32).mean(axis=(1, 2))


class DenseUnit(nnx.Module):
    """Flattening, linear layer, batch normalisation if asked for (then no bias), activation.

    Weights start He-normal over fan_in, `std = sqrt(g / fan_in)` with g = 2 for activations that halve the second
    moment and g = 1 otherwise, so that the size of activations does not depend on depth; biases start at zero.
    """

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs, dtype: Any, *, activation: str, normalised: bool):
        gain = 2.0 if activation in HALVING else 1.0
        self.linear = nnx.Linear(
            fan_in,
            fan_out,
            use_bias=not normalised,
            kernel_init=initializers.variance_scaling(gain, "fan_in", "normal"),
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        self.norm = BatchNorm(fan_out, rngs, dtype) if normalised else None
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the unit to (N, ...)."""
        x = self.linear(x.reshape(x.shape[0], -1))
        if self.norm is not None:
            x = self.norm(x)
        return ACTIVATIONS[self.activation](x)
