"""Labelled uint8 images with the statistics that normalise them."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt8

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

_CHUNK = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Images:
    """Images and labels of one split, with the channel statistics of the training split; make it with `Images.of`.

    Networks see `(images - mean) / std`; the levels stay uint8 until a compiled step has them on its device.

    Attributes:
        images: Levels 0..255, channels last.
        labels: Label of each image, 0..K-1.
        mean: Mean level of each channel over the training split, in levels.
        std: Standard deviation of each channel over the training split (divisor: number of pixels), in levels.
        num_classes: Number of labels K.
    """

    images: UInt8[AnyArray, "N H W C"]
    labels: Int[AnyArray, " N"]
    mean: Float[AnyArray, " C"]
    std: Float[AnyArray, " C"]
    num_classes: int = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        images: UInt8[AnyArray, "N H W C"],
        labels: Integer[AnyArray, " N"],
        *,
        num_classes: int,
        like: "Images | None" = None,
    ) -> "Images":
        """Bind images to labels, with their own channel statistics or those of another split.

        The statistics are exact: sums of integers, divided once. A channel without any spread gets the standard
        deviation of one level, so that it becomes 0 instead of NaN.

        Args:
            images: Levels 0..255, channels last; at least one image.
            labels: Label of each image, 0..K-1; a label may be absent.
            num_classes: Number of labels K, >= 2.
            like: The training split, when this is a test split; None computes the statistics of `images`.

        Returns:
            The record, with NumPy arrays.

        Raises:
            ValueError: If shapes or dtypes are wrong, a label is out of range, or `like` differs in image shape or
                number of labels.
        """
        _checks.integer("num_classes", num_classes, minimum=2)
        _checks.shape("images", images, ("N", "H", "W", "C"))
        if images.dtype != np.uint8:
            raise ArgumentError(f"Argument `images` must have dtype uint8, but has dtype {images.dtype}.")
        if 0 in np.shape(images):
            raise ArgumentError(f"Argument `images` must hold at least one pixel, but has shape {np.shape(images)}.")
        _checks.labels("labels", labels, num_classes=num_classes, length=np.shape(images)[0])
        images = np.asarray(images)
        if like is None:
            mean, std = _channel_statistics(images)
        else:
            _checks.shape("images", images, ("N", *like.image_shape))
            if num_classes != like.num_classes:
                raise ArgumentError(
                    f"Argument `num_classes` must be {like.num_classes} as in `like`, not {num_classes}."
                )
            mean, std = like.mean, like.std
        return cls(images, np.asarray(labels).astype(np.int32), mean, std, num_classes=int(num_classes))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        height, width, channels = np.shape(self.images)[1:]
        return height, width, channels

    @property
    def num_samples(self) -> int:
        """Number of images N."""
        return int(np.shape(self.labels)[0])

    def head(self, num_samples: int) -> "Images":
        """Keep the first images, with the same statistics; all of them if there are fewer."""
        _checks.integer("num_samples", num_samples, minimum=1)
        return Images(
            self.images[:num_samples], self.labels[:num_samples], self.mean, self.std, num_classes=self.num_classes
        )


def _channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    channels = images.shape[-1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(images), _CHUNK):
        levels = images[start : start + _CHUNK].reshape(-1, channels).astype(np.int64)
        total += levels.sum(axis=0)
        squares += (levels**2).sum(axis=0)
    count = images.size // channels
    mean = total / count
    # In Python integers, which do not overflow: the variance times count^2 without cancellation.
    scaled = np.array([count * int(q) - int(t) ** 2 for q, t in zip(squares, total, strict=True)], dtype=np.float64)
    std = np.sqrt(scaled) / count
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)


def normalise(
    images: UInt8[AnyArray, "N H W C"], mean: Float[AnyArray, " C"], std: Float[AnyArray, " C"]
) -> Float[Array, "N H W C"]:
    """What a network sees of uint8 images: `(images - mean) / std` in float32, for use inside compiled functions."""
    levels = jnp.asarray(images).astype(jnp.float32)
    return (levels - jnp.asarray(mean)[None, None, None, :]) / jnp.asarray(std)[None, None, None, :]


def check_images(name: str, value: object) -> None:
    """Refuse anything but `Images`, such as bare arrays.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(value, Images):
        raise ArgumentError(f"Argument `{name}` must be of type `vision.Images`, but is {type(value).__name__}.")
