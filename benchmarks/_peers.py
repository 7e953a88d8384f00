"""The sweep's update written for PyTorch and NumPy, and the machine's own rate of batched matrix products.

Every function runs full-batch gradient descent on the two-layer ReLU net f(x) = readout . relu(x W) with a fixed
readout, logistic loss and weight decay:
W <- (1 - eta lambda) W - eta X' [r readout' * (X W > 0)], r_i = -y_i sigmoid(-y_i f_i)/N.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import _timing


@dataclass(frozen=True)
class Problem:
    """Samples and initial weights of S seeds, all of one dtype, and the constants of the update."""

    inputs: np.ndarray  # (S, N, d)
    signs: np.ndarray  # (S, N)
    kernel: np.ndarray  # (S, d, m)
    readout: np.ndarray  # (m,)
    rate: float
    decay: float


def numpy_loop(problem: Problem, num_steps: int) -> np.ndarray:
    """Final weights (S, d, m), seed after seed."""
    final = []
    number = problem.kernel.dtype.type
    shrink, rate = number(1 - problem.rate * problem.decay), number(problem.rate)
    for x, y, w in zip(problem.inputs, problem.signs, problem.kernel, strict=True):
        per_sample = -y / number(len(y))
        for _ in range(num_steps):
            z = x @ w
            f = np.maximum(z, 0) @ problem.readout
            r = per_sample / (1 + np.exp(y * f))
            w = shrink * w - rate * (x.T @ (np.outer(r, problem.readout) * (z > 0)))
        final.append(w)
    return np.stack(final)


def torch_devices() -> tuple[str, ...]:
    """PyTorch's devices: the CPU; where ours runs on an accelerator also a GPU that PyTorch sees; none without it."""
    if find_spec("torch") is None:
        return ()
    import torch  # pyright: ignore[reportMissingImports]

    has_gpu = _timing.device() != "cpu" and torch.cuda.is_available()
    return ("cuda", "cpu") if has_gpu else ("cpu",)


def named(name: str, device: str) -> str:
    """What a peer on a device is called: the CPU needs no mention."""
    return name if device == "cpu" else f"{name}, on {device}"


def device_of(name: str) -> tuple[str, str]:
    """Undo `named`: what a peer is called without its device, and the kind of that device."""
    bare, _, device = name.partition(", on ")
    return bare, {"": "cpu", "cuda": "gpu"}.get(device, device)


def torch_loop(problem: Problem, num_steps: int, update: Callable[..., Any], device: str = "cpu") -> np.ndarray:
    """Final weights (S, d, m) of one of the `torch_*` updates, seed after seed."""
    import torch  # pyright: ignore[reportMissingImports]

    tensors = [torch.from_numpy(a).to(device) for a in (problem.inputs, problem.signs, problem.kernel)]
    readout = torch.from_numpy(problem.readout).to(device)
    final = [update(x, y, w, readout, problem, num_steps) for x, y, w in zip(*tensors, strict=True)]
    return torch.stack(final).cpu().numpy()


def torch_autograd(x, y, kernel, readout, problem: Problem, num_steps: int):
    """The update as most people write it."""
    import torch  # pyright: ignore[reportMissingImports]

    w = kernel.clone().requires_grad_()
    for _ in range(num_steps):
        f = torch.relu(x @ w) @ readout
        loss = torch.nn.functional.softplus(-y * f).mean() + problem.decay / 2 * (w**2).sum()
        (gradient,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= problem.rate * gradient
    return w.detach()


def torch_manual(x, y, w, readout, problem: Problem, num_steps: int):
    """The gradient by hand, one expression a line."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        for _ in range(num_steps):
            z = x @ w
            f = torch.relu(z) @ readout
            r = -y * torch.sigmoid(-y * f) / len(y)
            gradient = x.T @ (torch.outer(r, readout) * (z > 0))
            w = (1 - problem.rate * problem.decay) * w - problem.rate * gradient
    return w


def torch_in_place(x, y, kernel, readout, problem: Problem, num_steps: int):
    """The gradient by hand, tuned: buffers reused, products fused, constants and the transpose outside the loop."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        w, z = kernel.clone(), torch.empty(len(y), kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
        step = (-problem.rate * x.T).contiguous()
        minus, per_sample = -y, -y / len(y)
        shrink = 1 - problem.rate * problem.decay
        for _ in range(num_steps):
            torch.mm(x, w, out=z).relu_()
            r = torch.mv(z, readout).mul_(minus).sigmoid_().mul_(per_sample)
            backward = torch.ops.aten.threshold_backward(torch.outer(r, readout), z, 0)
            w.mul_(shrink).addmm_(step, backward)
    return w


@contextlib.contextmanager
def torch_processes(problem: Problem, num_steps: int) -> Iterator[Callable[[], np.ndarray]]:
    """`torch_in_place` on every core: processes of one thread, each with its share of the seeds, that stay alive."""
    shares = np.array_split(np.arange(len(problem.kernel)), len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), context, _torch_begin, (problem,)) as workers:

        def call() -> np.ndarray:
            return np.concatenate(list(workers.map(_torch_share, shares, [num_steps] * len(shares))))

        yield call


