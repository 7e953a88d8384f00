"""L3 against direct minimisation of the factored problem, SciPy, closed forms, and literal NumPy metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nctheory import theory

X64 = jax.config.jax_enable_x64
LABELS = np.array([0, 0, 1, 1])
ONE_HOT = np.eye(2)[LABELS]
# Certificate tolerance of the solver (1e-10 or 1e-4), ten times over.
CERTIFIED = 1e-9 if X64 else 1e-3
# Singular values move by at most tolerance * lambda / curvature, curvature >= 0.05 in these problems.
SOLVED = 1e-8 if X64 else 2e-3


def means_with(cosines):
    """Four unit means with the given pairwise cosines, as rows."""
    gram = np.eye(4)
    for (i, j), value in cosines.items():
        gram[i, j] = gram[j, i] = value
    return np.linalg.cholesky(gram)


def factored_minimum(x, y, decay, width, seed):
    """Train both layers by L-BFGS from a random start; literal objective and gradients."""
    (n, d), c = x.shape, y.shape[1]

    def objective(flat):
        w1, w2 = flat[: width * d].reshape(width, d), flat[width * d :].reshape(c, width)
        h = x @ w1.T
        r = (h @ w2.T - y) / n
        value = n * np.sum(r**2) / 2 + decay / 2 * np.sum(flat**2)
        return value, np.concatenate([((r @ w2).T @ x + decay * w1).ravel(), (r.T @ h + decay * w2).ravel()])

    start = np.random.default_rng(seed).normal(size=width * (d + c))
    options = {"maxiter": 20000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 60}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    h = x @ best.x[: width * d].reshape(width, d).T
    return best.fun, h @ h.T


@pytest.mark.parametrize(("decay", "outputs"), [(0.01, 1), (0.01, 3), (0.05, 3)])
def test_gram_matrix_of_a_trained_network(decay, outputs):
    rng = np.random.default_rng(outputs)
    x = rng.normal(size=(12, 5)) + 2 * np.eye(5)[np.arange(12) % 4]
    y = np.eye(3)[np.arange(12) % 3] if outputs == 3 else np.where(np.arange(12) % 2, 1.0, -1.0)[:, None]
    result = theory.solve_nuclear_norm(x, y, weight_decay=decay)
    value, gram = factored_minimum(x, y, decay, width=7, seed=0)
    assert result.converged
    assert float(result.certificate) == pytest.approx(1.0, abs=CERTIFIED)
    assert float(result.alignment_residual) < CERTIFIED
    assert float(result.objective) == pytest.approx(value, abs=1e-11 if X64 else 1e-5)
    np.testing.assert_allclose(result.feature_gram, gram, atol=(1e-7 if X64 else 1e-3) * np.abs(gram).max())
    representative = np.asarray(result.features)
    np.testing.assert_allclose(representative @ representative.T, result.feature_gram, rtol=1e-5)
    # Ridge misses the trained Gram matrix, and its own certificate says so.
    ridge = theory.ridge_solution(x, y, weight_decay=decay)
    assert np.abs(np.asarray(ridge.feature_gram) - gram).max() > 2e-3 * np.abs(gram).max()
    assert abs(float(ridge.certificate) - 1) > 0.05


def test_against_scipy_on_the_convex_problem():
    """One output: the nuclear norm is a Euclidean norm, smooth away from 0; SciPy minimises it as it stands."""
    rng = np.random.default_rng(3)
    x, y, decay = rng.normal(size=(9, 4)), rng.normal(size=(9, 1)), 0.1

    def objective(z):
        r = x @ z - y[:, 0]
        return r @ r / 18 + decay * np.linalg.norm(z), x.T @ r / 9 + decay * z / np.linalg.norm(z)

    best = minimize(objective, np.ones(4), jac=True, method="BFGS", options={"gtol": 1e-10})
    result = theory.solve_nuclear_norm(x, y, weight_decay=decay)
    np.testing.assert_allclose(result.solution[0], best.x, atol=SOLVED)
    assert int(result.rank) == 1


def test_orthonormal_inputs_soft_threshold_the_targets():
    rng = np.random.default_rng(4)
    q = np.linalg.qr(rng.normal(size=(8, 5)))[0]
    y = rng.normal(size=(8, 3))
    u, s, vt = np.linalg.svd(y.T @ q, full_matrices=False)
    decay = (s[1] + s[2]) / 2 / 8
    shrunk = np.maximum(s - 8 * decay, 0)
    result = theory.solve_nuclear_norm(q, y, weight_decay=decay)
    np.testing.assert_allclose(result.solution, (u * shrunk) @ vt, atol=SOLVED)
    np.testing.assert_allclose(result.singular_values, shrunk, atol=SOLVED)
    assert int(result.rank) == 2
    assert float(result.singular_values[2]) == 0
    rows = q @ vt.T
    np.testing.assert_allclose(result.feature_gram, (rows * shrunk) @ rows.T, atol=SOLVED)


@pytest.mark.parametrize(("decay", "q", "pair"), [(0.02, 1.261e-3, (1, 2)), (0.1, 3.274e-2, (0, 3))])
def test_tabulated_fine_structure_of_one_correlated_pair(decay, q, pair):
    """Two labels, one-hot targets, one pair of means of different labels at cosine 0.6; gradient descent agrees."""
    x = means_with({pair: 0.6})
    result = theory.solve_nuclear_norm(x, ONE_HOT, weight_decay=decay)
    found = theory.fine_structure_from_gram(result.feature_gram, LABELS, num_classes=2)
    assert float(found.ratio) == pytest.approx(q, abs=0.5e-3 * q if X64 else 2e-2 * q)
    _, gram = factored_minimum(x, ONE_HOT, decay, width=6, seed=1)
    trained = theory.fine_structure_from_gram(gram, LABELS, num_classes=2)
    assert float(found.ratio) == pytest.approx(float(trained.ratio), rel=1e-6 if X64 else 2e-2)
    ridge = theory.ridge_solution(x, ONE_HOT, weight_decay=decay)
    control = theory.fine_structure_from_gram(ridge.feature_gram, LABELS, num_classes=2)
    assert abs(float(control.ratio) / float(trained.ratio) - 1) > 0.05


@pytest.mark.parametrize("cosines", [{}, {(0, 1): 0.5, (2, 3): 0.5}])
@pytest.mark.parametrize("targets", [ONE_HOT, 2.0 * LABELS[:, None] - 1])
def test_symmetric_geometry_collapses(cosines, targets):
    """Orthogonal means, and equal cosines within labels: q = 0 up to rounding of the squared distance."""
    result = theory.solve_nuclear_norm(means_with(cosines), targets, weight_decay=0.05)
    found = theory.fine_structure_from_gram(result.feature_gram, LABELS, num_classes=2)
    assert not result.is_trivial
    assert float(found.ratio) < (1e-13 if X64 else 1e-5)
    assert float(found.coarse_ratio) < (1e-13 if X64 else 1e-5)


def test_threshold_of_the_zero_solution():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 2))
    threshold = np.linalg.norm(y.T @ x / 10, 2)
    below = theory.solve_nuclear_norm(x, y, weight_decay=0.98 * threshold)
    above = theory.solve_nuclear_norm(x, y, weight_decay=1.02 * threshold)
    assert not below.is_trivial
    assert int(below.rank) == 1
    assert above.is_trivial
    assert np.all(np.asarray(above.feature_gram) == 0)
    assert float(above.certificate) == pytest.approx(1 / 1.02, rel=1e-5)
    assert float(above.objective) == pytest.approx(np.sum(y**2) / 20, rel=1e-5)
    nothing = theory.fine_structure_from_gram(above.feature_gram, np.arange(10) % 2, num_classes=2)
    assert np.isnan(nothing.ratio)
    assert np.isnan(nothing.coarse_ratio)
    zero = theory.solve_nuclear_norm(np.zeros((3, 2)), np.ones((3, 1)), weight_decay=0.1)
    assert zero.is_trivial
    assert zero.converged


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 500), decay=st.floats(5e-3, 0.5))
def test_certified_on_random_problems_and_invariant_to_rotation(seed, decay):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(8, 6)), rng.normal(size=(8, 2))
    result = theory.solve_nuclear_norm(x, y, weight_decay=decay)
    assert result.converged
    assert float(result.certificate) < 1 + CERTIFIED
    if not result.is_trivial:
        assert float(result.certificate) > 1 - CERTIFIED
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = theory.solve_nuclear_norm(x @ turn, y, weight_decay=decay)
    scale = max(1.0, float(np.abs(result.feature_gram).max()))
    # Smallest curvature of 8 x 6 Gaussian inputs is 1e-3 or less: the solution is known to tolerance / curvature.
    np.testing.assert_allclose(turned.feature_gram, result.feature_gram, atol=(1e-6 if X64 else 0.1) * scale)


def test_wide_inputs_duplicates_and_iteration_limit():
    """More dimensions than samples keep their shapes; repeated samples leave the solution as it is."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4, 9))
    one = theory.solve_nuclear_norm(x, ONE_HOT, weight_decay=0.02)
    two = theory.solve_nuclear_norm(np.tile(x, (2, 1)), np.tile(ONE_HOT, (2, 1)), weight_decay=0.02)
    np.testing.assert_allclose(two.solution, one.solution, atol=SOLVED)
    narrow = theory.solve_nuclear_norm(x[:2], np.eye(2, 3), weight_decay=0.02)
    assert narrow.solution.shape == (3, 9)
    assert narrow.singular_values.shape == (3,)
    assert narrow.features.shape == (2, 3)
    stopped = theory.solve_nuclear_norm(x, ONE_HOT, weight_decay=0.02, max_iterations=2)
    assert not stopped.converged
    assert int(stopped.num_iterations) == 2
    assert abs(float(stopped.certificate) - 1) > CERTIFIED


