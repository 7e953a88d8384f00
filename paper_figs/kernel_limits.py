"""Figure: finite networks against the kernels of infinite width, from a run folder of experiments/kernel_limits.py.

    python paper_figs/kernel_limits.py --run results/kernel_limits/default

Writes kernel_limits.pdf, kernel_limits.png and, with the numbers behind every panel, kernel_limits.csv: columns panel,
condition, layer, predictor, width, mean and error (standard error over seeds), limit (the kernel's value), raw (that of
the data); all dimensionless, empty where not used. Panel "ntk_nc1", where the record holds it: with a width, NC1 of the
tangent kernel of the output at the points of the empirical one; without, the limit of each layer at all samples.
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

COLUMNS: tuple[str, ...] = ("panel", "condition", "layer", "predictor", "width", "mean", "error", "limit", "raw")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure of kernel limits from a finished run."""

    run: Path = Path("results/kernel_limits/default")
    """Run folder of experiments/kernel_limits.py."""
    out: Path | None = None
    """Folder of the figure; by default the run folder's figures/."""


def _numbers(values: "xr.DataArray") -> "Iterator[dict[str, Any]]":
    from nctheory.figures.kernel_limits import mean_and_error

    mean, error = mean_and_error(values)
    for width, centre, spread in zip(values["width"].values.tolist(), mean, error, strict=True):
        yield {"width": width, "mean": f"{centre:.6g}", "error": f"{spread:.6g}"}


def _rows(history: "xr.Dataset") -> "Iterator[dict[str, Any]]":
    layered = {"feature_kernel": "initial_kernel_deviation"}
    deviations = {"ntk": ("ntk_deviation", "ntk_predictor"), "outputs": ("output_deviation", "output_predictor")}
    for condition in history["condition"].values.tolist():
        one = history.sel(condition=condition)
        for layer in one["layer"].values.tolist():
            shared = {"condition": condition, "layer": layer}
            at = one.sel(layer=layer)
            for panel, name in layered.items():
                for predictor in at["feature_predictor"].values.tolist():
                    for each in _numbers(at[name].sel(feature_predictor=predictor)):
                        yield {"panel": panel, **shared, "predictor": predictor, **each}
            known = {"limit": f"{float(at['limit_nc1'][0]):.6g}", "raw": f"{float(at['raw_nc1']):.6g}"}
            for each in _numbers(at["initial_nc1"]):
                yield {"panel": "nc1", **shared, **each, **known}
            for each in _numbers(at["feature_change"] ** 0.5):
                yield {"panel": "feature_change", **shared, **each}
        for each in _numbers(one["ntk_change"] ** 0.5):
            yield {"panel": "ntk_change", "condition": condition, **each}
        yield from _tangent_nc1(one, condition)
        for panel, (name, dim) in deviations.items():
            values = one[name].isel(step=-1) if "step" in one[name].dims else one[name]
            for predictor in one[dim].values.tolist():
                for each in _numbers(values.sel({dim: predictor})):
                    yield {"panel": panel, "condition": condition, "predictor": predictor, **each}


def _tangent_nc1(one: "xr.Dataset", condition: str) -> "Iterator[dict[str, Any]]":
    """NC1 of tangent kernels; nothing where an older record lacks it."""
    if "initial_ntk_nc1" not in one:
        return
    shared = {"panel": "ntk_nc1", "condition": condition}
    for predictor in one["ntk_predictor"].values.tolist():
        limit = float(one["points_ntk_nc1"].sel(ntk_predictor=predictor))
        known = {"predictor": predictor, "limit": f"{limit:.6g}", "raw": f"{float(one['points_raw_nc1']):.6g}"}
        for each in _numbers(one["initial_ntk_nc1"]):
            yield {**shared, **each, **known}
    for layer in one["layer"].values.tolist():
        for predictor in one["feature_predictor"].values.tolist():
            limit = float(one["limit_ntk_nc1"].sel(layer=layer, feature_predictor=predictor))
            known = {"limit": f"{limit:.6g}", "raw": f"{float(one['raw_nc1']):.6g}"}
            yield {**shared, "layer": layer, "predictor": predictor, **known}


def table(history: "xr.Dataset") -> str:
    """The numbers behind the figure as CSV text."""
    return text_of(COLUMNS, _rows(history))


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    import xarray as xr

    from nctheory import plotting
    from nctheory.figures import kernel_limits as figure

    folder = RunFolder.load(config.run, experiment="kernel_limits")
    history = folder.read_history()
    assert isinstance(history, xr.Dataset)
    out = folder.figures if config.out is None else config.out
    written = plotting.save_figure(figure.draw(history), out / "kernel_limits")
    write(out / "kernel_limits.csv", table(history))
    print(f"Wrote {written[0]}, {written[1].name} and kernel_limits.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
