"""The parts of the experiment, by the name of their group in the history."""

from collections.abc import Callable
from typing import NamedTuple

import xarray as xr
from _bench import Bench

from _ufm import codes, constrained, descent, limits, minima, minima_claims, relu
from nctheory.claims import Claim


class Part(NamedTuple):
    """One part: announces its sweeps, runs them into a dataset, and judges its claims from the dataset alone."""

    prepare: Callable[[Bench], None]
    measure: Callable[[Bench], xr.Dataset]
    judge: Callable[[xr.Dataset], list[Claim]]


PARTS = {
    "minima": Part(minima.prepare, minima.measure, minima_claims.judge),
    **{
        name: Part(module.prepare, module.measure, module.judge)
        for name, module in (
            ("constrained", constrained),
            ("limits", limits),
            ("relu", relu),
            ("codes", codes),
            ("descent", descent),
        )
    },
}


def judge_all(tree: xr.DataTree) -> tuple[Claim, ...]:
    """Judge the claims of every part from the stored arrays."""
    return tuple(claim for name, part in PARTS.items() for claim in part.judge(tree[name].to_dataset()))
