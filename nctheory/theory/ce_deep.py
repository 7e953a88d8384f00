r"""Cross-entropy with free features and M >= 2 linear layers, balanced: the simplex ETF, and what beats it.

    L = (1/N) sum_i [logsumexp(z_i) - z_{i,y_i}] + sum_m (lambda_m/2)|W_m|_F^2 + (lambda_H/2)|H|_F^2,
    Z = W_M ... W_1 H,   n samples in each of K classes, P = prod_m lambda_m.

**Reduction.** For fixed Z the least penalty of M + 1 factors is ((M+1)/2) (P lambda_H)^{1/(M+1)} sum_i s_i(Z)^{2/(M+1)}
(Schatten quasi-norm; at equality lambda_m s_i(W_m)^2 = lambda_H s_i(H)^2 = mu_i for all m, so mu_i^{M+1} = P lambda_H
s_i(Z)^2). If Z repeats each class column n times, s_i(Z) = sqrt(n) s_i of the class logits, and

    L = mean over classes of the cross-entropy + c kappa sum_i s_i^p,   p = 2/(M+1),  c = 1/p,
    kappa = (n P lambda_H)^{1/(M+1)}:

the decays enter through kappa alone. For M >= 2 the penalty is not convex (p < 1) and favours few singular values.

**Blocks.** Split the classes into blocks; in a block of g >= 2 classes let the logits be rho (I_g - 11^T/g), elsewhere
0. A class of the block has true logit rho (1 - 1/g), g - 1 logits -rho/g and K - g logits 0, so its loss is

    l_g(rho) = log(1 + (g-1) e^-rho + (K-g) e^{-s rho}),  s = 1 - 1/g,

the block has g - 1 singular values rho, and L = sum over blocks of (g/K) l_g(rho) + (g-1) c kappa rho^p: blocks are
independent scalar problems. One block g = K is the simplex ETF; K/2 blocks g = 2 are the low-rank solution of Garrod
and Keating, written there with beta = rho/2; an odd K takes one triple. A single class (g = 1) keeps zero logits.

**The scalar problem.** With q = -l_g', stationarity is (g/K) rho^{1-p} q(rho) = (g-1) kappa. In terms of the
probabilities of margins x in {0, 1, s}, q = E x and -q'/q = Var x/E x. If rho Var x/E x increases from 0 to infinity
then rho^{1-p} q has a single peak, where it equals 1 - p, and there are at most two stationary points: a maximum before
the peak and a minimum after it, which competes with rho = 0 (always a local minimum as p < 1). For g = K, Var x/E x =
e^rho/(e^rho + K - 1), which increases; for the other blocks with g <= K <= 64 the monotony was checked on a grid.
Beyond the peak rho^{1-p} q <= 1.5 K e^{-s rho/2} (as rho <= (4/e) e^{rho/4}), which brackets the minimum for bisection.

**What is refuted.** That deep linear cross-entropy has only simplex-ETF global minimisers (as the abstract of Dang et
al. 2023 may be read): by Theorem 1 of Garrod and Keating (2024) none is one for K >= 4 and M >= 3, or K >= 6 and M = 2
(stated there bias-free with equal decays; as only kappa enters, unequal decays change nothing). Values: derived here.
Comparing records shows more, e.g. K = 5, M = 2 at decay 5e-3. The low-rank solution is an upper bound of the minimum:
that it is the minimiser is not claimed. A free bias cannot raise the minimum, so it refutes with bias too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.frames import _hyperplane_basis
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import Count, LayerDecay, check_count, check_decays

_NUM_BISECTIONS = 64
_ASSUMPTIONS = (
    "features are free parameters, one vector a sample",
    "balanced classes, cross-entropy, no bias",
    "depth >= 2 linear layers, every width >= rank of the logits",
    "best solution of its block form (zero included), an upper bound of the global minimum",
    "decays are coefficients of squared norms over 2; feature decay summed over samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CeDeepSolution:
    """Best solution whose class logits are simplex blocks: explicit factors, and the comparison with the ETF.

    Attributes:
        loss: regularised loss of this solution.
        trivial_loss: loss at zero, log K.
        is_trivial: whether no block is active.
        etf_loss: best loss with simplex-ETF logits, zero included.
        etf_is_beaten: whether the low-rank loss is below `etf_loss` by more than rounding.
        logit_scales: rho of each block, 0 where zero is better.
        logits: class logits, one column a class.
        singular_values: of the class logits, block by block.
        active: modes (in the order of `singular_values`) that are not zero.
        active_classes: classes with a nonzero row of A.
        layer_singular_values: of W_1..W_M and of H (all samples), a row each.
        layer_norms: |W_1|_F^2 .. |W_M|_F^2 and |H|_F^2, the latter over all samples.
        weight_gram: A A^T with A = W_M ... W_1.
        feature_gram: Gram matrix of the class features.
        weights: one representative W_1..W_M, of width equal to the rank of the block form (pad with zeros).
        class_features: the class features that go with `weights`, one a row.
        bias: b, zero.
        block_sizes: number of classes in each block.
        in_refuted_range: whether K and depth lie in the range of Garrod and Keating's theorem.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    etf_loss: Float[jax.Array, "..."]
    etf_is_beaten: Bool[jax.Array, "..."]
    logit_scales: Float[jax.Array, "... B"]
    logits: Float[jax.Array, "... K K"]
    singular_values: Float[jax.Array, "... r"]
    active: Bool[jax.Array, "... r"]
    active_classes: Bool[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... M+1 r"]
    layer_norms: Float[jax.Array, "... M+1"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    weights: tuple[Float[jax.Array, "... a b"], ...]
    class_features: Float[jax.Array, "... K r"]
    bias: Float[jax.Array, "... K"]
    block_sizes: tuple[int, ...] = field(metadata={"static": True})
    in_refuted_range: bool = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def ce_deep_etf_loss(
    num_classes: int, samples_per_class: Count, *, weight_decay: LayerDecay, feature_decay: Scalar, depth: int
) -> CeDeepSolution:
    """Best simplex-ETF solution of deep linear cross-entropy; often NOT the global minimiser (`etf_is_beaten`).

    min over rho of log(1 + (K-1) e^-rho) + (K-1) ((M+1)/2) kappa rho^{2/(M+1)}, kappa = (n P lambda_H)^{1/(M+1)}; at
    the minimum 1/(e^rho + K - 1) = kappa rho^{-(M-1)/(M+1)}, or rho = 0 with loss log K where that is lower: unlike one
    layer the solution jumps to zero. Refuted as global minimum for K >= 4, M >= 3 and K >= 6, M = 2. Nothing is
    undefined for valid arguments; traced arguments out of range make all floats of the record NaN.

    Args:
        num_classes: K >= 2.
        samples_per_class: n >= 1, whole; may be traced.
        weight_decay: lambda_m > 0, one number or one a layer from W_1 to W_M (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).
        depth: M >= 2 linear layers; one layer is `ce_ufm_minimizer`.

    Returns:
        Record of the solution, with explicit factors.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Garrod and Keating (2024), Theorem 1, for the range where no ETF is a global minimum; values derived here.
    """
    return _solve(num_classes, samples_per_class, weight_decay, feature_decay, depth, (num_classes,))


def ce_deep_low_rank_loss(
    num_classes: int,
    samples_per_class: Count,
    *,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
    depth: int,
    block_sizes: Sequence[int] | None = None,
) -> CeDeepSolution:
    """Best block-diagonal solution of deep linear cross-entropy: pairs of classes by default, rank about K/2.

    A pair gives its classes logits +-beta and all others 0: min over beta of log(1 + (K-2) e^-beta + e^-2beta) +
    (K/2) ((M+1)/2) kappa (2 beta)^{2/(M+1)} for even K; an odd K has one block of three. Other splits through
    `block_sizes`; each block is switched off where zero is better. For K = 2, 3 the default is the simplex ETF itself.
    An explicit solution, hence an upper bound of the minimum, not claimed to be it. Nothing is undefined for valid
    arguments; traced arguments out of range make all floats of the record NaN.

    Args:
        num_classes: K >= 2.
        samples_per_class: n >= 1, whole; may be traced.
        weight_decay: lambda_m > 0, one number or one a layer from W_1 to W_M (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2 summed over all samples (dimensionless).
        depth: M >= 2 linear layers; one layer is `ce_ufm_minimizer`.
        block_sizes: number of classes in each block, adding up to K.

    Returns:
        Record of the solution, with explicit factors; `etf_is_beaten` compares it with the ETF.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Solution for even K: Garrod and Keating (2024); values, scalar problem and other blocks derived here.
    """
    if block_sizes is None:
        k = _checks.integer("num_classes", num_classes, minimum=2)
        blocks = (2,) * (k // 2) if k % 2 == 0 else (2,) * ((k - 3) // 2) + (3,)
    else:
        blocks = _checks.integers("block_sizes", block_sizes, minimum=1)
    return _solve(num_classes, samples_per_class, weight_decay, feature_decay, depth, blocks)


def _solve(num_classes, samples_per_class, weight_decay, feature_decay, depth, blocks) -> CeDeepSolution:
    k = _checks.integer("num_classes", num_classes, minimum=2)
    depth = _checks.integer("depth", depth, minimum=2)
    check_count("samples_per_class", samples_per_class)
    check_decays(weight_decay, feature_decay, depth)
    if sum(blocks) != k:
        raise ArgumentError(f"Argument `block_sizes` must add up to num_classes = {k}, but is {blocks}.")
    dtype = float_dtype(weight_decay, feature_decay)
    n, decays, feature_decay = (as_float(value, dtype) for value in (samples_per_class, weight_decay, feature_decay))
    return _record(k, blocks, n, jnp.broadcast_to(decays, (depth,)), feature_decay)


def _slope_terms(k: int, size: int, rho):
    """Logarithm of q(rho), and rho Var x / E x; written with e^{-s rho} taken out, which would underflow."""
    s = 1 - 1 / size
    near, far = (size - 1) * jnp.exp(-rho / size), k - size
    first, second = near + s * far, near + s * s * far
    shrink = jnp.exp(-s * rho)
    log_q = jnp.log(first) - s * rho - jnp.log1p(shrink * (near + far))
    return log_q, rho * (second / first - jnp.exp(log_q))


def _bisect(function, low, high):
    """Zero of a function that is positive at `low` and not positive at `high`."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        positive = function(middle) > 0
        return jnp.where(positive, middle, low), jnp.where(positive, high, middle)

    low, high = jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, (low, high))
    return (low + high) / 2


def _block(k: int, size: int, depth: int, log_kappa):
    """Scale rho of one block and its part of the loss; zero included."""
    trivial = jnp.asarray(size / k * math.log(k), log_kappa.dtype)
    if size == 1:
        return jnp.zeros_like(log_kappa), trivial
    power, s = 2 / (depth + 1), 1 - 1 / size
    # For rho = 4 + 2 log(K)/s, q <= 0.07 and rho (s - q) > 1 > 1 - p: the peak lies below.
    high = jnp.full_like(log_kappa, 4 + 2 * math.log(k) / s)
    peak = _bisect(lambda rho: 1 - power - _slope_terms(k, size, rho)[1], jnp.zeros_like(log_kappa), high)
    target = log_kappa + math.log((size - 1) * k / size)

    def excess(rho):
        return (1 - power) * jnp.log(rho) + _slope_terms(k, size, rho)[0] - target

    bound = 2 / s * (math.log(1.5 * k) - target)
    rho = _bisect(excess, peak, jnp.maximum(peak, bound) + 1)
    misses = (size - 1) * jnp.exp(-rho) + (k - size) * jnp.exp(-s * rho)
    loss = size / k * jnp.log1p(misses) + (size - 1) / power * jnp.exp(log_kappa + power * jnp.log(rho))
    active = (excess(peak) > 0) & (loss < trivial)
    return jnp.where(active, rho, 0.0), jnp.where(active, loss, trivial)


def _total_loss(k: int, blocks: tuple[int, ...], depth: int, log_kappa):
    parts = {size: _block(k, size, depth, log_kappa) for size in set(blocks)}
    # Equal blocks times their number, so that no sum of many roundings blurs a comparison.
    return jnp.sum(jnp.stack([blocks.count(size) * parts[size][1] for size in sorted(parts)])), parts


@partial(jax.jit, static_argnames=("k", "blocks"))
def _record(k: int, blocks: tuple[int, ...], n, weight_decay, feature_decay) -> CeDeepSolution:
    depth = weight_decay.shape[0]
    log_decays = jnp.concatenate([jnp.log(weight_decay), jnp.log(feature_decay)[None]])
    log_kappa = (jnp.sum(log_decays) + jnp.log(n)) / (depth + 1)
    loss, parts = _total_loss(k, blocks, depth, log_kappa)
    etf_loss = _total_loss(k, (k,), depth, log_kappa)[0]
    pairs = (2,) * (k // 2) if k % 2 == 0 else (2,) * ((k - 3) // 2) + (3,)
    low_rank = loss if blocks != (k,) else _total_loss(k, pairs, depth, log_kappa)[0]
    scales = jnp.stack([parts[size][0] for size in blocks])
    values = jnp.repeat(scales, np.array(blocks) - 1, total_repeat_length=k - len(blocks))
    basis = jnp.asarray(_block_basis(blocks), n.dtype)
    active = values > 0
    log_mu = (jnp.sum(log_decays) + jnp.log(n) + 2 * jnp.log(jnp.where(active, values, 1.0))) / (depth + 1)
    layers = jnp.where(active[None, :], jnp.exp((log_mu[None, :] - log_decays[:, None]) / 2), 0.0)
    head, features = jnp.prod(layers[:-1], axis=0), layers[-1] / jnp.sqrt(n)
    weights = (*(jnp.diag(row) for row in layers[: depth - 1]), basis * layers[depth - 1][None, :])
    record = CeDeepSolution(
        loss=loss,
        trivial_loss=jnp.log(jnp.asarray(k, n.dtype)),
        is_trivial=~jnp.any(active),
        etf_loss=etf_loss,
        etf_is_beaten=low_rank < etf_loss * (1 - 64 * jnp.finfo(n.dtype).eps),
        logit_scales=scales,
        logits=_sandwich(basis, values),
        singular_values=values,
        active=active,
        active_classes=jnp.repeat(scales > 0, np.array(blocks), total_repeat_length=k),
        layer_singular_values=layers,
        layer_norms=jnp.sum(layers**2, axis=1),
        weight_gram=_sandwich(basis, head**2),
        feature_gram=_sandwich(basis, features**2),
        weights=weights,
        class_features=basis * features[None, :],
        bias=jnp.zeros(k, n.dtype),
        block_sizes=blocks,
        in_refuted_range=(k >= 4 and depth >= 3) or (k >= 6 and depth == 2),
    )
    return nan_unless(all_counts(n) & all_positive(weight_decay, feature_decay), record)


def _sandwich(basis, values):
    return jnp.matmul(basis * values[None, :], basis.T, precision=jax.lax.Precision.HIGHEST)


def _block_basis(blocks: tuple[int, ...]) -> np.ndarray:
    """Orthonormal columns (K, r): the centred vectors of each block."""
    basis = np.zeros((sum(blocks), sum(blocks) - len(blocks)))
    row = column = 0
    for size in blocks:
        basis[row : row + size, column : column + size - 1] = _hyperplane_basis(size)
        row, column = row + size, column + size - 1
    return basis
