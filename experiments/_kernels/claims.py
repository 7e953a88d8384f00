"""Claims on kernel limits with their criteria and controls, judged from the stored record alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from _kernels.slopes import jackknife, magnitude_slope, mean_magnitude_slope, mean_slope
from nctheory.claims import Claim, ClaimSpec, Interval, Ledger, Within, mean_interval

if TYPE_CHECKING:
    import xarray as xr

SOURCE = "derived here (theory.kernel_layers, theory.kernel_collapse); kernels of Cho and Saul 2009, Jacot et al. 2018"
# Fixed on seeds 1000 to 1015. A straight line through widths 64 to 2048 is bent by terms of higher order in 1/width.
SLOPE = Within(-1.2, -0.8)
LIMIT = Within(0.92, 1.08)
_ALL = "mean slope of conditions"


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims; intervals are Student's, 95 %, of jackknife pseudo-values over seeds."""
    parts = [_start, _biases, _tangent, *([_tangent_biases] if has_tangent_collapse(history) else [])]
    return Ledger([claim for part in (*parts, _outputs, _extrapolated) for claim in part(history)])


def has_tangent_collapse(history: "xr.Dataset") -> bool:
    """Whether the record holds the collapse of tangent kernels; older ones do not."""
    return "initial_ntk_nc1" in history


def tangent_claims() -> list[str]:
    """Names of the claims that need it."""
    return [f"{name}/ntk-nc1" for name, _ in _TIMES.values()]


def trained(history: "xr.Dataset") -> "xr.Dataset":
    """The widths that were trained."""
    return history.sel(width=history["width"] <= history.attrs["trained_width"])


def _exponent(values: "xr.DataArray") -> Interval:
    """Slope of the log of the mean over seeds against log width, averaged over everything else."""
    return _over_seeds(values, mean_slope)


def _over_seeds(values: "xr.DataArray", statistic: Callable[..., float]) -> Interval:
    ordered = values.transpose(..., "width", "seed")
    return mean_interval(jackknife(partial(statistic, widths=ordered["width"].values), ordered.values))


def _moments(history: "xr.Dataset", when: str) -> "xr.Dataset":
    return history if when == "initial" else trained(history)


_TIMES = {"initial": ("start", "at the start"), "trained": ("trained", "after lazy training")}


