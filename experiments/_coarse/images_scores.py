"""Scores of one image network at one checkpoint: accuracy, collapse, fine structure, cluster-and-probe, controls."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from _coarse.images_data import CoarseImages
    from nctheory.metrics import ClusterProbe

ACCURACIES = ("train_accuracy", "test_accuracy")
FINE = ("ratio", "separation", "same_label_distance", "different_label_distance", "within_variance", "coarse_ratio")
MATRICES = ("class_distances", "within_variances")
CONTROLS = ("shuffled", "fine_probe", "fine_probe_converged", "clp_converged")
TSNE = ("clp_tsne", "clp_tsne_train_agreement")
NUM_DRAWS = 2
RAW_COMPONENTS = 50
# Iterations of the probes before the last checkpoint and on surrogates, and of the others. On MNIST, 60,000 x 128
# features, 100 are within 0.003 of the converged accuracy (316 iterations) in a third of its time; with them the
# scores of a checkpoint take less than a minute of one core.
SHORT_PROBE, LONG_PROBE = 100, 1000


def geometry(network: Any, images: Any, fine: Any, *, num_fine: int) -> tuple[dict[str, "np.ndarray"], Any]:
    """Accuracy on both splits, collapse and fine structure of the train features; also (train, test) features.

    Features pass through the network once a split. Everything about features is NaN if they are not finite.
    """
    import numpy as np

    from nctheory import metrics, vision

    features = tuple(vision.extract_features(network, part) for part in images)
    bias = network.classifier.bias
    weight = np.asarray(network.classifier.kernel[...], np.float32).T
    bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias[...], np.float32)
    answers = [np.argmax(part @ weight.T + bias[None, :], axis=1) for part in features]
    found: dict[str, Any] = {
        name: np.mean(answer == part.labels) for name, answer, part in zip(ACCURACIES, answers, images, strict=True)
    }
    names = [field.name for field in dataclasses.fields(metrics.CollapseMetrics)]
    if not all(np.isfinite(part).all() for part in features):
        shapes = {"class_distances": (num_fine, num_fine), "within_variances": (num_fine,)}
        lost = {name: np.full(shapes.get(name, ()), np.nan) for name in (*names, *FINE, *MATRICES)}
        return {**dict.fromkeys(ACCURACIES, np.array(np.nan)), **lost}, None
    num_classes = images[0].num_classes
    collapse = metrics.collapse_metrics(
        features[0], images[0].labels, num_classes=num_classes, weight=weight, bias=bias
    )
    structure = metrics.fine_structure(features[0], images[0].labels, fine, num_classes=num_classes, num_fine=num_fine)
    found |= {name: getattr(collapse, name) for name in names}
    found |= {name: getattr(structure, name) for name in (*FINE, *MATRICES)}
    return {name: np.asarray(value, np.float64) for name, value in found.items()}, features


def _probe(data: "CoarseImages", features: Any, seed: int, **options: Any) -> "ClusterProbe":
    from nctheory import metrics

    coarse, fine = data.labels
    arguments = (features[0], coarse[0], features[1], coarse[1], fine[0], fine[1])
    return metrics.cluster_and_probe(
        *arguments, clusters_per_label=data.label_map.clusters_per_label, seed=seed, **options
    )


def shuffled_accuracy(data: "CoarseImages", probe: "ClusterProbe", seed: int) -> float:
    """Accuracy of the same clusters when original classes are shuffled inside each super-class, on both splits.

    The clusters are matched anew to the shuffled classes, by most agreement on train: what matching alone gives.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    generator = np.random.default_rng(seed)
    coarse, fine = data.labels
    shuffled = [np.array(part) for part in fine]
    for labels, part in zip(coarse, shuffled, strict=True):
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            part[mine] = part[generator.permutation(mine)]
    clusters = probe.matching[probe.pseudo_labels]
    names = np.full(data.label_map.num_fine + 1, -1)  # The last entry answers for an unmatched cluster, -1.
    for label in range(data.label_map.num_coarse):
        members = np.array(data.label_map.members(label))
        votes = np.array([[np.sum((clusters == old) & (shuffled[0] == new)) for new in members] for old in members])
        rows, columns = linear_sum_assignment(votes, maximize=True)
        names[members[rows]] = members[columns]
    return float(np.mean(names[probe.test_predictions] == shuffled[1]))


def _surrogate(data: "CoarseImages", features: Any, draw: int) -> list[Any]:
    from nctheory import metrics

    seeds = (2 * draw, 2 * draw + 1)  # Train and test rows are independent draws.
    return [
        metrics.surrogate_features(part, labels, seed=seed)
        for part, labels, seed in zip(features, data.labels[0], seeds, strict=True)
    ]


