"""Figure: fine structure of digits inside merged labels, from a run folder of experiments/coarse_labels.py.

    python paper_figs/coarse_digits.py --run results/coarse_labels/digits-mod-mlp

Writes coarse_digits.pdf, coarse_digits.png and, with the numbers behind every panel but the point clouds,
coarse_digits.csv: columns panel, arm, step, x, y, value, low, high (dimensionless; empty where not used).
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

COLUMNS: tuple[str, ...] = ("panel", "arm", "step", "x", "y", "value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the coarse-digits figure from a finished run."""

    run: Path = Path("results/coarse_labels/digits-mod-mlp")
    """Run folder of experiments/coarse_labels.py."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    from nctheory.figures import coarse_labels as coarse_figure

    rows: list[dict[str, Any]] = []
    names = history["fine"].values[coarse_figure.partner_order(history)]
    steps = history["step"].values
    for arm, step in (("plain", 0), ("plain", -1), ("decay", -1)):
        matrix = coarse_figure.distance_matrix(history, arm, step)
        shared: dict[str, Any] = {"panel": "class_distance", "arm": arm, "step": int(steps[step])}
        rows += [
            {**shared, "x": x, "y": y, "value": f"{matrix[j, i]:.6g}"}
            for i, x in enumerate(names)
            for j, y in enumerate(names)
        ]
    for arm in history["arm"].values:
        score = coarse_figure.score_summary(history, str(arm))
        for index, step in enumerate(steps):
            numbers = {name: f"{score[key][index]:.6g}" for name, key in zip(COLUMNS[5:], score, strict=True)}
            rows.append({"panel": "cluster_and_probe", "arm": arm, "step": int(step), **numbers})
    levels = coarse_figure.reference_levels(history)
    rows += [{"panel": f"reference: {name}", "value": f"{level:.6g}"} for name, level in levels.items()]
    return text_of(COLUMNS, rows)


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    import xarray as xr

    from nctheory import plotting
    from nctheory.figures import coarse_labels as coarse_figure

    folder = RunFolder.load(config.run, experiment="coarse_labels")
    history = folder.read_history()
    assert isinstance(history, xr.Dataset)
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(coarse_figure.draw(history), out / "coarse_digits")
    write(out / "coarse_digits.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and coarse_digits.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
