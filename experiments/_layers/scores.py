"""Per-seed numbers behind the claims: shares, rank correlations, effective depth, geometric fits, and the criteria.

Arrays are (seed, layer) over layers 0 (the input), 1, ..., L (the last hidden layer), at one epoch, on the train split.
A criterion is a table of booleans, one a seed: NaN fails it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from _shared.ranks import rank_correlation
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import xarray as xr

EPSILON = 0.01
# Of the fact sheet of this project, fixed before any run of it.
RANK_RATIO, RATIO_DROP, LAST_MISMATCH, RANK_MISMATCH, HALVED = -0.9, 0.1, 0.005, -0.8, 0.5
SHALLOW_SHARE, HIDDEN_SHARE = 0.90, 0.85
ANGLE_DROP, ANGLE_TOLERANCE, NORM_DROP = 0.7, 0.05, 0.6


@dataclass(frozen=True)
class Layers:
    """Collapse of every layer, (seed, layer) each.

    Attributes:
        nc1: q_l.
        ratio: r_l = tr Sigma_W/tr Sigma_B.
        angles: c_l, deviation from equal angles.
        norms: v_l, spread of the class means' norms.
        mismatch: m_l, nearest train class mean against the network's prediction.
    """

    nc1: Float[np.ndarray, "S L1"]
    ratio: Float[np.ndarray, "S L1"]
    angles: Float[np.ndarray, "S L1"]
    norms: Float[np.ndarray, "S L1"]
    mismatch: Float[np.ndarray, "S L1"]

    @property
    def depth(self) -> int:
        """Number L of hidden layers."""
        return self.ratio.shape[1] - 1

    @property
    def half(self) -> int:
        """Last of the shallower layers, ceil(L/2)."""
        return (self.depth + 1) // 2

    @property
    def hidden(self) -> Int[np.ndarray, " L"]:
        """The hidden layers 1..L."""
        return np.arange(1, self.depth + 1)


def layers_at(history: "xr.Dataset", condition: str, *, trained: bool = True) -> Layers:
    """Layers of a condition after training or, with `trained` off, before it."""
    one = history.sel(condition=condition)
    at = one.sel(epoch=int(one["num_epochs"]) if trained else 0, split="train")
    names = ("nc1", "within_between_ratio", "nc2_equiangular", "nc2_equinorm", "prediction_mismatch")
    return Layers(*(at[name].transpose("seed", "layer").values for name in names))


def shallow_share(values: Float[np.ndarray, "S L1"], *, first: int = 0, log: bool = False) -> Float[np.ndarray, " S"]:
    """Share of a fall from layer `first` to L that has happened by layer h = ceil(L/2), of the values or of their log.

    Args:
        values: (seed, layer).
        first: 0 counts the input in, 1 takes hidden layers alone.
        log: whether to take logarithms.

    Returns:
        (v_first - v_h)/(v_first - v_L) of each seed; NaN without a fall, of which nothing can have a share.
    """
    half = values.shape[1] // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(values) if log else values
        fall = values[:, first] - values[:, -1]
        return np.where(fall > 0, (values[:, first] - values[:, half]) / fall, np.nan)


def rank_with_depth(values: Float[np.ndarray, "S L1"]) -> Float[np.ndarray, " S"]:
    """Spearman's rank correlation with the layer over hidden layers; NaN where all are equal."""
    return rank_correlation(np.arange(1, values.shape[1]), values[:, 1:])


def effective_depth(mismatch: Float[np.ndarray, "S L1"]) -> Float[np.ndarray, " S"]:
    """Smallest layer, the input being 0, whose mismatch is at most `EPSILON`; NaN if none is, or if one is NaN."""
    small = mismatch <= EPSILON
    known = small.any(axis=1) & ~np.isnan(mismatch).any(axis=1)
    return np.where(known, small.argmax(axis=1).astype(np.float64), np.nan)


