"""Figures of train against test collapse, from the record that experiments/train_vs_test.py stores."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = plotting.LINE_COLORS
GREY = "#555555"
CONDITIONS = {"decay": ("weight decay", "-"), "no_decay": ("no weight decay", "--")}
"""Conditions of the record: label and line style."""
PROBES = {
    "ridge": ("ridge, one scale", BLUE),
    "ridge_standardised": ("ridge, standardised", SKY),
    "logistic": ("logistic", GREEN),
    "knn": ("5 nearest neighbours", ORANGE),
    "nearest_center": ("nearest class mean", PURPLE),
}
"""Probes: label and colour."""
_BAND = 0.18
LOSS = 0.2
"""A run whose ridge probe ends this far below its peak after the fit has lost the original classes."""


def mean_and_range(values: "xr.DataArray", *, log: bool = False) -> dict[str, np.ndarray]:
    """Mean over finite seeds with the range over them.

    Args:
        values: measurements with a dimension `seed`.
        log: whether to take the geometric mean, for logarithmic axes.

    Returns:
        "mean", "low" and "high", in the unit of the values; NaN where no seed is finite.
    """
    finite = values.where(np.isfinite(values))
    if log:
        finite = finite.where(finite > 0)
        with np.errstate(all="ignore"):
            logarithms = values.copy(data=np.log(finite.values))
        mean = np.exp(logarithms.mean("seed").values)
    else:
        mean = finite.mean("seed").values
    return {"mean": mean, "low": finite.min("seed").values, "high": finite.max("seed").values}


def draw_all(tree: "xr.DataTree") -> "dict[str, Figure]":
    """Draw a figure for every part that was run; the cascade is of part "collapse".

    Args:
        tree: history of experiments/train_vs_test.py.

    Returns:
        Figures by file name, each `plotting.TEXT_WIDTH` inches wide; lines are means over seeds (geometric on
        logarithmic axes), bands and bars ranges over seeds. Runs without weight decay that lose the original classes
        all the same are marked in the figure of the transfer.
    """
    drawn: dict[str, Figure] = {}
    with plotting.use_style():
        if "collapse" in tree:
            data = tree["collapse"].to_dataset()
            drawn |= {"train_vs_test": _gap_figure(data), "cascade": _cascade_figure(data)}
        if "transfer" in tree:
            drawn["transfer"] = _transfer_figure(tree["transfer"].to_dataset())
        if "samples" in tree:
            drawn["sample_size"] = _samples_figure(tree["samples"].to_dataset())
    return drawn


def _line(axes: "Axes", x: np.ndarray, values: "xr.DataArray", *, log: bool = False, band: bool = True, **style: Any):
    shown = mean_and_range(values, log=log)
    known = np.isfinite(shown["mean"])
    axes.plot(x[known], shown["mean"][known], **style)
    if band:
        low, high = shown["low"][known], shown["high"][known]
        axes.fill_between(x[known], low, high, color=style["color"], alpha=_BAND, linewidth=0)


def _conditions(data: "xr.Dataset") -> list[tuple[str, str, str]]:
    """Name, label and line style of the conditions that were run."""
    return [(name, *CONDITIONS[name]) for name in data["condition"].values.tolist()]


def _layer_axis(axis: Any, hidden: "xr.Dataset") -> np.ndarray:
    """Positions 1, 2, ... of the hidden layers; the ticks of an image network bear their names."""
    positions = np.arange(1, hidden.sizes["layer"] + 1)
    names = [str(each) for each in hidden["layer"].values]
    numbered = all(name.isdigit() for name in names)
    axis.set_ticks(positions, names, rotation=0 if numbered or axis.axis_name == "y" else 60)
    return positions


def _title(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left")


def _epoch_axis(axes: "Axes", last: float) -> None:
    axes.set_xscale("symlog", linthresh=5, linscale=0.4)
    axes.set_xlim(0, last * 1.05)
    ticks = [each for each in (0, 5, 10, 20, 50, 100, 200, 500, 1000) if each < 0.8 * last]
    axes.set_xticks([*ticks, last], [f"{each:g}" for each in (*ticks, last)])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("epoch")


def _gap_figure(data: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 4.6)
    grid: Any = figure.subplots(2, 2, sharex=True)
    last, x = data.isel(layer=-1), data["epoch"].values.astype(float)
    ((left, right), (below, near)) = grid
    for condition, label, dashes in _conditions(data):
        one = last.sel(condition=condition)
        words = f", {label}"
        for split, color in (("train", BLUE), ("test", RED)):
            style: dict[str, Any] = {"color": color, "linestyle": dashes, "label": f"{split}{words}"}
            _line(left, x, one["nc1"].sel(split=split), log=True, **style)
            _line(near, x, one["near_share"].sel(split=split), **style)
        gap = one["nc1"].sel(split="test") / one["nc1"].sel(split="train")
        _line(right, x, gap, color=BLACK, linestyle=dashes, label=words[2:])
    one = last.sel(condition="decay")
    for name, split, color, label in (
        ("strong", "test", RED, "S: own train mean, test"),
        ("weak", "test", ORANGE, "W: any train mean, test"),
        ("within_between_ratio", "train", BLUE, "r: own mean, train"),
    ):
        _line(below, x, one[name].sel(split=split), log=True, color=color, label=label)
    for axes, text, log in (
        (left, "(a) collapse of the last hidden layer", True),
        (right, "(b) gap between test and train", False),
        (below, "(c) distances to the train class means", True),
        (near, "(d) images near a train class mean", False),
    ):
        _title(axes, text)
        _epoch_axis(axes, x[-1])
        if log:
            axes.set_yscale("log")
        axes.legend(loc="best")
    left.set_ylabel("q = NC1 (dimensionless)")
    right.set_ylabel(r"$q_{\mathrm{test}}/q_{\mathrm{train}}$")
    below.set_ylabel(r"mean $|h-\mu|^2/\mathrm{tr}\,\Sigma_B$")
    near.set_ylabel(r"share with $|h-\mu|^2 < 0.1\,\mathrm{tr}\,\Sigma_B$")
    right.set_ylim(bottom=0)
    for axes in grid[0]:
        axes.set_xlabel("")
    return figure


def _cascade_figure(data: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 4.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    maps: Any = parts[0].subplots(1, data.sizes["condition"], sharey=True, squeeze=False)[0]
    hidden = data.isel(layer=slice(1, None))
    r = hidden["within_between_ratio"].sel(split="train")
    remaining = mean_and_range(r / r.isel(epoch=0), log=True)["mean"]
    remaining = np.log10(remaining).reshape(r.sizes["condition"], r.sizes["epoch"], r.sizes["layer"])
    epochs = data["epoch"].values.astype(float)
    # Each record fills the time until the next; the first and the last column lie at the ends of the axis.
    edges = np.concatenate([[0], (epochs[1:] + epochs[:-1]) / 2, [epochs[-1] * 1.05]])
    floor = float(np.floor(2 * np.nanmin(remaining)) / 2)
    mesh = None
    for axes, condition in zip(maps, r["condition"].values, strict=True):
        layers = _layer_axis(axes.yaxis, hidden)
        values = remaining[list(r["condition"].values).index(condition)].T
        rows = np.arange(layers[0] - 0.5, layers[-1] + 1)
        mesh = axes.pcolormesh(edges, rows, values, vmin=floor, vmax=0, rasterized=True)
        if (values < np.log10(0.5)).any():
            axes.contour(epochs, layers, values, levels=[np.log10(0.5)], colors="black", linewidths=1.2, linestyles="-")
        axes.grid(False)
        _epoch_axis(axes, epochs[-1])
        _title(axes, f"{'(a)' if condition == 'decay' else '(b)'} {_long(str(condition))}")
    maps[0].set_ylabel("hidden layer")
    bar = parts[0].colorbar(mesh, ax=maps, pad=0.02)
    bar.set_label(r"$\log_{10}\; r_l(t)/r_l(0)$, train")
    ends: Any = parts[1].subplots(1, 2)
    _draw_ends(ends[0], hidden)
    _draw_ratios(ends[1], hidden)
    return figure


def _long(condition: str) -> str:
    return "weight decay (line: half is left)" if condition == "decay" else "no weight decay (control)"


def _draw_ends(axes: "Axes", hidden: "xr.Dataset") -> None:
    one, layers = hidden.sel(condition="decay"), _layer_axis(axes.xaxis, hidden)
    for split, color in (("train", BLUE), ("test", RED)):
        r = one["within_between_ratio"].sel(split=split)
        _line(axes, layers, r.isel(epoch=0), log=True, color=color, linestyle=":", label=f"{split}, untrained")
        _line(axes, layers, r.isel(epoch=-1), log=True, color=color, marker="o", label=f"{split}, trained")
    axes.set(yscale="log", xlabel="hidden layer", ylabel=r"$r_l = \mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$")
    low, high = axes.get_ylim()
    # Room for the legend above all curves.
    axes.set_ylim(low, high * (high / low) ** 0.35)
    axes.legend(loc="upper center", ncols=2)
    _title(axes, "(c) layers at both ends of training")


def _draw_ratios(axes: "Axes", hidden: "xr.Dataset") -> None:
    layers = _layer_axis(axes.xaxis, hidden)
    r = hidden["within_between_ratio"]
    ratio = (r.sel(split="test") / r.sel(split="train")).isel(epoch=-1)
    for condition, label, dashes in _conditions(hidden):
        _line(axes, layers, ratio.sel(condition=condition), color=BLACK, linestyle=dashes, marker="o", label=label)
    axes.set(xlabel="hidden layer", ylabel=r"$r_{\mathrm{test}}/r_{\mathrm{train}}$ at the end")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    _title(axes, "(d) test over train by layer")


def _transfer_figure(data: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 5.0)
    grid: Any = figure.subplots(2, 2)
    x = data["epoch"].values.astype(float)
    present = data["condition"].values.tolist()
    for axes, condition, letter in ((grid[0, 0], "decay", "a"), (grid[0, 1], "no_decay", "b")):
        if condition not in present:
            axes.set_axis_off()
            continue
        one = data.sel(condition=condition)
        for probe, (label, color) in PROBES.items():
            values = one["probe_accuracy"].sel(probe=probe)
            # Those without a band are measured at few epochs: markers show where.
            marker = None if probe.startswith("ridge") else "o"
            _line(axes, x, values, band=probe == "ridge", color=color, marker=marker, markersize=2.2, label=label)
        coarse = one["accuracy"].sel(split="test")
        _line(axes, x, coarse, band=False, color=GREY, linestyle=":", label="network, two super-classes")
        _epoch_axis(axes, x[-1])
        axes.set(ylim=(0, 1.02), ylabel="held-out accuracy")
        words = "weight decay" if condition == "decay" else "no weight decay (control)"
        _title(axes, f"({letter}) original classes, {words}")
    grid[0, 0].legend(loc="lower left")
    _mark_losses(grid[0, 1], grid[1, 1], data)
    _draw_train_q(grid[1, 0], data, x)
    _draw_scatter(grid[1, 1], data)
    return figure


def _draw_train_q(axes: "Axes", data: "xr.Dataset", x: np.ndarray) -> None:
    q = data["nc1"].isel(layer=-1)
    for condition, _, dashes in _conditions(data):
        for split, color in (("train", BLUE), ("test", RED)):
            values = q.sel(condition=condition, split=split)
            words = split if condition == "decay" else f"{split}, no decay"
            _line(axes, x, values, log=True, color=color, linestyle=dashes, label=words)
    axes.set(yscale="log", ylabel="q = NC1 of the super-classes")
    _epoch_axis(axes, x[-1])
    axes.legend(loc="best")
    _title(axes, "(c) collapse onto the super-classes")


def _draw_scatter(axes: "Axes", data: "xr.Dataset") -> None:
    """Every record from t_int on of every run: ridge probe against q_train."""
    fitted = data["accuracy"].sel(split="train", drop=True) >= 0.99
    later = fitted.cumsum("epoch") > 0
    q, probe = data["nc1"].isel(layer=-1).sel(split="train"), data["probe_accuracy"].sel(probe="ridge")
    for condition, color, words in (("no_decay", ORANGE, "no weight decay"), ("decay", BLUE, "weight decay")):
        if condition not in data["condition"].values:
            continue
        keep = later.sel(condition=condition).values
        at, height = q.sel(condition=condition), probe.sel(condition=condition).transpose(*at_dims(q))
        style = {"color": color, "markersize": 2.2, "alpha": 0.45, "markeredgewidth": 0, "linestyle": "none"}
        axes.plot(at.values[keep], height.values[keep], marker="o", **style)
        ends = {"color": color, "markersize": 5, "linestyle": "none", "markeredgecolor": "black"}
        axes.plot(at.isel(epoch=-1), height.isel(epoch=-1), marker="o", **ends, markeredgewidth=0.5, label=words)
    axes.set(xscale="log", xlabel=r"$q_{\mathrm{train}}$", ylabel="ridge probe, original classes", ylim=(0, 1.02))
    axes.legend(loc="lower right", title="large: end of training", title_fontsize=7)
    _title(axes, "(d) all records from the fit on")


def _mark_losses(above: "Axes", below: "Axes", data: "xr.Dataset") -> None:
    """Mark the runs without decay whose ridge probe falls nonetheless: as lines above, as names below."""
    if "no_decay" not in data["condition"].values:
        return
    one = data.sel(condition="no_decay")
    probe, q = one["probe_accuracy"].sel(probe="ridge"), one["nc1"].isel(layer=-1, epoch=-1).sel(split="train")
    fitted = (one["accuracy"].sel(split="train", drop=True) >= 0.99).cumsum("epoch") > 0
    lost = probe.where(fitted).max("epoch") - probe.isel(epoch=-1)
    for seed in lost["seed"].values[(lost >= LOSS).values].tolist():
        row, at = probe.sel(seed=seed), float(q.sel(seed=seed))
        style = {"color": BLUE, "linestyle": "-.", "linewidth": 1.0}
        above.plot(
            data["epoch"], row.values, **style, label=rf"ridge, seed {seed}: $q_{{\mathrm{{train}}}}$ = {at:.1g}"
        )
        below.annotate(
            f"seed {seed}",
            (at, float(row[-1])),
            xytext=(6, -2),
            textcoords="offset points",
            fontsize=7,
            va="top",
        )
    marked = [line for line in above.get_lines() if str(line.get_label()).startswith("ridge, seed")]
    if marked:
        title = f"falls by {LOSS} or more without decay:"
        above.legend(handles=marked, loc="lower left", title=title, title_fontsize=7, alignment="left")


def at_dims(values: "xr.DataArray") -> tuple[str, ...]:
    """Names of the axes of one condition's values."""
    return tuple(str(name) for name in values.dims if name != "condition")


