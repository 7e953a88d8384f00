"""L2 against literal networks (NumPy gradient descent) and Monte Carlo over initialisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import theory

X64 = jax.config.jax_enable_x64
RTOL = 1e-9 if X64 else 2e-3
# Two-sided false-alarm rate 1e-6 each; every statistical test below makes few comparisons.
Z = 4.9


def structure(h, labels):
    """Literal q and coarse ratio of cluster features (one row a cluster)."""
    k = len(labels)
    same = [np.sum((h[i] - h[j]) ** 2) for i in range(k) for j in range(i) if labels[i] == labels[j]]
    diff = [np.sum((h[i] - h[j]) ** 2) for i in range(k) for j in range(i) if labels[i] != labels[j]]
    means = np.stack([h[labels == c].mean(axis=0) for c in (0, 1)])
    within = np.mean(np.sum((h - means[labels]) ** 2, axis=1))
    between = np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
    return np.mean(same) / np.mean(diff), within / between


def initial(rng, m, s, std, *, fair_signs=True):
    """Weights, readout and orthogonal means of 2 S clusters (means: rotated axes)."""
    d = 2 * s + 1
    means = np.linalg.qr(rng.normal(size=(d, d)))[0][: 2 * s]
    signs = rng.choice([-1.0, 1.0], m) if fair_signs else np.where(np.arange(m) % 2, 1.0, -1.0)
    return std * rng.normal(size=(m, d)), signs / np.sqrt(m), means, np.repeat([0, 1], s)


def train(w, a, means, labels, *, steps, rate):
    """Full-batch gradient descent of a^T relu(W x) on the logistic loss, one sample a cluster."""
    y, w = 2.0 * labels - 1, w.copy()
    for _ in range(steps):
        z = means @ w.T
        f = np.maximum(z, 0) @ a
        pull = y / (1 + np.exp(y * f)) / len(y)
        w += rate * ((z > 0) * pull[:, None] * a[None, :]).T @ means
    h = np.maximum(means @ w.T, 0)
    return h, y * (h @ a)


@pytest.mark.parametrize(("s", "coarse"), [(2, 2 / 3), (3, 1.0), (4, 6 / 5)])
def test_limit_against_monte_carlo(s, coarse):
    """A wide layer drawn from scratch: cosines, q, coarse ratio within z standard errors, wrong values outside."""
    rng = np.random.default_rng(s)
    m, draws = 4096, 60
    results = []
    for _ in range(draws):
        w, a, means, labels = initial(rng, m, s, 1.0)
        y = 2 * labels - 1
        h = (means @ w.T > 0) * (a[None, :] * y[:, None] > 0) / np.sqrt(m)
        h = h / np.sum(h, axis=1, keepdims=True)  # equal margins
        unit = h / np.linalg.norm(h, axis=1, keepdims=True)
        results.append([*structure(h, labels), unit[0] @ unit[1], unit[0] @ unit[s]])
    results = np.array(results)
    mean, sem = results.mean(axis=0), results.std(axis=0, ddof=1) / np.sqrt(draws)
    limit = theory.relu_limit(s, width=m)
    infinite = theory.relu_limit(s)
    assert float(infinite.coarse_ratio) == pytest.approx(coarse, rel=1e-6)
    assert infinite.ratio_std == 0
    assert float(infinite.ratio) == 0.5
    for predicted, wrong, found, error in (
        (float(limit.ratio_mean), 0.45, mean[0], sem[0]),
        (coarse, 2 * (s - 1) / (s + 2), mean[1], sem[1]),
        (float(limit.same_label_cosine), 0.45, mean[2], sem[2]),
    ):
        # Beside the sampling error, a bias of order 1/m which the limit does not contain.
        assert abs(found - predicted) < Z * error + 4 / m
        assert abs(found - wrong) > Z * error + 4 / m
    assert np.all(results[:, 3] == float(limit.different_label_cosine))


@pytest.mark.parametrize("s", [2, 3])
def test_finite_width_moments_of_q(s):
    """At m = 256 the 1/m shift of the mean and the 1/sqrt(m) spread are visible; dropping the shift is rejected."""
    rng = np.random.default_rng(10 + s)
    m, draws = 256, 60_000
    q = np.empty((2, draws, 2))
    n_label = rng.binomial(m, 0.5, size=draws)
    for label, total in enumerate((n_label, m - n_label)):
        # Counts of the 2^S activity patterns among the neurons of one sign.
        patterns = (np.arange(2**s)[:, None] >> np.arange(s)[None, :]) & 1
        counts = rng.multinomial(total, np.full(2**s, 2.0**-s))
        n_k = counts @ patterns
        pair = [
            (n_k[:, i] + n_k[:, j] - 2 * counts @ (patterns[:, i] * patterns[:, j])) / (n_k[:, i] * n_k[:, j])
            for i in range(s)
            for j in range(i)
        ]
        q[label, :, 0], q[label, :, 1] = np.mean(pair, axis=0), np.mean(1 / n_k, axis=1)
    ratio = q[:, :, 0].mean(axis=0) / q[:, :, 1].sum(axis=0)
    limit = theory.relu_limit(s, width=m)
    sem = ratio.std() / np.sqrt(draws)
    # Next order of the mean: a constant of order 10 over m^2.
    assert abs(ratio.mean() - float(limit.ratio_mean)) < Z * sem + 10 / m**2
    assert abs(ratio.mean() - 0.5) > Z * sem + 10 / m**2
    # Leading order in 1/m: relative error of order 10 / m.
    assert float(limit.ratio_std) == pytest.approx(ratio.std(), rel=0.04)


@pytest.mark.parametrize("s", [2, 3])
def test_features_of_a_trained_network(s):
    """Literal training at small width: features agree exactly at the margins reached, also with neurons still dying."""
    rng = np.random.default_rng(20 + s)
    w, a, means, labels = initial(rng, 60, s, 0.5)
    for steps in (0, 5, 400):
        h, margins = train(w, a, 1.3 * means, labels, steps=steps, rate=0.5)
        found = np.asarray(theory.relu_features(w, a, 1.3 * means, labels, margins=margins))
        np.testing.assert_allclose(found, h, atol=RTOL * np.abs(h).max(), rtol=0)
        if steps == 400:
            late = np.asarray(theory.relu_features(w, a, means, labels))
            assert np.abs(late * margins[:, None] - h).max() > 0.01 * np.abs(h).max()


def test_limit_is_approached_by_training():
    """Wide network, small start: q within 4 predicted standard deviations of 1/2; q = 0 and q = 1 are rejected."""
    rng = np.random.default_rng(30)
    m = 2000
    w, a, means, labels = initial(rng, m, 2, 1e-3)
    h, margins = train(w, a, means, labels, steps=4000, rate=4.0)
    q, coarse = structure(h, labels)
    limit = theory.relu_limit(2, width=m)
    spread = float(limit.ratio_std)
    assert margins.min() > 5
    assert abs(q - float(limit.ratio_mean)) < 4.9 * spread < 0.1
    assert abs(coarse - 2 / 3) < 0.1
    # The per-seed late-time limit needs no wide layer; margins differ by log(n_k) / log(t).
    late = np.asarray(theory.relu_features(w, a, means, labels))
    assert structure(late, labels)[0] == pytest.approx(q, abs=2e-3)


def test_gram_matrix_and_single_cluster():
    limit = theory.relu_limit(3)
    found = theory.fine_structure_from_gram(limit.gram, np.repeat([0, 1], 3), num_classes=2)
    np.testing.assert_allclose([found.ratio, found.coarse_ratio], [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(limit.gram), 1.0)
    alone = theory.relu_limit(1, width=100)
    assert np.isnan(alone.ratio)
    assert np.isnan(alone.ratio_std)
    assert np.isnan(alone.same_label_cosine)
    assert alone.coarse_ratio == 0
    assert any("orthogonal" in text for text in limit.assumptions)


def test_undefined_rows_are_nan():
    """No active neuron of the right sign: the margin cannot grow. A margin below the start cannot be reached."""
    w, a, means = np.ones((3, 2)), np.array([1.0, 1.0, -1.0]), np.eye(2)
    labels = np.array([0, 1])
    h = theory.relu_features(-w, a, means, labels)
    assert np.isnan(h).all()
    h = np.asarray(theory.relu_features(w, a, means, labels, margins=np.array([-5.0, 3.0])))
    assert np.isnan(h[0]).all()
    assert (h[1] @ a) == pytest.approx(3.0, rel=1e-6)


def test_transformations_and_dtype():
    rng = np.random.default_rng(40)
    _, a, means, labels = initial(rng, 12, 2, 1.0)
    w = rng.normal(size=(3, 12, means.shape[1]))
    margins = np.full(4, 6.0)

    def features(weight):
        return theory.relu_features(weight, a, means, labels, margins=margins)

    mapped = jax.jit(jax.vmap(features))(jnp.asarray(w))
    for i in range(3):
        np.testing.assert_allclose(mapped[i], features(w[i]), rtol=1e-5, atol=1e-6)
    single = theory.relu_features(*(np.asarray(v, np.float32) for v in (w[0], a, means)), labels)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, theory.relu_features(w[0], a, means, labels), rtol=1e-5)


def test_errors(own_errors):
    w, a, means, labels = np.ones((3, 2)), np.ones(3), np.eye(2), np.array([0, 1])
    with pytest.raises(ValueError, match="`clusters_per_label` must be an integer >= 1"):
        theory.relu_limit(0)
    with pytest.raises(ValueError, match="`width` must be an integer >= 1"):
        theory.relu_limit(2, width=0)
    with pytest.raises(ValueError, match="`means` must have orthogonal rows"):
        theory.relu_features(w, a, np.array([[1.0, 0.0], [0.6, 0.8]]), labels)
    with pytest.raises(ValueError, match=r"`readout` must have shape \(3,\)"):
        theory.relu_features(w, np.ones(4), means, labels)
    with pytest.raises(ValueError, match=r"`labels` must lie in 0\.\.1"):
        theory.relu_features(w, a, means, np.array([-1, 1]))
    with pytest.raises(ValueError, match=r"`margins` must have shape \(2,\)"):
        theory.relu_features(w, a, means, labels, margins=np.ones(3))
    with pytest.raises(ValueError, match="`means` must be finite"):
        theory.relu_features(w, a, means * np.nan, labels)
