"""The unconstrained feature model written for PyTorch: its objective, L-BFGS, and plain gradient descent.

Every function minimises

    L = (1/N) sum_i fit(H W_1^T ... W_M^T, y)_i + (lambda_W/2) sum_m |W_m|^2 + (lambda_H/2) copies |H|^2,

fit = |z - e_y|^2/2 or softmax cross-entropy, over features H and layers W_1..W_M without bias. `copies` is 1 for one
feature a sample and n for one feature a class of n samples. Descent is v <- momentum v + gradient, p <- p - rate v.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Start:
    """Initial points of S seeds, all of one dtype, with the constants of the objective."""

    features: np.ndarray  # (S, rows, d)
    weights: tuple[np.ndarray, ...]  # (S, d_{m+1}, d_m)
    labels: np.ndarray  # (rows,)
    loss: str
    weight_decay: float
    feature_decay: float
    copies: int = 1
    rate: float = 0.1
    momentum: float = 0.9
    device: str = "cpu"

    def tensor(self, array: np.ndarray) -> Any:
        """A copy of an array on PyTorch's device."""
        import torch  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(array.copy()).to(self.device)

    @property
    def targets(self) -> np.ndarray:
        """One-hot labels."""
        return np.eye(self.weights[-1].shape[-2], dtype=self.features.dtype)[self.labels]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """H, W_1..W_M, seeds first."""
        return self.features, *self.weights

    def seed(self, index: int) -> "Start":
        """The start of one seed, without the first axis."""
        return replace(self, features=self.features[index], weights=tuple(w[index] for w in self.weights))

    def averaged(self) -> "Start":
        """One feature a class, its mean: the same problem for equal class sizes, once features agree in a class."""
        num_classes = self.weights[-1].shape[1]
        means = self.features.reshape(len(self.features), num_classes, -1, self.features.shape[2]).mean(axis=2)
        copies = len(self.labels) // num_classes
        return replace(self, features=means, labels=np.arange(num_classes), copies=copies)


def objective(start: Start) -> Callable[..., Any]:
    """The objective as a function of (H, W_1, ..., W_M)."""
    import torch  # pyright: ignore[reportMissingImports]

    targets, labels = start.tensor(start.targets), start.tensor(start.labels)

    def value(features, *weights):
        outputs = features
        for weight in weights:
            outputs = outputs @ weight.T
        if start.loss == "mse":
            fit = ((outputs - targets) ** 2).sum() / (2 * len(labels))
        else:
            fit = torch.nn.functional.cross_entropy(outputs, labels)
        decay = start.weight_decay * sum((weight**2).sum() for weight in weights)
        return fit + (decay + start.feature_decay * start.copies * (features**2).sum()) / 2

    return value


@dataclass(frozen=True)
class LbfgsRuns:
    """What PyTorch's L-BFGS did, one entry a seed."""

    seconds: np.ndarray
    loss: np.ndarray
    evaluations: np.ndarray
    reached: np.ndarray


class Reached(Exception):
    """The loss is at its bound."""


def in_rounds(search: Callable[[int], None], losses: list[float], max_evaluations: int) -> bool:
    """Search on from where the last search ended, until the bound is reached or a search gains nothing.

    Args:
        search: makes at most as many evaluations as it is told, and raises `Reached` at the bound.
        losses: of all evaluations so far; `search` adds its own.
        max_evaluations: evaluations of all searches together.

    Returns:
        Whether the bound was reached.
    """
    best = np.inf
    while len(losses) < max_evaluations:
        try:
            search(max_evaluations - len(losses))
        except Reached:
            return True
        if min(losses) >= best:
            break
        best = min(losses)
    return False


def lbfgs(start: Start, bound: float, *, history: int, max_evaluations: int = 3000) -> LbfgsRuns:
    """`torch.optim.LBFGS` with strong Wolfe line searches, seed after seed.

    It stops at the first evaluation with loss <= bound: whoever does not know the minimum has to go on, so this is the
    least it can need. A search that ends before (its line search found no step) starts over from the point reached,
    without history; the seed counts as stalled when that gains nothing either, or after `max_evaluations`.
    """
    value = objective(start)
    rows = [_lbfgs_seed(value, start.seed(i), bound, history, max_evaluations) for i in range(len(start.features))]
    return LbfgsRuns(*(np.array(column) for column in zip(*rows, strict=True)))


