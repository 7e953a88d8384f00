"""The numbers that claims, table and figures share, from the stored record of each part.

One value a condition and seed. q is NC1, r the trace ratio, both of the last hidden layer unless a layer is named; T is
the last epoch, t_int the first recorded epoch with train accuracy >= 0.99. A run that never gets there has NaN in all
that refers to t_int.
"""

import numpy as np
import xarray as xr
from _shared.ranks import rank_correlation

FITTED = 0.99


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; NaN for fewer than three entries, where one is not finite, or if all of one side are equal."""
    return float(rank_correlation(first, second)[0]) if len(first) >= 3 else float("nan")


def last_layer(data: xr.Dataset) -> xr.Dataset:
    """Everything at the last hidden layer."""
    return data.isel(layer=-1)


def hidden(data: xr.Dataset) -> xr.Dataset:
    """Everything at the hidden layers 1, ..., L."""
    return data.isel(layer=slice(1, None))


def fit_index(data: xr.Dataset) -> xr.DataArray:
    """Index of the first record with train accuracy >= 0.99; -1 where no record has it."""
    fitted = data["accuracy"].sel(split="train", drop=True) >= FITTED
    return xr.where(fitted.any("epoch"), fitted.argmax("epoch"), -1)


def at_fit(values: xr.DataArray, index: xr.DataArray) -> xr.DataArray:
    """Values at t_int; NaN where it does not exist."""
    return values.isel(epoch=index.clip(0)).drop_vars("epoch").where(index >= 0)


def fit_epoch(data: xr.Dataset) -> xr.DataArray:
    """Epoch t_int."""
    epochs = data["epoch"].astype(float).broadcast_like(data["accuracy"].isel(split=0, drop=True))
    return at_fit(epochs, fit_index(data))


def gap(data: xr.Dataset) -> xr.DataArray:
    """Ratio g = q_test / q_train of the last hidden layer."""
    q = last_layer(data)["nc1"]
    return q.sel(split="test", drop=True) / q.sel(split="train", drop=True)


def collapse_numbers(data: xr.Dataset) -> xr.Dataset:
    """Collapse on train against collapse on test."""
    index, final = fit_index(data), last_layer(data).isel(epoch=-1, drop=True)
    q = last_layer(data)["nc1"]
    q_fit = at_fit(q, index)
    opened = gap(data)
    after = q.sel(split="test", drop=True).where(data["epoch"] >= fit_epoch(data))
    test, train = ({"split": side} for side in ("test", "train"))
    return xr.Dataset(
        {
            "fit_epoch": fit_epoch(data),
            "train_accuracy": data["accuracy"].isel(epoch=-1, drop=True).sel(train, drop=True),
            "test_accuracy": data["accuracy"].isel(epoch=-1, drop=True).sel(test, drop=True),
            "q_train_fit": q_fit.sel(train, drop=True),
            "q_train": final["nc1"].sel(train, drop=True),
            "q_test_fit": q_fit.sel(test, drop=True),
            "q_test": final["nc1"].sel(test, drop=True),
            "q_train_change": final["nc1"].sel(train, drop=True) / q_fit.sel(train, drop=True),
            "q_test_change": final["nc1"].sel(test, drop=True) / q_fit.sel(test, drop=True),
            "q_test_rebound": final["nc1"].sel(test, drop=True) / after.min("epoch"),
            "gap_fit": at_fit(opened, index),
            "gap": opened.isel(epoch=-1, drop=True),
            "gap_growth": opened.isel(epoch=-1, drop=True) / at_fit(opened, index),
            "r_train": final["within_between_ratio"].sel(train, drop=True),
            "strong": final["strong"].sel(test, drop=True),
            "weak": final["weak"].sel(test, drop=True),
            "weak_over_train": final["weak"].sel(test, drop=True) / final["within_between_ratio"].sel(train, drop=True),
            "near_test": final["near_share"].sel(test, drop=True),
            "near_train": final["near_share"].sel(train, drop=True),
        }
    )


def collapse_passes(numbers: xr.Dataset) -> xr.DataArray:
    """Which runs collapse on train and not on test: all of the fact sheet's conditions at once."""
    return (
        (numbers["train_accuracy"] == 1)
        & (numbers["q_train_change"] <= 0.1)
        & (numbers["gap"] >= 4)
        & (numbers["gap_growth"] >= 2)
        & (numbers["weak_over_train"] >= 2)
        & (numbers["q_test_change"] >= 0.1)
    )


