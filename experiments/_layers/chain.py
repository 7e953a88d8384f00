"""A deep linear network on few images: what every layer does is known in closed form from the data alone.

Derived here. M square layers without bias start at eps times an orthogonal matrix and follow the gradient of
|f - y|^2/(2N) on N images in d >= N dimensions. The smallest interpolating map W* = Y X^+ has K singular values sigma_k
and right singular vectors v_k. Gradient flow from a balanced start keeps the layers balanced, so that each of them
multiplies the component along v_k by sigma_k^(1/M) and, to first order in eps, whatever is orthogonal to all v_k by
eps. W* sends every image of a class to one point, so that differences within classes lie in the second part and
differences between classes mostly in the first: tr Sigma_W/tr Sigma_B falls by about (eps/sigma^(1/M))^2 from layer to
layer, while the class means' Gram matrix moves from that of the inputs to the identity.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Float, Int

from _layers.conditions import digits
from nctheory import simulator
from nctheory._types import AnyArray
from nctheory.simulator.deep_linear import rotation

_NUM_RECORDS = 2


@dataclasses.dataclass(frozen=True)
class ChainSetting:
    """Numbers of the deep linear network.

    Attributes:
        depth: number M of layers.
        start: eps, all singular values of every initial layer.
        images_per_class: the first images of each class in the order of the set.
        learning_rate: of full-batch gradient descent; small, because large steps leave gradient flow.
        num_steps: updates.
    """

    depth: int = 5
    start: float = 0.3
    images_per_class: int = 2
    learning_rate: float = 0.1
    num_steps: int = 20000


class ChainHistory(NamedTuple):
    """What is kept of one network: objective, kernels of layers 1..M-1 at both records, whether it stayed finite."""

    objective: Any
    kernels: tuple[Any, ...]
    finite: Any


def samples(setting: ChainSetting) -> simulator.Samples:
    """The first digits of every class, scaled to a mean square length of 1."""
    whole = digits()
    labels = np.asarray(whole.labels)
    rows = np.concatenate([np.flatnonzero(labels == k)[: setting.images_per_class] for k in range(10)])
    inputs = np.asarray(whole.inputs)[rows]
    return simulator.Samples(inputs / np.sqrt((inputs**2).sum(1).mean()), labels[rows], labels[rows])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChainSpec:
    """Specification of the network: `DeepLinear` without backbone and bias, from a balanced orthogonal start.

    `DeepLinearSpec` draws orthogonal layers too, but under `vmap` the layers' factorisations are batches that XLA may
    start at the same time on a CPU, where each then waits for threads that the other holds, for ever (JAX 0.10.2). Here
    they follow one another.

    Attributes:
        depth: number M of layers.
        start: eps, all singular values of every initial layer.
    """

    depth: int = dataclasses.field(metadata={"static": True})
    start: Any

    def build(self, input_dim: int, num_outputs: int, rngs: nnx.Rngs) -> simulator.DeepLinear:
        """Build the network with weights drawn from `rngs`; every layer but the last is square."""
        spec = simulator.DeepLinearSpec(widths=(input_dim,) * (self.depth - 1), bias=False)
        model = spec.build(input_dim, num_outputs, rngs)
        draws = jax.random.normal(rngs.params(), (self.depth, input_dim, input_dim), dtype=float)
        layers = jnp.asarray(self.start, dtype=float) * lax.map(rotation, draws)
        model.linear = nnx.List([nnx.Param(layer) for layer in layers[:-1]])
        model.readout = nnx.Param(layers[-1][:, :num_outputs])
        return model


def train_config(setting: ChainSetting) -> simulator.TrainConfig:
    """Training of the network on `samples`, of which the first record is the untrained network."""
    few = samples(setting)
    return simulator.TrainConfig(
        data=simulator.FixedData(few, few, num_labels=10, num_fine=10),
        model=ChainSpec(setting.depth, setting.start),
        loss="mse",
        optimizer="gd",
        learning_rate=setting.learning_rate,
        num_steps=setting.num_steps,
        num_records=_NUM_RECORDS,
        keep_params=True,
    )


def train(config: simulator.TrainConfig, key: jax.Array) -> ChainHistory:
    """Train one network: the objective and all kernels but the last, first layer first, at both records."""
    history = simulator.train(config, key)
    kernels = tuple(jax.tree.leaves(history.params["linear"]))
    return ChainHistory(history.objective, kernels, history.finite)


def measure(setting: ChainSetting, kernels: Any) -> dict[str, Any]:
    """Compression and discrimination at layers 0 (the inputs) to M - 1 of every seed and record, in double precision.

    Args:
        setting: the numbers of the network.
        kernels: weights of the first M - 1 layers, (seed, record, inputs, outputs) each, first layer first.

    Returns:
        "ratio" and "discrimination", each (seed, record, layer), and the same of the prediction, each (layer).
    """
    few = samples(setting)
    inputs, labels = np.asarray(few.inputs, dtype=np.float64), np.asarray(few.labels)
    features = [np.broadcast_to(inputs, (*kernels[0].shape[:2], *inputs.shape))]
    for kernel in kernels:
        features.append(features[-1] @ np.float64(kernel))
    measured = np.array([[[_statistics(part, labels) for part in record] for record in each] for each in features])
    predicted = np.array([_statistics(each, labels) for each in predicted_features(inputs, labels, setting)])
    return {
        "ratio": np.moveaxis(measured[..., 0], 0, -1),
        "discrimination": np.moveaxis(measured[..., 1], 0, -1),
        "predicted_ratio": predicted[:, 0],
        "predicted_discrimination": predicted[:, 1],
    }


def predicted_features(
    inputs: Float[np.ndarray, "N d"], labels: Int[np.ndarray, " N"], setting: ChainSetting
) -> list[Float[np.ndarray, "N _"]]:
    """Features at layers 0..M-1 that the balanced flow predicts, up to a rotation of each layer.

    Args:
        inputs: the images, linearly independent.
        labels: their classes.
        setting: gives M and eps.

    Returns:
        One array a layer.
    """
    targets = np.eye(labels.max() + 1)[labels]
    left, values, _ = np.linalg.svd(np.linalg.pinv(inputs) @ targets, full_matrices=False)
    learned = inputs @ left
    rest = inputs - learned @ left.T
    return [
        np.concatenate([learned * values ** (layer / setting.depth), rest * setting.start**layer], axis=1)
        for layer in range(setting.depth)
    ]


def _statistics(features: Float[AnyArray, "N d"], labels: Int[np.ndarray, " N"]) -> tuple[float, float]:
    """Trace ratio tr Sigma_W/tr Sigma_B, and 1 - the largest cosine between two class means."""
    features = np.asarray(features)
    means = np.stack([features[labels == k].mean(0) for k in range(labels.max() + 1)])
    within, between = features - means[labels], means - means.mean(0)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1.0)
    return float((within**2).sum(1).mean() / (between**2).sum(1).mean()), float(1 - cosines.max())
