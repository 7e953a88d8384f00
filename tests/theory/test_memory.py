"""L1 against networks trained by a literal NumPy loop, and the decay factor against its recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import theory

X64 = jax.config.jax_enable_x64
# Algebra at bounded condition number: a few thousand roundings at most.
RTOL = 1e-10 if X64 else 1e-4
# Two-sided false-alarm rate 1e-6.
Z = 4.9


def train(rng, *, num_outputs, loss, decay, momentum, steps=150, rate=0.2, batch=None):
    """Train W of f = A W x by literal gradient steps in float64 and return everything a check needs."""
    n, d, m = 24, 6, 17
    x = rng.normal(size=(n, d)) + 1.5 * np.eye(d)[np.arange(n) % 4]
    labels = np.arange(n) % 4 % max(num_outputs, 2)
    y = 2.0 * labels[:, None] - 1 if num_outputs == 1 else np.eye(num_outputs)[labels]
    a = rng.normal(size=(num_outputs, m)) / np.sqrt(m)
    w0 = 0.3 * rng.normal(size=(m, d))
    w, v = w0.copy(), np.zeros_like(w0)
    for _ in range(steps):
        rows = np.arange(n) if batch is None else rng.choice(n, batch, replace=False)
        f = x[rows] @ w.T @ a.T
        df = f - y[rows] if loss == "mse" else -y[rows] / (1 + np.exp(y[rows] * f))
        v = momentum * v + a.T @ (df / len(rows)).T @ x[rows] + decay * w
        w = w - rate * v
    return x, a, w0, w


@pytest.mark.parametrize(
    ("num_outputs", "loss", "decay", "momentum", "batch"),
    [
        (1, "logistic", 0.0, 0.0, None),
        (1, "logistic", 1e-2, 0.0, 8),
        (1, "mse", 1e-2, 0.9, 8),
        (3, "mse", 0.0, 0.0, None),
        (3, "mse", 2e-2, 0.9, None),
    ],
)
def test_trained_network_has_predicted_distance(num_outputs, loss, decay, momentum, batch):
    rng = np.random.default_rng(1)
    x, a, w0, w = train(rng, num_outputs=num_outputs, loss=loss, decay=decay, momentum=momentum, batch=batch)
    delta = np.stack([x[0] - x[4], x[0] - x[1], x[2] - x[3]])
    truth = np.sum((delta @ w.T) ** 2, axis=1)
    shown = delta @ w.T @ a.T
    factor = theory.memory_factor(150, learning_rate=0.2, weight_decay=decay, momentum=momentum)
    found = theory.memory_distance(w0, a, delta, shown, factor=factor)
    np.testing.assert_allclose(found, truth, rtol=RTOL)
    if num_outputs == 1:
        flat = theory.memory_distance(w0, a[0], delta, shown[:, 0], factor=factor)
        np.testing.assert_allclose(flat, found, rtol=RTOL)
        single = theory.memory_distance(w0, a[0], delta[1], float(shown[1, 0]), factor=factor)
        np.testing.assert_allclose(single, found[1], rtol=RTOL)
    # The predictor that ignores forgetting passes without decay and must fail with it.
    forgetful = np.abs(np.asarray(theory.memory_distance(w0, a, delta, shown, factor=1.0)) / truth - 1).max()
    assert (forgetful < RTOL) if decay == 0 else (forgetful > 0.1)


def test_equals_scalar_readout_form():
    rng = np.random.default_rng(2)
    w0, delta = rng.normal(size=(9, 4)), rng.normal(size=4)
    a = rng.normal(size=9)
    a /= np.linalg.norm(a)
    s, shown = 0.37, 1.9
    u = w0 @ delta
    extra = shown - s * a @ u
    truth = s**2 * u @ u + 2 * s * (a @ u) * extra + extra**2
    np.testing.assert_allclose(theory.memory_distance(w0, a, delta, shown, factor=s), truth, rtol=RTOL)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), outputs=st.integers(1, 7))
def test_rotation_of_features_and_wide_readouts(seed, outputs):
    """Any rotation of the features changes nothing; more outputs than features (C > m) make everything visible."""
    rng = np.random.default_rng(seed)
    w0, a, delta = rng.normal(size=(5, 3)), rng.normal(size=(outputs, 5)), rng.normal(size=(2, 3))
    v = rng.normal(size=(outputs, 3))
    s = 0.6
    difference = delta @ (s * w0 + a.T @ v).T
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    found = theory.memory_distance(turn @ w0, a @ turn.T, delta, difference @ a.T, factor=s)
    # Condition number of a random readout up to 1e2, squared by the pseudo-inverse.
    np.testing.assert_allclose(found, np.sum(difference**2, axis=1), rtol=1e-8 if X64 else 3e-2)


def test_degenerate_readouts():
    rng = np.random.default_rng(3)
    w0, delta = rng.normal(size=(6, 3)), rng.normal(size=3)
    u = w0 @ delta
    zero = theory.memory_distance(w0, np.zeros((2, 6)), delta, np.zeros(2), factor=0.5)
    np.testing.assert_allclose(zero, 0.25 * u @ u, rtol=RTOL)
    row = rng.normal(size=6)
    once = theory.memory_distance(w0, row, delta, 0.7, factor=0.5)
    twice = theory.memory_distance(w0, np.stack([row, row]), delta, np.array([0.7, 0.7]), factor=0.5)
    np.testing.assert_allclose(twice, once, rtol=RTOL)


def test_distance_under_jit_vmap_and_dtypes():
    rng = np.random.default_rng(4)
    w0, a = rng.normal(size=(3, 5, 4)), rng.normal(size=(2, 5))
    delta, shown = rng.normal(size=4), rng.normal(size=(3, 2))
    factor = np.array([0.2, 0.5, 1.0])

    def one(w, f, s):
        return theory.memory_distance(w, a, delta, f, factor=s)

    loop = [one(w0[i], shown[i], factor[i]) for i in range(3)]
    np.testing.assert_allclose(jax.vmap(one)(jnp.asarray(w0), jnp.asarray(shown), jnp.asarray(factor)), loop, rtol=RTOL)
    np.testing.assert_allclose(jax.jit(one)(w0[1], shown[1], factor[1]), loop[1], rtol=RTOL)
    args = (w0[0], a, delta, shown[0])
    small = theory.memory_distance(*(np.asarray(v, np.float32) for v in args), factor=0.2)
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, loop[0], rtol=1e-4)


def recursion(e, beta, steps):
    s, v, out = 1.0, 0.0, [1.0]
    for _ in range(steps):
        v = beta * v + e * s
        s = s - v
        out.append(s)
    return np.array(out)


@pytest.mark.parametrize("e", [0.0, 1e-8, 1e-3, 0.25, 1.0, 1.7, 2.3])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.25, 0.9, 0.99])
def test_factor_solves_the_recursion(e, beta):
    """Real, double (e = 0.25, beta = 0.25), complex and negative roots; e = 2.3 diverges without momentum."""
    steps = np.arange(61)
    truth = recursion(e, beta, 60)
    found = theory.memory_factor(steps, learning_rate=1.0, weight_decay=e, momentum=beta)
    scale = max(1.0, np.abs(truth).max())
    # Powers up to 60 of roots known to one rounding; a double root amplifies by the square root of it times t.
    np.testing.assert_allclose(found, truth, atol=(1e-12 if X64 else 2e-4) * scale, rtol=0)


def test_factor_without_momentum_in_float32():
    """1 - 1e-7 is one float32 rounding away from 1; the factor must not see that."""
    found = theory.memory_factor(
        np.int32(10**7), learning_rate=np.float32(1e-3).reshape(()), weight_decay=np.float32(1e-4).reshape(())
    )
    assert abs(float(found) / np.exp(-1.0) - 1) < 1e-4
    mapped = jax.vmap(lambda t: theory.memory_factor(t, learning_rate=0.1, weight_decay=0.3))(jnp.arange(5))
    np.testing.assert_allclose(mapped, 0.97 ** np.arange(5), rtol=1e-6)
    jitted = jax.jit(lambda e: theory.memory_factor(7, learning_rate=e, weight_decay=0.3, momentum=0.5))(0.1)
    np.testing.assert_allclose(jitted, recursion(0.03, 0.5, 7)[-1], rtol=1e-6)


def test_half_life():
    for e in (1e-6, 0.1, 1.4, 1.999):
        steps = float(theory.memory_half_life(learning_rate=1.0, weight_decay=e))
        assert abs(1 - e) ** (2 * steps) == pytest.approx(0.5, rel=1e-8 if X64 else 1e-3)
    small = float(theory.memory_half_life(learning_rate=1e-2, weight_decay=1e-4))
    assert small == pytest.approx(np.log(2) / 2e-6, rel=1e-5)
    assert theory.memory_half_life(learning_rate=1.0, weight_decay=0.0) == np.inf
    assert theory.memory_half_life(learning_rate=1.0, weight_decay=2.5) == np.inf
    assert theory.memory_half_life(learning_rate=1.0, weight_decay=1.0) == 0
    rates = jnp.array([0.1, 0.2])
    mapped = jax.vmap(jax.jit(lambda r: theory.memory_half_life(learning_rate=r, weight_decay=0.5)))(rates)
    np.testing.assert_allclose(mapped, np.log(2) / (-2 * np.log1p(-0.5 * np.asarray(rates))), rtol=1e-5)


def test_expected_initial_distance_against_monte_carlo():
    rng = np.random.default_rng(5)
    delta = rng.normal(size=4)
    width, std, draws = 32, 0.3, 4000
    sample = np.sum((std * rng.normal(size=(draws, width, 4)) @ delta) ** 2, axis=1)
    sem = sample.std() / np.sqrt(draws)
    predicted = float(theory.expected_initial_distance(delta, init_std=std, width=width))
    assert abs(sample.mean() - predicted) < Z * sem
    wrong = predicted * (width - 2) / width
    assert abs(sample.mean() - wrong) > Z * sem
    both = theory.expected_initial_distance(np.stack([delta, 2 * delta]), init_std=std, width=width)
    np.testing.assert_allclose(both, [predicted, 4 * predicted], rtol=RTOL)


def test_errors(own_errors):
    w0, a, delta = np.ones((4, 3)), np.ones((2, 4)), np.ones(3)
    shown = np.ones(2)
    with pytest.raises(ValueError, match=r"`initial_weight` must have shape \(m, d\)"):
        theory.memory_distance(np.ones(4), a, delta, shown, factor=1.0)
    with pytest.raises(ValueError, match=r"`readout` must have shape \(C, 4\)"):
        theory.memory_distance(w0, np.ones((2, 3)), delta, shown, factor=1.0)
    with pytest.raises(ValueError, match=r"`readout` must have shape \(C, m\) or \(m,\)"):
        theory.memory_distance(w0, np.ones((1, 2, 4)), delta, shown, factor=1.0)
    with pytest.raises(ValueError, match=r"`mean_difference` must have shape \(3,\)"):
        theory.memory_distance(w0, a, np.ones(4), shown, factor=1.0)
    with pytest.raises(ValueError, match=r"`mean_difference` must have shape \(d,\) or \(P, d\)"):
        theory.memory_distance(w0, a, np.ones((1, 1, 3)), shown, factor=1.0)
    with pytest.raises(ValueError, match=r"`output_difference` must have shape \(2,\)"):
        theory.memory_distance(w0, a, delta, np.ones(3), factor=1.0)
    with pytest.raises(ValueError, match="`initial_weight` must be finite"):
        theory.memory_distance(w0 * np.nan, a, delta, shown, factor=1.0)
    with pytest.raises(ValueError, match="`num_steps` must be finite and >= 0"):
        theory.memory_factor(-1, learning_rate=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="`momentum` must be finite and >= 0 and < 1"):
        theory.memory_factor(1, learning_rate=0.1, weight_decay=0.1, momentum=1.0)
    with pytest.raises(ValueError, match="`weight_decay` must be finite and >= 0"):
        theory.memory_half_life(learning_rate=0.1, weight_decay=-0.1)
    with pytest.raises(ValueError, match="`learning_rate` must be finite"):
        theory.memory_half_life(learning_rate=np.inf, weight_decay=0.1)
    with pytest.raises(ValueError, match="`width` must be an integer >= 1"):
        theory.expected_initial_distance(delta, init_std=1.0, width=0)
    with pytest.raises(ValueError, match="`init_std` must be finite and >= 0"):
        theory.expected_initial_distance(delta, init_std=-1.0, width=3)
