"""The certified convex solver against direct minimisation over weights and features, and against closed forms."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory.theory._ce_solver import Problem, _factor_derivatives, certify
from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.ce_nonnegative import ce_nonnegative_minimizer
from nctheory.theory.ce_ufm import ce_ufm_minimizer
from tests.theory.ce_brute_force import gradient_norm, train


def bias_decay(bias):
    return {"none": None, "free": 0.0}.get(bias, bias)


@pytest.mark.parametrize("bias", ["none", "free", 0.01])
@pytest.mark.parametrize(
    ("sizes", "decay_w", "decay_h"), [([6, 3, 1], 0.01, 0.004), ([7, 4, 2, 2], 0.02, 0.03), ([5, 2], 0.1, 0.001)]
)
def test_against_direct_minimisation(bias, sizes, decay_w, decay_h):
    record = ce_ufm_convex(sizes, weight_decay=decay_w, feature_decay=decay_h, bias=bias)
    assert record.converged
    run = train(sizes, [decay_w], decay_h, seed=0, dim=len(sizes), bias_decay=bias_decay(bias))
    assert run.loss > record.loss - 1e-12
    assert run.loss == pytest.approx(float(record.loss), rel=1e-9)
    np.testing.assert_allclose(run.head @ run.head.T, record.weight_gram, atol=1e-5)
    np.testing.assert_allclose(run.class_features @ run.class_features.T, record.feature_gram, atol=1e-5)
    shift = run.bias.mean() if bias == "free" else 0.0
    np.testing.assert_allclose(run.bias - shift, record.bias, atol=1e-5)
    size = gradient_norm(
        [record.weight], record.class_features, record.bias, sizes, [decay_w], decay_h, bias_decay(bias)
    )
    # The polish leaves a residual near 1e-13; a run without it would stop near 1e-9.
    assert size < 1e-11


@pytest.mark.parametrize(("sizes", "decay"), [([6, 3, 1, 1], 0.004), ([9, 3, 1, 1], 0.08), ([4, 2], 3.0)])
def test_modes_of_the_layers(sizes, decay):
    """Two classes of one sample are apart, then merged (rank 2 of 3), then everything is zero."""
    record = ce_ufm_convex(sizes, weight_decay=decay, feature_decay=0.1)
    features = np.sqrt(sizes)[:, None] * record.class_features
    for values, matrix in zip(record.layer_singular_values, (record.weight, features), strict=True):
        np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), atol=1e-12)
    np.testing.assert_allclose(np.sum(record.layer_singular_values**2, axis=1), record.layer_norms, rtol=1e-12)
    np.testing.assert_allclose(np.prod(record.layer_singular_values, axis=0), record.singular_values, rtol=1e-12)
    assert int(record.active.sum()) == int(record.rank) == {0.004: 3, 0.08: 2, 3.0: 0}[decay]
    np.testing.assert_array_equal(record.active_classes, [decay < 1] * len(sizes))


@pytest.mark.parametrize("bias", ["none", "free", 0.3])
def test_balanced_closed_form(bias):
    exact = ce_ufm_minimizer(5, 7, weight_decay=3e-3, feature_decay=2e-3, bias=bias)
    record = ce_ufm_convex([7] * 5, weight_decay=3e-3, feature_decay=2e-3, bias=bias)
    rel = 1e-12 if jax.config.jax_enable_x64 else 1e-4
    assert float(record.loss) == pytest.approx(float(exact.loss), rel=rel)
    np.testing.assert_allclose(record.weight_gram, exact.weight_gram, atol=10 * rel)
    np.testing.assert_allclose(record.class_features @ record.weight.T, exact.logits, atol=10 * rel)
    np.testing.assert_allclose(record.bias, 0, atol=1e-10)
    assert int(record.rank) == 4


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([2, 3, 5, 8]),
    st.integers(0, 10**6),
    st.floats(-6, 0.5),
    st.floats(-6, 0.5),
    st.sampled_from(["none", "free", 1e-3, 1.0]),
)
def test_whole_argument_space(k, seed, log_w, log_h, bias):
    """Certified everywhere, never above zero's loss; the gap bounds the distance to any other point's loss."""
    sizes = np.random.default_rng(seed).integers(1, 201, k)
    record = ce_ufm_convex(sizes, weight_decay=10**log_w, feature_decay=10**log_h, bias=bias)
    assert record.converged
    assert record.duality_gap <= 1e-12
    assert record.certificate <= 1 + 1e-12
    assert record.loss <= record.trivial_loss + 1e-12
    assert bool(record.is_trivial) == (int(record.rank) == 0)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(record))
    if not record.is_trivial:
        assert record.certificate == pytest.approx(1, abs=1e-9)


def test_gap_bounds_the_error_of_poor_points():
    """The certificate at random points is a true lower bound, with and without a spectral norm above tau."""
    sizes = np.array([9.0, 4.0, 1.0])
    problem = Problem(sizes, 0.01, None)
    minimum = float(ce_ufm_convex([9, 4, 1], weight_decay=0.01, feature_decay=0.01).loss)
    rng = np.random.default_rng(1)
    for scale in (0.01, 0.3, 3.0, 30.0):
        found = certify(problem, scale * rng.normal(size=(3, 3)), np.zeros(3))
        assert found.loss - found.gap <= minimum + 1e-12
        assert found.loss >= minimum - 1e-12


@pytest.mark.parametrize("decay", [None, 0.2])
def test_newton_derivatives_by_central_differences(decay):
    rng = np.random.default_rng(2)
    problem = Problem(np.array([5.0, 2.0, 1.0]), 0.05, decay)
    left, right, bias = rng.normal(size=(3, 2)), rng.normal(size=(3, 2)), rng.normal(size=3)
    if decay is None:
        bias = np.zeros(3)
    sizes = [6, 6] + ([3] if decay is not None else [])

    def value(flat):
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        a, b = parts[0].reshape(3, 2), parts[1].reshape(3, 2)
        penalty = problem.tau / 2 * (np.sum(a**2) + np.sum(b**2))
        return problem.smooth(a @ b.T, parts[2] if decay is not None else bias) + penalty

    def slope(flat):
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        point = parts[2] if decay is not None else bias
        return _factor_derivatives(problem, parts[0].reshape(3, 2), parts[1].reshape(3, 2), point)[0]

    flat = np.concatenate([left.ravel(), right.ravel(), bias][: len(sizes)])
    gradient, hessian = _factor_derivatives(problem, left, right, bias)
    step = 1e-5
    for i in range(flat.size):
        move = step * np.eye(flat.size)[i]
        # Central differences: error step^2 times third derivatives of order 1.
        assert (value(flat + move) - value(flat - move)) / (2 * step) == pytest.approx(gradient[i], abs=1e-8)
        np.testing.assert_allclose((slope(flat + move) - slope(flat - move)) / (2 * step), hessian[i], atol=1e-8)


def test_order_of_classes_and_unreached_tolerance():
    sizes, order = np.array([8, 1, 3, 5]), np.array([2, 0, 3, 1])
    one = ce_ufm_convex(sizes, weight_decay=0.01, feature_decay=0.02, bias=0.1)
    other = ce_ufm_convex(sizes[order], weight_decay=0.01, feature_decay=0.02, bias=0.1)
    np.testing.assert_allclose(other.weight_gram, one.weight_gram[np.ix_(order, order)], atol=1e-9)
    np.testing.assert_allclose(other.bias, one.bias[order], atol=1e-9)
    # With these decays the minimiser is not zero, so that rounding keeps all residuals from vanishing.
    missed = ce_ufm_convex(
        np.array([50, 20, 10, 5, 2, 1]), weight_decay=1e-3, feature_decay=2e-3, tolerance=1e-30, max_rounds=1
    )
    assert not missed.converged
    assert missed.duality_gap < 1e-10


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    for sizes, options, message in [
        ([3], good, "`class_sizes` must hold at least 2 classes"),
        ([3, 0], good, "`class_sizes` must be finite and >= 1"),
        ([3, 1.5], good, "`class_sizes` must hold whole numbers"),
        ([3, 1], good | {"weight_decay": 0.0}, "`weight_decay` must be finite and > 0"),
        ([3, 1], good | {"feature_decay": -1.0}, "`feature_decay` must be finite and > 0"),
        ([3, 1], good | {"bias": "both"}, "`bias` must be one of"),
        ([3, 1], good | {"bias": -1.0}, "`bias` must be finite and > 0"),
        ([3, 1], good | {"bias": 0.0}, "`bias` must be finite and > 0"),
        ([3, 1], good | {"tolerance": None}, "`tolerance` must be a real number"),
        ([3, 1], good | {"tolerance": 0.0}, "`tolerance` must be finite and > 0"),
        ([3, 1], good | {"max_rounds": 0}, "`max_rounds` must be an integer >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ce_ufm_convex(sizes, **options)
    with pytest.raises(ValueError, match="`weight_decay` must be known before the call"):
        jax.jit(lambda decay: ce_ufm_convex([3, 1], weight_decay=decay, feature_decay=0.1).loss)(0.1)
    with pytest.raises(ValueError, match="`bias` must be known before the call"):
        jax.jit(lambda bias: ce_ufm_convex([3, 1], weight_decay=0.1, feature_decay=0.1, bias=bias).loss)(0.1)


def random_problem(index):
    rng = np.random.default_rng(1000 + index)
    k = int(rng.integers(2, 8))
    kind = ("balanced", "convex", "nonnegative")[index % 3]
    sizes = np.full(k, rng.integers(1, 9)) if kind == "balanced" else rng.integers(1, 13, k)
    decay_w, decay_h = 10 ** rng.uniform(-4, -0.5, 2)
    bias = "none" if kind == "nonnegative" else ("none", "free", 0.01)[int(rng.integers(3))]
    return kind, sizes, decay_w, decay_h, bias


@pytest.mark.slow
@pytest.mark.parametrize("index", range(60))
def test_grid_of_problems(index):
    """No trained loss below the prediction by 1e-10, the best start within 1e-8 relative, Gram matrices to 1e-5."""
    kind, sizes, decay_w, decay_h, bias = random_problem(index)
    decays = {"weight_decay": decay_w, "feature_decay": decay_h}
    if kind == "balanced":
        record = ce_ufm_minimizer(len(sizes), int(sizes[0]), bias=bias, **decays)
    elif kind == "convex":
        record = ce_ufm_convex(sizes, bias=bias, **decays)
    else:
        record = ce_nonnegative_minimizer(sizes, **decays)
    # The sign constraint traps classes in corners: non-negative problems get more starts and more room.
    runs = [
        train(
            sizes,
            [decay_w],
            decay_h,
            seed=seed,
            dim=len(sizes) * (3 if kind == "nonnegative" else 1),
            bias_decay=bias_decay(bias),
            nonnegative=kind == "nonnegative",
        )
        for seed in range(12 if kind == "nonnegative" else 4)
    ]
    best = min(runs, key=lambda run: run.loss)
    assert best.loss > float(record.loss) - 1e-10
    assert best.loss == pytest.approx(float(record.loss), rel=1e-8)
    np.testing.assert_allclose(best.head @ best.head.T, record.weight_gram, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(best.class_features @ best.class_features.T, record.feature_gram, atol=1e-5, rtol=1e-5)
