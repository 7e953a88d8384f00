"""Modes of the mean squared error on free features, for every kind of bias (derivation in mse_ufm.py)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nctheory.theory._common import nan_unless
from nctheory.theory._modes import minimize_mode

HIGHEST = jax.lax.Precision.HIGHEST


class Modes(NamedTuple):
    """Fit Z = left diag(z) right^T on the class features; one entry or column a mode, largest gain first."""

    left: jax.Array  # (K R) orthonormal columns
    right: jax.Array  # (K R) component of class k's feature along the mode, per unit of the mode's singular value
    target: jax.Array
    log_beta: jax.Array
    x: jax.Array
    fraction: jax.Array
    log_fit: jax.Array  # log z; a finite placeholder where inactive
    active: jax.Array
    is_tie: jax.Array
    loss: jax.Array
    trivial_loss: jax.Array
    bias: jax.Array


def solve_modes(sizes, weight_decay, feature_decay, bias_decay, *, free: bool, rank: int, keep_ties: bool) -> Modes:
    """Modes of the global minimiser; NaN where a decayed bias meets class sizes that no formula covers."""
    decays = (weight_decay, feature_decay, bias_decay)
    modes = _separate_modes(sizes, *decays, free=free, rank=rank, keep_ties=keep_ties)
    if bias_decay is None:
        return modes
    num_classes, equal = sizes.shape[0], jnp.all(sizes == sizes[0])
    if weight_decay.shape[0] == 1 and rank == num_classes:
        # Eigenvectors of equal eigenvalues have no derivative: where this branch is not used, make them differ.
        unequal = sizes + jnp.where(equal, jnp.arange(num_classes, dtype=sizes.dtype), 0.0)
        coupled, covered = _coupled_modes(unequal, weight_decay[0], feature_decay, bias_decay, modes.trivial_loss)
    else:
        coupled, covered = modes, jnp.asarray(False)
    return nan_unless(equal | covered, jax.tree.map(lambda a, b: jnp.where(equal, a, b), modes, coupled))


def _separate_modes(sizes, weight_decay, feature_decay, bias_decay, *, free: bool, rank: int, keep_ties: bool) -> Modes:
    """Modes that are scalar problems of their own; with a decayed bias this takes equal class sizes."""
    depth, total = weight_decay.shape[0], jnp.sum(sizes)
    rho = None if bias_decay is None else bias_decay / (1 + bias_decay)
    left, right, squares, log_weight = _target(sizes, rho, free=free)
    log_decays = jnp.sum(jnp.log(weight_decay)) + jnp.log(feature_decay)
    log_q = math.log(depth) + jnp.log(total) + (jnp.log(total) + log_decays) / depth
    log_beta = log_q - jnp.log(squares) - (depth + 1) / depth * log_weight
    mode = minimize_mode(log_beta, depth, keep_ties=keep_ties)
    allowed = jnp.arange(squares.shape[0]) < rank
    active = mode.active & allowed
    fraction = jnp.where(active, mode.fraction, 0.0)
    costs = jnp.exp(log_weight) * squares / (2 * total)
    trivial_loss, trivial_bias = _bias_only(sizes / total, bias_decay, free=free)
    saved = jnp.sum(jnp.where(active, costs * (1 - mode.value), 0.0))
    # Without an active mode the two losses are the same number; otherwise add up what is left, without cancellation.
    left_over = jnp.sum(costs * jnp.where(active, mode.value, 1.0))
    return Modes(
        left=left,
        right=right,
        target=jnp.sqrt(squares),
        log_beta=log_beta,
        x=jnp.where(active, mode.x, 0.0),
        fraction=fraction,
        log_fit=jnp.log(squares) / 2 + mode.log_fraction,
        active=active,
        is_tie=mode.is_tie & allowed,
        loss=jnp.where(saved > 0, jnp.minimum(left_over, trivial_loss), trivial_loss),
        trivial_loss=trivial_loss,
        bias=trivial_bias if bias_decay is None else (1 - fraction[-1]) * trivial_bias,
    )


def _bias_only(shares, bias_decay, *, free: bool) -> tuple[jax.Array, jax.Array]:
    """Least loss over the bias alone, with weights and features zero, and that bias."""
    if bias_decay is None and not free:
        return jnp.asarray(0.5, shares.dtype), jnp.zeros_like(shares)
    stiffness = 1.0 if bias_decay is None else 1 + bias_decay
    return 0.5 - jnp.sum(shares**2) / (2 * stiffness), shares / stiffness


def _target(sizes, rho, *, free: bool) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Left and right vectors, squared singular values and log weights of the separate modes."""
    num_classes, dtype = sizes.shape[0], sizes.dtype
    if rho is not None:  # equal class sizes: any basis whose last vector is along 1 will do
        along = np.full((num_classes, 1), num_classes**-0.5)
        left = jnp.asarray(np.hstack([_across_ones(num_classes), along]), dtype)
        squares = jnp.broadcast_to(sizes[0], (num_classes,))
        log_weight = jnp.where(jnp.arange(num_classes) == num_classes - 1, jnp.log(rho), 0.0)
        return left, left / jnp.sqrt(squares)[None, :], squares, log_weight
    if not free:
        order = jnp.argsort(sizes, descending=True)
        left = jax.nn.one_hot(order, num_classes, axis=0, dtype=dtype)
        squares = sizes[order]
        return left, left / jnp.sqrt(squares)[None, :], squares, jnp.zeros_like(squares)
    basis = jnp.asarray(_across_ones(num_classes), dtype)
    projected = jnp.matmul(basis.T, sizes, precision=HIGHEST)
    gram = jnp.matmul(basis.T * sizes[None, :], basis, precision=HIGHEST)
    values, vectors = jnp.linalg.eigh(gram - projected[:, None] * (projected / jnp.sum(sizes))[None, :])
    # Interlacing: each value lies between two class sizes; rounding must not take it below the smallest.
    squares = jnp.maximum(values[::-1], jnp.min(sizes))
    left = jnp.matmul(basis, vectors[:, ::-1], precision=HIGHEST)
    centred = left - jnp.matmul(sizes / jnp.sum(sizes), left, precision=HIGHEST)[None, :]
    return left, centred / jnp.sqrt(squares)[None, :], squares, jnp.zeros_like(squares)


