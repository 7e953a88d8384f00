"""Claims about softmax codes: what is trained, what is stored, and what the verdicts hang on."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray as xr
from _ufm import codes

from nctheory.simulator.free_features import UfmProblem
from tests.experiments.conftest import judged

SEEDS = [0, 1, 2]
CONTROLS = {
    "codes/one-vs-rest-margin": {"random-vectors", "simplex", "next-polygon", "high-temperature"},
    "codes/never-above-one": {"simplex-fits"},
    "codes/within-class-collapse": {"wrong-classes"},
    "codes/self-duality": {"wrong-weights"},
}


@pytest.fixture
def ideal():
    """What the starts would store if every minimum were its code; the second seed is caught elsewhere."""
    conditions = [(k, d, t) for k, d in codes.DEFAULT.codes for t in codes.TEMPERATURES]
    margin = {(8, 3): 0.7388, (6, 3): 1.0, (5, 2): 1 - np.cos(2 * np.pi / 5), (4, 3): 4 / 3}
    arrays = {name: np.zeros((len(conditions), len(SEEDS))) for name in codes.SEED_VARIABLES}
    predicted = {name: np.full(len(conditions), np.nan) for name in codes.PREDICTED}
    for i, (k, d, temperature) in enumerate(conditions):
        best = margin[k, d]
        loose = 0.98 if (k, temperature) == (8, 1.0) else 1.0
        arrays["margin"][i] = [loose * best, 0.5 * best if k > d + 1 else best, loose * best]
        arrays["log_loss"][i] = [-9, -8, -9]
        arrays["start_margin"][i] = 0.3
        arrays["finite"][i] = 1
        arrays["gnc1"][i] = arrays["gnc3"][i] = [0, 0.1, 0]
        arrays["gnc1_shifted"][i] = arrays["gnc3_shifted"][i] = 1
        predicted["margin"][i], predicted["is_proven"][i] = best, k != 8
        predicted["simplex_margin"][i] = k / (k - 1)
        if d == 2:
            predicted["polygon_margin"][i] = 1 - np.cos(2 * np.pi / (k + 1))
    coords = {f"condition_{name}": ("condition", [each[j] for each in conditions])
              for j, name in enumerate(("num_classes", "dim", "temperature"))}  # fmt: skip
    return xr.Dataset(
        {name: (("condition", "seed"), values) for name, values in arrays.items()}
        | {f"predicted_{name}": ("condition", values) for name, values in predicted.items()},
        coords={"seed": SEEDS, **coords},
    )


def test_what_theory_says_is_supported_and_every_control_is_refuted(ideal):
    claims = judged(codes, ideal)
    assert set(claims) == set(CONTROLS) | {f"{name}/{each}" for name, those in CONTROLS.items() for each in those}
    assert all(claim.holds for claim in claims.values()), [each for each in claims.values() if not each.holds]
    assert claims["codes/one-vs-rest-margin"].num_seeds == 3


@pytest.mark.parametrize(
    ("claim", "name", "value"),
    [
        ("codes/one-vs-rest-margin", "margin", 0.6),
        ("codes/never-above-one", "margin", 1.001),
        ("codes/within-class-collapse", "gnc1", 1e-3),
        ("codes/self-duality", "gnc3", 1e-3),
    ],
)
def test_a_broken_law_is_refuted(ideal, claim, name, value):
    ideal[name][:] = value
    assert judged(codes, ideal)[claim].verdict == "refuted"


def test_one_better_start_breaks_the_margin(ideal):
    # The law is about the least loss, whoever has it: here the start that was caught elsewhere.
    ideal["log_loss"][:, 1] = -10
    assert judged(codes, ideal)["codes/one-vs-rest-margin"].verdict == "refuted"


def test_a_failed_seed_is_counted_and_leaves_the_claims_open(ideal):
    ideal["finite"][:, 2] = 0
    ideal["margin"][:, 2] = np.nan
    ideal["log_loss"][:, 2] = -99
    for claim in judged(codes, ideal).values():
        assert claim.num_nonfinite == 1
        assert claim.verdict == "inconclusive"


def test_claims_without_their_control_are_left_out(ideal):
    plane = ideal.isel(condition=np.flatnonzero(ideal.condition_dim == 2))
    claims = judged(codes, plane)
    assert "codes/never-above-one" not in claims
    assert all(claim.holds for claim in claims.values())


@pytest.mark.slow
def test_the_measurement_at_its_smallest_size(measure, monkeypatch):
    monkeypatch.setattr(codes, "SMOKE", codes.Scale(codes=((4, 2),)))
    data = measure(codes, SEEDS, SimpleNamespace(num_seeds=2))
    assert data.sizes == {"condition": len(codes.TEMPERATURES), "seed": 3}
    for variable in data.data_vars.values():
        assert variable.attrs["units"] == "dimensionless"
        assert variable.attrs["definition"]
    assert (data.finite == 1).all()
    np.testing.assert_allclose(data.predicted_margin, 1, rtol=1e-12)
    there = codes.at_least_loss(data)
    # A square at every temperature, by symmetry.
    np.testing.assert_allclose(data.margin.values[there], 1, rtol=1e-6)
    assert (data.start_margin < 0.999).all()
    assert (data.margin_lower_bound <= data.margin).all()
    claims = judged(codes, data)
    assert len(claims) == 8
    assert all(claim.holds for claim in claims.values()), [each for each in claims.values() if not each.holds]


def test_the_logarithm_is_that_of_the_simulators_loss():
    with jax.enable_x64(True):
        problem = codes.problem_of(4, 3, 0.1)
        params = problem.init(jax.random.key(3))
        plain = UfmProblem(**{name: getattr(problem, name) for name in UfmProblem.__dataclass_fields__})
        np.testing.assert_allclose(np.exp(problem.objective(params)), plain.objective(params), rtol=1e-13)
        # Unit vectors over the temperature.
        logits = np.asarray(problem.logits(params))
        unit = [np.asarray(rows) / np.linalg.norm(rows, axis=1)[:, None] for rows in (params.features, *params.weights)]
        np.testing.assert_allclose(logits, unit[0] @ unit[1].T / 0.1, rtol=1e-12, atol=1e-12)
