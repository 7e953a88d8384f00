"""Deep linear cross-entropy: the simplex ETF, the block solutions that beat it, and where they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory.theory.ce_deep import _slope_terms, ce_deep_etf_loss, ce_deep_low_rank_loss
from tests.theory.ce_brute_force import gradient_norm, train

X64 = jax.config.jax_enable_x64


def both(k, n, depth, decay, feature_decay=None):
    options = {"weight_decay": decay, "feature_decay": feature_decay or decay, "depth": depth}
    return ce_deep_etf_loss(k, n, **options), ce_deep_low_rank_loss(k, n, **options)


@pytest.mark.parametrize(
    ("k", "depth", "decay", "etf", "low_rank"),
    [
        pytest.param(4, 2, 2e-3, 0.04397040, None, marks=pytest.mark.slow),
        pytest.param(4, 2, 5e-3, 0.10042309, None, marks=pytest.mark.slow),
        (4, 2, 1e-2, 0.18565340, 0.18551360),
        (4, 3, 5e-3, 0.09479653, 0.08697388),
        (5, 2, 5e-3, 0.13387217, None),
        pytest.param(6, 2, 5e-3, 0.16730851, 0.15641866, marks=pytest.mark.slow),
        pytest.param(10, 4, 2e-3, 0.12054145, None, marks=pytest.mark.slow),
    ],
)
def test_tabulated_values(k, depth, decay, etf, low_rank):
    """Two samples a class; printed to eight decimals."""
    simplex, blocks = both(k, 2, depth, decay)
    tolerance = 6e-9 if X64 else 2e-6
    assert float(simplex.loss) == pytest.approx(etf, abs=tolerance)
    if low_rank is not None:
        assert float(blocks.loss) == pytest.approx(low_rank, abs=tolerance)
    assert bool(blocks.etf_is_beaten) == (not (k == 4 and depth == 2 and decay < 1e-2))
    assert bool(simplex.etf_is_beaten) == bool(blocks.etf_is_beaten)


def test_unequal_decays():
    etf = ce_deep_etf_loss(6, 3, weight_decay=[4e-3, 9e-3], feature_decay=2e-3, depth=2)
    low = ce_deep_low_rank_loss(6, 3, weight_decay=np.array([4e-3, 9e-3]), feature_decay=2e-3, depth=2)
    tolerance = 6e-9 if X64 else 2e-6
    assert float(etf.loss) == pytest.approx(0.16017927, abs=tolerance)
    assert float(low.loss) == pytest.approx(0.14977554, abs=tolerance)


@pytest.mark.parametrize(("k", "depth"), [(2, 2), (3, 2), (3, 3)])
def test_two_and_three_classes_against_direct_minimisation(k, depth):
    """No run below the ETF, the best run on it; at K = 2, 3 the default blocks are the ETF."""
    etf, low = both(k, 2, depth, 5e-3)
    runs = [train([2] * k, [5e-3] * depth, 5e-3, seed=seed, dim=k, scale=0.7) for seed in range(4)]
    best = min(runs, key=lambda run: run.loss)
    assert best.loss > float(etf.loss) - (1e-10 if X64 else 1e-6)
    assert best.loss == pytest.approx(float(etf.loss), rel=1e-8 if X64 else 1e-5)
    np.testing.assert_allclose(best.head @ best.head.T, etf.weight_gram, atol=1e-5 if X64 else 1e-3)
    assert float(low.loss) == float(etf.loss)
    assert not etf.etf_is_beaten


@pytest.mark.parametrize(("k", "depth", "decay"), [(4, 3, 5e-3), (6, 2, 5e-3)])
def test_refuted_claim_by_training(k, depth, decay):
    """Random starts end below the best simplex ETF, and none below the low-rank solution."""
    etf, low = both(k, 2, depth, decay)
    assert low.in_refuted_range
    runs = [train([2] * k, [decay] * depth, decay, seed=seed, dim=k, scale=0.7).loss for seed in range(6)]
    assert min(runs) < float(etf.loss) - 1e-3
    assert min(runs) > float(low.loss) - (1e-9 if X64 else 1e-6)


@pytest.mark.parametrize(
    ("k", "depth"),
    [
        (6, 2),
        (7, 5),
        *(
            pytest.param(k, depth, marks=pytest.mark.slow)
            for k in (4, 6, 7, 10)
            for depth in (2, 3, 5)
            if (k, depth) not in ((6, 2), (7, 5))
        ),
    ],
)
def test_refuted_range_whatever_the_decay(k, depth):
    """Wherever a non-zero ETF is the best ETF, blocks beat it: the theorem's range, over five decades."""
    for decay in 10 ** np.linspace(-6, -0.5, 12):
        etf, low = both(k, 1, depth, decay)
        if low.in_refuted_range and not etf.is_trivial:
            assert low.etf_is_beaten, (k, depth, decay)
        assert float(low.loss) <= float(low.trivial_loss)


