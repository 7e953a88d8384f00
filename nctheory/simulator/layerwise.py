"""Training by epochs, measured in every layer: at chosen epochs and where the train accuracy reaches milestones."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from nctheory import _checks, objectives
from nctheory._errors import ArgumentError
from nctheory.metrics.held_out import LayerMetrics
from nctheory.metrics.spectrum import FeatureSpectrum
from nctheory.simulator._layer_measures import Scores, measure_layers, measure_spectra
from nctheory.simulator._updates import make_optimizer, make_scored_objective, split
from nctheory.simulator.data import FixedData
from nctheory.simulator.mixtures import Samples
from nctheory.simulator.models import UnconstrainedFeaturesSpec
from nctheory.simulator.records import record_steps
from nctheory.simulator.train import BATCH_STREAM, DATA_STREAM, TrainConfig, initial_model

MILESTONES = (0.9, 0.95, 0.975, 0.99)
"""Train accuracies at which everything is measured unless others are given."""
SPECTRA = ("none", "ends", "all")
"""When the spectra of all layers are measured: never; train samples at the first and last record; always."""
_ANY_KEY = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTrainConfig:
    """A training run by epochs that is measured in every layer; `by_epochs` fills in the number of steps.

    Attributes:
        run: data, network, loss ("cross_entropy" or "mse") and optimiser; its `num_steps` must be `num_epochs` epochs
            of ceil(N / batch_size) steps (one step with the full batch), its own records are not used.
        num_epochs: passes over the train samples, >= 1.
        record_epochs: increasing epochs in 0 (before training)..`num_epochs` at which everything is measured.
        milestones: increasing accuracies in (0, 1]; everything is also measured at the end of the first epoch whose
            running train accuracy, the share of right answers in its batches before each step, reaches them.
        keep_params: whether to keep the trained parameters at every record.
        spectra: when the spectrum of every layer is measured: "none"; "ends", train samples at the first and the last
            record; "all", both splits at every record and milestone. These decompositions cost far more than everything
            else that is measured: for five layers of 256 on 1,437 train and 360 held-out samples 0.13 s a network for
            the train split and 0.19 s for both, on 2 CPU cores.

    Raises:
        ValueError: when a bound above is violated, or fixed data have no held-out sample of a class.
    """

    run: TrainConfig
    num_epochs: int = field(metadata={"static": True})
    record_epochs: tuple[int, ...] = field(metadata={"static": True})
    milestones: tuple[float, ...] = field(default=MILESTONES, metadata={"static": True})
    keep_params: bool = field(default=False, metadata={"static": True})
    spectra: str = field(default="none", metadata={"static": True})

    def __post_init__(self):
        _checks.integer("num_epochs", self.num_epochs, minimum=1)
        _checks.choice("spectra", self.spectra, SPECTRA)
        epochs = _checks.integers("record_epochs", self.record_epochs, minimum=0)
        if not epochs or list(epochs) != sorted(set(epochs)) or epochs[-1] > self.num_epochs:
            raise ArgumentError(
                f"Argument `record_epochs` must be increasing epochs in 0..{self.num_epochs}, but is {epochs}."
            )
        object.__setattr__(self, "record_epochs", epochs)
        object.__setattr__(self, "milestones", tuple(float(each) for each in self.milestones))
        inside = all(0 < each <= 1 for each in self.milestones)
        if not inside or list(self.milestones) != sorted(set(self.milestones)):
            raise ArgumentError(
                f"Argument `milestones` must be increasing accuracies in (0, 1], but is {self.milestones}."
            )
        if isinstance(self.run, TrainConfig):
            _checks.choice("run.loss", self.run.loss, ("cross_entropy", "mse"))
            data = self.run.data
            if isinstance(data, FixedData) and _checks.is_concrete(data.fresh.labels):
                _checks.no_empty_class("run.data.fresh.labels", data.fresh.labels, num_classes=data.num_labels)
            if isinstance(self.run.model, UnconstrainedFeaturesSpec):
                raise ArgumentError("Argument `run.model` must have layers, but is an UnconstrainedFeaturesSpec.")

    @classmethod
    def by_epochs(
        cls,
        *,
        num_epochs: int,
        record_epochs: tuple[int, ...],
        milestones: tuple[float, ...] = MILESTONES,
        keep_params: bool = False,
        spectra: str = "none",
        **run: Any,
    ) -> "LayerTrainConfig":
        """Configure a run by its number of epochs.

        Args:
            num_epochs: passes over the train samples, >= 1.
            record_epochs: epochs at which everything is measured.
            milestones: train accuracies at which everything is measured.
            keep_params: whether to keep the trained parameters at every record.
            spectra: when the spectra of all layers are measured, one of `SPECTRA`.
            **run: fields of `TrainConfig` but `num_steps`.

        Returns:
            The configuration.

        Raises:
            ValueError: as the two configurations do.
        """
        _checks.integer("num_epochs", num_epochs, minimum=1)
        if "data" not in run:
            raise ArgumentError("Argument `data` must be given, but is not.")
        steps = _steps_per_epoch(run["data"], run.get("batch_size"))
        settings = (num_epochs, record_epochs, milestones, keep_params, spectra)
        return cls(TrainConfig(**run, num_steps=num_epochs * steps), *settings)

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one pass over the train samples."""
        return _steps_per_epoch(self.run.data, self.run.batch_size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpectrumHistory:
    """Spectra over layers at all records and milestones; NaN where `LayerTrainConfig.spectra` measures none.

    Attributes:
        train: every layer on the train samples at R records.
        test: every layer on the held-out samples, about their own class means.
        milestone_train: the same on the train samples at M milestones.
        milestone_test: the same on the held-out samples.
    """

    train: FeatureSpectrum
    test: FeatureSpectrum
    milestone_train: FeatureSpectrum
    milestone_test: FeatureSpectrum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerHistory:
    """Record of a run at R epochs and M milestones over layers 0 (the inputs), 1, ..., L (the last hidden layer).

    Losses are data terms, without the penalty, in the unit of the loss; accuracies are shares in [0, 1].

    Attributes:
        epochs: finished epochs at each record.
        train_loss: mean loss of the train samples.
        train_accuracy: share of right answers on them (their labels as trained on).
        test_loss: mean loss of the held-out samples.
        test_accuracy: share of right answers on them.
        train: every layer on the train samples; `nc3_duality`, `nc4_ncc_mismatch` and the class alignments at the last
            layer, which the readout reads, and NaN at the others. NaN throughout where label noise has emptied a class.
        test: every layer on the held-out samples; `collapse` and `directions` about their own class means.
        epoch_accuracy: running train accuracy of every epoch.
        milestone_epochs: first epoch whose running accuracy reaches each milestone; -1 where none does.
        milestone_train: every layer on the train samples at the end of that epoch; NaN where none does.
        milestone_test: the same on the held-out samples.
        spectra: effective rank and variability collapse index of every layer, or None with `spectra` "none".
        params: trained parameters, stacked over records, or None unless `keep_params`.
        finite: whether the loss stayed finite at every record.
    """

    epochs: Int[Array, "*batch R"]
    train_loss: Float[Array, "*batch R"]
    train_accuracy: Float[Array, "*batch R"]
    test_loss: Float[Array, "*batch R"]
    test_accuracy: Float[Array, "*batch R"]
    train: LayerMetrics
    test: LayerMetrics
    epoch_accuracy: Float[Array, "*batch E"]
    milestone_epochs: Int[Array, "*batch M"]
    milestone_train: LayerMetrics
    milestone_test: LayerMetrics
    spectra: SpectrumHistory | None
    params: Any
    finite: Any


def train_layers(config: LayerTrainConfig, key: Key[Array, ""]) -> LayerHistory:
    """Train one network and measure the collapse of every layer, on train and on held-out samples.

    Pure, for `jit`, `vmap` and `simulator.sweep`. Batches are a random order of the train samples, epoch by epoch; the
    last batch of an epoch starts earlier instead of being smaller. Training first, measuring afterwards: the parameters
    at all records are kept until then, `len(record_epochs) + len(milestones)` times their size.

    Args:
        config: the run.
        key: PRNG key of the seed; the streams of data, initial weights and batches are those of `train`.

    Returns:
        The measurements; NaN from the first non-finite record on.

    Raises:
        ValueError: if the data have no held-out samples, or `run.num_steps` does not fit the number of epochs.
    """
    run = config.run
    train, test = _checked_draw(config, jax.random.fold_in(key, DATA_STREAM))
    graph, params, frozen = split(initial_model(run, key))
    final, kept = _descend(config, graph, params, frozen, train, jax.random.fold_in(key, BATCH_STREAM))
    every = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, final.snapshots)

    def measure(params: Any) -> tuple[Scores, Scores]:
        found = measure_layers(run, nnx.merge(graph, params, frozen), train, test)
        # The inputs would have numbers also without a network, be it diverged or, for a milestone, not there.
        known = jnp.isfinite(found[0].loss)
        return jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), found)

    on_train, on_test = lax.map(measure, every)
    count = len(config.record_epochs)
    (train_records, train_marks), (test_records, test_marks) = (
        (jax.tree.map(lambda leaf: leaf[:count], each), jax.tree.map(lambda leaf: leaf[count:], each))
        for each in (on_train, on_test)
    )
    return LayerHistory(
        epochs=jnp.asarray(config.record_epochs, dtype=jnp.int32),
        train_loss=train_records.loss,
        train_accuracy=train_records.accuracy,
        test_loss=test_records.loss,
        test_accuracy=test_records.accuracy,
        train=train_records.layers,
        test=test_records.layers,
        epoch_accuracy=final.epoch_accuracy,
        milestone_epochs=final.milestone_epochs,
        milestone_train=train_marks.layers,
        milestone_test=test_marks.layers,
        spectra=_spectra(config, (graph, every, frozen), (train, test), on_train.loss),
        params=kept if config.keep_params else None,
        finite=jnp.all(jnp.isfinite(train_records.loss)),
    )


