"""Kernels of infinitely wide MLPs against quadrature, Monte Carlo over Gaussians and over wide networks, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from nctheory import theory
from nctheory.theory.network_kernels import EXPECTATIONS, kernel_layers

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 1e-4
# Monte Carlo over whole networks: every entry within this many standard errors.
STANDARD_ERRORS = 4.0
# Over single neurons, 120 comparisons: two-sided false-alarm rate 1e-6 in all, 8e-9 each. The formulas' exact test is
# quadrature; with this seed the slopes of erf lie at 4.7 and its features at 4.39.
Z = 5.8
PHI = {"erf": erf, "relu": lambda z: np.maximum(z, 0)}
SLOPE = {"erf": lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2)), "relu": lambda z: (z > 0).astype(z.dtype)}
OPTIONS = {"erf": {"weight_std": 1.5, "bias_std": 0.3}, "relu": {"weight_std": 1.4, "bias_std": 0.2}}
POINTS = np.random.default_rng(0).normal(size=(4, 6)) * np.array([0.5, 1.0, 1.5, 1.0])[:, None]
POINTS[3] = 0.9 * POINTS[1] + 0.1 * POINTS[2]


def layers(activation, x=POINTS, x2=None, depth=3, **options):
    return kernel_layers(x, x2, depth=depth, activation=activation, **(OPTIONS[activation] | options))


def quadrature(function, covariance, num_nodes=200):
    """E function(u, v), (u, v) Gaussian: v by Gauss-Hermite given u, on a rotated grid."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()
    root = np.linalg.cholesky(covariance)
    u = root[0, 0] * nodes[:, None]
    v = root[1, 0] * nodes[:, None] + root[1, 1] * nodes[None, :]
    return float(weights @ function(u, v) @ weights)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_expectations_against_quadrature(activation):
    a, b, c = 0.8, 1.7, 0.6
    found = EXPECTATIONS[activation](*(jnp.asarray(z) for z in ([a], [b], [[c]])), jnp.zeros((1, 1), bool))
    covariance = np.array([[a, c], [c, b]])
    for got, function in zip(found, (PHI, SLOPE), strict=True):
        f = function[activation]
        truth = quadrature(lambda u, v, f=f: f(u) * f(v), covariance)
        # Gauss-Hermite with 200 nodes: smooth functions to rounding, kinks to 1e-3, jumps to some percent.
        tolerance = TIGHT if activation == "erf" else 1e-3 if f is PHI["relu"] else 3e-2
        assert float(got[0, 0]) == pytest.approx(truth, abs=tolerance)


def test_every_layer_of_erf_against_quadrature():
    """Slopes recovered from the NTK recursion, for every pair of points, a point with itself included."""
    record, weight_std = layers("erf"), OPTIONS["erf"]["weight_std"]
    for layer in range(1, 4):
        covariance = np.float64(record.nngp[layer - 1])
        growth = np.float64(record.ntk[layer] - record.nngp[layer]) / (
            weight_std**2 * np.float64(record.ntk[layer - 1])
        )
        for function, found in ((PHI["erf"], np.float64(record.features[layer])), (SLOPE["erf"], growth)):
            for i, j in np.ndindex(4, 4):
                # A point with itself: equal to rounding, kept positive definite.
                pair = covariance[np.ix_([i, j], [i, j])] + 1e-13 * np.eye(2) * (i == j)
                truth = quadrature(lambda u, v, f=function: f(u) * f(v), pair)
                # Gauss-Hermite with 200 nodes is exact to 3e-7 at the variance of the first layer, 140 nodes to 2e-5.
                assert found[i, j] == pytest.approx(truth, abs=1e-6 if X64 else 1e-4)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_each_layer_against_drawn_neurons(activation):
    """Neurons drawn from N(0, S) of the layer: exact at every layer, no finite-width bias. Wrong kernels are seen."""
    record = layers(activation)
    options = OPTIONS[activation]
    rng, draws = np.random.default_rng(1), 400_000
    others = layers({"erf": "relu", "relu": "erf"}[activation], **options)
    for layer in range(1, 4):
        covariance = np.float64(record.nngp[layer - 1])
        values, vectors = np.linalg.eigh(covariance)  # in float32, rounding may leave an eigenvalue below 0
        z = rng.normal(size=(draws, 4)) @ (vectors * np.sqrt(np.maximum(values, 0))).T
        growth = (np.float64(record.ntk[layer]) - np.float64(record.nngp[layer])) / (
            options["weight_std"] ** 2 * np.float64(record.ntk[layer - 1])
        )
        dot = _dot_product_slopes(activation, covariance)
        for f, found, wrong in ((PHI, record.features[layer], others.features[layer]), (SLOPE, growth, dot)):
            values = f[activation](z)
            mean = values.T @ values / draws
            sem = np.sqrt(np.maximum((values**2).T @ values**2 / draws - mean**2, 0) / draws) + 1e-7
            assert np.all(np.abs(np.float64(found) - mean) < Z * sem)
            assert np.any(np.abs(np.float64(wrong) - mean) > 10 * sem)


