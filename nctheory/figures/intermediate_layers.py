"""Figure of collapse in every layer, drawn from the record that experiments/intermediate_layers.py stores."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting
from nctheory.figures.deep_linear import median_and_range

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_LAYER = (("nc1", "NC1", "linear"), ("nc1", "NC1", "log"), ("nc2_equiangular", "NC2, angles", "linear"))
"""Panels against the layer: metric, axis label, scale (all dimensionless)."""
BY_EPOCH = (
    ("nc1", "NC1", "log"),
    ("within_between_ratio", r"tr $\Sigma_W$ / tr $\Sigma_B$", "log"),
    ("nc2_equiangular", "NC2, angles", "linear"),
)
"""Panels against the epoch: metric, axis label, scale (all dimensionless)."""
EPSILON = 0.01
"""Mismatch up to which a layer counts as deciding; defines the effective depth."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The light end of the map is hard to see on white.
_DARKEST = 0.88


def stages(history: "xr.Dataset", condition: str, metric: str) -> "list[tuple[str, xr.DataArray]]":
    """A metric at the stages of training: untrained, at each milestone that any seed reaches, at the end.

    Milestones with the same measured epochs, as rare checkpoints give them, are one stage: "0.9-0.975".

    Args:
        history: The record.
        condition: One of its conditions.
        metric: One of its metrics.

    Returns:
        Name of the stage and the values on the train split, dimensions seed and layer.
    """
    one = history.sel(condition=condition)
    at_epoch = one[metric].sel(split="train")
    found = [("untrained", at_epoch.sel(epoch=0))]
    merged: dict[tuple[int, ...], list[float]] = {}
    for milestone in history["milestone"].values:
        epochs = one["milestone_epoch"].sel(milestone=milestone).values
        if bool(one[f"milestone_{metric}"].sel(split="train", milestone=milestone).notnull().any()):
            merged.setdefault(tuple(epochs.tolist()), []).append(float(milestone))
    for same in merged.values():
        name = f"{same[0]:g}" if len(same) == 1 else f"{same[0]:g}-{same[-1]:g}"
        found.append((name, one[f"milestone_{metric}"].sel(split="train", milestone=same[0])))
    return [*found, ("end", at_epoch.sel(epoch=int(one["num_epochs"])))]


def over_epochs(history: "xr.Dataset", condition: str, metric: str) -> "xr.DataArray":
    """A metric on the train split at the epochs at which this condition was measured, dimensions seed, epoch, layer.

    Args:
        history: The record.
        condition: One of its conditions.
        metric: One of its metrics.

    Returns:
        The values.
    """
    values = history[metric].sel(condition=condition, split="train")
    # The epoch axis holds those of all conditions.
    measured = history["loss"].sel(condition=condition).notnull().any(["seed", "split"]).values
    return values.isel(epoch=np.flatnonzero(measured))


def final(history: "xr.Dataset", condition: str, metric: str) -> "xr.DataArray":
    """A metric on the train split at the end of training, dimensions seed and layer."""
    one = history.sel(condition=condition)
    return one[metric].sel(split="train", epoch=int(one["num_epochs"]))


def _draw_stages(axes: "Axes", history: "xr.Dataset", condition: str, metric: str, scale: str, colors: Any) -> None:
    drawn = stages(history, condition, metric)
    for index, (name, values) in enumerate(drawn):
        shown = median_and_range(values)
        ends = name in ("untrained", "end")
        color = {"untrained": "#888888", "end": plotting.OKABE_ITO["vermillion"]}.get(name)
        color = color or colors(index / max(len(drawn) - 2, 1))
        style = "--" if name == "untrained" else "-"
        layers = history["layer"].values
        axes.plot(layers, shown["median"], color=color, linestyle=style, marker="o", markersize=2.5, label=name)
        if ends:
            axes.fill_between(layers, shown["low"], shown["high"], color=color, alpha=0.2, linewidth=0)
    _scale(axes, scale)
    _layer_axis(axes, history)


def _draw_epochs(axes: "Axes", history: "xr.Dataset", condition: str, metric: str, scale: str, colors: Any) -> None:
    values = over_epochs(history, condition, metric)
    last = history.sizes["layer"] - 1
    for layer in history["layer"].values:
        shown = median_and_range(values.sel(layer=layer))["median"]
        axes.plot(values["epoch"].values, shown, color=colors(layer / last), linewidth=1.1)
    _scale(axes, scale)
    final_epoch = int(values["epoch"].values[-1])
    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.set_xlim(0, final_epoch * 1.1)
    axes.set_xticks([0, 1, *(10**k for k in range(1, 1 + int(np.log10(max(final_epoch, 1)))))])
    axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"epoch, {condition}")


def _draw_conditions(axes: "Axes", history: "xr.Dataset", metric: str) -> None:
    layers = history["layer"].values
    names = [str(each) for each in history["condition"].values]
    for index, condition in enumerate(names):
        shown = median_and_range(final(history, condition, metric))
        color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
        spread = [shown["median"] - shown["low"], shown["high"] - shown["median"]]
        # Moved apart so that bars do not cover each other.
        shift = 0.08 * (index - (len(names) - 1) / 2)
        axes.errorbar(
            layers + shift,
            shown["median"],
            yerr=spread,
            color=color,
            marker=_MARKERS[index % len(_MARKERS)],
            elinewidth=0.8,
            label=condition.replace("_", " "),
        )
    _layer_axis(axes, history)


