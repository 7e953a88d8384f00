"""Strict numerics for every test: float64 by default, no silent dtype or rank promotion, shapes enforced."""

import gc
import os
import signal
import tempfile

# Tests compile far more than they run, so processes share what they have compiled, and compile in a hurry (below): the
# workers of pytest-xdist and the scripts that tests start find both settings in the environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="nctheory-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name

# A shell starts background jobs with Ctrl-C ignored, and processes inherit that: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the import hook looks it up by name)

jax.config.update("jax_enable_x64", os.environ.get("NCTHEORY_TEST_X64", "1") == "1")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_hook = install_import_hook("nctheory", "tests.typechecker.check")

from nctheory._cli import compile_in_a_hurry  # noqa: E402  (after the import hook)

# XLA reads its flags when it compiles for the first time.
if "XLA_FLAGS" not in os.environ:
    compile_in_a_hurry()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Free what a module has compiled: thousands of programs exceed the number of memory maps of a process (Linux)."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def key() -> jax.Array:
    """One fixed PRNG key; tests fold their own streams in."""
    return jax.random.key(20231105)


@pytest.fixture
def own_errors():
    """Switch shape enforcement off, so that a test of bad input sees the library's own message."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
