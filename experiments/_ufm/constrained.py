"""One layer under constraints, and in another normalisation, solved from random starts and held against theory.

Cross-entropy with non-negative features, cross-entropy with bounded norms instead of decay (the layer-peeled model),
and squared error as Tirer and Bruna normalise it. Class sizes, decays and bounds are numbers of a compiled program, so
that each of the three is one program; all conditions are solved at every scale, because compiling dominates.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless
from jaxtyping import Array, Float, Key

from _ufm.grams import Minimum, distance, matrices, minimum_from, stored
from _ufm.ranges import bracket, in_units, only, over_conditions
from _ufm.sizes import SizedProblem
from nctheory.claims import AtMost, Claim, ClaimSpec, Covers, Interval, range_interval
from nctheory.simulator.free_features import UfmParams
from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_nonnegative import ce_nonnegative_minimizer
from nctheory.theory.layer_peeled import layer_peeled_threshold
from nctheory.theory.mse_ufm import mse_ufm_minimizer
from nctheory.theory.mse_ufm_limits import tirer_bruna_minimizer

NUM_CLASSES, WIDTH = 4, 8
TOLERANCE, MAX_EVALUATIONS = 1e-12, 4000
AT_MINIMUM = 1e-8

# Class sizes and the two decays; the largest decays of unequal classes kill the smallest one or two.
NONNEGATIVE = (
    ((10, 10, 10, 10), 0.002, 0.002),
    ((10, 10, 10, 10), 0.03, 0.03),
    ((16, 16, 4, 4), 0.002, 0.002),
    ((16, 16, 4, 4), 0.06, 0.006),
    ((16, 16, 4, 4), 0.045, 0.045),
    ((21, 11, 6, 2), 0.002, 0.002),
    ((21, 11, 6, 2), 0.005, 0.08),
    ((21, 11, 6, 2), 0.04, 0.04),
    ((21, 11, 6, 2), 0.055, 0.055),
)
# Bounds E_H and E_W, and ratios over the predicted one. Minority vectors closer than `MERGED` times the longest one are
# one vector: above the threshold they agree to rounding, and at 0.99 of it they are 0.1 apart.
BUDGETS, LEVELS, MERGED = ((1.0, 1.0), (2.0, 1.0)), (0.5, 0.9, 0.99, 1.01, 1.1, 2.0), 1e-4
# Samples a class and the two decays in the authors' normalisation; the last two are beyond the collapse.
TIRER_BRUNA = (
    (1, 0.3, 0.3),
    (10, 0.1, 0.1),
    (10, 0.5, 0.02),
    (25, 2.0, 0.02),
    (40, 0.4, 0.625),
    (10, 0.9, 0.9),
    (10, 1.1, 1.1),
    (25, 4.0, 0.5),
)
RADII = ("feature_radius", "weight_radius")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TirerBrunaProblem(SizedProblem):
    """Squared error in the normalisation of Tirer and Bruna, written out; the decays are those of their objective."""

    def objective(self, params: UfmParams) -> Float[Array, ""]:
        """Evaluate |W H - Y|^2/(2Kn) + lambda_W |W|^2/(2K) + lambda_H |H|^2/(2Kn)."""
        sizes = jnp.asarray(self.sizes, dtype=float)
        errors = params.weights[0] @ params.features.T - jnp.eye(self.num_classes, dtype=float)
        fit = jnp.sum(sizes[None, :] * errors**2) + self.feature_decay * jnp.sum(sizes[:, None] * params.features**2)
        return fit / (2 * jnp.sum(sizes)) + self.weight_decay * jnp.sum(params.weights[0] ** 2) / (2 * self.num_classes)


@dataclass(frozen=True)
class Case:
    """One condition: its problem, what theory says, and what a wrong formula says.

    Attributes:
        kind: "nonnegative", "layer_peeled" or "tirer_bruna"; the cases of a kind share a compiled program.
        problem: what is solved.
        predicted: `loss`, `weight_gram` and `feature_gram`, or `ratio`, the threshold of the class sizes' ratio.
        wrong: the same of the neighbouring theorem.
    """

    kind: str
    problem: SizedProblem
    predicted: dict[str, Any]
    wrong: dict[str, Any]


def cases() -> list[Case]:
    """Every condition, with predictions; call with 64-bit numbers on."""
    return [*_nonnegative_cases(), *_peeled_cases(), *_tirer_bruna_cases()]


def _problem(kind: type[SizedProblem], sizes: Any, **named: Any) -> Any:
    named = {"init_std": 0.2, "init_spread": 3.0, "weight_radius": 1.0, "feature_radius": 1.0} | named
    return kind((1,) * NUM_CLASSES, WIDTH, 1, level="class", sizes=np.asarray(sizes, dtype=float), **named)


def _record(minimum: Any) -> dict[str, Any]:
    return {name: np.asarray(getattr(minimum, name)) for name in ("loss", "weight_gram", "feature_gram")}


def _nonnegative_cases() -> list[Case]:
    found = []
    for sizes, weight_decay, feature_decay in NONNEGATIVE:
        decays: dict[str, Any] = {"weight_decay": weight_decay, "feature_decay": feature_decay}
        problem = _problem(SizedProblem, sizes, loss="cross_entropy", features="nonnegative", **decays)
        right, wrong = ce_nonnegative_minimizer(sizes, **decays), ce_ufm_convex(sizes, **decays)
        found.append(Case("nonnegative", problem, _record(right), _record(wrong)))
    return found


def _peeled_cases() -> list[Case]:
    thresholds = [float(layer_peeled_threshold(2, 2, feature_budget=h, weight_budget=w).ratio) for h, w in BUDGETS]
    bounded = {"features": "norm_bounded", "weights": "norm_bounded", "weight_decay": 0.0, "feature_decay": 0.0}
    found = []
    for (feature_budget, weight_budget), ratio, other in zip(BUDGETS, thresholds, thresholds[::-1], strict=True):
        radii = {"feature_radius": feature_budget**0.5, "weight_radius": weight_budget**0.5}
        # Close around the wrong ratio too: a control must be able to pass.
        wrong = other / ratio
        for level in sorted({*LEVELS, 0.99 * wrong, 1.01 * wrong}):
            sizes = (level * ratio, level * ratio, 1.0, 1.0)
            problem = _problem(SizedProblem, sizes, loss="cross_entropy", **bounded, **radii)
            found.append(Case("layer_peeled", problem, {"ratio": ratio}, {"ratio": other}))
    return found


def _tirer_bruna_cases() -> list[Case]:
    found = []
    for count, weight_decay, feature_decay in TIRER_BRUNA:
        decays: dict[str, Any] = {"weight_decay": weight_decay, "feature_decay": feature_decay}
        sizes = (count,) * NUM_CLASSES
        right = tirer_bruna_minimizer(NUM_CLASSES, count, **decays)
        wrong = mse_ufm_minimizer(sizes, **decays)
        problem = _problem(TirerBrunaProblem, sizes, loss="mse", **decays)
        found.append(Case("tirer_bruna", problem, _record(right), _record(wrong)))
    return found


def solve_and_store(problem: SizedProblem, key: Key[Array, ""]) -> Minimum:
    """Minimise from the start of this key; pure, for `simulator.sweep`."""
    start = problem.init(key)
    if problem.features == "nonnegative":
        start = replace(start, features=jnp.abs(start.features))
    return minimum_from(problem, start, tolerance=TOLERANCE, max_evaluations=MAX_EVALUATIONS)


def _programs() -> list[tuple[str, list[Case]]]:
    return [(kind, list(group)) for kind, group in groupby(cases(), key=lambda each: each.kind)]


def prepare(bench: Bench) -> None:
    """Announce one sweep for every compiled program, in float64."""
    with jax.enable_x64(True):
        for kind, group in _programs():
            problems = [case.problem for case in group]
            bench.prepare(f"constrained_{kind}", problems, seeds=bench.seeds, train=solve_and_store)


def measure(bench: Bench) -> xr.Dataset:
    """Solve every condition over seeds and put right and wrong predictions beside the results."""
    with jax.enable_x64(True):
        programs = _programs()
    histories = [bench.sweep(f"constrained_{kind}").history for kind, _ in programs]
    return dataset(bench.seeds, histories, [case for _, group in programs for case in group])


def dataset(seeds: list[int], histories: list[Minimum], listed: list[Case]) -> xr.Dataset:
    """Results of the programs, one after another, and predictions."""
    arrays = stored(histories)
    for side, words in (("predicted", "by theory"), ("wrong", "by the neighbouring theorem")):
        records = [getattr(case, side) for case in listed]
        blank = np.full((NUM_CLASSES, NUM_CLASSES), np.nan)
        for name in ("loss", "ratio"):
            values = np.asarray([record.get(name, np.nan) for record in records], dtype=float)
            what = "minimum" if name == "loss" else "ratio of class sizes at which minority classes merge"
            arrays[f"{side}_{name}"] = ("condition", values, dimensionless(f"{what}, {words}"))
        for name in ("weight_gram", "feature_gram"):
            values = [record.get(name, blank) for record in records]
            arrays[f"{side}_{name}"] = matrices(values, f"inner products at the minimum, {words}")
    for name in ("weight_decay", "feature_decay", *RADII):
        values = np.asarray([getattr(case.problem, name) for case in listed], dtype=float)
        arrays[name] = ("condition", values, dimensionless(f"{name} of the problem"))
    sizes = np.stack([case.problem.sizes for case in listed])
    arrays["class_sizes"] = (("condition", "class"), sizes, {"units": "samples", "definition": "n_k"})
    coords = {"seed": seeds, "condition_kind": ("condition", np.asarray([case.kind for case in listed]))}
    return xr.Dataset(arrays, coords=coords)


DANG = "geometry: Dang et al. (2024); formulas derived here (theory.ce_nonnegative)"
PEELED = "derived here (theory.layer_peeled); model: Fang et al. (2021)"
TIRER = "normalisation of Tirer and Bruna (2022); values derived here (theory.mse_ufm_limits)"
CLAIMS = {
    "loss": ClaimSpec(
        "CE/nonneg-loss",
        DANG,
        "Non-negative features, equal and unequal classes, some of them dead: best start over the closed form minus 1, "
        "largest magnitude",
        0.0,
        AtMost(1e-8),
    ),
    "gram": ClaimSpec(
        "CE/nonneg-orthogonal",
        DANG,
        "Non-negative features: Gram matrices of weights and features at the minimum are those of orthogonal class "
        "means with the predicted lengths: largest relative distance",
        0.0,
        AtMost(1e-5),
    ),
    "norm": ClaimSpec(
        "MSE/tirer-bruna-norm",
        TIRER,
        "Their objective: squared feature norm minus (1-c) sqrt(lambda_W/lambda_H), zero for c > 1, in units of "
        "sqrt(lambda_W/lambda_H): largest magnitude of every seed",
        0.0,
        AtMost(1e-6),
    ),
    "scaled_loss": ClaimSpec(
        "MSE/tirer-bruna-loss",
        TIRER,
        "Their objective: where a start ends over the predicted minimum minus 1, largest magnitude of every seed",
        0.0,
        AtMost(1e-8),
    ),
}


def peeled_spec(feature_budget: float, weight_budget: float, ratio: float) -> ClaimSpec:
    """Claim about the threshold at bounds E_H and E_W."""
    return ClaimSpec(
        f"CE/peeled-threshold-E{feature_budget * weight_budget:g}",
        PEELED,
        f"Layer-peeled model, bounds {feature_budget:g} and {weight_budget:g}: two minority classes merge, in weights "
        f"and features, at the predicted ratio {ratio:.4g} of class sizes: bracketed by trained minima, every seed, in "
        "units of the prediction",
        1.0,
        Covers(1.0, 0.05),
    )


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge every claim from the stored arrays."""
    return [*_nonnegative(_of_kind(data, "nonnegative")), *_peeled(data), *_scaled(_of_kind(data, "tirer_bruna"))]


