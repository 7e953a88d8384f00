"""Sets of TensorFlow Datasets as arrays: found or downloaded once, decoded once, then read from a checksummed cache.

Nothing here imports TensorFlow: `as_data_source` reads array_record files row by row. The cache holds two `.npy` files
a split and a record of what they were made from; it lies apart from the data, which may be read-only.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nctheory._errors import DatasetError
from nctheory._files import RunFolderError, read_json, write_json

NAMES = ("cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn_cropped")
_FORMAT = 1
_RECORD = "record.json"
# What reading a damaged copy raises; an empty file, as a power cut leaves it, the second.
_DAMAGES = (OSError, EOFError, ValueError, KeyError, TypeError, RunFolderError)


class Split(NamedTuple):
    """What one split holds."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def data_folder(data_dir: str | Path | None) -> Path:
    """Folder of all prepared sets: the argument, else $TFDS_DATA_DIR, else TFDS' own ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_folder() -> Path:
    """Folder of decoded sets: $NCTHEORY_CACHE_DIR, else nctheory under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("NCTHEORY_CACHE_DIR")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nctheory").expanduser()


def read(name: str, split: str, data_dir: str | Path | None, *, progress: bool = True) -> Split:
    """Read one split, from the cache if it was made from these files, else by decoding them.

    Args:
        name: one of `NAMES`.
        split: "train" or "test".
        data_dir: folder of all prepared sets.
        progress: whether to show a bar while decoding.

    Returns:
        Images (N H W C, uint8), labels (N, int32) and class names.

    Raises:
        DatasetError: if the set is absent and cannot be downloaded, or its files are damaged.
    """
    source = _prepared(name, data_folder(data_dir))
    origin = _origin(source, split)
    folder = cache_folder() / "datasets" / f"{name}-{split}-{hashlib.sha256(repr(origin).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        try:
            return _from_cache(folder)
        except _DAMAGES as error:
            warnings.warn(f"The decoded copy {folder} is damaged ({error}); it is made again.", stacklevel=4)
    found = _decode(source, name, split, progress)
    _to_cache(folder, found)
    return found


def _prepared(name: str, folder: Path) -> Path:
    """Folder of the newest prepared version, downloading the set if there is none."""
    versions = [path.parent for path in folder.glob(f"{name}/*/dataset_info.json")]
    if versions:
        return max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])
    tfds = _library()
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_path)
    except Exception as error:
        raise DatasetError(
            f"Data set {name!r} is not under {folder} (no {name}/VERSION/dataset_info.json), and downloading it "
            f"failed: {_one_line(error)}. Give `data_dir` or TFDS_DATA_DIR the folder of a copy in array_record "
            f"format, or prepare one where there are a network and TensorFlow (TFDS needs it to write, not to read): "
            f"pip install tensorflow && tfds build {name} --file_format=array_record."
        ) from error


def _library() -> Any:
    # absl warns that OpenCV would decode faster, but Pillow is fast enough for a cache that is made once; urllib3 would
    # report each of its many retries, and the error that ends them says it all.
    for name in ("absl", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    return tfds


def _one_line(error: Exception) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= 300 else f"{words[:300]}..."


def _origin(source: Path, split: str) -> tuple:
    """What a decoded copy depends on: the folder, and name, size and time of every file of the split."""
    files = sorted(path for path in source.iterdir() if path.suffix == ".json" or f"-{split}." in path.name)
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return (_FORMAT, str(source.resolve()), split, stats)


def _decode(source: Path, name: str, split: str, progress: bool) -> Split:
    from tqdm import tqdm

    tfds = _library()
    try:
        builder = tfds.builder_from_directory(source)
        rows = builder.as_data_source(split=split)
        shape = tuple(builder.info.features["image"].shape)
        names = tuple(builder.info.features["label"].names)
        count = builder.info.splits[split].num_examples
        if len(rows) != count:
            raise ValueError(f"{len(rows)} rows where dataset_info.json announces {count}")
        # Sets of equal images only; one with others would stop at its first row.
        images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
        for i in tqdm(range(count), desc=f"decoding {name} {split}", unit="image", disable=not progress):
            row = rows[i]
            images[i], labels[i] = row["image"], row["label"]
    except Exception as error:
        raise DatasetError(
            f"Data set {name!r} at {source} cannot be read: {_one_line(error)}. Files must be in array_record format "
            f"and complete; prepare the set again if they are not."
        ) from error
    if labels.min() < 0 or labels.max() >= len(names):
        raise DatasetError(f"Data set {name!r} at {source} has labels outside 0..{len(names) - 1}.")
    return Split(images, labels, names)


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _from_cache(folder: Path) -> Split:
    record = read_json(folder / _RECORD)
    arrays = {}
    for name in ("images", "labels"):
        arrays[name] = np.load(folder / f"{name}.npy", allow_pickle=False)
        if _checksum(arrays[name]) != record["sha256"][name]:
            raise ValueError(f"{name}.npy does not have its checksum")
    return Split(arrays["images"], arrays["labels"], tuple(record["class_names"]))


def _put(temporary: Path, folder: Path) -> None:
    """Give a new copy its name, unless another process was faster: that one may be in use."""
    if folder.exists():
        try:
            _from_cache(folder)
            return
        except _DAMAGES:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        # Another process came in between, with the same content.
        if not folder.exists():
            raise


def _to_cache(folder: Path, found: Split) -> None:
    """Write to a temporary name, then rename; a cache that cannot be written costs time, not the run.

    Processes that find no copy at the same moment all decode, which costs time too, and the first one's copy stays.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            arrays = {"images": found.images, "labels": found.labels}
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            sums = {name: _checksum(array) for name, array in arrays.items()}
            write_json(temporary / _RECORD, {"sha256": sums, "class_names": list(found.class_names)})
            _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, RunFolderError) as error:
        warnings.warn(f"The decoded copy {folder} could not be written ({error}).", stacklevel=5)
