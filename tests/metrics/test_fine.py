"""fine_structure against a literal reference, its limits and invariances, and how it refuses bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from nctheory.metrics import fine_structure
from tests.metrics import reference

X64 = jax.config.read("jax_enable_x64")
RTOL = 1e-10 if X64 else 2e-4
LABEL_OF = np.array([0, 1, 0, 2, 1, 0])


def draw(seed, label_of=LABEL_OF, num_samples=70, dim=5, noise=0.4, offset=0.0):
    rng = np.random.default_rng(seed)
    num_fine = len(label_of)
    fine = np.concatenate([np.arange(num_fine), np.arange(num_fine), rng.integers(0, num_fine, num_samples)])
    means = rng.standard_normal((num_fine, dim))
    return offset + means[fine] + noise * rng.standard_normal((len(fine), dim)), label_of[fine], fine


def assert_matches(record, expected, rtol=RTOL):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(record, name), value, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("label_of", [LABEL_OF, np.array([0, 0, 1, 1]), np.arange(100) % 5])
def test_matches_the_literal_reference(label_of, jit):
    features, labels, fine = draw(1, label_of)
    sizes = {"num_classes": int(label_of.max()) + 1, "num_fine": len(label_of)}
    measure = lambda *a: fine_structure(*a, **sizes)  # noqa: E731
    record = (jax.jit(measure) if jit else measure)(features, labels, fine)
    assert_matches(record, reference.fine(features, labels, fine))


def test_sample_distances_are_the_mean_over_all_pairs_of_samples():
    features, labels, fine = draw(2)
    squared = pairwise_distances(features, metric="sqeuclidean")
    expected = [[squared[np.ix_(fine == a, fine == b)].mean() for b in range(6)] for a in range(6)]
    record = fine_structure(features, labels, fine, num_classes=3, num_fine=6)
    np.testing.assert_allclose(record.sample_distances, expected, rtol=RTOL)


def test_limits_of_the_ratio():
    fine = np.tile(np.arange(4), 5)
    collapsed = fine_structure(np.eye(2)[fine // 2], fine // 2, fine, num_classes=2, num_fine=4)
    assert float(collapsed.ratio) == 0
    assert float(collapsed.coarse_ratio) < (1e-28 if X64 else 1e-12)
    equidistant = fine_structure(np.eye(4)[fine], fine // 2, fine, num_classes=2, num_fine=4)
    np.testing.assert_allclose(equidistant.ratio, 1, rtol=1e-6)
    # Label means (e1+e2)/2 and (e3+e4)/2: tr Sigma_W = 1/2, tr Sigma_B = 1/4.
    np.testing.assert_allclose(equidistant.coarse_ratio, 2, rtol=1e-6)
    # Fine classes apart without spread: infinite, up to the rounding of the class means.
    assert float(equidistant.separation) > (1e25 if X64 else 1e10)


def test_no_pair_of_a_kind_is_nan():
    features, _, fine = draw(3)
    alone = fine_structure(features, fine, fine, num_classes=6, num_fine=6)
    assert np.isnan([alone.same_label_distance, alone.ratio, alone.separation]).all()
    assert np.isfinite([alone.different_label_distance, alone.within_variance, alone.coarse_ratio]).all()
    shared = jax.jit(lambda x, y, f: fine_structure(x, y, f, num_classes=2, num_fine=6))(features, 0 * fine, fine)
    assert np.isnan([shared.different_label_distance, shared.ratio, shared.coarse_ratio]).all()
    assert np.isfinite([shared.same_label_distance, shared.separation]).all()


@pytest.mark.parametrize("change", ["rotation", "scale", "offset", "order", "renamed labels", "renamed fine"])
def test_invariances(change):
    features, labels, fine = draw(4)
    rng = np.random.default_rng(5)
    order, names, fine_names = rng.permutation(len(fine)), rng.permutation(3), rng.permutation(6)
    changed = {
        "rotation": (features @ np.linalg.qr(rng.standard_normal((5, 5)))[0], labels, fine),
        "scale": (1e3 * features, labels, fine),
        "offset": (features - 4.0, labels, fine),
        "order": (features[order], labels[order], fine[order]),
        "renamed labels": (features, names[labels], fine),
        "renamed fine": (features, labels, fine_names[fine]),
    }[change]
    before, after = (fine_structure(*a, num_classes=3, num_fine=6) for a in ((features, labels, fine), changed))
    for name in ("ratio", "separation", "coarse_ratio"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-9 if X64 else 1e-4)


def test_vmap_equals_a_loop():
    _, labels, fine = draw(6)
    stack = np.stack([draw(seed)[0] for seed in range(4)]) * np.arange(1.0, 5)[:, None, None]
    batched = jax.jit(jax.vmap(lambda x: fine_structure(x, labels, fine, num_classes=3, num_fine=6)))(stack)
    assert batched.sample_distances.shape == (4, 6, 6)
    for i, features in enumerate(stack):
        assert_matches(jax.tree.map(lambda a, i=i: a[i], batched), reference.fine(features, labels, fine))


def test_float32_with_a_large_common_offset_and_a_nearly_erased_structure():
    rng = np.random.default_rng(7)
    fine = np.repeat(np.arange(4), 50)
    means = np.array([[1.0, 0], [1.0, 2**-6], [-1.0, 0], [-1.0, 2**-6]])
    exact = np.round((means[fine] + 2**-8 * rng.standard_normal((200, 2))) * 2**12) / 2**12
    record = fine_structure((exact + 1024).astype(np.float32), fine // 2, fine, num_classes=2, num_fine=4)
    # The offset is exact in float32 by construction, so only roundings of the spread are left.
    assert_matches(record, reference.fine(exact, fine // 2, fine), rtol=1e-4)
    np.testing.assert_allclose(record.ratio, reference.fine(exact, fine // 2, fine)["ratio"], rtol=1e-4)
    assert record.ratio.dtype == jnp.float32


@pytest.mark.parametrize("fault", ["two labels", "empty fine", "empty label", "label above", "fine above", "nan"])
def test_faults_give_nan_under_jit(fault):
    features, labels, fine = draw(8)
    num_classes = 3
    if fault == "two labels":
        labels[fine == 3] = np.arange(np.sum(fine == 3)) % 2
    elif fault == "empty fine":
        fine[fine == 2] = 0
    elif fault == "empty label":
        num_classes = 4
    elif fault == "label above":
        labels[-1] = 3
    elif fault == "fine above":
        fine[-1] = 6
    else:
        features[0, 0] = np.nan
    record = jax.jit(lambda *a: fine_structure(*a, num_classes=num_classes, num_fine=6))(features, labels, fine)
    assert np.isnan(record.coarse_ratio)
    assert np.isnan(record.ratio) == (fault != "empty label")


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(3)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.full((82, 5), np.inf)}, "`features` must be finite"),
        ({"labels": np.full(82, 3)}, r"`labels` must lie in 0\.\.2"),
        ({"labels": np.zeros(82)}, "`labels` must hold integers"),
        ({"num_classes": 4}, r"`labels` must contain every class 0\.\.3"),
        ({"num_fine": 7}, r"`fine_labels` must contain every class 0\.\.6, but has no sample of \[6\]"),
        ({"num_fine": 5}, r"`fine_labels` must lie in 0\.\.4"),
        ({"num_fine": 1}, "`num_fine` must be an integer >= 2"),
        ({"num_classes": 1}, "`num_classes` must be an integer >= 2"),
        ({"fine_labels": np.zeros(81, int)}, r"`fine_labels` must have shape \(82,\)"),
        ({"fine_labels": np.arange(82) % 6}, "`fine_labels` must hold classes that lie within one label each"),
    ],
)
def test_bad_input_is_named(change, message):
    features, labels, fine = draw(9)
    arguments = {"features": features, "labels": labels, "fine_labels": fine, "num_classes": 3, "num_fine": 6} | change
    with pytest.raises(ValueError, match=message):
        fine_structure(**arguments)
