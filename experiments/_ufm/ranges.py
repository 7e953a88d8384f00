"""Ranges of measurements over conditions and seeds, with the seeds that failed counted."""

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from nctheory.claims import Interval, range_interval


def only(data: xr.Dataset, keep: np.ndarray) -> xr.Dataset:
    """Conditions where `keep` is true."""
    return data.isel(condition=np.flatnonzero(keep))


def num_lost(data: xr.Dataset) -> int:
    """Seeds that became non-finite in at least one condition."""
    return int((data.finite != 1).any("condition").sum())


def over_conditions(values: np.ndarray, data: xr.Dataset, which: str = "max") -> Interval:
    """Range over conditions of a number that sums up the seeds; NaN, or no condition, leaves the claim open."""
    values = np.asarray(values, dtype=float)
    method = f"best start of each condition; {which} and range over conditions"
    measured = low = high = np.nan
    if values.size and not np.isnan(values).any():
        measured, low, high = getattr(np, which)(values), values.min(), values.max()
    return Interval(measured, low, high, data.sizes["seed"], num_lost(data), method)


def over_starts(values: np.ndarray, there: np.ndarray, data: xr.Dataset, which: str = "max") -> Interval:
    """Range over the starts (condition, seed) that `there` selects; every condition has to have one."""
    chosen = np.asarray(values, dtype=float)[there]
    method = f"every start with the least loss of its condition; {which} and range over them"
    measured = low = high = np.nan
    if there.any(axis=1).all() and chosen.size and not np.isnan(chosen).any():
        measured, low, high = getattr(np, which)(chosen), chosen.min(), chosen.max()
    return Interval(measured, low, high, data.sizes["seed"], num_lost(data), method)


def over_seeds(values: xr.DataArray, data: xr.Dataset, which: str = "max") -> Interval:
    """Largest (smallest) value over conditions in every seed, and its range over seeds."""
    values = values.where(data.finite == 1)
    worst = getattr(values, which)("condition", skipna=False).values
    return range_interval(worst, which=which)


def bracket(before: Any, beyond: Any, data: xr.Dataset, method: str, *, lost: int | None = None) -> Interval:
    """Threshold between the largest level seen before it and the smallest seen beyond it.

    Args:
        before: levels on the lower side.
        beyond: levels on the upper side.
        data: the measurements, for their seeds.
        method: how the sides were told apart.
        lost: seeds that could not tell; by default those that became non-finite.

    Returns:
        The two levels and their middle; NaN, which leaves a claim open, if a side is empty or the sides overlap.
    """
    measured = low = high = np.nan
    if len(before) and len(beyond) and max(before) <= min(beyond):
        low, high = max(before), min(beyond)
        measured = (low + high) / 2
    return Interval(measured, low, high, data.sizes["seed"], num_lost(data) if lost is None else lost, method)


def in_units(interval: Interval, unit: float) -> Interval:
    """The same interval divided by a positive number."""
    low, high, measured = (value / unit for value in (interval.low, interval.high, interval.measured))
    return replace(interval, measured=measured, low=low, high=high)
