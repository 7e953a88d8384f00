"""Figures: collapse on train and on test, its cascade, and its cost in transfer, from experiments/train_vs_test.py.

    python paper_figs/train_vs_test.py --run results/train_vs_test/digits-mlp

Writes, for every part that was run, the figures as .pdf and .png (train_vs_test, cascade, transfer, sample_size) and
the numbers behind them: train_vs_test.csv (every layer and epoch; for part "samples" every size) and transfer.csv
(every probe and epoch). Columns are named in the first line; mean, low and high are geometric mean and range over seeds
in the first, mean and range in the second; all dimensionless but epochs and numbers of images.
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

COLUMNS = ("part", "condition", "metric", "split", "layer", "x", "mean", "low", "high")
PROBE_COLUMNS = ("condition", "probe", "epoch", "mean", "low", "high")
METRICS = ("nc1", "within_between_ratio", "strong", "weak", "near_share")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figures of train against test collapse from a finished run."""

    run: Path = Path("results/train_vs_test/digits-mlp")
    """Run folder of experiments/train_vs_test.py."""
    out: Path | None = None
    """Folder of the figures; by default the run folder's figures/."""


def _numbers(values: "xr.DataArray", *, log: bool) -> "Iterator[dict[str, str]]":
    from nctheory.figures import train_vs_test as figure

    shown = figure.mean_and_range(values, log=log)
    for row in zip(*(shown[name] for name in ("mean", "low", "high")), strict=True):
        yield {name: f"{value:.6g}" for name, value in zip(("mean", "low", "high"), row, strict=True)}


def _layer_rows(tree: "xr.DataTree") -> "Iterator[dict[str, Any]]":
    for part, axis in (("collapse", "epoch"), ("transfer", "epoch"), ("samples", "size")):
        if part not in tree:
            continue
        data = tree[part].to_dataset()
        if part == "samples":
            data = data.sel(end="final").expand_dims(condition=["decay"])
        for condition in data["condition"].values.tolist():
            for metric in METRICS:
                for split in data["split"].values.tolist():
                    for layer in data["layer"].values.tolist():
                        one = data[metric].sel(condition=condition, split=split, layer=layer).transpose(axis, "seed")
                        shared = {"part": part, "condition": condition, "metric": metric, "split": split}
                        for x, each in zip(data[axis].values.tolist(), _numbers(one, log=True), strict=True):
                            yield {**shared, "layer": layer, "x": x, **each}


def _probe_rows(data: "xr.Dataset") -> "Iterator[dict[str, Any]]":
    for condition in data["condition"].values.tolist():
        for probe in data["probe"].values.tolist():
            one = data["probe_accuracy"].sel(condition=condition, probe=probe).transpose("epoch", "seed")
            one = one.dropna("epoch", how="all")
            for epoch, each in zip(one["epoch"].values.tolist(), _numbers(one, log=False), strict=True):
                yield {"condition": condition, "probe": probe, "epoch": epoch, **each}


def run(config: Config) -> int:
    """Read the record, write figures and numbers."""
    from nctheory import plotting
    from nctheory.figures import train_vs_test as figure

    folder = RunFolder.load(config.run, experiment="train_vs_test")
    tree = folder.read_tree()
    out = folder.figures if config.out is None else config.out
    drawn = figure.draw_all(tree)
    for name, each in drawn.items():
        plotting.save_figure(each, out / name)
    write(out / "train_vs_test.csv", text_of(COLUMNS, _layer_rows(tree)))
    names = ["train_vs_test.csv"]
    if "transfer" in tree:
        write(out / "transfer.csv", text_of(PROBE_COLUMNS, _probe_rows(tree["transfer"].to_dataset())))
        names.append("transfer.csv")
    print(f"Wrote {', '.join(drawn)} (.pdf, .png) and {', '.join(names)} to {out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