def _dot_product_slopes(activation, covariance):
    """The published error: a dot product of the samples' scales where their outer product is due."""
    if activation == "erf":
        scale = 1 + 2 * np.diag(covariance)
        return 4 / np.pi / np.sqrt(scale @ scale - 4 * covariance**2)
    scale = np.sqrt(np.diag(covariance))
    return (np.pi - np.arccos(np.clip(covariance / (scale @ scale), -1, 1))) / (2 * np.pi)


def _network_kernels(activation, x, width, depth, rng, weight_std, bias_std):
    """Feature products of every hidden layer and the parameter-gradient products of one output, by the chain rule."""
    h, entering, slopes = x, [], []
    kernels = [rng.standard_normal((x.shape[1], width))]
    kernels += [rng.standard_normal((width, width)) for _ in range(depth - 1)] + [rng.standard_normal((width, 1))]
    for kernel in kernels[:-1]:
        entering.append(h)
        z = weight_std / np.sqrt(len(kernel)) * h @ kernel + bias_std * rng.standard_normal(width)
        h = PHI[activation](z)
        slopes.append(SLOPE[activation](z))
    delta, ntk = np.ones((len(x), 1)), weight_std**2 * h @ h.T / width + bias_std**2
    for layer in reversed(range(depth)):
        kernel = kernels[layer + 1]
        delta = weight_std / np.sqrt(len(kernel)) * delta @ kernel.T * slopes[layer]
        inner = weight_std**2 * entering[layer] @ entering[layer].T / entering[layer].shape[1] + bias_std**2
        ntk += (delta @ delta.T) * inner
    return np.stack([*(each @ each.T / width for each in entering[1:]), h @ h.T / width]), ntk


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_whole_networks_against_monte_carlo(activation):
    """Mean over finite networks of feature products (NNGP) and of Jacobian products (NTK), four standard errors.

    At width 512 the bias of the mean, of order 1/512 of the kernel, is below one standard error of 60 networks.
    """
    rng, width, depth, draws = np.random.default_rng(2), 512, 2, 60
    samples = [_network_kernels(activation, POINTS, width, depth, rng, **OPTIONS[activation]) for _ in range(draws)]
    record = layers(activation, depth=depth)
    tangent = np.stack([ntk for _, ntk in samples])
    products = np.stack([features for features, _ in samples])
    for found, drawn in ((record.ntk[-1], tangent), (record.features[1:], products)):
        sem = drawn.std(axis=0, ddof=1) / np.sqrt(draws)
        assert np.all(np.abs(np.float64(found) - drawn.mean(axis=0)) < STANDARD_ERRORS * sem)
    # The derivative kernel with the dot product, put through the same recursion, fails.
    wrong = np.float64(record.nngp[0])
    for layer in (1, 2):
        slopes = _dot_product_slopes(activation, np.float64(record.nngp[layer - 1]))
        wrong = np.float64(record.nngp[layer]) + OPTIONS[activation]["weight_std"] ** 2 * wrong * slopes
    sem = tangent.std(axis=0, ddof=1) / np.sqrt(draws)
    assert np.any(np.abs(wrong - tangent.mean(axis=0)) > 10 * sem)


