"""Draw the figure of the synthetic laws from a run folder, with the claims behind it as a small csv.

python paper_figs/synthetic_laws.py --run results/synthetic/default
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
    """Draw the figure of the synthetic laws from a finished run."""

    run: Path = Path("results/synthetic/default")
    """Run folder of experiments/synthetic.py."""
    out: Path = Path("paper_figs/output")
    """Folder that receives synthetic_laws.pdf, .png and .csv."""


def table(claims: "Sequence[Claim]") -> str:
    """The claims and controls as csv: what each point of the figure comes down to."""
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
    from nctheory.figures import synthetic_laws

    folder = RunFolder.load(config.run, experiment="synthetic")
    written = plotting.save_figure(synthetic_laws.draw(folder.read_tree()), config.out / "synthetic_laws")
    rows = table(Ledger.read(folder.path / "claims.json").claims)
    atomic_write(config.out / "synthetic_laws.csv", lambda temporary: temporary.write_text(rows, encoding="utf-8"))
    print("wrote", *written, config.out / "synthetic_laws.csv")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
