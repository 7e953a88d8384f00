"""Figure of the comparison of merges, drawn from the record that experiments/coarse_merges.py stores."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nctheory import plotting
from nctheory.vision.merges import pair_points, points_by_scheme, scheme_scores

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"random": "sky", "mod": "blue", "consecutive": "green", "semantic": "vermillion"}
_MARKERS = {"random": "o", "mod": "s", "consecutive": "^", "semantic": "D"}
_DISTANCE = "squared distance of the two classes on the\nimages / within-class variance (dimensionless)"
_LEVELS = {
    "true-class probe": ("purple", "P"),
    "untrained": ("black", "o"),
    "raw pixels": ("orange", "X"),
    "trained": ("blue", "D"),
    "surrogate, no sub-clusters": ("#888888", "x"),
    "chance": ("#888888", "v"),
}


@dataclass(frozen=True)
class Level:
    """A score of a scheme over seeds: mean and 95 % Student interval, NaN where fewer than two seeds are finite."""

    measured: float
    low: float
    high: float


def levels(history: "xr.Dataset", scheme: str) -> dict[str, Level]:
    """Scores of a scheme and its controls by their label in the figure, means over its merges; dimensionless.

    Args:
        history: the record.
        scheme: name of the scheme.

    Returns:
        A level for each score; pixels depend on no seed, so that theirs has no interval.
    """
    from nctheory.claims import mean_interval

    found = {}
    for label, values in _scores(history).items():
        interval = mean_interval(scheme_scores(values, scheme))
        found[label] = Level(interval.measured, interval.low, interval.high)
    raw = float(history["raw_clp"].values[history["scheme"].values == scheme].mean())
    return {**found, "raw pixels": Level(raw, float("nan"), float("nan"))}


def _scores(history: "xr.Dataset") -> "dict[str, xr.DataArray]":
    """The scores over merge and seed that are drawn by scheme."""
    return {
        "trained": history["clp"].sel(end="final"),
        "untrained": history["clp"].sel(end="initial"),
        "true-class probe": history["fine_probe"],
        "surrogate, no sub-clusters": history["surrogate"].isel(draw=0),
        "chance": history["clp_chance"].sel(end="final"),
    }


def _schemes(history: "xr.Dataset") -> list[str]:
    return [scheme for scheme in _COLORS if scheme in history["scheme"].values]


def _draw_points(axes: "Axes", history: "xr.Dataset", values: "xr.DataArray") -> None:
    """One point a merged pair: mean and range over seeds against the distance of its classes on the images."""
    for scheme in _schemes(history):
        points = points_by_scheme(history, values, scheme)
        mean = points.finite.mean(axis=0)
        ends = np.array([mean - points.finite.min(axis=0), points.finite.max(axis=0) - mean])
        axes.errorbar(
            points.distance,
            mean,
            yerr=ends,
            color=plotting.OKABE_ITO[_COLORS[scheme]],
            marker=_MARKERS[scheme],
            linestyle="none",
            elinewidth=0.5,
            label=scheme,
            zorder=2 if scheme == "random" else 3,
        )
    axes.set_xlabel(_DISTANCE)


def _draw_recovery(axes: "Axes", history: "xr.Dataset", end: str, title: str) -> None:
    _draw_points(axes, history, history["recovery"].sel(end=end))
    if end == "final":
        null = pair_points(history, history["surrogate_recovery"])
        axes.plot(
            null.distance,
            null.finite.mean(axis=0),
            color="#888888",
            marker="x",
            markersize=2.5,
            markeredgewidth=0.6,
            linestyle="none",
            label="surrogate, no sub-clusters",
        )
    axes.axhline(0.5, color="black", linestyle=":", linewidth=0.9, label="a coin")
    axes.set_title(title)
    axes.set_ylim(0.33, 1.02)


def _draw_levels(axes: "Axes", history: "xr.Dataset") -> None:
    schemes = _schemes(history)
    found = [levels(history, scheme) for scheme in schemes]
    for place, (label, (color, marker)) in enumerate(_LEVELS.items()):
        each = [level[label] for level in found]
        errors = [[level.measured - level.low for level in each], [level.high - level.measured for level in each]]
        axes.errorbar(
            np.arange(len(schemes)) + 0.12 * (place - (len(_LEVELS) - 1) / 2),
            [level.measured for level in each],
            # Pixels depend on no seed.
            yerr=np.nan_to_num(np.array(errors)),
            color=plotting.OKABE_ITO.get(color, color),
            marker=marker,
            linestyle="none",
            elinewidth=0.8,
            label=label,
        )
    axes.set_xticks(range(len(schemes)), schemes)
    axes.set_xlim(-0.5, len(schemes) - 0.5)
    axes.set_ylabel("accuracy on original classes,\ntest images (dimensionless)")
    axes.grid(False, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=2, handletextpad=0.3, columnspacing=1.0)


def _draw_growth(axes: "Axes", history: "xr.Dataset") -> None:
    _draw_points(axes, history, history["separation"].sel(end="final") / history["separation"].sel(end="initial"))
    axes.axhline(1, color="black", linestyle=":", linewidth=0.9)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("separation of the two classes,\ntrained / untrained (dimensionless)")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw recovery against distance, before and after training, accuracy by scheme, and what training does to pairs.

    Top: one point a merged pair, mean and range over seeds. Bottom left: accuracy by scheme, mean over its
    merges with the 95 % interval over seeds, beside the controls. Bottom right: how training changed the squared
    distance of the two class means over their within-class variance, in feature space.

    Args:
        history: The record `history.nc` of experiments/coarse_merges.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 5.4)
        axes = figure.subplots(2, 2)
        _draw_recovery(axes[0, 0], history, "initial", "untrained")
        _draw_recovery(axes[0, 1], history, "final", "trained on merged pairs")
        axes[0, 0].set_ylabel("share of a pair's test images\nrebuilt right (dimensionless)")
        handles, names = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), handletextpad=0.3)
        _draw_levels(axes[1, 0], history)
        _draw_growth(axes[1, 1], history)
    return figure
