"""Speed of the unconstrained feature model beside PyTorch and SciPy: minimisers, descent, closed forms.

Run: python -m benchmarks.ufm_speed [--threads 1|2] [--quick] [--out FILE.json]

Time to a minimiser: `simulator.sweep(solve, ...)` in float64 from random starts to the gradient norm that `solve` stops
at by default, against `torch.optim.LBFGS` and SciPy's L-BFGS-B (gradient by hand in NumPy) seed by seed, which are told
the minimum and stopped at the first evaluation within the gap. All must end within a relative gap of 1e-6 of the closed
form; starts that do not are counted.
Descent: seed-steps/s in float32, a seed-step being one full-batch update of one seed; ours with samples, starts and
three records of all metrics, the peers' bare update. Calls take turns; the best of the repeats counts. Compilation is
reported apart. Closed forms: 10,000 parameter sets in one vmapped and compiled call, in float64.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import _peers, _scipy_peer, _timing, _ufm_peers
from benchmarks._ufm_report import GAP, PLAIN, show_closed_forms, show_descent, show_solvers, solver_ratios
from benchmarks._ufm_report import table as table
from benchmarks.sweep_speed import pin_threads
from nctheory import simulator
from nctheory.simulator.descent import DescentConfig, descend
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import solve
from nctheory.theory.ce_ufm import ce_ufm_minimizer
from nctheory.theory.mse_ufm import mse_ufm_minimizer

DECAY = 5e-4
BIASES = ("none", "free")
# Rounding of a loss in float64: nothing may lie further below the closed form.
BELOW = 1e-10


@dataclass(frozen=True)
class Size:
    """One problem, and how much of it to run."""

    name: str
    loss: str
    num_classes: int
    samples_per_class: int
    feature_dim: int
    depth: int
    num_steps: int
    peer_steps: int

    @property
    def problem(self) -> UfmProblem:
        """The problem, without bias."""
        return UfmProblem(
            (self.samples_per_class,) * self.num_classes,
            self.feature_dim,
            depth=self.depth,
            loss=self.loss,
            weight_decay=DECAY,
            feature_decay=DECAY,
        )

    @property
    def minimum(self) -> float:
        """Minimal loss, by the closed form in float64."""
        if self.loss == "mse":
            sizes = self.problem.class_sizes
            record = mse_ufm_minimizer(sizes, weight_decay=DECAY, feature_decay=DECAY, depth=self.depth)
        else:
            record = ce_ufm_minimizer(self.num_classes, self.samples_per_class, weight_decay=DECAY, feature_decay=DECAY)
        return float(record.loss)


SIZES = (
    Size("MSE, depth 1", "mse", 4, 100, 64, 1, 3000, 200),
    Size("MSE, depth 3", "mse", 4, 100, 64, 3, 600, 200),
    Size("cross-entropy, depth 1", "cross_entropy", 10, 100, 64, 1, 500, 50),
)


@dataclass(frozen=True)
class Config:
    """How to measure."""

    threads: int = 2
    """Cores this process keeps to, and threads of PyTorch and XLA."""
    num_seeds: int = 256
    """Starts of our solver and our descent."""
    lbfgs_seeds: int = 12
    """The first so many of these starts go to the L-BFGS of PyTorch and SciPy; their time for all is scaled."""
    unaveraged: bool = True
    """Whether to time our solver without averaging classes first as well, on as many seeds, scaled likewise."""
    histories: tuple[int, ...] = (10, 30)
    """History lengths of these; of each the fastest one that stalls least counts."""
    peer_seeds: int = 32
    """Seeds of PyTorch's descent, batched or in a loop."""
    repeats: int = 2
    """Turns after the first, which warms up."""
    num_closed_forms: int = 10_000
    """Parameter sets in one call of a closed form."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def start_of(size: Size, num_seeds: int) -> _ufm_peers.Start:
    """The initial points that `sweep` gives seeds 0, 1, ..., in the precision that is on."""
    problem = size.problem
    points: list[UfmParams] = [problem.init(jax.random.key(seed)) for seed in range(num_seeds)]
    features = np.stack([point.features for point in points])
    weights = tuple(np.stack(layer) for layer in zip(*(point.weights for point in points), strict=True))
    return _ufm_peers.Start(features, weights, problem.labels, size.loss, DECAY, DECAY)


def quality(loss: np.ndarray, minimum: float) -> dict[str, Any]:
    """Relative gaps to the minimum: the largest, the most negative one, and how many are beyond the target."""
    gaps = (loss - minimum) / minimum
    return {
        "largest_gap": float(gaps.max()),
        "lowest_gap": float(gaps.min()),
        "beyond_gap": int((~(gaps <= GAP)).sum()),
        "below_minimum": int((gaps < -BELOW).sum()),
    }


def solve_ours(ready: simulator.PreparedSweep, minimum: float, num_seeds: int) -> dict[str, Any]:
    """One run of the compiled sweep; `seconds` is scaled to `num_seeds`."""
    result = ready.run(progress=False)
    found = jax.tree.map(lambda leaf: leaf[0], result.history)
    return {
        "seconds": result.run_seconds * num_seeds / len(result.seeds),
        "seeds_run": len(result.seeds),
        "compile_s": result.compile_seconds,
        "chunk_size": result.chunk_size,
        "not_converged": int((~found.converged).sum()),
        "largest_gradient_norm": float(found.gradient_norm.max()),
        "evaluations": float(found.evaluations.mean()),
        **quality(found.loss, minimum),
    }


def solve_peer(
    lbfgs: Callable[..., _ufm_peers.LbfgsRuns], start: _ufm_peers.Start, minimum: float, history: int, num_seeds: int
) -> dict[str, Any]:
    """One run of PyTorch's or SciPy's L-BFGS; `seconds` is scaled to `num_seeds`."""
    runs = lbfgs(start, minimum * (1 + GAP), history=history)
    return {
        "seconds": float(runs.seconds.mean()) * num_seeds,
        "seeds_run": len(runs.loss),
        "stalled": int((~runs.reached).sum()),
        "evaluations": float(runs.evaluations.mean()),
        **quality(runs.loss, minimum),
    }


def solver_peers(size: Size, minimum: float, config: Config) -> dict[str, Callable[[], dict[str, Any]]]:
    """SciPy's and PyTorch's L-BFGS, on the samples and with classes averaged, ready to run."""
    start = start_of(size, config.lbfgs_seeds)
    calls: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, point in (("", start), (", classes averaged", start.averaged())):
        for history in config.histories:
            args = minimum, history, config.num_seeds
            end = f" L-BFGS{name}, history {history}"
            calls[f"SciPy{end}"] = partial(solve_peer, _scipy_peer.lbfgs, point, *args)
            for device in _peers.torch_devices():
                there = replace(point, device=device)
                calls[_peers.named(f"PyTorch{end}", device)] = partial(solve_peer, _ufm_peers.lbfgs, there, *args)
    return calls


def compare_solvers(size: Size, config: Config) -> dict[str, Any]:
    """Seconds to a minimiser for all seeds, ours with and without averaging classes first, and the peers', in turns."""
    with jax.enable_x64(True):
        minimum, problem = size.minimum, size.problem
        calls: dict[str, Callable[[], dict[str, Any]]] = {}
        ready = simulator.prepare(solve, problem, config.num_seeds)
        calls["nctheory"] = partial(solve_ours, ready, minimum, config.num_seeds)
        if config.unaveraged:
            ready = simulator.prepare(partial(solve, average=False), problem, config.lbfgs_seeds)
            calls["nctheory, no class averaging"] = partial(solve_ours, ready, minimum, config.num_seeds)
        calls |= solver_peers(size, minimum, config)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for turn in range(config.repeats + 1):
            for name, call in calls.items():
                # The others take tens of times longer: they warm up once and take every second turn.
                if turn % 2 == 1 or turn == 0 or name == "nctheory":
                    rows[name].append(call())
    best = {name: min(found[1:] or found, key=lambda row: row["seconds"]) for name, found in rows.items()}
    return {"minimum": minimum, "runs": best, **solver_ratios(best)}


