"""Coarse labels: maps that merge the original (fine) classes of a data set into super-classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

SCHEMES = ("consecutive", "mod", "random", "semantic")

_LOOK_ALIKE_DIGITS = ((4, 9), (3, 5), (1, 7), (0, 6), (2, 8))
# T-shirt/top with Shirt, Pullover with Coat, Sandal with Sneaker, Trouser with Dress, Bag with Ankle boot.
_LOOK_ALIKE_CLOTHES = ((0, 6), (2, 4), (5, 7), (1, 3), (8, 9))
# airplane with ship, automobile with truck, bird with frog, cat with dog, deer with horse.
_KINDRED_OBJECTS = ((0, 8), (1, 9), (2, 6), (3, 5), (4, 7))
# airplane with ship, bird with monkey, car with truck, cat with dog, deer with horse; classes stand in another order.
_KINDRED_PHOTOGRAPHS = ((0, 8), (1, 7), (2, 9), (3, 5), (4, 6))
SEMANTIC_GROUPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "cifar10": _KINDRED_OBJECTS,
    "digits": _LOOK_ALIKE_DIGITS,
    "fashion_mnist": _LOOK_ALIKE_CLOTHES,
    "mnist": _LOOK_ALIKE_DIGITS,
    "stl10": _KINDRED_PHOTOGRAPHS,
    "svhn_cropped": _LOOK_ALIKE_DIGITS,
}
"""Original classes that a person would merge, by data set: the super-classes of the scheme "semantic", in this order.

Written down before any network was trained on them, by what the classes mean, and not chosen by a measurement. Digits:
shapes that people confuse (4-9 an open loop, 3-5 the same lower half, 1-7 a stroke, 0-6 a round, 2-8 the two left over,
with a curved top). CIFAR-10 and STL-10: craft of air and water, road vehicles, pets, hoofed animals, and the two
animals left over. Fashion: tops, outer layers, open and closed shoes, long garments, and the two left over.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LabelMap:
    """A map from F fine classes onto C super-classes, none of them empty.

    Attributes:
        table: Super-class of each fine class, 0..C-1.
        coarse_names: Name of each super-class.
        scheme: "mod", "consecutive", "random", "semantic" or "table".
    """

    table: Int[AnyArray, " F"]
    coarse_names: tuple[str, ...] = field(metadata={"static": True})
    scheme: str = field(metadata={"static": True})

    @property
    def num_fine(self) -> int:
        """Number of fine classes F."""
        return int(np.shape(self.table)[0])

    @property
    def num_coarse(self) -> int:
        """Number of super-classes C."""
        return len(self.coarse_names)

    @property
    def clusters_per_label(self) -> tuple[int, ...]:
        """Number of fine classes in each super-class."""
        return tuple(np.bincount(np.asarray(self.table), minlength=self.num_coarse).tolist())

    def members(self, coarse_label: int) -> tuple[int, ...]:
        """List the fine classes of one super-class.

        Args:
            coarse_label: Super-class, 0..C-1.

        Returns:
            Its fine classes in increasing order.

        Raises:
            ValueError: If there is no such super-class.
        """
        _checks.labels("coarse_label", np.asarray([coarse_label]), num_classes=self.num_coarse)
        return tuple(np.flatnonzero(np.asarray(self.table) == coarse_label).tolist())

    @property
    def partner_order(self) -> tuple[int, ...]:
        """All fine classes, super-class by super-class, so that merged classes stand side by side."""
        return tuple(np.argsort(np.asarray(self.table), kind="stable").tolist())


def _scheme_table(scheme: str, num_fine: int, num_coarse: int, seed: int | None) -> np.ndarray:
    classes = np.arange(num_fine)
    if scheme == "mod":
        return classes % num_coarse
    if scheme == "consecutive":
        # Equals c // s when s = F / C is whole; otherwise sizes differ by at most one and none is empty.
        return classes * num_coarse // num_fine
    # RandomState: NumPy freezes the stream of this legacy generator, so a seed names one map for good.
    shuffled = np.random.RandomState(_checks.integer("seed", seed, minimum=0)).permutation(num_fine)
    table = np.empty(num_fine, dtype=np.int64)
    table[shuffled] = classes % num_coarse
    return table


def _semantic_table(dataset: str | None, num_fine: int, num_coarse: int) -> np.ndarray:
    known = sorted(SEMANTIC_GROUPS)
    if dataset not in SEMANTIC_GROUPS:
        raise ArgumentError(
            f"Argument `dataset` must name a data set with declared groups for scheme 'semantic', one of {known}, but "
            f"is {dataset!r}."
        )
    groups = SEMANTIC_GROUPS[dataset]
    table = np.empty(sum(map(len, groups)), dtype=np.int64)
    if (num_fine, num_coarse) != (table.size, len(groups)):
        raise ArgumentError(
            f"Argument `num_coarse` must be {len(groups)} and `num_fine` {table.size} for scheme 'semantic' of "
            f"{dataset}, but they are {num_coarse} and {num_fine}."
        )
    for label, group in enumerate(groups):
        table[list(group)] = label
    return table


