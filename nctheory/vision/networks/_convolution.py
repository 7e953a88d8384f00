"""Convolution for `nnx.Conv`, with a gradient with respect to its kernel that is fast on CPUs.

XLA takes that gradient as a convolution with a window as large as the image, on a CPU at a tenth of the rate of the
forward pass (JAX 0.10.2). It is a sum over images and positions, thus matrix products of shifted activations and
cotangents, which run several times as fast. Elsewhere, and below float32, everything is left to XLA.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` as `nnx.Conv` calls it.

    On a CPU, one with a square kernel of odd size, padded by half of it on every side, has the kernel gradient of this
    module; it can be differentiated in reverse mode and forward over reverse, not in forward mode alone.
    """
    size, stride = kernel.shape[0], strides[0]
    simple = (
        tuple(strides) == (stride, stride)
        and kernel.shape[:2] == (size, size)
        and size % 2 == 1
        and list(map(tuple, padding)) == [(size // 2, size // 2)] * 2
        and x.shape[-1] == kernel.shape[2]
    )
    if jax.default_backend() != "cpu" or x.dtype not in (jnp.float32, jnp.float64) or not simple:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _plain(x, kernel, stride)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return lax.conv_general_dilated(x, kernel, (stride, stride), (pad, pad), dimension_numbers=_LAYOUT)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (of_x,) = jax.linear_transpose(lambda each: _plain(each, kernel, stride), x)(cotangent)
    of_kernel = _one_product if stride == 1 else _product_an_entry
    return of_x, of_kernel(x, cotangent, kernel.shape[0], stride)


_convolve.defvjp(_forward, _backward)


def _one_product(x: jax.Array, cotangent: jax.Array, size: int, stride: int) -> jax.Array:
    """Shift x by rows and the cotangent by columns: then one product of (positions, size C) and (positions, size D).

    Shifting one side alone by all size^2 offsets would copy more and leave a narrower product.
    """
    del stride
    offsets = range(-(size // 2), size // 2 + 1)
    rows = jnp.concatenate([_shifted(x, offset, axis=1) for offset in offsets], axis=-1)
    columns = jnp.concatenate([_shifted(cotangent, -offset, axis=2) for offset in offsets], axis=-1)
    product = jnp.tensordot(rows, columns, axes=((0, 1, 2), (0, 1, 2)))
    return product.reshape(size, x.shape[-1], size, cotangent.shape[-1]).transpose(0, 2, 1, 3)


def _shifted(x: jax.Array, offset: int, *, axis: int) -> jax.Array:
    """`out[i] = x[i + offset]` along an axis, zero beyond its ends."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (-offset, offset, 0)
    return x if offset == 0 else lax.pad(x, jnp.zeros((), x.dtype), edges)


def _product_an_entry(x: jax.Array, cotangent: jax.Array, size: int, stride: int) -> jax.Array:
    """One product (C, D) for every entry of the kernel, with the positions that it meets."""
    _, height, width, _ = cotangent.shape
    pad = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))

    def of_entry(row: int, column: int) -> jax.Array:
        rows = slice(row, row + stride * (height - 1) + 1, stride)
        columns = slice(column, column + stride * (width - 1) + 1, stride)
        return jnp.tensordot(padded[:, rows, columns], cotangent, axes=((0, 1, 2), (0, 1, 2)))

    return jnp.stack([jnp.stack([of_entry(row, column) for column in range(size)]) for row in range(size)])
