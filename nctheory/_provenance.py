"""Where numbers come from: commit, versions, machine, command."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("nctheory", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "xarray")


def _git(*arguments: str) -> str | None:
    """Output of a git command in the folder of this package's source, or None if there is no repository or no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_state() -> dict[str, Any]:
    """Commit of the package's own repository and whether tracked files differ from it; null without a repository.

    An installed copy can lie inside somebody else's repository (a `.venv` in a project). Its commit would say nothing
    about this code, so the commit is given only if the repository tracks this very file.
    """
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def package_versions() -> dict[str, str | None]:
    """Installed version of each package that the numbers depend on; null if absent."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def machine() -> dict[str, Any]:
    """Operating system, processor and the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"platform": platform.platform(), "cpu_model": _cpu_model(), "num_cores": cores}


def now() -> str:
    """Time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """The command that started this process as it was typed, quoted for a shell."""
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
