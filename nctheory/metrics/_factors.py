"""Triangular factors of tall matrices, found block by block, and what follows from them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from nctheory._lapack import one_by_one
from nctheory.metrics import _moments
from nctheory.metrics._moments import ClassMoments


@one_by_one
def _triangle(matrix: Float[Array, "m n"]) -> Float[Array, "n n"]:
    """Triangular factor R of a tall matrix: R^T R is its Gram matrix, without squaring its condition number."""
    return jnp.linalg.qr(matrix, mode="r")


@one_by_one
def singular_values(matrix: Float[Array, "m n"]) -> Float[Array, " r"]:
    """Singular values, the largest first."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@one_by_one
def left_singular_vectors(matrix: Float[Array, "m n"]) -> tuple[Float[Array, "m r"], Float[Array, " r"]]:
    """Left singular vectors and singular values of a thin decomposition, the largest first."""
    vectors, sigma, _ = jnp.linalg.svd(matrix, full_matrices=False)
    return vectors, sigma


@one_by_one
def right_singular_vectors(matrix: Float[Array, "K d"]) -> tuple[Float[Array, " r"], Float[Array, "r d"]]:
    """Singular values, the largest first, and right singular vectors of a thin decomposition."""
    _, sigma, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return sigma, vt


def residual_factor(
    moments: ClassMoments,
    features: Float[Array, "N d"],
    labels: Integer[Array, " N"],
    extra: Float[Array, "m d"],
) -> Float[Array, "n n"]:
    """Triangular factor of A = [Z / sqrt(N); extra], Z the features minus the mean of their class; n = min(N + m, d).

    For N + m >= d it is that of A, so A^T A = R^T R; else that of A^T, so A A^T = R^T R, rows in the order of A. The
    singular values of A are those of R to within eps |A| times a small number, whereas those from the Gram matrix are
    lost below sqrt(eps) |A|. Tall matrices are reduced block by block: the memory beyond the features is O(d^2), or a
    copy of the features if they are fewer than their dimension.
    """
    num_samples, dim = features.shape
    if num_samples + extra.shape[0] < dim:
        rows = _moments.residuals(moments, features, labels) * float(num_samples) ** -0.5
        return _triangle(jnp.concatenate([rows, extra]).T)
    return _triangle(jnp.concatenate([residual_triangle(moments, features, labels), extra]))


def residual_triangle(
    moments: ClassMoments, features: Float[Array, "N d"], labels: Integer[Array, " N"]
) -> Float[Array, "d d"]:
    """Triangular factor of Z / sqrt(N), Z the features minus the mean of their class, found block by block."""
    num_samples, dim = features.shape
    scale = float(num_samples) ** -0.5

    def step(triangle: Array, first: Any, size: int) -> Array:
        rows, classes = _moments.take_rows(features, first, size), _moments.take_rows(labels, first, size)
        return _triangle(jnp.concatenate([triangle, _moments.residuals(moments, rows, classes) * scale]))

    start = jnp.zeros((dim, dim), moments.offsets.dtype)
    # Blocks of at least four times the dimension, so that the triangle carried along costs a quarter at most.
    return _moments.fold_rows(step, start, num_rows=num_samples, num_columns=dim, min_rows=4 * dim)
