"""Training of image networks: compiled, data-parallel, resumable.

On a CPU a loop on the host calls one compiled step, because XLA runs convolutions inside `scan` tens of times slower
there; on a GPU or TPU the images stay on the device and an epoch is one program. Both run the same step. Everything
random is a function of the seed, the epoch and the step, so a position is all that has to be stored to resume exactly.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.vision import _run, _together
from nctheory.vision._checkpoints import RunFolderError, read_arrays, read_record, stored_epochs
from nctheory.vision._run import COLUMNS
from nctheory.vision._run import NonFiniteLossError as NonFiniteLossError
from nctheory.vision._steps import DATA_AXIS, SEED_AXIS, Program, first_state, graphs
from nctheory.vision._train_config import ImageTrainConfig as ImageTrainConfig
from nctheory.vision.evaluation import Evaluation as Evaluation
from nctheory.vision.evaluation import collapse_of as collapse_of
from nctheory.vision.evaluation import evaluate as evaluate
from nctheory.vision.evaluation import extract_features as extract_features
from nctheory.vision.evaluation import extract_logits as extract_logits
from nctheory.vision.images import Images as Images

FORMS = ("auto", "host", "scan")


@dataclass(frozen=True)
class TrainHistory:
    """One entry an epoch, E epochs; losses and accuracies of several seeds have a leading axis of seeds.

    Attributes:
        epoch: number of finished epochs, 1..E.
        learning_rate: rate of the epoch's last step.
        seconds: wall time of the epoch's steps, without compilation, evaluation, checkpoints and callbacks.
        images_per_second: training images a second of that time, of all seeds together.
        train_loss: mean loss of the epoch's batches, each before its step and augmented; without the penalty.
        train_accuracy: share of right answers in those batches.
        test_loss: mean loss on the test split after the epoch.
        test_accuracy: share of right answers there.
    """

    epoch: Int[np.ndarray, " E"]
    learning_rate: Float[np.ndarray, " E"]
    seconds: Float[np.ndarray, " E"]
    images_per_second: Float[np.ndarray, " E"]
    train_loss: Float[np.ndarray, "*seeds E"]
    train_accuracy: Float[np.ndarray, "*seeds E"]
    test_loss: Float[np.ndarray, "*seeds E"]
    test_accuracy: Float[np.ndarray, "*seeds E"]


@dataclass(frozen=True)
class TrainedNetwork:
    """Result of `train_network`.

    Attributes:
        network: the trained network, in evaluation mode.
        history: losses, accuracies and times.
        checkpoints: what `on_checkpoint` returned, by epoch, as nested dictionaries of NumPy arrays.
        compile_seconds: time spent compiling in this process.
        resumed_epochs: epochs that an earlier process had done.
    """

    network: nnx.Module
    history: TrainHistory
    checkpoints: dict[int, dict[str, Any]]
    compile_seconds: float
    resumed_epochs: int


@dataclass(frozen=True)
class TrainedNetworks:
    """Result of `train_networks`; fields as in `TrainedNetwork`, one network a seed.

    Attributes:
        seeds: seed of each network.
        networks: the trained networks, in evaluation mode.
        history: losses and accuracies with a leading axis of seeds.
        finite: whether a seed's training and test loss stayed finite; the history of another holds NaN from there on.
        checkpoints: as in `TrainedNetwork`.
        compile_seconds: as in `TrainedNetwork`.
        resumed_epochs: as in `TrainedNetwork`.
    """

    seeds: tuple[int, ...]
    networks: tuple[nnx.Module, ...]
    history: TrainHistory
    finite: np.ndarray
    checkpoints: dict[int, dict[str, Any]]
    compile_seconds: float
    resumed_epochs: int


def train_network(
    spec: Any,
    config: ImageTrainConfig,
    train: Images,
    test: Images,
    *,
    seed: int,
    folder: str | Path | None = None,
    mesh: Mesh | None = None,
    resume: bool = False,
    progress: bool = True,
    on_checkpoint: Callable[[int, nnx.Module], Any] | None = None,
    save_every: int = 1,
    form: str = "auto",
) -> TrainedNetwork:
    """Train one network, with checkpoints from which a killed run goes on to the same numbers.

    Initial parameters, the order of the images and their augmentation are functions of the seed, the epoch and the
    step alone. On one device kind and number, an interrupted and resumed run ends bitwise where an uninterrupted one
    does. With a mesh each batch is spread over its axis "data" and the parameters are copied to all devices; batch
    norm sees the whole batch, so results equal those of one device to rounding, and another number of devices may
    finish a run.

    The processes of one run (`nctheory.distributed`) train together: each has all images and gives its devices their
    part of every batch, and process 0 alone touches `folder`; the others see what it stores and refuses. Every process
    has to call this with the same arguments, and to use the network that it gets, also in the callback, as the others
    do: its arrays lie on all devices. Processes with meshes of their own devices train apart, each in its own folder.

    With a folder, SIGTERM in one of the processes lets them all finish the step (where an epoch is one program, the
    epoch), write a checkpoint and end with code 143, from which `resume` goes on to the same bits. A callback is left
    and carried out again, but with several processes comes to its end. A second SIGTERM acts at once. A process that
    is killed outright loses what came after the last checkpoint.

    Args:
        spec: frozen and hashable, with `build(image_shape, num_outputs, rngs, *, dtype)`.
        config: how to train.
        train: training split.
        test: test split, with the statistics of the training split; evaluated after each epoch, never trained on.
        seed: seed in 0..2^32 - 1.
        folder: where checkpoints go: those of `config.kept_epochs` and the newest; None keeps none.
        mesh: devices, with an axis "data"; None is the default device, or with several processes all devices of all.
        resume: whether to go on from the newest checkpoint in `folder`; without one the run starts anew.
        progress: whether to show a progress bar with images a second and the time left.
        on_checkpoint: called as `on_checkpoint(epoch, network)` at each of `config.kept_epochs` with a copy of the
            network in evaluation mode; may return a (nested) dictionary or record of arrays, stored with the
            checkpoint, so that a resumed run has it.
        save_every: epochs between checkpoints of the newest state, >= 1.
        form: "host" (a loop on the host), "scan" (an epoch is one program) or "auto" (host on CPU, scan elsewhere).

    Returns:
        The network and its history.

    Raises:
        ValueError: if splits do not fit each other, the batch is larger than the training split or not a multiple of
            the number of devices, or an argument is out of range.
        RunFolderError: if `folder` cannot be used, holds checkpoints without `resume`, those of another run, or a
            damaged one.
        NonFiniteLossError: when the loss of a step is not finite; earlier checkpoints stay.
        DistributedError: if another process ends, or trains something else.
        Preempted: a `SystemExit` with code 143, after SIGTERM; under a command line its own way to end.
    """
    mesh = _data_mesh(mesh, config)
    program = _checked_program(spec, config, train, test, (seed,), mesh=mesh)
    job = _run.Job(program, config, train, test, (seed,), form=_form(form, program))
    done = job.run(folder, resume=resume, progress=progress, on_checkpoint=on_checkpoint, save_every=_every(save_every))
    return TrainedNetwork(
        job.networks(done.state)[0], _history(done.columns), done.returned, done.compile_seconds, done.resumed_epochs
    )


def train_networks(
    spec: Any,
    config: ImageTrainConfig,
    train: Images,
    test: Images,
    *,
    seeds: Sequence[int],
    folder: str | Path | None = None,
    mesh: Mesh | None = None,
    resume: bool = False,
    progress: bool = True,
    on_checkpoint: Callable[[int, tuple[nnx.Module, ...]], Any] | None = None,
    save_every: int = 1,
    form: str = "auto",
) -> TrainedNetworks:
    """Train one network a seed, all at once by `vmap`; for networks too small to fill a device alone.

    Seed 3 gives what `train_network` gives for it, to rounding, whatever the other seeds. A seed whose loss is not
    finite goes on with NaN and is marked in `finite`; only if all are lost does the training stop. With a mesh each
    device trains its share of the seeds; where they do not fill the devices, some train the last seed once more, which
    is not returned. Any number of devices finishes what another began.

    The processes of one run (`nctheory.distributed`) share the seeds out between all their devices, under the terms of
    `train_network`; the networks that they get, also in the callback, are whole on a device of each.

    Args:
        spec: as in `train_network`; on a CPU networks without convolutions gain most.
        config: how to train.
        train: training split.
        test: test split, with the statistics of the training split.
        seeds: different seeds in 0..2^32 - 1.
        folder: as in `train_network`.
        mesh: devices, with an axis "seeds" alone; None is the default device, or with several processes all devices of
            all. Processes with meshes of their own devices train apart, each in its own folder.
        resume: as in `train_network`.
        progress: as in `train_network`.
        on_checkpoint: as in `train_network`, called with the tuple of networks.
        save_every: as in `train_network`.
        form: as in `train_network`.

    Returns:
        The networks and their history.

    Raises:
        ValueError: as in `train_network`, or if seeds are missing or repeated, or the mesh has another axis.
        RunFolderError, DistributedError, Preempted: as in `train_network`.
        NonFiniteLossError: when no seed's loss is finite.
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ArgumentError(f"Argument `seeds` must hold different seeds, at least one, but is {seeds}.")
    mesh = _seed_mesh(mesh, len(seeds))
    program = _checked_program(spec, config, train, test, seeds, mesh=mesh, vmapped=True)
    job = _run.Job(program, config, train, test, seeds, form=_form(form, program))
    done = job.run(folder, resume=resume, progress=progress, on_checkpoint=on_checkpoint, save_every=_every(save_every))
    return TrainedNetworks(
        seeds=seeds,
        networks=job.networks(done.state),
        history=_history(done.columns),
        finite=np.asarray(np.isfinite([done.columns["train_loss"], done.columns["test_loss"]]).all(axis=(0, -1))),
        checkpoints=done.returned,
        compile_seconds=done.compile_seconds,
        resumed_epochs=done.resumed_epochs,
    )


