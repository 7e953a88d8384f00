"""Figure of image networks on merged labels, drawn from the record that experiments/coarse_labels.py stores."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting
from nctheory.figures.coarse_labels import draw_matrix, mean_over_seeds, relative_distances

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = tuple(plotting.OKABE_ITO[name] for name in ("blue", "orange", "green", "purple", "vermillion"))
_MAX_PANELS = 5
# The names of a hundred classes would not fit.
_MOST_NAMES = 20
_CURVES = {
    "clp": ("cluster and probe", "blue", "o", "-"),
    "fine_probe": ("probe, true classes", "green", "^", "-"),
    "test_accuracy": ("coarse accuracy", "black", "s", "-"),
    "surrogate": ("surrogate, no sub-clusters", "orange", "v", "--"),
    "shuffled": ("shuffled classes", "purple", "D", "--"),
}
_GEOMETRY = {
    "nc1": ("NC1 of super-classes", "black", "s"),
    "ratio": ("q: same / different label", "blue", "o"),
    "separation": ("s: same label / within class", "vermillion", "^"),
}


def distance_matrix(history: "xr.Dataset", checkpoint: int) -> np.ndarray:
    """Mean squared distance between train samples of two classes, each seed divided by its largest entry.

    D(c, c') = |mu_c - mu_c'|^2 + tr S_c + tr S_c', averaged over the seeds that did not diverge; classes in
    `partner_order`.

    Args:
        history: The record.
        checkpoint: Position among the checkpoints, for instance 0 or -1.

    Returns:
        Matrix with entries in 0..1, dimensionless; NaN if every seed diverged.
    """
    return relative_distances(history.isel(checkpoint=checkpoint))


def summary(history: "xr.Dataset", name: str) -> dict[str, np.ndarray]:
    """Mean of a score over the seeds that did not diverge, with its 95 % Student interval, at every checkpoint.

    Args:
        history: The record.
        name: A variable over seeds and checkpoints; of "surrogate", which has draws too, the first.

    Returns:
        "measured", "low" and "high" over checkpoints, in the variable's unit; ends are NaN with fewer than two seeds.
    """
    values = history[name].values
    return mean_over_seeds(values[..., 0] if values.ndim == 3 else values)


def reference_levels(history: "xr.Dataset") -> dict[str, float]:
    """Levels that are drawn as lines, by their label: means over the seeds that did not diverge, dimensionless."""
    ordinary = history["ordinary_accuracy"].values
    ordinary = ordinary[np.isfinite(ordinary)]
    return {
        "trained on original classes": float(ordinary.mean()) if ordinary.size else float("nan"),
        "raw pixels, cluster and probe": float(history["raw_clp"]),
    }


def _epoch_axis(axes: "Axes", history: "xr.Dataset") -> np.ndarray:
    epochs = history["checkpoint"].values
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(0, max(epochs[-1], 1) * 1.1)
    axes.set_xlabel("epoch (0 = untrained)")
    return epochs


def _draw_scores(axes: "Axes", history: "xr.Dataset") -> None:
    epochs = _epoch_axis(axes, history)
    for name, (label, color, marker, style) in _CURVES.items():
        score, shade = summary(history, name), plotting.OKABE_ITO[color]
        axes.plot(epochs, score["measured"], marker=marker, color=shade, linestyle=style, label=label)
        axes.fill_between(epochs, score["low"], score["high"], color=shade, alpha=0.18, linewidth=0)
    for (label, level), style in zip(reference_levels(history).items(), ("-.", ":"), strict=True):
        axes.axhline(level, color="#666666", linestyle=style, linewidth=1.0, label=f"{label}: {level:.3f}")
    axes.set_ylabel("accuracy on test images\n(dimensionless)")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2)


def _draw_geometry(axes: "Axes", history: "xr.Dataset") -> None:
    epochs = _epoch_axis(axes, history)
    for name, (label, color, marker) in _GEOMETRY.items():
        axes.plot(
            epochs, summary(history, name)["measured"], marker=marker, color=plotting.OKABE_ITO[color], label=label
        )
    axes.set_yscale("log")
    axes.set_ylabel("train features\n(dimensionless)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=1)


def _draw_planes(panels: Any, history: "xr.Dataset") -> None:
    planes, classes = history["embedding"].values, history["sample_class"].values
    table = history["coarse_label"].values
    for coarse, axes in enumerate(panels):
        members = np.flatnonzero(table == coarse)
        for rank, fine in enumerate(members):
            mine = classes == fine
            color = _COLORS[rank % len(_COLORS)]
            name = str(history["fine"].values[fine])
            axes.scatter(*planes[mine].T, s=2, color=color, linewidths=0, alpha=0.6, label=name, rasterized=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), markerscale=3, ncols=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
    panels[0].set_ylabel("t-SNE (dimensionless)")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw class distances, scores and geometry along training, and plane embeddings where the record has them.

    Top: mean squared distances between original classes, untrained and trained; white lines part the super-classes.
    Middle: accuracies and controls, and collapse beside fine structure, against the epoch, with 95 % intervals over
    seeds where there are several. Bottom: t-SNE of the first seed's test features, one panel for each of at most five
    super-classes, coloured by original class.

    Args:
        history: The record `history.nc` of experiments/coarse_labels.py with an image network.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    embedded = "embedding" in history
    heights = [2.6, 3.1, *([1.9] if embedded else [])]
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, sum(heights))
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        upper = parts[0].subplots(1, 2)
        last = int(history["checkpoint"].values[-1])
        titles = {0: "untrained", -1: f"after {last} epochs on super-classes"}
        images = [
            draw_matrix(axes, distance_matrix(history, at), history, title, most_names=_MOST_NAMES, rotation=90)
            for axes, (at, title) in zip(upper, titles.items(), strict=True)
        ]
        upper[0].set_ylabel("original class")
        parts[0].colorbar(images[0], ax=upper, label="mean squared distance\n/ largest (dimensionless)", shrink=0.9)
        left, right = parts[1].subplots(1, 2, width_ratios=[1.4, 1])
        _draw_scores(left, history)
        _draw_geometry(right, history)
        if embedded:
            count = min(int(history["coarse_label"].values.max()) + 1, _MAX_PANELS)
            _draw_planes(parts[2].subplots(1, count, squeeze=False)[0], history)
    return figure
