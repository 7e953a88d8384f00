"""The deep-linear-head experiment: its objective, its predictions and bounds, files of a smoke run, verdict logic."""

import dataclasses
import json

import deep_linear
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from _deep_linear import claims, data, prediction, training
from flax import nnx

from nctheory import simulator
from nctheory._errors import ArgumentError
from tests.experiments.conftest import assert_refused, run_here, run_script

SCRIPT = "experiments/deep_linear.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--out", out)


def _by_hand(sizes, depth, weight_decay, feature_decay):
    """Bound and squared lengths |w_k|^2, |h_k|^2 of classes far from collapse, each by a search over one number."""
    n, total = np.asarray(sizes, dtype=np.float64), float(sum(sizes))
    q = depth * total * (total * weight_decay**depth * feature_decay) ** (1 / depth)
    x = np.geomspace(1e-3, 1e4, 2_000_001)
    best = [float(x[np.argmin(each / (1 + x**depth) + q * x)]) for each in n]
    power = np.array(best) ** depth
    bound = np.sum(n / (1 + power) + q * np.array(best)) / (2 * total)
    return bound, total * feature_decay * power, power / (total * feature_decay * (1 + power) ** 2)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_prediction_equals_a_search_over_each_mode(depth):
    sizes = (10, 20, 20, 50)
    found = prediction.predict(sizes, depth, 1e-3, 2e-3)
    bound, weights, features = _by_hand(sizes, depth, 1e-3, 2e-3)
    # The grid's spacing is 8e-6 relative: the minimum is flat there, the lengths move by M times as much.
    assert found.bound == pytest.approx(bound, rel=1e-8)
    np.testing.assert_allclose(found.weight_squares[0], weights, rtol=1e-4)
    np.testing.assert_allclose(found.feature_squares[0], features, rtol=1e-4)
    np.testing.assert_allclose(found.logits, np.sqrt(weights * features), rtol=1e-4)
    # Lengths of every layer multiply to the same logits.
    np.testing.assert_allclose(
        np.sqrt(found.weight_squares * found.feature_squares), [found.logits] * depth, rtol=1e-10
    )
    assert (found.threshold_ratio < 1).all()
    assert found.halved < found.bound < found.doubled < found.per_class <= found.trivial == pytest.approx(0.5)


def test_bound_without_the_depth_is_the_formula_with_that_factor_missing():
    sizes, depth, decay = (10, 20, 20, 50), 3, 1e-3
    q = 100.0 * (100.0 * decay ** (depth + 1)) ** (1 / depth)
    x = np.geomspace(1e-3, 1e4, 2_000_001)
    wrong = sum(float(np.min(each / (1 + x**depth) + q * x)) for each in sizes) / 200
    found = prediction.predict(sizes, depth, decay, decay)
    assert found.without_depth == pytest.approx(wrong, rel=1e-8)
    assert found.without_depth < found.bound * 0.7
    lone = prediction.predict(sizes, 1, decay, decay)
    assert lone.without_depth == pytest.approx(lone.bound, rel=1e-12)


def test_profiles_have_equal_totals_and_take_the_first_images():
    sizes = data.step_sizes(2, 10)
    assert sizes == (2, 2, 4, 4, 6, 6, 8, 8, 10, 10)
    assert data.equal_sizes(60, 10) == (6,) * 10
    assert sum(data.equal_sizes(13, 4)) == 13
    assert data.equal_sizes(13, 4) == (4, 3, 3, 3)
    balanced, unequal = data.load("digits", [(6,) * 10, sizes])
    np.testing.assert_array_equal(np.bincount(unequal.train.labels), sizes)
    # Class 0: the first two of the six that the balanced profile takes.
    np.testing.assert_array_equal(unequal.train.inputs[:2], balanced.train.inputs[:2])
    assert unequal.fresh.inputs.shape == (360, 64)


def _condition(depth=2, sizes=(6,) * 10, decay=1e-2, steps=300):
    found = prediction.predict(sizes, depth, decay, 2 * decay)
    model = simulator.DeepLinearSpec(
        widths=(12,) * (depth - 1),
        backbone=(48, 12),
        activation="tanh",
        init="orthogonal",
        bias=False,
        linear_decay=decay,
        feature_decay=2 * decay,
    )
    (source,) = data.load("digits", [sizes])
    return training.HeadConfig(source, model, found.targets, 5e-3, num_steps=steps, num_records=4), found


def _train(function, *arguments):
    # Adam of Optax raises a float to the power of its integer counter.
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(function)(*arguments)


