"""Deep ReLU features: losses against explicit networks in plain NumPy, against published ratios, and by polishing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory._errors import ArgumentError
from nctheory.simulator.free_features import UfmParams, UfmProblem
from nctheory.simulator.solver import minimize_from
from nctheory.theory.deep_relu import (
    deep_relu_collapse,
    edge_incidence,
    srg_beats_dnc,
    srg_parameters,
    srg_solution,
)
from nctheory.theory.mse_ufm import mse_ufm_representative

X64 = jax.config.jax_enable_x64
# Algebra: sums of a few hundred products of order one.
RTOL = 1e-12 if X64 else 1e-5


def network_loss(params, samples, decays, feature_decay):
    """The objective, literally, in float64."""
    x = np.asarray(params.class_features, float).T
    loss = samples * feature_decay / 2 * np.sum(x**2)
    for i, (weight, decay) in enumerate(zip(params.weights, decays, strict=True)):
        w = np.asarray(weight, float)
        x = w @ x
        x = np.maximum(x, 0) if i < len(decays) - 1 else x
        loss += decay / 2 * np.sum(w**2)
    k = len(x)
    return loss + samples * np.sum((x - np.eye(k)) ** 2) / (2 * samples * k)


@pytest.mark.parametrize(("k", "depth"), [pytest.param(2, 2, marks=pytest.mark.slow), (2, 4), (5, 1), (6, 3)])
def test_collapse_is_a_point_of_the_relu_network(k, depth):
    decays = np.geomspace(1e-3, 3e-3, depth)
    found = deep_relu_collapse(k, 4, depth=depth, weight_decay=decays, feature_decay=2e-3)
    params = mse_ufm_representative(found.minimizer)
    assert all((np.asarray(w) >= 0).all() for w in params.weights)
    np.testing.assert_allclose(found.loss, network_loss(params, 4, decays, 2e-3), rtol=RTOL)
    assert found.is_minimum == (k == 2 or depth == 1)
    _is_the_geometry_of(found, params, 4)


def _is_the_geometry_of(record, params, samples):
    """Singular values, norms, Gram matrices and outputs of the record against explicit weights and features."""
    weights, features = [np.asarray(w, float) for w in params.weights], np.asarray(params.class_features, float)
    # Eigenvalues of size up to some tens, and values that are zero but for rounding.
    close = {"rtol": 10 * RTOL, "atol": 10 * RTOL}
    *hidden, last = weights
    for weight, values, norm in zip(weights, record.layer_singular_values, record.layer_norms, strict=True):
        true = np.linalg.svd(weight, compute_uv=False)
        values = np.sort(np.asarray(values))[::-1]
        np.testing.assert_allclose(values, np.pad(true, (0, values.size - true.size)), **close)
        np.testing.assert_allclose(norm, np.sum(weight**2), **close)
    rows = np.repeat(features, samples, axis=0)
    values, true = np.sort(np.asarray(record.feature_singular_values))[::-1], np.linalg.svd(rows, compute_uv=False)
    length = max(values.size, true.size)
    np.testing.assert_allclose(
        np.pad(values, (0, length - values.size)), np.pad(true, (0, length - true.size)), **close
    )
    np.testing.assert_allclose(record.feature_norm, np.sum(rows**2), **close)
    np.testing.assert_allclose(record.feature_gram, features @ features.T, **close)
    outputs = features.T
    for weight in hidden:
        outputs = np.maximum(weight @ outputs, 0)
    np.testing.assert_allclose(record.logits, last @ outputs, **close)
    assert not np.asarray(record.bias).any()
    assert not np.asarray(params.bias).any()
    np.testing.assert_array_equal(record.active_classes, np.abs(last @ outputs).max(axis=0) > 0)
    assert int(np.sum(record.active)) == np.linalg.matrix_rank(last @ outputs, tol=1e-6)
    assert len(record.assumptions) > 2
    product = last
    if not hasattr(record, "num_vertices"):
        for weight in hidden[::-1]:
            product = product @ weight
    np.testing.assert_allclose(record.weight_gram, product @ product.T, **close)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_collapse_vanishes_exactly_beyond_its_condition(depth):
    k, n = 2, 3
    # Two classes, published form: n lambda^(L+1) = (L-1)^(L-1)/(2^(L+1) L^(2L)).
    edge = ((max(depth - 1, 1)) ** (depth - 1) / (2 ** (depth + 1) * depth ** (2 * depth)) / n) ** (1 / (depth + 1))
    for factor, trivial in ((0.99, False), (1.01, True)):
        found = deep_relu_collapse(k, n, depth=depth, weight_decay=edge * factor, feature_decay=edge * factor)
        assert bool(found.is_trivial) == trivial
        np.testing.assert_allclose(found.condition, factor ** (depth + 1), rtol=RTOL * 10)


@pytest.mark.parametrize("features", ["free", "nonnegative"])
@pytest.mark.parametrize("graph", ["line", "complement"])
@pytest.mark.parametrize(
    ("k", "depth", "n"),
    [(10, 3, 5), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((6, 4, 1), (15, 5, 2)))],
)
def test_srg_loss_is_that_of_its_explicit_network(k, depth, n, graph, features):
    decays = np.geomspace(5e-4, 2e-3, depth)
    found = srg_solution(k, n, depth=depth, weight_decay=decays, feature_decay=1e-3 / n, graph=graph, features=features)
    params = srg_parameters(found)
    np.testing.assert_allclose(found.loss, network_loss(params, n, decays, 1e-3 / n), rtol=RTOL)
    # At an optimum over all scales every penalty is the same.
    for weight, decay in zip(params.weights, decays, strict=True):
        np.testing.assert_allclose(decay * np.sum(np.asarray(weight) ** 2), found.penalty, rtol=10 * RTOL)
    multiplicity = np.array([1, found.num_vertices - 1, found.num_vertices * (found.num_vertices - 3) / 2])
    square = np.sum(multiplicity * np.asarray(found.last_layer_eigenvalues) ** 2)
    np.testing.assert_allclose(found.ridge, k * found.penalty / square, rtol=1e-8 if X64 else 5e-2)
    if features == "nonnegative":
        assert (np.asarray(params.class_features) >= 0).all()
    _is_the_geometry_of(found, params, n)
    padded = srg_parameters(found, widths=(k + 2,) * depth)
    np.testing.assert_allclose(network_loss(padded, n, decays, 1e-3 / n), found.loss, rtol=RTOL)


def test_srg_hidden_layers_carry_the_graph():
    found = srg_solution(10, 1, depth=4, weight_decay=1e-3, feature_decay=1e-3, graph="complement")
    params = srg_parameters(found)
    hidden = np.asarray(params.weights[0]) @ np.asarray(params.class_features).T
    b = edge_incidence(5)
    np.testing.assert_allclose(hidden / hidden.max(), b, atol=1e-6)
    z = np.asarray(params.weights[2]) @ np.maximum(np.asarray(params.weights[1]) @ np.maximum(hidden, 0), 0)
    np.testing.assert_allclose(z / z.max(), 1 - b.T @ b, atol=2e-6)
    assert float(found.shape) == -1


@pytest.mark.parametrize(
    ("k", "depth", "decay", "ratio", "graph"),
    [
        (6, 4, 1e-3, 0.94454, "line"),
        pytest.param(6, 5, 1e-3, 0.89131, "line", marks=pytest.mark.slow),
        (10, 3, 1e-3, 0.92274, "complement"),
        (10, 4, 1e-3, 0.88292, "line"),
        (10, 4, 1e-3, 0.81656, "complement"),
        (10, 5, 1e-3, 0.75258, "complement"),
        pytest.param(15, 4, 1e-3, 0.78307, "complement", marks=pytest.mark.slow),
        (6, 3, 1e-3, 1.03035, "line"),
    ],
)
def test_ratios_to_collapse(k, depth, decay, ratio, graph):
    """Grid search in plain NumPy over the same structure, done once, to the digits shown."""
    found = srg_solution(k, 1, depth=depth, weight_decay=decay, feature_decay=decay, graph=graph)
    np.testing.assert_allclose(found.ratio, ratio, atol=1.1e-5)
    assert bool(found.beats_collapse) == (ratio < 1)


@pytest.mark.skipif(not X64, reason="second differences need float64")
def test_srg_is_stationary_in_every_scale_and_in_its_shape():
    decays = np.full(4, 2e-3)
    found = srg_solution(10, 1, depth=4, weight_decay=decays, feature_decay=2e-3, graph="line")
    params = srg_parameters(found)
    step = 1e-5
    for i in range(4):
        # A move along the layer itself, and one along the vertex-uniform direction of its input or output.
        w = np.asarray(params.weights[i])
        for move in (w, np.ones_like(w) / np.sqrt(w.size)):
            losses = []
            for sign in (1, -1):
                weights = [np.asarray(v) for v in params.weights]
                weights[i] = weights[i] + sign * step * move
                losses.append(
                    network_loss(type(params)(tuple(weights), params.class_features, params.bias), 1, decays, 2e-3)
                )
            if move is w or i == 3:
                assert abs(losses[0] - losses[1]) / (2 * step) < 1e-8
            # Elsewhere ReLU has a kink at the zeros of B, so that the loss may only rise.
            assert min(losses) >= float(found.loss) - 1e-12


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="compares small differences of losses")
@pytest.mark.parametrize(("k", "depth", "graph"), [(6, 4, "line"), (10, 3, "complement"), (10, 4, "complement")])
def test_polishing_without_structure_never_ends_higher(k, depth, graph, key):
    found = srg_solution(k, 1, depth=depth, weight_decay=1e-3, feature_decay=1e-3, graph=graph)
    params = srg_parameters(found, widths=(k,) * depth)
    problem = UfmProblem((1,) * k, k, depth=depth, weight_decay=1e-3, feature_decay=1e-3, activation="relu")
    start = UfmParams(params.class_features, params.weights, None)
    np.testing.assert_allclose(problem.objective(start), found.loss, rtol=1e-12)
    noisy = jax.tree.map(
        lambda leaf: leaf + 0.03 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape, leaf.dtype), start
    )
    ends = [float(minimize_from(problem, s, max_evaluations=3000).loss) for s in (start, noisy)]
    assert ends[0] <= float(found.loss) + 1e-12
    # The structure is close to what descent finds around it, and stays below collapse.
    assert 0.97 * float(found.loss) < min(ends) < float(found.collapse_loss)


def test_strong_decay_gives_zero_not_nan_in_norms():
    found = srg_solution(10, 1, depth=4, weight_decay=0.5, feature_decay=0.5)
    assert bool(found.is_trivial)
    assert float(found.loss) == 0.5
    assert not bool(found.beats_collapse)
    assert np.isnan(found.shape)
    params = srg_parameters(found)
    assert all(np.all(np.asarray(w) == 0) for w in params.weights)
    _is_the_geometry_of(found, params, 1)


@pytest.mark.slow
def test_vmap_and_gradient():
    def loss(decay):
        return srg_solution(6, 2, depth=4, weight_decay=decay, feature_decay=1e-3).loss

    decays = jnp.asarray([5e-4, 1e-3, 4e-3])
    together = jax.jit(jax.vmap(loss))(decays)
    np.testing.assert_allclose(together, [loss(d) for d in decays], rtol=RTOL)
    if X64:
        slope = (loss(decays[1] * (1 + 1e-5)) - loss(decays[1] * (1 - 1e-5))) / (2e-5 * decays[1])
        np.testing.assert_allclose(jax.grad(loss)(decays[1]), slope, rtol=1e-7)
    assert bool(srg_beats_dnc(6, 2, depth=4, weight_decay=1e-3, feature_decay=1e-3))


@pytest.mark.parametrize("call", [deep_relu_collapse, srg_solution])
def test_bad_numbers_under_vmap_give_nan(call):
    """Every float of the record, the truth values False; a good neighbour in the batch is untouched."""

    def record(n, weight_decay, feature_decay):
        return call(6, n, depth=3, weight_decay=[weight_decay, 1e-3, 1e-3], feature_decay=feature_decay)

    nan, inf = np.nan, np.inf
    rows = [(2, 1e-3, 1e-3), (0, 1e-3, 1e-3), (nan, 1e-3, 1e-3), (2, nan, 1e-3), (2, -1.0, 1e-3), (2, 1e-3, 0.0)]
    rows = jnp.asarray([*rows, (2, 1e-3, -1.0), (2, inf, 1e-3)], dtype=float)
    found = jax.jit(jax.vmap(record))(*rows.T)
    for leaf in map(np.asarray, jax.tree.leaves(found)):
        assert np.isnan(leaf[1:]).all() if leaf.dtype.kind == "f" else not leaf[1:].any()
    good = record(2, 1e-3, 1e-3)
    assert np.isfinite(good.loss)
    np.testing.assert_allclose(found.loss[0], good.loss, rtol=RTOL)
    np.testing.assert_allclose(found.logits[0], good.logits, rtol=1e3 * RTOL, atol=1e3 * RTOL)


def test_errors(own_errors):
    good = {"depth": 4, "weight_decay": 1e-3, "feature_decay": 1e-3}
    for change, name in (
        ({"depth": 2}, "depth"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"weight_decay": np.ones(3)}, "weight_decay"),
        ({"feature_decay": -1.0}, "feature_decay"),
        ({"graph": "star"}, "graph"),
        ({"features": "any"}, "features"),
        ({"weight_decay": None}, "weight_decay"),
        ({"feature_decay": None}, "feature_decay"),
        ({"weight_decay": [1e-3] * 3}, "weight_decay"),
    ):
        with pytest.raises(ValueError, match=f"Argument `{name}` must"):
            srg_solution(10, 1, **(good | change))
    for k in (3, 7, 9):
        with pytest.raises(ArgumentError, match=r"Argument `num_classes` must be r\(r-1\)/2"):
            srg_solution(k, 1, **good)
    for n in (0, 1.5, None, [2]):
        with pytest.raises(ValueError, match="Argument `samples_per_class` must"):
            deep_relu_collapse(4, n, **good)
    found = srg_solution(10, 1, **good)
    with pytest.raises(ValueError, match="Argument `widths` must"):
        srg_parameters(found, widths=(5, 5, 5, 9))
    for widths in (10, "wide", (10, 10)):
        with pytest.raises(ArgumentError, match="Argument `widths` must"):
            srg_parameters(found, widths=widths)
    batch = jax.vmap(lambda n: srg_solution(10, n, **good))(jnp.asarray([1.0, 2.0]))
    with pytest.raises(ArgumentError, match="Argument `solution` must be one record"):
        srg_parameters(batch)
    with pytest.raises(ValueError, match="Argument `num_vertices` must"):
        edge_incidence(1)
