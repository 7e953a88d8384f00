"""Theory against simulation on small systems, in float64: neither side imports the other, so agreement is evidence.

Every law comes with a predictor that is wrong, and must be seen to be wrong by the same measure.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import simulator, theory

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def double_precision():
    """The tolerances below are those of float64, whatever the precision of the session."""
    with jax.enable_x64(True):
        yield


def run(config, seeds=SEEDS):
    keys = [jax.random.key(seed) for seed in seeds]
    history = jax.jit(jax.vmap(simulator.train, in_axes=(None, 0)))(config, jnp.stack(keys))
    assert history.objective.dtype == jnp.float64
    assert np.asarray(history.finite).all()
    return keys, jax.tree.map(np.asarray, history)


def training_samples(config, key):
    return config.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))[0]


def two_layer(mixture, samples, **changes):
    model = {"activation": "identity", "init_std": 0.2, "width": 16, **changes.pop("model", {})}
    options = {"num_steps": 300, "num_records": 6, "learning_rate": 0.1, "weight_decay": 0.02, **changes}
    data = simulator.MixtureData(mixture, samples_per_cluster=samples)
    return simulator.TrainConfig(data=data, model=simulator.TwoLayerSpec(**model), **options)


@pytest.mark.parametrize("loss", ["logistic", "mse_signs"])
@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_memory_law_along_training(loss, momentum):
    mixture = simulator.cosine_mixture(dim=6, same_label_cosine=0.3, noise_std=0.1)
    optimizer = {} if momentum is None else {"optimizer": "momentum", "momentum": momentum}
    config = two_layer(mixture, 3, loss=loss, **optimizer)
    keys, history = run(config)
    rates = {"learning_rate": 0.1, "weight_decay": 0.02}
    factors = theory.memory_factor(config.record_steps, momentum=momentum or 0.0, **rates)
    # Gradient descent's factor for a momentum run, and momentum's for gradient descent.
    swapped = theory.memory_factor(config.record_steps, momentum=0.0 if momentum else 0.9, **rates)
    errors = {"law": 0.0, "swapped": 0.0, "no forgetting": 0.0, "memory alone": 0.0}
    for row, key in enumerate(keys):
        samples = training_samples(config, key)
        start = simulator.initial_model(config, key)
        weight, readout = start.kernel[...].T, start.readout[...][:, 0]
        means = np.stack([np.asarray(samples.inputs)[np.asarray(samples.fine_labels) == c].mean(0) for c in range(4)])
        pairs = np.asarray([(i, j) for i in range(4) for j in range(i)])
        delta = means[pairs[:, 0]] - means[pairs[:, 1]]
        for record in range(len(config.record_steps)):
            outputs = history.train.cluster_outputs[row, record, :, 0]
            shown = outputs[pairs[:, 0]] - outputs[pairs[:, 1]]
            measured = history.train.fine.class_distances[row, record][pairs[:, 0], pairs[:, 1]]
            for name, factor, visible in (
                ("law", factors[record], shown),
                ("swapped", swapped[record], shown),
                ("no forgetting", jnp.ones(()), shown),
                ("memory alone", factors[record], 0 * shown),
            ):
                predicted = theory.memory_distance(weight, readout, delta, visible, factor=factor)
                errors[name] = max(errors[name], float(np.max(np.abs(predicted / measured - 1))))
    # Three hundred updates round independently; distances of 0.1 carry their errors at 1e-13.
    assert errors["law"] < 1e-9
    assert min(errors["swapped"], errors["no forgetting"], errors["memory alone"]) > 1e-2


@pytest.fixture(scope="module")
def decayed():
    """Linear networks trained with weight decay on both layers until nothing moves."""
    with jax.enable_x64(True):
        config = two_layer(
            simulator.cross_pair_mixture(cosine=0.6, dim=6, noise_std=0.05), 3, loss="mse", optimizer="momentum",
            learning_rate=0.3, num_steps=6000, num_records=3, weight_decay=0.05, keep_params=True,
            model={"readout": "trained", "init_std": 0.3, "readout_std": 0.3},
        )  # fmt: skip
        return config, *run(config)


def test_trained_geometry_is_that_of_the_convex_programme(decayed):
    config, keys, history = decayed
    assert history.gradient_norm[:, -1].max() < 1e-12
    for row, key in enumerate(keys):
        samples = training_samples(config, key)
        targets = jax.nn.one_hot(samples.labels, 2, dtype=jnp.float64)
        params = jax.tree.map(lambda leaf, at=row: leaf[at, -1], history.params)
        features = np.asarray(simulator.trained_model(config, key, params).features(samples.inputs))
        gram = features @ features.T
        convex = theory.solve_nuclear_norm(samples.inputs, targets, weight_decay=0.05)
        ridge = theory.ridge_solution(samples.inputs, targets, weight_decay=0.05)
        assert abs(float(convex.certificate) - 1) < 1e-9
        assert abs(float(ridge.certificate) - 1) > 1e-2
        # The programme stops at a relative subgradient of 1e-10; its conditioning costs some digits.
        scale = np.abs(gram).max()
        np.testing.assert_allclose(gram, convex.feature_gram, rtol=0, atol=1e-6 * scale)
        assert np.abs(gram - np.asarray(ridge.feature_gram)).max() > 1e-2 * scale
        np.testing.assert_allclose(history.objective[row, -1], convex.objective, rtol=1e-9)
        groups = {"num_classes": 2, "num_fine": 4}
        labels = (samples.labels, samples.fine_labels)
        predicted = theory.fine_structure_from_gram(convex.feature_gram, *labels, **groups)
        wrong = theory.fine_structure_from_gram(ridge.feature_gram, *labels, **groups)
        trained = history.train.fine.ratio[row, -1]
        assert trained == pytest.approx(float(predicted.ratio), rel=1e-6)
        assert trained != pytest.approx(float(wrong.ratio), rel=1e-2)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_free_features_reach_the_predicted_minimum(loss):
    mixture = simulator.cosine_mixture(num_labels=3, dim=6, noise_std=0.1)
    config = simulator.TrainConfig(
        data=simulator.MixtureData(mixture, samples_per_cluster=2),
        model=simulator.UnconstrainedFeaturesSpec(num_samples=12, width=5),
        loss=loss,
        optimizer="momentum",
        learning_rate=1.0,
        weight_decay=0.01,
        num_steps=4000,
        num_records=3,
    )
    _, history = run(config)
    decays = {"weight_decay": 0.01, "feature_decay": 0.01}
    minimum = theory.free_features_minimizer(3, 4, loss=loss, **decays)
    other = theory.free_features_minimizer(3, 4, loss={"mse": "cross_entropy", "cross_entropy": "mse"}[loss], **decays)
    final = history.objective[:, -1]
    # At a minimum the objective is off by the square of what the parameters are off.
    np.testing.assert_allclose(final, float(minimum.loss_value), rtol=1e-10)
    assert np.abs(final / float(other.loss_value) - 1).min() > 0.1
    np.testing.assert_allclose(history.train.fine.ratio[:, -1], 0.0, atol=1e-12)
    # Mean outputs of clusters are the predicted logits of their label.
    expected = np.asarray(minimum.logits).T[np.asarray(mixture.coarse_labels)]
    np.testing.assert_allclose(history.train.cluster_outputs[:, -1], np.broadcast_to(expected, (3, 6, 3)), atol=1e-6)


@pytest.fixture(scope="module")
def initial_distances():
    """Same- and different-label distances of ReLU features of one sample set under 400 initial networks."""
    with jax.enable_x64(True):
        mixture = simulator.cosine_mixture(dim=6, same_label_cosine=0.4, noise_std=0.3)
        config = two_layer(mixture, 3, model={"activation": "relu", "width": 64, "init_std": 0.1})
        samples = training_samples(config, jax.random.key(0))

        def distances(key):
            features = simulator.initial_model(config, key).features(samples.inputs)
            means = jnp.stack([features[c * 3 : c * 3 + 3].mean(axis=0) for c in range(4)])
            return jnp.sum((means[:, None] - means[None, :]) ** 2, axis=-1)

        keys = jnp.stack([jax.random.key(seed) for seed in range(400)])
        return samples, np.asarray(jax.jit(jax.vmap(distances))(keys))


def test_initial_distances_are_those_of_the_arc_cosine_kernel(initial_distances):
    samples, measured = initial_distances
    groups = {"num_classes": 2, "num_fine": 4}
    labels = (samples.labels, samples.fine_labels)
    relu = theory.expected_relu_distances(samples.inputs, *labels, init_std=0.1, width=64, **groups).structure
    linear = theory.fine_structure_from_gram(64 * 0.1**2 * samples.inputs @ samples.inputs.T, *labels, **groups)
    upper = np.triu_indices(4, 1)
    mean, error = measured.mean(0)[upper], (measured.std(0, ddof=1) / 20)[upper]

    def deviation(expected):
        return np.abs(mean - np.asarray(expected.class_distances)[upper]) / error

    # Six correlated normal deviates: beyond 5.5 one experiment in four million.
    assert deviation(relu).max() < 5.5
    assert deviation(linear).min() > 5.5
