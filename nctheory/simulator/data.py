"""Where a training run gets its samples from: a fresh draw per seed, or one fixed set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nctheory import _checks
from nctheory.simulator.mixtures import GaussianMixture, Samples, cluster_sizes


@runtime_checkable
class DataSource(Protocol):
    """What `train` needs of its data; implementations are registered pytrees, so that sweeps can batch them."""

    @property
    def num_labels(self) -> int:
        """Number of coarse labels."""
        ...

    @property
    def num_fine(self) -> int:
        """Number of clusters or original classes."""
        ...

    def draw(self, key: Key[Array, ""]) -> tuple[Samples, Samples | None]:
        """Return the training samples and the fresh samples, if any, of one seed.

        Args:
            key: PRNG key of the seed; data that are fixed ignore it.

        Returns:
            Training samples, and fresh samples or None.
        """
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureData:
    """Every seed draws its own training samples and its own fresh samples from one mixture.

    Attributes:
        mixture: the distribution.
        samples_per_cluster: training samples, one count for all clusters or one for each.
        fresh_per_cluster: samples that training never sees, for measuring generalisation of the geometry; None for
            none, which halves what a sweep has to compile.

    Raises:
        ValueError: if a count is not a positive integer.
    """

    mixture: GaussianMixture
    samples_per_cluster: int | Sequence[int] = field(metadata={"static": True})
    fresh_per_cluster: int | Sequence[int] | None = field(default=None, metadata={"static": True})

    def __post_init__(self):
        if isinstance(self.mixture, GaussianMixture):
            object.__setattr__(self, "samples_per_cluster", self._checked(self.samples_per_cluster))
            if self.fresh_per_cluster is not None:
                object.__setattr__(self, "fresh_per_cluster", self._checked(self.fresh_per_cluster))

    def _checked(self, sizes: int | Sequence[int]) -> int | tuple[int, ...]:
        checked = cluster_sizes(sizes, self.mixture.num_clusters)
        return checked if isinstance(sizes, Sequence | np.ndarray) else checked[0]

    @property
    def num_labels(self) -> int:
        """Number of coarse labels."""
        return self.mixture.num_labels

    @property
    def num_fine(self) -> int:
        """Number of clusters."""
        return self.mixture.num_clusters

    def draw(self, key: Key[Array, ""]) -> tuple[Samples, Samples | None]:
        """Draw the training and the fresh samples of one seed.

        Args:
            key: PRNG key of the seed; the two sets come from independent streams of it.

        Returns:
            Training samples, and fresh samples or None if `fresh_per_cluster` is None.
        """
        train = self.mixture.sample(jax.random.fold_in(key, 0), self.samples_per_cluster)
        if self.fresh_per_cluster is None:
            return train, None
        return train, self.mixture.sample(jax.random.fold_in(key, 1), self.fresh_per_cluster)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedData:
    """One fixed pair of sample sets for all seeds, such as a real data set.

    Attributes:
        train: training samples.
        fresh: held-out samples.
        num_labels: number of coarse labels.
        num_fine: number of original classes.

    Raises:
        ValueError: on non-finite inputs, unequal input dimensions, labels outside their range, or training samples in
            which a label or an original class is missing or an original class has two labels.
    """

    train: Samples
    fresh: Samples
    num_labels: int = field(metadata={"static": True})
    num_fine: int = field(metadata={"static": True})

    def __post_init__(self):
        for name in ("train", "fresh"):
            samples = getattr(self, name)
            if not isinstance(samples, Samples) or not _checks.is_concrete(samples.inputs):
                return
            _checks.shape(f"{name}.inputs", samples.inputs, ("N", "d"))
            _checks.shape(f"{name}.inputs", samples.inputs, ("N", np.shape(self.train.inputs)[1]))
            num_samples = np.shape(samples.inputs)[0]
            _checks.finite(f"{name}.inputs", samples.inputs)
            _checks.labels(f"{name}.labels", samples.labels, num_classes=self.num_labels, length=num_samples)
            _checks.labels(f"{name}.fine_labels", samples.fine_labels, num_classes=self.num_fine, length=num_samples)
        _checks.no_empty_class("train.labels", self.train.labels, num_classes=self.num_labels)
        _checks.no_empty_class("train.fine_labels", self.train.fine_labels, num_classes=self.num_fine)
        _checks.nested("train.fine_labels", self.train.fine_labels, self.train.labels)

    def draw(self, key: Key[Array, ""]) -> tuple[Samples, Samples]:
        """Return the two sets unchanged, inputs in the default float dtype; `key` is not used."""
        del key
        return _as_default_dtype(self.train), _as_default_dtype(self.fresh)


def _as_default_dtype(samples: Samples) -> Samples:
    return Samples(
        inputs=jnp.asarray(samples.inputs, dtype=float),
        labels=jnp.asarray(samples.labels, dtype=jnp.int32),
        fine_labels=jnp.asarray(samples.fine_labels, dtype=jnp.int32),
    )
