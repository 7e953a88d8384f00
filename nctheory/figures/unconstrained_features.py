"""Unconstrained features in five figures: prediction as a line, trained minima as points."""

from typing import TYPE_CHECKING

import numpy as np

from nctheory import plotting
from nctheory.figures import deep_relu

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = plotting.LINE_COLORS
GREY = "#555555"
AT_DEPTH = 4
FRAME_NAMES = {"of": "balanced: orthogonal frame", "etf": "bias: simplex ETF", "gof": "imbalanced: general frame"}


def draw_all(tree: "xr.DataTree") -> "dict[str, Figure]":
    """Draw every figure of the run.

    Args:
        tree: history of experiments/unconstrained_features.py.

    Returns:
        Figures by file name; points are the best of all starts unless said otherwise, lines predictions.
    """
    minima, curves, descent, relu = (tree[name].to_dataset() for name in ("minima", "curves", "descent", "relu"))
    with plotting.use_style():
        return {
            "collapse_by_layer": _collapse(descent),
            "class_norms": _class_norms(minima, curves),
            "mode_landscape": _mode_landscape(minima, curves),
            "minority_angle": _minority_angle(minima, curves),
            "deep_losses": _deep_losses(minima, relu, curves),
        }


def _pick(data: "xr.Dataset", **wanted) -> "xr.Dataset":
    keep = np.ones(data.sizes["condition"], dtype=bool)
    for name, value in wanted.items():
        keep &= data[f"condition_{name}"].values == value
    return data.isel(condition=np.flatnonzero(keep))


def _best(data: "xr.Dataset") -> "xr.Dataset":
    """The start of least loss of every condition."""
    return data.isel(seed=data.loss.argmin("seed"))


def _title(axis: "Axes", text: str) -> None:
    axis.set_title(text, loc="left", fontsize=7.5)


def _collapse(data: "xr.Dataset") -> "Figure":
    frames = [frame for frame in FRAME_NAMES if frame in data.run_frame.values]
    depths = sorted(set(data.run_depth.values.tolist()))
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 1.9 * len(depths) + 0.2)
    axes = figure.subplots(len(depths), len(frames), sharex=True, sharey=True, squeeze=False)
    for row, depth in enumerate(depths):
        for column, frame in enumerate(frames):
            keep = (data.run_depth.values == depth) & (data.run_frame.values == frame)
            run = data.isel(run=int(np.flatnonzero(keep)[0]))
            _collapse_panel(axes[row, column], run, frame, depth)
            _title(axes[row, column], f"{FRAME_NAMES[frame]}, M = {depth}")
        axes[row, 0].set_ylabel("distance from collapse")
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    axes[0, 0].legend(loc="lower left", title="paler: later layer" if max(depths) > 1 else None, title_fontsize=7)
    return figure


def _collapse_panel(axis: "Axes", run: "xr.Dataset", frame: str, depth: int) -> None:
    steps = np.maximum(run.step.values, 0.5)
    series = (
        ("NC1", "nc1", BLUE),
        ("NC2 weights", f"nc2_weight_{frame}", RED),
        ("NC2 features", f"nc2_feature_{frame}", ORANGE),
        ("NC3", f"nc3_{frame}", GREEN),
    )
    for label, name, color in series:
        for layer in range(depth):
            # A metric that rounds to zero leaves the logarithmic axis.
            values = np.maximum(run[name].isel(layer=layer).median("seed").values, 1e-16)
            alpha = 1 - 0.65 * layer / max(depth - 1, 1)
            axis.plot(steps, values, color=color, alpha=alpha, linewidth=1, label=label if layer == 0 else None)
    axis.set(xscale="log", yscale="log", ylim=(1e-10, 1e2))


