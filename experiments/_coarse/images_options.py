"""Options of the image networks; light, because `--help` reads them."""

import dataclasses
from typing import Literal

from nctheory._cli import check_integer
from nctheory._errors import ArgumentError

# Scanned digits and house numbers change their meaning when mirrored.
_NOT_MIRRORED = ("digits", "mnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Training of an image network: SGD with Nesterov momentum on cross-entropy."""

    num_epochs: int = 20
    """Passes over the train images."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.2
    """Largest rate of the schedule."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "one_cycle"
    """How the rate changes: "step" divides it by 10 at 1/3 and 2/3."""
    weight_decay: float = 5e-4
    """Lambda of the objective loss + lambda/2 |parameters|^2."""
    momentum: float = 0.9
    """Coefficient of Nesterov's momentum."""
    augment: Literal["auto", "none", "crop", "crop_flip"] = "auto"
    """Random views: "auto" is crop_flip, but none for digits, mnist and svhn_cropped, which cannot be mirrored."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the activations: "auto" is bfloat16 on GPU and TPU, float32 on CPU."""
    checkpoint_epochs: tuple[int, ...] = ()
    """Epochs at which everything is measured, the last among them; by default 0, powers of two and the last."""
    num_train: int | None = None
    """Train images to use, the first of the set; all by default."""
    num_test: int | None = None
    """Test images to use, the first of the set; all by default."""

    def check(self) -> None:
        """Check what the training's own configuration does not."""
        check_integer("images.num_epochs", self.num_epochs, minimum=1)
        for name in ("num_train", "num_test"):
            if getattr(self, name) is not None:
                check_integer(f"images.{name}", getattr(self, name), minimum=1)
        if self.checkpoint_epochs and (self.checkpoint_epochs[-1] != self.num_epochs or self.checkpoint_epochs[0]):
            raise ArgumentError(
                f"Argument `images.checkpoint_epochs` must begin with 0 (untrained) and end with the last epoch "
                f"{self.num_epochs}, but is {self.checkpoint_epochs}."
            )

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs at which everything is measured."""
        if self.checkpoint_epochs:
            return self.checkpoint_epochs
        doubled = (2**power for power in range(self.num_epochs.bit_length()))
        return tuple(sorted({0, self.num_epochs, *doubled}))

    @property
    def smaller(self) -> "ImageOptions":
        """This record with whatever was left at its default made small, for `--smoke`."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        # As many test images as train images: one program reads the features of both.
        small = {"num_epochs": 2, "batch_size": 64, "num_train": 256, "num_test": 256}
        changed = {name: value for name, value in small.items() if getattr(self, name) == default[name]}
        return dataclasses.replace(self, **changed)

    def augmentation(self, dataset: str) -> str:
        """Name of the augmentation for a set."""
        if self.augment != "auto":
            return self.augment
        return "none" if dataset in _NOT_MIRRORED else "crop_flip"