def descent_calls(start: _ufm_peers.Start, num_steps: int) -> dict[str, Callable[[], list[np.ndarray]]]:
    """PyTorch's ways to descend, ready to run, on each of its devices; those by hand are for depth 1."""
    ways: dict[str, Callable[..., list[np.ndarray]]] = {
        "PyTorch loop, autograd": partial(_ufm_peers.descent_loop, update=_ufm_peers.loop_autograd),
        "PyTorch vmap over seeds": _ufm_peers.descent_vmap,
    }
    if len(start.weights) == 1:
        ways["PyTorch loop, by hand and in place"] = partial(_ufm_peers.descent_loop, update=_ufm_peers.loop_manual)
        ways["PyTorch batched, by hand and in place"] = _ufm_peers.descent_batched
    return {
        _peers.named(name, device): partial(way, replace(start, device=device), num_steps)
        for device in _peers.torch_devices()
        for name, way in ways.items()
    }


def our_descent(size: Size, num_seeds: int, num_steps: int) -> list[np.ndarray]:
    """Final H, W_1..W_M of our sweep in float64, seeds first."""
    with jax.enable_x64(True):
        config = DescentConfig(size.problem, num_steps=num_steps, num_records=2, keep_params=True)
        history = simulator.sweep(descend, config, num_seeds, progress=False).history
    return [leaf[0] for leaf in (history.params.features, *history.params.weights)]


def largest_gaps(size: Size, *, num_seeds: int = 2, num_steps: int = 100) -> dict[str, float]:
    """Largest difference of a final parameter between ours and each peer in float64, in units of the largest one."""
    ours = our_descent(size, num_seeds, num_steps)
    with jax.enable_x64(True):
        calls = descent_calls(start_of(size, num_seeds), num_steps)
    return {
        name: max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(call(), ours, strict=True))
        for name, call in calls.items()
    }


