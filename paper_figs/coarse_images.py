"""Figure: original classes inside merged labels of image networks, from a run folder of experiments/coarse_labels.py.

    python paper_figs/coarse_images.py --run results/coarse_labels/cifar10-mod-resnet-small

Writes coarse_images.pdf, coarse_images.png and, with the numbers behind every panel but the point clouds,
coarse_images.csv: columns panel, epoch, x, y, value, low, high (dimensionless; empty where not used).
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder, RunFolderError

if TYPE_CHECKING:
    import xarray as xr

COLUMNS: tuple[str, ...] = ("panel", "epoch", "x", "y", "value", "low", "high")
CURVES = ("clp", "fine_probe", "test_accuracy", "surrogate", "shuffled", "nc1", "ratio", "separation")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure of image networks on merged labels from a finished run."""

    run: Path = Path("results/coarse_labels/cifar10-mod-resnet-small")
    """Run folder of experiments/coarse_labels.py with an image network."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    from nctheory.figures import coarse_images as figure
    from nctheory.figures.coarse_labels import partner_order

    rows: list[dict[str, Any]] = []
    epochs = [int(epoch) for epoch in history["checkpoint"].values]
    names = history["fine"].values[partner_order(history)]
    for at in (0, -1):
        matrix = figure.distance_matrix(history, at)
        rows += [
            {"panel": "class_distance", "epoch": epochs[at], "x": x, "y": y, "value": f"{matrix[j, i]:.6g}"}
            for i, x in enumerate(names)
            for j, y in enumerate(names)
        ]
    for name in CURVES:
        score = figure.summary(history, name)
        for index, epoch in enumerate(epochs):
            numbers = {column: f"{score[key][index]:.6g}" for column, key in zip(COLUMNS[4:], score, strict=True)}
            rows.append({"panel": name, "epoch": epoch, **numbers})
    levels = figure.reference_levels(history)
    rows += [{"panel": f"reference: {name}", "value": f"{level:.6g}"} for name, level in levels.items()]
    return text_of(COLUMNS, rows)


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    from nctheory import plotting
    from nctheory.figures import coarse_images as figure

    folder = RunFolder.load(config.run, experiment="coarse_labels")
    history: Any = folder.read_history()
    if history.attrs.get("kind") != "images":
        raise RunFolderError(f"{config.run} is not of an image network; paper_figs/coarse_digits.py draws the MLP's.")
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(figure.draw(history), out / "coarse_images")
    write(out / "coarse_images.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and coarse_images.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
