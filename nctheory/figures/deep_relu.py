"""Graph solutions against deep neural collapse behind ReLU, for one panel of a figure."""

from typing import TYPE_CHECKING

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

BLUE, RED, GREEN, *_ = plotting.LINE_COLORS
GREY = "#555555"


def panel(axis: "Axes", data: "xr.Dataset", curves: "xr.Dataset") -> None:
    """Draw the loss of the graph solution over that of collapse against depth, one line for every number of classes.

    Args:
        axis: where to draw; title and figure are the caller's.
        data: trained starts of experiments/_ufm/relu.py; points are the best start of each (K, L).
        curves: predicted losses `relu_graph_loss` and `relu_collapse_loss` over `relu_classes` and `relu_depth`.
    """
    ratio = curves.relu_graph_loss / curves.relu_collapse_loss
    for k, color in zip(curves.relu_classes.values.tolist(), (BLUE, RED, GREEN), strict=False):
        axis.plot(curves.relu_depth, ratio.sel(relu_classes=k), color=color, label=f"K = {k}")
        depths, best = _best(data, k)
        axis.plot(depths, best, "o", color=color, zorder=3)
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlabel="layers L, ReLU between them", ylabel="loss / loss of collapse", ylim=(0.45, 1.08))
    axis.legend(loc="lower left", title="line: graph solution; point: trained from it", title_fontsize=6.5, ncols=3)


def _best(data: "xr.Dataset", num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths, and the least loss of the starts near the graph solution over the loss of collapse."""
    keep = (data.condition_num_classes.values == num_classes) & (data.condition_start.values == "graph")
    part = data.isel(condition=np.flatnonzero(keep))
    return part.condition_depth.values, part.loss.min("seed").values / part.predicted_collapse_loss.values
