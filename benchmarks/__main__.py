"""Run the benchmarks side by side, print one table of what they must reach, and store it as JSON.

    python -m benchmarks [--only sweep metrics ...] [--quick] [--update] [--out FILE.json]

Each benchmark runs in processes of its own, one after the other, all on the same cores. The file holds the rows of the
table, the curves of cost against size, the machine's own rates, everything that each benchmark stores by itself, and
date, commit, versions and hardware.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nctheory._cli import run_main
from nctheory._errors import ArgumentError

if TYPE_CHECKING:
    from benchmarks._table import Row

RESULTS = Path(__file__).parent / "results"
MODULES = {
    "sweep": "sweep_speed",
    "metrics": "metrics_speed",
    "ufm": "ufm_speed",
    "probe": "probe_speed",
    "images": "images_speed",
    "scaling": "scaling_speed",
    "resume": "resume_speed",
    "layers": "layers_speed",
    "memory": "sweep_memory",
    "growth": "growth",
}
"""Module of each benchmark, in the order in which they run."""
ORIGIN = ("date", "command", "hardware", "load_before", "versions", "source")
"""Where a stored result comes from; each part has its own."""
TAKES_THREADS = ("sweep", "ufm")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Config:
    """Run the benchmarks side by side, print one table of what they must reach, and store it as JSON."""

    only: tuple[str, ...] = ()
    """Benchmarks to run, of sweep, metrics, ufm, probe, images, scaling, resume, layers, memory and growth; by default
    all of them."""
    quick: bool = False
    """Run small versions, about two minutes in all on idle cores: shows that everything works, figures say little."""
    threads: int | None = None
    """Cores and threads for everybody; by default all cores that this process may use."""
    out: Path | None = None
    """Where to store the result. Default: benchmarks/results/all.json; with --quick, or --only without --update,
    nothing is stored."""
    update: bool = False
    """With --only: put what these benchmarks find into the stored result, in place of what it has of them. Each part
    says when and from which commit it is."""

    def __post_init__(self):
        if self.update and (self.quick or not self.only):
            raise ArgumentError("Argument `update` must be given with `only` and without `quick`, but is not.")
        unknown = [name for name in self.only if name not in MODULES]
        if unknown:
            raise ArgumentError(f"Argument `only` must be among {', '.join(MODULES)}, but is {unknown[0]!r}.")
        if self.threads is not None and self.threads < 1:
            raise ArgumentError(f"Argument `threads` must be an integer >= 1, but is {self.threads!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks that run."""
        return tuple(name for name in MODULES if name in self.only or not self.only)

    @property
    def target(self) -> Path | None:
        """Where the result goes."""
        is_whole = self.update or not (self.quick or self.only)
        return self.out or (RESULTS / "all.json" if is_whole else None)


def measure(name: str, config: Config, threads: int, folder: Path) -> tuple[dict[str, Any] | None, float]:
    """Run one benchmark in a process of its own; what it stored, None if it failed, and its seconds."""
    out = folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{MODULES[name]}", "--out", str(out)]
    command += ["--threads", str(threads)] if name in TAKES_THREADS else []
    command += ["--quick"] if config.quick else []
    print(f"\n== {' '.join(['python', *command[1:]])}", flush=True)
    began = time.perf_counter()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    code = subprocess.run(command, env=environment, check=False).returncode
    record = json.loads(out.read_text(encoding="utf-8")) if code == 0 and out.exists() else None
    return record, time.perf_counter() - began


def roofs_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The machine's own rates that the benchmarks measured on the way."""
    roofs = {}
    if "sweep" in records:
        for each in records["sweep"]["sizes"]:
            size = each["size"]
            shape = f"N {size['num_samples']}, d {size['input_dim']}, m {size['width']}"
            roofs[f"batched matrix products, {shape}, GFLOP/s"] = each["matmul_gflops"]
    if "metrics" in records:
        roofs["memory bandwidth, reading, GB/s"] = records["metrics"]["memory_bytes_per_s"] / 1e9
    return roofs


def rows_of(records: Mapping[str, Mapping[str, Any]], *, quick: bool = False) -> "list[Row]":
    """The rows of every benchmark that has some; of quick versions without what is asked of the full ones."""
    rows: list[Row] = []
    for name, record in records.items():
        module = importlib.import_module(f"benchmarks.{MODULES[name]}")
        rows += module.table(record) if hasattr(module, "table") else []
    return [replace(row, required=None) for row in rows] if quick else rows


def summary(records: Mapping[str, Mapping[str, Any]], failed: Sequence[str], *, quick: bool = False) -> str:
    """Table, roofs and curves as text."""
    from benchmarks import _table

    lines = [_table.text_of(rows_of(records, quick=quick)), ""]
    lines += [f"roof: {name} {_table.number(value)}" for name, value in roofs_of(records).items()]
    for curve in records.get("growth", {}).get("curves", ()):
        seconds = ", ".join(_table.number(each) for each in (curve["seconds"][0], curve["seconds"][-1]))
        sizes = f"{curve['sizes'][0]:,} to {curve['sizes'][-1]:,}"
        larger = f"{curve['exponent_of_larger_half']:.2f}"
        lines.append(f"growth: {curve['name']}: {curve['variable']} {sizes}, s {seconds}; exponent at the end {larger}")
    lines += [f"FAILED: {name}" for name in failed]
    return "\n".join(lines)


def result_of(records: Mapping[str, Mapping[str, Any]], config: Config, **known: Any) -> dict[str, Any]:
    """What is stored, besides where it comes from."""
    return {
        "quick": config.quick,
        **known,
        "roofs": roofs_of(records),
        "rows": [row.as_record() for row in rows_of(records, quick=config.quick)],
        "curves": records.get("growth", {}).get("curves", []),
        "records": dict(records),
    }


def stored_before(config: Config) -> dict[str, Any]:
    """The result that is to be updated; empty if none is.

    Raises:
        ValueError: if there is none where one is to be updated.
    """
    if not config.update:
        return {}
    try:
        found = json.loads(Path(config.target or "").read_text(encoding="utf-8"))
        return {name: found[name] for name in (*ORIGIN, "seconds", "records")}
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(
            f"Argument `out` must be a file that `python -m benchmarks` stored, but {config.target} gave {error!r}."
        ) from error


def run(config: Config) -> int:
    """Measure, print, store; the exit code is 1 if a benchmark failed."""
    from benchmarks import _timing

    earlier = stored_before(config)
    cores = sorted(os.sched_getaffinity(0))
    threads = min(config.threads or len(cores), len(cores))
    # The processes inherit it, so that everybody has the same cores.
    os.sched_setaffinity(0, cores[:threads])
    before = _timing.origin()
    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in config.names:
            record, seconds[name] = measure(name, config, threads, Path(folder))
            if record is not None:
                found[name] = record
    failed = [name for name in config.names if name not in found]
    every = earlier.get("records", {}) | found
    # In the order of a whole run, also where a part was measured again.
    records = {name: every[name] for name in MODULES if name in every}
    print(f"\n{summary(records, failed, quick=config.quick)}")
    remark = (
        " Quick version: the figures say little; what is asked of the full one is left out." if config.quick else ""
    )
    print(f"Took {sum(seconds.values()):.0f} s. Every ratio is how many times better ours is.{remark}")
    if config.target is not None:
        known = {"threads": threads, "seconds": earlier.get("seconds", {}) | seconds, "failed": failed}
        whole = {name: earlier[name] for name in ORIGIN} if earlier else before
        _timing.store(config.target, whole, result_of(records, config, **known))
        print(f"stored in {config.target}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
