"""Cluster-and-linear-probe: can the original classes be rebuilt from features trained on merged labels?

Runs on the host (NumPy, SciPy, scikit-learn, openTSNE), each imported where it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics._host import checked_labels, checked_pair, host_rows, nearest_center, one_thread
from nctheory.metrics.transfer import linear_probe

METHODS = ("kmeans", "tsne_kmeans")


@dataclass(frozen=True)
class ClusterProbe:
    """Result of the cluster-and-linear-probe test; every accuracy is a fraction in 0..1, higher is better.

    Attributes:
        accuracy: Share of TEST samples whose original class is rebuilt by the probe on pseudo-labels.
        train_agreement: Share of train samples whose cluster is matched to their original class.
        nearest_cluster_accuracy: As `accuracy`, with the nearest cluster mean in feature space instead of the probe.
        ceiling: Share of test samples for which the probe is right about the coarse label; `accuracy <= ceiling`.
        chance: Expected accuracy if, given the coarse label that the probe predicts, the class were drawn at random:
            mean over test samples of [coarse label right] / (clusters of that label).
        explained_variance: Between-cluster share of the within-super-class scatter of the train features, pooled over
            super-classes. Uses no fine label; compare with the same number of `surrogate_features`. NaN if there is no
            scatter.
        matching: Original class of each cluster, -1 where a cluster has none.
        pseudo_labels: Cluster of each train sample, numbered over all super-classes.
        test_predictions: Rebuilt original class of each test sample, -1 for an unmatched cluster.
        converged: Whether the probe's optimiser converged.
    """

    accuracy: float
    train_agreement: float
    nearest_cluster_accuracy: float
    ceiling: float
    chance: float
    explained_variance: float
    matching: Int[np.ndarray, " P"]
    pseudo_labels: Int[np.ndarray, " N"]
    test_predictions: Int[np.ndarray, " M"]
    converged: bool


def _counts_per_label(clusters_per_label: int | Sequence[int] | None, coarse: np.ndarray, table: dict) -> np.ndarray:
    """Number of clusters of each coarse label, checked against the samples there are."""
    sizes = np.bincount(coarse)
    if clusters_per_label is None:
        counts = np.bincount(list(table.values()), minlength=sizes.size)
    elif not isinstance(clusters_per_label, Sequence | np.ndarray):
        counts = np.full(sizes.size, _checks.integer("clusters_per_label", clusters_per_label, minimum=1))
    else:
        _checks.shape("clusters_per_label", clusters_per_label, (sizes.size,))
        counts = np.array([_checks.integer("clusters_per_label", count, minimum=1) for count in clusters_per_label])
    if np.any(counts > sizes):
        worst = int(np.argmax(counts - sizes))
        raise ArgumentError(
            f"Argument `clusters_per_label` must not exceed the train samples of a label, but asks for {counts[worst]} "
            f"clusters among the {sizes[worst]} samples of label {worst}."
        )
    return counts


def tsne_embedding(
    features: Float[AnyArray, "N d"], *, seed: int, perplexity: float = 30.0, num_iterations: int = 750
) -> Float[np.ndarray, "N 2"]:
    """Embed features in the plane by t-SNE (openTSNE, PCA start, Barnes-Hut at any size).

    Neighbourhoods are meant to be kept, distances between far groups and the axes carry no meaning.

    Args:
        features: Samples as rows, any unit, at least 4.
        seed: Of the random start, >= 0.
        perplexity: Effective number of neighbours, > 0, dimensionless; lowered to (N - 1) / 3 for few samples.
        num_iterations: Gradient steps, a third of them with early exaggeration.

    Returns:
        Coordinates in the plane, dimensionless.

    Raises:
        ValueError: If features are not finite or too few, or an option is out of range.
    """
    _checks.shape("features", features, ("N", "d"))
    if len(features) < 4:
        raise ArgumentError(f"Argument `features` must have at least 4 rows, but has {len(features)}.")
    points = host_rows("features", features)
    _checks.real("perplexity", perplexity, minimum=0.0, exclusive_minimum=True)
    early = _checks.integer("num_iterations", num_iterations, minimum=3) // 3
    from openTSNE import TSNE

    # openTSNE uses 3 * perplexity neighbours; small groups get the largest perplexity that they allow.
    options: dict[str, Any] = {"perplexity": min(perplexity, (len(points) - 1) / 3)}
    options |= {"early_exaggeration_iter": early, "n_iter": num_iterations - early, "random_state": seed}
    with one_thread():
        return np.asarray(TSNE(initialization="pca", negative_gradient_method="bh", **options).fit(points))


def _cluster(features: np.ndarray, coarse: np.ndarray, counts: np.ndarray, seed: int, embed: Callable | None):
    """Cluster inside each coarse label; clusters are numbered through in label order.

    Points are embedded first where there is an `embed` and it can: four points are the fewest.
    """
    from sklearn.cluster import KMeans

    pseudo = np.zeros(len(features), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    for label, count in enumerate(counts):
        mine = np.flatnonzero(coarse == label)
        # No more clusters than distinct points, or k-means warns and leaves clusters empty anyway.
        points = features[mine] - features[mine].mean(axis=0)[None, :]
        distinct = len(np.unique(points, axis=0))
        if min(count, distinct) <= 1:
            pseudo[mine] = offsets[label]
            continue
        points = embed(points) if embed is not None and len(points) >= 4 else points
        options: dict[str, Any] = {"n_clusters": min(count, distinct), "n_init": 10, "random_state": seed}
        model = KMeans(**options)
        pseudo[mine] = offsets[label] + model.fit_predict(points)
    return pseudo, np.repeat(np.arange(len(counts)), counts)


def _match(pseudo: np.ndarray, fine: np.ndarray, cluster_label: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """Assign clusters to original classes inside each coarse label by most train agreement."""
    from scipy.optimize import linear_sum_assignment

    matching = np.full(len(cluster_label), -1, dtype=np.int64)
    for label in np.unique(cluster_label):
        clusters = np.flatnonzero(cluster_label == label)
        classes = np.array([c for c, y in table.items() if y == label])
        votes = np.array([[np.sum((pseudo == p) & (fine == c)) for c in classes] for p in clusters])
        rows, columns = linear_sum_assignment(votes, maximize=True)
        matching[clusters[rows]] = classes[columns]
    return matching


def _explained_variance(features: np.ndarray, coarse: np.ndarray, pseudo: np.ndarray) -> float:
    def scatter(groups):
        parts = (features[groups == group] for group in np.unique(groups))
        return sum(float(np.sum((part - part.mean(axis=0)[None, :]) ** 2)) for part in parts)

    total = scatter(coarse)
    return 1 - scatter(pseudo) / total if total > 0 else float("nan")


def _checked_sets(train_features, train_coarse, test_features, test_coarse, train_fine, test_fine):
    """Features, coarse labels and original classes of both sets on the host, and the map of classes to labels."""
    train, test = checked_pair(train_features, test_features)
    coarse = checked_labels("train_coarse", train_coarse, len(train))
    num_coarse = int(coarse.max()) + 1
    _checks.no_empty_class("train_coarse", coarse, num_classes=num_coarse)
    coarse_truth = checked_labels("test_coarse", test_coarse, len(test), num_coarse)
    fine = checked_labels("train_fine", train_fine, len(train))
    truth = checked_labels("test_fine", test_fine, len(test))
    _checks.nested("train_fine", fine, coarse)
    table = dict(sorted(set(zip(fine.tolist(), coarse.tolist(), strict=True))))
    return (train, coarse, fine), (test, coarse_truth, truth), table


def cluster_and_probe(
    train_features: Float[AnyArray, "N d"],
    train_coarse: Int[AnyArray, " N"],
    test_features: Float[AnyArray, "M d"],
    test_coarse: Int[AnyArray, " M"],
    train_fine: Int[AnyArray, " N"],
    test_fine: Int[AnyArray, " M"],
    *,
    clusters_per_label: int | Sequence[int] | None = None,
    method: str = "kmeans",
    seed: int,
    perplexity: float = 30.0,
    tsne_iterations: int = 750,
    inverse_penalty: float = 1.0,
    max_iterations: int = 1000,
) -> ClusterProbe:
    """Rebuild original classes from features by unsupervised clustering, scored on held-out samples.

    1. Inside each coarse label, cluster the TRAIN features: k-means (best of 10 starts), on the features themselves or
       on their two-dimensional t-SNE embedding. The cluster is a pseudo-label; no original label is used.
    2. Fit `linear_probe` from the frozen train features to the pseudo-labels of all coarse labels together.
    3. Match clusters to original classes one-to-one inside each coarse label, by most agreement on TRAIN (Hungarian
       assignment); test labels take no part in the matching.
    4. Score the probe's predictions, so matched, on the TEST samples' original classes.

    Separated sub-clusters give 1. Features without sub-clusters give about `chance` (1/S of the ceiling for S equal
    classes a label); the matching picks the better of two nearly equal readings on train, which carries no advantage to
    the test set. Unchanged by renaming original classes, and by rotation, shift and scaling of the features up to the
    rounding of the iterations. If a label has fewer distinct points than clusters, the surplus clusters stay empty.

    Args:
        train_features: Train samples as rows, any unit.
        train_coarse: Their training labels, 0..C-1, every one present.
        test_features: Test samples as rows, in the same unit.
        test_coarse: Their coarse labels, 0..C-1 (only for `ceiling` and `chance`).
        train_fine: Original classes of the train samples (only for matching); each lies in one coarse label.
        test_fine: Original classes of the test samples (only for scoring).
        clusters_per_label: Clusters in each coarse label; by default the number of original classes in it.
        method: "kmeans" or "tsne_kmeans".
        seed: Start of k-means and t-SNE, >= 0.
        perplexity: Of t-SNE, > 0, dimensionless; lowered where a label has too few samples.
        tsne_iterations: Gradient steps of t-SNE.
        inverse_penalty: Of the probe, as in `linear_probe`.
        max_iterations: Of the probe, as in `linear_probe`.

    Returns:
        Accuracies, label-free measures and the clustering itself.

    Raises:
        ValueError: If shapes disagree, features are not finite, a coarse label has no train sample, an original class
            lies in two coarse labels, there are more clusters than samples, or an option is unknown.

    References:
        Yang, Steinhardt, Hu (ICML 2023) rebuild CIFAR-10's ten classes from five merged ones by clustering and score
        them on the test set. Steps and settings here are this project's own reconstruction, not the paper's.
    """
    sets = _checked_sets(train_features, train_coarse, test_features, test_coarse, train_fine, test_fine)
    (train, coarse, fine), (test, coarse_truth, truth), table = sets
    _checks.choice("method", method, METHODS)
    seed = _checks.integer("seed", seed, minimum=0)
    _checks.real("perplexity", perplexity, minimum=0.0, exclusive_minimum=True)
    counts = _counts_per_label(clusters_per_label, coarse, table)
    embed = partial(tsne_embedding, seed=seed, perplexity=perplexity, num_iterations=tsne_iterations)
    with one_thread():
        pseudo, cluster_label = _cluster(train, coarse, counts, seed, embed if method == "tsne_kmeans" else None)
    matching = _match(pseudo, fine, cluster_label, table)
    probe = linear_probe(train, pseudo, test, inverse_penalty=inverse_penalty, max_iterations=max_iterations)
    coarse_right = cluster_label[probe.test_predictions] == coarse_truth
    return ClusterProbe(
        accuracy=float(np.mean(matching[probe.test_predictions] == truth)),
        train_agreement=float(np.mean(matching[pseudo] == fine)),
        nearest_cluster_accuracy=float(np.mean(matching[nearest_center(train, pseudo, test)] == truth)),
        ceiling=float(np.mean(coarse_right)),
        chance=float(np.mean(coarse_right / counts[coarse_truth])),
        explained_variance=_explained_variance(train, coarse, pseudo),
        matching=matching,
        pseudo_labels=pseudo,
        test_predictions=matching[probe.test_predictions],
        converged=probe.converged,
    )


def surrogate_features(
    features: Float[AnyArray, "N d"], coarse_labels: Int[AnyArray, " N"], *, seed: int
) -> Float[np.ndarray, "N d"]:
    """Replace features by a Gaussian surrogate with the same coarse means and covariances and no sub-clusters.

    For each coarse label, with centred features X = U S V^T (n x d), the surrogate is mean + U' S V^T, where U' is
    uniformly distributed over the n x rank matrices with orthonormal columns orthogonal to the ones vector. This is a
    Gaussian sample conditioned on having exactly the mean and covariance of the original, so both agree to rounding,
    for any rank. Rows no longer depend on the original class: a clustering scored on the original classes falls to
    chance, and sub-clusters that are more than a direction of large variance are gone.

    Few samples blur the null: with rank near n the rows are far from a free Gaussian cloud.

    Args:
        features: Samples as rows, any unit.
        coarse_labels: Coarse label of each sample; labels without a sample are allowed.
        seed: Names the draw, >= 0.

    Returns:
        Surrogate features, float64, in the unit and order (by coarse label) of the input. A label with one sample
        keeps it.

    Raises:
        ValueError: If shapes disagree or features are not finite.

    References:
        Derived here.
    """
    _checks.shape("features", features, ("N", "d"))
    original = host_rows("features", features)
    labels = checked_labels("coarse_labels", coarse_labels, len(original))
    generator = np.random.default_rng(_checks.integer("seed", seed, minimum=0))
    result = original.copy()
    for label in np.unique(labels):
        mine = labels == label
        mean = original[mine].mean(axis=0)[None, :]
        rank = min(int(np.sum(mine)) - 1, original.shape[1])
        noise = generator.standard_normal((int(np.sum(mine)), rank))
        with one_thread():
            _, singular_values, directions = np.linalg.svd(original[mine] - mean, full_matrices=False)
            # QR of centred Gaussian columns is uniform on frames orthogonal to the ones vector, up to the signs of R.
            frame, triangle = np.linalg.qr(noise - noise.mean(axis=0)[None, :])
        frame = frame * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)[None, :]
        result[mine] = mean + (frame * singular_values[:rank][None, :]) @ directions[:rank]
    return result