def load_network(spec: Any, folder: str | Path, epoch: int | None = None) -> nnx.Module:
    """Read the network of one checkpoint of `train_network`.

    Args:
        spec: the specification it was trained with.
        folder: the folder that `train_network` was given.
        epoch: an epoch with a checkpoint; None is the newest.

    Returns:
        The network in evaluation mode, with the compute dtype that it was trained with.

    Raises:
        ValueError: if there is no such checkpoint (the message lists the epochs there are), or it is of several seeds.
        RunFolderError: if it is of another specification, or damaged.
    """
    folder = Path(folder).absolute()
    epochs = stored_epochs(folder)
    if not epochs or (epoch is not None and epoch not in epochs):
        raise ArgumentError(f"Argument `epoch` must be one of {epochs}, the checkpoints of {folder}, but is {epoch}.")
    path, record = read_record(folder, epochs[-1] if epoch is None else epoch)
    identity = record["identity"]
    if _run.described(spec) != identity.get("spec"):
        raise RunFolderError(f"{path} is of the network {identity.get('spec')}, but `spec` is {_run.described(spec)}.")
    if identity.get("vmapped"):
        raise ArgumentError(f"Argument `folder` must be of `train_network`, but {folder} holds several seeds.")
    fields = {f.name: identity.get(f.name) for f in dataclasses.fields(Program) if f.name not in ("spec", "mesh")}
    program = Program(**{**fields, "spec": spec, "mesh": None, "image_shape": tuple(identity["image_shape"])})
    like = first_state(jax.random.key(0), program=program)
    arrays = read_arrays(path, record, like)
    state = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in arrays.values()])
    return nnx.merge(graphs(program).eval, state.params, state.others)


