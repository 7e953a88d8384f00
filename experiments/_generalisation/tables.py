"""The measured numbers as aligned text, beside the verdicts."""

import numpy as np
import xarray as xr
from _shared.text import shown

from _generalisation import numbers as of

_COLLAPSE = (
    ("fit_epoch", "t_int (epochs; undefined: never fitted)"),
    ("test_accuracy", "test accuracy"),
    ("q_train_fit", "q_train at t_int"),
    ("q_train", "q_train at T"),
    ("q_test_fit", "q_test at t_int"),
    ("q_test", "q_test at T"),
    ("q_test_rebound", "q_test at T over its least value after t_int"),
    ("gap_fit", "gap q_test/q_train at t_int"),
    ("gap", "gap at T"),
    ("r_train", "r_train at T"),
    ("strong", "S at T (strong test collapse: 0)"),
    ("weak", "W at T (weak test collapse: 0)"),
    ("near_test", "test images near a train class mean"),
    ("near_train", "train images near a train class mean"),
)
_TRANSFER = (
    ("fit_epoch", "t_int (epochs; undefined: never fitted)"),
    ("coarse_fit", "super-class test accuracy at t_int"),
    ("coarse", "super-class test accuracy at T"),
    ("q_train_fit", "q_train at t_int"),
    ("q_train", "q_train at T"),
    ("gap", "gap q_test/q_train at T"),
    ("with_time", "rank correlation epoch, ridge probe"),
    ("with_q", "rank correlation q_train, ridge probe"),
)
_WIDTH, _COLUMN = 47, 38


def _row(label: str, *cells: str) -> str:
    return f"{label:<{_WIDTH}}" + "".join(f"{cell:<{_COLUMN}}" for cell in cells).rstrip()


def _cell(values: xr.DataArray) -> str:
    finite = values.values[np.isfinite(values.values)]
    if finite.size == 0:
        return "undefined"
    digits = 3 if np.abs(finite).max() >= 0.1 else 5
    lost = values.size - finite.size
    return shown(values.values, digits=digits) + (f", {lost} undefined" if lost else "")


def _headings(data: xr.Dataset) -> list[str]:
    return [{"decay": "weight decay", "no_decay": "no weight decay"}[name] for name in data["condition"].values]


def _by_condition(numbers: xr.Dataset, names: tuple[tuple[str, str], ...]) -> list[str]:
    conditions = numbers["condition"].values.tolist()
    return [_row(text, *(_cell(numbers[name].sel(condition=each)) for each in conditions)) for name, text in names]


def collapse_table(data: xr.Dataset) -> str:
    """Train against test, then the cascade layer by layer; means over seeds with their 95 % intervals."""
    header = _row("Part collapse: mean over seeds [95 %]", *_headings(data))
    numbers = of.collapse_numbers(data)
    lines = [header, *_by_condition(numbers, _COLLAPSE)]
    # Opposite directions, which Hui et al. are said to report, would show here; nothing is judged by it.
    rising = (numbers["q_test_change"] > 1).sum("seed")
    cells = [f"{int(rising.sel(condition=each))} of {data.sizes['seed']} seeds" for each in rising["condition"].values]
    lines.append(_row("q_test higher at T than at t_int", *cells))
    cascade = of.cascade_numbers(data)
    for name, text in (
        ("remaining", "r_l(T)/r_l(0), layers 1, 2, ..."),
        ("halving_epoch", "first epoch with r_l <= r_l(0)/2, median"),
        ("test_over_train", "r_test/r_train at T, layers 1, 2, ..."),
    ):
        over = cascade[name].median("seed") if name == "halving_epoch" else cascade[name].mean("seed")
        cells = [" ".join(f"{value:.3g}" for value in over.sel(condition=c).values) for c in over["condition"].values]
        lines.append(_row(text, *cells))
    return "\n".join(lines)


def transfer_table(data: xr.Dataset) -> str:
    """Super-classes, then every probe of the original classes: peak after t_int and end."""
    header = _row("Part transfer: mean over seeds [95 %]", *_headings(data))
    numbers = of.transfer_numbers(data)
    lines = [header, *_by_condition(numbers, _TRANSFER)]
    for probe in numbers["probe"].values.tolist():
        one = numbers.sel(probe=probe)
        for name, text in (("initial", "untrained"), ("peak", "peak after t_int"), ("final", "at T")):
            lines += _by_condition(one, ((name, f"probe {probe}, {text}"),))
    if "layer_probe_accuracy" not in data:
        return "\n".join(lines)
    layers = data["layer_probe_accuracy"]
    for layer in (1, layers.sizes["layer"] // 2):
        one = layers.isel(layer=layer).to_dataset(name="value")
        lines += _by_condition(one, (("value", f"probe ridge on layer {layer}, at T"),))
    return "\n".join(lines)


def samples_table(data: xr.Dataset) -> str:
    """End values against the number of train images."""
    numbers = of.sample_numbers(data)
    lines = [_row("Part samples: mean over seeds [95 %]", "q_train at T", "q_test at T")]
    for size in data["size"].values.tolist():
        cells = [_cell(numbers[name].sel(size=size)) for name in ("q_train", "q_test")]
        lines.append(_row(f"{size} train images", *cells))
    slopes = [_cell(numbers[name]) for name in ("slope_train", "slope_test")]
    return "\n".join([*lines, _row("log-log slope", *slopes)])


TABLES = {"collapse": collapse_table, "transfer": transfer_table, "samples": samples_table}
"""How each part is shown."""
