"""Chunk sizes where memory is limited: by the compiled program's own account, and after running out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.simulator import _program, _shares
from nctheory.simulator._parts import ChunkChoice
from tests.simulator.closeness import assert_close
from tests.simulator.test_sweep import Toy, sweep, toy


def wide(rate, key):
    """A row whose memory is known: 1,000 numbers, and what they come from."""
    return {"x": jnp.tanh(rate * jax.random.normal(key, (1000,)))}


@pytest.fixture
def sixteen_rows(monkeypatch):
    """One core, an estimate of 16 rows a share, and the bytes of a row of `wide`."""
    monkeypatch.setattr(_program, "num_cores", lambda: 1)
    monkeypatch.setattr(_program, "auto_chunk_size", lambda *_: 16)
    return np.dtype(jax.dtypes.canonicalize_dtype(float)).itemsize * 1000


def test_the_memory_of_the_compiled_program_decides_where_it_is_limited(sixteen_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(_program, "memory_limit", lambda: 30 * sixteen_rows)
    result = sweep(wide, 0.5, 20, chunk_size="measured", checkpoint=tmp_path)
    needed = result.chunk_choice.share_bytes
    assert result.chunk_choice.way == "measured"
    # Sixteen rows do not fit half of the limit: their results alone take more.
    assert 1 < len(needed) <= 5
    assert list(needed) == [16, 8, 4, 2, 1][: len(needed)]
    assert all((size <= 15 * sixteen_rows) == (share == result.share) for share, size in needed.items())
    assert all(size >= share * sixteen_rows for share, size in needed.items())
    assert result.chunk_size == result.share
    lone = jax.jit(jax.vmap(wide, in_axes=(None, 0)))(0.5, jax.vmap(jax.random.key)(np.arange(20)))
    np.testing.assert_allclose(result.history["x"][0], lone["x"], rtol=1e-6)
    again = sweep(wide, 0.5, 20, chunk_size="measured", checkpoint=tmp_path)
    assert (again.chunk_size, again.chunk_choice.share_bytes) == (result.chunk_size, needed)


@pytest.mark.slow
def test_little_memory(sixteen_rows, monkeypatch):
    usual = _shares.ShareRunner.memory_bytes
    monkeypatch.setattr(_program, "memory_limit", lambda: 10)
    tiny = sweep(wide, 0.5, 3, chunk_size="measured")
    assert (tiny.share, tiny.chunk_choice.reason) == (1, "a single row does not fit 5 bytes")
    # A compiler may itself run out of memory, or not say what a program needs.
    compiling = _shares.ShareRunner._compile

    def compile_small(self, program):
        if self._share > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
        return compiling(self, program)

    with monkeypatch.context() as patch:
        patch.setattr(_program, "memory_limit", lambda: 10**9)
        patch.setattr(_shares.ShareRunner, "_compile", compile_small)
        result = sweep(wide, 0.5, 20, chunk_size="measured")
        assert result.share == 4
        assert {share: size < 0 for share, size in result.chunk_choice.share_bytes.items()} == {16: 1, 8: 1, 4: 0}
        # The estimate alone ends the same way.
        assert sweep(wide, 0.5, 20).share == 4
    monkeypatch.setattr(_shares.ShareRunner, "memory_bytes", lambda self: usual(self) and None)
    result = sweep(wide, 0.5, 20, chunk_size="measured")
    assert result.chunk_choice == ChunkChoice("estimated", "not measured: the compiler does not say its memory")


def fail(monkeypatch, largest, text="RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."):
    """Let calls of more rows than this fail as a device does whose memory is too small."""
    usual = _shares.ShareRunner._call

    def call(self, starts):
        if self._share > largest:
            raise jax.errors.JaxRuntimeError(text)
        return usual(self, starts)

    monkeypatch.setattr(_shares.ShareRunner, "_call", call)


def test_out_of_memory_halves_the_shares_and_keeps_the_stored_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(_program, "num_cores", lambda: 1)
    first = sweep(toy, Toy(), 40, chunk_size=8, checkpoint=tmp_path)
    kept = (tmp_path / "chunk-00000.npz").stat().st_mtime_ns
    for index in (1, 3):
        (tmp_path / f"chunk-{index:05d}.npz").unlink()
    fail(monkeypatch, largest=3)
    again = sweep(toy, Toy(), 40, checkpoint=tmp_path)
    assert (again.chunk_size, again.share, again.num_resumed) == (8, 2, 24)
    assert again.chunk_choice.way == "stored"
    expected = "given by the run that began; out of memory with shares of 8 rows; out of memory with shares of 4 rows"
    assert again.chunk_choice.reason == expected
    assert_close(again.history, first.history)
    assert (tmp_path / "chunk-00000.npz").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "sweep.json").read_text())["share"] == 2
    assert sweep(toy, Toy(), 40, checkpoint=tmp_path).share == 2


@pytest.mark.slow
@pytest.mark.parametrize(("size", "largest", "share"), [(6, 5, 3), (7, 6, 1), ("auto", 1, 1)])
def test_out_of_memory_in_a_new_sweep(monkeypatch, size, largest, share):
    fail(monkeypatch, largest)
    monkeypatch.setattr(_program, "num_cores", lambda: 1)
    result = sweep(toy, Toy(), 12, chunk_size=size)
    assert result.share == share
    assert result.chunk_choice.reason.startswith("out of memory with shares of ")
    assert result.history["seed"].tolist() == [list(range(12))]


@pytest.mark.slow
def test_what_cannot_be_helped_is_raised(monkeypatch):
    with monkeypatch.context() as patch:
        fail(patch, largest=0)
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            sweep(toy, Toy(), 12)
    with monkeypatch.context() as patch:
        fail(patch, largest=1, text="INTERNAL: something else")
        with pytest.raises(RuntimeError, match="INTERNAL"):
            sweep(toy, Toy(), 12, chunk_size=8)
    # Later chunks do not run in other shares than the first one did.
    usual, calls = _shares.ShareRunner._call, []

    def call(self, starts):
        calls.append(starts)
        if len(calls) > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return usual(self, starts)

    monkeypatch.setattr(_program, "num_cores", lambda: 1)
    monkeypatch.setattr(_shares.ShareRunner, "_call", call)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        sweep(toy, Toy(), 40, chunk_size=4)
