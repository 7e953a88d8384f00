"""Each study's variant of a metric against its code's formula in literal NumPy, and what tells the variants apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.metrics import CollapseAccumulator, collapse_metrics
from nctheory.metrics.held_out import held_out_collapse
from nctheory.metrics.variants import hui2022, parker2023, rangamani2023
from tests.metrics import reference

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-10 if X64 else 2e-4
DTYPE = jnp.float64 if X64 else jnp.float32
K, DIM = 4, 6


def draw(seed, balanced=False, noise=0.8):
    rng = np.random.default_rng(seed)
    labels = (
        np.arange(40) % K if balanced else np.concatenate([np.arange(K), rng.choice(K, 36, p=[0.6, 0.2, 0.1, 0.1])])
    )
    features = 3 + rng.standard_normal((K, DIM))[labels] + noise * rng.standard_normal((40, DIM))
    weight = rng.standard_normal((K, DIM))
    # The bias undoes the common offset, so that predictions without it are others.
    return features, labels, weight, rng.standard_normal(K) - 3 * weight.sum(axis=1)


def accumulate(features, labels):
    start = CollapseAccumulator.init(num_classes=K, feature_dim=DIM, dtype=DTYPE)
    return start.update(features[:15], labels[:15]).update(features[15:], labels[15:])


def literal_means(features, labels):
    return np.stack([features[labels == c].mean(axis=0) for c in range(K)])


def test_parker_matches_a_literal_form_of_the_code():
    features, labels, weight, bias = draw(1)
    got = parker2023(collapse_metrics(features, labels, num_classes=K, weight=weight, bias=bias), K)
    mu = literal_means(features, labels)
    g, z = mu - mu.mean(axis=0), features - mu[labels]
    u, s, vt = np.linalg.svd(g.T @ g / K)
    inverse = vt[: K - 1].T @ np.diag(1 / s[: K - 1]) @ u[:, : K - 1].T
    norms = np.linalg.norm(g, axis=1)
    cosines = (g / norms[:, None]) @ (g / norms[:, None]).T + 1 / (K - 1)
    np.fill_diagonal(cosines, 0)
    nearest = np.argmin(np.linalg.norm(features[:, None] - mu[None], axis=-1), axis=1)
    np.testing.assert_allclose(got.nc1, np.trace(z.T @ z / 40 @ inverse), rtol=RTOL)
    np.testing.assert_allclose(got.nc2_equinorm, norms.std(ddof=1) / norms.mean(), rtol=RTOL)
    np.testing.assert_allclose(got.nc2_equiangular, np.abs(cosines).sum() / (K * (K - 1)), rtol=RTOL)
    # The network's prediction, bias included.
    predictions = np.argmax(features @ weight.T + bias, axis=1)
    np.testing.assert_allclose(got.nc4_mismatch, np.mean(nearest != predictions), rtol=1e-6)
    assert np.mean(nearest != predictions) != np.mean(nearest != np.argmax(features @ weight.T, axis=1))


@pytest.mark.parametrize("balanced", [False, True])
def test_rangamani_matches_a_literal_form_of_the_code(balanced):
    features, labels, *_ = draw(2, balanced)
    metrics = collapse_metrics(features, labels, num_classes=K)
    mu, counts = literal_means(features, labels), np.bincount(labels)
    about = mu - features.mean(axis=0)
    centers = held_out_collapse(features, labels, features, labels, num_classes=K)
    got = rangamani2023(metrics, K, train=accumulate(features, labels), label_mismatch=centers.label_mismatch)
    within = sum(np.sum((features[labels == c] - mu[c]) ** 2) / counts[c] for c in range(K)) / K
    np.testing.assert_allclose(got.within_trace, within, rtol=RTOL)
    np.testing.assert_allclose(got.between_trace, np.sum(about**2) / K, rtol=RTOL)
    nearest = np.argmin(np.linalg.norm(features[:, None] - mu[None], axis=-1), axis=1)
    np.testing.assert_allclose(got.nc4_mismatch, np.mean(nearest != labels), rtol=1e-6)
    z = features - mu[labels]
    nc1 = np.trace(z.T @ z / 40 @ reference.pinv_of_rank(about.T @ about / K, K - 1))
    assert np.isclose(got.nc1, nc1, rtol=10 * RTOL) == balanced
    # The ratio of the traces is that of this library on balanced classes, and only there.
    assert np.isclose(got.within_trace / got.between_trace, metrics.within_between_ratio, rtol=10 * RTOL) == balanced


def test_the_two_mismatches_differ():
    features, labels, weight, bias = draw(3)
    predictions = np.argmax(features @ weight.T + bias, axis=1)
    centers = held_out_collapse(features, labels, features, labels, num_classes=K, predictions=predictions)
    metrics = collapse_metrics(features, labels, num_classes=K)
    with_prediction = parker2023(metrics, K, prediction_mismatch=centers.prediction_mismatch)
    classified = parker2023(collapse_metrics(features, labels, num_classes=K, weight=weight, bias=bias), K)
    np.testing.assert_allclose(with_prediction.nc4_mismatch, classified.nc4_mismatch, rtol=1e-6)
    with_label = rangamani2023(metrics, K, label_mismatch=centers.label_mismatch)
    assert abs(float(with_prediction.nc4_mismatch) - float(with_label.nc4_mismatch)) > 0.1


def test_hui_is_the_trace_ratio_and_the_measures_about_train_means():
    features, labels, *_ = draw(4)
    metrics = collapse_metrics(features, labels, num_classes=K)
    mu = literal_means(features, labels)
    ratio = np.mean(np.sum((features - mu[labels]) ** 2, axis=1)) / np.mean(np.sum((mu - mu.mean(axis=0)) ** 2, axis=1))
    alone = hui2022(metrics)
    np.testing.assert_allclose(alone.trace_ratio, ratio, rtol=RTOL)
    assert np.isnan(alone.strong)
    assert np.isnan(alone.weak)
    centers = held_out_collapse(features, labels, features, labels, num_classes=K)
    got = hui2022(metrics, centers=centers)
    np.testing.assert_allclose(got.strong, ratio, rtol=RTOL)
    assert float(got.weak) < float(got.strong)


def test_undefined_stays_undefined():
    features, labels, *_ = draw(5)
    metrics = collapse_metrics(features, labels, num_classes=K)
    assert np.isnan(parker2023(metrics, K).nc4_mismatch)
    alone = rangamani2023(metrics, K)
    assert np.isnan([alone.within_trace, alone.between_trace, alone.nc4_mismatch]).all()
    keep = labels != 2
    partial = rangamani2023(metrics, K, train=accumulate(features[keep], labels[keep]))
    assert np.isnan([partial.within_trace, partial.between_trace]).all()
    line = np.outer(np.arange(4.0), np.ones(3))[np.arange(8) % 4] + np.repeat([[0.1], [-0.1]], 4, axis=0)
    assert np.isnan(parker2023(collapse_metrics(line, np.arange(8) % 4, num_classes=4), 4).nc1)


@pytest.mark.parametrize("jit", [False, True])
def test_leading_axes_pass_through(jit):
    drawn = [draw(seed) for seed in range(3)]
    features, labels = (jnp.asarray(np.stack(a)) for a in list(zip(*drawn, strict=True))[:2])
    stacked = jax.vmap(lambda x, y: collapse_metrics(x, y, num_classes=K))(features, labels)
    train = jax.vmap(accumulate)(features, labels)

    def convert(metrics, train):
        return parker2023(metrics, K), rangamani2023(metrics, K, train=train), hui2022(metrics)

    got = (jax.jit(convert) if jit else convert)(stacked, train)
    batched = jax.vmap(convert)(stacked, train)
    for i, (x, y, *_) in enumerate(drawn):
        alone = convert(collapse_metrics(x, y, num_classes=K), accumulate(x, y))
        for many in (got, batched):
            for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=10 * RTOL)


def test_records_of_numpy_arrays_are_taken():
    metrics = jax.tree.map(np.asarray, collapse_metrics(*draw(6)[:2], num_classes=K))
    got = parker2023(metrics, K)
    assert got.nc1.dtype == metrics.nc1.dtype
    np.testing.assert_allclose(got.nc1, 4 * metrics.nc1, rtol=1e-7)


@pytest.mark.usefixtures("own_errors")
def test_bad_input_is_named():
    features, labels, *_ = draw(7)
    metrics = collapse_metrics(features, labels, num_classes=K)
    for function in (parker2023, rangamani2023):
        with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
            function(metrics, 1)
    with pytest.raises(ValueError, match="`train` must hold 3 classes, but holds 4"):
        rangamani2023(metrics, 3, train=accumulate(features, labels))
