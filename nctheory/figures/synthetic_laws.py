"""The laws of fine structure in nine panels: prediction as a line, measurement over seeds as points."""

from typing import TYPE_CHECKING

import numpy as np

from nctheory import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, ORANGE, *_ = plotting.LINE_COLORS
GREY = "#555555"


def draw(tree: "xr.DataTree") -> "Figure":
    """Draw the run's nine panels.

    Args:
        tree: history of experiments/synthetic.py, one dataset a law.

    Returns:
        The figure; points are means over seeds, bars their 95 % Student intervals, lines predictions.
    """
    with plotting.use_style():
        figure = plotting.new_figure(plotting.TEXT_WIDTH, 6.4, constrained=False)
        figure.subplots_adjust(left=0.085, right=0.955, bottom=0.065, top=0.965, wspace=0.5, hspace=0.48)
        axes = figure.subplots(3, 3).ravel()
        _free(axes[0], tree["free"].to_dataset())
        memory = tree["memory"].to_dataset()
        _memory(axes[1], memory)
        _apparent_collapse(axes[2], memory)
        relu = tree["relu"].to_dataset()
        _noise_limit(axes[3], relu)
        _similarity(axes[4], relu)
        _clusters(axes[5], relu)
        _geometry(axes[6], tree["geometry"].to_dataset())
        phase = tree["phase"].to_dataset().isel(step=-1).mean("seed")
        _phase(axes[7], phase.fresh_ratio, "(h) q on fresh samples")
        axes[7].set_ylabel("input noise σ")
        _phase(axes[8], phase.fresh_separation, "(i) s on fresh samples")
        _note_lost_seeds(figure, tree)
    return figure


def _note_lost_seeds(figure: "Figure", tree: "xr.DataTree") -> None:
    """Say on the figure how many runs became non-finite; means are over the others."""
    shown = {"free": "objective", "memory": "objective", "relu": "objective", "geometry": "ratio", "phase": "ratio"}
    final = {name: tree[name].to_dataset()[key].isel(step=-1).values for name, key in shown.items()}
    lost = {name: int((~np.isfinite(values)).sum()) for name, values in final.items()}
    if any(lost.values()):
        text = ", ".join(f"{name}: {count}" for name, count in lost.items() if count)
        figure.text(0.01, 0.005, f"runs left out because they became non-finite: {text}", fontsize=6.5)


