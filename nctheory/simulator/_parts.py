"""Finished chunks of a sweep on disk: one `.npz` a chunk, whole or absent, never pickled."""

import contextlib
import hashlib
import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from nctheory import _checks
from nctheory._files import TEMPORARY_PREFIX, RunFolderError, atomic_write
from nctheory.runs import _LOCK as LOCK
from nctheory.runs import _take_lock as take_lock

HEADER = "sweep.json"
# How long a file that another machine wrote may take to appear here, in seconds: network file systems keep for a while
# what they knew of a folder.
_APPEARS_S = 90.0
_Way = Literal["given", "estimated", "measured", "stored"]


@dataclass(frozen=True)
class ChunkChoice:
    """How the size of a sweep's chunks was chosen.

    Attributes:
        way: "given" by the caller, "estimated" from the traced program, "measured", or "stored": that of the chunks in
            the checkpoint.
        reason: what else there is to say, such as why nothing was measured; may be empty.
        seconds_per_row: wall time a row, by the sizes of chunks that were timed; also when they were timed by the run
            that made the checkpoint.
        share_bytes: memory that the compiled program asks for on a device, by the rows of a share; -1 where it was too
            much to compile.
        measure_seconds: wall time that this run spent on measuring and would not have spent otherwise: compiling and
            running other sizes.
    """

    way: _Way
    reason: str = ""
    seconds_per_row: Mapping[int, float] = field(default_factory=dict)
    share_bytes: Mapping[int, int] = field(default_factory=dict)
    measure_seconds: float = 0.0

    def as_stored(self) -> "ChunkChoice":
        """This choice as a later run sees it."""
        reason = f"{self.way} by the run that began" + (f"; {self.reason}" if self.reason else "")
        return replace(self, way="stored", reason=reason, measure_seconds=0.0)

    def to_json(self) -> dict[str, Any]:
        """This choice as JSON holds it."""
        by_size = {name: getattr(self, name) for name in ("seconds_per_row", "share_bytes")}
        text = {name: {str(size): value for size, value in values.items()} for name, values in by_size.items()}
        return {**asdict(self), **text}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ChunkChoice":
        """Undo `to_json`.

        Raises:
            ValueError, TypeError, KeyError or AttributeError: if it is something else.
        """
        if stored["way"] not in get_args(_Way):
            raise ValueError(f"way {stored['way']!r}")
        seconds = {int(size): float(value) for size, value in stored["seconds_per_row"].items()}
        share_bytes = {int(size): int(value) for size, value in stored["share_bytes"].items()}
        return cls(stored["way"], str(stored["reason"]), seconds, share_bytes, float(stored["measure_seconds"]))


