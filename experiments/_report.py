"""What ends every experiment: judge, store claims and figures, print, and the exit code; the same when redrawn."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nctheory.runs import RunFolder, RunFolderError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nctheory.claims import Ledger


def store(folder: RunFolder, ledger: "Ledger", figures: "Mapping[str, Figure]") -> None:
    """Write claims.json and every figure, by its file name."""
    from nctheory import plotting

    ledger.write(folder.path / "claims.json")
    for name, figure in figures.items():
        plotting.save_figure(figure, folder.figures / name)


def print_records(folder: RunFolder, ledger: "Ledger") -> int:
    """Print the table and how many records are not as they should be; return the exit code."""
    print(ledger.table())
    failures = ledger.failures()
    print(f"{len(ledger.claims)} records, {len(failures)} not as they should be; run folder {folder.path}")
    for failure in failures:
        print(f"  {failure}")
    return ledger.exit_code()


def print_verdict(folder: RunFolder, ledger: "Ledger", heading: str, *, smoke: bool) -> int:
    """Print a heading with its table, the ledger and what fails; return the exit code, 0 for a smoke run."""
    print(f"\n{heading}\n")
    print(ledger.table())
    failures = ledger.failures()
    if failures and smoke:
        print("A smoke run is too small to judge: its verdicts do not count.")
        return 0
    print("\n".join(["", *failures]) if failures else "\nEvery claim is supported and every control is refuted.")
    print(f"Run folder: {folder.path}")
    return ledger.exit_code()


def redraw(
    path: Path,
    experiment: str,
    finish: Callable[[RunFolder, Any], int],
    read: Callable[[RunFolder], Any] = RunFolder.read_history,
) -> int:
    """Judge and draw a finished run again; return the exit code, 0 for a smoke run.

    Args:
        path: run folder.
        experiment: whose it must be.
        finish: ends a run from its folder and history.
        read: reads the history.

    Returns:
        The exit code.

    Raises:
        RunFolderError: if the folder is of another experiment or its history lacks a variable.
    """
    folder = RunFolder.load(path, experiment=experiment)
    try:
        code = finish(folder, read(folder))
    except KeyError as error:
        raise RunFolderError(f"{path / 'history.nc'} is not of this experiment: it lacks {error}.") from error
    return 0 if folder.config["smoke"] else code
