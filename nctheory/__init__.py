"""nctheory: theory and simulation of neural collapse in JAX.

Submodules load on first use, so that `import nctheory` and every `--help` stay fast; type checkers see the imports.
"""

import importlib
from typing import TYPE_CHECKING

from nctheory._errors import ArgumentError as ArgumentError
from nctheory._errors import DatasetError as DatasetError

if TYPE_CHECKING:
    from nctheory import claims as claims
    from nctheory import distributed as distributed
    from nctheory import frames as frames
    from nctheory import metrics as metrics
    from nctheory import objectives as objectives
    from nctheory import plotting as plotting
    from nctheory import runs as runs
    from nctheory import simulator as simulator
    from nctheory import theory as theory
    from nctheory import vision as vision

__version__ = "0.1.0"
__all__ = [
    "ArgumentError",
    "DatasetError",
    "claims",
    "distributed",
    "frames",
    "metrics",
    "objectives",
    "plotting",
    "runs",
    "simulator",
    "theory",
    "vision",
]


def __getattr__(name: str):
    """Import a public submodule on first access."""
    if name in __all__:
        return importlib.import_module(f"nctheory.{name}")
    raise AttributeError(f"module 'nctheory' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public submodules and the version."""
    return [*__all__, "__version__"]
