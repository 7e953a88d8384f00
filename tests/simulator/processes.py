"""Programs that the tests of several processes start, and how they start and end them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nctheory import distributed, simulator
from nctheory.simulator import _chunks, _program, _together
from nctheory.simulator._parts import PartStore, take_lock

ROOT = Path(__file__).parents[2]
RATES, SEEDS, CHUNK = [0.1, 0.4, 0.7], 7, 4  # 21 rows: five chunks of 4 and one row, padded


def walk(rate, key):
    """A few steps of a noisy map; its results have several dtypes and sizes, and a NaN."""
    x = jnp.tanh(rate * jax.random.normal(key, (5,))).cumsum()
    seed = jax.random.key_data(key)[1]
    return {"x": x, "seed": seed, "bad": jnp.where(seed == 2, jnp.nan, x[0]), "sign": x > 0}


def lone(**options):
    """The sweep of all these programs; without processes around it, what they must give."""
    options = {"chunk_size": CHUNK, "progress": False, **options}
    return simulator.sweep(walk, RATES, SEEDS, **options)


class Ended(NamedTuple):
    """A process that ended."""

    code: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(what: str, *arguments, devices: int | None = None) -> subprocess.Popen:
    """Start a program of this module in the precision of this process."""
    names = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
    environment |= {name.upper(): str(getattr(jax.config, name)) for name in names}
    if devices is not None:
        flags = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "tests.simulator.processes", what, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finish(processes: list[subprocess.Popen], timeout_s: float = 90) -> list[Ended]:
    """Wait for processes; those that do not end in time are killed, and the test fails."""
    began, ended = time.monotonic(), []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(timeout_s - (time.monotonic() - began), 0.1))
            ended.append(Ended(process.returncode, out, err, time.monotonic() - began))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return ended


def together(count: int, what: str, folder: Path, *arguments, **options) -> list[Ended]:
    """Run a program in several processes that meet on this machine."""
    port = free_port()
    return finish([start(what, folder, port, count, i, *arguments, **options) for i in range(count)])


def join(port: str, count: str, index: str) -> None:
    distributed.initialize(f"127.0.0.1:{port}", int(count), int(index), start_timeout=45)


def save(path: Path, result: simulator.SweepResult) -> None:
    told = {name: getattr(result, name) for name in ("chunk_size", "num_resumed", "num_workers", "process_seconds")}
    leaves = {f"history-{name}": leaf for name, leaf in result.history.items()}
    np.savez(path, finite=result.finite, told=json.dumps(told), **leaves)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """History and facts of a result that another process saved."""
    with np.load(path) as stored:
        history = {name.removeprefix("history-"): stored[name] for name in stored.files if "history" in name}
        return history, {**json.loads(str(stored["told"])), "finite": stored["finite"]}


def run_everywhere(folder: Path, *place: str) -> None:
    """The same sweep with every way of bringing the chunks together."""
    join(*place)
    index, compilations = distributed.process_index(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compilations.append(event) if "backend_compile" in event else None
    )
    results = {"shared": lone(checkpoint=folder / "shared")}
    assert len(compilations) == 1, compilations
    results["none"] = lone()
    results["own"] = lone(checkpoint=folder / f"own-{index}")
    devices = np.asarray(jax.devices())
    results["mesh"] = lone(mesh=jax.sharding.Mesh(devices, ("rows",)), checkpoint=folder / "mesh")
    results["again"] = lone(checkpoint=folder / f"own-{index}")
    # Finished, and by now not to be written.
    usual, os.access = os.access, lambda *_: False
    results["kept"] = lone(checkpoint=folder / "shared")
    os.access = usual
    results["auto"] = lone(chunk_size="auto")
    for name, result in results.items():
        save(folder / f"{name}-{index}.npz", result)
    (folder / f"told-{index}.json").write_text(json.dumps(fail_in_process_0(folder)))
    print("done", len(devices), jax.local_device_count())  # noqa: T201


def fail_in_process_0(folder: Path) -> dict[str, tuple[str, float]]:
    """What every process is told, and after how long, of what only process 0 stumbles over; it lives on."""
    told, usual = {}, PartStore.open

    def attempt(name, work):
        began = time.monotonic()
        try:
            work()
        except Exception as error:
            told[name] = (f"{type(error).__name__}: {error}", time.monotonic() - began)

    def broken(*_):
        raise OSError(5, "Input/output error")

    PartStore.open = broken
    attempt("open", lambda: lone(checkpoint=folder / "broken"))
    PartStore.open = usual
    ready = simulator.prepare(walk, RATES, SEEDS, chunk_size=CHUNK, checkpoint=folder / "held")
    held = take_lock(folder / "held") if distributed.is_main() else None
    attempt("lock", lambda: ready.run(progress=False))
    if held is not None:
        os.close(held)
    (folder / "held" / ".lock").unlink(missing_ok=True)
    return told


def measure_together(folder: Path, *place: str) -> None:
    """Sweeps whose size process 0 measures, and of which another than the estimate is made to win."""
    join(*place)
    index = distributed.process_index()
    _program.num_cores, _program.auto_chunk_size = lambda: 2, lambda *_: 2
    _chunks.FEWEST_CHUNKS, _chunks.COST_SHARE, _chunks.MARGIN = 1, 1e9, -1e9
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",))
    folders = {"none": None, "shared": folder / "shared", "own": folder / f"own-{index}"}
    results = {name: lone(chunk_size="measured", checkpoint=each) for name, each in folders.items()}
    results["mesh"] = lone(chunk_size="measured", mesh=mesh)
    for name, result in results.items():
        save(folder / f"{name}-{index}.npz", result)
        print(result.chunk_choice.way, result.chunk_choice.reason, flush=True)  # noqa: T201


def run_once(folder: Path, *place: str) -> None:
    """One sweep in one folder."""
    join(*place)
    save(folder / f"result-{distributed.process_index()}.npz", lone(checkpoint=folder / "parts"))


def die_half_way(folder: Path, port: str, count: str, index: str, dying: str, how: str) -> None:
    """One sweep in one folder; one of the processes is killed when it is about to store its second chunk."""
    join(port, count, index)
    usual, calls = PartStore.save, []

    def deadly(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2 and index == dying:
            os.kill(os.getpid(), getattr(signal, how))
        usual(self, *arguments)

    PartStore.save = deadly
    lone(checkpoint=folder / "parts")


def run_another(folder: Path, port: str, count: str, index: str) -> None:
    """Every process sweeps other seeds, by mistake."""
    join(port, count, index)
    _together._PREPARE_TIMEOUT_S = 2.0
    simulator.sweep(walk, RATES, 5 + int(index), checkpoint=folder / "parts", progress=False)


def mesh_of_local_devices(folder: Path) -> None:
    """Finish what another number of devices has begun."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",))
    save(folder / "result-0.npz", lone(mesh=mesh, checkpoint=folder / "parts"))


def hold_the_lock(folder: Path) -> None:
    """Write into a folder for ever."""
    with PartStore.open(folder, {}).lock():
        print("locked", flush=True)  # noqa: T201
        time.sleep(60)


if __name__ == "__main__":
    # Under its own name, so that `walk` has the name that a fingerprint in another process holds.
    from tests.simulator import processes

    getattr(processes, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:])
