"""What the kernel-limit experiment stores, and the sweeps that measure it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from _kernels.limits import (
    FEATURE_PREDICTORS,
    NTK_PREDICTORS,
    OUTPUT_PREDICTORS,
    PROBLEMS,
    SCALES,
    Limits,
    Problem,
    predict,
)

if TYPE_CHECKING:
    import xarray as xr
    from _bench import Bench

QUANTITIES = {
    "nc1": "tr(Sigma_W Sigma_B^+)/K",
    "within_between_ratio": "tr Sigma_W / tr Sigma_B",
    "cdnv": "class-distance normalised variance",
    "ratio": "q: distances of fine classes within labels over those across labels",
}
DEPTH, NUM_TRAIN, NUM_POINTS = 2, 60, 100


def conditions(names: tuple[str, ...]) -> dict[str, tuple[Problem, str]]:
    """Problem and activation of every condition, by names such as "digits-erf"."""
    problems = {name: build() for name, build in PROBLEMS.items() if any(each.startswith(name) for each in names)}
    split = {name: name.split("-") for name in names}
    return {name: (problems[problem], activation) for name, (problem, activation) in split.items()}


def prepare(bench: "Bench", name: str, problem: Problem, activation: str, limits: Limits, scale: Any) -> None:
    """Announce one sweep a width; networks wider than `scale.trained_width` are measured at the start only."""
    from _kernels.measuring import MeasureConfig, measure
    from nctheory.simulator.ntk_mlp import LazyConfig, NtkMLPSpec

    def single(array: Any) -> np.ndarray:
        return np.asarray(array, dtype=np.float32)

    distances = np.stack([[each.structure.class_distances for each in layers] for layers in limits.collapse])
    for width in scale.widths:
        steps = scale.record_steps if width <= scale.trained_width else (0,)
        lazy = LazyConfig(
            inputs=single(problem.inputs[:NUM_POINTS]),
            targets=single(problem.targets[:NUM_TRAIN]),
            model=NtkMLPSpec((width,) * DEPTH, activation, **SCALES[activation]),
            learning_rate=limits.learning_rate,
            record_steps=steps,
        )
        config = MeasureConfig(
            lazy,
            single(problem.inputs),
            problem.labels,
            problem.fine_labels,
            single(limits.features),
            single(distances),
            single(limits.ntk),
            single(limits.response),
            problem.num_classes,
            problem.num_fine,
        )
        bench.prepare(f"{name}-{width}", config, train=measure)


def measure_all(bench: "Bench", scale: Any, attributes: dict[str, Any]) -> "xr.Dataset":
    """Compute every limit, train every network, and collect both."""
    import jax
    import xarray as xr

    listed = conditions(scale.conditions)
    limits = {
        name: predict(
            problem, activation, depth=DEPTH, num_train=NUM_TRAIN, num_points=NUM_POINTS, steps=scale.record_steps
        )
        for name, (problem, activation) in listed.items()
    }
    for name, (problem, activation) in listed.items():
        prepare(bench, name, problem, activation, limits[name], scale)
    with jax.default_matmul_precision("highest"):
        runs = [[bench.sweep(f"{name}-{width}").history for width in scale.widths] for name in listed]
    coordinates = {
        "condition": list(listed),
        "width": list(scale.widths),
        "seed": np.asarray(bench.seeds, dtype=np.int64),
        "layer": np.arange(1, DEPTH + 1),
        "feature_predictor": list(FEATURE_PREDICTORS),
        "ntk_predictor": list(NTK_PREDICTORS),
        "output_predictor": list(OUTPUT_PREDICTORS),
        "step": list(scale.record_steps[1:]),
    }
    return xr.Dataset(_measured(runs) | _predicted(list(limits.values())), coordinates, attributes)


def _measured(runs: list[list[Any]]) -> dict[str, Any]:
    run = ("condition", "width", "seed")

    def over(get) -> np.ndarray:
        return np.stack([[np.asarray(get(history), dtype=np.float64)[0] for history in row] for row in runs])

    variables: dict[str, Any] = {}
    for when in ("initial", "trained"):
        for name, meaning in QUANTITIES.items():
            values = over(lambda h, when=when, name=name: getattr(getattr(h, when), name))
            variables[f"{when}_{name}"] = ((*run, "layer"), values, _unit(f"{meaning}, {when} features"))
        for name, what in (("kernel", "feature kernel"), ("distances", "squared distances of fine-class means")):
            values = over(lambda h, when=when, name=name: getattr(getattr(h, when), f"{name}_deviation"))
            words = _unit(f"squared relative deviation of the {what} from a predictor, {when} features")
            variables[f"{when}_{name}_deviation"] = ((*run, "layer", "feature_predictor"), values, words)
    others = {
        "ntk_deviation": (("ntk_predictor",), "squared relative deviation of the initial tangent kernel"),
        "ntk_change": ((), "squared relative change of the tangent kernel under training"),
        "feature_change": (("layer",), "squared relative change of the features under training"),
        "output_deviation": (
            ("output_predictor", "step"),
            "squared deviation of outputs from a predictor over the squared movement that the limit predicts",
        ),
    }
    for name, (dims, meaning) in others.items():
        variables[name] = ((*run, *dims), over(lambda h, name=name: getattr(h, name)), _unit(meaning))
    variables["finite"] = (run, over(lambda h: h.finite) > 0)
    return variables


def _predicted(limits: list[Limits]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for name, meaning in QUANTITIES.items():

        def of(collapse, name=name) -> float:
            return float(collapse.structure.ratio if name == "ratio" else getattr(collapse, name))

        values = np.array([[[of(each) for each in layers] for layers in limit.collapse] for limit in limits])
        dims = ("condition", "feature_predictor", "layer")
        variables[f"limit_{name}"] = (dims, values, _unit(f"{meaning}, from the kernel of infinite width"))
        raw = np.array([of(limit.raw) for limit in limits])
        variables[f"raw_{name}"] = (("condition",), raw, _unit(f"{meaning}, of the data"))
    rates = np.array([limit.learning_rate for limit in limits])
    variables["learning_rate"] = (("condition",), rates, _unit("step size of lazy training"))
    return variables


def _unit(meaning: str) -> dict[str, str]:
    return {"units": "dimensionless", "definition": meaning}
