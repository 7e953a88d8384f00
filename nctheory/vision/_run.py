"""The loop over epochs, shared by one network and several seeds."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from nctheory._files import to_jsonable
from nctheory.vision import _steps
from nctheory.vision._checkpoints import CheckpointStore, digest, flat_returned, nested_returned
from nctheory.vision._steps import Program, Rates, State, scalar, whole
from nctheory.vision._train_config import ImageTrainConfig
from nctheory.vision.evaluation import evaluate_state, put
from nctheory.vision.images import Images

SHARED_COLUMNS = ("learning_rate", "seconds", "images_per_second")
COLUMNS = (*SHARED_COLUMNS, "train_loss", "train_accuracy", "test_loss", "test_accuracy")
_EVALUATION_BATCH = 500
# Steps that may be under way on the device while the host goes on.
_LAG = 2


class NonFiniteLossError(RuntimeError):
    """The loss of a training step, or the state after the last step of an epoch, is infinite or NaN.

    Attributes:
        epoch: the epoch, from 1.
        step: the step within it, from 1.
    """

    def __init__(self, message: str, *, epoch: int, step: int):
        super().__init__(message)
        self.epoch, self.step = epoch, step


def described(spec: Any) -> Any:
    """A network specification as JSON-like values, with the name of its class."""
    fields = to_jsonable(spec, "spec") if dataclasses.is_dataclass(spec) else repr(spec)
    return {"class": type(spec).__qualname__, "fields": fields}


@dataclass(frozen=True)
class Done:
    """What a finished run leaves: final state, columns of the history, values of the callback, times."""

    state: State
    columns: dict[str, np.ndarray]
    returned: dict[int, dict[str, Any]]
    compile_seconds: float
    resumed_epochs: int


class Job:
    """One run: what is fixed before its first epoch."""

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
        self._rates = config.rates(train.num_samples)
        keys = [jax.random.key(seed) for seed in seeds]
        self._keys = jnp.stack(keys) if program.vmapped else keys[0]
        if program.mesh is not None:
            data = np.asarray(jax.random.key_data(self._keys))
            self._keys = jax.random.wrap_key_data(put(data, program.mesh, None))
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
        parts = (state.params, state.others)
        if not self._program.vmapped:
            return (nnx.merge(graph, *parts),)
        return tuple(
            nnx.merge(graph, *jax.tree.map(lambda leaf, at=row: leaf[at], parts)) for row in range(len(self._seeds))
        )

    def run(
        self,
        folder: str | Path | None,
        *,
        resume: bool,
        progress: bool,
        on_checkpoint: Callable[[int, Any], Any] | None,
        save_every: int,
    ) -> Done:
        """Train from the start or from the newest checkpoint to the last epoch."""
        store = None
        if folder is not None:
            store = CheckpointStore(folder, self.identity(), self._config.kept_epochs, resume=resume)
        try:
            return _Loop(self, store, on_checkpoint, save_every).run(progress)
        finally:
            if store is not None:
                store.close()

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

    def epoch(self, state: State, epoch: int, tick: Callable[[int, int, Any], None]) -> tuple[State, Any, Any]:
        """Train for one epoch (from 1); losses and right answers, steps on the last axis.

        `tick(images, step, loss)` is called when steps have finished.
        """
        run = self._scan if self._form == "scan" else self._loop
        state, losses, right = run(state, epoch, tick)
        return state, np.asarray(losses), np.asarray(right)

    def _loop(self, state: State, epoch: int, tick: Callable[[int, int, Any], None]) -> Any:
        config, program, train = self._config, self._program, self._train
        order = np.asarray(
            _steps.orders(self._keys, whole(epoch), num_samples=train.num_samples, vmapped=program.vmapped)
        )
        rates = self._rates[epoch - 1]
        pixels, answers = np.asarray(train.images), np.asarray(train.labels)
        seen = []
        for index, part in enumerate(_steps.batch_slices(train.num_samples, config.batch_size, len(rates))):
            rows = order[..., part]
            # Spread over the devices where the batch divides.
            mesh = program.mesh
            axis = _steps.DATA_AXIS if mesh is not None and len(rows) % mesh.shape[_steps.DATA_AXIS] == 0 else None
            batch = put(pixels[rows], mesh, axis), put(answers[rows], mesh, axis)
            position = whole(epoch), whole(index)
            now = Rates(scalar(rates[index]), scalar(config.weight_decay), scalar(config.momentum))
            moments = (train.mean, train.std)
            state, measured = self.timed(
                _steps.single_step, state, *batch, moments, now, self._keys, position, program=program
            )
            seen.append(measured)
            if index >= _LAG:
                tick(config.batch_size, index - _LAG, np.asarray(seen[index - _LAG][0]))
        for index in range(max(len(seen) - _LAG, 0), len(seen)):
            tick(config.batch_size, index, np.asarray(seen[index][0]))
        return state, *(np.stack([np.asarray(each[k]) for each in seen], axis=-1) for k in (0, 1))

    def _scan(self, state: State, epoch: int, tick: Callable[[int, int, Any], None]) -> Any:
        config = self._config
        rates = self._rates[epoch - 1]
        now = Rates(np.asarray(rates), scalar(config.weight_decay), scalar(config.momentum))
        args = (state, self._resident, now, self._keys, whole(epoch))
        state, (losses, right) = self.timed(
            _steps.scanned_epoch, *args, batch_size=config.batch_size, program=self._program
        )
        losses = np.asarray(losses)
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
        )


class _Loop:
    """The part of a run that changes: state, history, values of the callback."""

    def __init__(self, job: Job, store: CheckpointStore | None, on_checkpoint: Any, save_every: int):
        self._job, self._store, self._on_checkpoint, self._save_every = job, store, on_checkpoint, save_every
        self._kept = job._config.kept_epochs
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._returned: dict[int, dict[str, Any]] = {}
        self._saved: int | None = None
        self._position = 0
        steps = job._config.steps_per_epoch(job._train.num_samples)
        whole_epoch = steps * job._config.batch_size
        self._images = min(whole_epoch, job._train.num_samples) * len(job._seeds)

    def run(self, progress: bool) -> Done:
        job = self._job
        state = job.first_state()
        first = 0
        if self._store is not None and (found := self._store.restore(state)) is not None:
            state, first = self._take_up(found, state), found.epoch
        else:
            self._checkpoint(0, state)
        last = job._config.num_epochs
        shown = progress and jax.process_index() == 0
        with tqdm(
            total=last * self._images, initial=first * self._images, unit="img", unit_scale=True, disable=not shown
        ) as bar:
            for epoch in range(first + 1, last + 1):
                state = self._epoch(state, epoch, bar)
        return Done(state, self._stacked(), self._returned, job.compile_seconds, first)

    def _take_up(self, found: Any, state: State) -> State:
        restored = jax.tree.unflatten(jax.tree.structure(state), list(found.arrays.values()))
        for name, column in found.history.items():
            # Columns are stored with epochs first.
            self._columns[name] = list(column)
        self._returned = {epoch: value for epoch, value in found.returned.items() if value}
        self._saved = found.epoch
        # Memory that was read from a file is not ours to donate.
        return _steps.copied(restored, program=self._job._program)

    def _epoch(self, state: State, epoch: int, bar: tqdm) -> State:
        job = self._job
        bar.set_description(f"epoch {epoch}/{job._config.num_epochs}")
        compiled, start, left = job.compile_seconds, time.perf_counter(), self._images

        def tick(images: int, step: int, loss: np.ndarray) -> None:
            nonlocal left
            done = min(images * len(job._seeds), left)
            left -= done
            if not np.isfinite(loss).any():
                self._stop(epoch, step, f"The training loss became {np.ravel(loss)[0]}")
            bar.update(done)

        state, losses, right = job.epoch(state, epoch, tick)
        seconds = time.perf_counter() - start - (job.compile_seconds - compiled)
        # A step's loss is that before it: a state lost in the last step must not become the newest checkpoint.
        if not np.asarray(_steps.is_finite(state, vmapped=job._program.vmapped)).any():
            self._stop(epoch, losses.shape[-1] - 1, "The state after the step became infinite or NaN")
        test = job.evaluate(state)
        self._record(epoch, losses, right, seconds, test)
        bar.set_postfix_str(f"loss {np.mean(self._columns['train_loss'][-1]):.3g}, test {np.mean(test.accuracy):.3f}")
        if epoch in self._kept or epoch % self._save_every == 0 or epoch == job._config.num_epochs:
            self._checkpoint(epoch, state)
        return state

    def _record(self, epoch: int, losses: np.ndarray, right: np.ndarray, seconds: float, test: Any) -> None:
        job = self._job
        slices = _steps.batch_slices(job._train.num_samples, job._config.batch_size, losses.shape[-1])
        sizes = np.array([part.stop - part.start for part in slices], dtype=np.float64)
        row = {
            "learning_rate": float(job._rates[epoch - 1][-1]),
            "seconds": seconds,
            "images_per_second": self._images / seconds,
            "train_loss": losses.astype(np.float64) @ sizes / sizes.sum(),
            "train_accuracy": right.sum(axis=-1) / sizes.sum(),
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
        }
        for name in COLUMNS:
            self._columns[name].append(np.asarray(row[name], dtype=np.float64))

    def _stop(self, epoch: int, step: int, what: str) -> None:
        job = self._job
        steps = job._rates.shape[1]
        kept = "no checkpoint was written" if self._saved is None else f"the checkpoint of epoch {self._saved} stays"
        raise NonFiniteLossError(
            f"{what} in epoch {epoch}, step {step + 1} of {steps}, at learning rate "
            f"{job._rates[epoch - 1][step]:.3g}; {kept}.",
            epoch=epoch,
            step=step + 1,
        )

    def _checkpoint(self, epoch: int, state: State) -> None:
        flat: dict[str, np.ndarray] = {}
        if epoch in self._kept and self._on_checkpoint is not None:
            # A copy, because the next step reuses the memory of this state.
            networks = self._job.networks(_steps.copied(state, program=self._job._program))
            vmapped = self._job._program.vmapped
            flat = flat_returned(self._on_checkpoint(epoch, networks if vmapped else networks[0]))
            if flat:
                self._returned[epoch] = nested_returned(flat)
        if self._store is not None:
            self._store.save(epoch, state, self._columns, flat)
            self._saved = epoch

    def _stacked(self) -> dict[str, np.ndarray]:
        return {name: np.moveaxis(np.stack(self._columns[name]), 0, -1) for name in COLUMNS}
