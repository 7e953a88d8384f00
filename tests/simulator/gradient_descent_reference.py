"""Literal NumPy float64 reference of the two-layer network's training, gradients written out by hand."""

import numpy as np


def _logistic_slope(outputs, signs):
    return -signs / (1.0 + np.exp(signs * outputs)) / len(signs)


def _squared_slope(outputs, signs):
    return (outputs - signs) / len(signs)


SLOPES = {"logistic": _logistic_slope, "mse_signs": _squared_slope}
ACTIVATIONS = {
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}


def train_two_layer(
    kernel, readout, inputs, signs, *, loss, activation, optimizer, learning_rate, momentum, weight_decay, num_steps,
    train_readout=False,
):  # fmt: skip
    """Return kernel and readout after `num_steps` full-batch updates of f(x) = phi(x kernel) readout."""
    phi, slope = ACTIVATIONS[activation]
    weights = [np.array(kernel, dtype=np.float64), np.array(readout, dtype=np.float64)]
    velocity = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    for step in range(1, num_steps + 1):
        pre = inputs @ weights[0]
        outputs = phi(pre) @ weights[1]
        delta = SLOPES[loss](outputs, signs)
        gradients = [
            inputs.T @ (np.outer(delta, weights[1]) * slope(pre)) + weight_decay * weights[0],
            phi(pre).T @ delta + weight_decay * weights[1],
        ]
        for i in range(2 if train_readout else 1):
            if optimizer == "gd":
                weights[i] = weights[i] - learning_rate * gradients[i]
            elif optimizer in ("momentum", "nesterov"):
                velocity[i] = momentum * velocity[i] + gradients[i]
                change = gradients[i] + momentum * velocity[i] if optimizer == "nesterov" else velocity[i]
                weights[i] = weights[i] - learning_rate * change
            elif optimizer == "adam":
                velocity[i] = 0.9 * velocity[i] + 0.1 * gradients[i]
                second[i] = 0.999 * second[i] + 0.001 * gradients[i] ** 2
                scaled = velocity[i] / (1 - 0.9**step) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
                weights[i] = weights[i] - learning_rate * scaled
    return weights
