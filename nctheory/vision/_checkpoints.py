"""Checkpoints of a training run: whole or absent, verified, without pickles.

One folder an epoch, `epoch_000012/`, holding `arrays/` (Orbax: parameters, batch statistics, momentum), `returned.npz`
(what the run's callback gave) and `record.json` (what the run is, its position, its history, the SHA-256 of every other
file). It is written under a temporary name and moved, so a killed run leaves whole checkpoints only.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nctheory._errors import ArgumentError
from nctheory._files import TEMPORARY_PREFIX, RunFolderError, from_jsonable, read_json, to_jsonable, write_json
from nctheory.runs import _take_lock

_FORMAT = 1
_ARRAYS, _RECORD, _RETURNED = "arrays", "record.json", "returned.npz"
_KINDS = "biufcSU"


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, in the pytree's order."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, value in arrays.items():
        array = np.ascontiguousarray(np.asarray(value))
        found.update(f"{name} {array.dtype} {array.shape};".encode())
        found.update(array.data.cast("B") if array.size else b"")
    return found.hexdigest()


def flat_returned(value: Any, where: str = "") -> dict[str, np.ndarray]:
    """Arrays of a callback's value by path: nested dictionaries and records are taken apart.

    Raises:
        ValueError: naming the entry that is no numeric, boolean or text array.
    """
    if value is None:
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        found = {}
        for name, each in value.items():
            if not isinstance(name, str) or "/" in name or not name:
                raise ArgumentError(f"Argument `on_checkpoint` must return names without '/', but has {name!r}.")
            found |= flat_returned(each, f"{where}/{name}" if where else name)
        return found
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS or not where:
        raise ArgumentError(
            f"Argument `on_checkpoint` must return None or a dictionary of numeric or text arrays, but "
            f"{where or 'its value'} is of type {type(value).__name__} and dtype {array.dtype}."
        )
    return {where: array}


def nested_returned(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Undo `flat_returned`: dictionaries of arrays."""
    found: dict[str, Any] = {}
    for path, array in flat.items():
        *above, name = path.split("/")
        inner = found
        for each in above:
            inner = inner.setdefault(each, {})
        inner[name] = array
    return found