def test_ridge_against_normal_equations():
    rng = np.random.default_rng(7)
    x, y, decay = rng.normal(size=(7, 4)), rng.normal(size=(7, 2)), 0.3
    truth = np.linalg.solve(x.T @ x / 7 + decay * np.eye(4), x.T @ y / 7).T
    ridge = theory.ridge_solution(x, y, weight_decay=decay)
    np.testing.assert_allclose(ridge.solution, truth, rtol=1e-10 if X64 else 1e-4)
    _, s, vt = np.linalg.svd(truth, full_matrices=False)
    np.testing.assert_allclose(ridge.feature_gram, (x @ vt.T * s) @ (x @ vt.T).T, rtol=1e-9 if X64 else 1e-3, atol=1e-5)
    residual = np.sum((x @ truth.T - y) ** 2) / 14 + decay / 2 * np.sum(truth**2)
    assert float(ridge.objective) == pytest.approx(residual, rel=1e-5)


def test_solver_under_jit_vmap_and_float32():
    x = means_with({(1, 2): 0.6})
    decays = jnp.array([0.02, 0.1, 0.4])

    def solve(decay):
        return theory.solve_nuclear_norm(jnp.asarray(x), jnp.asarray(ONE_HOT), weight_decay=decay)

    mapped = jax.jit(jax.vmap(solve))(decays)
    for i in range(3):
        alone = solve(decays[i])
        np.testing.assert_allclose(mapped.feature_gram[i], alone.feature_gram, atol=SOLVED)
        np.testing.assert_allclose(mapped.certificate[i], alone.certificate, atol=CERTIFIED)
    single = theory.solve_nuclear_norm(x.astype(np.float32), ONE_HOT.astype(np.float32), weight_decay=0.02)
    assert single.feature_gram.dtype == jnp.float32
    assert single.converged
    np.testing.assert_allclose(single.feature_gram, mapped.feature_gram[0], atol=2e-3)
    assert any("linear" in text for text in single.assumptions)


