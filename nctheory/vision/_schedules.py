"""Learning rates of all steps, computed on the host so that every form of the training loop sees the same numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

SCHEDULES = ("constant", "step", "cosine", "one_cycle")
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 250_000


def learning_rates(
    schedule: str,
    peak: float,
    num_steps: int,
    *,
    milestones: Sequence[float] = (1 / 3, 2 / 3),
    factor: float = 0.1,
    warmup: float = 0.3,
) -> Float[np.ndarray, " T"]:
    """Learning rate of every step t = 0..T-1.

    * "constant": `peak`.
    * "step": `peak * factor^m`, m the number of milestones passed, that is with t >= milestone * T.
    * "cosine": `peak * (1 + cos(pi t / T)) / 2`.
    * "one_cycle": half a cosine wave from `peak`/25 at t = 0 up to `peak` at t = warmup * T - 1, then half a wave down
      to `peak`/250,000 at t = T - 1: the rates of PyTorch's OneCycleLR with its default divisors. Momentum stays as it
      is. Without room for a rise (warmup * T <= 1) it starts at the peak.

    Args:
        schedule: One of `SCHEDULES`.
        peak: Largest rate, in parameter units per gradient unit.
        num_steps: Number of steps T, >= 1.
        milestones: Increasing fractions of the training, for "step".
        factor: Multiplier at each milestone.
        warmup: Fraction of the training that "one_cycle" rises.

    Returns:
        The rates, rounded once from float64 to float32.
    """
    step = np.arange(num_steps, dtype=np.float64)
    if schedule == "constant":
        rates = np.full(num_steps, peak)
    elif schedule == "step":
        # The slack keeps a fraction such as 1/3 of 300 from ending just above the step that it means.
        passed = step[:, None] >= np.asarray(milestones, dtype=np.float64)[None, :] * num_steps - 1e-6
        rates = peak * factor ** passed.sum(axis=1)
    elif schedule == "cosine":
        rates = peak * (1 + np.cos(np.pi * step / num_steps)) / 2
    else:
        rates = _one_cycle(step, peak, num_steps, warmup)
    return rates.astype(np.float32)


def _one_cycle(step: np.ndarray, peak: float, num_steps: int, warmup: float) -> np.ndarray:
    top = max(warmup * num_steps - 1, 0.0)
    rise = step / top if top > 0 else np.ones_like(step)
    fall = (step - top) / max(num_steps - 1 - top, 1.0)
    up = peak + (ONE_CYCLE_START - 1) * peak * (1 + np.cos(np.pi * np.clip(rise, 0, 1))) / 2
    down = ONE_CYCLE_END * peak + (1 - ONE_CYCLE_END) * peak * (1 + np.cos(np.pi * np.clip(fall, 0, 1))) / 2
    return np.where(step <= top, up, down) if top > 0 else down
