"""All layers of a network in two passes, against the metrics of each layer's stored activations."""

import dataclasses
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory import metrics
from nctheory.metrics.held_out import held_out_collapse
from nctheory.vision.evaluation import extract_features, extract_logits
from nctheory.vision.images import Images, normalise
from nctheory.vision.layers import layer_collapse
from nctheory.vision.spectra import layer_spectra
from tests.metrics import reference as metrics_reference
from tests.metrics.test_held_out import literal
from tests.vision import small_networks, tiny_networks

# float32 sums in another order; whitening multiplies their errors by the spread of the class means' singular values.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def made_up(shape: tuple[int, int, int], num_samples: int, seed: int, *, like: Images | None = None) -> Images:
    """Images of three classes, each around a random image of its own."""
    levels = np.random.default_rng(0).integers(60, 180, (3, *shape))
    noise = np.random.default_rng(seed).integers(-60, 60, (num_samples, *shape))
    labels = np.arange(num_samples) % 3
    return Images.of((levels[labels] + noise).astype(np.uint8), labels, num_classes=3, like=like)


def small(family: str, sizes: tuple[int, int] = (41, 17)) -> tuple[nnx.Module, Images, Images]:
    """A small network of a family with a train and a test split."""
    shape = small_networks.FAMILIES[family][1]
    train = made_up(shape, sizes[0], 1)
    return small_networks.build(family), train, made_up(shape, sizes[1], 2, like=train)


