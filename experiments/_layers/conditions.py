"""The conditions of the layer experiment: image digits, Gaussian mixtures of graded hardness, wrong labels."""

import dataclasses

import numpy as np
from _shared.pixels import standardised

from _layers.recipes import Recipe
from nctheory import simulator, vision
from nctheory._types import AnyArray

TRAIN_SHARE = 0.8
# The numbers of the mixtures: classes, input dimension, length of a centre, samples in all.
NUM_CLASSES, DIM, CENTRE_NORM, NUM_SAMPLES = 10, 64, 8.0, 1800
_MIXTURE_STREAM = 20231106


@dataclasses.dataclass(frozen=True)
class Condition:
    """One row of the experiment: a labelled set, how it is trained, what it stands for.

    Attributes:
        name: as in `conditions`.
        dataset: "digits", "gmm_easy" or "gmm_multi8".
        label_noise: share of the train labels that is redrawn uniformly.
        decays: whether weight decay is on.
        stretch: number of epochs as a multiple of the recipe's.
        role: what the condition is for.
    """

    name: str
    dataset: str
    label_noise: float = 0.0
    decays: bool = True
    stretch: int = 1
    role: str = ""


CONDITIONS = (
    Condition("digits", "digits", role="the reference"),
    Condition("digits_no_decay", "digits", decays=False, role="control: no weight decay"),
    Condition("gmm_easy", "gmm_easy", role="one Gaussian a class"),
    Condition("gmm_multi8", "gmm_multi8", role="eight Gaussians a class"),
    Condition("digits_noise20", "digits", 0.2, stretch=2, role="20 % of the train labels redrawn"),
    Condition("digits_noise50", "digits", 0.5, stretch=2, role="50 % of the train labels redrawn"),
)
"""All conditions, the reference first."""


def conditions(names: tuple[str, ...]) -> list[Condition]:
    """Conditions by name, in the order of `CONDITIONS`; "all" among the names is every one."""
    return [each for each in CONDITIONS if each.name in names or "all" in names]


def digits() -> simulator.Samples:
    """All 1,797 digits: pixels less their mean over standard deviation, both over all images and pixels.

    One mean and one scale of the whole set, held-out images included: every seed has a split of its own, and these two
    numbers of its train part differ from them by less than a percent.
    """
    parts = [vision.load("digits", split) for split in vision.SPLITS]
    labels = np.concatenate([part.labels for part in parts])
    (inputs,) = standardised(np.concatenate([part.images for part in parts]))
    return simulator.Samples(inputs, labels, labels)


def mixture(centres_per_class: int, seed: int) -> simulator.Samples:
    """Ten classes of Gaussians of unit noise about random centres of norm 8 in 64 dimensions, scaled to unit variance.

    Args:
        centres_per_class: Gaussians that bear one label; with several, class means no longer separate the classes.
        seed: of the centres and the samples; the seeds of training split one draw.

    Returns:
        1,800 samples; `fine_labels` are the labels too, so that splits are stratified by label.
    """
    draw = np.random.default_rng([_MIXTURE_STREAM, centres_per_class, seed])
    centres = draw.standard_normal((NUM_CLASSES * centres_per_class, DIM))
    centres *= CENTRE_NORM / np.linalg.norm(centres, axis=1, keepdims=True)
    labels = np.repeat(np.arange(NUM_CLASSES), NUM_SAMPLES // NUM_CLASSES)
    # Consecutive samples of a class take its centres in turn.
    which = labels * centres_per_class + np.arange(NUM_SAMPLES) % centres_per_class
    inputs = centres[which] + draw.standard_normal((NUM_SAMPLES, DIM))
    return simulator.Samples(inputs / inputs.std(), labels, labels)


def source(condition: Condition, seed: int, *, num_samples: int | None = None) -> simulator.SplitData:
    """Samples of a condition, which every seed of training splits 80 to 20 in its own way.

    Args:
        condition: the condition.
        seed: of a mixture's draw.
        num_samples: samples of the set to use, evenly spread over it in label order; all if None.

    Returns:
        The data source.
    """
    if condition.dataset == "digits":
        samples = digits()
    else:
        samples = mixture(8 if condition.dataset == "gmm_multi8" else 1, seed)
    if num_samples is not None:
        samples = _thinned(samples, num_samples)
    count = len(samples.labels)
    return simulator.SplitData(
        samples,
        num_train=round(TRAIN_SHARE * count) if count != 1797 else 1437,
        num_labels=NUM_CLASSES,
        num_fine=NUM_CLASSES,
        label_noise=condition.label_noise,
    )


def _thinned(samples: simulator.Samples, count: int) -> simulator.Samples:
    order = np.argsort(np.asarray(samples.labels), kind="stable")
    rows = order[np.linspace(0, len(order) - 1, count).astype(int)]
    parts: list[AnyArray] = [np.asarray(each)[rows] for each in (samples.inputs, samples.labels, samples.fine_labels)]
    return simulator.Samples(*parts)


def train_config(
    condition: Condition, recipe: Recipe, data: simulator.SplitData, num_records: int, *, spectra: str = "ends"
) -> simulator.LayerTrainConfig:
    """Configure the training of a condition.

    Args:
        condition: the condition.
        recipe: of the reference.
        data: its samples.
        num_records: log-spaced epochs at which every layer is measured.
        spectra: when the spectra of all layers are measured, one of `simulator.SPECTRA`.

    Returns:
        The configuration.
    """
    epochs = condition.stretch * recipe.num_epochs
    mine = dataclasses.replace(recipe, num_epochs=epochs, weight_decay=recipe.weight_decay if condition.decays else 0.0)
    return mine.config(data, simulator.log_spaced_epochs(epochs, num_records), spectra=spectra)
