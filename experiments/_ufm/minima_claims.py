"""The claims about minima from random starts, fixed before any run, and their verdicts from the stored arrays."""

import numpy as np
import xarray as xr

from _ufm.conditions import CRITICAL_RATIO, WRONG_RATIO
from _ufm.minima import is_at_minimum, is_caught
from _ufm.ranges import bracket, in_units, only, over_conditions
from nctheory.claims import AtLeast, AtMost, Claim, ClaimSpec, Covers

DERIVED = "derived here (theory.mse_ufm); setting of Dang et al. (2023)"
CE = "Zhu et al. (2021), balanced classes; values derived here (theory.ce_ufm)"
CONVEX = "derived here (theory.ce_convex)"
DEEP = "Garrod and Keating (2024), Theorem 1; against the abstract of Dang et al. (2023)"
MINORITY = "derived here (theory.minority_collapse); phenomenon: Fang et al. (2021)"
# Merged rows agree to the solver's tolerance; below the threshold they part like its square root.
MERGED, ALIVE = 1e-4, 1e-4

CLAIMS = {
    "below": ClaimSpec(
        "MSE/never-below",
        DERIVED,
        "No start ends below the predicted global minimum: least loss minus prediction, worst condition",
        0.0,
        AtLeast(-1e-10),
    ),
    "reached": ClaimSpec(
        "MSE/minimum-reached",
        DERIVED,
        "The best start of every condition reaches the predicted minimum: relative excess, worst condition",
        0.0,
        AtMost(1e-8),
    ),
    "gof": ClaimSpec(
        "MSE/orthogonal-frames",
        DERIVED,
        "Without bias every layer is the predicted general orthogonal frame at the global minimum: largest distance",
        0.0,
        AtMost(1e-5),
    ),
    "etf": ClaimSpec(
        "MSE/simplex-with-bias",
        DERIVED,
        "Balanced with a free bias every layer is a simplex ETF at the global minimum: largest distance",
        0.0,
        AtMost(1e-5),
    ),
    "landscape": ClaimSpec(
        "MSE/one-layer-no-trap",
        "observed here; for balanced classes Zhou et al. (2022): other critical points are strict saddles",
        "One layer: share of converged starts at the global minimum, least condition",
        1.0,
        AtLeast(1.0),
    ),
    "ce_loss": ClaimSpec(
        "CE/minimum-loss",
        CE,
        "One layer, balanced: best start over the predicted minimum minus 1, largest magnitude",
        0.0,
        AtMost(1e-8),
    ),
    "ce_etf": ClaimSpec(
        "CE/simplex",
        CE,
        "One layer, balanced: weights, features and logits are simplex ETFs: largest distance",
        0.0,
        AtMost(1e-5),
    ),
    "convex_loss": ClaimSpec(
        "CE/convex-programme-loss",
        CONVEX,
        "One layer, unequal classes: best start over the certified convex optimum minus 1, largest magnitude",
        0.0,
        AtMost(1e-8),
    ),
    "convex_gram": ClaimSpec(
        "CE/convex-programme-geometry",
        CONVEX,
        "One layer, unequal classes: Gram matrices of weights and features, relative distance, largest",
        0.0,
        AtMost(1e-5),
    ),
    "deep": ClaimSpec(
        "CE/deep-low-rank",
        DEEP,
        "Deep linear, balanced, K >= 4 and M >= 3 or K >= 6 and M = 2: best loss found minus that of the explicit "
        "low-rank solution, largest",
        float("nan"),
        AtMost(1e-10),
    ),
    "deep_three": ClaimSpec(
        "CE/deep-three-classes",
        "derived here (theory.ce_deep)",
        "Deep linear, K = 3, M = 3: the best start has the loss of the simplex ETF, relative difference",
        0.0,
        AtMost(1e-8),
    ),
}


