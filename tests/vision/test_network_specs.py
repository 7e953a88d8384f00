"""Specifications of image networks: sizes counted by hand, sides of images, names, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nctheory.vision import networks


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
    ("resnet-small-wide", None, resnet_size((1, 1, 1, 1), (16, 64, 128, 256))),
    ("vgg11", 9_231_114, vgg_size(VGG11)),
    ("vgg16", 14_728_266, vgg_size(VGG16)),
    ("vgg19", 20_040_522, vgg_size(VGG19)),
    ("vgg16-w8", None, vgg_size(tuple(width // 8 for width in VGG16))),
    ("densenet-bc-100-12", 769_162, densenet_bc_size(16, 12)),
    ("densenet-bc-40-12", 176_122, densenet_bc_size(6, 12)),
    ("mlp", None, 3072 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
]


@pytest.mark.parametrize(
    ("name", "known", "by_hand"),
    [
        # A hundred layers take seconds to build; the other one has the same blocks.
        pytest.param(*each, id=each[0], marks=[pytest.mark.slow] if each[0] == "densenet-bc-100-12" else [])
        for each in SIZES
    ],
)
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
