"""Deep linear head: literal forward pass, training on data, and its penalty."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nctheory import simulator
from nctheory.simulator.deep_linear import DeepLinearSpec
from nctheory.simulator.layer_geometry import layer_geometry

X64 = jax.config.jax_enable_x64
TOLERANCE = 1e-12 if X64 else 2e-5
MIXTURE = simulator.cosine_mixture(num_labels=3, clusters_per_label=1, dim=7, noise_std=0.05)
SPEC = DeepLinearSpec(widths=(6, 4), backbone=(8, 5), activation="tanh", linear_decay=np.array([0.1, 0.2, 0.3]))


def test_forward_pass_is_the_written_formula(key):
    spec = replace(SPEC, feature_decay=0.4)
    model = spec.build(7, 3, nnx.Rngs(key))
    x = np.asarray(jax.random.normal(key, (5, 7), dtype=float))
    h = x
    expected = []
    for kernel, bias in zip(model.kernels, model.biases, strict=True):
        h = np.tanh(h @ np.asarray(kernel[...]) + np.asarray(bias[...]))
        expected.append(h)
    kernels = [np.asarray(kernel[...]) for kernel in (*model.linear, model.readout)]
    assert [k.shape for k in kernels] == [(5, 6), (6, 4), (4, 3)]
    for kernel in kernels[:-1]:
        expected.append(expected[-1] @ kernel)
    for got, want in zip(model.layer_features(x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)
    assert len(model.linear_features(x)) == spec.depth == 3
    np.testing.assert_allclose(model(x), expected[-1] @ kernels[-1], rtol=TOLERANCE, atol=TOLERANCE)
    for entering, product in zip(model.linear_features(x), model.left_products(), strict=True):
        np.testing.assert_allclose(entering @ product.T, model(x), rtol=10 * TOLERANCE, atol=10 * TOLERANCE)
    penalty = 0.2 * np.sum(expected[1] ** 2)
    penalty += sum(lam / 2 * np.sum(k**2) for lam, k in zip((0.1, 0.2, 0.3), kernels, strict=True))
    np.testing.assert_allclose(model.penalty(x), penalty, rtol=TOLERANCE)
    trained = jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1])
    assert len(trained) == 2 + 2 + 2 + 2  # the decays are no parameters


def test_initial_kernels(key):
    spec = DeepLinearSpec(widths=(50, 80), init="orthogonal", init_scale=0.5, bias=False)
    model = spec.build(60, 3, nnx.Rngs(key))
    first, second = (np.asarray(kernel[...]) for kernel in model.linear)
    np.testing.assert_allclose(first.T @ first, 0.25 * np.eye(50), atol=10 * TOLERANCE)
    np.testing.assert_allclose(second @ second.T, 0.25 * np.eye(50), atol=10 * TOLERANCE)
    assert model.readout_bias is None
    normal = replace(spec, init="normal", init_scale=1.0).build(60, 3, nnx.Rngs(key))
    # 3,000 normal entries: six standard errors of a standard deviation are 8 percent.
    assert np.asarray(normal.linear[0][...]).std() == pytest.approx(60**-0.5, rel=0.08)


@pytest.mark.parametrize("backbone", [(), pytest.param((16,), marks=pytest.mark.slow)])
def test_training_collapses_the_head(key, backbone):
    """Orthogonal clusters are separable, so squared error falls and every layer's features collapse."""
    config = simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, 6),
        model=DeepLinearSpec(widths=(8, 8), backbone=backbone),
        loss="mse",
        optimizer="momentum",
        learning_rate=0.05,
        weight_decay=1e-3,
        num_steps=400,
        num_records=2,
        keep_params=True,
    )
    history = jax.jit(simulator.train)(config, key)
    assert bool(history.finite)
    assert float(history.train.loss[-1]) < 0.1 * float(history.train.loss[0])
    model = simulator.trained_model(config, key, jax.tree.map(lambda leaf: leaf[-1], history.params))
    samples, _ = config.data.draw(jax.random.fold_in(key, simulator.DATA_STREAM))
    after = layer_geometry(model.linear_features(samples.inputs), model.left_products(), samples.labels, num_classes=3)
    start = simulator.initial_model(config, key)
    before = layer_geometry(start.linear_features(samples.inputs), start.left_products(), samples.labels, num_classes=3)
    assert after.nc1.shape == (3,)
    assert np.all(np.asarray(after.nc1[1:]) < np.asarray(before.nc1[1:]))
    assert np.all(np.asarray(after.nc3_align_centered) < np.asarray(before.nc3_align_centered))
    assert float(history.train.collapse.nc1[-1]) < float(history.train.collapse.nc1[0])


@pytest.mark.slow
def test_sweep_over_decays_and_seeds():
    config = simulator.TrainConfig(
        data=simulator.MixtureData(MIXTURE, 2), model=DeepLinearSpec(widths=(4,)), loss="mse", num_steps=3
    )
    grid = simulator.grid(config, model__init_scale=[0.5, 1.0])
    result = simulator.sweep(simulator.train, grid, 2, progress=False)
    alone = simulator.train(replace(config, model=replace(config.model, init_scale=0.5)), jax.random.key(1))
    np.testing.assert_allclose(result.history.objective[0, 1], alone.objective, rtol=100 * TOLERANCE)


def test_errors(own_errors):
    with pytest.raises(ValueError, match="`widths` must be a sequence of layer widths"):
        DeepLinearSpec(widths=3)
    with pytest.raises(ValueError, match="`backbone` must be an integer >= 1"):
        DeepLinearSpec(widths=(), backbone=(0,))
    with pytest.raises(ValueError, match="`activation` must be one of"):
        DeepLinearSpec(widths=(), activation="swish")
    with pytest.raises(ValueError, match="`init` must be one of"):
        DeepLinearSpec(widths=(), init="zeros")
    with pytest.raises(ValueError, match="`feature_decay` must be finite and >= 0"):
        DeepLinearSpec(widths=(), feature_decay=-1.0)
    with pytest.raises(ValueError, match=r"`linear_decay` must be a scalar or have shape \(2,\)"):
        DeepLinearSpec(widths=(3,), linear_decay=jnp.ones(3))
