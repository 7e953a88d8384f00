"""What the tests of the scripts share: a finished smoke run of the synthetic experiment, measurements and verdicts."""

import contextlib
import fcntl
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from _bench import Bench

from nctheory._cli import run_main

ROOT = Path(__file__).parents[2]


def run_script(name, *arguments, **options):
    """Run a script of the repository as a user does, from its root."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def run_here(name, *arguments):
    """Run a script of the repository as `run_script` does, without the seconds that a new process spends on imports."""
    unique = "_script_" + name.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(unique, ROOT / name)
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err = io.StringIO(), io.StringIO()
    # As in a user's process, which has none of the tests' strict rules.
    rules = (jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False))
    with contextlib.ExitStack() as stack:
        for each in (*rules, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
            stack.enter_context(each)
        code = run_main(module.Config, module.run, [str(each) for each in arguments])
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())


def assert_refused(code, shown, message, out):
    """A bad argument ends with code 2 and one line that says what is wrong, and leaves no folder behind."""
    assert code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert not out.exists()


def history_of(out):
    """The record of a finished run that is one data set."""
    with xr.open_dataset(out / "history.nc") as stored:
        return stored.load()


def judged(part, data):
    """Claims of a part of the unconstrained-feature experiment about these data, by their id."""
    return {claim.id: claim for claim in part.judge(data)}


def converged(shape, *, loss=0.1):
    """What the solver reports of starts that have all converged: arguments of a record."""
    numbers = {"loss": loss, "gradient_norm": 0.0, "status": 1, "evaluations": 9}
    flags = {"converged": np.ones(shape, bool), "finite": np.ones(shape, bool)}
    return {name: np.full(shape, value) for name, value in numbers.items()} | flags


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Function that runs the real measurement of a part of the unconstrained-feature experiment."""

    def run(part, seeds, scale=None):
        with Bench(scale, seeds, tmp_path_factory.mktemp("parts"), progress=False) as runs:
            part.prepare(runs)
            return part.measure(runs)

    return run


@pytest.fixture(scope="session")
def synthetic_smoke(tmp_path_factory, worker_id):
    """Folder of a finished `experiments/synthetic.py --smoke`; read only. Its output lies beside it as NAME.txt."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share the run of the first that needs it.
    shared = base if worker_id == "master" else base.parent
    out = shared / "synthetic-smoke"
    with open(shared / "synthetic-smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.with_suffix(".txt").exists():
            result = run_script("experiments/synthetic.py", "--smoke", "--quiet", "--out", out)
            assert result.returncode == 0, result.stderr
            assert result.stderr == ""
            out.with_suffix(".txt").write_text(result.stdout)
    return out
