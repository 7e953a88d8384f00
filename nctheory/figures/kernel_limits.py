"""Figure of the kernel limits, drawn from the record that experiments/kernel_limits.py stores."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D")
GREY = "#555555"


def mean_and_error(values: "xr.DataArray") -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and its standard error.

    Args:
        values: measurements with a dimension `seed`.

    Returns:
        Mean and standard error over the finite seeds, in the unit of the values; NaN where there are fewer than one
        and two of them.
    """
    with np.errstate(all="ignore"):
        finite = values.where(np.isfinite(values))
        count = finite.notnull().sum("seed")
        spread = (((finite - finite.mean("seed")) ** 2).sum("seed") / (count - 1).where(count > 1)) ** 0.5
        return finite.mean("seed").values, (spread / count.where(count > 0) ** 0.5).values


def _series(
    axes: "Axes", values: "xr.DataArray", index: int, *, dashed: bool = False, label: str | None = None
) -> None:
    """Mean over seeds against the width, with standard errors."""
    mean, error = mean_and_error(values)
    color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
    style: dict[str, Any] = {"color": color, "label": label}
    if dashed:
        axes.plot(values["width"], mean, linestyle=":", linewidth=1.0, **style)
        return
    axes.errorbar(
        values["width"],
        mean,
        yerr=error,
        marker=_MARKERS[index % 4],
        markersize=3,
        linewidth=0.8,
        elinewidth=0.8,
        **style,
    )


def _guide(axes: "Axes", widths: np.ndarray, start: float, slope: float, text: str) -> None:
    """A grey line of the predicted slope."""
    axes.plot(widths, start * (widths / widths[0]) ** slope, color=GREY, linewidth=1.0, linestyle="--", zorder=0)
    middle = widths[len(widths) // 2]
    place: dict[str, Any] = {"xytext": (-3, -2), "textcoords": "offset points", "va": "top", "ha": "right"}
    axes.annotate(text, (middle, start * (middle / widths[0]) ** slope), fontsize=7, color=GREY, **place)


def _finish(axes: "Axes", history: "xr.Dataset", title: str, label: str, *, log: bool = True) -> None:
    widths = history["width"].values
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("width of the hidden layers")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left")


def _deviations(axes: "Axes", history: "xr.Dataset", values: "xr.DataArray", dim: str, wrong: str) -> None:
    """Squared deviation from the limit (points) and from a wrong predictor (dotted), with the slope -1."""
    for index, name in enumerate(history["condition"].values.tolist()):
        one = values.sel(condition=name)
        _series(axes, one.sel({dim: "limit"}), index)
        _series(axes, one.sel({dim: wrong}), index, dashed=True)
    start = np.nanmin(mean_and_error(values.sel({dim: "limit"}).isel(width=0))[0])
    _guide(axes, history["width"].values.astype(float), 0.6 * float(start), -1.0, "1/width")


def _changes(axes: "Axes", history: "xr.Dataset") -> None:
    """Root-mean-square relative change of the tangent kernel (points) and of the last features (dotted)."""
    for index, name in enumerate(history["condition"].values.tolist()):
        one = history.sel(condition=name)
        _series(axes, one["ntk_change"] ** 0.5, index)
        _series(axes, one["feature_change"].isel(layer=-1) ** 0.5, index, dashed=True)
    start = np.nanmin(mean_and_error(history["ntk_change"].isel(width=0) ** 0.5)[0])
    _guide(axes, history["width"].values.astype(float), 0.6 * float(start), -1.0, "1/width")


def _relative_nc1(axes: "Axes", history: "xr.Dataset") -> None:
    """NC1 of the last layer over that of the raw data: networks as points, the kernel as a line."""
    for index, name in enumerate(history["condition"].values.tolist()):
        one = history.sel(condition=name).isel(layer=-1)
        raw = float(one["raw_nc1"])
        _series(axes, one["initial_nc1"] / raw, index, label=name)
        color = plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)]
        axes.axhline(float(one["limit_nc1"].sel(feature_predictor="limit")) / raw, color=color, linewidth=0.9, zorder=0)
    axes.axhline(1.0, color=GREY, linewidth=0.9, linestyle=":")
    axes.annotate(
        "raw data", (0.99, 1.0), xycoords=("axes fraction", "data"), fontsize=7, color=GREY, va="bottom", ha="right"
    )


def _nc1_bias(axes: "Axes", history: "xr.Dataset") -> None:
    """Mean of NC1 over networks less the kernel's NC1, relative (points), and its standard deviation (dotted)."""
    for index, name in enumerate(history["condition"].values.tolist()):
        one = history.sel(condition=name).isel(layer=-1)
        relative = one["initial_nc1"] / one["limit_nc1"].sel(feature_predictor="limit") - 1
        _series(axes, abs(relative.mean("seed")).expand_dims(seed=[0]), index)
        _series(axes, relative.std("seed", ddof=1).expand_dims(seed=[0]), index, dashed=True)
    _guide(axes, history["width"].values.astype(float), 0.35, -1.0, "1/width")


