"""Reference geometries of neural collapse: simplex ETF, orthogonal frame, general orthogonal frame.

Vectors are rows. A frame is known up to a rotation of its space, so the distances here compare Gram matrices; each
Gram matrix is divided by its own Frobenius norm, so a common scale drops out as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

_HIGHEST = jax.lax.Precision.HIGHEST


def simplex_etf(num_classes: int, dim: int | None = None) -> Float[Array, "K d"]:
    """Simplex equiangular tight frame: `num_classes` unit vectors with pairwise cosine -1/(K-1).

    Gram matrix K/(K-1) (I - 11^T/K); the rows sum to zero. For `dim` >= K the frame is the symmetric matrix
    sqrt(K/(K-1)) (I - 11^T/K), padded with zero columns; for `dim` = K-1 it is the same frame in an orthonormal basis
    of the hyperplane it spans. K = 2 gives an antipodal pair.

    Args:
        num_classes: K, at least 2.
        dim: dimension of the space, at least K-1; K if not given.

    Returns:
        The frame, one unit vector a row, in JAX's default float dtype.

    Raises:
        ValueError: if `num_classes` < 2 or `dim` < K-1 (no such frame exists).

    References:
        Papyan, Han and Donoho (2020), definition of the general simplex ETF.
    """
    k = _checks.integer("num_classes", num_classes, minimum=2)
    dim = k if dim is None else _checks.integer("dim", dim, minimum=k - 1)
    frame = np.sqrt(k / (k - 1)) * (np.eye(k) - 1 / k)
    if dim == k - 1:
        frame = frame @ _hyperplane_basis(k)
    return jnp.asarray(np.pad(frame, ((0, 0), (0, max(0, dim - k)))), dtype=jnp.result_type(float))


def _hyperplane_basis(k: int) -> np.ndarray:
    """Helmert basis (K, K-1): orthonormal columns, each orthogonal to the all-ones vector."""
    columns = np.arange(1, k)
    basis = np.where(np.arange(k)[:, None] < columns, 1.0, 0.0) - np.diag(np.arange(k, dtype=float))[:, 1:]
    return basis / np.sqrt(columns * (columns + 1.0))


def orthogonal_frame(num_classes: int, dim: int | None = None) -> Float[Array, "K d"]:
    """Orthogonal frame: `num_classes` orthogonal unit vectors, the first rows of an identity matrix.

    Args:
        num_classes: K, at least 1.
        dim: dimension of the space, at least K; K if not given.

    Returns:
        The frame, one unit vector a row, in JAX's default float dtype. Gram matrix I.

    Raises:
        ValueError: if `num_classes` < 1 or `dim` < K.
    """
    k = _checks.integer("num_classes", num_classes, minimum=1)
    dim = k if dim is None else _checks.integer("dim", dim, minimum=k)
    return jnp.eye(k, dim)


def general_orthogonal_frame(norms: Float[AnyArray, " K"], dim: int | None = None) -> Float[Array, "K d"]:
    """General orthogonal frame: orthogonal vectors of the given lengths; a zero norm gives a zero row.

    Args:
        norms: lengths of the K vectors, non-negative, in the unit of the vectors.
        dim: dimension of the space, at least K; K if not given.

    Returns:
        The frame, vector k along axis k, in the dtype of `norms`. Gram matrix diag(norms^2).

    Raises:
        ValueError: if a norm is negative or not finite, or `dim` < K.

    References:
        Dang et al. (2023) name the geometry; they state it up to a common scale, here the scale is `norms` itself.
    """
    _checks.shape("norms", norms, ("K",))
    _checks.real("norms", norms, minimum=0.0)
    norms = jnp.asarray(norms)
    k = norms.shape[0]
    dim = k if dim is None else _checks.integer("dim", dim, minimum=k)
    return jnp.pad(jnp.diag(norms), ((0, 0), (0, dim - k)))


def etf_distance(vectors: Float[AnyArray, "K d"]) -> Float[Array, ""]:
    """Distance of vectors from a simplex ETF, free of rotation and scale.

    |G/|G| - (I - 11^T/K)/sqrt(K-1)|, Frobenius norms, G = V V^T. The vectors are taken as they are, NOT centred:
    subtract the mean of class means before, where the frame is meant to be about it. 0 for an ETF; at most sqrt(2).

    Args:
        vectors: K >= 2 vectors, one a row, any unit.

    Returns:
        Distance, dimensionless, in [0, sqrt(2)]; smaller is closer. NaN if every vector is zero.

    Raises:
        ValueError: if there are fewer than 2 vectors, or they are not a finite matrix.
    """
    _check_vectors(vectors, minimum=2)
    k = np.shape(vectors)[0]
    return _gram_distance(jnp.asarray(vectors), (np.eye(k) - 1 / k) / np.sqrt(k - 1))


def orthogonal_frame_distance(vectors: Float[AnyArray, "K d"]) -> Float[Array, ""]:
    """Distance of vectors from an orthogonal frame of equal lengths, free of rotation and scale.

    |G/|G| - I/sqrt(K)|, Frobenius norms, G = V V^T; the vectors are taken as they are, NOT centred (centred vectors
    are linearly dependent and can never be orthogonal).

    Args:
        vectors: vectors, one a row, any unit.

    Returns:
        Distance, dimensionless, in [0, sqrt(2)]; smaller is closer. NaN if every vector is zero.

    Raises:
        ValueError: if the vectors are not a finite matrix with at least one row.
    """
    _check_vectors(vectors, minimum=1)
    k = np.shape(vectors)[0]
    return _gram_distance(jnp.asarray(vectors), np.eye(k) / np.sqrt(k))


def general_orthogonal_frame_distance(
    vectors: Float[AnyArray, "K d"], norms: Float[AnyArray, " K"]
) -> Float[Array, ""]:
    """Distance of vectors from a general orthogonal frame with lengths proportional to `norms`.

    |G/|G| - D/|D||, Frobenius norms, G = V V^T, D = diag(norms^2); the vectors are taken as they are, NOT centred.

    Args:
        vectors: K vectors, one a row, any unit.
        norms: K non-negative lengths of the target, any unit; only their ratios matter.

    Returns:
        Distance, dimensionless, in [0, sqrt(2)]; smaller is closer. NaN if every vector or every norm is zero.

    Raises:
        ValueError: if the vectors are not a finite matrix, or a norm is negative or not finite, or the lengths differ.
    """
    _check_vectors(vectors, minimum=1)
    _checks.shape("norms", norms, (np.shape(vectors)[0],))
    _checks.real("norms", norms, minimum=0.0)
    vectors = jnp.asarray(vectors)
    norms = jnp.asarray(norms).astype(vectors.dtype)
    # Divided by the largest entry first, so that squares neither overflow nor underflow.
    squares = (norms / jnp.max(norms)) ** 2
    return _gram_distance(vectors, jnp.diag(squares / jnp.sqrt(jnp.sum(squares**2))))


def _check_vectors(vectors: Float[AnyArray, "K d"], *, minimum: int) -> None:
    _checks.shape("vectors", vectors, ("K", "d"))
    if np.shape(vectors)[0] < minimum or np.shape(vectors)[1] == 0:
        raise ArgumentError(
            f"Argument `vectors` must have at least {minimum} rows and 1 column, but has shape {np.shape(vectors)}."
        )
    _checks.finite("vectors", vectors)


def _gram_distance(vectors: Float[Array, "K d"], unit_target: Float[AnyArray, "K K"]) -> Float[Array, ""]:
    """|G/|G| - target| for a target of unit Frobenius norm."""
    scaled = vectors / jnp.max(jnp.abs(vectors))
    gram = jnp.matmul(scaled, scaled.T, precision=_HIGHEST)
    difference = gram / jnp.sqrt(jnp.sum(gram**2)) - jnp.asarray(unit_target, dtype=gram.dtype)
    return jnp.sqrt(jnp.sum(difference**2))
