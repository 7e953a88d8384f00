"""The numbers behind a figure as csv, beside it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nctheory.runs import RunFolder, atomic_write

CLAIM_COLUMNS = ("id", "role", "predicted", "measured", "low", "high", "num_seeds", "num_nonfinite", "verdict")


def text_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as csv text with a header; a row may leave columns out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def claims_of(folder: RunFolder) -> str:
    """The claims and controls of a run as csv text: what each point of its figures comes down to."""
    from nctheory.claims import Ledger

    claims = Ledger.read(folder.path / "claims.json").claims
    return text_of(CLAIM_COLUMNS, ({name: getattr(claim, name) for name in CLAIM_COLUMNS} for claim in claims))


def write(path: Path, text: str) -> Path:
    """Write the text whole or not at all; return the path."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
