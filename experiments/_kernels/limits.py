"""Data of the kernel-limit experiment, the kernels of infinite width on them, and wrong kernels for the controls."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _shared.pixels import standardised

from nctheory import simulator, vision
from nctheory.theory.kernel_collapse import KernelCollapse, kernel_collapse
from nctheory.theory.lazy_limit import kernel_predictions
from nctheory.theory.network_kernels import NetworkKernels, kernel_layers

# Chosen so that variances neither vanish nor saturate over two hidden layers; pilots ran on seeds from 1000 on.
SCALES = {"erf": {"weight_std": 1.5, "bias_std": 0.2}, "relu": {"weight_std": 2**0.5, "bias_std": 0.2}}
OTHER = {"erf": "relu", "relu": "erf"}
NTK_PREDICTORS = ("limit", "activation", "derivative")
OUTPUT_PREDICTORS = ("limit", "readout", "derivative")
FEATURE_PREDICTORS = ("limit", "activation")


@dataclass(frozen=True)
class Problem:
    """A fixed labelled set, the same for every seed.

    Attributes:
        inputs: samples, fine classes taking turns, so that every prefix is nearly balanced; |x|^2/d is near 1.
        labels: coarse label of each sample.
        fine_labels: fine class of each sample.
    """

    inputs: np.ndarray
    labels: np.ndarray
    fine_labels: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of coarse labels."""
        return int(self.labels.max()) + 1

    @property
    def num_fine(self) -> int:
        """Number of fine classes."""
        return int(self.fine_labels.max()) + 1

    @property
    def targets(self) -> np.ndarray:
        """One-hot labels less their mean over labels."""
        return np.eye(self.num_classes)[self.labels] - 1 / self.num_classes


def _double(array: Any) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def mixture(samples_per_cluster: int = 33) -> Problem:
    """Six Gaussian clusters in 20 dimensions, two to a label."""
    dim, noise = 20, 0.6
    norm = (dim * (1 - noise**2)) ** 0.5
    clusters = simulator.cosine_mixture(
        num_labels=3, clusters_per_label=2, same_label_cosine=0.4, norm=norm, dim=dim, noise_std=noise
    )
    drawn = clusters.sample(jax.random.key(0), samples_per_cluster)
    return _taking_turns(_double(drawn.inputs), np.asarray(drawn.labels), np.asarray(drawn.fine_labels))


def digits(samples_per_digit: int = 20) -> Problem:
    """The first images of every digit of scikit-learn's set; digits k and k + 5 share a label."""
    images = vision.load("digits", "train")
    digit = np.asarray(images.labels)
    (pixels,) = standardised(images.images)
    rows = np.concatenate([np.flatnonzero(digit == k)[:samples_per_digit] for k in range(10)])
    fine = digit[rows].astype(np.int32)
    return _taking_turns(pixels[rows], fine % 5, fine)


def _taking_turns(inputs: np.ndarray, labels: np.ndarray, fine: np.ndarray) -> Problem:
    turn = np.array([np.sum(fine[:i] == fine[i]) for i in range(len(fine))])
    order = np.lexsort((fine, turn))
    return Problem(inputs[order], labels[order].astype(np.int32), fine[order].astype(np.int32))


PROBLEMS = {"mixture": mixture, "digits": digits}


@dataclass(frozen=True)
class Limits:
    """What infinite width predicts for one problem and activation, in float64.

    Attributes:
        features: feature kernels of the hidden layers, right and of the wrong activation.
        collapse: their collapse, [predictor][layer].
        tangent: collapse of the tangent kernel of what each hidden layer feeds, [predictor][layer]; the last layer's
            is that of the output.
        raw: collapse of the data.
        ntk: tangent kernels of the output at the points: right, of the wrong activation, with the wrong derivative
            kernel.
        ntk_collapse: their collapse, one a predictor.
        raw_points: collapse of the data at the points.
        response: of lazy training at every recorded step: right kernel, readout alone trained, wrong derivative.
        learning_rate: step size of training, `step_ratio` of the inverse curvature.
    """

    features: np.ndarray
    collapse: list[list[KernelCollapse]]
    tangent: list[list[KernelCollapse]]
    raw: KernelCollapse
    ntk: np.ndarray
    ntk_collapse: list[KernelCollapse]
    raw_points: KernelCollapse
    response: np.ndarray
    learning_rate: float


