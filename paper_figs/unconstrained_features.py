"""Draw the figures of the unconstrained features from a run folder, with the claims behind them as a small csv.

python paper_figs/unconstrained_features.py --run results/unconstrained_features/default
"""

import dataclasses
import sys
from pathlib import Path

from _tables import claims_of, write

from nctheory._cli import run_main
from nctheory.runs import RunFolder


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figures of the unconstrained features from a finished run."""

    run: Path = Path("results/unconstrained_features/default")
    """Run folder of experiments/unconstrained_features.py."""
    out: Path = Path("paper_figs/output")
    """Folder that receives the figures (.pdf, .png) and unconstrained_features.csv."""


def run(config: Config) -> int:
    """Draw and save; return 0."""
    from nctheory import plotting
    from nctheory.figures import unconstrained_features

    folder = RunFolder.load(config.run, experiment="unconstrained_features")
    for name, figure in unconstrained_features.draw_all(folder.read_tree()).items():
        print("wrote", *plotting.save_figure(figure, config.out / name))
    print("wrote", write(config.out / "unconstrained_features.csv", claims_of(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(Config, run))
