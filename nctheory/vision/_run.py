"""One run: what is fixed before its first epoch, for one network and several seeds."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nctheory import _preemption
from nctheory._errors import ArgumentError
from nctheory._files import RunFolderError, to_jsonable
from nctheory.vision import _steps, _together
from nctheory.vision._checkpoint_values import digest
from nctheory.vision._checkpoints import Begun, CheckpointStore
from nctheory.vision._loop import COLUMNS as COLUMNS
from nctheory.vision._loop import Done, Loop
from nctheory.vision._loop import NonFiniteLossError as NonFiniteLossError
from nctheory.vision._steps import Program, Rates, State, scalar, whole
from nctheory.vision._train_config import ImageTrainConfig
from nctheory.vision.evaluation import evaluate_state, put
from nctheory.vision.images import Images

_EVALUATION_BATCH = 500


def described(spec: Any) -> Any:
    """A network specification as JSON-like values, with the name of its class."""
    fields = to_jsonable(spec, "spec") if dataclasses.is_dataclass(spec) else repr(spec)
    return {"class": type(spec).__qualname__, "fields": fields}


class Job:
    """One run, and how it does an epoch."""

    def __init__(
        self,
        program: Program,
        config: ImageTrainConfig,
        train: Images,
        test: Images,
        seeds: tuple[int, ...],
        *,
        form: str,
    ):
        self._program, self._config, self._train, self._test, self._seeds = program, config, train, test, seeds
        self._form = form
        self.is_shared = _together.is_shared(program.mesh)
        self._rates = config.rates(train.num_samples)
        # Devices that seeds do not fill train the last seed again, which nobody looks at.
        self._spare = -len(seeds) % program.mesh.size if program.vmapped and program.mesh is not None else 0
        keys = [jax.random.key(seed) for seed in (*seeds, *seeds[-1:] * self._spare)]
        self._own_keys = self._keys = jnp.stack(keys) if program.vmapped else keys[0]
        if program.mesh is not None:
            data = np.asarray(jax.random.key_data(self._keys))
            self._keys = jax.random.wrap_key_data(put(data, program.mesh, program.state_axis))
        # The images of a compiled epoch lie on the device, those of a loop on the host.
        self._resident = self._place(train) if form == "scan" else None
        self.compile_seconds = 0.0

    def _place(self, images: Images) -> Images:
        mesh = self._program.mesh
        if mesh is None:
            return jax.tree.map(jnp.asarray, images)
        return jax.tree.map(lambda array: put(np.asarray(array), mesh, None), images)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in; the devices may differ."""
        parts = {f.name: getattr(self._program, f.name) for f in dataclasses.fields(Program)}
        del parts["mesh"], parts["spec"]
        # What "auto" became is in `dtype`.
        config = {k: v for k, v in dataclasses.asdict(self._config).items() if k != "compute_dtype"}
        splits = {"train": self._train, "test": self._test}
        data = {name: digest({"images": each.images, "labels": each.labels}) for name, each in splits.items()}
        parts |= {"spec": described(self._program.spec), "config": config, "seeds": self._seeds, "data": data}
        return to_jsonable(parts, "config")

    def networks(self, state: State) -> tuple[nnx.Module, ...]:
        """Networks in evaluation mode, one a seed."""
        graph = _steps.graphs(self._program).eval
        state = self.of_seeds(state)
        parts = (state.params, state.others)
        if not self._program.vmapped:
            return (nnx.merge(graph, *parts),)
        if self._program.mesh is not None:
            # Each network whole on one device of this process, wherever its seed was trained.
            here = self._program.mesh.local_devices[0]
            parts = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), here), parts)
        return tuple(
            nnx.merge(graph, *jax.tree.map(lambda leaf, at=row: leaf[at], parts)) for row in range(len(self._seeds))
        )

    def of_seeds(self, state: State) -> State:
        """The state as it is stored: whole on every device, and of the seeds alone."""
        if not self._program.vmapped or self._program.mesh is None:
            return state
        return _steps.everywhere(state, count=len(self._seeds), program=self._program)

    def spread(self, leaf: Any) -> Any:
        """Undo `of_seeds` for one array that was read from a file."""
        mesh = self._program.mesh
        if mesh is None or not (self.is_shared or self._program.vmapped):
            return leaf
        rows = np.asarray(leaf)
        if self._spare:
            rows = np.concatenate([rows, np.repeat(rows[-1:], self._spare, axis=0)])
        return put(rows, mesh, self._program.state_axis)

    def numbers(self, measured: Any) -> Any:
        """What was measured, on the host: one number, or one row a seed."""
        if not self._program.vmapped:
            return jax.tree.map(np.asarray, measured)
        count = len(self._seeds)
        if self.is_shared:
            # Part of it lies on devices of other processes.
            measured = _steps.everywhere(measured, count=count, program=self._program)
        return jax.tree.map(lambda rows: np.asarray(rows)[:count], measured)

    def run(
        self,
        folder: str | Path | None,
        *,
        resume: bool,
        progress: bool,
        on_checkpoint: Callable[[int, Any], Any] | None,
        save_every: int,
    ) -> Done:
        """Train from the start or from the newest checkpoint to the last epoch.

        Raises:
            DistributedError: naming a process that died, wherever this one was when it noticed.
        """
        store = self._open(folder, resume, save_every, calls_back=on_checkpoint is not None)
        # Where nothing is stored nothing can be saved: then the signal acts as it ever did.
        with _preemption.deferred(enabled=store is not None) as preemption:
            try:
                loop = Loop(self, store, on_checkpoint, save_every, preemption)
                # Devices of all take part nearly everywhere: in steps, questions, evaluations and callbacks.
                own = (NonFiniteLossError, RunFolderError, ArgumentError)
                return _together.guarded(lambda: loop.run(progress), *own)
            finally:
                if store is not None:
                    store.close()

    def _open(
        self, folder: str | Path | None, resume: bool, save_every: int, *, calls_back: bool
    ) -> "CheckpointStore | _together.SharedStore | None":
        identity = None if folder is None and not self.is_shared else self.identity()
        if identity is not None and self.is_shared:
            stored = {"stored": folder is not None, "form": self._form, "save_every": save_every}
            # A callback of one process would wait for the others in whatever it computes on the shared network.
            stored["on_checkpoint"] = calls_back
            _together.check_same_training({**identity, **stored})
        if folder is None or identity is None:
            return None
        opened = partial(CheckpointStore, folder, identity, self._config.kept_epochs, resume=resume)
        return _together.SharedStore(opened) if self.is_shared else opened()

    def timed(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a compiled function; if it had to be compiled, add the time to `compile_seconds`."""
        known, start = function._cache_size(), time.perf_counter()
        result = function(*args, **kwargs)
        if function._cache_size() > known:
            self.compile_seconds += time.perf_counter() - start
        return result

    def first_state(self) -> State:
        """State before the first epoch."""
        return self.timed(_steps.first_state, self._keys, program=self._program)

    def epoch(
        self,
        state: State,
        epoch: int,
        tick: Callable[[int, int, Any], None],
        *,
        begun: Begun | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[State, Any, Any]:
        """Train for one epoch (from 1); losses and right answers, steps on the last axis.

        `tick(images, step, loss)` is called when steps have finished. Where `stop()` after a step, the rest is left
        out, but not where an epoch is one program: the losses tell how many steps there were. `begun` are the first
        steps, if they have been done.
        """
        if begun is None and self._form == "scan":
            return self._scan(state, epoch, tick)
        # Also the rest of an epoch that is otherwise one program.
        first = 0 if begun is None else begun.losses.shape[-1]
        state, seen = self._loop(state, epoch, tick, first, stop)
        parts = [] if begun is None else [(begun.losses, begun.right)]
        if seen:
            losses, right = (np.stack([each[k] for each in seen], axis=-1) for k in (0, 1))
            parts.append((losses, right))
        losses, right = (np.concatenate([each[k] for each in parts], axis=-1) for k in (0, 1))
        return state, losses, right

    def _loop(
        self, state: State, epoch: int, tick: Callable[[int, int, Any], None], first: int, stop: Callable[[], bool]
    ) -> tuple[State, list[Any]]:
        config, program, train = self._config, self._program, self._train
        order = np.asarray(
            _steps.orders(self._own_keys, whole(epoch), num_samples=train.num_samples, vmapped=program.vmapped)
        )
        rates = self._rates[epoch - 1]
        pixels, answers = np.asarray(train.images), np.asarray(train.labels)
        under_way, seen = deque[Any](), list[Any]()

        def take() -> None:
            seen.append(self.numbers(under_way.popleft()))
            tick(config.batch_size, first + len(seen) - 1, seen[-1][0])

        slices = _steps.batch_slices(train.num_samples, config.batch_size, len(rates))
        for index, part in list(enumerate(slices))[first:]:
            rows = order[..., part]
            axis = program.batch_axis(len(rows))
            batch = put(pixels[rows], program.mesh, axis), put(answers[rows], program.mesh, axis)
            position = whole(epoch), whole(index)
            now = Rates(scalar(rates[index]), scalar(config.weight_decay), scalar(config.momentum))
            moments = (train.mean, train.std)
            state, measured = self.timed(
                _steps.single_step, state, *batch, moments, now, self._keys, position, program=program
            )
            under_way.append(measured)
            if len(under_way) > _together.LAG:
                take()
            if stop():
                break
        while under_way:
            take()
        return state, seen

    def _scan(self, state: State, epoch: int, tick: Callable[[int, int, Any], None]) -> Any:
        config = self._config
        rates = self._rates[epoch - 1]
        now = Rates(np.asarray(rates), scalar(config.weight_decay), scalar(config.momentum))
        args = (state, self._resident, now, self._keys, whole(epoch))
        state, measured = self.timed(_steps.scanned_epoch, *args, batch_size=config.batch_size, program=self._program)
        losses, right = self.numbers(measured)
        for index in range(len(rates)):
            tick(config.batch_size, index, losses[..., index])
        return state, losses, right

    def evaluate(self, state: State) -> Any:
        """Loss and accuracy on the test split, of each seed."""
        program = self._program
        return evaluate_state(
            _steps.graphs(program).eval,
            (state.params, state.others),
            self._test,
            batch_size=_EVALUATION_BATCH,
            loss=program.loss,
            mesh=program.mesh,
            vmapped=program.vmapped,
            numbers=self.numbers,
        )