def _coupled_modes(sizes, weight_decay, feature_decay, bias_decay, trivial_loss) -> tuple[Modes, jax.Array]:
    """Depth 1, decayed bias, unequal class sizes: eigenvectors of the fit, and whether the formula holds."""
    total, root = jnp.sum(sizes), jnp.sqrt(sizes)
    mu = jnp.sqrt(weight_decay) * jnp.sqrt(feature_decay)
    p = root / jnp.sqrt(total)
    fit = jnp.diag(root - total * mu) - (total * mu / bias_decay * p)[:, None] * p[None, :]
    values, left = jnp.linalg.eigh(fit)
    values, left = values[::-1], left[:, ::-1]
    covered = values[-1] >= -8 * jnp.finfo(sizes.dtype).eps * root.max()
    values = jnp.maximum(values, 0.0)
    target = jnp.sum(left**2 * root[:, None], axis=0)
    # The part that is not fitted, not as a difference to 1, which would lose all digits at small decays.
    along = jnp.matmul(p, left, precision=HIGHEST)
    rest = total * mu * (1 + along**2 / bias_decay) / target
    fraction = jnp.where(values > 0, jnp.maximum(1 - rest, 0.0), 0.0)
    loss = mu * jnp.sum(root) - total * mu**2 / 2 * (sizes.shape[0] + 1 / bias_decay)
    active = values > 0
    modes = Modes(
        left=left,
        right=left / root[:, None],
        target=target,
        log_beta=2 * jnp.log(rest),
        x=fraction / rest,
        fraction=fraction,
        log_fit=jnp.log(jnp.where(active, values, 1.0)),
        active=active,
        is_tie=jnp.zeros_like(active),
        loss=jnp.minimum(loss, trivial_loss),
        trivial_loss=trivial_loss,
        bias=mu / bias_decay * root,
    )
    return modes, covered


def _across_ones(num_classes: int) -> np.ndarray:
    """Orthonormal basis (K, K-1) of the space orthogonal to the all-ones vector (Helmert)."""
    columns = np.arange(1, num_classes)
    rows = np.arange(num_classes)[:, None]
    basis = np.where(rows < columns, 1.0, 0.0) - np.where(rows == columns, columns, 0.0)
    return basis / np.sqrt(columns * (columns + 1.0))
