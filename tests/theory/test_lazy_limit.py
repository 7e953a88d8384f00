"""Lazy training against SciPy's matrix exponential, literal kernel gradient descent and Gaussian draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from nctheory.theory.lazy_limit import kernel_predictions

X64 = jax.config.jax_enable_x64
TIGHT = 1e-9 if X64 else 2e-4


def problem(rank=8, seed=0):
    """Kernel of seven points of which the first four are trained on, targets with two columns."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(7, rank))
    return factor @ factor.T / rank, rng.normal(size=(4, 2)), rng.normal(size=(7, 2))


def test_against_the_matrix_exponential():
    ntk, targets, initial = problem()
    times = np.array([0.0, 0.3, 4.0, 100.0])
    found = kernel_predictions(ntk, targets, times, initial=initial)
    for i, time in enumerate(times):
        grown = np.linalg.solve(ntk[:4, :4], np.eye(4) - expm(-ntk[:4, :4] * time / 4))
        np.testing.assert_allclose(found.response[i], ntk[:, :4] @ grown, atol=TIGHT)
        np.testing.assert_allclose(found.mean[i], initial + ntk[:, :4] @ grown @ (targets - initial[:4]), atol=TIGHT)
    np.testing.assert_array_equal(found.mean[0], jnp.asarray(initial))
    assert np.isnan(np.asarray(found.variance)).all()


def test_long_training_interpolates_and_a_singular_kernel_fits_what_it_can():
    ntk, targets, _ = problem()
    late = kernel_predictions(ntk, targets, np.array([1e6]))
    np.testing.assert_allclose(late.mean[0, :4], targets, atol=TIGHT)
    low, targets, _ = problem(rank=2)
    found = np.asarray(kernel_predictions(low, targets, np.array([1e6])).mean[0, :4])
    values, vectors = np.linalg.eigh(low[:4, :4])
    kept = vectors[:, values > 1e-10]
    assert kept.shape[1] == 2
    # A direction whose eigenvalue is rounding, 1e-7 in float32, has grown by 1e6 times that after all this time.
    np.testing.assert_allclose(found, kept @ kept.T @ targets, atol=1e-6 if X64 else 0.3)


def test_steps_are_literal_gradient_descent():
    ntk, targets, initial = problem()
    curvature = np.linalg.eigvalsh(ntk[:4, :4] / 4)[-1]
    # The third rate overshoots in the steepest direction at every step, the last one in most of them.
    for product in (0.01, 0.5, 1.0, 1.6):
        rate = product / curvature
        outputs = initial.copy()
        for _ in range(7):
            outputs = outputs - rate / 4 * ntk[:, :4] @ (outputs[:4] - targets)
        found = kernel_predictions(ntk, targets, np.array([0.0, 7 * rate]), learning_rate=rate, initial=initial)
        np.testing.assert_allclose(found.mean[1], outputs, atol=TIGHT * 10)
        np.testing.assert_array_equal(found.mean[0], jnp.asarray(initial))
    flow = kernel_predictions(ntk, targets, np.array([7 * 1.6 / curvature]), initial=initial).mean[0]
    assert np.abs(np.asarray(flow) - outputs).max() > 0.1


def test_variance_is_that_of_drawn_initial_functions():
    ntk, targets, _ = problem()
    nngp = problem(seed=1)[0]
    rng, draws = np.random.default_rng(2), 4000
    starts = rng.normal(size=(draws, 7)) @ np.linalg.cholesky(nngp + 1e-12 * np.eye(7)).T
    times = jnp.array([0.0, 1.0, 30.0])

    def one(start):
        return kernel_predictions(ntk, targets[:, :1], times, initial=start[:, None]).mean[:, :, 0]

    drawn = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(starts)))
    found = kernel_predictions(ntk, targets[:, :1], times, nngp=nngp)
    variance = drawn.var(axis=0, ddof=1)
    # Variances of Gaussians have standard error sqrt(2/draws) of themselves; 21 comparisons at 5 of them.
    np.testing.assert_allclose(found.variance, variance, rtol=5 * np.sqrt(2 / draws), atol=1e-6)
    standard_error = np.sqrt(variance / draws)
    assert np.all(np.abs(np.asarray(found.mean)[:, :, 0] - drawn.mean(axis=0)) < 5 * standard_error + 1e-5)
    np.testing.assert_allclose(found.variance[0], np.diag(nngp), rtol=1e-5)


def test_transformations_and_dtype():
    ntk, targets, initial = problem()
    times = jnp.array([0.5, 2.0])
    stacked = jnp.stack([jnp.asarray(initial), jnp.asarray(initial) * 2])

    def mean(start, rate):
        return kernel_predictions(jnp.asarray(ntk), targets, times, initial=start, learning_rate=rate).mean

    mapped = jax.jit(jax.vmap(mean, in_axes=(0, None)))(stacked, jnp.asarray(0.25))
    for i in range(2):
        np.testing.assert_allclose(mapped[i], mean(stacked[i], 0.25), atol=TIGHT)
    single = kernel_predictions(*(jnp.asarray(each, dtype=jnp.float32) for each in (ntk, targets, times)))
    assert single.mean.dtype == jnp.float32


def test_errors(own_errors):
    ntk, targets, initial = problem()
    times = np.array([1.0])
    for arguments, options, message in (
        ((ntk[:, :3], targets, times), {}, r"`ntk` must have shape \(7, 7\)"),
        ((ntk * np.nan, targets, times), {}, "`ntk` must be finite"),
        ((ntk, np.ones((8, 2)), times), {}, "`targets` must have 1 to 7 rows, one a point, but has 8"),
        ((ntk, targets, np.array([-1.0])), {}, "`times` must be finite and >= 0"),
        ((ntk, targets, np.array([[1.0]])), {}, r"`times` must have shape \(T,\)"),
        ((ntk, targets, times), {"initial": initial[:4]}, r"`initial` must have shape \(7, 2\)"),
        ((ntk, targets, times), {"nngp": np.eye(4)}, r"`nngp` must have shape \(7, 7\)"),
        ((ntk, targets, times), {"learning_rate": 0.0}, "`learning_rate` must be finite and > 0"),
        ((ntk, targets, times), {"learning_rate": 0.3}, "`times` must hold multiples of `learning_rate`"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_predictions(*arguments, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_times_between_two_steps_are_refused_however_many_there_are(dtype, own_errors):
    ntk, targets, _ = problem()
    for count in (1, 60_000, 3_000_000):
        good = np.array([count * 0.125], dtype)
        kernel_predictions(ntk, targets, good, learning_rate=0.125)
        with pytest.raises(ValueError, match="`times` must hold multiples of `learning_rate`"):
            kernel_predictions(ntk, targets, good + np.asarray(0.0625, dtype), learning_rate=0.125)
    # Rounded products of a rate that is no power of two pass.
    rate = np.asarray(0.1, dtype)
    kernel_predictions(ntk, targets, np.arange(0, 200_000, 501).astype(dtype) * rate, learning_rate=rate)
