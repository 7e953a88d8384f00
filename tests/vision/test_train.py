"""Training of tiny image networks: numbers against a NumPy reference, forms, seeds, evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nctheory import metrics
from nctheory.vision import _run, _steps, networks
from nctheory.vision.images import Images
from nctheory.vision.train import (
    ImageTrainConfig,
    NonFiniteLossError,
    collapse_of,
    evaluate,
    extract_features,
    extract_logits,
    train_network,
    train_networks,
)
from tests.vision.tiny_networks import DENSE, LINEAR, TinySpec, blobs, splits

CONFIG = ImageTrainConfig(
    learning_rate=0.05, weight_decay=0.01, batch_size=8, num_epochs=2, schedule="cosine", augment="crop_flip", pad=1
)


def leaves(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


def quiet(spec, config, *data, seed=3, **named):
    return train_network(spec, config, *data, seed=seed, progress=False, **named)


# --- against a literal reference ---


def softmax_reference(config, train, seed, weight, bias):
    """Minibatch SGD of a linear classifier in float64, PyTorch's form of momentum, in loops."""
    inputs = (train.images.astype(np.float64) - np.float64(train.mean)) / np.float64(train.std)
    inputs, targets = inputs.reshape(train.num_samples, -1), np.eye(3)[train.labels]
    speed_w, speed_b = np.zeros_like(weight), np.zeros_like(bias)
    steps = -(-train.num_samples // config.batch_size)
    losses, total = [], config.num_epochs * steps
    for epoch in range(1, config.num_epochs + 1):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _steps.SHUFFLE_STREAM), epoch)
        order = np.asarray(jax.random.permutation(key, train.num_samples))
        for step in range(steps):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            x, y = inputs[rows], targets[rows]
            logits = x @ weight + bias
            if config.loss == "mse":
                loss, slope = ((logits - y) ** 2).sum() / (2 * len(rows)), (logits - y) / len(rows)
            else:
                exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
                shares = exponentials / exponentials.sum(axis=1, keepdims=True)
                loss, slope = -np.log((shares * y).sum(axis=1)).mean(), (shares - y) / len(rows)
            losses.append(loss)
            slope_w = x.T @ slope + config.weight_decay * weight
            slope_b = slope.sum(axis=0) + (config.weight_decay * bias if config.decay_vectors else 0)
            speed_w, speed_b = config.momentum * speed_w + slope_w, config.momentum * speed_b + slope_b
            move_w = slope_w + config.momentum * speed_w if config.nesterov else speed_w
            move_b = slope_b + config.momentum * speed_b if config.nesterov else speed_b
            rate = config.learning_rate * (1 + np.cos(np.pi * ((epoch - 1) * steps + step) / total)) / 2
            weight, bias = weight - rate * move_w, bias - rate * move_b
    return weight, bias, losses


@pytest.mark.parametrize(
    ("nesterov", "decay_vectors", "loss"),
    [(False, True, "cross_entropy"), (True, True, "cross_entropy"), (False, False, "mse")],
)
def test_updates_equal_a_numpy_reference(nesterov, decay_vectors, loss):
    train, test = splits(21)
    config = ImageTrainConfig(
        learning_rate=0.01,
        weight_decay=0.3,
        batch_size=8,
        num_epochs=2,
        schedule="cosine",
        nesterov=nesterov,
        decay_vectors=decay_vectors,
        loss=loss,
        drop_last=False,
        checkpoint_epochs=(0,),
    )
    first = {}

    def remember(epoch, network):
        # A network of an earlier epoch has to stay readable: its memory is not the one that steps reuse.
        first.update(weight=network.classifier.kernel[...], bias=network.classifier.bias[...], epoch=epoch)

    found = quiet(LINEAR, config, train, test, on_checkpoint=remember)
    assert first["epoch"] == 0
    start = [np.asarray(first[name], dtype=np.float64) for name in ("weight", "bias")]
    weight, bias, losses = softmax_reference(config, train, 3, *start)
    # Six float32 steps; the parameters move by a few hundredths.
    np.testing.assert_allclose(found.network.classifier.kernel[...], weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.network.classifier.bias[...], bias, rtol=1e-4, atol=1e-6)
    assert np.abs(weight - start[0]).max() > 0.03
    expected = [np.average(losses[k : k + 3], weights=[8, 8, 5]) for k in (0, 3)]
    np.testing.assert_allclose(found.history.train_loss, expected, rtol=1e-5)


