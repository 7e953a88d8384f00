"""The experiment on kernel limits: exponents over seeds, wrong kernels, measurement, files of a smoke run, verdicts."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import kernel_limits
import numpy as np
import pytest
import xarray as xr
from _kernels import limits, measuring, record
from flax import nnx

from nctheory._errors import ArgumentError
from nctheory.simulator.ntk_mlp import LazyConfig, NtkMLPSpec, descend_lazily
from nctheory.theory.network_kernels import kernel_layers
from tests.experiments.conftest import assert_refused, run_here, run_script

SCRIPT = "experiments/kernel_limits.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--quiet", "--out", out)


@pytest.mark.parametrize("name", ["mixture", "digits"])
def test_problems_are_scaled_and_every_prefix_is_balanced(name):
    problem = limits.PROBLEMS[name]()
    assert np.mean(problem.inputs**2) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(
        problem.labels, problem.fine_labels // 2 if name == "mixture" else problem.fine_labels % 5
    )
    assert set(np.bincount(problem.fine_labels[: record.NUM_TRAIN])) == {record.NUM_TRAIN // problem.num_fine}
    np.testing.assert_allclose(problem.targets.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_the_wrong_derivative_kernel_is_wrong_and_depends_on_who_else_is_there(activation):
    x = np.random.default_rng(4).normal(size=(6, 5))
    options = {"depth": 2, "activation": activation, "weight_std": 1.4}
    right = kernel_layers(x, **options)
    few = kernel_layers(x[:3], **options)
    wrong = limits.wrong_derivative_ntk(right, activation, 1.4)
    assert np.abs(wrong - np.asarray(right.ntk[-1])).max() > 0.1
    np.testing.assert_allclose(few.ntk[-1], right.ntk[-1][:3, :3], rtol=1e-4)
    assert np.abs(limits.wrong_derivative_ntk(few, activation, 1.4) - wrong[:3, :3]).max() > 1e-2
    # With one layer of derivatives left out of the error, the recursion is the right one: same first layer.
    np.testing.assert_allclose(
        limits.wrong_derivative_ntk(dataclasses.replace(right, nngp=right.nngp[:1]), activation, 1.4), right.ntk[0]
    )


@functools.cache
def _small_limits(depth=2):
    problem = limits.mixture(4)
    return problem, limits.predict(problem, "erf", depth=depth, num_train=12, num_points=18, steps=(0, 3))


def _measured(width, key, steps=(0, 3), depth=2):
    problem, limit = _small_limits(depth)
    assert 0 < limit.learning_rate < 10
    lazy = LazyConfig(
        problem.inputs[:18],
        problem.targets[:12],
        NtkMLPSpec((width,) * depth, "erf", **limits.SCALES["erf"]),
        limit.learning_rate,
        steps,
    )
    distances = np.stack([[each.structure.class_distances for each in layers] for layers in limit.collapse])
    config = measuring.MeasureConfig(
        lazy,
        problem.inputs,
        problem.labels,
        problem.fine_labels,
        limit.features,
        distances,
        limit.ntk,
        limit.response[:, : len(steps)],
        problem.num_classes,
        problem.num_fine,
    )
    return config, jax.jit(measuring.measure)(config, key)


def _literal_collapse(features, labels, fine):
    """NC1, trace ratio, CDNV and q of explicit features in float64, class by class."""
    means = np.stack([features[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    rows = features - means[labels]
    g = means - means.mean(axis=0)
    within, between = rows.T @ rows / len(rows), g.T @ g / len(g)
    inverse = np.linalg.pinv(between, rcond=1e-9, hermitian=True)
    spread = np.array([np.sum(rows[labels == c] ** 2) / np.sum(labels == c) for c in range(len(means))])
    apart = [
        (spread[a] + spread[b]) / (2 * np.sum((means[a] - means[b]) ** 2))
        for a in range(len(means))
        for b in range(len(means))
        if a != b
    ]
    centres = np.stack([features[fine == c].mean(axis=0) for c in range(fine.max() + 1)])
    label_of = [labels[fine == c][0] for c in range(len(centres))]
    same, other = [], []
    for a in range(len(centres)):
        for b in range(a):
            kind = same if label_of[a] == label_of[b] else other
            kind.append(np.sum((centres[a] - centres[b]) ** 2))
    return [
        np.trace(within @ inverse) / len(means),
        np.trace(within) / np.trace(between),
        np.mean(apart),
        np.mean(same) / np.mean(other),
    ]


def _factor(kernel):
    """Features whose Gram matrix is the kernel."""
    values, vectors = np.linalg.eigh(np.float64(kernel))
    return vectors * np.sqrt(np.maximum(values, 0))


@pytest.mark.parametrize("depth", [1, 3])
def test_limits_of_other_depths_by_explicit_features(depth):
    problem, limit = _small_limits(depth)
    assert limit.features.shape == (2, depth, 24, 24)
    assert len(limit.tangent[0]) == depth
    with jax.enable_x64(True):
        kernels = kernel_layers(problem.inputs, depth=depth, activation="erf", **limits.SCALES["erf"])
        records = {
            "nngp": [(limit.collapse[0][i], kernels.features[i + 1]) for i in range(depth)],
            "ntk": [(limit.tangent[0][i], kernels.ntk[i + 1]) for i in range(depth)],
            "points": [(limit.ntk_collapse[0], kernels.ntk[-1][:18, :18])],
        }
        for pairs in records.values():
            for found, kernel in pairs:
                rows = len(kernel)
                truth = _literal_collapse(_factor(kernel), problem.labels[:rows], problem.fine_labels[:rows])
                ours = [float(found.nc1), float(found.within_between_ratio), float(found.cdnv)]
                # Square roots of eigenvalues that are 0 up to rounding, 1e-8.
                np.testing.assert_allclose([*ours, float(found.structure.ratio)], truth, rtol=1e-5)
    np.testing.assert_allclose(limit.ntk[0], kernels.ntk[-1][:18, :18], rtol=1e-6)
    # Of the other activation, and with the wrong derivative, these are other numbers.
    right, *wrong = (float(each.nc1) for each in limit.ntk_collapse)
    assert all(abs(each / right - 1) > 0.01 for each in wrong)
    truth = _literal_collapse(problem.inputs[:18], problem.labels[:18], problem.fine_labels[:18])
    assert float(limit.raw_points.nc1) == pytest.approx(truth[0], rel=1e-6)


def test_no_hidden_layer_is_refused():
    with pytest.raises(ArgumentError, match="`depth` must be an integer >= 1, but is 0"):
        limits.predict(limits.mixture(2), "erf", depth=0, num_train=6, num_points=6, steps=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_collapse_of_the_empirical_tangent_kernel_by_its_jacobian(key, depth):
    config, found = _measured(12, key, steps=(0,), depth=depth)
    graph, params, frozen = nnx.split(config.lazy.initial_model(key), nnx.Param, ...)
    points = jnp.asarray(config.lazy.inputs, dtype=float)
    jacobian = jax.jacobian(lambda p: nnx.merge(graph, p, frozen)(points))(params)
    # A sample's features: derivatives of every output by every parameter.
    rows = [np.float64(leaf).reshape(len(points), -1) for leaf in jax.tree.leaves(jacobian)]
    kernel = np.sum([np.einsum("ip,jp->ij", each, each) for each in rows], axis=0)
    truth = _literal_collapse(_factor(kernel), config.labels[:18], config.fine_labels[:18])
    ours = [found.initial_ntk.nc1, found.initial_ntk.within_between_ratio, found.initial_ntk.cdnv]
    np.testing.assert_allclose([*ours, found.initial_ntk.ratio], truth, rtol=2e-3)
    # The seeds of a sweep go through vmap.
    several = jax.vmap(measuring.measure, in_axes=(None, 0))(config, jnp.stack([key, jax.random.key(9)]))
    np.testing.assert_allclose(several.initial_ntk.nc1[0], found.initial_ntk.nc1, rtol=1e-3)
    assert several.initial_ntk.ratio.shape == (2,)


def test_measurement_of_one_network_by_hand(key):
    config, found = _measured(40, key)
    model = config.lazy.initial_model(key)
    x = jnp.asarray(config.inputs, dtype=float)
    for layer, h in enumerate(model.layer_features(x)):
        kernel = np.float64(h) @ np.float64(h).T / 40
        for predictor in (0, 1):
            limit = config.features[predictor, layer]
            truth = np.sum((kernel - limit) ** 2) / np.sum(limit**2)
            assert float(found.initial.kernel_deviation[layer, predictor]) == pytest.approx(truth, rel=1e-3)
    # Outputs of three steps by hand: the movement that the tangent kernel predicts from this network's own start.
    assert found.output_deviation.shape == (3, 1)
    history, _ = descend_lazily(config.lazy, key)
    start, end = np.float64(history.outputs)
    movement = config.response[:, 1] @ (config.lazy.targets - start[:12])
    truth = np.sum((end - start - movement) ** 2, axis=(1, 2)) / np.sum(movement[0] ** 2)
    np.testing.assert_allclose(found.output_deviation[:, 0], truth, rtol=1e-3)
    assert bool(found.finite)
    # Training moved the features and hardly the kernel.
    assert 0 < float(found.ntk_change) < 1
    assert (np.asarray(found.initial.nc1) != np.asarray(found.trained.nc1)).all()
    assert 0 < abs(float(found.trained_ntk.nc1 / found.initial_ntk.nc1) - 1) < 1


def test_networks_that_are_not_trained_leave_nan_and_count_as_finite(key):
    _, found = _measured(10, key, steps=(0,))
    assert bool(found.finite)
    assert np.isnan(found.ntk_change)
    assert np.isnan(np.asarray(found.trained.nc1)).all()
    assert np.isnan(found.trained_ntk.nc1)
    assert np.isfinite(np.asarray(found.initial.nc1)).all()
    assert np.isfinite(found.initial_ntk.nc1)


def test_folder_names():
    names = {1: "depth1", 2: "default", 3: "depth3"}
    assert {depth: kernel_limits.Config(depth=depth).name for depth in names} == names
    assert kernel_limits.Config(depth=3, smoke=True).name == "smoke"


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    assert "start/nc1-bias" in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png"}
    with xr.open_dataset(out / "history.nc") as history:
        assert history["initial_nc1"].dims == ("condition", "width", "seed", "layer")
        assert history["initial_nc1"].attrs["units"] == "dimensionless"
        assert history["finite"].all()
        measured = ("initial_nc1", "trained_nc1", "ntk_deviation", "output_deviation", "initial_ntk_nc1")
        for name in (*measured, "trained_ntk_ratio", "limit_nc1", "limit_ntk_cdnv", "points_ntk_nc1", "raw_nc1"):
            assert np.isfinite(history[name]).all()
        assert history["limit_ntk_nc1"].dims == ("condition", "feature_predictor", "layer")
        ratio = history["limit_ntk_nc1"] / history["raw_nc1"]
        np.testing.assert_allclose(history["limit_ntk_relative_nc1"], ratio)
        # Few seeds show no exponent, but tell the right kernel from that of the other activation.
        deviation = history["ntk_deviation"].mean("seed").isel(width=-1)
        right, other = (deviation.sel(ntk_predictor=name) for name in ("limit", "activation"))
        assert (right < other / 2).all()
    ledger = json.loads((out / "claims.json").read_text())
    assert {claim["role"] for claim in ledger} == {"claim", "control"}
    # Three seeds are the fewest of which the jackknife gives numbers.
    assert all(np.isfinite(claim["measured"]) for claim in ledger if claim["id"] in ("start/kernel", "start/ntk"))


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
    result = run_script(SCRIPT, "--smoke", "--quiet", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    assert (out / "claims.json").read_text() == before


@pytest.mark.slow
def test_paper_figure_is_drawn_from_the_folder(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/kernel_limits.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"kernel_limits.{end}" for end in ("pdf", "png", "csv")}
    rows = (tmp_path / "kernel_limits.csv").read_text().splitlines()
    assert rows[0] == "panel,condition,layer,predictor,width,mean,error,limit,raw"
    # Two conditions, three widths: two layers of (two predictors, NC1, change), then change, tangent kernel, outputs,
    # NC1 of the tangent kernel; and its limits, of two layers and predictors.
    assert len(rows) == 1 + 2 * (3 * (2 * 4 + 1 + 3 + 3 + 3) + 2 * 2)


def test_bad_arguments_end_as_one_line(tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", "--conditions", "mixture-tanh")
    message = "Argument `conditions` must list different ones of ['mixture-erf', "
    assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (64, 128)}, "`widths` must be at least 3 increasing numbers"),
        ({"widths": (64, 32, 128)}, "`widths` must be at least 3 increasing numbers"),
        ({"widths": (1, 32, 128)}, "`widths` must be an integer >= 2, but is 1"),
        ({"record_steps": (1, 4)}, "`record_steps` must start at 0, but starts at 1"),
        ({"record_steps": (0,)}, "`record_steps` must be at least 2 increasing"),
        ({"trained_width": 128}, "`trained_width` must be at least 256"),
        ({"depth": 0}, "`depth` must be an integer >= 1, but is 0"),
        ({"conditions": ()}, "`conditions` must list different ones"),
        ({"conditions": ("digits-erf", "digits-erf")}, "`conditions` must list different ones"),
        ({"num_seeds": 1}, "`num_seeds` must be an integer >= 2"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        kernel_limits.Config(**options)
