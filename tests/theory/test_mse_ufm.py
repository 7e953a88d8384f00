"""Deep linear unconstrained features, squared error: closed form against direct minimisation, no structure imposed."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

from nctheory import ArgumentError
from nctheory.theory._modes import root_limit, threshold
from nctheory.theory.mse_ufm import mse_ufm_minimizer, mse_ufm_representative

X64 = jax.config.jax_enable_x64
# Algebra: rounding of logarithms (at most 30 in size) and of an eigenvalue problem with values within 1..200.
RTOL = 1e-10 if X64 else 2e-4
GRAM_FIELDS = ("weight_gram", "feature_gram", "logits", "bias")


class Problem:
    """The objective in plain NumPy, for all samples or (`merge`) for one feature vector a class.

    Variables are sqrt(decay) times the layers and the features: a change of units, which spares the optimiser decays
    that differ by powers of ten. Merging is exact: for given weights, equal samples have equal best features.
    """

    def __init__(self, sizes, decays, feature_decay, bias="none", widths=None, *, merge=False):
        sizes = np.asarray(sizes)
        self.sizes, self.total, k = sizes, sizes.sum(), len(sizes)
        self.decays, self.bias = np.append(decays, feature_decay), bias
        self.repeats = np.ones(k, int) if merge else sizes
        self.target = np.repeat(np.eye(k) * (np.sqrt(sizes) if merge else 1), self.repeats, axis=1)
        self.ones = np.sqrt(sizes) if merge else np.ones(self.total)
        self.column_scale = np.sqrt(sizes) if merge else np.ones(k)
        dims = [*(widths or [k] * len(decays)), k]
        self.shapes = [(b, a) for a, b in itertools.pairwise(dims)] + [(dims[0], self.target.shape[1])]
        self.ends = np.cumsum([a * b for a, b in self.shapes])
        self.size = self.ends[-1] + (0 if bias == "none" else k)

    def unpack(self, flat):
        """Scaled factors W_1 .. W_M, H, and the bias (empty without)."""
        parts = [part.reshape(shape) for part, shape in zip(np.split(flat, self.ends), self.shapes, strict=False)]
        return parts, flat[self.ends[-1] :]

    def __call__(self, flat):
        """Loss and gradient."""
        factors, b = self.unpack(flat)
        chain = [factors[-1]]  # products from the features up
        for w in factors[:-1]:
            chain.append(w @ chain[-1])
        scale = 1 / np.sqrt(np.prod(self.decays))
        r = scale * chain[-1] - self.target
        if b.size:
            r = r + b[:, None] * self.ones[None, :]
        decay_b = 0.0 if isinstance(self.bias, str) else self.bias
        value = np.sum(r**2) / (2 * self.total) + sum(np.sum(f**2) for f in factors) / 2 + decay_b / 2 * np.sum(b**2)
        grads, back = [], scale * r / self.total
        for w, below in zip(factors[-2::-1], chain[-2::-1], strict=True):
            grads.append(back @ below.T + w)
            back = w.T @ back
        grads = [*grads[::-1], back + factors[-1]]
        if b.size:
            grads.append(r @ self.ones / self.total + decay_b * b)
        return value, np.concatenate([g.ravel() for g in grads])

    def random_start(self, rng):
        """Gaussian factors whose product has singular values of the target's size, up to a random factor."""
        level = np.sqrt(self.sizes.mean()) * np.sqrt(np.prod(self.decays)) * 10 ** rng.uniform(-0.5, 1)
        depth = len(self.shapes)
        parts = [rng.normal(size=s) / np.sqrt(max(s)) * level ** (1 / depth) for s in self.shapes]
        flat = np.concatenate([part.ravel() for part in parts])
        return np.concatenate([flat, 0.1 * rng.normal(size=self.size - flat.size)])

    def start_near(self, record, rng, noise=0.1):
        """The constructed minimiser, every factor disturbed by noise relative to its largest entry."""
        parameters = mse_ufm_representative(record, [shape[1] for shape in self.shapes[:-1]])
        features = np.asarray(parameters.class_features).T * self.column_scale[None, :]
        parts = [*map(np.asarray, parameters.weights), np.repeat(features, self.repeats, axis=1)]
        parts = [np.sqrt(d) * p for d, p in zip(self.decays, parts, strict=True)]
        flat = np.concatenate([(p + noise * np.abs(p).max() * rng.normal(size=p.shape)).ravel() for p in parts])
        return np.concatenate([flat, np.asarray(parameters.bias)[: self.size - flat.size]])

    def minimize(self, start):
        """L-BFGS, then Newton steps on the gradient: the value alone is blind to errors below sqrt(rounding)."""
        options = {"maxiter": 20000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 30}
        result = minimize(self, start, jac=True, method="L-BFGS-B", options=options)
        flat = result.x
        for _ in range(3):
            gradient = self(flat)[1]
            if np.abs(gradient).max() < 1e-14:
                break
            step = minres(self.hessian(flat), -gradient, rtol=1e-8, maxiter=300)[0]
            if np.abs(self(flat + step)[1]).max() >= np.abs(gradient).max():
                break
            flat = flat + step
        return self(flat)[0], flat

    def hessian(self, flat):
        """Hessian by central differences of the gradient; singular along rotations, which minres bears."""

        def times(v):
            length = 1e-6 / max(np.linalg.norm(v), 1e-300)
            return (self(flat + length * v)[1] - self(flat - length * v)[1]) / (2 * length)

        return LinearOperator((flat.size, flat.size), matvec=times, dtype=float)

    def grams(self, flat):
        """Gram matrices of A and of the class features, logits, bias."""
        factors, b = self.unpack(flat)
        factors = [f / np.sqrt(d) for f, d in zip(factors, self.decays, strict=True)]
        product = np.eye(factors[0].shape[1])
        for w in factors[:-1]:
            product = w @ product
        first = np.cumsum(self.repeats) - self.repeats
        features = factors[-1][:, first] / self.column_scale[None, :]
        bias = b if b.size else np.zeros(len(self.sizes))
        return product @ product.T, features.T @ features, product @ features, bias


