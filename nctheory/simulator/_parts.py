"""Finished chunks of a sweep on disk: one `.npz` a chunk, whole or absent, never pickled."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nctheory import _checks
from nctheory._files import TEMPORARY_PREFIX, RunFolderError, atomic_write

HEADER = "sweep.json"


class PartStore:
    """Folder of finished chunks that belong to one sweep.

    `sweep.json` says which sweep (a digest of its configurations, seeds, precision and backend) and its chunk size;
    `chunk-00007.npz` holds the leaves of chunk 7. Files appear under their name only once they are complete.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any], chunk_size: int | None):
        self.path, self._fingerprint, self.chunk_size = path, fingerprint, chunk_size

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
        header = path / HEADER
        if not header.exists():
            # A writer killed during the very first write leaves a temporary file and nothing else.
            strangers = sorted(e.name for e in path.iterdir() if not e.name.startswith(TEMPORARY_PREFIX))
            if strangers:
                raise RunFolderError(f"Checkpoint folder {path} has no {HEADER} but holds {strangers[:3]}.")
            return cls(path, fingerprint, None)
        try:
            stored = json.loads(header.read_text())
            chunk_size = _checks.integer("chunk_size", stored["chunk_size"], minimum=1)
            differing = [name for name, value in fingerprint.items() if stored["sweep"][name] != value]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"Checkpoint header {header} is damaged ({error!r}); delete {path} to start over."
            ) from error
        if differing:
            raise RunFolderError(f"Checkpoint folder {path} belongs to another sweep: {differing} differ.")
        return cls(path, fingerprint, chunk_size)

    def begin(self, chunk_size: int) -> None:
        """Record the chunk size, or check it against the recorded one.

        Raises:
            RunFolderError: if finished chunks have another size.
        """
        if self.chunk_size is None:
            text = json.dumps({"sweep": self._fingerprint, "chunk_size": chunk_size}, indent=2)
            atomic_write(self.path / HEADER, lambda temporary: temporary.write_text(text))
            self.chunk_size = chunk_size
        elif self.chunk_size != chunk_size:
            raise RunFolderError(
                f"Checkpoint folder {self.path} has chunks of {self.chunk_size} rows, not {chunk_size}."
            )

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

    def load(self, index: int, structure: Any) -> Any:
        """Read one chunk back into the pytree of which `structure` gives shapes and dtypes.

        Raises:
            RunFolderError: if the file is damaged or its arrays have other shapes or dtypes.
        """
        file = self._file(index)
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
