"""The accumulator against the one-shot metrics: any batches, any order of merging, any transformation."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.metrics import CollapseAccumulator, collapse_metrics, ood_orthogonality
from tests.metrics import reference
from tests.metrics.test_collapse import assert_matches, draw

X64 = jax.config.read("jax_enable_x64")
DTYPES = ["float32", "float64"] if X64 else ["float32"]
FIRST_PASS = ("within_between_ratio", "nc2_equinorm", "nc2_equiangular", "nc2_etf_distance", "nc3_duality", "cdnv")


def batches(features, labels, size):
    return [(features[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


def stream(parts, num_classes, dim, weight=None, bias=None, dtype="float32"):
    first = CollapseAccumulator.init(num_classes=num_classes, feature_dim=dim, dtype=dtype)
    for part in parts:
        first = first.update(*part)
    second = first.second_pass(weight, bias)
    for part in parts:
        second = second.update(*part)
    return first, second


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 32, 90])
def test_batches_of_any_size_match_the_literal_reference(dtype, size):
    features, labels, weight, bias = draw(1)
    features = features.astype(dtype)
    expected = reference.collapse(features, labels, 4, weight, bias)
    first, second = stream(batches(features, labels, size), 4, 7, weight, bias, dtype)
    rtol = 1e-10 if dtype == "float64" else 2e-5
    assert_matches(second.compute(), expected, rtol=rtol)
    one_pass = first.compute(weight)
    assert_matches(one_pass, {name: expected[name] for name in FIRST_PASS}, rtol=rtol)
    assert np.isnan([one_pass.nc1, one_pass.nc4_ncc_mismatch]).all()
    assert np.isnan(first.compute().nc3_duality)


def nearly_collapsed(num_samples=4000, num_classes=10, dim=32):
    """Features with nc1 near 1e-6 on a common offset of 1e3 that float32 represents exactly."""
    rng = np.random.default_rng(2)
    labels = rng.permutation(np.arange(num_samples) % num_classes)
    spread = rng.standard_normal((num_classes, dim))[labels] + 1.5e-3 * rng.standard_normal((num_samples, dim))
    # The float32 grid at 1e3 is 2^-14: coarse against the spread, but the same numbers with and without the offset.
    spread = np.round(spread * 2**13) / 2**13
    return spread, (spread + 1024.0).astype(np.float32), labels


def test_float32_agrees_to_1e_5_when_nearly_collapsed_on_a_large_offset():
    spread, features, labels = nearly_collapsed()
    np.testing.assert_array_equal(features.astype(np.float64) - 1024.0, spread)
    weight = np.random.default_rng(3).standard_normal((10, 32)).astype(np.float32)
    truth = reference.collapse(spread, labels, 10, weight)
    assert 1e-7 < truth["nc1"] < 1e-5
    one_shot = collapse_metrics(features, labels, num_classes=10, weight=weight)
    first, second = stream(batches(features, labels, 37), 10, 32, weight)
    streamed, one_pass = second.compute(), first.compute(weight)
    for name in ("nc1", *FIRST_PASS):
        np.testing.assert_allclose(getattr(streamed, name), getattr(one_shot, name), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(getattr(streamed, name), truth[name], rtol=1e-5, err_msg=name)
        if name != "nc1":
            np.testing.assert_allclose(getattr(one_pass, name), truth[name], rtol=1e-5, err_msg=name)
    # What the accumulator replaces: float32 E[x^2] - E[x]^2 on these data.
    naive = np.mean(features**2, dtype=np.float32) - np.mean(features, dtype=np.float32) ** 2
    assert abs(naive / spread.var() - 1) > 0.01


def test_merging_eight_shards_in_any_order_and_grouping():
    features, labels, weight, bias = draw(4, num_samples=203)
    features = features + 50.0
    expected = reference.collapse(features, labels, 4, weight, bias)
    empty = CollapseAccumulator.init(num_classes=4, feature_dim=7, dtype=DTYPES[-1])
    order = np.argsort(labels, kind="stable")  # shards of few classes each, one with a single sample
    shards = np.split(order, [1, 30, 60, 90, 120, 150, 180])
    parts = [empty.update(features[i], labels[i]) for i in shards]
    merge = lambda a, b: a.merge(b)  # noqa: E731
    pairs = [parts[i].merge(parts[i + 1]) for i in range(0, 8, 2)]
    ways = [reduce(merge, parts), reduce(merge, parts[::-1], empty), reduce(merge, pairs), parts[0].merge(empty)]
    rtol = 1e-10 if X64 else 1e-4
    for total in ways[:3]:
        second = [total.second_pass(weight, bias).update(features[i], labels[i]) for i in shards]
        assert_matches(reduce(merge, second).compute(), expected, rtol=rtol)
        assert_matches(reduce(merge, second[::-1]).compute(), expected, rtol=rtol)
        assert np.isnan(reduce(merge, second[1:]).compute().nc1)  # a shard was forgotten
    assert np.isnan(ways[3].compute().cdnv)  # classes without samples


def test_scan_vmap_and_a_fold_over_stacked_shards():
    features, labels, weight, bias = draw(5, num_samples=96)
    dtype = DTYPES[-1]
    features = features.astype(dtype)
    expected = reference.collapse(features, labels, 4, weight, bias)
    empty = CollapseAccumulator.init(num_classes=4, feature_dim=7, dtype=dtype)
    x, y = jnp.asarray(features.reshape(8, 12, 7)), jnp.asarray(labels.reshape(8, 12))
    rtol = 1e-10 if X64 else 1e-4

    @jax.jit
    def scanned(x, y):
        first, _ = jax.lax.scan(lambda a, b: (a.update(*b), None), empty, (x, y))
        second, _ = jax.lax.scan(lambda a, b: (a.update(*b), None), first.second_pass(weight, bias), (x, y))
        return second.compute()

    @jax.jit
    def folded(x, y):
        shards = jax.vmap(empty.update)(x, y)
        first, _ = jax.lax.scan(lambda a, b: (a.merge(b), None), empty, shards)
        start = first.second_pass(weight, bias)
        second, _ = jax.lax.scan(lambda a, b: (a.merge(b), None), start, jax.vmap(start.update)(x, y))
        return second.compute()

    assert_matches(scanned(x, y), expected, rtol=rtol)
    assert_matches(folded(x, y), expected, rtol=rtol)


def test_a_class_missing_in_the_first_batches_is_no_fault():
    features, labels, weight, bias = draw(6)
    order = np.argsort(labels, kind="stable")
    _, second = stream(batches(features[order], labels[order], 7), 4, 7, weight, bias, DTYPES[-1])
    expected = reference.collapse(features, labels, 4, weight, bias)
    assert_matches(second.compute(), expected, rtol=1e-10 if X64 else 1e-4)


def test_an_incomplete_or_different_second_pass_is_nan_where_it_matters():
    features, labels, weight, bias = draw(7)
    parts = batches(features, labels, 30)
    first, _ = stream(parts, 4, 7)
    partial = first.second_pass(weight, bias).update(*parts[0]).compute()
    assert np.isnan([partial.nc1, partial.nc4_ncc_mismatch]).all()
    assert np.isfinite([partial.within_between_ratio, partial.cdnv, partial.nc3_duality]).all()
    assert first.update(np.ones((0, 7)), np.ones(0, int)) is first


def test_faults_give_nan_under_jit():
    features, labels, *_ = draw(8)
    empty = CollapseAccumulator.init(num_classes=4, feature_dim=7)
    bad = features.copy()
    bad[3, 2] = np.nan
    for x, y in ((bad, labels), (features, np.where(labels == 3, 2, labels)), (features, labels + 1)):
        metrics = jax.jit(lambda x, y: empty.update(x, y).compute())(x, y)
        assert all(np.isnan(value) for value in vars(metrics).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("about", ["global_mean", "origin"])
def test_ood_orthogonality_of_batches_is_that_of_the_formula(dtype, about):
    features, labels, *_ = draw(11)
    outside = (np.random.default_rng(12).standard_normal((50, 7)) + 2).astype(dtype)
    features, means = features.astype(dtype), np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    origin = means.mean(axis=0) if about == "global_mean" else 0
    directions, outward = means - origin, outside.mean(axis=0) - origin
    cosines = directions @ outward / np.linalg.norm(directions, axis=1) / np.linalg.norm(outward)
    inside = jax.tree.map(jnp.asarray, stream(batches(features, labels, 32), 4, 7, dtype=dtype)[0])
    # Unequal classes, which play no part: the mean is over samples.
    places = np.arange(50) % 9 % 3
    ood = stream(batches(outside, places, 8), 3, 7, dtype=dtype)[0]
    rtol = 1e-12 if dtype == "float64" else 1e-5
    found = inside.ood_orthogonality(ood, about=about)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.abs(cosines).mean(), rtol=rtol)
    one_shot = ood_orthogonality(features, labels, outside, num_classes=4, about=about)
    np.testing.assert_allclose(found, one_shot, rtol=rtol)
    np.testing.assert_allclose(jax.jit(lambda a, b: a.ood_orthogonality(b, about=about))(inside, ood), found, rtol=rtol)


def test_ood_orthogonality_of_nothing_is_nan():
    features, labels, *_ = draw(13)
    empty = CollapseAccumulator.init(num_classes=4, feature_dim=7)
    full, few = empty.update(features, labels), empty.update(features[labels > 0], labels[labels > 0])
    assert np.isnan(full.ood_orthogonality(empty))
    assert np.isnan(few.ood_orthogonality(full))
    assert np.isfinite(full.ood_orthogonality(few))
    strangers = jax.jit(lambda x, y: full.ood_orthogonality(empty.update(x, y)))
    assert np.isnan(strangers(features, labels + 1))


@pytest.mark.usefixtures("own_errors")
def test_bad_input_is_named():
    features, labels, weight, _ = draw(9)
    empty = CollapseAccumulator.init(num_classes=4, feature_dim=7)
    full = empty.update(features, labels)
    other = CollapseAccumulator.init(num_classes=4, feature_dim=6)
    shifted = empty.update(features + 1.0, labels)
    cases = [
        (lambda: CollapseAccumulator.init(num_classes=1, feature_dim=7), "`num_classes` must be an integer >= 2"),
        (lambda: CollapseAccumulator.init(num_classes=4, feature_dim=0), "`feature_dim` must be an integer >= 1"),
        (lambda: CollapseAccumulator.init(num_classes=4, feature_dim=7, dtype="int32"), "`dtype` must be one of"),
        (lambda: empty.update(features[:, :6], labels), r"`features` must have shape \(N, 7\)"),
        (lambda: empty.update(features, labels + 1), r"`labels` must lie in 0\.\.3"),
        (lambda: empty.update(np.nan * features, labels), "`features` must be finite"),
        (lambda: empty.update(features, labels[1:]), r"`labels` must have shape \(90,\)"),
        (lambda: empty.merge(other), r"`other` must hold class means of shape \(4, 7\)"),
        (lambda: empty.second_pass(), r"`labels` must have covered every class in the first pass, but not \[0, 1"),
        (lambda: full.second_pass(weight[:3]), r"`weight` must have shape \(4, 7\)"),
        (lambda: full.second_pass(None, np.ones(4)), "`weight` must be given with `bias`"),
        (lambda: full.compute(weight[:, :2]), r"`weight` must have shape \(4, 7\)"),
        (lambda: full.second_pass().update(features[:, :2], labels), r"`features` must have shape \(N, 7\)"),
        (
            lambda: full.ood_orthogonality(other),
            "`ood` must hold class means of dimension 7 and dtype float32, but holds",
        ),
        (lambda: full.ood_orthogonality(full, about="mean"), "`about` must be one of"),
        (lambda: full.second_pass().merge(shifted.second_pass()), "`other` must come from the same first pass"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
