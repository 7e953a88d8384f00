"""One table for all benchmarks: a row a quantity, ours beside a peer or a limit, and the ratio that is asked for.

A ratio says how many times better ours is: rates are divided by the peer's, times and memory divide the peer's. So a
row is met when its ratio is at least the required one, whatever it measures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

COLUMNS = ("quantity", "ours", "on", "beside", "peer", "on", "ratio", "required", "met", "of roof")


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        quantity: what was measured.
        unit: of `ours`, `peer` and `roof`.
        ours: our figure; None if it was not measured.
        beside: whom or what it is compared with.
        peer: the figure of that; None if it was not measured.
        is_rate: whether more is better.
        required: the ratio that is asked for at least; None if none is.
        roof: what this machine reaches with nothing else to do; None if it is not known.
        note: why a figure is absent, or what else to know.
        ours_on: kind of device that gave our figure, "cpu", "gpu" or "tpu"; empty where none took part.
        peer_on: likewise of the peer's; empty for a limit or a formula.
    """

    quantity: str
    unit: str
    ours: float | None
    beside: str
    peer: float | None
    is_rate: bool = True
    required: float | None = None
    roof: float | None = None
    note: str = ""
    ours_on: str = ""
    peer_on: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer; None where one of them is absent."""
        return self._times_better(self.peer)

    @property
    def of_roof(self) -> float | None:
        """Share of the roof that ours reaches, dimensionless; None without a roof."""
        return self._times_better(self.roof)

    @property
    def met(self) -> bool | None:
        """Whether the ratio is at least the required one; None if nothing is asked for or nothing was measured."""
        if self.required is None or self.ratio is None:
            return None
        # A ratio that is no number is not met.
        return self.ratio >= self.required

    def _times_better(self, other: float | None) -> float | None:
        if self.ours is None or other is None:
            return None
        above, below = (self.ours, other) if self.is_rate else (other, self.ours)
        return above / below if below else math.nan

    def as_record(self) -> dict[str, Any]:
        """The fields and what follows from them, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met, "of_roof": self.of_roof}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Row":
        """A row that `as_record` gave; what follows from the fields is worked out again."""
        return cls(**{each.name: record[each.name] for each in fields(cls) if each.name in record})


def within(quantity: str, unit: str, ours: float | None, limit: float, **options: Any) -> Row:
    """A row for a figure that may be at most so large."""
    return Row(quantity, unit, ours, "limit", limit, is_rate=False, required=1.0, **options)


def number(value: float | None) -> str:
    """Three digits, thousands apart; "-" for None."""
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[row.met]
    if row.required is not None and row.ratio is None:
        met = "not measured"
    of_roof = "" if row.of_roof is None else f"{row.of_roof:.0%}"
    required = "" if row.required is None else number(row.required)
    beside = f"{row.beside} ({row.note})" if row.note else row.beside
    ours, peer = number(row.ours), number(row.peer)
    sides = (
        ours,
        row.ours_on if row.ours is not None else "",
        beside,
        peer,
        row.peer_on if row.peer is not None else "",
    )
    return f"{row.quantity}, {row.unit}", *sides, number(row.ratio), required, met, of_roof


def text_of(rows: Sequence[Row]) -> str:
    """The rows as text, one line each, columns aligned, and how many of those with a requirement are met."""
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    is_text = (True, False, True, True, False, True, False, False, True, False)
    text = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    ]
    if all(row.required is None for row in rows):
        return "\n".join(text)
    asked = [row for row in rows if row.required is not None]
    met = sum(row.met is True for row in asked)
    absent = sum(row.met is None for row in asked)
    summary = f"{met} of {len(asked)} requirements met, {len(asked) - met - absent} not, {absent} not measured"
    return "\n".join([*text, summary])