class _State(NamedTuple):
    params: Any
    optimizer: Any
    epoch_accuracy: jax.Array
    milestone_epochs: jax.Array
    snapshots: Any


def _steps_per_epoch(data: Any, batch_size: int | None) -> int:
    count = jax.eval_shape(data.draw, jax.random.key(_ANY_KEY))[0].inputs.shape[0]
    if batch_size is None:
        return 1
    _checks.integer("batch_size", batch_size, minimum=1)
    if batch_size > count:
        raise ArgumentError(f"Argument `batch_size` must be at most {count} samples, but is {batch_size}.")
    return math.ceil(count / batch_size)


def _checked_draw(config: LayerTrainConfig, key: jax.Array) -> tuple[Samples, Samples]:
    train, test = config.run.data.draw(key)
    if test is None:
        raise ArgumentError("Argument `run.data` must have held-out samples, but has none.")
    steps = config.num_epochs * config.steps_per_epoch
    if config.run.num_steps != steps:
        raise ArgumentError(
            f"Argument `run.num_steps` must be {steps}, that is {config.num_epochs} epochs of "
            f"{config.steps_per_epoch} steps, but is {config.run.num_steps}."
        )
    return train, test


def _descend(config: LayerTrainConfig, graph: Any, params: Any, frozen: Any, train: Samples, key: jax.Array) -> Any:
    """Final state, and the parameters at every record."""
    optimizer = make_optimizer(config.run)
    dtype = jax.tree.leaves(params)[0].dtype
    seen = config.steps_per_epoch * (config.run.batch_size or train.inputs.shape[0])
    # Counts, because a share that equals a milestone exactly may be rounded below it.
    needed = jnp.asarray([math.ceil(round(each * seen, 6)) for each in config.milestones], dtype=dtype)
    count = len(config.milestones)
    run_epoch = _make_epoch(config, make_scored_objective(config.run, graph, frozen), optimizer, train, key)

    def epoch(index: jax.Array, state: _State) -> _State:
        params, moving, hits = run_epoch(index, state.params, state.optimizer)
        reached = (hits >= needed) & (state.milestone_epochs < 0)

        def snapshot(old: jax.Array, new: jax.Array) -> jax.Array:
            here = jnp.reshape(reached, (count,) + (1,) * new.ndim)
            return jnp.where(here, jnp.broadcast_to(new[None], old.shape), old)

        return _State(
            params,
            moving,
            state.epoch_accuracy.at[index].set(hits / seen),
            jnp.where(reached, index.astype(jnp.int32) + 1, state.milestone_epochs),
            jax.tree.map(snapshot, state.snapshots, params),
        )

    def to_next_record(state: _State, ends: tuple[jax.Array, jax.Array]) -> tuple[_State, Any]:
        state = lax.fori_loop(*ends, epoch, state)
        return state, state.params

    last = jnp.asarray(config.record_epochs, dtype=jnp.int32)
    first = jnp.asarray((0, *config.record_epochs[:-1]), dtype=jnp.int32)
    state, kept = lax.scan(to_next_record, _untrained(config, params, optimizer), (first, last))
    # Epochs after the last record still count for milestones.
    return lax.fori_loop(config.record_epochs[-1], config.num_epochs, epoch, state), kept


