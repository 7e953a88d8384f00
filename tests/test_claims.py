"""The ledger: intervals against SciPy and by hand, verdicts at every border, files, tables, failures."""

import json
import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nctheory.claims import (
    AtLeast,
    AtMost,
    Claim,
    ClaimSpec,
    Covers,
    Criterion,
    Interval,
    Ledger,
    Within,
    fraction_interval,
    mean_interval,
    parse_criterion,
    range_interval,
    standard_error_interval,
)
from nctheory.runs import RunFolderError

NUMBERS = st.floats(-1e12, 1e12)
SPEC = ClaimSpec("L1/memory", "derived here", "The memory law is exact in every seed.", 0.0, AtMost(1e-9))
GOOD = Interval(1e-12, 1e-13, 1e-12, 32)
BAD = Interval(0.4, 0.3, 0.5, 32)


def ledger() -> Ledger:
    ratio = ClaimSpec("L2/ratio", "derived here", "The ratio tends to 1/2.", 0.5, Covers(0.5, 0.02), "degrees")
    return Ledger(
        [
            SPEC.judge(GOOD),
            ratio.judge(Interval(0.501, 0.495, 0.507, 32, 0, "mean")),
            SPEC.control("no-decay", "A predictor without decay.", BAD),
            ratio.control("untrained", "The untrained network.", Interval(0.9, 0.89, 0.91, 32), predicted=0.9),
        ]
    )


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_mean_interval_is_scipys(confidence):
    samples = np.random.default_rng(0).normal(3.0, 2.0, 12)
    got = mean_interval(samples, confidence=confidence)
    want = stats.ttest_1samp(samples, 0.0).confidence_interval(confidence)
    # Same formula in float64: rounding only.
    np.testing.assert_allclose([got.low, got.high], [want.low, want.high], rtol=1e-12)
    assert got.measured == pytest.approx(np.mean(samples), rel=1e-14)
    assert (got.num_seeds, got.num_nonfinite) == (12, 0)


def test_mean_interval_covers_at_its_rate():
    rng = np.random.default_rng(1)
    trials, confidence = 2000, 0.8
    hits = 0
    for _ in range(trials):
        got = mean_interval(rng.normal(size=4), confidence=confidence)
        hits += got.low <= 0 <= got.high
    # Five standard errors of a binomial: false alarm 6e-7. The normal quantile instead of Student's covers 0.71.
    margin = 5 * math.sqrt(confidence * (1 - confidence) / trials)
    assert abs(hits / trials - confidence) < margin
    assert confidence - (2 * stats.t.cdf(stats.norm.ppf(0.9), 3) - 1) > margin


def test_nonfinite_seeds_are_counted_and_left_out():
    clean = [1.0, 2.0, 4.0]
    dirty = [1.0, math.nan, 2.0, math.inf, 4.0, -math.inf]
    for build in (mean_interval, range_interval, partial(standard_error_interval, width=2)):
        want, got = build(clean), build(dirty)
        assert (got.measured, got.low, got.high) == (want.measured, want.low, want.high)
        assert (got.num_seeds, got.num_nonfinite) == (6, 3)
    got = fraction_interval([True, math.nan, False])
    assert (got.measured, got.num_seeds, got.num_nonfinite) == (0.5, 3, 1)


@pytest.mark.parametrize("samples", [[1.0], [1.0, math.nan], [math.nan, math.nan]])
@pytest.mark.parametrize(
    "build", [mean_interval, range_interval, fraction_interval, partial(standard_error_interval, width=2)]
)
def test_fewer_than_two_finite_seeds_decide_nothing(build, samples):
    got = build(samples)
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert math.isnan(got.measured) == (not np.isfinite(samples).any())
    for criterion in (AtMost(2.0), AtLeast(2.0), Within(0.0, 2.0), Covers(1.0, 5.0)):
        spec = ClaimSpec("x", "s", "t", 0.0, criterion, max_nonfinite=10)
        assert spec.judge(got).verdict == "inconclusive"


@pytest.mark.parametrize("width", [0.5, 3])
def test_standard_error_interval_is_scipys(width):
    samples = np.random.default_rng(4).normal(3, 2, 9)
    got = standard_error_interval(samples, width=width)
    center, half = samples.mean(), width * stats.sem(samples)
    assert (got.measured, got.low, got.high) == pytest.approx((center, center - half, center + half))
    assert (got.num_seeds, got.num_nonfinite) == (9, 0)
    assert got.method == f"mean over seeds, +- {width} standard errors"


