"""collapse_metrics against a literal reference, outside libraries, invariances, and every known way to get it wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid

from nctheory import frames
from nctheory.metrics import CollapseAccumulator, CollapseMetrics, collapse_metrics, fine_structure
from nctheory.metrics import _moments as moments_module
from tests.metrics import reference

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-10 if X64 else 2e-4


def draw(seed, num_classes=4, num_samples=90, dim=7, noise=0.4, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_samples - num_classes)])
    means = rng.standard_normal((num_classes, dim))
    features = offset + means[labels] + noise * rng.standard_normal((num_samples, dim))
    return features, labels, means + 0.3 * rng.standard_normal(means.shape), rng.standard_normal(num_classes)


def assert_matches(metrics, expected, rtol=RTOL, skip=()):
    for name, value in expected.items():
        if name not in skip:
            np.testing.assert_allclose(getattr(metrics, name), value, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("num_classes", "num_samples", "dim"),
    [(2, 30, 5), pytest.param(4, 90, 7, marks=pytest.mark.slow), (6, 80, 3), (5, 40, 4), (3, 20, 1), (70, 300, 90)],
)
@pytest.mark.parametrize("jit", [False, True])
def test_matches_the_literal_reference(num_classes, num_samples, dim, jit):
    features, labels, weight, bias = draw(1, num_classes, num_samples, dim)
    measure = lambda *a: collapse_metrics(a[0], a[1], num_classes=num_classes, weight=a[2], bias=a[3])  # noqa: E731
    metrics = (jax.jit(measure) if jit else measure)(*map(jnp.asarray, (features, labels, weight, bias)))
    assert_matches(metrics, reference.collapse(features, labels, num_classes, weight, bias))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.sampled_from([2, 5]), dim=st.sampled_from([6]))
def test_any_unbalanced_data_match_the_reference(seed, num_classes, dim):
    features, labels, weight, bias = draw(seed, num_classes, 40, dim)
    expected = reference.collapse(features, labels, num_classes, weight, bias)
    # Redrawn where the means are close to degenerate: the tolerance presumes a bounded condition number.
    if expected["nc1"] < 50 and expected["cdnv"] < 50:
        metrics = collapse_metrics(features, labels, num_classes=num_classes, weight=weight, bias=bias)
        assert_matches(metrics, expected, rtol=1e-8 if X64 else 5e-3, skip=() if X64 else ("nc4_ncc_mismatch",))


def test_nc1_equals_the_trace_with_scipy_pinv():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    features, labels, *_ = draw(2)
    mu = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    g, z = mu - mu.mean(axis=0), features - mu[labels]
    expected = np.trace(z.T @ z / len(z) @ scipy_linalg.pinv(g.T @ g / 4, rtol=1e-10)) / 4
    np.testing.assert_allclose(collapse_metrics(features, labels, num_classes=4).nc1, expected, rtol=RTOL)


def test_nearest_center_is_that_of_scikit_learn_and_the_bias_counts():
    features, labels, weight, bias = draw(3, noise=1.5)
    nearest = NearestCentroid().fit(features, labels).predict(features)
    for b in (np.zeros(4), 3 * bias):
        expected = np.mean(np.argmax(features @ weight.T + b, axis=1) != nearest)
        measured = collapse_metrics(features, labels, num_classes=4, weight=weight, bias=b).nc4_ncc_mismatch
        np.testing.assert_allclose(measured, expected, atol=1e-6)
    without = collapse_metrics(features, labels, num_classes=4, weight=weight).nc4_ncc_mismatch
    assert float(without) != float(measured)  # the two biases disagree, so ignoring the bias would be seen


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tied_logits_count_for_the_first_class(dtype, streamed):
    """Logits of integers tie exactly; class means of integers are rounded, and so would be logits made from them."""
    rng = np.random.default_rng(9)
    labels = np.repeat(np.arange(3), [15, 13, 11])
    features = (rng.integers(-9, 10, (39, 6)) + 20 * np.eye(3, 6, dtype=int)[labels]).astype(dtype)
    weight = rng.integers(-5, 6, (3, 6)).astype(dtype)
    # The first two columns agree, and the first two classes weigh them differently to the same sum.
    features[:, 1] = features[:, 0]
    weight[1], bias = weight[0] + np.array([3, -3, 0, 0, 0, 0], dtype), np.array([3, 3, -40], dtype)
    logits = features @ weight.T + bias[None, :]
    assert np.mean((logits[:, 0] == logits[:, 1]) & (logits[:, 0] > logits[:, 2])) > 0.5
    expected = reference.collapse(features, labels, 3, weight, bias)["nc4_ncc_mismatch"]
    if streamed:
        pieces = [(jnp.asarray(features[i::2]), jnp.asarray(labels[i::2])) for i in range(2)]
        accumulator = CollapseAccumulator.init(num_classes=3, feature_dim=6, dtype=pieces[0][0].dtype)
        for piece in pieces:
            accumulator = accumulator.update(*piece)
        second = accumulator.second_pass(jnp.asarray(weight), jnp.asarray(bias))
        for piece in pieces:
            second = second.update(*piece)
        measured = second.compute()
    else:
        measured = collapse_metrics(features, labels, num_classes=3, weight=weight, bias=bias)
    assert 0 < expected < 1
    np.testing.assert_allclose(measured.nc4_ncc_mismatch, expected, rtol=1e-6)


def test_full_collapse_onto_an_etf_is_zero_everywhere():
    etf = 3.0 * frames.simplex_etf(5, 8)
    labels = np.tile(np.arange(5), 6)
    metrics = collapse_metrics(etf[labels] + 7.0, labels, num_classes=5, weight=0.1 * etf)
    for name, value in vars(metrics).items():
        assert abs(float(value)) < (1e-12 if X64 else 3e-6), name


def test_two_classes_are_antipodal_and_two_antipodal_pairs_are_not_an_etf():
    features, labels, *_ = draw(4, num_classes=2)
    metrics = collapse_metrics(features, labels, num_classes=2)
    np.testing.assert_allclose([metrics.nc2_equinorm, metrics.nc2_equiangular, metrics.nc2_etf_distance], 0, atol=1e-5)
    pairs = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    labels = np.repeat(np.arange(4), 3)
    metrics = collapse_metrics(pairs[labels], labels, num_classes=4)
    # Cosines -1, 0, 0 in each row, deviations 2/3, 1/3, 1/3; signed means would cancel to 0.
    np.testing.assert_allclose(metrics.nc2_equiangular, 4 / 9, rtol=1e-5)
    np.testing.assert_allclose(metrics.nc2_equinorm, 0, atol=1e-6)


@pytest.mark.parametrize("change", ["rotation", "scale up", "scale down", "offset", "order", "relabel"])
def test_invariances(change):
    features, labels, weight, bias = draw(5)
    rng = np.random.default_rng(6)
    rotation = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    order, names = rng.permutation(len(labels)), rng.permutation(4)
    back = np.argsort(names)
    changed = {
        "rotation": (features @ rotation.T, labels, weight @ rotation.T, bias),
        "scale up": (1e6 * features, labels, weight / 1e6, bias),
        "scale down": (1e-6 * features, labels, weight * 1e6, bias),
        "offset": (features + 5.0, labels, weight, bias - 5.0 * weight.sum(axis=1)),
        "order": (features[order], labels[order], weight, bias),
        "relabel": (features, names[labels], weight[back], bias[back]),
    }[change]
    before = collapse_metrics(features, labels, num_classes=4, weight=weight, bias=bias)
    after = collapse_metrics(changed[0], changed[1], num_classes=4, weight=changed[2], bias=changed[3])
    assert_matches(after, {k: np.asarray(v) for k, v in vars(before).items()}, rtol=1e-8 if X64 else 2e-3)


def test_vmap_equals_a_loop():
    stacked = [np.stack(a) for a in zip(*(draw(s)[:3] for s in range(3)), strict=True)]
    stacked[1][:] = stacked[1][0]
    batched = jax.vmap(lambda x, y, w: collapse_metrics(x, y, num_classes=4, weight=w))(*map(jnp.asarray, stacked))
    for i in range(3):
        x, y, w = (a[i] for a in stacked)
        assert_matches(jax.tree.map(lambda a, i=i: a[i], batched), reference.collapse(x, y, 4, w))


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, labels, weight, bias = draw(7, num_samples=1031)
    expected = reference.collapse(features, labels, 4, weight, bias)
    monkeypatch.setattr(moments_module, "_BLOCK_NUMBERS", 1)  # blocks of 256 rows, the last one partial
    monkeypatch.setattr(moments_module, "_ONE_HOT_LIMIT", 2)
    jax.clear_caches()
    metrics = collapse_metrics(features, labels, num_classes=4, weight=weight, bias=bias)
    jax.clear_caches()
    assert_matches(metrics, expected)


def test_finite_features_are_not_read_once_more_to_be_checked(monkeypatch):
    features, labels, *_ = draw(21)
    looked = []
    monkeypatch.setattr(moments_module, "check_finite", lambda features: looked.append(features))
    collapse_metrics(features, labels, num_classes=4)
    assert not looked
    features[3, 2] = np.nan
    collapse_metrics(features, labels, num_classes=4)
    assert len(looked) == 1


def test_nc1_does_not_drift_with_the_number_of_samples():
    # A between-class covariance that is total scatter / K shrinks nc1 by the factor 16 from first to second.
    values = []
    for per_class in (50, 800):
        rng = np.random.default_rng(8)
        labels = np.repeat(np.arange(4), per_class)
        features = np.eye(4)[labels] + 0.04 * rng.standard_normal((len(labels), 4))
        values.append(float(collapse_metrics(features, labels, num_classes=4).nc1))
    # Within covariance 0.04^2 I against g_c of an ETF: nc1 = 0.0016 * 3; chi-square noise of 600 degrees: 5 %, z = 5.
    np.testing.assert_allclose(values, 0.0048, rtol=0.3)


def spread_means(num_classes, dim, spread, seed):
    """Centred means whose singular values run from 1 down to 1/spread."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.column_stack([np.ones(num_classes), rng.standard_normal((num_classes, num_classes - 1))]))
    right = np.linalg.qr(rng.standard_normal((dim, num_classes - 1)))[0]
    return (basis[0][:, 1:] * np.geomspace(1, 1 / spread, num_classes - 1)) @ right.T


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_float32_nc1_is_right_when_the_means_spread_over_a_thousand(offset):
    rng = np.random.default_rng(9)
    labels = np.repeat(np.arange(10), 300)
    noise = 1e-3 * rng.standard_normal((len(labels), 64))
    features = (offset + spread_means(10, 64, 1e3, 10)[labels] + noise).astype(np.float32)
    truth = reference.collapse(features, labels, 10)["nc1"]
    np.testing.assert_allclose(collapse_metrics(features, labels, num_classes=10).nc1, truth, rtol=0.01)
    # The shortcut that this guards against: a float32 pseudo-inverse of the d x d covariance drops real directions.
    mu = np.stack([features[labels == c].mean(axis=0) for c in range(10)])
    z, g = features - mu[labels], mu - mu.mean(axis=0)
    shortcut = np.trace(z.T @ z / len(z) @ np.linalg.pinv(g.T @ g / 10, rcond=64 * 1.2e-7)) / 10
    assert shortcut < 0.5 * truth


