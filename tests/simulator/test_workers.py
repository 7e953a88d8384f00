"""Sweeps on several cores: shares of a chunk, programs that wait for threads, and sweeps compiled ahead."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from nctheory import simulator
from nctheory.simulator import _program, _shares
from nctheory.simulator.data import MixtureData


def walk(rate, key):
    """A few steps of a noisy map, enough to tell rows apart."""
    return {"x": jnp.tanh(rate * jax.random.normal(key, (5,))).cumsum()}


def svd_walk(rate, key):
    """The same through a LAPACK call, which `vmap` turns into a batch of them."""
    matrix = rate * jax.random.normal(key, (4, 3))
    return {"x": jnp.linalg.svd(matrix, compute_uv=False)}


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr(_program, "num_cores", lambda: 3)


@pytest.mark.parametrize(("size", "workers"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (7, 1)])
def test_as_many_cores_work_as_divide_the_chunk(three_cores, size, workers):
    result = simulator.sweep(walk, 0.5, 9, chunk_size=size, progress=False)
    assert (result.chunk_size, result.num_workers) == (size, workers)
    lone = jax.jit(jax.vmap(walk, in_axes=(None, 0)))(0.5, jax.vmap(jax.random.key)(np.arange(9)))
    np.testing.assert_allclose(result.history["x"][0], lone["x"], rtol=1e-6)


def test_an_automatic_chunk_gives_every_core_a_share(three_cores):
    result = simulator.sweep(walk, 0.5, 10, progress=False)
    # Four rows a core, two of the twelve are repetitions that nobody sees.
    assert (result.chunk_size, result.num_workers) == (12, 3)
    assert result.history["x"].shape == (1, 10, 5)


def test_resuming_with_other_cores_keeps_the_size_of_the_chunks(three_cores, tmp_path, monkeypatch):
    first = simulator.sweep(walk, 0.5, 10, checkpoint=tmp_path, progress=False)
    monkeypatch.setattr(_program, "num_cores", lambda: 2)
    for part in list(tmp_path.glob("*.npz"))[:1]:
        part.unlink()
    again = simulator.sweep(walk, 0.5, 10, checkpoint=tmp_path, progress=False)
    assert (again.chunk_size, again.num_workers) == (12, 2)
    np.testing.assert_allclose(again.history["x"], first.history["x"], rtol=1e-6)


def compiled(train):
    keys = jax.vmap(jax.random.key)(np.arange(4))
    return jax.jit(jax.vmap(train, in_axes=(None, 0))).lower(0.5, keys).compile()


def test_programs_that_wait_for_threads_are_recognised():
    assert not _program.waits_for_threads(compiled(walk))
    assert _program.waits_for_threads(compiled(svd_walk))
    assert not _program.waits_for_threads(jax.jit(lambda: jnp.linalg.svd(jnp.eye(3))).lower().compile())
    assert _program.waits_for_threads(compiled(lambda rate, key: jnp.abs(jnp.fft.fft(jax.random.normal(key, (8,))))))


def test_training_programs_do_not_wait_for_threads():
    data = MixtureData(simulator.cosine_mixture(dim=4), samples_per_cluster=2)
    config = simulator.TrainConfig(data=data, model=simulator.TwoLayerSpec(width=4), num_steps=2)
    assert not _program.waits_for_threads(compiled(lambda rate, key: simulator.train(config, key)))


def test_a_waiting_program_takes_turns_and_is_right():
    result = simulator.sweep(svd_walk, [0.5, 2.0], 6, chunk_size=4, progress=False)
    for row, rate in enumerate((0.5, 2.0)):
        for seed in range(6):
            matrix = rate * np.asarray(jax.random.normal(jax.random.key(seed), (4, 3)))
            expected = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(result.history["x"][row, seed], expected, rtol=1e-5)


def test_lapack_threads_come_back_when_the_last_of_two_sweeps_ends():
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        assert threads() == {2}
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(_shares._ONE_BLAS_THREAD_EACH)
            second.enter_context(_shares._ONE_BLAS_THREAD_EACH)
            first.close()
            assert threads() == {1}
        assert threads() == {2}


def test_a_prepared_sweep_equals_a_sweep_and_can_be_run_again():
    ready = simulator.prepare(walk, [0.5, 2.0], 5, chunk_size=4)
    assert ready.compile_seconds > 0
    expected = simulator.sweep(walk, [0.5, 2.0], 5, chunk_size=4, progress=False)
    for _ in range(2):
        result = ready.run(progress=False)
        np.testing.assert_array_equal(result.history["x"], expected.history["x"])
        assert result.conditions == expected.conditions


def test_a_prepared_sweep_that_is_stored_needs_no_compilation(tmp_path):
    first = simulator.sweep(walk, 0.5, 5, checkpoint=tmp_path, progress=False)
    ready = simulator.prepare(walk, 0.5, 5, checkpoint=tmp_path)
    assert ready.compile_seconds == 0
    result = ready.run(progress=False)
    assert result.num_resumed == 5
    np.testing.assert_array_equal(result.history["x"], first.history["x"])


def test_precision_is_that_of_the_call_and_not_of_the_thread():
    for wide in (True, False):
        with jax.enable_x64(wide):
            ready = simulator.prepare(walk, 0.5, 4)
        with jax.enable_x64(not wide), ThreadPoolExecutor(1) as other_thread:
            result = other_thread.submit(ready.run, progress=False).result()
        assert result.history["x"].dtype == (np.float64 if wide else np.float32)


# Each share's metrics decompose 32 matrices: enough for JAX to spread a batch of them over the threads, had there been
# a batch, and for two such programs to wait for each other.
SIDE_BY_SIDE = """
from nctheory import simulator
data = simulator.MixtureData(simulator.cosine_mixture(dim=32), samples_per_cluster=10)
config = simulator.TrainConfig(data=data, model=simulator.TwoLayerSpec(width=256), num_steps=4, num_records=4)
result = simulator.sweep(simulator.train, config, 256, chunk_size=64, progress=False)
print(result.num_workers, result.finite.all())
"""


def test_shares_side_by_side_come_to_an_end():
    command = [sys.executable, "-c", SIDE_BY_SIDE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[1] == "True"
