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

from nctheory._cli import RunOptions, compile_in_a_hurry, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder, RunFolderError

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.claims import Ledger

EXPERIMENT = "synthetic"


@dataclass(frozen=True)
class Config(RunOptions):
    """Verify the laws of fine structure on synthetic data."""

    paper: bool = False
    """Run the large version, for an accelerator: 1,024 seeds, width 8,192, fine phase diagram."""
    quiet: bool = False
    """Show no progress bars."""

    def __post_init__(self):
        """Check the options."""
        super().__post_init__()
        if self.smoke and self.paper:
            raise ArgumentError("Argument `paper` must be off when `smoke` is on, but both are on.")

    @property
    def preset(self) -> str:
        """Name of the sizes that the run uses."""
        return "smoke" if self.smoke else "paper" if self.paper else "default"

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
    with bench.Bench(scales[config.preset], config.seeds, folder.parts, progress=not config.quiet) as runs:
        for law in laws.values():
            law.prepare(runs)
        with jax.default_matmul_precision("highest"):
            tree = xr.DataTree.from_dict({name: law.measure(runs) for name, law in laws.items()})
    folder.write_history(tree)
    folder.write_manifest(
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        dtype="float32; float64 for L0, L1 and L3",
        compile_seconds=runs.compile_seconds,
        run_seconds=runs.run_seconds,
        wall_seconds=time.perf_counter() - began,
        sweeps=runs.log,
    )
    return tree


def judge(tree: "xr.DataTree") -> "Ledger":
    """Judge every claim from the stored arrays alone."""
    from _laws import free, geometry, memory, relu

    from nctheory.claims import Ledger

    return Ledger(tuple(claim for law in (free, memory, relu, geometry) for claim in law.judge(tree)))


def report(folder: RunFolder, tree: "xr.DataTree") -> int:
    """Judge, write the claims, draw the figure, print the table; return the exit code."""
    from nctheory import plotting
    from nctheory.figures import synthetic_laws

    ledger = judge(tree)
    ledger.write(folder.path / "claims.json")
    plotting.save_figure(synthetic_laws.draw(tree), folder.figures / "synthetic_laws")
    print(ledger.table())
    failures = ledger.failures()
    print(f"{len(ledger.claims)} records, {len(failures)} not as they should be; run folder {folder.path}")
    for failure in failures:
        print(f"  {failure}")
    return ledger.exit_code()


def run(config: Config) -> int:
    """Run, resume or redraw the experiment; return its exit code."""
    path = config.run_path(EXPERIMENT, config.preset)
    if config.smoke:
        compile_in_a_hurry()
    if config.plot_only:
        folder = RunFolder.load(path, experiment=EXPERIMENT)
        try:
            code = report(folder, folder.read_tree())
        except KeyError as error:
            raise RunFolderError(f"{path / 'history.nc'} is not of this experiment: it lacks {error}.") from error
        return 0 if folder.config["smoke"] else code
    with RunFolder.create(path, config, experiment=EXPERIMENT, resume=config.resume) as folder:
        code = report(folder, measure(config, folder))
    # A smoke run is too small for the claims; it only shows that everything works.
    return 0 if config.smoke else code


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
