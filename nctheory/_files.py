"""Files that are never half-written: atomic writing, and JSON that can hold NaN and infinity."""

import contextlib
import dataclasses
import enum
import errno
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nctheory._errors import ArgumentError

TEMPORARY_PREFIX = ".tmp-"
_counter = itertools.count()
_INFINITIES = {"inf": math.inf, "-inf": -math.inf}


class RunFolderError(RuntimeError):
    """A run folder that cannot be created, written, resumed or read; the message names the path."""


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def atomic_write(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then move it to its own name in one step.

    At every moment `path` holds either the earlier file or the whole new one. If the writer fails, the temporary file
    is removed and the earlier file stays. Missing folders above are made.

    Args:
        path: file to write.
        writer: called with the temporary path, which ends in the same name and so has the same suffix.

    Raises:
        RunFolderError: naming `path`, if the operating system refuses (no space, no permission, not a folder).
        Exception: whatever else `writer` raises.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{next(_counter)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        # Without the flush a power cut can leave an empty file under the final name.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = " The earlier file is unchanged." if path.is_file() else ""
        raise RunFolderError(f"Cannot write {path}: {_reason(error)}.{kept}") from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # The folder itself is missing or read-only: nothing was written, and the first error matters.


def sync_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on the disk: after a rename, before what it replaces is deleted.

    Where the system cannot do that for folders, nothing happens.

    Raises:
        OSError: if the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders.
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str | Path) -> None:
    """Wait until all files in a folder, also in those within, and their names are on the disk.

    Raises:
        OSError: if the disk fails, or fills up only now.
    """
    for above, _, names in os.walk(folder, topdown=False):
        for name in names:
            # Opened for writing, which some systems want for this; what is read-only was never ours.
            with contextlib.suppress(PermissionError), open(Path(above) / name, "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(above)


def to_jsonable(value: Any, where: str = "obj") -> Any:
    """Turn records, paths, enumerations, NumPy and JAX values into what JSON can hold.

    NaN becomes null and infinity the string "inf" or "-inf", because JSON has neither.

    Raises:
        ValueError: naming the entry that cannot be written.
    """
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        # float(...) strips np.float64, a subclass of float that newer JSON writers may not know.
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_jsonable(each, f"{where}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((to_jsonable(each, where) for each in value), key=repr)
    listed = getattr(value, "tolist", complex)()  # complex stands for "no"
    if not isinstance(listed, complex):
        return to_jsonable(listed, where)
    raise ArgumentError(f"Argument `{where}` must be representable in JSON, but is of type {type(value).__name__}.")


def from_jsonable(value: Any) -> Any:
    """Undo `to_jsonable` for one number: null is NaN, "inf" and "-inf" are infinite, integers become floats."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return _INFINITIES.get(value, value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def write_json(path: str | Path, obj: Any) -> None:
    """Write indented JSON through a temporary name.

    Args:
        path: file to write.
        obj: anything that `to_jsonable` takes.

    Raises:
        ValueError: if something in `obj` has no JSON form.
        RunFolderError: naming the path, if it cannot be written.
    """
    text = json.dumps(to_jsonable(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        RunFolderError: naming the file, if it is missing, unreadable or corrupted.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing.") from None
    except OSError as error:
        raise RunFolderError(f"Cannot read {path}: {_reason(error)}.") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is corrupted and cannot be read as JSON: {error}.") from None
