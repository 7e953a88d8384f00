"""Sweeps: every row equals a lone run, one compilation, bad rows marked, bad arguments refused.

Most tests sweep a map that compiles at once; the real `train` and several devices come in where they matter.
"""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import simulator

ROOT = Path(__file__).parents[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inner:
    """Nested part of a configuration."""

    scale: float = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """Configuration with a leaf, a nested leaf and a static field."""

    rate: float = 0.25
    inner: Inner = Inner()
    num_steps: int = dataclasses.field(default=3, metadata={"static": True})


def toy(config, key):
    """Iterate a smooth map from a random start; a plain dictionary comes back."""
    start = jax.random.normal(key, (4,))

    def step(x, _):
        x = x - config.rate * jnp.tanh(config.inner.scale * x)
        return x, x

    end, path = jax.lax.scan(step, start, length=config.num_steps)
    return {"path": path, "norm": jnp.linalg.norm(end), "seed": jax.random.key_data(key)[1].astype(jnp.int32)}


def toy_with_poles(config, key):
    """As `toy`, but seeds 2 and 5 end non-finite."""
    history = toy(config, key)
    bad = (history["seed"] == 2) | (history["seed"] == 5)
    return {**history, "norm": jnp.where(bad, jnp.nan, history["norm"])}


class Flagged(NamedTuple):
    """History that says itself whether it is finite."""

    values: jax.Array
    finite: jax.Array


def toy_with_flag(config, key):
    """Report `finite` itself: an infinite number that is meant is no failure, a finite one may be."""
    seed = toy(config, key)["seed"]
    return Flagged(jnp.full(2, jnp.inf), seed != 1)


def tolerance():
    # The map multiplies a few dozen times; vectorised tanh may round otherwise than scalar tanh.
    return {"rtol": 1e-13, "atol": 1e-14} if jax.config.jax_enable_x64 else {"rtol": 1e-5, "atol": 1e-6}


def sweep(train, configs, seeds, **options):
    return simulator.sweep(train, configs, seeds, progress=False, **options)


def assert_identical(one, other):
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def test_every_row_equals_a_lone_run():
    grid = simulator.grid(Toy(), rate=[0.1, 0.4], inner__scale=[0.5, 1.0, 2.0])
    result = sweep(toy, grid, [7, 0, 2**32 - 1], chunk_size=5)
    assert result.seeds.tolist() == [7, 0, 2**32 - 1]
    assert result.history["path"].shape == (6, 3, 3, 4)
    lone = jax.jit(toy)
    for row, config in enumerate(grid.configs):
        for column, seed in enumerate(result.seeds):
            expected = lone(config, jax.random.key(seed))
            for name in ("path", "norm"):
                np.testing.assert_allclose(result.history[name][row, column], expected[name], **tolerance())
            assert result.history["seed"][row, column] == expected["seed"]
    # The rows differ, so a mix-up of rows could not pass.
    assert len(np.unique(result.history["norm"])) == 18


def test_seed_3_is_row_3_for_any_neighbours():
    alone = sweep(toy, Toy(), [3]).history
    for seeds, size in ((4, 1), (40, 16)):
        history = sweep(toy, Toy(), seeds, chunk_size=size).history
        for name in ("path", "norm"):
            np.testing.assert_allclose(history[name][0, 3], alone[name][0, 0], **tolerance())
    together = sweep(toy, Toy(), 8, chunk_size=4).history
    others = sweep(toy, Toy(), [11, 12, 3, 13, 14], chunk_size=4).history
    np.testing.assert_array_equal(others["path"][0, 2], together["path"][0, 3])
    assert not np.allclose(others["path"][0, 1], together["path"][0, 3])


def test_grid_order_and_names():
    grid = simulator.grid(Toy(), rate=[0.1, 0.2], inner__scale=[1.0, 3.0])
    rows = [(config.rate, config.inner.scale) for config in grid.configs]
    assert rows == [(0.1, 1.0), (0.1, 3.0), (0.2, 1.0), (0.2, 3.0)]
    assert grid.conditions[1] == {"rate": 0.1, "inner.scale": 3.0}
    assert simulator.grid(Toy()) == simulator.Grid((Toy(),), ({},))
    result = sweep(toy, grid, 2)
    assert result.conditions == grid.conditions
    listed = sweep(toy, [Toy(rate=0.1), Toy(rate=0.3)], 2)
    assert listed.conditions == ({"condition": 0}, {"condition": 1})
    assert not np.array_equal(listed.history["norm"][0], listed.history["norm"][1])


def test_conditions_and_chunks_share_one_trace_and_one_compilation():
    traces, compilations = [], []

    def counted(config, key):
        traces.append(config)
        return toy(config, key)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # Fifteen chunks, the last one padded.
        result = sweep(counted, simulator.grid(Toy(), rate=[0.1, 0.2, 0.3], inner__scale=[1.0, 2.0]), 7, chunk_size=3)
        assert result.chunk_size == 3
        assert len(traces) == 1
        assert len(compilations) == 1
        jax.jit(lambda x: x * 3)(np.float32(1))
        assert len(compilations) == 2, "the listener counts"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_padding_of_the_last_chunk_is_never_reported():
    padded = sweep(toy, Toy(), 5, chunk_size=4)
    assert padded.history["seed"].tolist() == [[0, 1, 2, 3, 4]]
    assert padded.finite.shape == (1, 5)
    assert sweep(toy, Toy(), 5, chunk_size=100).chunk_size == 5


def test_diverging_seeds_are_recorded_and_leave_the_others_alone():
    grid = simulator.grid(Toy(), rate=[0.1, 0.2])
    healthy, result = (sweep(train, grid, 7, chunk_size=3) for train in (toy, toy_with_poles))
    good = [0, 1, 3, 4, 6]
    assert result.finite.tolist() == [[seed in good for seed in range(7)]] * 2
    assert result.num_nonfinite.tolist() == [2, 2]
    assert np.isnan(result.history["norm"][:, [2, 5]]).all()
    np.testing.assert_array_equal(result.history["norm"][:, good], healthy.history["norm"][:, good])
    assert healthy.num_nonfinite.tolist() == [0, 0]


def test_the_flag_of_the_history_decides_when_there_is_one():
    result = sweep(toy_with_flag, Toy(), 3)
    assert result.finite.tolist() == [[True, False, True]]


def test_automatic_chunks_fit_the_cache():
    small, large = (
        sweep(lambda config, key, n=n: {"x": jax.random.normal(key, (n,)).sum() * config.rate}, Toy(), 256)
        for n in (512, 16384)
    )
    assert 1 <= large.chunk_size < small.chunk_size <= 256
    share = large.chunk_size // large.num_workers
    assert share * large.num_workers == large.chunk_size
    assert share & (share - 1) == 0


def test_times_add_up():
    result = sweep(toy, Toy(), 3)
    assert result.compile_seconds > 0
    assert result.run_seconds > 0
    assert result.num_resumed == 0


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (0, "`seeds` must be an integer >= 1, but is 0"),
        (-2, "`seeds` must be an integer >= 1, but is -2"),
        (2.0, "`seeds` must be an integer >= 1, but is 2.0"),
        (True, "`seeds` must be an integer >= 1, but is True"),
        ([], "`seeds` must hold at least one seed"),
        ([1, -1], "`seeds` must be an integer >= 0, but is -1"),
        ([1, 0.5], "`seeds` must be an integer >= 0, but is 0.5"),
        ([4, 1, 4], "`seeds` must not repeat a seed, but has 1 repeat"),
        ([2**32], r"`seeds` must lie below 2\*\*32, but reaches 4294967296"),
    ],
)
def test_bad_seeds_are_refused(seeds, message):
    with pytest.raises(ValueError, match=message):
        sweep(toy, Toy(), seeds)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(("size", "shown"), [(0, "0"), (-1, "-1"), (1.5, "1.5"), (True, "True"), ("fast", "'fast'")])