def one_layer(stored: object, index: int) -> dict[str, np.ndarray]:
    """Entries of one layer by the path of their field."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)[index]
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }


@partial(jax.jit, static_argnums=0)
def stored_activations(graph, state, inputs):
    """Pixels and all activations in their shapes, and the logits."""
    network = nnx.merge(graph, state, copy=True)
    return (inputs, *network.layer_features(inputs).values()), network(inputs)


def reference(network, train: Images, test: Images, *, pool: bool) -> list[list[dict[str, dict[str, np.ndarray]]]]:
    """Metrics of each layer and split in float64 NumPy, from stored activations."""
    network.eval()
    graph, state = nnx.split(network)
    weight, bias = np.asarray(network.classifier.kernel[...]).T, np.asarray(network.classifier.bias[...])
    rows, answers = [], []
    for part in (train, test):
        found, logits = stored_activations(graph, state, normalise(part.images, part.mean, part.std))
        found = [np.asarray(each, np.float64) for each in found]
        found[1:] = [each.mean(axis=(1, 2)) if pool and each.ndim == 4 else each for each in found[1:]]
        rows.append([each.reshape(len(each), -1) for each in found])
        answers.append(np.asarray(logits).argmax(axis=1))
    layers = []
    for index in range(len(rows[0])):
        classifier = (weight, bias) if index == len(rows[0]) - 1 else ()
        layers.append(
            [
                {
                    "collapse": metrics_reference.collapse(mine[index], part.labels, 3, *classifier),
                    "centers": literal(rows[0][index], train.labels, mine[index], part.labels, answer, 3),
                    "directions": metrics_reference.directions(mine[index], part.labels, 3, *classifier[:1]),
                }
                for part, mine, answer in zip((train, test), rows, answers, strict=True)
            ]
        )
    return layers


@pytest.mark.parametrize(
    ("family", "pool"),
    [
        pytest.param("mlp", False, marks=pytest.mark.slow),
        ("resnet", False),
        pytest.param("vgg", True, marks=pytest.mark.slow),
        pytest.param("densenet", False, marks=pytest.mark.slow),
    ],
)
def test_every_layer_agrees_with_its_stored_activations(family, pool):
    # Sizes that need one program a pass, where compiling takes long.
    network, train, test = small(family, (41, 17) if family == "mlp" else (48, 16))
    found = layer_collapse(network, train, test, batch_size=16, pool=pool)
    shapes = small_networks.FAMILIES[family][2]
    assert found.names == ("input", *shapes)
    assert found.dims == (
        int(np.prod(train.image_shape)),
        *(shape[-1] if pool else int(np.prod(shape)) for shape in shapes.values()),
    )
    for index, expected in enumerate(reference(network, train, test, pool=pool)):
        for split, wanted in zip((found.train, found.test), expected, strict=True):
            for group in ("collapse", "centers", "directions"):
                for key, value in wanted[group].items():
                    leaf = getattr(getattr(split, group), key)
                    assert leaf.shape == (len(found.names),)
                    assert leaf.dtype == np.float32
                    message = f"{found.names[index]} {group} {key}"
                    np.testing.assert_allclose(leaf[index], value, err_msg=message, **CLOSE)
    # Neither NaN nor equal throughout: the comparison above is of numbers.
    assert np.isfinite(found.train.collapse.nc1).all()
    assert np.ptp(np.asarray(found.train.collapse.nc1)) > 0
    of_classifier = [found.test.collapse.nc3_duality, found.test.collapse.nc4_ncc_mismatch]
    of_classifier += [found.test.directions.class_alignment_mean, found.test.directions.class_alignment_min]
    for values in of_classifier:
        np.testing.assert_array_equal(np.isfinite(values), np.array(found.names) == "features")


def test_train_split_lies_about_its_own_means():
    """Strong collapse of the train split is its within-between ratio; the test split has means of its own."""
    network, train, test = small("mlp")
    found = layer_collapse(network, train, test)
    np.testing.assert_allclose(found.train.centers.strong, found.train.collapse.within_between_ratio, rtol=1e-5)
    assert (np.abs(found.test.centers.strong / found.test.collapse.within_between_ratio - 1) > 0.01).all()


def test_out_of_distribution_images_against_stored_activations():
    network, train, test = small("mlp")
    outside = np.random.default_rng(3).integers(0, 256, (20, *train.image_shape)).astype(np.uint8)
    # Labels that no class of the split has play no part.
    ood = dataclasses.replace(Images.of(outside, np.zeros(20, int), num_classes=3, like=train), labels=np.full(20, 7))
    found = layer_collapse(network, train, test, ood=ood, batch_size=16)
    assert found.ood_orthogonality.shape == (2, len(found.names))
    network.eval()
    graph, state = nnx.split(network)
    rows = [
        [
            np.asarray(each, np.float64).reshape(part.num_samples, -1)
            for each in stored_activations(graph, state, normalise(part.images, part.mean, part.std))[0]
        ]
        for part in (train, test, ood)
    ]
    for at, part in enumerate((train, test)):
        for layer, features in enumerate(rows[at]):
            wanted = metrics.ood_orthogonality(features, part.labels, rows[2][layer], num_classes=3)
            np.testing.assert_allclose(found.ood_orthogonality[at, layer], wanted, **CLOSE)
    np.testing.assert_array_equal(
        found.train.collapse.nc1, layer_collapse(network, train, batch_size=16).train.collapse.nc1
    )
    assert layer_collapse(network, train).ood_orthogonality is None
    assert layer_collapse(network, train, ood=ood).ood_orthogonality.shape == (1, len(found.names))


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, 1000])
def test_batch_size_does_not_matter(batch_size):
    network, train, test = small("mlp")
    wanted = layer_collapse(network, train, test, batch_size=16)
    found = layer_collapse(network, train, test, batch_size=batch_size)
    assert found.names == wanted.names
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, wanted)


def test_a_size_that_divides_both_splits_needs_one_program(monkeypatch):
    from nctheory.vision import layers

    seen = []
    plain = layers._batches

    def noted(images, size, mesh):
        for batch in plain(images, size, mesh):
            seen.append(len(batch[1]))
            yield batch

    monkeypatch.setattr(layers, "_batches", noted)
    network, _, _ = small("mlp")
    train = made_up((3, 2, 2), 60, 1)
    layer_collapse(network, train, made_up((3, 2, 2), 30, 2, like=train), batch_size=16)
    assert set(seen) == {15}
    del seen[:]
    layer_collapse(network, train, made_up((3, 2, 2), 31, 2, like=train), batch_size=16)
    assert sorted(seen) == sorted(2 * [16, 16, 16, 12, 16, 15])


def test_layers_by_name_in_the_order_given():
    network, train, _ = small("mlp")
    every = layer_collapse(network, train)
    assert every.test is None
    some = layer_collapse(network, train, layers=["features", "layer2"], include_input=False)
    assert some.names == ("features", "layer2")
    for index, name in enumerate(some.names):
        wanted = one_layer(every.train, every.names.index(name))
        for path, value in one_layer(some.train, index).items():
            np.testing.assert_allclose(value, wanted[path], err_msg=path, **CLOSE)
    assert layer_collapse(network, train, layers=["layer2"]).names == ("input", "layer2")
    assert layer_collapse(network, train, layers=["layer2", "input"]).names == ("layer2", "input")


def test_order_of_layers_is_that_of_the_network_without_declared_names():
    """A plain dictionary from `layer_features` keeps its order, which `jit` alone would sort."""
    train, test = tiny_networks.splits()
    network = tiny_networks.TinySpec().build(train.image_shape, 3, nnx.Rngs(0))
    assert layer_collapse(network, train, test).names == ("input", "stem", "features")


def test_network_stays_in_its_mode_and_its_statistics_where_they_were():
    network, train, test = small("resnet", (48, 16))
    network.train()
    before = small_networks.statistics(nnx.state(network, nnx.BatchStat))
    found = layer_collapse(network, train, test)
    after = small_networks.statistics(nnx.state(network, nnx.BatchStat))
    assert all(np.array_equal(before[path], after[path]) for path in before)
    network.eval()
    again = layer_collapse(network, train, test)
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_missing_test_classes_leave_only_what_needs_no_mean_of_them():
    network, train, test = small("mlp")
    keep = test.labels != 1
    part = Images.of(test.images[keep], test.labels[keep], num_classes=3, like=train)
    with pytest.raises(ValueError, match=r"`test.labels` must contain every class 0..2, but has no sample of \[1\]"):
        layer_collapse(network, train, part)
    found = layer_collapse(network, train, part, require_all_test_classes=False)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves((found.test.collapse, found.test.directions)))
    rows = [extract_features(network, each) for each in (train, part)]
    predictions = extract_logits(network, part).argmax(axis=1)
    wanted = held_out_collapse(rows[0], train.labels, rows[1], part.labels, num_classes=3, predictions=predictions)
    for name, value in dataclasses.asdict(wanted).items():
        np.testing.assert_allclose(getattr(found.test.centers, name)[-1], value, **CLOSE)


def test_other_classes_than_the_classifier_has():
    """Finer labels than the network was built for: no number may compare its predictions with them."""
    network, train, _ = small("mlp")
    fine = Images.of(train.images, np.arange(train.num_samples) % 6, num_classes=6, like=None)
    found = layer_collapse(network, fine)
    assert np.isnan(found.train.collapse.nc3_duality).all()
    assert np.isnan(found.train.collapse.nc4_ncc_mismatch).all()
    assert np.isnan(found.train.directions.class_alignment_mean).all()
    assert np.isfinite(found.train.directions.hyperspherical_energy).all()
    assert np.isnan(found.train.centers.prediction_mismatch).all()
    assert np.isfinite(found.train.centers.label_mismatch).all()
    wanted = metrics.collapse_metrics(extract_features(network, fine), fine.labels, num_classes=6)
    np.testing.assert_allclose(found.train.collapse.nc1[-1], wanted.nc1, rtol=1e-4)


def test_activations_that_are_not_finite_are_nan():
    network, train, test = small("mlp")
    network.classifier.bias[...] = np.full(3, np.nan, np.float32)
    whole = layer_collapse(network, train, test)
    assert np.isfinite(whole.train.collapse.nc1).all()
    network.blocks[1].linear.kernel[...] = network.blocks[1].linear.kernel[...] * np.float32(np.inf)
    found = layer_collapse(network, train, test)
    for split in (found.train, found.test):
        for leaf in jax.tree.leaves(split):
            assert np.isnan(leaf[2:]).all()
        assert np.isfinite(split.collapse.nc1[:2]).all()


def test_errors(own_errors):
    network, train, test = small("mlp")
    names = r"\['input', 'layer1', 'layer2', 'features'\]"
    with pytest.raises(ValueError, match=rf"`layers` must hold different names out of {names}, but holds 'layer3'"):
        layer_collapse(network, train, layers=["layer1", "layer3"])
    with pytest.raises(ValueError, match=r"`layers` must hold different names .* but holds \['layer1', 'layer1'\]"):
        layer_collapse(network, train, layers=["layer1", "layer1"])
    with pytest.raises(ValueError, match="`layers` must be a sequence of names, but is 'layer1'"):
        layer_collapse(network, train, layers="layer1")
    with pytest.raises(ValueError, match="`layers` must be a sequence of names, but is 3"):
        layer_collapse(network, train, layers=3)
    with pytest.raises(ValueError, match=r"`network` must have named layers .* but NoneType has no `layer_features`"):
        layer_collapse(None, train)
    with pytest.raises(ValueError, match="`layers` must hold at least one name"):
        layer_collapse(network, train, layers=[], include_input=False)
    with pytest.raises(ValueError, match=r"`network` must have named layers .* Linear has no `layer_features`"):
        layer_collapse(nnx.Linear(12, 3, rngs=nnx.Rngs(0)), train)
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        layer_collapse(network, train, batch_size=0)
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
        layer_collapse(network, train, num_classes=1)
    with pytest.raises(ValueError, match=r"`train.labels` must contain every class 0..3, but has no sample of \[3\]"):
        layer_collapse(network, train, num_classes=4)
    with pytest.raises(ValueError, match=r"`test.labels` must lie in 0..2, but spans 0..3"):
        layer_collapse(network, train, dataclasses.replace(test, labels=test.labels + (test.labels == 2)))
    with pytest.raises(ValueError, match="`test` must have the channel statistics of `train`"):
        layer_collapse(network, train, made_up((3, 2, 2), 17, 2))
    with pytest.raises(ValueError, match=r"`test` must hold images of shape \(3, 2, 2\)"):
        layer_collapse(network, train, made_up((3, 3, 2), 17, 2))
    with pytest.raises(ValueError, match="`ood` must have the channel statistics of `train`"):
        layer_collapse(network, train, ood=made_up((3, 2, 2), 17, 2))
    with pytest.raises(ValueError, match=r"`ood` must hold images of shape \(3, 2, 2\)"):
        layer_collapse(network, train, ood=made_up((3, 3, 2), 17, 2))


@pytest.mark.slow
def test_devices_share_the_work():
    """A network on a mesh of four devices, with a batch that does not divide among them."""
    code = """
