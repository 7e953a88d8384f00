"""Cluster-and-linear-probe on mixtures with a known answer, its controls, and every refusal."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from nctheory.metrics import clustering

_PARAMETERS = ("train_features", "train_coarse", "test_features", "test_coarse", "train_fine", "test_fine")


def _mixture(seed, *, separation=6.0, dim=8, per_class=(40, 60), num_fine=6, num_coarse=3, label_gap=20.0):
    """Sub-clusters of unit noise around means; `separation` scales the distance inside a label, not between labels."""
    generator = np.random.default_rng(seed)
    table = np.arange(num_fine) % num_coarse
    sub = generator.standard_normal((num_fine, dim))
    sub *= separation / np.linalg.norm(sub, axis=1, keepdims=True)
    frame = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    means = label_gap * frame[table] + sub
    result = []
    for count in per_class:
        fine = np.repeat(np.arange(num_fine), count)
        result.append((means[fine] + generator.standard_normal((fine.size, dim)), table[fine], fine))
    (train, train_coarse, train_fine), (test, test_coarse, test_fine) = result
    return dict(zip(_PARAMETERS, (train, train_coarse, test, test_coarse, train_fine, test_fine), strict=True))


@pytest.mark.parametrize("method", clustering.METHODS)
def test_separated_sub_clusters_are_rebuilt(method):
    result = clustering.cluster_and_probe(**_mixture(0), method=method, seed=0)
    assert result.train_agreement == result.accuracy == result.nearest_cluster_accuracy == result.ceiling == 1.0
    assert result.chance == 0.5
    assert result.converged
    assert sorted(result.matching) == list(range(6))


def test_without_sub_clusters_the_score_is_chance():
    results = [clustering.cluster_and_probe(**_mixture(seed, separation=0.0), seed=seed) for seed in range(12)]
    # Mean over 12 runs of 360 held-out samples: a sub-cluster split is either reading of a coin, standard error
    # at most 0.5 / sqrt(12 * 3) = 0.083 over labels and runs if every split were all-or-nothing, far less here.
    mean = np.mean([result.accuracy for result in results])
    assert abs(mean - 0.5) < 0.04
    assert all(result.ceiling == 1.0 and result.chance == 0.5 for result in results)
    # The same criterion rejects features that do have sub-clusters.
    assert abs(clustering.cluster_and_probe(**_mixture(0, separation=2.0), seed=0).accuracy - 0.5) > 0.04


def test_class_numbers_do_not_matter():
    arguments = _mixture(1, separation=1.5)
    names = np.array([31, 5, 17, 2, 11, 23])
    renamed = {**arguments, **{name: names[arguments[name]] for name in ("train_fine", "test_fine")}}
    plain, other = (clustering.cluster_and_probe(**part, seed=3) for part in (arguments, renamed))
    assert 0.55 < plain.accuracy < 0.99
    assert other.accuracy == plain.accuracy
    np.testing.assert_array_equal(names[plain.matching], other.matching)
    np.testing.assert_array_equal(names[plain.test_predictions], other.test_predictions)


def test_rotation_scale_and_shift_do_not_matter():
    arguments = _mixture(2, separation=3.0)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    moved = {**arguments, **{n: 100 + 0.01 * arguments[n] @ rotation for n in ("train_features", "test_features")}}
    plain, other = (clustering.cluster_and_probe(**part, seed=3) for part in (arguments, moved))
    assert adjusted_rand_score(plain.pseudo_labels, other.pseudo_labels) > 0.99
    assert abs(plain.accuracy - other.accuracy) <= 2 / 360


def test_matching_is_fitted_on_train_only():
    arguments = _mixture(3)
    # Swap the two classes of label 0 in the test labels: a matching fitted on test would undo the swap and score 1.
    swap = np.array([3, 1, 2, 0, 4, 5])
    swapped = {**arguments, "test_fine": swap[arguments["test_fine"]]}
    result = clustering.cluster_and_probe(**swapped, seed=0)
    assert result.train_agreement == 1.0
    assert result.accuracy == pytest.approx(2 / 3)
    np.testing.assert_array_equal(result.matching, clustering.cluster_and_probe(**arguments, seed=0).matching)


def test_matching_is_one_to_one_and_maximal():
    # Both clusters agree most with class 0 (3 and 2 votes); one-to-one, the better total (3 + 1) keeps class 0 for the
    # first cluster, while majority voting would give class 0 to both.
    pseudo = np.array([0, 0, 0, 0, 1, 1, 1])
    fine = np.array([0, 0, 0, 1, 0, 0, 1])
    matching = clustering._match(pseudo, fine, np.array([0, 0]), {0: 0, 1: 0})
    np.testing.assert_array_equal(matching, [0, 1])


def test_accounting_of_chance_ceiling_and_variance():
    arguments = _mixture(4, separation=3.0, label_gap=2.0)
    result = clustering.cluster_and_probe(**arguments, seed=0)
    table = np.arange(6) % 3
    coarse = table[result.test_predictions]
    assert result.ceiling == np.mean(coarse == arguments["test_coarse"])
    assert result.accuracy == np.mean(result.test_predictions == arguments["test_fine"])
    assert result.accuracy <= result.ceiling < 1.0
    assert result.chance == pytest.approx(result.ceiling / 2)
    centred, residual = arguments["train_features"].copy(), arguments["train_features"].copy()
    for label in range(3):
        centred[arguments["train_coarse"] == label] -= centred[arguments["train_coarse"] == label].mean(axis=0)
    for cluster in range(6):
        residual[result.pseudo_labels == cluster] -= residual[result.pseudo_labels == cluster].mean(axis=0)
    assert result.explained_variance == pytest.approx(1 - np.sum(residual**2) / np.sum(centred**2), rel=1e-10)


def test_surplus_clusters_are_scored_as_wrong():
    arguments = _mixture(5)
    result = clustering.cluster_and_probe(**arguments, clusters_per_label=(3, 2, 2), seed=0)
    assert np.sum(result.matching == -1) == 1
    lost = np.mean(result.test_predictions == -1)
    assert 0 < lost < 1 / 6
    assert result.accuracy == pytest.approx(1 - lost)


def test_fully_collapsed_features_end_at_chance_without_warnings():
    arguments = _mixture(6)
    collapsed = {n: np.eye(3)[arguments[n.replace("features", "coarse")]] for n in ("train_features", "test_features")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = clustering.cluster_and_probe(**{**arguments, **collapsed}, seed=0)
    assert result.accuracy == result.chance == 0.5
    assert np.isnan(result.explained_variance)


def test_jax_float32_input_gives_the_same_clusters():
    arguments = _mixture(7)
    single = {name: jnp.asarray(value) for name, value in arguments.items()}
    single |= {n: single[n].astype(jnp.float32) for n in ("train_features", "test_features")}
    result = clustering.cluster_and_probe(**single, seed=0)
    assert result.accuracy == 1.0
    again = clustering.cluster_and_probe(**single, seed=0)
    np.testing.assert_array_equal(result.pseudo_labels, again.pseudo_labels)


@pytest.mark.parametrize("dim", [8, 100])
def test_surrogate_keeps_two_moments_of_each_label_exactly(dim):
    arguments = _mixture(8, dim=dim, per_class=(40, 10))
    features, coarse = arguments["train_features"], arguments["train_coarse"]
    surrogate = clustering.surrogate_features(features, coarse, seed=0)
    for label in range(3):
        ours, theirs = surrogate[coarse == label], features[coarse == label]
        # Algebra in float64 at scale label_gap^2 = 400: rounding 1e-13 relative with room for the factorisations.
        np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(np.cov(ours.T), np.cov(theirs.T), atol=1e-10)
    assert np.linalg.norm(surrogate - features) > 1.0


def test_surrogate_has_no_sub_clusters():
    arguments = _mixture(9, separation=9.0, per_class=(100, 100))
    surrogate = dict(arguments)
    for number, part in enumerate(("train", "test")):
        surrogate[f"{part}_features"] = clustering.surrogate_features(
            arguments[f"{part}_features"], arguments[f"{part}_coarse"], seed=number
        )
    real, null = (clustering.cluster_and_probe(**part, seed=0) for part in (arguments, surrogate))
    assert real.accuracy == 1.0
    # 600 held-out samples, each right with probability 1/2: 5 standard errors are 0.1.
    assert abs(null.accuracy - 0.5) < 0.1
    # Two clusters leave only the noise unexplained; splitting a Gaussian explains at most 2/pi of its main direction.
    assert real.explained_variance > null.explained_variance + 0.1


def test_surrogate_is_gaussian_where_it_can_be():
    # A two-point cloud along one axis has kurtosis 1; its surrogate has that of a Gaussian, 3 (standard error
    # sqrt(24 / 4000) = 0.08, five of them allowed).
    features = np.zeros((4000, 2))
    features[:, 0] = np.repeat([-1.0, 1.0], 2000)
    surrogate = clustering.surrogate_features(features, np.zeros(4000, int), seed=1)[:, 0]
    assert abs(np.mean(surrogate**4) / np.mean(surrogate**2) ** 2 - 3) < 0.4


def test_surrogate_of_single_samples_and_its_seeds():
    features = np.arange(12.0).reshape(4, 3)
    labels = np.array([0, 1, 1, 1])
    surrogate = clustering.surrogate_features(features, labels, seed=0)
    np.testing.assert_array_equal(surrogate[0], features[0])
    np.testing.assert_array_equal(surrogate, clustering.surrogate_features(features, labels, seed=0))
    assert not np.array_equal(surrogate, clustering.surrogate_features(features, labels, seed=1))


def test_embedding_keeps_clusters_and_is_reproducible():
    arguments = _mixture(11, separation=8.0)
    points = arguments["train_features"]
    plane = clustering.tsne_embedding(points, seed=0, num_iterations=300)
    assert plane.shape == (240, 2)
    np.testing.assert_array_equal(plane, clustering.tsne_embedding(points, seed=0, num_iterations=300))
    gaps = np.linalg.norm(plane[:, None] - plane[None, :], axis=-1) + 1e9 * np.eye(240)
    fine = arguments["train_fine"]
    assert np.mean(fine[np.argmin(gaps, axis=1)] == fine) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((3, 2))}, r"Argument `features` must have at least 4 rows, but has 3"),
        ({"features": np.full((5, 2), np.nan)}, r"Argument `features` must be finite"),
        ({"num_iterations": 2}, r"Argument `num_iterations` must be an integer >= 3"),
    ],
)
def test_bad_input_to_the_embedding(change, message, own_errors):
    with pytest.raises(ValueError, match=message):
        clustering.tsne_embedding(**{"features": np.eye(6), "seed": 0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": np.full((240, 8), np.inf)}, r"Argument `train_features` must be finite"),
        ({"test_features": np.zeros((3, 7))}, r"Argument `test_features` must have shape \(M, 8\)"),
        ({"train_coarse": np.full(240, 1)}, r"Argument `train_coarse` must contain every class.*no sample of \[0\]"),
        ({"test_coarse": np.full(360, 3)}, r"Argument `test_coarse` must lie in 0..2, but spans 3..3"),
        (
            {"train_fine": np.zeros(240, int)},
            r"`train_fine` must hold classes that lie within one label each, but classes \[0\]",
        ),
        ({"test_fine": np.zeros(360)}, r"Argument `test_fine` must hold integers"),
        ({"method": "spectral"}, r"Argument `method` must be one of \['kmeans', 'tsne_kmeans'\]"),
        ({"seed": -1}, r"Argument `seed` must be an integer >= 0"),
        ({"clusters_per_label": 0}, r"Argument `clusters_per_label` must be an integer >= 1"),
        ({"clusters_per_label": (2, 2)}, r"Argument `clusters_per_label` must have shape \(3,\)"),
        ({"clusters_per_label": 81}, r"must not exceed the train samples of a label, but asks for 81 clusters among"),
        ({"perplexity": 0.0}, r"Argument `perplexity` must be finite and > 0"),
    ],
)
def test_bad_input(change, message, own_errors):
    with pytest.raises(ValueError, match=message):
        clustering.cluster_and_probe(**{**_mixture(10), "seed": 0, **change})


def test_bad_input_to_the_surrogate(own_errors):
    with pytest.raises(ValueError, match=r"Argument `coarse_labels` must have shape \(4,\)"):
        clustering.surrogate_features(np.zeros((4, 2)), np.zeros(3, int), seed=0)
    with pytest.raises(ValueError, match=r"Argument `features` must be finite"):
        clustering.surrogate_features(np.full((4, 2), np.nan), np.zeros(4, int), seed=0)
