"""The solver lands on minima that are known in closed form, says when it does not, and keeps every start."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import rosen, rosen_der

from nctheory import simulator
from nctheory.simulator import _lbfgs, solver
from nctheory.simulator.free_features import UfmProblem

X64 = jax.config.jax_enable_x64
GRADIENT = 1e-10 if X64 else 1e-5
# Loss above the minimum: gradient^2 over twice the smallest curvature (>= 1e-4), and rounding.
GAP = 1e-13 if X64 else 3e-6


@jax.jit
def _loss_and_gradient_norm(problem, params):
    """Of every start, in one program: operation by operation they would take longer than the solver."""
    return jax.lax.map(lambda each: (problem.objective(each), solver.gradient_norm(problem, each)), params)


def run(problem, key, starts=4, **options):
    result = solver.minimize(problem, jax.random.split(key, starts), **options)
    # A kept point must have the loss and the gradient that the record reports.
    loss, gradient = _loss_and_gradient_norm(problem, result.params)
    for i in range(starts):
        assert float(loss[i]) == pytest.approx(float(result.loss[i]), abs=GAP)
        again = float(gradient[i])
        assert again == pytest.approx(float(result.gradient_norm[i]), rel=1e-2, abs=1e-6 * GRADIENT if X64 else 1e-6)
    return result


@pytest.mark.parametrize(
    ("sizes", "depth", "weight_decay", "feature_decay", "bias", "expected"),
    [
        ((20, 10, 5, 5), 1, 0.01, 0.001, "none", 0.0374842712474619),
        pytest.param((20, 10, 5, 5), 2, (0.01, 0.017), 0.001, "none", 0.06762054226452294, marks=pytest.mark.slow),
        pytest.param((200, 100, 50, 50), 3, 5e-4, 5e-4, "none", 0.012218400372035048, marks=pytest.mark.slow),
        ((100,) * 4, 3, 5e-4, 5e-4, "free", 0.009471785243825687),
    ],
)
def test_reaches_tabulated_minima(sizes, depth, weight_decay, feature_decay, bias, expected, key):
    """Values of the closed form, confirmed by independent minimisation before; every start is accounted for."""
    problem = UfmProblem(
        sizes, 16, depth, weight_decay=np.asarray(weight_decay), feature_decay=feature_decay, bias=bias
    )
    result = run(problem, key)
    assert np.all(np.asarray(result.gradient_norm)[np.asarray(result.converged)] <= GRADIENT)
    assert bool(np.all(result.converged)) or not X64
    assert float(np.min(result.loss)) == pytest.approx(expected, abs=GAP)
    assert np.all(np.asarray(result.loss) > expected - GAP)


@pytest.mark.parametrize("average", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_layer_formulas(average, key):
    """Every start is global: L* = K sqrt(n lw lh) - K N lw lh/2, or cross-entropy's with its margin rho."""
    k, n, lw, lh = 4, 6, 0.004, 0.006
    tau = np.sqrt(n * lw * lh)
    problem = UfmProblem((n,) * k, 6, weight_decay=lw, feature_decay=lh)
    expected = k * tau - k * k * n * lw * lh / 2
    np.testing.assert_allclose(run(problem, key, average=average).loss, expected, atol=GAP, rtol=0)
    rho = np.log(1 / tau - (k - 1))
    expected = np.log(1 + (k - 1) * np.exp(-rho)) + (k - 1) * tau * rho
    result = run(replace(problem, loss="cross_entropy"), key, average=average)
    np.testing.assert_allclose(result.loss, expected, atol=GAP, rtol=0)
    # The geometry too: W W^T = rho sqrt(n lh/lw) (I - 11^T/K), collapsed features.
    weight = np.asarray(result.params.weights[0][0])
    frame = rho * np.sqrt(n * lh / lw) * (np.eye(k) - 1 / k)
    np.testing.assert_allclose(weight @ weight.T, frame, atol=1e-6 if X64 else 2e-2)
    features = np.asarray(result.params.features[0]).reshape(k, n, -1)
    np.testing.assert_allclose(features, np.repeat(features[:, :1], n, axis=1), atol=1e-6 if X64 else 2e-2)


def test_trivial_minimum(key):
    """K^2 n lw lh >= 1: zero is the only minimiser."""
    result = run(UfmProblem((2, 2, 2), 4, weight_decay=0.9, feature_decay=0.7), key, starts=2)
    np.testing.assert_allclose(result.loss, 0.5, atol=GAP)
    assert np.abs(np.asarray(result.params.features)).max() < (1e-9 if X64 else 1e-4)


