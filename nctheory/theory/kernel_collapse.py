r"""Neural collapse of features that are known by their inner products alone: kernels of infinitely wide networks.

Let A (N K) average over classes, A_ic = 1/n_c for y_i = c, and let Q be the kernel centred about the unweighted mean of
class means, Q_ij = (h_i - m).(h_j - m). Then M = A^T Q A is the Gram matrix of the centred class means g_c, and column
i of C = A^T Q - M[:, y_i] holds the products g_c.z_i with the residual z_i = h_i - mu_(y_i). With the thin singular
value decomposition g = U diag(sigma) V^T, Sigma_B^+ = K V diag(sigma^-2) V^T, and V^T z_i = diag(1/sigma) U^T C_i:

    tr(Sigma_W Sigma_B^+)/K = (1/N) sum_i |diag(1/sigma) V^T z_i|^2 = (1/N) sum_i |M^+ C_i|^2,

M = U diag(sigma^2) U^T. No feature appears, and only a K x K matrix is inverted. Scatters are traces:
sum over class c of |z_i|^2 = sum over class c of Q_ii - n_c M_cc. Derived here.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._lapack import one_by_one
from nctheory._types import AnyArray
from nctheory.theory._common import as_float, float_dtype
from nctheory.theory.geometry import GramStructure, fine_structure_from_gram

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelCollapse:
    """Degrees of neural collapse of the features behind a kernel. Dimensionless but distances; NaN: undefined.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+) / K.
        within_between_ratio: tr Sigma_W / tr Sigma_B.
        cdnv: mean over pairs of classes of (var_c + var_c') / (2 |mu_c - mu_c'|^2).
        class_distances: squared distances of class means, units of the kernel.
        structure: distances and ratios of the fine classes; of the classes themselves where none are given.
    """

    nc1: Float[jax.Array, "..."]
    within_between_ratio: Float[jax.Array, "..."]
    cdnv: Float[jax.Array, "..."]
    class_distances: Float[jax.Array, "... K K"]
    structure: GramStructure


def kernel_collapse(
    kernel: Float[AnyArray, "N N"],
    labels: Int[AnyArray, " N"],
    *,
    num_classes: int,
    fine_labels: Int[AnyArray, " N"] | None = None,
    num_fine: int | None = None,
    feature_dim: int | None = None,
) -> KernelCollapse:
    """Measure the collapse of features from their Gram matrix alone.

    tr(Sigma_W Sigma_B^+)/K = (1/N) sum_i |M^+ C_i|^2 and traces (module docstring), with the divisors, the explicit
    rank and the NaN of `metrics.collapse_metrics`, whose numbers it gives for any features whose Gram matrix is
    `kernel`. Invariant to a factor on the kernel and to a constant added to it, so the NNGP w^2 F + s^2 has the
    collapse of its feature kernel F.

    Undefined, hence NaN: nc1 if the class means span fewer dimensions than min(K-1, feature_dim), an eigenvalue of
    M <= eps N times the largest or below the rounding of the kernel itself, 8 eps max |kernel|; the ratio and cdnv
    if the spread of the class means, or the distance of two of them, is below that rounding; all of it for an empty
    class or a label out of range under tracing (`structure` alone for a fine label). A Gram matrix has the squares
    of the singular values: in float32, class means whose singular values span more than about 1e2 lose nc1, so use
    float64. Differences of inner products lose the digits by which spreads are below squared norms; negative ones
    count as 0.

    Args:
        kernel: symmetric, positive semidefinite (not checked); units of features squared.
        labels: class of each sample, 0..num_classes-1, every class present.
        num_classes: K, at least 2.
        fine_labels: fine class of each sample, each within one label; None leaves the labels themselves.
        num_fine: number of fine classes, required with `fine_labels`.
        feature_dim: dimension of the features if it may be below K - 1; None means it is not.

    Returns:
        The record, in the dtype of the kernel; smaller is more collapsed.

    Raises:
        ValueError: if shapes do not fit, values are not finite, a label is out of range or empty, or a fine class has
            two labels.

    References:
        Definitions: Papyan, Han and Donoho 2020 (NC1), Galanti, Gyorgy and Hutter 2022 (CDNV). Kernel form: derived
        here.
    """
    return _measured(kernel, labels, num_classes, fine_labels, num_fine, feature_dim)[0]


def _measured(kernel, labels, num_classes, fine_labels=None, num_fine=None, feature_dim=None):
    """Check the arguments; return the record and the rounding of its nc1."""
    num_classes = _checks.integer("num_classes", num_classes, minimum=2)
    _checks.shape("kernel", kernel, ("N", "N"))
    size = jnp.shape(kernel)[0]
    _checks.shape("kernel", kernel, (size, size))
    _checks.finite("kernel", kernel)
    _checks.labels("labels", labels, num_classes=num_classes, length=size)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    rank = num_classes - 1
    if feature_dim is not None:
        rank = min(rank, _checks.integer("feature_dim", feature_dim, minimum=1))
    labels = jnp.asarray(labels)
    if fine_labels is None:
        fine_labels, num_fine = labels, num_classes
    values = as_float(kernel, float_dtype(kernel))
    # A label out of range, visible only under tracing, has no class to count in.
    values = jnp.where(_in_range(labels, num_classes), values, jnp.nan)
    known = values if num_fine is None else jnp.where(_in_range(jnp.asarray(fine_labels), num_fine), values, jnp.nan)
    structure = fine_structure_from_gram(known, labels, fine_labels, num_classes=num_classes, num_fine=num_fine)
    return _kernel_collapse(values, labels, structure, num_classes, rank)


def relative_nc1(
    kernel: Float[AnyArray, "N N"],
    inputs: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    *,
    num_classes: int,
    feature_dim: int | None = None,
) -> Float[jax.Array, ""]:
    """NC1 of a kernel over NC1 of the raw data, whose kernel is linear.

    Below 1 the network has brought samples of a class together, in units of the class means; above 1 it has spread
    them. 1 for the linear kernel itself (where d < K-1, with `feature_dim` = d). A number near 0 that a network
    inherits from nearly collapsed data is near 1 here.

    Args:
        kernel: Gram matrix of the features of the same samples.
        inputs: the raw data, one sample a row.
        labels: class of each sample, 0..num_classes-1, every class present.
        num_classes: K, at least 2.
        feature_dim: dimension of the features behind `kernel` if it may be below K - 1; None means it is not. That of
            the data is known.

    Returns:
        The ratio, dimensionless; NaN where one of the two is undefined, and for data that are collapsed themselves,
        whose NC1 is not above the rounding of their Gram matrix, K (8 eps max |H H^T| / lambda)^2 with lambda the
        smallest eigenvalue of M that counts.

    Raises:
        ValueError: as `kernel_collapse`.

    References:
        The baseline is that of the public code shallow_nc1; definition derived here.
    """
    _checks.shape("kernel", kernel, ("N", "N"))
    _checks.shape("inputs", inputs, (jnp.shape(kernel)[0], "d"))
    _checks.finite("inputs", inputs)
    rows = as_float(inputs, float_dtype(inputs))
    # The offset of the data drops out of NC1 but costs digits.
    rows = rows - jnp.mean(rows, axis=0)[None, :]
    linear = jnp.matmul(rows, rows.T, precision=_HIGHEST)
    ours = kernel_collapse(kernel, labels, num_classes=num_classes, feature_dim=feature_dim).nc1
    record, uncertainty = _measured(linear, labels, num_classes, feature_dim=jnp.shape(inputs)[1])
    theirs = jnp.where(record.nc1 > uncertainty, record.nc1, jnp.nan)
    dtype = jnp.promote_types(ours.dtype, theirs.dtype)
    return ours.astype(dtype) / theirs.astype(dtype)


def _in_range(labels, count):
    return jnp.all((labels >= 0) & (labels < count))


@one_by_one
def eigh(matrix: Float[jax.Array, "n n"]) -> tuple[Float[jax.Array, " n"], Float[jax.Array, "n n"]]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=True)
    return values, vectors


@partial(jax.jit, static_argnames=("num_classes", "rank"))
def _kernel_collapse(kernel, labels, structure, num_classes, rank) -> tuple[KernelCollapse, jax.Array]:
    members = jax.nn.one_hot(labels, num_classes, dtype=kernel.dtype)
    counts = jnp.sum(members, axis=0)
    averaging = members / counts[None, :]
    weights = jnp.mean(averaging, axis=1)
    against = jnp.matmul(kernel, weights, precision=_HIGHEST)
    centred = kernel - against[:, None] - against[None, :] + jnp.sum(weights * against)
    products = jnp.matmul(averaging.T, centred, precision=_HIGHEST)
    gram = jnp.matmul(products, averaging, precision=_HIGHEST)
    squares = jnp.diagonal(gram)
    scatter = jnp.maximum(jnp.diagonal(centred) @ members - counts * squares, 0.0)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    spread = scatter / counts
    # What the subtractions of centring cannot tell from 0.
    rounding = 8 * jnp.finfo(kernel.dtype).eps * jnp.max(jnp.abs(kernel))
    between = jnp.mean(squares)
    apart = jnp.where(distances > rounding, distances, jnp.nan)
    apart = jnp.where(jnp.eye(num_classes, dtype=bool), jnp.inf, apart)
    residuals = products - jnp.matmul(gram, members.T, precision=_HIGHEST)
    nc1, uncertainty = _whitened(gram, residuals, rank, rounding)
    record = KernelCollapse(
        nc1=nc1,
        within_between_ratio=jnp.where(between > rounding, jnp.sum(scatter) / kernel.shape[0] / between, jnp.nan),
        cdnv=jnp.sum((spread[:, None] + spread[None, :]) / (2 * apart)) / (num_classes * (num_classes - 1)),
        class_distances=distances,
        structure=structure,
    )
    return record, uncertainty


def _whitened(gram, residuals, rank, rounding):
    """Mean over samples of |M^+ C_i|^2, the inverse on the `rank` leading eigenvectors; NaN if one is missing.

    And what that is where every entry of C is `rounding`, at most.
    """
    values, vectors = eigh(gram)
    values, vectors = values[-rank:], vectors[:, -rank:]
    floor = jnp.finfo(gram.dtype).eps * residuals.shape[1] * values[-1]
    whitened = jnp.matmul(vectors.T, residuals, precision=_HIGHEST) / values[:, None]
    mean = jnp.sum(whitened**2) / residuals.shape[1]
    uncertainty = gram.shape[0] * (rounding / values[0]) ** 2
    return jnp.where(values[0] > jnp.maximum(floor, rounding), mean, jnp.nan), uncertainty
