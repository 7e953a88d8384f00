"""Checkpoints of a training run: whole or absent, verified, without pickles.

One folder an epoch, `epoch_000012/`, holding `arrays/` (Orbax: parameters, batch statistics, momentum), `returned.npz`
(what the run's callback gave) and `record.json` (what the run is, its position, its history, the SHA-256 of every other
file). It is written under a temporary name and moved, so a killed run leaves whole checkpoints only; it is on the disk
before another one is deleted, so that a power cut does too. A run that was
asked to stop within epoch 13 leaves `begun_000013/`, whose `returned.npz` holds the epoch's losses so far, until the
next checkpoint replaces it.
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

from nctheory._files import (
    TEMPORARY_PREFIX,
    RunFolderError,
    from_jsonable,
    read_json,
    sync_folder,
    sync_tree,
    to_jsonable,
    write_json,
)
from nctheory.runs import _take_lock
from nctheory.vision._checkpoint_values import differences, named_leaves

_FORMAT = 1
_ARRAYS, _RECORD, _RETURNED = "arrays", "record.json", "returned.npz"
_BEGUN = "begun_"


@dataclasses.dataclass(frozen=True)
class Begun:
    """Steps of an epoch that is not finished.

    Attributes:
        losses: loss of every step, steps on the last axis.
        right: right answers of every step.
        seconds: time the steps took.
    """

    losses: np.ndarray
    right: np.ndarray
    seconds: float

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields as arrays."""
        return {"losses": self.losses, "right": self.right, "seconds": np.asarray(self.seconds)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Begun | None":
        """Undo `arrays`; None if there are none."""
        return cls(arrays["losses"], arrays["right"], float(arrays["seconds"])) if arrays else None


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        epoch: number of finished epochs.
        arrays: leaves of the state by name.
        history: columns of the history.
        returned: what the callback gave, flat, by epoch.
        begun: steps of the next epoch, if some are in the state.
    """

    epoch: int
    arrays: dict[str, Any]
    history: dict[str, Any]
    returned: dict[int, dict[str, np.ndarray]]
    begun: Begun | None


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
        self._lock: int | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.folder)
        except OSError as error:
            raise RunFolderError(f"Cannot use the folder {self.folder}: {error.strerror or error}.") from error
        try:
            self._open(resume)
        except BaseException:
            self.close()
            raise

    def _open(self, resume: bool) -> None:
        for each in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(each, ignore_errors=True)
        newest = self._newest()
        if newest is not None and not resume:
            count, last = len(self.epochs()) + self._is_begun(newest), int(newest.name.rpartition("_")[2])
            raise RunFolderError(
                f"{self.folder} already holds {count} checkpoint{'s' if count != 1 else ''}, up to epoch {last}: "
                "resume, or choose another folder."
            )
        if newest is not None:
            self._check_identity(_read_record(newest))

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

    def _newest(self) -> Path | None:
        """The newest checkpoint, be it within an epoch."""
        epochs, begun = self.epochs(), _numbers(self.folder, _BEGUN)
        # One that an epoch has overtaken was about to be deleted when the run was killed.
        if begun and (not epochs or begun[-1] > epochs[-1]):
            return self.folder / f"{_BEGUN}{begun[-1]:06d}"
        return self.path(epochs[-1]) if epochs else None

    @staticmethod
    def _is_begun(path: Path) -> bool:
        return path.name.startswith(_BEGUN)

    def _check_identity(self, record: Mapping[str, Any]) -> None:
        differing = differences(record["identity"], self._identity)
        if differing:
            raise RunFolderError(f"Cannot resume {self.folder}: the run differs in {', '.join(differing)}.")

    def save(
        self,
        epoch: int,
        state: Any,
        history: Mapping[str, Any],
        returned: Mapping[str, np.ndarray],
        begun: Begun | None = None,
    ) -> None:
        """Write a checkpoint, then delete those that need not stay.

        Args:
            epoch: number of finished epochs.
            state: pytree of arrays, each of them whole on a device of this process.
            history: columns of the history so far.
            returned: arrays of the callback, from `flat_returned`.
            begun: steps of the next epoch, if this is within it.

        Raises:
            RunFolderError: naming the path, if it cannot be written. Earlier checkpoints stay.
        """
        final = self.path(epoch) if begun is None else self.folder / f"{_BEGUN}{epoch + 1:06d}"
        temporary = self.folder / f"{TEMPORARY_PREFIX}{final.name}"
        record = {
            "format": _FORMAT,
            "identity": self._identity,
            "epoch": epoch,
            "history": {name: np.asarray(column).tolist() for name, column in history.items()},
        }
        values = {f"at/{name}": each for name, each in returned.items()}
        values |= {} if begun is None else {f"begun/{name}": each for name, each in begun.arrays().items()}
        try:
            _write_arrays(temporary / _ARRAYS, named_leaves(state))
            np.savez(temporary / _RETURNED, allow_pickle=False, **values)
            record["files"] = _file_digests(temporary)
            write_json(temporary / _RECORD, record)
            self._put(temporary, final)
            self._prune(final)
        except Exception as error:
            # Orbax reports a full disk or a missing permission under several types.
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"Cannot write the checkpoint {final}: {_short(error)}. Earlier checkpoints are unchanged."
            ) from error

    def _prune(self, newest: Path) -> None:
        begun = [self.folder / f"{_BEGUN}{number:06d}" for number in _numbers(self.folder, _BEGUN)]
        epochs = [self.path(epoch) for epoch in self.epochs() if epoch not in self._kept]
        # Within an epoch, the last whole one stays too.
        epochs = epochs if not self._is_begun(newest) else []
        for each in (*begun, *epochs):
            if each != newest:
                shutil.rmtree(self._set_aside(each), ignore_errors=True)

    def _put(self, temporary: Path, final: Path) -> None:
        """Give a checkpoint its name, once it is on the disk; one that has the name already is deleted afterwards."""
        sync_tree(temporary)
        doomed = self._set_aside(final) if final.exists() else None
        os.replace(temporary, final)
        sync_folder(self.folder)
        if doomed is not None:
            shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, path: Path) -> Path:
        """Rename a checkpoint: a kill half-way through its deletion must not leave half of it under a whole one's."""
        doomed = self.folder / f"{TEMPORARY_PREFIX}old-{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        return doomed

    def restore(self, like: Any) -> Restored | None:
        """Read the newest checkpoint, and of the kept ones what the callback gave.

        All files of the newest are compared with what was written; of the kept ones only those that are read, because
        their arrays may be many times as large. `read_arrays` looks at the others when they are used.

        Args:
            like: pytree of arrays with the shapes and placement to restore.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            RunFolderError: naming the checkpoint, if a part of it that is read is damaged.
        """
        path = self._newest()
        if path is None:
            return None
        record = _read_record(path)
        arrays = read_arrays(path, record, like)
        returned = {}
        for epoch in self.epochs():
            if epoch in self._kept:
                each = _read_record(self.path(epoch))
                self._check_identity(each)
                _check_files(self.path(epoch), each, _RETURNED)
                returned[epoch] = _read_returned(self.path(epoch), "at/")
        history = {name: _column(path, each) for name, each in record["history"].items()}
        return Restored(record["epoch"], arrays, history, returned, Begun.of(_read_returned(path, "begun/")))


def _numbers(folder: Path, prefix: str) -> list[int]:
    names = [each.name.removeprefix(prefix) for each in folder.glob(f"{prefix}*")]
    return sorted(int(name) for name in names if name.isdigit())


def stored_epochs(folder: Path) -> list[int]:
    """Epochs with a checkpoint in a folder, increasing."""
    return _numbers(folder, "epoch_")


def read_arrays(path: Path, record: Mapping[str, Any], like: Any) -> dict[str, Any]:
    """Arrays of a checkpoint, after a look at all its files; errors as in `CheckpointStore.restore`."""
    import orbax.checkpoint as ocp

    _check_files(path, record)
    wanted = named_leaves(like)
    try:
        with ocp.StandardCheckpointer(**_alone()) as checkpointer:
            arrays = checkpointer.restore(path / _ARRAYS, {name: _target(leaf) for name, leaf in wanted.items()})
        return {name: arrays[name] for name in wanted}
    except Exception as error:
        raise _damaged(path, _short(error)) from error


def _file_digests(path: Path, pattern: str = "*") -> dict[str, str]:
    found = {}
    for each in sorted(path.rglob(pattern)):
        if each.is_file() and each.name != _RECORD:
            with open(each, "rb") as file:
                found[each.relative_to(path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _check_files(path: Path, record: Mapping[str, Any], only: str | None = None) -> None:
    """Compare a checkpoint's files, or one of them, with what was written, before a reader stumbles over them."""
    try:
        found = _file_digests(path, only or "*")
    except OSError as error:
        raise RunFolderError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
    for name, expected in record["files"].items():
        if name != (only or name):
            continue
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


def _read_returned(path: Path, prefix: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path / _RETURNED) as stored:
            return {name.removeprefix(prefix): stored[name] for name in stored.files if name.startswith(prefix)}
    except Exception as error:
        raise _damaged(path, f"{_RETURNED}: {_short(error)}") from error


def _alone() -> dict[str, Any]:
    """Options of a checkpointer that does not wait for other processes."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return {}
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"nctheory-{own}"
    )
    return {"multiprocessing_options": options}


def _target(leaf: Any) -> Any:
    """What to restore a leaf into: its own placement, or with several processes a NumPy array."""
    if jax.process_count() == 1:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros(leaf.shape, leaf.dtype)


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    if jax.process_count() > 1:
        # Orbax would have every process write a part of what all of them hold.
        arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    with ocp.StandardCheckpointer(**_alone()) as checkpointer:
        checkpointer.save(path, dict(arrays), force=True)
        checkpointer.wait_until_finished()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(f"The checkpoint {path} is damaged: {reason}. Delete it to go on from an earlier one.")