def _lbfgs_seed(value, start: Start, bound: float, history: int, max_evaluations: int):
    import torch  # pyright: ignore[reportMissingImports]

    began = time.perf_counter()
    parameters = [start.tensor(array).requires_grad_() for array in start.arrays]
    losses: list[float] = []

    def closure():
        for parameter in parameters:
            parameter.grad = None
        loss = value(*parameters)
        losses.append(loss.item())
        if losses[-1] <= bound:
            raise Reached
        loss.backward()
        return loss

    def search(left: int) -> None:
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=max_evaluations,
            max_eval=left,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=history,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)

    reached = in_rounds(search, losses, max_evaluations)
    return time.perf_counter() - began, min(losses), len(losses), reached


def descent_loop(start: Start, num_steps: int, update: Callable[..., Any]) -> list[np.ndarray]:
    """Final H, W_1..W_M, seeds first, of one of the `loop_*` updates, seed after seed."""
    final = [update(start.seed(i), num_steps) for i in range(len(start.features))]
    return [np.stack([parameter.cpu().numpy() for parameter in column]) for column in zip(*final, strict=True)]


def loop_autograd(start: Start, num_steps: int) -> Sequence[Any]:
    """The update as most people write it, without the cost of `torch.optim`."""
    import torch  # pyright: ignore[reportMissingImports]

    value = objective(start)
    parameters = [start.tensor(array).requires_grad_() for array in start.arrays]
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(num_steps):
        gradients = torch.autograd.grad(value(*parameters), parameters)
        with torch.no_grad():
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(start.momentum).add_(gradient)
                parameter.sub_(velocity, alpha=start.rate)
    return [parameter.detach() for parameter in parameters]


def loop_manual(start: Start, num_steps: int) -> Sequence[Any]:
    """Depth 1, the gradient by hand, buffers reused, products fused with the update of the velocity."""
    import torch  # pyright: ignore[reportMissingImports]

    features, weight = (start.tensor(array) for array in start.arrays)
    targets = start.tensor(start.targets)
    velocity_h, velocity_w = torch.zeros_like(features), torch.zeros_like(weight)
    with torch.no_grad():
        for _ in range(num_steps):
            outputs = features @ weight.T
            if start.loss != "mse":
                outputs = torch.softmax(outputs, dim=1)
            residual = outputs.sub_(targets).div_(len(targets))
            velocity_w.mul_(start.momentum).add_(weight, alpha=start.weight_decay).addmm_(residual.T, features)
            velocity_h.mul_(start.momentum).add_(features, alpha=start.feature_decay).addmm_(residual, weight)
            features.sub_(velocity_h, alpha=start.rate)
            weight.sub_(velocity_w, alpha=start.rate)
    return features, weight


def descent_vmap(start: Start, num_steps: int) -> list[np.ndarray]:
    """Final H, W_1..W_M, all seeds at once under `torch.func.vmap`."""
    import torch  # pyright: ignore[reportMissingImports]

    parameters = [start.tensor(array) for array in start.arrays]
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    argnums = tuple(range(len(parameters)))
    gradients = torch.func.vmap(torch.func.grad(objective(start.seed(0)), argnums=argnums))
    for _ in range(num_steps):
        for parameter, velocity, gradient in zip(parameters, velocities, gradients(*parameters), strict=True):
            velocity.mul_(start.momentum).add_(gradient)
            parameter.sub_(velocity, alpha=start.rate)
    return [parameter.cpu().numpy() for parameter in parameters]


def descent_batched(start: Start, num_steps: int) -> list[np.ndarray]:
    """Depth 1, `loop_manual` for all seeds at once with batched products."""
    import torch  # pyright: ignore[reportMissingImports]

    features, weight = (start.tensor(array) for array in start.arrays)
    targets = start.tensor(start.targets)[None]
    velocity_h, velocity_w = torch.zeros_like(features), torch.zeros_like(weight)
    with torch.no_grad():
        for _ in range(num_steps):
            outputs = torch.bmm(features, weight.mT)
            if start.loss != "mse":
                outputs = torch.softmax(outputs, dim=2)
            residual = outputs.sub_(targets).div_(targets.shape[1])
            velocity_w.mul_(start.momentum).add_(weight, alpha=start.weight_decay).baddbmm_(residual.mT, features)
            velocity_h.mul_(start.momentum).add_(features, alpha=start.feature_decay).baddbmm_(residual, weight)
            features.sub_(velocity_h, alpha=start.rate)
            weight.sub_(velocity_w, alpha=start.rate)
    return [features.cpu().numpy(), weight.cpu().numpy()]
