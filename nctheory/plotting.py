"""Shared look of the figures: print sizes, colour-blind-safe colours, and saving as vector PDF with a PNG beside it.

Figures draw records only; nothing here computes. Matplotlib is imported where it is used, and nothing is set on import.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nctheory import _checks
from nctheory._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
"""The eight colours of Okabe and Ito (2008), told apart under every common colour-vision deficiency."""

LINE_COLORS = tuple(OKABE_ITO[name] for name in ("blue", "vermillion", "green", "orange", "purple", "sky", "black"))
"""Order for lines and markers; yellow is left out because it vanishes on white paper."""

SEQUENTIAL_MAP = "cividis"
"""Colour map for magnitudes: monotone in lightness, so it survives grey print."""

TEXT_WIDTH = 6.75
"""Width of a two-column text block in inches."""
PNG_DPI = 220
"""Dots an inch of PNG files, and of rasterised parts of PDF files."""


@contextlib.contextmanager
def use_style() -> Iterator[None]:
    """Draw inside this context with the print style; the caller's settings come back afterwards.

    Fonts are 7 to 8 points at the width `TEXT_WIDTH` (inches), embedded as TrueType so that text in the PDF stays text.
    No display is needed: figures made without pyplot's window functions use the file backends.
    """
    import matplotlib as mpl
    from cycler import cycler

    settings: dict[Any, Any] = {
        "axes.prop_cycle": cycler(color=LINE_COLORS),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "font.size": 8,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.5,
        "image.cmap": SEQUENTIAL_MAP,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "lines.markersize": 3.5,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "savefig.dpi": PNG_DPI,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float = TEXT_WIDTH, height: float = 2.4, *, constrained: bool = True) -> "Figure":
    """Make an empty figure that no window system and no pyplot state knows about.

    Args:
        width: Width in inches, > 0.
        height: Height in inches, > 0.
        constrained: Whether margins are found automatically, which takes seconds for many panels.

    Returns:
        The figure; it is freed like any other object, so no `close` is needed.

    Raises:
        ValueError: If a size is not positive.
    """
    from matplotlib.figure import Figure

    _checks.real("width", width, minimum=0.0, exclusive_minimum=True)
    _checks.real("height", height, minimum=0.0, exclusive_minimum=True)
    # The stub does not know "none"; None would take the style's setting.
    layout: Any = "constrained" if constrained else "none"
    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: "Figure", path_stem: str | Path) -> tuple[Path, Path]:
    """Write `<path_stem>.pdf` (vector) and `<path_stem>.png`, each to a temporary name first and then renamed.

    The time stamp is left out of the PDF, so the same data give the same bytes. A logarithmic axis on which nothing
    positive was drawn becomes a linear one, because it could not be drawn.

    Args:
        figure: The finished figure.
        path_stem: Target without suffix; missing parent folders are made. A dot in the last part is kept as it is.

    Returns:
        The paths of the PDF and the PNG.

    Raises:
        RunFolderError: If the folder cannot be written; an earlier file of that name is then left as it was.
    """
    stem = Path(path_stem)
    for axes in figure.axes:
        for axis in "xy":
            smallest = getattr(axes.dataLim, f"minpos{axis}")
            if getattr(axes, f"get_{axis}scale")() == "log" and not np.isfinite(smallest):
                getattr(axes, f"set_{axis}scale")("linear")
    written = []
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", None)):
        path = stem.with_name(stem.name + suffix)
        atomic_write(path, partial(figure.savefig, metadata=metadata, dpi=PNG_DPI))
        written.append(path)
    return written[0], written[1]
