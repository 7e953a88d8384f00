"""Figure: how well original classes come back under different merges, from a run of experiments/coarse_merges.py.

    python paper_figs/coarse_merges.py --run results/coarse_merges/digits

Writes coarse_merges.pdf, coarse_merges.png and, with the numbers behind every panel, coarse_merges.csv: columns panel,
scheme, score, first, second (names of the classes), distance, probe_error, value, low, high (dimensionless; empty where
not used). Ends are the range over seeds of a pair, the 95 % interval over seeds of a scheme.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = ("panel", "scheme", "score", "first", "second", "distance", "probe_error", "value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure of merges from a finished run."""

    run: Path = Path("results/coarse_merges/digits")
    """Run folder of experiments/coarse_merges.py."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    from nctheory.figures import coarse_merges as figure
    from nctheory.vision.merges import points_by_scheme

    recovery, separation = history["recovery"], history["separation"]
    scores = {
        "recovery, untrained": recovery.sel(end="initial"),
        "recovery, trained": recovery.sel(end="final"),
        "recovery, surrogate": history["surrogate_recovery"],
        "separation, trained / untrained": separation.sel(end="final") / separation.sel(end="initial"),
    }
    rows: list[dict[str, Any]] = []
    for scheme in dict.fromkeys(history["scheme"].values.tolist()):
        for name, values in scores.items():
            rows += _pairs(points_by_scheme(history, values, scheme), history, scheme, name)
        for name, level in figure.levels(history, scheme).items():
            numbers = {key: _number(getattr(level, at)) for key, at in zip(COLUMNS[-3:], _LEVEL, strict=True)}
            rows.append({"panel": "scheme", "scheme": scheme, "score": name, **numbers})
    return text_of(COLUMNS, rows)


_LEVEL = ("measured", "low", "high")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _pairs(points: Any, history: "xr.Dataset", scheme: str, name: str) -> list[dict[str, Any]]:
    rows = []
    for index, (first, second) in enumerate(points.classes):
        values = points.finite[:, index]
        numbers = (points.distance[index], points.probe_error[index], values.mean(), values.min(), values.max())
        names = history["fine"].values[[first, second]]
        row = {"panel": "pair", "scheme": scheme, "score": name, "first": names[0], "second": names[1]}
        rows.append(row | {key: _number(value) for key, value in zip(COLUMNS[-5:], numbers, strict=True)})
    return rows


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    import xarray as xr

    from nctheory import plotting
    from nctheory.figures import coarse_merges as figure

    folder = RunFolder.load(config.run, experiment="coarse_merges")
    history = folder.read_history()
    assert isinstance(history, xr.Dataset)
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(figure.draw(history), out / "coarse_merges")
    write(out / "coarse_merges.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and coarse_merges.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
