"""Collapse by kernel and by network as aligned text, from the stored record alone."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from _kernels.claims import extrapolated, has_tangent_collapse, tangent_claims

if TYPE_CHECKING:
    import xarray as xr

_COLUMNS = {"nc1": "NC1", "within_between_ratio": "W/B", "cdnv": "cdnv", "ratio": "q fine"}
_KERNELS = {"limit": "NNGP", "limit_ntk": "NTK"}


def summary(history: "xr.Dataset") -> str:
    """Collapse of data and kernels, then NC1 of networks beside it; what an older record lacks is named."""
    parts = [_limits(history), _networks(history)]
    if not has_tangent_collapse(history):
        names = ", ".join(tangent_claims())
        parts.append(f"This record holds no collapse of tangent kernels: claims not judged: {names}.")
    return "\n\n".join(parts)


def _limits(history: "xr.Dataset") -> str:
    head = "".join(f"{text:>9}" for text in _COLUMNS.values())
    lines = [f"{'infinite width':<14}{'layer':>6}{'of':>6}{head}{'NC1/data':>10}"]
    for name in history["condition"].values.tolist():
        one = history.sel(condition=name)
        raw = float(one["raw_nc1"])
        lines.append(_limit_row(name, "", "data", [float(one[f"raw_{each}"]) for each in _COLUMNS], 1.0))
        for layer in one["layer"].values.tolist():
            at = one.sel(layer=layer, feature_predictor="limit")
            for prefix, words in _KERNELS.items():
                if f"{prefix}_nc1" in at:
                    numbers = [float(at[f"{prefix}_{each}"]) for each in _COLUMNS]
                    lines.append(_limit_row(name, str(layer), words, numbers, numbers[0] / raw))
    return "\n".join(lines)


def _limit_row(name: str, layer: str, words: str, numbers: list[float], relative: float) -> str:
    return f"{name:<14}{layer:>6}{words:>6}{''.join(f'{each:>9.4f}' for each in numbers)}{relative:>10.3f}"


def _networks(history: "xr.Dataset") -> str:
    widest = f"width {int(history['width'][-1])}"
    lines = [f"{'NC1':<14}{'layer':>6}{'of':>6}{'kernel':>9}  {widest:<18}networks at infinite width"]
    for name in history["condition"].values.tolist():
        for layer, words, limit, values in _compared(history.sel(condition=name)):
            last, limitless = _shown(values.isel(width=-1).values), _shown(extrapolated(values))
            lines.append(f"{name:<14}{layer:>6}{words:>6}{limit:>9.4f}  {last:<18}{limitless}")
    if has_tangent_collapse(history):
        lines.append("NTK: of the output, at the fewer samples at which the empirical tangent kernel is measured.")
    return "\n".join(lines)


def _compared(one: "xr.Dataset") -> "Iterator[tuple[str, str, float, xr.DataArray]]":
    """Layer, kernel, its NC1 and that of the networks."""
    for layer in one["layer"].values.tolist():
        at = one.sel(layer=layer)
        yield str(layer), "NNGP", float(at["limit_nc1"].sel(feature_predictor="limit")), at["initial_nc1"]
    if has_tangent_collapse(one):
        yield "", "NTK", float(one["points_ntk_nc1"].sel(ntk_predictor="limit")), one["initial_ntk_nc1"]


def _shown(samples: np.ndarray) -> str:
    finite = samples[np.isfinite(samples)]
    error = finite.std(ddof=1) / len(finite) ** 0.5 if len(finite) > 1 else float("nan")
    return f"{finite.mean() if len(finite) else float('nan'):.4f} +- {error:.4f}"
