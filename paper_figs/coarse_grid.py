"""Figures: class distances over learning rate x weight decay, and recovery against the memory of the initial weights.

    python paper_figs/coarse_grid.py --run results/coarse_grid/digits-mod-resnet-small

Writes coarse_grid_distances and coarse_grid_memory as pdf and png and, with the numbers behind every point,
coarse_grid.csv: columns panel, learning_rate, weight_decay, epoch, memory, x, y, value (dimensionless, epoch in epochs;
empty where not used; values are means over seeds).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = ("panel", "learning_rate", "weight_decay", "epoch", "memory", "x", "y", "value")
SCORES = ("clp", "fine_probe", "test_accuracy", "train_accuracy", "surrogate", "nc1", "ratio", "remaining_share")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figures of the grid from a finished run."""

    run: Path = Path("results/coarse_grid/digits-mod-resnet-small")
    """Run folder of experiments/coarse_grid.py."""
    out: Path | None = None
    """Folder of the figures; by default the run folder's figures/."""


def rows(history: "xr.Dataset") -> Iterator[dict[str, Any]]:
    """The numbers behind the figures."""
    from nctheory.figures import coarse_grid as figures
    from nctheory.figures.coarse_labels import partner_order

    names = history["fine"].values[partner_order(history)]
    memory, epochs = history["memory_factor"].values ** 2, history["checkpoint"].values
    scores = {name: figures.summary(history, name) for name in SCORES}
    for i, rate in enumerate(history["learning_rate"].values):
        for j, decay in enumerate(history["weight_decay"].values):
            cell = {"learning_rate": f"{rate:g}", "weight_decay": f"{decay:g}"}
            matrix = figures.distance_matrix(history, i, j)
            for a, x in enumerate(names):
                for b, y in enumerate(names):
                    yield {"panel": "class_distance", **cell, "x": x, "y": y, "value": f"{matrix[b, a]:.6g}"}
            for at, epoch in enumerate(epochs):
                place = {"epoch": int(epoch), "memory": f"{memory[i, j, at]:.6g}"}
                for name, values in scores.items():
                    yield {"panel": name, **cell, **place, "value": f"{values[i, j, at]:.6g}"}


def run(config: Config) -> int:
    """Read the record, write figures and numbers."""
    from nctheory import plotting
    from nctheory.figures import coarse_grid as figures

    folder = RunFolder.load(config.run, experiment="coarse_grid")
    history: Any = folder.read_history()
    out = folder.figures if config.out is None else config.out
    for name, figure in figures.draw_all(history).items():
        print("wrote", *plotting.save_figure(figure, out / name))
    print("wrote", write(out / "coarse_grid.csv", text_of(COLUMNS, rows(history))))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
