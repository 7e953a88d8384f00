"""The kernel gradient of the networks' convolutions against XLA's own and against a sum over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from nctheory.vision import networks
from nctheory.vision.networks import _convolution
from nctheory.vision.networks._convolution import convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Rows, columns, channels in and out, kernel, stride; sides of one pixel and sides that the stride does not divide too.
SHAPES = [
    (6, 5, 3, 4, 3, 1),
    (7, 6, 3, 4, 3, 2),
    (5, 8, 2, 3, 1, 1),
    (5, 7, 2, 3, 1, 2),
    (1, 2, 3, 2, 3, 1),
    (9, 9, 2, 2, 5, 3),
]
TOLERANCE = {jnp.float32: 2e-5, jnp.float64: 1e-12}  # Sums of at most 200 products, in another order.


def own(x, kernel, stride):
    pad = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return convolution(x, kernel, (stride, stride), (pad, pad), dimension_numbers=LAYOUT)


def of_xla(x, kernel, stride):
    pad = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    return lax.conv_general_dilated(x, kernel, (stride, stride), (pad, pad), dimension_numbers=LAYOUT)


def draw(shape, dtype, seed=0):
    height, width, channels_in, channels_out, size, _ = shape
    rng = np.random.default_rng(seed)
    x, kernel = (
        rng.normal(size=(3, height, width, channels_in)),
        rng.normal(size=(size, size, channels_in, channels_out)),
    )
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def gradients(convolve, x, kernel, stride):
    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, stride)))

    return jax.grad(loss, argnums=(0, 1))(x, kernel)


@pytest.fixture
def calls(monkeypatch):
    """Count the kernel gradients of our own that are traced."""
    seen = []
    for name in ("_one_product", "_product_an_entry"):
        plain = getattr(_convolution, name)
        monkeypatch.setattr(_convolution, name, lambda *a, plain=plain, name=name: (seen.append(name), plain(*a))[1])
    return seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_xla(shape, calls):
    dtype = jnp.zeros(()).dtype
    x, kernel = draw(shape, dtype)
    stride, scale = shape[-1], TOLERANCE[dtype.type]
    np.testing.assert_array_equal(own(x, kernel, stride), of_xla(x, kernel, stride))
    found = jax.jit(gradients, static_argnums=(0, 3))(own, x, kernel, stride)
    for mine, theirs in zip(found, gradients(of_xla, x, kernel, stride), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=scale * float(jnp.abs(theirs).max()))
    assert calls == ["_one_product" if stride == 1 else "_product_an_entry"]


@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_gradient_is_the_sum_over_positions(stride):
    x, kernel = draw((5, 4, 2, 3, 3, stride), jnp.zeros(()).dtype)
    cotangent = jnp.cos(of_xla(x, kernel, stride))
    _, found = gradients(own, x, kernel, stride)
    padded, expected = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros(kernel.shape)
    for image, row, column in np.ndindex(*cotangent.shape[:3]):
        window = padded[image, stride * row : stride * row + 3, stride * column : stride * column + 3]
        expected += window[..., None] * np.asarray(cotangent[image, row, column], np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[x.dtype.type] * np.abs(expected).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_batches_of_kernels_and_second_derivatives(stride):
    shape = (5, 4, 2, 3, 3, stride)
    x, kernel = draw(shape, jnp.zeros(()).dtype)
    _, other = draw(shape, x.dtype, seed=1)
    scale = TOLERANCE[x.dtype.type]

    def kernel_gradient(convolve):
        return lambda kernel: gradients(convolve, x, kernel, stride)[1]

    both = jnp.stack([kernel, other])
    mine, theirs = (jax.vmap(kernel_gradient(each))(both) for each in (own, of_xla))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=scale * float(jnp.abs(theirs).max()))
    # Hessian-vector products, forward over reverse.
    mine, theirs = (jax.jvp(kernel_gradient(each), (kernel,), (other,))[1] for each in (own, of_xla))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=5 * scale * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
    ("strides", "padding", "dtype"),
    [((1, 2), ((1, 1), (1, 1)), None), ((1, 1), ((0, 0), (1, 1)), None), ((1, 1), ((1, 1), (1, 1)), jnp.bfloat16)],
)
def test_what_is_not_known_here_is_left_to_xla(calls, strides, padding, dtype):
    x, kernel = draw((5, 4, 2, 3, 3, 1), dtype or jnp.zeros(()).dtype)

    def loss(convolve):
        return lambda kernel: convolve(x, kernel, strides, padding, dimension_numbers=LAYOUT).astype(jnp.float32).sum()

    mine, theirs = (jax.grad(loss(each))(kernel) for each in (convolution, lax.conv_general_dilated))
    np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))
    assert calls == []


def test_every_convolution_of_a_network_takes_it(calls):
    model = networks.ResNetSpec(blocks=(1, 1), widths=(3, 4)).build((6, 6, 2), 3, nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 2)), jnp.float32)
    nnx.grad(lambda model: jnp.sum(model(images) ** 2))(model)
    # Stem, two of each block, and the shortcut; the second stage's first and its shortcut have stride 2.
    assert sorted(calls) == ["_one_product"] * 4 + ["_product_an_entry"] * 2