def _of_kind(data: xr.Dataset, kind: str) -> xr.Dataset:
    return only(data, data.condition_kind.values == kind)


def _nonnegative(data: xr.Dataset) -> list[Claim]:
    loss, gram = CLAIMS["loss"], CLAIMS["gram"]
    best = data.loss.where(data.converged == 1).min("seed").values
    at_minimum = (abs(data.loss / data.predicted_loss - 1) <= AT_MINIMUM) & (data.converged == 1)

    def excess(side: str) -> np.ndarray:
        return np.abs(best / data[f"{side}_loss"].values - 1)

    def farthest(side: str) -> np.ndarray:
        found = [
            distance(data[name].values, data[f"{side}_{name}"].values[:, None])
            for name in ("weight_gram", "feature_gram")
        ]
        # NaN, hence an open claim, where no start is at the minimum.
        return at_minimum.copy(data=np.max(found, axis=0)).where(at_minimum).max("seed").values

    free = "the minimum without the sign constraint"
    return [
        loss.judge(over_conditions(excess("predicted"), data)),
        loss.control("free-features", free, over_conditions(excess("wrong"), data, "min")),
        gram.judge(over_conditions(farthest("predicted"), data)),
        gram.control("free-features", free, over_conditions(farthest("wrong"), data, "min")),
    ]


