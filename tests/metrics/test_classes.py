"""Rare and empty classes: named in a report, left out of the metrics, and never measured as a zero mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.metrics import collapse_metrics
from nctheory.metrics.classes import class_report, collapse_metrics_of_present
from tests.metrics import reference

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-10 if X64 else 2e-4


def draw(labels, dim=5):
    rng = np.random.default_rng(1)
    labels = np.asarray(labels)
    return 2 + rng.standard_normal((8, dim))[labels] + 0.3 * rng.standard_normal((len(labels), dim)), labels


# Classes 1 and 5 of 6 are empty, 4 has one sample, 2 has two.
LABELS = np.array([0, 0, 0, 3, 3, 3, 3, 2, 2, 4])


def assert_matches(metrics, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(metrics, name), value, rtol=RTOL, atol=RTOL, err_msg=name)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, lambda y: y.astype(np.uint8)])
def test_report_names_empty_and_rare_classes(convert):
    report = class_report(convert(LABELS), 6)
    assert report.counts == (3, 0, 2, 4, 1, 0)
    assert report.empty == (1, 5)
    assert report.rare == (4,)
    assert report.min_count == 2
    assert not report.is_complete
    assert report.imbalance == 4
    assert str(report) == "4 of 6 classes have samples; empty: [1, 5]; fewer than 2: [4]"
    assert class_report(convert(LABELS), 6, min_count=3).rare == (2, 4)


def test_report_of_complete_and_of_no_labels():
    complete = class_report(np.arange(6) % 3, 3)
    assert complete.is_complete
    assert complete.imbalance == 1
    assert str(complete) == "3 of 3 classes have samples"
    nothing = class_report(np.zeros(0, int), 2)
    assert nothing.empty == (0, 1)
    assert np.isnan(nothing.imbalance)


@pytest.mark.parametrize(
    ("min_count", "kept"), [(1, (0, 2, 3, 4)), pytest.param(2, (0, 2, 3), marks=pytest.mark.slow), (3, (0, 3))]
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_metrics_of_the_present_are_those_of_the_present_alone(min_count, kept, convert):
    features, labels = draw(LABELS)
    got = collapse_metrics_of_present(convert(features), convert(labels), num_classes=6, min_count=min_count)
    assert got.kept == kept
    assert got.dropped == tuple(sorted(set(range(6)) - set(kept)))
    chosen = np.isin(labels, kept)
    renumbered = np.array([kept.index(c) for c in labels[chosen]])
    assert_matches(got.metrics, reference.collapse(features[chosen], renumbered, len(kept)))


def test_nothing_is_dropped_from_complete_labels():
    features, labels = draw(np.arange(20) % 4)
    got = collapse_metrics_of_present(features, labels, num_classes=4)
    assert got.kept == (0, 1, 2, 3)
    assert got.dropped == ()
    assert_matches(
        got.metrics, {k: np.asarray(v) for k, v in vars(collapse_metrics(features, labels, num_classes=4)).items()}
    )


def test_an_empty_class_is_not_a_zero_mean():
    """A zero vector in place of the missing mean changes every metric of the spread between classes."""
    features, labels = draw([0, 0, 0, 2, 2, 2, 3, 3, 3])
    got = collapse_metrics_of_present(features, labels, num_classes=4).metrics
    mu = np.stack([features[labels == c].mean(axis=0) if (labels == c).any() else np.zeros(5) for c in range(4)])
    g, z = mu - mu.mean(axis=0), features - mu[labels]
    wrong = np.mean(np.sum(z**2, axis=1)) / np.mean(np.sum(g**2, axis=1))
    right = reference.collapse(features, np.searchsorted([0, 2, 3], labels), 3)["within_between_ratio"]
    np.testing.assert_allclose(got.within_between_ratio, right, rtol=RTOL)
    assert abs(wrong - right) > 0.2 * right
    # Nor does it matter where the features' origin lies.
    moved = collapse_metrics_of_present(features + 50, labels, num_classes=4).metrics
    np.testing.assert_allclose(moved.within_between_ratio, right, rtol=RTOL if X64 else 1e-3)


def test_a_rare_class_flatters_the_spread():
    features, labels = draw([0, 0, 0, 1, 1, 1, 2])
    with_rare = collapse_metrics_of_present(features, labels, num_classes=3).metrics
    without = collapse_metrics_of_present(features, labels, num_classes=3, min_count=2)
    assert without.dropped == (2,)
    # One sample lies on its own mean, and its class adds spread between classes alone.
    assert float(with_rare.within_between_ratio) < float(without.metrics.within_between_ratio)


def test_renumbering_classes_changes_nothing():
    features, labels = draw(LABELS)
    names = np.array([5, 0, 3, 1, 2, 4])
    before = collapse_metrics_of_present(features, labels, num_classes=6)
    after = collapse_metrics_of_present(features, names[labels], num_classes=6)
    assert set(names[list(before.kept)]) == set(after.kept)
    assert_matches(after.metrics, {k: np.asarray(v) for k, v in vars(before.metrics).items()})


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(10)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.full((10, 5), np.nan)}, "`features` must be finite"),
        ({"labels": LABELS[:9]}, r"`labels` must have shape \(10,\)"),
        ({"labels": LABELS + 3}, r"`labels` must lie in 0\.\.5"),
        ({"labels": LABELS - 1}, r"`labels` must lie in 0\.\.5"),
        ({"labels": LABELS.astype(float)}, "`labels` must hold integers"),
        ({"labels": np.zeros(10, int)}, "`labels` must hold at least 2 classes with 1 samples or more, but holds 1"),
        ({"min_count": 4}, r"`labels` must hold at least 2 classes .* holds 1: 4 of 6 .* fewer than 4: \[0, 2, 4\]"),
        ({"min_count": 0}, "`min_count` must be an integer >= 1"),
        ({"num_classes": 1}, "`num_classes` must be an integer >= 2"),
    ],
)
def test_bad_input_is_named(change, message):
    features, labels = draw(LABELS)
    with pytest.raises(ValueError, match=message):
        collapse_metrics_of_present(**({"features": features, "labels": labels, "num_classes": 6} | change))


@pytest.mark.usefixtures("own_errors")
def test_traced_labels_are_refused():
    features, labels = draw(LABELS)
    with pytest.raises(ValueError, match="`labels` must be known, not traced"):
        jax.jit(lambda y: collapse_metrics_of_present(features, y, num_classes=6).metrics)(labels)
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 1"):
        class_report(labels, 0)
    with pytest.raises(ValueError, match="`labels` must hold integers"):
        class_report(np.ones(3), 2)
