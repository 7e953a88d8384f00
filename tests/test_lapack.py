"""The batching rule of factorisations: values of vmap, one call a matrix on a CPU, derivatives, tuples, nesting."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory._lapack import one_by_one

# Of a factorisation in another order of additions.
RTOL = 1e-12 if jax.config.read("jax_enable_x64") else 1e-4


@one_by_one
def eigenvalues(matrix):
    return jnp.linalg.eigh(matrix)


@one_by_one
def inverse(matrix):
    return jnp.linalg.inv(matrix)


def symmetric(key, *shape):
    square = jax.random.normal(key, (*shape, shape[-1]), dtype=float)
    return square + jnp.swapaxes(square, -1, -2) + jnp.broadcast_to(10 * jnp.eye(shape[-1]), square.shape)


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
def test_vmap_gives_what_a_loop_does(key, batch):
    matrices = symmetric(key, *batch, 5)
    mapped = inverse
    for _ in batch:
        mapped = jax.vmap(mapped)
    expected = np.linalg.inv(np.asarray(matrices, np.float64))
    np.testing.assert_allclose(jax.jit(mapped)(matrices), expected, rtol=RTOL, atol=RTOL)


def test_tuples_keep_their_structure(key):
    matrices = symmetric(key, 3, 4)
    values, vectors = jax.vmap(eigenvalues)(matrices)
    rebuilt = jnp.einsum("bik,bk,bjk->bij", vectors, values, vectors)
    np.testing.assert_allclose(rebuilt, matrices, rtol=10 * RTOL, atol=100 * RTOL)


def test_a_cpu_program_calls_lapack_on_single_matrices(key):
    """Of seven matrices the plain rule makes one batched call, this one calls of one matrix each."""
    matrices = symmetric(key, 7, 4)

    def operands(function):
        text = jax.jit(jax.vmap(function)).lower(matrices).compile().as_text()
        calls = [line for line in text.splitlines() if "custom-call(" in line and "lapack" in line]
        assert calls
        return [re.search(r"f(?:32|64)\[([\d,]*)\]", line).group(1) for line in calls]

    assert all(shape.startswith("7,") for shape in operands(jnp.linalg.eigvalsh))
    assert not any(shape.startswith("7,") for shape in operands(one_by_one(lambda each: jnp.linalg.eigvalsh(each))))


def test_derivatives_are_those_of_the_plain_function(key):
    matrices = symmetric(key, 3, 4)

    def total(function, given):
        return jnp.sum(jnp.sin(jax.vmap(function)(given)))

    found = jax.jit(jax.grad(lambda given: total(inverse, given)))(matrices)
    expected = jax.grad(lambda given: total(jnp.linalg.inv, given))(matrices)
    np.testing.assert_allclose(found, expected, rtol=10 * RTOL, atol=RTOL)
    assert np.abs(found).max() > 1e-4


def test_a_matrix_that_no_row_owns_is_shared(key):
    """Vmap over something else leaves the matrix unbatched."""
    matrix = symmetric(key, 4)
    found = jax.vmap(lambda scale: scale * inverse(matrix))(jnp.arange(3.0))
    np.testing.assert_allclose(found[2], 2 * np.linalg.inv(np.asarray(matrix, np.float64)), rtol=RTOL, atol=RTOL)
