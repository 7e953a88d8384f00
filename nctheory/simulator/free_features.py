r"""The unconstrained feature model as a pure problem: free features, linear (or ReLU) layers on them, weight decay.

Features H (one row a sample) and layers W_1..W_M are all free. With F_1 = phi(H), F_{m+1} = a(F_m W_m^T), logits
Z = F_M W_M^T + b, and N samples,

    L = (1/N) sum_i fit(z_i, y_i) + sum_m (lambda_m/2) |W_m|^2 + (lambda_H/2) |H|^2 + (lambda_b/2) |b|^2,

fit = |z - e_y|^2/2 or softmax cross-entropy; `a` is the identity (deep linear) or ReLU. Constraints change phi, and
the decay then falls on what is constrained.

**Class level.** Where the loss is convex in each feature (no ReLU between the layers, features free, non-negative or
ReLU), replacing the features of a class by their mean never raises L (Jensen), and with one feature a class L is the
same problem with n_k as the weight of class k. A critical point there, repeated n_k times, is a critical point of L.
Elsewhere (`is_convex_in_features` is False: ReLU between the layers, constrained norms) level "class" is the problem
*restricted* to equal features within each class, which is allowed but is not the same problem: its minimum is an upper
bound of that of L.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray

FEATURES = ("free", "nonnegative", "relu", "spherical", "norm_bounded")
WEIGHTS = ("free", "spherical", "norm_bounded")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UfmParams:
    """Point in the parameter space of an unconstrained feature model.

    Attributes:
        features: H before the constraint's map, one row a sample (class, at class level).
        weights: W_1..W_M, W_m of shape (d_{m+1}, d_m), the last one with K rows.
        bias: bias of the last layer, None without one.
    """

    features: Float[AnyArray, "*batch N d"]
    weights: tuple[Float[AnyArray, "*batch _ _"], ...]
    bias: Float[AnyArray, "*batch K"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UfmProblem:
    """Unconstrained feature model (module docstring): numbers are leaves, structure is static.

    Attributes:
        class_sizes: n_1..n_K; samples are sorted by class.
        widths: d_1..d_M, feature dimension first; one integer is the width of every layer.
        depth: M, number of layers; by default the number of `widths`.
        loss: "mse" or "cross_entropy".
        weight_decay: lambda_m > 0, one for all layers or one for each, W_1 first (dimensionless). >= 0 is allowed.
        feature_decay: lambda_H >= 0 of the squared norm summed over all samples (dimensionless).
        bias: "none", "free", or a number: the decay lambda_b of a bias, stored in `bias_decay`.
        bias_decay: lambda_b >= 0.
        activation: between layers, "identity" or "relu".
        features: "free"; "nonnegative" (H >= 0 kept by the solver); "relu" (F_1 = relu(H), decay on H); "spherical"
            (|h_i| = `feature_radius`); "norm_bounded" (mean over classes of the mean squared norm in a class
            = `feature_radius`^2, the layer-peeled bound, which is active at every minimiser that fits the labels).
        weights: "free"; "spherical" (rows of W_M of norm `weight_radius`) or "norm_bounded" (|W_M|^2/K =
            `weight_radius`^2), for one layer.
        feature_radius: dimensionless, > 0.
        weight_radius: dimensionless, > 0.
        init_std: standard deviation of every initial entry of H and W.
        level: "sample", or "class" for one feature a class: the same problem where `is_convex_in_features`, a
            restricted one elsewhere (module docstring).

    Raises:
        ValueError: when a bound above is violated, a name is unknown, or lengths do not fit.
    """

    class_sizes: tuple[int, ...] = field(metadata={"static": True})
    widths: tuple[int, ...] | int = field(metadata={"static": True})
    depth: int | None = field(default=None, metadata={"static": True})
    loss: str = field(default="mse", metadata={"static": True})
    weight_decay: Any = 5e-4
    feature_decay: Any = 5e-4
    bias: str | float = field(default="none", metadata={"static": True})
    bias_decay: Any = 0.0
    activation: str = field(default="identity", metadata={"static": True})
    features: str = field(default="free", metadata={"static": True})
    weights: str = field(default="free", metadata={"static": True})
    feature_radius: Any = 1.0
    weight_radius: Any = 1.0
    init_std: Any = 0.1
    level: str = field(default="sample", metadata={"static": True})

    def __post_init__(self):
        if not isinstance(self.bias, str):
            object.__setattr__(self, "bias_decay", self.bias)
            object.__setattr__(self, "bias", "free")
        _check_sizes(self)
        for name, options in (
            ("loss", ("mse", "cross_entropy")),
            ("bias", ("none", "free")),
            ("activation", ("identity", "relu")),
            ("features", FEATURES),
            ("weights", WEIGHTS),
            ("level", ("sample", "class")),
        ):
            _checks.choice(name, getattr(self, name), options)
        if self.weights != "free" and self.depth != 1:
            raise ArgumentError(f"Argument `depth` must be 1 for weights {self.weights!r}, but is {self.depth}.")
        for name in ("weight_decay", "feature_decay", "bias_decay", "init_std"):
            _checks.real(name, getattr(self, name), minimum=0)
        for name in ("feature_radius", "weight_radius"):
            _checks.real(name, getattr(self, name), minimum=0, exclusive_minimum=True)
        if _checks.is_concrete(self.weight_decay) and np.shape(self.weight_decay) not in ((), (self.depth,)):
            raise ArgumentError(
                f"Argument `weight_decay` must be a scalar or have shape ({self.depth},), "
                f"but has shape {np.shape(self.weight_decay)}."
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_sizes)

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(self.class_sizes)

    @property
    def num_rows(self) -> int:
        """Rows of the feature matrix: N, or K at class level."""
        return self.num_samples if self.level == "sample" else self.num_classes

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Class of each row of the feature matrix."""
        sizes = self.class_sizes if self.level == "sample" else (1,) * self.num_classes
        return np.repeat(np.arange(self.num_classes), sizes)

    @property
    def row_weights(self) -> Float[np.ndarray, " N"]:
        """Number of samples that each row of the feature matrix stands for."""
        return np.ones(self.num_samples) if self.level == "sample" else np.asarray(self.class_sizes, dtype=float)

    @property
    def is_convex_in_features(self) -> bool:
        """Whether averaging the features of a class can never raise the objective."""
        return self.activation == "identity" and self.features in ("free", "nonnegative", "relu")

    def init(self, key: Key[Array, ""]) -> UfmParams:
        """Draw a start: entries of H and W from N(0, init_std^2), bias uniform in +-1/sqrt(d_M), absolute if H >= 0.

        At class level, the class means of the start that the same key gives at sample level.
        """
        shapes = self._shapes()
        keys = jax.random.split(key, len(shapes) + 2)
        std = jnp.asarray(self.init_std, dtype=float)
        features = std * jax.random.normal(keys[0], (self.num_samples, self._widths[0]), dtype=float)
        weights = tuple(std * jax.random.normal(k, s, dtype=float) for k, s in zip(keys[1:-1], shapes, strict=True))
        bound = self._widths[-1] ** -0.5
        bias = jax.random.uniform(keys[-1], (self.num_classes,), dtype=float, minval=-bound, maxval=bound)
        if self.features == "nonnegative":
            features = jnp.abs(features)
        start = UfmParams(features, weights, bias if self.bias == "free" else None)
        return start if self.level == "sample" else average_classes(replace(self, level="sample"), start)

    def objective(self, params: UfmParams) -> Float[Array, ""]:
        """Evaluate L, decay included."""
        _check_params(self, params)
        decays = self.decays(params.features.dtype)
        features, weights = self._constrained(params)
        # The decay of "relu" features acts on H itself, so that negative entries are pulled to zero.
        penalized = params.features if self.features == "relu" else features
        rows = _constant(self.row_weights, features)
        total = self.data_loss(params) + decays[-1] / 2 * jnp.sum(rows * jnp.sum(penalized**2, axis=1))
        for decay, weight in zip(decays, weights, strict=False):
            total = total + decay / 2 * jnp.sum(weight**2)
        if params.bias is not None:
            total = total + jnp.asarray(self.bias_decay).astype(features.dtype) / 2 * jnp.sum(params.bias**2)
        return total

    def data_loss(self, params: UfmParams) -> Float[Array, ""]:
        """Evaluate the mean of the fit over samples, without decay."""
        logits = self.logits(params)
        shares = _constant(self.row_weights / self.num_samples, logits)
        is_label = np.arange(self.num_classes)[None, :] == self.labels[:, None]
        if self.loss == "mse":
            return jnp.sum(shares * jnp.sum((logits - _constant(is_label, logits)) ** 2, axis=1)) / 2
        # log(1 + sum exp(f_k - f_y)) keeps its relative accuracy when the loss is tiny.
        own = jnp.sum(jnp.where(is_label, logits, 0), axis=1, keepdims=True)
        rivals = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits - own), axis=1)
        return jnp.sum(shares * jax.nn.softplus(rivals))

    def logits(self, params: UfmParams) -> Float[Array, "N K"]:
        """Outputs, one row a sample (class, at class level)."""
        outputs = self.layer_features(params)[-1] @ self._constrained(params)[1][-1].T
        return outputs if params.bias is None else outputs + params.bias[None, :]

    def layer_features(self, params: UfmParams) -> list[Float[Array, "N _"]]:
        """F_1..F_M: the features that enter each layer, constraint applied."""
        features, weights = self._constrained(params)
        entering = [features]
        for weight in weights[:-1]:
            outputs = entering[-1] @ weight.T
            entering.append(jax.nn.relu(outputs) if self.activation == "relu" else outputs)
        return entering

    def product(self, params: UfmParams) -> Float[Array, "K d"]:
        """A = W_M ... W_1; with ReLU between the layers no map of the network, only a product."""
        return self.left_products(params)[0]

    def left_products(self, params: UfmParams) -> list[Float[Array, "K _"]]:
        """A_1..A_M with A_m = W_M ... W_m."""
        weights = self._constrained(params)[1]
        products = [weights[-1]]
        for weight in weights[-2::-1]:
            products.insert(0, products[0] @ weight)
        return products

    @property
    def _widths(self) -> tuple[int, ...]:
        assert isinstance(self.widths, tuple)
        return self.widths

    def _shapes(self) -> list[tuple[int, int]]:
        return list(zip((*self._widths[1:], self.num_classes), self._widths, strict=True))

    def decays(self, dtype: Any) -> list[jax.Array]:
        """Return lambda_1..lambda_M, then lambda_H."""
        per_layer = jnp.broadcast_to(jnp.asarray(self.weight_decay), (len(self._widths),)).astype(dtype)
        return [*(per_layer[m] for m in range(len(self._widths))), jnp.asarray(self.feature_decay).astype(dtype)]

    def _constrained(self, params: UfmParams) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Features and weights with the maps of their constraints applied."""
        features, weights = jnp.asarray(params.features), tuple(jnp.asarray(w) for w in params.weights)
        dtype = features.dtype
        radius = jnp.asarray(self.feature_radius).astype(dtype)
        if self.features == "relu":
            features = jax.nn.relu(features)
        elif self.features == "spherical":
            features = radius * features / jnp.sqrt(jnp.sum(features**2, axis=1))[:, None]
        elif self.features == "norm_bounded":
            rows = _constant(self.row_weights, features)
            per_class = jax.ops.segment_sum(rows, jnp.asarray(self.labels), num_segments=self.num_classes)
            shares = rows / (per_class[self.labels] * self.num_classes)
            mean_square = jnp.sum(shares * jnp.sum(features**2, axis=1))
            features = radius * features / jnp.sqrt(mean_square)
        if self.weights != "free":
            squares = jnp.sum(weights[0] ** 2, axis=1)
            scale = squares if self.weights == "spherical" else jnp.full_like(squares, jnp.mean(squares))
            weights = (jnp.asarray(self.weight_radius).astype(dtype) * weights[0] / jnp.sqrt(scale)[:, None],)
        return features, weights


def average_classes(problem: UfmProblem, params: UfmParams) -> UfmParams:
    """Replace sample-level features by one feature a class, their mean; the point belongs to level "class".

    Never raises the objective where `problem.is_convex_in_features`.

    Args:
        problem: problem at sample level.
        params: point of it.

    Returns:
        Point of `replace(problem, level="class")`.

    Raises:
        ValueError: if the problem is already at class level.
    """
    if problem.level != "sample":
        raise ArgumentError("Argument `problem` must be at level 'sample', but is at level 'class'.")
    features = jnp.asarray(params.features)
    if problem.features == "relu":
        features = jax.nn.relu(features)
    sizes = problem.class_sizes
    if min(sizes) == max(sizes):
        means = jnp.mean(features.reshape(len(sizes), sizes[0], -1), axis=1)
    else:
        members = (np.arange(len(sizes))[:, None] == problem.labels[None, :]) / np.asarray(sizes)[:, None]
        means = _constant(members, features) @ features
    return replace(params, features=means)


def repeat_classes(problem: UfmProblem, params: UfmParams) -> UfmParams:
    """Repeat one feature a class for every sample; the point belongs to level "sample".

    Args:
        problem: problem at class level.
        params: point of it.

    Returns:
        Point of `replace(problem, level="sample")` with the same objective.

    Raises:
        ValueError: if the problem is already at sample level.
    """
    if problem.level != "class":
        raise ArgumentError("Argument `problem` must be at level 'class', but is at level 'sample'.")
    labels = np.repeat(np.arange(problem.num_classes), problem.class_sizes)
    return replace(params, features=jnp.asarray(params.features)[labels])


def _constant(values: AnyArray, like: jax.Array) -> jax.Array:
    return jnp.asarray(values, dtype=like.dtype)


def _check_sizes(problem: UfmProblem) -> None:
    """Check class sizes, widths and depth, and store them as tuples."""
    sizes = problem.class_sizes
    if not isinstance(sizes, Sequence | np.ndarray) or isinstance(sizes, str):
        raise ArgumentError(f"Argument `class_sizes` must be a sequence of sample counts, but is {sizes!r}.")
    sizes = tuple(_checks.integer("class_sizes", n, minimum=1) for n in sizes)
    if len(sizes) < 2:
        raise ArgumentError(f"Argument `class_sizes` must list at least 2 classes, but lists {len(sizes)}.")
    widths = problem.widths
    if not isinstance(widths, Sequence | np.ndarray):
        depth = 1 if problem.depth is None else _checks.integer("depth", problem.depth, minimum=1)
        widths = (widths,) * depth
    widths = tuple(_checks.integer("widths", width, minimum=1) for width in widths)
    depth = len(widths) if problem.depth is None else _checks.integer("depth", problem.depth, minimum=1)
    if not widths or depth != len(widths):
        raise ArgumentError(
            f"Argument `widths` must list {max(depth, 1)} widths, one a layer, but lists {len(widths)}."
        )
    for name, value in (("class_sizes", sizes), ("widths", widths), ("depth", depth)):
        object.__setattr__(problem, name, value)


def _check_params(problem: UfmProblem, params: UfmParams) -> None:
    _checks.shape("params.features", params.features, (problem.num_rows, problem._widths[0]))
    if len(params.weights) != problem.depth:
        raise ArgumentError(
            f"Argument `params.weights` must list {problem.depth} layers, but lists {len(params.weights)}."
        )
    for weight, shape in zip(params.weights, problem._shapes(), strict=True):
        _checks.shape("params.weights", weight, shape)
    if (params.bias is None) != (problem.bias == "none"):
        raise ArgumentError(f"Argument `params.bias` must fit bias {problem.bias!r}, but is {params.bias!r}.")
    if params.bias is not None:
        _checks.shape("params.bias", params.bias, (problem.num_classes,))
