"""Arc-cosine kernel against Monte Carlo over Gaussian weights, quadrature, and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import dblquad

from nctheory import theory

X64 = jax.config.jax_enable_x64
# Two-sided false-alarm rate 1e-6 in all: 40 comparisons at most, 2.5e-8 each.
Z = 5.6


def test_against_quadrature():
    """One neuron in the plane, integrated over both weights by SciPy."""
    x, x2, std = np.array([1.0, 0.3]), np.array([-0.4, 0.9]), 0.7

    def integrand(v, u):
        density = np.exp(-(u**2 + v**2) / 2) / (2 * np.pi)
        return max(std * (u * x[0] + v * x[1]), 0) * max(std * (u * x2[0] + v * x2[1]), 0) * density

    truth = dblquad(integrand, -8, 8, -8, 8, epsabs=1e-7)[0]
    found = theory.relu_kernel(x[None], x2[None], init_std=std, width=1)[0, 0]
    # Quadrature across the kinks of relu: absolute error 1e-6.
    assert float(found) == pytest.approx(truth, abs=2e-6)


def test_against_monte_carlo_and_wrong_kernel():
    rng = np.random.default_rng(0)
    x, x2, std, width = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), 0.4, 50
    neurons = 200_000
    w = std * rng.normal(size=(neurons, 5))
    left, right = np.maximum(x @ w.T, 0), np.maximum(x2 @ w.T, 0)
    mean = left @ right.T / neurons
    sem = np.sqrt(np.maximum((left**2) @ (right**2).T / neurons - mean**2, 0) / neurons)
    found = np.asarray(theory.relu_kernel(x, x2, init_std=std, width=width)) / width
    assert np.all(np.abs(found - mean) < Z * sem)
    # The linear kernel / 2 and Cho and Saul's normalisation (twice ours) fail.
    assert np.any(np.abs(std**2 * x @ x2.T / 2 - mean) > Z * sem)
    assert np.any(np.abs(2 * found - mean) > Z * sem)


def test_exact_values():
    x = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    found = np.asarray(theory.relu_kernel(x, x, init_std=0.5, width=8))
    unit = 8 * 0.25
    truth = unit * np.array([[2, 6 / (2 * np.pi), 0, 0], [6 / (2 * np.pi), 4.5, 3 / (2 * np.pi), 0]])
    np.testing.assert_allclose(found[:2], truth, atol=1e-12 if X64 else 1e-5)
    assert np.all(found[3] == 0)


def test_gradients_are_finite_and_right():
    """Finite for equal, opposite and zero inputs; equal to central differences, at parallel inputs too."""
    x2 = jnp.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [0.3, -1.0]])

    def total(x, rows=x2):
        return jnp.sum(theory.relu_kernel(x[None], rows, init_std=1.0, width=2))

    for x in (np.array([1.0, 2.0]), np.array([-0.5, -1.0]), np.zeros(2)):
        gradient = np.asarray(jax.grad(total)(jnp.asarray(x)))
        assert np.isfinite(gradient).all()
        assert np.isfinite(np.asarray(jax.grad(lambda r, x=x: total(jnp.asarray(x), r))(x2))).all()
    step = 1e-5 if X64 else 1e-2
    x = np.array([1.0, 2.0])
    gradient = np.asarray(jax.grad(total)(jnp.asarray(x)))
    for i, e in enumerate(np.eye(2)):
        slope = (float(total(jnp.asarray(x + step * e))) - float(total(jnp.asarray(x - step * e)))) / (2 * step)
        # The kernel has a |t|^3 term at parallel inputs: the difference quotient errs by order step^2.
        assert gradient[i] == pytest.approx(slope, abs=1e-7 if X64 else 2e-2)


def test_expected_distances_against_drawn_layers():
    """Mean over layers of literal cluster distances, noisy clusters; the noise-free kernel of the means must fail."""
    rng = np.random.default_rng(1)
    means = 2 * np.eye(4, 6)
    fine = np.repeat(np.arange(4), [3, 5, 4, 6])
    labels = fine // 2
    x = means[fine] + 0.5 * rng.normal(size=(18, 6))
    std, width, draws = 0.3, 40, 3000
    h = np.maximum(x @ (std * rng.normal(size=(draws, 6, width))), 0)
    centres = np.stack([h[:, fine == k].mean(axis=1) for k in range(4)], axis=1)
    sample = np.sum((centres[:, :, None] - centres[:, None]) ** 2, axis=-1)
    sem = sample.std(axis=0) / np.sqrt(draws)
    record = theory.expected_relu_distances(x, labels, fine, num_classes=2, num_fine=4, init_std=std, width=width)
    found = np.asarray(record.structure.class_distances)
    off = ~np.eye(4, dtype=bool)
    assert np.all(np.abs(found - sample.mean(axis=0))[off] < Z * sem[off])
    within = np.mean([np.mean(np.sum((h[:, fine == k] - centres[:, [k]]) ** 2, -1), -1) for k in range(4)], axis=0)
    assert abs(float(record.structure.within_variance) - within.mean()) < Z * within.std() / np.sqrt(draws)
    q = (sample[:, 0, 1] + sample[:, 2, 3]).mean() / 2 / sample[:, :2, 2:].mean()
    assert float(record.structure.ratio) == pytest.approx(q, rel=0.02)
    naive = theory.expected_relu_distances(means, np.array([0, 0, 1, 1]), num_classes=2, init_std=std, width=width)
    assert np.any(np.abs(np.asarray(naive.structure.class_distances) - sample.mean(axis=0))[off] > Z * sem[off])
    assert float(naive.structure.ratio) == pytest.approx(1.0, rel=1e-5)


def test_invariance_transformations_dtype():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 5, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]

    def kernel(v):
        return theory.relu_kernel(v, v, init_std=0.5, width=7)

    rtol = 1e-10 if X64 else 1e-4
    np.testing.assert_allclose(kernel(x[0] @ turn), kernel(x[0]), rtol=rtol)
    np.testing.assert_allclose(kernel(3 * x[0]), 9 * np.asarray(kernel(x[0])), rtol=rtol)
    mapped = jax.jit(jax.vmap(kernel))(jnp.asarray(x))
    np.testing.assert_allclose(mapped, [kernel(x[0]), kernel(x[1])], rtol=rtol)
    single = kernel(x[0].astype(np.float32))
    assert single.dtype == jnp.float32
    # Nearly opposite inputs lose digits: errors scale with the product of norms.
    np.testing.assert_allclose(single, kernel(x[0]), rtol=1e-5, atol=1e-6 * float(kernel(x[0]).max()))

    def ratio(v):
        record = theory.expected_relu_distances(v, jnp.array([0, 0, 1, 1, 1]), num_classes=2, init_std=0.5, width=7)
        return record.structure.ratio

    np.testing.assert_allclose(jax.vmap(ratio)(jnp.asarray(x)), [ratio(x[0]), ratio(x[1])], rtol=rtol)


def test_errors(own_errors):
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"`x2` must have shape \(n2, 3\)"):
        theory.relu_kernel(x, np.ones((2, 4)), init_std=1.0, width=2)
    with pytest.raises(ValueError, match=r"`x` must have shape \(n, d\)"):
        theory.relu_kernel(np.ones(3), x, init_std=1.0, width=2)
    with pytest.raises(ValueError, match="`x` must be finite"):
        theory.relu_kernel(x * np.inf, x, init_std=1.0, width=2)
    with pytest.raises(ValueError, match="`init_std` must be finite and >= 0"):
        theory.relu_kernel(x, x, init_std=-1.0, width=2)
    with pytest.raises(ValueError, match="`width` must be an integer >= 1"):
        theory.relu_kernel(x, x, init_std=1.0, width=0)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(N, d\)"):
        theory.expected_relu_distances(np.ones(3), np.zeros(3, int), num_classes=1, init_std=1.0, width=2)
