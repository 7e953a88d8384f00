"""Figure: collapse in every layer, from a run folder of experiments/intermediate_layers.py.

    python paper_figs/intermediate_layers.py --run results/intermediate_layers/digits

Writes intermediate_layers.pdf, intermediate_layers.png and, with the numbers behind every panel,
intermediate_layers.csv: columns panel (stages, epochs, conditions, chain), condition, metric, stage (untrained, a train
accuracy, end), epoch, layer, median, low, high (range over seeds), predicted; all dimensionless, empty where not used.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr

COLUMNS = ("panel", "condition", "metric", "stage", "epoch", "layer", "median", "low", "high", "predicted")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the layer figure from a finished run."""

    run: Path = Path("results/intermediate_layers/digits")
    """Run folder of experiments/intermediate_layers.py."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def _numbers(values: "xr.DataArray", layers: Any) -> "Iterator[dict[str, Any]]":
    from nctheory.figures.deep_linear import median_and_range

    shown = median_and_range(values)
    for index, layer in enumerate(layers):
        yield {"layer": int(layer), **{name: f"{shown[name][index]:.6g}" for name in ("median", "low", "high")}}


def _rows(history: "xr.Dataset") -> "Iterator[dict[str, Any]]":
    from nctheory.figures import intermediate_layers as figure

    first, layers = str(history["condition"].values[0]), history["layer"].values
    for metric in dict.fromkeys(each for each, _, _ in figure.BY_LAYER):
        for stage, values in figure.stages(history, first, metric):
            for each in _numbers(values, layers):
                yield {"panel": "stages", "condition": first, "metric": metric, "stage": stage, **each}
    for metric in dict.fromkeys(each for each, _, _ in figure.BY_EPOCH):
        values = figure.over_epochs(history, first, metric)
        for epoch in values["epoch"].values:
            for each in _numbers(values.sel(epoch=epoch), layers):
                yield {"panel": "epochs", "condition": first, "metric": metric, "epoch": int(epoch), **each}
    for condition in map(str, history["condition"].values):
        for metric in ("prediction_mismatch", "within_between_ratio"):
            for each in _numbers(figure.final(history, condition, metric), layers):
                yield {"panel": "conditions", "condition": condition, "metric": metric, "stage": "end", **each}
    if "chain_ratio" in history:
        for metric in ("ratio", "discrimination"):
            predicted = history[f"chain_predicted_{metric}"].values
            values = history[f"chain_{metric}"].isel(chain_record=-1)
            for each, value in zip(_numbers(values, history["chain_layer"].values), predicted, strict=True):
                yield {"panel": "chain", "metric": metric, **each, "predicted": f"{value:.6g}"}


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    return text_of(COLUMNS, _rows(history))


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    import xarray as xr

    from nctheory import plotting
    from nctheory.figures import intermediate_layers as figure

    folder = RunFolder.load(config.run, experiment="intermediate_layers")
    history = folder.read_history()
    assert isinstance(history, xr.Dataset)
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(figure.draw(history), out / "intermediate_layers")
    write(out / "intermediate_layers.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and intermediate_layers.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
