"""Official train and test split of an image set, as image networks are trained and measured on it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from _layers.options import ImageOptions
from nctheory import vision
from nctheory._errors import ArgumentError

NOISE, NUM_NOISE = "noise", 1000


class OfficialSplit(NamedTuple):
    """Train and test images, scaled by the mean and standard deviation of the whole train split.

    Attributes:
        train: to train on.
        test: held out.
        class_names: of all classes.
    """

    train: vision.Images
    test: vision.Images
    class_names: tuple[str, ...]

    @property
    def images(self) -> tuple[vision.Images, vision.Images]:
        """Both parts."""
        return self.train, self.test


def official_split(name: str, data_dir: Path | None, options: ImageOptions, *, progress: bool) -> OfficialSplit:
    """Load a set, and take as many of its first images as the options ask for.

    Args:
        name: a name of `vision.dataset_names()`.
        data_dir: folder of prepared sets.
        options: numbers of images and the batch size.
        progress: whether decoding shows a progress bar.

    Returns:
        Both parts, with every class among the images that are measured.

    Raises:
        ValueError: for an unknown set, a class without measured images, more images a batch than there are, or
            a batch that the devices do not divide.
    """
    if name not in vision.dataset_names():
        known = list(vision.dataset_names())
        raise ArgumentError(f"Argument `dataset` must name sets among {known}, but names {name!r}.")
    parts = [vision.load(name, split, data_dir, progress=progress) for split in vision.SPLITS]
    names = parts[0].class_names
    first = vision.Images.of(parts[0].images, parts[0].labels, num_classes=len(names))
    second = vision.Images.of(parts[1].images, parts[1].labels, num_classes=len(names), like=first)
    train, test = (
        first.head(options.num_train or first.num_samples),
        second.head(options.num_test or second.num_samples),
    )
    for split, part in zip(vision.SPLITS, (train, test), strict=True):
        if np.bincount(measured(part, options).labels, minlength=len(names)).min() == 0:
            raise ArgumentError(
                f"Arguments `images.num_train`, `images.num_test` and `images.max_measured` must leave every class of "
                f"{name} an image to measure, but its {split} split lacks one."
            )
    if options.batch_size > train.num_samples:
        raise ArgumentError(
            f"Argument `images.batch_size` must be at most the {train.num_samples} train images of {name}, but is "
            f"{options.batch_size}."
        )
    vision.check_batch_size(options.batch_size, name="images.batch_size")
    return OfficialSplit(train, test, names)


def outsiders(
    train: vision.Images, data_dir: Path | None, options: ImageOptions, *, progress: bool
) -> vision.Images | None:
    """Load the out-of-distribution images, scaled as the train split; None without `ood_dataset`.

    Args:
        train: of the set that the network learns.
        data_dir: folder of prepared sets.
        options: name of the set, and number of images that are measured.
        progress: whether decoding shows a progress bar.

    Returns:
        The images; their labels mean nothing.

    Raises:
        ValueError: for an unknown set, or one with images of another shape.
    """
    name = options.ood_dataset
    if name is None:
        return None
    if name == NOISE:
        # Always the same images: noise, as any other set, is not among what the seeds change.
        levels = np.random.default_rng(0).integers(0, 256, (NUM_NOISE, *train.image_shape)).astype(np.uint8)
    elif name in vision.dataset_names():
        levels = vision.load(name, "test", data_dir, progress=progress).images[: options.max_measured]
    else:
        known = [*vision.dataset_names(), NOISE]
        raise ArgumentError(f"Argument `images.ood_dataset` must be one of {known}, but is {name!r}.")
    if levels.shape[1:] != train.image_shape:
        raise ArgumentError(
            f"Argument `images.ood_dataset` must name images of shape {train.image_shape}, but those of {name} have "
            f"shape {levels.shape[1:]}."
        )
    return vision.Images.of(levels, np.zeros(len(levels), np.int32), num_classes=train.num_classes, like=train)


def measured(part: vision.Images, options: ImageOptions) -> vision.Images:
    """The images of one part that are measured."""
    return part if options.max_measured is None else part.head(options.max_measured)