def test_objective_is_the_loss_plus_the_models_penalty():
    config, _ = _condition()
    samples, _ = config.data.draw(jax.random.key(0))
    model = config.model.build(64, 10, nnx.Rngs(3))
    targets = jax.nn.one_hot(samples.labels, 10, dtype=samples.inputs.dtype)
    total, loss = training.head_objective(config.model, model, samples.inputs, targets)
    outputs, features = np.float64(model(samples.inputs)), np.float64(model.linear_features(samples.inputs)[0])
    squares = sum(np.sum(np.float64(each[...]) ** 2) for each in (*model.linear, model.readout))
    by_hand = np.sum((outputs - np.float64(targets)) ** 2) / (2 * 60)
    # Single-precision sums of some thousand squares.
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    by_hand += 0.005 * squares + 0.01 * np.sum(features**2)
    assert float(total) == pytest.approx(by_hand, rel=1e-5)
    assert float(total - loss) == pytest.approx(float(model.penalty(samples.inputs)), rel=1e-4)


def test_training_descends_to_the_bound_and_not_below():
    """The wrong bound, with decays twice as large, is crossed: the test can fail."""
    config, found = _condition()
    history = _train(jax.vmap(training.train, in_axes=(None, 0)), config, jax.vmap(jax.random.key)(jnp.arange(2)))
    excess = np.float64(history.objective) / found.bound - 1
    assert np.asarray(history.finite).tolist() == [True, True]
    assert excess.min() > -1e-5
    assert (excess[:, -1] < 0.2).all()
    assert (history.objective[:, -1] < found.doubled).all()
    assert (history.data_loss < history.objective).all()
    assert history.geometry.nc1.shape == (2, config.record_steps.size, 2)
    # A seed's run does not depend on its neighbours, to rounding that training amplifies.
    alone = _train(training.train, dataclasses.replace(config, num_steps=1), jax.random.key(1))
    np.testing.assert_allclose(alone.objective[0], history.objective[1, 0], rtol=1e-5)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    assert "attained/3" in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png"}
    with xr.open_dataset(out / "history.nc") as history:
        assert history["nc1"].dims == ("depth", "condition", "seed", "step", "layer")
        assert history["weight_squares"].dims == ("depth", "condition", "seed", "step", "layer", "class")
        assert history["objective"].attrs["units"] == "dimensionless"
        assert np.isfinite(history["objective"]).all()
        assert (history["objective"] >= history["bound"]).all()
        # Depth 1 has one layer.
        present = np.isfinite(history["nc1"]).all(["condition", "seed", "step"]).values
        np.testing.assert_array_equal(present, [[True, False, False], [True, True, True]])
    ledger = {claim["id"]: claim for claim in json.loads((out / "claims.json").read_text())}
    assert ledger["bound"]["verdict"] == "supported"


@pytest.mark.slow
def test_plot_only_gives_the_same_ledger(smoke):
    out, _ = smoke
    before = (out / "claims.json").read_text()
    (out / "claims.json").unlink()
    assert run_here(SCRIPT, "--plot-only", "--out", out).returncode == 0
    assert (out / "claims.json").read_text() == before


@pytest.mark.slow
def test_resume_gives_the_same_ledger(smoke):
    out, _ = smoke
    before = (out / "claims.json").read_text()
    for name in ("history.nc", "manifest.json", "claims.json"):
        (out / name).unlink()
    result = run_script(SCRIPT, "--smoke", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == before


@pytest.mark.slow
def test_paper_figure_is_drawn_from_the_folder(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/deep_linear.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"deep_linear.{end}" for end in ("pdf", "png", "csv")}
    rows = (tmp_path / "deep_linear.csv").read_text().splitlines()
    assert rows[0] == "panel,depth,condition,layer,x,median,low,high,predicted"
    # Three records: excess in 2 x 2 runs, three metrics in 1 + 3 layers; two lengths of 10 classes at 2 depths.
    assert len(rows) == 1 + 12 + 36 + 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "mnits"), "Argument `dataset` must be one of ['cifar10', 'cifar100', 'digits', "),
        (("--weight-decay", "0"), "Argument `weight_decay` must be > 0 and finite, but is 0.0"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
    assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_width": 9}, "Argument `linear_width` must be at least 10, the number of classes"),
        ({"backbone": (64, 8)}, "as must the last width of `backbone`, but they are 32 and 8"),
        ({"smallest_class": 40}, r"Argument `smallest_class` must ask for at most \[1\d\d, .*asks for \[40, 40, 80"),
        ({"depths": (3, 3)}, "Argument `depths` must list different numbers"),
        ({"depths": (0,)}, "Argument `depths` must be an integer >= 1, but is 0"),
        ({"activation": "sine"}, "Argument `activation` must be one of"),
        ({"learning_rate": float("nan")}, "Argument `learning_rate` must be > 0 and finite, but is nan"),
        ({"backbone": ()}, "Argument `backbone` must list at least one width"),
    ],
)
def test_plans_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        deep_linear.make_plan(deep_linear.Config(**options))


