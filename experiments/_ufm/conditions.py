"""What is solved: losses, depths, class sizes, widths, and decays placed by theory relative to the collapse."""

import math
from dataclasses import dataclass

import numpy as np

from _ufm.sizes import SizedProblem, sized_problem
from nctheory.theory._modes import root_limit, threshold
from nctheory.theory.mse_ufm import MseUfmMinimizer

SIZES = {"balanced": (10, 10, 10, 10), "step": (16, 16, 4, 4), "long-tailed": (21, 11, 6, 2)}
GRADED = (48, 36, 27, 20, 15, 11, 8, 6)
PUBLISHED = {"balanced": (100,) * 4, "step": (200, 100, 50, 50)}
# Critical class sizes of squared error, in units of the smallest class: all classes alive, or a part of them dead. The
# second decay of balanced classes is close to the collapse but leaves them alive.
WEAK, STRONG = 0.3, {"balanced": 0.7, "step": 1.5, "long-tailed": 1.4}

# Standard deviation of the entries of a start, in units of 1/sqrt(width): drawn log-uniformly between these.
SMALLEST_START, LARGEST_START = 0.6, 1.8


@dataclass(frozen=True)
class Condition:
    """One problem whose minimum is looked for.

    Attributes:
        kind: what it is for: "grid", "published", "graded", "jump", "deep" or "minority".
        loss: "mse" or "cross_entropy".
        depth: number of linear layers.
        balance: name of the class sizes.
        class_sizes: samples of each class.
        width: of every layer.
        decay: one number for weights and features (dimensionless).
        bias: "none" or "free".
    """

    kind: str
    loss: str
    depth: int
    balance: str
    class_sizes: tuple[int, ...]
    width: int
    decay: float
    bias: str = "none"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_sizes)

    @property
    def program(self) -> str:
        """Name of the compiled program; conditions that differ in class sizes and decay alone share it."""
        return f"{self.loss}_bias_{self.bias}_M{self.depth}_d{self.width}_K{self.num_classes}"

    @property
    def problem(self) -> SizedProblem:
        """The problem; small starts tend to dead classes and large ones to live ones, so there are both."""
        return sized_problem(
            self.class_sizes,
            self.width,
            self.depth,
            loss=self.loss,
            weight_decay=self.decay,
            feature_decay=self.decay,
            bias=self.bias,
            init_std=SMALLEST_START * self.width**-0.5,
            init_spread=LARGEST_START / SMALLEST_START,
        )


def decay_at(critical_size: float, num_samples: int, depth: int) -> float:
    """Decay of all layers and features at which squared error kills classes of up to `critical_size` samples."""
    log_level = math.log(critical_size * threshold(depth) / (depth * num_samples))
    return math.exp((depth * log_level - math.log(num_samples)) / (depth + 1))


@dataclass(frozen=True)
class Scale:
    """Sizes of the runs.

    Attributes:
        num_seeds: starts of every condition.
        depths: of the squared-error grid.
        narrow_depths: of its width K + 1 and bottleneck.
        bias_depths: of its free bias.
        ce_widths: of cross-entropy with one layer.
        ce_depths: of cross-entropy with more layers, where theory has no minimum for unequal classes.
        deep: classes and depth of cross-entropy above one layer.
        published_depths: of the published setting, solved.
        graded_depths: of the class norms against class size.
        jump_depths: of one mode around its threshold.
        minority_ratios: imbalance ratios by loss and depth.
        descent_depths: of the published gradient descent.
        descent_steps: its steps.
        descent_seeds: its seeds, None for all.
        descent_width: its width.
        curve_depths: of the predicted cross-entropy curves; every depth compiles a program for each number of classes.
    """

    num_seeds: int = 32
    depths: tuple[int, ...] = (1, 2, 3, 6, 9)
    narrow_depths: tuple[int, ...] = (1, 3)
    bias_depths: tuple[int, ...] = (1, 3)
    ce_widths: tuple[int, ...] = (16, 5)
    ce_depths: tuple[int, ...] = (2, 3, 6, 9)
    deep: tuple[tuple[int, int], ...] = ((4, 2), (4, 3), (4, 6), (4, 9), (3, 3), (6, 2))
    published_depths: tuple[int, ...] = (1, 3)
    graded_depths: tuple[int, ...] = (1, 3)
    jump_depths: tuple[int, ...] = (1, 3)
    minority_ratios: tuple[tuple[str, int, tuple[float, ...]], ...] = (
        ("cross_entropy", 1, (1.0, 2.5, 4.0, 4.4, 4.8, 5.2, 7.0, 10.0)),
        ("mse", 1, (1.0, 1.8, 2.0, 4.0, 4.8, 5.2, 7.0)),
        ("mse", 3, (1.0, 2.4, 2.8, 3.2, 4.5, 4.8)),
    )
    descent_depths: tuple[int, ...] = (1, 3)
    descent_steps: int = 10_000
    descent_seeds: int | None = 8
    descent_width: int = 64
    curve_depths: tuple[int, ...] = (2, 3, 4, 6, 9)


