"""Options that the coarse-label experiments share; light, because `--help` reads them."""

import dataclasses
from pathlib import Path

from _coarse.images_options import ImageOptions
from nctheory._cli import RunOptions
from nctheory._errors import ArgumentError

IMAGE_DEFAULTS = ImageOptions()
# Options that say how the MLP is trained and nothing else; image networks have theirs under `images`.
MLP_OPTIONS = ("widths", "init_scale", "weight_decay", "learning_rate", "momentum", "batch_size", "num_steps")


@dataclasses.dataclass(frozen=True)
class DataOptions(RunOptions):
    """Which images and which network."""

    dataset: str = "digits"
    """Image set, a name of nctheory.vision.dataset_names()."""
    data_dir: Path | None = None
    """Folder of prepared image sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    network: str = "resnet-small"
    """Network, a name of nctheory.vision.networks.network_names()."""
    merge_seed: int = 0
    """Names the random merges."""


@dataclasses.dataclass(frozen=True)
class MlpOptions(DataOptions):
    """Either the MLP of the simulator, with its training, or an image network with its own."""

    network: str = "mlp"
    """Network: mlp, or an image network of nctheory.vision.networks.network_names() such as resnet-small, resnet18."""
    widths: tuple[int, ...] = (256, 256)
    """MLP: hidden widths."""
    init_scale: float = 0.3
    """MLP: initial weights as a multiple of He-normal."""
    weight_decay: float = 0.0
    """MLP: weight decay lambda (objective: loss + lambda/2 |weights|^2)."""
    learning_rate: float = 0.1
    """MLP: first step size of momentum gradient descent; it falls to 0 along a half cosine."""
    momentum: float = 0.9
    """MLP: heavy-ball coefficient."""
    batch_size: int = 128
    """MLP: images an update."""
    num_steps: int = 1200
    """MLP: updates."""
    images: ImageOptions = IMAGE_DEFAULTS
    """Training of image networks."""

    @property
    def takes_images(self) -> bool:
        """Whether the network is an image network."""
        return self.network != "mlp"

    def check_foreign(self, *more: str) -> None:
        """Refuse options of the other kind of network; `more` names further ones of the MLP.

        A number that would be ignored is worse than an error.
        """
        default = {f.name: f.default for f in dataclasses.fields(self)}
        for name in (*MLP_OPTIONS, "chunk_size", *more) if self.takes_images else ("images",):
            if getattr(self, name) != default[name]:
                raise ArgumentError(
                    f"Argument `{name}` must be left alone with network {self.network!r}: it is of {_owner(name)}."
                )


def _owner(name: str) -> str:
    """Whose an option is that only one kind of network has, in words."""
    if name == "images":
        return "image networks"
    return "the MLP" if name == "chunk_size" else "the MLP; image networks have theirs under --images"
