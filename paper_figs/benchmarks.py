"""Figure of the benchmarks, from the file that `python -m benchmarks` stores.

    python paper_figs/benchmarks.py --record benchmarks/results/all.json

Writes benchmarks.pdf, benchmarks.png and, with the table, benchmarks.csv: columns quantity, unit, ours, ours_on (kind
of device), beside, peer, peer_on, ratio (how many times better ours is, dimensionless), required, met, roof, of_roof,
note; empty where not measured.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from _tables import text_of, write

from nctheory._cli import run_main
from nctheory._errors import ArgumentError

COLUMNS = (
    "quantity",
    "unit",
    "ours",
    "ours_on",
    "beside",
    "peer",
    "peer_on",
    "ratio",
    "required",
    "met",
    "roof",
    "of_roof",
)
COLUMNS += ("note",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figure of the benchmarks from a stored record."""

    record: Path = Path("benchmarks/results/all.json")
    """File that `python -m benchmarks` stored."""
    out: Path = Path("paper_figs/output")
    """Folder that receives benchmarks.pdf, .png and .csv."""


def read(path: Path) -> dict[str, Any]:
    """The stored record.

    Raises:
        ValueError: if the file cannot be read or is no such record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = all(all(name in row for name in COLUMNS) for row in record["rows"]) and "curves" in record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"Argument `record` must be a file that `python -m benchmarks` stored, but {path} gave {error!r}."
        ) from error
    if not known:
        raise ArgumentError(f"Argument `record` must be a file that `python -m benchmarks` stored, but is {path}.")
    return record


def table(record: dict[str, Any]) -> str:
    """The rows as CSV text."""
    return text_of(COLUMNS, ({name: row[name] for name in COLUMNS} for row in record["rows"]))


def run(config: Config) -> int:
    """Read the record, write figure and numbers."""
    from nctheory import plotting
    from nctheory.figures import benchmarks as figure

    record = read(config.record)
    written = plotting.save_figure(figure.draw(record), config.out / "benchmarks")
    print("wrote", *written, write(config.out / "benchmarks.csv", table(record)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(Config, run))
