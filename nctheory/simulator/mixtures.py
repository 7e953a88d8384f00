"""Gaussian mixtures whose clusters are merged into coarse training labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """Labelled inputs.

    Attributes:
        inputs: one sample a row, dimensionless.
        labels: the coarse label that training sees.
        fine_labels: the cluster (or original class) that training never sees.
    """

    inputs: Float[AnyArray, "N d"]
    labels: Int[AnyArray, " N"]
    fine_labels: Int[AnyArray, " N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """Clusters `x = means[k] + noise_std[k] * N(0, I)` under a coarse labelling.

    Attributes:
        means: one cluster mean a row.
        noise_std: standard deviation of every input coordinate, one for all clusters or one for each; 0 is allowed.
        coarse_labels: label of every cluster; the labels in use must be 0..L-1.

    Raises:
        ValueError: if `means` is not a finite matrix, `noise_std` is negative or of another length, or `coarse_labels`
            has another length or leaves a gap.
    """

    means: Float[AnyArray, "K d"]
    noise_std: float | Float[AnyArray, " K"] | Float[AnyArray, ""]
    coarse_labels: tuple[int, ...] = field(metadata={"static": True})

    def __post_init__(self):
        labels = tuple(_checks.integer("coarse_labels", label, minimum=0) for label in self.coarse_labels)
        if not labels:
            raise ArgumentError("Argument `coarse_labels` must label at least one cluster, but is ().")
        object.__setattr__(self, "coarse_labels", labels)
        if isinstance(self.means, list | tuple):
            object.__setattr__(self, "means", np.asarray(self.means, dtype=np.float64))
        if not _checks.is_concrete(self.means):
            return
        num_clusters = len(self.coarse_labels)
        _checks.shape("means", self.means, (num_clusters, "d"))
        _checks.finite("means", self.means)
        if _checks.is_concrete(self.noise_std):
            if np.ndim(self.noise_std):
                _checks.shape("noise_std", self.noise_std, (num_clusters,))
            _checks.real("noise_std", self.noise_std, minimum=0)
        labels = np.asarray(labels, dtype=np.int64)
        _checks.labels("coarse_labels", labels, num_classes=num_clusters)
        _checks.no_empty_class("coarse_labels", labels, num_classes=max(self.coarse_labels) + 1)

    @property
    def num_clusters(self) -> int:
        """Number of clusters K."""
        return len(self.coarse_labels)

    @property
    def num_labels(self) -> int:
        """Number of coarse labels."""
        return max(self.coarse_labels) + 1

    @property
    def input_dim(self) -> int:
        """Input dimension d."""
        return self.means.shape[1]

    def sample(self, key: Key[Array, ""], samples_per_cluster: int | Sequence[int]) -> Samples:
        """Draw samples, cluster by cluster in order.

        Args:
            key: PRNG key.
            samples_per_cluster: one count for all clusters or one for each, each >= 1.

        Returns:
            `Samples` with `sum(samples_per_cluster)` rows in the default float dtype.

        Raises:
            ValueError: if a count is not a positive integer or their number is not the number of clusters.
        """
        fine = np.repeat(np.arange(self.num_clusters), cluster_sizes(samples_per_cluster, self.num_clusters))
        means = jnp.asarray(self.means, dtype=float)
        noise_std = jnp.broadcast_to(jnp.asarray(self.noise_std, dtype=float), (self.num_clusters,))
        noise = jax.random.normal(key, (fine.size, self.input_dim), dtype=means.dtype)
        return Samples(
            inputs=means[fine] + noise_std[fine][:, None] * noise,
            labels=jnp.asarray(np.asarray(self.coarse_labels)[fine], dtype=jnp.int32),
            fine_labels=jnp.asarray(fine, dtype=jnp.int32),
        )


def cluster_sizes(samples_per_cluster: int | Sequence[int], num_clusters: int) -> tuple[int, ...]:
    """Expand and check `samples_per_cluster`: one positive integer, or one for each cluster."""
    if isinstance(samples_per_cluster, Sequence | np.ndarray):
        _checks.shape("samples_per_cluster", np.asarray(samples_per_cluster), (num_clusters,))
        return tuple(_checks.integer("samples_per_cluster", size, minimum=1) for size in samples_per_cluster)
    return (_checks.integer("samples_per_cluster", samples_per_cluster, minimum=1),) * num_clusters


def means_from_gram(gram: Float[AnyArray, "K K"], dim: int) -> Float[np.ndarray, "K d"]:
    """Cluster means with a given Gram matrix: `means @ means.T = gram`.

    The symmetric square root of `gram`, padded with zero coordinates; when `dim` < K, its `dim` leading principal
    coordinates, which needs rank(gram) <= dim.

    Args:
        gram: symmetric positive semidefinite matrix of scalar products, in units of the input squared.
        dim: input dimension.

    Returns:
        The means in float64.

    Raises:
        ValueError: if `gram` is not finite, square, symmetric, positive semidefinite (to 1e-10 of its largest
            eigenvalue) or has rank above `dim`.
    """
    dim = _checks.integer("dim", dim, minimum=1)
    gram = np.asarray(gram, dtype=np.float64)
    _checks.shape("gram", gram, (gram.shape[0] if gram.ndim else 0,) * 2)
    if not gram.size:
        raise ArgumentError(f"Argument `gram` must hold at least one mean, but has shape {gram.shape}.")
    _checks.finite("gram", gram)
    if not np.allclose(gram, gram.T, rtol=0, atol=1e-10 * np.abs(gram).max()):
        raise ArgumentError(f"Argument `gram` must be symmetric, but differs by {np.abs(gram - gram.T).max():g}.")
    values, vectors = np.linalg.eigh(gram)
    floor = 1e-10 * max(values[-1], 0.0)
    if values[0] < -floor or values[-1] < 0:
        raise ArgumentError(f"Argument `gram` must be positive semidefinite, but has eigenvalue {values[0]:g}.")
    roots = np.sqrt(np.clip(values, 0.0, None))
    size = gram.shape[0]
    if dim >= size:
        return np.pad((vectors * roots) @ vectors.T, ((0, 0), (0, dim - size)))
    rank = int((values > floor).sum())
    if rank > dim:
        raise ArgumentError(f"Argument `dim` must be at least the rank of `gram`, {rank}, but is {dim}.")
    return (vectors * roots)[:, size - dim :]


def balanced_labels(num_labels: int, clusters_per_label: int) -> tuple[int, ...]:
    """Coarse labels of consecutive clusters: 0, ..., 0, 1, ..., 1, ...

    Args:
        num_labels: coarse labels, >= 2.
        clusters_per_label: clusters in each, >= 1.

    Returns:
        One label a cluster.

    Raises:
        ValueError: if a count is no integer or too small.
    """
    num_labels = _checks.integer("num_labels", num_labels, minimum=2)
    clusters_per_label = _checks.integer("clusters_per_label", clusters_per_label, minimum=1)
    return tuple(int(label) for label in np.repeat(np.arange(num_labels), clusters_per_label))


def mixture_from_gram(
    gram: Float[AnyArray, "K K"],
    coarse_labels: Sequence[int],
    *,
    dim: int,
    noise_std: float | Sequence[float] = 0.0,
) -> GaussianMixture:
    """Mixture whose means have the given Gram matrix.

    Args:
        gram: inner products of the means, squared input units; symmetric, positive semidefinite.
        coarse_labels: label of each cluster, 0..max, none left out.
        dim: input dimension, at least the rank of `gram`.
        noise_std: standard deviation of every input coordinate, one for all clusters or one each, >= 0, input units.

    Returns:
        The mixture; the means are unique up to a rotation.

    Raises:
        ValueError: as `means_from_gram` and `GaussianMixture`.
    """
    return GaussianMixture(means_from_gram(gram, dim), np.asarray(noise_std, dtype=np.float64), tuple(coarse_labels))


def cosine_mixture(
    *,
    num_labels: int = 2,
    clusters_per_label: int = 2,
    same_label_cosine: float = 0.0,
    cross_label_cosine: float = 0.0,
    norm: float = 1.0,
    dim: int,
    noise_std: float = 0.0,
) -> GaussianMixture:
    """Means of one norm, one cosine within a label and one across labels; both 0 gives orthogonal means.

    Args:
        num_labels: coarse labels, >= 2.
        clusters_per_label: clusters merged into each label, >= 1.
        same_label_cosine: cosine between two means of one label, dimensionless, in [-1, 1].
        cross_label_cosine: cosine between any two means of different labels, dimensionless, in [-1, 1].
        norm: length of every mean.
        dim: input dimension, at least the rank of the Gram matrix.
        noise_std: standard deviation of every input coordinate.

    Returns:
        The mixture of `num_labels * clusters_per_label` clusters, in the order of `balanced_labels`.

    Raises:
        ValueError: if a bound above is violated or no such means exist (Gram matrix not positive semidefinite).
    """
    _checks.real("norm", norm, minimum=0, exclusive_minimum=True)
    _check_cosine("same_label_cosine", same_label_cosine)
    _check_cosine("cross_label_cosine", cross_label_cosine)
    labels = np.asarray(balanced_labels(num_labels, clusters_per_label))
    same = labels[:, None] == labels[None, :]
    gram = norm**2 * np.where(same, same_label_cosine, cross_label_cosine)
    np.fill_diagonal(gram, norm**2)
    return mixture_from_gram(gram, labels.tolist(), dim=dim, noise_std=noise_std)


def cross_pair_mixture(*, cosine: float, norm: float = 1.0, dim: int, noise_std: float = 0.0) -> GaussianMixture:
    """Two labels of two clusters, orthogonal but for one pair of means of DIFFERENT labels at the given cosine.

    The smallest geometry that treats the two clusters of one label differently.

    Args:
        cosine: cosine between cluster 1 (label 0) and cluster 2 (label 1), dimensionless, in [-1, 1].
        norm: length of every mean.
        dim: input dimension, >= 4 unless |cosine| = 1.
        noise_std: standard deviation of every input coordinate.

    Returns:
        The mixture of four clusters with labels 0, 0, 1, 1.

    Raises:
        ValueError: if a bound above is violated.
    """
    _checks.real("norm", norm, minimum=0, exclusive_minimum=True)
    _check_cosine("cosine", cosine)
    gram = np.eye(4)
    gram[1, 2] = gram[2, 1] = cosine
    return mixture_from_gram(norm**2 * gram, (0, 0, 1, 1), dim=dim, noise_std=noise_std)


def _check_cosine(name: str, value: float) -> None:
    _checks.real(name, value, minimum=-1, maximum=1)
