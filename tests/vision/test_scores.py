"""Scores along a run: agreement with the metrics they are made of, controls, diverged runs, refusals."""

import numpy as np
import pytest

from nctheory import metrics, vision


@pytest.fixture(scope="module")
def data():
    return vision.load_coarse("digits", "mod", num_coarse=5).head(500, 200)


@pytest.fixture(scope="module")
def features(data):
    """Three records: the inputs, a rotation of them, and features that collapsed on the coarse labels."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]

    def stack(part, labels):
        return np.stack([part, 3 * part @ rotation, np.eye(64)[labels]])

    return stack(data.inputs[0], data.coarse[0]), stack(data.inputs[1], data.coarse[1])


def test_inputs_are_standardised_by_the_train_set():
    whole = vision.load_coarse("digits", "consecutive", num_coarse=5)
    raw = vision.load("digits", "test").images.reshape(360, 64) / 255
    train = vision.load("digits", "train").images / 255
    assert abs(whole.inputs[0].mean()) < 1e-6
    assert abs(whole.inputs[0].std() - 1) < 1e-6
    np.testing.assert_allclose(whole.inputs[1], (raw - train.mean()) / train.std(), atol=1e-6)  # float32
    np.testing.assert_array_equal(whole.coarse[1], whole.fine[1] // 2)


def test_scores_are_those_of_the_metric(data, features):
    scores = vision.scores_along_training(data, features, seed=4)
    assert set(scores) == set(vision.SCORES)
    pairs = (data.coarse[0], features[1][0], data.coarse[1], data.fine[0], data.fine[1])
    direct = metrics.cluster_and_probe(features[0][0], *pairs, seed=4)
    assert scores["clp"][0] == direct.accuracy > 0.8
    assert scores["clp_explained_variance"][0] == direct.explained_variance
    # A rotation changes nothing, collapse removes everything but the label.
    assert abs(scores["clp"][1] - scores["clp"][0]) <= 2 / 200
    assert scores["clp_ceiling"][2] == 1.0
    assert scores["clp"][2] < 0.65
    assert np.isnan(scores["clp_explained_variance"][2])


def test_controls_separate_structure_from_its_null(data, features):
    first = tuple(part[:1] for part in features)
    controls = vision.scores_of_controls(data, first, seed=1, tsne_iterations=60)
    assert controls["surrogate"].shape == (1, 2)
    # 200 held-out samples, each right with probability 1/2 at best: 4 standard errors.
    assert np.all(np.abs(controls["surrogate"] - 0.5) < 4 * 0.5 / np.sqrt(200))
    assert controls["surrogate"][0, 0] != controls["surrogate"][0, 1]
    assert controls["clp_tsne"][0] > 0.8
    truth = metrics.linear_probe_accuracy(first[0][0], data.fine[0], first[1][0], data.fine[1])
    assert controls["fine_probe"][0] == truth > 0.9
    without = vision.scores_of_controls(data, first, seed=1, num_surrogates=0)
    assert without["surrogate"].shape == (1, 0)
    assert np.isnan(without["clp_tsne"][0])
    assert vision.scores_of_inputs(data, tsne_iterations=60)["raw_fine_probe"] == truth


def test_diverged_records_score_nan_and_leave_the_others_alone(data, features):
    broken = (features[0].copy(), features[1].copy())
    broken[1][1, 0, 0] = np.inf
    scores = vision.scores_along_training(data, broken, seed=4)
    assert np.isnan(scores["clp"][1])
    assert scores["clp"][0] == vision.scores_along_training(data, features, seed=4)["clp"][0]
    controls = vision.scores_of_controls(data, tuple(part[1:2] for part in broken), seed=1, tsne_iterations=60)
    assert all(np.isnan(values).all() for values in controls.values())
    assert np.isnan(vision.embeddings(broken[1][1:2], num_iterations=30)).all()


def test_head_keeps_the_first_samples(data, own_errors):
    whole = vision.load_coarse("digits", "mod", num_coarse=5)
    np.testing.assert_array_equal(data.inputs[0], whole.inputs[0][:500])
    np.testing.assert_array_equal(data.fine[1], whole.fine[1][:200])
    with pytest.raises(ValueError, match=r"Argument `num_train` must contain every class"):
        whole.head(3, 10)
    with pytest.raises(ValueError, match=r"Argument `num_test` must be an integer >= 1"):
        whole.head(100, 0)


def test_bad_shapes_are_refused(data, features, own_errors):
    with pytest.raises(ValueError, match=r"Argument `features\[1\]` must have shape \(T, 200, d\)"):
        vision.scores_along_training(data, (features[0], features[1][:, :5]), seed=0)
    with pytest.raises(ValueError, match=r"Argument `features\[0\]` must have shape \(T, 500, d\)"):
        vision.scores_of_controls(data, (features[0][0], features[1]), seed=0)


def test_semantic_merges_reach_the_loaded_set():
    data = vision.load_coarse("digits", "semantic", num_coarse=5)
    assert data.label_map.table[4] == data.label_map.table[9]
    assert data.label_map.table[4] != data.label_map.table[5]
    np.testing.assert_array_equal(data.coarse[0], data.label_map.table[data.fine[0]])
    with pytest.raises(ValueError, match="semantic"):
        vision.load_coarse("digits", "semantic", num_coarse=4)
