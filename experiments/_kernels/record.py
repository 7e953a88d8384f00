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
NUM_TRAIN, NUM_POINTS = 60, 100


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
            model=NtkMLPSpec((width,) * scale.depth, activation, **SCALES[activation]),
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
            problem, activation, depth=scale.depth, num_train=NUM_TRAIN, num_points=NUM_POINTS, steps=scale.record_steps
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
        "layer": np.arange(1, scale.depth + 1),
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
            values = over(lambda h, when=when, name=name: getattr(getattr(h, f"{when}_ntk"), name))
            words = f"{meaning}, of the {when} empirical tangent kernel of the output at the points"
            variables[f"{when}_ntk_{name}"] = (run, values, _unit(words))
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
    layered = ("condition", "feature_predictor", "layer")
    sources = {
        "limit": (layered, [each.collapse for each in limits], "of the features at infinite width"),
        "limit_ntk": (
            layered,
            [each.tangent for each in limits],
            "of the tangent kernel, at infinite width, of what the layer feeds; the last layer's is the output's",
        ),
        "points_ntk": (
            ("condition", "ntk_predictor"),
            [each.ntk_collapse for each in limits],
            "of the output's tangent kernel at infinite width, at the points of the empirical one",
        ),
        "raw": (("condition",), [each.raw for each in limits], "of the data"),
        "points_raw": (("condition",), [each.raw_points for each in limits], "of the data at the same points"),
    }
    for prefix, (dims, records, words) in sources.items():
        for name, meaning in QUANTITIES.items():
            variables[f"{prefix}_{name}"] = (dims, _values(records, name), _unit(f"{meaning}, {words}"))
    for prefix in ("limit", "limit_ntk"):
        ratio = variables[f"{prefix}_nc1"][1] / variables["raw_nc1"][1][:, None, None]
        words = _unit(f"{prefix}_nc1 over the NC1 of the data")
        variables[f"{prefix}_relative_nc1"] = (layered, ratio, words)
    rates = np.array([limit.learning_rate for limit in limits])
    variables["learning_rate"] = (("condition",), rates, _unit("step size of lazy training"))
    return variables


def _values(records: Any, name: str) -> np.ndarray:
    """One quantity of nested lists of `KernelCollapse`, in their shape."""
    if isinstance(records, list):
        return np.stack([_values(each, name) for each in records])
    return np.asarray(records.structure.ratio if name == "ratio" else getattr(records, name), dtype=np.float64)


def _unit(meaning: str) -> dict[str, str]:
    return {"units": "dimensionless", "definition": meaning}
