"""Gradient descent as published: collapse of every layer against the training step, three frames."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import numpy as np
import xarray as xr
from _bench import Bench, dimensionless

from _ufm.conditions import PUBLISHED, Scale, gof_targets, padded
from _ufm.minima import LAYER_METRICS
from nctheory.claims import AtMost, Claim, ClaimSpec, Within, range_interval
from nctheory.simulator.descent import DescentConfig, descend
from nctheory.simulator.free_features import UfmProblem
from nctheory.simulator.layer_geometry import FrameTargets
from nctheory.theory.mse_ufm import MseUfmMinimizer, mse_ufm_minimizer

DECAY, RATE, MOMENTUM, INIT_STD, NUM_RECORDS = 5e-4, 0.1, 0.9, 0.1, 28
# Which frame is predicted: orthogonal, simplex ETF, general orthogonal.
FRAMES = {"of": ("balanced", "none"), "etf": ("balanced", "free"), "gof": ("step", "none")}
COLLAPSE = ClaimSpec(
    "GD/collapse-at-every-layer",
    "derived here (theory.mse_ufm); setting of Dang et al. (2023)",
    "Published gradient descent ends with NC1 and the distances from its predicted frame at every layer at most "
    "0.01: largest of run and seed",
    0.0,
    AtMost(0.01),
)

MINIMUM = ClaimSpec(
    "GD/minimum-approached",
    "derived here (theory.mse_ufm); setting of Dang et al. (2023)",
    "Published gradient descent ends within 0.1 % of the predicted minimum, below only by rounding: relative excess, "
    "largest of run and seed",
    0.0,
    Within(-1e-4, 1e-3),
)
EARLY_STEP = 1000


@dataclass(frozen=True)
class Run:
    """One published run."""

    frame: str
    depth: int

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return f"descent_{self.frame}_M{self.depth}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each class."""
        return PUBLISHED[FRAMES[self.frame][0]]

    @property
    def bias(self) -> str:
        """Kind of bias."""
        return FRAMES[self.frame][1]

    def minimum(self) -> MseUfmMinimizer:
        """What theory predicts."""
        return mse_ufm_minimizer(self.sizes, weight_decay=DECAY, feature_decay=DECAY, depth=self.depth, bias=self.bias)

    def config(self, scale: Scale) -> DescentConfig:
        """The run, with general frames to compare with where there is no bias."""
        problem = UfmProblem(
            self.sizes,
            scale.descent_width,
            self.depth,
            weight_decay=DECAY,
            feature_decay=DECAY,
            bias=self.bias,
            init_std=INIT_STD,
        )
        frames = FrameTargets(**gof_targets(self.minimum())) if self.bias == "none" else None
        return DescentConfig(problem, RATE, MOMENTUM, scale.descent_steps, NUM_RECORDS, frames)


def runs(scale: Scale) -> list[Run]:
    """Every run, the deepest first."""
    return [Run(frame, depth) for depth in sorted(scale.descent_depths, reverse=True) for frame in FRAMES]


def seeds(bench: Bench) -> list[int]:
    """Seeds of the runs."""
    return bench.seeds[: bench.scale.descent_seeds]


def prepare(bench: Bench) -> None:
    """Announce the sweeps, in float32."""
    for run in runs(bench.scale):
        bench.prepare(run.name, run.config(bench.scale), seeds=seeds(bench), train=descend)


def measure(bench: Bench) -> xr.Dataset:
    """Descend over seeds; predict the minimum."""
    listed = runs(bench.scale)
    histories = [jax.tree.map(lambda leaf: leaf[0], bench.sweep(run.name).history) for run in listed]
    with jax.enable_x64(True):
        minima = [float(run.minimum().loss) for run in listed]
    deepest = max(run.depth for run in listed)
    dims = ("run", "seed", "step")
    arrays: dict[str, tuple] = {
        "objective": (dims, np.stack([h.objective for h in histories]), dimensionless("training objective")),
        "gradient_norm": (dims, np.stack([h.gradient_norm for h in histories]), dimensionless("of the objective")),
        "minimum": ("run", np.asarray(minima), dimensionless("predicted global minimum")),
    }
    for kind in ("weight", "feature"):
        values = np.stack([getattr(h, f"class_{kind}_squares") for h in histories])
        words = dimensionless("squared norm of a class's row of A, or of its mean feature")
        arrays[f"class_{kind}_squares"] = ((*dims, "class"), values, words)
    for name in LAYER_METRICS:
        values = np.stack([padded(getattr(h.layers, name), deepest) for h in histories])
        words = dimensionless("distance from collapse at every layer, as in simulator.LayerGeometry")
        arrays[name] = ((*dims, "layer"), values, words)
    coords = {
        "seed": seeds(bench),
        "step": listed[0].config(bench.scale).record_steps,
        "layer": np.arange(1, deepest + 1),
        "class": np.arange(4),
        "run_frame": ("run", np.asarray([run.frame for run in listed])),
        "run_depth": ("run", np.asarray([run.depth for run in listed])),
    }
    return xr.Dataset(arrays, coords=coords)


def frame_metrics(frame: str) -> tuple[str, ...]:
    """Names of the distances from a frame: weights, features, alignment."""
    alignment = {"of": "nc3_of", "etf": "nc3_etf", "gof": "nc3_gof"}[frame]
    return f"nc2_weight_{frame}", f"nc2_feature_{frame}", alignment


def collapse(data: xr.Dataset, frame: str) -> xr.DataArray:
    """Largest distance from a frame over layers, and NC1, at every step."""
    worst: Any = reduce(np.maximum, (data[name].max("layer") for name in (*frame_metrics(frame), "nc1")))
    return worst


def judge(data: xr.Dataset) -> list[Claim]:
    """Judge the claim from the stored arrays."""
    final = data.isel(step=-1)
    wrong_frame = {"of": "etf", "etf": "of", "gof": "of"}
    right, wrong = [], []
    for index, frame in enumerate(final.run_frame.values):
        run = final.isel(run=index)
        right.append(collapse(run, str(frame)).values)
        wrong.append(collapse(run, wrong_frame[str(frame)]).values)
    excess = data.objective / data.minimum - 1
    early = excess.sel(step=EARLY_STEP, method="nearest")
    return [
        MINIMUM.judge(range_interval(excess.isel(step=-1).max("run").values)),
        MINIMUM.control(
            "early", f"the same runs near step {EARLY_STEP}, nearest run", range_interval(early.min("run").values)
        ),
        COLLAPSE.judge(range_interval(np.max(right, axis=0))),
        COLLAPSE.control("wrong-frame", "the frame of another setting", range_interval(np.min(wrong, axis=0))),
    ]
