"""What the processes of a sweep tell each other: how to split it, who has which folder, and the finished chunks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nctheory import distributed
from nctheory._files import RunFolderError
from nctheory.simulator._parts import PartStore

# Processes compile the same programs in the same order, so that they are not far apart when they agree on one.
_PREPARE_TIMEOUT_S = 600.0
_HEAD = 8


@dataclass(frozen=True)
class Split:
    """Sizes on which the processes must agree.

    Attributes:
        chunk_size: rows that are stored together.
        share: rows of one compiled call.
        missing: chunks that were not finished when this was decided.
    """

    chunk_size: int
    share: int
    missing: tuple[int, ...]


def agree_on_split(name: str, decide: Callable[[], Split], *, patiently: bool = False) -> Split:
    """What process 0 decides, on every process.

    Args:
        name: of the sweep.
        decide: called on process 0 alone.
        patiently: whether to wait for as long as process 0 lives, because it runs rows before it decides.

    Raises:
        RunFolderError: what `decide` raises, on every process.
        DistributedError: if process 0 does not come to this sweep.
    """
    if distributed.process_count() == 1:
        return decide()
    if distributed.is_main():
        try:
            split = decide()
        except RunFolderError as error:
            distributed.share(name, json.dumps({"error": str(error)}))
            raise
        distributed.share(name, json.dumps(asdict(split)))
        return split
    told = json.loads(distributed.share(name, timeout_s=None if patiently else _PREPARE_TIMEOUT_S))
    if "error" in told:
        raise RunFolderError(told["error"])
    return Split(**{**told, "missing": tuple(told["missing"])})


def agree_on_missing(name: str, missing: Sequence[int]) -> list[int]:
    """The unfinished chunks that process 0 sees, on every process."""
    return json.loads(distributed.share(name, json.dumps(list(missing))))


def is_shared(name: str, store: PartStore | None) -> bool:
    """Whether all processes see the same checkpoint folder, which a file of a random name shows."""
    if distributed.process_count() == 1:
        return store is not None
    token = store.leave_token() if store is not None and distributed.is_main() else ""
    told = distributed.share(name, token)
    try:
        sees = store is not None and told != "" and store.sees(told)
        return set(distributed.exchange(f"{name}, seen", str(sees))) == {"True"}
    finally:
        if token and store is not None:
            store.take_back(token)


def exchange_parts(part: Any, structure: Any) -> list[Any]:
    """One chunk of every process, on every process; a collective operation of all devices.

    Args:
        part: the chunk of this process, None if it has none left.
        structure: shapes and dtypes of a chunk.

    Returns:
        One chunk a process; None for those that had none.
    """
    leaves, treedef = jax.tree.flatten(structure)
    sizes = [int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    # As bytes: one operation for all arrays, and no number is rounded on its way.
    own = np.zeros(_HEAD + sum(sizes), np.uint8)
    own[:_HEAD] = np.asarray([distributed.process_index(), part is not None], np.uint32).view(np.uint8)
    if part is not None:
        whole = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(part))
        own[_HEAD:] = np.frombuffer(whole, np.uint8)
    with distributed.collective():
        rows = np.asarray(multihost_utils.process_allgather(own))
    bounds = np.cumsum([_HEAD, *sizes])

    def unpack(row: np.ndarray) -> tuple[int, Any]:
        index, is_there = row[:_HEAD].view(np.uint32).tolist()
        if not is_there:
            return index, None
        arrays = [
            np.frombuffer(row[low:high].tobytes(), leaf.dtype).reshape(leaf.shape)
            for low, high, leaf in zip(bounds[:-1], bounds[1:], leaves, strict=True)
        ]
        return index, jax.tree.unflatten(treedef, arrays)

    # JAX's order of the processes need not be ours.
    return [part for _, part in sorted(map(unpack, rows), key=lambda each: each[0])]