def minority_distance(data: xr.Dataset) -> np.ndarray:
    """Distance between the two minority vectors over the longest one, larger of weights and features."""
    found = []
    for name in ("weight_gram", "feature_gram"):
        gram = data[name].values
        squares = gram[..., 2, 2] + gram[..., 3, 3] - 2 * gram[..., 2, 3]
        longest = np.max(np.diagonal(gram, axis1=-2, axis2=-1), axis=-1)
        found.append(np.sqrt(np.maximum(squares, 0) / longest))
    return np.max(found, axis=0)


def merging_ratio(data: xr.Dataset) -> Interval:
    """Largest ratio at which a seed keeps its minority apart, and smallest at which one merges it.

    Only converged starts can tell; a seed in which any did not is lost. NaN if merging does not depend on the ratio
    alone, as a threshold does.
    """
    ratios = data.class_sizes.values[:, 0] / data.class_sizes.values[:, -1]
    is_sound = (data.converged.values == 1) & (data.finite.values == 1)
    merged = minority_distance(data) < MERGED
    sound_seeds = is_sound.all(axis=0)
    apart = ratios[(~merged[:, sound_seeds]).any(axis=1)]
    joined = ratios[merged[:, sound_seeds].any(axis=1)]
    method = "bracket by neighbouring ratios, every seed"
    return bracket(apart, joined, data, method, lost=int((~sound_seeds).sum()))