def test_bad_chunk_sizes_are_refused(size, shown):
    with pytest.raises(ValueError, match=f'`chunk_size` must be an integer >= 1, "auto" or "measured", but is {shown}'):
        sweep(toy, Toy(), 2, chunk_size=size)


@pytest.mark.usefixtures("own_errors")
def test_bad_conditions_are_refused():
    with pytest.raises(ValueError, match=r"`speed` must name a field of Toy, one of \['rate', 'inner', 'num_steps'\]"):
        simulator.grid(Toy(), speed=[1.0])
    with pytest.raises(ValueError, match=r"`inner__size` must name a field of Inner, one of \['scale'\]"):
        simulator.grid(Toy(), inner__size=[1.0])
    with pytest.raises(ValueError, match="`rate__deep` must name a field of float"):
        simulator.grid(Toy(), rate__deep=[1.0])
    with pytest.raises(ValueError, match="`rate` must list at least one value"):
        simulator.grid(Toy(), rate=[])
    with pytest.raises(ValueError, match="`configs` must hold at least one configuration"):
        sweep(toy, [], 2)
    mixed = simulator.grid(Toy(), num_steps=[3, 3, 4])
    with pytest.raises(ValueError, match="`configs` must share static fields and shapes, but condition 2 differs"):
        sweep(toy, mixed, 2)
    with pytest.raises(ValueError, match="condition 1 differs from 0"):
        sweep(toy, [Toy(), Toy(rate=np.ones(3))], 2)


