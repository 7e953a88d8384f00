"""ReLU between the layers: which problems are solved from which starts, and what theory says about them."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from _bench import Bench, dimensionless

from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.theory.deep_relu import deep_relu_collapse, srg_parameters, srg_solution
from nctheory.theory.mse_ufm import UfmParameters, mse_ufm_representative

EXPLICIT_NOISE = 0.05
# Standard deviation of the entries of a random start, in units of 1/sqrt(width).
RANDOM_START = 2.0
STARTS = ("random", "collapse", "graph")
# Two classes: decays in units of the one at which the minimum becomes zero, and around it. More classes: the decay.
LEVELS, AROUND, GRAPH_DECAY = (0.2, 0.5), (0.97, 1.03), 1e-3
TWO_CLASS_SAMPLES = 3
GRAPH_CLASSES = (6, 10, 15)
SMALL = 8
CURVE_DEPTHS = (3, 4, 5, 6, 9)


@dataclass(frozen=True)
class Condition:
    """One problem and one kind of start.

    Attributes:
        num_classes: K.
        depth: L layers, ReLU after all but the last.
        samples: of each class.
        decay: one number for weights and features (dimensionless).
        start: an entry of `STARTS`.
    """

    num_classes: int
    depth: int
    samples: int
    decay: float
    start: str

    @property
    def program(self) -> str:
        """Name of the compiled program."""
        return f"relu_K{self.num_classes}_L{self.depth}"

    @property
    def theory(self) -> "Theory":
        """Losses and explicit points."""
        return theory(self.num_classes, self.depth, self.samples, self.decay)

    @property
    def problem(self) -> UfmProblem:
        """The problem at sample level: behind ReLU, features of a class need not be equal at the minimum."""
        return UfmProblem(
            (self.samples,) * self.num_classes,
            width_of(self.num_classes),
            self.depth,
            weight_decay=self.decay,
            feature_decay=self.decay,
            activation="relu",
        )


@dataclass(frozen=True)
class Scale:
    """Which problems are solved, as (classes, layers).

    Attributes:
        two_classes: depths for two classes.
        graphs: where the graph solution is lower than collapse, and where it is not.
        others: where no graph has K edges.
    """

    two_classes: tuple[int, ...] = (3, 4)
    graphs: tuple[tuple[int, int], ...] = ((6, 3), (6, 4), (10, 3), (10, 4))
    others: tuple[tuple[int, int], ...] = ((4, 4),)


DEFAULT = Scale()
# Compiling dominates the smallest run.
SMOKE = Scale(two_classes=(3,), graphs=((6, 4),), others=())


def scale_of(bench: Bench) -> Scale:
    """The smallest size where the experiment's own scale has few starts."""
    return SMOKE if bench.scale.num_seeds < SMALL else DEFAULT


@dataclass(frozen=True)
class Theory:
    """What theory says about a problem; the graph is None where no graph has K edges."""

    collapse_loss: float
    condition: float
    collapse: UfmParams
    graph_loss: float
    graph: UfmParams | None


@cache
def theory(num_classes: int, depth: int, samples: int, decay: float) -> Theory:
    """Losses and explicit points of the collapsed and of the graph solution. Call with 64-bit numbers on."""
    widths = (width_of(num_classes),) * depth
    loss, condition, collapse, graph = _theory(num_classes, depth, float(samples), decay, widths)
    rows = np.repeat(np.arange(num_classes), samples)

    def params(found: UfmParameters) -> UfmParams:
        return UfmParams(np.asarray(found.class_features)[rows], tuple(map(np.asarray, found.weights)), None)

    graph_loss, graph_params = (np.nan, None) if graph is None else (float(graph[0]), params(graph[1]))
    return Theory(float(loss), float(condition), params(collapse), graph_loss, graph_params)


