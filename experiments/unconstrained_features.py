"""Unconstrained features below linear layers: does training find what the closed forms say?

Solves the model from many random starts over loss, depth, class sizes, width and decay, runs the published gradient
descent, and holds losses, geometry at every layer, class norms and collapse thresholds against theory. Prints the share
of starts that reach the global minimum and the ledger of claims with their controls; writes a run folder and figures.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _preset import PresetOptions, run_preset, store_measured
from _report import print_records, store

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.claims import Ledger

EXPERIMENT = "unconstrained_features"


@dataclass(frozen=True)
class Config(PresetOptions):
    """Verify the closed forms of unconstrained features and deep linear networks."""

    paper: bool = False
    """Run the large version, for an accelerator: 256 starts, every depth, 30,000 steps of gradient descent."""


def measure(config: Config, folder: RunFolder) -> "xr.DataTree":
    """Run every sweep, or read back what an interrupted run has finished, and write the history."""
    import jax
    import xarray as xr
    from _bench import Bench
    from _ufm import conditions, curves
    from _ufm.parts import PARTS

    scale = {"smoke": conditions.SMOKE, "default": conditions.DEFAULT, "paper": conditions.PAPER}[config.preset]
    count = scale.num_seeds if config.num_seeds is None else config.num_seeds
    began = time.perf_counter()
    seeds = list(range(config.seed, config.seed + count))
    with (
        ThreadPoolExecutor(1) as aside,
        Bench(scale, seeds, folder.parts, progress=not config.quiet, chunk_size=config.chunk_size) as runs,
    ):
        # The curves are many small programs: they compile while the sweeps run.
        predicted = aside.submit(curves.measure, scale)
        for part in PARTS.values():
            part.prepare(runs)
        with jax.default_matmul_precision("highest"):
            groups = {name: part.measure(runs) for name, part in PARTS.items()}
        tree = xr.DataTree.from_dict({**groups, "curves": predicted.result()})
    store_measured(
        folder, tree, runs, dtype="float64; float32 for gradient descent", wall_seconds=time.perf_counter() - began
    )
    return tree


def judge(tree: "xr.DataTree") -> "Ledger":
    """Judge every claim from the stored arrays alone."""
    from _ufm.parts import judge_all

    from nctheory.claims import Ledger

    return Ledger(judge_all(tree))


def report(folder: RunFolder, tree: "xr.DataTree") -> int:
    """Judge, write the claims, draw the figures, print the tables; return the exit code."""
    from _ufm.minima_claims import shares

    from nctheory.figures import unconstrained_features

    ledger = judge(tree)
    store(folder, ledger, unconstrained_features.draw_all(tree))
    print(shares(tree["minima"].to_dataset()))
    return print_records(folder, ledger)


def run(config: Config) -> int:
    """Run, resume or redraw the experiment; return its exit code."""
    # Four dozen programs that each run for seconds: compiling them well would take longer than it saves.
    return run_preset(config, EXPERIMENT, measure, report, hurry=not config.paper)


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
