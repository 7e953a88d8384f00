"""Directions of vectors, such as centred class means and rows of a classifier; what is rounding has none, hence NaN."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nctheory.metrics import _moments


def lengths(vectors: Float[Array, "K d"]) -> Float[Array, " K"]:
    """Euclidean length of every row."""
    return jnp.sqrt(jnp.sum(vectors**2, axis=1))


def least_length(vectors: Float[Array, "K d"]) -> Float[Array, ""]:
    """Length below which a vector is rounding of the longest."""
    return float(jnp.finfo(vectors.dtype).eps) * vectors.shape[0] * jnp.max(lengths(vectors))


def unit_vectors(vectors: Float[Array, "n d"], least: Float[Array, ""]) -> Float[Array, "n d"]:
    """Unit vectors; NaN for vectors not longer than `least`, whose direction is that of rounding."""
    norms = lengths(vectors)
    known: Bool[Array, " n"] = norms > least
    return vectors / jnp.where(known, norms, jnp.nan)[:, None]


def log_energy(means: Float[Array, "K d"]) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Logarithmic energy of the directions of centred class means, that of a simplex ETF, and the excess over it."""
    num_classes = means.shape[0]
    # In units of the ETF's squared distance, so that the excess is no difference of two numbers near each other.
    ideal = 2 * num_classes / (num_classes - 1)
    distances = _moments.squared_distances(unit_vectors(means, least_length(means))) / ideal
    diagonal = jnp.eye(num_classes, dtype=bool)
    logarithms = jnp.log(jnp.where(diagonal, 1, distances))
    # Rounding puts that of an ETF on either side of 0.
    excess = jnp.maximum(-jnp.sum(logarithms) / (2 * num_classes * (num_classes - 1)), 0)
    etf = jnp.asarray(-np.log(ideal) / 2, dtype=means.dtype)
    return etf + excess, etf, excess


def row_cosines(weight: Float[Array, "K d"], means: Float[Array, "K d"]) -> Float[Array, " K"]:
    """Cosine between each row of a classifier and the centred mean of its class."""
    weight = weight.astype(means.dtype)
    units = unit_vectors(means, least_length(means)) * unit_vectors(weight, jnp.zeros((), means.dtype))
    return jnp.clip(jnp.sum(units, axis=1), -1, 1)