def literal_structure(h, labels, fine):
    """Every quantity of the record from features, one loop at a time."""
    centre = np.stack([h[fine == k].mean(axis=0) for k in range(fine.max() + 1)])
    owner = np.array([labels[fine == k][0] for k in range(len(centre))])
    pairs = [(i, j) for i in range(len(centre)) for j in range(i)]
    distance = {p: np.sum((centre[p[0]] - centre[p[1]]) ** 2) for p in pairs}
    same = np.mean([distance[p] for p in pairs if owner[p[0]] == owner[p[1]]])
    diff = np.mean([distance[p] for p in pairs if owner[p[0]] != owner[p[1]]])
    within = np.mean([np.trace(np.atleast_2d(np.cov(h[fine == k].T, bias=True))) for k in range(len(centre))])
    means = np.stack([h[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    sigma_w = np.mean(np.sum((h - means[labels]) ** 2, axis=1))
    sigma_b = np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
    return same, diff, same / diff, within, same / within, sigma_w / sigma_b


FIELDS = "same_label_distance different_label_distance ratio within_variance separation coarse_ratio".split()


def unequal_clusters(seed):
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.repeat(np.arange(5), [3, 4, 2, 6, 5]))
    labels = np.array([0, 2, 1, 0, 2])[fine]
    h = rng.normal(size=(5, 7))[fine] + 0.3 * rng.normal(size=(20, 7))
    return h, labels, fine


def test_structure_from_gram_against_literal_loops():
    h, labels, fine = unequal_clusters(8)
    found = theory.fine_structure_from_gram(h @ h.T, labels, fine, num_classes=3, num_fine=5)
    truth = literal_structure(h, labels, fine)
    np.testing.assert_allclose([getattr(found, f) for f in FIELDS], truth, rtol=1e-10 if X64 else 1e-4)
    jitted = jax.jit(lambda g: theory.fine_structure_from_gram(g, labels, fine, num_classes=3, num_fine=5))
    np.testing.assert_allclose(jitted(h @ h.T).ratio, found.ratio, rtol=1e-5)
    grams = np.stack([h @ h.T, 2 * h @ h.T + np.eye(20)])
    mapped = jax.vmap(jitted)(jnp.asarray(grams))
    np.testing.assert_allclose(mapped.separation, [jitted(g).separation for g in grams], rtol=1e-5)


def test_structure_from_gram_undefined_cases():
    gram = np.diag([1.0, 2.0])
    alone = theory.fine_structure_from_gram(gram, np.array([0, 1]), num_classes=2)
    assert np.isnan(alone.same_label_distance)
    assert np.isnan(alone.ratio)
    assert float(alone.different_label_distance) == pytest.approx(3.0)
    assert alone.within_variance == 0
    assert np.isnan(alone.separation)
    # An empty cluster cannot be refused under tracing; it must not pass as a distance.
    traced = jax.jit(lambda f: theory.fine_structure_from_gram(gram, np.array([0, 0]), f, num_classes=1, num_fine=3))
    assert np.isnan(traced(jnp.array([0, 1])).same_label_distance)


def test_errors(own_errors):
    x, y = np.ones((3, 2)), np.ones((3, 1))
    with pytest.raises(ValueError, match=r"`targets` must have shape \(3, C\)"):
        theory.solve_nuclear_norm(x, np.ones((4, 1)), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(N, d\)"):
        theory.solve_nuclear_norm(np.ones(3), y, weight_decay=0.1)
    with pytest.raises(ValueError, match="`inputs` must have no empty axis"):
        theory.solve_nuclear_norm(np.ones((0, 2)), np.ones((0, 1)), weight_decay=0.1)
    with pytest.raises(ValueError, match="`inputs` must be finite"):
        theory.ridge_solution(x * np.nan, y, weight_decay=0.1)
    with pytest.raises(ValueError, match="`weight_decay` must be finite and > 0"):
        theory.solve_nuclear_norm(x, y, weight_decay=0.0)
    with pytest.raises(ValueError, match="`max_iterations` must be an integer >= 1"):
        theory.solve_nuclear_norm(x, y, weight_decay=0.1, max_iterations=0)
    with pytest.raises(ValueError, match="`tolerance` must be finite and > 0"):
        theory.solve_nuclear_norm(x, y, weight_decay=0.1, tolerance=0.0)
    gram, labels = np.eye(3), np.array([0, 0, 1])
    with pytest.raises(ValueError, match=r"`feature_gram` must have shape \(3, 3\)"):
        theory.fine_structure_from_gram(np.ones((3, 2)), labels, num_classes=2)
    with pytest.raises(ValueError, match=r"`labels` must contain every class 0\.\.2"):
        theory.fine_structure_from_gram(gram, labels, num_classes=3)
    with pytest.raises(
        ValueError, match=r"`fine_labels` must hold classes that lie within one label each, but classes \[1\]"
    ):
        theory.fine_structure_from_gram(gram, labels, np.array([0, 1, 1]), num_classes=2, num_fine=2)
    with pytest.raises(ValueError, match="`num_fine` must be an integer"):
        theory.fine_structure_from_gram(gram, labels, labels, num_classes=2)
    with pytest.raises(ValueError, match="`fine_labels` must contain every class"):
        theory.fine_structure_from_gram(gram, labels, labels, num_classes=2, num_fine=3)
