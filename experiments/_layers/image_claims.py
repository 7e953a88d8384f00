"""Claims on collapse in every layer of image networks, judged from the stored record alone."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from _shared.counts import PASSING, share_of_seeds

from _layers import scores
from _layers.scores import every, layers_at
from nctheory.claims import AtLeast, Claim, ClaimSpec

if TYPE_CHECKING:
    import xarray as xr

SOURCE = "Parker et al. 2023, abstract (in words); the criterion is this project's"


def judge_images(history: "xr.Dataset") -> list[Claim]:
    """Judge every image set, and the order of several by hardness, easiest first.

    The controls are the same networks before training; the run without weight decay is reported only, because it is
    what the public code does at full scale.
    """
    names = [str(each) for each in history["condition"].values if not str(each).endswith("_no_decay")]
    rows = [row for name in names for row in _findings(history, name)]
    return rows + (_hardness(history, names) if len(names) > 1 else [])


def _findings(history: "xr.Dataset", name: str) -> list[Claim]:
    finite = history["finite"].sel(condition=name).values
    trained, untrained = layers_at(history, name), layers_at(history, name, trained=False)
    norms = scores.counts_norms(name)
    # Flattened pixels are no layer of the network: the first measured activations take the input's place.
    found = {
        "A0": (
            "some collapse in most layers, more the deeper",
            scores.emerges(trained, untrained),
            scores.emerges(untrained),
        ),
        "A1": (
            "the shallower layers do almost all of the reduction after the first",
            scores.shallow_from_first(trained),
            scores.shallow_from_first(untrained),
        ),
        "A2": (
            "class means move to equal angles with depth",
            scores.separates(trained, norms=norms),
            scores.separates(untrained, norms=norms),
        ),
    }
    rows: list[Claim] = []
    for finding, (words, after, before) in found.items():
        statement = f"{finding} on {name}: {words}: share of seeds with {', '.join(after)}."
        spec = ClaimSpec(f"{finding}/{name}", SOURCE, statement, 1.0, AtLeast(PASSING))
        rows.append(spec.judge(share_of_seeds(every(after), finite)))
        rows.append(spec.control("untrained", "Before training.", share_of_seeds(every(before), finite)))
    return rows


def _hardness(history: "xr.Dataset", names: list[str]) -> list[Claim]:
    depths = [scores.effective_depth(layers_at(history, name).mismatch) for name in names]
    finite = history["finite"].sel(condition=names).values.all(axis=0)

    def rises(order: list[np.ndarray]) -> np.ndarray:
        never_falls = np.logical_and.reduce([low <= high for low, high in pairwise(order)])
        return never_falls & (order[0] < order[-1])

    statement = (
        f"A3: effective depth l* rises with the hardness of the set: share of seeds in which it never falls along "
        f"{', '.join(names)}, and the last is deeper than the first."
    )
    spec = ClaimSpec("A3", SOURCE, statement, 1.0, AtLeast(PASSING))
    return [
        spec.judge(share_of_seeds(rises(depths), finite)),
        spec.control("reversed", "The sets the other way round.", share_of_seeds(rises(depths[::-1]), finite)),
    ]