@pytest.mark.parametrize("features", ["nonnegative", pytest.param("relu", marks=pytest.mark.slow)])
def test_nonnegative_features(features, key):
    """Cross-entropy, imbalanced, H >= 0: orthogonal class means with margins m_k; one class below its threshold."""
    sizes, lw, lh = np.array([9, 5, 1]), 0.05, 0.08
    k, total = 3, sizes.sum()
    ratio = np.sqrt(sizes * k / ((k - 1) * total**2 * lw * lh))
    margin = np.maximum(0, np.log(np.maximum((k - 1) * (ratio - 1), 1)))
    assert np.all((margin > 0) == [True, True, False])
    fit = sizes / total * np.log(1 + (k - 1) * np.exp(-margin))
    expected = np.sum(fit + margin * np.sqrt(lw * lh * sizes * (k - 1) / k))
    problem = UfmProblem(
        tuple(sizes.tolist()), 8, loss="cross_entropy", weight_decay=lw, feature_decay=lh, features=features
    )
    result = run(problem, key)
    assert float(np.min(result.loss)) == pytest.approx(expected, abs=GAP)
    assert np.all(np.asarray(result.loss) > expected - GAP)
    assert bool(np.all(result.converged)) or not X64
    if features == "nonnegative":
        assert np.asarray(result.params.features).min() >= 0


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["spherical", "norm_bounded"])
def test_norm_constraints(constraint, key):
    """Balanced, width >= K - 1: a simplex ETF at full length, margin r_w r_h K/(K-1)."""
    k, r_h, r_w = 4, 1.3, 1.7
    problem = UfmProblem(
        (3,) * k, 5, loss="cross_entropy", features=constraint, weights=constraint,
        weight_decay=0.0, feature_decay=0.0, feature_radius=r_h, weight_radius=r_w,
    )  # fmt: skip
    expected = np.log(1 + (k - 1) * np.exp(-r_w * r_h * k / (k - 1)))
    result = run(problem, key)
    assert float(np.min(result.loss)) == pytest.approx(expected, abs=GAP)
    assert np.all(np.asarray(result.loss) > expected - GAP)
    assert bool(np.all(result.converged)) or not X64


@pytest.mark.slow
def test_deep_relu_of_two_classes_reaches_the_linear_minimum(key):
    """Two classes: ReLU between the layers costs nothing against the deep linear model."""
    linear = UfmProblem((4, 4), 6, 2, weight_decay=2e-3, feature_decay=2e-3, init_std=0.5)
    best = np.min(run(linear, key, starts=8).loss)
    relu = run(replace(linear, activation="relu"), key, starts=16, max_evaluations=2000)
    assert float(np.min(relu.loss)) == pytest.approx(float(best), abs=100 * GAP)
    assert np.all(np.asarray(relu.loss) > best - GAP)


@pytest.mark.slow
def test_entry_of_a_batch_is_the_lone_start(key):
    """To the solver's own accuracy: a batch sums in another order."""
    problem = UfmProblem((5, 3, 2), 4, 2, weight_decay=0.01, feature_decay=0.01)
    keys = jax.random.split(key, 3)
    batch = solver.minimize(problem, keys, batch_size=3)
    one_by_one = solver.minimize(problem, keys, batch_size=1)
    np.testing.assert_allclose(batch.loss, one_by_one.loss, atol=GAP)
    alone = solver.solve(problem, keys[1], keep_params=True)
    np.testing.assert_allclose(alone.loss, batch.loss[1], atol=GAP)
    np.testing.assert_allclose(alone.params.weights[0], batch.params.weights[0][1], atol=1e-6 if X64 else 2e-2)
    assert solver.solve(problem, keys[1]).params is None


@pytest.mark.slow
def test_sweep_over_decays_and_seeds():
    problem = UfmProblem((6, 6, 6), 5)
    decays = [0.002, 0.01]
    result = simulator.sweep(
        partial(solver.solve, keep_params=True), simulator.grid(problem, weight_decay=decays), 3, progress=False
    )
    for row, lw in enumerate(decays):
        tau = np.sqrt(6 * lw * problem.feature_decay)
        np.testing.assert_allclose(result.history.loss[row], 3 * tau - 9 * tau**2 / 2, atol=GAP)
    assert result.finite.all()
    assert result.history.params.features.shape == (2, 3, 18, 5)


