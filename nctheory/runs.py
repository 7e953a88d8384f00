"""Run folders: configuration, provenance, arrays, and what is needed to resume.

A run folder holds config.json, manifest.json, history.nc, claims.json and figures/. Every file is written under a
temporary name and then moved, so a killed run leaves whole files only. There are no pickles.
"""

import contextlib
import os
import platform
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nctheory import distributed
from nctheory._errors import ArgumentError
from nctheory._files import TEMPORARY_PREFIX, RunFolderError, atomic_write, from_jsonable, read_json, to_jsonable
from nctheory._files import write_json as write_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RunFolder", "RunFolderError", "free_path", "latest_path"]
__all__ += ["atomic_write", "from_jsonable", "read_json", "to_jsonable", "write_json"]

_PROGRAM = "nctheory"
_FORMAT = 1
_LOCK = ".lock"
_OF_PROCESSES = ("distributed", "coordinator", "num_processes", "process_id", "start_timeout", "bind_cores")
_IGNORED = ("out", "resume", "plot_only", "quiet", "compilation_cache", "chunk_size", *_OF_PROCESSES)


def _contents(path: Path) -> list[Path]:
    """Entries of a folder, less the lock and what a killed run left half-written."""
    return [each for each in path.iterdir() if each.name != _LOCK and not each.name.startswith(TEMPORARY_PREFIX)]


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def free_path(path: str | Path) -> Path:
    """The first of `path`, `path`-2, `path`-3, ... that does not exist or is an empty folder."""
    return next(p for p in _numbered(Path(path)) if not p.exists() or (p.is_dir() and not _contents(p)))


def latest_path(path: str | Path) -> Path:
    """The last of `path`, `path`-2, ... before the first free one; `path` itself if there is none."""
    path, free = Path(path), free_path(path)
    found = path
    for each in _numbered(path):
        if each == free:
            return found
        found = each
    return found


def _take_lock(path: Path) -> int:
    """Lock a folder for this process and return the open file.

    The system frees the lock when the process ends in whatever way, so that a killed run leaves no stale lock behind,
    which a file with a process number would.
    """
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # No such locks on this system: two writers go unnoticed there.
    except BlockingIOError:
        owner = os.read(descriptor, 100).decode(errors="replace").strip()
        os.close(descriptor)
        raise RunFolderError(f"{path} is being written by another run ({owner or 'unknown process'}).") from None
    except OSError:
        pass  # A network file system without locks: as above.
    # Who holds it is for people; the lock holds without, as on a disk that is full.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor


def _remove_leftovers(path: Path) -> None:
    for folder in (path, path / "parts", path / "figures"):
        if folder.is_dir():
            for each in folder.iterdir():
                if each.name.startswith(TEMPORARY_PREFIX):
                    each.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is corrupted: it must hold an object, but holds {type(value).__name__}.")
    return value


def _read_config(path: Path, experiment: str | None) -> dict[str, Any]:
    """Read config.json and check that this program wrote it, for this experiment."""
    file = path / "config.json"
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder of this program: it has no config.json.")
    stored = _read_object(file)
    if stored.get("program") != _PROGRAM or not isinstance(stored.get("config"), dict):
        raise RunFolderError(f"{path} is no run folder of this program: its config.json was written by something else.")
    if stored.get("format") != _FORMAT:
        raise RunFolderError(f"{file} has format {stored.get('format')!r}, but this version reads format {_FORMAT}.")
    if experiment is not None and stored.get("experiment") != experiment:
        raise RunFolderError(
            f"{path} belongs to the experiment {stored.get('experiment')!r}, but this is {experiment!r}."
        )
    return stored


def _check_same(path: Path, stored: Mapping[str, Any], given: Mapping[str, Any], ignore: Collection[str]) -> None:
    missing = object()
    names = sorted((stored.keys() | given.keys()) - set(ignore))
    differing = []
    for name in names:
        old, new = stored.get(name, missing), given.get(name, missing)
        if old != new:
            shown = ["absent" if value is missing else repr(value) for value in (old, new)]
            differing.append(f"{name} (stored {shown[0]}, given {shown[1]})")
    if differing:
        raise RunFolderError(f"Cannot resume {path}: its configuration differs in {', '.join(differing)}.")


