"""The ledger as text for a terminal and as a GitHub table."""

import math
import textwrap
from collections.abc import Sequence

from nctheory.claims.records import Claim

_HEADINGS = ("claim", "predicted", "measured [low, high]", "criterion", "seeds", "verdict")
_GAP = "  "
_LEAST_NAME, _LEAST_CUT = 16, 7  # Columns: what is tried for by dropping digits; the least ever.


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def shown_interval(row: Claim, most: int = 6) -> str:
    """The measurement with enough digits (3 to `most`) to tell the ends of its interval apart."""
    width, size = row.high - row.low, max(abs(row.low), abs(row.high))
    digits = min(4, most)
    if 0 < width < math.inf and 0 < size < math.inf:
        digits = min(most, max(3, math.ceil(math.log10(size) - math.log10(width)) + 2))
    return f"{_number(row.measured, digits)} [{_number(row.low, digits)}, {_number(row.high, digits)}]"


def _verdict(row: Claim) -> str:
    """A control passes by being refuted, which the table calls "rejected", so that good news never reads as bad."""
    if row.role == "claim":
        return row.verdict
    return "rejected" if row.holds else "NOT REJECTED"


def _cells(row: Claim, most: int = 6) -> list[str]:
    """Predicted, measured, criterion, seeds, verdict."""
    seeds = str(row.num_seeds)
    if row.num_nonfinite:
        seeds = f"{seeds} ({row.num_nonfinite} nan)"
    return [_number(row.predicted), shown_interval(row, most), str(row.criterion), seeds, _verdict(row)]


def _statement(row: Claim) -> str:
    unit = "" if row.unit == "dimensionless" else f" Unit: {row.unit}."
    return f"{row.statement}{unit} ({row.source})" if row.role == "claim" else f"control: {row.statement}"


def text_table(rows: Sequence[Claim], width: int) -> str:
    """A line of numbers for each row with the statement beneath it; controls are indented.

    Names too long for the room that the numbers leave are cut; they stand in full in claims.json.
    """
    indents = ["" if row.role == "claim" else "  " for row in rows]
    # A control's id begins with its claim's, which stands a few lines above.
    names = [row.id.removeprefix(f"{row.claim_id}/") for row in rows]
    for most in (6, 5, 4, 3):
        grid = [_cells(row, most) for row in rows]
        sizes = [max(map(len, column)) for column in zip(_HEADINGS[1:], *grid, strict=True)]
        room = width - sum(sizes) - len(_GAP) * len(sizes)
        if room >= _LEAST_NAME:
            break
    longest = max([len(_HEADINGS[0]), *(len(indent + name) for indent, name in zip(indents, names, strict=True))])
    first = max(_LEAST_CUT, min(room, longest))

    def line(name: str, cells: Sequence[str]) -> str:
        name = name if len(name) <= first else name[: first - 1] + "…"
        padded = [cell.ljust(size) for cell, size in zip(cells, sizes, strict=True)]
        return _GAP.join([name.ljust(first), *padded]).rstrip()

    lines = [line(_HEADINGS[0], _HEADINGS[1:]), "-" * min(width, first + sum(sizes) + len(_GAP) * len(sizes))]
    for row, indent, name, cells in zip(rows, indents, names, grid, strict=True):
        lines.append(line(indent + name, cells))
        pad = indent + "    "
        lines += textwrap.wrap(_statement(row), width, initial_indent=pad, subsequent_indent=pad)
    return "\n".join(lines)


def markdown_table(rows: Sequence[Claim]) -> str:
    """A GitHub table with a row for each claim and, beneath it, each of its controls."""
    lines = [
        "| Claim | Statement | Predicted | Measured [low, high] | Criterion | Seeds | Verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"`{row.id}`" if row.role == "claim" else "control"
        unit = "" if row.unit == "dimensionless" else f" [{row.unit}]"
        cells = [name, f"{row.statement}{unit}", *_cells(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