@pytest.mark.usefixtures("own_errors")
def test_bad_values_in_a_grid_are_refused_by_the_configuration():
    data = simulator.MixtureData(simulator.cosine_mixture(dim=5), 2)
    config = simulator.TrainConfig(data=data, model=simulator.TwoLayerSpec(width=3))
    with pytest.raises(ValueError, match="`weight_decay` must be finite and >= 0, but is -1"):
        simulator.grid(config, weight_decay=[0.0, -1.0])
    with pytest.raises(ValueError, match="`init_std` must be finite and >= 0, but is -2"):
        simulator.grid(config, model__init_std=[-2.0])


def network(**changes):
    data = simulator.MixtureData(simulator.cosine_mixture(dim=5, noise_std=0.1), 3)
    # Wide enough that no sample switches every neuron off: its outputs would tie, and rounding would pick its label.
    model = simulator.TwoLayerSpec(width=24, init_std=0.3)
    return simulator.TrainConfig(data=data, model=model, num_steps=20, num_records=4, learning_rate=0.2, **changes)


def test_rows_of_real_training_equal_lone_runs():
    grid = simulator.grid(network(), weight_decay=[0.0, 0.1], model__init_std=[0.1, 0.5])
    result = sweep(simulator.train, grid, 5, chunk_size=4)
    lone = jax.jit(simulator.train)
    # Twenty steps accumulate a few hundred roundings, and ratios divide by small distances.
    rtol, atol = (1e-9, 1e-12) if jax.config.jax_enable_x64 else (1e-3, 1e-5)
    for row, column in ((0, 3), (2, 0), (3, 4)):
        expected = lone(grid.configs[row], jax.random.key(column))
        mine = jax.tree.map(lambda leaf, at=(row, column): leaf[at], result.history)
        for leaf, value in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, value, rtol=rtol, atol=atol)
    assert result.finite.all()
    assert len(np.unique(result.history.objective[..., -1])) == 20


def test_rows_sharded_over_eight_devices_equal_those_of_one():
    # The number of devices is fixed when JAX starts, hence the process of its own.
    script = """
        import jax, numpy as np
        from nctheory import simulator
        from tests.simulator.test_sweep import Toy, network, toy

        assert jax.device_count() == 8
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("seeds",))
        grid = simulator.grid(Toy(), rate=[0.1, 0.3])
        for train, configs, seeds, size in ((toy, grid, 11, 3), (simulator.train, network(), 8, 8)):
            one = simulator.sweep(train, configs, seeds, chunk_size=size, progress=False)
            many = simulator.sweep(train, configs, seeds, chunk_size=size, mesh=mesh, progress=False)
            assert many.chunk_size == 8, many.chunk_size
            for leaf, expected in zip(jax.tree.leaves(many.history), jax.tree.leaves(one.history), strict=True):
                np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-12)
        print("equal")
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.stdout == "equal\n", result.stderr
