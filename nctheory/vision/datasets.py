"""Image classification sets as plain arrays, behind one registry: `load(name, split)`.

A data set is an entry of `_LOADERS`: a function `(split, data_dir, progress) -> ImageDataset`. Adding one adds an entry
and edits nothing else; one that TFDS prepares and whose rows have `image` and `label` is a name in `_tfds.NAMES`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8

from nctheory import _checks
from nctheory._types import AnyArray
from nctheory.vision import _tfds

SPLITS = ("train", "test")
_DIGITS_TEST_STRIDE = 5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageDataset:
    """One split of a labelled image set; a pytree whose leaves are the arrays.

    Attributes:
        images: Grey or colour levels 0..255 (dimensionless), channels last.
        labels: Class of each image, 0..F-1.
        class_names: Name of each class; its length is F.
        name: Name in the registry.
        split: "train" or "test".
    """

    images: UInt8[AnyArray, "N H W C"]
    labels: Int[AnyArray, " N"]
    class_names: tuple[str, ...] = field(metadata={"static": True})
    name: str = field(metadata={"static": True})
    split: str = field(metadata={"static": True})

    @property
    def num_classes(self) -> int:
        """Number of classes F."""
        return len(self.class_names)

    @property
    def num_samples(self) -> int:
        """Number of images N."""
        return int(np.shape(self.labels)[0])


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    scaled = np.round(images * (255.0 / 16.0)).astype(np.uint8)
    return scaled.reshape(-1, 8, 8, 1), labels.astype(np.int32)


def _load_digits(split: str, data_dir: str | Path | None, progress: bool) -> ImageDataset:
    del data_dir, progress  # The images ship with scikit-learn.
    images, labels = _digits()
    # A rule instead of a random draw: no generator's stream has to stay the same over library versions.
    by_class = np.argsort(labels, kind="stable")
    in_test = np.zeros(labels.size, dtype=bool)
    in_test[by_class[::_DIGITS_TEST_STRIDE]] = True
    chosen = in_test if split == "test" else ~in_test
    names = tuple(str(digit) for digit in range(10))
    return ImageDataset(images[chosen], labels[chosen], class_names=names, name="digits", split=split)


def _load_tfds(name: str, split: str, data_dir: str | Path | None, progress: bool) -> ImageDataset:
    found = _tfds.read(name, split, data_dir, progress=progress)
    return ImageDataset(found.images, found.labels, class_names=found.class_names, name=name, split=split)


_LOADERS: dict[str, Callable[[str, str | Path | None, bool], ImageDataset]] = {
    "digits": _load_digits,
    **{name: functools.partial(_load_tfds, name) for name in _tfds.NAMES},
}


def dataset_names() -> tuple[str, ...]:
    """List the names that `load` knows, in alphabetical order."""
    return tuple(sorted(_LOADERS))


def load(name: str, split: str, data_dir: str | Path | None = None, *, progress: bool = True) -> ImageDataset:
    """Load one split of an image set as uint8 arrays.

    "digits": the 1,797 handwritten digits that ship with scikit-learn, 8 x 8 x 1. Their levels 0..16 are stored as
    `round(level * 255 / 16)`, one-to-one, so `images / 255` is `level / 16` to within 0.002. The split is fixed and
    stratified: samples are put in class order (file order within a class) and every fifth, starting with the first,
    is test: 360 test and 1,437 train images, each class within one image of a fifth. Writers are not told apart in
    this set, so a writer can occur in both splits.

    "mnist", "fashion_mnist", "svhn_cropped", "stl10", "cifar10", "cifar100": the sets of TensorFlow Datasets with their
    own splits, read without TensorFlow. They are looked for in `data_dir`, else $TFDS_DATA_DIR, else
    ~/tensorflow_datasets, and downloaded there if absent. The first call decodes a split, which takes 10 to 20 s for
    60,000 small images; later ones read the decoded copy under $NCTHEORY_CACHE_DIR (else ~/.cache/nctheory) and check
    its SHA-256. A copy belongs to the files it was made from; a damaged one is made again, with a warning.

    Args:
        name: A name from `dataset_names()`.
        split: "train" or "test".
        data_dir: Folder of all prepared sets, each under NAME/VERSION; "digits" needs none.
        progress: Whether to show a progress bar while decoding.

    Returns:
        The images (N H W C), labels (N) and class names, in the file's order. The arrays are fresh copies.

    Raises:
        ValueError: If the name or the split is unknown; the message lists the known ones.
        DatasetError: If the set is absent and cannot be downloaded, or its files are damaged or truncated.
    """
    _checks.choice("name", name, dataset_names())
    _checks.choice("split", split, SPLITS)
    return _LOADERS[name](split, data_dir, progress)