class RunFolder:
    """One run on disk. Make it with `create` or `load`; use it in a `with` block, which frees its lock at the end.

    Attributes:
        path: the folder.
        experiment: name of the experiment that owns it.
        config: the configuration as stored in config.json.
        resumed: whether `create` found an earlier run of the same configuration here.
    """

    def __init__(self, path: Path, stored: Mapping[str, Any], *, resumed: bool = False, lock: int | None = None):
        self.path = path
        self.experiment: str = stored["experiment"]
        self.config: dict[str, Any] = dict(stored["config"])
        self.resumed = resumed
        self._started = stored.get("started")
        self._parts, self._scratch = path / "parts", None
        # The finalizer frees the lock of a folder that was never closed, when it is collected or the process ends.
        self._unlock = weakref.finalize(self, os.close, lock) if lock is not None else None

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Any,
        *,
        experiment: str,
        resume: bool = False,
        ignore: Collection[str] = _IGNORED,
    ) -> "RunFolder":
        """Make a run folder, or take up an earlier run of the same configuration.

        With `resume`, a missing or empty folder starts anew, because a run killed at once leaves just that.

        Args:
            path: new or empty folder; with `resume` also an earlier run.
            config: mapping or dataclass record of JSON-like values.
            experiment: name that a resumed folder must bear.
            resume: whether to take up what is there.
            ignore: fields of `config` that may differ between the earlier run and this one.

        Returns:
            The locked folder; config.json is written.

        Raises:
            RunFolderError: if the folder is not empty (without `resume`), cannot be made or written, is being written
                by another run, or holds a corrupted or foreign run or another configuration (with `resume`).
            ValueError: if `config` has no JSON form or is no mapping.
        """
        path = Path(path)
        given = to_jsonable(config, "config")
        if not isinstance(given, dict):
            raise ArgumentError(f"Argument `config` must be a mapping or a dataclass record, but is {type(config)}.")
        if not distributed.is_main():
            return cls._shadow(given, experiment)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"Argument `out` must be a folder, but {path} is a file.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            cls._refuse_contents(path, resume)
            lock = _take_lock(path)
        except OSError as error:
            raise RunFolderError(f"Cannot create the run folder {path}: {error.strerror or error}.") from error
        try:
            folder = cls._open(path, given, experiment, resume, ignore, lock)
            distributed.share("run folder", str(path.absolute()))
            return folder
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _shadow(cls, given: dict[str, Any], experiment: str) -> "RunFolder":
        """The folder of a process that is not the first: the parts of the first, and all else is thrown away."""
        scratch = tempfile.TemporaryDirectory(prefix="nctheory-")
        folder = cls(Path(scratch.name), {"experiment": experiment, "config": given})
        folder._parts, folder._scratch = Path(distributed.share("run folder")) / "parts", scratch
        return folder

    @staticmethod
    def _refuse_contents(path: Path, resume: bool) -> None:
        entries = _contents(path)
        if entries and not resume:
            raise RunFolderError(
                f"Argument `out` must be a new or empty folder, or be given with --resume, "
                f"but {path} holds {len(entries)} entries."
            )
        if entries:
            # Before the lock is taken, so that nothing is written into somebody else's folder.
            _read_config(path, None)

    @classmethod
    def _open(
        cls, path: Path, given: dict[str, Any], experiment: str, resume: bool, ignore: Collection[str], lock: int
    ) -> "RunFolder":
        # Looked at again under the lock: another run may have come first.
        cls._refuse_contents(path, resume)
        _remove_leftovers(path)
        if _contents(path):
            stored = _read_config(path, experiment)
            _check_same(path, stored["config"], given, ignore)
            cls(path, stored)._check_results()
            return cls(path, stored, resumed=True, lock=lock)
        from nctheory import _provenance

        started = {"time": _provenance.now(), **_provenance.source_state()}
        stored = {"program": _PROGRAM, "format": _FORMAT, "experiment": experiment, "started": started, "config": given}
        write_json(path / "config.json", stored)
        return cls(path, stored, lock=lock)

    def _check_results(self) -> None:
        """Refuse to go on where a file is damaged: it is whole or absent after any interruption of ours."""
        for name in ("manifest.json", "claims.json"):
            if (self.path / name).exists():
                read_json(self.path / name)
        if (self.path / "history.nc").exists():
            self.read_history()

    @classmethod
    def load(cls, path: str | Path, *, experiment: str | None = None) -> "RunFolder":
        """Open a finished run, to draw its figures and judge its claims again.

        Args:
            path: folder with config.json, manifest.json and history.nc.
            experiment: name that the folder must bear; any if None.

        Returns:
            The folder, not locked: files are still written whole, one at a time.

        Raises:
            RunFolderError: saying which file is missing, corrupted or foreign.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunFolderError(f"Argument `out` must be the folder of a finished run, but {path} is no folder.")
        folder = cls(path, _read_config(path, experiment))
        for name in ("manifest.json", "history.nc"):
            if not (path / name).is_file():
                raise RunFolderError(f"{path} is not the folder of a finished run: {name} is missing.")
        _read_object(path / "manifest.json")
        folder.read_history()
        return folder

    def __enter__(self) -> "RunFolder":
        """Return the folder itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Free the lock; an interrupt carries away a note of what is safe on disk."""
        if isinstance(error, KeyboardInterrupt):
            error.add_note(self.saved())
        self.close()

    def close(self) -> None:
        """Free the lock. Closing twice does nothing."""
        if self._unlock is not None:
            self._unlock()
        if self._scratch is not None:
            self._scratch.cleanup()

    def saved(self) -> str:
        """One line on what the folder holds now."""
        names = sorted(each.name for each in _contents(self.path) if each.is_file())
        parts = self.path / "parts"
        count = len(_contents(parts)) if parts.is_dir() else 0
        finished = f" and {count} finished part{'s' if count != 1 else ''}" if count else ""
        return f"{self.path} holds {', '.join(names) or 'no file'}{finished}"

    @property
    def parts(self) -> Path:
        """Folder of a sweep's finished parts, from which it resumes; made on first use."""
        return self._parts if self._scratch is not None else self._subfolder("parts")

    @property
    def figures(self) -> Path:
        """Folder of the figures; made on first use."""
        return self._subfolder("figures")

    def _subfolder(self, name: str) -> Path:
        folder = self.path / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"Cannot create the folder {folder}: {error.strerror or error}.") from error
        return folder

    def write_json(self, name: str, obj: Any) -> None:
        """Write a JSON file of this folder; NaN becomes null."""
        write_json(self.path / name, obj)

    def write_history(self, history: "xr.Dataset | xr.DataTree", name: str = "history.nc") -> None:
        """Write labelled arrays as NetCDF-4; complex, boolean and text variables come back as they were.

        Args:
            history: arrays with named dimensions; `attrs` carry units and definitions.
            name: file name inside the folder.

        Raises:
            RunFolderError: naming the path, if it cannot be written. The earlier file stays.
        """
        from nctheory import _netcdf

        _netcdf.write_netcdf(self.path / name, history)

    def read_history(self, name: str = "history.nc") -> "xr.Dataset | xr.DataTree":
        """Read what `write_history` wrote, all into memory.

        Raises:
            RunFolderError: naming the file, if it is missing or corrupted.
        """
        from nctheory import _netcdf

        return _netcdf.read_netcdf(self.path / name)

    def read_tree(self, name: str = "history.nc") -> "xr.DataTree":
        """Read a history that holds several datasets.

        Raises:
            RunFolderError: naming the file, if it is missing, corrupted, or holds a single dataset.
        """
        import xarray as xr

        history = self.read_history(name)
        if not isinstance(history, xr.DataTree):
            raise RunFolderError(f"{self.path / name} holds one dataset where a tree of datasets is due.")
        return history

    def write_manifest(
        self,
        *,
        device: str | None = None,
        dtype: str | None = None,
        compile_seconds: float | None = None,
        run_seconds: float | None = None,
        **extra: Any,
    ) -> None:
        """Write manifest.json: commit, versions, machine, command, times.

        Args:
            device: what computed, such as "cpu" or "NVIDIA H100 x 8".
            dtype: precision of the numbers, such as "float32".
            compile_seconds: time spent compiling, in seconds.
            run_seconds: time spent computing after compilation, in seconds.
            **extra: further entries of JSON-like values.
        """
        from nctheory import _provenance

        self.write_json(
            "manifest.json",
            {
                "experiment": self.experiment,
                **_provenance.source_state(),
                "started": self._started,
                "written": _provenance.now(),
                "command": _provenance.command_line(),
                "versions": _provenance.package_versions(),
                "machine": _provenance.machine(),
                "device": device,
                "dtype": dtype,
                "compile_seconds": compile_seconds,
                "run_seconds": run_seconds,
                **extra,
            },
        )
