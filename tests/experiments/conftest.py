"""What the tests of the scripts share: one finished smoke run of the synthetic experiment a session."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_script(name, *arguments, **options):
    """Run a script of the repository as a user does, from its root."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


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
