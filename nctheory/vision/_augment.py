"""Random views of uint8 images, drawn on the device inside the training step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

AUGMENTATIONS = ("none", "crop", "crop_flip")


def augment(name: str, key: Key[Array, ""], images: UInt8[Array, "N H W C"], *, pad: int) -> UInt8[Array, "N H W C"]:
    """Draw one random view of every image.

    "crop": the image is padded with `pad` black pixels (level 0) on each side and cropped to its own size at one of the
    (2 pad + 1)^2 places, all equally likely. "crop_flip": the same crops, mirrored left to right with probability 1/2.
    "none": unchanged.

    Args:
        name: One of `AUGMENTATIONS`.
        key: PRNG key; the views are a function of it and of the number of images.
        images: Levels 0..255.
        pad: Pixels, >= 0.

    Returns:
        The views.
    """
    if name == "none":
        return images
    count, height, width, channels = images.shape
    place, mirror = jax.random.split(key)
    corners = jax.random.randint(place, (count, 2), 0, 2 * pad + 1, dtype=jnp.int32)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    zero = jnp.zeros((), jnp.int32)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], zero), (height, width, channels))

    crops = jax.vmap(crop)(padded, corners)
    if name == "crop":
        return crops
    flips = jax.random.bernoulli(mirror, 0.5, (count,))
    return jnp.where(flips[:, None, None, None], crops[:, :, ::-1, :], crops)
