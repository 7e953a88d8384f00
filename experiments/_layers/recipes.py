"""How the small networks of the layer experiments are trained, and what a learning rate means under each loss."""

import dataclasses
from typing import TYPE_CHECKING

from nctheory import simulator

if TYPE_CHECKING:
    from _layers.options import ImageOptions
    from nctheory import vision

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "silu")
"""Activations of the public code of Parker et al. (2023)."""
LOSSES = ("mse", "cross_entropy")


def library_units(loss: str, num_classes: int, *, learning_rate: float, weight_decay: float) -> tuple[float, float]:
    """Learning rate and weight decay in the library's units from those of a mean squared error.

    Public code on layer-wise collapse takes squared errors averaged over samples AND the K outputs, and adds
    weight_decay * theta to that gradient. `nctheory.objectives.mse` is |f - y|^2/(2N), K/2 times as large. The same
    updates follow from the rate 2/K times and the decay K/2 times as large. Cross-entropy is a mean over samples in
    both: nothing changes.

    Args:
        loss: "mse" or "cross_entropy".
        num_classes: K, the number of outputs.
        learning_rate: step size for the mean over samples and outputs.
        weight_decay: multiple of the parameters that is added to that loss's gradient.

    Returns:
        `learning_rate` and `weight_decay` of `simulator.TrainConfig`.
    """
    factor = num_classes / 2 if loss == "mse" else 1.0
    return learning_rate / factor, weight_decay * factor


def image_training(
    options: "ImageOptions", loss: str, num_classes: int, *, learning_rate: float, weight_decay: float
) -> "vision.ImageTrainConfig":
    """Training of an image network, rate and decay given in the units of a mean squared error.

    Args:
        options: of the training.
        loss: "mse" or "cross_entropy".
        num_classes: number of outputs.
        learning_rate: as in `library_units`.
        weight_decay: as in `library_units`.

    Returns:
        The training, in the library's units.
    """
    from nctheory import vision

    rate, decay = library_units(loss, num_classes, learning_rate=learning_rate, weight_decay=weight_decay)
    return vision.ImageTrainConfig(
        learning_rate=rate,
        weight_decay=decay,
        batch_size=options.batch_size,
        num_epochs=options.num_epochs,
        schedule=options.schedule,
        loss=loss,
        compute_dtype=options.compute_dtype,
        checkpoint_epochs=options.epochs,
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An MLP and its training with heavy-ball momentum.

    Attributes:
        depth: number of hidden layers.
        width: of each of them.
        activation: one of `ACTIVATIONS`.
        loss: one of `LOSSES`.
        learning_rate: largest rate, in the units of `library_units`.
        weight_decay: L2 on all parameters, in those units.
        num_epochs: passes over the train samples.
        batch_size: samples an update; None is the full batch.
        schedule: as `simulator.TrainConfig`.
        momentum: heavy-ball coefficient.
    """

    depth: int = 5
    width: int = 256
    activation: str = "relu"
    loss: str = "mse"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    num_epochs: int = 150
    batch_size: int | None = 16
    schedule: str = "one_cycle"
    momentum: float = 0.9

    def config(
        self,
        data: simulator.DataSource,
        record_epochs: tuple[int, ...],
        *,
        keep_params: bool = False,
        spectra: str = "none",
    ) -> simulator.LayerTrainConfig:
        """Configure one run that is measured in every layer.

        Args:
            data: train and held-out samples.
            record_epochs: epochs at which every layer is measured.
            keep_params: whether to keep the parameters at these epochs.
            spectra: when the spectra of all layers are measured, one of `simulator.SPECTRA`.

        Returns:
            The configuration of `simulator.train_layers`.
        """
        rate, decay = library_units(
            self.loss, data.num_labels, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )
        return simulator.LayerTrainConfig.by_epochs(
            num_epochs=self.num_epochs,
            record_epochs=record_epochs,
            keep_params=keep_params,
            spectra=spectra,
            data=data,
            model=simulator.MLPSpec(widths=(self.width,) * self.depth, activation=self.activation),
            loss=self.loss,
            optimizer="momentum",
            learning_rate=rate,
            momentum=self.momentum,
            weight_decay=decay,
            batch_size=self.batch_size,
            schedule=self.schedule,
        )
