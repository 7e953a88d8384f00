"""Timing and memory of one call, with the hardware and versions a figure is worth nothing without."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nctheory import _provenance


@dataclass(frozen=True)
class Timing:
    """Seconds of a repeated call; the first call, which compiles, stands apart."""

    first: float
    best: float
    median: float


def time_call(call: Callable[[], Any], *, repeats: int = 5) -> Timing:
    """Time a call: once cold, then `repeats` times; every result is waited for."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return Timing(seconds[0], min(seconds[1:]), statistics.median(seconds[1:]))


def time_side_by_side(calls: dict[str, Callable[[], Any]], *, repeats: int = 5) -> dict[str, Timing]:
    """Time several calls in turns, so that a change of the machine's load meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(s[0], min(s[1:]), statistics.median(s[1:])) for name, s in seconds.items()}


def device() -> str:
    """Kind of the device on which JAX computes: "cpu", "gpu" or "tpu"."""
    return jax.default_backend()


def reading_calls(array: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Ways to read an array once from the memory of the device: XLA's sum; on a CPU also NumPy's maximum, a core each.

    The faster one counts; to be timed in turns with what is held against it.
    """
    flat, add = jnp.asarray(array).reshape(-1), jax.jit(jnp.sum)
    calls: dict[str, Callable[[], Any]] = {"features read once, XLA": lambda: add(flat)}
    if device() == "cpu":
        parts = np.array_split(np.asarray(array).reshape(-1), len(os.sched_getaffinity(0)))
        workers = ThreadPoolExecutor(len(parts))
        calls["features read once, NumPy in threads"] = lambda: list(workers.map(np.max, parts))
    return calls


def read_once_seconds(array: np.ndarray, *, repeats: int = 5) -> float:
    """Seconds to read an array once in the faster of the `reading_calls`."""
    return min(timing.best for timing in time_side_by_side(reading_calls(array), repeats=repeats).values())


def memory_bandwidth(num_bytes: int = 1 << 29, *, repeats: int = 5) -> float:
    """Bytes per second at which an array beyond the usual caches is read with every core."""
    return num_bytes / read_once_seconds(np.ones(num_bytes // 4, np.float32), repeats=repeats)


def resident_bytes() -> int:
    """Resident memory of this process now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Start a new record of the highest resident memory of this process (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Highest resident memory since `reset_peak`. Not ru_maxrss: that one a new process inherits from its parent."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def describe_machine() -> str:
    """One line: versions, processor, usable cores, load and devices."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return (
        f"JAX {jax.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; {model}, "
        f"{len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS {threads}, load {os.getloadavg()[0]:.1f}; "
        f"devices: {', '.join(sorted({d.device_kind for d in jax.devices()}))}"
    )


def origin() -> dict[str, Any]:
    """Date, command, hardware, versions, commit and load now, without starting JAX's devices."""
    versions: dict[str, str | None] = {}
    for name in ("torch", "neural_collapse"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "date": _provenance.now(),
        "command": _provenance.command_line(),
        "hardware": _provenance.machine(),
        "load_before": os.getloadavg(),
        "versions": {**_provenance.package_versions(), **versions},
        "source": _provenance.source_state(),
    }


def provenance() -> dict[str, Any]:
    """The `origin` and the devices; taken before a measurement, as the checkout may change during it."""
    return {"machine": describe_machine(), **origin()}


def store(path: Path, before: dict[str, Any], result: dict[str, Any]) -> None:
    """Write a result with the `provenance` taken before it and the load after it."""
    record = {**before, "load_after": os.getloadavg(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
