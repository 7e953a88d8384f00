"""The benchmark of the unconstrained feature model compares the same computation on both sides, and can fail."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from benchmarks import _peers, _scipy_peer, _timing, _ufm_peers, _ufm_report, ufm_speed
from nctheory.theory.mse_ufm import mse_ufm_minimizer

pytest.importorskip("torch", reason="the peer")

MSE = ufm_speed.Size("tiny", "mse", 3, 4, 6, 1, 20, 5)
ENTROPY = replace(MSE, loss="cross_entropy")
CONFIG = ufm_speed.Config(
    num_seeds=3, lbfgs_seeds=2, unaveraged=False, histories=(10,), peer_seeds=2, repeats=1, num_closed_forms=7
)
# Same algebra in float64 with sums in another order.
FLOAT64 = 1e-10
# Our runs compile for seconds; every test looks at the same ones.
our_descent = functools.cache(ufm_speed.our_descent)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(ufm_speed, "our_descent", our_descent)
    with jax.enable_x64(False):
        yield


def start_in_float64(size, num_seeds):
    with jax.enable_x64(True):
        return ufm_speed.start_of(size, num_seeds)


@pytest.mark.parametrize("size", [MSE, ENTROPY], ids=["mse", "cross_entropy"])
def test_peers_make_our_steps(size):
    gaps = ufm_speed.largest_gaps(size, num_seeds=2, num_steps=20)
    assert len(gaps) == 4
    assert max(gaps.values()) < FLOAT64


@pytest.mark.parametrize("change", [{"feature_decay": 0.0}, {"weight_decay": 0.0}, {"momentum": 0.8}, {"rate": 0.09}])
def test_the_comparison_of_parameters_sees_another_update(monkeypatch, change):
    changed = replace(start_in_float64(MSE, 2), **change)
    monkeypatch.setattr(ufm_speed, "start_of", lambda *_: changed)
    assert min(ufm_speed.largest_gaps(MSE, num_seeds=2, num_steps=20).values()) > 1e-5


@pytest.mark.parametrize("size", [MSE, ENTROPY, replace(MSE, depth=3)], ids=["mse", "cross_entropy", "depth 3"])
def test_peer_objective_is_ours_on_samples_and_on_classes(size):
    start = start_in_float64(size, 1)
    value = _ufm_peers.objective(start)
    with jax.enable_x64(True):
        expected = float(size.problem.objective(size.problem.init(jax.random.key(0))))
    import torch

    assert float(value(*map(torch.from_numpy, start.seed(0).arrays))) == pytest.approx(expected, rel=1e-13)
    means = start.averaged()
    repeated = replace(start, features=np.repeat(means.features, size.samples_per_class, axis=1))
    on_samples = value(*map(torch.from_numpy, repeated.seed(0).arrays))
    on_classes = _ufm_peers.objective(means)(*map(torch.from_numpy, means.seed(0).arrays))
    assert float(on_classes) == pytest.approx(float(on_samples), rel=1e-13)


@pytest.mark.parametrize("peer", [_ufm_peers, _scipy_peer], ids=["torch", "scipy"])
@pytest.mark.parametrize("size", [MSE, ENTROPY], ids=["mse", "cross_entropy"])
def test_peer_lbfgs_reaches_the_closed_form_and_reports_where_it_does_not(size, peer):
    with jax.enable_x64(True):
        minimum = size.minimum
    for start in (start_in_float64(size, 2), start_in_float64(size, 2).averaged()):
        runs = peer.lbfgs(start, minimum * (1 + ufm_speed.GAP), history=10)
        assert runs.reached.all()
        assert (np.abs(runs.loss / minimum - 1) <= ufm_speed.GAP).all()
    # No point lies below the minimum, so every seed stalls there, at the minimum.
    runs = peer.lbfgs(start_in_float64(size, 2), minimum * (1 - ufm_speed.GAP), history=10, max_evaluations=200)
    assert not runs.reached.any()
    assert (np.abs(runs.loss / minimum - 1) < 1e-8).all()


@pytest.mark.parametrize("size", [MSE, ENTROPY, replace(MSE, depth=3)], ids=["mse", "cross_entropy", "depth 3"])
def test_the_gradient_by_hand_is_that_of_the_objective(size):
    import torch

    for start in (start_in_float64(size, 1), start_in_float64(size, 1).averaged()):
        one = start.seed(0)
        tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in one.arrays]
        expected = _ufm_peers.objective(one)(*tensors)
        expected.backward()
        value, gradient = _scipy_peer.value_and_gradient(one)(np.concatenate([array.ravel() for array in one.arrays]))
        assert value == pytest.approx(expected.item(), rel=1e-13)
        gradients = [tensor.grad.numpy().ravel() for tensor in tensors if tensor.grad is not None]
        np.testing.assert_allclose(gradient, np.concatenate(gradients), rtol=1e-11, atol=1e-15)


def test_peers_on_another_device_make_the_same_steps(monkeypatch):
    # As another name of the CPU: where there is a GPU its name takes this place.
    monkeypatch.setattr(_peers, "torch_devices", lambda: ("cpu:0",))
    gaps = ufm_speed.largest_gaps(MSE, num_seeds=2, num_steps=20)
    assert {_peers.device_of(name)[1] for name in gaps} == {"cpu:0"}
    assert max(gaps.values()) < FLOAT64
    peers = ufm_speed.solver_peers(MSE, 1.0, CONFIG)
    assert [name for name in peers if name.startswith("PyTorch")] == [
        "PyTorch L-BFGS, history 10, on cpu:0",
        "PyTorch L-BFGS, classes averaged, history 10, on cpu:0",
    ]


def test_quality_counts_seeds_beyond_the_gap_below_the_minimum_and_without_a_number():
    found = ufm_speed.quality(np.array([1.0, 1 + 2e-6, 1 - 1e-9, np.nan, np.inf]), 1.0)
    assert found["beyond_gap"] == 3
    assert found["below_minimum"] == 1


def test_solvers_are_compared_at_the_same_minimum(tmp_path, capsys):
    row = ufm_speed.compare_solvers(MSE, CONFIG)
    ufm_speed.show_solvers(MSE, row, CONFIG.num_seeds)
    assert "target 8" in capsys.readouterr().out
    runs = row["runs"]
    assert list(runs) == [
        "nctheory",
        "SciPy L-BFGS, history 10",
        "PyTorch L-BFGS, history 10",
        "SciPy L-BFGS, classes averaged, history 10",
        "PyTorch L-BFGS, classes averaged, history 10",
    ]
    for run in runs.values():
        assert run["beyond_gap"] == 0
        assert run["below_minimum"] == 0
    assert runs["nctheory"]["not_converged"] == 0
    assert runs["nctheory"]["largest_gradient_norm"] <= 1e-10
    ratio = runs["PyTorch L-BFGS, history 10"]["seconds"] / runs["nctheory"]["seconds"]
    assert row["times_lbfgs"] == pytest.approx(ratio)
    _timing.store(tmp_path / "x.json", _timing.provenance(), {"sizes": [row]})
    assert json.loads((tmp_path / "x.json").read_text())["sizes"][0]["minimum"] == row["minimum"]


def test_the_setting_that_stalls_least_is_the_peer():
    runs = {"nctheory": {"seconds": 1.0}}
    for name, seconds, stalled in (("h 10", 5.0, 1), ("h 20", 9.0, 0), ("classes averaged", 3.0, 0)):
        runs[f"PyTorch L-BFGS, {name}"] = {"seconds": seconds, "stalled": stalled}
    ratios = _ufm_report.solver_ratios(runs)
    assert (ratios["times_lbfgs"], ratios["times_lbfgs_averaged"], ratios["times_scipy"]) == (9.0, 3.0, None)


def test_rates_of_descent_and_their_ratios_are_consistent(capsys):
    row = ufm_speed.compare_descent(MSE, CONFIG)
    ufm_speed.show_descent(MSE, {**row, "largest_relative_gap": {}})
    assert "target 3" in capsys.readouterr().out
    rates = {name: each["best"] for name, each in row["seed_steps_per_s"].items()}
    plain = max(rates["PyTorch loop, autograd"], rates["PyTorch vmap over seeds"])
    assert row["times_better_of_loop_and_vmap"] == pytest.approx(rates["nctheory sweep"] / plain)
    assert len(rates) == 5


def test_closed_forms_are_those_of_single_calls(capsys, monkeypatch):
    monkeypatch.setattr(ufm_speed, "BIASES", ("free",))
    times = ufm_speed.time_closed_forms(CONFIG)
    ufm_speed.show_closed_forms(times, CONFIG.num_closed_forms)
    assert "NOT FINITE" not in capsys.readouterr().out
    assert len(times) == 3
    with jax.enable_x64(True):
        call = ufm_speed.closed_form_calls(CONFIG.num_closed_forms)["mse_ufm_minimizer, depth 3, bias free"]
        sizes, weight_decay, feature_decay = (np.asarray(a)[4] for a in call.args)
        one = mse_ufm_minimizer(sizes, weight_decay=weight_decay, feature_decay=feature_decay, depth=3, bias="free")
        np.testing.assert_allclose(call().loss[4], one.loss, rtol=1e-12)
