"""Images of a data set, thinned to given class sizes, as inputs of an MLP."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _shared.pixels import standardised

from nctheory import simulator, vision
from nctheory._errors import ArgumentError


def step_sizes(smallest: int, num_classes: int) -> tuple[int, ...]:
    """Class sizes that rise from `smallest` to five times that, two classes a step for ten classes.

    The published imbalanced run has this profile, (100, 100, 200, 200, ..., 500, 500).
    """
    return tuple(smallest * (1 + 5 * k // num_classes) for k in range(num_classes))


def equal_sizes(total: int, num_classes: int) -> tuple[int, ...]:
    """Class sizes of the same total, equal to within one."""
    return tuple(total // num_classes + (k < total % num_classes) for k in range(num_classes))


def load(
    name: str, profiles: Sequence[tuple[int, ...]], data_dir: str | Path | None = None
) -> list[simulator.FixedData]:
    """Training images of every class-size profile, and all test images.

    A profile takes the first n_k training images of class k in the order of the set, as the published run does. Pixels
    are divided by 255, then shifted by the mean and divided by the standard deviation of all pixels of the training
    split, the same for every profile.

    Args:
        name: a name of `vision.dataset_names()`.
        profiles: class sizes n_1 ... n_K, one tuple a profile.
        data_dir: folder of prepared sets, as for `vision.load`.

    Returns:
        One data source a profile.

    Raises:
        ValueError: if a class has fewer images than a profile asks for.
    """
    train, test = (vision.load(name, split, data_dir) for split in vision.SPLITS)
    inputs = standardised(*(part.images / 255.0 for part in (train, test)))
    available = np.bincount(train.labels, minlength=train.num_classes)
    fresh = simulator.Samples(inputs[1], test.labels, test.labels)
    sources = []
    for sizes in profiles:
        if (np.asarray(sizes) > available).any():
            raise ArgumentError(
                f"Argument `smallest_class` must ask for at most {available.tolist()} images of the classes of "
                f"{name!r}, but asks for {list(sizes)}."
            )
        rows = np.concatenate([np.flatnonzero(train.labels == k)[:size] for k, size in enumerate(sizes)])
        samples = simulator.Samples(inputs[0][rows], train.labels[rows], train.labels[rows])
        count = len(sizes)
        sources.append(simulator.FixedData(samples, fresh, num_labels=count, num_fine=count))
    return sources
