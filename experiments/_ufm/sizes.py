"""The class-level problem with class sizes as numbers, so that all class sizes share one compiled program."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from nctheory.simulator.free_features import UfmParams, UfmProblem


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SizedProblem(UfmProblem):
    """`UfmProblem` at class level whose n_k are a leaf; the static `class_sizes` only count the classes.

    Valid where averaging the features of a class is (`is_convex_in_features`): the objective of a class feature is that
    of n_k equal sample features. The gradient at class level is at least as long as that at sample level.

    Attributes:
        sizes: n_1..n_K, one number a class (samples).
        init_spread: ratio of the largest to the smallest `init_std`; every start draws its own between init_std and
            init_spread * init_std, so that small and large starts are among them (dimensionless, >= 1).
    """

    sizes: Any = None
    init_spread: Any = 1.0

    @property
    def num_samples(self) -> Any:
        """N."""
        return self.row_weights.sum()

    @property
    def row_weights(self) -> Any:
        """Number of samples that each row of the feature matrix stands for."""
        return self.sizes

    def init(self, key: Key[Array, ""]) -> UfmParams:
        """Draw a scale s, W from N(0, s^2) and class features from N(0, s^2/n_k), as means of n_k such samples."""
        keys = jax.random.split(key, len(self._widths) + 2)
        power = jax.random.uniform(keys[-1], (), dtype=float)
        std = jnp.asarray(self.init_std, dtype=float) * jnp.asarray(self.init_spread, dtype=float) ** power
        spread = std / jnp.sqrt(jnp.asarray(self.sizes, dtype=float))
        features = spread[:, None] * jax.random.normal(keys[0], (self.num_classes, self._widths[0]), dtype=float)
        weights = tuple(
            std * jax.random.normal(k, s, dtype=float) for k, s in zip(keys[1:-1], self._shapes(), strict=True)
        )
        # An unregularised bias starts at zero.
        bias = None if self.bias == "none" else jnp.zeros(self.num_classes, dtype=float)
        return UfmParams(features, weights, bias)


def sized_problem(class_sizes: tuple[int, ...], width: int, depth: int, **named: Any) -> SizedProblem:
    """Problem of these sizes; `named` as for `UfmProblem`."""
    counts = (1,) * len(class_sizes)
    return SizedProblem(counts, width, depth, level="class", sizes=np.asarray(class_sizes, dtype=float), **named)