def solve(sizes, decays, feature_decay, bias="none", widths=None, **kwargs):
    return mse_ufm_minimizer(
        sizes, weight_decay=decays, feature_decay=feature_decay, depth=len(decays), bias=bias, widths=widths, **kwargs
    )


def assert_same_minimum(problem, record, value, flat):
    assert value >= float(record.loss) - (1e-10 if X64 else 1e-6)
    assert value == pytest.approx(float(record.loss), rel=1e-8 if X64 else 2e-5)
    if not bool(record.gram_is_unique):
        return
    for name, found in zip(GRAM_FIELDS, problem.grams(flat), strict=True):
        expected = np.asarray(getattr(record, name))
        # The loss is flat to second order: a gradient of 1e-10 over curvatures >= 1e-5.
        tolerance = (1e-5 if X64 else 1e-3) * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(expected, found, atol=tolerance, err_msg=name)


def best_run(problem, record, rng, *, num_random):
    """Best of random starts, then (deep networks get stuck with dead classes) of starts around the prediction."""
    best, source = (np.inf, None), "none"
    for attempt in range(num_random + 3):
        near = attempt >= num_random
        start = problem.start_near(record, rng) if near else problem.random_start(rng)
        run = problem.minimize(start)
        assert run[0] >= float(record.loss) - (1e-10 if X64 else 1e-6)
        if run[0] < best[0]:
            best, source = run, "near" if near else "random"
        if best[0] <= float(record.loss) * (1 + (1e-10 if X64 else 1e-5)):
            break
    return *best, source


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


@pytest.mark.parametrize(("sizes", "decays", "feature_decay", "bias", "widths"), SMALL)
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


def test_minority_collapse_of_one_layer():
    """Without bias class k vanishes iff n_k <= N^2 lambda_W lambda_H, checked on both sides."""
    sizes = (40, 9, 11)
    decay = np.sqrt(10 / 60**2)
    record = solve(sizes, [decay], decay)
    np.testing.assert_array_equal(record.active_classes, [True, False, True])
    np.testing.assert_allclose(np.diag(record.logits), [1 - np.sqrt(10 / 40), 0, 1 - np.sqrt(10 / 11)], atol=1e-6)
    np.testing.assert_array_equal(record.class_feature_norms > 0, [True, False, True])