def test_float32_survives_a_large_common_offset():
    rng = np.random.default_rng(11)
    labels = np.repeat(np.arange(3), 200)
    # Multiples of 2^-10 below 2^13 are float32 numbers: the input itself rounds nothing.
    exact = np.round((np.eye(3)[labels] + 0.05 * rng.standard_normal((600, 3))) * 1024) / 1024
    plain = reference.collapse(exact, labels, 3)
    shifted = collapse_metrics((exact + 4096.0).astype(np.float32), labels, num_classes=3)
    assert_matches(shifted, plain, rtol=1e-5, skip=("nc2_equinorm", "nc2_equiangular"))
    naive = np.float32(np.mean((exact + 4096.0).astype(np.float32) ** 2, dtype=np.float32))
    assert abs(naive - np.float32(np.mean(exact + 4096.0) ** 2)) < 1e3  # E[x^2] - E[x]^2 has no digit left here


def test_close_class_means_keep_their_distance_in_cdnv():
    # Two of three means 1e-4 apart at unit scale: a float32 Gram matrix knows that squared distance to 10 % at best.
    means = np.array([[1.0, 0, 0], [1.0, 1e-4, 0], [-1, 1, 0.5]])
    labels = np.repeat(np.arange(3), 40)
    features = (means[labels] + 1e-5 * np.random.default_rng(12).standard_normal((120, 3))).astype(np.float32)
    expected = reference.collapse(features, labels, 3)["cdnv"]
    np.testing.assert_allclose(collapse_metrics(features, labels, num_classes=3).cdnv, expected, rtol=2e-3)


