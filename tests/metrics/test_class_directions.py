"""Uniformity and alignment of class means in a few numbers: against literal NumPy, from batches, limits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import frames
from nctheory.metrics import (
    CollapseAccumulator,
    class_alignment,
    class_directions,
    collapse_metrics,
    hyperspherical_uniformity,
)
from tests.metrics import reference
from tests.metrics.test_directions import draw

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-10 if X64 else 2e-4
K, DIM = 4, 7


def assert_matches(found, expected, rtol=RTOL):
    for name, value in expected.items():
        # The excess is near 0 for even directions: its error is that of the energy.
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("with_classifier", [True, False])
@pytest.mark.parametrize(("num_classes", "dim", "jit"), [(2, 5, False), (4, 7, True), (6, 3, False), (70, 80, False)])
def test_matches_the_literal_reference(num_classes, dim, jit, with_classifier):
    features, labels, weight, _ = draw(1, num_classes, 5 * num_classes + 20, dim)
    weight = weight if with_classifier else None

    def measure(features, labels, weight):
        return class_directions(features, labels, num_classes=num_classes, weight=weight)

    found = (jax.jit(measure) if jit else measure)(features, labels, weight)
    assert_matches(found, reference.directions(features, labels, num_classes, weight))
    assert np.isfinite(found.class_alignment_mean) == with_classifier


def test_they_are_summaries_of_the_functions_class_by_class():
    features, labels, weight, _ = draw(2)
    found = class_directions(features, labels, num_classes=K, weight=weight)
    cosines = np.asarray(class_alignment(features, labels, weight, num_classes=K))
    uniformity = hyperspherical_uniformity(features, labels, num_classes=K)
    np.testing.assert_allclose(found.class_alignment_mean, cosines.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.class_alignment_min, cosines.min(), rtol=1e-6)
    np.testing.assert_allclose(found.hyperspherical_energy, uniformity.energy, rtol=1e-6)
    np.testing.assert_allclose(found.hyperspherical_excess, uniformity.excess, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 32, 90])
def test_batches_of_any_size_match_the_literal_reference(size):
    features, labels, weight, _ = draw(3)
    # The accumulator is float32; the truth is that of the float32 numbers.
    features, weight = features.astype(np.float32), weight.astype(np.float32)
    first = CollapseAccumulator.init(num_classes=K, feature_dim=DIM)
    for start in range(0, len(labels), size):
        first = first.update(features[start : start + size], labels[start : start + size])
    expected = reference.directions(features, labels, K, weight)
    assert_matches(first.directions(weight), expected, rtol=1e-4)
    assert_matches(first.second_pass(weight).directions(), expected, rtol=1e-4)
    assert np.isnan(first.directions().class_alignment_min)
    assert np.isnan(first.second_pass().directions().class_alignment_mean)
    halves = [CollapseAccumulator.init(num_classes=K, feature_dim=DIM) for _ in range(2)]
    halves = [each.update(features[at::2], labels[at::2]) for at, each in enumerate(halves)]
    assert_matches(halves[0].merge(halves[1]).directions(weight), expected, rtol=1e-4)
    none = CollapseAccumulator.init(num_classes=K, feature_dim=DIM).directions(weight)
    assert np.isnan(jax.tree.leaves(none)).all()


def test_a_self_dual_simplex_etf_is_the_limit_and_duality_follows_from_the_cosines():
    etf = np.asarray(frames.simplex_etf(5, 8))
    labels = np.tile(np.arange(5), 3)
    found = class_directions(3 * etf[labels] + 7.0, labels, num_classes=5, weight=0.1 * etf)
    atol = 1e-12 if X64 else 3e-6
    np.testing.assert_allclose(found.hyperspherical_excess, 0, atol=atol)
    np.testing.assert_allclose(found.hyperspherical_energy, -np.log(2.5) / 2, rtol=1e-6)
    np.testing.assert_allclose([found.class_alignment_mean, found.class_alignment_min], 1, atol=atol)
    # Of rows and means of one length each, |W/|W| - M/|M||^2 = 2 - 2 (mean of the cosines).
    turned = etf @ np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    found = class_directions(etf[labels], labels, num_classes=5, weight=turned)
    duality = float(collapse_metrics(etf[labels], labels, num_classes=5, weight=turned).nc3_duality)
    assert duality**2 == pytest.approx(2 - 2 * float(found.class_alignment_mean), rel=1e-5)
    assert float(found.class_alignment_min) < float(found.class_alignment_mean) < 0.9


def test_a_class_that_turns_away_shows_in_the_minimum():
    etf = np.asarray(frames.simplex_etf(5, 8))
    weight = etf.copy()
    weight[3] *= -1
    found = class_directions(etf, np.arange(5), num_classes=5, weight=weight)
    np.testing.assert_allclose(found.class_alignment_min, -1, rtol=1e-6)
    np.testing.assert_allclose(found.class_alignment_mean, 3 / 5, rtol=1e-6)


def test_vmap_equals_a_loop():
    features, labels, weight, _ = (
        jnp.stack([jnp.asarray(each) for each in a]) for a in zip(*(draw(s) for s in range(3)), strict=True)
    )

    def measure(features, labels, weight):
        return class_directions(features, labels, num_classes=K, weight=weight)

    batched = jax.vmap(measure)(features, labels, weight)
    for i in range(3):
        assert_matches(jax.tree.map(lambda a, i=i: a[i], batched), vars(measure(features[i], labels[i], weight[i])))


def test_undefined_is_nan_and_only_there():
    features, labels, weight, _ = draw(4)
    zero_row = weight.copy()
    zero_row[1] = 0
    found = class_directions(features, labels, num_classes=K, weight=zero_row)
    assert np.isnan([found.class_alignment_mean, found.class_alignment_min]).all()
    assert np.isfinite(found.hyperspherical_energy)
    constant = class_directions(np.ones((8, 3)), np.arange(8) % K, num_classes=K, weight=np.ones((K, 3)))
    assert np.isnan(jax.tree.leaves(constant)).all()
    shared = class_directions(np.array([[1.0, 0], [2.0, 0], [-3.0, 0]]), np.arange(3), num_classes=3)
    assert np.isposinf([shared.hyperspherical_energy, shared.hyperspherical_excess]).all()


@pytest.mark.parametrize("fault", ["empty class", "label above", "label below", "nan", "inf"])
def test_faults_give_nan_under_jit(fault):
    features, labels, weight, _ = draw(5)
    if fault == "empty class":
        labels[labels == 2] = 1
    elif fault in ("label above", "label below"):
        labels[-1] = K if fault == "label above" else -1
    else:
        features[-1, 0] = float(fault)
    found = jax.jit(lambda *a: class_directions(a[0], a[1], num_classes=K, weight=a[2]))(features, labels, weight)
    assert np.isnan(jax.tree.leaves(found)).all()


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(5)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.full((60, DIM), np.nan)}, "`features` must be finite"),
        ({"labels": np.full(60, 4)}, r"`labels` must lie in 0\.\.3"),
        ({"labels": np.arange(60) % 3}, r"has no sample of \[3\]"),
        ({"num_classes": 1, "labels": np.zeros(60, int)}, "`num_classes` must be an integer >= 2"),
        ({"weight": np.ones((3, DIM))}, r"`weight` must have shape \(4, 7\)"),
        ({"weight": np.full((K, DIM), np.inf)}, "`weight` must be finite"),
    ],
)
def test_bad_arguments_are_named(change, message):
    features, labels, weight, _ = draw(6)
    given = {"features": features, "labels": labels, "num_classes": K, "weight": weight} | change
    with pytest.raises(ValueError, match=message):
        class_directions(given.pop("features"), given.pop("labels"), **given)


@pytest.mark.usefixtures("own_errors")
def test_a_bad_classifier_of_an_accumulator_is_named():
    first = CollapseAccumulator.init(num_classes=K, feature_dim=DIM)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(4, 7\)"):
        first.directions(np.ones((K, 3)))