def _untrained(config: LayerTrainConfig, params: Any, optimizer: Any) -> _State:
    """State before the first epoch: no accuracy known, no milestone reached."""
    count = len(config.milestones)
    return _State(
        params,
        optimizer.init(params),
        jnp.full(config.num_epochs, jnp.nan, jax.tree.leaves(params)[0].dtype),
        jnp.full(count, -1, jnp.int32),
        jax.tree.map(lambda leaf: jnp.full((count, *leaf.shape), jnp.nan, leaf.dtype), params),
    )


def _make_epoch(config: LayerTrainConfig, objective: Any, optimizer: Any, train: Samples, key: jax.Array) -> Any:
    count = train.inputs.shape[0]
    steps, size = config.steps_per_epoch, config.run.batch_size or count
    slope = jax.value_and_grad(objective, has_aux=True)

    def run_epoch(index: jax.Array, params: Any, moving: Any) -> tuple[Any, Any, jax.Array]:
        order = jax.random.permutation(jax.random.fold_in(key, index), count)

        def step(at: jax.Array, state: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            params, moving, hits = state
            start = jnp.minimum(at * size, count - size)
            rows = lax.dynamic_slice(order, (start,), (size,))
            batch = train if size == count else jax.tree.map(lambda leaf: leaf[rows], train)
            (_, outputs), gradient = slope(params, batch)
            change, moving = optimizer.update(gradient, moving, params)
            hits = hits + jnp.rint(size * objectives.accuracy(outputs, batch.labels))
            return optax.apply_updates(params, change), moving, hits

        nothing = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return lax.fori_loop(0, steps, step, (params, moving, nothing))

    return run_epoch


def _spectra(
    config: LayerTrainConfig, models: Any, splits: tuple[Samples, Samples], losses: jax.Array
) -> SpectrumHistory | None:
    """Spectra of the networks at all records, then all milestones; NaN where the loss is not finite."""
    if config.spectra == "none":
        return None
    graph, every, frozen = models
    count = len(config.record_epochs)
    of_all = config.spectra == "all"
    rows = list(range(len(losses))) if of_all else sorted({0, count - 1})

    def measure(at: jax.Array) -> list[FeatureSpectrum]:
        model = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[at], every), frozen)
        measured = splits if of_all else splits[:1]
        found = [measure_spectra(model, part, num_classes=config.run.data.num_labels) for part in measured]
        return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(losses[at]), leaf, jnp.nan), found)

    def filled(leaf: jax.Array) -> jax.Array:
        return jnp.full((len(losses), *leaf.shape[1:]), jnp.nan, leaf.dtype).at[jnp.asarray(rows, jnp.int32)].set(leaf)

    found = jax.tree.map(filled, lax.map(measure, jnp.asarray(rows, jnp.int32)))
    train, test = found if of_all else (found[0], jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), found[0]))
    parts = [
        jax.tree.map(lambda leaf, at=at: leaf[at], each)
        for at in (slice(count), slice(count, None))
        for each in (train, test)
    ]
    return SpectrumHistory(*parts)


def log_spaced_epochs(num_epochs: int, num_records: int) -> tuple[int, ...]:
    """Epochs 0 and about `num_records - 1` log-spaced ones up to the last, without repetitions.

    Args:
        num_epochs: epochs of the run, >= 1.
        num_records: epochs asked for, >= 2.

    Returns:
        Increasing epochs, for `LayerTrainConfig.record_epochs`.

    Raises:
        ValueError: if an argument is not an integer or below its minimum.
    """
    return tuple(int(each) for each in record_steps(num_epochs, num_records))
