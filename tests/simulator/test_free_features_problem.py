"""The unconstrained feature model against literal NumPy, and its symmetries and reductions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import objectives
from nctheory.simulator.free_features import UfmParams, UfmProblem, average_classes, repeat_classes

X64 = jax.config.jax_enable_x64
TOLERANCE = 1e-12 if X64 else 2e-5
SIZES = (3, 2, 4)
DECAYS = np.array([0.02, 0.03, 0.05])


def literal(problem, params):
    """The objective as the module docstring writes it, sample by sample."""
    h = np.asarray(params.features, dtype=np.float64)
    weights = [np.asarray(w, dtype=np.float64) for w in params.weights]
    labels, k = problem.labels, problem.num_classes
    if problem.features == "spherical":
        h = problem.feature_radius * h / np.linalg.norm(h, axis=1)[:, None]
    if problem.features == "norm_bounded":
        mean_square = np.mean([np.mean(np.sum(h[labels == c] ** 2, axis=1)) for c in range(k)])
        h = problem.feature_radius * h / np.sqrt(mean_square)
    if problem.weights == "spherical":
        weights = [problem.weight_radius * weights[0] / np.linalg.norm(weights[0], axis=1)[:, None]]
    if problem.weights == "norm_bounded":
        weights = [problem.weight_radius * weights[0] * np.sqrt(k) / np.linalg.norm(weights[0])]
    f = np.maximum(h, 0) if problem.features == "relu" else h
    for weight in weights[:-1]:
        f = f @ weight.T
        f = np.maximum(f, 0) if problem.activation == "relu" else f
    z = f @ weights[-1].T + (0 if params.bias is None else np.asarray(params.bias))
    total = 0.0
    for i, label in enumerate(labels):
        if problem.loss == "mse":
            total += np.sum((z[i] - np.eye(k)[label]) ** 2) / 2
        else:
            total += np.log(np.sum(np.exp(z[i]))) - z[i, label]
    total /= len(labels)
    decays = np.broadcast_to(problem.weight_decay, len(weights))
    total += sum(lam / 2 * np.sum(w**2) for lam, w in zip(decays, weights, strict=True))
    total += problem.feature_decay / 2 * np.sum(h**2)
    return total + (0 if params.bias is None else problem.bias_decay / 2 * np.sum(np.asarray(params.bias) ** 2))


VARIANTS = {
    "deep": {"widths": (4, 5, 3), "weight_decay": DECAYS, "bias": 0.7},
    "deep_ce": {"widths": (4, 5, 3), "weight_decay": DECAYS, "loss": "cross_entropy", "bias": "free"},
    "deep_relu": {"widths": (4, 5, 3), "activation": "relu"},
    "relu": {"widths": 4, "features": "relu", "loss": "cross_entropy"},
    "nonnegative": {"widths": 4, "features": "nonnegative"},
    "spherical": {
        "widths": 4, "features": "spherical", "weights": "spherical", "loss": "cross_entropy",
        "feature_radius": 2.0, "weight_radius": 1.5,
    },
    "peeled": {
        "widths": 4, "features": "norm_bounded", "weights": "norm_bounded", "loss": "cross_entropy",
        "feature_radius": 2.0, "weight_radius": 1.5,
    },
}  # fmt: skip


def build(name):
    return UfmProblem(SIZES, feature_decay=0.04, init_std=0.6, **VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_objective_is_the_written_formula(name, key):
    problem = build(name)
    params = problem.init(key)
    value = jax.jit(lambda problem, params: problem.objective(params))(problem, params)
    np.testing.assert_allclose(value, literal(problem, params), rtol=TOLERANCE)
    numpy_params = jax.tree.map(np.asarray, params)
    np.testing.assert_allclose(problem.objective(numpy_params), value, rtol=TOLERANCE)


@pytest.mark.skipif(not X64, reason="central differences need float64")
@pytest.mark.parametrize("name", ["deep", "deep_relu", "spherical", "peeled"])
def test_gradient_by_central_differences(name, key):
    """Step 1e-5: truncation about 1e-10, rounding about 1e-11."""
    problem = build(name)
    params = problem.init(key)
    direction = problem.init(jax.random.fold_in(key, 1))
    gradient = jax.jit(jax.grad(problem.objective))(params)
    slope = sum(float(jnp.sum(g * d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    ends = [literal(problem, jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1e-5, -1e-5)]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)


def test_data_loss_is_the_library_objective(key):
    problem = build("deep_ce")
    params = problem.init(key)
    logits = problem.logits(params)
    np.testing.assert_allclose(
        problem.data_loss(params), objectives.cross_entropy(logits, problem.labels), rtol=TOLERANCE
    )
    squared = replace(problem, loss="mse")
    targets = np.eye(3)[problem.labels].astype(logits.dtype)
    np.testing.assert_allclose(squared.data_loss(params), objectives.mse(logits, targets), rtol=TOLERANCE)


def test_layers_and_products(key):
    problem = build("deep")
    params = problem.init(key)
    features, products = problem.layer_features(params), problem.left_products(params)
    assert [f.shape for f in features] == [(9, 4), (9, 5), (9, 3)]
    w1, w2, w3 = (np.asarray(w) for w in params.weights)
    np.testing.assert_allclose(problem.product(params), w3 @ w2 @ w1, rtol=TOLERANCE, atol=TOLERANCE)
    for entering, product in zip(features, products, strict=True):
        logits = np.asarray(entering) @ np.asarray(product).T + np.asarray(params.bias)
        np.testing.assert_allclose(problem.logits(params), logits, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["deep", "deep_ce", "relu", "nonnegative"])
def test_averaging_a_class_never_raises_the_objective(name, key):
    problem = build(name)
    params = problem.init(key)
    averaged = average_classes(problem, params)
    small = replace(problem, level="class")
    assert small.objective(averaged) < problem.objective(params)
    repeated = repeat_classes(small, averaged)
    np.testing.assert_allclose(small.objective(averaged), literal(problem, repeated), rtol=TOLERANCE)
    np.testing.assert_allclose(small.init(key).features, averaged.features, rtol=TOLERANCE)
    means = np.maximum(params.features, 0) if name == "relu" else np.asarray(params.features)
    np.testing.assert_allclose(averaged.features[1], means[3:5].mean(axis=0), rtol=TOLERANCE)


@settings(max_examples=6, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    loss=st.sampled_from(["mse", "cross_entropy"]),
    bias=st.sampled_from(["none", "free", 0.3]),
    seed=st.integers(0, 99),
)
def test_any_problem_is_the_written_formula_and_no_better_before_averaging(sizes, widths, loss, bias, seed):
    problem = UfmProblem(tuple(sizes), tuple(widths), loss=loss, bias=bias, feature_decay=0.1, init_std=1.0)

    @jax.jit
    def evaluate(key):
        params = problem.init(key)
        averaged = replace(problem, level="class").objective(average_classes(problem, params))
        return params, problem.objective(params), averaged

    params, value, averaged = evaluate(jax.random.key(seed))
    assert float(value) == pytest.approx(literal(problem, params), rel=10 * TOLERANCE)
    assert float(averaged) <= float(value) * (1 + 10 * TOLERANCE)


def test_starts_have_the_asked_spread(key):
    problem = UfmProblem((50, 50), (40, 30), init_std=0.3, bias="free")
    params = problem.init(key)
    # 4,000 and 1,200 normal entries: six standard errors of a standard deviation are 6 and 12 percent.
    assert float(jnp.std(params.features)) == pytest.approx(0.3, rel=0.07)
    assert float(jnp.std(params.weights[0])) == pytest.approx(0.3, rel=0.13)
    assert float(jnp.max(jnp.abs(params.bias))) <= 30**-0.5
    assert np.asarray(replace(problem, features="nonnegative").init(key).features).min() >= 0


def test_vmap_over_numbers_and_starts(key):
    problem = build("deep")
    keys = jax.random.split(key, 3)
    decays = jnp.asarray([0.0, 0.1, 2.0])
    values = jax.vmap(lambda k, d: replace(problem, feature_decay=d).objective(problem.init(k)))(keys, decays)
    for i in range(3):
        alone = replace(problem, feature_decay=float(decays[i]))
        np.testing.assert_allclose(values[i], literal(alone, alone.init(keys[i])), rtol=TOLERANCE)


def test_errors(own_errors, key):
    with pytest.raises(ValueError, match="`class_sizes` must be an integer >= 1"):
        UfmProblem((3, 0), 4)
    with pytest.raises(ValueError, match="`class_sizes` must list at least 2 classes"):
        UfmProblem((3,), 4)
    with pytest.raises(ValueError, match="`class_sizes` must be a sequence"):
        UfmProblem(3, 4)
    with pytest.raises(ValueError, match="`widths` must be an integer >= 1"):
        UfmProblem((3, 3), (4, 0))
    with pytest.raises(ValueError, match="`widths` must list 3 widths"):
        UfmProblem((3, 3), (4, 4), depth=3)
    with pytest.raises(ValueError, match="`depth` must be an integer >= 1"):
        UfmProblem((3, 3), 4, depth=0)
    with pytest.raises(ValueError, match="`depth` must be 1 for weights 'spherical'"):
        UfmProblem((3, 3), 4, depth=2, weights="spherical")
    with pytest.raises(ValueError, match="`weight_decay` must be finite and >= 0"):
        UfmProblem((3, 3), 4, weight_decay=-1.0)
    with pytest.raises(ValueError, match=r"`weight_decay` must be a scalar or have shape \(1,\)"):
        UfmProblem((3, 3), 4, weight_decay=DECAYS)
    with pytest.raises(ValueError, match="`feature_radius` must be finite and > 0"):
        UfmProblem((3, 3), 4, feature_radius=0.0)
    with pytest.raises(ValueError, match="`bias_decay` must be finite and >= 0"):
        UfmProblem((3, 3), 4, bias=-0.5)
    for name in ("loss", "activation", "features", "weights", "level", "bias"):
        with pytest.raises(ValueError, match=f"`{name}` must be one of"):
            UfmProblem((3, 3), 4, **{name: "other"})
    problem = UfmProblem((3, 3), 4)
    params = problem.init(key)
    with pytest.raises(ValueError, match=r"`params.features` must have shape \(6, 4\)"):
        problem.objective(replace(params, features=params.features[1:]))
    with pytest.raises(ValueError, match=r"`params\.weights` must list 1 layers"):
        problem.objective(UfmParams(params.features, params.weights * 2, None))
    with pytest.raises(ValueError, match=r"`params\.bias` must fit bias 'none'"):
        problem.objective(replace(params, bias=jnp.zeros(2)))
    small = replace(problem, level="class")
    with pytest.raises(ValueError, match="`problem` must be at level 'sample'"):
        average_classes(small, params)
    with pytest.raises(ValueError, match="`problem` must be at level 'class'"):
        repeat_classes(problem, params)