# --- the two forms of an epoch, seeds, compilations ---


@pytest.mark.parametrize(
    "spec", [pytest.param(TinySpec(), id="convolution"), pytest.param(DENSE, id="dense", marks=pytest.mark.slow)]
)
def test_host_loop_and_scan_give_the_same_numbers(spec):
    data = splits(21)
    config = dataclasses.replace(CONFIG, drop_last=False)
    host, scan = (quiet(spec, config, *data, form=form) for form in ("host", "scan"))
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"):
        # The same operations, fused differently.
        np.testing.assert_allclose(getattr(host.history, name), getattr(scan.history, name), rtol=1e-4, err_msg=name)
    for mine, other in zip(leaves(host.network), leaves(scan.network), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["host", "scan"])
def test_a_seed_among_others_equals_a_lone_run(form):
    data = splits(21)
    lone = quiet(DENSE, CONFIG, *data, form=form)
    seen = []
    together = train_networks(
        DENSE, CONFIG, *data, seeds=[8, 3], form=form, progress=False, on_checkpoint=lambda *given: seen.append(given)
    )
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert all(len(each) == 2 for _, each in seen)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert getattr(together.history, name).shape == (2, 2)
        np.testing.assert_allclose(
            getattr(together.history, name)[1], getattr(lone.history, name), rtol=1e-4, err_msg=name
        )
    for mine, other in zip(leaves(together.networks[1]), leaves(lone.network), strict=True):
        # Batched products sum in another order.
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)
    assert together.seeds == (8, 3)
    assert together.finite.all()
    assert not np.allclose(together.history.train_loss[0], together.history.train_loss[1], rtol=1e-3)
    assert evaluate(together.networks[1], data[1]).loss == pytest.approx(lone.history.test_loss[-1], rel=1e-3)


@pytest.mark.parametrize("form", ["host", "scan"])
def test_later_epochs_and_other_settings_compile_nothing(form):
    data = splits(24)
    compiled = _steps.single_step if form == "host" else _steps.scanned_epoch
    config = dataclasses.replace(CONFIG, pad=2, num_epochs=3)
    before = compiled._cache_size()
    first = quiet(DENSE, config, *data, form=form)
    assert compiled._cache_size() == before + 1
    assert first.compile_seconds > 0
    changed = dataclasses.replace(config, learning_rate=0.2, weight_decay=0.0, momentum=0.5, num_epochs=2)
    second = quiet(DENSE, changed, *data, form=form, seed=4)
    assert compiled._cache_size() == before + 1
    assert second.compile_seconds == 0
    assert (first.history.images_per_second > 0).all()
    np.testing.assert_allclose(first.history.images_per_second * first.history.seconds, 24)


def test_a_dropped_last_batch_is_never_seen():
    """Images of the last, incomplete batch leave no trace in the parameters: spoiling them changes nothing."""
    train, test = splits(21)
    order = np.asarray(_steps.orders(jax.random.key(3), np.int32(1), num_samples=21, vmapped=False))
    spoiled = train.images.copy()
    spoiled[order[16:]] = 0
    config = dataclasses.replace(CONFIG, num_epochs=1, augment="none")
    one = quiet(LINEAR, config, train, test)
    two = quiet(LINEAR, config, dataclasses.replace(train, images=spoiled), test)
    for mine, other in zip(leaves(one.network), leaves(two.network), strict=True):
        np.testing.assert_array_equal(mine, other)
    kept = dataclasses.replace(config, drop_last=False)
    three = quiet(LINEAR, kept, dataclasses.replace(train, images=spoiled), test)
    assert any((a != b).any() for a, b in zip(leaves(one.network), leaves(three.network), strict=True))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    data = splits(16)
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16", num_epochs=1)
    rough = quiet(DENSE, config, *data)
    exact = quiet(DENSE, dataclasses.replace(config, compute_dtype="float32"), *data)
    assert all(leaf.dtype == np.float32 for leaf in leaves(rough.network))
    # bfloat16 has 8 bits: equal to some per cent, and not equal.
    np.testing.assert_allclose(rough.history.train_loss, exact.history.train_loss, rtol=0.05)
    assert rough.history.train_loss[0] != exact.history.train_loss[0]


def test_the_registered_mlp_trains():
    spec = networks.network("mlp")
    data = splits(64, 30)
    config = ImageTrainConfig(learning_rate=0.02, batch_size=16, num_epochs=3)
    found = quiet(spec, config, *data)
    assert found.history.train_loss[-1] < found.history.train_loss[0]
    assert found.history.test_accuracy[-1] > 0.8


