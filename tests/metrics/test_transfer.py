"""Transfer probes against literal references, their invariances, and every refusal."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp

from nctheory.metrics import transfer


def _blobs(seed, num_classes=3, per_class=30, dim=5, spread=1.0):
    generator = np.random.default_rng(seed)
    means = 2.0 * generator.standard_normal((num_classes, dim))
    labels = np.repeat(np.arange(num_classes), per_class)
    draw = lambda: means[labels] + spread * generator.standard_normal((labels.size, dim))  # noqa: E731
    return draw(), labels, draw(), labels


def _rotation(seed, dim):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def test_linear_probe_minimises_the_stated_objective():
    train, labels, test, _ = _blobs(0, spread=2.5)
    centred = train - train.mean(axis=0)
    scale = np.sqrt(np.mean(centred**2))

    def objective(flat):
        weight, bias = flat[:15].reshape(3, 5), flat[15:]
        logits = centred / scale @ weight.T + bias
        return np.sum(logsumexp(logits, axis=1) - logits[np.arange(90), labels]) + np.sum(weight**2) / (2 * 0.3)

    best = minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6, "maxiter": 2000})
    logits = (test - train.mean(axis=0)) / scale @ best.x[:15].reshape(3, 5).T + best.x[15:]
    probe = transfer.linear_probe(train, labels, test, inverse_penalty=0.3)
    assert probe.converged
    # Points within the optimisers' tolerance of the boundary could flip; at this seed the smallest margin is far above.
    top = np.sort(logits, axis=1)
    sure = top[:, -1] - top[:, -2] > 1e-2
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(probe.test_predictions[sure], np.argmax(logits, axis=1)[sure])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_scores_do_not_change_under_rotation_scale_and_shift(seed, scale, shift):
    train, labels, test, truth = _blobs(seed, spread=1.5)
    rotation = _rotation(seed, 5)
    moved = [scale * (part @ rotation) + shift * scale for part in (train, test)]
    for score in (transfer.linear_probe_accuracy, transfer.knn_accuracy, transfer.nearest_center_accuracy):
        original, other = score(train, labels, test, truth), score(moved[0], labels, moved[1], truth)
        # Rounding may flip a single sample that lies on a boundary (one of 90).
        assert abs(original - other) <= 1.5 / 90


def test_neighbours_and_centres_match_literal_loops():
    train, labels, test, truth = _blobs(1, spread=2.5)
    distances = np.linalg.norm(test[:, None, :] - train[None, :, :], axis=-1)
    votes = np.array([np.bincount(labels[row], minlength=3) for row in np.argsort(distances, axis=1)[:, :7]])
    expected = np.mean(np.argmax(votes, axis=1) == truth)
    assert transfer.knn_accuracy(train, labels, test, truth, num_neighbors=7) == expected
    centers = np.array([train[labels == k].mean(axis=0) for k in range(3)])
    nearest = np.argmin(np.linalg.norm(test[:, None, :] - centers[None], axis=-1), axis=1)
    assert transfer.nearest_center_accuracy(train, labels, test, truth) == np.mean(nearest == truth)
    assert 0.4 < expected < 1  # Neither trivial nor chance: the comparison above can fail.


def test_all_neighbours_vote_for_the_majority():
    train, labels, test, truth = _blobs(2)
    labels = np.where(np.arange(90) < 50, 1, labels)
    assert transfer.knn_accuracy(train, labels, test, truth, num_neighbors=90) == pytest.approx(1 / 3)


def test_common_offset_costs_no_digits():
    train, labels, test, truth = _blobs(3, spread=0.3)
    for score in (transfer.linear_probe_accuracy, transfer.knn_accuracy, transfer.nearest_center_accuracy):
        assert score(train + 1e7, labels, test + 1e7, truth) == score(train, labels, test, truth) == 1.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_arrays_of_low_precision_are_accepted(dtype):
    train, labels, test, truth = (jnp.asarray(part) for part in _blobs(4, spread=0.2))
    accuracy = transfer.linear_probe_accuracy(train.astype(dtype), labels, test.astype(dtype), truth)
    assert accuracy == 1.0


def test_degenerate_inputs():
    train, labels, test, truth = _blobs(5)
    one = transfer.linear_probe(train, np.full(90, 4), test)
    assert set(one.test_predictions) == {4}
    # Constant features carry nothing: one class is predicted for all.
    constant = transfer.linear_probe(np.ones((90, 5)), labels, np.ones((90, 5)))
    assert len(set(constant.test_predictions)) == 1
    assert transfer.nearest_center_accuracy(np.ones((90, 5)), labels, np.ones((90, 5)), truth) == pytest.approx(1 / 3)
    # Gaps in the labels are allowed; a test label that was never seen is missed.
    assert transfer.linear_probe_accuracy(train, labels * 7, test, truth * 7) > 0.8
    assert transfer.nearest_center_accuracy(train[:60], labels[:60], test[60:], truth[60:]) == 0.0
    assert not transfer.linear_probe(train, labels, test, max_iterations=1).converged


@pytest.mark.parametrize("scale", [2.0**660, 2.0**-660])
def test_features_whose_squares_are_no_numbers_are_measured_in_another_unit(scale):
    train, labels, test, truth = _blobs(8)
    for score in (transfer.linear_probe_accuracy, transfer.knn_accuracy, transfer.nearest_center_accuracy):
        plain = score(train, labels, test, truth)
        assert 0.5 < plain <= 1
        # A power of two changes no digit.
        assert score(train * scale, labels, test * scale, truth) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": np.zeros(4)}, r"Argument `train_features` must have shape \(N, d\)"),
        ({"test_features": np.zeros((4, 3))}, r"Argument `test_features` must have shape \(M, 5\)"),
        ({"train_features": np.full((90, 5), np.nan)}, r"Argument `train_features` must be finite, but has 450 NaN"),
        ({"train_labels": np.zeros(89, int)}, r"Argument `train_labels` must have shape \(90,\)"),
        ({"train_labels": np.zeros(90)}, r"Argument `train_labels` must hold integers"),
        ({"train_labels": np.full(90, -1)}, r"Argument `train_labels` must lie in 0"),
        ({"test_features": np.zeros((0, 5))}, r"Argument `test_features` must not be empty, but has shape \(0, 5\)"),
        ({"inverse_penalty": 0.0}, r"Argument `inverse_penalty` must be finite and > 0"),
        ({"max_iterations": 0}, r"Argument `max_iterations` must be an integer >= 1"),
    ],
)
def test_bad_input_to_the_probe(change, message, own_errors):
    train, labels, test, _ = _blobs(6)
    good = {"train_features": train, "train_labels": labels, "test_features": test}
    with pytest.raises(ValueError, match=message):
        transfer.linear_probe(**{**good, **change})


def test_bad_input_to_the_scores(own_errors):
    train, labels, test, truth = _blobs(7)
    with pytest.raises(ValueError, match=r"Argument `num_neighbors` must be <= N = 90, but is 91"):
        transfer.knn_accuracy(train, labels, test, truth, num_neighbors=91)
    for score in (transfer.linear_probe_accuracy, transfer.knn_accuracy, transfer.nearest_center_accuracy):
        with pytest.raises(ValueError, match=r"Argument `test_labels` must have shape \(90,\)"):
            score(train, labels, test, truth[:-1])
