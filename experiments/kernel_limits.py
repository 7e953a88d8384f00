"""Do wide networks collapse as the kernels of infinite width say, at the start and after lazy training?

From the NNGP kernel alone, without a network: NC1, trace ratio, distances of classes, and the structure of fine classes
inside labels, on a Gaussian mixture and on digits, for erf and ReLU with two hidden layers or another number; from the
NTK the same. Finite networks of width 64 to 2048 in NTK parameterisation are held against them: squared deviations of
kernels fall as 1/width, as does the bias of the NC1 of features and of the empirical tangent kernel; the tangent kernel
moves by 1/width while features move by its square root, and outputs follow the kernel's prediction. NC1 of both kernels
is also given relative to that of the raw data.

    python experiments/kernel_limits.py
    python experiments/kernel_limits.py --depth 3
"""

import dataclasses
import sys
import time
from typing import TYPE_CHECKING

from _report import print_verdict, redraw, store

from nctheory._cli import RunOptions, check_integer, compile_in_a_hurry, run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

EXPERIMENT = "kernel_limits"
CONDITIONS = ("mixture-erf", "mixture-relu", "digits-erf", "digits-relu")
DEPTH = 2
_SMOKE_WIDTHS = (16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Compare finite networks with the kernels of infinite width.

    Defaults and criteria were chosen on seeds from 1000 on; the reported seeds took no part.
    """

    conditions: tuple[str, ...] = CONDITIONS
    """Data set and activation: "mixture" or "digits", then "erf" or "relu"."""
    depth: int = DEPTH
    """Number of hidden layers, at least 1; criteria and scales of the weights were chosen for two."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Widths of all hidden layers, increasing, at least three."""
    trained_width: int = 1024
    """Wider networks are measured at the start but not trained; at least the third width."""
    record_steps: tuple[int, ...] = (0, 4, 16, 64)
    """Updates after which outputs are compared, increasing from 0; the last one ends training."""
    quiet: bool = False
    """Show no progress bars."""

    def __post_init__(self):
        """Check what needs no data."""
        super().__post_init__()
        unknown = sorted(set(self.conditions) - set(CONDITIONS))
        if unknown or not self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise ArgumentError(
                f"Argument `conditions` must list different ones of {list(CONDITIONS)}, but is {list(self.conditions)}."
            )
        check_integer("depth", self.depth, minimum=1)
        for name, minimum, least in (("widths", 2, 3), ("record_steps", 0, 2)):
            values = getattr(self, name)
            for value in values:
                check_integer(name, value, minimum=minimum)
            if list(values) != sorted(set(values)) or len(values) < least:
                raise ArgumentError(
                    f"Argument `{name}` must be at least {least} increasing numbers, but is {list(values)}."
                )
        if self.record_steps[0] != 0:
            raise ArgumentError(f"Argument `record_steps` must start at 0, but starts at {self.record_steps[0]}.")
        third = self.sized_widths[2]
        if self.trained_width < third:
            raise ArgumentError(
                f"Argument `trained_width` must be at least {third}, so that three widths are trained, but is "
                f"{self.trained_width}."
            )

    @property
    def sized_widths(self) -> tuple[int, ...]:
        """The widths of `sized`."""
        is_default = self.widths == next(f.default for f in dataclasses.fields(self) if f.name == "widths")
        return _SMOKE_WIDTHS if self.smoke and is_default else self.widths

    @property
    def name(self) -> str:
        """Of the run folder."""
        if self.smoke:
            return "smoke"
        return "default" if self.depth == DEPTH else f"depth{self.depth}"

    @property
    def sized(self) -> "Config":
        """This configuration with its number of seeds; with `smoke`, whatever was left at its default is made small."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        small = {"widths": _SMOKE_WIDTHS, "conditions": ("mixture-erf", "digits-relu"), "record_steps": (0, 2, 8)}
        changed = {name: value for name, value in small.items() if self.smoke and getattr(self, name) == default[name]}
        count = self.num_seeds or (3 if self.smoke else 16)
        return dataclasses.replace(self, num_seeds=count, **changed)


def measure(config: Config, folder: RunFolder) -> "xr.Dataset":
    """Measure everything, or read back what an interrupted run has finished, and write the history."""
    import jax
    from _bench import Bench
    from _kernels.record import measure_all

    began = time.perf_counter()
    seeds = list(range(config.seed, config.seed + (config.num_seeds or 0)))
    with Bench(config, seeds, folder.parts, progress=not config.quiet, chunk_size=config.chunk_size) as bench:
        attributes = {"smoke": int(config.smoke), "trained_width": config.trained_width, "depth": config.depth}
        history = measure_all(bench, config, attributes)
    folder.write_history(history)
    folder.write_manifest(
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        dtype="networks float32, limits float64",
        compile_seconds=bench.compile_seconds,
        run_seconds=bench.run_seconds,
        wall_seconds=time.perf_counter() - began,
        sweeps=bench.log,
    )
    return history


def finish(folder: RunFolder, history: "xr.Dataset") -> int:
    """Judge, draw and print from the record alone; return the exit code."""
    from _kernels.claims import judge
    from _kernels.tables import summary

    from nctheory.figures import kernel_limits as figure

    ledger = judge(history)
    store(folder, ledger, {"kernel_limits": figure.draw(history)})
    heading = f"Collapse by kernel and by network, mean over seeds +- its standard error\n{summary(history)}"
    return print_verdict(folder, ledger, heading, smoke=bool(history.attrs["smoke"]))


def run(config: Config) -> int:
    """Run the experiment, or with `plot_only` judge and draw a finished run again."""
    path = config.run_path(EXPERIMENT, config.name)
    # Two dozen programs whose time goes into matrix products, which no option of the compiler slows down.
    compile_in_a_hurry()
    if config.plot_only:
        return redraw(path, EXPERIMENT, finish)
    sized = config.sized
    with RunFolder.create(path, sized, experiment=EXPERIMENT, resume=config.resume) as folder:
        return finish(folder, measure(sized, folder))


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
