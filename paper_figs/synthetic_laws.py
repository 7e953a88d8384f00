"""Draw the figure of the synthetic laws from a run folder, with the claims behind it as a small csv.

python paper_figs/synthetic_laws.py --run results/synthetic/default
"""

import dataclasses
import sys
from pathlib import Path

from _tables import claims_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure of the synthetic laws from a finished run."""

    run: Path = Path("results/synthetic/default")
    """Run folder of experiments/synthetic.py."""
    out: Path = Path("paper_figs/output")
    """Folder that receives synthetic_laws.pdf, .png and .csv."""


def run(config: Config) -> int:
    """Draw and save; return 0."""
    from nctheory import plotting
    from nctheory.figures import synthetic_laws

    folder = RunFolder.load(config.run, experiment="synthetic")
    written = plotting.save_figure(synthetic_laws.draw(folder.read_tree()), config.out / "synthetic_laws")
    print("wrote", *written, write(config.out / "synthetic_laws.csv", claims_of(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
