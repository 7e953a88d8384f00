"""All claims of one experiment: the file claims.json, the printed table, and what fails."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nctheory._errors import ArgumentError
from nctheory.claims.criteria import parse_criterion
from nctheory.claims.records import Claim, Role
from nctheory.claims.tables import markdown_table, shown_interval, text_table
from nctheory.runs import RunFolderError, from_jsonable, read_json, write_json


def _claim_from(record: Any, where: str) -> Claim:
    """Check one entry of claims.json and rebuild its record."""
    if not isinstance(record, dict):
        raise RunFolderError(f"{where} must be an object, but is {type(record).__name__}.")
    values: dict[str, Any] = {}
    for each in fields(Claim):
        if each.name not in record:
            raise RunFolderError(f"{where} has no field `{each.name}`.")
        value = record[each.name]
        if each.type is float:
            value = from_jsonable(value)
        kind = str if each.name == "criterion" or each.type is Role else each.type
        if not isinstance(value, kind) or isinstance(value, bool):  # pyright: ignore[reportArgumentType]
            raise RunFolderError(f"{where}: field `{each.name}` must be of type {kind.__name__}, but is {value!r}.")  # pyright: ignore
        values[each.name] = value
    try:
        values["criterion"] = parse_criterion(values["criterion"])
        claim = Claim(**values)
    except ValueError as error:
        raise RunFolderError(f"{where}: {error}") from None
    if record.get("verdict") != claim.verdict:
        raise RunFolderError(
            f"{where}: field `verdict` must be {claim.verdict!r} by its own criterion and interval, "
            f"but is {record.get('verdict')!r}."
        )
    return claim


@dataclass(frozen=True)
class Ledger:
    """Claims of one experiment with their controls; ids are unique, and a control uses its claim's criterion.

    Attributes:
        claims: records in the order in which they are shown; the controls of a claim are shown beneath it.
    """

    claims: Sequence[Claim] = field(default_factory=tuple)

    def __post_init__(self):
        object.__setattr__(self, "claims", tuple(self.claims))
        known: dict[str, Claim] = {}
        for claim in self.claims:
            if claim.id in known:
                raise ArgumentError(f"Argument `claims` must have unique ids, but has {claim.id!r} twice.")
            known[claim.id] = claim
        for control in self.claims:
            if control.role == "claim":
                continue
            guarded = known.get(control.claim_id)
            if guarded is None or guarded.role != "claim":
                raise ArgumentError(
                    f"Argument `claims` must hold the claim of every control, but has none for {control.id!r}."
                )
            if guarded.criterion != control.criterion:
                raise ArgumentError(
                    f"Argument `claims` must give a control its claim's criterion, but {control.id!r} has "
                    f"{control.criterion.text!r} instead of {guarded.criterion.text!r}."
                )

    @classmethod
    def read(cls, path: str | Path) -> "Ledger":
        """Read claims.json.

        Raises:
            RunFolderError: naming the file and the field, if it is missing, malformed, or contradicts itself.
        """
        records = read_json(path)
        if not isinstance(records, list):
            raise RunFolderError(f"{path} must hold a list of claims, but holds {type(records).__name__}.")
        claims = [_claim_from(record, f"{path}: entry {index}") for index, record in enumerate(records)]
        try:
            return cls(claims)
        except ValueError as error:
            raise RunFolderError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write claims.json through a temporary name; NaN becomes null."""
        write_json(path, [claim.to_dict() for claim in self.claims])

    def controls(self, claim_id: str) -> tuple[Claim, ...]:
        """The controls of one claim."""
        return tuple(control for control in self.claims if control.claim_id == claim_id)

    def rows(self) -> tuple[Claim, ...]:
        """All records, every claim followed by its controls."""
        claims = [claim for claim in self.claims if claim.role == "claim"]
        return tuple(row for claim in claims for row in (claim, *self.controls(claim.id)))

    def failures(self) -> list[str]:
        """What keeps the ledger from passing, one line each; an empty list if every claim counts and holds."""
        found = [] if self.claims else ["The ledger holds no claim."]
        for row in self.rows():
            if not row.holds:
                trouble = "not supported" if row.role == "claim" else "a control that must be refuted"
                found.append(
                    f"{row.id}: {trouble}, verdict {row.verdict} ({shown_interval(row)} against {row.criterion})."
                )
            if row.role == "claim" and not self.controls(row.id):
                found.append(f"{row.id}: no control, so the claim does not count.")
        return found

    def exit_code(self) -> int:
        """0 if nothing failed, else 1."""
        return 1 if self.failures() else 0

    def table(self, width: int = 120) -> str:
        """Aligned text: a row of numbers for each claim and control, its statement beneath, at most `width` columns."""
        return text_table(self.rows(), width)

    def markdown(self) -> str:
        """A GitHub table with a row for each claim and control."""
        return markdown_table(self.rows())
