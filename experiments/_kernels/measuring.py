"""One finite network of the kernel-limit experiment: measured at the start, trained lazily, measured again."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nctheory import metrics
from nctheory._types import AnyArray
from nctheory.simulator.ntk_mlp import LazyConfig, descend_lazily, empirical_ntk
from nctheory.theory.kernel_collapse import kernel_collapse


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MeasureConfig:
    """Network, data and the limits that it is held against.

    Attributes:
        lazy: training; `lazy.inputs`, the first of the samples, are the points of tangent kernels and outputs.
        inputs: all samples, of which features are measured.
        labels: coarse labels of all samples.
        fine_labels: fine classes of all samples.
        features: feature kernels of each predictor and hidden layer.
        distances: squared distances of fine-class means, likewise.
        ntk: tangent kernels of each predictor.
        response: of lazy training, of each predictor and recorded step.
        num_classes: coarse labels.
        num_fine: fine classes.
    """

    lazy: LazyConfig
    inputs: Float[AnyArray, "N d"]
    labels: Int[AnyArray, " N"]
    fine_labels: Int[AnyArray, " N"]
    features: Float[AnyArray, "A L N N"]
    distances: Float[AnyArray, "A L F F"]
    ntk: Float[AnyArray, "B P P"]
    response: Float[AnyArray, "B T P n"]
    num_classes: int = field(metadata={"static": True})
    num_fine: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Collapse:
    """Collapse of the features of every hidden layer, dimensionless.

    Attributes:
        nc1: tr(Sigma_W Sigma_B^+)/K.
        within_between_ratio: tr Sigma_W / tr Sigma_B.
        cdnv: class-distance normalised variance.
        ratio: q, fine-class distances within labels over those across labels.
        kernel_deviation: |h h'/n - limit|^2 / |limit|^2 of each predictor (Frobenius).
        distances_deviation: the same for squared distances of fine-class means over n.
    """

    nc1: Float[Array, "*batch L"]
    within_between_ratio: Float[Array, "*batch L"]
    cdnv: Float[Array, "*batch L"]
    ratio: Float[Array, "*batch L"]
    kernel_deviation: Float[Array, "*batch L A"]
    distances_deviation: Float[Array, "*batch L A"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TangentCollapse:
    """Collapse of the empirical tangent kernel of the output, dimensionless; fields as those of `Collapse`."""

    nc1: Float[Array, "*batch"]
    within_between_ratio: Float[Array, "*batch"]
    cdnv: Float[Array, "*batch"]
    ratio: Float[Array, "*batch"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measured:
    """What one network gave, dimensionless; training that did not take place leaves NaN.

    Attributes:
        initial: features at the start.
        trained: features after lazy training.
        initial_ntk: collapse of the empirical tangent kernel at the start.
        trained_ntk: the same after lazy training.
        ntk_deviation: |empirical - limit|^2 / |limit|^2 of the tangent kernel at the start, each predictor.
        ntk_change: |after - before|^2 / |before|^2 of the empirical tangent kernel.
        feature_change: |after - before|^2 / |before|^2 of the features of each layer.
        output_deviation: |outputs - prediction|^2 / |predicted movement|^2, each predictor and recorded step after 0.
        loss: |f - y|^2/(2N) at every recorded step.
        finite: whether everything that was to be measured is finite.
    """

    initial: Collapse
    trained: Collapse
    initial_ntk: TangentCollapse
    trained_ntk: TangentCollapse
    ntk_deviation: Float[Array, "*batch B"]
    ntk_change: Float[Array, "*batch"]
    feature_change: Float[Array, "*batch L"]
    output_deviation: Float[Array, "*batch B U"]
    loss: Float[Array, "*batch T"]
    finite: Bool[Array, "*batch"]


class _Late(NamedTuple):
    """What training adds to `Measured`, by the names of its fields."""

    trained: Collapse
    trained_ntk: TangentCollapse
    ntk_change: Array
    feature_change: Array
    output_deviation: Array
    loss: Array


def measure(config: MeasureConfig, key: Key[Array, ""]) -> Measured:
    """Measure one network before and after lazy training; pure, and a function of the seed's key alone.

    Args:
        config: network, data and limits.
        key: PRNG key of the seed.

    Returns:
        The measurements.
    """
    model = config.lazy.initial_model(key)
    inputs = jnp.asarray(config.inputs, dtype=float)
    points = jnp.asarray(config.lazy.inputs, dtype=float)
    features = model.layer_features(inputs)
    before = empirical_ntk(model, points)
    initial, tangent = _collapse(config, features), _tangent_collapse(config, before)
    deviation = _relative(before[None], config.ntk, axes=(1, 2))
    if config.lazy.record_steps == (0,):
        late = _no_training(config, initial, tangent)
        finite = jnp.isfinite(_total((initial, tangent, deviation)))
    else:
        history, after = descend_lazily(config.lazy, key)
        moved, kernel = after.layer_features(inputs), empirical_ntk(after, points)
        late = _Late(
            trained=_collapse(config, moved),
            trained_ntk=_tangent_collapse(config, kernel),
            ntk_change=_relative(kernel, before, axes=(0, 1)),
            feature_change=jnp.stack(
                [_relative(new, old, axes=(0, 1)) for new, old in zip(moved, features, strict=True)]
            ),
            output_deviation=_against_predictions(config, history.outputs),
            loss=history.loss,
        )
        finite = jnp.isfinite(_total((initial, tangent, deviation, late)))
    return Measured(initial=initial, initial_ntk=tangent, ntk_deviation=deviation, finite=finite, **late._asdict())


def _total(tree: Any) -> Array:
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def _relative(found: Array, truth: Any, axes: tuple[int, ...]) -> Array:
    """Squared Frobenius distance over the squared norm of the truth."""
    truth = jnp.asarray(truth, dtype=found.dtype)
    return jnp.sum((found - truth) ** 2, axis=axes) / jnp.sum(truth**2, axis=axes)


def _collapse(config: MeasureConfig, features: list[Array]) -> Collapse:
    found = []
    for layer, h in enumerate(features):
        whole = metrics.collapse_metrics(h, config.labels, num_classes=config.num_classes)
        fine = metrics.fine_structure(
            h, config.labels, config.fine_labels, num_classes=config.num_classes, num_fine=config.num_fine
        )
        width = h.shape[1]
        kernel, distances = h @ h.T / width, fine.class_distances / width
        found.append(
            Collapse(
                nc1=whole.nc1,
                within_between_ratio=whole.within_between_ratio,
                cdnv=whole.cdnv,
                ratio=fine.ratio,
                kernel_deviation=_relative(kernel[None], config.features[:, layer], axes=(1, 2)),
                distances_deviation=_relative(distances[None], config.distances[:, layer], axes=(1, 2)),
            )
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _tangent_collapse(config: MeasureConfig, kernel: Array) -> TangentCollapse:
    """Collapse of a tangent kernel of the points, which are the first samples."""
    count = kernel.shape[0]
    found = kernel_collapse(
        kernel,
        config.labels[:count],
        num_classes=config.num_classes,
        fine_labels=config.fine_labels[:count],
        num_fine=config.num_fine,
    )
    return TangentCollapse(found.nc1, found.within_between_ratio, found.cdnv, found.structure.ratio)


def _against_predictions(config: MeasureConfig, outputs: Array) -> Array:
    """Deviation of recorded outputs from f_0 + B (Y - f_0), in units of the movement that the right kernel predicts."""
    start = outputs[0]
    targets = jnp.asarray(config.lazy.targets, dtype=outputs.dtype)
    gap = targets - start[: targets.shape[0]]
    movement = jnp.asarray(config.response, dtype=outputs.dtype)[:, 1:] @ gap
    error = jnp.sum((outputs[1:][None] - start[None, None] - movement) ** 2, axis=(2, 3))
    return error / jnp.sum(movement[:1] ** 2, axis=(2, 3))


def _no_training(config: MeasureConfig, initial: Collapse, tangent: TangentCollapse) -> _Late:
    num_predictors, num_steps = config.response.shape[0], config.response.shape[1]

    def nothing(*shape: int) -> Array:
        return jnp.full(shape, jnp.nan, initial.nc1.dtype)

    return _Late(
        trained=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), initial),
        trained_ntk=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tangent),
        ntk_change=nothing(),
        feature_change=nothing(*initial.nc1.shape),
        output_deviation=nothing(num_predictors, num_steps - 1),
        loss=nothing(num_steps),
    )
