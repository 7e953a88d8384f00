"""Image networks: sizes counted by hand, features by name, statistics, dtypes, and what is refused."""

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


def conv_size(channels_in, channels_out, size=3, *, bias=False):
    return size * size * channels_in * channels_out + (channels_out if bias else 0)


def resnet_size(blocks, widths, channels=3, outputs=10):
    total, before = conv_size(channels, widths[0]) + 2 * widths[0], widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            total += conv_size(before, width) + 2 * width + conv_size(width, width) + 2 * width
            if block == 0 and stage > 0:
                total += conv_size(before, width, 1) + 2 * width
            before = width
    return total + before * outputs + outputs


def vgg_size(widths, *, bias=True, norm=True):
    pairs = zip((3, *widths), widths, strict=False)
    total = sum(conv_size(a, b, bias=bias) + (2 * b if norm else 0) for a, b in pairs)
    return total + widths[-1] * 10 + 10


def densenet_bc_size(layers, growth):
    channels = 2 * growth
    total = conv_size(3, channels)
    for stage in range(3):
        for _ in range(layers):
            inner = 4 * growth
            total += 2 * channels + conv_size(channels, inner, 1) + 2 * inner + conv_size(inner, growth)
            channels += growth
        if stage < 2:
            total += 2 * channels + conv_size(channels, channels // 2, 1)
            channels //= 2
    return total + 2 * channels + channels * 10 + 10


def densenet_size(layers, growth):
    channels = 16
    total = conv_size(3, channels)
    for stage in range(3):
        for _ in range(layers):
            total += 2 * channels + conv_size(channels, growth)
            channels += growth
        if stage < 2:
            total += 2 * channels + conv_size(channels, channels, 1)
    return total + 2 * channels + channels * 10 + 10


VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG19 = (64, 64, 128, 128, *4 * (256,), *8 * (512,))
# Name, the published or otherwise known number of parameters (None: no such number at hand), and the sum by hand.
SIZES = [
    ("resnet18", 11_173_962, resnet_size((2, 2, 2, 2), (64, 128, 256, 512))),
    ("resnet18-w16", None, resnet_size((2, 2, 2, 2), (16, 32, 64, 128))),
    ("resnet-small", None, resnet_size((1, 1, 1, 1), (16, 32, 64, 128))),
    ("vgg11", 9_231_114, vgg_size(VGG11)),
    ("vgg16", 14_728_266, vgg_size(VGG16)),
    ("vgg19", 20_040_522, vgg_size(VGG19)),
    ("vgg16-w8", None, vgg_size(tuple(width // 8 for width in VGG16))),
    ("densenet-bc-100-12", 769_162, densenet_bc_size(16, 12)),
    ("densenet-bc-40-12", 176_122, densenet_bc_size(6, 12)),
    ("mlp", None, 3072 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
]


@pytest.mark.parametrize(("name", "known", "by_hand"), SIZES, ids=[name for name, *_ in SIZES])
def test_numbers_of_parameters(name, known, by_hand):
    """Running statistics do not count."""
    assert known is None or by_hand == known
    assert networks.num_parameters(networks.network(name), (32, 32, 3), 10) == by_hand


def test_numbers_of_parameters_of_the_variants():
    count = networks.num_parameters
    # Published as 1.0 M: DenseNet of depth 40 and growth 12 without bottleneck and compression.
    plain = networks.DenseNetSpec(depth=40, compression=1.0, bottleneck=False)
    assert count(plain, (32, 32, 3), 10) == densenet_size(12, 12) == 1_019_722
    no_bias = networks.VggSpec("11", conv_bias=False)
    assert count(no_bias, (32, 32, 3), 10) == vgg_size(VGG11, bias=False) == 9_231_114 - sum(VGG11)
    assert count(networks.VggSpec("11", batch_norm=False), (32, 32, 3), 10) == vgg_size(VGG11, norm=False)
    one_channel = resnet_size((1, 1, 1, 1), (16, 32, 64, 128), channels=1, outputs=5)
    assert count(networks.network("resnet-small"), (28, 28, 1), 5) == one_channel
    normalised = networks.MlpSpec(widths=(6, 5), batch_norm=True)
    assert count(normalised, (2, 2, 1), 3) == (4 * 6 + 12) + (6 * 5 + 10) + (5 * 3 + 3)


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
            assert largest < 1e-6, f"{path} is cancelled by the normalisation that follows"
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


def forward_shapes(spec, image_shape):
    def run():
        model = spec.build(image_shape, 4, nnx.Rngs(0))
        images = jnp.zeros((2, *image_shape), jnp.float32)
        return model.layer_features(images), model(images)

    layers, logits = jax.eval_shape(run)
    assert logits.shape == (2, 4)
    return {name: each.shape[1:] for name, each in layers.items()}


@pytest.mark.parametrize(
    ("spec", "smallest"),
    [
        (networks.network("resnet-small"), 8),
        (networks.network("vgg11-w8"), 17),
        (networks.DenseNetSpec(depth=10), 4),
        (networks.network("mlp"), 1),
    ],
)
def test_image_sizes(own_errors, spec, smallest):
    assert spec.smallest_side == smallest
    for shape in ((28, 28, 1), (96, 96, 3), (8, 8, 1), (smallest, 29, 2), (smallest - 1, 29, 2), (29, smallest - 1, 1)):
        if min(shape[:2]) >= smallest:
            assert all(min(each) >= 1 for each in forward_shapes(spec, shape).values())
        elif smallest == 1:
            with pytest.raises(ValueError, match=r"Argument `image_shape` must be an integer >= 1, but is 0"):
                forward_shapes(spec, shape)
        else:
            with pytest.raises(ValueError, match=rf"`image_shape` must have height and width >= {smallest} for .* but"):
                forward_shapes(spec, shape)


def test_sides_through_the_stages():
    mnist = forward_shapes(networks.network("resnet-small"), (28, 28, 1))
    assert [mnist[f"stage{stage}.block1"] for stage in (1, 2, 3, 4)] == [
        (28, 28, 16),
        (14, 14, 32),
        (7, 7, 64),
        (4, 4, 128),
    ]
    vgg = forward_shapes(networks.network("vgg16-w8"), (32, 32, 3))
    last = [vgg["stage1.block2"], vgg["stage2.block2"], *(vgg[f"stage{stage}.block3"] for stage in (3, 4, 5))]
    assert last == [(16, 16, 8), (8, 8, 16), (4, 4, 32), (2, 2, 64), (1, 1, 64)]


def test_names_and_specifications():
    names = networks.network_names()
    assert list(names) == sorted(names)
    assert {"resnet18", "resnet18-w16", "resnet-small", "vgg11", "vgg16", "vgg19", "mlp"} <= set(names)
    assert {"densenet-bc-100-12", "densenet-bc-40-12"} <= set(names)
    specs = [networks.network(name) for name in names]
    assert len(set(specs)) == len(names)
    for spec in specs:
        assert isinstance(spec, networks.NetworkSpec)
        assert jax.tree.leaves(spec) == []
        assert jax.jit(lambda spec: spec.smallest_side, static_argnums=0)(spec) == spec.smallest_side
    assert networks.network("resnet18-w64") == networks.ResNetSpec()
    assert networks.network("resnet18-w5").widths == (5, 10, 20, 40)
    assert networks.network("vgg13-w7") == networks.VggSpec("13", width=7)
    assert networks.ResNetSpec(blocks=[1], widths=[3]) == networks.ResNetSpec(blocks=(1,), widths=(3,))


@pytest.mark.parametrize("name", ["resnet", "resnet18-w0", "resnet18-w", "resnet18-w-3", "vgg12-w8", "mlp-w8", "", 18])
def test_unknown_names_are_refused(own_errors, name):
    with pytest.raises(ValueError, match=r"Argument `name` must be one of .*'resnet18', .*'vgg19'.* but is"):
        networks.network(name)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("ResNetSpec", {"blocks": ()}, "`blocks` must hold at least one integer"),
        ("ResNetSpec", {"blocks": (1, 0), "widths": (3, 3)}, "`blocks` must be an integer >= 1, but is 0"),
        ("ResNetSpec", {"widths": (3, 3)}, "`widths` must have one entry a stage, 4 as `blocks`, but is"),
        ("ResNetSpec", {"activation": "RELU"}, "`activation` must be one of .*'relu'.* but is 'RELU'"),
        ("VggSpec", {"layers": "12"}, "`layers` must be one of .*'11', '13', '16', '19'.* but is '12'"),
        ("VggSpec", {"batch_norm": 1}, "`batch_norm` must be True or False, but is 1"),
        ("VggSpec", {"width": 0.5}, "`width` must be an integer >= 1, but is 0.5"),
        ("DenseNetSpec", {"depth": 98}, "`depth` must be 4 plus a positive multiple of 6, but is 98"),
        ("DenseNetSpec", {"depth": 4}, "`depth` must be 4 plus a positive multiple of 6, but is 4"),
        ("DenseNetSpec", {"depth": 41, "bottleneck": False}, "`depth` must be .* multiple of 3, but is 41"),
        ("DenseNetSpec", {"growth": 0}, "`growth` must be an integer >= 1, but is 0"),
        ("DenseNetSpec", {"compression": 0.0}, "`compression` must be finite and > 0 and <= 1, but is 0"),
        ("DenseNetSpec", {"compression": 1e-3}, "`compression` must leave a channel, but is 0.001"),
        ("MlpSpec", {"widths": ()}, "`widths` must hold at least one integer"),
        ("MlpSpec", {"widths": 8}, "`widths` must be a sequence of integers, but is 8"),
        ("MlpSpec", {"batch_norm": None}, "`batch_norm` must be True or False, but is None"),
    ],
)
def test_specifications_are_checked(own_errors, make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(networks, make)(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 8), 3), r"`image_shape` must be \(height, width, channels\), but is \(8, 8\)"),
        (((8, 8.0, 1), 3), "`image_shape` must be an integer >= 1, but is 8.0"),
        (((8, 8, 1), 0), "`num_outputs` must be an integer >= 1, but is 0"),
        (((8, 8, 1), 3, jnp.float16), "`dtype` must be one of .*'bfloat16', 'float32'.* but is 'float16'"),
        (((8, 8, 1), 3, "wide"), "`dtype` must be one of .* but is 'wide'"),
    ],
)
def test_arguments_of_build_are_checked(own_errors, arguments, message):
    image_shape, outputs, *dtype = arguments
    with pytest.raises(ValueError, match=message):
        networks.MlpSpec().build(image_shape, outputs, nnx.Rngs(0), **({"dtype": dtype[0]} if dtype else {}))


def test_images_of_another_kind_are_refused(own_errors):
    model = build("mlp")
    model.eval()
    with pytest.raises(ValueError, match=r"`images` must have shape \(N, 3, 2, 2\), but has shape \(4, 2, 3, 2\)"):
        model(jnp.zeros((4, 2, 3, 2)))
    with pytest.raises(ValueError, match=r"`images` must hold normalised real numbers, but has dtype uint8"):
        jax.jit(model.features)(np.zeros((4, 3, 2, 2), np.uint8))
    # NumPy images of another precision are cast.
    assert jax.eval_shape(model.features, np.ones((2, 3, 2, 2))).dtype == jnp.float32
