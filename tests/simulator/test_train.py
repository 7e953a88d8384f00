"""Training against a hand-written NumPy reference, and everything a run promises about keys, records and failures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import metrics, objectives, simulator
from tests.simulator.gradient_descent_reference import train_two_layer

DATA = simulator.MixtureData(simulator.cosine_mixture(dim=5, same_label_cosine=0.2, noise_std=0.1), 4, 3)
MULTI = simulator.MixtureData(simulator.cosine_mixture(num_labels=3, dim=7, noise_std=0.1), 4, 3)


def make(**changes) -> simulator.TrainConfig:
    model = simulator.TwoLayerSpec(width=24, activation=changes.pop("activation", "relu"), init_std=0.3)
    defaults = {"data": DATA, "model": model, "num_steps": 25, "num_records": 5, "learning_rate": 0.3}
    return simulator.TrainConfig(**{**defaults, "keep_params": True, **changes})


def run(config, key):
    # Optax raises its decay rates to an integer step count, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(simulator.train)(config, key)


def final_weights(config, key):
    history = run(config, key)
    model = simulator.trained_model(config, key, jax.tree.map(lambda leaf: leaf[-1], history.params))
    return history, np.asarray(model.kernel[...]), np.asarray(model.readout[...])


@pytest.mark.parametrize(
    ("optimizer", "activation", "loss", "weight_decay"),
    [
        ("gd", "relu", "logistic", 0.0),
        pytest.param("momentum", "identity", "mse_signs", 0.02, marks=pytest.mark.slow),
        ("nesterov", "tanh", "logistic", 0.02),
        pytest.param("adam", "relu", "mse_signs", 0.02, marks=pytest.mark.slow),
    ],
)
def test_two_layer_training_matches_the_numpy_reference(key, optimizer, activation, loss, weight_decay):
    config = make(
        activation=activation,
        optimizer=optimizer,
        loss=loss,
        weight_decay=weight_decay,
        momentum=0.8,
        learning_rate=0.05,
    )
    samples, _ = config.data.draw(jax.random.fold_in(key, 0))
    start = simulator.initial_model(config, key)
    _, kernel, readout = final_weights(config, key)
    expected, _ = train_two_layer(
        start.kernel[...], start.readout[...][:, 0], np.asarray(samples.inputs), 2.0 * np.asarray(samples.labels) - 1,
        loss=loss, activation=activation, optimizer=optimizer, learning_rate=0.05, momentum=0.8,
        weight_decay=weight_decay, num_steps=25,
    )  # fmt: skip
    # 25 updates accumulate a few hundred roundings; Adam divides by small second moments.
    tolerance = 1e-10 if kernel.dtype == np.float64 else 2e-4
    np.testing.assert_allclose(kernel, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(readout, np.asarray(start.readout[...]))


@pytest.mark.slow
def test_a_trained_readout_moves_with_the_reference(key):
    model = simulator.TwoLayerSpec(width=6, activation="identity", readout="trained", init_std=0.3)
    config = make(model=model, loss="mse_signs", weight_decay=0.01)
    samples, _ = config.data.draw(jax.random.fold_in(key, 0))
    start = simulator.initial_model(config, key)
    _, kernel, readout = final_weights(config, key)
    expected = train_two_layer(
        start.kernel[...], start.readout[...][:, 0], np.asarray(samples.inputs), 2.0 * np.asarray(samples.labels) - 1,
        loss="mse_signs", activation="identity", optimizer="gd", learning_rate=0.3, momentum=0.0, weight_decay=0.01,
        num_steps=25, train_readout=True,
    )  # fmt: skip
    tolerance = 1e-10 if kernel.dtype == np.float64 else 2e-4
    np.testing.assert_allclose(kernel, expected[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(readout[:, 0], expected[1], rtol=tolerance, atol=tolerance)


def test_records_are_what_the_metrics_say_of_the_kept_parameters(key):
    config = make(data=MULTI, loss="cross_entropy", weight_decay=0.01)
    history = jax.jit(simulator.train)(config, key)
    train_set, fresh_set = config.data.draw(jax.random.fold_in(key, 0))
    assert history.steps.tolist() == config.record_steps.tolist()
    for record in (0, len(history.steps) - 1):
        params = jax.tree.map(lambda leaf, t=record: leaf[t], history.params)
        model = simulator.trained_model(config, key, params)
        for samples, stored in ((train_set, history.train), (fresh_set, history.fresh)):
            features = model.features(samples.inputs)
            outputs = model(samples.inputs)
            fine = metrics.fine_structure(features, samples.labels, samples.fine_labels, num_classes=3, num_fine=6)
            collapse = metrics.collapse_metrics(
                features, samples.labels, num_classes=3, weight=model.readout[...].T, bias=None
            )
            tolerance = 1e-9 if outputs.dtype == jnp.float64 else 1e-3
            np.testing.assert_allclose(stored.fine.ratio[record], fine.ratio, rtol=tolerance)
            np.testing.assert_allclose(stored.collapse.nc1[record], collapse.nc1, rtol=tolerance)
            np.testing.assert_allclose(
                stored.loss[record], objectives.cross_entropy(outputs, samples.labels), rtol=tolerance
            )
            assert stored.accuracy[record] == pytest.approx(
                float(np.mean(np.asarray(outputs).argmax(1) == np.asarray(samples.labels)))
            )
            means = [np.asarray(outputs)[np.asarray(samples.fine_labels) == c].mean(0) for c in range(6)]
            np.testing.assert_allclose(stored.cluster_outputs[record], means, rtol=tolerance, atol=tolerance)
        penalty = 0.005 * sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))
        np.testing.assert_allclose(history.objective[record], history.train.loss[record] + penalty, rtol=1e-5)


def test_vmap_over_seeds_equals_lone_runs(key):
    config = make(weight_decay=0.01)
    keys = jax.random.split(key, 3)
    batch = jax.jit(jax.vmap(simulator.train, in_axes=(None, 0)))(config, keys)
    for row, lone_key in enumerate(keys):
        lone = jax.jit(simulator.train)(config, lone_key)
        tolerance = 1e-10 if lone.objective.dtype == jnp.float64 else 1e-4
        for leaf, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(lone), strict=True):
            np.testing.assert_allclose(leaf[row], expected, rtol=tolerance, atol=tolerance)
    assert not np.allclose(batch.objective[0], batch.objective[1])


def test_sgd_sees_every_sample_once_an_epoch(key):
    # With a linear scalar net and MSE one epoch of batch size 1 is a product of known maps: replay it by hand.
    config = make(
        activation="identity", optimizer="sgd", batch_size=1, loss="mse_signs", num_steps=16, learning_rate=0.05
    )
    samples, _ = config.data.draw(jax.random.fold_in(key, 0))
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), 0), 16))
    assert sorted(order.tolist()) == list(range(16))
    start = simulator.initial_model(config, key)
    kernel, readout = np.asarray(start.kernel[...], np.float64), np.asarray(start.readout[...], np.float64)[:, 0]
    inputs, signs = np.asarray(samples.inputs, np.float64), 2.0 * np.asarray(samples.labels) - 1
    for i in order:
        kernel = kernel - 0.05 * (inputs[i] @ kernel @ readout - signs[i]) * np.outer(inputs[i], readout)
    _, trained, _ = final_weights(config, key)
    np.testing.assert_allclose(trained, kernel, rtol=1e-4, atol=1e-5)


def test_cosine_schedule_ends_at_rest(key):
    config = make(schedule="cosine")
    still = make(schedule="constant")
    decayed, constant = (run(c, key).objective for c in (config, still))
    assert decayed[-1] > constant[-1]
    assert decayed[-1] < decayed[0]


def test_divergence_is_recorded(key):
    # Weight decay times learning rate is 1e14: every step multiplies the weights by as much, 25 of them by 1e350.
    history = run(make(learning_rate=1e10, weight_decay=1e4), key)
    assert not bool(history.finite)
    assert bool(jnp.isfinite(history.objective[0]))
    assert not bool(jnp.isfinite(history.objective[-1]))
    # A comparison with NaN is False, which must not count as a wrong, or right, prediction.
    assert bool(jnp.isnan(history.train.accuracy[-1]))
    assert bool(jnp.isnan(history.train.collapse.nc1[-1]))
    assert bool(jnp.isnan(history.train.fine.ratio[-1]))


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("scale", ["standard", "mean_field"])
def test_mlp_features_and_outputs_are_the_written_formula(key, activation, scale):
    spec = simulator.MLPSpec(widths=(5, 4), activation=activation, scale=scale)
    config = make(data=MULTI, model=spec, loss="cross_entropy")
    model = simulator.initial_model(config, key)
    x = np.asarray(MULTI.draw(key)[0].inputs)
    functions = {
        "identity": lambda z: z, "relu": lambda z: np.maximum(z, 0), "tanh": np.tanh,
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    }  # fmt: skip
    h = x
    for layer, expected in zip(model.layer_features(x), range(2), strict=True):
        h = functions[activation](
            h @ np.asarray(model.kernels[expected][...]) + np.asarray(model.biases[expected][...])
        )
        np.testing.assert_allclose(layer, h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(x), h @ np.asarray(model.readout[...]), rtol=1e-5, atol=1e-6)


def test_initial_weights_have_the_scale_asked_for(key):
    wide = simulator.TwoLayerSpec(width=4000, init_std=0.05)
    model = simulator.initial_model(make(model=wide), key)
    kernel, readout = np.asarray(model.kernel[...]), np.asarray(model.readout[...])
    # 20,000 Gaussian entries: six standard errors of a standard deviation are 3 %.
    assert kernel.std() == pytest.approx(0.05, rel=0.03)
    assert np.linalg.norm(readout) == pytest.approx(1.0, rel=1e-5)
    assert readout.sum() == pytest.approx(0.0, abs=1e-5)
    mean_field = simulator.initial_model(make(model=dataclasses.replace(wide, scale="mean_field")), key)
    np.testing.assert_allclose(np.abs(np.asarray(mean_field.readout[...])), 1 / 4000, rtol=1e-6)


def test_free_features_ignore_the_inputs(key):
    spec = simulator.UnconstrainedFeaturesSpec(num_samples=16, width=5)
    data = dataclasses.replace(DATA, fresh_per_cluster=None)
    config = make(data=data, model=spec, loss="cross_entropy", num_steps=3)
    model = simulator.initial_model(config, key)
    x = np.zeros((16, 5), dtype=np.asarray(model.free_features[...]).dtype)
    np.testing.assert_array_equal(model.features(x), model.free_features[...])
    assert np.isnan(np.asarray(model.features(x[:4]))).all()
    history = jax.jit(simulator.train)(config, key)
    assert history.fresh is None
    assert bool(history.finite)
    with pytest.raises(ValueError, match="`data` must have no fresh samples for free features"):
        simulator.train(dataclasses.replace(config, data=DATA), key)
    with pytest.raises(ValueError, match="num_samples` must be the number of training samples, 16, but is 15"):
        simulator.train(dataclasses.replace(config, model=dataclasses.replace(spec, num_samples=15)), key)
    with pytest.raises(ValueError, match="`batch_size` must be None for free features, but is 4"):
        simulator.train(dataclasses.replace(config, optimizer="sgd", batch_size=4), key)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "`loss` must be one of .* 'hinge'"),
        ({"optimizer": "lion"}, "`optimizer` must be one of .* 'lion'"),
        ({"schedule": "linear"}, "`schedule` must be one of"),
        ({"num_steps": 0}, "`num_steps` must be an integer >= 1, but is 0"),
        ({"num_steps": 2.5}, "`num_steps` must be an integer >= 1, but is 2.5"),
        ({"num_records": 1}, "`num_records` must be an integer >= 2"),
        ({"learning_rate": 0.0}, "`learning_rate` must be finite and > 0, but is 0"),
        ({"weight_decay": -1e-3}, "`weight_decay` must be finite and >= 0, but is -0.001"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be finite and >= 0, but is nan"),
        ({"momentum": 1.0}, "`momentum` must be finite and >= 0 and < 1, but is 1"),
        ({"batch_size": 4}, "`batch_size` must be None for `optimizer` 'gd'"),
        ({"optimizer": "sgd"}, "`batch_size` must be set for `optimizer` 'sgd'"),
        ({"data": MULTI}, "`loss` must be 'cross_entropy' or 'mse' for 3 labels"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: simulator.TwoLayerSpec(width=0), "`width` must be an integer >= 1, but is 0"),
        (lambda: simulator.TwoLayerSpec(width=-3), "`width` must be an integer >= 1, but is -3"),
        (lambda: simulator.TwoLayerSpec(width=3, activation="swish"), "`activation` must be one of .* 'swish'"),
        (lambda: simulator.TwoLayerSpec(width=3, scale="ntk"), "`scale` must be one of .* 'ntk'"),
        (lambda: simulator.TwoLayerSpec(width=3, readout="none"), "`readout` must be one of .* 'none'"),
        (lambda: simulator.TwoLayerSpec(width=3, init_std=-1.0), "`init_std` must be finite and >= 0, but is -1"),
        (lambda: simulator.MLPSpec(widths=()), "`widths` must name at least one"),
        (lambda: simulator.MLPSpec(widths=(4, 0)), "`widths` must be an integer >= 1, but is 0"),
        (lambda: simulator.UnconstrainedFeaturesSpec(num_samples=0, width=2), "`num_samples` must be an integer >= 1"),
    ],
)
def test_bad_models_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.usefixtures("own_errors")
def test_a_batch_larger_than_the_data_is_refused(key):
    with pytest.raises(ValueError, match="`batch_size` must be at most 16 samples, but is 99"):
        simulator.train(make(optimizer="sgd", batch_size=99), key)


@pytest.mark.usefixtures("own_errors")
def test_bad_fixed_data_are_refused():
    good = simulator.Samples(np.zeros((4, 2)), np.asarray([0, 1, 0, 1]), np.asarray([0, 1, 2, 3]))
    build = simulator.FixedData
    with pytest.raises(ValueError, match=r"`fresh.inputs` must have shape \(N, 2\), but has shape \(4, 3\)"):
        build(good, dataclasses.replace(good, inputs=np.zeros((4, 3))), 2, 4)
    with pytest.raises(ValueError, match=r"`train\.labels` must lie in 0\.\.0, but spans 0\.\.1"):
        build(good, good, 1, 4)
    with pytest.raises(ValueError, match=r"`train\.inputs` must be finite, but has 1 NaN or infinite of 8"):
        build(dataclasses.replace(good, inputs=np.asarray([[np.nan, 0.0]] + [[0.0, 0.0]] * 3)), good, 2, 4)
    with pytest.raises(ValueError, match=r"`train\.labels` must hold integers, but has dtype float64"):
        build(dataclasses.replace(good, labels=np.zeros(4)), good, 2, 4)
