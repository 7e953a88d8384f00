"""Figure of the benchmarks, drawn from the record that `python -m benchmarks` stores."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    True: plotting.OKABE_ITO["blue"],
    False: plotting.OKABE_ITO["vermillion"],
    None: "#888888",
}
"""Colour of a ratio by whether the requirement is met; grey where nothing is asked for."""
_NAMES = {True: "requirement met", False: "requirement not met", None: "nothing asked for"}
_SHAPES = {True: "o", False: "s", None: "D"}
_ROW_HEIGHT, _CURVES_HEIGHT, _REST = 0.235, 2.7, 0.8


def measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose ratio is a positive number, as a logarithmic axis needs, and compares with more than a formula."""
    found = [row for row in rows if row["ratio"] is not None and math.isfinite(row["ratio"]) and row["ratio"] > 0]
    return [row for row in found if not row["beside"].startswith("formula")]


def groups(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The curves by what was timed, in their order: those of one function over several sizes share a panel."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for curve in curves:
        what = curve["name"].split(",")[0]
        key = what if what == "collapse_metrics" else f"sweep over {curve['variable']}"
        found.setdefault(key, []).append(curve)
    return list(found.items())


def _label(row: Mapping[str, Any]) -> str:
    """Two lines; the devices where ours and the peer ran on different ones."""
    ours, peer = row.get("ours_on", ""), row.get("peer_on", "")
    where = f" on {peer.upper()}, ours on {ours.upper()}" if ours and peer and ours != peer else ""
    return f"{row['quantity']}\nbeside {row['beside']}{where}"


def _draw_ratios(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(rows))[::-1]
    axes.axvline(1, color="#555555", linewidth=0.8)
    for met, name in _NAMES.items():
        mine = [(row["ratio"], place) for row, place in zip(rows, places, strict=True) if row["met"] is met]
        if mine:
            x, y = zip(*mine, strict=True)
            axes.plot(x, y, linestyle="none", marker=_SHAPES[met], color=COLORS[met], label=name)
    asked = [(row["required"], place) for row, place in zip(rows, places, strict=True) if row["required"] is not None]
    if asked:
        x, y = zip(*asked, strict=True)
        axes.plot(x, y, linestyle="none", marker="|", color="black", markersize=9, label="required at least")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(places, [_label(row) for row in rows], fontsize=5.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("times better than what it is beside (dimensionless)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=4, handletextpad=0.2, columnspacing=1.0)


def _short(value: float, _: object) -> str:
    """Twos and fives, which do not crowd a short axis."""
    digits = f"{value:.0e}"
    return f"{value:g}" if digits[0] in "25" else ""


def _draw_curves(axes: "Axes", name: str, curves: Sequence[Mapping[str, Any]]) -> None:
    for curve, color, marker in zip(curves, plotting.LINE_COLORS, "os^Dv", strict=False):
        slope = curve["exponent_of_larger_half"]
        label = curve["variable"]
        if slope is not None and math.isfinite(slope):
            label += f" (exponent {slope:.2f})"
        axes.plot(curve["sizes"], curve["seconds"], color=color, marker=marker, label=label)
    first = curves[0]
    span = np.array([first["sizes"][0], first["sizes"][-1]], float)
    is_flat = "devices" in first["variable"]
    if not is_flat:
        # Through the last point, where what costs the same at every size weighs least.
        guide = first["seconds"][-1] * span / span[-1]
        axes.plot(span, guide, color="#aaaaaa", linestyle=":", zorder=0, label="exponent 1")
    axes.set_xscale("log")
    axes.set_yscale("linear" if is_flat else "log")
    axes.set_xlabel(" or ".join(curve["variable"] for curve in curves))
    axes.set_ylabel("seconds")
    axes.set_title(name)
    if is_flat:
        # Sharing the same cores should cost nothing: a level line, seen from 0.
        axes.set_ylim(0, 1.1 * max(first["seconds"]))
        axes.set_xticks(first["sizes"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        low, high = axis.get_view_interval()
        # Of less than two decades the minor ticks are named as well.
        axis.set_minor_formatter(_short if not is_flat and high < 100 * low else lambda *_: "")
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.28))


def draw(record: Mapping[str, Any]) -> "Figure":
    """Draw all ratios with what is required of them, and seconds against the size of the work.

    Top: one point a row of the table, how many times better ours is; bars mark the required ratio. Rows that were not
    measured are left out. Bottom: seconds without compilation against seeds, against N, d and K of `collapse_metrics`,
    and against forced host devices; dotted: proportional to the size of the panel's first curve.

    Args:
        record: What `python -m benchmarks` stores: "rows" and "curves".

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide and as high as the rows need.

    Raises:
        ValueError: If the record has neither rows with a ratio nor curves.
    """
    rows, panels = measured(record["rows"]), groups(record["curves"])
    if not rows and not panels:
        raise ValueError("Argument `record` must hold measured rows or curves, but has neither.")
    heights = [_ROW_HEIGHT * len(rows) + _REST] * bool(rows) + [_CURVES_HEIGHT] * bool(panels)
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, sum(heights))
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if rows:
            _draw_ratios(parts[0].subplots(), rows)
        if panels:
            for axes, (name, curves) in zip(parts[-1].subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                _draw_curves(axes, name, curves)
    return figure
