"""Speed of one sweep on one process, on several processes of this machine, and on several forced host devices.

Run: python -m benchmarks.scaling_speed [--processes 2] [--devices 8] [--quick] [--out FILE.json]

All of them share the same cores, so the best that a split can do is to lose nothing: the ratio is the throughput of the
split sweep over that of the whole one, 1 at best. Compilation is left out, the meeting of the processes at the end is
not. Every way runs in processes of its own, in turns, so that a change of load meets all of them; the best of the
repeats counts.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from benchmarks._table import Row

# The number of devices and the processes are fixed before JAX starts: nothing here imports it on its way to a worker.
FORCED = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Config:
    """How to measure."""

    num_seeds: int = 256
    """Seeds of the sweep."""
    num_steps: int = 400
    """Updates of each seed."""
    processes: int = 2
    """Processes that share the sweep."""
    devices: int = 8
    """Forced host devices of one process that share the sweep."""
    size: str = "arithmetic"
    """Problem size, "overhead" or "arithmetic" of benchmarks.sweep_speed."""
    repeats: int = 3
    """Turns."""
    timeout: int = 600
    """Longest that one turn of one way may take, in seconds."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def work(task: dict[str, Any]) -> None:
    """Run the sweep in this process, and print how long it took."""
    from nctheory import distributed

    if task["processes"] > 1:
        distributed.initialize(task["coordinator"], task["processes"], task["index"])
    import jax
    import numpy as np

    from benchmarks import sweep_speed
    from nctheory import simulator

    size = next(each for each in sweep_speed.SIZES if each.name == task["size"])
    config = sweep_speed.train_config(size, num_steps=task["num_steps"])
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",)) if task["devices"] > 1 else None
    ready = simulator.prepare(simulator.train, config, task["num_seeds"], mesh=mesh)
    distributed.barrier("compiled")
    # The first one warms up.
    result = min((ready.run(progress=False) for _ in range(2)), key=lambda each: each.run_seconds)
    told = {"seconds": result.run_seconds, "chunk_size": result.chunk_size, "workers": result.num_workers}
    print(json.dumps({**told, "own": result.process_seconds, "compile_s": result.compile_seconds}))


def time_split(config: Config, processes: int, devices: int) -> dict[str, Any]:
    """One turn of one way: what process 0 says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    task = {"processes": processes, "devices": devices, "coordinator": coordinator, "size": config.size}
    task |= {"num_seeds": config.num_seeds, "num_steps": config.num_steps}
    started = []
    for index in range(processes):
        command = [sys.executable, "-m", "benchmarks.scaling_speed", "worker", json.dumps({**task, "index": index})]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [each.communicate(timeout=config.timeout)[0] for each in started]
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
    if any(each.returncode for each in started):
        raise SystemExit(f"a process ended with code {[each.returncode for each in started]}")
    return json.loads(said[0].splitlines()[-1])


def table(record: dict[str, Any]) -> "list[Row]":
    """What the stored record comes down to."""
    from benchmarks._table import Row

    config, ways = record["config"], record["ways"]
    rates = {name: way["seed_steps_per_s"] for name, way in ways.items()}
    rows = []
    for name, required in ((f"{config['processes']} processes", 0.75), (f"{config['devices']} devices", 0.8)):
        what = f"sweep, {config['size']} size, {config['num_seeds']} seeds on {name} of the same cores"
        rows.append(Row(what, "seed-steps/s", rates[name], "one process", rates["one process"], required=required))
    return rows


def main(config: Config) -> None:
    """Measure every way in turns, print, store."""
    from benchmarks import _timing

    if config.quick:
        config = replace(config, num_seeds=32, num_steps=20, repeats=1)
    before = _timing.provenance()
    print(before["machine"])
    ways = {
        "one process": (1, 1),
        f"{config.processes} processes": (config.processes, 1),
        f"{config.devices} devices": (1, config.devices),
    }
    best: dict[str, dict[str, Any]] = {}
    for _ in range(config.repeats):
        for name, (processes, devices) in ways.items():
            row = time_split(config, processes, devices)
            if name not in best or row["seconds"] < best[name]["seconds"]:
                best[name] = row
    whole = best["one process"]["seconds"]
    print(f"{config.size}, {config.num_seeds} seeds, {config.num_steps} steps; best of {config.repeats}")
    print(f"{'':<14} {'seed-steps/s':>14} {'ratio':>7} {'chunk':>6} {'compiled in':>12}")
    for name, row in best.items():
        row["seed_steps_per_s"] = config.num_seeds * config.num_steps / row["seconds"]
        row["ratio"] = whole / row["seconds"]
        shown = (
            f"{row['seed_steps_per_s']:>14,.0f} {row['ratio']:>7.2f} {row['chunk_size']:>6} {row['compile_s']:>10.1f} s"
        )
        print(f"{name:<14} {shown}")
    if config.out is not None:
        _timing.store(config.out, before, {"config": asdict(replace(config, out=None)), "ways": best})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Config))
