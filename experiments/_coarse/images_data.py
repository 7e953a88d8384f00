"""An image set under merged labels, for image networks."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from nctheory._errors import ArgumentError
from nctheory.runs import RunFolderError, read_json

if TYPE_CHECKING:
    import numpy as np

    from nctheory.vision import Images, LabelMap


@dataclasses.dataclass(frozen=True)
class CoarseImages:
    """Train and test images, labelled once by super-class and once by original class.

    Attributes:
        coarse: (train, test) with super-classes as labels.
        ordinary: the same images with the original classes.
        label_map: the merge.
        class_names: of the original classes.
        copy: which copy of the set this is, from its own description.
    """

    coarse: "tuple[Images, Images]"
    ordinary: "tuple[Images, Images]"
    label_map: "LabelMap"
    class_names: tuple[str, ...]
    copy: str

    @property
    def labels(self) -> "tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]":
        """(coarse, fine) labels of (train, test)."""
        return (self.coarse[0].labels, self.coarse[1].labels), (self.ordinary[0].labels, self.ordinary[1].labels)  # pyright: ignore[reportReturnType]


def load(
    dataset: str,
    scheme: str,
    *,
    num_coarse: int,
    merge_seed: int,
    data_dir: Path | None,
    num_train: int | None,
    num_test: int | None,
) -> CoarseImages:
    """Load both splits; arguments as the options of the experiment, errors as `vision.load` and `vision.label_map`."""
    import numpy as np

    from nctheory import vision

    train, test = (vision.load(dataset, split, data_dir) for split in vision.SPLITS)
    num_fine = train.num_classes
    if num_coarse >= num_fine:
        raise ArgumentError(f"Argument `num_coarse` must be below the {num_fine} classes, but is {num_coarse}.")
    mapping = vision.label_map(
        scheme,
        num_fine=num_fine,
        num_coarse=num_coarse,
        seed=merge_seed,
        fine_names=train.class_names,
        dataset=dataset,
    )
    first = vision.Images.of(train.images, train.labels, num_classes=num_fine)
    second = vision.Images.of(test.images, test.labels, num_classes=num_fine, like=first)
    ordinary = (first.head(num_train or first.num_samples), second.head(num_test or second.num_samples))
    if np.bincount(ordinary[0].labels, minlength=num_fine).min() < 2:
        raise ArgumentError(
            f"Argument `images.num_train` must leave at least two images of every class, but is {num_train}."
        )
    coarse = [
        dataclasses.replace(part, labels=vision.coarse_labels(part.labels, mapping), num_classes=num_coarse)
        for part in ordinary
    ]
    return CoarseImages((coarse[0], coarse[1]), ordinary, mapping, train.class_names, data_copy(dataset, data_dir))


def data_copy(dataset: str, data_dir: Path | None) -> str:
    """Say which copy of a set stands on this machine: "JPEG copy" where its description speaks of JPEG."""
    if dataset == "digits":
        return "scikit-learn's copy"
    from nctheory.vision import _tfds

    try:
        described = read_json(_tfds._prepared(dataset, _tfds.data_folder(data_dir)) / "dataset_info.json")
        return "JPEG copy" if "jpeg" in str(described.get("description", "")).lower() else "as published"
    except (RunFolderError, AttributeError):
        return "copy without description"