def decay_at(ratio, depth, n, num_classes):
    """Equal decays that put a balanced problem at `ratio` times the threshold."""
    total = n * num_classes
    beta = ratio * threshold(depth)
    return (((beta * n / (depth * total)) ** depth) / total) ** (1 / (depth + 1))


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_threshold_and_jump(depth):
    """At 0.99 of the threshold the fraction is near (M-1)/M, at 1.01 zero; the loss is continuous."""
    records = [solve((5,) * 3, [decay_at(r, depth, 5, 3)] * depth, decay_at(r, depth, 5, 3)) for r in (0.99, 1.01)]
    below, above = records
    np.testing.assert_allclose(below.threshold_ratios, 0.99, rtol=1e-4)
    assert not bool(below.is_trivial)
    assert bool(above.is_trivial)
    assert 0 < float(below.fitted_fraction[0]) - (depth - 1) / depth < 0.03
    assert float(above.loss) == float(above.trivial_loss) == 0.5
    assert 0 < 0.5 - float(below.loss) < 0.01
    assert np.abs(above.weight_gram).max() == 0
    # Direct descent from the constructed point below agrees; above, from the same point it ends at or above zero.
    if depth == 2:
        problem = Problem((5,) * 3, [decay_at(0.99, 2, 5, 3)] * 2, decay_at(0.99, 2, 5, 3), merge=True)
        value, _ = problem.minimize(problem.start_near(below, np.random.default_rng(0), 0.01))
        assert value == pytest.approx(float(below.loss), rel=1e-9 if X64 else 1e-5)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_published_threshold_is_refuted(depth):
    """Taking a mode as alive wherever a stationary point exists costs more than zero between the two thresholds."""
    ratio = (1 + root_limit(depth) / threshold(depth)) / 2
    decay = decay_at(ratio, depth, 4, 3)
    record = solve((4,) * 3, [decay] * depth, decay)
    assert bool(record.is_trivial)
    problem = Problem((4,) * 3, [decay] * depth, decay, merge=True)
    # The published rule: the largest root of beta (1+x^M)^2 = M x^(M-1), here as a fixed point of x's own power.
    beta, power = ratio * threshold(depth), 10.0
    for _ in range(2000):
        power = np.sqrt(depth * power ** ((depth - 1) / depth) / beta) - 1
    fit = np.sqrt(4.0) * power / (1 + power)
    scaled = (decay ** ((depth + 1) / 2) * fit) ** (1 / (depth + 1))
    value, gradient = problem(np.tile((scaled * np.eye(3)).ravel(), depth + 1))
    assert np.abs(gradient).max() < 1e-12
    assert fit > 0.3
    assert value > float(record.loss) + 1e-4


@pytest.mark.parametrize("depth", [2, 3])
def test_both_solutions_at_a_tie(depth):
    """Exactly at the threshold zero and the jumped solution cost the same and are both stationary."""
    decay = decay_at(1.0, depth, 5, 3)
    zero = solve((5,) * 3, [decay] * depth, decay)
    alive = solve((5,) * 3, [decay] * depth, decay, at_tie="active")
    assert zero.is_tie.all()
    assert alive.is_tie.all()
    assert not bool(zero.gram_is_unique)
    assert bool(zero.is_trivial)
    assert not bool(alive.is_trivial)
    assert float(alive.loss) == pytest.approx(float(zero.loss), rel=1e-12 if X64 else 1e-5)
    np.testing.assert_allclose(alive.fitted_fraction, (depth - 1) / depth, rtol=1e-6 if X64 else 1e-2)
    problem = Problem((5,) * 3, [decay] * depth, decay, merge=True)
    value, gradient = problem(problem.start_near(alive, np.random.default_rng(0), 0.0))
    assert value == pytest.approx(0.5, rel=1e-12 if X64 else 1e-5)
    assert np.abs(gradient).max() < (1e-12 if X64 else 1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 9])