def halving_epochs(data: xr.Dataset, share: float = 0.5) -> xr.DataArray:
    """tau_l: first recorded epoch at which r of a hidden layer is at most a share of its initial value; inf if none."""
    r = hidden(data)["within_between_ratio"].sel(split="train", drop=True)
    below = r <= share * r.isel(epoch=0, drop=True)
    return xr.where(below.any("epoch"), data["epoch"].values[below.argmax("epoch")], np.inf)


def _over_layers(values: xr.DataArray) -> xr.DataArray:
    """Rank correlation of a quantity with the depth of the hidden layer."""
    return xr.apply_ufunc(
        lambda row: spearman(np.arange(row.size), row), values, input_core_dims=[["layer"]], vectorize=True
    )


def cascade_numbers(data: xr.Dataset) -> xr.Dataset:
    """Collapse of the hidden layers, at the first and the last record."""
    r = hidden(data)["within_between_ratio"]
    train = r.sel(split="train", drop=True)
    ratio = r.sel(split="test", drop=True) / train
    remaining = train.isel(epoch=-1, drop=True) / train.isel(epoch=0, drop=True)
    collapsed, tau = remaining <= 0.1, halving_epochs(data)
    # Layers that never halve count as equally late.
    waits = tau.where(np.isfinite(tau), float(data["epoch"].max()) + 1)
    return xr.Dataset(
        {
            "depth_r": _over_layers(train.isel(epoch=-1, drop=True)),
            "depth_r_initial": _over_layers(train.isel(epoch=0, drop=True)),
            "depth_test_over_train": _over_layers(ratio.isel(epoch=-1, drop=True)),
            "collapsed_share": collapsed.mean("layer"),
            "collapsed_inside": collapsed.isel(layer=slice(None, -1)).any("layer"),
            "last_first": (waits.diff("layer") <= 0).all("layer"),
            "remaining": remaining,
            "halving_epoch": tau,
            "test_over_train": ratio.isel(epoch=-1, drop=True),
        }
    )


def cascade_passes(numbers: xr.Dataset) -> xr.DataArray:
    """Which runs show the cascade: all of the fact sheet's conditions at once."""
    return (
        (numbers["depth_r"] <= -0.9)
        & (numbers["collapsed_share"] >= 0.5)
        & numbers["collapsed_inside"]
        & numbers["last_first"]
        & (numbers["depth_test_over_train"] >= 0.9)
    )


def transfer_numbers(data: xr.Dataset) -> xr.Dataset:
    """What probes of the original classes lose after t_int; `peak`, `final` and `drop` for every probe."""
    index, probes = fit_index(data), data["probe_accuracy"]
    later = probes.where(data["epoch"] >= fit_epoch(data))
    peak, final = later.max("epoch"), probes.isel(epoch=-1, drop=True)
    accuracy = data["accuracy"].sel(split="test", drop=True)
    q = last_layer(data)["nc1"].sel(split="train", drop=True)
    ridge = later.sel(probe="ridge", drop=True)
    epochs = data["epoch"].astype(float).broadcast_like(ridge)
    return xr.Dataset(
        {
            "fit_epoch": fit_epoch(data),
            "peak": peak,
            "final": final,
            "drop": peak - final,
            "coarse_fit": at_fit(accuracy, index),
            "coarse": accuracy.isel(epoch=-1, drop=True),
            "coarse_change": accuracy.isel(epoch=-1, drop=True) - at_fit(accuracy, index),
            "with_time": _over_epochs(epochs, ridge),
            "with_q": _over_epochs(q, ridge),
            "q_train_fit": at_fit(q, index),
            "q_train": q.isel(epoch=-1, drop=True),
            "gap": gap(data).isel(epoch=-1, drop=True),
            "initial": probes.isel(epoch=0, drop=True),
        }
    )


