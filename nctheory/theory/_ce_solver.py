r"""Solver in NumPy for the convex problem of `ce_convex`: accelerated proximal gradient, then Newton on the factors.

    F(X, b) = sum_k (n_k/N) CE_k(X_k/sqrt(n_k) + b) + tau |X|_* + (lambda_b/2)|b|^2,   X (K K), one column a class.

**Step size.** With b = c/sqrt(N) the curvature of the smooth part along (dX, dc) is at most (1/2) sum_k (n_k/N)
|dX_k/sqrt(n_k) + dc/sqrt(N)|^2 <= (|dX|^2 + |dc|^2)/N (half of it without bias; softmax has curvature <= 1/2), plus
lambda_b/N for the penalty: 1/N is the Lipschitz constant whatever the class sizes.

**Polish.** Proximal steps find the rank; Newton's method on X = A B^T of that rank with penalty (tau/2)(|A|^2 + |B|^2)
finishes. Rotations of the factors and a constant in b leave the loss alone, so steps are the shortest solutions of the
singular Newton system. The polish is trusted only through the certificate of the full problem, never by itself.

**Certificate.** For G = the gradient in X and any minimiser X*, convexity gives F* >= f(X) + <G, X* - X> + tau |X*|_*
>= f(X) - <G, X> - (|G|_2/tau - 1)_+ F(X), since tau |X*|_* <= F* <= F(X): so gap = tau |X|_* + <G, X> + (|G|_2/tau -
1)_+ F(X) bounds F(X) - F*, up to the product of the residual in b and the distance to b*.
"""

from dataclasses import dataclass

import numpy as np

from nctheory.theory._cross_entropy import log_softmax, softmax_residual

_STEPS_A_ROUND = 300
_RANK_TOLERANCE = 1e-9


