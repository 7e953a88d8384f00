"""Speed of one sweep on one process, on several processes of this machine, and on several forced host devices.

Run: python -m benchmarks.scaling_speed [--processes 2] [--devices 8] [--quick] [--out FILE.json]

All of them share the same cores, so the best that a split can do is to lose nothing: the ratio is the throughput of the
split sweep over that of the whole one, 1 at best. Strong scaling splits the same seeds; weak scaling gives every device
as many seeds as one device has alone, and its throughput is held against the best that one device reaches. Processes
run twice: as they are started, when they divide the cores, and not bound, when each may use all of them.
Compilation is left out, the meeting of the processes at the end is not. Every way runs in processes of its own, in
turns, so that a change of load meets all of them; the best of the repeats counts.
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
    weak_devices: tuple[int, ...] = (1, 2, 4, 8)
    """Forced host devices of weak scaling."""
    weak_seeds: int = 32
    """Seeds of each of these devices."""
    size: str = "arithmetic"
    """Problem size, "overhead" or "arithmetic" of benchmarks.sweep_speed."""
    repeats: int = 2
    """Turns; in each the sweep runs twice."""
    timeout: int = 600
    """Longest that one turn of one way may take, in seconds."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


@dataclass(frozen=True)
class Way:
    """One way to run the sweep.

    Attributes:
        num_seeds: seeds of the sweep.
        processes: processes that share it.
        devices: forced host devices of each; a single one splits chunks between threads.
        is_bound: whether the processes divide the cores.
    """

    num_seeds: int
    processes: int = 1
    devices: int = 1
    is_bound: bool = True


def work(task: dict[str, Any]) -> None:
    """Run the sweep in this process, and print how long it took."""
    from nctheory import distributed

    if task["processes"] > 1:
        place = (task["coordinator"], task["processes"], task["index"])
        distributed.initialize(*place, bind_cores=task["is_bound"])
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


def time_split(config: Config, way: Way) -> dict[str, Any]:
    """One turn of one way: what process 0 says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}={way.devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    task = {**asdict(way), "coordinator": coordinator, "size": config.size, "num_steps": config.num_steps}
    started = []
    for index in range(way.processes):
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


WHOLE = "one process"


def ways_of(config: Config) -> dict[str, Way]:
    """Every way by name."""
    processes, seeds = config.processes, config.num_seeds
    ways = {
        WHOLE: Way(seeds),
        f"{processes} processes": Way(seeds, processes=processes),
        f"{processes} processes, not bound": Way(seeds, processes=processes, is_bound=False),
        f"{config.devices} devices": Way(seeds, devices=config.devices),
    }
    return ways | {_weak(count): Way(count * config.weak_seeds, devices=count) for count in config.weak_devices}


def _weak(count: int) -> str:
    return f"weak, {count} device{'s' if count > 1 else ''}"


def table(record: dict[str, Any]) -> "list[Row]":
    """What the stored record comes down to."""
    from benchmarks._table import Row

    config, ways = record["config"], record["ways"]
    rates = {name: way["seed_steps_per_s"] for name, way in ways.items()}
    on: dict[str, Any] = {"ours_on": "cpu", "peer_on": "cpu"}
    rows, what = [], f"sweep, {config['size']} size"
    for name, rate in rates.items():
        if name != WHOLE and not name.startswith("weak"):
            split = f"{what}, {config['num_seeds']} seeds, {name}"
            required = None if "not bound" in name else 0.75 if "processes" in name else 0.8
            rows.append(Row(split, "seed-steps/s", rate, f"{WHOLE}, same cores", rates[WHOLE], required=required, **on))
    counts = [count for count in config.get("weak_devices", ()) if count > 1]
    best = max((rates[name] for name in (WHOLE, _weak(1)) if name in rates), default=None)
    for count in counts:
        split = f"{what}, {config['weak_seeds']} seeds on each of {count} devices"
        required = 0.8 if count == max(counts) else None
        rows.append(
            Row(
                split,
                "seed-steps/s",
                rates[_weak(count)],
                "one device's best, same cores",
                best,
                required=required,
                **on,
            )
        )
    return rows


def main(config: Config) -> None:
    """Measure every way in turns, print, store."""
    from benchmarks import _timing

    if config.quick:
        config = replace(config, num_seeds=16, num_steps=20, weak_devices=(1,), weak_seeds=8, repeats=1)
    before = _timing.provenance()
    print(before["machine"])
    ways = ways_of(config)
    best: dict[str, dict[str, Any]] = {}
    for _ in range(config.repeats):
        for name, way in ways.items():
            row = time_split(config, way)
            row["seed_steps_per_s"] = way.num_seeds * config.num_steps / row["seconds"]
            if name not in best or row["seconds"] < best[name]["seconds"]:
                best[name] = row
    whole = best[WHOLE]["seed_steps_per_s"]
    print(
        f"{config.size}, {config.num_seeds} seeds, {config.num_steps} steps; weak: {config.weak_seeds} seeds a device"
    )
    print(f"{'':<42} {'seed-steps/s':>14} {'ratio':>7} {'chunk':>6} {'workers':>8} {'compiled in':>12}")
    for name, row in best.items():
        row["ratio"] = row["seed_steps_per_s"] / whole
        shown = f"{row['seed_steps_per_s']:>14,.0f} {row['ratio']:>7.2f} {row['chunk_size']:>6} {row['workers']:>8}"
        print(f"{name:<42} {shown} {row['compile_s']:>10.1f} s")
    if config.out is not None:
        _timing.store(config.out, before, {"config": asdict(replace(config, out=None)), "ways": best})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Config))