def _over_epochs(first: xr.DataArray, accuracy: xr.DataArray) -> xr.DataArray:
    """Rank correlation over the records from t_int on, those where the accuracy is not NaN."""

    def one(x: np.ndarray, y: np.ndarray) -> float:
        known = np.isfinite(y)
        return spearman(x[known], y[known])

    return xr.apply_ufunc(one, first, accuracy, input_core_dims=[["epoch"], ["epoch"]], vectorize=True)


def transfer_passes(numbers: xr.Dataset) -> xr.DataArray:
    """Which runs transfer worse the longer they train: all of the fact sheet's conditions at once."""
    return (
        (numbers["drop"].sel(probe="ridge", drop=True) >= 0.2)
        & (numbers["coarse_change"] >= -0.01)
        & (numbers["with_time"] <= -0.6)
        & (numbers["with_q"] >= 0.5)
    )


def sample_numbers(data: xr.Dataset) -> xr.Dataset:
    """Collapse at the end of training against the number of train samples n; slopes are of log q against log n."""
    q = last_layer(data)["nc1"]
    final, first = q.sel(end="final", drop=True), q.sel(end="initial", drop=True)
    log_n = np.log(data["size"].values)

    def slope(values: xr.DataArray) -> xr.DataArray:
        # One polynomial a seed; NaN where a size is not finite.
        return xr.apply_ufunc(
            lambda row: np.polyfit(log_n, row, 1)[0] if np.isfinite(row).all() else np.nan,
            np.log(values),
            input_core_dims=[["size"]],
            vectorize=True,
        )

    test, train = ({"split": side} for side in ("test", "train"))
    return xr.Dataset(
        {
            "q_train": final.sel(train, drop=True),
            "q_test": final.sel(test, drop=True),
            "least_gap": (final.sel(test, drop=True) / final.sel(train, drop=True)).min("size", skipna=False),
            "least_gap_initial": (first.sel(test, drop=True) / first.sel(train, drop=True)).min("size", skipna=False),
            "slope_test": slope(final.sel(test, drop=True)),
            "slope_train": slope(final.sel(train, drop=True)),
            "slope_test_initial": slope(first.sel(test, drop=True)),
            "q_test_last": final.sel(test, drop=True).isel(size=-1, drop=True),
            "q_test_last_initial": first.sel(test, drop=True).isel(size=-1, drop=True),
        }
    )


def sample_passes(least_gap: xr.DataArray, slope: xr.DataArray, last: xr.DataArray) -> xr.DataArray:
    """Which seeds keep a gap at every n while q falls with n: all of the fact sheet's conditions at once."""
    return (least_gap >= 3) & (slope >= -0.9) & (slope <= -0.3) & (last > 0.03)


def image_collapse_passes(numbers: xr.Dataset) -> xr.DataArray:
    """As `collapse_passes`, by the fact sheet's conditions for image networks."""
    return (
        (numbers["train_accuracy"] >= 0.999)
        & (numbers["q_train_change"] <= 0.1)
        & (numbers["gap"] >= 5)
        & (numbers["gap_growth"] > 1)
    )


def image_cascade_passes(numbers: xr.Dataset) -> xr.DataArray:
    """As `cascade_passes`, with the fact sheet's rank correlations for image networks."""
    return (
        (numbers["depth_r"] <= -0.8)
        & (numbers["collapsed_share"] >= 0.5)
        & numbers["collapsed_inside"]
        & numbers["last_first"]
        & (numbers["depth_test_over_train"] >= 0.8)
    )


def image_transfer_passes(numbers: xr.Dataset) -> xr.DataArray:
    """As `transfer_passes`, by the fact sheet's conditions for image networks."""
    return (
        (numbers["drop"].sel(probe="ridge", drop=True) >= 0.05)
        & (numbers["coarse_change"] >= -0.01)
        & (numbers["with_q"] >= 0.5)
    )
