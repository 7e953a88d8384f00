"""Figure of collapse in every layer by activation and loss, from records of experiments/intermediate_layers.py."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nctheory import plotting
from nctheory.figures.deep_linear import median_and_range
from nctheory.figures.intermediate_layers import final

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("nc1", "NC1", "log"),
    ("nc2_equiangular", "NC2, angles", "linear"),
    ("effective_rank", "effective rank", "log"),
)
"""Metric of each column, axis label, scale; all dimensionless, train split, end of training."""
LOSSES = {"mse": "squared error", "cross_entropy": "cross-entropy"}
_MARKERS = ("o", "s", "^", "D", "v")


def draw(records: "Mapping[tuple[str, str], xr.Dataset]", condition: str = "digits") -> "Figure":
    """Draw metrics against the layer, one row a loss and one curve an activation.

    Solid lines are trained networks, medians over seeds with the range as a band; the dotted line is the untrained
    network of the first activation.

    Args:
        records: by (activation, loss), records `history.nc` of experiments/intermediate_layers.py with the same number
            of layers.
        condition: of each record.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    losses = [loss for loss in LOSSES if any(each == loss for _, each in records)]
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 0.5 + 2.0 * len(losses))
        panels: Any = figure.subplots(len(losses), len(PANELS), squeeze=False, sharex=True)
        for row, loss in zip(panels, losses, strict=True):
            mine = {name: record for (name, each), record in records.items() if each == loss}
            for axes, (metric, label, scale) in zip(row, PANELS, strict=True):
                _draw(axes, mine, condition, metric)
                axes.set_yscale(scale)
                axes.set_ylabel(label)
                axes.set_title(LOSSES[loss])
        for axes in panels[-1]:
            axes.set_xlabel("layer (0 = input)")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw(axes: "Axes", records: "Mapping[str, xr.Dataset]", condition: str, metric: str) -> None:
    for index, (name, record) in enumerate(records.items()):
        color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
        layers = record["layer"].values
        if index == 0:
            start = median_and_range(record[metric].sel(condition=condition, split="train", epoch=0))["median"]
            axes.plot(layers, start, color="#888888", linestyle=":", label=f"{name}, untrained")
        shown = median_and_range(final(record, condition, metric))
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(layers, shown["median"], color=color, marker=marker, markersize=3, label=name)
        axes.fill_between(layers, shown["low"], shown["high"], color=color, alpha=0.15, linewidth=0)
        axes.set_xticks(layers)
