"""Options of image networks; light, because `--help` reads them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from nctheory._cli import RunOptions, check_integer
from nctheory._errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Training of an image network with momentum 0.9, without augmentation."""

    num_epochs: int = 20
    """Passes over the train images."""
    batch_size: int = 128
    """Images a step."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "one_cycle"
    """How the rate changes: "step" divides it by 10 at 1/3 and 2/3."""
    control: bool = True
    """Train the first set once more without weight decay, as a control."""
    pool: bool = False
    """Average activations over height and width before they are measured; otherwise they are flattened."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the activations in training: "auto" is bfloat16 on GPU and TPU, float32 on CPU."""
    checkpoint_epochs: tuple[int, ...] = ()
    """Epochs at which every layer is measured, the last among them; by default 0, powers of two and the last."""
    num_train: int | None = None
    """Train images to use, the first of the set; all by default."""
    num_test: int | None = None
    """Test images to use, the first of the set; all by default."""
    max_measured: int | None = None
    """Images of each split that are measured, the first; all by default."""
    max_spectrum_dim: int = 2048
    """Widest layer, in numbers a sample, whose effective rank and variability collapse index are measured: they need
    all activations of a layer at once. 0 measures none."""

    ood_dataset: str | None = None
    """Out-of-distribution images of the same shape, whose mean is held against the class means of every layer (NC5):
    the test split of another set, its first `max_measured`, or "noise", 1,000 images of uniformly drawn levels."""

    def check(self) -> None:
        """Check what the training's own configuration does not."""
        for name in ("num_epochs", "batch_size", "num_train", "num_test", "max_measured"):
            if getattr(self, name) is not None:
                check_integer(f"images.{name}", getattr(self, name), minimum=1)
        check_integer("images.max_spectrum_dim", self.max_spectrum_dim, minimum=0)
        listed = self.checkpoint_epochs
        if listed and (listed[-1] != self.num_epochs or listed[0] or list(listed) != sorted(set(listed))):
            raise ArgumentError(
                f"Argument `images.checkpoint_epochs` must increase from 0 (untrained) to the last epoch "
                f"{self.num_epochs}, but is {listed}."
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
        default = {each.name: each.default for each in dataclasses.fields(self)}
        small = {"num_epochs": 2, "batch_size": 64, "num_train": 256, "num_test": 256}
        changed = {name: value for name, value in small.items() if getattr(self, name) == default[name]}
        return dataclasses.replace(self, **changed)


def check_run_options(options: RunOptions, *, alone: bool) -> None:
    """Check what every experiment has; with `alone`, for image networks, a single seed is enough.

    Args:
        options: of the experiment, which replaces `__post_init__` of `RunOptions` by this.
        alone: whether one seed may stand alone.

    Raises:
        ValueError: for a number out of range or options that exclude each other.
    """
    shared: dict[str, Any] = {each.name: getattr(options, each.name) for each in dataclasses.fields(RunOptions)}
    if alone and options.num_seeds is not None:
        check_integer("num_seeds", options.num_seeds, minimum=1)
        shared["num_seeds"] = max(options.num_seeds, 2)
    RunOptions(**shared)


def check_names(name: str, values: Sequence[str]) -> None:
    """Check that a list of choices has at least one, none twice, and "all" only alone.

    Args:
        name: of the argument.
        values: what was chosen.

    Raises:
        ValueError: for any other list.
    """
    if not values or len(set(values)) < len(values) or ("all" in values and len(values) > 1):
        raise ArgumentError(f'Argument `{name}` must list different names, or "all" alone, but is {list(values)}.')


def check_foreign(options: Any, names: Iterable[str], *, network: str, owner: str) -> None:
    """Refuse options of the other kind of network: a number that would be ignored is worse than an error.

    Args:
        options: dataclass record.
        names: fields that must have their defaults.
        network: what is trained, in words.
        owner: whose the fields are, in words.

    Raises:
        ValueError: for the first field that has another value.
    """
    default = {each.name: each.default for each in dataclasses.fields(options)}
    for name in names:
        if getattr(options, name) != default[name]:
            raise ArgumentError(f"Argument `{name}` must be left alone with {network}: it is of {owner}.")
