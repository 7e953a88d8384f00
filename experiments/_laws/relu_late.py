"""L2 as predicted from initial weights: features of noise-free orthogonal clusters, seed by seed and in expectation."""

import jax
import numpy as np

from _laws.bench import dimensionless, seed_keys, two_layer
from nctheory import simulator, theory


def orthogonal_mixture(base: simulator.TrainConfig) -> simulator.GaussianMixture:
    """The mixture of a run whose clusters are orthogonal and free of noise."""
    data = base.data
    if not isinstance(data, simulator.MixtureData):
        raise TypeError(f"L2 is about Gaussian mixtures, but the configuration draws from {type(data).__name__}.")
    return data.mixture


def predicted_features(base: simulator.TrainConfig, key: jax.Array, outputs: jax.Array | None = None) -> jax.Array:
    """Cluster features by L2 from the initial weights of this key, at the trained outputs or late in training."""
    mixture, model = orthogonal_mixture(base), two_layer(base, key)
    labels = np.asarray(mixture.coarse_labels, dtype=np.int32)
    weight = model.kernel[...].T
    margins = None if outputs is None else (2 * labels - 1).astype(outputs.dtype) * outputs
    means = mixture.means.astype(weight.dtype)
    return theory.relu_features(weight, model.readout[...][:, 0], means, labels, margins=margins)


def late_values(base: simulator.TrainConfig, seeds: list[int]) -> dict[str, tuple]:
    """What L2 predicts late in training for the initial weights of every seed, at their finite width.

    Two coins per neuron decide these values, so seeds scatter around the infinite-width limit by about 1/sqrt(width).
    Taking this known part off every seed's measurement leaves an interval several times narrower.
    """
    mixture = orthogonal_mixture(base)
    labels = np.asarray(mixture.coarse_labels, dtype=np.int32)

    def predict(key):
        features = predicted_features(base, key)
        structure = theory.fine_structure_from_gram(features @ features.T, labels, num_classes=2)
        return structure.ratio, structure.coarse_ratio

    predicted = jax.jit(jax.vmap(predict))(seed_keys(seeds))
    count = mixture.num_clusters // mixture.num_labels
    return {
        f"late_{name}_{count}_clusters": (
            "seed",
            np.asarray(values),
            dimensionless("late in training, by L2 at this width"),
        )
        for name, values in zip(("ratio", "coarse_ratio"), predicted, strict=True)
    }


def expected_late(clusters: int, width: int, draws: int) -> dict[str, tuple]:
    """Expectation of the same late-time values at infinite width, with its standard error, from weights alone.

    Means over initial weights that no training run uses, at this width m and at 4 m; (4 E(4m) - E(m))/3 removes the
    term of order 1/m. Knows nothing of the limits that the claims are about.
    """
    labels = np.repeat(np.arange(2, dtype=np.int32), clusters)
    limits, errors = {}, {}
    for factor, share in ((1, -1 / 3), (4, 4 / 3)):
        size = factor * width
        readout = np.where(np.arange(size) % 2 == 0, 1.0, -1.0).astype(np.float32) / np.sqrt(size, dtype=np.float32)

        def one_draw(key, size=size, readout=readout):
            weight = jax.random.normal(key, (size, 2 * clusters), dtype=np.float32)
            features = theory.relu_features(weight, readout, np.eye(2 * clusters, dtype=np.float32), labels)
            structure = theory.fine_structure_from_gram(features @ features.T, labels, num_classes=2)
            return {"ratio": structure.ratio, "coarse_ratio": structure.coarse_ratio}

        keys = jax.random.split(jax.random.fold_in(jax.random.key(2**32 - 1), size + clusters), draws)
        found = jax.jit(lambda keys, one_draw=one_draw: jax.lax.map(one_draw, keys, batch_size=50))(keys)
        for name, values in found.items():
            values = np.asarray(values, dtype=np.float64)
            limits[name] = limits.get(name, 0.0) + share * values.mean()
            errors[name] = np.hypot(errors.get(name, 0.0), share * values.std(ddof=1) / np.sqrt(draws))
    stored: dict[str, tuple] = {}
    for name in limits:
        words = "late in training at infinite width, mean over initial weights"
        stored[f"expected_{name}_{clusters}_clusters"] = ((), limits[name], dimensionless(words))
        stored[f"expected_{name}_{clusters}_clusters_error"] = ((), errors[name], dimensionless("its standard error"))
    return stored
