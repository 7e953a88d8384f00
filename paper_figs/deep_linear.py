"""Figure: deep linear heads against the minimum over free features, from a run folder of experiments/deep_linear.py.

    python paper_figs/deep_linear.py --run results/deep_linear/digits

Writes deep_linear.pdf, deep_linear.png and, with the numbers behind every panel, deep_linear.csv: columns panel, depth,
condition, layer, x (step, or images of the class), median, low, high (range over seeds), predicted; all dimensionless
but x, empty where not used.
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

COLUMNS: tuple[str, ...] = ("panel", "depth", "condition", "layer", "x", "median", "low", "high", "predicted")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the deep-linear figure from a finished run."""

    run: Path = Path("results/deep_linear/digits")
    """Run folder of experiments/deep_linear.py."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def _rows(history: "xr.Dataset") -> "Iterator[dict[str, Any]]":
    from nctheory.figures import deep_linear as figure

    def numbers(values, x):
        shown = figure.median_and_range(values)
        for index, at in enumerate(x):
            yield {"x": int(at), **{name: f"{shown[name][index]:.6g}" for name in ("median", "low", "high")}}

    steps = history["step"].values
    for depth in history["depth"].values.tolist():
        for condition in history["condition"].values.tolist():
            one = history.sel(depth=depth, condition=condition)
            shared = {"depth": depth, "condition": condition}
            for each in numbers(one["objective"] / one["bound"] - 1, steps):
                yield {"panel": "excess", **shared, **each, "predicted": 0}
        one = history.sel(depth=depth, condition="imbalanced")
        shared = {"depth": depth, "condition": "imbalanced"}
        for metric in figure.METRICS:
            for layer in range(1, depth + 1):
                for each in numbers(one[metric].sel(layer=layer), steps):
                    yield {"panel": metric, **shared, "layer": layer, **each, "predicted": 0}
        for kind in ("weight", "feature"):
            lengths = one[f"{kind}_squares"].isel(step=-1, layer=0) ** 0.5
            predicted = one[f"predicted_{kind}_squares"].isel(layer=0).values ** 0.5
            for index, each in enumerate(numbers(lengths, one["class_size"].values)):
                yield {
                    "panel": f"{kind}_length",
                    **shared,
                    "layer": 1,
                    **each,
                    "predicted": f"{predicted[index]:.6g}",
                }


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    return text_of(COLUMNS, _rows(history))


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    import xarray as xr

    from nctheory import plotting
    from nctheory.figures import deep_linear as figure

    folder = RunFolder.load(config.run, experiment="deep_linear")
    history = folder.read_history()
    assert isinstance(history, xr.Dataset)
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(figure.draw(history), out / "deep_linear")
    write(out / "deep_linear.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and deep_linear.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
