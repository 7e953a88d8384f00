"""Deep linear unconstrained features, squared error: where classes and modes collapse, and what a decayed bias does."""

import numpy as np
import pytest

from nctheory.theory._modes import root_limit, threshold
from nctheory.theory.mse_ufm import mse_ufm_minimizer
from tests.theory.mse_direct import GRAM_FIELDS, X64, Problem, solve


def test_minority_collapse_of_one_layer():
    """Without bias class k vanishes iff n_k <= N^2 lambda_W lambda_H, checked on both sides."""
    sizes = (40, 9, 11)
    decay = np.sqrt(10 / 60**2)
    record = solve(sizes, [decay], decay)
    np.testing.assert_array_equal(record.active_classes, [True, False, True])
    np.testing.assert_allclose(np.diag(record.logits), [1 - np.sqrt(10 / 40), 0, 1 - np.sqrt(10 / 11)], atol=1e-6)
    np.testing.assert_array_equal(record.class_feature_norms > 0, [True, False, True])


def decay_at(ratio, depth, n, num_classes):
    """Equal decays that put a balanced problem at `ratio` times the threshold."""
    total = n * num_classes
    beta = ratio * threshold(depth)
    return (((beta * n / (depth * total)) ** depth) / total) ** (1 / (depth + 1))


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_threshold_and_jump(depth):
    """At 0.99 of the threshold the fraction is near (M-1)/M, at 1.01 zero; the loss is continuous."""
    records = [solve((5,) * 3, [decay_at(r, depth, 5, 3)] * depth, decay_at(r, depth, 5, 3)) for r in (0.99, 1.01)]
    below, above = records
    np.testing.assert_allclose(below.threshold_ratios, 0.99, rtol=1e-4)
    assert not bool(below.is_trivial)
    assert bool(above.is_trivial)
    assert 0 < float(below.fitted_fraction[0]) - (depth - 1) / depth < 0.03
    assert float(above.loss) == float(above.trivial_loss) == 0.5
    assert 0 < 0.5 - float(below.loss) < 0.01
    assert np.abs(above.weight_gram).max() == 0
    # Direct descent from the constructed point below agrees; above, from the same point it ends at or above zero.
    if depth == 2:
        problem = Problem((5,) * 3, [decay_at(0.99, 2, 5, 3)] * 2, decay_at(0.99, 2, 5, 3), merge=True)
        value, _ = problem.minimize(problem.start_near(below, np.random.default_rng(0), 0.01))
        assert value == pytest.approx(float(below.loss), rel=1e-9 if X64 else 1e-5)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_published_threshold_is_refuted(depth):
    """Taking a mode as alive wherever a stationary point exists costs more than zero between the two thresholds."""
    ratio = (1 + root_limit(depth) / threshold(depth)) / 2
    decay = decay_at(ratio, depth, 4, 3)
    record = solve((4,) * 3, [decay] * depth, decay)
    assert bool(record.is_trivial)
    problem = Problem((4,) * 3, [decay] * depth, decay, merge=True)
    # The published rule: the largest root of beta (1+x^M)^2 = M x^(M-1), here as a fixed point of x's own power.
    beta, power = ratio * threshold(depth), 10.0
    for _ in range(2000):
        power = np.sqrt(depth * power ** ((depth - 1) / depth) / beta) - 1
    fit = np.sqrt(4.0) * power / (1 + power)
    scaled = (decay ** ((depth + 1) / 2) * fit) ** (1 / (depth + 1))
    value, gradient = problem(np.tile((scaled * np.eye(3)).ravel(), depth + 1))
    assert np.abs(gradient).max() < 1e-12
    assert fit > 0.3
    assert value > float(record.loss) + 1e-4


@pytest.mark.parametrize("depth", [2, 3])
def test_both_solutions_at_a_tie(depth):
    """Exactly at the threshold zero and the jumped solution cost the same and are both stationary."""
    decay = decay_at(1.0, depth, 5, 3)
    zero = solve((5,) * 3, [decay] * depth, decay)
    alive = solve((5,) * 3, [decay] * depth, decay, at_tie="active")
    assert zero.is_tie.all()
    assert alive.is_tie.all()
    assert not bool(zero.gram_is_unique)
    assert bool(zero.is_trivial)
    assert not bool(alive.is_trivial)
    assert float(alive.loss) == pytest.approx(float(zero.loss), rel=1e-12 if X64 else 1e-5)
    np.testing.assert_allclose(alive.fitted_fraction, (depth - 1) / depth, rtol=1e-6 if X64 else 1e-2)
    problem = Problem((5,) * 3, [decay] * depth, decay, merge=True)
    value, gradient = problem(problem.start_near(alive, np.random.default_rng(0), 0.0))
    assert value == pytest.approx(0.5, rel=1e-12 if X64 else 1e-5)
    assert np.abs(gradient).max() < (1e-12 if X64 else 1e-5)


def test_bias_decay_moves_from_simplex_to_orthogonal():
    """Weak decay of the bias gives the free-bias minimum, strong decay the one without bias."""
    free, none = (solve((10,) * 4, [0.01], 0.003, bias) for bias in ("free", "none"))
    for bias, limit in ((1e-6, free), (1e6, none)):
        record = solve((10,) * 4, [0.01], 0.003, bias)
        for name in GRAM_FIELDS:
            np.testing.assert_allclose(getattr(record, name), getattr(limit, name), atol=1e-4, err_msg=name)
    # Unequal sizes: the outputs are those without bias, part of them moved into it.
    record = solve((20, 10, 5), [0.01], 0.003, 0.4)
    without = solve((20, 10, 5), [0.01], 0.003)
    np.testing.assert_allclose(record.logits + record.bias[:, None], without.logits, atol=1e-12 if X64 else 1e-5)


@pytest.mark.parametrize("decay", [1e-7, 1e-12, 1e-20])
def test_decayed_bias_keeps_its_digits_at_small_decays(decay):
    """First order in mu: the modes are the classes and 1 - p = N mu (1 + n_k/(N lambda_b))/sqrt(n_k)."""
    sizes, bias = np.array([200.0, 50.0, 7.0, 1.0]), 0.1
    rest = sizes.sum() * decay * (1 + sizes / sizes.sum() / bias) / np.sqrt(sizes)
    for dtype in (np.float64, np.float32) if X64 else (np.float32,):
        record = mse_ufm_minimizer(
            sizes.astype(dtype), weight_decay=dtype(decay), feature_decay=dtype(decay), bias=dtype(bias)
        )
        assert record.loss.dtype == dtype
        # Second order: eigenvectors turn by at most N mu/lambda_b over the distance of the nearest roots, 1.6.
        rtol = 4e4 * decay + (1e-9 if dtype == np.float64 else 1e-5)
        np.testing.assert_allclose(record.mode_x, 1 / rest - 1, rtol=rtol)
        if decay > 1e-20 or dtype == np.float64:  # their squares leave the range of single precision
            np.testing.assert_allclose(record.threshold_ratios, rest**2, rtol=2 * rtol)
        assert np.isfinite(record.threshold_ratios).all()
        np.testing.assert_allclose(record.fitted_fraction, 1 - rest, rtol=rtol)