def _history(columns: dict[str, np.ndarray]) -> TrainHistory:
    epochs = columns["learning_rate"].shape[-1]
    return TrainHistory(epoch=np.arange(1, epochs + 1), **{name: columns[name] for name in COLUMNS})


def _every(save_every: int) -> int:
    return _checks.integer("save_every", save_every, minimum=1)


def _form(form: str, program: Program) -> str:
    _checks.choice("form", form, FORMS)
    if form != "auto":
        return form
    platform = jax.default_backend() if program.mesh is None else program.mesh.devices.flat[0].platform
    return "host" if platform == "cpu" else "scan"


def check_batch_size(batch_size: int, mesh: Mesh | None = None, *, name: str = "batch_size") -> None:
    """Refuse a batch that the devices do not divide, as `train_network` does; for a look before anything is written.

    Args:
        batch_size: images a batch.
        mesh: as for `train_network`; None is the default device, or with several processes all devices of all.
        name: what the message calls the batch size.

    Raises:
        ValueError: if `batch_size` is no multiple of the number of devices, or the mesh has no axis "data".
    """
    mesh = _together.mesh_of_all(DATA_AXIS) if mesh is None else mesh
    if mesh is None:
        return
    if DATA_AXIS not in mesh.axis_names:
        raise ArgumentError(f"Argument `mesh` must have an axis {DATA_AXIS!r}, but has the axes {mesh.axis_names}.")
    count = mesh.shape[DATA_AXIS]
    if batch_size % count:
        raise ArgumentError(
            f"Argument `{name}` must be a multiple of the {count} devices of the mesh, but is {batch_size}."
        )