def _tangent_nc1(axes: "Axes", history: "xr.Dataset") -> None:
    """As `_nc1_bias`, of the empirical tangent kernel."""
    for index, name in enumerate(history["condition"].values.tolist()):
        one = history.sel(condition=name)
        relative = one["initial_ntk_nc1"] / one["points_ntk_nc1"].sel(ntk_predictor="limit") - 1
        _series(axes, abs(relative.mean("seed")).expand_dims(seed=[0]), index)
        _series(axes, relative.std("seed", ddof=1).expand_dims(seed=[0]), index, dashed=True)
    _guide(axes, history["width"].values.astype(float), 0.12, -1.0, "1/width")


def _by_layer(axes: "Axes", history: "xr.Dataset") -> None:
    """Relative NC1 of the kernels of infinite width at every layer, from the data on: NNGP (line), NTK (dotted)."""
    layers = np.concatenate([[0], history["layer"].values])
    for index, name in enumerate(history["condition"].values.tolist()):
        one = history.sel(condition=name, feature_predictor="limit")
        style: dict[str, Any] = {"color": plotting.LINE_COLORS[index % len(plotting.LINE_COLORS)], "markersize": 3}
        for prefix, line in (("limit", "-"), ("limit_ntk", ":")):
            values = np.concatenate([[1.0], one[f"{prefix}_relative_nc1"].values])
            axes.plot(layers, values, linestyle=line, marker=_MARKERS[index % 4], **style)
    axes.set_xticks(layers, ["data", *(str(layer) for layer in layers[1:])])
    axes.set_xlabel("hidden layer")
    axes.set_ylabel("dimensionless")
    axes.set_title("(h) NC1 / NC1 of raw data\nline: NNGP, dotted: NTK", loc="left")


def draw(history: "xr.Dataset") -> "Figure":
    """Draw how finite networks approach the kernels of infinite width.

    Points are means over seeds with their standard errors, dashed grey lines the slope 1/width. Squared relative
    deviations of the feature kernel, the tangent kernel and the trained outputs (dotted: wrong predictors); bias of NC1
    (dotted: its standard deviation over seeds); change of the tangent kernel under training (dotted: of the features);
    NC1 over that of the raw data (lines: the kernel's value). Where the record holds them, a third row: bias of the NC1
    of the tangent kernel, and NC1 of both kernels over that of the raw data, layer by layer.

    Args:
        history: The record `history.nc` of experiments/kernel_limits.py.

    Returns:
        The figure, `plotting.TEXT_WIDTH` inches wide.
    """
    with plotting.use_style():
        tangent = "initial_ntk_nc1" in history
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 7.0 if tangent else 4.8)
        panels: Any = figure.subplots(3 if tangent else 2, 3)
        _draw_start(panels[0], history)
        _draw_tangent(panels[1], history)
        handles, labels = panels[0, 2].get_legend_handles_labels()
        if tangent:
            _tangent_nc1(panels[2, 0], history)
            _finish(panels[2, 0], history, "(g) NC1 of the tangent kernel", "relative bias (dotted: std)")
            _by_layer(panels[2, 1], history)
            panels[2, 2].set_axis_off()
            panels[2, 2].legend(handles, labels, loc="center")
        else:
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_start(panels: Any, history: "xr.Dataset") -> None:
    """Feature kernel and NC1 at the start."""
    last, squared = history.isel(layer=-1), "squared relative deviation"
    _deviations(panels[0], history, last["initial_kernel_deviation"], "feature_predictor", "activation")
    _finish(panels[0], history, "(a) feature kernel, start\ndotted: other activation", squared)
    _nc1_bias(panels[1], history)
    _finish(panels[1], history, "(b) NC1, start", "relative bias (dotted: std)")
    _relative_nc1(panels[2], history)
    _finish(panels[2], history, "(c) NC1 / NC1 of raw data", "dimensionless", log=False)


def _draw_tangent(panels: Any, history: "xr.Dataset") -> None:
    """Tangent kernel at the start, and what lazy training changes."""
    squared = "squared relative deviation"
    _deviations(panels[0], history, history["ntk_deviation"], "ntk_predictor", "derivative")
    _finish(panels[0], history, "(d) tangent kernel, start\ndotted: wrong derivative", squared)
    _changes(panels[1], history)
    _finish(panels[1], history, "(e) change by lazy training", "NTK (dotted: features)")
    outputs = history["output_deviation"].isel(step=-1)
    _deviations(panels[2], history, outputs, "output_predictor", "readout")
    _finish(panels[2], history, "(f) outputs after training\ndotted: readout alone", squared)
