"""From a frozen dataclass to a command line, with errors as one line instead of a traceback."""

import contextlib
import ctypes
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

from nctheory import distributed
from nctheory._errors import ArgumentError, DatasetError
from nctheory._rendezvous import EXIT_LOST
from nctheory.runs import RunFolderError, free_path, latest_path

ConfigT = TypeVar("ConfigT")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


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
    distributed: bool = False
    """Run as one of several processes that share the sweeps; process 0 writes, prints and draws. On SLURM, Open MPI,
    Kubernetes and TPU pods nothing else is needed; elsewhere give --coordinator, --num-processes and --process-id."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where that port must be free."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Which process this is, in 0..num_processes-1."""
    start_timeout: float = 60
    """How long the processes wait for each other at the start, in seconds."""
    bind_cores: bool = True
    """Let processes of one machine that could use the same cores divide them."""
    compilation_cache: Path | None = None
    """Folder that keeps compiled programs for later runs."""
    chunk_size: int | str = "auto"
    """Rows of a sweep (seeds times conditions) that run and are stored together: a number, "auto" for an estimate, or
    "measured" for a short measurement where it is worth its time. Sweeps that a resumed run has begun keep theirs."""

    def __post_init__(self):
        """Check the options; a derived record calls this from its own `__post_init__`."""
        if self.num_seeds is not None:
            check_integer("num_seeds", self.num_seeds, minimum=2)
        check_integer("seed", self.seed, minimum=0)
        check_chunk_size(self.chunk_size)
        if self.seed + (self.num_seeds or 1024) > 2**32:
            raise ArgumentError(f"Argument `seed` must leave room for all seeds below 2**32, but is {self.seed}.")
        if self.resume and self.plot_only:
            raise ArgumentError("Argument `plot_only` must be off when `resume` is on, but both are on.")
        if self.distributed and self.plot_only:
            raise ArgumentError("Argument `plot_only` must be off when `distributed` is on, but both are on.")
        processes = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        given = [name for name, value in processes.items() if value is not None]
        if given and not self.distributed:
            raise ArgumentError(f"Argument `distributed` must be on when `{given[0]}` is given, but is off.")
        distributed.check_arguments(**processes, start_timeout=self.start_timeout)

    def run_path(self, experiment: str, name: str = "default") -> Path:
        """The run folder: `out`, or a numbered one under results/EXPERIMENT that no earlier run occupies."""
        if self.out is not None:
            return self.out
        base = Path("results") / experiment / name
        return latest_path(base) if self.resume or self.plot_only else free_path(base)


def start(options: Any) -> None:
    """Join the other processes and set up what else the options ask for; `run_main` does it. Before JAX computes.

    All processes but the first print nothing from here on, except errors.

    Raises:
        DistributedError: if the processes do not come together.
    """
    if not isinstance(options, RunOptions):
        return
    if options.compilation_cache is not None:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(options.compilation_cache))
        # Every program, also those that compile in less than a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if options.distributed:
        place = (options.coordinator, options.num_processes, options.process_id)
        distributed.initialize(*place, start_timeout=options.start_timeout, bind_cores=options.bind_cores)
        if not distributed.is_main():
            sys.stdout = open(os.devnull, "w")


def compile_in_a_hurry() -> None:
    """Let XLA compile faster and run slower; for smoke runs, which do little else. Call it before JAX starts."""
    flags = ["--xla_backend_optimization_level=0"]
    # The first halves what is left; the second saves a tenth of it where programs are compiled side by side. But XLA
    # stops at a flag that it does not know: only where they were tried.
    if version("jaxlib").startswith("0.10."):
        flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, for experiments that train image networks. Call it before JAX.

    On a CPU, XLA takes hundreds of megabytes from glibc at every step and gives them back after it; each page that the
    system hands out again is cleared first: 20 % of a step of "resnet-small-wide". Costs up to half as much memory
    again. Without glibc, or on a GPU, where it gains nothing, nothing else changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    # From malloc.h: no requests straight to the system, one heap (others are too small for these), never shrunk.
    for option, value in ((_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)


def check_integer(name: str, value: Any, *, minimum: int) -> None:
    """As `_checks.integer`, without its import of JAX, which would slow `--help` down."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ArgumentError(f"Argument `{name}` must be an integer >= {minimum}, but is {value!r}.")


def check_chunk_size(value: Any) -> None:
    """As a sweep checks its `chunk_size`, before anything is loaded."""
    is_size = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not is_size and value not in ("auto", "measured"):
        raise ArgumentError(f'Argument `chunk_size` must be an integer >= 1, "auto" or "measured", but is {value!r}.')


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
    return isinstance(error, ArgumentError | DatasetError | RunFolderError | distributed.DistributedError)


def _report(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201


class _Termination(KeyboardInterrupt):
    """SIGTERM, by which schedulers announce that they take the machine back."""


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise, so that a run says what it has saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Termination

    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


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
        with _no_lost_interrupt(), _termination_as_interrupt():
            start(config)
            code = run(config)
            return code if distributed.is_main() else 0
    except KeyboardInterrupt as interrupt:
        saved = "; ".join(getattr(interrupt, "__notes__", [])) or "nothing was saved yet"
        is_termination = isinstance(interrupt, _Termination)
        # A progress bar may have left the cursor in the middle of a line.
        what = "terminated" if is_termination else "interrupted"
        print(f"\n{what}: {saved}; the same command with --resume continues.", file=sys.stderr)  # noqa: T201
        distributed.abandon()
        if is_termination:
            # Without waiting for the threads that still compute: little time is left.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_TERMINATED)
        return EXIT_INTERRUPTED
    except Exception as error:
        if not _is_bad_argument(error):
            raise
        _report(error)
        distributed.abandon(str(error))
        return EXIT_LOST if isinstance(error, distributed.DistributedError) else EXIT_BAD_INPUT