_given: Problem | None = None


def _torch_begin(problem: Problem) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    global _given
    _given = problem
    torch.set_num_threads(1)


def _torch_share(seeds: np.ndarray, num_steps: int) -> np.ndarray:
    assert _given is not None
    parts = {name: getattr(_given, name)[seeds] for name in ("inputs", "signs", "kernel")}
    return torch_loop(replace(_given, **parts), num_steps, torch_in_place)


def torch_vmap(problem: Problem, num_steps: int, device: str = "cpu") -> np.ndarray:
    """Final weights (S, d, m), all seeds at once under `torch.func.vmap`."""
    import torch  # pyright: ignore[reportMissingImports]

    x, y, w = (torch.from_numpy(a).to(device) for a in (problem.inputs, problem.signs, problem.kernel))
    readout = torch.from_numpy(problem.readout).to(device)

    def loss(w, x, y):
        f = torch.relu(x @ w) @ readout
        return torch.nn.functional.softplus(-y * f).mean() + problem.decay / 2 * (w**2).sum()

    gradient = torch.func.vmap(torch.func.grad(loss))
    for _ in range(num_steps):
        w = w - problem.rate * gradient(w, x, y)
    return w.cpu().numpy()


@dataclass(frozen=True)
class MatmulRate:
    """Best rate in FLOP/s of the two products of a step, X W and X' Z, over batch sizes and three ways of timing."""

    flops: float
    batch: int
    how: str


def matmul_rate(
    num_samples: int, input_dim: int, width: int, *, batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64), repeats: int
) -> MatmulRate:
    """Measure what batched products of the sweep's shapes reach in JAX with nothing else to do.

    Counted as 2 N d m a product. "calls": each product alone, from Python, arguments in cache. "loop": both products in
    turns in one compiled loop, where the call costs nothing but the second product waits for the first. "loop a core":
    as many such loops side by side as this process has cores, each on arrays of its own.
    """
    cores = len(os.sched_getaffinity(0))
    best = MatmulRate(0.0, 0, "")
    for batch in batches:
        work = 2.0 * batch * num_samples * input_dim * width
        x = jnp.full((batch, num_samples, input_dim), 0.01, dtype=jnp.float32)
        w = jnp.full((batch, input_dim, width), 0.01, dtype=jnp.float32)
        seconds = _matmul_calls(x, w, 10 * repeats)
        best = max(best, MatmulRate(2 * work / seconds, batch, "calls"), key=lambda rate: rate.flops)
        num_steps = int(min(1000, max(1, 1e9 / work)))
        seconds = _matmul_loop(x, w, num_steps, repeats, copies=1)
        best = max(best, MatmulRate(2 * work / seconds, batch, "loop"), key=lambda rate: rate.flops)
        seconds = _matmul_loop(x, w, num_steps, repeats, copies=cores)
        best = max(best, MatmulRate(2 * work * cores / seconds, batch, "loop a core"), key=lambda rate: rate.flops)
    return best


def _forward(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("bnd,bdm->bnm", x, w)


def _backward(x: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.einsum("bnd,bnm->bdm", x, z)


def _matmul_calls(x: jax.Array, w: jax.Array, repeats: int) -> float:
    forward, backward = jax.jit(_forward), jax.jit(_backward)
    z = jax.block_until_ready(forward(x, w))
    times = _timing.time_call(lambda: forward(x, w), repeats=repeats)
    return times.best + _timing.time_call(lambda: backward(x, z), repeats=repeats).best


def _matmul_loop(x: jax.Array, w: jax.Array, num_steps: int, repeats: int, copies: int) -> float:
    @jax.jit
    def run(x, w):
        return lax.fori_loop(0, num_steps, lambda _, w: 1e-3 * _backward(x, _forward(x, w)), w)

    arrays = [(x + copy, w + copy) for copy in range(copies)]
    with ThreadPoolExecutor(copies) as workers:

        def run_all():
            return list(workers.map(lambda pair: jax.block_until_ready(run(*pair)), arrays))

        return _timing.time_call(run_all, repeats=repeats).best / num_steps
