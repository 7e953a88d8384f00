"""Finished units of scoring on disk, so that a killed run does not score them again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nctheory.runs import RunFolderError, atomic_write

if TYPE_CHECKING:
    import numpy as np


def cached(path: Path, compute: "Callable[[], dict[str, np.ndarray]]") -> "dict[str, np.ndarray]":
    """Read the arrays of a finished unit of work, or compute and keep them."""
    import zipfile

    import numpy as np

    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"{path} is corrupted ({error}); delete it to compute it again.") from error
    arrays = compute()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomic_write(path, write)
    return arrays
