"""Timing and memory of one call, with the hardware and versions a figure is worth nothing without."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
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


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and load now; taken before a measurement, as the checkout may change during it."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "machine": describe_machine(),
        "load_before": os.getloadavg(),
        "versions": {**_provenance.package_versions(), "torch": torch},
        "source": _provenance.source_state(),
    }


def store(path: Path, before: dict[str, Any], result: dict[str, Any]) -> None:
    """Write a result with the `provenance` taken before it and the load after it."""
    record = {**before, "load_after": os.getloadavg(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
