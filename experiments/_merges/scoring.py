"""Scores of the features of one network under one merge, overall and pair by pair."""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from nctheory.metrics import ClusterProbe
    from nctheory.vision import LabelMap

OVERALL = {"clp": "accuracy", "clp_ceiling": "ceiling", "clp_chance": "chance"}
"""Score of a whole merge: the field of `metrics.ClusterProbe` that it takes."""
EITHER_END = (*OVERALL, "recovery", "separation")
TRAINED_ONLY = ("surrogate", "surrogate_recovery", "fine_probe", "probe_recovery")
NUM_DRAWS = 2
# On surrogates, whose accuracy is that of a coin, more iterations change nothing.
SHORT_PROBE = 100


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labels of an image set under one merge.

    Attributes:
        fine: original classes of train and test images.
        label_map: the merge.
    """

    fine: "tuple[np.ndarray, np.ndarray]"
    label_map: "LabelMap"

    @property
    def coarse(self) -> "tuple[np.ndarray, np.ndarray]":
        """Super-classes of train and test images."""
        import numpy as np

        table = np.asarray(self.label_map.table)
        return table[self.fine[0]], table[self.fine[1]]


def score_names(*, trained: bool) -> tuple[str, ...]:
    """Names of the scores before or after training."""
    return (*EITHER_END, *TRAINED_ONLY) if trained else EITHER_END


def recovery_of(predictions: "np.ndarray", labels: Labelled) -> "np.ndarray":
    """Of every pair, the share of test images rebuilt to the right class, among those rebuilt to one of the two.

    Leaves out what the network mistakes for another pair, so that 1/2 is a coin. NaN for a pair that nothing is rebuilt
    to.
    """
    import numpy as np

    truth, coarse = labels.fine[1], labels.coarse[1]
    # The last entry answers for a cluster without class, -1: it belongs to no pair.
    table = np.append(np.asarray(labels.label_map.table), -1)
    kept = table[predictions] == coarse
    right = predictions == truth
    chosen = [kept & (coarse == label) for label in range(labels.label_map.num_coarse)]
    return np.array([right[mine].mean() if mine.any() else np.nan for mine in chosen])


def separation_of(features: "np.ndarray", labels: Labelled) -> "np.ndarray":
    """Of every pair, the squared distance of its train class means over the mean within-class variance."""
    import numpy as np

    found = []
    for label in range(labels.label_map.num_coarse):
        parts = [np.asarray(features[labels.fine[0] == c], np.float64) for c in labels.label_map.members(label)]
        gap = np.sum((parts[0].mean(axis=0) - parts[1].mean(axis=0)) ** 2)
        spread = np.mean([part.var(axis=0).sum() for part in parts])
        found.append(gap / spread if spread > 0 else np.nan)
    return np.array(found)


def _clustered(features: Any, labels: Labelled, seed: int, **options: Any) -> "ClusterProbe":
    from nctheory import metrics

    coarse, fine = labels.coarse, labels.fine
    arguments = (features[0], coarse[0], features[1], coarse[1], fine[0], fine[1])
    return metrics.cluster_and_probe(*arguments, clusters_per_label=2, seed=seed, **options)


def score(features: Any, labels: Labelled, seed: int, *, trained: bool, merge: int = 0) -> "dict[str, np.ndarray]":
    """Cluster-and-linear-probe of (train, test) features; after training also its surrogate and the true-class probe.

    Args:
        features: train and test features, any unit.
        labels: classes and merge.
        seed: of the network; also of clustering and surrogates.
        trained: whether to compute what is measured of trained networks only.
        merge: number of the merge; with the seed it names the surrogates.

    Returns:
        The scores, dimensionless, all NaN if a feature is not finite.
    """
    import numpy as np

    from nctheory import metrics

    num_pairs = labels.label_map.num_coarse
    if not all(np.isfinite(part).all() for part in features):
        return nothing(num_pairs, trained=trained)
    probe = _clustered(features, labels, seed)
    found: dict[str, Any] = {name: getattr(probe, field) for name, field in OVERALL.items()}
    found["recovery"] = recovery_of(probe.test_predictions, labels)
    found["separation"] = separation_of(features[0], labels)
    if trained:
        draws = [_surrogate(features, labels, seed, merge, draw) for draw in range(NUM_DRAWS)]
        nulls = [_clustered(each, labels, seed, max_iterations=SHORT_PROBE) for each in draws]
        truth = metrics.linear_probe(features[0], labels.fine[0], features[1]).test_predictions
        found["surrogate"] = [null.accuracy for null in nulls]
        found["surrogate_recovery"] = recovery_of(nulls[0].test_predictions, labels)
        found["fine_probe"] = np.mean(truth == labels.fine[1])
        found["probe_recovery"] = recovery_of(truth, labels)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def nothing(num_pairs: int, *, trained: bool) -> "dict[str, np.ndarray]":
    """Scores of a network that diverged."""
    import numpy as np

    shapes = {"recovery": (num_pairs,), "separation": (num_pairs,), "surrogate": (NUM_DRAWS,)}
    shapes |= {"surrogate_recovery": (num_pairs,), "probe_recovery": (num_pairs,)}
    return {name: np.full(shapes.get(name, ()), np.nan) for name in score_names(trained=trained)}


def _surrogate(features: Any, labels: Labelled, seed: int, merge: int, draw: int) -> list[Any]:
    from nctheory import metrics

    # Train and test rows are independent draws; streams of different runs never meet.
    stream = 2 * (1_000_000 * seed + NUM_DRAWS * merge + draw)
    pairs = zip(features, labels.coarse, strict=True)
    return [metrics.surrogate_features(h, y, seed=stream + i) for i, (h, y) in enumerate(pairs)]