import jax, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nctheory.vision.layers import layer_collapse
from tests.vision.test_layers import CLOSE, small
network, train, test = small("resnet")
wanted = layer_collapse(network, train, test, batch_size=16)
mesh = Mesh(np.asarray(jax.devices()), ("data",))
assert mesh.size == 4
graph, state = nnx.split(network)
spread = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
found = layer_collapse(spread, train, test, batch_size=15)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, wanted)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | flags, timeout=300)


@pytest.mark.slow
def test_memory_of_early_layers_is_bounded():
    """Layers of 20,736 numbers an image cost less than 1 GiB beyond network and images; stored, 1.5 GiB more."""
    code = """
import resource
import jax, numpy as np
from flax import nnx
from nctheory.vision import networks
from nctheory.vision.images import Images
from nctheory.vision.layers import layer_collapse
draw, labels = np.random.default_rng(0), np.arange(640) % 10
train = Images.of(draw.integers(0, 255, (640, 36, 36, 3)).astype(np.uint8), labels, num_classes=10)
network = networks.network("vgg11").build(train.image_shape, 10, nnx.Rngs(0))
jax.block_until_ready(nnx.state(network))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
found = layer_collapse(network, train)
assert max(found.dims) == 20736
assert np.isfinite(found.train.collapse.nc1).all()
print(peak() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, timeout=600, stdout=subprocess.PIPE, text=True
    )
    assert 0.05 < float(done.stdout) < 1


class OddlyNamed(nnx.Module):
    """A network whose `layer_features` gives whatever it was made with."""

    def __init__(self, found, classifier=True):
        self.found = found
        rngs = nnx.Rngs(0)
        self.classifier = nnx.Linear(2, 4, rngs=rngs) if classifier else nnx.BatchNorm(2, rngs=rngs)

    def layer_features(self, images):
        """Return one feature under the names that are asked for."""
        last = images.reshape(images.shape[0], -1)[:, :2]
        named = {"nameless": {"last": last}, "pixels": {"input": last, "features": last}}
        named["flat"] = {"mean": last.mean(), "features": last}
        return named.get(self.found, [last])


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("found", "given"), [("list", "list"), ("nameless", r"\['last'\]"), ("pixels", r"\['input', 'features'\]")]
)
def test_networks_with_layers_that_cannot_be_named_are_refused(found, given):
    train, _ = tiny_networks.splits()
    with pytest.raises(ValueError, match=f"`network` must name its layers, .* gives {given}"):
        layer_collapse(OddlyNamed(found), train)


@pytest.mark.usefixtures("own_errors")
def test_activations_without_an_axis_of_images_are_refused():
    train, _ = tiny_networks.splits()
    with pytest.raises(ValueError, match=r"`network` must give activations .* layer 'mean' has shape \(\)"):
        layer_collapse(OddlyNamed("flat"), train)


@pytest.mark.usefixtures("own_errors")
def test_a_classifier_that_is_not_linear_is_refused():
    train, _ = tiny_networks.splits()
    with pytest.raises(ValueError, match="must have a linear classifier with a `kernel`"):
        layer_collapse(OddlyNamed("nameless", classifier=False), train)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("given", [np.zeros((4, 8, 8, 1), np.uint8), None], ids=["array", "nothing"])
def test_bare_arrays_are_refused(given: object):
    network, train, _ = small("mlp")
    kind = type(given).__name__
    with pytest.raises(ValueError, match=f"`train` must be of type `vision.Images`, but is {kind}"):
        layer_collapse(network, given)  # pyright: ignore[reportArgumentType]
    if given is not None:
        with pytest.raises(ValueError, match=f"`test` must be of type `vision.Images`, but is {kind}"):
            layer_collapse(network, train, given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=f"`images` must be of type `vision.Images`, but is {kind}"):
        layer_spectra(network, given)  # pyright: ignore[reportArgumentType]