def minority_spec(loss: str, depth: int) -> ClaimSpec:
    """Critical imbalance ratio, bracketed by the best starts of neighbouring ratios."""
    ratio = CRITICAL_RATIO[loss, depth]
    what = "merge into one vector" if loss == "cross_entropy" else "vanish"
    name = {"cross_entropy": "CE", "mse": "MSE"}[loss]
    return ClaimSpec(
        f"{name}/minority-threshold-M{depth}",
        MINORITY,
        f"Two minority classes {what} at the predicted imbalance ratio {ratio:g}: bracketed by trained minima, in "
        "units of the prediction",
        1.0,
        Covers(1.0, 0.14),
    )


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge every claim from the stored arrays."""
    claims = [*_losses(data), *_frames(data), *_cross_entropy(data), *_deep(data)]
    for loss, depth in CRITICAL_RATIO:
        claims += _threshold(data, loss, depth)
    return claims


def pick(data: xr.Dataset, **wanted) -> xr.Dataset:
    """Conditions whose coordinates have these values; a function accepts what it returns true for."""
    keep = np.ones(data.sizes["condition"], dtype=bool)
    for name, value in wanted.items():
        column = data[f"condition_{name}"].values
        keep &= np.asarray([value(each) for each in column], dtype=bool) if callable(value) else column == value
    return only(data, keep)


def best(data: xr.Dataset) -> np.ndarray:
    """Least loss over the seeds of every condition."""
    return data.loss.min("seed").values


def _losses(data: xr.Dataset) -> list[Claim]:
    mse = pick(data, loss="mse")
    below, reached, landscape = CLAIMS["below"], CLAIMS["reached"], CLAIMS["landscape"]
    window = only(mse, mse.predicted_published_loss > mse.predicted_loss + 1e-6)
    deep = pick(mse, depth=lambda depth: depth > 1)
    deep = only(deep, (deep.predicted_num_dead == 0) & (deep.condition_bias == "none"))
    one = pick(mse, depth=1)
    trapped = pick(mse, kind="grid", depth=3, width=16, balance=lambda name: name != "balanced")
    trapped = only(trapped, trapped.predicted_num_dead > 0)

    def share(part: xr.Dataset) -> np.ndarray:
        return (is_at_minimum(part).sum("seed") / (part.converged == 1).sum("seed")).values

    return [
        below.judge(over_conditions(best(mse) - mse.predicted_loss, mse, "min")),
        below.control(
            "published-threshold",
            "the published code's threshold, where it keeps modes that the minimum does not have",
            over_conditions(best(window) - window.predicted_published_loss, window, "min"),
        ),
        reached.judge(over_conditions(best(mse) / mse.predicted_loss - 1, mse)),
        reached.control(
            "missing-factor",
            "the formula with q lacking the factor M, two or more layers",
            over_conditions(best(deep) / deep.predicted_missing_factor_loss - 1, deep),
        ),
        landscape.judge(over_conditions(share(one), one, "min")),
        landscape.control(
            "several-layers",
            "three layers, unequal classes of which a part is dead at the minimum",
            over_conditions(share(trapped), trapped),
        ),
    ]


def frame_distance(data: xr.Dataset, frame: str) -> np.ndarray:
    """Largest distance from a frame over layers and over the starts at the global minimum."""
    names = {
        "gof": ("nc2_weight_gof", "nc2_feature_gof", "nc3_gof", "nc3_align_gof"),
        "of": ("nc2_weight_of", "nc2_feature_of", "nc3_of"),
        "etf": ("nc2_weight_etf", "nc2_feature_etf", "nc3_etf"),
    }[frame]
    there = is_at_minimum(data)
    worst = [data[name].max("layer").where(there).max("seed").values for name in names]
    return np.max(worst, axis=0)


def _frames(data: xr.Dataset) -> list[Claim]:
    mse = pick(data, loss="mse")
    unique = only(mse, mse.predicted_is_unique == 1)
    plain = pick(unique, bias="none")
    plain = only(plain, plain.predicted_weight_squares.fillna(0).sum("class") > 0)
    # Where no start found the minimum, "minimum-reached" fails; geometry is about those that did.
    plain = only(plain, is_at_minimum(plain).any("seed").values)
    unequal = pick(plain, balance=lambda name: name not in ("balanced", "ratio 1"))
    biased = pick(unique, bias="free", balance="balanced")
    balanced = pick(plain, balance="balanced")
    gof, etf = CLAIMS["gof"], CLAIMS["etf"]
    return [
        gof.judge(over_conditions(frame_distance(plain, "gof"), plain)),
        gof.control(
            "equal-lengths",
            "an orthogonal frame of equal lengths, unequal classes",
            over_conditions(frame_distance(unequal, "of"), unequal, "min"),
        ),
        etf.judge(over_conditions(frame_distance(biased, "etf"), biased)),
        etf.control(
            "no-bias", "the same without bias", over_conditions(frame_distance(balanced, "etf"), balanced, "min")
        ),
    ]


def _cross_entropy(data: xr.Dataset) -> list[Claim]:
    one = pick(data, loss="cross_entropy", depth=1)
    equal = pick(one, balance=lambda name: name in ("balanced", "ratio 1"))
    unequal = pick(one, balance=lambda name: name not in ("balanced", "ratio 1"))
    # At one position of the collapse the balanced formula gives zero, as the minimum of some conditions is.
    loss, etf, convex, gram = (CLAIMS[name] for name in ("ce_loss", "ce_etf", "convex_loss", "convex_gram"))

    def excess(part: xr.Dataset, name: str) -> np.ndarray:
        return np.abs(best(part) / part[name].values - 1)

    def gram_distance(part: xr.Dataset) -> np.ndarray:
        there = is_at_minimum(part)
        both = np.maximum(part.weight_gram_distance, part.feature_gram_distance)
        return both.where(there).max("seed").values

    grid = pick(unequal, kind="grid")
    return [
        loss.judge(over_conditions(excess(equal, "predicted_loss"), equal)),
        loss.control(
            "unequal",
            "the same formula for unequal classes of this mean size",
            over_conditions(excess(grid, "predicted_etf_loss"), grid),
        ),
        etf.judge(over_conditions(frame_distance(equal, "etf"), equal)),
        etf.control(
            "orthogonal", "an orthogonal frame instead", over_conditions(frame_distance(equal, "of"), equal, "min")
        ),
        convex.judge(over_conditions(excess(unequal, "predicted_loss"), unequal)),
        convex.control(
            "mean-size",
            "balanced classes of the mean size",
            over_conditions(excess(grid, "predicted_etf_loss"), grid, "min"),
        ),
        gram.judge(over_conditions(gram_distance(unequal), unequal)),
        gram.control(
            "simplex", "the simplex ETF of balanced classes", over_conditions(frame_distance(grid, "etf"), grid, "min")
        ),
    ]


def _deep(data: xr.Dataset) -> list[Claim]:
    deep = pick(data, kind="deep")
    k, depth = deep.condition_num_classes, deep.condition_depth
    refuted = only(deep, ((k >= 4) & (depth >= 3)) | ((k >= 6) & (depth == 2)))
    three = pick(deep, num_classes=3)
    claim, small = CLAIMS["deep"], CLAIMS["deep_three"]

    def difference(part: xr.Dataset) -> np.ndarray:
        return np.abs(best(part) / part.predicted_etf_loss.values - 1)

    return [
        claim.judge(over_conditions(best(refuted) - refuted.predicted_low_rank_loss.values, refuted)),
        claim.control(
            "simplex-is-global",
            "the published statement: the simplex ETF is the global minimiser; its loss minus that of the best start",
            over_conditions(refuted.predicted_etf_loss.values - best(refuted), refuted, "min"),
        ),
        small.judge(over_conditions(difference(three), three)),
        small.control("more-classes", "four or six classes", over_conditions(difference(refuted), refuted, "min")),
    ]


def collapsed_minority(part: xr.Dataset) -> np.ndarray:
    """Whether the minority of the best start has collapsed: merged (cross-entropy) or zero (squared error)."""
    found = part.isel(seed=part.loss.argmin("seed"))
    if str(part.condition_loss.values[0]) == "mse":
        return (found.class_weight_squares.isel({"class": 3}) < ALIVE**2).values
    return (found.last_pair_distance < MERGED).values


def ratios(part: xr.Dataset) -> np.ndarray:
    """Imbalance ratios of the minority's conditions."""
    sizes = part.class_sizes.values
    return sizes[:, 0] / sizes[:, 3]


