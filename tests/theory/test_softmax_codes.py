"""Softmax codes: distances against SLSQP and bounds, codes against proven values, certificates that must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from nctheory._errors import ArgumentError
from nctheory.frames import simplex_etf
from nctheory.theory.softmax_codes import one_vs_rest_distance, softmax_code, softmax_code_margin

X64 = jax.config.jax_enable_x64
# Square root of rounding: the squared distance is what is minimised.
ATOL = 1e-7 if X64 else 2e-3


def hull_distance(point, others):
    """Distance of a point from a convex hull by SLSQP over the coefficients."""
    k = len(others)
    found = minimize(
        lambda a: np.sum((point - a @ others) ** 2),
        np.full(k, 1 / k),
        jac=lambda a: -2 * others @ (point - a @ others),
        bounds=[(0, 1)] * k,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(k)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return np.sqrt(found.fun)


@pytest.mark.parametrize(
    ("k", "d"), [(2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((4, 2), (6, 3))), (9, 3), (12, 10)]
)
def test_distances_against_scipy(k, d):
    vectors = np.random.default_rng(k).normal(size=(k, d))
    found = one_vs_rest_distance(vectors)
    expected = [hull_distance(v, np.delete(vectors, i, axis=0)) for i, v in enumerate(vectors)]
    # SLSQP stops at differences of 1e-15 of the square, 1e-7 of a distance near zero.
    np.testing.assert_allclose(found.distances, expected, atol=max(ATOL, 1e-6))
    assert np.all(np.asarray(found.lower_bounds) <= np.asarray(found.distances))
    assert float(found.gap) <= ATOL


def test_certificate_is_valid_by_itself():
    vectors = np.random.default_rng(1).normal(size=(15, 6))
    found = one_vs_rest_distance(vectors)
    a, u = np.asarray(found.coefficients, float), np.asarray(found.directions, float)
    assert (a >= 0).all()
    assert np.all(np.diag(a) == 0)
    np.testing.assert_allclose(a.sum(1), 1, rtol=10 * ATOL)
    np.testing.assert_allclose(np.linalg.norm(vectors - a @ vectors, axis=1), found.distances, atol=ATOL)
    supports = np.array([np.min(u[i] @ (vectors[i] - np.delete(vectors, i, axis=0)).T) for i in range(15)])
    np.testing.assert_allclose(np.maximum(supports, 0), found.lower_bounds, atol=ATOL)


@pytest.mark.parametrize(
    ("k", "d", "value", "kind"),
    [
        (2, 1, 2.0, "simplex"),
        (3, 1, 0.0, "degenerate"),
        pytest.param(4, 3, 4 / 3, "simplex", marks=pytest.mark.slow),
        (4, 7, 4 / 3, "simplex"),
        (5, 3, 1.0, "orthogonal simplices"),
        (6, 3, 1.0, "orthogonal simplices"),
        pytest.param(9, 7, 1.0, "orthogonal simplices", marks=pytest.mark.slow),
        (4, 2, 1.0, "polygon"),
        (5, 2, 1 - np.cos(2 * np.pi / 5), "polygon"),
        (30, 2, 1 - np.cos(2 * np.pi / 30), "polygon"),
    ],
)
def test_closed_codes_have_their_value(k, d, value, kind):
    code = softmax_code(k, d)
    assert code.kind == kind
    assert code.is_optimal
    assert code.vectors.shape == (k, d)
    assert any("temperature" in each for each in code.assumptions)
    np.testing.assert_allclose(np.linalg.norm(code.vectors, axis=1), 1, rtol=1e-12 if X64 else 1e-6)
    np.testing.assert_allclose(code.margin, value, atol=1e-12 if X64 else 1e-6)
    np.testing.assert_allclose(code.evaluation.margin, value, atol=ATOL)
    np.testing.assert_allclose(code.margin_lower_bound, value, atol=ATOL)
    assert softmax_code_margin(k, d) == pytest.approx(value, abs=1e-15)


@pytest.mark.slow
def test_random_codes_never_beat_the_proven_values():
    rng = np.random.default_rng(0)
    for k, d in ((3, 2), (4, 2), (5, 3), (7, 3), (6, 4)):
        vectors = rng.normal(size=(50, k, d))
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        bound = softmax_code_margin(k, d)
        bound = 1.0 if np.isnan(bound) else bound
        margins = jax.vmap(one_vs_rest_distance)(jnp.asarray(vectors)).margin_lower_bound
        assert np.all(np.asarray(margins) <= bound + ATOL)


def test_search_finds_the_icosahedron(key):
    code = softmax_code(12, 3, key=key, num_starts=4, num_steps=2000)
    assert not code.is_optimal
    assert np.isnan(softmax_code_margin(12, 3))
    # Neighbours of a vertex of the icosahedron lie in a plane at height 1/sqrt(5).
    np.testing.assert_allclose(code.margin, 1 - 5**-0.5, atol=1e-5 if X64 else 1e-3)
    assert float(code.margin_lower_bound) <= float(code.margin) <= float(code.upper_bound) == 1.0
    np.testing.assert_allclose(code.margin, jnp.max(code.start_margins), rtol=1e-12 if X64 else 1e-5)


def test_invariance_scale_and_order():
    vectors = np.random.default_rng(2).normal(size=(7, 3))
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    base = np.asarray(one_vs_rest_distance(vectors).distances)
    np.testing.assert_allclose(one_vs_rest_distance(vectors @ rotation).distances, base, atol=ATOL)
    np.testing.assert_allclose(one_vs_rest_distance(1e6 * vectors).distances, 1e6 * base, atol=1e6 * ATOL)
    np.testing.assert_allclose(one_vs_rest_distance(vectors[::-1].copy()).distances, base[::-1], atol=ATOL)


def test_vmap_and_degenerate_input():
    batch = np.random.default_rng(4).normal(size=(3, 6, 2))
    together = jax.jit(jax.vmap(one_vs_rest_distance))(jnp.asarray(batch))
    for i in range(3):
        np.testing.assert_allclose(together.distances[i], one_vs_rest_distance(batch[i]).distances, atol=ATOL)
    same = one_vs_rest_distance(np.ones((4, 3)))
    assert np.all(np.asarray(same.distances) == 0)
    assert np.all(np.asarray(same.directions) == 0)
    zero = one_vs_rest_distance(np.zeros((3, 2)))
    assert np.all(np.asarray(zero.distances) == 0)
    assert one_vs_rest_distance(np.eye(3, dtype=np.float32)).distances.dtype == np.float32
    assert one_vs_rest_distance(np.eye(3, dtype=np.float16)).distances.dtype == np.float32
    whole = one_vs_rest_distance(np.eye(3, dtype=int))
    np.testing.assert_allclose(whole.margin, np.sqrt(1.5), rtol=1e-6)
    np.testing.assert_allclose(one_vs_rest_distance(simplex_etf(5)).margin, 5 / 4, rtol=1e-6)


def test_errors(own_errors):
    strings = np.array([["a", "b"], ["c", "d"]])
    for bad in (np.ones((1, 3)), np.ones((3, 0)), np.ones(3), np.array([[1.0], [np.nan]]), strings, None, "codes"):
        with pytest.raises(ArgumentError, match="Argument `vectors` must"):
            one_vs_rest_distance(bad)
    for arguments, name in (((1, 3), "num_classes"), ((4, 0), "dim"), ((7, 3), "key")):
        with pytest.raises(ValueError, match=f"Argument `{name}` must"):
            softmax_code(*arguments)
    for key in (0, jax.random.split(jax.random.key(0), 2), "seed"):
        with pytest.raises(ArgumentError, match="Argument `key` must be a PRNG key"):
            softmax_code(7, 3, key=key)
    for option in ("num_starts", "num_steps"):
        with pytest.raises(ValueError, match=f"Argument `{option}` must"):
            softmax_code(4, 3, **{option: 0})