def test_rank_deficient_means_give_nan_not_a_smaller_nc1():
    labels = np.repeat(np.arange(4), 5)
    line = np.outer(np.arange(4.0), np.ones(6))
    features = line[labels] + 0.1 * np.tile(np.array([[1], [-1], [1], [-1], [0]]), (4, 6))
    metrics = collapse_metrics(features, labels, num_classes=4)
    assert np.isnan(metrics.nc1)
    assert np.isfinite(metrics.within_between_ratio)
    assert np.isfinite(collapse_metrics(features[:, :1], labels, num_classes=4).nc1)  # d = 1: rank 1 is all there is


@pytest.mark.parametrize(
    ("value", "num_classes", "num_samples"),
    [pytest.param(0.1, 3, 30, marks=pytest.mark.slow), (0.3, 10, 137), (7.7, 10, 203)],
)
def test_constant_features_have_no_collapse_whatever_their_rounding(value, num_classes, num_samples):
    features = (value * (1 + np.random.default_rng(24).random(16)) * np.ones((num_samples, 1))).astype(np.float32)
    labels, weight = np.arange(num_samples) % num_classes, np.ones((num_classes, 16), np.float32)
    total = CollapseAccumulator.init(num_classes=num_classes, feature_dim=16).update(features, labels)
    stream = total.second_pass(weight, None).update(features, labels).compute()
    for found in (collapse_metrics(features, labels, num_classes=num_classes, weight=weight), stream):
        assert all(np.isnan(each) for each in vars(found).values()), found
    fine = fine_structure(features, labels // 2, labels, num_classes=-(-num_classes // 2), num_fine=num_classes)
    assert np.isnan([fine.ratio, fine.separation, fine.coarse_ratio]).all()


def test_undefined_is_nan():
    features, labels, *_ = draw(13)
    metrics = collapse_metrics(features, labels, num_classes=4)
    assert np.isnan(metrics.nc3_duality)
    assert np.isnan(metrics.nc4_ncc_mismatch)
    constant = collapse_metrics(np.ones((8, 3)), np.arange(8) % 4, num_classes=4, weight=np.zeros((4, 3)))
    for name, value in vars(constant).items():
        assert np.isnan(value) or name == "nc4_ncc_mismatch", name


@pytest.mark.parametrize("fault", ["empty class", "label above", "label below", "nan", "inf"])
def test_faults_give_nan_under_jit(fault):
    features, labels, weight, bias = draw(14)
    if fault == "empty class":
        labels[labels == 2] = 1
    elif fault in ("label above", "label below"):
        labels[-1] = 4 if fault == "label above" else -1
    else:
        features[-1, 0] = float(fault)
    metrics = jax.jit(lambda x, y: collapse_metrics(x, y, num_classes=4, weight=weight, bias=bias))(features, labels)
    for name, value in vars(metrics).items():
        assert np.isnan(value), name


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_low_precision_features_are_measured_in_float32(dtype):
    features, labels, weight, bias = draw(15)
    low = jnp.asarray(features).astype(dtype)
    metrics = collapse_metrics(low, labels.astype(np.uint8), num_classes=4, weight=weight, bias=bias)
    assert metrics.nc1.dtype == jnp.float32
    expected = reference.collapse(np.asarray(low.astype(jnp.float32)), labels, 4, weight, bias)
    assert_matches(metrics, expected, rtol=2e-4)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(5)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.ones((90, 0))}, "`features` must have at least 1 column"),
        ({"features": np.ones((90, 7), int)}, "`features` must hold real floating-point"),
        ({"features": np.full((90, 7), np.nan)}, "`features` must be finite"),
        ({"features": np.full((90, 7), -np.inf)}, "`features` must be finite"),
        ({"labels": np.zeros(89, int)}, r"`labels` must have shape \(90,\)"),
        ({"labels": np.zeros(90)}, "`labels` must hold integers"),
        ({"labels": np.full(90, 4)}, r"`labels` must lie in 0\.\.3"),
        ({"labels": np.full(90, -1)}, r"`labels` must lie in 0\.\.3"),
        ({"labels": np.arange(90) % 3}, r"`labels` must contain every class 0\.\.3, but has no sample of \[3\]"),
        ({"num_classes": 1, "labels": np.zeros(90, int)}, "`num_classes` must be an integer >= 2"),
        ({"num_classes": 4.0}, "`num_classes` must be an integer"),
        ({"weight": np.ones((3, 7))}, r"`weight` must have shape \(4, 7\)"),
        ({"weight": np.full((4, 7), np.inf)}, "`weight` must be finite"),
        ({"bias": np.ones(3)}, r"`bias` must have shape \(4,\)"),
        ({"bias": np.full(4, np.nan)}, "`bias` must be finite"),
        ({"weight": None}, "`weight` must be given with `bias`"),
    ],
)
def test_bad_input_is_named(change, message):
    features, labels, weight, bias = draw(16)
    arguments = {"features": features, "labels": labels, "num_classes": 4, "weight": weight, "bias": bias} | change
    with pytest.raises(ValueError, match=message):
        collapse_metrics(arguments.pop("features"), arguments.pop("labels"), **arguments)