def line_fit(values: Float[np.ndarray, "S n"]) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Least-squares line through equally spaced values: slope a step, and share R^2 of the variance that it explains.

    R^2 is NaN where the values are constant, to rounding, or not finite.
    """
    steps = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    centred = values - values.mean(axis=1, keepdims=True)
    slope = centred @ steps / (steps @ steps)
    total = (centred**2).sum(axis=1)
    # A layer that only rotates leaves rounding errors, which have no shape to fit.
    moved = total > (1e-6 * np.abs(values).max(axis=1)) ** 2
    explained = slope**2 * (steps @ steps)
    return slope, np.divide(explained, total, out=np.full_like(total, np.nan), where=moved)


def falling(values: Float[np.ndarray, "S n"]) -> Float[np.ndarray, " S"]:
    """R^2 of the line of `line_fit` where it falls, and minus it where it rises: an even rise is no even fall."""
    slope, explained = line_fit(values)
    return np.where(slope <= 0, explained, -explained)


def largest_geometric_factor(depth: int, *, first: int = 0) -> float:
    """Largest factor a layer, below 1, at which a geometric decay q_l = factor^l has shallow share `SHALLOW_SHARE`.

    Every geometric decay by a smaller factor passes the linear-scale criterion too, whatever network it comes from.

    Args:
        depth: number L of hidden layers.
        first: layer from which the fall is counted, as in `shallow_share`.

    Returns:
        The factor, dimensionless; 0 if no decay passes, because the shallower half is the first layer alone; NaN if
        there is no layer to fall to.
    """
    half, depth = (depth + 1) // 2 - first, depth - first
    if depth == 0:
        return float("nan")
    low, high = 0.0, 1.0
    if half / depth >= SHALLOW_SHARE:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        share = (1 - middle**half) / (1 - middle**depth)
        low, high = (middle, high) if share >= SHALLOW_SHARE else (low, middle)
    return low


def emerges(layers: Layers, untrained: Layers | None = None) -> dict[str, Bool[np.ndarray, " S"]]:
    """A0: some collapse in most hidden layers, more of it the deeper they lie.

    Args:
        layers: to judge.
        untrained: the same networks before training; without it, as for these networks themselves, the part that
            compares the two is left out.

    Returns:
        The parts of the criterion.
    """
    found = {
        "rank(r, l) <= -0.9": rank_with_depth(layers.ratio) <= RANK_RATIO,
        "r_L <= 0.1 r_1": layers.ratio[:, -1] <= RATIO_DROP * layers.ratio[:, 1],
        "m_L <= 0.005": layers.mismatch[:, -1] <= LAST_MISMATCH,
        "rank(m, l) <= -0.8": rank_with_depth(layers.mismatch) <= RANK_MISMATCH,
    }
    if untrained is not None:
        fallen = (layers.nc1 <= HALVED * untrained.nc1)[:, 1:].sum(axis=1)
        found["q_l halved by training in half of the layers"] = fallen >= layers.half
    return found


def shallow(layers: Layers) -> dict[str, Bool[np.ndarray, " S"]]:
    """A1: the shallower layers do almost all of the reduction of variance within classes."""
    return {
        "S_h of q >= 0.9": shallow_share(layers.nc1) >= SHALLOW_SHARE,
        "S_h of r >= 0.9": shallow_share(layers.ratio) >= SHALLOW_SHARE,
        "S_h of q over hidden layers >= 0.85": shallow_share(layers.nc1, first=1) >= HIDDEN_SHARE,
    }


def shallow_from_first(layers: Layers) -> dict[str, Bool[np.ndarray, " S"]]:
    """A1 for networks whose input is no measured point: the first layer takes its place."""
    return {
        "S_h of q >= 0.9": shallow_share(layers.nc1, first=1) >= SHALLOW_SHARE,
        "S_h of r >= 0.9": shallow_share(layers.ratio, first=1) >= SHALLOW_SHARE,
    }


def separates(layers: Layers, *, norms: bool = True) -> dict[str, Bool[np.ndarray, " S"]]:
    """A2: class means spread to equal angles with depth; with `norms`, to equal lengths too."""
    # The last floor(L/2) layers, but always two: one alone cannot rise.
    late = layers.angles[:, min(layers.depth - layers.depth // 2 + 1, layers.depth - 1) :]
    found = {
        "c_L <= 0.7 c_1": layers.angles[:, -1] <= ANGLE_DROP * layers.angles[:, 1],
        "c does not rise in the last layers": (late[:, 1:] <= (1 + ANGLE_TOLERANCE) * late[:, :-1]).all(axis=1)
        & np.isfinite(late).all(axis=1),
    }
    if norms:
        found["v_L <= 0.6 v_1"] = layers.norms[:, -1] <= NORM_DROP * layers.norms[:, 1]
    return found


def counts_norms(condition: str) -> bool:
    """Whether A2 asks a condition for equal norms too: the fact sheet of this project does on digits alone."""
    return condition.startswith("digits")


def ordered(*depths: Float[np.ndarray, " S"]) -> Bool[np.ndarray, " S"]:
    """A3: effective depths of data of rising hardness, each at least one layer above the one before."""
    return np.logical_and.reduce([low + 1 <= high for low, high in pairwise(depths)])


def upper_half(values: Float[np.ndarray, " S"]) -> Float[np.ndarray, " H"]:
    """Differences of the S//2 largest and the S//2 smallest values, in order: the most that scatter can make of halves.

    With an odd number the middle one is left out; NaN counts as largest, and its difference is NaN.
    """
    rising = np.sort(values)
    count = len(rising) // 2
    return rising[len(rising) - count :] - rising[:count]


def every(parts: dict[str, Bool[np.ndarray, " S"]]) -> Bool[np.ndarray, " S"]:
    """Seeds that pass all parts of a criterion."""
    return np.logical_and.reduce(list(parts.values()))