def _peeled(data: xr.Dataset) -> list[Claim]:
    data = _of_kind(data, "layer_peeled")
    groups = [data.isel(condition=np.flatnonzero(data.predicted_ratio == r)) for r in np.unique(data.predicted_ratio)]
    found = []
    for group in groups:
        first, found_at = group.isel(condition=0), merging_ratio(group)
        right, wrong = float(first.predicted_ratio), float(first.wrong_ratio)
        spec = peeled_spec(*(float(first[name]) ** 2 for name in RADII), ratio=right)
        words = f"the same bracket in units of {wrong:.4g}, the ratio predicted for the other bounds"
        found += [
            spec.judge(in_units(found_at, right)),
            spec.control("other-bounds", words, in_units(found_at, wrong)),
        ]
    return found


def _scaled(data: xr.Dataset) -> list[Claim]:
    norm, loss = CLAIMS["norm"], CLAIMS["scaled_loss"]
    is_sound = (data.converged.values == 1) & (data.finite.values == 1)
    unit = np.sqrt(data.weight_decay / data.feature_decay).values[:, None, None]

    def squares(name: str) -> np.ndarray:
        return np.diagonal(data[name].values, axis1=-2, axis2=-1)

    def error(side: str) -> np.ndarray:
        wanted = squares(f"{side}_feature_gram")[:, None, :]
        worst = np.max(np.abs(squares("feature_gram") - wanted) / unit, axis=-1)
        return np.max(np.where(is_sound, worst, np.nan), axis=0)

    def excess(side: str) -> np.ndarray:
        worst = np.abs(data.loss.values / data[f"{side}_loss"].values[:, None] - 1)
        return np.max(np.where(is_sound, worst, np.nan), axis=0)

    ours = "the decays taken as those of the objective with one factor 1/N for the fit alone, untranslated"
    return [
        norm.judge(range_interval(error("predicted"))),
        norm.control("untranslated", ours, range_interval(error("wrong"), which="min")),
        loss.judge(range_interval(excess("predicted"))),
        loss.control("untranslated", ours, range_interval(excess("wrong"), which="min")),
    ]