def label_map(
    scheme: str | Sequence[int] | Int[AnyArray, " F"],
    *,
    num_fine: int,
    num_coarse: int,
    seed: int | None = None,
    fine_names: Sequence[str] | None = None,
    dataset: str | None = None,
) -> LabelMap:
    """Build the map from fine classes to super-classes.

    Schemes, for fine class c of F and C super-classes: "mod" gives c mod C; "consecutive" gives floor(c C / F), which
    is floor(c / s) for s = F / C classes each; "random" merges at random into C groups whose sizes differ by at most
    one; "semantic" merges what a person would call alike, as declared for each data set in `SEMANTIC_GROUPS`; a table
    of F integers is taken as it stands. C = F keeps the classes apart (up to order), C = 1 merges all.

    Args:
        scheme: One of `SCHEMES`, or the super-class of each fine class.
        num_fine: F, at least 1.
        num_coarse: C, 1..F.
        seed: Names one random merge; needed by "random", not used otherwise.
        fine_names: Names of the fine classes, to name a super-class "a+b"; their numbers by default.
        dataset: Name of the data set, a key of `SEMANTIC_GROUPS`; needed by "semantic", not used otherwise.

    Returns:
        The map.

    Raises:
        ValueError: If the scheme is unknown, a size is out of range, "random" comes without a seed, "semantic" without
            a data set that has groups of these sizes, the table has the wrong length or an entry outside 0..C-1, or a
            super-class stays empty.
    """
    num_fine = _checks.integer("num_fine", num_fine, minimum=1)
    num_coarse = _checks.integer("num_coarse", num_coarse, minimum=1)
    if num_coarse > num_fine:
        raise ArgumentError(f"Argument `num_coarse` must be <= num_fine = {num_fine}, but is {num_coarse}.")
    if isinstance(scheme, str):
        _checks.choice("scheme", scheme, SCHEMES)
        kind = scheme
        if scheme == "semantic":
            table = _semantic_table(dataset, num_fine, num_coarse)
        else:
            table = _scheme_table(scheme, num_fine, num_coarse, seed)
    else:
        table, kind = np.asarray(scheme), "table"
    _checks.labels("scheme", table, num_classes=num_coarse, length=num_fine)
    _checks.no_empty_class("scheme", table, num_classes=num_coarse)
    names = [str(c) for c in range(num_fine)] if fine_names is None else list(fine_names)
    _checks.shape("fine_names", names, (num_fine,))
    merged = tuple("+".join(names[c] for c in np.flatnonzero(table == y)) for y in range(num_coarse))
    return LabelMap(table.astype(np.int32), coarse_names=merged, scheme=kind)


def coarse_labels(
    fine_labels: Int[AnyArray, " N"],
    scheme: str | Sequence[int] | Int[AnyArray, " F"] | LabelMap,
    *,
    num_fine: int | None = None,
    num_coarse: int | None = None,
    seed: int | None = None,
    dataset: str | None = None,
) -> Int[np.ndarray, " N"]:
    """Replace each fine label by its super-class, y = table[c].

    Args:
        fine_labels: Fine class of each sample.
        scheme: A `LabelMap`, or what `label_map` takes.
        num_fine: F; not used with a `LabelMap`, else needed.
        num_coarse: C; not used with a `LabelMap`, else needed.
        seed: For the scheme "random".
        dataset: For the scheme "semantic".

    Returns:
        The super-class of each sample, int32 on the host.

    Raises:
        ValueError: If a label lies outside the map, no sample falls into some super-class, or `label_map` refuses.
    """
    if not isinstance(scheme, LabelMap):
        num_fine = _checks.integer("num_fine", num_fine, minimum=1)
        num_coarse = _checks.integer("num_coarse", num_coarse, minimum=1)
        scheme = label_map(scheme, num_fine=num_fine, num_coarse=num_coarse, seed=seed, dataset=dataset)
    _checks.labels("fine_labels", fine_labels, num_classes=scheme.num_fine)
    merged = np.asarray(scheme.table)[np.asarray(fine_labels)]
    missing = np.flatnonzero(np.bincount(merged, minlength=scheme.num_coarse) == 0)
    if missing.size:
        raise ArgumentError(
            f"Argument `fine_labels` must reach every super-class, but none of its {merged.size} samples falls into "
            f"{[scheme.coarse_names[y] for y in missing]}."
        )
    return merged
