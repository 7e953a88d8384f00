r"""L3. Linear network with weight decay on both layers: fine structure from a convex programme.

    min over W1, W2 of |X W1^T W2^T - Y|_F^2 / (2N) + (lambda/2) (|W1|_F^2 + |W2|_F^2)          (samples are rows)

**Reduction.** For Z = W2 W1, |Z|_* = min (|W1|^2 + |W2|^2)/2: for Z = U S V^T, |Z|_* = tr(U^T W2 W1 V) <= |W2||W1| <=
(|W1|^2 + |W2|^2)/2, with equality iff W1 = R S^(1/2) V^T, W2 = U S^(1/2) R^T with R^T R = I (needs width >= rank Z). So
the minimum is that of the convex problem

    min over Z of |X Z^T - Y|_F^2 / (2N) + lambda |Z|_*,

and features H = X W1^T of EVERY global minimiser have the Gram matrix H H^T = X V S V^T X^T: R drops out. The fit is
strictly convex in X Z^T and projecting the rows of Z on the span of X lowers |Z|_*, so Z and this Gram matrix are
unique.

**Certificate.** Z is optimal iff -G/lambda is a subgradient of |Z|_*, G = (Z X^T - Y^T) X / N, i.e. U^T G V = -lambda I
and |G|_2 <= lambda; for Z != 0 then |G|_2 = lambda. Zero is the solution iff lambda >= |Y^T X / N|_2.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, as_float, float_dtype

_ASSUMPTIONS = (
    "linear network with two trained layers, no bias, width >= rank of the solution",
    "squared error over 2N, the same weight decay on both layers",
    "trained to the global minimum",
)
_RIDGE_ASSUMPTIONS = (
    "squared error over 2N, one linear map with squared-norm penalty",
    "features of the balanced factorisation of that map",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GeometrySolution:
    """Linear map, the features of its balanced factorisation, and how far it is from the nuclear-norm optimum.

    Attributes:
        solution: Z.
        objective: value of the objective that `solution` minimises.
        singular_values: of Z, decreasing; exactly 0 where the penalty switched a direction off.
        rank: number of positive singular values.
        features: one representative X V S^(1/2) of the features; any rotation is as good.
        feature_gram: X V S V^T X^T.
        certificate: |(Z X^T - Y^T) X / N|_2 / lambda: 1 at a non-zero nuclear-norm optimum, <= 1 at a zero one.
        alignment_residual: |U^T G V / lambda + I|_F over the active directions: 0 at the optimum.
        is_trivial: whether Z = 0.
        num_iterations: iterations used.
        converged: whether the tolerance was reached.
        assumptions: what must hold.
    """

    solution: Float[jax.Array, "... C d"]
    objective: Float[jax.Array, "..."]
    singular_values: Float[jax.Array, "... p"]
    rank: Int[jax.Array, "..."]
    features: Float[jax.Array, "... N p"]
    feature_gram: Float[jax.Array, "... N N"]
    certificate: Float[jax.Array, "..."]
    alignment_residual: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    num_iterations: Int[jax.Array, "..."]
    converged: Bool[jax.Array, "..."]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GramStructure:
    """Fine and coarse structure of features, computed from their Gram matrix.

    Attributes:
        class_distances: squared distances of cluster means.
        same_label_distance: mean over pairs of clusters with one label; NaN without such a pair.
        different_label_distance: mean over pairs of clusters with different labels; NaN without such a pair.
        ratio: q = same / different; NaN where undefined.
        within_variance: mean over clusters of the trace of the within-cluster covariance.
        separation: s = same_label_distance / within_variance; NaN without noise.
        coarse_ratio: tr Sigma_W / tr Sigma_B with respect to the labels; NaN if all label means agree.
    """

    class_distances: Float[jax.Array, "... F F"]
    same_label_distance: Float[jax.Array, "..."]
    different_label_distance: Float[jax.Array, "..."]
    ratio: Float[jax.Array, "..."]
    within_variance: Float[jax.Array, "..."]
    separation: Float[jax.Array, "..."]
    coarse_ratio: Float[jax.Array, "..."]


def solve_nuclear_norm(
    inputs: Float[AnyArray, "N d"],
    targets: Float[AnyArray, "N C"],
    *,
    weight_decay: Scalar,
    max_iterations: int = 100_000,
    tolerance: float | None = None,
) -> GeometrySolution:
    """Solve min |X Z^T - Y|_F^2/(2N) + lambda |Z|_* and predict the features of the trained two-layer linear network.

    Accelerated proximal gradient with restart, after reducing Z to the span of X. It stops when a subgradient of the
    objective has Frobenius norm <= tolerance * lambda, which bounds |certificate - 1| by the tolerance. Limits:
    lambda >= |Y^T X / N|_2 gives Z = 0; lambda -> 0 the least-squares map of minimal nuclear norm. Rounding leaves a
    residual near eps |X|_2^2 |Z|_F / (N lambda): in float32 a decay below 1e-3 of the curvature may never certify.

    Args:
        inputs: X, one sample a row (units of input).
        targets: Y, one target vector a row: one-hot, +-1, or real (units of output).
        weight_decay: lambda > 0, coefficient of (|W1|^2 + |W2|^2)/2.
        max_iterations: limit >= 1; then `converged` is False and the certificate tells how far it is.
        tolerance: relative size of the remaining subgradient, > 0; None means 1e-10 in float64, 1e-4 in float32.

    Returns:
        Record in the dtype of the input; differentiate it by finite differences only (a while loop runs inside).

    Raises:
        ValueError: if shapes do not fit, values are not finite, or an option is out of range.

    References:
        Derived here (module docstring).
    """
    x, y, decay = _prepare(inputs, targets, weight_decay)
    max_iterations = _checks.integer("max_iterations", max_iterations, minimum=1)
    if tolerance is None:
        tolerance = 1e-10 if x.dtype == jnp.float64 else 1e-4
    _checks.real("tolerance", tolerance, minimum=0.0, exclusive_minimum=True)
    return _solve_nuclear_norm(x, y, decay, max_iterations, tolerance)


def ridge_solution(
    inputs: Float[AnyArray, "N d"], targets: Float[AnyArray, "N C"], *, weight_decay: Scalar
) -> GeometrySolution:
    """Ridge regression in the same record: the wrong predictor that a test of L3 must reject.

    argmin |X Z^T - Y|_F^2/(2N) + (lambda/2)|Z|_F^2, with the Gram matrix X V S V^T X^T of its balanced factorisation.
    `certificate` and `alignment_residual` are those of the nuclear-norm problem, which ridge does not solve.
    `objective` is the ridge objective. Zero only for X^T Y = 0.

    Args:
        inputs: X, one sample a row (units of input).
        targets: Y, one target vector a row (units of output).
        weight_decay: lambda > 0, coefficient of |Z|_F^2/2.

    Returns:
        Record in the dtype of the input, with `num_iterations` 0.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or the decay is not positive.

    References:
        Standard ridge regression; its use as a control is ours.
    """
    return _ridge_solution(*_prepare(inputs, targets, weight_decay))


@jax.jit
def _ridge_solution(x, y, decay):
    n = x.shape[0]
    left, scale, right = jnp.linalg.svd(x, full_matrices=False)
    z = ((y.T @ left) * (scale / (scale**2 + n * decay))[None, :]) @ right
    u, s, vt = jnp.linalg.svd(z, full_matrices=False)
    objective = jnp.sum((x @ z.T - y) ** 2) / (2 * n) + decay / 2 * jnp.sum(z**2)
    return _record(x, y, decay, (u, s, vt), objective, jnp.asarray(0), jnp.asarray(True), _RIDGE_ASSUMPTIONS)


def _prepare(inputs, targets, weight_decay):
    _checks.shape("inputs", inputs, ("N", "d"))
    if 0 in jnp.shape(inputs):
        raise ArgumentError(f"Argument `inputs` must have no empty axis, but has shape {jnp.shape(inputs)}.")
    _checks.shape("targets", targets, (jnp.shape(inputs)[0], "C"))
    if jnp.shape(targets)[1] == 0:
        raise ArgumentError(f"Argument `targets` must have no empty axis, but has shape {jnp.shape(targets)}.")
    _checks.finite("inputs", inputs)
    _checks.finite("targets", targets)
    _checks.real("weight_decay", weight_decay, minimum=0.0, exclusive_minimum=True)
    dtype = float_dtype(inputs, targets)
    return as_float(inputs, dtype), as_float(targets, dtype), as_float(weight_decay, dtype)


@jax.jit
def _solve_nuclear_norm(x, y, decay, max_iterations, tolerance):
    n = x.shape[0]
    left, scale, right = jnp.linalg.svd(x, full_matrices=False)
    # B = Z in the basis of right singular vectors of X: the smooth gradient becomes elementwise.
    curvature = (scale**2 / n)[None, :]
    pull = (y.T @ left) * (scale / n)[None, :]
    lipschitz = jnp.maximum(curvature[0, 0], jnp.finfo(x.dtype).tiny)

    def gradient(b):
        return b * curvature - pull

    def step(state):
        b, point, inertia, _, _, count = state
        u, s, vt = jnp.linalg.svd(point - gradient(point) / lipschitz, full_matrices=False)
        s = jnp.maximum(s - decay / lipschitz, 0.0)
        new = (u * s[None, :]) @ vt
        # gradient(new) plus the subgradient that the proximal step has used: 0 exactly at the optimum.
        residual = jnp.linalg.norm(gradient(new) - gradient(point) + lipschitz * (point - new)) / decay
        restart = jnp.sum((point - new) * (new - b)) > 0
        inertia = jnp.where(restart, 1.0, inertia)
        new_inertia = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
        momentum = jnp.where(restart, 0.0, (inertia - 1) / new_inertia)
        return new, new + momentum * (new - b), new_inertia, residual, (u, s, vt), count + 1

    zero = jnp.zeros_like(pull)
    p = min(pull.shape)
    factors = (jnp.zeros((pull.shape[0], p), x.dtype), jnp.zeros(p, x.dtype), jnp.zeros((p, pull.shape[1]), x.dtype))
    one = jnp.ones((), x.dtype)
    state = (zero, zero, one, jnp.full((), jnp.inf, x.dtype), factors, jnp.asarray(0))
    _, _, _, residual, (u, s, vt), count = jax.lax.while_loop(
        lambda state: (state[3] > tolerance) & (state[5] < max_iterations), step, state
    )
    z = (u * s[None, :]) @ vt @ right
    objective = jnp.sum((x @ z.T - y) ** 2) / (2 * n) + decay * jnp.sum(s)
    return _record(x, y, decay, (u, s, vt @ right), objective, count, residual <= tolerance, _ASSUMPTIONS)


def _record(x, y, decay, factors, objective, count, converged, assumptions) -> GeometrySolution:
    """Build the record from Z = U S V^T; the certificate uses X, Y and Z alone, not the path that led there."""
    u, s, vt = factors
    num_outputs, d = y.shape[1], x.shape[1]
    z = (u * s[None, :]) @ vt
    slope = (z @ x.T - y.T) @ x / x.shape[0] / decay
    active = s > 0
    both = active[:, None] & active[None, :]
    alignment = jnp.where(both, u.T @ slope @ vt.T + jnp.eye(s.shape[0], dtype=s.dtype), 0.0)
    features = (x @ vt.T) * jnp.sqrt(s)[None, :]
    # The reduction may leave fewer singular values than min(C, d): pad, so that shapes depend on C, d and N alone.
    pad = min(num_outputs, d) - s.shape[0]
    features = jnp.pad(features, ((0, 0), (0, pad)))
    return GeometrySolution(
        solution=z,
        objective=objective,
        singular_values=jnp.pad(s, (0, pad)),
        rank=jnp.sum(active),
        features=features,
        feature_gram=features @ features.T,
        certificate=jnp.linalg.norm(slope, ord=2),
        alignment_residual=jnp.linalg.norm(alignment),
        is_trivial=~jnp.any(active),
        num_iterations=count,
        converged=converged,
        assumptions=assumptions,
    )


def fine_structure_from_gram(
    feature_gram: Float[AnyArray, "N N"],
    labels: Int[AnyArray, " N"],
    fine_labels: Int[AnyArray, " N"] | None = None,
    *,
    num_classes: int,
    num_fine: int | None = None,
) -> GramStructure:
    """Distances of cluster means, q, s and the coarse ratio from inner products of features alone.

    |h_A - h_B|^2 = G_AA + G_BB - 2 G_AB with G averaged over the samples of clusters; averages over unordered pairs of
    clusters weigh each pair alike. Sigma_W has divisor N; Sigma_B is about the unweighted mean of label means, divisor
    `num_classes`. A difference of inner products loses digits when distances are far below squared norms; negative
    rounding is cut at 0. Undefined ratios are NaN, and all is NaN if a cluster is empty under tracing.

    Args:
        feature_gram: inner products of the features of N samples (or of N cluster means).
        labels: training label of each row, 0..num_classes-1.
        fine_labels: cluster of each row, 0..num_fine-1; None makes each row its own cluster.
        num_classes: number of labels, >= 1.
        num_fine: number of clusters, required with `fine_labels`.

    Returns:
        Record in the dtype of the Gram matrix.

    Raises:
        ValueError: if shapes do not fit, values are not finite, a label is out of range or empty, or a cluster has two
            labels.

    References:
        Quantities as in `nctheory.metrics.fine_structure`, rewritten for inner products.
    """
    num_classes = _checks.integer("num_classes", num_classes, minimum=1)
    _checks.shape("feature_gram", feature_gram, ("N", "N"))
    size = jnp.shape(feature_gram)[0]
    _checks.shape("feature_gram", feature_gram, (size, size))
    _checks.finite("feature_gram", feature_gram)
    _checks.labels("labels", labels, num_classes=num_classes, length=size)
    _checks.no_empty_class("labels", labels, num_classes=num_classes)
    if fine_labels is None:
        num_fine, fine_labels = size, jnp.arange(size)
    else:
        num_fine = _checks.integer("num_fine", num_fine, minimum=1)
        _checks.labels("fine_labels", fine_labels, num_classes=num_fine, length=size)
        _checks.no_empty_class("fine_labels", fine_labels, num_classes=num_fine)
        _checks.nested("fine_labels", fine_labels, labels)
    labels, fine_labels = jnp.asarray(labels), jnp.asarray(fine_labels)
    cluster_labels = jax.ops.segment_min(labels, fine_labels, num_segments=num_fine)
    gram = as_float(feature_gram, float_dtype(feature_gram))
    return _fine_structure(gram, labels, fine_labels, cluster_labels, num_classes, num_fine)


def _group_means(gram, groups, num_groups):
    members = jax.nn.one_hot(groups, num_groups, dtype=gram.dtype)
    counts = jnp.sum(members, axis=0)
    averaging = members / counts[None, :]
    return averaging.T @ gram @ averaging, averaging, counts


@partial(jax.jit, static_argnames=("num_classes", "num_fine"))
def _fine_structure(gram, labels, fine_labels, cluster_labels, num_classes, num_fine) -> GramStructure:
    means, averaging, counts = _group_means(gram, fine_labels, num_fine)
    norms, square = jnp.diagonal(means), jnp.diagonal(gram)
    distances = jnp.maximum(norms[:, None] + norms[None, :] - 2 * means, 0.0)
    distances = jnp.where(jnp.all(counts > 0), distances, jnp.nan)
    same = cluster_labels[:, None] == cluster_labels[None, :]
    # Every unordered pair occurs twice; the diagonal belongs to neither mean.
    pairs = ~jnp.eye(num_fine, dtype=bool)
    d_same = _mean_where(distances, same & pairs)
    d_diff = _mean_where(distances, ~same & pairs)
    within = jnp.mean(jnp.maximum(averaging.T @ square - norms, 0.0))
    coarse, _, label_counts = _group_means(gram, labels, num_classes)
    scatter_within = jnp.mean(square) - jnp.sum(label_counts * jnp.diagonal(coarse)) / gram.shape[0]
    scatter_between = jnp.mean(jnp.diagonal(coarse)) - jnp.mean(coarse)
    return GramStructure(
        class_distances=distances,
        same_label_distance=d_same,
        different_label_distance=d_diff,
        ratio=_divide(d_same, d_diff),
        within_variance=within,
        separation=d_same / within,
        coarse_ratio=_divide(jnp.maximum(scatter_within, 0.0), scatter_between),
    )


def _mean_where(values, mask):
    count = jnp.sum(mask).astype(values.dtype)
    return jnp.where(count > 0, jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1.0), jnp.nan)


def _divide(numerator, denominator):
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), jnp.nan)