# --- evaluation ---


@pytest.fixture(scope="module")
def trained():
    train, test = splits(40, 23)
    return quiet(TinySpec(), dataclasses.replace(CONFIG, learning_rate=0.02), train, test), test


def test_evaluation_equals_numpy_and_does_not_depend_on_batches(trained):
    found, test = trained
    network = found.network
    network.eval()
    inputs = (test.images.astype(np.float32) - test.mean) / test.std
    logits = np.asarray(network(jnp.asarray(inputs)), dtype=np.float64)
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(23), test.labels])
    for batch_size in (5, 23, 100):
        result = evaluate(network, test, batch_size=batch_size)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.accuracy == np.mean(logits.argmax(axis=1) == test.labels)
        np.testing.assert_allclose(extract_logits(network, test, batch_size=batch_size), logits, atol=1e-5)
    squares = evaluate(network, test, loss="mse").loss
    assert squares == pytest.approx(((logits - np.eye(3)[test.labels]) ** 2).sum() / 46, rel=1e-5)
    # The history holds the evaluation after the epoch, of images that are not augmented.
    assert found.history.test_loss[-1] == pytest.approx(loss, rel=1e-5)


def test_evaluation_compiles_once_for_all_batches_and_leaves_the_network_alone(trained):
    found, test = trained
    network = found.network
    network.train()
    before = leaves(network)
    sizes = [_cache_sizes()]
    features = extract_features(network, test, batch_size=9)
    evaluate(network, test, batch_size=9)
    sizes.append(_cache_sizes())
    assert np.subtract(sizes[1], sizes[0]).tolist() == [1, 1]
    assert not network.norm.use_running_average
    for old, new in zip(before, leaves(network), strict=True):
        np.testing.assert_array_equal(old, new)
    network.eval()
    # Features of evaluation mode: the same alone as among others.
    np.testing.assert_allclose(extract_features(network, test.head(1), batch_size=9), features[:1], rtol=1e-5)
    assert features.shape == (23, 4)
    assert features.dtype == np.float32


def _cache_sizes():
    from nctheory.vision import evaluation

    return [evaluation._read._cache_size(), evaluation._score._cache_size()]