def at_checkpoint(
    network: Any, data: "CoarseImages", *, seed: int, last: bool, tsne_iterations: int
) -> dict[str, "np.ndarray"]:
    """Everything that is measured of a network trained on super-classes.

    The second draw of the surrogate and the variant with t-SNE are computed at the last checkpoint only. Probes run to
    convergence there, and `SHORT_PROBE` iterations on surrogates and at the other checkpoints.
    """
    import numpy as np

    from nctheory import vision

    began = time.perf_counter()
    num_fine = len(data.class_names)
    found, features = geometry(network, data.coarse, data.labels[1][0], num_fine=num_fine)
    found |= {name: np.array(np.nan) for name in (*vision.SCORES, *CONTROLS, *TSNE)}
    found |= {"clp_class_accuracy": np.full(num_fine, np.nan), "surrogate": np.full(NUM_DRAWS, np.nan)}
    if features is not None:
        found |= _rebuilt(data, features, seed, max_iterations=LONG_PROBE if last else SHORT_PROBE)
        # Streams of different run seeds never meet: a million draws fit between two of them.
        for draw in range(NUM_DRAWS if last else 1):
            null = _surrogate(data, features, 1_000_000 * seed + draw)
            found["surrogate"][draw] = _probe(data, null, seed, max_iterations=SHORT_PROBE).accuracy
        if last and tsne_iterations:
            found |= _embedded(data, features, seed, tsne_iterations)
    found["seconds"] = np.array(time.perf_counter() - began)
    return found


def _rebuilt(data: "CoarseImages", features: Any, seed: int, *, max_iterations: int) -> dict[str, "np.ndarray"]:
    """Cluster-and-probe with k-means, the same with shuffled classes, and the probe with true classes."""
    import numpy as np

    from nctheory import metrics, vision

    fine = data.labels[1]
    probe = _probe(data, features, seed, max_iterations=max_iterations)
    truth = metrics.linear_probe(features[0], fine[0], features[1], max_iterations=max_iterations)
    right = probe.test_predictions == fine[1]
    # A class without a test image has no accuracy.
    of_classes = [right[fine[1] == c].mean() if (fine[1] == c).any() else np.nan for c in range(len(data.class_names))]
    found = {name: getattr(probe, field) for name, field in vision.SCORES.items()}
    found |= {
        "clp_class_accuracy": of_classes,
        "clp_converged": probe.converged,
        "shuffled": shuffled_accuracy(data, probe, seed),
        "fine_probe": np.mean(truth.test_predictions == fine[1]),
        "fine_probe_converged": truth.converged,
    }
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def _embedded(data: "CoarseImages", features: Any, seed: int, num_iterations: int) -> dict[str, "np.ndarray"]:
    """Cluster-and-probe with t-SNE before k-means, and the plane of the test features for the figure."""
    import numpy as np

    probe = _probe(data, features, seed, method="tsne_kmeans", tsne_iterations=num_iterations)
    return {
        "clp_tsne": np.array(probe.accuracy),
        "clp_tsne_train_agreement": np.array(probe.train_agreement),
        "embedding": _planes(features[1], data.labels[0][1], num_iterations),
    }


def _planes(features: "np.ndarray", coarse: "np.ndarray", num_iterations: int) -> "np.ndarray":
    """Plane embedding of the test features, every super-class by itself; NaN for one of fewer than four images."""
    import numpy as np

    from nctheory import metrics

    planes = np.full((len(features), 2), np.nan)
    for label in np.unique(coarse):
        mine = coarse == label
        if mine.sum() >= 4:
            planes[mine] = metrics.tsne_embedding(features[mine], seed=0, num_iterations=num_iterations)
    return planes


def of_pixels(data: "CoarseImages") -> dict[str, "np.ndarray"]:
    """Cluster-and-probe and true-label probe on the first principal components of the normalised pixels.

    At most 50 components, found on train images.
    """
    import numpy as np
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    from nctheory import metrics

    images = [np.asarray(part.images, np.float32) for part in data.coarse]
    rows = [((part - data.coarse[0].mean) / data.coarse[0].std).reshape(len(part), -1) for part in images]
    # Not more than the directions that there are: the rest would be rounding.
    count = min(RAW_COMPONENTS, *rows[0].shape)
    with threadpool_limits(1):
        model = PCA(count, svd_solver="randomized", random_state=0).fit(rows[0])
        features = [model.transform(part) for part in rows]
    probe = _probe(data, features, 0)
    fine = data.labels[1]
    truth = metrics.linear_probe_accuracy(features[0], fine[0], features[1], fine[1])
    return {
        "raw_clp": np.array(probe.accuracy),
        "raw_chance": np.array(probe.chance),
        "raw_fine_probe": np.array(truth),
    }