def _class_norms(data: "xr.Dataset", curves: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 2.5)
    axes = figure.subplots(1, 2, sharex=True)
    graded = _pick(data, kind="graded")
    shown = sorted(set(graded.condition_depth.values.tolist())) or [1, 3]
    for depth, color in zip(shown, (BLUE, RED, GREEN, ORANGE), strict=False):
        line = curves.sel(depth=depth)
        points = _best(_pick(graded, depth=depth))
        for axis, kind in zip(axes, ("weight", "feature"), strict=True):
            axis.plot(line.class_size, line[f"{kind}_squares"], color=color, label=f"M = {depth}")
            if points.sizes["condition"]:
                one = points.isel(condition=0)
                axis.plot(one.class_sizes, one[f"class_{kind}_squares"], "o", color=color, markersize=3.5)
        for axis in axes:
            axis.axvline(float(line.critical_size), color=GREY, linewidth=0.8, linestyle=":")
    for axis, text in zip(axes, ("(a) rows of A", "(b) class features"), strict=True):
        axis.set(xscale="log", xlabel="samples in the class, $n_k$", ylabel="squared norm, dimensionless")
        axis.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axis.minorticks_off()
        _title(axis, text)
    axes[1].legend(loc="upper right", title="line: predicted; point: trained", title_fontsize=7)
    return figure


