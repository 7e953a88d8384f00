"""Fine structure inside a coarse label: four laws, predicted and measured over seeds.

Trains small networks on Gaussian mixtures whose clusters are merged into two labels, and holds every law of fine
structure against the theory's prediction for the very same seeds: free features forget the clusters (L0), linear
features remember their initial weights (L1), ReLU features keep half of the structure (L2), and weight decay leaves
what a convex programme says (L3). Prints the ledger of claims with their controls, writes a run folder and a figure.
"""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _preset import PresetOptions, run_preset, store_measured
from _report import print_records, store

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.claims import Ledger

EXPERIMENT = "synthetic"


@dataclass(frozen=True)
class Config(PresetOptions):
    """Verify the laws of fine structure on synthetic data."""

    paper: bool = False
    """Run the large version, for an accelerator: 1,024 seeds, width 8,192, fine phase diagram."""

    @property
    def seeds(self) -> list[int]:
        """The seeds, as many as asked for or as the preset has."""
        count = {"smoke": 4, "default": 32, "paper": 1024}[self.preset] if self.num_seeds is None else self.num_seeds
        return list(range(self.seed, self.seed + count))


def measure(config: Config, folder: RunFolder) -> "xr.DataTree":
    """Run every law's sweeps, or read back what an interrupted run has finished, and write the history."""
    import jax
    import xarray as xr
    from _laws import bench, free, geometry, memory, phase, relu

    scales = {"smoke": bench.SMOKE, "default": bench.DEFAULT, "paper": bench.PAPER}
    began = time.perf_counter()
    # The longest sweep first: the others compile while it runs.
    laws = {"relu": relu, "memory": memory, "geometry": geometry, "free": free, "phase": phase}
    with bench.Bench(
        scales[config.preset], config.seeds, folder.parts, progress=not config.quiet, chunk_size=config.chunk_size
    ) as runs:
        for law in laws.values():
            law.prepare(runs)
        with jax.default_matmul_precision("highest"):
            tree = xr.DataTree.from_dict({name: law.measure(runs) for name, law in laws.items()})
    store_measured(
        folder, tree, runs, dtype="float32; float64 for L0, L1 and L3", wall_seconds=time.perf_counter() - began
    )
    return tree


def judge(tree: "xr.DataTree") -> "Ledger":
    """Judge every claim from the stored arrays alone."""
    from _laws import free, geometry, memory, relu

    from nctheory.claims import Ledger

    return Ledger(tuple(claim for law in (free, memory, relu, geometry) for claim in law.judge(tree)))


def report(folder: RunFolder, tree: "xr.DataTree") -> int:
    """Judge, write the claims, draw the figure, print the table; return the exit code."""
    from nctheory.figures import synthetic_laws

    ledger = judge(tree)
    store(folder, ledger, {"synthetic_laws": synthetic_laws.draw(tree)})
    return print_records(folder, ledger)


def run(config: Config) -> int:
    """Run, resume or redraw the experiment; return its exit code."""
    return run_preset(config, EXPERIMENT, measure, report, hurry=config.smoke)


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
