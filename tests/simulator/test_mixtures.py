"""Mixtures: the geometry that was asked for, the right statistics of samples, and refused input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nctheory import simulator


def test_cosine_mixture_has_the_gram_matrix_asked_for():
    mixture = simulator.cosine_mixture(
        num_labels=2, clusters_per_label=3, same_label_cosine=0.4, cross_label_cosine=-0.1, norm=2.0, dim=9
    )
    gram = mixture.means @ mixture.means.T
    assert mixture.coarse_labels == (0, 0, 0, 1, 1, 1)
    assert (mixture.num_labels, mixture.num_clusters, mixture.input_dim) == (2, 6, 9)
    for i in range(6):
        for j in range(6):
            cosine = 1.0 if i == j else 0.4 if (i < 3) == (j < 3) else -0.1
            assert gram[i, j] == pytest.approx(4.0 * cosine, abs=1e-12)


def test_cross_pair_mixture_breaks_the_symmetry_inside_each_label():
    mixture = simulator.cross_pair_mixture(cosine=0.6, dim=5)
    expected = np.eye(4)
    expected[1, 2] = expected[2, 1] = 0.6
    np.testing.assert_allclose(mixture.means @ mixture.means.T, expected, atol=1e-12)
    assert mixture.coarse_labels == (0, 0, 1, 1)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (5, 3), elements=st.floats(-3, 3)), st.integers(3, 7))
def test_means_from_any_positive_semidefinite_gram(factor, dim):
    gram = factor @ factor.T
    means = simulator.means_from_gram(gram, dim)
    assert means.shape == (5, dim)
    # Eigenvalues down to 1e-10 of the largest count as zero, hence the tolerance.
    np.testing.assert_allclose(means @ means.T, gram, atol=1e-9 * max(np.abs(gram).max(), 1e-300))


def test_samples_have_the_mean_and_noise_of_their_cluster(key):
    mixture = simulator.mixture_from_gram(np.eye(3), (0, 0, 1), dim=4, noise_std=(0.1, 0.5, 0.0))
    sizes = (4000, 9000, 2)
    samples = mixture.sample(key, sizes)
    assert np.bincount(samples.fine_labels).tolist() == list(sizes)
    assert np.array_equal(samples.labels, np.asarray([0, 0, 1])[np.asarray(samples.fine_labels)])
    for k, (size, std) in enumerate(zip(sizes, (0.1, 0.5, 0.0), strict=True)):
        rows = np.asarray(samples.inputs)[np.asarray(samples.fine_labels) == k]
        # Six standard errors on 12 means and 12 variances: a false alarm rate below 1e-7 in all.
        np.testing.assert_allclose(rows.mean(axis=0), mixture.means[k], atol=6 * std / size**0.5 + 1e-12)
        np.testing.assert_allclose(rows.var(axis=0), std**2, atol=6 * std**2 * (2 / size) ** 0.5 + 1e-12)


def test_sampling_under_vmap_equals_a_loop_and_depends_on_the_key(key):
    mixture = simulator.cosine_mixture(dim=4, noise_std=0.3)
    keys = jax.random.split(key, 3)
    batch = jax.jit(jax.vmap(lambda k: mixture.sample(k, 2).inputs))(keys)
    for row, k in zip(batch, keys, strict=True):
        # Fusion under jit may round a product and sum once instead of twice.
        np.testing.assert_allclose(row, mixture.sample(k, 2).inputs, rtol=0, atol=4 * jnp.finfo(batch.dtype).eps)
    assert not np.allclose(batch[0], batch[1])


def test_streams_of_training_and_fresh_samples_differ(key):
    data = simulator.MixtureData(simulator.cosine_mixture(dim=4, noise_std=0.3), 2, 2)
    train, fresh = data.draw(key)
    assert not np.allclose(train.inputs, fresh.inputs)
    assert np.array_equal(train.labels, fresh.labels)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: simulator.means_from_gram(np.asarray([[1.0, 2.0], [2.0, 1.0]]), 2), "`gram` must be positive semi"),
        (lambda: simulator.means_from_gram(np.asarray([[1.0, 0.5], [0.1, 1.0]]), 2), "`gram` must be symmetric"),
        (lambda: simulator.means_from_gram(np.ones((2, 3)), 2), "`gram` must have shape"),
        (lambda: simulator.means_from_gram(np.full((2, 2), np.nan), 2), "`gram` must be finite"),
        (lambda: simulator.means_from_gram(np.eye(3), 2), "`dim` must be at least the rank"),
        (lambda: simulator.cosine_mixture(dim=0), "`dim` must be an integer >= 1"),
        (lambda: simulator.cosine_mixture(dim=4, same_label_cosine=1.2), "`same_label_cosine` must .* but is 1.2"),
        (lambda: simulator.cosine_mixture(dim=4, clusters_per_label=0), "`clusters_per_label` must .* >= 1"),
        (lambda: simulator.cosine_mixture(dim=4, norm=0.0), "`norm` must be finite and > 0"),
        (lambda: simulator.cosine_mixture(dim=4, noise_std=-0.1), "`noise_std` must .*, but is -0.1"),
        (lambda: simulator.GaussianMixture(np.eye(3), 0.1, (0, 1)), r"`means` must have shape \(2, d\)"),
        (lambda: simulator.GaussianMixture(np.eye(3), 0.1, (0, 2, 2)), "`coarse_labels` must contain every class"),
        (lambda: simulator.GaussianMixture(np.full((3, 3), np.inf), 0.1, (0, 1, 1)), "`means` must be finite"),
        (lambda: simulator.MixtureData(simulator.cosine_mixture(dim=4), 0, 1), "`samples_per_cluster` must .* >= 1"),
        (lambda: simulator.MixtureData(simulator.cosine_mixture(dim=4), (1, 2), 1), "`samples_per_cluster` must have"),
    ],
)
def test_bad_mixtures_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
