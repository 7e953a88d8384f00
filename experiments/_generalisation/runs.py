"""Training runs of every part, as configurations of `simulator.train_layers`, and what a transfer run adds to it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _layers.recipes import Recipe
from jax import lax
from jaxtyping import Array, Float, Key

from _generalisation.data import Pool, source
from _generalisation.options import MlpOptions
from nctheory import simulator
from nctheory._types import AnyArray
from nctheory.metrics.probes import ridge_probe_accuracy

CONDITIONS = ("decay", "no_decay")
RIDGES = {"ridge": "global", "ridge_standardised": "per_feature"}
"""Probes that are cheap enough for every recorded epoch, and their scalings."""
NUM_PROBED = 8
"""Epochs at which the other probes are fitted, about evenly spaced on a logarithmic axis."""


def spaced_epochs(num_epochs: int, *, fine: int, coarse: int, few: int) -> tuple[int, ...]:
    """Epochs to record: every 5th up to `fine`, every `coarse`-th up to three times that, then `few` more.

    Training fits within some ten epochs and layers collapse one after the other up to about 150, so early epochs
    decide where a run fits and when a layer halves; every record costs as much as several epochs.
    """
    early = [*range(0, fine + 1, 5), *range(fine, 3 * fine + 1, coarse)]
    late = np.linspace(3 * fine, num_epochs, few + 1).round().astype(int).tolist() if num_epochs > 3 * fine else []
    return tuple(sorted({each for each in [0, *early, *late, num_epochs] if each <= num_epochs}))


def collapse_runs(options: MlpOptions, pool: Pool) -> list[simulator.LayerTrainConfig]:
    """Part "collapse": with and without weight decay, every hidden layer measured."""
    data = source(pool, options.num_train)
    epochs = spaced_epochs(options.num_epochs, fine=50, coarse=10, few=5)
    return [_recipe(options, options.num_epochs, decay).config(data, epochs) for decay in (options.weight_decay, 0.0)]


def transfer_runs(options: MlpOptions, pool: Pool) -> list["TransferConfig"]:
    """Part "transfer": two super-classes, with and without weight decay."""
    count = len(pool.labels)
    # Digits: 1,437, as many as the official stratified split has.
    data = source(pool, options.transfer_train or count * 4 // 5, coarse=True)
    epochs = spaced_epochs(options.transfer_epochs, fine=50, coarse=10, few=0)
    positions = np.unique(np.geomspace(1, len(epochs), NUM_PROBED).round().astype(int) - 1)
    runs = []
    for decay in (options.transfer_decay, 0.0):
        config = _recipe(options, options.transfer_epochs, decay).config(data, epochs, keep_params=True)
        runs.append(TransferConfig(config, tuple(positions.tolist()), len(pool.class_names)))
    return runs


def sample_runs(options: MlpOptions, pool: Pool) -> dict[int, simulator.LayerTrainConfig]:
    """Part "samples": one run a number of train images, with equally many updates in all of them."""
    runs = {}
    for size in options.sizes:
        epochs = max(1, options.num_passes // size)
        recipe = dataclasses.replace(
            _recipe(options, epochs, options.transfer_decay),
            depth=3,
            width=2 * options.width,
            learning_rate=0.3 * options.learning_rate,
            schedule="step",
        )
        runs[size] = recipe.config(source(pool, size), (0, epochs))
    return runs


def _recipe(options: MlpOptions, epochs: int, decay: float) -> Recipe:
    return Recipe(
        depth=options.depth,
        width=options.width,
        loss=options.loss,
        learning_rate=options.learning_rate,
        weight_decay=decay,
        num_epochs=epochs,
        batch_size=options.batch_size,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TransferConfig:
    """A run on super-classes whose features are probed for the original classes.

    Attributes:
        layers: the run, with `keep_params`.
        kept: positions of the records whose parameters are returned, for the probes on the host.
        num_fine: number of original classes.
    """

    layers: simulator.LayerTrainConfig
    kept: tuple[int, ...] = field(metadata={"static": True})
    num_fine: int = field(metadata={"static": True})

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """Epochs of these records."""
        return tuple(self.layers.record_epochs[at] for at in self.kept)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TransferHistory:
    """What a run on super-classes gives; R records, L hidden layers.

    Attributes:
        layers: measurements of every layer under the super-classes; `params` at the kept records alone.
        ridge: held-out accuracy on the original classes of each of `RIDGES` on the last hidden layer.
        layer_ridge: the same of "ridge" on the inputs and on every hidden layer at the last record.
        finite: whether training stayed finite.
    """

    layers: simulator.LayerHistory
    ridge: dict[str, Float[Array, "*batch R"]]
    layer_ridge: Float[Array, "*batch L"]
    finite: Any


def train_transfer(config: TransferConfig, key: Key[Array, ""]) -> TransferHistory:
    """Train on super-classes and probe the original classes at every record; pure, for sweeps.

    Args:
        config: the run.
        key: PRNG key of the seed.

    Returns:
        The measurements.
    """
    run = config.layers.run
    history = simulator.train_layers(config.layers, key)
    train, test = run.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
    assert test is not None

    def score(features: tuple[AnyArray, AnyArray], scaling: str) -> jax.Array:
        return ridge_probe_accuracy(
            features[0], train.fine_labels, features[1], test.fine_labels, scaling=scaling, num_classes=config.num_fine
        )

    def at_record(params: Any) -> dict[str, jax.Array]:
        model = simulator.trained_model(run, key, params)
        features = model.features(train.inputs), model.features(test.inputs)
        return {name: score(features, scaling) for name, scaling in RIDGES.items()}

    last = simulator.trained_model(run, key, jax.tree.map(lambda leaf: leaf[-1], history.params))
    pairs: list[tuple[AnyArray, AnyArray]] = [(train.inputs, test.inputs)]
    pairs += zip(last.layer_features(train.inputs), last.layer_features(test.inputs), strict=True)
    kept = jnp.asarray(config.kept, dtype=jnp.int32)
    return TransferHistory(
        layers=dataclasses.replace(history, params=jax.tree.map(lambda leaf: leaf[kept], history.params)),
        ridge=lax.map(at_record, history.params),
        layer_ridge=jnp.stack([score(pair, RIDGES["ridge"]) for pair in pairs]),
        finite=history.finite,
    )
