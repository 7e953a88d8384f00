"""What it costs to resume a sweep of which all chunks but one are stored, besides that one chunk.

Run: python -m benchmarks.resume_speed [--quick] [--out FILE.json]

A sweep with a checkpoint runs to its end; then one chunk in the middle is taken away and a new process calls the same
sweep again. Overhead: wall time of that call, less compilation, less the time in which a sweep of one chunk runs
without a checkpoint, in the same process. What remains is tracing the fingerprint, looking for every chunk, reading all
but one back, storing one, and joining them; everything that grows with the number of chunks. Starting Python and
importing JAX is left out, as every run pays it. The best of the repeats counts.
"""

import multiprocessing
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import _timing, sweep_speed
from benchmarks._table import Row, within
from nctheory import simulator

LIMIT_SECONDS = 2.0


@dataclass(frozen=True)
class Config:
    """How to measure."""

    seeds: tuple[int, ...] = (1024, 4096)
    """Seeds of the sweeps, at the size "overhead" of benchmarks.sweep_speed."""
    num_steps: int = 200
    """Updates of each seed."""
    chunk_size: int = 16
    """Seeds that are stored together."""
    repeats: int = 2
    """New processes that resume."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def run_of(num_steps: int) -> simulator.TrainConfig:
    """The training run of every seed."""
    return sweep_speed.train_config(sweep_speed.SIZES[0], num_steps=num_steps)


def chunk_files(folder: Path) -> list[Path]:
    """Stored chunks, in order."""
    return sorted(folder.glob("chunk-*.npz"))


def resume(folder: Path, num_seeds: int, num_steps: int, chunk_size: int) -> dict[str, Any]:
    """Resume the sweep of a folder; seconds of the call and of its parts.

    Args:
        folder: checkpoint without one chunk.
        num_seeds: seeds of the sweep.
        num_steps: updates of each.
        chunk_size: seeds of a chunk.

    Returns:
        Seconds of the whole call, of compilation, of a sweep of one chunk, and what remains.
    """
    run = run_of(num_steps)
    # Another program of the same kind, so that the first use of JAX and its compiler is not counted.
    simulator.prepare(simulator.train, run_of(1), 1)
    began = time.perf_counter()
    result = simulator.sweep(simulator.train, run, num_seeds, chunk_size=chunk_size, checkpoint=folder, progress=False)
    wall = time.perf_counter() - began
    assert result.num_resumed == num_seeds - chunk_size
    alone = simulator.prepare(simulator.train, run, chunk_size, chunk_size=chunk_size)
    chunk = min(alone.run(progress=False).run_seconds for _ in range(3))
    seconds = {"wall": wall, "compile": result.compile_seconds, "chunk": chunk}
    return {**seconds, "overhead": wall - result.compile_seconds - chunk}


def measure(config: Config, num_seeds: int) -> dict[str, Any]:
    """Fastest resumption of a sweep of so many seeds; the first run is whole and of this process."""
    with tempfile.TemporaryDirectory() as parent:
        folder, kept = Path(parent) / "sweep", Path(parent) / "chunk"
        run, options = run_of(config.num_steps), {"chunk_size": config.chunk_size, "checkpoint": folder}
        whole = simulator.sweep(simulator.train, run, num_seeds, progress=False, **options)
        files = chunk_files(folder)
        found = []
        for _ in range(config.repeats):
            shutil.move(files[len(files) // 2], kept)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(resume, (folder, num_seeds, config.num_steps, config.chunk_size)))
                pool.close()
                pool.join()
        num_bytes = sum(file.stat().st_size for file in files)
    best = min(found, key=lambda each: each["overhead"])
    sizes = {"num_seeds": num_seeds, "num_chunks": len(files), "bytes": num_bytes}
    return {**sizes, **best, "whole_run": whole.run_seconds, "repeats": found}


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    rows = []
    for each in record["rows"]:
        what = f"resuming {each['num_seeds']:,} seeds, 1 of {each['num_chunks']} chunks left: all but compiling and it"
        note = f"that chunk {each['chunk']:.2g} s, compiling {each['compile']:.2g} s"
        rows.append(within(what, "s", each["overhead"], LIMIT_SECONDS, ours_on=record["device"], note=note))
    return rows


def main(config: Config) -> None:
    """Measure, print, store."""
    if config.quick:
        config = replace(config, seeds=(32,), num_steps=20, chunk_size=4, repeats=1)
    before = _timing.provenance()
    print(before["machine"])
    print(f"{'seeds':>7} {'chunks':>7} {'wall, s':>9} {'compile':>9} {'chunk':>9} {'overhead':>9}")
    rows = []
    for num_seeds in config.seeds:
        row = measure(config, num_seeds)
        shown = " ".join(f"{row[name]:>9.3f}" for name in ("wall", "compile", "chunk", "overhead"))
        print(f"{num_seeds:>7} {row['num_chunks']:>7} {shown}", flush=True)
        rows.append(row)
    if config.out is not None:
        settings = {"config": asdict(replace(config, out=None)), "device": _timing.device()}
        _timing.store(config.out, before, {**settings, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Config))
