"""From a frozen dataclass to a command line, with errors as one line instead of a traceback."""

import contextlib
import dataclasses
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from nctheory._errors import ArgumentError, DatasetError
from nctheory.runs import RunFolderError, free_path, latest_path

ConfigT = TypeVar("ConfigT")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options that every experiment has; an experiment's own record derives from it and may change the defaults."""

    out: Path | None = None
    """Run folder. Default: results/EXPERIMENT/NAME, then NAME-2, ...; with --resume or --plot-only the last of them."""
    smoke: bool = False
    """Run the smallest version, to see that everything works."""
    resume: bool = False
    """Continue an interrupted run of the same configuration."""
    plot_only: bool = False
    """Judge the claims and draw the figures again from a finished run, without computing."""
    num_seeds: int | None = None
    """Number of seeds, at least 2; the intervals are over them. Default: the preset's own."""
    seed: int = 0
    """First seed; the run uses seed, seed + 1, ..."""

    def __post_init__(self):
        """Check the options; a derived record calls this from its own `__post_init__`."""
        if self.num_seeds is not None:
            check_integer("num_seeds", self.num_seeds, minimum=2)
        check_integer("seed", self.seed, minimum=0)
        if self.seed + (self.num_seeds or 1024) > 2**32:
            raise ArgumentError(f"Argument `seed` must leave room for all seeds below 2**32, but is {self.seed}.")
        if self.resume and self.plot_only:
            raise ArgumentError("Argument `plot_only` must be off when `resume` is on, but both are on.")

    def run_path(self, experiment: str, name: str = "default") -> Path:
        """The run folder: `out`, or a numbered one under results/EXPERIMENT that no earlier run occupies."""
        if self.out is not None:
            return self.out
        base = Path("results") / experiment / name
        return latest_path(base) if self.resume or self.plot_only else free_path(base)


def compile_in_a_hurry() -> None:
    """Let XLA compile faster and run slower; for smoke runs, which do little else. Call it before JAX starts."""
    flags = ["--xla_backend_optimization_level=0"]
    # Halves what is left, but XLA stops at a flag that it does not know: only where it was tried.
    if version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def check_integer(name: str, value: Any, *, minimum: int) -> None:
    """As `_checks.integer`, without its import of JAX, which would slow `--help` down."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ArgumentError(f"Argument `{name}` must be an integer >= {minimum}, but is {value!r}.")


def _without_checks(kind: type[Any]) -> type[Any]:
    """The same record without its `__post_init__`.

    The parser would draw a box around an error of `__post_init__` and break its lines; the record is checked after
    parsing instead.
    """
    if not hasattr(kind, "__post_init__"):
        return kind
    body = {"__post_init__": lambda self: None, "__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)


def parse(kind: type[ConfigT], arguments: Sequence[str] | None = None) -> ConfigT:
    """Read a configuration record from the command line.

    Args:
        kind: frozen dataclass with a doc string per field; `__post_init__` checks the values.
        arguments: command-line arguments; those of this process if None.

    Returns:
        The record.

    Raises:
        ValueError: what `__post_init__` raises.
        SystemExit: with code 2 on unknown flags and unreadable values, 0 after `--help`.
    """
    import tyro

    # Flags read `--smoke`, not `--smoke` beside `--no-smoke`.
    parsed = tyro.cli(
        _without_checks(kind), args=arguments, description=inspect.getdoc(kind), config=(tyro.conf.FlagCreatePairsOff,)
    )
    return kind(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(kind) if f.init})  # pyright: ignore


def _is_bad_argument(error: Exception) -> bool:
    """Whether this is a message for the user and not a fault of the program."""
    return isinstance(error, ArgumentError | DatasetError | RunFolderError)


def _report(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201


@contextlib.contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Deliver Ctrl-C again if it fell into a destructor, where Python reports and then forgets every exception."""
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # Later and from outside, so that it does not fall into the same destructor.
            again = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


def run_main(kind: type[ConfigT], run: Callable[[ConfigT], int], arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code.

    A bad argument or run folder ends as one line on stderr and code 2; other errors keep their traceback, since they
    are faults of the program. Ctrl-C ends with code 130 and a line saying what is saved.

    Example:
        >>> if __name__ == "__main__":  # doctest: +SKIP
        ...     raise SystemExit(run_main(Config, run))

    Args:
        kind: frozen dataclass with a doc string per field.
        run: called with the record; returns the exit code. It should work inside `with RunFolder.create(...)`, so that
            an interrupt can say what the folder holds.
        arguments: command-line arguments; those of this process if None.

    Returns:
        The exit code.
    """
    try:
        try:
            config = parse(kind, arguments)
        except ValueError as error:
            _report(error)
            return EXIT_BAD_INPUT
        with _no_lost_interrupt():
            return run(config)
    except KeyboardInterrupt as interrupt:
        saved = "; ".join(getattr(interrupt, "__notes__", [])) or "nothing was saved yet"
        # A progress bar may have left the cursor in the middle of a line.
        print(f"\ninterrupted: {saved}; the same command with --resume continues.", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except Exception as error:
        if not _is_bad_argument(error):
            raise
        _report(error)
        return EXIT_BAD_INPUT