@pytest.mark.parametrize("blocks", [None, (6,), (3, 3), (2, 4), (2, 2, 1, 1)])
@pytest.mark.parametrize("depth", [4, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 9))])
def test_factors_are_a_critical_point_of_that_loss(blocks, depth):
    decays = list(np.linspace(1e-3, 2e-3, depth))
    record = ce_deep_low_rank_loss(
        6, 3, weight_decay=decays, feature_decay=1e-3, depth=depth, block_sizes=blocks if blocks is None else [*blocks]
    )
    assert not record.is_trivial
    size = gradient_norm(record.weights, record.class_features, np.zeros(6), [3] * 6, decays, 1e-3)
    assert size < (1e-12 if X64 else 1e-5)
    head = record.weights[0]
    for w in record.weights[1:]:
        head = w @ head
    tolerance = 1e-11 if X64 else 1e-4
    np.testing.assert_allclose(head @ record.class_features.T, record.logits, atol=tolerance)
    np.testing.assert_allclose(head @ head.T, record.weight_gram, rtol=tolerance, atol=tolerance)
    z = np.asarray(record.logits, np.float64)
    fit = np.mean(np.log(np.exp(z).sum(axis=0)) - np.diagonal(z))
    penalty = np.dot([*decays, 1e-3], record.layer_norms) / 2
    assert fit + penalty == pytest.approx(float(record.loss), rel=tolerance)
    # Every layer carries the same penalty.
    np.testing.assert_allclose(np.array([*decays, 1e-3]) * record.layer_norms, 2 * penalty / (depth + 1), rtol=1e-5)


@pytest.mark.parametrize(("blocks", "decay"), [((2, 2, 1, 1), 1e-3), ((2, 6), 130.0), ((6,), 1e4)])
def test_modes_of_the_layers(blocks, decay):
    """Single classes stay zero; near the jump the smaller block lives on alone; then everything is zero."""
    record = ce_deep_low_rank_loss(
        sum(blocks), 3, weight_decay=[decay, 2e-3], feature_decay=1e-3, depth=2, block_sizes=blocks
    )
    factors = [*record.weights, np.sqrt(3) * np.asarray(record.class_features)]
    for values, matrix in zip(record.layer_singular_values, factors, strict=True):
        expected = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(np.sort(values)[::-1], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(record.active, np.asarray(record.singular_values) > 0)
    scales = np.asarray(record.logit_scales)
    np.testing.assert_array_equal(record.active, np.repeat(scales > 0, np.array(blocks) - 1))
    assert (scales > 0).tolist() == {1e-3: [True, True, False, False], 130.0: [True, False], 1e4: [False]}[decay]
    rows = np.linalg.norm(record.weights[1] @ record.weights[0], axis=1)
    np.testing.assert_array_equal(record.active_classes, rows > 0)
    np.testing.assert_array_equal(record.bias, np.zeros(sum(blocks)))
    assert bool(record.is_trivial) == (decay == 1e4)


@pytest.mark.parametrize(("k", "blocks"), [(4, (4,)), (6, (2, 2, 2)), (7, (2, 2, 3)), (5, (5,)), (9, (3, 3, 3))])
def test_scalar_problem_against_a_dense_grid(k, blocks):
    """No scale on a fine grid, zero included, is better; across the jump to zero."""
    rho = np.concatenate([[0.0], np.geomspace(1e-6, 80, 40001)])
    seen = set()
    for kappa in np.geomspace(1e-4, 0.6, 15):
        depth = 3
        decay = kappa * 1.0  # n = 1 and equal decays: kappa is the decay
        loss = 0.0
        for g in blocks:
            fit = np.log1p((g - 1) * np.exp(-rho) + (k - g) * np.exp(-(1 - 1 / g) * rho))
            loss += np.min(g / k * fit + (g - 1) * 2 * kappa * rho**0.5)
        record = ce_deep_low_rank_loss(k, 1, weight_decay=decay, feature_decay=decay, depth=depth, block_sizes=blocks)
        assert float(record.loss) <= loss * (1 + (1e-12 if X64 else 1e-5))
        assert float(record.loss) == pytest.approx(loss, rel=1e-6 if X64 else 1e-5)
        seen.add(bool(record.is_trivial))
    assert seen == {True, False}


def test_slope_has_a_single_peak():
    """The slope rho Var x / E x increases for every block size up to 64 classes: at most two stationary points."""
    rho = jnp.geomspace(1e-4, 60.0, 400)
    for k in [2, 3, 4, 5, 8, 13, 32, 64]:
        for g in range(2, k + 1):
            terms = np.asarray(_slope_terms(k, g, rho)[1])
            assert np.all(np.diff(terms) > -1e-6 * terms[1:]), (k, g)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([2, 3, 5, 8, 12]), st.integers(1, 200), st.floats(-7, 1), st.floats(-7, 1), st.integers(2, 4))