def test_what_falls_short_is_reported(key):
    problem = UfmProblem((6, 4), 5, 3)
    keys = jax.random.split(key, 2)
    # Newton steps cannot help at the first point, which is far from any critical one and near a saddle.
    short = solver.minimize(problem, keys, max_evaluations=1, memory=1)
    assert not np.any(short.converged)
    assert np.all(np.asarray(short.status) == solver.STATUS.index("evaluation limit"))
    assert np.all(np.asarray(short.gradient_norm) > 1e-4)
    start = problem.init(keys[0])
    broken = solver.minimize_from(problem, replace(start, features=start.features.at[0, 0].set(jnp.nan)))
    assert not bool(broken.converged)
    assert not bool(broken.finite)
    assert int(broken.status) == solver.STATUS.index("non-finite")


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="the polish matters below float32's rounding")
def test_polish_finishes_what_the_first_phase_left(key):
    problem = UfmProblem((6, 4, 3), 5, weight_decay=0.01, feature_decay=0.01)
    full = solver.solve(problem, key)
    limit = int(full.evaluations) * 3 // 4
    result = solver.solve(problem, key, max_evaluations=limit)
    assert int(result.status) == solver.STATUS.index("evaluation limit")
    assert 0 < int(result.newton_steps) <= 15
    assert bool(result.converged)
    np.testing.assert_allclose(result.loss, full.loss, atol=GAP)


def test_start_at_the_minimum_stays(key):
    problem = UfmProblem((6, 4, 3), 5, weight_decay=0.01, feature_decay=0.01)
    first = jax.jit(partial(solver.solve, keep_params=True))(problem, key)
    again = jax.jit(partial(solver.minimize_from, tolerance=10 * GRADIENT))(problem, first.params)
    assert int(again.iterations) == 0
    np.testing.assert_array_equal(again.params.weights[0], first.params.weights[0])


def minimize_vector(function, start, lower=None, tolerance=None):
    start = jnp.asarray(start, dtype=float)
    tolerance = (1e-9 if X64 else 1e-3) if tolerance is None else tolerance
    return jax.jit(
        lambda x: _lbfgs.minimize(
            jax.value_and_grad(function), x, tolerance=jnp.asarray(tolerance, x.dtype), scale=jnp.ones_like(x),
            lower=lower, memory=5, max_turns=2000,
        )
    )(start)  # fmt: skip


def test_lbfgs_against_scipy():
    start = [-1.2, 1.0, -0.7, 1.4]

    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    state = minimize_vector(rosenbrock, start)
    reference = scipy_minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 0.0})
    assert int(state.status) == _lbfgs.CONVERGED
    np.testing.assert_allclose(state.point, reference.x, atol=1e-7 if X64 else 1e-2)
    # A sound line search and memory need about as many evaluations as the reference implementation.
    assert int(state.turns) < 3 * reference.nfev


def test_lbfgs_with_bounds_solves_the_quadratic_programme():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(8, 8))
    matrix, vector = root @ root.T + 0.5 * np.eye(8), rng.normal(size=8)
    q, b = jnp.asarray(matrix, dtype=float), jnp.asarray(vector, dtype=float)
    state = minimize_vector(lambda x: x @ q @ x / 2 - b @ x, np.ones(8), lower=jnp.zeros(8, dtype=float))
    reference = scipy_minimize(
        lambda x: x @ matrix @ x / 2 - vector @ x, np.ones(8), jac=lambda x: matrix @ x - vector,
        method="L-BFGS-B", bounds=[(0, None)] * 8, options={"gtol": 1e-12, "ftol": 1e-15},
    )  # fmt: skip
    assert 0 < np.sum(reference.x == 0) < 8
    assert int(state.status) == _lbfgs.CONVERGED
    np.testing.assert_allclose(state.point, reference.x, atol=1e-6 if X64 else 1e-2)


def test_errors(own_errors, key):
    problem = UfmProblem((3, 3), 4)
    keys = jax.random.split(key, 2)
    with pytest.raises(ValueError, match="`keys` must be a vector of PRNG keys"):
        solver.minimize(problem, key)
    with pytest.raises(ValueError, match="`keys` must be a vector of PRNG keys"):
        solver.minimize(problem, np.arange(3))
    for wrong in (0, keys, None):
        with pytest.raises(ValueError, match="`key` must be a PRNG key"):
            solver.solve(problem, wrong)
    with pytest.raises(ValueError, match="`tolerance` must be finite and > 0"):
        solver.minimize(problem, keys, tolerance=0.0)
    with pytest.raises(ValueError, match="`memory` must be an integer >= 1"):
        solver.minimize(problem, keys, memory=0)
    with pytest.raises(ValueError, match="`max_evaluations` must be an integer >= 1"):
        solver.solve(problem, key, max_evaluations=0)
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        solver.minimize(problem, keys, batch_size=0)
    with pytest.raises(ValueError, match="`average` must be False unless"):
        solver.minimize(replace(problem, features="spherical"), keys, average=True)
    start = problem.init(key)
    with pytest.raises(ValueError, match=r"`params\.features` must have shape"):
        solver.minimize_from(problem, replace(start, features=start.features[1:]))
    with pytest.raises(ValueError, match=r"`start\.features` must be finite and >= 0"):
        solver.minimize_from(replace(problem, features="nonnegative"), start)
