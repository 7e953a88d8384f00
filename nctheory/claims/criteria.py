"""Regions of accepted values, fixed before the run, and the verdict on an interval."""

import abc
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from nctheory._errors import ArgumentError

Verdict = Literal["supported", "refuted", "inconclusive"]


def _bound(owner: str, name: str, value: Any) -> float:
    """Return a criterion's bound as a float; it has to be a finite number."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
        raise ArgumentError(f"Argument `{name}` of {owner} must be a finite number, but is {value!r}.")
    return float(value)


class Criterion(abc.ABC):
    """A region of accepted values, fixed before the run and written as one line of text."""

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """The criterion as text that `parse_criterion` reads back to the same numbers."""

    def decide(self, low: float, high: float) -> Verdict:
        """Compare the interval [low, high] with the region; NaN ends leave the question open."""
        if math.isnan(low) or math.isnan(high):
            return "inconclusive"
        return self._decide(low, high)

    @abc.abstractmethod
    def _decide(self, low: float, high: float) -> Verdict:
        """Compare an interval without NaN."""

    def __str__(self) -> str:
        """Six digits of every number, for people."""
        return re.sub(r"-?\d[\d.]*(e[-+]?\d+)?", lambda found: f"{float(found.group()):.6g}", self.text)


def _inside_or_disjoint(inside: bool, disjoint: bool) -> Verdict:
    return "supported" if inside else "refuted" if disjoint else "inconclusive"


@dataclass(frozen=True)
class AtMost(Criterion):
    """Accept values <= `bound`: supported if the whole interval lies there, refuted if none of it does."""

    bound: float

    def __post_init__(self):
        object.__setattr__(self, "bound", _bound("AtMost", "bound", self.bound))

    @property
    def text(self) -> str:
        """For example `<= 1e-09`."""
        return f"<= {self.bound!r}"

    def _decide(self, low: float, high: float) -> Verdict:
        return _inside_or_disjoint(high <= self.bound, low > self.bound)


@dataclass(frozen=True)
class AtLeast(Criterion):
    """Accept values >= `bound`: supported if the whole interval lies there, refuted if none of it does."""

    bound: float

    def __post_init__(self):
        object.__setattr__(self, "bound", _bound("AtLeast", "bound", self.bound))

    @property
    def text(self) -> str:
        """For example `>= 0.99`."""
        return f">= {self.bound!r}"

    def _decide(self, low: float, high: float) -> Verdict:
        return _inside_or_disjoint(low >= self.bound, high < self.bound)


@dataclass(frozen=True)
class Within(Criterion):
    """Accept values in [low, high]: supported if the whole interval lies there, refuted if none of it does."""

    low: float
    high: float

    def __post_init__(self):
        object.__setattr__(self, "low", _bound("Within", "low", self.low))
        object.__setattr__(self, "high", _bound("Within", "high", self.high))
        if self.low > self.high:
            raise ArgumentError(f"Argument `high` of Within must be >= low = {self.low:g}, but is {self.high:g}.")

    @property
    def text(self) -> str:
        """For example `in [0.4, 0.6]`."""
        return f"in [{self.low!r}, {self.high!r}]"

    def _decide(self, low: float, high: float) -> Verdict:
        return _inside_or_disjoint(
            self.low <= low and high <= self.high,
            high < self.low or low > self.high,
        )


@dataclass(frozen=True)
class Covers(Criterion):
    """Accept intervals that contain `value` and are no wider than `max_width`.

    Refuted if the interval excludes the value, inconclusive if it contains the value but is too wide to mean anything.
    """

    value: float
    max_width: float

    def __post_init__(self):
        object.__setattr__(self, "value", _bound("Covers", "value", self.value))
        object.__setattr__(self, "max_width", _bound("Covers", "max_width", self.max_width))
        if self.max_width <= 0:
            raise ArgumentError(f"Argument `max_width` of Covers must be > 0, but is {self.max_width:g}.")

    @property
    def text(self) -> str:
        """For example `covers 0.5, width <= 0.02`."""
        return f"covers {self.value!r}, width <= {self.max_width!r}"

    def _decide(self, low: float, high: float) -> Verdict:
        return _inside_or_disjoint(
            low <= self.value <= high and high - low <= self.max_width,
            not low <= self.value <= high,
        )


_NUMBER = r"(-?\d[\d.]*(?:e[-+]?\d+)?)"
_PATTERNS: tuple[tuple[str, type[Criterion]], ...] = (
    (rf"<= {_NUMBER}", AtMost),
    (rf">= {_NUMBER}", AtLeast),
    (rf"in \[{_NUMBER}, {_NUMBER}\]", Within),
    (rf"covers {_NUMBER}, width <= {_NUMBER}", Covers),
)


def parse_criterion(text: str) -> Criterion:
    """Read a criterion back from its `text`.

    Args:
        text: what `Criterion.text` returned.

    Returns:
        An equal criterion.

    Raises:
        ValueError: if the text is of none of the four forms.
    """
    for pattern, kind in _PATTERNS:
        found = re.fullmatch(pattern, text)
        if found:
            return kind(*map(float, found.groups()))
    raise ArgumentError(
        f"Argument `criterion` must read '<= a', '>= a', 'in [a, b]' or 'covers a, width <= b', but is {text!r}."
    )
