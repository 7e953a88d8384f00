"""What every image network has in common: named features by depth, then one linear classifier."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

# float16 is left out: its gradients underflow without loss scaling.
DTYPES = ("bfloat16", "float32")

Activation = Callable[[jax.Array], jax.Array]


class ImageNetwork(nnx.Module):
    """A chain of named blocks, a head that turns the last activation into a feature vector, and a linear classifier.

    `train()` and `eval()` of Flax choose whether batch normalisation uses the batch's statistics and moves the running
    ones, or uses the running ones; a new network is in training mode. Parameters are `nnx.Param` and running statistics
    `nnx.BatchStat`, all float32 whatever the dtype of the computation; so are the features and the logits.

    Attributes:
        image_shape: height, width and channels of the images.
        layer_names: names of all entries of `layer_features`, the first layer first.
        classifier: the last linear layer: `logits = features @ kernel + bias`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        blocks: Mapping[str, Activation],
        head: Activation,
        classifier: nnx.Linear,
        dtype: Any,
    ):
        self.image_shape = image_shape
        self.layer_names = (*blocks, "features")
        self.blocks = nnx.List(list(blocks.values()))
        self.head = head
        self.classifier = classifier
        self.dtype = dtype

    def _activations(self, images: Float[AnyArray, "N H W C"]) -> Iterator[jax.Array]:
        """Yield the output of every block, then the features."""
        _checks.shape("images", images, ("N", *self.image_shape))
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ArgumentError(f"Argument `images` must hold normalised real numbers, but has dtype {images.dtype}.")
        x = jnp.asarray(images).astype(self.dtype)
        for block in self.blocks:
            x = block(x)
            yield x
        yield self.head(x).astype(jnp.float32)

    def layer_features(self, images: Float[AnyArray, "N H W C"]) -> dict[str, Float[Array, "N ..."]]:
        """Return the output of every block by name, the first layer first.

        Outputs of convolutional blocks keep their shape (N, h, w, c) and the dtype of the computation. The last entry,
        "features", is what the classifier sees: (N, d), float32. In training mode the running statistics move.

        Args:
            images: normalised images.

        Returns:
            An ordered dictionary. Its order survives `jit`, which would sort the keys of a plain one.

        Raises:
            ValueError: if the images do not have the shape the network was built for, or hold integers.
        """
        return OrderedDict(zip(self.layer_names, self._activations(images), strict=True))

    def features(self, images: Float[AnyArray, "N H W C"]) -> Float[Array, "N d"]:
        """Return the last entry of `layer_features` without keeping the others.

        Args:
            images: normalised images.

        Returns:
            The input of the classifier, float32.

        Raises:
            ValueError: if the images do not have the shape the network was built for, or hold integers.
        """
        x = None
        for x in self._activations(images):  # noqa: B007  (only the last one is wanted)
            pass
        assert x is not None
        return x

    def __call__(self, images: Float[AnyArray, "N H W C"]) -> Float[Array, "N K"]:
        """Return the logits, float32."""
        return self.classifier(self.features(images))


@runtime_checkable
class NetworkSpec(Protocol):
    """A hashable specification that builds an `ImageNetwork` for given image and output sizes."""

    @property
    def smallest_side(self) -> int:
        """Smallest height and width of images that the network takes, in pixels."""
        ...

    def build(
        self, image_shape: tuple[int, int, int], num_outputs: int, rngs: nnx.Rngs, *, dtype: Any = jnp.float32
    ) -> ImageNetwork:
        """Build the network with weights drawn from `rngs`.

        Args:
            image_shape: height, width and channels.
            num_outputs: number of logits K.
            rngs: random streams of the initial weights.
            dtype: what the blocks compute in, float32 or bfloat16; parameters, running statistics, features and logits
                are float32 either way.

        Returns:
            The network, in training mode.

        Raises:
            ValueError: if the images are too small, or a size or the dtype is not allowed.
        """
        ...


def num_parameters(spec: NetworkSpec, image_shape: tuple[int, int, int], num_outputs: int) -> int:
    """Count the trained numbers of a network without building it; running statistics do not count.

    Args:
        spec: which network.
        image_shape: height, width and channels.
        num_outputs: number of logits.

    Returns:
        Number of scalar parameters.

    Raises:
        ValueError: if the network cannot be built for these sizes.

    Example:
        >>> from nctheory.vision.networks import network, num_parameters
        >>> num_parameters(network("resnet18"), (32, 32, 3), 10)
        11173962
    """
    model = nnx.eval_shape(lambda: spec.build(image_shape, num_outputs, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def check_build(
    image_shape: Any, num_outputs: Any, dtype: Any, *, smallest: int
) -> tuple[tuple[int, int, int], jnp.dtype]:
    """Check the arguments of `build`; return the image shape as a tuple and the dtype of the computation."""
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ArgumentError(f"Argument `image_shape` must be (height, width, channels), but is {image_shape!r}.")
    height, width, channels = (_checks.integer("image_shape", size, minimum=1) for size in image_shape)
    if min(height, width) < smallest:
        raise ArgumentError(
            f"Argument `image_shape` must have height and width >= {smallest} for this network, but is "
            f"{(height, width, channels)}."
        )
    _checks.integer("num_outputs", num_outputs, minimum=1)
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    _checks.choice("dtype", name, DTYPES)
    return (height, width, channels), jnp.dtype(dtype)


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Check a non-empty sequence of positive integers; return it as a tuple."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentError(f"Argument `{name}` must be a sequence of integers, but is {value!r}.")
    if not value:
        raise ArgumentError(f"Argument `{name}` must hold at least one integer, but is {value!r}.")
    return tuple(_checks.integer(name, each, minimum=1) for each in value)


def flag(name: str, value: Any) -> None:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise ArgumentError(f"Argument `{name}` must be True or False, but is {value!r}.")
