"""Configuration of a training run on images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.vision._augment import AUGMENTATIONS
from nctheory.vision._schedules import SCHEDULES, learning_rates

LOSSES = ("cross_entropy", "mse")
COMPUTE_DTYPES = ("float32", "bfloat16", "auto")
_NUM_CHECKPOINTS = 10


@dataclass(frozen=True)
class ImageTrainConfig:
    """Everything that defines how a network is trained, but the network, the images and the seed.

    Each step minimises `loss + weight_decay/2 * |parameters|^2` over a batch by SGD with momentum, in the form
    g = gradient of that sum, v <- momentum v + g, parameters <- parameters - rate * v (Nesterov: rate * (g + momentum
    v)). The batches of an epoch are a random order of all training images.

    Attributes:
        learning_rate: largest rate of the schedule, > 0.
        weight_decay: lambda of the objective, >= 0.
        decay_vectors: whether biases and the scales and shifts of batch norm are decayed too (all parameters with one
            axis).
        momentum: coefficient in [0, 1).
        nesterov: whether to use Nesterov's form.
        batch_size: images a step, >= 1.
        num_epochs: passes over the training images, >= 1.
        schedule: "constant", "step", "cosine" or "one_cycle" (see `learning_rates`), a function of the step.
        milestones: increasing fractions in (0, 1) at which "step" multiplies the rate.
        factor: that multiplier, in (0, 1].
        warmup: fraction of the training, in [0, 1), in which "one_cycle" rises.
        loss: "cross_entropy", or "mse" on one-hot targets, |f - y|^2/(2N).
        augment: "none", "crop": random crop of the padded image, or "crop_flip": that and a random mirror image.
        pad: black pixels on each side before cropping, >= 0.
        compute_dtype: "float32"; "bfloat16" for the activations, with parameters, batch statistics and loss in float32;
            "auto": bfloat16 on GPU and TPU, float32 on CPU.
        checkpoint_epochs: increasing epochs, 0 (before training) to `num_epochs`, at which checkpoints are kept and
            callbacks run; None: 0 and about ten log-spaced ones up to the last.
        drop_last: whether an epoch leaves out the images that do not fill a batch; otherwise its last step is smaller.

    Raises:
        ValueError: when a bound above is violated or a name is unknown.
    """

    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    batch_size: int = 128
    num_epochs: int = 200
    schedule: str = "step"
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1
    warmup: float = 0.3
    loss: str = "cross_entropy"
    augment: str = "none"
    pad: int = 4
    compute_dtype: str = "auto"
    checkpoint_epochs: tuple[int, ...] | None = None
    drop_last: bool = True

    def __post_init__(self):
        _checks.real("learning_rate", self.learning_rate, minimum=0, exclusive_minimum=True)
        _checks.real("weight_decay", self.weight_decay, minimum=0)
        _checks.real("momentum", self.momentum, minimum=0, maximum=1, exclusive_maximum=True)
        _checks.integer("batch_size", self.batch_size, minimum=1)
        _checks.integer("num_epochs", self.num_epochs, minimum=1)
        _checks.integer("pad", self.pad, minimum=0)
        _checks.real("factor", self.factor, minimum=0, exclusive_minimum=True, maximum=1)
        _checks.real("warmup", self.warmup, minimum=0, maximum=1, exclusive_maximum=True)
        _checks.choice("schedule", self.schedule, SCHEDULES)
        _checks.choice("loss", self.loss, LOSSES)
        _checks.choice("augment", self.augment, AUGMENTATIONS)
        _checks.choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        inside = all(0 < each < 1 for each in self.milestones)
        if not inside or list(self.milestones) != sorted(set(self.milestones)):
            raise ArgumentError(
                f"Argument `milestones` must be increasing fractions in (0, 1), but is {self.milestones}."
            )
        if self.checkpoint_epochs is not None:
            self._check_epochs(self.checkpoint_epochs)

    def _check_epochs(self, epochs: tuple[int, ...]) -> None:
        for each in epochs:
            _checks.integer("checkpoint_epochs", each, minimum=0)
        if list(epochs) != sorted(set(epochs)) or (epochs and epochs[-1] > self.num_epochs):
            raise ArgumentError(
                f"Argument `checkpoint_epochs` must be increasing epochs in 0..{self.num_epochs}, but is {epochs}."
            )

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """Epochs at which checkpoints are kept and callbacks run."""
        if self.checkpoint_epochs is not None:
            return tuple(int(each) for each in self.checkpoint_epochs)
        spaced = np.rint(np.geomspace(1, self.num_epochs, _NUM_CHECKPOINTS)).astype(int)
        return (0, *(int(each) for each in np.unique(spaced)))

    def dtype_on(self, platform: str) -> str:
        """Name of the compute dtype on a platform such as "cpu", "gpu" or "tpu"."""
        if self.compute_dtype != "auto":
            return self.compute_dtype
        return "float32" if platform == "cpu" else "bfloat16"

    def steps_per_epoch(self, num_samples: int) -> int:
        """Number of steps of an epoch over `num_samples` images."""
        full, rest = divmod(num_samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def rates(self, num_samples: int) -> Float[np.ndarray, "E T"]:
        """Learning rate of every step, one row an epoch."""
        steps = self.steps_per_epoch(num_samples)
        rates = learning_rates(
            self.schedule,
            self.learning_rate,
            self.num_epochs * steps,
            milestones=self.milestones,
            factor=self.factor,
            warmup=self.warmup,
        )
        return rates.reshape(self.num_epochs, steps)

    def memory_factors(self, num_samples: int) -> Float[np.ndarray, " epochs"]:
        """Share of its initial value that weight decay alone leaves of a decayed parameter, after 0..E epochs.

        The loss adds to parameters, decay multiplies them: a parameter is s_t times its initial value plus what the
        gradients have added, with s the solution of the update above for the gradient `weight_decay s`, started at
        s = 1 and v = 0. For small rates s_t^2 = exp(-2 weight_decay sum(rates) / (1 - momentum)). An identity of the
        update; for a linear feature map it is the whole memory (`theory.memory_factor`, which is its closed form at
        a constant rate and without Nesterov's term).

        Args:
            num_samples: number of training images, which sets the steps of an epoch.

        Returns:
            The factors s, dimensionless; the first is 1.
        """
        share, speed, factors = 1.0, 0.0, [1.0]
        for epoch in self.rates(num_samples):
            for rate in epoch:
                slope = self.weight_decay * share
                speed = self.momentum * speed + slope
                share -= float(rate) * (slope + self.momentum * speed if self.nesterov else speed)
            factors.append(share)
        return np.array(factors)
