"""Norms, angles, uniformity, alignment and NC5 against literal NumPy, their limits, invariances, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.spatial.distance import pdist

from nctheory import frames
from nctheory.metrics import collapse_metrics
from nctheory.metrics import directions as d

X64 = jax.config.read("jax_enable_x64")
# Algebra on well-conditioned data: a few hundred roundings of the working precision.
RTOL = 1e-10 if X64 else 2e-4
K, DIM = 4, 7


def draw(seed, num_classes=K, num_samples=60, dim=DIM, num_ood=9):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_samples - num_classes)])
    features = rng.standard_normal((num_classes, dim))[labels] + 0.4 * rng.standard_normal((num_samples, dim))
    return features, labels, rng.standard_normal((num_classes, dim)), 1 + rng.standard_normal((num_ood, dim))


def centered(features, labels, num_classes=K):
    mu = np.stack([np.asarray(features, np.float64)[labels == c].mean(axis=0) for c in range(num_classes)])
    return mu - mu.mean(axis=0), mu


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def measure(features, labels, weight, ood, num_classes=K):
    """Every function of the module, as one dictionary."""
    n = {"num_classes": num_classes}
    return {
        "norms": d.class_mean_norms(features, labels, **n),
        "cosines": d.class_mean_cosines(features, labels, **n),
        "uniformity": d.hyperspherical_uniformity(features, labels, **n),
        "alignment": d.class_alignment(features, labels, weight, **n),
        "ood": d.ood_orthogonality(features, labels, ood, **n),
        "ood_raw": d.ood_orthogonality(features, labels, ood, about="origin", **n),
        "principal": d.principal_cosines(features, labels, weight, **n),
        "principal_raw": d.principal_cosines(features, labels, weight, centered=False, **n),
    }


def literal(features, labels, weight, ood, num_classes=K):
    """The same in float64 NumPy and SciPy, from the formulas."""
    g, mu = centered(features, labels, num_classes)
    energy = np.mean(np.log(1 / pdist(unit(g))))
    etf = -np.log(2 * num_classes / (num_classes - 1)) / 2
    outside = ood.mean(axis=0)
    _, _, vt = np.linalg.svd(weight)
    angles = lambda basis, r: np.sort(np.cos(subspace_angles(vt[:r].T, basis)))[::-1]  # noqa: E731
    r, raw = min(num_classes - 1, g.shape[1]), min(num_classes, g.shape[1])
    basis = np.linalg.svd(g)[2][:r].T
    return {
        "norms": np.linalg.norm(g, axis=1),
        "cosines": unit(g) @ unit(g).T,
        "uniformity": d.HypersphericalUniformity(energy, etf, energy - etf),
        "alignment": np.sum(unit(g) * unit(weight), axis=1),
        "ood": np.mean(np.abs(unit(g) @ unit(outside - mu.mean(axis=0)))),
        "ood_raw": np.mean(np.abs(unit(mu) @ unit(outside))),
        "principal": angles(basis, r),
        "principal_raw": angles(np.linalg.svd(mu)[2][:raw].T, raw),
    }


def assert_same(got, expected, rtol=RTOL, skip=()):
    for name in set(expected) - set(skip):
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("num_classes", "dim", "jit"),
    [(2, 5, False), pytest.param(4, 7, False, marks=pytest.mark.slow), (4, 7, True), (6, 3, False), (70, 80, False)],
)
def test_matches_the_literal_reference(num_classes, dim, jit):
    data = draw(1, num_classes, 5 * num_classes + 20, dim)
    function = lambda *a: measure(*a, num_classes=num_classes)  # noqa: E731
    got = (jax.jit(function) if jit else function)(*map(jnp.asarray, data))
    # Angles near 0 and excesses near 0 lose digits, as in the reference: sqrt of eps of the cosines.
    assert_same(got, literal(*data, num_classes), rtol=1e-7 if X64 else 1e-3)


def test_the_metrics_are_summaries_of_these_numbers():
    features, labels, *_ = draw(2)
    metrics = collapse_metrics(features, labels, num_classes=K)
    norms = d.class_mean_norms(features, labels, num_classes=K)
    cosines = d.class_mean_cosines(features, labels, num_classes=K)
    np.testing.assert_allclose(jnp.std(norms) / jnp.mean(norms), metrics.nc2_equinorm, rtol=RTOL)
    off = np.abs(np.asarray(cosines) + 1 / (K - 1))[~np.eye(K, dtype=bool)]
    np.testing.assert_allclose(off.mean(), metrics.nc2_equiangular, rtol=RTOL)


def test_class_means_stand_for_the_features():
    features, labels, weight, ood = draw(3)
    mu = centered(features, labels)[1]
    assert_same(measure(mu, np.arange(K), weight, ood), measure(features, labels, weight, ood))


def test_a_simplex_etf_is_the_limit_of_all():
    etf = np.asarray(frames.simplex_etf(5, 8))
    labels = np.tile(np.arange(5), 3)
    ood = np.concatenate([np.zeros(5), [1.0, 2.0, 0.0]])[None] + 7.0
    got = measure(3 * etf[labels] + 7.0, labels, 0.1 * etf, ood, num_classes=5)
    atol = 1e-12 if X64 else 3e-6
    np.testing.assert_allclose(got["norms"], 3, atol=atol)
    np.testing.assert_allclose(got["cosines"], 1.25 * np.eye(5) - 0.25, atol=atol)
    np.testing.assert_allclose(got["alignment"], 1, atol=atol)
    np.testing.assert_allclose(got["principal"], 1, atol=atol)
    np.testing.assert_allclose(got["ood"], 0, atol=atol)
    np.testing.assert_allclose(got["uniformity"].excess, 0, atol=atol)
    np.testing.assert_allclose(got["uniformity"].energy, -np.log(2.5) / 2, rtol=1e-6)
    # Where the raw means share an offset, cosines about the origin say little of the classes.
    assert float(got["ood_raw"]) > 0.9
    # An out-of-distribution mean in the direction of one class: 1/K for it and 1/(K-1)/K for each other.
    along = d.ood_orthogonality(etf[labels], labels, 9 * etf[:1], num_classes=5)
    np.testing.assert_allclose(along, 2 / 5, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_vectors_are_as_even_as_the_etf(seed):
    vectors = np.random.default_rng(seed).standard_normal((6, 9))
    assert float(d.hyperspherical_uniformity(vectors, np.arange(6), num_classes=6).excess) > 0.001
    near = np.asarray(frames.simplex_etf(6, 9)) + 1e-3 * vectors
    excess = float(d.hyperspherical_uniformity(near, np.arange(6), num_classes=6).excess)
    # Second order about a minimum; the float32 rounding of logarithms of numbers near 1 is 1e-7.
    assert -2e-7 < excess < 1e-4


def test_two_antipodal_pairs_are_not_mistaken_for_a_frame():
    # An average of signed cosines, or of signed means, is that of a simplex ETF here.
    pairs = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    cosines = np.asarray(d.class_mean_cosines(pairs, np.arange(4), num_classes=4))
    np.testing.assert_allclose(np.sort(cosines[0]), [-1, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(cosines[~np.eye(4, dtype=bool)].mean(), -1 / 3, atol=1e-6)
    uniformity = d.hyperspherical_uniformity(pairs, np.arange(4), num_classes=4)
    np.testing.assert_allclose(uniformity.excess, -(np.log(1.5) + 2 * np.log(0.75)) / 6, rtol=1e-5)
    assert float(d.hyperspherical_uniformity(pairs[:2], np.arange(2), num_classes=2).excess) == pytest.approx(0)


@pytest.mark.parametrize("change", ["rotation", "scale up", "scale down", "offset", "order", "relabel"])
def test_invariances(change):
    features, labels, weight, ood = draw(5)
    rng = np.random.default_rng(6)
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    order, names = rng.permutation(len(labels)), rng.permutation(K)
    back = np.argsort(names)
    factor = {"scale up": 1e6, "scale down": 1e-6}.get(change, 1.0)
    changed = {
        "rotation": (features @ rotation.T, labels, weight @ rotation.T, ood @ rotation.T),
        "offset": (features + 5.0, labels, weight, ood + 5.0),
        "order": (features[order], labels[order], weight, ood[::-1]),
        "relabel": (features, names[labels], weight[back], ood),
    }.get(change, (factor * features, labels, weight / factor, factor * ood))
    before, after = measure(features, labels, weight, ood), measure(*changed)
    before["norms"] = factor * before["norms"]
    if change == "relabel":  # permuted with the classes, and nothing else
        before["norms"], before["alignment"] = before["norms"][back], before["alignment"][back]
        before["cosines"] = before["cosines"][back][:, back]
    skip = ("ood_raw", "principal_raw") if change == "offset" else ()
    for name in skip:
        assert not np.allclose(after[name], before[name], rtol=1e-2)
    assert_same(after, before, rtol=1e-8 if X64 else 2e-3, skip=skip)


def test_vmap_equals_a_loop():
    stacked = [jnp.stack([jnp.asarray(each) for each in a]) for a in zip(*(draw(s) for s in range(3)), strict=True)]
    batched = jax.vmap(measure)(*stacked)
    for i in range(3):
        assert_same(jax.tree.map(lambda a, i=i: a[i], batched), measure(*(a[i] for a in stacked)))


def test_float32_survives_a_large_common_offset():
    features, labels, weight, ood = draw(7)
    # Multiples of 2^-10 below 2^13 are float32 numbers: the input itself rounds nothing.
    features, ood = np.round(1024 * features) / 1024, np.round(1024 * ood) / 1024
    exact = literal(features, labels, weight, ood)
    shifted = [(a + 4096).astype(np.float32) for a in (features, ood)]
    got = measure(shifted[0], labels, weight.astype(np.float32), shifted[1])
    assert_same(got, exact, rtol=2e-4, skip=("ood_raw", "principal_raw"))
    naive = unit(np.stack([shifted[0][labels == c].mean(axis=0) for c in range(K)]))
    assert np.abs(naive @ naive.T - exact["cosines"]).max() > 0.5  # raw means: the offset is all that is left


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_low_precision_features_are_measured_in_float32(dtype):
    features, labels, weight, ood = (jnp.asarray(a) for a in draw(8))
    low = [a.astype(dtype) for a in (features, weight, ood)]
    got = measure(low[0], labels, low[1], low[2])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    plain = [np.asarray(a.astype(jnp.float32), np.float64) for a in low]
    assert_same(got, literal(plain[0], np.asarray(labels), plain[1], plain[2]), rtol=1e-3)


def test_undefined_is_nan_and_only_there():
    line = np.array([[-1.0, 0.3], [0.0, 0.0], [1.0, -0.3]]) + 0.1  # the middle mean is the mean of the means
    labels, weight = np.arange(3), np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    cosines = np.asarray(d.class_mean_cosines(line, labels, num_classes=3))
    assert np.isnan(cosines[1]).all()
    assert np.isnan(cosines[:, 1]).all()
    np.testing.assert_allclose(cosines[0, [0, 2]], [1, -1], rtol=1e-6)
    assert np.isnan(d.hyperspherical_uniformity(line, labels, num_classes=3).energy)
    alignment = np.asarray(d.class_alignment(line, labels, weight, num_classes=3))
    assert np.isnan(alignment[:2]).all()
    assert np.isfinite(alignment[2])
    assert np.isnan(d.ood_orthogonality(np.eye(3), labels, np.full((2, 3), 1 / 3), num_classes=3))
    assert np.isnan(d.principal_cosines(line, labels, np.eye(2), num_classes=3)).all()  # means of rank 1, not 2
    assert np.isnan(d.principal_cosines(np.eye(3), labels, np.ones((3, 3)), num_classes=3)).all()
    constant = measure(np.ones((8, 3)), np.arange(8) % K, np.zeros((K, 3)), np.ones((2, 3)))
    assert np.all(np.asarray(constant.pop("norms")) == 0)
    constant.pop("ood_raw")
    for name, value in constant.items():
        if name == "uniformity":
            value = value.energy
        if name == "cosines":
            value = value[~np.eye(K, dtype=bool)]
        assert np.isnan(value).all(), name


def test_two_classes_in_one_direction_have_infinite_energy():
    means = np.array([[1.0, 0], [2.0, 0], [-3.0, 0]])
    assert float(d.hyperspherical_uniformity(means, np.arange(3), num_classes=3).excess) == np.inf


@pytest.mark.parametrize("fault", ["empty class", "label above", "label below", "nan", "inf"])
def test_faults_give_nan_under_jit(fault):
    features, labels, weight, ood = draw(9)
    if fault == "empty class":
        labels[labels == 2] = 1
    elif fault in ("label above", "label below"):
        labels[-1] = K if fault == "label above" else -1
    else:
        features[-1, 0] = float(fault)
    got = jax.jit(measure)(features, labels, weight, ood)
    got["uniformity"] = got["uniformity"].energy
    for name, value in got.items():
        assert np.isnan(value).any() if fault in ("nan", "inf") else np.isnan(value).all(), name


def test_principal_cosines_can_be_differentiated():
    features, labels, weight, _ = draw(10)
    function = lambda w: jnp.sum(d.principal_cosines(features, labels, w, num_classes=K))  # noqa: E731
    weight, direction = jnp.asarray(weight), np.random.default_rng(1).standard_normal(weight.shape)
    step = 1e-5 if X64 else 1e-2
    difference = (function(weight + step * direction) - function(weight - step * direction)) / (2 * step)
    # Truncation and rounding of the central difference.
    slope = jnp.vdot(jax.grad(function)(weight), jnp.asarray(direction))
    np.testing.assert_allclose(slope, difference, rtol=1e-5 if X64 else 5e-2, atol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(5)}, r"`features` must have shape \(N, d\)"),
        ({"features": np.full((60, DIM), np.nan)}, "`features` must be finite"),
        ({"labels": np.full(60, 4)}, r"`labels` must lie in 0\.\.3"),
        ({"labels": np.arange(60) % 3}, r"has no sample of \[3\]"),
        ({"num_classes": 1, "labels": np.zeros(60, int)}, "`num_classes` must be an integer >= 2"),
    ],
)
@pytest.mark.parametrize("name", ["norms", "cosines", "uniformity", "alignment", "ood", "principal"])
def test_bad_features_and_labels_are_named(name, change, message):
    features, labels, weight, ood = draw(11)
    given = {"features": features, "labels": labels, "num_classes": K} | change
    x, y, n = given["features"], given["labels"], {"num_classes": given["num_classes"]}
    call = {
        "norms": lambda: d.class_mean_norms(x, y, **n),
        "cosines": lambda: d.class_mean_cosines(x, y, **n),
        "uniformity": lambda: d.hyperspherical_uniformity(x, y, **n),
        "alignment": lambda: d.class_alignment(x, y, weight, **n),
        "ood": lambda: d.ood_orthogonality(x, y, ood, **n),
        "principal": lambda: d.principal_cosines(x, y, weight, **n),
    }[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: d.class_alignment(x, y, np.ones((3, DIM)), num_classes=K), r"`weight` must have shape \(4, 7\)"),
        (lambda x, y: d.class_alignment(x, y, np.full((K, DIM), np.inf), num_classes=K), "`weight` must be finite"),
        (lambda x, y: d.ood_orthogonality(x, y, x[:, :3], num_classes=K), r"`ood_features` must have shape \(M, 7\)"),
        (lambda x, y: d.ood_orthogonality(x, y, x[:0], num_classes=K), "`ood_features` must have at least 1 row"),
        (lambda x, y: d.ood_orthogonality(x, y, np.nan * x, num_classes=K), "`ood_features` must be finite"),
        (lambda x, y: d.ood_orthogonality(x, y, x.astype(int), num_classes=K), "`ood_features` must hold real"),
        (lambda x, y: d.ood_orthogonality(x, y, x, num_classes=K, about="mean"), "`about` must be one of"),
        (lambda x, y: d.principal_cosines(x, y, np.ones((2, DIM)), num_classes=K), "`weight` must have at least 3"),
        (lambda x, y: d.principal_cosines(x, y, np.ones((4, 3)), num_classes=K), r"`weight` must have shape \(m, 7\)"),
        (lambda x, y: d.principal_cosines(x, y, np.full((4, DIM), np.nan), num_classes=K), "`weight` must be finite"),
    ],
)
def test_other_bad_input_is_named(function, message):
    features, labels, *_ = draw(12)
    with pytest.raises(ValueError, match=message):
        function(features, labels)


@pytest.mark.parametrize(("per_class", "value"), [pytest.param(10, 0.1, marks=pytest.mark.slow), (7, 1e4 / 3)])
def test_class_means_that_coincide_up_to_rounding_have_no_directions(per_class, value):
    labels = np.concatenate([np.tile(np.arange(K), per_class), np.zeros(23, int)])
    features = np.full((len(labels), 3), value, np.float32)
    got = measure(features, labels, np.eye(K, 3, dtype=np.float32), np.eye(2, 3, dtype=np.float32))
    for name in ("cosines", "alignment", "ood", "principal"):
        assert np.isnan(got[name]).all(), name
    assert np.isnan(got["uniformity"].excess)


def test_the_excess_of_a_frame_is_not_negative():
    for size in range(3, 12):
        etf = np.asarray(frames.simplex_etf(size, 12), np.float32)
        assert float(d.hyperspherical_uniformity(etf, np.arange(size), num_classes=size).excess) >= 0
