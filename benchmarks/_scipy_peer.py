"""SciPy's L-BFGS-B on the unconstrained feature model, one start at a time, with loss and gradient by hand in NumPy."""

import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from benchmarks._ufm_peers import LbfgsRuns, Reached, Start, in_rounds


def value_and_gradient(start: Start) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The objective of `_ufm_peers` and its gradient, both as functions of H, W_1..W_M in one vector.

    Args:
        start: of one seed (`Start.seed`); its arrays give the shapes.

    Returns:
        A function of the vector.
    """
    shapes = [array.shape for array in start.arrays]
    ends = np.cumsum([array.size for array in start.arrays])
    targets, labels, count = start.targets, start.labels, len(start.labels)
    decays = [start.feature_decay * start.copies, *[start.weight_decay] * len(start.weights)]
    rows = np.arange(count)

    def fit_of(outputs: np.ndarray) -> tuple[float, np.ndarray]:
        if start.loss == "mse":
            residual = outputs - targets
            return np.vdot(residual, residual) / (2 * count), residual / count
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        fit = float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels]))
        return fit, (exponentials / sums - targets) / count

    def call(vector: np.ndarray) -> tuple[float, np.ndarray]:
        arrays = [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]
        layers = [arrays[0]]
        for weight in arrays[1:]:
            layers.append(layers[-1] @ weight.T)
        value, slope = fit_of(layers[-1])
        gradients = []
        for layer, weight in zip(layers[-2::-1], arrays[:0:-1], strict=True):
            gradients.append(slope.T @ layer)
            slope = slope @ weight
        gradients = [slope, *gradients[::-1]]
        value += sum(decay * np.vdot(array, array) for decay, array in zip(decays, arrays, strict=True)) / 2
        parts = [(g + decay * a).ravel() for g, decay, a in zip(gradients, decays, arrays, strict=True)]
        return float(value), np.concatenate(parts)

    return call


def lbfgs(start: Start, bound: float, *, history: int, max_evaluations: int = 3000) -> LbfgsRuns:
    """`scipy.optimize.minimize(method="L-BFGS-B")` without bounds, seed after seed, stopped as `_ufm_peers.lbfgs`.

    At the first evaluation with loss <= bound; a search that ends before starts over from the point reached, without
    history; the seed counts as stalled when that gains nothing either, or after `max_evaluations`. With one thread:
    NumPy and SciPy each have a pool of their own, and with two threads these got in each other's way.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        rows = [_seed(start.seed(i), bound, history, max_evaluations) for i in range(len(start.features))]
    return LbfgsRuns(*(np.array(column) for column in zip(*rows, strict=True)))


def _seed(start: Start, bound: float, history: int, max_evaluations: int) -> tuple[float, float, int, bool]:
    began = time.perf_counter()
    call, losses = value_and_gradient(start), []
    vector = np.concatenate([array.ravel() for array in start.arrays])

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = call(point)
        losses.append(loss)
        if loss <= bound:
            raise Reached
        return loss, gradient

    def search(left: int) -> None:
        nonlocal vector
        options = {"maxcor": history, "ftol": 0, "gtol": 0, "maxfun": left, "maxiter": left}
        vector = minimize(evaluate, vector, jac=True, method="L-BFGS-B", options=options).x

    reached = in_rounds(search, losses, max_evaluations)
    return time.perf_counter() - began, min(losses), len(losses), reached