@pytest.mark.parametrize(("which", "want"), [("max", 9.0), ("min", -1.0), ("median", 2.0), ("mean", 3.0)])
def test_range_interval(which, want):
    got = range_interval(np.array([2.0, 9.0, -1.0, 4.0, 1.0]), which=which)
    assert (got.measured, got.low, got.high) == (want, -1.0, 9.0)


def test_fraction_interval_inverts_binomial_tails():
    got = fraction_interval([True] * 7 + [False] * 13, confidence=0.9)
    assert got.measured == 0.35
    # Definition of the limits: each one-sided tail there is 5 %.
    assert stats.binom.sf(6, 20, got.low) == pytest.approx(0.05, rel=1e-8)
    assert stats.binom.cdf(7, 20, got.high) == pytest.approx(0.05, rel=1e-8)
    everyone = fraction_interval([True] * 32)
    assert everyone.high == 1.0
    assert everyone.low == pytest.approx(0.025 ** (1 / 32), rel=1e-8)


def test_builders_take_jax_arrays_of_any_precision():
    values = [0.5, 0.75, 1.0]
    want = mean_interval(values)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        assert mean_interval(jnp.array(values, dtype)) == want
    assert mean_interval(np.array([1, 2, 3])).measured == 2.0
    assert fraction_interval(jnp.array([True, False])).measured == 0.5
    assert mean_interval(x for x in values) == want


def test_equal_samples_have_an_interval_of_no_width():
    got = mean_interval([0.25] * 5)
    assert (got.low, got.measured, got.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"Argument `samples` must hold one number a seed, but has shape \(0,\)"),
        (lambda: mean_interval(np.ones((2, 3))), r"Argument `samples` must hold one number a seed, but .*\(2, 3\)"),
        (lambda: mean_interval([1j, 2j]), "Argument `samples` must hold real numbers, but has dtype complex128"),
        (lambda: range_interval(np.array(["a", "b"])), "Argument `samples` must hold real numbers, but has dtype <U1"),
        (lambda: mean_interval([1.0, 2.0], confidence=1.0), "Argument `confidence` must lie strictly between 0 and 1"),
        (lambda: fraction_interval([0, 1], confidence=0.0), "Argument `confidence` must lie strictly between 0 and 1"),
        (lambda: fraction_interval([0.0, 0.5]), "Argument `successes` must hold True, False or NaN"),
        (lambda: range_interval([1.0, 2.0], which="worst"), "Argument `which` must be one of .* but is 'worst'"),
        (lambda: standard_error_interval([1.0, 2.0], width=0), "Argument `width` must be > 0 and finite, but is 0"),
        (lambda: Interval(1, 2, 1, 3), "Argument `high` must be >= low = 2, but is 1"),
        (lambda: Interval(1, 1, 1, 3, 4), r"Argument `num_nonfinite` must lie in 0..num_seeds = 3, but is 4"),
        (lambda: AtMost(math.nan), "Argument `bound` of AtMost must be a finite number, but is nan"),
        (lambda: AtLeast(math.inf), "Argument `bound` of AtLeast must be a finite number, but is inf"),
        (lambda: Within(1, 0), "Argument `high` of Within must be >= low = 1, but is 0"),
        (lambda: Covers(0.5, 0), "Argument `max_width` of Covers must be > 0, but is 0"),
        (lambda: parse_criterion("about 1"), "Argument `criterion` must read .*, but is 'about 1'"),
        (lambda: ClaimSpec("", "s", "t", 0.0, AtMost(1)), "Argument `id` must be a non-empty name"),
        (lambda: ClaimSpec("a", "s", "t", 0.0, "<= 1"), "Argument `criterion` must be a Criterion"),  # pyright: ignore
        (lambda: Ledger([SPEC.judge(GOOD)] * 2), "Argument `claims` must have unique ids, but has 'L1/memory' twice"),
        (
            lambda: Ledger([SPEC.control("c", "t", BAD)]),
            "Argument `claims` must hold the claim of every control, but has none for 'L1/memory/c'",
        ),
        (
            lambda: Ledger([SPEC.judge(GOOD), ClaimSpec("L1/memory", "", "", 0, AtMost(2)).control("c", "t", BAD)]),
            "Argument `claims` must give a control its claim's criterion",
        ),
    ],
)
@pytest.mark.usefixtures("own_errors")
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("criterion", "low", "high", "verdict"),
    [
        (AtMost(1), 0.0, 1.0, "supported"),
        (AtMost(1), 0.9, 1.1, "inconclusive"),
        (AtMost(1), 1.0, 1.1, "inconclusive"),
        (AtMost(1), 1.1, 1.2, "refuted"),
        (AtLeast(1), 1.0, 2.0, "supported"),
        (AtLeast(1), 0.5, 1.0, "inconclusive"),
        (AtLeast(1), 0.5, 0.9, "refuted"),
        (Within(0, 1), 0.0, 1.0, "supported"),
        (Within(0, 1), -0.1, 0.5, "inconclusive"),
        (Within(0, 1), -1.0, 2.0, "inconclusive"),
        (Within(0, 1), 1.1, 1.2, "refuted"),
        (Within(0, 1), -0.2, -0.1, "refuted"),
        (Covers(0.5, 0.25), 0.5, 0.75, "supported"),
        (Covers(0.5, 0.25), 0.25, 0.75, "inconclusive"),
        (Covers(0.5, 0.25), 0.51, 0.6, "refuted"),
        (Covers(0.5, 0.25), 0.0, 0.4, "refuted"),
        (Covers(0.5, 0.25), math.nan, 0.6, "inconclusive"),
        (AtMost(1), math.nan, math.nan, "inconclusive"),
    ],
)
def test_verdicts(criterion, low, high, verdict):
    assert criterion.decide(low, high) == verdict


