"""What the processes of one training tell each other: what they train, what is stored, and whether to stop.

Process 0 alone reads and writes the folder; the others need not see it. Devices take part only in what is worth it:
stored states travel as bytes over them, so that no number is rounded on its way, and everything small goes through the
service of `nctheory.distributed`.
"""

import io
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nctheory import distributed
from nctheory._errors import ArgumentError
from nctheory._files import RunFolderError
from nctheory._preemption import Preemption
from nctheory.vision._checkpoint_values import differences, named_leaves
from nctheory.vision._checkpoints import Begun, CheckpointStore, Restored

# Steps that may be under way on the device while the host goes on.
LAG = 2


def mesh_of_all(axis: str) -> Mesh | None:
    """All devices of all processes; None if there is one process."""
    return Mesh(np.asarray(jax.devices()), (axis,)) if distributed.process_count() > 1 else None


def is_shared(mesh: Mesh | None) -> bool:
    """Whether all processes work on one training, not this one on a training of its own.

    Raises:
        ValueError: if the mesh leaves out some of the other processes.
    """
    if distributed.process_count() == 1:
        return False
    if mesh is None:
        return True
    owners = sorted({device.process_index for device in mesh.devices.flat})
    if owners not in ([jax.process_index()], list(range(jax.process_count()))):
        raise ArgumentError(
            "Argument `mesh` must hold devices of this process alone, or of every process, but holds those of "
            f"processes {owners}."
        )
    return len(owners) > 1


def _broadcast(content: bytes | None) -> bytes:
    """The bytes of process 0, on every process; an operation of all devices."""
    size = int(distributed.share("training, size", str(len(content or b""))))
    own = np.zeros(size, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    with distributed.collective():
        return np.asarray(multihost_utils.broadcast_one_to_all(own, is_source=distributed.is_main())).tobytes()


def _packed(found: Restored) -> bytes:
    arrays = {f"arrays/{name}": np.frombuffer(each.tobytes(), np.uint8) for name, each in found.arrays.items()}
    arrays |= {f"history/{name}": each for name, each in found.history.items()}
    arrays |= {f"returned/{epoch}/{k}": v for epoch, flat in found.returned.items() for k, v in flat.items()}
    if found.begun is not None:
        arrays |= {f"begun/{name}": each for name, each in found.begun.arrays().items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, epoch=found.epoch, epochs=list(found.returned), **arrays)
    return file.getvalue()


def _unpacked(content: bytes, like: Any) -> Restored:
    with np.load(io.BytesIO(content)) as stored:
        entries = {name: stored[name] for name in stored.files}

    def under(folder: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(folder): each for name, each in entries.items() if name.startswith(folder)}

    flat = under("arrays/")
    arrays = {k: np.frombuffer(flat[k].tobytes(), v.dtype).reshape(v.shape) for k, v in named_leaves(like).items()}
    returned = {int(epoch): under(f"returned/{epoch}/") for epoch in entries["epochs"]}
    begun = Begun.of(under("begun/"))
    return Restored(int(entries["epoch"]), arrays, under("history/"), returned, begun)


def guarded(work: Callable[[], Any], *passing: type[Exception]) -> Any:
    """Do work of all devices; when it fails because a process died, say so. Errors `passing` are the work's own."""
    if distributed.process_count() == 1:
        return work()
    own: Exception | None = None
    with distributed.collective():
        try:
            return work()
        except passing as error:
            own = error
    assert own is not None
    raise own


def check_same_training(identity: Mapping[str, Any]) -> None:
    """Refuse to train different things on one mesh: on other images, for instance.

    Raises:
        DistributedError: in every process, naming what differs.
    """
    own = json.loads(json.dumps(identity))
    first = json.loads(distributed.share("training", json.dumps(own)))
    index = distributed.process_index()
    found = differences(first, own)
    text = f"Process {index} trains another run than process 0: it differs in {', '.join(found)}." if found else ""
    for each in distributed.exchange("training, differences", text):
        if each:
            raise distributed.DistributedError(each)


class SharedStore:
    """The checkpoints of process 0, as every process sees them: what is refused there is refused everywhere.

    Args:
        open_store: opens the checkpoints; called in process 0 alone.

    Raises:
        RunFolderError: what `open_store` raises, in every process.
        DistributedError: in the other processes, naming what else process 0 raises here or in a method.
    """

    def __init__(self, open_store: Callable[[], CheckpointStore]):
        self._store: CheckpointStore | None = None

        def act() -> str:
            self._store = open_store()
            return str(self._store.folder)

        self.folder = distributed.agree("training, folder", act, RunFolderError)

    def save(self, *arguments: Any, **options: Any) -> None:
        """As `CheckpointStore.save`; returns once the checkpoint is there."""

        def act() -> str:
            assert self._store is not None
            self._store.save(*arguments, **options)
            return ""

        distributed.agree("training, saved", act, RunFolderError)

    def restore(self, like: Any) -> Restored | None:
        """As `CheckpointStore.restore`; the arrays are those of NumPy."""
        content: bytes | None = None

        def act() -> str:
            nonlocal content
            assert self._store is not None
            found = self._store.restore(like)
            content = None if found is None else _packed(found)
            return "none" if found is None else "found"

        if distributed.agree("training, restored", act, RunFolderError) == "none":
            return None
        return _unpacked(_broadcast(content), like)

    def close(self) -> None:
        """As `CheckpointStore.close`."""
        if self._store is not None:
            self._store.close()


class StopSign:
    """Whether to stop, with one answer for all processes: one that is told to stop stops the others.

    They would wait for each other for ever if they stopped at different steps, so they ask each other at every step,
    in an operation of one number whose answer is read some steps later.
    """

    def __init__(self, preemption: Preemption, *, shared: bool):
        self._preemption, self._under_way = preemption, deque[jax.Array]()
        self._mesh = Mesh(np.asarray(jax.devices()), ("devices",)) if shared else None
        self._is_up = False
        if self._mesh is not None:
            everywhere = NamedSharding(self._mesh, PartitionSpec())
            self._any = jax.jit(jnp.max, out_shardings=everywhere)

    def after_step(self) -> bool:
        """Whether to stop now; with several processes, whether one of them wanted to some steps ago."""
        if self._mesh is None:
            return self._preemption.asked
        self._under_way.append(self._question())
        if len(self._under_way) > LAG:
            self._is_up |= bool(np.asarray(self._under_way.popleft()))
        return self._is_up

    def is_up(self) -> bool:
        """Whether to stop, at this moment; with several processes they wait for each other's answer."""
        if self._mesh is None:
            return self._preemption.asked
        self._under_way.append(self._question())
        while self._under_way:
            self._is_up |= bool(np.asarray(self._under_way.popleft()))
        return self._is_up

    def _question(self) -> jax.Array:
        assert self._mesh is not None
        own = np.full(self._mesh.size, self._preemption.asked, np.uint8)
        sharding = NamedSharding(self._mesh, PartitionSpec("devices"))
        return self._any(jax.make_array_from_callback(own.shape, sharding, lambda index: own[index]))
