"""Image networks: features by name, statistics, gradients, dtypes, and images that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nctheory.vision import networks
from nctheory.vision.networks import _layers
from tests.vision.small_networks import FAMILIES, NUM_OUTPUTS, build, images, run, statistics

# Sums of a few hundred float32 products of size one.
ROUNDING = 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_by_name_and_depth(family):
    model, batch = build(family), images(family)
    model.eval()
    layers, features, logits = jax.jit(lambda x: (model.layer_features(x), model.features(x), model(x)))(batch)
    # The order of depth, which a plain dictionary loses in `jit`.
    assert tuple(layers) == model.layer_names == tuple(FAMILIES[family][2])
    assert {name: value.shape[1:] for name, value in layers.items()} == FAMILIES[family][2]
    np.testing.assert_array_equal(features, layers["features"])
    kernel, bias = (np.asarray(each[...], np.float64) for each in (model.classifier.kernel, model.classifier.bias))
    assert kernel.shape == (features.shape[1], NUM_OUTPUTS)
    expected = np.asarray(features, np.float64) @ kernel + bias
    np.testing.assert_allclose(logits, expected, rtol=ROUNDING, atol=ROUNDING)
    assert all(np.asarray(value).std() > 0.01 for value in layers.values())


def test_order_and_values_without_jit_and_in_flax_transformations():
    model, batch = build("mlp"), images("mlp")
    model.eval()
    layers = model.layer_features(batch)
    compiled = nnx.jit(lambda model, x: model.layer_features(x))(model, batch)
    assert tuple(layers) == tuple(compiled) == model.layer_names
    for name, value in layers.items():
        np.testing.assert_allclose(compiled[name], value, rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(model(batch), run(model, batch)[0], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_takes_samples_one_by_one(family):
    model, batch = build(family), images(family)
    before = statistics(nnx.state(model, nnx.BatchStat))
    assert len(before) >= 6
    model.eval()
    logits, unchanged = run(model, batch)
    order = np.array([2, 0, 3, 0])
    np.testing.assert_allclose(run(model, batch[order])[0], logits[order], rtol=ROUNDING, atol=ROUNDING)
    for path, value in before.items():
        np.testing.assert_array_equal(unchanged[path], value)
    model.train()
    in_training, after = run(model, batch)
    assert np.abs(in_training - logits).max() > 1e-3
    assert all(np.all(after[path] != before[path]) for path in before)


def test_running_statistics_move_by_a_tenth(key):
    layer = _layers.BatchNorm(5, nnx.Rngs(0), jnp.float32)
    x = 3 + 2 * np.asarray(jax.random.normal(key, (6, 4, 3, 5), dtype="float32"), np.float64)
    mean, var = np.zeros(5), np.ones(5)
    for step in range(3):
        batch = x * (1 + step)
        y = layer(jnp.asarray(batch, jnp.float32))
        centred = batch - batch.mean((0, 1, 2))
        mean = 0.9 * mean + 0.1 * batch.mean((0, 1, 2))
        var = 0.9 * var + 0.1 * (centred**2).mean((0, 1, 2))
        np.testing.assert_allclose(y, centred / np.sqrt((centred**2).mean((0, 1, 2)) + 1e-5), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(layer.var[...], var, rtol=1e-5)


def test_normalisation_of_bfloat16_is_done_in_float32(key):
    layer = _layers.BatchNorm(1, nnx.Rngs(0), jnp.bfloat16)
    # bfloat16 knows 256 and 258, but nothing between them.
    layer.mean[...] = jnp.full(1, 256.5, jnp.float32)
    layer.eval()
    y = layer(jnp.full((2, 1), 258, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.5, rtol=1e-2)
    layer.train()
    x = (8 + jax.random.normal(key, (512, 1))).astype(jnp.bfloat16)
    layer.mean[...] = jnp.zeros(1, jnp.float32)
    layer(x)
    exact = np.asarray(x.astype(jnp.float32), np.float64)
    assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
    np.testing.assert_allclose(layer.mean[...], 0.1 * exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * exact.var(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_computes_on_float32_parameters(family):
    full, half = build(family), build(family, dtype=jnp.bfloat16)
    batch = images(family)
    for model in (full, half):
        model.eval()
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    *blocks, last = jax.eval_shape(half.layer_features, batch).values()
    assert all(block.dtype == jnp.bfloat16 for block in blocks)
    assert last.dtype == jnp.float32
    logits, exact = run(half, batch)[0], run(full, batch)[0]
    assert logits.dtype == exact.dtype == jnp.float32
    difference = np.abs(logits - exact).max() / np.abs(exact).max()
    # bfloat16 rounds to 1 part in 256; a dozen layers in a row of such roundings.
    assert 1e-4 < difference < 0.1
    half.train()
    assert {value.dtype for value in run(half, batch)[1].values()} == {np.dtype("float32")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient(family):
    graph, params, stats = nnx.split(build(family), nnx.Param, nnx.BatchStat)
    batch = images(family, 8)
    target = np.random.default_rng(8).standard_normal((8, NUM_OUTPUTS)).astype(np.float32)

    @jax.jit
    def loss(params):
        return jnp.mean((nnx.merge(graph, params, stats, copy=True)(batch) - target) ** 2)

    gradient = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    assert len(gradient) > 5
    for path, value in gradient:
        largest = np.abs(value[...]).max()
        if family == "vgg" and path[-2:] == ("conv", "bias"):
            # What is left is rounding of the sums that cancel, whose terms are of the kernel gradient's size: a few
            # float32 epsilons of it, how many depends on the processor.
            terms = np.abs(dict(gradient)[(*path[:-1], "kernel")][...]).max()
            assert largest < 16 * np.finfo(np.float32).eps * terms, f"{path} is cancelled by the normalisation"
        else:
            assert largest > 1e-4, path


def test_convolution_biases_before_normalisation_change_nothing():
    model, batch = build("vgg"), images("vgg")
    before = run(model, batch)[0]
    for block in model.blocks:
        block.conv.bias[...] = block.conv.bias[...] + 1
    np.testing.assert_allclose(run(model, batch)[0], before, rtol=1e-3, atol=1e-3)
    model.eval()
    assert np.abs(run(model, batch)[0] - before).max() > 0.01


def test_seeds_of_the_mlp_side_by_side():
    spec, image_shape, _ = FAMILIES["mlp"]
    batch = images("mlp")

    def start(seed):
        _, state = nnx.split(spec.build(image_shape, NUM_OUTPUTS, nnx.Rngs(jax.random.key(seed))))
        return state

    def run_once(state):
        graph = nnx.graphdef(nnx.eval_shape(lambda: spec.build(image_shape, NUM_OUTPUTS, nnx.Rngs(0))))
        model = nnx.merge(graph, state)
        return model(batch), nnx.state(model, nnx.BatchStat)

    start, single = jax.jit(start), jax.jit(run_once)
    together = jax.jit(jax.vmap(run_once))(jax.jit(jax.vmap(start))(jnp.arange(3)))
    for seed in range(3):
        alone = single(start(seed))
        assert jax.tree.all(
            jax.tree.map(lambda all_, one: np.allclose(all_[seed], one, rtol=1e-5, atol=1e-5), together, alone)  # noqa: B023
        )
    assert np.abs(together[0][0] - together[0][1]).max() > 0.01


def test_initial_weights_have_their_stated_spread(key):
    rngs = nnx.Rngs(key)
    conv = np.asarray(_layers.conv(24, 40, 3, rngs, jnp.float32).kernel[...])
    unit = _layers.DenseUnit(90, 80, rngs, jnp.float32, activation="relu", normalised=False)
    tanh = _layers.DenseUnit(90, 80, rngs, jnp.float32, activation="tanh", normalised=False)
    for values, variance in (
        (conv, 2 / (9 * 40)),
        (np.asarray(unit.linear.kernel[...]), 2 / 90),
        (np.asarray(tanh.linear.kernel[...]), 1 / 90),
    ):
        # A normal sample's variance has relative standard error sqrt(2/n); five of them, and not fan_in for fan_out.
        assert abs(values.var() / variance - 1) < 5 * (2 / values.size) ** 0.5 < 0.1
        assert abs(values.mean()) < 5 * (variance / values.size) ** 0.5
    classifier = _layers.linear_classifier(64, 50, rngs)
    kernel = np.asarray(classifier.kernel[...])
    assert 0.98 / 8 < np.abs(kernel).max() <= 1 / 8
    assert abs(kernel.mean()) < 5 * (1 / (3 * 64 * kernel.size)) ** 0.5
    assert not np.any(classifier.bias[...])
    assert not np.any(unit.linear.bias[...])


def test_activations_are_passed_on(key):
    x = images("mlp")
    for name in _layers.ACTIVATIONS:
        spec = networks.MlpSpec(widths=(4,), activation=name)
        model = spec.build(FAMILIES["mlp"][1], 2, nnx.Rngs(key))
        linear = np.asarray(x, np.float64).reshape(4, -1) @ np.asarray(model.head.linear.kernel[...], np.float64)
        expected = {
            "identity": linear,
            "relu": np.maximum(linear, 0),
            "leaky_relu": np.where(linear > 0, linear, 0.01 * linear),
            "gelu": 0.5 * linear * (1 + np.tanh(np.sqrt(2 / np.pi) * (linear + 0.044715 * linear**3))),
            "silu": linear / (1 + np.exp(-linear)),
            "tanh": np.tanh(linear),
            "sigmoid": 1 / (1 + np.exp(-linear)),
        }[name]
        np.testing.assert_allclose(model.features(x), expected, rtol=ROUNDING, atol=ROUNDING)


def test_images_of_another_kind_are_refused(own_errors):
    model = build("mlp")
    model.eval()
    with pytest.raises(ValueError, match=r"`images` must have shape \(N, 3, 2, 2\), but has shape \(4, 2, 3, 2\)"):
        model(jnp.zeros((4, 2, 3, 2)))
    with pytest.raises(ValueError, match=r"`images` must hold normalised real numbers, but has dtype uint8"):
        jax.jit(model.features)(np.zeros((4, 3, 2, 2), np.uint8))
    # NumPy images of another precision are cast.
    assert jax.eval_shape(model.features, np.ones((2, 3, 2, 2))).dtype == jnp.float32