def _interval(values: "xr.DataArray") -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half-width of its 95 % Student interval."""
    from scipy import stats

    count = values.notnull().sum("seed")
    quantile = stats.t.ppf(0.975, np.maximum(count.values - 1, 1))
    half = quantile * values.std("seed", ddof=1).values / np.sqrt(count.values)
    return np.asarray(values.mean("seed").values), np.asarray(half)


def _points(axis: "Axes", x, values: "xr.DataArray", color: str, marker: str, label: str | None = None) -> None:
    mean, half = _interval(values)
    axis.errorbar(x, mean, yerr=half, color=color, fmt=marker, markersize=3, elinewidth=0.8, capsize=1.5, label=label)


def _title(axis: "Axes", text: str) -> None:
    axis.set_title(text, loc="left", fontsize=7.5)


def _run(data: "xr.Dataset", **wanted: str) -> "xr.Dataset":
    keep = np.logical_and.reduce([data[name].values == value for name, value in wanted.items()])
    return data.isel(run=int(np.flatnonzero(keep)[0]))


def _free(axis: "Axes", data: "xr.Dataset") -> None:
    steps = np.maximum(data.step.values, 0.5)
    excess = (data.objective - data.minimum) / data.minimum
    for values, color, label in ((data.ratio, BLUE, "q"), (excess, RED, "excess loss (relative)")):
        axis.fill_between(steps, values.min("seed"), values.max("seed"), color=color, alpha=0.25, linewidth=0)
        axis.plot(steps, values.median("seed"), color=color, label=label)
    axis.set(xscale="log", yscale="log", ylim=(1e-17, 10), xlabel="training step", ylabel="dimensionless")
    _title(axis, "(a) L0 free features forget")
    axis.legend(loc="lower left")


def _memory(axis: "Axes", data: "xr.Dataset") -> None:
    run = _run(data, loss="logistic", precision="float64", readout="fixed")
    for index, (color, marker) in enumerate(((BLUE, "o"), (RED, "s"))):
        one = run.isel(weight_decay=index)
        decay = float(one.weight_decay)
        relative = (one.memory / one.memory.isel(step=0)).mean("pair")
        _points(axis, one.step, relative, color, marker, f"λ = {decay:g}")
        fine = np.linspace(0, float(one.step[-1]), 200)
        axis.plot(fine, 0.5 ** (fine / float(one.half_life)), color=color, linewidth=1)
    axis.axhline(0.5, color=GREY, linewidth=0.7, linestyle=":")
    axis.set(xlabel="training step", ylabel="memory / initial memory", ylim=(0, 1.1))
    _title(axis, "(b) L1 memory fades by decay")
    axis.legend(loc="lower left")


def _apparent_collapse(axis: "Axes", data: "xr.Dataset") -> None:
    run = _run(data, loss="logistic", precision="float64", readout="fixed").isel(weight_decay=0)
    steps = np.maximum(run.step.values, 0.5)
    series = (
        ("same-label distance", run.same_label_distance, BLUE, "o"),
        ("different-label distance", run.different_label_distance, ORANGE, "^"),
        ("ratio q", run.ratio, RED, "s"),
    )
    for label, values, color, marker in series:
        _points(axis, steps, values, color, marker, label)
        axis.plot(steps, values.mean("seed"), color=color, linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="training step", ylabel="dimensionless", ylim=(1e-5, 1e3))
    _title(axis, "(c) L1 nothing is lost")
    axis.legend(loc="lower left")


def _noise_limit(axis: "Axes", data: "xr.Dataset") -> None:
    final = data.isel(step=-1)
    noise = final.noise.values
    for label, values, limit, color, marker in (
        ("q", final.ratio_by_noise, 1 / 2, BLUE, "o"),
        ("tr Σ$_W$ / tr Σ$_B$", final.coarse_ratio_by_noise, 2 / 3, RED, "s"),
    ):
        _points(axis, noise, values, color, marker, label)
        axis.axhline(limit, color=color, linewidth=0.9, linestyle="--")
    axis.set_xscale("symlog", linthresh=float(noise[1]), linscale=0.4)
    axis.set_xticks([0, 2.5e-4, 5e-4, 1e-3, 2e-3], ["0", "1/4", "1/2", "1", "2"])
    axis.minorticks_off()
    axis.set(xlabel="input noise σ / norm of means, $10^{-3}$", ylabel="dimensionless", ylim=(0.3, 0.75))
    _title(axis, "(d) L2 limits 1/2 and 2/3")
    axis.legend(loc="lower left")


def _similarity(axis: "Axes", data: "xr.Dataset") -> None:
    steps = np.maximum(data.step.values, 0.5)
    for index, (color, marker) in enumerate(zip((BLUE, GREEN, ORANGE, RED), "os^D", strict=True)):
        values = data.ratio_by_same_cosine.isel(same_cosine=index)
        _points(axis, steps, values, color, marker, f"{float(values.same_cosine):g}")
        axis.plot(steps, values.mean("seed"), color=color, linewidth=0.8)
    axis.axhline(0.5, color=GREY, linewidth=0.7, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="training step", ylabel="q, dimensionless", ylim=(1e-6, 2))
    _title(axis, "(e) L2 similar clusters merge")
    axis.legend(loc="lower left", title="same-label cosine", title_fontsize=7, ncols=2)


def _clusters(axis: "Axes", data: "xr.Dataset") -> None:
    two = data.coarse_ratio_by_noise.isel(noise=0, step=-1)
    more = {
        count: data[f"coarse_ratio_{count}_clusters"] for count in (3, 4) if f"coarse_ratio_{count}_clusters" in data
    }
    for count, values in {2: two, **more}.items():
        _points(axis, count, values, BLUE, "o", "trained, 95 % interval" if count == 2 else None)
    counts = np.linspace(1.7, 4.3, 50)
    axis.plot(counts, 2 * (counts - 1) / (counts + 1), color=BLUE, linewidth=1, label="2(S − 1)/(S + 1)")
    axis.set(
        xlabel="clusters merged into a label, S",
        ylabel="tr Σ$_W$ / tr Σ$_B$, dimensionless",
        xticks=[2, 3, 4],
        ylim=(0.4, 1.6),
    )
    _title(axis, "(f) L2 coarse ratio, no noise")
    axis.legend(loc="upper left")


def _geometry(axis: "Axes", data: "xr.Dataset") -> None:
    final = data.isel(step=-1)
    decay = final.weight_decay.values
    for geometry, color, marker, label in (
        ("noisy", BLUE, "o", "noisy clusters"),
        ("cross_pair", RED, "s", "no noise"),
    ):
        one = final.sel(geometry=geometry)
        _points(axis, decay, one.ratio, color, marker, f"trained, {label}")
        axis.plot(decay, one.predicted.mean("seed"), color=color, linewidth=1)
    ridge = final.sel(geometry="cross_pair").ridge.mean("seed")
    axis.plot(decay, ridge, color=GREY, linewidth=1, linestyle="--", label="ridge (control)")
    axis.set(xlabel="weight decay λ", ylabel="q, dimensionless", ylim=(0, 1.5 * float(ridge.max())))
    _title(axis, "(g) L3 convex programme")
    axis.legend(loc="upper left", handlelength=1.2)


def _phase(axis: "Axes", values: "xr.DataArray", label: str) -> None:
    from matplotlib.colors import LogNorm

    mesh = axis.pcolormesh(
        values.same_cosine, values.noise, values.values.T, norm=LogNorm(), shading="nearest", rasterized=True
    )
    axis.grid(False)
    axis.set(yscale="log", xlabel="same-label cosine ρ")
    _title(axis, label)
    axis.figure.colorbar(mesh, ax=axis, pad=0.03, fraction=0.08)
