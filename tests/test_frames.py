"""Frames against their Gram matrices, distances against literal formulas and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import frames

X64 = jax.config.read("jax_enable_x64")
ATOL = 1e-13 if X64 else 2e-6  # a few dozen roundings of numbers of size one


def unit(gram):
    return gram / np.linalg.norm(gram)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, None), (2, 1), (3, 2), (5, None), (5, 4), (5, 9), (10, 9)])
def test_simplex_etf_has_its_gram_matrix(num_classes, dim):
    etf = frames.simplex_etf(num_classes, dim)
    assert etf.shape == (num_classes, num_classes if dim is None else dim)
    assert etf.dtype == jnp.result_type(float)
    expected = num_classes / (num_classes - 1) * (np.eye(num_classes) - 1 / num_classes)
    np.testing.assert_allclose(etf @ etf.T, expected, atol=ATOL)
    np.testing.assert_allclose(etf.sum(axis=0), 0, atol=ATOL)


@pytest.mark.parametrize("dim", [None, 4, 7])
def test_orthogonal_frames_have_their_gram_matrices(dim):
    frame = frames.orthogonal_frame(4, dim)
    np.testing.assert_allclose(frame @ frame.T, np.eye(4), atol=0)
    norms = np.array([2.0, 0.5, 0.0, 3.0])
    general = frames.general_orthogonal_frame(norms, dim)
    assert general.shape == (4, dim or 4)
    np.testing.assert_allclose(general @ general.T, np.diag(norms**2), atol=0)


def test_each_frame_is_at_distance_zero_of_itself_and_of_no_other():
    etf, orthogonal = 2.0 * frames.simplex_etf(4), 3.0 * frames.orthogonal_frame(4, 6)
    norms = np.array([1.0, 2.0, 3.0, 4.0])
    general = frames.general_orthogonal_frame(norms)
    np.testing.assert_allclose(frames.etf_distance(etf), 0, atol=ATOL)
    np.testing.assert_allclose(frames.orthogonal_frame_distance(orthogonal), 0, atol=ATOL)
    np.testing.assert_allclose(frames.general_orthogonal_frame_distance(general, 5 * norms), 0, atol=ATOL)
    # |I/2 - (I - J/4)/sqrt(3)|^2 = 2 - 2 <.,.> = 2 - 2 * 3/(2 sqrt 3)
    crossed = np.sqrt(2 - np.sqrt(3))
    np.testing.assert_allclose(frames.etf_distance(orthogonal), crossed, rtol=1e-5)
    np.testing.assert_allclose(frames.orthogonal_frame_distance(etf), crossed, rtol=1e-5)
    np.testing.assert_allclose(frames.general_orthogonal_frame_distance(orthogonal, np.ones(4)), 0, atol=ATOL)
    assert float(frames.orthogonal_frame_distance(general)) > 0.1
    # Not centred: an orthogonal frame minus its mean IS an ETF.
    np.testing.assert_allclose(frames.etf_distance(orthogonal - orthogonal.mean(axis=0)[None, :]), 0, atol=2e-6)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.sampled_from([2, 5]), dim=st.sampled_from([1, 6]))
def test_distances_match_the_formula(seed, num_classes, dim):
    rng = np.random.default_rng(seed)
    vectors, norms = rng.standard_normal((num_classes, dim)), rng.uniform(0.5, 2, num_classes)
    gram = unit(vectors @ vectors.T)
    tolerance = {"rtol": 1e-9 if X64 else 1e-4, "atol": ATOL}
    etf = np.linalg.norm(gram - unit(np.eye(num_classes) - 1 / num_classes))
    np.testing.assert_allclose(frames.etf_distance(vectors), etf, **tolerance)
    orthogonal = np.linalg.norm(gram - unit(np.eye(num_classes)))
    np.testing.assert_allclose(frames.orthogonal_frame_distance(vectors), orthogonal, **tolerance)
    general = np.linalg.norm(gram - unit(np.diag(norms**2)))
    np.testing.assert_allclose(frames.general_orthogonal_frame_distance(vectors, norms), general, **tolerance)


DISTANCES = [
    frames.etf_distance,
    frames.orthogonal_frame_distance,
    lambda v: frames.general_orthogonal_frame_distance(v, np.array([1.0, 2.0, 3.0])),
]


@pytest.mark.parametrize("distance", DISTANCES)
def test_rotation_and_any_scale_drop_out(distance):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3, 5))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    expected = float(distance(vectors))
    for changed in (vectors @ rotation.T, 1e-30 * vectors, 1e30 * vectors, -vectors):
        np.testing.assert_allclose(distance(changed), expected, rtol=1e-12 if X64 else 1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_jit_vmap_and_zero_vectors(distance):
    stack = jnp.asarray(np.random.default_rng(2).standard_normal((4, 3, 5)))
    batched = jax.jit(jax.vmap(distance))(stack)
    np.testing.assert_allclose(batched, [float(distance(v)) for v in stack], rtol=1e-12 if X64 else 1e-5)
    assert np.isnan(distance(np.zeros((3, 5))))
    assert distance(np.ones((3, 5), np.float32)).dtype == jnp.float32


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frames.simplex_etf(1), "`num_classes` must be an integer >= 2"),
        (lambda: frames.simplex_etf(4, 2), "`dim` must be an integer >= 3, but is 2"),
        (lambda: frames.simplex_etf(2.0), "`num_classes` must be an integer"),
        (lambda: frames.orthogonal_frame(0), "`num_classes` must be an integer >= 1"),
        (lambda: frames.orthogonal_frame(4, 3), "`dim` must be an integer >= 4"),
        (lambda: frames.general_orthogonal_frame(np.array([1.0, -1.0])), "`norms` must be finite and >= 0"),
        (lambda: frames.general_orthogonal_frame(np.ones((2, 2))), r"`norms` must have shape \(K,\)"),
        (lambda: frames.general_orthogonal_frame(np.ones(3), 2), "`dim` must be an integer >= 3"),
        (lambda: frames.etf_distance(np.ones((1, 3))), "`vectors` must have at least 2 rows"),
        (lambda: frames.etf_distance(np.ones(3)), r"`vectors` must have shape \(K, d\)"),
        (lambda: frames.orthogonal_frame_distance(np.full((2, 2), np.nan)), "`vectors` must be finite"),
        (lambda: frames.orthogonal_frame_distance(np.ones((2, 0))), "1 column"),
        (lambda: frames.general_orthogonal_frame_distance(np.ones((3, 2)), np.ones(2)), r"`norms` must have shape \(3"),
        (
            lambda: frames.general_orthogonal_frame_distance(np.ones((2, 2)), -np.ones(2)),
            "`norms` must be finite and >=",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