def compare_descent(size: Size, config: Config) -> dict[str, Any]:
    """Seed-steps/s in float32, in turns."""
    run = DescentConfig(size.problem, num_steps=size.num_steps, num_records=3)
    ready = simulator.prepare(descend, run, config.num_seeds)
    calls = descent_calls(start_of(size, config.peer_seeds), size.peer_steps)
    rates: dict[str, list[float]] = {name: [] for name in ("nctheory sweep", *calls)}
    for turn in range(config.repeats + 1):
        seconds = {"nctheory sweep": ready.run(progress=False).run_seconds}
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - began
        work = dict.fromkeys(calls, config.peer_seeds * size.peer_steps)
        work["nctheory sweep"] = config.num_seeds * size.num_steps
        for name, took in seconds.items():
            rates[name] = ([] if turn == 1 else rates[name]) + [work[name] / took]
    best = {name: max(found) for name, found in rates.items()}
    ours = best["nctheory sweep"]
    plain = [rate for name, rate in best.items() if _peers.device_of(name)[0] in PLAIN]
    return {
        "seed_steps_per_s": {n: {"best": best[n], "median": float(np.median(r))} for n, r in rates.items()},
        "times": {name: ours / rate for name, rate in best.items()},
        "times_better_of_loop_and_vmap": ours / max(plain) if plain else None,
        "chunk_size": ready.chunk_size,
        "compile_s": ready.compile_seconds,
    }


def closed_form_calls(num_sets: int) -> dict[str, partial[Any]]:
    """Compiled calls over random parameter sets: K 10, classes of 1 to 200 samples, decays over 4 decades."""
    generator = np.random.default_rng(0)
    sizes = jnp.asarray(generator.integers(1, 201, (num_sets, 10)).astype(float))
    weight_decay, feature_decay = (jnp.asarray(10.0 ** generator.uniform(-6, -2, num_sets)) for _ in range(2))

    def mse(sizes, weight_decay, feature_decay, **options):
        return mse_ufm_minimizer(sizes, weight_decay=weight_decay, feature_decay=feature_decay, **options)

    def cross_entropy(sizes, weight_decay, feature_decay):
        return ce_ufm_minimizer(10, sizes[0], weight_decay=weight_decay, feature_decay=feature_decay)

    functions: dict[str, Callable[..., Any]] = {
        f"mse_ufm_minimizer, depth {depth}, bias {bias}": partial(mse, depth=depth, bias=bias)
        for bias in BIASES
        for depth in (1, 3)
    }
    functions["ce_ufm_minimizer"] = cross_entropy
    return {
        name: partial(jax.jit(jax.vmap(function)), sizes, weight_decay, feature_decay)
        for name, function in functions.items()
    }


def time_closed_forms(config: Config) -> dict[str, Any]:
    """Seconds of each call, warm and with compilation, and whether every loss is finite."""
    with jax.enable_x64(True):
        calls = closed_form_calls(config.num_closed_forms)
        times = _timing.time_side_by_side({**calls}, repeats=config.repeats)
        finite = {name: bool(jnp.all(jnp.isfinite(call().loss))) for name, call in calls.items()}
    return {name: {**asdict(timing), "finite": finite[name]} for name, timing in times.items()}


def quick_version(config: Config) -> tuple[Config, tuple[Size, ...]]:
    """One size with few starts and steps."""
    config = replace(config, num_seeds=8, lbfgs_seeds=1, histories=(10,), unaveraged=False, peer_seeds=4, repeats=1)
    return replace(config, num_closed_forms=100), (replace(SIZES[0], num_steps=100, peer_steps=20),)


def main(config: Config) -> None:
    """Measure, print, store."""
    pin_threads(config.threads)
    config, sizes = quick_version(config) if config.quick else (config, SIZES)
    before = _timing.provenance()
    print(before["machine"])
    print(f"threads: {config.threads}; best of {config.repeats}; peers' L-BFGS scaled from {config.lbfgs_seeds} starts")
    closed = time_closed_forms(config)
    show_closed_forms(closed, config.num_closed_forms)
    rows = []
    for size in sizes:
        gaps = {} if config.quick else largest_gaps(size)
        descent = {**compare_descent(size, config), "largest_relative_gap": gaps}
        rows.append({"size": asdict(size), "descent": descent})
        show_descent(size, rows[-1]["descent"])
        rows[-1]["solvers"] = compare_solvers(size, config)
        show_solvers(size, rows[-1]["solvers"], config.num_seeds)
    if config.out is not None:
        settings = asdict(replace(config, out=None))
        record = {"config": settings, "device": _timing.device(), "sizes": rows, "closed_forms": closed}
        _timing.store(config.out, before, record)


if __name__ == "__main__":
    main(tyro.cli(Config))
