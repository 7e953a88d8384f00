"""Claims on deep linear heads with their criteria and controls, judged from the stored record alone."""

from typing import TYPE_CHECKING

from nctheory.claims import AtLeast, AtMost, Claim, ClaimSpec, Ledger, range_interval

if TYPE_CHECKING:
    import xarray as xr

SOURCE = "derived here (theory.mse_ufm_minimizer); setting of Dang et al. 2023"
# Single precision: a sum of 300 x 10 squares and some 10^4 weights, about 30 roundings of the last digit.
ROUNDING = 1e-5
# Fixed on seeds from 1000 on.
EXCESS, NC1, FRAME, LENGTH = 0.03, 1e-3, 0.05, 0.05
_RUNS = ("depth", "condition")
_OF_THE_FORMULA = "Checks the formula, not the data: this value lies below L*, so no network could come close to it."


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims, whose criteria stand here and do not depend on the data; every interval is a range over seeds.

    Control of a claim: the neighbouring prediction, a constant of the formula wrong, or the untrained network, put
    before the same criterion.
    """
    rows = [*_bound(history), *_attained(history), *_collapse(history), *_geometry(history), *_lengths(history)]
    return Ledger(rows)


def excess(history: "xr.Dataset", bound: str = "bound") -> "xr.DataArray":
    """Objective over a bound minus 1, dimensionless, at every (depth, condition, seed, step)."""
    return history["objective"] / history[bound] - 1


def _bound(history: "xr.Dataset") -> list[Claim]:
    statement = "No network goes below the minimum over free features: smallest objective/L* - 1 of all runs and steps."
    spec = ClaimSpec("bound", SOURCE, statement, 0.0, AtLeast(-ROUNDING))
    rows = [spec.judge(_range(excess(history).min((*_RUNS, "step"), skipna=False), "min"))]
    wrong = {
        "doubled": "L* of penalties lambda |.|^2 without the 1/2; last step, best depth and condition",
        "per-class": "L* of a loss averaged over the outputs too, decays K times as large",
    }
    for name, text in wrong.items():
        last = excess(history, name.replace("-", "_")).isel(step=-1)
        rows.append(spec.control(name, text, _range(last.max(_RUNS, skipna=False), "max")))
    return rows


def _attained(history: "xr.Dataset") -> list[Claim]:
    rows = []
    for depth in history["depth"].values.tolist():
        statement = f"Training comes close to it: final objective/L* - 1 at depth {depth}, worse condition."
        spec = ClaimSpec(f"attained/{depth}", SOURCE, statement, 0.0, AtMost(EXCESS))
        runs = history.sel(depth=depth)
        last = runs.isel(step=-1)
        rows.append(spec.judge(_range(excess(last).max("condition", skipna=False))))
        first = excess(runs.isel(step=0)).min("condition", skipna=False)
        text = "The same networks at the first record, before training; better condition."
        rows.append(spec.control("untrained", text, _range(first, "min")))
        wrong = {"halved": "L* of decays half as large"}
        if depth > 1:
            wrong["without-depth"] = "L* with q lacking its factor M, the number of layers"
        for name, text in wrong.items():
            worst = excess(last, name.replace("-", "_")).min("condition", skipna=False)
            rows.append(spec.control(name, f"{text}. {_OF_THE_FORMULA}", _range(worst, "min")))
    return rows


def _collapse(history: "xr.Dataset") -> list[Claim]:
    accuracy = history["train_accuracy"]
    spec = ClaimSpec("fits", SOURCE, "Every training image is classified right (worst run).", 1.0, AtLeast(0.999))
    nc1 = history["nc1"]
    collapsed = ClaimSpec("nc1", SOURCE, "Classes collapse in every layer (worst layer and run).", 0.0, AtMost(NC1))
    return [
        spec.judge(_range(accuracy.isel(step=-1).min(_RUNS, skipna=False), "min")),
        spec.control("untrained", "Best run before training.", _range(accuracy.isel(step=0).max(_RUNS, skipna=False))),
        collapsed.judge(_range(_worst_layer(nc1.isel(step=-1)).max(_RUNS, skipna=False))),
        collapsed.control(
            "untrained", "The first layer before training.", _range(nc1.isel(step=0, layer=0).min(_RUNS), "min")
        ),
    ]


def _geometry(history: "xr.Dataset") -> list[Claim]:
    rows = []
    for kind, of in (("weight", "left products A_m"), ("feature", "class means in every layer")):
        last = history.isel(step=-1)
        frame, equal = last[f"nc2_{kind}_gof"], last[f"nc2_{kind}_of"]
        statement = f"The {of} form the predicted orthogonal frame (NC2): worst layer and run."
        spec = ClaimSpec(f"nc2/{kind}", SOURCE, statement, 0.0, AtMost(FRAME))
        rows.append(spec.judge(_range(_worst_layer(frame).max(_RUNS, skipna=False))))
        # Lengths differ most in A_1 and in the features of the last layer.
        unequal = _worst_layer(equal.sel(condition="imbalanced"))
        text = "A frame of equal lengths in its place (unequal classes, its worst layer; best depth)."
        rows.append(spec.control("equal-lengths", text, _range(unequal.min("depth", skipna=False), "min")))
    statement = "Every layer's product is aligned with its class means (NC3): worst layer and run."
    spec = ClaimSpec("nc3", SOURCE, statement, 0.0, AtMost(FRAME))
    align = history["nc3_align_gof"]
    rows.append(spec.judge(_range(_worst_layer(align.isel(step=-1)).max(_RUNS, skipna=False))))
    untrained = _worst_layer(align.isel(step=0)).min(_RUNS, skipna=False)
    rows.append(spec.control("untrained", "Before training (best run).", _range(untrained, "min")))
    return rows


def _lengths(history: "xr.Dataset") -> list[Claim]:
    rows = []
    for kind, of in (("weight", "rows of A_1"), ("feature", "class means in F_1")):
        measured = history[f"{kind}_squares"].isel(step=-1, layer=0).sel(condition="imbalanced") ** 0.5
        theirs = history[f"predicted_{kind}_squares"].isel(layer=0) ** 0.5

        def worst(condition: str, measured=measured, theirs=theirs):
            return abs(measured / theirs.sel(condition=condition) - 1).max("class", skipna=False)

        statement = f"Lengths of the {of} follow the class sizes: relative error, worst class and depth."
        spec = ClaimSpec(f"lengths/{kind}", SOURCE, statement, 0.0, AtMost(LENGTH))
        rows.append(spec.judge(_range(worst("imbalanced").max("depth", skipna=False))))
        text = "The lengths of equal class sizes in their place, best depth."
        rows.append(spec.control("balanced", text, _range(worst("balanced").min("depth", skipna=False), "min")))
    return rows


def _worst_layer(values: "xr.DataArray") -> "xr.DataArray":
    """Largest value over the layers that a depth has; NaN if one of them is NaN."""
    present = values["layer"] <= values["depth"]
    return values.where(present, float("-inf")).max("layer", skipna=False)


def _range(values: "xr.DataArray", which: str = "max"):
    return range_interval(values.values, which=which)


def summary(history: "xr.Dataset") -> str:
    """Final state of every depth and condition as aligned text: range over seeds."""
    lines = [
        f"{'layers':<8}{'classes':<12}{'L*':>8}  {'objective/L* - 1':<20}{'NC1, worst layer':<22}"
        f"{'test accuracy':<16}zero predicted"
    ]
    for depth in history["depth"].values.tolist():
        for condition in history["condition"].values.tolist():
            one = history.sel(depth=[depth], condition=condition).isel(step=-1)
            zero = int((one["threshold_ratio"] > 1).sum())
            shown = [_shown(excess(one)), _shown(_worst_layer(one["nc1"])), _shown(one["test_accuracy"])]
            lines.append(
                f"{depth:<8}{condition:<12}{float(one['bound'][0]):>8.5f}  {shown[0]:<20}{shown[1]:<22}{shown[2]:<16}"
                f"{zero} of {one.sizes['class']} classes"
            )
    return "\n".join(lines)


def _shown(values: "xr.DataArray") -> str:
    return f"{float(values.min()):.3g} .. {float(values.max()):.3g}"