@partial(jax.jit, static_argnums=(0, 1, 4))
def _theory(k: int, depth: int, samples: Any, decay: Any, widths: tuple[int, ...]):
    decays: dict[str, Any] = {"depth": depth, "weight_decay": decay, "feature_decay": decay}
    found = deep_relu_collapse(k, samples, **decays)
    graph = None
    if has_graph(k, depth):
        solution = srg_solution(k, samples, **decays)
        graph = solution.loss, srg_parameters(solution, widths)
    return found.loss, found.condition, mse_ufm_representative(found.minimizer, widths), graph


def has_graph(num_classes: int, depth: int) -> bool:
    """Whether a complete graph with at least 4 vertices has K edges, and there are layers enough to carry it."""
    return depth >= 3 and num_classes in GRAPH_CLASSES


def width_of(num_classes: int) -> int:
    """Width of every layer: graphs need K units in the last hidden layer; random starts profit from more."""
    return max(num_classes + 2, 8)


def conditions(scale: Scale) -> list[Condition]:
    """Every problem with every kind of start that it has, the largest first."""
    found = [Condition(k, depth, 1, GRAPH_DECAY, start) for k, depth in scale.graphs for start in STARTS[1:]]
    found += [Condition(k, depth, 1, GRAPH_DECAY, "random") for k, depth in scale.others]
    for depth in scale.two_classes:
        edge = theory(2, depth, TWO_CLASS_SAMPLES, 1.0).condition ** (-1 / (depth + 1))
        # Close around the edge by the wrong formula too, which lacks the samples: a control must be able to pass.
        wrong = TWO_CLASS_SAMPLES ** (1 / (depth + 1))
        levels = (*LEVELS, *AROUND, *(edge_side * wrong for edge_side in AROUND))
        found += [Condition(2, depth, TWO_CLASS_SAMPLES, level * edge, "random") for level in levels]
        # So close to its end the collapsed solution attracts few random starts.
        found.append(Condition(2, depth, TWO_CLASS_SAMPLES, AROUND[0] * edge, "collapse"))
    return sorted(found, key=lambda each: (-each.num_classes, -each.depth))


def predict(condition: Condition) -> dict[str, float]:
    """Theory's losses, and the decay in units of the critical one."""
    known, power = condition.theory, 1 / (condition.depth + 1)
    return {
        "collapse_loss": known.collapse_loss,
        "sampleless_loss": theory(condition.num_classes, condition.depth, 1, condition.decay).collapse_loss,
        "graph_loss": known.graph_loss,
        "level": known.condition**power,
        "sampleless_level": (known.condition / condition.samples) ** power,
    }


def curves(scale: Any) -> dict[str, tuple]:
    """Losses of the graph, collapsed and zero solutions against depth, with their coordinates.

    Args:
        scale: sizes of the run; the smallest one has two depths.

    Returns:
        Arguments of `xarray.Dataset` by name, dimensions `relu_classes` and `relu_depth`.
    """
    depths = CURVE_DEPTHS[:2] if scale.num_seeds < SMALL else CURVE_DEPTHS
    with jax.enable_x64(True):
        found = [[_losses(k, depth) for depth in depths] for k in GRAPH_CLASSES]
    values = np.asarray(found, dtype=float)
    dims, words = ("relu_classes", "relu_depth"), f"ReLU, squared error, n = 1, every decay {GRAPH_DECAY:g}"
    names = ("relu_graph_loss", "relu_collapse_loss", "relu_trivial_loss")
    return {
        "relu_classes": ("relu_classes", np.asarray(GRAPH_CLASSES), {"units": "classes", "definition": "K"}),
        "relu_depth": ("relu_depth", np.asarray(depths), {"units": "layers", "definition": "L"}),
        **{name: (dims, values[:, :, index], dimensionless(words)) for index, name in enumerate(names)},
    }


def _losses(num_classes: int, depth: int) -> tuple[float, float, float]:
    found = srg_solution(num_classes, 1.0, depth=depth, weight_decay=GRAPH_DECAY, feature_decay=GRAPH_DECAY)
    return float(found.loss), float(found.collapse_loss), float(found.trivial_loss)
