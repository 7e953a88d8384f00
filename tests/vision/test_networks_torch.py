"""Image networks against PyTorch's operations in float64, layer by layer with the same weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory.vision.networks import densenet, resnet
from tests.vision.small_networks import FAMILIES, build, images, run

torch = pytest.importorskip("torch", reason="the peer")
F = torch.nn.functional
# float32 against float64 through at most eight layers.
TOLERANCE = 1e-4


def tensor(array):
    return torch.tensor(np.asarray(array[...], np.float64))


def conv(layer, x, stride=1):
    """3 x 3 with padding 1, or 1 x 1 without."""
    kernel = tensor(layer.kernel).permute(3, 2, 0, 1)
    bias = None if layer.bias is None else tensor(layer.bias)
    return F.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)


def norm(layer, x, training):
    return F.batch_norm(
        x,
        tensor(layer.mean),
        tensor(layer.var),
        tensor(layer.scale),
        tensor(layer.bias),
        training=training,
        momentum=0.1,
        eps=1e-5,
    )


def norm_relu(part, x, training):
    return F.relu(norm(part.norm, x, training))


def basic_block(block, x, training, stride):
    y = F.relu(norm(block.norm1, conv(block.conv1, x, stride), training))
    y = norm(block.norm2, conv(block.conv2, y), training)
    if block.shortcut is not None:
        x = norm(block.shortcut_norm, conv(block.shortcut, x, stride), training)
    return F.relu(x + y)


def resnet_features(model, x, training):
    x = F.relu(norm(model.blocks[0].norm, conv(model.blocks[0].conv, x), training))
    for block, stride in zip(list(model.blocks)[1:], (1, 1, 2), strict=True):
        x = basic_block(block, x, training, stride)
    return x.mean((2, 3))


def vgg_features(model, x, training):
    pooled = (True, True, False, True, False, True, False, True)
    for block, pool in zip(model.blocks, pooled, strict=True):
        x = F.relu(norm(block.norm, conv(block.conv, x), training))
        x = F.max_pool2d(x, 2, ceil_mode=True) if pool else x
    return x.mean((2, 3))


def densenet_features(model, x, training):
    stem, *rest = model.blocks
    x = conv(stem, x)
    for block, is_transition in zip(rest, (False, True, False, True, False), strict=True):
        if is_transition:
            x = F.avg_pool2d(conv(block.conv, norm_relu(block.norm, x, training)), 2)
        else:
            inner = norm_relu(block.norm2, conv(block.narrow, norm_relu(block.norm1, x, training)), training)
            x = torch.cat([x, conv(block.conv, inner)], 1)
    return norm_relu(model.head.before, x, training).mean((2, 3))


def mlp_features(model, x, training):
    x = x.permute(0, 2, 3, 1).flatten(1)
    for unit in (*model.blocks, model.head):
        x = F.relu(norm(unit.norm, x @ tensor(unit.linear.kernel), training))
    return x


FEATURES = {"resnet": resnet_features, "vgg": vgg_features, "densenet": densenet_features, "mlp": mlp_features}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_agree(family, training):
    model, batch = build(family), images(family)
    x = torch.tensor(np.asarray(batch, np.float64)).permute(0, 3, 1, 2)
    features = FEATURES[family](model, x, training)
    expected = features @ tensor(model.classifier.kernel) + tensor(model.classifier.bias)
    if not training:
        model.eval()
    logits, _ = run(model, batch)
    assert expected.abs().max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("channels", "stride", "side"), [(4, 1, 5), (6, 2, 5), (6, 2, 6)])
def test_basic_blocks_agree(key, channels, stride, side):
    """At stride 2 and an even side, padding one side only would shift the grid by a pixel."""
    block = resnet.BasicBlock(4, channels, nnx.Rngs(key), "float32", stride=stride, activation="relu")
    x = jax.random.normal(key, (3, side, side, 4), dtype="float32")
    expected = basic_block(block, torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2), True, stride)
    np.testing.assert_allclose(block(x), expected.permute(0, 2, 3, 1), rtol=TOLERANCE, atol=TOLERANCE)


def test_dense_layers_without_bottleneck_agree(key):
    layer = densenet.DenseLayer(4, 3, nnx.Rngs(key), "float32", bottleneck=False, activation="relu")
    x = jax.random.normal(key, (3, 5, 6, 4), dtype="float32")
    y = torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)
    expected = torch.cat([y, conv(layer.conv, norm_relu(layer.norm1, y, True))], 1)
    np.testing.assert_allclose(layer(x), expected.permute(0, 2, 3, 1), rtol=TOLERANCE, atol=TOLERANCE)