class PartStore:
    """Folder of finished chunks that belong to one sweep.

    `sweep.json` says which sweep (a digest of its configurations, seeds, precision and backend), its chunk size, the
    size of the shares that chunks ran in, the chunk size that was asked for, and how it was chosen; `chunk-00007.npz`
    holds the leaves of chunk 7. Files appear under their name only once they are complete, so several processes can
    write chunks.

    Attributes:
        path: the folder.
        chunk_size: rows of a chunk; None as long as the folder is empty.
        share: rows of a compiled call; None if unknown.
        asked: the chunk size that was asked for; None if none was.
        choice: how the chunk size was chosen.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: dict[str, Any],
        chunk_size: int | None = None,
        share: int | None = None,
        asked: int | None = None,
    ):
        self.path, self._fingerprint = path, fingerprint
        self.chunk_size, self.share, self.asked = chunk_size, share, asked
        # Folders of earlier versions do not say.
        self.choice, self._is_locked = ChunkChoice("estimated" if asked is None else "given"), False

    @staticmethod
    def fingerprint(*, structure: str, arrays: Sequence[np.ndarray], seeds: np.ndarray, backend: str) -> dict[str, Any]:
        """Describe a sweep so that two sweeps are equal exactly when their chunks may be mixed."""
        digest = hashlib.sha256(structure.encode())
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "config_digest": digest.hexdigest(),
            "seeds_digest": hashlib.sha256(seeds.tobytes()).hexdigest(),
            "num_seeds": int(seeds.size),
            "backend": backend,
        }

    @classmethod
    def open(cls, path: Path, fingerprint: dict[str, Any]) -> "PartStore":
        """Open or create the folder.

        Raises:
            RunFolderError: if the folder cannot be made, its header is damaged, or it belongs to another sweep.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"Checkpoint folder {path} cannot be made: {error}.") from error
        if not (path / HEADER).exists():
            # A writer killed during the very first write leaves a temporary file and nothing else.
            names = sorted(each.name for each in path.iterdir())
            strangers = [name for name in names if name != LOCK and not name.startswith(TEMPORARY_PREFIX)]
            if strangers:
                raise RunFolderError(f"Checkpoint folder {path} has no {HEADER} but holds {strangers[:3]}.")
        store = cls(path, fingerprint)
        store._read_header()
        return store

    def _read_header(self) -> None:
        header = self.path / HEADER
        if not header.exists():
            return
        try:
            stored = json.loads(header.read_text())
            self.chunk_size = _checks.integer("chunk_size", stored["chunk_size"], minimum=1)
            self.share = _checks.integer("share", stored.get("share", self.chunk_size), minimum=1)
            self.asked = stored.get("asked")
            usual = ChunkChoice("estimated" if self.asked is None else "given").to_json()
            self.choice = ChunkChoice.from_json(stored.get("choice", usual))
            differing = [name for name, value in self._fingerprint.items() if stored["sweep"][name] != value]
            if self.chunk_size % self.share:
                raise ValueError(f"share {self.share}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"Checkpoint header {header} is damaged ({error!r}); delete {self.path} to start over."
            ) from error
        if differing:
            raise RunFolderError(f"Checkpoint folder {self.path} belongs to another sweep: {differing} differ.")

    def begin(self, chunk_size: int, share: int, asked: int | None, choice: ChunkChoice) -> None:
        """Record the sizes, or check the chunk size against the recorded one.

        Raises:
            RunFolderError: if finished chunks have another size, or another run writes here.
        """
        with self.lock():
            # Looked at again under the lock: another run may have come first.
            self._read_header()
            if self.chunk_size is None:
                self._write_header(chunk_size, share, asked, choice)
            elif self.chunk_size != chunk_size:
                raise RunFolderError(
                    f"Checkpoint folder {self.path} has chunks of {self.chunk_size} rows, not {chunk_size}."
                )

    def change_share(self, share: int, choice: ChunkChoice) -> None:
        """Record that the chunks still to come run in smaller shares."""
        if self.chunk_size is not None:
            self._write_header(self.chunk_size, share, self.asked, choice)

    def _write_header(self, chunk_size: int, share: int, asked: int | None, choice: ChunkChoice) -> None:
        sizes = {"chunk_size": chunk_size, "share": share, "asked": asked, "choice": choice.to_json()}
        text = json.dumps({"sweep": self._fingerprint, **sizes}, indent=2)
        atomic_write(self.path / HEADER, lambda temporary: temporary.write_text(text))
        self.chunk_size, self.share, self.asked, self.choice = chunk_size, share, asked, choice

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs from writing here; the lock ends with the process, in whatever way.

        Raises:
            RunFolderError: naming the process that writes here, or why the folder cannot be locked, as on a full disk.
        """
        if self._is_locked or not os.access(self.path, os.W_OK):
            # Finished chunks can be read without a lock, and none can be written.
            yield
            return
        file = self.path / LOCK
        while True:
            try:
                descriptor = take_lock(self.path)
            except OSError as error:
                raise RunFolderError(f"{self.path} cannot be locked: {error.strerror or error}.") from error
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    break
            # Its owner removed the file while we were waiting for it.
            os.close(descriptor)
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)

    def leave_token(self) -> str | None:
        """Leave a file of a random name, by which another process recognises that this folder is also its own.

        Returns:
            The name; None if this folder may only be read.
        """
        if not os.access(self.path, os.W_OK):
            return None
        token = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        atomic_write(self.path / token, lambda temporary: temporary.write_text(""))
        return token

    def sees(self, token: str, timeout_s: float = 2.0) -> bool:
        """Whether a token lies here."""
        return self._appears(self.path / token, timeout_s)

    def take_back(self, token: str) -> None:
        """Remove a token."""
        (self.path / token).unlink(missing_ok=True)

    @staticmethod
    def _appears(file: Path, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not file.exists():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
            # Listing a folder makes a network file system look again.
            with contextlib.suppress(OSError):
                os.listdir(file.parent)
        return True

    def has(self, index: int) -> bool:
        """Whether the chunk is finished."""
        return self._file(index).exists()

    def save(self, index: int, part: Any) -> None:
        """Write one chunk, whole or not at all."""
        leaves = {f"leaf{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(part))}

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **leaves)

        atomic_write(self._file(index), write)

    def load(self, index: int, structure: Any, *, wait: bool = False) -> Any:
        """Read one chunk back into the pytree of which `structure` gives shapes and dtypes.

        Args:
            index: which chunk.
            structure: shapes and dtypes.
            wait: whether another process wrote the file, so that it may take a while to appear here.

        Raises:
            RunFolderError: if the file is damaged or its arrays have other shapes or dtypes.
        """
        file = self._file(index)
        if wait:
            self._appears(file, _APPEARS_S)
        expected, treedef = jax.tree.flatten(structure)
        try:
            # Opened here, because NumPy leaves a file that it opened itself open when it turns out to be damaged.
            with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
                leaves = [stored[f"leaf{i:04d}"] for i in range(len(expected))]
                # NumPy files bfloat16 and its kin as bytes without a name.
                leaves = [
                    leaf.view(want.dtype) if leaf.dtype == f"V{np.dtype(want.dtype).itemsize}" else leaf
                    for leaf, want in zip(leaves, expected, strict=True)
                ]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise RunFolderError(
                f"Checkpoint file {file} is damaged ({error!r}); delete it to run it again."
            ) from error
        for leaf, want in zip(leaves, expected, strict=True):
            if leaf.shape != want.shape or leaf.dtype != want.dtype:
                raise RunFolderError(
                    f"Checkpoint file {file} holds {leaf.dtype}{leaf.shape} where {want.dtype}{want.shape} is due; "
                    "delete it to run it again."
                )
        return jax.tree.unflatten(treedef, leaves)

    def _file(self, index: int) -> Path:
        return self.path / f"chunk-{index:05d}.npz"
