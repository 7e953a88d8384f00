"""The loop over epochs: history, checkpoints, and where a run stops that is told to."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np
from tqdm.auto import tqdm

from nctheory import distributed
from nctheory._preemption import Preemption
from nctheory.vision import _steps, _together
from nctheory.vision._checkpoint_values import flat_returned, nested_returned
from nctheory.vision._checkpoints import Begun, CheckpointStore, Restored
from nctheory.vision._steps import State

if TYPE_CHECKING:
    from nctheory.vision._run import Job

SHARED_COLUMNS = ("learning_rate", "seconds", "images_per_second")
COLUMNS = (*SHARED_COLUMNS, "train_loss", "train_accuracy", "test_loss", "test_accuracy")


class NonFiniteLossError(RuntimeError):
    """The loss of a training step, or the state after the last step of an epoch, is infinite or NaN.

    Attributes:
        epoch: the epoch, from 1.
        step: the step within it, from 1.
    """

    def __init__(self, message: str, *, epoch: int, step: int):
        super().__init__(message)
        self.epoch, self.step = epoch, step


@dataclass(frozen=True)
class Done:
    """What a finished run leaves: final state, columns of the history, values of the callback, times."""

    state: State
    columns: dict[str, np.ndarray]
    returned: dict[int, dict[str, Any]]
    compile_seconds: float
    resumed_epochs: int


class Loop:
    """The part of a run that changes: state, history, values of the callback."""

    def __init__(
        self,
        job: "Job",
        store: CheckpointStore | _together.SharedStore | None,
        on_checkpoint: Any,
        save_every: int,
        preemption: Preemption,
    ):
        self._preemption, self._sign = preemption, _together.StopSign(preemption, shared=job.is_shared and bool(store))
        self._job, self._store, self._on_checkpoint, self._save_every = job, store, on_checkpoint, save_every
        self._kept = job._config.kept_epochs
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._returned: dict[int, dict[str, Any]] = {}
        self._saved: int | None = None
        self._begun: Begun | None = None
        steps = job._config.steps_per_epoch(job._train.num_samples)
        whole_epoch = steps * job._config.batch_size
        self._images = min(whole_epoch, job._train.num_samples) * len(job._seeds)

    def run(self, progress: bool) -> Done:
        job = self._job
        state = job.first_state()
        first = 0
        if self._store is not None and (found := self._store.restore(job.of_seeds(state))) is not None:
            state, first = self._take_up(found, state), found.epoch
        else:
            self._checkpoint(0, state)
        last = job._config.num_epochs
        shown = progress and distributed.is_main()
        done = first * self._images + self._done_images()
        with tqdm(total=last * self._images, initial=done, unit="img", unit_scale=True, disable=not shown) as bar:
            for epoch in range(first + 1, last + 1):
                self._stop_after(epoch - 1, state)
                state = self._epoch(state, epoch, bar)
            self._stop_after(last, state)
        return Done(state, self._stacked(), self._returned, job.compile_seconds, first)

    def _done_images(self) -> int:
        """Images of the epoch that has begun."""
        steps = 0 if self._begun is None else self._begun.losses.shape[-1]
        return min(steps * self._job._config.batch_size * len(self._job._seeds), self._images)

    def _take_up(self, found: Restored, state: State) -> State:
        leaves = [self._job.spread(leaf) for leaf in found.arrays.values()]
        restored = jax.tree.unflatten(jax.tree.structure(state), leaves)
        for name, column in found.history.items():
            # Columns are stored with epochs first.
            self._columns[name] = list(column)
        self._returned = {epoch: nested_returned(flat) for epoch, flat in found.returned.items() if flat}
        self._saved, self._begun = found.epoch, found.begun
        # Memory that was read from a file is not ours to donate.
        return _steps.copied(restored, program=self._job._program)

    def _epoch(self, state: State, epoch: int, bar: tqdm) -> State:
        job = self._job
        bar.set_description(f"epoch {epoch}/{job._config.num_epochs}")
        compiled, start, left = job.compile_seconds, time.perf_counter(), self._images - self._done_images()
        begun, self._begun = self._begun, None

        def tick(images: int, step: int, loss: np.ndarray) -> None:
            nonlocal left
            done = min(images * len(job._seeds), left)
            left -= done
            if not np.isfinite(loss).any():
                self._fail(epoch, step, f"The training loss became {np.ravel(loss)[0]}")
            bar.update(done)

        state, losses, right = job.epoch(state, epoch, tick, begun=begun, stop=self._sign.after_step)
        seconds = time.perf_counter() - start - (job.compile_seconds - compiled)
        seconds += 0.0 if begun is None else begun.seconds
        # A step's loss is that before it: a state lost in the last step must not become the newest checkpoint.
        if not job.numbers(_steps.is_finite(state, vmapped=job._program.vmapped)).any():
            self._fail(epoch, losses.shape[-1] - 1, "The state after the step became infinite or NaN")
        begun = Begun(losses, right, seconds)
        self._stop_within(epoch, state, begun)
        test = job.evaluate(state)
        self._record(epoch, losses, right, seconds, test)
        bar.set_postfix_str(f"loss {np.mean(self._columns['train_loss'][-1]):.3g}, test {np.mean(test.accuracy):.3f}")
        if epoch in self._kept or epoch % self._save_every == 0 or epoch == job._config.num_epochs:
            self._checkpoint(epoch, state, begun)
        return state

    def _stop_after(self, epoch: int, state: State) -> None:
        """Stop after an epoch if that is asked for."""
        if self._store is None or not self._sign.is_up():
            return
        if self._saved != epoch:
            self._store.save(epoch, self._job.of_seeds(state), self._columns, {})
        self._preemption.stop(f"the checkpoint after epoch {epoch} is in {self._store.folder}")

    def _stop_within(self, epoch: int, state: State, begun: Begun) -> None:
        """Stop within an epoch, before its evaluation at the latest, if that is asked for."""
        if self._store is None or not self._sign.is_up():
            return
        # The last row of the history may be that of this epoch, which is evaluated again.
        columns = {name: column[: epoch - 1] for name, column in self._columns.items()}
        self._store.save(epoch - 1, self._job.of_seeds(state), columns, {}, begun)
        steps, of_all = begun.losses.shape[-1], self._job._rates.shape[1]
        where = f"step {steps} of {of_all} of epoch {epoch}"
        self._preemption.stop(f"the checkpoint after {where} is in {self._store.folder}")

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

    def _fail(self, epoch: int, step: int, what: str) -> NoReturn:
        job = self._job
        steps = job._rates.shape[1]
        kept = "no checkpoint was written" if self._saved is None else f"the checkpoint of epoch {self._saved} stays"
        raise NonFiniteLossError(
            f"{what} in epoch {epoch}, step {step + 1} of {steps}, at learning rate "
            f"{job._rates[epoch - 1][step]:.3g}; {kept}.",
            epoch=epoch,
            step=step + 1,
        )

    def _checkpoint(self, epoch: int, state: State, begun: Begun | None = None) -> None:
        flat: dict[str, np.ndarray] = {}
        if epoch in self._kept and self._on_checkpoint is not None:
            flat = self._call_back(epoch, state, begun)
            if flat:
                self._returned[epoch] = nested_returned(flat)
        if self._store is not None:
            self._store.save(epoch, self._job.of_seeds(state), self._columns, flat)
            self._saved = epoch

    def _call_back(self, epoch: int, state: State, begun: Begun | None) -> dict[str, np.ndarray]:
        # A copy, because the next step reuses the memory of this state.
        networks = self._job.networks(_steps.copied(state, program=self._job._program))
        given = networks if self._job._program.vmapped else networks[0]
        if begun is None or self._store is None or self._job.is_shared:
            # Before the first epoch nothing is lost, and one process may not leave what the others are in.
            return flat_returned(self._on_checkpoint(epoch, given))
        done, value = self._preemption.attempt(lambda: self._on_checkpoint(epoch, given))
        if not done:
            self._stop_within(epoch, state, begun)
        return flat_returned(value)

    def _stacked(self) -> dict[str, np.ndarray]:
        return {name: np.moveaxis(np.stack(self._columns[name]), 0, -1) for name in COLUMNS}