def _made_up_record(**changes):
    """A record at the prediction, with the given entries of the last step replaced; depths 1 and 3, eight seeds."""
    sizes = [(30,) * 10, data.step_sizes(10, 10)]
    depths, seeds = (1, 3), 8
    found = {(d, c): prediction.predict(sizes[c], depths[d], 1e-3, 1e-3) for d in (0, 1) for c in (0, 1)}

    def of_theory(get):
        return np.array([[get(found[d, c]) for c in (0, 1)] for d in (0, 1)])

    def layered(values):
        return np.pad(values, ((0, 3 - len(values)), (0, 0)), constant_values=np.nan)

    run, shape = ("depth", "condition", "seed", "step"), (2, 2, seeds, 2)
    bound = of_theory(lambda each: each.bound)
    objective = bound[:, :, None, None] * np.array([40.0, changes.get("objective", 1.01)]) * np.ones(shape)
    variables = {
        "objective": (run, objective),
        "train_accuracy": (run, np.array([0.1, changes.get("accuracy", 1.0)]) * np.ones(shape)),
        "class_size": (("condition", "class"), np.array(sizes)),
    }
    for name in prediction.BOUNDS:
        variables[name] = (("depth", "condition"), of_theory(lambda each, name=name: getattr(each, name)))
    last = {"nc1": 1e-5, "nc2_weight_gof": 0.01, "nc2_feature_gof": 0.01, "nc3_align_gof": 0.01}
    equal = {"nc2_weight_of": 0.3, "nc2_feature_of": 0.3}
    layers = np.where(np.arange(1, 4) <= np.array(depths)[:, None], 1.0, np.nan)
    for name, value in (last | equal).items():
        ends = np.array([1.0, changes.get(name, value)])
        values = layers[:, None, None, None, :] * ends[:, None] * np.ones((*shape, 3))
        variables[name] = ((*run, "layer"), values)
    for kind in ("weight", "feature"):
        theirs = of_theory(lambda each, kind=kind: layered(getattr(each, f"{kind}_squares")))
        variables[f"predicted_{kind}_squares"] = (("depth", "condition", "layer", "class"), theirs)
        measured = theirs[:, :, None, None] * changes.get(kind, 1.0) * np.ones((*shape, 3, 10))
        variables[f"{kind}_squares"] = ((*run, "layer", "class"), measured)
    coordinates = {"depth": list(depths), "condition": ["balanced", "imbalanced"], "layer": [1, 2, 3]}
    return xr.Dataset(variables, coordinates)


def test_a_network_at_the_prediction_passes_and_each_fault_fails_its_claim():
    assert claims.judge(_made_up_record()).failures() == []
    wrong = {
        "bound": {"objective": 0.999},
        "attained/3": {"objective": 1.1},
        "fits": {"accuracy": 0.9},
        "nc1": {"nc1": 0.1},
        "nc2/weight": {"nc2_weight_gof": 0.1},
        "nc2/feature": {"nc2_feature_gof": 0.1},
        "nc3": {"nc3_align_gof": 0.1},
        "lengths/weight": {"weight": 1.2},
        "lengths/feature": {"feature": 0.8},
    }
    for claim, change in wrong.items():
        verdicts = {row.id: row.verdict for row in claims.judge(_made_up_record(**change)).claims}
        assert verdicts[claim] == "refuted"


def test_a_record_that_never_trained_fails_through_its_own_controls():
    """The measured side of the claim that training reaches the bound: networks that start there show nothing."""
    at_bound = _made_up_record()
    at_bound["objective"][..., 0] = at_bound["objective"][..., -1]
    rows = {row.id: row for row in claims.judge(at_bound).rows()}
    assert all(rows[f"attained/{depth}"].verdict == "supported" for depth in (1, 3))
    assert not any(rows[f"attained/{depth}/untrained"].holds for depth in (1, 3))
    # Controls of the formula hold whatever was measured, and say so.
    formula = [row for name, row in rows.items() if name.endswith(("/halved", "/without-depth"))]
    assert len(formula) == 3
    assert all(row.holds and "Checks the formula, not the data" in row.statement for row in formula)


def test_layers_that_became_undefined_are_never_dropped():
    record = _made_up_record()
    record["nc1"][1, 0, 3, -1, 1] = np.nan
    rows = {row.id: row for row in claims.judge(record).claims}
    assert rows["nc1"].verdict == "inconclusive"
    assert rows["nc1"].num_nonfinite == 1
