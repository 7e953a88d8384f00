"""Ledger of claims: prediction, measurement over seeds, criterion, verdict, and a control for each.

A claim is judged by comparing an interval over seeds with a region of accepted values that was written down before the
run. A control puts a wrong predictor, or an untrained or shuffled condition, before the same criterion, which has to
refute it. A criterion that accepts its control shows nothing, and neither does a claim without a control: both fail the
ledger.
"""

from nctheory.claims.criteria import AtLeast as AtLeast
from nctheory.claims.criteria import AtMost as AtMost
from nctheory.claims.criteria import Covers as Covers
from nctheory.claims.criteria import Criterion as Criterion
from nctheory.claims.criteria import Within as Within
from nctheory.claims.criteria import parse_criterion as parse_criterion
from nctheory.claims.intervals import Interval as Interval
from nctheory.claims.intervals import fraction_interval as fraction_interval
from nctheory.claims.intervals import mean_interval as mean_interval
from nctheory.claims.intervals import range_interval as range_interval
from nctheory.claims.intervals import standard_error_interval as standard_error_interval
from nctheory.claims.ledger import Ledger as Ledger
from nctheory.claims.records import Claim as Claim
from nctheory.claims.records import ClaimSpec as ClaimSpec

__all__ = [
    "AtLeast",
    "AtMost",
    "Claim",
    "ClaimSpec",
    "Covers",
    "Criterion",
    "Interval",
    "Ledger",
    "Within",
    "fraction_interval",
    "mean_interval",
    "parse_criterion",
    "range_interval",
    "standard_error_interval",
]
