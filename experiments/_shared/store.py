"""Finished units of scoring on disk, so that a killed run does not score them again."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from nctheory.runs import RunFolderError, atomic_write

if TYPE_CHECKING:
    import numpy as np


def cached(
    path: Path, names: Collection[str], compute: "Callable[[], dict[str, np.ndarray]]"
) -> "dict[str, np.ndarray]":
    """Read the arrays of a finished unit of work, or compute and keep them.

    Args:
        path: file of the unit.
        names: the arrays that `compute` returns.
        compute: does the work.

    Returns:
        The arrays by name.

    Raises:
        RunFolderError: naming the file, if it is damaged or holds other arrays, or cannot be written.
    """
    import zipfile

    import numpy as np

    if path.exists():
        try:
            # Opened here, because NumPy leaves a file that it opened itself open when it turns out to be damaged.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"{path} is corrupted ({error}); delete it to compute it again.") from error
        if found.keys() != set(names):
            raise RunFolderError(
                f"{path} is not of this experiment: it holds {sorted(found)} where {sorted(names)} are due; delete it "
                "to compute it again."
            )
        return found
    arrays = compute()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomic_write(path, write)
    return arrays
