"""Training by epochs against the plain training loop and literal references; records, milestones, splits, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nctheory import metrics, simulator
from nctheory.simulator._updates import make_optimizer
from nctheory.simulator.layerwise import LayerTrainConfig, log_spaced_epochs, train_layers

X64 = jax.config.read("jax_enable_x64")
MIXTURE = simulator.cosine_mixture(num_labels=3, clusters_per_label=1, dim=6, noise_std=0.1)
PAIR = simulator.cosine_mixture(num_labels=2, clusters_per_label=1, dim=6, noise_std=0.1)
DATA = simulator.MixtureData(MIXTURE, 8, 5)
MODEL = simulator.MLPSpec(widths=(9, 9, 4))
# Wide enough to learn from every start: with a few rectified units, some starts are dead and reach no milestone.
WIDE = simulator.MLPSpec(widths=(32, 32, 16))


def make(**changes):
    given = {
        "data": DATA,
        "model": MODEL,
        "loss": "mse",
        "optimizer": "momentum",
        "learning_rate": 0.05,
        "weight_decay": 1e-3,
        "batch_size": 6,
        "num_epochs": 6,
        "record_epochs": (0, 2, 6),
    }
    return LayerTrainConfig.by_epochs(**{**given, **changes})


def same(found, expected, rtol=1e-10 if X64 else 1e-4, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


@pytest.mark.slow
def test_full_batch_descent_is_that_of_the_plain_training_loop(key):
    config = make(batch_size=None, optimizer="gd", num_epochs=8, record_epochs=(0, 1, 8), keep_params=True)
    plain = dataclasses.replace(config.run, num_records=3, keep_params=True)
    expected = simulator.train(plain, key)
    assert plain.record_steps.tolist() == [0, 1, 8]
    found = train_layers(config, key)
    same(found.params, expected.params)
    same(found.train_loss, expected.train.loss)
    same(found.test_accuracy, expected.fresh.accuracy)


def test_minibatch_descent_is_the_literal_loop(key):
    config = make(keep_params=True, weight_decay=0.01)
    found = train_layers(config, key)
    train, _ = DATA.draw(jax.random.fold_in(key, 0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), found.params)
    structure = jax.tree.structure(params)
    velocity = jax.tree.map(np.zeros_like, params)

    def loss(leaves, inputs, labels):
        model = simulator.trained_model(config.run, key, jax.tree.unflatten(structure, leaves))
        return jnp.sum((model(inputs) - jax.nn.one_hot(labels, 3, dtype=float)) ** 2) / (2 * len(labels))

    slope = jax.jit(jax.grad(loss))
    for epoch in range(6):
        shuffle = jax.random.fold_in(jax.random.fold_in(key, 2), epoch)
        order = np.asarray(jax.random.permutation(shuffle, 24))
        for start in (0, 6, 12, 18):
            rows = order[start : start + 6]
            leaves = [jnp.asarray(leaf, dtype=float) for leaf in jax.tree.leaves(params)]
            gradient = jax.tree.unflatten(structure, slope(leaves, train.inputs[rows], train.labels[rows]))
            velocity = jax.tree.map(
                lambda v, g, p: 0.9 * v + np.asarray(g, np.float64) + 0.01 * p, velocity, gradient, params
            )
            params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    last = jax.tree.map(lambda leaf: leaf[-1], found.params)
    # In float32, rounding of 24 steps at weights of order 1.
    same(last, params, rtol=1e-9 if X64 else 1e-3, atol=1e-12 if X64 else 1e-5)


def test_every_layer_is_measured_as_the_metrics_do(key):
    config = make(keep_params=True)
    found = train_layers(config, key)
    train, test = DATA.draw(jax.random.fold_in(key, 0))
    assert found.spectra is None
    model = simulator.trained_model(config.run, key, jax.tree.map(lambda leaf: leaf[1], found.params))
    layers = [[part.inputs, *model.layer_features(part.inputs)] for part in (train, test)]
    answers = [np.argmax(model(part.inputs), axis=1) for part in (train, test)]
    assert found.train.collapse.nc1.shape == (3, 4)
    for depth in range(4):
        for at, (split, part) in enumerate(((found.train, train), (found.test, test))):
            readout = (model.readout[...].T, model.readout_bias[...]) if depth == 3 else (None, None)
            own = metrics.collapse_metrics(
                layers[at][depth], part.labels, num_classes=3, weight=readout[0], bias=readout[1]
            )
            about = metrics.held_out_collapse(
                layers[0][depth], train.labels, layers[at][depth], part.labels, num_classes=3, predictions=answers[at]
            )
            here = jax.tree.map(lambda leaf, at=depth: leaf[1, at], split)
            directions = metrics.class_directions(layers[at][depth], part.labels, num_classes=3, weight=readout[0])
            same(here, metrics.LayerMetrics(own, about, directions), rtol=1e-8 if X64 else 1e-3)
            # Of the readout alone, like the duality; the features may be dead, depending on the start.
            assert np.isfinite(here.directions.class_alignment_min) == np.isfinite(here.collapse.nc3_duality)


def test_spectra_of_all_records_are_those_of_the_features(key):
    """Against NumPy: the entropy of singular values, and 1 - tr(Sigma_T^+ Sigma_B)/rank(Sigma_B), where N - 1 > d."""
    # Too wide for the index in one layer, not in the other; slow enough that not every milestone is reached.
    few = {"model": simulator.MLPSpec(widths=(32, 12)), "num_epochs": 2, "learning_rate": 1e-3}
    config = make(keep_params=True, spectra="all", milestones=(0.2, 1.0), record_epochs=(0, 1, 2), **few)
    found = train_layers(config, key)
    assert found.spectra.train.effective_rank.shape == (3, 3)
    assert found.spectra.milestone_test.effective_rank.shape == (2, 3)
    splits = dict(zip(("train", "test"), DATA.draw(jax.random.fold_in(key, 0)), strict=True))
    for row in range(3):
        kept = simulator.trained_model(config.run, key, jax.tree.map(lambda leaf, at=row: leaf[at], found.params))
        for name, part in splits.items():
            for depth, each in enumerate([part.inputs, *kept.layer_features(part.inputs)]):
                here = jax.tree.map(lambda leaf, at=(row, depth): leaf[at], getattr(found.spectra, name))
                # Roots of small eigenvalues: the other order of sums of two programs moves them.
                close = {"rtol": 1e-6 if X64 else 5e-3, "atol": 1e-9 if X64 else 1e-4}
                same(vars(here), literal_spectrum(np.asarray(each, np.float64), np.asarray(part.labels)), **close)
    # A milestone has the numbers of its epoch, which is a record here; one that is not reached has none.
    epoch = int(found.milestone_epochs[0])
    assert epoch > 0 > int(found.milestone_epochs[1])
    for name in splits:
        marks, records = (getattr(found.spectra, f"{prefix}{name}") for prefix in ("milestone_", ""))
        same(*(jax.tree.map(lambda leaf, at=at: leaf[at], each) for each, at in ((marks, 0), (records, epoch))), 1e-6)
        assert all(np.isnan(leaf[1]).all() for leaf in jax.tree.leaves(marks))


def literal_spectrum(features, labels):
    """Effective rank and variability collapse index from covariances in float64."""
    sigma = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    shares = sigma[sigma > 1e-7 * sigma[0]] / sigma[sigma > 1e-7 * sigma[0]].sum()
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    within, between = features - means[labels], means - means.mean(axis=0)
    sigma_b = between.T @ between / 3
    sigma_t = within.T @ within / len(features) + sigma_b
    index = 1 - np.trace(np.linalg.pinv(sigma_t, rcond=1e-13) @ sigma_b) / np.linalg.matrix_rank(between)
    return {
        "effective_rank": np.exp(-np.sum(shares * np.log(shares))),
        "variability_collapse_index": index if len(features) - 1 > features.shape[1] else np.nan,
    }


@pytest.mark.slow
def test_spectra_of_the_ends_are_those_of_all_at_the_ends_of_the_train_split(key):
    every, ends = (train_layers(make(spectra=each), key).spectra for each in ("all", "ends"))
    for leaf, whole in zip(jax.tree.leaves(ends.train), jax.tree.leaves(every.train), strict=True):
        # As above: programs of other shapes sum in another order.
        same(leaf[jnp.array([0, 2])], whole[jnp.array([0, 2])], rtol=1e-6 if X64 else 5e-3)
        assert np.isnan(leaf[1]).all()
    for part in (ends.test, ends.milestone_train, ends.milestone_test):
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(part))


def test_milestones_are_the_first_epochs_that_reach_them(key):
    config = make(
        model=WIDE, num_epochs=12, record_epochs=tuple(range(13)), milestones=(0.5, 0.9, 1.0), learning_rate=0.02
    )
    found = train_layers(config, key)
    running = np.asarray(found.epoch_accuracy)
    for milestone, epoch, at in zip(config.milestones, np.asarray(found.milestone_epochs), range(3), strict=True):
        reached = np.flatnonzero(running >= milestone)
        assert epoch == (reached[0] + 1 if len(reached) else -1)
        assert epoch > 0
        for marks, records in ((found.milestone_train, found.train), (found.milestone_test, found.test)):
            same(
                jax.tree.map(lambda leaf, at=at: leaf[at], marks),
                jax.tree.map(lambda leaf, at=epoch: leaf[at], records),
                rtol=1e-6,
            )
    assert len(set(np.asarray(found.milestone_epochs).tolist())) > 1


def test_a_milestone_that_is_never_reached_is_reported(key):
    found = train_layers(make(num_epochs=2, record_epochs=(2,), milestones=(0.2, 1.0), learning_rate=1e-6), key)
    assert found.milestone_epochs[1] == -1
    assert np.all(np.isnan(found.milestone_train.collapse.nc1[1]))
    assert np.all(np.isnan(found.milestone_test.centers.strong[1]))
    assert bool(found.finite)


@pytest.mark.slow
def test_epochs_after_the_last_record_count_for_milestones(key):
    early, late = (make(model=WIDE, num_epochs=12, record_epochs=each, learning_rate=0.02) for each in ((1,), (1, 12)))
    same(train_layers(early, key).milestone_epochs, train_layers(late, key).milestone_epochs)
    assert train_layers(early, key).milestone_epochs[-1] > 1


def test_a_row_of_a_sweep_is_the_lone_run():
    config = make()
    swept = simulator.sweep(train_layers, config, [5, 3], progress=False)
    lone = train_layers(config, jax.random.key(3))
    row = jax.tree.map(lambda leaf: leaf[0, 1], swept.history)
    same(row, lone, rtol=1e-8 if X64 else 2e-3, atol=1e-6)
    assert swept.finite.all()


def test_divergence_is_marked(key):
    found = train_layers(make(learning_rate=1e6), key)
    assert not bool(found.finite)
    assert np.isnan(found.train.collapse.nc1[-1]).all()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("one_cycle", [0.1, 0.55, 1.0, 0.5 + 1e-6, 2e-6]),
        ("step", [1.0, 1.0, 1.0, 0.1, 0.01]),
    ],
)
def test_schedules_at_their_landmarks(schedule, expected):
    """Start, half of the rise, end of the rise (30 % of the steps), half of the fall, end."""
    config = dataclasses.replace(make().run, num_steps=1000, schedule=schedule, learning_rate=0.3, momentum=0.0)
    optimizer = make_optimizer(config)
    state = optimizer.init(jnp.zeros(()))
    rates = []
    for step in (0, 150, 300, 650, 1000):
        # The last state of SGD counts the steps.
        at = jax.tree.map(lambda leaf, n=step: jnp.full_like(leaf, n) if leaf.dtype == jnp.int32 else leaf, state)
        rates.append(-float(optimizer.update(jnp.ones(()), at)[0]) / 0.3)
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    assert isinstance(optimizer, optax.GradientTransformation)


def split_set(**changes):
    labels = np.repeat(np.arange(3), [10, 20, 30])[np.random.default_rng(0).permutation(60)].astype(np.int32)
    inputs = np.arange(60, dtype=np.float64)[:, None] * np.ones((1, 2))
    given = {"samples": simulator.Samples(inputs, labels, labels), "num_train": 30, "num_labels": 3, "num_fine": 3}
    return simulator.SplitData(**{**given, **changes}), labels


def test_a_split_is_stratified_disjoint_complete_and_of_the_seed():
    data, labels = split_set()
    parts = [data.draw(jax.random.key(seed)) for seed in (0, 1)]
    for train, rest in parts:
        assert np.bincount(train.labels).tolist() == [5, 10, 15]
        assert np.bincount(rest.labels).tolist() == [5, 10, 15]
        rows = np.concatenate([train.inputs[:, 0], rest.inputs[:, 0]]).astype(int)
        assert sorted(rows.tolist()) == list(range(60))
        np.testing.assert_array_equal(labels[rows], np.concatenate([train.labels, rest.labels]))
    assert set(np.asarray(parts[0][0].inputs[:, 0])) != set(np.asarray(parts[1][0].inputs[:, 0]))
    jitted, _ = jax.jit(lambda data, key: data.draw(key))(data, jax.random.key(1))
    np.testing.assert_array_equal(jitted.inputs, parts[1][0].inputs)


def test_every_sample_is_as_likely_to_be_held_out():
    data, _ = split_set()
    keys = jax.vmap(jax.random.key)(np.arange(600, dtype=np.uint32))
    rows = np.asarray(jax.vmap(lambda key: data.draw(key)[1].inputs[:, 0])(keys)).astype(int)
    share = np.bincount(rows.ravel(), minlength=60) / 600
    # Five standard errors of a fair half over 600 seeds; 60 samples.
    assert np.abs(share - 0.5).max() < 5 * 0.5 / 600**0.5


def test_largest_remainders_fill_the_train_part():
    data, _ = split_set(num_train=31)
    train, rest = data.draw(jax.random.key(0))
    # Shares 5.17, 10.33, 15.5: the last class has the largest remainder.
    assert np.bincount(train.labels).tolist() == [5, 10, 16]
    assert len(rest.labels) == 29


def test_label_noise_redraws_train_labels_only():
    data, _ = split_set(label_noise=0.5)
    keys = jax.vmap(jax.random.key)(np.arange(300, dtype=np.uint32))
    train, rest = jax.vmap(data.draw)(keys)
    changed = np.asarray(train.labels != train.fine_labels).mean()
    # Half are redrawn, two thirds of those to another label; 9,000 labels, five standard errors.
    assert abs(changed - 1 / 3) < 5 * (2 / 9 / 9000) ** 0.5
    np.testing.assert_array_equal(rest.labels, rest.fine_labels)
    everything, _ = split_set(label_noise=1.0)
    assert np.asarray(everything.draw(keys[0])[0].labels != everything.draw(keys[0])[0].fine_labels).mean() > 0.4


def test_log_spaced_epochs():
    assert log_spaced_epochs(150, 4) == (0, 1, 12, 150)
    assert log_spaced_epochs(1, 5) == (0, 1)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "`num_epochs` must be an integer >= 1, but is 0"),
        ({"record_epochs": (0, 7)}, r"`record_epochs` must be increasing epochs in 0..6, but is \(0, 7\)"),
        ({"record_epochs": (2, 1)}, "`record_epochs` must be increasing"),
        ({"record_epochs": ()}, "`record_epochs` must be increasing"),
        ({"milestones": (0.9, 0.5)}, "`milestones` must be increasing accuracies"),
        ({"milestones": (1.5,)}, "`milestones` must be increasing accuracies"),
        ({"spectra": "first"}, r"`spectra` must be one of \['all', 'ends', 'none'\], but is 'first'"),
        ({"spectra": True}, "`spectra` must be one of"),
        ({"batch_size": 25}, "`batch_size` must be at most 24 samples, but is 25"),
        ({"data": simulator.MixtureData(PAIR, 4), "loss": "logistic"}, "`run.loss` must"),
        ({"model": simulator.UnconstrainedFeaturesSpec(24, 4), "batch_size": None}, "`run.model` must have layers"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.usefixtures("own_errors")
def test_runs_that_cannot_be_measured_are_refused(key):
    with pytest.raises(ValueError, match="must have held-out samples"):
        train_layers(make(data=simulator.MixtureData(MIXTURE, 8)), key)
    config = make()
    with pytest.raises(ValueError, match=r"`run\.num_steps` must be 24, that is 6 epochs of 4 steps, but is 23"):
        train_layers(dataclasses.replace(config, run=dataclasses.replace(config.run, num_steps=23)), key)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_noise": 1.5}, "`label_noise` must"),
        ({"num_train": 2}, "`num_train` must leave every class a train and a held-out sample of 60, but is 2"),
        ({"num_train": 60}, "`num_train` must leave every class a train and a held-out sample of 60, but is 60"),
        ({"num_fine": 4}, "`samples.fine_labels` must"),
        ({"num_labels": 2}, "`samples.labels` must"),
    ],
)
def test_bad_splits_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        split_set(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "milestone"), [(20, 0.95), (100, 0.99), (200, 0.975)])
def test_a_milestone_that_is_met_exactly_is_reached(count, milestone):
    """All but a few samples of label 0 are right for a network that always says 0."""
    wrong = round((1 - milestone) * count)
    labels = np.array([1] * wrong + [0] * (count - wrong), np.int32)
    inputs = np.zeros((count, 6))
    few = simulator.Samples(inputs, labels, labels)
    data = simulator.FixedData(few, few, num_labels=2, num_fine=2)
    config = make(data=data, batch_size=None, optimizer="gd", num_epochs=3, record_epochs=(0,), milestones=(milestone,))
    # Zero inputs: only the biases matter. They start at zero, and of equal outputs the first counts.
    found = train_layers(config, jax.random.key(0))
    assert found.milestone_epochs[0] == 1
    np.testing.assert_allclose(found.epoch_accuracy, milestone, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
def test_fixed_data_without_a_held_out_class_are_refused():
    train, test = (simulator.Samples(np.eye(6), np.arange(6) % 3, np.arange(6) % 3) for _ in range(2))
    test = dataclasses.replace(test, labels=np.zeros(6, np.int64), fine_labels=np.zeros(6, np.int64))
    with pytest.raises(ValueError, match=r"`run\.data\.fresh\.labels` must .* class"):
        make(data=simulator.FixedData(train, test, num_labels=3, num_fine=3))
    with pytest.raises(ValueError, match="`data` must be given"):
        LayerTrainConfig.by_epochs(num_epochs=1, record_epochs=(0,))


@pytest.mark.usefixtures("own_errors")
def test_a_changed_split_is_checked_again():
    data, _ = split_set()
    with pytest.raises(ValueError, match="`num_train` must leave every class"):
        dataclasses.replace(data, num_train=60)
    with pytest.raises(ValueError, match=r"`samples\.labels` must"):
        dataclasses.replace(data, num_labels=2, num_fine=2)