@settings(max_examples=50, deadline=None)
@given(a=NUMBERS, b=NUMBERS, width=st.floats(1e-300, 1e12))
def test_criterion_text_reads_back_exactly(a, b, width):
    for criterion in (AtMost(a), AtLeast(a), Within(min(a, b), max(a, b)), Covers(a, width)):
        assert parse_criterion(criterion.text) == criterion


@settings(max_examples=50, deadline=None)
@given(ends=st.lists(NUMBERS, min_size=2, max_size=2).map(sorted), bound=NUMBERS)
def test_a_bound_and_its_opposite_never_agree(ends, bound):
    """Wherever one side is supported and the interval does not touch the bound, the other is refuted."""
    upper, lower = AtMost(bound).decide(*ends), AtLeast(bound).decide(*ends)
    if bound not in ends:
        assert {upper, lower} in ({"supported", "refuted"}, {"inconclusive"})


def test_a_criterion_without_its_methods_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Criterion()  # pyright: ignore[reportAbstractUsage]


def test_short_criterion_for_people():
    assert str(Covers(2 / 3, 1e-9)) == "covers 0.666667, width <= 1e-09"
    assert str(Within(-0.1, 1e20)) == "in [-0.1, 1e+20]"


def test_nonfinite_seeds_block_a_verdict_beyond_the_allowance():
    interval = Interval(1e-12, 1e-13, 1e-12, 32, 2)
    assert SPEC.judge(interval).verdict == "inconclusive"
    allowed = ClaimSpec("x", "s", "t", 0.0, AtMost(1e-9), max_nonfinite=2)
    claim = allowed.judge(interval)
    assert claim.verdict == "supported"
    assert claim.num_nonfinite == 2
    assert "32 (2 nan)" in Ledger([claim]).table()
    # A control must not count as rejected because its runs diverged.
    assert not allowed.control("c", "t", Interval(math.nan, math.nan, math.nan, 32, 32)).holds


def test_control_shares_the_criterion():
    control = SPEC.control("no-decay", "Without decay.", BAD)
    assert control.criterion is SPEC.criterion
    assert (control.id, control.claim_id, control.role) == ("L1/memory/no-decay", "L1/memory", "control")
    assert control.verdict == "refuted"
    assert control.holds


def test_ledger_passes_only_if_all_hold_and_are_guarded():
    assert ledger().failures() == []
    assert ledger().exit_code() == 0
    control = SPEC.control("c", "t", BAD)
    cases = {
        "no claim": Ledger([]),
        "L1/memory: no control": Ledger([SPEC.judge(GOOD)]),
        "L1/memory: not supported, verdict refuted": Ledger([SPEC.judge(BAD), control]),
        "verdict inconclusive": Ledger([SPEC.judge(Interval(0.1, 0.0, 1.0, 32)), control]),
        "L1/memory/c: a control that must be refuted, verdict supported": Ledger(
            [SPEC.judge(GOOD), SPEC.control("c", "t", GOOD)]
        ),
    }
    for message, failing in cases.items():
        assert len(failing.failures()) == 1
        assert message in failing.failures()[0]
        assert failing.exit_code() == 1


