"""Claims about ReLU between the layers: what is solved, what is stored, and what the verdicts hang on."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray as xr
from _ufm import relu
from _ufm import relu_problems as problems
from matplotlib.figure import Figure

from nctheory import plotting
from nctheory.figures import deep_relu
from tests.experiments.conftest import judged

SEEDS = [0, 1, 2]
CONTROLS = {
    "ReLU/two-classes-collapse": {"no-samples", "four-classes"},
    "ReLU/two-classes-threshold": {"no-samples"},
    "ReLU/explicit-points": {"no-relu"},
    "ReLU/graph-below-collapse": {"from-collapse", "six-classes-three-layers"},
}


@pytest.fixture
def ideal():
    """What the starts would store if theory were right: each ends where it began, random ones at collapse."""
    with jax.enable_x64(True):
        listed = problems.conditions(problems.Scale(graphs=((6, 3), (6, 4))))
        predicted = [problems.predict(each) for each in listed]
    arrays = {
        f"predicted_{name}": ("condition", np.asarray([each[name] for each in predicted])) for name in relu.PREDICTED
    }
    start = np.asarray([each.start for each in listed])
    collapse = arrays["predicted_collapse_loss"][1]
    loss = np.where(start == "graph", arrays["predicted_graph_loss"][1], collapse)
    values = {"loss": loss, "explicit_loss": loss, "explicit_linear_loss": 3 * loss, "finite": np.ones(len(listed))}
    values["loss"] = np.where([each.num_classes == 4 for each in listed], 0.98 * collapse, loss)
    for name, value in values.items():
        arrays[name] = (("condition", "seed"), np.repeat(value[:, None], len(SEEDS), axis=1))
    coords = {
        f"condition_{name}": ("condition", np.asarray([getattr(each, name) for each in listed]))
        for name in ("num_classes", "depth", "start")
    }
    return xr.Dataset(arrays, coords={"seed": SEEDS, **coords})


def where(data, **wanted):
    keep = np.ones(data.sizes["condition"], dtype=bool)
    for name, value in wanted.items():
        keep &= data[f"condition_{name}"].values == value
    assert keep.any()
    return np.flatnonzero(keep)


def test_what_theory_says_is_supported_and_every_control_is_refuted(ideal):
    claims = judged(relu, ideal)
    assert set(claims) == set(CONTROLS) | {f"{name}/{each}" for name, those in CONTROLS.items() for each in those}
    assert all(claim.holds for claim in claims.values()), [str(each) for each in claims.values() if not each.holds]
    assert all(claim.num_nonfinite == 0 for claim in claims.values())


@pytest.mark.parametrize(
    ("claim", "changed", "factor"),
    [
        # One lower start is enough against a minimum.
        ("ReLU/two-classes-collapse", {"num_classes": 2, "start": "random"}, 1 - 1e-6),
        ("ReLU/two-classes-threshold", {"num_classes": 2}, 1.2),
        ("ReLU/explicit-points", {}, 1 + 1e-9),
        ("ReLU/graph-below-collapse", {"num_classes": 6, "depth": 4}, 1.1),
    ],
)
def test_a_broken_law_is_refuted(ideal, claim, changed, factor):
    at = where(ideal, **changed)
    name = {"ReLU/explicit-points": "explicit_loss", "ReLU/two-classes-threshold": "predicted_level"}.get(claim, "loss")
    ideal[name][at] *= factor
    assert judged(relu, ideal)[claim].verdict == "refuted"


def test_starts_above_collapse_do_not_count_as_lower_losses(ideal):
    ideal["loss"][where(ideal, num_classes=4)] *= 1.1
    assert judged(relu, ideal)["ReLU/two-classes-collapse/four-classes"].verdict == "supported"


def test_a_failed_seed_is_counted_and_leaves_the_claims_open(ideal):
    ideal["finite"][:, 1] = 0
    ideal["loss"][:, 1] = np.nan
    for claim in judged(relu, ideal).values():
        assert claim.num_nonfinite == 1
        assert claim.verdict == "inconclusive"


@pytest.mark.slow
def test_the_measurement_at_its_smallest_size(measure, monkeypatch):
    monkeypatch.setattr(problems, "SMOKE", problems.Scale(two_classes=(3,), graphs=(), others=()))
    data = measure(relu, SEEDS, SimpleNamespace(num_seeds=2))
    assert data.sizes == {"condition": 7, "seed": 3}
    for variable in data.data_vars.values():
        assert variable.attrs["units"] == "dimensionless"
        assert variable.attrs["definition"]
    assert (data.finite == 1).all()
    assert data.loss.dtype == np.float64
    # The noise is the seed's: no two starts end with the same loss to the last digit.
    assert len(np.unique(data.loss.isel(condition=0))) == 3
    # Around the threshold by the formula without the three samples of a class, too.
    wrong = 3 ** (1 / 4)
    np.testing.assert_allclose(
        data.predicted_level, [0.2, 0.5, 0.97, 1.03, 0.97 * wrong, 1.03 * wrong, 0.97], rtol=1e-9
    )
    # Proven for two classes: nothing lies below.
    assert (data.loss >= data.predicted_collapse_loss - 1e-12).all()
    point = data.isel(condition=where(data, start="collapse"))
    np.testing.assert_allclose(point.explicit_loss / point.predicted_collapse_loss, 1, rtol=1e-12)
    np.testing.assert_allclose(point.loss / point.predicted_collapse_loss, 1, rtol=1e-3)


def test_explicit_points_are_those_of_the_problem():
    with jax.enable_x64(True):
        condition = problems.Condition(6, 4, 1, 1e-3, "graph")
        config = relu.config_of(condition)
        np.testing.assert_allclose(config.problem.objective(config.point), condition.theory.graph_loss, rtol=1e-12)
        collapsed = relu.config_of(problems.Condition(6, 4, 1, 1e-3, "collapse"))
        np.testing.assert_allclose(
            collapsed.problem.objective(collapsed.point), condition.theory.collapse_loss, rtol=1e-12
        )
        assert condition.theory.graph_loss < condition.theory.collapse_loss


@pytest.mark.slow
def test_the_panel_draws_a_line_and_points_for_every_number_of_classes(ideal):
    curves = xr.Dataset(problems.curves(SimpleNamespace(num_seeds=2)))
    assert curves.sizes == {"relu_classes": 3, "relu_depth": 2}
    assert all(variable.attrs["definition"] for variable in curves.variables.values())
    assert (curves.relu_collapse_loss < curves.relu_trivial_loss).all()
    with plotting.use_style():
        axis = Figure().subplots()
        deep_relu.panel(axis, ideal, curves)
    lines = axis.get_lines()
    # Line and points for each number of classes, and the level of collapse.
    assert len(lines) == 7
    ratio = curves.relu_graph_loss / curves.relu_collapse_loss
    np.testing.assert_array_equal(lines[0].get_ydata(), ratio.sel(relu_classes=6))
    # Trained at four layers, then at three; the ideal starts stay where theory put them.
    np.testing.assert_allclose(lines[1].get_ydata(), ratio.sel(relu_classes=6)[::-1], rtol=1e-12)
