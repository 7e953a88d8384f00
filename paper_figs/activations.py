"""Figure and table: collapse in every layer by activation and loss, from run folders of the layer experiment.

    python experiments/intermediate_layers.py --seed 3000
    python experiments/intermediate_layers.py --seed 3000 --activation tanh --conditions
    python experiments/intermediate_layers.py --seed 3000 --activation tanh --loss cross_entropy --learning-rate 0.02 \
      --conditions
    ...
    python paper_figs/activations.py

Writes activations.pdf, activations.png and activations.csv: one row a run, with the accuracies, NC1 of the input and of
the last layer with and without weight decay, effective rank of the last layer (medians over seeds, dimensionless), the
shares of seeds that meet A0, A1 and A2, and how many of the controls of these three are rejected.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory._errors import ArgumentError
from nctheory.runs import RunFolder

if TYPE_CHECKING:
    import xarray as xr

FINDINGS = ("A0", "A1", "A2")
COLUMNS = (
    "activation",
    "loss",
    "num_seeds",
    "train_accuracy",
    "test_accuracy",
    "nc1_input",
    "nc1_last",
    "nc1_last_no_decay",
    "effective_rank_last",
    *FINDINGS,
    "controls_rejected",
)
_ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "silu")
_ROOM = Path("results/intermediate_layers")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure from finished runs on digits."""

    runs: tuple[Path, ...] = tuple(
        _ROOM / "-".join(["digits", *([] if name == "relu" else [name]), *loss])
        for loss in ((), ("cross_entropy",))
        for name in _ACTIVATIONS
    )
    """Run folders of experiments/intermediate_layers.py with one activation and one loss each."""
    out: Path = Path("results/intermediate_layers/figures")
    """Folder of figure and table."""


def table(folders: "Mapping[tuple[str, str], RunFolder]", records: "Mapping[tuple[str, str], xr.Dataset]") -> str:
    """One row a run as CSV text."""
    return text_of(COLUMNS, _rows(folders, records))


def _rows(
    folders: "Mapping[tuple[str, str], RunFolder]", records: "Mapping[tuple[str, str], xr.Dataset]"
) -> Iterator[dict[str, Any]]:
    from nctheory.claims import Ledger
    from nctheory.figures.intermediate_layers import final

    for (activation, loss), record in records.items():
        one = record.sel(condition="digits")
        last = one["accuracy"].sel(epoch=int(one["num_epochs"])).median("seed")
        q = final(record, "digits", "nc1").median("seed").values
        rank = final(record, "digits", "effective_rank").median("seed").values
        ledger = Ledger.read(folders[activation, loss].path / "claims.json")
        shares = {claim.id: f"{claim.measured:.3g}" for claim in ledger.claims if claim.id in FINDINGS}
        controls = [each for name in FINDINGS for each in ledger.controls(name)]
        yield {
            "activation": activation,
            "loss": loss,
            "num_seeds": record.sizes["seed"],
            "train_accuracy": f"{float(last.sel(split='train')):.4f}",
            "test_accuracy": f"{float(last.sel(split='test')):.4f}",
            "nc1_input": f"{q[0]:.3g}",
            "nc1_last": f"{q[-1]:.3g}",
            "nc1_last_no_decay": f"{final(record, 'digits_no_decay', 'nc1').median('seed').values[-1]:.3g}",
            "effective_rank_last": f"{rank[-1]:.3g}",
            **shares,
            "controls_rejected": f"{sum(each.holds for each in controls)} of {len(controls)}",
        }


def _missing(record: "xr.Dataset") -> str:
    """What the figure needs and this record has not."""
    conditions = record["condition"].values.tolist() if "condition" in record.coords else []
    needed = {f"condition {name!r}": name in conditions for name in ("digits", "digits_no_decay")}
    needed["effective_rank"] = "effective_rank" in record
    return next((name for name, is_there in needed.items() if not is_there), "")


def run(config: Config) -> int:
    """Read the records, write figure and table."""
    from nctheory import plotting
    from nctheory.figures import activations as figure

    folders: dict[tuple[str, str], RunFolder] = {}
    for path in config.runs:
        folder = RunFolder.load(path, experiment="intermediate_layers")
        key = (folder.config["activation"], folder.config["loss"])
        if key in folders:
            raise ArgumentError(
                f"Argument `runs` must hold one run of {key}, but holds {folders[key].path} and {path}."
            )
        folders[key] = folder
    records: Any = {key: folder.read_history() for key, folder in folders.items()}
    for key, record in records.items():
        if missing := _missing(record):
            raise ArgumentError(
                f"Argument `runs` must hold runs of the MLP on digits with spectra, but {folders[key].path} has no "
                f"{missing}."
            )
    written = plotting.save_figure(figure.draw(records), config.out / "activations")
    text = table(folders, records)
    write(config.out / "activations.csv", text)
    print(text)
    print(f"Wrote {written[0]}, {written[1].name} and activations.csv.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
