"""Seconds as the work grows: seeds of a sweep; N, d and K of `collapse_metrics`; forced host devices.

Run: python -m benchmarks.growth [--quick] [--out FILE.json]

Compilation stands apart. Each curve is fitted by seconds = a size^p, once over all sizes and once over the larger half,
where what costs the same at every size weighs less. Every size is a program of its own; the best of the repeats counts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import _timing, metrics_speed, scaling_speed, sweep_speed
from benchmarks._table import number
from nctheory import simulator
from nctheory.metrics import collapse_metrics


@dataclass(frozen=True)
class Config:
    """Sizes of the benchmark."""

    seeds: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    """Seeds of the sweep, at the size "overhead" of benchmarks.sweep_speed."""
    num_steps: int = 100
    """Updates of each seed."""
    num_samples: tuple[int, ...] = (2_500, 5_000, 10_000, 20_000, 40_000, 80_000)
    """Samples N of the metrics; the middle one where another size varies."""
    feature_dim: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Feature dimensions d, likewise."""
    num_classes: tuple[int, ...] = (2, 8, 32, 128, 512)
    """Numbers of classes K, likewise."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Forced host devices that share one sweep."""
    device_seeds: int = 256
    """Seeds of that sweep."""
    repeats: int = 3
    """Timed calls after the first."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def quick_version(config: Config) -> Config:
    """Two or three sizes of everything but devices, each of which needs a process of its own."""
    return replace(
        config,
        seeds=(1, 16, 256),
        num_steps=20,
        num_samples=(1_000, 16_000),
        feature_dim=(16, 256),
        num_classes=(2, 32),
        devices=(),
        repeats=2,
    )


@dataclass(frozen=True)
class Curve:
    """Seconds against one size.

    Attributes:
        name: what was timed.
        variable: name of the size.
        sizes: the sizes, increasing.
        seconds: best time at each, without compilation.
        compile_seconds: compilation at each; of a call that compiles when it first runs, that whole first call.
    """

    name: str
    variable: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    compile_seconds: tuple[float, ...]

    def as_record(self) -> dict[str, Any]:
        """The fields with the fitted exponents, for JSON."""
        half = len(self.sizes) // 2
        exponents = {"exponent": exponent(self.sizes, self.seconds)}
        exponents["exponent_of_larger_half"] = exponent(self.sizes[half:], self.seconds[half:])
        return {**asdict(self), **exponents}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope p of log seconds against log size, dimensionless; NaN for fewer than two sizes.

    Args:
        sizes: sizes, > 0.
        seconds: seconds at each, > 0.

    Returns:
        The exponent of seconds = a size^p.
    """
    if len(set(sizes)) < 2:
        return float("nan")
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def _curve(name: str, variable: str, sizes: Sequence[int], timed: Callable[[int], tuple[float, float]]) -> Curve:
    seconds, compiled = zip(*map(timed, sizes), strict=True)
    curve = Curve(name, variable, tuple(sizes), seconds, compiled)
    show(curve.as_record())
    return curve


def over_seeds(config: Config) -> Curve:
    """A sweep of the two-layer network over more and more seeds."""
    size = sweep_speed.SIZES[0]
    run = sweep_speed.train_config(size, num_steps=config.num_steps)

    def timed(num_seeds: int) -> tuple[float, float]:
        ready = simulator.prepare(simulator.train, run, num_seeds)
        seconds = [ready.run(progress=False).run_seconds for _ in range(config.repeats + 1)]
        return min(seconds[1:]), ready.compile_seconds

    return _curve(f"sweep, {config.num_steps} steps", "seeds", config.seeds, timed)


def over_metrics(config: Config) -> list[Curve]:
    """`collapse_metrics` over N, d and K, the other two at their middle sizes."""
    axes = {"N": config.num_samples, "d": config.feature_dim, "K": config.num_classes}
    middle = {name: sizes[len(sizes) // 2] for name, sizes in axes.items()}

    def timed(variable: str, value: int) -> tuple[float, float]:
        at = {**middle, variable: value}
        drawn = metrics_speed.draw(metrics_speed.Config(num_samples=at["N"], feature_dim=at["d"]), at["K"])
        features, labels = jnp.asarray(drawn[0]), jnp.asarray(drawn[1])
        # The middle sizes occur in every curve, and the first call is to compile in each.
        jax.clear_caches()
        timing = _timing.time_call(
            lambda: collapse_metrics(features, labels, num_classes=at["K"]), repeats=config.repeats
        )
        return timing.best, timing.first

    curves = []
    for variable, sizes in axes.items():
        fixed = ", ".join(f"{name} {value:,}" for name, value in middle.items() if name != variable)
        curves.append(
            _curve(f"collapse_metrics, {fixed}", variable, sizes, lambda value, name=variable: timed(name, value))
        )
    return curves


def over_devices(config: Config) -> Curve:
    """One sweep shared by more and more forced host devices of the same cores: flat if sharing costs nothing."""
    split = scaling_speed.Config(num_seeds=config.device_seeds, num_steps=config.num_steps)

    def timed(devices: int) -> tuple[float, float]:
        turns = [scaling_speed.time_split(split, scaling_speed.Way(split.num_seeds, devices=devices)) for _ in range(2)]
        best = min(turns, key=lambda turn: turn["seconds"])
        return best["seconds"], best["compile_s"]

    what = f"sweep of {config.device_seeds} seeds, {split.size} size"
    return _curve(what, "forced host devices", config.devices, timed)


def show(curve: dict[str, Any]) -> None:
    """Print one curve."""
    print(f"\n{curve['name']}, against {curve['variable']}")
    for label, values in (("size", curve["sizes"]), ("seconds", curve["seconds"]), ("s", curve["compile_seconds"])):
        name = "compiled in, s" if label == "s" else label
        print(f"{name:<16}" + "".join(f"{value if label == 'size' else number(value):>10}" for value in values))
    print(
        f"seconds = a size^p: p {curve['exponent']:.2f}, over the larger half {curve['exponent_of_larger_half']:.2f}",
        flush=True,
    )


def main(config: Config) -> None:
    """Measure all curves, print, store."""
    config = quick_version(config) if config.quick else config
    before, began = _timing.provenance(), time.perf_counter()
    print(before["machine"])
    curves = [over_seeds(config), *over_metrics(config), *([over_devices(config)] if config.devices else [])]
    print(f"\ntook {time.perf_counter() - began:.0f} s")
    if config.out is not None:
        record = {"config": asdict(replace(config, out=None)), "curves": [curve.as_record() for curve in curves]}
        _timing.store(config.out, before, record)


if __name__ == "__main__":
    main(tyro.cli(Config))
