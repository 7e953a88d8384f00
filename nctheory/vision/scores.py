"""Scores of frozen features against original classes that training never saw, with the controls beside them.

Everything runs on the host. Features that a diverged run left non-finite score NaN.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from nctheory import _checks, metrics
from nctheory._types import AnyArray
from nctheory.vision.coarse import LabelMap, coarse_labels, label_map
from nctheory.vision.datasets import SPLITS, load

Pair = tuple[AnyArray, AnyArray]

SCORES = {
    "clp": "accuracy",
    "clp_train_agreement": "train_agreement",
    "clp_nearest_cluster": "nearest_cluster_accuracy",
    "clp_ceiling": "ceiling",
    "clp_chance": "chance",
    "clp_explained_variance": "explained_variance",
}
"""Name of each score and the field of `metrics.ClusterProbe` that it takes."""


@dataclass(frozen=True)
class CoarseData:
    """An image set as (train, test) pairs: standardised inputs, merged labels, original classes.

    Attributes:
        inputs: Rows of grey levels in 0..1, minus the train set's mean, over its standard deviation (two numbers for
            the whole set); float32, dimensionless.
        coarse: Super-class of each image.
        fine: Original class of each image.
        label_map: The merge.
        class_names: Names of the original classes.
    """

    inputs: tuple[Float[np.ndarray, "N d"], Float[np.ndarray, "M d"]]
    coarse: tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"]]
    fine: tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"]]
    label_map: LabelMap
    class_names: tuple[str, ...]

    def head(self, num_train: int, num_test: int) -> "CoarseData":
        """Keep the first samples of each split, for a quick look.

        Args:
            num_train: Train samples to keep, >= 1.
            num_test: Test samples to keep, >= 1.

        Returns:
            The smaller set, all of a split that has fewer samples.

        Raises:
            ValueError: If a count is not positive or leaves a super-class or an original class without train samples.
        """
        counts = (
            _checks.integer("num_train", num_train, minimum=1),
            _checks.integer("num_test", num_test, minimum=1),
        )
        _checks.no_empty_class("num_train", self.fine[0][: counts[0]], num_classes=len(self.class_names))

        def cut(pair):
            return pair[0][: counts[0]], pair[1][: counts[1]]

        return dataclasses.replace(self, inputs=cut(self.inputs), coarse=cut(self.coarse), fine=cut(self.fine))


def load_coarse(
    name: str, scheme: str | Sequence[int], *, num_coarse: int, seed: int | None = None, data_dir: str | None = None
) -> CoarseData:
    """Load both splits of an image set under merged labels.

    Args:
        name: As in `load`.
        scheme: As in `label_map`.
        num_coarse: Number of super-classes.
        seed: For the scheme "random".
        data_dir: As in `load`.

    Returns:
        Inputs and both labellings.

    Raises:
        ValueError: As `load` and `label_map`.
    """
    train, test = (load(name, split, data_dir) for split in SPLITS)
    mapping = label_map(scheme, num_fine=train.num_classes, num_coarse=num_coarse, seed=seed, dataset=name)
    levels = [np.asarray(part.images).reshape(part.num_samples, -1) / 255.0 for part in (train, test)]
    mean, std = levels[0].mean(), levels[0].std()
    inputs = [((part - mean) / std).astype(np.float32) for part in levels]
    fine = [np.asarray(part.labels) for part in (train, test)]
    coarse = [coarse_labels(labels, mapping) for labels in fine]
    return CoarseData((inputs[0], inputs[1]), (coarse[0], coarse[1]), (fine[0], fine[1]), mapping, train.class_names)


def _finite(pair: Sequence[AnyArray]) -> bool:
    return all(bool(np.isfinite(part).all()) for part in pair)


def _probe(data: CoarseData, features: Sequence[AnyArray], seed: int, **options) -> metrics.ClusterProbe | None:
    """Cluster-and-linear-probe, or None where features are not finite."""
    if not _finite(features):
        return None
    arguments = (features[0], data.coarse[0], features[1], data.coarse[1], data.fine[0], data.fine[1])
    clusters = data.label_map.clusters_per_label
    return metrics.cluster_and_probe(*arguments, clusters_per_label=clusters, seed=seed, **options)


def _checked(data: CoarseData, features: Pair) -> None:
    for name, part, labels in zip(("features[0]", "features[1]"), features, data.fine, strict=True):
        _checks.shape(name, part, ("T", len(labels), "d"))


def scores_along_training(data: CoarseData, features: Pair, *, seed: int) -> dict[str, Float[np.ndarray, " T"]]:
    """Cluster-and-linear-probe with k-means at every record of a run.

    Args:
        data: Labels and the merge.
        features: Train (T N d) and test (T M d) features, any unit.
        seed: Of the clustering.

    Returns:
        Each score of `SCORES` over the T records, dimensionless; NaN where features are not finite.

    Raises:
        ValueError: If a shape does not fit.
    """
    _checked(data, features)
    results = [_probe(data, pair, seed) for pair in zip(*features, strict=True)]
    return {name: np.array([getattr(r, field, np.nan) for r in results]) for name, field in SCORES.items()}


def scores_of_controls(
    data: CoarseData, features: Pair, *, seed: int, num_surrogates: int = 2, tsne_iterations: int | None = None
) -> dict[str, Float[np.ndarray, "T ..."]]:
    """The slow scores and the controls at chosen records of a run.

    `clp_tsne`: the variant with t-SNE before k-means. `surrogate` and `surrogate_explained_variance`: accuracy and
    explained variance of independent draws (last axis) of `metrics.surrogate_features`. `fine_probe`: linear probe
    trained on the true original classes.

    Args:
        data: Labels and the merge.
        features: Train (T N d) and test (T M d) features, any unit.
        seed: Of clustering, embedding and surrogates.
        num_surrogates: Draws of the surrogate; 0 leaves that axis empty.
        tsne_iterations: Gradient steps of t-SNE; None leaves `clp_tsne` NaN.

    Returns:
        Scores over the T records, dimensionless; NaN where features are not finite.

    Raises:
        ValueError: If a shape does not fit.
    """
    _checked(data, features)
    result = {"clp_tsne": [], "surrogate": [], "surrogate_explained_variance": [], "fine_probe": []}
    for pair in zip(*features, strict=True):
        tsne = None
        if tsne_iterations is not None:
            tsne = _probe(data, pair, seed, method="tsne_kmeans", tsne_iterations=tsne_iterations)
        # Streams of different run seeds never meet: a million draws fit between two of them.
        draws = [_probe(data, _surrogate(data, pair, 1_000_000 * seed + n), seed) for n in range(num_surrogates)]
        truth = np.nan
        if _finite(pair):
            truth = metrics.linear_probe_accuracy(pair[0], data.fine[0], pair[1], data.fine[1])
        result["clp_tsne"].append(getattr(tsne, "accuracy", np.nan))
        result["surrogate"].append([getattr(r, "accuracy", np.nan) for r in draws])
        result["surrogate_explained_variance"].append([getattr(r, "explained_variance", np.nan) for r in draws])
        result["fine_probe"].append(truth)
    return {name: np.array(values) for name, values in result.items()}


def _surrogate(data: CoarseData, pair: Sequence[AnyArray], draw: int) -> Sequence[AnyArray]:
    if not _finite(pair):
        return pair
    seeds = (2 * draw, 2 * draw + 1)  # Train and test rows are independent draws.
    return [metrics.surrogate_features(h, y, seed=s) for h, y, s in zip(pair, data.coarse, seeds, strict=True)]


def scores_of_inputs(data: CoarseData, *, tsne_iterations: int) -> dict[str, float]:
    """Cluster-and-linear-probe and true-label probe on the inputs themselves.

    Args:
        data: Inputs, labels and the merge.
        tsne_iterations: Gradient steps of t-SNE.

    Returns:
        `raw_clp`, `raw_clp_tsne` and `raw_fine_probe`, accuracies in 0..1.
    """
    plain = _probe(data, data.inputs, 0)
    tsne = _probe(data, data.inputs, 0, method="tsne_kmeans", tsne_iterations=tsne_iterations)
    truth = metrics.linear_probe_accuracy(data.inputs[0], data.fine[0], data.inputs[1], data.fine[1])
    found = {"raw_clp": plain, "raw_clp_tsne": tsne}
    return {name: getattr(r, "accuracy", np.nan) for name, r in found.items()} | {"raw_fine_probe": truth}


def embeddings(features: Float[AnyArray, "T M d"], *, num_iterations: int) -> Float[np.ndarray, "T M 2"]:
    """Embed each record's features in the plane by `metrics.tsne_embedding`, seed 0.

    Args:
        features: One feature matrix a record, any unit.
        num_iterations: Gradient steps of t-SNE.

    Returns:
        Coordinates, dimensionless; NaN where features are not finite.
    """
    planes = [
        metrics.tsne_embedding(part, seed=0, num_iterations=num_iterations)
        if _finite([part])
        else np.full((len(part), 2), np.nan)
        for part in features
    ]
    return np.stack(planes)