def test_exact_values_and_the_one_layer_kernel():
    x = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    record = kernel_layers(x, depth=1, activation="relu", weight_std=2**0.5)
    np.testing.assert_allclose(record.features[0], x @ x.T / 2, atol=1e-7)
    # He's variance keeps squared lengths; orthogonal inputs: |x||x'| / (pi d); opposite ones: 0; a zero input: 0.
    expected = np.array([[2, 1 / np.pi, 0, 0], [1 / np.pi, 0.5, 0.5 / np.pi, 0], [0, 0.5 / np.pi, 0.5, 0], [0] * 4])
    np.testing.assert_allclose(record.features[1], expected, atol=TIGHT)
    # E phi' phi' is 1/2, 1/4 and 0 in these three cases.
    tangent = 2 * expected + 2 * np.array([[2, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.5, 0], [0] * 4]) * 2 * 0.5
    np.testing.assert_allclose(record.ntk[1], tangent, atol=TIGHT)
    ours = kernel_layers(POINTS, POINTS[:2], depth=1, activation="relu", weight_std=1.3).features[1]
    theirs = theory.relu_kernel(POINTS, POINTS[:2], init_std=1.3 / 6**0.5, width=1)
    np.testing.assert_allclose(ours, theirs, atol=TIGHT)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_cross_kernels_are_blocks_of_the_symmetric_ones(activation):
    whole, block = layers(activation), layers(activation, POINTS[:2], POINTS[2:])
    for name in ("features", "nngp", "ntk"):
        full = np.asarray(getattr(whole, name))
        assert full.shape == (4, 4, 4)
        np.testing.assert_allclose(getattr(block, name), full[:, :2, 2:], atol=TIGHT)
        np.testing.assert_allclose(full, full.transpose(0, 2, 1), atol=TIGHT)
        # A square root of the rounding of a cosine where a row meets its equal.
        again = np.asarray(getattr(layers(activation, POINTS, POINTS.copy()), name))
        np.testing.assert_allclose(again, full, atol=1e-6 if X64 else 1e-2)


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["erf", "relu"]), st.integers(1, 4), st.floats(0.5, 2.5), st.floats(0.0, 1.0), st.integers(0, 99)
)
def test_kernels_are_positive_and_forget_rotations(activation, depth, weight_std, bias_std, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    options = {"depth": depth, "activation": activation, "weight_std": weight_std, "bias_std": bias_std}
    record, turned = kernel_layers(x, **options), kernel_layers(x @ turn, **options)
    for name in ("features", "nngp", "ntk"):
        kernels = np.float64(getattr(record, name))
        scale = np.abs(kernels).max()
        assert np.linalg.eigvalsh(kernels).min() > -(1e-9 if X64 else 1e-4) * scale
        np.testing.assert_allclose(getattr(turned, name), kernels, atol=(1e-6 if X64 else 1e-2) * scale)
    # What the NTK adds to the NNGP comes from earlier layers and is positive itself.
    assert np.linalg.eigvalsh(np.float64(record.ntk - record.nngp)).min() > -(1e-9 if X64 else 1e-3) * scale


@pytest.mark.parametrize("activation", [pytest.param("erf", marks=pytest.mark.slow), "relu"])
def test_gradients_are_finite_and_right(activation):
    """At equal, opposite, zero and nearly equal inputs; equal to central differences where there is no kink."""
    x2 = jnp.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1.0, 2.0 + 1e-6], [0.3, -1.0]])

    def total(x, rows=x2, name="features"):
        record = kernel_layers(x[None], rows, depth=2, activation=activation, weight_std=1.2)
        return jnp.sum(getattr(record, name))

    for name in ("features", "nngp", "ntk"):
        for x in (jnp.array([1.0, 2.0]), jnp.array([-0.5, -1.0]), jnp.zeros(2)):
            assert np.isfinite(np.asarray(jax.grad(total)(x, name=name))).all()
            assert np.isfinite(np.asarray(jax.grad(lambda r, x=x, name=name: total(x, r, name))(x2))).all()
    symmetric = jax.grad(lambda r: jnp.sum(kernel_layers(r, depth=2, activation=activation, weight_std=1.2).ntk))(x2)
    assert np.isfinite(np.asarray(symmetric)).all()
    step, x = (1e-5 if X64 else 1e-2), np.array([0.4, 1.1])
    for name in ("features", "ntk"):
        gradient = np.asarray(jax.grad(total)(jnp.asarray(x), name=name))
        for i, e in enumerate(np.eye(2)):
            ends = [float(total(jnp.asarray(x + sign * step * e), name=name)) for sign in (1, -1)]
            # Difference quotients: truncation step^2, rounding eps / step.
            assert gradient[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6 if X64 else 3e-2)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_transformations_and_dtype(activation):
    stacked = jnp.asarray(np.stack([POINTS, POINTS[::-1] * 0.7]))

    def last(x, weight_std):
        options = {"activation": activation, "weight_std": weight_std, "bias_std": 0.1}
        return kernel_layers(x, depth=2, **options).ntk[-1]

    stds = jnp.array([1.1, 1.6])
    mapped = jax.jit(jax.vmap(last))(stacked, stds)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], last(stacked[i], stds[i]), atol=TIGHT)
    single = layers(activation, POINTS.astype(np.float32), weight_std=1.5)
    assert single.ntk.dtype == single.features.dtype == jnp.float32
    np.testing.assert_allclose(single.ntk, layers(activation, weight_std=1.5).ntk, rtol=1e-4, atol=1e-4)
    half = layers(activation, POINTS.astype(np.float16), weight_std=1.5)
    assert half.ntk.dtype == jnp.float32
    # Inputs of eleven bits.
    np.testing.assert_allclose(half.ntk, single.ntk, rtol=3e-3, atol=3e-3)
    assert any("infinite" in text for text in single.assumptions)
    assert np.isnan(np.asarray(jax.jit(last)(stacked[0], jnp.asarray(-1.0)))).all()


def test_errors(own_errors):
    good = {"depth": 1, "activation": "erf", "weight_std": 1.0}
    x = np.ones((2, 3))
    for arguments, options, message in (
        ((np.ones(3),), {}, r"`x` must have shape \(N, d\)"),
        ((np.ones((2, 0)),), {}, "`x` must have no empty axis"),
        ((x * np.nan,), {}, "`x` must be finite"),
        ((x, np.ones((2, 4))), {}, r"`x2` must have shape \(M, 3\)"),
        ((x, np.ones((0, 3))), {}, r"`x2` must have at least 1 row, but has shape \(0, 3\)"),
        ((x,), {"activation": ["erf"]}, r"`activation` must be one of .* but is \['erf'\]"),
        ((x,), {"depth": 0}, "`depth` must be an integer >= 1"),
        ((x,), {"activation": "tanh"}, r"`activation` must be one of \['erf', 'relu'\]"),
        ((x,), {"weight_std": 0.0}, "`weight_std` must be finite and > 0"),
        ((x,), {"bias_std": -0.1}, "`bias_std` must be finite and >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_layers(*arguments, **(good | options))
