"""Figures of coarse training over learning rate x weight decay, from the record of experiments/coarse_grid.py."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting
from nctheory.figures.coarse_labels import draw_matrix, relative_distances

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = tuple(plotting.OKABE_ITO[name] for name in ("vermillion", "orange", "blue", "green", "purple"))
_MARKERS = ("o", "s", "^", "D", "v")
_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))
# Below this nothing is told apart any more; the axis ends here.
_SMALLEST_MEMORY = 1e-12


def distance_matrix(history: "xr.Dataset", row: int, column: int) -> np.ndarray:
    """Mean squared distance between train samples of two classes at the end of one cell, over the largest of them.

    D(c, c') = |mu_c - mu_c'|^2 + tr S_c + tr S_c', each seed divided by its largest entry, averaged over the seeds that
    did not diverge; classes in `partner_order`.

    Args:
        history: The record.
        row: Position of the learning rate.
        column: Position of the weight decay.

    Returns:
        Matrix with entries in 0..1, dimensionless; NaN if every seed diverged.
    """
    return relative_distances(history.isel(learning_rate=row, weight_decay=column, checkpoint=-1))


def summary(history: "xr.Dataset", name: str) -> np.ndarray:
    """Mean of a score over the seeds that did not diverge, (learning rate, weight decay, checkpoint).

    Args:
        history: The record.
        name: A variable over seeds and checkpoints; of "surrogate", which has draws too, the first.

    Returns:
        Means, in the variable's unit; NaN where every seed diverged.
    """
    values = history[name].values
    values = values[..., 0] if values.ndim == 5 else values
    return np.ma.masked_invalid(values).mean(axis=2).filled(np.nan)


def reference_levels(history: "xr.Dataset") -> dict[str, float]:
    """Levels that are drawn as lines, by their label, dimensionless."""
    levels = {
        "untrained network": summary(history, "clp")[..., 0],
        "raw pixels": history["raw_clp"].values,
        "surrogate, no sub-clusters": summary(history, "surrogate")[..., -1],
    }
    return {name: float(np.ma.filled(np.ma.masked_invalid(each).mean(), np.nan)) for name, each in levels.items()}


def _cells(history: "xr.Dataset") -> list[tuple[int, int, float, float]]:
    rates, decays = history["learning_rate"].values, history["weight_decay"].values
    return [(i, j, float(rate), float(decay)) for i, rate in enumerate(rates) for j, decay in enumerate(decays)]


def draw_distances(history: "xr.Dataset") -> "Figure":
    """Draw the class distances at the end of every cell, one row a learning rate, one column a weight decay.

    White lines part the super-classes. Full collapse onto them would leave one colour in every block of a
    super-class, on and off its diagonal.

    Args:
        history: The record `history.nc` of experiments/coarse_grid.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    rows, columns = history.sizes["learning_rate"], history.sizes["weight_decay"]
    longest = max(len(str(name)) for name in history["fine"].values)
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 0.6 + 2.0 * rows)
        panels: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        images: list[Any] = []
        for i, j, rate, decay in _cells(history):
            recovery = summary(history, "clp")[i, j, -1]
            title = f"rate {rate:g}, decay {decay:g}\nrecovery {recovery:.2f}"
            matrix, turned = distance_matrix(history, i, j), 90 if longest > 2 else 0
            images.append(draw_matrix(panels[i, j], matrix, history, title, most_names=20, rotation=turned))
            if i < rows - 1:
                panels[i, j].set_xlabel("")
        figure.supylabel("original class", fontsize="medium")
        figure.colorbar(images[0], ax=panels, label="mean squared distance / largest (dimensionless)", shrink=0.7)
    return figure


def _draw_cells(axes: "Axes", history: "xr.Dataset", places: np.ndarray) -> None:
    """Draw recovery along the training of every cell, at (learning rate, weight decay, checkpoint) places."""
    scores = summary(history, "clp")
    for i, j, rate, decay in _cells(history):
        style: Any = {"color": _COLORS[j % len(_COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}
        style |= {"linestyle": _STYLES[i % len(_STYLES)], "linewidth": 0.9}
        axes.plot(places[i, j], scores[i, j], label=f"rate {rate:g}, decay {decay:g}", **style)


def draw_memory(history: "xr.Dataset") -> "Figure":
    """Draw recovery against what weight decay has left of the initial weights, and against epochs.

    Left: cluster-and-probe accuracy of every cell along its training, against the squared share of the initial weights
    that decay alone leaves, exp(-2 lambda sum(rates) / (1 - momentum)): weight decay x steps. Right: the same against
    the epoch. Lines mark the controls.

    Args:
        history: The record `history.nc` of experiments/coarse_grid.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 3.9)
        left, right = figure.subplots(1, 2, sharey=True)
        memory = np.maximum(history["memory_factor"].values ** 2, _SMALLEST_MEMORY)
        epochs = history["checkpoint"].values
        _draw_cells(left, history, memory)
        _draw_cells(right, history, np.broadcast_to(epochs, memory.shape))
        left.set_xscale("log")
        left.invert_xaxis()
        left.set_xlabel(r"memory of the initial weights $s_t^2$ (dimensionless)")
        right.set_xscale("symlog", linthresh=1, linscale=0.4)
        right.set_xlim(0, max(epochs[-1], 1) * 1.1)
        right.set_xlabel("epoch (0 = untrained)")
        for axes in (left, right):
            for (label, level), style in zip(reference_levels(history).items(), ("-.", ":", "--"), strict=True):
                axes.axhline(level, color="#666666", linestyle=style, linewidth=1.0, label=f"{label}: {level:.3f}")
        left.set_ylabel("cluster and probe: accuracy on the\noriginal classes, test (dimensionless)")
        left.set_ylim(0, 1.02)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw_all(history: "xr.Dataset") -> "dict[str, Figure]":
    """Draw both figures, by their file names."""
    return {"coarse_grid_distances": draw_distances(history), "coarse_grid_memory": draw_memory(history)}
