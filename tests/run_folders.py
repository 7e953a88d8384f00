"""A run folder and a history that hold something of everything, for the tests of what is stored."""

import dataclasses
import enum
import math
from pathlib import Path

import numpy as np
import xarray as xr

from nctheory.runs import RunFolder


class Loss(enum.Enum):
    """A choice in a configuration."""

    MSE = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration with everything that needs translation."""

    out: Path = Path("x")
    width: int = 8
    rates: tuple[float, ...] = (0.1, math.inf)
    loss: Loss = Loss.MSE
    resume: bool = False


def create(path, config=None, **options):
    return RunFolder.create(path, Config() if config is None else config, experiment="laws", **options)


def dataset() -> xr.Dataset:
    weights = np.array([1 + 2j, complex(math.inf, 1), complex(0, math.nan)], np.complex64)
    return xr.Dataset(
        {
            "nc1": (("seed", "step"), np.arange(6, dtype=np.float32).reshape(3, 2), {"units": "dimensionless"}),
            "seconds": (("seed",), np.array([1.5, math.nan, -math.inf]), {"units": "seconds", "definition": "Zeit"}),
            "weights": (("seed",), weights, {"units": "dimensionless"}),
            "finite": (("seed",), np.array([True, False, True])),
            "count": (("seed",), np.array([1, 2**60, -3])),
            "phase": ((), np.complex128(2 - 1j)),
        },
        coords={
            "seed": np.array([3, 5, 7]),
            "step": ("step", np.array([1, 10]), {"units": "gradient steps"}),
            "condition": ("seed", np.array(["plain", "", "weight décay"])),
        },
        attrs={"units": "none", "width": 64, "rates": [0.1, 0.2]},
    )
