"""MLP in NTK parameterisation: literal forward pass, tangent kernel against full Jacobians, descent by hand, sweeps."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from nctheory import simulator
from nctheory.simulator.ntk_mlp import LazyConfig, NtkMLPSpec, descend_lazily, empirical_ntk, train_lazily
from nctheory.theory.lazy_limit import kernel_predictions
from nctheory.theory.network_kernels import kernel_layers

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 2e-4
SPECS = [
    NtkMLPSpec((5, 7), "erf", weight_std=1.3, bias_std=0.4),
    NtkMLPSpec((6,), "relu", weight_std=1.4),
    NtkMLPSpec((4, 5, 3), "relu", weight_std=1.2, bias_std=0.2),
]
X = np.random.default_rng(0).normal(size=(6, 4))


def build(spec, key, num_outputs=3):
    return spec.build(4, num_outputs, nnx.Rngs(key))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1]))


@pytest.mark.parametrize("spec", SPECS)
def test_forward_pass_is_the_written_formula(spec, key):
    model = build(spec, key)
    phi = erf if spec.activation == "erf" else lambda z: np.maximum(z, 0)
    h, expected = X, []
    for layer, kernel in enumerate(model.kernels):
        weights = np.asarray(kernel[...])
        z = spec.weight_std / np.sqrt(len(weights)) * h @ weights
        if spec.bias_std is not None:
            z = z + spec.bias_std * np.asarray(model.biases[layer][...])
        h = phi(z)
        expected.append(h)
    readout = np.asarray(model.readout[...])
    f = spec.weight_std / np.sqrt(len(readout)) * h @ readout
    if spec.bias_std is not None:
        f = f + spec.bias_std * np.asarray(model.readout_bias[...])
    for got, want in zip(model.layer_features(X), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=TIGHT)
    np.testing.assert_allclose(model(X), f, atol=TIGHT)
    sizes = (4, *spec.widths, 3)
    weights = sum(a * b for a, b in pairwise(sizes))
    # The scales are no parameters.
    assert count(model) == weights + (sum(sizes[1:]) if spec.bias_std is not None else 0)


def test_parameters_are_standard_normal(key):
    model = NtkMLPSpec((200, 300), bias_std=0.1).build(100, 50, nnx.Rngs(key))
    for kernel in (*model.kernels, model.readout):
        entries = np.asarray(kernel[...]).ravel()
        # Five standard errors of a mean and of a standard deviation.
        assert abs(entries.mean()) < 5 / np.sqrt(entries.size)
        assert abs(entries.std() - 1) < 5 / np.sqrt(2 * entries.size)


@pytest.mark.parametrize("spec", [SPECS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in SPECS[1:])])
def test_tangent_kernel_is_that_of_the_full_jacobian(spec, key):
    model = build(spec, key)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    by_params = jax.jit(jax.jacrev(lambda p, x: nnx.merge(graph, p, rest)(x)))

    def jacobian(x):
        found = by_params(params, x)
        return np.concatenate([np.float64(leaf).reshape(len(x), 3, -1) for leaf in jax.tree.leaves(found)], axis=2)

    whole = np.einsum("icp,jcp->ij", jacobian(jnp.asarray(X)), jacobian(jnp.asarray(X))) / 3
    np.testing.assert_allclose(empirical_ntk(model, X), whole, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(empirical_ntk(model, X[:2], X[2:]), whole[:2, 2:], rtol=TIGHT, atol=TIGHT)
    jitted = jax.jit(lambda p, x: empirical_ntk(nnx.merge(graph, p, rest), x))(params, jnp.asarray(X))
    np.testing.assert_allclose(jitted, whole, rtol=TIGHT, atol=TIGHT)


CONFIG = LazyConfig(X, np.random.default_rng(1).normal(size=(4, 3)), SPECS[0], 0.05, (0, 2, 5))


def test_descent_is_the_written_update(key):
    history, trained = descend_lazily(CONFIG, key)
    graph, params, rest = nnx.split(CONFIG.initial_model(key), nnx.Param, ...)

    def loss(p):
        return jnp.sum((nnx.merge(graph, p, rest)(jnp.asarray(X[:4])) - jnp.asarray(CONFIG.targets)) ** 2) / 8

    for step in range(6):
        if step in CONFIG.record_steps:
            at = CONFIG.record_steps.index(step)
            np.testing.assert_allclose(history.outputs[at], nnx.merge(graph, params, rest)(X), atol=10 * TIGHT)
            np.testing.assert_allclose(history.loss[at], loss(params), rtol=10 * TIGHT)
        if step == 5:
            np.testing.assert_allclose(trained(X), nnx.merge(graph, params, rest)(X), atol=10 * TIGHT)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params))
    assert bool(history.finite)
    assert history.loss[2] < history.loss[0]


def test_seed_of_a_sweep_equals_a_lone_run():
    swept = simulator.sweep(train_lazily, CONFIG, [1, 2, 3], progress=False)
    assert swept.finite.all()
    assert swept.history.outputs.shape == (1, 3, 3, 6, 3)
    alone = train_lazily(CONFIG, jax.random.key(2))
    np.testing.assert_allclose(swept.history.outputs[0, 1], alone.outputs, atol=TIGHT)


def test_divergence_is_reported(key):
    wild = replace(CONFIG, learning_rate=1e6, record_steps=(0, 60), model=SPECS[1])
    history = train_lazily(wild, key)
    assert not bool(history.finite)
    assert np.isfinite(np.asarray(history.outputs[0])).all()


@pytest.mark.parametrize("activation", ["erf", pytest.param("relu", marks=pytest.mark.slow)])
def test_wide_networks_agree_with_the_limit_and_not_with_wrong_kernels(activation):
    """Theory meets simulation: kernels within 4 standard errors over networks, trained outputs near the prediction."""
    options = {"weight_std": 1.3, "bias_std": 0.3}
    spec = NtkMLPSpec((512, 512), activation, **options)
    limit = kernel_layers(X, depth=2, activation=activation, **options)
    steps, rate = (0, 40), 0.2
    config = LazyConfig(X, CONFIG.targets, spec, rate, steps)

    def measure(key):
        model = config.initial_model(key)
        history, _ = descend_lazily(config, key)
        h = model.layer_features(X)[-1]
        return empirical_ntk(model, X), h @ h.T / 512, history.outputs

    tangent, products, outputs = jax.jit(lambda keys: jax.lax.map(measure, keys))(
        jax.random.split(jax.random.key(3), 24)
    )
    for found, drawn in ((limit.ntk[-1], tangent), (limit.features[-1], products)):
        drawn = np.float64(drawn)
        sem = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        # At this width the bias of the mean is below a standard error.
        assert np.all(np.abs(np.float64(found) - drawn.mean(axis=0)) < 4 * sem)
        assert np.any(np.abs(1.1 * np.float64(found) - drawn.mean(axis=0)) > 4 * sem)
    times = rate * np.asarray(steps, dtype=np.float64)

    def deviation(kernel):
        predict = jax.vmap(
            lambda start: kernel_predictions(kernel, CONFIG.targets, times, learning_rate=rate, initial=start).mean
        )
        moved = np.float64(outputs[:, 1] - outputs[:, 0])
        return np.sqrt(
            np.sum((np.float64(predict(outputs[:, 0]))[:, 1] - np.float64(outputs[:, 1])) ** 2) / np.sum(moved**2)
        )

    # Of order width^-1/2 = 0.044; the same bound rejects a kernel without the lower layers' share.
    assert deviation(limit.ntk[-1]) < 0.1
    assert not deviation(limit.nngp[-1]) < 0.1


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: NtkMLPSpec(()), "`widths` must list at least one layer width"),
        (lambda: NtkMLPSpec((0,)), "`widths` must be an integer >= 1"),
        (lambda: NtkMLPSpec((3,), "tanh"), r"`activation` must be one of \['erf', 'relu'\]"),
        (lambda: NtkMLPSpec((3,), weight_std=0.0), "`weight_std` must be finite and > 0"),
        (lambda: NtkMLPSpec((3,), bias_std=-1.0), "`bias_std` must be finite and >= 0"),
        (lambda: replace(CONFIG, inputs=X[:3]), "`targets` must have 1 to 3 rows"),
        (lambda: replace(CONFIG, inputs=X * np.nan), "`inputs` must be finite"),
        (lambda: replace(CONFIG, record_steps=(3, 1)), "`record_steps` must be increasing"),
        (lambda: replace(CONFIG, record_steps=()), "`record_steps` must be increasing"),
        (lambda: replace(CONFIG, learning_rate=0.0), "`learning_rate` must be finite and > 0"),
    ],
)
def test_errors(build_it, message, own_errors):
    with pytest.raises(ValueError, match=message):
        build_it()


def test_inputs_of_another_width_are_refused(key, own_errors):
    with pytest.raises(ValueError, match=r"`x` must have shape \(N, 4\)"):
        empirical_ntk(build(SPECS[0], key), np.ones((2, 3)))
