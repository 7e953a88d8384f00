"""Options of the experiment; light, because `--help` reads them."""

import dataclasses
from pathlib import Path
from typing import Literal

from nctheory._cli import RunOptions, check_integer
from nctheory._errors import ArgumentError

PARTS = ("collapse", "transfer", "samples")
"""Parts in the order in which they run; "collapse" holds the cascade too."""
_SMOKE = {"num_train": 200, "num_epochs": 6, "transfer_epochs": 4, "num_passes": 800, "sizes": (100, 200)}
_SMOKE |= {"num_images": 600, "width": 32, "depth": 3, "parts": ("all",)}


@dataclasses.dataclass(frozen=True)
class MlpOptions(RunOptions):
    """Data and training of the MLPs; rates and decays are those of a squared error averaged over outputs too."""

    parts: tuple[Literal["collapse", "transfer", "samples", "all"], ...] = ("collapse", "transfer")
    """What to run: "collapse" on train against test with the cascade over layers, "transfer" from two super-classes to
    the original classes, "samples" for the dependence on the number of train samples (the slow one), or "all"."""
    dataset: str = "digits"
    """Image set, a name of nctheory.vision.dataset_names()."""
    data_dir: Path | None = None
    """Folder of prepared image sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    num_images: int | None = None
    """Images that every seed splits, evenly over the classes; by default all digits, and 5,000 of any other set."""
    num_train: int = 500
    """Train images of part "collapse"."""
    num_epochs: int = 600
    """Epochs of part "collapse"."""
    weight_decay: float = 1e-3
    """L2 coefficient of part "collapse"; its control has none."""
    transfer_train: int | None = None
    """Train images of part "transfer"; by default four fifths of all."""
    transfer_epochs: int = 150
    """Epochs of part "transfer"."""
    transfer_decay: float = 5e-4
    """L2 coefficient of parts "transfer" and "samples"; the control of "transfer" has none."""
    sizes: tuple[int, ...] = (100, 200, 400, 800, 1400)
    """Numbers of train images of part "samples"."""
    num_passes: int = 300_000
    """Images that a run of part "samples" sees in all: its epochs are this number over its train images."""
    loss: Literal["mse", "cross_entropy"] = "mse"
    """Training loss, on one-hot labels."""
    learning_rate: float = 0.1
    """Largest step size of parts "collapse" and "transfer"; part "samples" uses three tenths of it."""
    depth: int = 5
    """Hidden layers (part "samples": 3)."""
    width: int = 256
    """Width of every hidden layer (part "samples": twice that)."""
    batch_size: int = 16
    """Images an update."""

    def __post_init__(self):
        """Check what needs no data."""
        super().__post_init__()
        smallest = {"num_train": 2, "num_epochs": 1, "transfer_epochs": 1, "num_passes": 1}
        for name, minimum in (smallest | {"depth": 2, "width": 2, "batch_size": 1}).items():
            check_integer(name, getattr(self, name), minimum=minimum)
        for name in ("num_images", "transfer_train"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=2)
        for name in ("weight_decay", "transfer_decay", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"Argument `{name}` must be > 0 and finite, but is {getattr(self, name)}.")
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ArgumentError(f"Argument `parts` must name different parts, but is {self.parts}.")
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ArgumentError(f"Argument `sizes` must be at least two increasing numbers, but is {self.sizes}.")
        for size in self.sizes:
            check_integer("sizes", size, minimum=2)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts to run."""
        return tuple(name for name in PARTS if name in self.parts or "all" in self.parts)

    @property
    def sized(self) -> "MlpOptions":
        """These options with their number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        changed = {name: value for name, value in _SMOKE.items() if self.smoke and getattr(self, name) == default[name]}
        return dataclasses.replace(self, num_seeds=self.num_seeds or (2 if self.smoke else 8), **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of sized options."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))
