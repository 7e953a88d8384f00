"""Networks with every parameter away from its start, fixed data, and what may not be trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nctheory import objectives, simulator

MIXTURE = simulator.cosine_mixture(num_labels=3, clusters_per_label=2, dim=7, noise_std=0.2)
X64 = jax.config.jax_enable_x64
TOLERANCE = 1e-12 if X64 else 1e-5


def build(spec, key, outputs=3):
    return spec.build(7, outputs, nnx.Rngs(key))


def test_mlp_with_nonzero_biases_is_the_written_formula(key):
    model = build(simulator.MLPSpec(widths=(6, 5), activation="tanh"), key)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    shifted = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3, leaf.dtype), params)
    model = nnx.merge(graph, shifted, rest)
    x = np.asarray(jax.random.normal(key, (4, 7), dtype=float))
    h = x
    for kernel, bias in zip(model.kernels, model.biases, strict=True):
        assert np.all(np.asarray(bias[...]) != 0)
        h = np.tanh(h @ np.asarray(kernel[...]) + np.asarray(bias[...]))
    np.testing.assert_allclose(model.features(x), h, rtol=TOLERANCE, atol=TOLERANCE)
    expected = h @ np.asarray(model.readout[...]) + np.asarray(model.readout_bias[...])
    np.testing.assert_allclose(model(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("scale", ["standard", "mean_field"])
def test_fixed_readouts_are_random_signs_of_the_right_size(key, scale):
    width = 400
    size = width**-0.5 if scale == "standard" else 1 / width
    for spec in (
        simulator.TwoLayerSpec(width=width, scale=scale),
        simulator.MLPSpec(widths=(width,), scale=scale, readout="fixed"),
    ):
        model = build(spec, key)
        readout = np.asarray(model.readout[...])
        np.testing.assert_allclose(np.abs(readout), size, rtol=1e-6)
        # 1,200 fair signs: six standard errors of their mean are 0.17; the columns are not copies of each other.
        assert abs(np.sign(readout).mean()) < 0.17
        assert len({column.tobytes() for column in readout.T}) == 3
        assert model.readout_bias is None
        trained = jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1])
        assert all(leaf.shape != readout.shape for leaf in trained)


def test_gelu_features_of_the_two_layer_network(key):
    model = build(simulator.TwoLayerSpec(width=5, activation="gelu", init_std=1.0), key)
    x = np.asarray(jax.random.normal(key, (4, 7), dtype=float))
    z = x @ np.asarray(model.kernel[...])
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    np.testing.assert_allclose(model.features(x), expected, rtol=10 * TOLERANCE, atol=10 * TOLERANCE)


def test_fixed_data_come_back_unchanged_for_every_key(key):
    train, fresh = (MIXTURE.sample(jax.random.fold_in(key, i), 2) for i in range(2))
    as_numpy = [jax.tree.map(np.asarray, part) for part in (train, fresh)]
    data = simulator.FixedData(*as_numpy, num_labels=3, num_fine=6)
    for seed in range(2):
        for got, want in zip(data.draw(jax.random.key(seed)), (train, fresh), strict=True):
            np.testing.assert_array_equal(got.inputs, want.inputs)
            np.testing.assert_array_equal(got.labels, want.labels)
            np.testing.assert_array_equal(got.fine_labels, want.fine_labels)
            assert got.inputs.dtype == jnp.zeros(()).dtype


def test_accuracy_of_a_broken_network_is_nan(key):
    config = simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, 2), model=simulator.MLPSpec(widths=(4,)), loss="cross_entropy"
    )
    model = simulator.initial_model(config, key)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    samples, _ = config.data.draw(key)

    @jax.jit
    def accuracy(factor):
        scaled = nnx.merge(graph, jax.tree.map(lambda leaf: leaf * factor, params), rest)
        return simulator.measurements(config, scaled, samples).accuracy

    one = jnp.ones((), dtype=float)
    np.testing.assert_allclose(accuracy(one), objectives.accuracy(model(samples.inputs), samples.labels))
    assert np.isnan(accuracy(one * jnp.nan))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("num_samples", "fresh", "optimizer", "batch_size", "message"),
    [
        (11, None, "gd", None, r"`model\.num_samples` must be the number of training samples, 12, but is 11"),
        (12, 2, "gd", None, "`data` must have no fresh samples for free features"),
        (12, None, "sgd", 4, "`batch_size` must be None for free features, but is 4"),
    ],
)
def test_free_features_refuse_samples_that_are_not_theirs(key, num_samples, fresh, optimizer, batch_size, message):
    config = simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, 2, fresh),
        model=simulator.UnconstrainedFeaturesSpec(num_samples=num_samples, width=4),
        loss="cross_entropy",
        optimizer=optimizer,
        batch_size=batch_size,
    )
    with pytest.raises(ValueError, match=message):
        simulator.train(config, key)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (
            lambda: simulator.GaussianMixture(np.eye(2), 0.1, (0.7, 1)),
            "`coarse_labels` must be an integer >= 0",
        ),
        (lambda: simulator.GaussianMixture(np.eye(2), 0.1, ()), r"`coarse_labels` must label at least one cluster"),
        (lambda: simulator.means_from_gram(np.zeros((0, 0)), 2), "`gram` must hold at least one mean"),
    ],
)
def test_empty_and_fractional_labellings_are_refused(build_it, message):
    with pytest.raises(ValueError, match=message):
        build_it()


@pytest.mark.parametrize(
    ("num_steps", "num_records", "expected"),
    [(60, 2, [0, 60]), (1, 2, [0, 1]), (100, 4, [0, 1, 10, 100]), (3, 9, [0, 1, 2, 3])],
)
def test_records_run_from_the_start_to_the_last_step(num_steps, num_records, expected):
    config = simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, 2),
        model=simulator.MLPSpec(widths=(4,)),
        loss="mse",
        num_steps=num_steps,
        num_records=num_records,
    )
    assert config.record_steps.tolist() == expected
