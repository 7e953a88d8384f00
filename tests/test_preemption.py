"""SIGTERM as preemption: noted, acted upon where work can be taken up again; the run ends as an uninterrupted one."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from nctheory import _preemption
from nctheory._preemption import Preempted, deferred
from nctheory.runs import RunFolderError
from nctheory.vision import _checkpoints, _loop, _run
from nctheory.vision.train import load_network, train_networks
from tests.simulator import processes
from tests.vision import test_train_checkpoints as reference
from tests.vision.tiny_networks import DENSE, splits
from tests.vision.training_processes import signal_after

# Five batches an epoch, the last of them smaller.
DATA = splits(37, 12)
CONFIG = dataclasses.replace(reference.CONFIG, num_epochs=4, drop_last=False, checkpoint_epochs=(0, 2, 4))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def run(folder=None, **named):
    return reference.run(folder, **{"config": CONFIG, "data": DATA, **named})


@pytest.fixture(scope="module")
def whole():
    return {form: run(form=form) for form in ("host", "scan")}


@pytest.fixture
def delivered():
    """What reaches the handler that was there before."""
    found = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: found.append("delivered"))
    yield found
    signal.signal(signal.SIGTERM, earlier)


# --- the module alone ---


def test_a_signal_is_noted_and_delivered_at_the_end(delivered):
    handler = signal.getsignal(signal.SIGTERM)
    with deferred() as preemption:
        assert not preemption.asked
        terminate()
        assert preemption.asked
        assert delivered == []
    assert delivered == ["delivered"]
    assert signal.getsignal(signal.SIGTERM) is handler


def fail_after_the_signal(error):
    with deferred():
        terminate()
        raise error


def test_a_signal_outlives_an_error_that_somebody_catches(delivered):
    with contextlib.suppress(KeyError):
        fail_after_the_signal(KeyError())
    assert delivered == ["delivered"]


def test_an_error_after_the_signal_is_the_message_of_the_end(capsys):
    with pytest.raises(Preempted, match="KeyError: 'lost'") as ended:
        fail_after_the_signal(KeyError("lost"))
    assert isinstance(ended.value.__cause__, KeyError)
    assert ended.value.code == 143
    assert capsys.readouterr().err == "\nterminated, after an error: KeyError: 'lost'\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def interrupting():
    """A handler that was there before, and ends the work its own way."""

    def handler(*_):
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, earlier)


@pytest.mark.usefixtures("interrupting")
def test_an_error_after_the_signal_is_a_note_where_a_handler_ends_the_work():
    with pytest.raises(KeyboardInterrupt) as ended:
        fail_after_the_signal(ValueError("no space"))
    assert ended.value.__notes__ == ["ValueError: no space"]


def test_a_second_signal_is_delivered_once(delivered):
    with deferred():
        terminate()
        terminate()
        assert delivered == ["delivered"]
    assert delivered == ["delivered"]


def test_a_second_signal_acts_at_once(delivered):
    with contextlib.suppress(KeyError), deferred():
        terminate()
        terminate()
        assert delivered == ["delivered"]
        raise KeyError
    assert delivered == ["delivered"]


def test_stopping_ends_with_the_code_and_a_line(capsys):
    def work():
        with deferred() as preemption:
            terminate()
            preemption.stop("all is in a folder")

    with pytest.raises(Preempted) as stopped:
        work()
    assert stopped.value.code == _preemption.EXIT_PREEMPTED == 143
    assert capsys.readouterr().err == "\nterminated: all is in a folder; resuming finishes the run.\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("interrupting")
def test_an_earlier_handler_may_end_it_its_own_way():
    with pytest.raises(KeyboardInterrupt) as stopped, deferred() as preemption:
        preemption.stop("all is in a folder")
    assert stopped.value.__notes__ == ["all is in a folder"]


def test_long_work_is_left_where_the_signal_arrives():
    seen = []

    def work():
        seen.append("began")
        terminate()
        seen.append("ended")

    with contextlib.suppress(Preempted), deferred() as preemption:
        assert preemption.attempt(lambda: 7) == (True, 7)
        assert preemption.attempt(work) == (False, None)
        assert preemption.attempt(work) == (False, None)
        preemption.stop("")
    assert seen == ["began"]


def test_an_ignored_signal_stays_ignored():
    earlier = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with deferred() as preemption:
            terminate()
            assert not preemption.asked
    finally:
        signal.signal(signal.SIGTERM, earlier)


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_installed_in_other_threads_or_without_need(delivered, enabled):
    handlers = [signal.getsignal(signal.SIGTERM)]

    def look():
        with deferred(enabled=enabled):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if not enabled:
        look()
    assert len(set(handlers)) == 1
    assert delivered == []


# --- training that is told to stop ---


@pytest.mark.parametrize(
    "after", [8, pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)]
)
def test_a_run_stopped_after_a_step_ends_bitwise_as_an_uninterrupted_one(tmp_path, whole, after):
    with signal_after(after), pytest.raises(Preempted) as stopped:
        run(tmp_path)
    epoch, steps = divmod(after - 1, 5)
    assert str(stopped.value) == f"the checkpoint after step {steps + 1} of 5 of epoch {epoch + 1} is in {tmp_path}"
    assert [each.name for each in tmp_path.glob("begun_*")] == [f"begun_{epoch + 1:06d}"]
    # Twice, as a new machine may be taken back as well.
    with signal_after(3), pytest.raises(Preempted):
        run(tmp_path, resume=True)
    assert len(list(tmp_path.glob("begun_*"))) == 1
    resumed = run(tmp_path, resume=True)
    assert resumed.resumed_epochs == (after + 2) // 5
    reference.assert_same(resumed, whole["host"])
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", *(f"epoch_00000{k}" for k in (0, 2, 4))]


def where(epoch, found):
    def callback(at, network):
        if at == epoch:
            found.append("began")
            terminate()
            found.append("ended")
        return reference.measured(at, network)

    return callback


@pytest.mark.parametrize("form", ["host", "scan"])
@pytest.mark.parametrize("epoch", [2, pytest.param(0, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_stopped_in_a_callback_ends_bitwise_as_an_uninterrupted_one(tmp_path, whole, epoch, form):
    found = []
    with pytest.raises(Preempted, match="epoch 0 is in" if epoch == 0 else f"step 5 of 5 of epoch {epoch} is in"):
        run(tmp_path, on_checkpoint=where(epoch, found), form=form)
    # Before the first epoch the callback comes to its end; later it is carried out again.
    assert found == (["began", "ended"] if epoch == 0 else ["began"])
    resumed = run(tmp_path, resume=True, form=form)
    assert resumed.resumed_epochs == max(epoch - 1, 0)
    reference.assert_same(resumed, whole[form])


@pytest.mark.parametrize(("epoch", "form"), [(1, "host"), (3, "scan"), (4, "host")])
def test_a_run_stopped_in_an_evaluation_ends_bitwise_as_an_uninterrupted_one(tmp_path, whole, monkeypatch, epoch, form):
    usual, calls = _run.Job.evaluate, []

    def evaluate(job, state):
        calls.append(1)
        if len(calls) == epoch:
            terminate()
        return usual(job, state)

    with monkeypatch.context() as patch:
        patch.setattr(_run.Job, "evaluate", evaluate)
        expected = f"step 5 of 5 of epoch {epoch}" if epoch in CONFIG.kept_epochs else f"after epoch {epoch}"
        with pytest.raises(Preempted, match=f"{expected} is in"):
            run(tmp_path, form=form, save_every=10)
    resumed = run(tmp_path, resume=True, form=form)
    reference.assert_same(resumed, whole[form])


@pytest.mark.slow
def test_an_epoch_that_is_one_program_is_finished_first(tmp_path, whole, monkeypatch):
    usual = _loop.Loop._epoch

    def epoch(loop, state, number, bar):
        if number == 3:
            terminate()
        return usual(loop, state, number, bar)

    with monkeypatch.context() as patch:
        patch.setattr(_loop.Loop, "_epoch", epoch)
        with pytest.raises(Preempted, match="step 5 of 5 of epoch 3"):
            run(tmp_path, form="scan")
    reference.assert_same(run(tmp_path, resume=True, form="scan"), whole["scan"])


def test_a_loop_s_epoch_is_finished_where_epochs_are_programs(tmp_path, whole):
    with signal_after(8), pytest.raises(Preempted):
        run(tmp_path)
    resumed = run(tmp_path, resume=True, form="scan")
    # The same operations, fused differently.
    np.testing.assert_allclose(resumed.history.train_loss, whole["host"].history.train_loss, rtol=1e-4)


@pytest.mark.slow
def test_seeds_together_are_stopped_and_resumed_exactly(tmp_path):
    def together(folder=None, **named):
        return train_networks(DENSE, CONFIG, *DATA, seeds=[1, 5], folder=folder, progress=False, **named)

    full = together()
    with signal_after(13), pytest.raises(Preempted, match="step 3 of 5 of epoch 3"):
        together(tmp_path)
    resumed = together(tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.history.train_loss, full.history.train_loss)
    for one, two in zip(resumed.networks, full.networks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, reference.leaves(one), reference.leaves(two))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with signal_after(8), pytest.raises(Preempted):
        run(folder)
    return folder


def test_a_checkpoint_within_an_epoch_is_refused_as_others_are(stopped, tmp_path):
    with pytest.raises(RunFolderError, match="already holds 3 checkpoints, up to epoch 2"):
        run(stopped)
    with pytest.raises(RunFolderError, match=r"seeds \(stored \[3\], given \[4\]\)"):
        run(stopped, resume=True, seed=4)
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "begun_000002" / "returned.npz").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"begun_000002 is damaged: returned.npz .* from an earlier one"):
        run(tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "begun_000002")
    assert run(tmp_path / "run", resume=True).resumed_epochs == 1


def test_a_checkpoint_that_an_epoch_has_overtaken_is_not_read(stopped, whole, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    run(tmp_path / "run", resume=True)
    shutil.copytree(stopped / "begun_000002", tmp_path / "run" / "begun_000002")
    again = run(tmp_path / "run", resume=True)
    assert again.resumed_epochs == 4
    reference.assert_same(again, whole["host"])
    load_network(DENSE, tmp_path / "run")


def test_a_full_disk_at_the_end_leaves_the_earlier_checkpoints(tmp_path, whole, monkeypatch):
    def full(path, arrays):
        if "begun" in str(path):
            raise OSError(28, "No space left on device")
        usual(path, arrays)

    usual = _checkpoints._write_arrays
    with monkeypatch.context() as patch, signal_after(8):
        patch.setattr(_checkpoints, "_write_arrays", full)
        with pytest.raises(Preempted, match=r"RunFolderError: .*begun_000002.*No space left"):
            run(tmp_path)
    reference.assert_same(run(tmp_path, resume=True), whole["host"])


def test_without_a_folder_the_signal_acts_as_ever(delivered):
    with signal_after(3):
        run()
    assert delivered == ["delivered"]


# --- a whole command ---


def command(folder):
    """A training behind the command line that says when an epoch of interest begins."""
    from nctheory._cli import run_main
    from nctheory.runs import RunFolder
    from tests.test_distributed_start import Options

    def speak(epoch, network):
        print("epoch", epoch, flush=True)  # noqa: T201
        return reference.measured(epoch, network)

    def work(config):
        with RunFolder.create(config.out, config, experiment="trial", resume=config.resume) as folder:
            run(folder.parts / "training", config=LONG, on_checkpoint=speak, resume=True, save_every=50)
        return 0

    flags = ["--out", folder, *(["--resume"] if os.path.exists(folder) else [])]
    raise SystemExit(run_main(Options, work, flags))


# About a second, of which the signal comes in the first moments.
LONG = dataclasses.replace(CONFIG, num_epochs=150, checkpoint_epochs=(1,))


def test_a_command_ends_with_code_143_and_its_resumption_as_if_nothing_had_been(tmp_path):
    folder = tmp_path / "run"
    script = f"from tests import test_preemption as t; t.command({str(folder)!r})"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(jax.config.jax_enable_x64)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=processes.ROOT, env=environment, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "epoch 1\n"
    process.send_signal(signal.SIGTERM)
    (ended,) = processes.finish([process])
    assert ended.code == 143, ended
    (line,) = [line for line in ended.err.splitlines() if line]
    assert line.startswith("terminated: the checkpoint after ")
    assert line.endswith(f"{folder} holds config.json and 1 finished part; the same command with --resume continues.")
    with pytest.raises(SystemExit) as finished:
        command(str(folder))
    assert finished.value.code == 0
    resumed = run(folder / "parts" / "training", config=LONG, resume=True)
    assert resumed.resumed_epochs == 150
    reference.assert_same(resumed, run(config=LONG))
