"""What the processes of a sweep tell each other: how to split it, who has which folder, and the finished chunks."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
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
        DistributedError: if process 0 does not come to this sweep; on the other processes also if `decide` raises
            another error, which it names.
    """
    if distributed.process_count() == 1:
        return decide()
    decided: Split | None = None

    def act() -> str:
        nonlocal decided
        decided = decide()
        return json.dumps(asdict(decided))

    timeout_s = None if patiently else _PREPARE_TIMEOUT_S
    told = json.loads(distributed.agree(name, act, RunFolderError, timeout_s=timeout_s))
    return Split(**{**told, "missing": tuple(told["missing"])}) if decided is None else decided


@contextlib.contextmanager
def locked(name: str, store: PartStore | None, missing: Callable[[], Sequence[int]]) -> Iterator[list[int]]:
    """Keep other runs from writing into the folder of process 0.

    Args:
        name: what is locked.
        store: the checkpoint, if there is one.
        missing: the unfinished chunks; called under the lock, on process 0 alone.

    Yields:
        The unfinished chunks that process 0 sees, on every process.

    Raises:
        RunFolderError: on every process, if another run writes there.
        DistributedError: on the other processes, naming what else went wrong in process 0.
    """
    with contextlib.ExitStack() as stack:

        def act() -> str:
            if store is not None:
                stack.enter_context(store.lock())
            return json.dumps(list(missing()))

        yield json.loads(distributed.agree(name, act, RunFolderError))


def is_shared(name: str, store: PartStore | None) -> bool:
    """Whether all processes see the same checkpoint folder, which a file of a random name shows.

    One that process 0 may only read does not count as shared: it reads for the others.
    """
    if distributed.process_count() == 1:
        return store is not None
    told = distributed.agree(name, lambda: "" if store is None else store.leave_token() or "", RunFolderError)
    try:
        sees = store is not None and told != "" and store.sees(told)
        return set(distributed.exchange(f"{name}, seen", str(sees))) == {"True"}
    finally:
        if told and store is not None and distributed.is_main():
            store.take_back(told)


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
