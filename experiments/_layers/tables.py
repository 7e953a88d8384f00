"""What the layer experiment prints beside its claims: the measured numbers of every condition."""

from typing import TYPE_CHECKING, Any

import numpy as np

from _layers import scores

if TYPE_CHECKING:
    import xarray as xr


def table(history: "xr.Dataset") -> str:
    """Numbers of every condition as aligned text: mean over seeds and range, one column a condition."""
    columns = {str(name): _column(history, str(name)) for name in history["condition"].values}
    names = list(next(iter(columns.values())))
    width = 1 + max(map(len, names))
    cells = {name: [column[name] for column in columns.values()] for name in names}
    widths = [2 + max(len(title), *(len(cells[name][at]) for name in names)) for at, title in enumerate(columns)]
    head = " " * width + "".join(title.rjust(size) for title, size in zip(columns, widths, strict=True))
    lines = [
        name.ljust(width) + "".join(cell.rjust(size) for cell, size in zip(cells[name], widths, strict=True))
        for name in names
    ]
    return "\n".join([head, *lines])


def reading(history: "xr.Dataset") -> str:
    """What the linear-scale statement says and does not say, in words with this depth's numbers."""
    depth = history.sizes["layer"] - 1
    # Of image networks, the first measured activations stand in the input's place.
    first = 1 if history.attrs["kind"] == "images" else 0
    if depth == first:
        return "Reading of A1: a single layer has no shallower half, and A1 is not passed."
    half, factor = (depth + 1) // 2, scores.largest_geometric_factor(depth, first=first)
    even = (half - first) / (depth - first) if depth > first else float("nan")
    return (
        f"Reading of A1: on a linear scale every geometric decay puts most of its fall into its first layers. With "
        f"{depth} layers, the fall counted from layer {first}, any decay by a factor below {factor:.3f} a layer has "
        f"S_h >= {scores.SHALLOW_SHARE:g} at h = {half}, so A1 and an even fall of the logarithm (law of data "
        f"separation) describe one curve; the log-scale share of an even fall is {even:.2f}."
    )


def shortfalls(history: "xr.Dataset") -> str:
    """Which part of which criterion the first condition's seeds fail, and what is not judged; empty if nothing."""
    condition = str(history["condition"].values[0])
    layers, untrained = (scores.layers_at(history, condition, trained=trained) for trained in (True, False))
    of_images = history.attrs["kind"] == "images"
    found = {
        "A0": scores.emerges(layers, untrained),
        "A1": scores.shallow_from_first(layers) if of_images else scores.shallow(layers),
        "A2": scores.separates(layers, norms=scores.counts_norms(condition)),
    }
    lines = _unjudged([str(each) for each in history["condition"].values], of_images=of_images)
    for name, parts in found.items():
        for part, passed in parts.items():
            seeds = history["seed"].values[~passed].tolist()
            if seeds:
                lines.append(f"{name} on {condition}: {part} fails with seeds {seeds}")
                if part.startswith("rank(m"):
                    lines[-1] += " (layers with equal mismatch, such as 0, weaken a rank correlation)"
    return "\n".join(lines)


def _unjudged(present: list[str], *, of_images: bool) -> list[str]:
    """Why A3 has no verdict, if it has none."""
    if of_images:
        sets = [each for each in present if not each.endswith("_no_decay")]
        return [] if len(sets) > 1 else ["A3 is not judged: it compares at least two image sets"]
    if "gmm_easy" in present and {"digits_noise20", "digits_noise50"} & set(present):
        return []
    return ["A3 is not judged: it needs the conditions gmm_easy and digits_noise20 or digits_noise50"]


def _spectra(last: "xr.Dataset", depth: int) -> dict[str, str]:
    """Effective rank and variability collapse index of three layers; nothing of a record without them."""
    titles = {"effective_rank": "effective rank", "variability_collapse_index": "VCI"}
    return {
        f"{title}, layer {layer}": _shown(last[name].sel(layer=layer).values)
        for name, title in titles.items()
        if name in last
        for layer in (0, 1, depth)
    }