def test_file_holds_the_agreed_fields_and_reads_back(tmp_path):
    path = tmp_path / "claims.json"
    unknown = Claim("q", "s", "t", math.nan, math.nan, math.nan, math.nan, AtMost(1.0), num_seeds=1)
    book = Ledger([*ledger().claims, unknown, Claim("r", "s", "t", math.inf, 1, 0, 2, AtMost(3), num_seeds=2)])
    book.write(path)
    stored = json.loads(path.read_text())
    assert stored[0] == {
        "id": "L1/memory",
        "source": "derived here",
        "statement": "The memory law is exact in every seed.",
        "predicted": 0.0,
        "measured": 1e-12,
        "low": 1e-13,
        "high": 1e-12,
        "criterion": "<= 1e-09",
        "verdict": "supported",
        "role": "claim",
        "num_seeds": 32,
        "num_nonfinite": 0,
        "max_nonfinite": 0,
        "unit": "dimensionless",
        "method": "",
        "claim_id": "",
    }
    assert stored[4]["measured"] is None
    again = Ledger.read(path)
    # NaN differs from itself, so compare what is shown of it.
    assert repr(again) == repr(book)
    assert again.claims[:4] == book.claims[:4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0].pop("low"), "entry 0 has no field `low`"),
        (lambda r: r[1].update(num_seeds="many"), "entry 1: field `num_seeds` must be of type int, but is 'many'"),
        (lambda r: r[1].update(measured="high"), "entry 1: field `measured` must be of type float, but is 'high'"),
        (lambda r: r[0].update(role="hope"), "entry 0: Argument `role` must be 'claim' or 'control', but is 'hope'"),
        (lambda r: r[0].update(criterion="nice"), "entry 0: Argument `criterion` must read"),
        (
            lambda r: r[2].update(verdict="supported"),
            "entry 2: field `verdict` must be 'refuted' .* but is 'supported'",
        ),
        (lambda r: r.pop(0), "must hold the claim of every control"),
        (lambda r: r.insert(0, 3), "entry 0 must be an object, but is int"),
    ],
)
@pytest.mark.usefixtures("own_errors")
def test_malformed_file_names_file_and_field(tmp_path, change, message):
    path = tmp_path / "claims.json"
    ledger().write(path)
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))
    with pytest.raises(RunFolderError, match=message) as caught:
        Ledger.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[{", "is corrupted and cannot be read as JSON"), ("{}", "must hold a list of claims, but holds dict")],
)
def test_file_of_other_content(tmp_path, text, message):
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        Ledger.read(tmp_path / "claims.json")
    with pytest.raises(RunFolderError, match=r"other\.json is missing"):
        Ledger.read(tmp_path / "other.json")


def test_table():
    lines = ledger().table(120).splitlines()
    assert lines == [
        "claim        predicted  measured [low, high]  criterion                  seeds  verdict",
        "-" * 89,
        "L1/memory    0          1e-12 [1e-13, 1e-12]  <= 1e-09                   32     supported",
        "    The memory law is exact in every seed. (derived here)",
        "  no-decay   0          0.4 [0.3, 0.5]        <= 1e-09                   32     rejected",
        "      control: A predictor without decay.",
        "L2/ratio     0.5        0.501 [0.495, 0.507]  covers 0.5, width <= 0.02  32     supported",
        "    The ratio tends to 1/2. Unit: degrees. (derived here)",
        "  untrained  0.9        0.9 [0.89, 0.91]      covers 0.5, width <= 0.02  32     rejected",
        "      control: The untrained network.",
    ]


def test_table_fits_whatever_is_in_it():
    spec = ClaimSpec("a-very-long-name/" * 5, "Papyan et al. 2020", "words " * 60, -2 / 3, Covers(-1 / 3, 1e-5))
    wide = Interval(-1.23456789e-101, -1.2345678912e-101, -1.23456788e-101, 1000, 17)
    book = Ledger([spec.judge(wide), spec.control("c" * 80, "words " * 60, wide)])
    lines = book.table(120).splitlines()
    assert max(map(len, lines)) <= 120
    assert "NOT REJECTED" in Ledger([SPEC.judge(GOOD), SPEC.control("c", "t", GOOD)]).table()


def test_shown_digits_tell_the_ends_apart():
    spec = ClaimSpec("x", "s", "t", 0.5, Covers(0.5, 0.1))
    table = Ledger([spec.judge(Interval(0.50012, 0.50011, 0.50014, 9))]).table()
    assert "0.50012 [0.50011, 0.50014]" in table


def test_markdown():
    lines = ledger().markdown().splitlines()
    assert lines[2] == (
        "| `L1/memory` | The memory law is exact in every seed. "
        "| 0 | 1e-12 [1e-13, 1e-12] | <= 1e-09 | 32 | supported |"
    )
    assert lines[3].startswith("| control | A predictor without decay. |")
    assert len(lines) == 6
    assert {line.count(" | ") for line in lines if "---" not in line} == {6}
    piped = ClaimSpec("x", "s", "|a| < b", 0.0, AtMost(1)).judge(GOOD)
    assert r"\|a\| < b" in Ledger([piped]).markdown()