@pytest.mark.parametrize(
    ("sizes", "bias", "widths"),
    [
        ((20, 10, 5, 5), "none", None),
        ((10,) * 4, 0.3, 6),
        ((20, 10, 5, 4), "free", 3),
        ((30, 10, 5, 1), "none", 2),
        ((20, 10, 5, 4), 0.3, None),
    ],
)
def test_gradient_at_the_constructed_minimiser(depth, sizes, bias, widths):
    """Zero to rounding in all parameters of all samples, at unequal decays."""
    if depth > 1 and bias == 0.3 and len(set(sizes)) > 1:
        pytest.skip("no closed form")
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

    value, grads = jax.value_and_grad(objective, argnums=(0, 1, 2))(parameters.weights, features, parameters.bias)
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


def test_bias_decay_moves_from_simplex_to_orthogonal():
    """Weak decay of the bias gives the free-bias minimum, strong decay the one without bias."""
    free, none = (solve((10,) * 4, [0.01], 0.003, bias) for bias in ("free", "none"))
    for bias, limit in ((1e-6, free), (1e6, none)):
        record = solve((10,) * 4, [0.01], 0.003, bias)
        for name in GRAM_FIELDS:
            np.testing.assert_allclose(getattr(record, name), getattr(limit, name), atol=1e-4, err_msg=name)
    # Unequal sizes: the outputs are those without bias, part of them moved into it.
    record = solve((20, 10, 5), [0.01], 0.003, 0.4)
    without = solve((20, 10, 5), [0.01], 0.003)
    np.testing.assert_allclose(record.logits + record.bias[:, None], without.logits, atol=1e-12 if X64 else 1e-5)


def test_invariance_under_order():
    """Permuting the classes permutes rows and columns."""
    order = np.array([2, 0, 3, 1])
    sizes = np.array([17, 4, 9, 30])
    for bias, depth in (("none", 2), ("free", 2), (0.2, 1)):
        a = solve(sizes, [0.002] * depth, 0.001, bias)
        b = solve(sizes[order], [0.002] * depth, 0.001, bias)
        np.testing.assert_allclose(a.loss, b.loss, rtol=RTOL)
        scale = float(jnp.abs(a.weight_gram).max())
        for name in ("weight_gram", "feature_gram", "logits"):
            permuted = np.asarray(getattr(a, name))[np.ix_(order, order)]
            np.testing.assert_allclose(permuted, getattr(b, name), atol=RTOL * scale, err_msg=name)


def test_derivative_of_the_optimal_loss():
    """Envelope theorem: dL*/d lambda_m = |W_m|^2/2, dL*/d lambda_H = |H|^2/2; no NaN from the dead modes."""
    for sizes, bias in (((30, 10, 1), "free"), ((10, 10, 10), 0.05)):
        decays = jnp.asarray([0.004, 0.008])

        def loss(decays, feature_decay, sizes=sizes, bias=bias):
            return mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=feature_decay, depth=2, bias=bias).loss

        record = mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=0.002, depth=2, bias=bias)
        slopes = jax.grad(loss, argnums=(0, 1))(decays, jnp.asarray(0.002))
        np.testing.assert_allclose(slopes[0], record.layer_norms / 2, rtol=1e-8 if X64 else 1e-3)
        np.testing.assert_allclose(slopes[1], record.feature_norm / 2, rtol=1e-8 if X64 else 1e-3)
    for sizes in ((9, 9, 9), (9, 5, 2)):  # one layer with a decayed bias takes either of two branches

        def one_layer(decay, sizes=sizes):
            return mse_ufm_minimizer(sizes, weight_decay=decay, feature_decay=0.01, bias=0.3).loss

        slope = jax.grad(one_layer)(jnp.asarray(0.01))
        record = solve(sizes, [0.01], 0.01, 0.3)
        np.testing.assert_allclose(slope, record.layer_norms[0] / 2, rtol=1e-8 if X64 else 1e-3)


