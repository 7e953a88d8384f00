"""Figure of the deep linear heads, drawn from the record that experiments/deep_linear.py stores."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {
    "nc1": "NC1",
    "nc2_weight_gof": "NC2, rows of $A_m$",
    "nc3_align_gof": "NC3, $A_m$ to means",
}
"""Metrics that are drawn at every layer, and their axis labels (all dimensionless)."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def median_and_range(values: "xr.DataArray") -> dict[str, np.ndarray]:
    """Median over finite seeds with the range over them.

    Args:
        values: Measurements with a dimension `seed`.

    Returns:
        "median", "low" and "high", in the unit of the values; NaN where no seed is finite.
    """
    with np.errstate(all="ignore"):
        finite = values.where(np.isfinite(values))
        return {
            "median": finite.median("seed", skipna=True).values,
            "low": finite.min("seed", skipna=True).values,
            "high": finite.max("seed", skipna=True).values,
        }


def _draw_excess(axes: "Axes", history: "xr.Dataset", condition: str) -> None:
    steps = history["step"].values
    excess = (history["objective"] / history["bound"] - 1).sel(condition=condition)
    for index, depth in enumerate(history["depth"].values):
        shown = median_and_range(excess.sel(depth=depth))
        color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(steps, shown["median"], color=color, marker=marker, markersize=2.5, label=f"M = {depth}")
        axes.fill_between(steps, shown["low"], shown["high"], color=color, alpha=0.2, linewidth=0)
    _log_axes(axes, steps)
    axes.set_title(f"{condition} classes")
    axes.set_xlabel("step (updates)")


def _draw_lengths(axes: "Axes", history: "xr.Dataset", kind: str, label: str) -> None:
    chosen = history.sel(condition="imbalanced").isel(layer=0)
    sizes, order = chosen["class_size"].values, np.argsort(chosen["class_size"].values, kind="stable")
    for index, depth in enumerate(history["depth"].values):
        one = chosen.sel(depth=depth)
        shown = median_and_range(one[f"{kind}_squares"].isel(step=-1) ** 0.5)
        predicted = one[f"predicted_{kind}_squares"].values ** 0.5
        color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
        axes.plot(sizes[order], predicted[order], color=color, linewidth=1.0, zorder=1)
        spread = [shown["median"] - shown["low"], shown["high"] - shown["median"]]
        axes.errorbar(
            sizes, shown["median"], yerr=spread, color=color, linestyle="none", marker=_MARKERS[index % len(_MARKERS)]
        )
    axes.set_xlabel("images of the class $n_k$")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)


def _draw_layers(axes: "Axes", history: "xr.Dataset", depth: int, metric: str, colors: Any) -> None:
    steps = history["step"].values
    values = history[metric].sel(depth=depth, condition="imbalanced")
    for layer in history["layer"].values[:depth]:
        axes.plot(steps, median_and_range(values.sel(layer=layer))["median"], color=colors(layer), linewidth=1.0)
    _log_axes(axes, steps)


def _log_axes(axes: "Axes", steps: np.ndarray) -> None:
    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.set_xlim(0, steps[-1] * 1.2)
    # 1 would stand on the 0 of narrow panels.
    decades = [10**k for k in range(1, 1 + int(np.log10(max(steps[-1], 10))))]
    axes.set_xticks([0, *decades[:: 1 + len(decades) // 5]])
    axes.set_yscale("log")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw the objective over its bound, collapse at every layer, and class lengths against class sizes.

    Top: objective over the minimum of free features, minus 1, against the step; bands are ranges over seeds. Middle:
    medians of NC1, NC2 and NC3 at each layer of the head, one column a depth, unequal classes. Bottom: lengths of the
    rows of A = W_M ... W_1 and of the class means against the number of images of the class; lines are predictions,
    bars ranges over seeds.

    Args:
        history: The record `history.nc` of experiments/deep_linear.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    depths = history["depth"].values.tolist()
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 8.4)
        parts: Any = figure.subfigures(3, 1, height_ratios=[2.2, 4.2, 2.2])
        top, middle, bottom = parts
        panels: Any = top.subplots(1, 2, sharey=True)
        for axes, condition in zip(panels, history["condition"].values, strict=True):
            _draw_excess(axes, history, str(condition))
        panels[0].set_ylabel("objective / predicted\nminimum - 1 (dimensionless)")
        panels[1].legend(loc="lower left", title="linear layers")
        grid: Any = middle.subplots(len(METRICS), len(depths), sharex=True, sharey="row", squeeze=False)
        scale = Normalize(1, max(2, max(depths)))
        map_ = colormaps[plotting.SEQUENTIAL_MAP].resampled(256)
        # The light end of the map is hard to see on white.
        colors = lambda layer: map_(0.9 * float(scale(layer)))  # noqa: E731
        for row, (metric, label) in zip(grid, METRICS.items(), strict=True):
            for axes, depth in zip(row, depths, strict=True):
                _draw_layers(axes, history, depth, metric, colors)
            row[0].set_ylabel(label)
        for axes, depth in zip(grid[0], depths, strict=True):
            axes.set_title(f"M = {depth}")
        for axes in grid[-1]:
            axes.set_xlabel("step (updates)")
        shown = ListedColormap(map_(np.linspace(0, 0.9, 256)))
        bar = middle.colorbar(ScalarMappable(scale, shown), ax=grid, shrink=0.7, pad=0.02)
        bar.set_ticks(sorted({1, *depths}))
        bar.set_label("layer m of the head (1 = nearest to the features)")
        lengths: Any = bottom.subplots(1, 2)
        _draw_lengths(lengths[0], history, "weight", r"row of $A$, length $\|w_k\|$")
        _draw_lengths(lengths[1], history, "feature", r"class mean, length $\|h_k\|$")
    return figure