def _directions(last: "xr.Dataset", depth: int) -> dict[str, str]:
    """Directions of the class means; nothing of what a record lacks, and NC5 only with out-of-distribution images."""
    titles = {
        "hyperspherical_excess": "uniformity excess",
        "class_alignment_mean": "class alignment, mean",
        "class_alignment_min": "class alignment, least",
        "ood_orthogonality": "NC5",
    }
    return {
        f"{title}, layer {layer}": _shown(last[name].sel(layer=layer).values)
        for name, title in titles.items()
        if name in last
        # Only the last layer is read by a classifier; the excess of the inputs is one number for all conditions.
        for layer in ((0, depth) if name == "ood_orthogonality" else (depth,))
    }


def _column(history: "xr.Dataset", condition: str) -> dict[str, str]:
    one = history.sel(condition=condition)
    last = one.sel(epoch=int(one["num_epochs"]))
    layers = scores.layers_at(history, condition)
    untrained = scores.layers_at(history, condition, trained=False)
    of_images = history.attrs["kind"] == "images"
    slope, even = scores.line_fit(np.log(layers.ratio))
    found: dict[str, Any] = {
        "epochs": str(int(one["num_epochs"])),
        "train accuracy": _shown(last["accuracy"].sel(split="train").values),
        "test accuracy": _shown(last["accuracy"].sel(split="test").values),
    }
    for layer in range(layers.depth + 1):
        found[f"NC1 (q), layer {layer}"] = _shown(layers.nc1[:, layer])
    of_train = last.sel(split="train")
    found |= _spectra(of_train, layers.depth) | _directions(of_train, layers.depth)
    found |= {
        # Image networks are judged from their first layer on.
        "S_h of q": _shown(scores.shallow_share(layers.nc1, first=int(of_images))),
        "S_h of r": _shown(scores.shallow_share(layers.ratio, first=int(of_images))),
        "S_h of q, hidden layers": _shown(scores.shallow_share(layers.nc1, first=1)),
        "log-scale share of q": _shown(scores.shallow_share(layers.nc1, log=True)),
        "factor on r a layer": _shown(np.exp(slope)),
        "R^2 of log r": _shown(even),
        "R^2 of log q": _shown(scores.line_fit(np.log(layers.nc1))[1]),
        "r_L/r_1": _shown(layers.ratio[:, -1] / layers.ratio[:, 1]),
        "rank(r, l)": _shown(scores.rank_with_depth(layers.ratio)),
        "rank(m, l)": _shown(scores.rank_with_depth(layers.mismatch)),
        "rank(c, l)": _shown(scores.rank_with_depth(layers.angles)),
        "c_1": _shown(layers.angles[:, 1]),
        "c_L": _shown(layers.angles[:, -1]),
        "v_L/v_1": _shown(layers.norms[:, -1] / layers.norms[:, 1]),
        "m_L": _shown(layers.mismatch[:, -1]),
        "effective depth l*": _shown(scores.effective_depth(layers.mismatch)),
        "seeds that pass A0": _count(scores.emerges(layers, untrained)),
        "seeds that pass A1": _count(scores.shallow_from_first(layers) if of_images else scores.shallow(layers)),
        "seeds that pass A2": _count(scores.separates(layers, norms=scores.counts_norms(condition))),
    }
    return found


def _shown(values: Any) -> str:
    """Mean and range of the finite values; "-" without any."""
    finite = np.asarray(values)[np.isfinite(values)]
    if not finite.size:
        return "-"
    low, high = finite.min(), finite.max()
    spread = "" if low == high else f" {low:.3g}..{high:.3g}"
    return f"{finite.mean():.3g}{spread}"


def _count(parts: dict[str, np.ndarray]) -> str:
    passed = scores.every(parts)
    return f"{int(passed.sum())} of {passed.size}"