@pytest.mark.parametrize("bias", ["none", "free", 0.2])
def test_transformations_and_dtype(bias):
    sizes = np.array([[30, 10, 5], [8, 8, 8], [100, 3, 1]])
    if bias == 0.2:
        sizes = np.array([[30] * 3, [8] * 3, [100] * 3])
    decays = np.array([[1e-3, 2e-3], [1e-2, 1e-3], [0.5, 0.5]])

    def one(sizes, decays):
        return mse_ufm_minimizer(sizes, weight_decay=decays, feature_decay=1e-3, depth=2, bias=bias)

    mapped = jax.jit(jax.vmap(one))(jnp.asarray(sizes), jnp.asarray(decays))
    for i in range(3):
        alone = one(sizes[i], decays[i])
        with jax.disable_jit(i == 0 and bias == "free"):  # slow: every operation by itself
            plain = one(jnp.asarray(sizes[i]), jnp.asarray(decays[i]))
        for name in ("loss", "is_trivial", "active", "fitted_fraction", "layer_norms", *GRAM_FIELDS):
            expected, scale = np.asarray(getattr(alone, name)), 1 + float(np.abs(alone.weight_gram).max())
            np.testing.assert_allclose(getattr(mapped, name)[i], expected, atol=RTOL * scale, err_msg=name)
            np.testing.assert_allclose(getattr(plain, name), expected, atol=RTOL * scale, err_msg=name)
    small = mse_ufm_minimizer(
        [3, 2], weight_decay=jnp.float32(0.01), feature_decay=0.01, bias=bias if bias != 0.2 else "none"
    )
    assert small.loss.dtype == jnp.float32
    assert small.mode_x.dtype == jnp.float32
    batch = jax.vmap(mse_ufm_representative)(mapped)
    np.testing.assert_allclose(
        batch.weights[1][0] ** 2, mse_ufm_representative(one(sizes[0], decays[0])).weights[1] ** 2, atol=RTOL * 10
    )


def test_float32_against_float64():
    """Single precision keeps five digits across four decades of decay."""
    if not X64:
        pytest.skip("needs both precisions")
    rng = np.random.default_rng(0)
    for depth in (1, 6):
        for bias in ("none", "free"):
            decays = 10 ** rng.uniform(-6, -2, depth + 1)
            sizes = np.array([200, 50, 7, 1])
            wide = solve(sizes, decays[:-1], decays[-1], bias)
            narrow = mse_ufm_minimizer(
                sizes,
                weight_decay=decays[:-1].astype(np.float32),
                feature_decay=np.float32(decays[-1]),
                depth=depth,
                bias=bias,
            )
            assert narrow.loss.dtype == jnp.float32
            np.testing.assert_allclose(narrow.loss, wide.loss, rtol=1e-4)
            scale = float(jnp.abs(wide.weight_gram).max())
            np.testing.assert_allclose(narrow.weight_gram, wide.weight_gram, rtol=1e-4, atol=1e-4 * scale)


def test_uncovered_cases_are_nan_under_tracing_and_errors_outside(own_errors):
    def loss(sizes, depth):
        return mse_ufm_minimizer(sizes, weight_decay=0.01, feature_decay=0.01, depth=depth, bias=0.1).loss

    batch = jnp.asarray([[9, 9, 9], [9, 5, 2]])
    np.testing.assert_array_equal(jnp.isnan(jax.vmap(lambda s: loss(s, 2))(batch)), [False, True])
    np.testing.assert_array_equal(jnp.isnan(jax.vmap(lambda s: loss(s, 1))(batch)), [False, False])
    with pytest.raises(ValueError, match=r"`bias` must be .* unequal class sizes with depth 2"):
        loss(np.array([9, 5, 2]), 2)
    with pytest.raises(ValueError, match=r"`bias` must be .* a width of 2, below the 3 classes"):
        solve((9, 5, 2), [0.01], 0.01, 0.1, [2])
    with pytest.raises(ValueError, match=r"`bias` must be .* decays so strong"):
        solve((9, 5, 2), [0.1], 0.1, 0.1)
    solve((9, 9, 9), [0.1], 0.1, 0.1, [2])


