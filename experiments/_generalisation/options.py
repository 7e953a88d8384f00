"""Options of the experiment; light, because `--help` reads them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from _layers.options import ImageOptions, check_foreign, check_names, check_run_options

from nctheory._cli import RunOptions, check_integer
from nctheory._errors import ArgumentError

PARTS = ("collapse", "transfer", "samples")
"""Parts in the order in which they run; "collapse" holds the cascade too."""
_USUAL_PARTS = ("collapse", "transfer")
_SMOKE = {"num_train": 200, "num_epochs": 6, "transfer_epochs": 4, "num_passes": 800, "sizes": (100, 200)}
_IMAGE_DEFAULTS = ImageOptions()
_OF_THE_MLP = ("num_images", "num_train", "num_epochs", "transfer_train", "transfer_epochs", "sizes", "num_passes")
_OF_THE_MLP += ("depth", "width", "batch_size", "chunk_size")
_OF_IMAGES = ("images", "num_probed")
_SMOKE |= {"num_images": 600, "width": 32, "depth": 3, "parts": ("all",)}


@dataclasses.dataclass(frozen=True)
class MlpOptions(RunOptions):
    """Data and training; rates and decays are those of a squared error averaged over outputs too."""

    num_seeds: int | None = None
    """Number of seeds; the claims are about them. MLP: at least 2, default 8. Image networks: default 1."""

    parts: tuple[Literal["collapse", "transfer", "samples", "all"], ...] = _USUAL_PARTS
    """What to run: "collapse" on train against test with the cascade over layers, "transfer" from two super-classes to
    the original classes, "samples" for the dependence on the number of train samples (the slow one), or "all"."""
    dataset: str = "digits"
    """Image set, a name of nctheory.vision.dataset_names()."""
    data_dir: Path | None = None
    """Folder of prepared image sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    network: str = "mlp"
    """Network: mlp, or an image network of nctheory.vision.networks.network_names(), trained on the official split."""
    num_images: int | None = None
    """MLP: images that every seed splits, evenly over the classes; by default all digits, 5,000 of any other set."""
    num_train: int = 500
    """MLP: train images of part "collapse"."""
    num_epochs: int = 600
    """MLP: epochs of part "collapse"."""
    weight_decay: float = 1e-3
    """L2 coefficient of part "collapse"; its control has none."""
    transfer_train: int | None = None
    """MLP: train images of part "transfer"; by default four fifths of all."""
    transfer_epochs: int = 150
    """MLP: epochs of part "transfer"."""
    transfer_decay: float = 5e-4
    """L2 coefficient of parts "transfer" and "samples"; the control of "transfer" has none."""
    sizes: tuple[int, ...] = (100, 200, 400, 800, 1400)
    """MLP: numbers of train images of part "samples"."""
    num_passes: int = 300_000
    """MLP: images that a run of part "samples" sees in all: its epochs are this number over its train images."""
    loss: Literal["mse", "cross_entropy"] = "mse"
    """Training loss, on one-hot labels."""
    learning_rate: float = 0.1
    """Largest step size of parts "collapse" and "transfer"; part "samples" uses three tenths of it."""
    depth: int = 5
    """MLP: hidden layers (part "samples": 3)."""
    width: int = 256
    """MLP: width of every hidden layer (part "samples": twice that)."""
    batch_size: int = 16
    """MLP: images an update."""
    images: ImageOptions = _IMAGE_DEFAULTS
    """Training of image networks; parts "collapse" and "transfer" share it, each with its control unless `control` is
    off."""
    num_probed: int = 10_000
    """Image networks: train images, the first, on which probes are fitted."""
    quiet: bool = False
    """Show no progress bars."""

    def __post_init__(self):
        """Check what needs no data."""
        check_run_options(self, alone=self.takes_images)
        self.images.check()
        self._check_foreign()
        check_integer("num_probed", self.num_probed, minimum=2)
        smallest = {"num_train": 2, "num_epochs": 1, "transfer_epochs": 1, "num_passes": 1}
        for name, minimum in (smallest | {"depth": 2, "width": 2, "batch_size": 1}).items():
            check_integer(name, getattr(self, name), minimum=minimum)
        for name in ("num_images", "transfer_train"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=2)
        for name in ("weight_decay", "transfer_decay", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"Argument `{name}` must be > 0 and finite, but is {getattr(self, name)}.")
        check_names("parts", self.parts)
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ArgumentError(f"Argument `sizes` must be at least two increasing numbers, but is {self.sizes}.")
        for size in self.sizes:
            check_integer("sizes", size, minimum=2)

    def _check_foreign(self) -> None:
        """Refuse options of the other kind of network."""
        names, owner = (_OF_THE_MLP, "the MLP") if self.takes_images else (_OF_IMAGES, "image networks")
        check_foreign(self, names, network=f"network {self.network!r}", owner=owner)
        if self.takes_images and "samples" in self.parts:
            raise ArgumentError("Argument `parts` must not name 'samples' with an image network: it is of the MLP.")

    @property
    def takes_images(self) -> bool:
        """Whether the network is an image network."""
        return self.network != "mlp"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts to run."""
        known = PARTS[:2] if self.takes_images else PARTS
        return tuple(name for name in known if name in self.parts or "all" in self.parts)

    @property
    def name(self) -> str:
        """Of the run folder: set, network, and the parts if they are not the default ones."""
        chosen = ("all",) if self.chosen == PARTS else self.chosen
        return "-".join([self.dataset, self.network, *(() if chosen == _USUAL_PARTS else chosen)])

    @property
    def sized(self) -> "MlpOptions":
        """These options with their number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        small = {"parts": ("all",)} if self.takes_images else _SMOKE
        changed: dict[str, Any] = {
            name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]
        }
        if self.takes_images and self.smoke:
            changed["images"] = self.images.smaller
        usual = 1 if self.takes_images else 2 if self.smoke else 8
        return dataclasses.replace(self, num_seeds=self.num_seeds or usual, **changed)

    @property
    def seeds(self) -> list[int]:
        """The seeds of sized options."""
        return list(range(self.seed, self.seed + (self.num_seeds or 0)))