def _start(history: "xr.Dataset") -> Iterator[Claim]:
    for when, (name, words) in _TIMES.items():
        data = _moments(history, when)
        of = {"kernel": "feature kernel", "distances": "squared distances of fine-class means"}
        for each, text in of.items():
            values = data[f"{when}_{each}_deviation"]
            statement = f"One network's {text} {words} deviate from infinite width by width^-1/2: exponent, squared."
            spec = ClaimSpec(f"{name}/{each}", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
            yield spec.judge(_exponent(values.sel(feature_predictor="limit")))
            other = _exponent(values.sel(feature_predictor="activation"))
            yield spec.control("activation", "The kernel of the other activation (erf, ReLU).", other)
        wrong = {
            "within_between_ratio": ("trace-ratio", "raw", "The ratio of the raw data."),
            "ratio": ("q", "equidistant", "q = 1: fine classes equidistant, whatever their label."),
        }
        for quantity, (short, suffix, text) in wrong.items():
            values = data[f"{when}_{quantity}"]
            false = history["raw_within_between_ratio"] if suffix == "raw" else 1.0
            statement = f"One network's {short} {words} deviates from the kernel's by width^-1/2: exponent, squared."
            spec = ClaimSpec(f"{name}/{short}", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
            yield spec.judge(_exponent((values / _limit(history, quantity) - 1) ** 2))
            yield spec.control(suffix, text, _exponent((values / false - 1) ** 2))


def _limit(history: "xr.Dataset", quantity: str) -> "xr.DataArray":
    return history[f"limit_{quantity}"].sel(feature_predictor="limit")


def _biases(history: "xr.Dataset") -> Iterator[Claim]:
    for when, (name, words) in _TIMES.items():
        values = _moments(history, when)[f"{when}_nc1"]
        statement = f"The mean of NC1 over networks {words} exceeds the kernel's NC1 by 1/width: exponent."
        spec = ClaimSpec(f"{name}/nc1-bias", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
        yield spec.judge(_exponent(values / _limit(history, "nc1") - 1))
        # Networks lie below the raw data: the control asks for the exponent alone, the claim for the sign as well.
        off = _over_seeds(values / history["raw_nc1"] - 1, magnitude_slope)
        yield spec.control("raw", "The NC1 of the raw data; magnitude of the mean, of either sign.", off)


def _tangent(history: "xr.Dataset") -> Iterator[Claim]:
    statement = "The empirical tangent kernel at the start deviates from the limit by width^-1/2: exponent, squared."
    spec = ClaimSpec("start/ntk", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
    values = history["ntk_deviation"]
    yield spec.judge(_exponent(values.sel(ntk_predictor="limit")))
    wrong = {
        "activation": "The kernel of the other activation.",
        "derivative": "A dot product of the samples' scales where E phi' phi' has their outer product.",
    }
    for name, text in wrong.items():
        yield spec.control(name, text, _exponent(values.sel(ntk_predictor=name)))
    late = trained(history)
    statement = "Lazy training moves the tangent kernel by 1/width: exponent of the root mean square relative change."
    spec = ClaimSpec("lazy/ntk-change", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
    yield spec.judge(_halved(_exponent(late["ntk_change"])))
    text = "The features of the same networks, which move by width^-1/2."
    yield spec.control("features", text, _halved(_exponent(late["feature_change"])), predicted=-0.5)


def _tangent_biases(history: "xr.Dataset") -> Iterator[Claim]:
    """NC1 of the empirical tangent kernel: its bias, as squared deviations of so large a bias fall faster.

    The statistic was chosen on seeds 5000 to 5031 of widths 32 to 512, where squared deviations fell by
    width^-1.7 to width^-1.9.
    """
    limit = history["points_ntk_nc1"]
    wrong = {
        "activation": "The tangent kernel of the other activation",
        "derivative": "The tangent kernel with the wrong derivative",
    }
    for when, (name, words) in _TIMES.items():
        values = _moments(history, when)[f"{when}_ntk_nc1"]
        statement = (
            f"The mean of NC1 of the empirical tangent kernel over networks {words} exceeds that of the limit by "
            "1/width: exponent of the mean over conditions of the relative bias."
        )
        spec = ClaimSpec(f"{name}/ntk-nc1", SOURCE, statement, -1.0, SLOPE)
        # Over conditions first: seeds leave the bias of a single one at the largest width of either sign.
        bias = values / limit.sel(ntk_predictor="limit") - 1
        yield spec.judge(_over_seeds(bias.mean("condition", skipna=False), mean_slope))
        for other, text in wrong.items():
            off = values / limit.sel(ntk_predictor=other) - 1
            yield spec.control(other, f"{text}; magnitudes of the biases.", _over_seeds(off, mean_magnitude_slope))


def _halved(interval: Interval) -> Interval:
    """The exponent of a square, as that of its root."""
    middle, low, high = (each / 2 for each in (interval.measured, interval.low, interval.high))
    return Interval(middle, low, high, interval.num_seeds, interval.num_nonfinite, interval.method)


def _outputs(history: "xr.Dataset") -> Iterator[Claim]:
    values = trained(history)["output_deviation"].isel(step=-1)
    statement = (
        "Outputs after lazy training, on train and other samples, deviate by width^-1/2 from what the tangent kernel "
        "predicts from a network's own start: exponent, squared."
    )
    spec = ClaimSpec("lazy/outputs", SOURCE, f"{statement} {_ALL}", -1.0, SLOPE)
    yield spec.judge(_exponent(values.sel(output_predictor="limit")))
    wrong = {
        "readout": "The NNGP in its place: only the readout trained.",
        "derivative": "The wrong derivative kernel.",
    }
    for name, text in wrong.items():
        yield spec.control(name, text, _exponent(values.sel(output_predictor=name)))


def extrapolated(values: "xr.DataArray") -> np.ndarray:
    """A of a + b/width + c/width^2 fitted to every seed, weighted by the width; one number a seed."""
    at = values["width"].values.astype(np.float64)
    powers = np.stack([np.ones_like(at), 1 / at, 1 / at**2], axis=1)
    rows = values.transpose("seed", "width").values
    found = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        if np.isfinite(row).all():
            found[index] = np.linalg.lstsq(powers * at[:, None] ** 0.5, row * at**0.5, rcond=None)[0][0]
    return found


def _extrapolated(history: "xr.Dataset") -> Iterator[Claim]:
    for name in history["condition"].values.tolist():
        one = history.sel(condition=name).isel(layer=-1)
        limit, raw = float(_limit(one, "nc1")), float(one["raw_nc1"])
        found = extrapolated(one["initial_nc1"])
        statement = (
            f"Relative NC1 (over that of the raw data) of networks, {name}, last layer, continued to infinite width, "
            f"over the kernel's, {limit / raw:.4g}."
        )
        spec = ClaimSpec(f"limit/nc1/{name}", SOURCE, statement, 1.0, LIMIT)
        yield spec.judge(mean_interval(found / limit))
        yield spec.control("raw", "Over 1, the relative NC1 of the raw data themselves.", mean_interval(found / raw))
