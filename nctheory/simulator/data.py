"""Where a training run gets its samples from: a fresh draw per seed, or one fixed set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from nctheory import _checks
from nctheory._errors import ArgumentError
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SplitData:
    """One labelled set that every seed splits in its own way: a stratified train part and the held-out rest.

    Every class keeps its share of the set in the train part, up to rounding. With `label_noise`, that share of the
    TRAIN labels (each with this probability) is redrawn uniformly over all labels; held-out labels and the original
    classes stay as they are. Much noise on few samples can leave a label without train samples; metrics are then NaN.

    Attributes:
        samples: the whole set; after construction its rows are ordered by original class.
        num_train: size of the train part.
        num_labels: number of labels.
        num_fine: number of original classes.
        label_noise: probability that a train label is redrawn, in [0, 1] (dimensionless).
        class_sizes: samples of each original class; found from `samples`, not to be given.

    Raises:
        ValueError: on non-finite inputs, labels outside their range, an original class that is missing or has two
            labels, or a train part that leaves a class without a train or a held-out sample.
    """

    samples: Samples
    num_train: int = field(metadata={"static": True})
    num_labels: int = field(metadata={"static": True})
    num_fine: int = field(metadata={"static": True})
    label_noise: float | Float[Array, ""] = 0.0
    class_sizes: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    def __post_init__(self):
        _checks.real("label_noise", self.label_noise, minimum=0, maximum=1)
        # Also when `class_sizes` is known: another set or another number may have come with `dataclasses.replace`.
        if not isinstance(self.samples, Samples) or not _checks.is_concrete(self.samples.inputs):
            return
        inputs, labels, fine = (np.asarray(each) for each in (self.samples.inputs, self.samples.labels, self._fine))
        _checks.shape("samples.inputs", inputs, ("N", "d"))
        _checks.finite("samples.inputs", inputs)
        _checks.labels("samples.labels", labels, num_classes=self.num_labels, length=len(inputs))
        _checks.labels("samples.fine_labels", fine, num_classes=self.num_fine, length=len(inputs))
        _checks.no_empty_class("samples.labels", labels, num_classes=self.num_labels)
        _checks.no_empty_class("samples.fine_labels", fine, num_classes=self.num_fine)
        _checks.nested("samples.fine_labels", fine, labels)
        order = np.argsort(fine, kind="stable")
        object.__setattr__(self, "samples", Samples(inputs[order], labels[order], fine[order]))
        object.__setattr__(self, "class_sizes", tuple(int(n) for n in np.bincount(fine, minlength=self.num_fine)))
        _checks.integer("num_train", self.num_train, minimum=1)
        for count, size in zip(self._train_sizes, self._sizes, strict=True):
            if not 0 < count < size:
                raise ArgumentError(
                    f"Argument `num_train` must leave every class a train and a held-out sample of {len(inputs)}, but "
                    f"is {self.num_train}: a class of {size} has {count} train samples."
                )

    @property
    def _fine(self) -> Any:
        return self.samples.fine_labels

    @property
    def _sizes(self) -> tuple[int, ...]:
        assert self.class_sizes is not None
        return self.class_sizes

    @property
    def _train_sizes(self) -> tuple[int, ...]:
        """Train samples of each class: its share rounded down, the largest remainders up."""
        sizes = np.asarray(self._sizes)
        exact = sizes * self.num_train / sizes.sum()
        counts = np.floor(exact).astype(int)
        for at in np.argsort(counts - exact, kind="stable")[: self.num_train - counts.sum()]:
            counts[at] += 1
        return tuple(int(count) for count in counts)

    def draw(self, key: Key[Array, ""]) -> tuple[Samples, Samples]:
        """Split the set as the seed says, inputs in the default float dtype.

        Args:
            key: PRNG key of the seed.

        Returns:
            Train samples, then held-out samples, each ordered by original class.
        """
        whole = _as_default_dtype(self.samples)
        chance = jax.random.uniform(jax.random.fold_in(key, 0), whole.fine_labels.shape, dtype=jnp.float32)
        # Rows lie class by class, so this shuffles inside classes.
        order = jnp.lexsort((chance, whole.fine_labels))
        starts = np.cumsum([0, *self._sizes[:-1]])
        blocks = [np.arange(start, start + size) for start, size in zip(starts, self._sizes, strict=True)]
        parts = [np.split(block, [count]) for block, count in zip(blocks, self._train_sizes, strict=True)]
        chosen = [order[np.concatenate(rows)] for rows in zip(*parts, strict=True)]
        train, rest = (jax.tree.map(lambda leaf, at=rows: leaf[at], whole) for rows in chosen)
        return replace(train, labels=self._with_noise(train.labels, jax.random.fold_in(key, 1))), rest

    def _with_noise(self, labels: Array, key: Key[Array, ""]) -> Array:
        which, what = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        chance = jax.random.uniform(which, labels.shape, dtype=jnp.float32)
        drawn = jax.random.randint(what, labels.shape, 0, self.num_labels, dtype=labels.dtype)
        return jnp.where(chance < jnp.asarray(self.label_noise, dtype=jnp.float32), drawn, labels)


def _as_default_dtype(samples: Samples) -> Samples:
    return Samples(
        inputs=jnp.asarray(samples.inputs, dtype=float),
        labels=jnp.asarray(samples.labels, dtype=jnp.int32),
        fine_labels=jnp.asarray(samples.fine_labels, dtype=jnp.int32),
    )
