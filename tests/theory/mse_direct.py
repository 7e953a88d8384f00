"""Direct minimisation of deep linear features under squared error: plain NumPy and SciPy, no structure imposed."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

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


def smallest_fit(sizes, decays, bias):
    """Smallest eigenvalue of D - N mu (I + pp^T/lambda_b); one layer, decayed bias."""
    sizes = np.asarray(sizes, np.float64)
    scale, shares = sizes.sum() * np.sqrt(float(decays[0]) * float(decays[1])), sizes / sizes.sum()
    fit = np.diag(np.sqrt(sizes)) - scale * (np.eye(sizes.size) + np.sqrt(np.outer(shares, shares)) / float(bias))
    return np.linalg.eigvalsh(fit)[0]