# Every shape is compiled anew: a few shapes, and many values for each.
SHAPES = [
    (2, 1, "none", None),
    (5, 3, "none", [4, 3, 9]),
    (5, 1, "free", [2]),
    (5, 3, "free", None),
    (4, 1, "decayed", None),
    (4, 2, "decayed", [3, 6]),
]


def smallest_fit(sizes, decays, bias):
    """Smallest eigenvalue of D - N mu (I + pp^T/lambda_b); one layer, decayed bias."""
    sizes = np.asarray(sizes, np.float64)
    scale, shares = sizes.sum() * np.sqrt(float(decays[0]) * float(decays[1])), sizes / sizes.sum()
    fit = np.diag(np.sqrt(sizes)) - scale * (np.eye(sizes.size) + np.sqrt(np.outer(shares, shares)) / float(bias))
    return np.linalg.eigvalsh(fit)[0]


@pytest.mark.parametrize("decay", [1e-7, 1e-12, 1e-20])
def test_decayed_bias_keeps_its_digits_at_small_decays(decay):
    """First order in mu: the modes are the classes and 1 - p = N mu (1 + n_k/(N lambda_b))/sqrt(n_k)."""
    sizes, bias = np.array([200.0, 50.0, 7.0, 1.0]), 0.1
    rest = sizes.sum() * decay * (1 + sizes / sizes.sum() / bias) / np.sqrt(sizes)
    for dtype in (np.float64, np.float32) if X64 else (np.float32,):
        record = mse_ufm_minimizer(
            sizes.astype(dtype), weight_decay=dtype(decay), feature_decay=dtype(decay), bias=dtype(bias)
        )
        assert record.loss.dtype == dtype
        # Second order: eigenvectors turn by at most N mu/lambda_b over the distance of the nearest roots, 1.6.
        rtol = 4e4 * decay + (1e-9 if dtype == np.float64 else 1e-5)
        np.testing.assert_allclose(record.mode_x, 1 / rest - 1, rtol=rtol)
        if decay > 1e-20 or dtype == np.float64:  # their squares leave the range of single precision
            np.testing.assert_allclose(record.threshold_ratios, rest**2, rtol=2 * rtol)
        assert np.isfinite(record.threshold_ratios).all()
        np.testing.assert_allclose(record.fitted_fraction, 1 - rest, rtol=rtol)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES))
def test_whole_argument_space(data, shape):
    """Finite everywhere, never above the zero solution, thresholds obeyed, collapse in order of size."""
    num_classes, depth, bias, widths = shape
    sizes = data.draw(st.lists(st.integers(1, 200), min_size=num_classes, max_size=num_classes))
    dtype = data.draw(st.sampled_from([np.float64, np.float32])) if X64 else np.float32
    decays = np.array([10 ** data.draw(st.floats(-12, 1)) for _ in range(depth + 1)], dtype)
    if bias == "decayed":
        bias = dtype(10 ** data.draw(st.floats(-3, 3)))
        if depth > 1:
            sizes = [sizes[0]] * len(sizes)
    options = {"weight_decay": decays[:-1], "feature_decay": decays[-1], "depth": depth, "bias": bias}
    try:
        record = mse_ufm_minimizer(sizes, widths=widths, **options)
    except ArgumentError as error:
        refusal, record = str(error), None
    if record is None:
        assert "decays so strong" in refusal
        assert len(set(sizes)) > 1
        assert not isinstance(bias, str)
        assert smallest_fit(sizes, decays, bias) < 1e-12
        return
    assert record.loss.dtype == dtype
    leaves = jax.tree.leaves(record)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    assert float(record.loss) <= float(record.trivial_loss)
    assert float(record.loss) > 0
    active = np.asarray(record.active)
    assert bool(record.is_trivial) == (not active.any())
    assert (np.diff(active.astype(int)) <= 0).all()  # the largest modes survive
    assert active.sum() <= record.rank
    np.testing.assert_array_equal(active, (record.threshold_ratios < 1) & (np.arange(active.size) < record.rank))
    assert (np.asarray(record.fitted_fraction)[active] > (depth - 1) / depth - 1e-5).all()
    if bias == "free":
        np.testing.assert_allclose(record.bias, np.asarray(sizes) / np.sum(sizes), rtol=1e-5)
    if bias == "none":
        np.testing.assert_array_equal(record.active_classes, np.diag(record.weight_gram) > 0)