def test_concrete_arrays_closed_over_by_jit_are_checked_and_measured():
    features, labels, weight, bias = map(jnp.asarray, draw(18))
    expected = reference.collapse(*(np.asarray(a) for a in (features, labels)), 4, weight, bias)
    measure = lambda scale, y: collapse_metrics(scale * features, y, num_classes=4, weight=weight, bias=bias)  # noqa: E731
    assert_matches(jax.jit(lambda s: measure(s, labels))(jnp.ones_like(features[0, 0])), expected)
    assert_matches(
        jax.jit(lambda: collapse_metrics(features, labels, num_classes=4, weight=weight, bias=bias))(), expected
    )
    with pytest.raises(ValueError, match="`labels` must lie in"):
        jax.jit(lambda s: measure(s, np.asarray(labels) + 1))(1.0)


def test_huge_but_finite_features_are_not_called_infinite():
    features, labels, *_ = draw(17)
    big = np.where(np.arange(7)[None, :] == 0, 3e38, features).astype(np.float32)
    assert isinstance(collapse_metrics(big, labels, num_classes=4), CollapseMetrics)


def test_metrics_can_be_differentiated():
    features = np.random.default_rng(5).normal(size=(30, 7))
    labels, direction = np.arange(30) % 3, np.random.default_rng(6).normal(size=(30, 7))

    def nc1(features):
        return collapse_metrics(features, labels, num_classes=3).nc1

    features = jnp.asarray(features)
    step = 1e-5 if features.dtype == jnp.float64 else 1e-2
    difference = (nc1(features + step * direction) - nc1(features - step * direction)) / (2 * step)
    # Truncation and rounding of the central difference.
    tolerance = 1e-7 if features.dtype == jnp.float64 else 1e-2
    np.testing.assert_allclose(jnp.vdot(jax.grad(nc1)(features), direction), difference, rtol=tolerance)
    together = jax.vmap(jax.grad(nc1))(jnp.stack([features, 2 * features]))
    np.testing.assert_allclose(together[0], jax.grad(nc1)(features), rtol=1e-4, atol=1e-6)
