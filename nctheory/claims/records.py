"""A claim before the run (`ClaimSpec`) and after it (`Claim`)."""

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from nctheory._errors import ArgumentError
from nctheory.claims.criteria import Criterion, Verdict
from nctheory.claims.intervals import Interval

Role = Literal["claim", "control"]


@dataclass(frozen=True)
class Claim:
    """One judged statement; `verdict` follows from the interval and the criterion and cannot be set.

    Attributes:
        id: short unique name, such as "L1/memory".
        source: paper and equation, or "derived here".
        statement: what is claimed, in one sentence.
        predicted: predicted value in `unit`; NaN if the prediction is not one number.
        measured: point estimate over the finite seeds, in `unit`.
        low: lower end of the interval, in `unit`.
        high: upper end of the interval, in `unit`.
        criterion: region of accepted values.
        role: "claim", or "control" for a statement that the same criterion must refute.
        num_seeds: number of seeds that were run, the non-finite ones among them.
        num_nonfinite: how many of them gave NaN or infinity; they are excluded from the interval.
        max_nonfinite: more non-finite seeds than this leave the verdict inconclusive.
        unit: unit of all values.
        method: how the interval was formed.
        claim_id: for a control, the id of the claim that it guards; empty for a claim.
    """

    id: str
    source: str
    statement: str
    predicted: float
    measured: float
    low: float
    high: float
    criterion: Criterion
    _: KW_ONLY
    role: Role = "claim"
    num_seeds: int
    num_nonfinite: int = 0
    max_nonfinite: int = 0
    unit: str = "dimensionless"
    method: str = ""
    claim_id: str = ""

    def __post_init__(self):
        for name in ("predicted", "measured", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.role not in ("claim", "control"):
            raise ArgumentError(f"Argument `role` must be 'claim' or 'control', but is {self.role!r}.")
        if (self.role == "control") != bool(self.claim_id):
            raise ArgumentError(
                f"Argument `claim_id` must name a claim exactly for a control, but is {self.claim_id!r}."
            )

    @property
    def verdict(self) -> Verdict:
        """Whether the criterion accepts the interval."""
        if self.num_nonfinite > self.max_nonfinite or math.isnan(self.measured):
            return "inconclusive"
        return self.criterion.decide(self.low, self.high)

    @property
    def holds(self) -> bool:
        """Whether the verdict is the wanted one: a claim supported, a control refuted."""
        return self.verdict == ("supported" if self.role == "claim" else "refuted")

    def to_dict(self) -> dict[str, Any]:
        """The record of claims.json, fields in the order of this class with the verdict after the criterion."""
        record: dict[str, Any] = {}
        for each in fields(self):
            record[each.name] = getattr(self, each.name)
            if each.name == "criterion":
                record["criterion"] = self.criterion.text
                record["verdict"] = self.verdict
        return record


@dataclass(frozen=True)
class ClaimSpec:
    """A claim before the run: statement, prediction and criterion.

    Example:
        >>> from nctheory.claims import Covers, mean_interval
        >>> spec = ClaimSpec("L2/ratio", "derived here", "The distance ratio tends to 1/2.", 0.5, Covers(0.5, 0.02))
        >>> spec.judge(mean_interval([0.501, 0.499, 0.5, 0.502])).verdict
        'supported'
        >>> spec.control("no-collapse", "Same test on untrained features.", mean_interval([0.9, 0.91, 0.89])).verdict
        'refuted'

    Attributes:
        id: short unique name, such as "L1/memory".
        source: paper and equation, or "derived here".
        statement: what is claimed, in one sentence.
        predicted: predicted value in `unit`; NaN if the prediction is not one number.
        criterion: region of accepted values.
        unit: unit of all values.
        max_nonfinite: more non-finite seeds than this leave the verdict inconclusive.
    """

    id: str
    source: str
    statement: str
    predicted: float
    criterion: Criterion
    unit: str = "dimensionless"
    max_nonfinite: int = 0

    def __post_init__(self):
        if not self.id or self.id != self.id.strip():
            raise ArgumentError(f"Argument `id` must be a non-empty name, but is {self.id!r}.")
        if not isinstance(self.criterion, Criterion):
            raise ArgumentError(f"Argument `criterion` must be a Criterion, but is {self.criterion!r}.")
        object.__setattr__(self, "predicted", float(self.predicted))

    def judge(self, interval: Interval) -> Claim:
        """Judge the claim by an interval over seeds."""
        return self._record(interval, id=self.id, statement=self.statement, predicted=self.predicted)

    def control(
        self, id_suffix: str, statement: str, interval: Interval, *, predicted: float | int | None = None
    ) -> Claim:
        """Put a wrong predictor or condition before this claim's criterion, which must refute it.

        Args:
            id_suffix: name of the control; its id is "claim id/id_suffix".
            statement: what is wrong or missing in the control.
            interval: its measurement over seeds.
            predicted: the wrong predictor's value if it has one, in `unit`; else that of the claim.

        Returns:
            A record of role "control" with the very same criterion.
        """
        return self._record(
            interval,
            id=f"{self.id}/{id_suffix}",
            statement=statement,
            predicted=self.predicted if predicted is None else float(predicted),
            role="control",
            claim_id=self.id,
        )

    def _record(self, interval: Interval, **named: Any) -> Claim:
        return Claim(
            source=self.source,
            measured=interval.measured,
            low=interval.low,
            high=interval.high,
            criterion=self.criterion,
            num_seeds=interval.num_seeds,
            num_nonfinite=interval.num_nonfinite,
            max_nonfinite=self.max_nonfinite,
            unit=self.unit,
            method=interval.method,
            **named,
        )