DEFAULT = Scale()
# Compiling dominates the smallest run, hence few programs.
SMOKE = Scale(
    num_seeds=4,
    depths=(1, 3),
    narrow_depths=(),
    bias_depths=(1,),
    ce_widths=(16,),
    ce_depths=(),
    deep=((3, 3),),
    published_depths=(),
    graded_depths=(),
    jump_depths=(3,),
    minority_ratios=(("cross_entropy", 1, (4.8, 5.2)), ("mse", 1, (4.8, 5.2)), ("mse", 3, (2.8, 3.2))),
    descent_depths=(1,),
    descent_steps=3000,
    descent_seeds=2,
    descent_width=16,
    # The second is that of the figure's comparison across numbers of classes.
    curve_depths=(2, 4),
)
PAPER = Scale(
    num_seeds=256,
    narrow_depths=(1, 2, 3, 6, 9),
    bias_depths=(1, 2, 3, 6, 9),
    published_depths=(1, 2, 3, 6, 9),
    graded_depths=(1, 2, 3, 6),
    jump_depths=(1, 2, 3, 6),
    descent_depths=(1, 3, 6, 9),
    descent_steps=30_000,
    descent_seeds=None,
)

# Critical ratios n_A/n_B of two large and two small classes, and the size of the small ones.
MINORITY_SIZE = 10
CRITICAL_RATIO = {("cross_entropy", 1): 5.0, ("mse", 1): 5.0, ("mse", 3): 3.0}
# What other formulas say at the same decay; the grids have close neighbours there too, so that a control could pass.
WRONG_RATIO = {
    ("cross_entropy", 1): (
        "non-negative-features",
        "the threshold of non-negative features",
        # N^2 lambda^2 K/(K-1) = n_B in place of N^2 lambda^2 = n_B, N proportional to the ratio plus 1, K = 4.
        6 * math.sqrt(3 / 4) - 1,
    ),
    ("mse", 1): (
        "three-layers",
        "the formula of three layers",
        # 3 (N lambda)^(4/3) = thr_3 n_B in place of (N lambda)^2 = n_B, n_B = 10.
        6 * (threshold(3) * MINORITY_SIZE / 3) ** 0.75 / math.sqrt(MINORITY_SIZE) - 1,
    ),
    ("mse", 3): (
        "published-threshold",
        "the published code's threshold",
        # N^(4/3) is proportional to the threshold.
        4 * (root_limit(3) / threshold(3)) ** 0.75 - 1,
    ),
}
CE_DECAYS = (1e-3, 8e-3)
DEEP_DECAY, DEEP_SAMPLES = 5e-3, 2
JUMP = (0.5, 0.7, 0.85, 0.93, 0.98, 1.02, 1.07, 1.15, 1.3)


def conditions(scale: Scale) -> list[Condition]:
    """Every problem that is solved, those of one compiled program together."""
    return [*_grid(scale), *_with_bias(scale), *_cross_entropy(scale), *_special(scale), *_minority(scale)]


