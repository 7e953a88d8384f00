"""SELI: tabulated step-imbalance values, the certificate, and the limit of small decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from nctheory.theory.ce_convex import ce_ufm_convex
from nctheory.theory.seli import seli

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 1e-4


@pytest.mark.parametrize(
    ("ratio", "between", "weights", "features", "cosine"),
    [
        (4, 1.581, 1.717, 0.568, -0.075),
        (10, 2.345, 2.363, 0.382, 0.054),
        (100, 7.106, 4.241, 0.131, 0.460),
    ],
)
def test_step_imbalance(ratio, between, weights, features, cosine):
    """Three classes of size R and three of size 1; values to three decimals, singular values in closed form."""
    record = seli([ratio] * 3 + [1] * 3)
    expected = [np.sqrt(ratio)] * 2 + [np.sqrt((ratio + 1) / 2)] + [1, 1]
    np.testing.assert_allclose(record.singular_values, expected, rtol=1e-5)
    assert float(record.singular_values[2]) == pytest.approx(between, abs=6e-4)
    norms = np.asarray(record.class_weight_norms) ** 2, np.asarray(record.class_feature_norms) ** 2
    assert norms[0][0] / norms[0][5] == pytest.approx(weights, abs=6e-4)
    assert norms[1][0] / norms[1][5] == pytest.approx(features, abs=6e-4)
    assert float(record.weight_cosines[3, 4]) == pytest.approx(cosine, abs=6e-4)
    assert record.is_certified


def test_against_the_full_svd():
    """Literal thin SVD of the K N matrix."""
    sizes = np.array([7, 1, 4, 2])
    target = np.repeat(np.eye(4) - 0.25, sizes, axis=1)
    u, s, vt = np.linalg.svd(target, full_matrices=False)
    u, s, vt = u[:, :3], s[:3], vt[:3]
    record = seli(sizes)
    first = np.cumsum(sizes) - sizes
    np.testing.assert_allclose(record.value, s.sum(), rtol=TIGHT)
    assert record.loss is record.value
    np.testing.assert_allclose(record.layer_norms, [np.sum(np.square(record.weight))], rtol=TIGHT)
    samples = np.repeat(record.class_features, sizes, axis=0)
    np.testing.assert_allclose(record.feature_norm, np.sum(samples**2), rtol=TIGHT)
    np.testing.assert_allclose(record.loss, (record.layer_norms[0] + record.feature_norm) / 2, rtol=TIGHT)
    np.testing.assert_allclose(record.layer_singular_values[0], np.linalg.svd(record.weight)[1], rtol=TIGHT)
    np.testing.assert_allclose(record.feature_singular_values, np.linalg.svd(samples)[1], rtol=TIGHT)
    assert int(np.sum(record.active)) == np.linalg.matrix_rank(record.logits)
    assert np.asarray(record.active_classes).tolist() == [True] * 4
    assert np.asarray(record.bias).tolist() == [0.0] * 4
    np.testing.assert_allclose(record.weight_gram, (u * s) @ u.T, atol=TIGHT)
    np.testing.assert_allclose(record.feature_gram, ((vt.T * s) @ vt)[np.ix_(first, first)], atol=TIGHT)
    np.testing.assert_allclose(record.weight @ record.class_features.T, record.logits, atol=TIGHT)
    dual = (u @ vt)[:, first]
    assert float(record.dual_slack) == pytest.approx(np.max(dual - 2 * np.eye(4) * np.abs(dual).max()), abs=TIGHT)


def test_certificate_on_random_profiles():
    rng = np.random.default_rng(0)
    for _ in range(40):
        sizes = rng.integers(1, 40, rng.integers(2, 9))
        record = seli(sizes)
        assert record.is_certified, sizes
        assert float(record.dual_slack) <= 1e-6


def test_certificate_means_optimal():
    """Any feasible logits have <B, Z> >= value for the dual matrix B of spectral norm 1: a linear programme agrees."""
    sizes = np.array([5, 2, 1])
    record = seli(sizes)
    dual = np.asarray(record.feature_gram, np.float64)
    assert np.linalg.norm(np.repeat(dual, sizes, axis=1), 2) == pytest.approx(1, rel=1e-5)
    value = 0.0
    for k in range(3):
        rows = np.zeros((2, 3))
        for row, c in zip(rows, [c for c in range(3) if c != k], strict=True):
            row[c], row[k] = 1, -1
        # The columns of B sum to zero, so any shift of a column is free; fix it.
        centred = dual[:, k] - dual[:, k].mean()
        answer = linprog(centred, rows, [-1, -1], np.ones((1, 3)), [0], bounds=(None, None))
        value += sizes[k] * answer.fun
    assert value == pytest.approx(float(record.value), rel=1e-5)


def test_balanced_is_a_simplex_etf():
    record = seli([9] * 4)
    frame = np.eye(4) - 0.25
    np.testing.assert_allclose(record.weight_gram, 3 * frame, atol=1e-6 if X64 else 1e-5)
    np.testing.assert_allclose(record.feature_gram, frame / 3, atol=1e-6)
    np.testing.assert_allclose(record.weight_cosines[0, 1], -1 / 3, rtol=1e-5)


def test_limit_of_vanishing_decay():
    """Cosines of the certified minimiser approach SELI's like 1/log(1/decay), and not those of an ETF."""
    sizes = [10, 10, 1, 1]
    limit = np.asarray(seli(sizes).weight_cosines)
    distances = []
    for decay in (1e-3, 1e-5, 1e-7):
        gram = ce_ufm_convex(sizes, weight_decay=decay, feature_decay=decay).weight_gram
        norms = np.sqrt(np.diagonal(gram))
        distances.append(np.abs(gram / np.outer(norms, norms) - limit).max())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.1
    assert abs(limit[2, 3] + 1 / 3) > 0.2


def test_transformations_and_dtype():
    sizes = jnp.array([[3.0, 2.0, 1.0], [10.0, 10.0, 10.0]])
    mapped = jax.jit(jax.vmap(seli))(sizes)
    for i in range(2):
        np.testing.assert_allclose(mapped.weight_gram[i], seli(sizes[i]).weight_gram, atol=1e-5)
    assert seli(np.array([3, 2, 1], np.float32)).value.dtype == jnp.float32
    for half in (np.float16, jnp.bfloat16):
        found = seli(jnp.asarray([3, 2, 1], half))
        assert found.value.dtype == jnp.float32
        np.testing.assert_allclose(found.value, seli([3, 2, 1]).value, rtol=1e-6)


def test_bad_sizes_under_vmap_give_nan():
    """Also in a list that mixes traced and known sizes."""
    mapped = jax.jit(jax.vmap(lambda n: seli([n, 5, 2])))(jnp.asarray([4.0, 0.0, -3.0, np.nan, np.inf]))
    for leaf in map(np.asarray, jax.tree.leaves(mapped)):
        assert np.isnan(leaf[1:]).all() if leaf.dtype.kind == "f" else not leaf[1:].any()
    np.testing.assert_allclose(mapped.weight_gram[0], seli([4, 5, 2]).weight_gram, atol=1e-5)


def test_errors(own_errors):
    for sizes, message in [
        ([3], "`class_sizes` must hold at least 2 classes"),
        ([3, 0], "`class_sizes` must be finite and >= 1"),
        ([3, 2.5], "`class_sizes` must hold whole numbers"),
        ([[3, 2]], "`class_sizes` must have shape"),
        (None, "`class_sizes` must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            seli(sizes)
