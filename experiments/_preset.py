"""Experiments that come in three sizes: their options, their manifest, and how they run, resume and redraw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from _report import redraw

from nctheory._cli import RunOptions, compile_in_a_hurry
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr
    from _bench import Bench


@dataclass(frozen=True)
class PresetOptions(RunOptions):
    """Options beside the common ones."""

    paper: bool = False
    """Run the large version, for an accelerator."""
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


ConfigT = TypeVar("ConfigT", bound=PresetOptions)


def store_measured(folder: RunFolder, tree: "xr.DataTree", bench: "Bench", *, dtype: str, wall_seconds: float) -> None:
    """Write the history and what the manifest says about its sweeps."""
    import jax

    folder.write_history(tree)
    folder.write_manifest(
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        dtype=dtype,
        compile_seconds=bench.compile_seconds,
        run_seconds=bench.run_seconds,
        wall_seconds=wall_seconds,
        sweeps=bench.log,
    )


def run_preset(
    config: ConfigT,
    experiment: str,
    measure: Callable[[ConfigT, RunFolder], Any],
    report: Callable[[RunFolder, Any], int],
    *,
    hurry: bool,
) -> int:
    """Run, resume or redraw; return the exit code.

    Args:
        config: options.
        experiment: name of the experiment.
        measure: trains everything into a tree, resuming what the folder holds.
        report: ends a run from its folder and tree.
        hurry: whether the programs run too briefly to be compiled well.

    Returns:
        The exit code; 0 for a smoke run, which is too small for the claims and only shows that everything works.
    """
    path = config.run_path(experiment, config.preset)
    if hurry:
        compile_in_a_hurry()
    if config.plot_only:
        return redraw(path, experiment, report, RunFolder.read_tree)
    with RunFolder.create(path, config, experiment=experiment, resume=config.resume) as folder:
        code = report(folder, measure(config, folder))
    return 0 if config.smoke else code