def test_whole_argument_space(k, n, log_w, log_h, depth):
    etf, low = both(k, n, depth, 10**log_w, 10**log_h)
    for record in (etf, low):
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(record))
        assert 0 < float(record.loss) <= float(record.trivial_loss) * (1 + 1e-6)
        assert bool(record.is_trivial) == (float(jnp.max(record.logit_scales)) == 0)
    assert float(etf.etf_loss) == pytest.approx(float(etf.loss), rel=1e-6)


def test_transformations_and_dtype():
    decays = jnp.array([[1e-3, 2e-3], [1e-2, 1e-3], [3.0, 2.0]])

    def solve(decay):
        return ce_deep_low_rank_loss(6, 2, weight_decay=decay, feature_decay=0.005, depth=2)

    mapped = jax.jit(jax.vmap(solve))(decays)
    for i in range(3):
        alone = solve(decays[i])
        np.testing.assert_allclose(mapped.loss[i], alone.loss, rtol=1e-6)
        np.testing.assert_allclose(mapped.logits[i], alone.logits, rtol=1e-4, atol=1e-6)
    assert solve(jnp.asarray([0.01, 0.02], jnp.float32)).loss.dtype == jnp.float32


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1, "depth": 2}
    for call, arguments, options, message in [
        (ce_deep_etf_loss, (1, 3), good, "`num_classes` must be an integer >= 2"),
        (ce_deep_low_rank_loss, (1, 3), good, "`num_classes` must be an integer >= 2"),
        (ce_deep_etf_loss, (4, 3), good | {"depth": 1}, "`depth` must be an integer >= 2"),
        (ce_deep_etf_loss, (4, 0), good, "`samples_per_class` must be finite and >= 1"),
        (ce_deep_etf_loss, (4, np.array([2, 3])), good, r"`samples_per_class` must have shape \(\)"),
        (ce_deep_etf_loss, (4, [2]), good, r"`samples_per_class` must have shape \(\)"),
        (ce_deep_etf_loss, (4, 3), good | {"weight_decay": [0.1] * 3}, "`weight_decay` must have shape"),
        (ce_deep_etf_loss, (4, 3), good | {"weight_decay": [0.1, 0.0]}, "`weight_decay` must be finite and > 0"),
        (ce_deep_etf_loss, (4, 3), good | {"feature_decay": 0.0}, "`feature_decay` must be finite and > 0"),
        (ce_deep_low_rank_loss, (4, 3), good | {"block_sizes": (2, 3)}, "`block_sizes` must add up"),
        (ce_deep_low_rank_loss, (4, 3), good | {"block_sizes": (4, 0)}, "`block_sizes` must be an integer >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)