def test_layers_are_pooled_or_flattened(trained, own_errors):
    found, test = trained
    inputs = jnp.asarray((test.images.astype(np.float32) - test.mean) / test.std)
    found.network.eval()
    stem = np.asarray(found.network.layer_features(inputs)["stem"])
    pooled = extract_features(found.network, test, layer="stem", batch_size=10)
    flat = extract_features(found.network, test, layer="stem", batch_size=10, pool=False)
    np.testing.assert_allclose(pooled, stem.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(flat, stem.reshape(23, -1), atol=1e-6)
    with pytest.raises(ValueError, match=r"Argument `layer` must be one of \['features', 'stem'\], but is 'block'"):
        extract_features(found.network, test, layer="block")
    with pytest.raises(ValueError, match="Argument `batch_size` must be an integer >= 1"):
        extract_features(found.network, test, batch_size=0)
    with pytest.raises(ValueError, match="Argument `loss` must be one of"):
        evaluate(found.network, test, loss="hinge")


def test_collapse_of_a_network_equals_the_metrics_of_its_features(trained):
    found, test = trained
    classifier = found.network.classifier
    expected = metrics.collapse_metrics(
        extract_features(found.network, test).astype(np.float64),
        test.labels,
        num_classes=3,
        weight=np.asarray(classifier.kernel[...].T, np.float64),
        bias=np.asarray(classifier.bias[...], np.float64),
    )
    measured = collapse_of(found.network, test, batch_size=10)
    for name in ("nc1", "nc2_equiangular", "nc3_duality", "nc4_ncc_mismatch", "cdnv"):
        np.testing.assert_allclose(getattr(measured, name), getattr(expected, name), rtol=1e-4, err_msg=name)


def test_features_that_are_not_finite_are_refused_and_constant_ones_are_not(trained):
    found, test = trained
    broken = nnx.merge(*nnx.split(found.network), copy=True)

    def fill(value):
        nnx.update(broken, jax.tree.map(lambda leaf: jnp.full_like(leaf, value), nnx.state(broken, nnx.Param)))
        broken.classifier.kernel[...] = jnp.ones_like(broken.classifier.kernel[...])
        broken.classifier.bias[...] = jnp.zeros_like(broken.classifier.bias[...])

    fill(0.0)
    assert np.isnan(collapse_of(broken, test).nc1)
    fill(jnp.nan)
    with pytest.raises(ValueError, match="`network` must give finite features, but some are NaN or infinite"):
        collapse_of(broken, test, batch_size=10)


def test_a_nan_logit_gives_nan_not_a_score(trained):
    found, test = trained
    broken = nnx.merge(*nnx.split(found.network), copy=True)
    broken.classifier.kernel[...] = jnp.full_like(broken.classifier.kernel[...], jnp.nan)
    assert np.isnan(evaluate(broken, test)).all()
    # The padding of a last batch does not count.
    assert np.isfinite(evaluate(found.network, test.head(7), batch_size=5)).all()


# --- what goes wrong ---


def test_training_stops_at_a_non_finite_loss():
    config = dataclasses.replace(CONFIG, learning_rate=1e30, schedule="constant", num_epochs=3)
    for form in ("host", "scan"):
        with pytest.raises(NonFiniteLossError, match=r"in epoch 1, step \d of 3, at learning rate 1e\+30") as caught:
            quiet(LINEAR, config, *splits(24), form=form)
        assert (caught.value.epoch, 2 <= caught.value.step <= 3) == (1, True)
    # Lost in the last step of the epoch, whose own loss was finite still.
    with pytest.raises(NonFiniteLossError, match=r"The state after the step became .* in epoch 1, step 2 of 2"):
        quiet(LINEAR, config, *splits(21))
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        train_networks(LINEAR, config, *splits(24), seeds=[1, 2], progress=False)


def test_a_lost_seed_keeps_its_place_and_the_others_go_on():
    train, test = splits(24)
    config = dataclasses.replace(CONFIG, num_epochs=2, augment="none")
    lone = quiet(LINEAR, config, train, test, seed=5)
    program = _steps.Program.of(LINEAR, config, train, vmapped=True)
    keys = jnp.stack([jax.random.key(4), jax.random.key(5)])
    state = _steps.first_state(keys, program=program)
    spoiled = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run.Job, "first_state", lambda job: dataclasses.replace(state, params=spoiled))
        found = train_networks(LINEAR, config, train, test, seeds=[4, 5], progress=False)
    assert found.finite.tolist() == [False, True]
    assert np.isnan(found.history.train_loss[0]).all()
    np.testing.assert_allclose(found.history.train_loss[1], lone.history.train_loss, rtol=1e-4)


def test_bad_arguments_are_refused(own_errors):
    train, test = splits(24)
    other = Images.of(test.images[:, :5], test.labels, num_classes=3)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("model",))
    cases = [
        ({"seed": -1}, "Argument `seed` must be an integer >= 0"),
        ({"seed": 2**32}, r"Argument `seed` must lie below 2\*\*32"),
        ({"config": dataclasses.replace(CONFIG, batch_size=25)}, "Argument `batch_size` must be at most 24"),
        ({"test": blobs(9, 4)}, "Argument `test` must have the channel statistics"),
        ({"test": other}, "Argument `test` must hold images of shape"),
        ({"form": "loop"}, "Argument `form` must be one of"),
        ({"save_every": 0}, "Argument `save_every` must be"),
        ({"mesh": mesh}, "Argument `mesh` must have an axis 'data'"),
        ({"spec": 3}, "Argument `spec` must have a method `build`"),
        ({"on_checkpoint": lambda epoch, network: {"x": network}}, "`on_checkpoint` must return"),
        ({"on_checkpoint": lambda epoch, network: 3.0}, "`on_checkpoint` must return"),
    ]
    for changes, message in cases:
        given = {"spec": LINEAR, "config": CONFIG, "train": train, "test": test, "seed": 0, "progress": False} | changes
        with pytest.raises(ValueError, match=message):
            train_network(**given)
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="Argument `seeds` must hold different seeds"):
            train_networks(LINEAR, CONFIG, train, test, seeds=seeds)


def test_random_layers_are_refused(own_errors):
    @dataclasses.dataclass(frozen=True)
    class WithDropout(TinySpec):
        def build(self, image_shape, num_outputs, rngs, *, dtype=jnp.float32):
            network = super().build(image_shape, num_outputs, rngs, dtype=dtype)
            network.dropout = nnx.Dropout(0.5, rngs=rngs)
            return network

    with pytest.raises(ValueError, match="network without random layers"):
        quiet(WithDropout(), CONFIG, *splits(24))
