"""Effective and stable rank and the variability collapse index against literal NumPy, their limits and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import frames
from nctheory.metrics import _moments as moments_module
from nctheory.metrics.spectrum import effective_rank, feature_spectrum, stable_rank, variability_collapse_index

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-9 if X64 else 5e-4
K = 4


def draw(seed, num_classes=K, num_samples=60, dim=7, noise=0.4):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_samples - num_classes)])
    return rng.standard_normal((num_classes, dim))[labels] + noise * rng.standard_normal((num_samples, dim)), labels


def literal(features, labels, num_classes=K):
    """From covariances in float64, as the formulas are written."""
    h = np.asarray(features, np.float64)
    sigma = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    shares = sigma[sigma > 1e-12 * sigma[0]] / sigma.sum()
    mu = np.stack([h[labels == c].mean(axis=0) for c in range(num_classes)])
    z, g = h - mu[labels], mu - mu.mean(axis=0)
    between = g.T @ g / num_classes
    total = z.T @ z / len(h) + between
    # The covariances square the singular values: a cut far below any of the data's and above rounding.
    share = np.trace(np.linalg.pinv(total, rcond=1e-12) @ between) if len(h) - 1 > h.shape[1] else np.nan
    vci = 1 - share / np.linalg.matrix_rank(between, tol=1e-10 * np.trace(total))
    return {
        "effective": np.exp(-np.sum(shares * np.log(shares))),
        "stable": np.sum(sigma**2) / sigma[0] ** 2,
        "vci": vci,
    }


def measure(features, labels, num_classes=K):
    vci = variability_collapse_index(features, labels, num_classes=num_classes)
    return {"effective": effective_rank(features), "stable": stable_rank(features), "vci": vci}


def assert_same(got, expected, rtol=RTOL):
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("num_classes", "num_samples", "dim"), [(2, 30, 5), (4, 60, 7), (6, 80, 3), (5, 20, 40), (3, 20, 1)]
)
@pytest.mark.parametrize("jit", [False, True])
def test_matches_the_literal_reference(num_classes, num_samples, dim, jit):
    features, labels = draw(1, num_classes, num_samples, dim)
    function = lambda *a: measure(*a, num_classes=num_classes)  # noqa: E731
    got = (jax.jit(function) if jit else function)(jnp.asarray(features), jnp.asarray(labels))
    assert_same(got, literal(features, labels, num_classes))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.sampled_from([3, 20]))
def test_any_unbalanced_data_match_the_reference_and_stay_in_bounds(seed, dim):
    features, labels = draw(seed, K, 30, dim)
    got = measure(features, labels)
    assert_same(got, literal(features, labels), rtol=1e-7 if X64 else 5e-3)
    assert 0 <= float(got["vci"]) <= 1
    assert 1 <= float(got["stable"]) <= float(got["effective"]) + 1e-5 <= min(29, dim) + 2e-5


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, labels = draw(2, num_samples=1031)
    monkeypatch.setattr(moments_module, "_BLOCK_NUMBERS", 1)
    monkeypatch.setattr(moments_module, "_ONE_HOT_LIMIT", 2)
    jax.clear_caches()
    got = measure(features, labels)
    jax.clear_caches()
    assert_same(got, literal(features, labels))


def test_known_spectra():
    cross = np.concatenate([np.eye(5), -np.eye(5)]) + 3
    np.testing.assert_allclose([effective_rank(cross), stable_rank(cross)], 5, rtol=1e-6)
    line = np.outer(np.arange(6.0), np.arange(1.0, 8)) + 3
    np.testing.assert_allclose([effective_rank(line), stable_rank(line)], 1, rtol=1e-5)
    etf = np.asarray(frames.simplex_etf(6, 9))[np.tile(np.arange(6), 4)]
    np.testing.assert_allclose([effective_rank(etf), stable_rank(etf)], 5, rtol=1e-5)


def test_limits_of_the_index():
    etf, labels = np.asarray(frames.simplex_etf(4, 6), np.float64), np.tile(np.arange(4), 50)
    assert abs(float(variability_collapse_index(etf[labels] + 2, labels, num_classes=4))) < (1e-12 if X64 else 1e-5)
    # Spread within classes s = 3 and between b = 1/3 * 3 in the one direction of two classes: s / (s + b).
    line = np.array([[-1 - 3**0.5], [-1 + 3**0.5], [1 - 3**0.5], [1 + 3**0.5]])
    index = variability_collapse_index(line, np.array([0, 0, 1, 1]), num_classes=2)
    np.testing.assert_allclose(index, 3 / 4, rtol=1e-5)
    noise = np.random.default_rng(3).standard_normal((200, 6))
    values = [float(variability_collapse_index(etf[labels] + s * noise, labels, num_classes=4)) for s in (0.1, 1, 10)]
    assert values[0] < values[1] < values[2]


def test_the_index_does_not_drift_with_the_number_of_samples():
    # A between-class covariance that is total scatter / K would move by the factor 16.
    values = []
    for per_class in (50, 800):
        labels = np.repeat(np.arange(4), per_class)
        features = np.eye(4)[labels] + 0.3 * np.random.default_rng(4).standard_normal((len(labels), 4))
        values.append(float(variability_collapse_index(features, labels, num_classes=4)))
    # 0.09 / (0.09 + 1/4) in each direction; chi-square noise of 600 degrees, 4 %, z = 5.
    np.testing.assert_allclose(values, 0.09 / 0.34, rtol=0.2)


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("dim", [12, 64])
def test_index_keeps_its_digits_near_collapse(noise, dim):
    rng = np.random.default_rng(12)
    labels = np.arange(700) % 10
    features = rng.standard_normal((10, dim))[labels] + noise * rng.standard_normal((700, dim))
    features = features.astype(np.float32)
    rows = features.astype(np.float64)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(10)])
    within, between = (rows - means[labels]) / 700**0.5, (means - means.mean(axis=0)) / 10**0.5
    # With q the eigenvalues of Sigma_W^-1 Sigma_B, 1 - tr(Sigma_T^-1 Sigma_B)/rank is the mean of 1/(1 + q).
    whitened = np.linalg.solve(np.linalg.cholesky(within.T @ within), between.T)
    expected = np.mean(1 / (1 + np.linalg.svd(whitened, compute_uv=False)[:9] ** 2))
    found = feature_spectrum(features, labels, num_classes=10)
    # The residuals of float32 features are rounded to 6e-8 of the features: 1e-4 of noise 1e-3, and twice in a square.
    np.testing.assert_allclose(found.variability_collapse_index, expected, rtol=2e-3)
    alone = variability_collapse_index(features, labels, num_classes=10)
    np.testing.assert_allclose(found.variability_collapse_index, alone, rtol=1e-5)
    np.testing.assert_allclose(found.effective_rank, effective_rank(features), rtol=1e-5)


@pytest.mark.parametrize("change", ["rotation", "scale up", "scale down", "offset", "order", "relabel", "linear map"])
@pytest.mark.parametrize("dim", [7, 90])
def test_invariances(change, dim):
    features, labels = draw(5, dim=dim)
    rng = np.random.default_rng(6)
    order, names = rng.permutation(len(labels)), rng.permutation(K)
    skewed = rng.standard_normal((dim, dim)) + 3 * np.eye(dim)
    changed = {
        "rotation": (features @ np.linalg.qr(skewed)[0].T, labels),
        "scale up": (1e6 * features, labels),
        "scale down": (1e-6 * features, labels),
        "offset": (features + 5.0, labels),
        "order": (features[order], labels[order]),
        "relabel": (features, names[labels]),
        "linear map": (features @ skewed.T, labels),
    }[change]
    before, after = measure(features, labels), measure(*changed)
    if change == "linear map":
        assert not np.allclose(before.pop("effective"), after.pop("effective"), rtol=1e-3)
        before.pop("stable")
    assert_same(after, before, rtol=1e-8 if X64 else 3e-3)


def test_vmap_equals_a_loop():
    for dim in (7, 90):
        drawn = [draw(seed, dim=dim) for seed in range(3)]
        batched = jax.vmap(measure)(*(jnp.asarray(np.stack(a)) for a in zip(*drawn, strict=True)))
        for i, data in enumerate(drawn):
            assert_same({k: v[i] for k, v in batched.items()}, measure(*data))


def test_float32_survives_a_large_common_offset():
    features, labels = draw(7)
    # Multiples of 2^-10 below 2^13 are float32 numbers: the input itself rounds nothing.
    features = np.round(1024 * features) / 1024
    assert_same(measure((features + 4096).astype(np.float32), labels), literal(features, labels), rtol=1e-4)
    # Rank of the raw features: the offset alone.
    sigma = np.linalg.svd((features + 4096).astype(np.float32), compute_uv=False)
    assert np.sum(sigma**2) / sigma[0] ** 2 < 1.01


def test_float32_keeps_directions_that_a_covariance_loses():
    # Singular values over a factor 1e4: eigenvalues of the covariance over 1e8, beyond float32.
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(5), 40)
    scales = np.geomspace(1, 1e-4, 12)
    features = (rng.standard_normal((5, 12))[labels] + 0.5 * rng.standard_normal((200, 12))) * scales
    low = features.astype(np.float32)
    # The literal covariance of rescaled columns, which changes nothing in exact arithmetic.
    truth = literal(low.astype(np.float64) / scales, labels, 5)["vci"]
    got = float(variability_collapse_index(low, labels, num_classes=5))
    np.testing.assert_allclose(got, truth, rtol=5e-3)
    mu = np.stack([low[labels == c].mean(axis=0) for c in range(5)])
    z, g = low - mu[labels], mu - mu.mean(axis=0)
    total, between = z.T @ z / 200 + g.T @ g / 5, g.T @ g / 5
    shortcut = 1 - np.trace(np.linalg.pinv(total, rcond=12 * 1.2e-7) @ between) / 4
    assert abs(shortcut - truth) > 0.02
    np.testing.assert_allclose(effective_rank(low), literal(low, labels, 5)["effective"], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_low_precision_features_are_measured_in_float32(dtype):
    features, labels = draw(9)
    low = jnp.asarray(features).astype(dtype)
    got = measure(low, labels)
    assert all(value.dtype == jnp.float32 for value in got.values())
    assert_same(got, literal(np.asarray(low.astype(jnp.float32)), labels), rtol=5e-4)


def test_means_of_smaller_rank_divide_by_that_rank():
    labels = np.repeat(np.arange(4), 30)
    line = np.outer([-3.0, -1, 1, 3], [1, 2, 0, 0, 0]) / 5**0.5
    noise = np.random.default_rng(10).standard_normal((120, 5))
    noise -= np.stack([noise[labels == c].mean(axis=0) for c in range(4)])[labels]  # the means keep rank 1 exactly
    features = line[labels] + noise
    np.testing.assert_allclose(
        variability_collapse_index(features, labels, num_classes=4), literal(features, labels)["vci"], rtol=1e-4
    )


def test_too_few_samples_give_nan_where_the_formula_would_flatter():
    features, labels = draw(16, num_samples=12, dim=11, noise=9.0)
    mu = np.stack([features[labels == c].mean(axis=0) for c in range(K)])
    z, g = features - mu[labels], mu - mu.mean(axis=0)
    share = np.trace(np.linalg.pinv(z.T @ z / 12 + g.T @ g / K, rcond=1e-12) @ g.T @ g / K) / 3
    np.testing.assert_allclose(share, 1, rtol=1e-6)  # "collapsed", with nine times more spread within than between
    assert np.isnan(variability_collapse_index(features, labels, num_classes=K))
    assert np.isfinite(variability_collapse_index(features[:, :10], labels, num_classes=K))


def test_undefined_is_nan():
    for features in (np.ones((8, 3)), np.full((8, 12), 0.1), np.zeros((8, 3))):
        for name, value in measure(features, np.arange(8) % 4).items():
            assert np.isnan(value), name
    assert np.isnan(effective_rank(np.ones((1, 3))))
    assert np.isnan(stable_rank(np.ones((1, 3))))
    coinciding = np.tile(np.random.default_rng(11).standard_normal((5, 6)), (4, 1))
    assert np.isnan(variability_collapse_index(coinciding, np.repeat(np.arange(4), 5), num_classes=4))


@pytest.mark.parametrize("dim", [7, 90])
@pytest.mark.parametrize("fault", ["empty class", "label above", "label below", "nan", "inf"])
def test_faults_give_nan_under_jit(fault, dim):
    features, labels = draw(12, dim=dim)
    if fault == "empty class":
        labels[labels == 2] = 1
    elif fault in ("label above", "label below"):
        labels[-1] = K if fault == "label above" else -1
    else:
        features[-1, 0] = float(fault)
    got = jax.jit(measure)(features, labels)
    assert np.isnan(got["vci"])
    if fault in ("nan", "inf"):
        assert np.isnan(got["effective"])
        assert np.isnan(got["stable"])


@pytest.mark.parametrize("dim", [5, 40])
def test_can_be_differentiated(dim):
    features = draw(13, num_samples=30, dim=dim)[0]
    direction = np.random.default_rng(14).standard_normal(features.shape)
    features, step = jnp.asarray(features), 1e-5 if X64 else 1e-2
    for function in (effective_rank, stable_rank):
        difference = (function(features + step * direction) - function(features - step * direction)) / (2 * step)
        slope = jnp.vdot(jax.grad(function)(features), jnp.asarray(direction))
        # Truncation and rounding of the central difference.
        np.testing.assert_allclose(slope, difference, rtol=1e-5 if X64 else 5e-2, atol=1e-6 if X64 else 1e-2)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("function", [effective_rank, stable_rank])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones(5), r"`features` must have shape \(N, d\)"),
        (np.ones((5, 0)), "`features` must have at least 1 column"),
        (np.ones((5, 2), int), "`features` must hold real floating-point"),
        (np.full((5, 2), np.nan), "`features` must be finite"),
    ],
)
def test_bad_features_are_named(function, features, message):
    with pytest.raises(ValueError, match=message):
        function(features)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(5)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.full((60, 7), np.inf)}, "`features` must be finite"),
        ({"labels": np.zeros(60)}, "`labels` must hold integers"),
        ({"labels": np.full(60, 4)}, r"`labels` must lie in 0\.\.3"),
        ({"labels": np.arange(60) % 3}, r"has no sample of \[3\]"),
        ({"num_classes": 1, "labels": np.zeros(60, int)}, "`num_classes` must be an integer >= 2"),
    ],
)
def test_bad_input_of_the_index_is_named(change, message):
    features, labels = draw(15)
    arguments = {"features": features, "labels": labels, "num_classes": K} | change
    with pytest.raises(ValueError, match=message):
        variability_collapse_index(**arguments)


def test_means_that_coincide_up_to_rounding_have_no_index():
    features = np.full((40, 3), 0.1, np.float32)
    assert np.isnan(variability_collapse_index(features, np.arange(40) % K, num_classes=K))
    assert np.isnan(variability_collapse_index(features, np.maximum(np.arange(40) - 36, 0), num_classes=K))


@pytest.mark.parametrize(("num_samples", "dim", "num_classes"), [(24, 18, 4), (60, 18, 4), (60, 4, 10)])
def test_without_class_structure_the_index_is_the_share_of_sample_space_left_over(num_samples, dim, num_classes):
    features = np.random.default_rng(20).standard_normal((100, num_samples, dim))
    labels = jnp.arange(num_samples, dtype=jnp.int32) % num_classes
    index = jax.lax.map(lambda x: variability_collapse_index(x, labels, num_classes=num_classes), jnp.asarray(features))
    expected = 1 - max(dim, num_classes - 1) / (num_samples - 1)
    # Four standard errors of the mean over 100 draws.
    assert abs(float(jnp.mean(index)) - expected) < 4 * float(jnp.std(index)) / 10


def test_feature_spectrum_is_both_measures():
    features = np.random.default_rng(3).standard_normal((40, 6))
    labels = np.arange(40) % 4
    found = feature_spectrum(features, labels, num_classes=4)
    # Of another factorisation of the same rows: some ten roundings.
    np.testing.assert_allclose(found.effective_rank, effective_rank(features), rtol=5e-15 if X64 else 2e-6)
    assert found.variability_collapse_index == variability_collapse_index(features, labels, num_classes=4)
    blank = jax.jit(lambda rows: feature_spectrum(rows, labels, num_classes=4))(features * np.nan)
    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(blank))
