"""Literal minimisation over all weights and features, sample by sample: the truth of the cross-entropy tests."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize


@dataclass
class Trained:
    """One converged run."""

    loss: float
    weights: list
    features: np.ndarray
    bias: np.ndarray
    sizes: np.ndarray

    @property
    def head(self):
        """Product of all layers."""
        product = self.weights[0]
        for w in self.weights[1:]:
            product = w @ product
        return product

    @property
    def class_features(self):
        """First sample of each class, one a row."""
        return self.features[:, np.cumsum(self.sizes) - self.sizes].T


def loss_and_gradient(weights, features, bias, sizes, decays, feature_decay, bias_decay):
    """Regularised cross-entropy and its gradient by the chain rule; `bias_decay` None means no bias."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    total, columns = labels.size, np.arange(labels.size)
    layers = [features]
    for w in weights:
        layers.append(w @ layers[-1])
    z = layers[-1] + bias[:, None]
    top = z.max(axis=0)
    log_sum = top + np.log(np.exp(z - top).sum(axis=0))
    value = np.mean(log_sum - z[labels, columns]) + feature_decay / 2 * np.sum(features**2)
    value += sum(d / 2 * np.sum(w**2) for d, w in zip(decays, weights, strict=True))
    g = np.exp(z - log_sum)
    g[labels, columns] -= 1
    g /= total
    bias_gradient = np.zeros_like(bias)
    if bias_decay is not None:
        value += bias_decay / 2 * np.sum(bias**2)
        bias_gradient = g.sum(axis=1) + bias_decay * bias
    gradients = []
    for layer, w, d in zip(layers[-2::-1], weights[::-1], decays[::-1], strict=True):
        gradients.append(g @ layer.T + d * w)
        g = w.T @ g
    return value, gradients[::-1], g + feature_decay * features, bias_gradient


def train(sizes, decays, feature_decay, *, seed, dim, bias_decay=None, nonnegative=False, scale=1.0) -> Trained:
    """L-BFGS from a random start; hidden widths equal `dim`."""
    sizes = np.asarray(sizes)
    k, total = len(sizes), int(sizes.sum())
    shapes = [(dim, dim)] * (len(decays) - 1) + [(k, dim), (dim, total), (k,)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def unpack(flat):
        *weights, features, bias = (
            part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)
        )
        return weights, features, bias if bias_decay is not None else np.zeros(k)

    def objective(flat):
        weights, features, bias = unpack(flat)
        value, *gradients = loss_and_gradient(weights, features, bias, sizes, decays, feature_decay, bias_decay)
        return value, np.concatenate([g.ravel() for g in (*gradients[0], gradients[1], gradients[2])])

    start = scale * np.random.default_rng(seed).normal(size=ends[-1])
    bounds = None
    if nonnegative:
        start = np.abs(start)
        first = ends[-3]
        bounds = [(None, None)] * first + [(0, None)] * (ends[-2] - first) + [(None, None)] * k
    options = {"maxiter": 20000, "maxfun": 25000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 50}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options, bounds=bounds)
    return Trained(float(best.fun), *unpack(best.x), sizes)


def gradient_norm(weights, features, bias, sizes, decays, feature_decay, bias_decay=None) -> float:
    """Largest entry of the gradient at given parameters; `features` one a class (rows), repeated for its samples."""
    columns = np.repeat(np.asarray(features).T, sizes, axis=1)
    _, by_weight, by_features, by_bias = loss_and_gradient(
        [np.asarray(w) for w in weights], columns, np.asarray(bias), sizes, decays, feature_decay, bias_decay
    )
    return max(np.abs(g).max() for g in (*by_weight, by_features, by_bias))
