"""Deep linear unconstrained features, squared error: closed form against direct minimisation, no structure imposed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import ArgumentError
from nctheory.theory.mse_ufm import mse_ufm_representative
from tests.theory.mse_direct import RTOL, X64, Problem, assert_same_minimum, best_run, smallest_fit, solve

SMALL = [
    # sizes, decays W_1.., feature decay, bias, widths
    ((4, 3, 2), [0.01], 0.02, "none", [4]),
    ((8, 4, 1), [0.1], 0.08, "none", None),  # the smallest class collapses
    ((7, 4, 2), [0.004, 0.008], 0.002, "none", None),
    ((9, 5, 3), [0.03, 0.01, 0.02], 0.004, "none", [5, 4, 6]),
    ((5, 5, 5), [0.002, 0.002], 0.002, "free", [3, 5]),
    ((8, 3, 2, 1), [0.01], 0.004, "free", [3]),
    ((9, 5, 2), [0.002, 0.004], 0.001, "free", None),
    ((3, 3, 3), [0.01], 0.02, 0.2, None),
    ((4, 4, 4), [0.01, 0.004], 0.002, 0.05, None),  # the mode along 1 collapses
    ((7, 4, 2), [0.01], 0.02, 0.3, None),
    ((6, 4, 2), [0.004, 0.003], 0.002, "none", [2, 3]),  # bottleneck
    ((3, 2), [0.3, 0.4], 0.5, "free", None),  # trivial
    ((4, 4, 4), [0.004], 0.003, "free", [1]),  # bottleneck among equal modes: Gram matrices not unique
]


# Problems whose like is among the others: a deep network without bias (2, as 3 and 10), a free bias (5, as 4 and 6),
# and a decayed one of a single layer (7, as 9).
REPEATS = (2, 5, 7)


@pytest.mark.parametrize(
    ("sizes", "decays", "feature_decay", "bias", "widths"),
    [pytest.param(*each, marks=pytest.mark.slow) if i in REPEATS else each for i, each in enumerate(SMALL)],
)
def test_against_direct_minimisation(sizes, decays, feature_decay, bias, widths):
    """All samples free; deep networks have spurious minima with dead classes, so the best of several starts."""
    record = solve(sizes, decays, feature_decay, bias, widths)
    problem = Problem(sizes, decays, feature_decay, bias, widths)
    rng = np.random.default_rng(3)
    value, flat, _ = best_run(problem, record, rng, num_random=1 if len(decays) == 1 else 8)
    assert_same_minimum(problem, record, value, flat)
    assert float(record.loss) <= float(record.trivial_loss)
    # Norms by layer: every factor of the balanced minimum carries decay * |F|^2 = the same.
    shares = np.append(np.asarray(decays) * np.asarray(record.layer_norms), feature_decay * record.feature_norm)
    np.testing.assert_allclose(shares, shares[0], rtol=RTOL, atol=1e-12)


def test_which_of_the_small_problems_are_special():
    records = [solve(*problem) for problem in SMALL]
    np.testing.assert_array_equal(records[1].active_classes, [True, True, False])
    np.testing.assert_array_equal(records[8].active, [True, True, False])
    np.testing.assert_array_equal(records[10].active_classes, [True, True, False])
    assert bool(records[11].is_trivial)
    assert not bool(records[12].gram_is_unique)
    assert [bool(r.is_trivial) for r in records].count(True) == 1


REFERENCE = [
    ((20, 10, 5, 5), [0.01], 0.001, "none", (34.3553390593, 24, 16.6776695297, 16.6776695297), 0.0374842712474619),
    ((20, 10, 5, 5), [0.01, 0.017], 0.001, "none", (5.6489984676, 4.4274762861, 3.4415235638), 0.06762054226452294),
    ((20, 10, 5, 5), [0.02, 0.034, 0.048], 0.01, "none", (2.0285673672, 1.6258250319, 0, 0), 0.3044155604630004),
    ((10,) * 4, [0.02, 0.034, 0.048], 0.01, "none", (1.6258250319,) * 4, 0.3240835779432108),
    ((200, 100, 50, 50), [5e-4], 5e-4, "none", (69.7106781187, 49, 34.3553390593), 0.018942135623730948),
    ((200, 100, 50, 50), [5e-4] * 3, 5e-4, "none", (6.4184152031, 5.3902371737, 4.5227006179), 0.012218400372035048),
    ((200, 100, 50, 50), [5e-4] * 6, 5e-4, "none", (2.785790023, 2.521900143, 2.2820733684), 0.013220353373),
    ((100,) * 4, [5e-4] * 3, 5e-4, "free", (5.3902371737,) * 3, 0.009471785243825687),
]


@pytest.mark.parametrize(("sizes", "decays", "feature_decay", "bias", "x", "loss"), REFERENCE)
def test_reference_values(sizes, decays, feature_decay, bias, x, loss):
    """Numbers worked out beforehand, confirmed by minimisation from random starts."""
    record = solve(sizes, decays, feature_decay, bias)
    np.testing.assert_allclose(record.mode_x[: len(x)], x, rtol=1e-9 if X64 else 1e-5)
    assert float(record.loss) == pytest.approx(loss, rel=1e-11 if X64 else 1e-5)


def test_geometry_of_the_three_frames():
    """Orthogonal frame; simplex ETF with free bias; orthogonal with lengths by class size without."""
    k, n = 4, 100
    expected_w, expected_h = 31.322298218, 0.0315222982
    decays = [5e-4] * 3
    centering = np.eye(k) - 1 / k
    for bias, frame in (("none", np.eye(k)), ("free", centering)):
        record = solve((n,) * k, decays, 5e-4, bias)
        np.testing.assert_allclose(record.weight_gram, expected_w * frame, rtol=1e-8 if X64 else 1e-4, atol=1e-4)
        np.testing.assert_allclose(record.feature_gram, expected_h * frame, rtol=1e-7 if X64 else 1e-4, atol=1e-7)
    record = solve((50, 200, 50, 100), decays, 5e-4)
    lengths = np.array([18.502206206, 52.8826755012, 18.502206206, 31.322298218])  # in the order of the classes
    np.testing.assert_allclose(record.weight_gram, np.diag(lengths), rtol=1e-9 if X64 else 1e-4)
    np.testing.assert_allclose(record.class_weight_norms**2, lengths, rtol=1e-9 if X64 else 1e-4)


CONSTRUCTED = [
    # sizes, bias, width of every layer
    ((20, 10, 5, 5), "none", None),
    ((10,) * 4, 0.3, 6),
    ((20, 10, 5, 4), "free", 3),
    ((30, 10, 5, 1), "none", 2),
]


@pytest.mark.parametrize(
    ("depth", "sizes", "bias", "widths"),
    [
        (1, *CONSTRUCTED[0]),
        *((3, *problem) for problem in CONSTRUCTED[1:]),
        *(pytest.param(1, *problem, marks=pytest.mark.slow) for problem in CONSTRUCTED[1:]),
        pytest.param(3, *CONSTRUCTED[0], marks=pytest.mark.slow),
        *(pytest.param(depth, *problem, marks=pytest.mark.slow) for depth in (2, 6, 9) for problem in CONSTRUCTED),
        # With unequal classes and a decayed bias only one layer has a closed form.
        (1, (20, 10, 5, 4), 0.3, None),
    ],
)
def test_gradient_at_the_constructed_minimiser(depth, sizes, bias, widths):
    """Zero to rounding in all parameters of all samples, at unequal decays."""
    decays = 2e-4 * np.geomspace(1, 3, depth)
    record = solve(sizes, decays, 1e-4, bias, None if widths is None else [widths] * depth)
    assert not bool(record.is_trivial)
    parameters = mse_ufm_representative(record)
    labels = np.repeat(np.arange(4), sizes)
    targets = jnp.asarray(np.eye(4)[labels], record.loss.dtype)
    features = jnp.asarray(parameters.class_features)[labels]

    def objective(weights, features, b):
        outputs = features
        for w in weights:
            outputs = outputs @ w.T
        if bias != "none":
            outputs = outputs + b[None, :]
        penalty = sum(float(d) / 2 * jnp.sum(w**2) for d, w in zip(decays, weights, strict=True))
        penalty = penalty + 1e-4 / 2 * jnp.sum(features**2)
        if not isinstance(bias, str):
            penalty = penalty + bias / 2 * jnp.sum(b**2)
        return jnp.sum((outputs - targets) ** 2) / (2 * len(labels)) + penalty

    value, grads = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2)))(
        parameters.weights, features, parameters.bias
    )
    assert float(value) == pytest.approx(float(record.loss), rel=1e-11 if X64 else 1e-4)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < (1e-12 if X64 else 1e-4)
    product = np.linalg.multi_dot([np.eye(4), *map(np.asarray, parameters.weights[::-1])])
    h = np.asarray(parameters.class_features)
    scale = np.abs(record.weight_gram).max()
    np.testing.assert_allclose(product @ product.T, record.weight_gram, atol=RTOL * scale)
    np.testing.assert_allclose(h @ h.T, record.feature_gram, atol=RTOL * np.abs(record.feature_gram).max())
    np.testing.assert_allclose(product @ h.T, record.logits, atol=RTOL)
    norms = [np.sum(np.asarray(w) ** 2) for w in parameters.weights]
    np.testing.assert_allclose(record.layer_norms, norms, rtol=RTOL)
    assert float(record.feature_norm) == pytest.approx(np.sum(np.asarray(features) ** 2), rel=RTOL)


def random_problem(rng):
    """Class sizes 1..200, K 2..12, widths below K to 4K, decays over four decades, depth 1..6, three kinds of bias."""
    num_classes, depth = int(rng.integers(2, 13)), int(rng.integers(1, 7))
    style = rng.integers(3)
    if style == 0:
        sizes = np.full(num_classes, rng.integers(1, 201))
    elif style == 1:
        sizes = rng.integers(1, 201, num_classes)
    else:
        sizes = np.sort(np.maximum(1, 200 * rng.uniform(0.3, 1) ** np.arange(num_classes)).astype(int))[::-1]
    decays = 10 ** rng.uniform(-5, -1, depth + 1)
    widths = [int(w) for w in rng.integers(max(1, num_classes - 2), 4 * num_classes + 1, depth)]
    bias = [None, "none", "free"][rng.integers(3)]
    if bias is None:
        bias = float(10 ** rng.uniform(-2, 1))
        if depth > 1 or min(widths) < num_classes or rng.random() < 0.5:
            sizes = np.full(num_classes, sizes[0])
    return sizes, decays[:-1], decays[-1], bias, widths


@pytest.mark.slow
def test_randomised_grid():
    """200 problems and more: nothing trained goes below the prediction, the best of the starts reaches it."""
    if not X64:
        pytest.skip("needs double precision")
    rng = np.random.default_rng(20231105)
    kinds = ("random", "near", "trivial", "partial", "none", "free", "decayed", "bottleneck", "refused")
    counts = dict.fromkeys(kinds, 0)
    done = 0
    while done < 210:
        arguments = random_problem(rng)
        try:
            record = solve(*arguments)
        except ArgumentError as error:
            refusal, record = str(error), None
        if record is None:  # a decayed bias, unequal classes and a partly collapsed minimum: no closed form
            assert "decays so strong" in refusal
            assert smallest_fit(arguments[0], [*arguments[1], arguments[2]], arguments[3]) < 1e-12
            counts["refused"] += 1
            continue
        problem = Problem(*arguments, merge=True)
        value, flat, source = best_run(problem, record, rng, num_random=4)
        assert_same_minimum(problem, record, value, flat)
        active = np.asarray(record.active)
        bias = arguments[3]
        for name, hit in {
            source: True,
            "trivial": not active.any(),
            "partial": active.any() and not active[: record.rank].all(),
            bias if isinstance(bias, str) else "decayed": True,
            "bottleneck": record.rank < active.size,
        }.items():
            counts[name] += bool(hit)
        done += 1
    kinds = ("trivial", "partial", "none", "free", "decayed", "bottleneck")
    assert min(counts[name] for name in kinds) >= 5, counts
    assert counts["refused"] <= 10, counts
