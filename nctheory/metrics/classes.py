"""Rare and empty classes, said aloud: which there are, and the metrics of the others.

`collapse_metrics` refuses an empty class, because a class without samples has no mean. These functions run on the host
and say what was left out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.metrics import _moments
from nctheory.metrics.collapse import CollapseMetrics, collapse_metrics


@dataclass(frozen=True)
class ClassReport:
    """Samples of every class.

    Attributes:
        counts: number of samples of each class 0..K-1.
        min_count: number of samples below which a class counts as rare.
        empty: classes without a sample.
        rare: classes with at least 1 and fewer than `min_count` samples.
    """

    counts: tuple[int, ...]
    min_count: int
    empty: tuple[int, ...]
    rare: tuple[int, ...]

    @property
    def is_complete(self) -> bool:
        """Whether no class is empty or rare."""
        return not (self.empty or self.rare)

    @property
    def imbalance(self) -> float:
        """Largest / smallest number of samples of a class that has any (dimensionless); NaN without samples."""
        present = [count for count in self.counts if count]
        return max(present) / min(present) if present else float("nan")

    def __str__(self) -> str:
        """Say it in one line."""
        present = len(self.counts) - len(self.empty)
        text = f"{present} of {len(self.counts)} classes have samples"
        if self.empty:
            text += f"; empty: {list(self.empty)}"
        if self.rare:
            text += f"; fewer than {self.min_count}: {list(self.rare)}"
        return text


@dataclass(frozen=True)
class PresentCollapse:
    """Metrics of the classes that have samples enough.

    Attributes:
        metrics: metrics of the kept classes alone, as if there were no other: K is the number of kept classes in all of
            them. Not comparable with metrics of another set of classes.
        kept: classes measured, in rising order.
        dropped: classes left out, in rising order.
    """

    metrics: CollapseMetrics
    kept: tuple[int, ...]
    dropped: tuple[int, ...]


def class_report(labels: Integer[AnyArray, " N"], num_classes: int, *, min_count: int = 2) -> ClassReport:
    """Count the samples of each class and name the empty and the rare classes.

    A class of one sample has no spread about its mean and so makes the metrics smaller: hence 2 as the default.

    Args:
        labels: class of each sample, 0..K-1; concrete, not traced.
        num_classes: K, at least 1.
        min_count: number of samples below which a class counts as rare, at least 1.

    Returns:
        The report.

    Raises:
        ValueError: for a wrong shape or dtype, labels out of range, traced labels, or numbers out of range.

    Example:
        >>> import numpy as np
        >>> print(class_report(np.array([0, 0, 0, 2]), 4))
        2 of 4 classes have samples; empty: [1, 3]; fewer than 2: [2]
    """
    _checks.integer("num_classes", num_classes, minimum=1)
    _checks.integer("min_count", min_count, minimum=1)
    _checks.labels("labels", labels, num_classes=num_classes)
    known = _host_labels(labels)
    counts = np.bincount(known, minlength=num_classes)
    return ClassReport(
        counts=tuple(counts.tolist()),
        min_count=int(min_count),
        empty=tuple(np.flatnonzero(counts == 0).tolist()),
        rare=tuple(np.flatnonzero((counts > 0) & (counts < min_count)).tolist()),
    )


def collapse_metrics_of_present(
    features: Float[AnyArray, "N d"], labels: Integer[AnyArray, " N"], *, num_classes: int, min_count: int = 1
) -> PresentCollapse:
    """Measure the collapse of the classes with at least `min_count` samples, and say which were left out.

    `collapse_metrics` of the samples of these classes, renumbered in order. An empty class takes no part: a zero vector
    in place of its mean would move the global mean and count as a class at a distance. nc3 and nc4 are NaN, because a
    classifier of all classes is not one of the kept.

    Args:
        features: activations, one row a sample, any common unit.
        labels: class of each sample, 0..K-1; concrete, not traced.
        num_classes: K, at least 2.
        min_count: samples that a class needs to be measured, at least 1.

    Returns:
        The metrics, the classes they are of, and the classes left out.

    Raises:
        ValueError: for wrong shapes or dtypes, labels out of range, traced labels, NaN or infinite features, or fewer
            than two classes with samples enough.

    Example:
        >>> import numpy as np
        >>> present = collapse_metrics_of_present(np.eye(4), np.array([0, 0, 2, 2]), num_classes=4)
        >>> present.kept, present.dropped
        ((0, 2), (1, 3))
    """
    _moments.check_inputs(features, labels, num_classes=num_classes)
    report = class_report(labels, num_classes, min_count=min_count)
    dropped = tuple(sorted(report.empty + report.rare))
    kept = tuple(c for c in range(num_classes) if c not in set(dropped))
    if len(kept) < 2:
        raise ArgumentError(
            f"Argument `labels` must hold at least 2 classes with {min_count} samples or more, but holds {len(kept)}: "
            f"{report}."
        )
    known = _host_labels(labels)
    is_kept = np.isin(known, kept)
    if not is_kept.all():
        features, known = features[np.flatnonzero(is_kept)], known[is_kept]
    metrics = collapse_metrics(features, np.searchsorted(np.array(kept), known), num_classes=len(kept))
    return PresentCollapse(metrics=metrics, kept=kept, dropped=dropped)


def _host_labels(labels: Any) -> np.ndarray:
    if not _checks.is_concrete(labels):
        raise ArgumentError("Argument `labels` must be known, not traced by a transformation, to count its classes.")
    return np.asarray(labels).astype(np.int64)
