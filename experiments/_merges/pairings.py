"""The merges that are compared: every super-class is a pair of original classes."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from nctheory.vision import LabelMap

SCHEMES = ("mod", "consecutive", "semantic", "random")


@dataclasses.dataclass(frozen=True)
class Merge:
    """One merge of all classes in pairs.

    Attributes:
        name: its scheme, for random pairings with a number.
        scheme: an entry of `SCHEMES`.
        label_map: super-class of every original class.
    """

    name: str
    scheme: str
    label_map: "LabelMap"


def random_pairings(num_fine: int, count: int, seed: int) -> "list[np.ndarray]":
    """Random pairings of an even number of classes, as tables of super-classes.

    Rounds of a round-robin tournament among randomly numbered classes: each is a uniformly random pairing, and of any
    F - 1 that follow each other from the first on, every pair of classes occurs exactly once, so that no pair weighs
    more than another. Longer lists begin a new tournament.
    """
    import numpy as np

    # RandomState: NumPy freezes the stream of this legacy generator, so a seed names one list for good.
    generator, tables = np.random.RandomState(seed), []
    while len(tables) < count:
        numbers, rounds = generator.permutation(num_fine), num_fine - 1
        for turn in generator.permutation(rounds):
            # Circle method: one class stays, the others sit around it; opposite ones meet.
            meetings = [(num_fine - 1, turn)]
            meetings += [((turn + k) % rounds, (turn - k) % rounds) for k in range(1, num_fine // 2)]
            table = np.empty(num_fine, dtype=np.int64)
            for label, pair in enumerate(meetings):
                table[numbers[list(pair)]] = label
            tables.append(table)
    return tables[:count]


def all_merges(dataset: str, class_names: tuple[str, ...], *, num_random: int, seed: int) -> list[Merge]:
    """Every merge of the experiment; "semantic" only for a data set that has declared pairs.

    Args:
        dataset: name of the set.
        class_names: names of its classes, an even number.
        num_random: number of random pairings.
        seed: names them.

    Returns:
        The merges, scheme by scheme.
    """
    from nctheory import vision

    num_fine = len(class_names)

    def merge(name: str, scheme: str, table) -> Merge:
        mapping = vision.label_map(
            table, num_fine=num_fine, num_coarse=num_fine // 2, dataset=dataset, fine_names=class_names
        )
        return Merge(name, scheme, mapping)

    named = [scheme for scheme in ("mod", "consecutive") if num_fine > 2]
    groups = vision.SEMANTIC_GROUPS.get(dataset, ())
    named += ["semantic"] if groups and all(len(group) == 2 for group in groups) else []
    found = [merge(scheme, scheme, scheme) for scheme in named]
    tables = random_pairings(num_fine, num_random, seed)
    return found + [merge(f"random-{number}", "random", table) for number, table in enumerate(tables)]