def _samples_figure(data: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    sizes, final = data["size"].values.astype(float), data.isel(layer=-1).sel(end="final")
    for split, color in (("train", BLUE), ("test", RED)):
        shown = mean_and_range(final["nc1"].sel(split=split).transpose("size", "seed"), log=True)
        spread = [shown["mean"] - shown["low"], shown["high"] - shown["mean"]]
        left.errorbar(sizes, shown["mean"], yerr=spread, color=color, marker="o", label=split)
    slope, level = np.polyfit(np.log(sizes), np.log(_geometric(final["nc1"].sel(split="test"))), 1)
    left.plot(sizes, np.exp(level) * sizes**slope, color=GREY, linestyle=":", label=f"slope {slope:.2f}")
    left.set(yscale="log", ylabel="q = NC1 at the end of training")
    for name, color, label in (("strong", RED, "S, own train mean"), ("weak", ORANGE, "W, any train mean")):
        _line(right, sizes, final[name].sel(split="test").transpose("size", "seed"), log=True, color=color, label=label)
    _line(
        right,
        sizes,
        final["within_between_ratio"].sel(split="train").transpose("size", "seed"),
        log=True,
        color=BLUE,
        label="r, train images",
    )
    right.set(yscale="log", ylabel=r"mean $|h-\mu|^2/\mathrm{tr}\,\Sigma_B$")
    for axes, text in ((left, "(a) collapse against samples"), (right, "(b) test images and train class means")):
        axes.set(xscale="log", xlabel="train images n")
        axes.set_xticks(sizes, [f"{each:g}" for each in sizes])
        axes.xaxis.minorticks_off()
        axes.legend(loc="best")
        _title(axes, text)
    return figure


def _geometric(values: "xr.DataArray") -> np.ndarray:
    return mean_and_range(values.transpose("size", "seed"), log=True)["mean"]
