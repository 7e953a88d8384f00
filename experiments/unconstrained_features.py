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

from nctheory._cli import RunOptions, compile_in_a_hurry, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder, RunFolderError

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.claims import Ledger

EXPERIMENT = "unconstrained_features"


@dataclass(frozen=True)
class Config(RunOptions):
    """Verify the closed forms of unconstrained features and deep linear networks."""

    paper: bool = False
    """Run the large version, for an accelerator: 256 starts, every depth, 30,000 steps of gradient descent."""
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
        Bench(scale, seeds, folder.parts, progress=not config.quiet) as runs,
    ):
        # The curves are many small programs: they compile while the sweeps run.
        predicted = aside.submit(curves.measure, scale)
        for part in PARTS.values():
            part.prepare(runs)
        with jax.default_matmul_precision("highest"):
            groups = {name: part.measure(runs) for name, part in PARTS.items()}
        tree = xr.DataTree.from_dict({**groups, "curves": predicted.result()})
    folder.write_history(tree)
    folder.write_manifest(
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        dtype="float64; float32 for gradient descent",
        compile_seconds=runs.compile_seconds,
        run_seconds=runs.run_seconds,
        wall_seconds=time.perf_counter() - began,
        sweeps=runs.log,
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

    from nctheory import plotting
    from nctheory.figures import unconstrained_features

    ledger = judge(tree)
    ledger.write(folder.path / "claims.json")
    for name, figure in unconstrained_features.draw_all(tree).items():
        plotting.save_figure(figure, folder.figures / name)
    print(shares(tree["minima"].to_dataset()))
    print(ledger.table())
    failures = ledger.failures()
    print(f"{len(ledger.claims)} records, {len(failures)} not as they should be; run folder {folder.path}")
    for failure in failures:
        print(f"  {failure}")
    return ledger.exit_code()


def run(config: Config) -> int:
    """Run, resume or redraw the experiment; return its exit code."""
    path = config.run_path(EXPERIMENT, config.preset)
    if not config.paper:
        # Two dozen programs that each run for seconds: compiling them well would take longer than it saves.
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