def test_ten_thousand_problems_in_one_call():
    """One vmapped call; a loose limit, as other programs may be running."""
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.integers(1, 200, (10000, 4)))
    decays, feature_decay = (jnp.asarray(10 ** rng.uniform(-4, 0, s)) for s in ((10000, 3), 10000))
    many = jax.jit(jax.vmap(lambda s, w, h: solve(s, w, h, "free")))
    jax.block_until_ready(many(sizes, decays, feature_decay))
    start = time.perf_counter()
    record = jax.block_until_ready(many(sizes, decays, feature_decay))
    assert time.perf_counter() - start < 5
    assert bool((record.loss <= record.trivial_loss).all())
    assert 0.05 < float(jnp.mean(record.is_trivial)) < 0.95


def test_errors(own_errors):
    good = {"weight_decay": 0.1, "feature_decay": 0.1}
    for sizes, message in [
        ([3], "must hold at least 2 classes"),
        ([3, 0], "must be finite and >= 1"),
        ([3, -2], "must be finite and >= 1"),
        ([3, 2.5], "must hold whole numbers"),
        ([[3, 2]], "must have shape"),
        ([3, np.nan], "must be finite"),
    ]:
        with pytest.raises(ValueError, match=f"`class_sizes` {message}"):
            mse_ufm_minimizer(np.array(sizes), **good)
    for decay, message in [
        (0.0, "must be finite and > 0"),
        (-1.0, "must be finite and > 0"),
        ([0.1, 0.0], "must be finite and > 0"),
        ([0.1, 0.1, 0.1], "must have shape"),
        (np.inf, "must be finite"),
    ]:
        with pytest.raises(ValueError, match=f"`weight_decay` {message}"):
            mse_ufm_minimizer([3, 2], weight_decay=decay, feature_decay=0.1, depth=2)
    with pytest.raises(ValueError, match="`feature_decay` must be finite and > 0"):
        mse_ufm_minimizer([3, 2], weight_decay=0.1, feature_decay=0.0)
    with pytest.raises(ValueError, match="`feature_decay` must have shape"):
        mse_ufm_minimizer([3, 2], weight_decay=0.1, feature_decay=np.array([0.1, 0.1]))
    with pytest.raises(ValueError, match="`depth` must be an integer >= 1"):
        mse_ufm_minimizer([3, 2], depth=0, **good)
    with pytest.raises(ValueError, match="`bias` must be one of"):
        mse_ufm_minimizer([3, 2], bias="last", **good)
    with pytest.raises(ValueError, match="`bias` must be finite and > 0"):
        mse_ufm_minimizer([3, 3], bias=0.0, **good)
    with pytest.raises(ValueError, match="`widths` must have one entry a layer, 1 in all, but has 2"):
        mse_ufm_minimizer([3, 2], widths=[4, 4], **good)
    with pytest.raises(ValueError, match="`widths` must be an integer >= 1"):
        mse_ufm_minimizer([3, 2], widths=[0], **good)
    with pytest.raises(ValueError, match="`at_tie` must be one of"):
        mse_ufm_minimizer([3, 2], at_tie="both", **good)
    record = mse_ufm_minimizer([3, 2], weight_decay=0.01, feature_decay=0.01)
    with pytest.raises(ValueError, match="`widths` must be >= 2, the number of modes kept"):
        mse_ufm_representative(record, [1])


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
    counts = {
        "random": 0,
        "near": 0,
        "trivial": 0,
        "partial": 0,
        "none": 0,
        "free": 0,
        "decayed": 0,
        "bottleneck": 0,
        "refused": 0,
    }
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