def _data_mesh(mesh: Mesh | None, config: ImageTrainConfig) -> Mesh | None:
    check_batch_size(config.batch_size, mesh)
    mesh = _together.mesh_of_all(DATA_AXIS) if mesh is None else mesh
    if mesh is None:
        return None
    # Whatever the kind of its axes, the compiler is to place the rest.
    return Mesh(mesh.devices, mesh.axis_names)


def _seed_mesh(mesh: Mesh | None, num_seeds: int) -> Mesh | None:
    """The fewest devices that need no more rounds for the seeds than all of them, but one of every process."""
    mesh = _together.mesh_of_all(SEED_AXIS) if mesh is None else mesh
    if mesh is None:
        return None
    if mesh.axis_names != (SEED_AXIS,):
        raise ArgumentError(f"Argument `mesh` must have the axis {SEED_AXIS!r} alone, but has {mesh.axis_names}.")
    # The processes by turns, so that the fewest devices are those of many.
    seen = Counter[int]()
    places = []
    for device in mesh.devices.flat:
        places.append((seen[device.process_index], device.process_index, device))
        seen[device.process_index] += 1
    devices = [device for *_, device in sorted(places, key=lambda place: place[:2])]
    each = -(-num_seeds // len(devices))
    return Mesh(np.asarray(devices[: max(-(-num_seeds // each), len(seen))]), (SEED_AXIS,))


def _checked_program(
    spec: Any,
    config: ImageTrainConfig,
    train: Images,
    test: Images,
    seeds: tuple[int, ...],
    *,
    mesh: Mesh | None = None,
    vmapped: bool = False,
) -> Program:
    for seed in seeds:
        _checks.integer("seed", seed, minimum=0)
        if seed >= 2**32:
            raise ArgumentError(f"Argument `seed` must lie below 2**32, but is {seed}.")
    if config.steps_per_epoch(train.num_samples) == 0:
        raise ArgumentError(
            f"Argument `batch_size` must be at most {train.num_samples}, the number of training images, or `drop_last` "
            f"be off, but is {config.batch_size}."
        )
    if (test.image_shape, test.num_classes) != (train.image_shape, train.num_classes):
        raise ArgumentError(
            f"Argument `test` must hold images of shape {train.image_shape} with {train.num_classes} labels as "
            f"`train`, but holds shape {test.image_shape} with {test.num_classes}."
        )
    if not (np.array_equal(train.mean, test.mean) and np.array_equal(train.std, test.std)):
        raise ArgumentError("Argument `test` must have the channel statistics of `train`: Images.of(..., like=train).")
    return Program.of(spec, config, train, mesh=mesh, vmapped=vmapped)