def _mse(kind: str, depth: int, balance: str, sizes: tuple[int, ...], width: int, levels, bias="none"):
    total, smallest = sum(sizes), min(sizes)
    return [
        Condition(kind, "mse", depth, balance, sizes, width, decay_at(level * smallest, total, depth), bias)
        for level in levels
    ]


def _grid(scale: Scale) -> list[Condition]:
    found = []
    for balance, sizes in SIZES.items():
        k = len(sizes)
        for depth in scale.depths:
            widths = [4 * k, *((k + 1, k - 1) if depth in scale.narrow_depths else ())]
            for width in widths:
                found += _mse("grid", depth, balance, sizes, width, (WEAK, STRONG[balance]))
    return found


def _with_bias(scale: Scale) -> list[Condition]:
    return [
        each
        for balance in ("balanced", "step")
        for depth in scale.bias_depths
        for each in _mse("grid", depth, balance, SIZES[balance], 16, (WEAK, 0.7), "free")
    ]


def _cross_entropy(scale: Scale) -> list[Condition]:
    found = []
    for balance, sizes in SIZES.items():
        for width in scale.ce_widths:
            found += [Condition("grid", "cross_entropy", 1, balance, sizes, width, decay) for decay in CE_DECAYS]
    for depth in scale.ce_depths:
        for balance, sizes in SIZES.items():
            found += [Condition("grid", "cross_entropy", depth, balance, sizes, 16, decay) for decay in CE_DECAYS]
    for k, depth in scale.deep:
        sizes = (DEEP_SAMPLES,) * k
        found.append(Condition("deep", "cross_entropy", depth, "balanced", sizes, 4 * k, DEEP_DECAY))
    return found


def _special(scale: Scale) -> list[Condition]:
    found = []
    for depth in scale.published_depths:
        found += [
            Condition("published", "mse", depth, balance, sizes, 64, 5e-4) for balance, sizes in PUBLISHED.items()
        ]
    for depth in scale.graded_depths:
        # The critical size lies between the second and the third smallest class.
        found += _mse("graded", depth, "graded", GRADED, 16, (9.4 / min(GRADED),))
    for depth in scale.jump_depths:
        found += _mse("jump", depth, "balanced", SIZES["balanced"], 16, JUMP)
    return found


def _minority(scale: Scale) -> list[Condition]:
    found = []
    for loss, depth, ratios in scale.minority_ratios:
        # For one layer both losses collapse classes of up to (N decay)^2 samples.
        total = MINORITY_SIZE * 2 * (CRITICAL_RATIO[loss, depth] + 1)
        decay = decay_at(MINORITY_SIZE, round(total), depth)
        for ratio in ratios:
            large = round(MINORITY_SIZE * ratio)
            sizes = (large, large, MINORITY_SIZE, MINORITY_SIZE)
            found.append(Condition("minority", loss, depth, f"ratio {ratio:g}", sizes, 16, decay))
    return found


def gof_targets(minimum: MseUfmMinimizer) -> dict[str, np.ndarray]:
    """Predicted squared lengths of every layer's rows and class features, and the logits, of a bias-free minimum."""
    values, features = np.asarray(minimum.layer_singular_values), np.asarray(minimum.feature_singular_values)
    rows, columns = np.asarray(minimum.mode_vectors) ** 2, np.asarray(minimum.class_coordinates) ** 2
    left = np.cumprod(values[::-1], axis=0)[::-1]
    right = np.vstack([np.ones_like(features), np.cumprod(values, axis=0)[:-1]]) * features
    return {
        "weight_squares": left**2 @ rows.T,
        "feature_squares": right**2 @ columns.T,
        "logits": np.diag(np.asarray(minimum.logits)).copy(),
    }


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """The same with NaN up to `length` on the last axis."""
    values = np.asarray(values, dtype=np.float64)
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])], constant_values=np.nan)
