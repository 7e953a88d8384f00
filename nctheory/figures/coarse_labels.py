"""Figure of the coarse-label test, drawn from the record that experiments/coarse_labels.py stores."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ARM_LABELS = {
    "plain": "small start",
    "decay": "small start, weight decay",
    "standard_init": "standard start",
}
_ARM_COLORS = {"plain": "blue", "decay": "vermillion", "standard_init": "green"}
_ARM_MARKERS = {"plain": "o", "decay": "s", "standard_init": "^"}
_CLUSTER_COLORS = tuple(plotting.OKABE_ITO[name] for name in ("blue", "orange", "green", "purple", "vermillion"))
_LABEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def partner_order(history: "xr.Dataset") -> np.ndarray:
    """Order the original classes so that those of one super-class stand side by side.

    Args:
        history: The record, with `coarse_label` over `fine`.

    Returns:
        Indices of the classes.
    """
    return np.argsort(history["coarse_label"].values, kind="stable")


def distance_matrix(history: "xr.Dataset", arm: str, step: int) -> np.ndarray:
    """Mean squared distance between samples of two classes, averaged over finite seeds after dividing by its largest.

    D(c, c') = |mu_c - mu_c'|^2 + tr S_c + tr S_c'; every seed's matrix is divided by its own largest entry, so that the
    mean is not ruled by the seed with the longest features. Classes in `partner_order`.

    Args:
        history: The record.
        arm: Name of the arm.
        step: Position among the records, for instance 0 or -1.

    Returns:
        Matrix with entries in 0..1, dimensionless; NaN if no seed is finite.
    """
    return relative_distances(history.sel(arm=arm).isel(step=step))


def relative_distances(chosen: "xr.Dataset") -> np.ndarray:
    """Mean squared distance between samples of two classes over the largest one, averaged over seeds.

    D(c, c') = |mu_c - mu_c'|^2 + tr S_c + tr S_c', each seed divided by its largest entry; classes in `partner_order`.
    A seed that diverged, or whose samples all lie at one point, is left out.

    Args:
        chosen: A record at one step: `class_distances` (seed, fine, other_fine), `within_variances` (seed, fine) and
            `coarse_label`.

    Returns:
        Matrix with entries in 0..1, dimensionless; NaN if no seed is left.
    """
    within = chosen["within_variances"].values
    distances = chosen["class_distances"].values + within[:, :, None] + within[:, None, :]
    largest = distances.max(axis=(1, 2))
    keep = np.isfinite(distances).all(axis=(1, 2)) & (largest != 0)
    if not keep.any():
        return np.full(distances.shape[1:], np.nan)
    order = partner_order(chosen)
    return (distances[keep] / largest[keep, None, None]).mean(axis=0)[np.ix_(order, order)]


def draw_matrix(
    axes: "Axes", matrix: np.ndarray, history: "xr.Dataset", title: str, *, most_names: int, rotation: int = 0
) -> Any:
    """Draw a matrix of relative distances; white lines part the super-classes.

    Args:
        axes: Where.
        matrix: Entries in 0..1, classes in `partner_order`.
        history: The record that names the classes.
        title: Above the matrix.
        most_names: Classes whose names fit beside the axes; of more, none is written.
        rotation: Of the names below (degrees).

    Returns:
        The image, for a colour bar.
    """
    order = partner_order(history)
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap=plotting.SEQUENTIAL_MAP)
    for edge in np.flatnonzero(np.diff(history["coarse_label"].values[order])) + 0.5:
        axes.axhline(edge, color="white", linewidth=0.8)
        axes.axvline(edge, color="white", linewidth=0.8)
    names = [str(name) for name in history["fine"].values[order]] if order.size <= most_names else []
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_title(title)
    axes.set_xlabel("original class")
    return image


def _draw_embedding(axes: "Axes", history: "xr.Dataset", arm: str, end: str, title: str) -> None:
    plane = history["embedding"].sel(arm=arm, end=end).values
    classes, table = history["sample_class"].values, history["coarse_label"].values
    for fine, coarse in enumerate(table):
        rank = int(np.sum(table[:fine] == coarse))
        mine = classes == fine
        color, marker = _CLUSTER_COLORS[rank % len(_CLUSTER_COLORS)], _LABEL_MARKERS[coarse % len(_LABEL_MARKERS)]
        axes.scatter(*plane[mine].T, s=7, marker=marker, color=color, linewidths=0, alpha=0.8)
        center = (float(np.median(plane[mine, 0])), float(np.median(plane[mine, 1])))
        name = str(history["fine"].values[fine])
        box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": color, "linewidth": 0.8}
        axes.annotate(name, center, ha="center", va="center", fontsize=7, bbox=box)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE 1 (dimensionless)")
    axes.set_ylabel("t-SNE 2 (dimensionless)")
    axes.grid(False)


def score_summary(history: "xr.Dataset", arm: str) -> dict[str, np.ndarray]:
    """Mean cluster-and-linear-probe accuracy over finite seeds at every record, with its 95 % Student interval.

    Args:
        history: The record.
        arm: Name of the arm.

    Returns:
        "measured", "low" and "high" over steps, dimensionless; NaN with fewer than two finite seeds.
    """
    return mean_over_seeds(history["clp"].sel(arm=arm).values)


def mean_over_seeds(values: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over the finite seeds, axis 0, with its 95 % Student interval, along axis 1.

    Args:
        values: A score of every seed (axis 0) at every record (axis 1), in any unit.

    Returns:
        "measured", "low" and "high" over records, in that unit; ends are NaN with fewer than two finite seeds.
    """
    from nctheory.claims import mean_interval

    intervals = [mean_interval(column) for column in values.T]
    return {name: np.array([getattr(i, name) for i in intervals]) for name in ("measured", "low", "high")}


def reference_levels(history: "xr.Dataset") -> dict[str, float]:
    """Mean over seeds of every control that is drawn as a line, by its label in the figure; dimensionless."""

    def mean(values) -> float:
        finite = values[np.isfinite(values)]
        return float(finite.mean()) if finite.size else float("nan")

    plain = history.sel(arm="plain").isel(step=-1)
    return {
        "trained on original classes": mean(history["ordinary_accuracy"].values),
        "coarse accuracy (ceiling)": mean(plain["test_accuracy"].values),
        "raw pixels": float(history["raw_clp"]),
        "surrogate, no sub-clusters": mean(history["surrogate"].sel(arm="plain", end="final").values),
        "chance": mean(plain["clp_chance"].values),
    }


def _draw_scores(axes: "Axes", history: "xr.Dataset") -> None:
    steps = history["step"].values
    for arm, label in _ARM_LABELS.items():
        score = score_summary(history, arm)
        color = plotting.OKABE_ITO[_ARM_COLORS[arm]]
        axes.plot(steps, score["measured"], marker=_ARM_MARKERS[arm], color=color, label=label)
        axes.fill_between(steps, score["low"], score["high"], color=color, alpha=0.18, linewidth=0)
    levels = reference_levels(history)
    styles = ["-", "--", "-.", "--", ":"]
    for (label, level), style in zip(levels.items(), styles, strict=True):
        color = "#888888" if label in ("chance", "surrogate, no sub-clusters") else "black"
        axes.axhline(level, color=color, linestyle=style, linewidth=0.9, label=f"{label}: {level:.3f}")
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(0, steps[-1] * 1.1)
    axes.set_xlabel("training step (updates; 0 = untrained)")
    axes.set_ylabel("accuracy on original classes,\ntest images (dimensionless)")
    axes.set_ylim(max(0.0, min(levels.values()) - 0.08), 1.01)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="cluster and linear probe, trained from:")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw class distances, plane embeddings and accuracy along training.

    Top: class-distance matrices untrained, trained, trained with weight decay. Middle: t-SNE of the first seed's test
    features; marker and place show the super-class, colour the original class inside it, the number its name. Bottom:
    cluster-and-linear-probe accuracy with its 95 % interval over seeds, controls as lines.

    Args:
        history: The record `history.nc` of experiments/coarse_labels.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    panels = [("plain", 0, "untrained"), ("plain", -1, "trained"), ("decay", -1, "trained, weight decay")]
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 7.0)
        parts: Any = figure.subfigures(3, 1, height_ratios=[2.3, 2.4, 2.2])
        rows = [parts[0].subplots(1, 3), parts[1].subplots(1, 3)]
        images = []
        for upper, lower, (arm, step, title) in zip(*rows, panels, strict=True):
            matrix = distance_matrix(history, arm, step)
            images.append(draw_matrix(upper, matrix, history, title, most_names=matrix.shape[0]))
            _draw_embedding(lower, history, arm, "initial" if step == 0 else "final", title)
        rows[0][0].set_ylabel("original class")
        label = "mean squared distance\n/ largest (dimensionless)"
        parts[0].colorbar(images[0], ax=rows[0], label=label, shrink=0.9)
        _draw_scores(parts[2].subplots(), history)
    return figure