def _mode_landscape(data: "xr.Dataset", curves: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    depth = 3
    level = float(curves.threshold.sel(depth=depth))
    x = np.linspace(0, 2.6, 400)
    for factor, color in ((0.8, BLUE), (1.0, BLACK), (1.2, RED)):
        values = 1 / (1 + x**depth) + factor * level * x
        left.plot(x, values, color=color, label=f"β = {factor:g} thr")
    left.plot([0, (depth - 1) ** (1 / depth)], [1, 1], "o", color=BLACK, markersize=4)
    left.axhline(1, color=GREY, linewidth=0.7, linestyle=":")
    left.set(xlabel="x, dimensionless", ylabel="f(x) = 1/(1 + $x^M$) + βx", ylim=(0.7, 1.5))
    left.legend(loc="upper left")
    _title(left, f"(a) one mode, M = {depth}: two minima tie")
    jump = _pick(data, kind="jump")
    for depth, color in zip(curves.depth.values, (BLUE, ORANGE, RED, GREEN), strict=False):
        fraction = curves.fraction.sel(depth=depth)
        right.plot(curves.ratio_to_threshold, fraction, color=color, label=f"M = {depth}")
        points = _pick(jump, depth=depth)
        if points.sizes["condition"]:
            # Every mode of every start: what was alive and what was dead.
            beta = _beta_over_threshold(points, float(curves.threshold.sel(depth=depth)))
            fitted = points.fitted_fractions.isel({"class": slice(0, 4)}).values.reshape(beta.size, -1)
            at = np.repeat(beta[:, None], fitted.shape[1], axis=1)
            right.plot(at.ravel(), fitted.ravel(), "o", color=color, markersize=2.5, alpha=0.25, markeredgewidth=0)
    right.set(xlabel="β / threshold", ylabel="fitted fraction", xlim=(0.35, 1.45), ylim=(-0.04, 1))
    right.legend(loc="upper right")
    _title(right, "(b) the jump; points: every mode of every start")
    return figure


def _beta_over_threshold(points: "xr.Dataset", level: float) -> np.ndarray:
    depth = points.condition_depth.values
    total = points.class_sizes.sum("class").values
    q = depth * total * (total * points.condition_decay.values ** (depth + 1)) ** (1 / depth)
    return q / points.class_sizes.isel({"class": 0}).values / level


def _minority_angle(data: "xr.Dataset", curves: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    minority = _pick(data, kind="minority")
    entropy = _best(_pick(minority, loss="cross_entropy"))
    left.plot(curves.imbalance, curves.minority_cosine, color=BLUE, label="predicted")
    left.plot(_ratio(entropy), entropy.last_pair_cosine, "o", color=BLUE, label="trained")
    left.axvline(float(curves.critical_ratio[0]), color=GREY, linewidth=0.8, linestyle=":", label="threshold")
    left.set(xlabel="imbalance ratio $n_A/n_B$", ylabel="cosine between minority classes", ylim=(-0.5, 1.1))
    left.legend(loc="lower right")
    _title(left, "(a) cross-entropy: the minority merges")
    for depth, color, at in ((1, BLUE, 1), (3, RED, 2)):
        squared = _best(_pick(minority, loss="mse", depth=depth))
        if not squared.sizes["condition"]:
            continue
        right.plot(
            _ratio(squared), squared.class_logits.isel({"class": 3}), "o", color=color, label=f"trained, M = {depth}"
        )
        ratio = np.linspace(1, float(_ratio(squared).max()), 400)
        right.plot(ratio, _minority_fraction(ratio, squared, depth, curves), color=color, linewidth=1)
        right.axvline(float(curves.critical_ratio[at]), color=color, linewidth=0.8, linestyle=":")
    right.set(xlabel="imbalance ratio $n_A/n_B$", ylabel="logit of a minority class", ylim=(-0.05, 1))
    right.legend(loc="upper right")
    _title(right, "(b) squared error: the minority vanishes")
    return figure


def _ratio(data: "xr.Dataset") -> np.ndarray:
    return data.class_sizes.values[:, 0] / data.class_sizes.values[:, 3]


def _minority_fraction(ratio: np.ndarray, data: "xr.Dataset", depth: int, curves: "xr.Dataset") -> np.ndarray:
    """Predicted logit of a minority class, read off the stored curve of one mode."""
    small = float(data.class_sizes[0, 3])
    total, decay = 2 * small * (1 + ratio), float(data.condition_decay[0])
    q = depth * total * (total * decay ** (depth + 1)) ** (1 / depth)
    level = q / small / float(curves.threshold.sel(depth=depth))
    line = np.interp(level, curves.ratio_to_threshold, curves.fraction.sel(depth=depth))
    return np.where(level < float(curves.ratio_to_threshold[0]), np.nan, line)


def _deep_losses(data: "xr.Dataset", relu: "xr.Dataset", curves: "xr.Dataset") -> "Figure":
    figure = plotting.new_figure(plotting.TEXT_WIDTH, 4.8)
    (left, right), (graphs, classes) = figure.subplots(2, 2)
    deep = _pick(data, kind="deep")
    colors = dict(zip(curves.deep_classes.values.tolist(), (PURPLE, BLUE, RED, GREEN), strict=True))
    for k, color in colors.items():
        line = curves.sel(deep_classes=k)
        points = _pick(deep, num_classes=k)
        if k in (3, 4, 6):
            left.plot(curves.deep_depth, line.etf_loss, color=color, linestyle="--")
            left.plot(curves.deep_depth, line.low_rank_loss, color=color, label=f"K = {k}")
            left.plot(points.condition_depth, points.loss.min("seed"), "o", color=color)
        right.plot(curves.deep_depth, line.low_rank_loss / line.etf_loss, color=color, label=f"K = {k}")
        right.plot(points.condition_depth, points.loss.min("seed") / points.predicted_etf_loss, "o", color=color)
    right.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    left.set(xlabel="linear layers M", ylabel="loss, dimensionless", yscale="log", ylim=(0.04, 0.25))
    left.set_yticks([0.05, 0.1, 0.2], ["0.05", "0.1", "0.2"])
    left.minorticks_off()
    right.set(xlabel="linear layers M", ylabel="loss / loss of the simplex ETF", ylim=(0.5, 1.05))
    words = "dashed: simplex ETF; line: low rank; point: best start"
    left.legend(loc="lower right", ncols=3, title=words, title_fontsize=6.5)
    right.legend(loc="lower left", ncols=4, columnspacing=1, handlelength=1.2)
    deep_relu.panel(graphs, relu, curves)
    _against_classes(classes, curves)
    _title(left, "(a) cross-entropy, deep linear")
    _title(right, "(b) the same over the simplex ETF")
    _title(graphs, "(c) squared error, deep ReLU")
    _title(classes, f"(d) against K, {AT_DEPTH} layers")
    return figure


def _against_classes(axis: "Axes", curves: "xr.Dataset") -> None:
    linear, graphs = curves.sel(deep_depth=AT_DEPTH), curves.sel(relu_depth=AT_DEPTH)
    ratio = linear.low_rank_loss / linear.etf_loss
    axis.plot(curves.deep_classes, ratio, "o-", color=BLUE, label="cross-entropy: low rank / simplex ETF")
    ratio = graphs.relu_graph_loss / graphs.relu_collapse_loss
    axis.plot(curves.relu_classes, ratio, "s-", color=RED, label="squared error, ReLU: graph / collapse")
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlabel="classes K", ylabel="ratio of predicted losses", ylim=(0.5, 1.05), xticks=(3, 4, 6, 10, 15))
    axis.legend(loc="lower left")