def _differences(stored: Any, given: Any, where: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        names = sorted(stored.keys() | given.keys())
        return [
            each
            for name in names
            for each in _differences(
                stored.get(name, "absent"), given.get(name, "absent"), f"{where}.{name}" if where else name
            )
        ]
    return [] if stored == given else [f"{where} (stored {stored!r}, given {given!r})"]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        epoch: number of finished epochs.
        arrays: leaves of the state by name.
        history: columns of the history.
        returned: what the callback gave, by epoch.
    """

    epoch: int
    arrays: dict[str, Any]
    history: dict[str, Any]
    returned: dict[int, dict[str, Any]]


class CheckpointStore:
    """The checkpoints of one run in one folder, locked for this process until `close`.

    Args:
        folder: made if missing.
        identity: JSON-like description of the run; a checkpoint of another one is refused.
        kept: epochs that are never deleted; of the others only the newest stays.
        resume: whether earlier checkpoints may be taken up; otherwise they are refused.

    Raises:
        RunFolderError: if the folder cannot be made, is in use, holds checkpoints without `resume`, or belongs to
            another run.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], kept: Collection[int], *, resume: bool):
        self.folder = Path(folder).absolute()
        # Once through JSON, so that tuples and lists compare equal.
        self._identity = json.loads(json.dumps(to_jsonable(identity)))
        self._kept = frozenset(kept)
        self._leads = jax.process_index() == 0
        self._lock: int | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.folder) if self._leads else None
        except OSError as error:
            raise RunFolderError(f"Cannot use the folder {self.folder}: {error.strerror or error}.") from error
        try:
            self._open(resume)
        except BaseException:
            self.close()
            raise

    def _open(self, resume: bool) -> None:
        if self._leads:
            for each in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(each, ignore_errors=True)
        epochs = self.epochs()
        if epochs and not resume:
            raise RunFolderError(
                f"{self.folder} already holds {len(epochs)} checkpoints, up to epoch {epochs[-1]}: resume, or choose "
                "another folder."
            )
        if epochs:
            self._check_identity(self._record(epochs[-1]))

    def close(self) -> None:
        """Free the lock. Closing twice does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def path(self, epoch: int) -> Path:
        """Folder of a checkpoint."""
        return self.folder / f"epoch_{epoch:06d}"

    def epochs(self) -> list[int]:
        """Epochs with a checkpoint, increasing."""
        return stored_epochs(self.folder)

    def _record(self, epoch: int) -> dict[str, Any]:
        return _read_record(self.path(epoch))

    def _check_identity(self, record: Mapping[str, Any]) -> None:
        differing = _differences(record["identity"], self._identity)
        if differing:
            raise RunFolderError(f"Cannot resume {self.folder}: the run differs in {', '.join(differing)}.")

    def save(self, epoch: int, state: Any, history: Mapping[str, Any], returned: Mapping[str, np.ndarray]) -> None:
        """Write the checkpoint of an epoch, then delete those that need not stay.

        Args:
            epoch: number of finished epochs.
            state: pytree of arrays.
            history: columns of the history so far.
            returned: arrays of the callback, from `flat_returned`.

        Raises:
            RunFolderError: naming the path, if it cannot be written. Earlier checkpoints stay.
        """
        final = self.path(epoch)
        temporary = self.folder / f"{TEMPORARY_PREFIX}{final.name}"
        arrays = named_leaves(state)
        record = {
            "format": _FORMAT,
            "identity": self._identity,
            "epoch": epoch,
            "history": {name: np.asarray(column).tolist() for name, column in history.items()},
        }
        try:
            _write_arrays(temporary / _ARRAYS, arrays)
            if self._leads:
                np.savez(temporary / _RETURNED, allow_pickle=False, **{f"at/{k}": v for k, v in returned.items()})
                record["files"] = _file_digests(temporary)
                write_json(temporary / _RECORD, record)
                if final.exists():
                    shutil.rmtree(final)
                os.replace(temporary, final)
                self._prune(epoch)
        except Exception as error:
            # Orbax reports a full disk or a missing permission under several types.
            if self._leads:
                shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"Cannot write the checkpoint {final}: {_short(error)}. Earlier checkpoints are unchanged."
            ) from error
        _wait_for_all(f"saved {epoch}")

    def _prune(self, newest: int) -> None:
        for epoch in self.epochs():
            if epoch != newest and epoch not in self._kept:
                # Renamed first: a kill half-way must not leave half a checkpoint under a whole one's name.
                doomed = self.folder / f"{TEMPORARY_PREFIX}old-{epoch}"
                os.replace(self.path(epoch), doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, like: Any) -> Restored | None:
        """Read the newest checkpoint.

        Args:
            like: pytree of arrays with the shapes and placement to restore.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            RunFolderError: naming the checkpoint, if any part of it is damaged.
        """
        epochs = self.epochs()
        if not epochs:
            return None
        record = self._record(epochs[-1])
        path = self.path(epochs[-1])
        arrays = read_arrays(path, record, like)
        returned = {}
        for epoch in epochs:
            if epoch in self._kept:
                each = self._record(epoch)
                self._check_identity(each)
                _check_files(self.path(epoch), each)
                returned[epoch] = nested_returned(_read_returned(self.path(epoch)))
        history = {name: _column(path, each) for name, each in record["history"].items()}
        return Restored(epochs[-1], arrays, history, returned)


def stored_epochs(folder: Path) -> list[int]:
    """Epochs with a checkpoint in a folder, increasing."""
    names = [each.name.removeprefix("epoch_") for each in folder.glob("epoch_*")]
    return sorted(int(name) for name in names if name.isdigit())


def read_arrays(path: Path, record: Mapping[str, Any], like: Any) -> dict[str, Any]:
    """Arrays of a checkpoint, after a look at all its files; errors as in `CheckpointStore.restore`."""
    import orbax.checkpoint as ocp

    _check_files(path, record)
    wanted = named_leaves(like)
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in wanted.items()
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(path / _ARRAYS, shapes)
        return {name: arrays[name] for name in wanted}
    except Exception as error:
        raise _damaged(path, _short(error)) from error


def _file_digests(path: Path) -> dict[str, str]:
    found = {}
    for each in sorted(path.rglob("*")):
        if each.is_file() and each.name != _RECORD:
            with open(each, "rb") as file:
                found[each.relative_to(path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _check_files(path: Path, record: Mapping[str, Any]) -> None:
    """Compare a checkpoint's files with what was written, before a reader stumbles over them."""
    try:
        found = _file_digests(path)
    except OSError as error:
        raise RunFolderError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
    for name, expected in record["files"].items():
        if found.get(name) != expected:
            raise _damaged(path, f"{name} is {'missing' if name not in found else 'not what was written'}")


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path / _RECORD)
    needed = {"identity": dict, "epoch": int, "files": dict, "history": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in needed.items()):
        raise _damaged(path, f"{_RECORD} lacks a part")
    if record.get("format") != _FORMAT:
        raise RunFolderError(f"{path} has format {record.get('format')!r}, but this version reads format {_FORMAT}.")
    return record


def _column(path: Path, stored: Any) -> np.ndarray:
    try:
        return np.vectorize(from_jsonable, otypes=[np.float64])(np.asarray(stored, dtype=object))
    except (TypeError, ValueError) as error:
        if stored == []:
            return np.zeros(0)
        raise _damaged(path, f"its history cannot be read: {_short(error)}") from error


def read_record(folder: Path, epoch: int) -> tuple[Path, dict[str, Any]]:
    """Path and record of one checkpoint; errors as in `CheckpointStore.restore`."""
    path = folder / f"epoch_{epoch:06d}"
    return path, _read_record(path)


def _read_returned(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path / _RETURNED) as stored:
            return {name.removeprefix("at/"): stored[name] for name in stored.files}
    except Exception as error:
        raise _damaged(path, f"{_RETURNED}: {_short(error)}") from error


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, dict(arrays), force=True)
        checkpointer.wait_until_finished()


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(f"The checkpoint {path} is damaged: {reason}. Delete it to go on from an earlier one.")