@dataclass
class Problem:
    """The data of one problem; `bias_decay` is None without bias."""

    sizes: np.ndarray
    tau: float
    bias_decay: float | None

    def __post_init__(self):
        self.total = self.sizes.sum()
        self.roots = np.sqrt(self.sizes)
        self.shares = self.sizes / self.total

    def logits(self, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Class logits, bias included."""
        return x / self.roots + bias[:, None]

    def smooth(self, x: np.ndarray, bias: np.ndarray) -> float:
        """Cross-entropy and the penalty of the bias."""
        fit = -float(self.shares @ np.diagonal(log_softmax(self.logits(x, bias))))
        return fit + (self.bias_decay or 0.0) / 2 * float(bias @ bias)

    def gradient(self, x: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of the smooth part; that of the bias is 0 where there is none."""
        residual = softmax_residual(self.logits(x, bias))
        if self.bias_decay is None:
            return residual * self.roots / self.total, np.zeros_like(bias)
        return residual * self.roots / self.total, residual @ self.shares + self.bias_decay * bias


@dataclass
class Certificate:
    """How far a point is from optimal: all numbers vanish there, except `spectral`, which is <= 1 (= 1 for X != 0)."""

    loss: float
    gap: float
    spectral: float
    bias_residual: float


def certify(problem: Problem, x: np.ndarray, bias: np.ndarray) -> Certificate:
    """Duality certificate of a point, from the problem and the point alone."""
    slope, bias_slope = problem.gradient(x, bias)
    spectral = np.linalg.norm(slope, 2) / problem.tau
    penalty = problem.tau * np.linalg.svd(x, compute_uv=False).sum()
    loss = problem.smooth(x, bias) + penalty
    gap = max(penalty + np.sum(slope * x), 0.0) + max(spectral - 1, 0.0) * loss
    return Certificate(float(loss), float(gap), float(spectral), float(np.linalg.norm(bias_slope)))


def solve(problem: Problem, tolerance: float, max_rounds: int) -> tuple[np.ndarray, np.ndarray, Certificate, int]:
    """Minimise; returns the best certified point, its certificate, and the number of proximal steps."""
    k = problem.sizes.size
    x, bias = np.zeros((k, k)), np.zeros(k)
    best, certificate, count = (x, bias), certify(problem, x, bias), 0
    for _ in range(max_rounds):
        x, bias = _accelerate(problem, x, bias)
        count += _STEPS_A_ROUND
        for candidate in ((x, bias), _polish(problem, x, bias)):
            new = certify(problem, *candidate)
            if _badness(new) < _badness(certificate):
                best, certificate = candidate, new
        if _badness(certificate) <= tolerance:
            break
    return best[0], best[1], certificate, count


def _badness(certificate: Certificate) -> float:
    return max(certificate.gap, certificate.spectral - 1, certificate.bias_residual)


def _accelerate(problem: Problem, x: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A round of accelerated proximal gradient with restart."""
    step = problem.total / (0.5 if problem.bias_decay is None else 1.0 + problem.bias_decay)
    point, bias_point, inertia = x, bias, 1.0
    for _ in range(_STEPS_A_ROUND):
        slope, bias_slope = problem.gradient(point, bias_point)
        u, s, vt = np.linalg.svd(point - step * slope)
        new = (u * np.maximum(s - step * problem.tau, 0.0)) @ vt
        # The step of b = c/sqrt(N) is 1/N of the step of c.
        new_bias = bias_point - step / problem.total * bias_slope
        turned = np.sum((point - new) * (new - x)) + problem.total * (bias_point - new_bias) @ (new_bias - bias) > 0
        inertia = 1.0 if turned else inertia
        following = (1 + np.sqrt(1 + 4 * inertia**2)) / 2
        momentum = 0.0 if turned else (inertia - 1) / following
        point, bias_point = new + momentum * (new - x), new_bias + momentum * (new_bias - bias)
        x, bias, inertia = new, new_bias, following
    return x, bias


def _polish(problem: Problem, x: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps on the factors of the present rank, while they shrink the gradient."""
    k = problem.sizes.size
    u, s, vt = np.linalg.svd(x)
    rank = int(np.sum(s > _RANK_TOLERANCE * max(s[0], 1.0)))
    left, right = u[:, :rank] * np.sqrt(s[:rank]), vt[:rank].T * np.sqrt(s[:rank])
    size, last = None, (x, bias)
    for _ in range(50):
        gradient, hessian = _factor_derivatives(problem, left, right, bias)
        new_size = np.linalg.norm(gradient)
        if size is not None and not new_size < 0.9 * size:
            break
        size, last = new_size, (left @ right.T, bias)
        move = -np.linalg.lstsq(hessian, gradient, rcond=1e-13)[0]
        left = left + move[: k * rank].reshape(k, rank)
        right = right + move[k * rank : 2 * k * rank].reshape(k, rank)
        if problem.bias_decay is not None:
            bias = bias + move[2 * k * rank :]
    return last


def _factor_derivatives(problem: Problem, left: np.ndarray, right: np.ndarray, bias: np.ndarray):
    """Gradient and Hessian of F at X = left right^T in the entries of left, right and the bias."""
    k, rank = left.shape
    slope, bias_slope = problem.gradient(left @ right.T, bias)
    probabilities = np.exp(log_softmax(problem.logits(left @ right.T, bias)))
    # jacobian[c, j]: change of logit c of class j.
    eye = np.eye(k)
    by_left = np.einsum("ca,jr->cjar", eye, right / problem.roots[:, None]).reshape(k, k, -1)
    by_right = np.einsum("cr,ja->cjar", left, eye / problem.roots[:, None]).reshape(k, k, -1)
    parts = [by_left, by_right]
    gradients = [(slope @ right + problem.tau * left).ravel(), (slope.T @ left + problem.tau * right).ravel()]
    if problem.bias_decay is not None:
        parts.append(np.einsum("ca,j->cja", eye, np.ones(k)))
        gradients.append(bias_slope)
    jacobian = np.concatenate(parts, axis=2)
    weighted = probabilities[:, :, None] * jacobian
    mean = weighted.sum(axis=0)
    rows = (weighted - probabilities[:, :, None] * mean[None]) * problem.shares[None, :, None]
    hessian = np.tensordot(jacobian, rows, axes=((0, 1), (0, 1)))
    half = k * rank
    cross = np.kron(slope, np.eye(rank))
    hessian[:half, half : 2 * half] += cross
    hessian[half : 2 * half, :half] += cross.T
    index = np.arange(2 * half)
    hessian[index, index] += problem.tau
    index = np.arange(2 * half, hessian.shape[0])
    hessian[index, index] += problem.bias_decay or 0.0
    return np.concatenate(gradients), hessian
