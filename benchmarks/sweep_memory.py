"""Memory of a sweep beside the formulas of docs/scaling.md.

Run: python -m benchmarks.sweep_memory [--quick] [--out FILE.json]

Two figures: what the compiled program of one share needs besides its arguments, by XLA's own account, for each seed in
flight; and the highest resident memory of a process that runs a sweep and keeps its history, above what it had before.
"""

import gc
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import _timing, sweep_speed
from benchmarks._table import Row
from nctheory import simulator

# Arrays of the optimiser as large as the weights.
OPTIMIZER_ARRAYS = {"gd": 0, "sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2}
SHAPES = ((16, 64, 80), (32, 256, 200), (64, 64, 80))


@dataclass(frozen=True)
class Config:
    """How to measure."""

    share: int = 4
    """Seeds of one compiled call."""
    num_seeds: int = 4096
    """Seeds whose history is kept on the host."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def train_config(shape: tuple[int, int, int], **changes: Any) -> simulator.TrainConfig:
    """The training run of `sweep_speed` at input dimension, width and number of samples (d, m, N)."""
    dim, width, num_samples = shape
    size = replace(sweep_speed.SIZES[0], input_dim=dim, width=width, num_samples=num_samples)
    return replace(sweep_speed.train_config(size, num_steps=10), **changes)


def predicted_device_bytes(config: simulator.TrainConfig, shape: tuple[int, int, int]) -> float:
    """Bytes of one seed in flight: 4 N m + (3 + o) d m + N d numbers, o those of the optimiser.

    Four arrays over samples and units, three over weights, and the samples. The counts are fitted to the compiler's
    account on a CPU; another backend may need others.

    Args:
        config: the run, of the two-layer network with full batches.
        shape: input dimension, width, number of samples.

    Returns:
        Bytes in the precision that is on.
    """
    dim, width, num_samples = shape
    numbers = 4 * num_samples * width + num_samples * dim
    numbers += (3 + OPTIMIZER_ARRAYS[config.optimizer]) * dim * width
    return float(numbers * jax.dtypes.canonicalize_dtype(np.float64).itemsize)


def history_bytes(config: simulator.TrainConfig) -> int:
    """Bytes of the history of one seed."""
    shapes = jax.eval_shape(partial(simulator.train, config), jax.random.key(0))
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def device_bytes(config: simulator.TrainConfig, share: int) -> float:
    """Bytes that the compiled program needs for each of its seeds, besides arguments and results."""
    keys = jax.vmap(jax.random.key)(np.arange(share, dtype=np.uint32))
    compiled = jax.jit(jax.vmap(partial(simulator.train, config))).lower(keys).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / share


def host_bytes(num_seeds: int) -> int:
    """Highest resident bytes above those before the sweep, which compiled already; run it in a fresh process."""
    config = train_config(SHAPES[0], keep_params=True)
    ready = simulator.prepare(simulator.train, config, num_seeds)
    simulator.prepare(simulator.train, config, ready.chunk_size).run(progress=False)
    gc.collect()
    _timing.reset_peak()
    before = _timing.resident_bytes()
    result = ready.run(progress=False)
    peak = _timing.peak_bytes() - before
    assert result.num_resumed == 0
    return peak


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a function called in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(config: Config) -> dict[str, Any]:
    """Measured and predicted bytes."""
    rows = []
    for shape in SHAPES[: 1 if config.quick else None]:
        for optimizer in ("gd",) if config.quick else ("gd", "momentum", "adam"):
            run = train_config(shape, optimizer=optimizer)
            row = {"shape": shape, "optimizer": optimizer, "measured": device_bytes(run, config.share)}
            rows.append({**row, "predicted": predicted_device_bytes(run, shape)})
    run = train_config(SHAPES[0], keep_params=True)
    if config.quick:
        return {"device": rows, "host": None}
    # The chunks and, while they are joined, the whole history.
    host = {"num_seeds": config.num_seeds, "predicted": 2 * config.num_seeds * history_bytes(run)}
    return {"device": rows, "host": {**host, "measured": in_fresh_process(host_bytes, config.num_seeds)}}


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    rows = []
    for each in record["device"]:
        (dim, width, num_samples), optimizer = each["shape"], each["optimizer"]
        what = f"memory of a seed in flight, d {dim}, m {width}, N {num_samples}, {optimizer}"
        found, said = each["measured"] / 1e6, each["predicted"] / 1e6
        rows.append(Row(what, "MB", found, "formula", said, is_rate=False, ours_on=record.get("backend", "cpu")))
    host = record["host"]
    if host is None:
        return rows
    what = f"memory of the history on the host, {host['num_seeds']:,} seeds with weights"
    found, said = host["measured"] / 1e6, host["predicted"] / 1e6
    return [*rows, Row(what, "MB", found, "formula, 2 x history", said, is_rate=False, ours_on="cpu")]


def main(config: Config) -> None:
    """Measure, print, store."""
    before = _timing.provenance()
    print(before["machine"])
    record = measure(config)
    for row in table(record):
        print(f"{row.quantity}: {row.ours:.3f} {row.unit}, formula {row.peer:.3f} {row.unit}")
    if config.out is not None:
        settings = {"config": asdict(replace(config, out=None)), "backend": _timing.device()}
        _timing.store(config.out, before, {**settings, **record})


if __name__ == "__main__":
    main(tyro.cli(Config))
