"""Images as inputs of an MLP, split by every seed in its own way, under the original classes or two super-classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _shared.pixels import standardised

from nctheory import simulator, vision
from nctheory._errors import ArgumentError

# Any other set than digits is larger than an MLP on two cores can use.
DEFAULT_NUM_IMAGES = 5000
# Craft against animals; the classes of other sets are halved by number (digits: y >= 5).
TWO_CLASSES = {"cifar10": (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)}


@dataclass(frozen=True)
class Pool:
    """Labelled images as rows.

    Attributes:
        inputs: pixels less their mean, over their standard deviation, both over all pixels of all these images.
        labels: original class of each.
        class_names: of the original classes.
        super_class: 0 or 1 for each original class.
    """

    inputs: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    super_class: np.ndarray


def load(name: str, num_images: int | None, data_dir: Path | None = None) -> Pool:
    """Put the official train and test images together, because every seed splits them anew.

    Mean and standard deviation are those of all images of the pool, held-out ones included: two numbers, which a
    split's own train part would give to within a few parts in a thousand.

    Args:
        name: a name of `vision.dataset_names()`.
        num_images: how many to use, evenly over each class in the order of the set; by default all digits, and
            `DEFAULT_NUM_IMAGES` of another set.
        data_dir: folder of prepared sets.

    Returns:
        The images.

    Raises:
        ValueError: if the set has fewer images.
    """
    parts = [vision.load(name, split, data_dir) for split in vision.SPLITS]
    names = parts[0].class_names
    labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
    count = num_images or (labels.size if name == "digits" else min(labels.size, DEFAULT_NUM_IMAGES))
    if count > labels.size:
        raise ArgumentError(f"Argument `num_images` must be at most {labels.size} for {name!r}, but is {count}.")
    by_class = np.argsort(labels, kind="stable")
    rows = by_class[np.linspace(0, labels.size - 1, count).round().astype(int)]
    (pixels,) = standardised(np.concatenate([part.images for part in parts])[rows])
    return Pool(pixels, labels[rows], names, two_classes(name, len(names)))


def two_classes(name: str, num_classes: int) -> np.ndarray:
    """Super-class, 0 or 1, of each original class of a set: as `TWO_CLASSES` says, else the halves by number."""
    table = TWO_CLASSES.get(name)
    if table is None:
        table = vision.label_map("consecutive", num_fine=num_classes, num_coarse=2).table
    return np.asarray(table, dtype=np.int32)


def source(pool: Pool, num_train: int, *, coarse: bool = False) -> simulator.SplitData:
    """Stratified split of the pool, another for every seed.

    Args:
        pool: the images.
        num_train: train images; the rest is held out.
        coarse: whether to train on the two super-classes.

    Returns:
        The data source.

    Raises:
        ValueError: if a class would have no train or no held-out image.
    """
    labels = pool.super_class[pool.labels] if coarse else pool.labels
    count = len(pool.class_names)
    samples = simulator.Samples(pool.inputs, labels.astype(np.int32), pool.labels)
    return simulator.SplitData(samples, num_train, num_labels=2 if coarse else count, num_fine=count)
