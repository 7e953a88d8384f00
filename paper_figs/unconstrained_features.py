"""Draw the figures of the unconstrained features from a run folder, with the claims behind them as a small csv.

python paper_figs/unconstrained_features.py --run results/unconstrained_features/default
"""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nctheory._cli import run_main
from nctheory.runs import RunFolder, atomic_write

if TYPE_CHECKING:
    from nctheory.claims import Claim


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figures of the unconstrained features from a finished run."""

    run: Path = Path("results/unconstrained_features/default")
    """Run folder of experiments/unconstrained_features.py."""
    out: Path = Path("paper_figs/output")
    """Folder that receives the figures (.pdf, .png) and unconstrained_features.csv."""


def table(claims: "Sequence[Claim]") -> str:
    """The claims and controls as csv."""
    text = io.StringIO()
    columns = ("id", "role", "predicted", "measured", "low", "high", "num_seeds", "num_nonfinite", "verdict")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(claim, column) for column in columns] for claim in claims)
    return text.getvalue()


def run(config: Config) -> int:
    """Draw and save; return 0."""
    from nctheory import plotting
    from nctheory.claims import Ledger
    from nctheory.figures import unconstrained_features

    folder = RunFolder.load(config.run, experiment="unconstrained_features")
    for name, figure in unconstrained_features.draw_all(folder.read_tree()).items():
        print("wrote", *plotting.save_figure(figure, config.out / name))
    rows = table(Ledger.read(folder.path / "claims.json").claims)
    path = config.out / "unconstrained_features.csv"
    atomic_write(path, lambda temporary: temporary.write_text(rows, encoding="utf-8"))
    print("wrote", path)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
