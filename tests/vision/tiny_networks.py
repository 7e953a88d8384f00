"""Networks small enough to train in a test, with batch norm as the real ones have it, and images for them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nctheory.vision.images import Images


class TinyNet(nnx.Module):
    """Optional convolution, batch norm, pooling or flattening, linear classifier."""

    def __init__(self, spec, image_shape, num_outputs, rngs, dtype):
        height, width, channels = image_shape
        self.pooled = spec.convolution
        self.conv, self.norm = nnx.data(None), nnx.data(None)
        size = height * width * channels
        if spec.convolution:
            self.conv = nnx.Conv(channels, spec.width, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
            size = spec.width
        elif spec.width:
            self.conv = nnx.Linear(size, spec.width, dtype=dtype, rngs=rngs)
            size = spec.width
        if spec.batch_norm:
            self.norm = nnx.BatchNorm(size, momentum=0.9, rngs=rngs)
        self.classifier = nnx.Linear(size, num_outputs, rngs=rngs)

    def layer_features(self, images):
        """Outputs of all layers."""
        hidden = images if self.pooled else images.reshape(images.shape[0], -1)
        if self.conv is not None:
            hidden = self.conv(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden.astype(jnp.float32))
        if self.conv is not None:
            hidden = nnx.relu(hidden)
        found = {"stem": hidden}
        return found | {"features": jnp.mean(hidden, axis=(1, 2)) if self.pooled else hidden}

    def features(self, images):
        """Inputs of the classifier."""
        return self.layer_features(images)["features"]

    def __call__(self, images):
        """Logits."""
        return self.classifier(self.features(images)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class TinySpec:
    """`width` 0 without convolution: a linear classifier of the pixels."""

    width: int = 4
    convolution: bool = True
    batch_norm: bool = True

    def build(self, image_shape, num_outputs, rngs, *, dtype=jnp.float32):
        """A network with random parameters."""
        return TinyNet(self, image_shape, num_outputs, rngs, dtype)


LINEAR = TinySpec(width=0, convolution=False, batch_norm=False)
DENSE = TinySpec(width=8, convolution=False)


def blobs(num_samples: int, seed: int = 0, *, like: Images | None = None, size: int = 6) -> Images:
    """Images of three classes, one brighter in each channel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % 3
    levels = (
        rng.integers(0, 120, (num_samples, size, size, 3))
        + 60 * (np.arange(3)[None, :] == labels[:, None])[:, None, None]
    )
    return Images.of(levels.astype(np.uint8), labels, num_classes=3, like=like)


def splits(num_train: int = 40, num_test: int = 15) -> tuple[Images, Images]:
    train = blobs(num_train)
    return train, blobs(num_test, 1, like=train)