def _threshold(data: xr.Dataset, loss: str, depth: int) -> list[Claim]:
    part = pick(data, kind="minority", loss=loss, depth=depth)
    if not part.sizes["condition"]:
        return []
    at, collapsed = ratios(part), collapsed_minority(part)
    method = "bracket by the best starts of neighbouring ratios"
    spec, found = minority_spec(loss, depth), bracket(at[~collapsed], at[collapsed], part, method)
    name, words, wrong = WRONG_RATIO[loss, depth]
    return [
        spec.judge(in_units(found, CRITICAL_RATIO[loss, depth])),
        spec.control(name, f"the same bracket in units of {wrong:.4g}, the ratio by {words}", in_units(found, wrong)),
    ]


def shares(data: xr.Dataset) -> str:
    """Table: share of starts at the global minimum (gap "nan": at the best start) and caught with dead classes."""
    # Where theory has no minimum, the best start stands in for it.
    has_minimum = np.isfinite(data.predicted_loss)
    data = data.assign(predicted_loss=data.predicted_loss.fillna(data.loss.min("seed")))
    at, caught, converged = is_at_minimum(data), is_caught(data), data.converged == 1
    lines = [f"{'condition':58s} {'gap of best':>11s} {'at minimum':>10s} {'caught':>6s} {'converged':>9s}"]
    for i in range(data.sizes["condition"]):
        one = data.isel(condition=i)
        name = (
            f"{one.condition_kind.item()} {one.condition_loss.item()} bias {one.condition_bias.item()} "
            f"M {one.condition_depth.item()} {one.condition_balance.item()} d {one.condition_width.item()} "
            f"decay {one.condition_decay.item():.2g}"
        )
        gap = float(one.loss.min() / one.predicted_loss - 1) if has_minimum[i] else np.nan
        numbers = [float(each.isel(condition=i).mean()) for each in (at, caught, converged)]
        lines.append(f"{name:58s} {gap:11.1e} {numbers[0]:10.2f} {numbers[1]:6.2f} {numbers[2]:9.2f}")
    return "\n".join(lines)