def _draw_mismatch(axes: "Axes", history: "xr.Dataset") -> None:
    _draw_conditions(axes, history, "prediction_mismatch")
    axes.axhline(EPSILON, color="#555555", linewidth=0.8, linestyle=":")
    axes.text(
        history.sizes["layer"] - 0.8, EPSILON * 1.15, "0.01", ha="right", va="bottom", fontsize=6, color="#555555"
    )
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
    axes.set_ylim(bottom=-2e-4)
    axes.set_yticks([0, 1e-3, 1e-2, 1e-1, 1])
    axes.set_ylabel("centre $\\neq$ prediction (share)")
    axes.set_title("mismatch, end of training")


def _draw_chain(axes: "Axes", history: "xr.Dataset") -> None:
    layers = history["chain_layer"].values
    right = axes.twinx()
    for side, name, label, color in (
        (axes, "ratio", r"tr $\Sigma_W$ / tr $\Sigma_B$ (circles)", plotting.OKABE_ITO["blue"]),
        (right, "discrimination", "1 - max cos of means (squares)", plotting.OKABE_ITO["vermillion"]),
    ):
        shown = median_and_range(history[f"chain_{name}"].isel(chain_record=-1))
        side.plot(layers, history[f"chain_predicted_{name}"].values, color=color, linewidth=1.0)
        marker = "o" if side is axes else "s"
        side.plot(layers, shown["median"], color=color, linestyle="none", marker=marker)
        side.set_ylabel(label, color=color)
    axes.set_yscale("log")
    right.set_ylim(0, 1)
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    axes.set_xticks(layers)
    axes.set_xlabel("layer (0 = input)")
    axes.set_title("deep linear, lines predicted")


def _scale(axes: "Axes", scale: str) -> None:
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)


def _layer_axis(axes: "Axes", history: "xr.Dataset") -> None:
    layers: Sequence[int] = history["layer"].values.tolist()
    axes.set_xticks(layers[:: 1 + len(layers) // 9])
    axes.set_xlabel("layer (0 = input)")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw metrics against the layer at stages of training, against the epoch, and all conditions side by side.

    Top: NC1 on linear and logarithmic axes and the deviation from equal angles against the layer, first condition; one
    curve a stage: untrained, the first epochs of given train accuracy, the end. Middle: metrics against the epoch, one
    curve a layer. Bottom: mismatch with the network's prediction and trace ratio at the end of training for every
    condition, and the deep linear network with its predictions. Lines are medians, bands and bars ranges over seeds.

    Args:
        history: The record `history.nc` of experiments/intermediate_layers.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    from matplotlib import colormaps

    map_ = colormaps[plotting.SEQUENTIAL_MAP].resampled(256)
    colors: Callable[[float], Any] = lambda share: map_(_DARKEST * float(share))  # noqa: E731
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 7.4)
        parts: Any = figure.subfigures(3, 1, height_ratios=[2.5, 2.3, 2.6])
        _draw_top(parts[0], history, colors)
        _draw_middle(parts[1], history, colors, map_)
        _draw_bottom(parts[2], history)
    return figure


def _draw_top(part: Any, history: "xr.Dataset", colors: Any) -> None:
    first = str(history["condition"].values[0])
    panels = part.subplots(1, len(BY_LAYER))
    for axes, (metric, label, scale) in zip(panels, BY_LAYER, strict=True):
        _draw_stages(axes, history, first, metric, scale, colors)
        axes.set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    title = f"{first}, train accuracy reached"
    if history.attrs["kind"] == "images":
        title += ", at the first measured epoch after it"
    part.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=title)


def _draw_middle(part: Any, history: "xr.Dataset", colors: Any, map_: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    first, last_layer = str(history["condition"].values[0]), history.sizes["layer"] - 1
    panels = part.subplots(1, len(BY_EPOCH))
    for axes, (metric, label, scale) in zip(panels, BY_EPOCH, strict=True):
        _draw_epochs(axes, history, first, metric, scale, colors)
        axes.set_ylabel(label)
    shades = ListedColormap(map_(np.linspace(0, _DARKEST, 256)))
    bar = part.colorbar(ScalarMappable(Normalize(0, last_layer), shades), ax=panels, pad=0.02)
    bar.set_ticks(sorted({0, last_layer // 2, last_layer}))
    bar.set_label("layer (0 = input)")


def _draw_bottom(part: Any, history: "xr.Dataset") -> None:
    with_chain = "chain_ratio" in history
    panels = part.subplots(1, 2 + with_chain)
    _draw_mismatch(panels[0], history)
    _draw_conditions(panels[1], history, "within_between_ratio")
    panels[1].set_yscale("log")
    panels[1].set_ylabel(r"tr $\Sigma_W$ / tr $\Sigma_B$")
    panels[1].set_title("end of training")
    if with_chain:
        _draw_chain(panels[2], history)
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