def wrong_derivative_ntk(kernels: NetworkKernels, activation: str, weight_std: float) -> np.ndarray:
    """NTK with a dot product of the samples' scales where E phi' phi' has their outer product.

    erf: (4/pi) / sqrt(sum_k (1 + 2 S_kk)^2 - 4 S_ij^2); ReLU: the angle from cos t = S_ij / sum_k S_kk. The kernel of
    a pair then depends on how many samples there are. The recursion is otherwise right.
    """
    nngp = _double(kernels.nngp)
    found = nngp[0]
    for before, after in pairwise(nngp):
        variance = np.diag(before)
        if activation == "erf":
            slopes = 4 / np.pi / np.sqrt(np.sum((1 + 2 * variance) ** 2) - 4 * before**2)
        else:
            slopes = (np.pi - np.arccos(before / np.sum(variance))) / (2 * np.pi)
        found = after + weight_std**2 * found * slopes
    return found


def predict(
    problem: Problem, activation: str, *, depth: int, num_train: int, num_points: int, steps, step_ratio=0.5
) -> Limits:
    """Compute every limit in float64.

    Args:
        problem: data.
        activation: "erf" or "relu".
        depth: number of hidden layers, >= 1.
        num_train: samples that are trained on, the first.
        num_points: samples of tangent kernels and outputs, the first.
        steps: updates after which outputs are compared.
        step_ratio: step size over the inverse curvature.

    Returns:
        The limits.

    Raises:
        ValueError: if the depth is below 1.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        options: dict[str, Any] = {**SCALES[activation], "depth": depth}
        both = (activation, OTHER[activation])
        pair = [kernel_layers(problem.inputs, activation=each, **options) for each in both]
        few = [kernel_layers(problem.inputs[:num_points], activation=each, **options) for each in both]
        wrong = wrong_derivative_ntk(few[0], activation, options["weight_std"])
        ntk = np.stack([_double(few[0].ntk[-1]), _double(few[1].ntk[-1]), wrong])
        curvature = np.linalg.eigvalsh(ntk[0, :num_train, :num_train])[-1] / num_train
        # A number that float32 holds, so that network and prediction take the same steps.
        rate = float(np.float32(step_ratio / curvature))
        times = rate * np.asarray(steps, dtype=np.float64)
        targets = problem.targets[:num_train]
        responses = [
            kernel_predictions(jnp.asarray(kernel), targets, times, learning_rate=rate).response
            for kernel in (ntk[0], few[0].nngp[-1], wrong)
        ]
        return Limits(
            features=np.stack([_double(each.features[1:]) for each in pair]),
            collapse=[[_collapse(problem, kernel) for kernel in each.features[1:]] for each in pair],
            tangent=[[_collapse(problem, kernel) for kernel in each.ntk[1:]] for each in pair],
            raw=_raw_collapse(problem, len(problem.inputs)),
            ntk=ntk,
            ntk_collapse=[_collapse(problem, kernel) for kernel in ntk],
            raw_points=_raw_collapse(problem, num_points),
            response=np.stack([_double(each) for each in responses]),
            learning_rate=rate,
        )


def _collapse(problem: Problem, kernel: Any, dim: int | None = None) -> KernelCollapse:
    """Collapse of a kernel of the first samples, as many as it has rows."""
    count = len(kernel)
    return kernel_collapse(
        kernel,
        problem.labels[:count],
        num_classes=problem.num_classes,
        fine_labels=problem.fine_labels[:count],
        num_fine=problem.num_fine,
        feature_dim=dim,
    )


def _raw_collapse(problem: Problem, count: int) -> KernelCollapse:
    rows, dim = problem.inputs[:count], problem.inputs.shape[1]
    return _collapse(problem, rows @ rows.T / dim, dim)
