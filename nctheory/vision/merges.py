"""Scores of merged pairs of classes, gathered from the record of experiments/coarse_merges.py."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class PairPoints:
    """One entry for every pair of classes that is merged somewhere, P pairs.

    Attributes:
        classes: numbers of the two classes, the smaller first, pairs in lexicographic order.
        distance: how far apart they lie on the images alone (`input_distance` of the record), dimensionless.
        probe_error: share of images that a linear probe between the two gets wrong.
        values: a score of the pair in every seed, averaged over the merges in which the pair occurs.
    """

    classes: Int[np.ndarray, "P 2"]
    distance: Float[np.ndarray, " P"]
    probe_error: Float[np.ndarray, " P"]
    values: Float[np.ndarray, "S P"]

    @property
    def finite(self) -> Float[np.ndarray, "R P"]:
        """The rows of `values` without NaN; one row of NaN if there is none."""
        rows = self.values[np.isfinite(self.values).all(axis=1)]
        return rows if len(rows) else np.full((1, len(self.classes)), np.nan)


def pair_points(history: "xr.Dataset", values: "xr.DataArray") -> PairPoints:
    """Gather a score of merged pairs into one entry for each pair of classes.

    Args:
        history: the record.
        values: the score, over merge and pair, and over seed unless it is the same in all.

    Returns:
        The entries; a pair that occurs in several merges has the mean, NaN if one of them diverged.
    """
    members = np.sort(history["member"].transpose("merge", "pair", "side").values, axis=2).reshape(-1, 2)
    classes, entry = np.unique(members, axis=0, return_inverse=True)
    scores = values.expand_dims("seed") if "seed" not in values.dims else values
    scores = scores.transpose("seed", "merge", "pair").values.reshape(-1, len(members))
    entry = entry.ravel()
    sums = np.stack([np.bincount(entry, weights=row, minlength=len(classes)) for row in scores])
    counts = np.bincount(entry, minlength=len(classes))
    at = (classes[:, 0], classes[:, 1])
    distance, error = (history[name].values[at] for name in ("input_distance", "input_probe_error"))
    return PairPoints(classes, distance, error, sums / counts[None, :])


def points_by_scheme(history: "xr.Dataset", values: "xr.DataArray", scheme: str) -> PairPoints:
    """As `pair_points`, of the merges of one scheme."""
    mine = history["scheme"].values == scheme
    return pair_points(history.isel(merge=mine), values.isel(merge=mine))


def scheme_scores(values: "xr.DataArray", scheme: str) -> Float[np.ndarray, " S"]:
    """Mean over the merges of a scheme of a score over merge and seed.

    Args:
        values: the score.
        scheme: name of the scheme.

    Returns:
        One number a seed; NaN if one of the merges diverged.
    """
    chosen = values.values[values["scheme"].values == scheme]
    return chosen.mean(axis=0)
