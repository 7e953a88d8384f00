"""The benchmarks measure the same computation on both sides, and can fail."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _peers, _timing, metrics_speed, sweep_speed
from nctheory.metrics import collapse_metrics

TINY = sweep_speed.Size("tiny", 6, 8, 16, 3, 20, 2, 8.0, 0.5)
# Same algebra in float64 with sums in another order.
FLOAT64 = 1e-10


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


@pytest.mark.usefixtures("float32")
def test_peers_make_our_steps():
    gaps = sweep_speed.largest_gaps(TINY, num_seeds=2, num_steps=20)
    assert "NumPy loop" in gaps
    assert max(gaps.values()) < FLOAT64


@pytest.mark.usefixtures("float32")
def test_the_comparison_of_weights_sees_a_missing_weight_decay(monkeypatch):
    monkeypatch.setattr(sweep_speed, "problem_of", lambda *a, f=sweep_speed.problem_of: replace(f(*a), decay=0.0))
    assert min(sweep_speed.largest_gaps(TINY, num_seeds=2, num_steps=20).values()) > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_rates_ratios_and_shares_are_consistent(tmp_path, capsys):
    config = sweep_speed.Config(repeats=1, many_seeds=4, chunk_sizes=(2,), chunk_repeats=1)
    row = sweep_speed.measure(TINY, config)
    sweep_speed.show(row)
    assert "tiny: d 6, m 8, N 16, 3 seeds" in capsys.readouterr().out
    rates = {name: each["best"] for name, each in row["seed_steps_per_s"].items()}
    assert row["times"]["NumPy loop"] == pytest.approx(rates["nctheory sweep"] / rates["NumPy loop"])
    assert row["flop_per_seed_step"] == 2 * (2 * 16 * 6 * 8)
    assert row["share_of_matmul"] == pytest.approx(row["gflops"] / row["matmul_gflops"])
    chunks = row["chunks"]["seed_steps_per_s"]
    assert row["chunks"]["auto_over_best"] == pytest.approx(chunks["auto"] / chunks["2"])
    _timing.store(tmp_path / "results" / "x.json", _timing.provenance(), {"sizes": [row]})
    stored = json.loads((tmp_path / "results" / "x.json").read_text())
    assert stored["sizes"][0]["gflops"] == row["gflops"]
    assert stored["versions"]["jax"] == jax.__version__


@pytest.mark.usefixtures("float32")
def test_matmul_rate_counts_both_products():
    rate = _peers.matmul_rate(8, 4, 8, batches=(2,), repeats=1)
    assert rate.flops > 0
    assert rate.batch == 2
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32))
    w = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 5), dtype=np.float32))
    z = _peers._forward(x, w)
    np.testing.assert_allclose(z, x @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_peers._backward(x, z), x.transpose(0, 2, 1) @ z, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float32")
def test_plain_numpy_metrics_agree_with_ours():
    config = metrics_speed.Config(num_samples=400, feature_dim=24, num_classes=(4,))
    features, labels, _ = metrics_speed.draw(config, 4)
    ours = collapse_metrics(features, labels, num_classes=4)
    theirs = metrics_speed.plain_numpy(features, labels, 4)
    # float32 on both sides; the smallest figure, nc2_equinorm, is a difference of norms.
    found = [ours.nc1, ours.within_between_ratio, ours.nc2_equinorm, ours.nc2_equiangular, ours.cdnv]
    np.testing.assert_allclose(np.asarray(theirs), np.asarray(found), rtol=1e-3)


def test_times_are_of_the_calls_after_the_first():
    timing = _timing.time_side_by_side({"a": lambda: np.zeros(3)}, repeats=2)["a"]
    assert 0 < timing.best <= timing.median
