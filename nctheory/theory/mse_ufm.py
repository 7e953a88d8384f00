r"""Mean squared error on free features below a linear network of any depth: the global minimum, in closed form.

K classes of n_k samples, N = sum n_k, one-hot targets Y (K N), layers W_1 ... W_M with product A = W_M ... W_1, free
features H (d_1 N, one column a sample), widths d_1 ... d_M:

    L = |A H + b 1^T - Y|_F^2/(2N) + sum_m (lambda_m/2)|W_m|_F^2 + (lambda_H/2)|H|_F^2 + (lambda_b/2)|b|^2,

with b = 0 ("none"), lambda_b = 0 ("free"), or lambda_b > 0. P = prod_m lambda_m, kappa = (P lambda_H)^(1/(M+1)).

**One feature vector a class.** For fixed A and b the loss is a strictly convex quadratic in each column of H, the same
for all samples of a class. So Y, H reduce to K columns: D = diag(sqrt n_k) in place of Y, Hbar D in place of H, and
the unit vector p, p_k = sqrt(n_k/N), in place of 1/sqrt N.

**Layers.** For fixed Z = A H of rank <= R = min(d_1..d_M, K) the penalties on W and H are at least
((M+1)/2) (prod of all lambda_j |F_j|^2)^(1/(M+1)) (arithmetic against geometric mean), and |Z|_r <= prod |F_j|_F for
the Schatten quasi-norm with r = 2/(M+1) (Horn, Hoelder). So they cost ((M+1)/2) kappa sum_i z_i^r, z_i the singular
values of Z, with equality exactly for aligned factors with squared singular values

    W_m: (kappa/lambda_m) z_i^r,   H: (kappa/lambda_H) z_i^r,   A: (kappa^M/P) z_i^(M r).

**No bias, free bias.** Without bias the target is T = D. A free bias removes the sample mean: the fit depends on Z only
through Z (I - pp^T), and replacing Z by it raises no singular value. So T = D (I - pp^T), of rank K - 1 with left null
vector 1, and b = n_k/N. By von Neumann's trace inequality Z shares the singular vectors of T, and with z = sigma p the
modes separate into sigma^2 (1-p)^2/(2N) + ((M+1)/2) kappa (sigma p)^r. Minimising over the singular value of H first
turns a mode into (sigma^2/(2N)) f(x) of _modes.py with

    p = x^M/(1+x^M),   beta = M N (N P lambda_H)^(1/M) / sigma^2.

The gain of a mode grows with sigma (its derivative is z/N), so a bottleneck R keeps the R largest.

**Decayed bias, equal class sizes n.** rho = lambda_b/(1+lambda_b). For fixed b put v = sqrt(K) b, in units where the
target is I - v p^T, with singular values s_1 >= 1 >= ... >= 1 >= s_K: s_1 + s_K and s_1 - s_K are the larger and the
smaller of r_1 = |2p - v| and r_2 = |v|. For given z_1 >= ... >= z_K, fit and bias penalty depend on v through

    r_1^2/2 + (1/2 + lambda_b) r_2^2 - max( (z_1+z_K) r_1 + (z_1-z_K) r_2, (z_1-z_K) r_1 + (z_1+z_K) r_2 ),

the lower of two convex functions of (r_1, r_2) on r_1 + r_2 >= 2 >= |r_1 - r_2|, whose boundary is v parallel to p. A
minimum in the interior is the free minimum of one of the two. It lies inside only if z_1 > 1, and leaves z_1^2 + z_K^2
- (z_1+z_K)^2/2 - (z_1-z_K)^2/(2 + 4 lambda_b) (or with z_K -> -z_K), which grows with z_1, as the penalty does:
lowering every z_i > 1 gains, so no global minimum is there. Hence v is parallel to p, K-1 modes orthogonal to 1 stay as
they are, and the mode along 1 has weight rho, that is beta rho^(-(M+1)/M), and b = (1-p)/((1+lambda_b) K) 1. This holds
for any number of z_i = 0; a bottleneck drops the mode along 1 first, as it has the smallest gain.

**Decayed bias, unequal class sizes.** D and Q have no common singular vectors and the modes do not separate. For M = 1
the problem is convex; eliminating b leaves the weight Q = I - (1-rho) pp^T on the columns of D - Z, and a minimum is
where (D - Z) Q = N mu G, G a subgradient of the nuclear norm at Z, mu = sqrt(lambda_1 lambda_H). As
Q^-1 = I + pp^T/lambda_b, G = I gives

    Z = D - N mu (I + pp^T/lambda_b),   b_k = (mu/lambda_b) sqrt n_k,   outputs A h_k + b = (1 - N mu/sqrt n_k) e_k,
    L = mu sum_k sqrt n_k - (N mu^2/2) (K + 1/lambda_b),

the minimiser iff this symmetric Z is positive semidefinite (then I is a subgradient): the bias takes over a part of the
outputs that stay those of the bias-free minimum. If Z is not, or M > 1, the conditions D = Z + N G(Z) Q^-1 have
solutions only with different left and right singular vectors, and no closed form is known here: an error, not a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.theory._common import Scalar, all_counts, all_positive, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import ClassSizes, LayerDecay, check_bias, check_class_sizes, check_decays
from nctheory.theory._modes import TIE_SPACINGS, threshold
from nctheory.theory._mse_ufm_modes import HIGHEST, Modes, solve_modes

_ASSUMPTIONS = (
    "features are free parameters, one vector a sample",
    "one-hot targets, loss |outputs - targets|^2/(2N)",
    "linear layers; only the last one may have a bias",
    "decays are coefficients of squared norms over 2; feature decay summed over all samples",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MseUfmMinimizer:
    """Global minimiser of the deep linear unconstrained feature model, up to rotations between the layers.

    Modes are the singular directions of the target, largest gain first: K of them, or K-1 with a free bias. In the case
    of a decayed bias with unequal class sizes they are the eigenvectors of the fit, and the target's singular value is
    replaced by the target's component along the mode.

    Attributes:
        loss: minimal regularised loss L*.
        trivial_loss: loss with all weights and features zero (and the best bias).
        is_trivial: whether that is the minimiser returned.
        active: modes that are not zero.
        active_classes: classes with a nonzero row of A.
        is_tie: modes for which zero and the value at the jump are both global (depth >= 2), to rounding.
        gram_is_unique: whether the Gram matrices are those of every global minimiser; False at a tie, and where a
            bottleneck must choose among modes of equal gain.
        threshold_ratios: beta/thr_M of each mode; above 1 the mode is zero.
        target_singular_values: sigma of each mode (square root of a number of samples).
        mode_x: x of each mode, 0 if inactive.
        fitted_fraction: x^M/(1+x^M), fitted part of the target along each mode.
        layer_singular_values: of W_1 ... W_M, one row a layer, one column a mode.
        layer_norms: squared Frobenius norms of W_1 ... W_M.
        feature_singular_values: of the matrix H of all samples.
        feature_norm: its squared Frobenius norm.
        weight_gram: A A^T.
        feature_gram: Gram matrix of the class features.
        logits: A h_k, one column a class, without the bias.
        bias: b, zero without bias.
        class_weight_norms: lengths of the rows of A.
        class_feature_norms: lengths of the class features.
        mode_vectors: left singular vectors of the fit, one column a mode.
        class_coordinates: component of each class's feature along each mode, in units of the mode's singular value.
        depth: number of linear layers M.
        rank: largest rank that the widths allow.
        widths: d_1 ... d_M, or None if no width binds.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    active: Bool[jax.Array, "... R"]
    active_classes: Bool[jax.Array, "... K"]
    is_tie: Bool[jax.Array, "... R"]
    gram_is_unique: Bool[jax.Array, "..."]
    threshold_ratios: Float[jax.Array, "... R"]
    target_singular_values: Float[jax.Array, "... R"]
    mode_x: Float[jax.Array, "... R"]
    fitted_fraction: Float[jax.Array, "... R"]
    layer_singular_values: Float[jax.Array, "... M R"]
    layer_norms: Float[jax.Array, "... M"]
    feature_singular_values: Float[jax.Array, "... R"]
    feature_norm: Float[jax.Array, "..."]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    logits: Float[jax.Array, "... K K"]
    bias: Float[jax.Array, "... K"]
    class_weight_norms: Float[jax.Array, "... K"]
    class_feature_norms: Float[jax.Array, "... K"]
    mode_vectors: Float[jax.Array, "... K R"]
    class_coordinates: Float[jax.Array, "... K R"]
    depth: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})
    widths: tuple[int, ...] | None = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UfmParameters:
    """One explicit set of parameters of a deep linear unconstrained feature model.

    Attributes:
        weights: W_1 ... W_M, W_m of shape (d_{m+1}, d_m) with d_{M+1} = K.
        class_features: feature vector of each class, one row a class; repeat row k n_k times to get all samples.
        bias: b.
    """

    weights: tuple[Float[jax.Array, "..."], ...]
    class_features: Float[jax.Array, "... K d"]
    bias: Float[jax.Array, "... K"]


def mse_ufm_minimizer(
    class_sizes: ClassSizes,
    *,
    weight_decay: LayerDecay,
    feature_decay: Scalar,
    depth: int = 1,
    bias: str | Scalar = "none",
    widths: Sequence[int] | None = None,
    at_tie: str = "zero",
) -> MseUfmMinimizer:
    """Global minimiser of the mean squared error over free features and a linear network of any depth.

    Each singular value sigma of the target (Y, or Y without its sample mean for a free bias) is an independent mode
    with beta = M N (N lambda_1 ... lambda_M lambda_H)^(1/M) / sigma^2 and x = argmin 1/(1+x^M) + beta x; it fits the
    fraction x^M/(1+x^M) of the target and is zero for beta above (M-1)^((M-1)/M)/M. Without bias a mode is a class:
    class k collapses to zero iff n_k is small enough. Depth 1: x is continuous at the threshold. Depth >= 2: the fitted
    fraction jumps to (M-1)/M there, and exactly there both solutions are global (`at_tie` chooses). Nothing is
    undefined for valid arguments. Traced arguments cannot be refused: where they are out of range or in an uncovered
    case (see Raises), all floats of the record are NaN.

    Args:
        class_sizes: n_1 ... n_K, whole numbers >= 1, K >= 2.
        weight_decay: lambda_m > 0, coefficient of |W_m|^2/2; one number or one a layer, W_1 first (dimensionless).
        feature_decay: lambda_H > 0, coefficient of |H|^2/2, summed over all N samples (dimensionless).
        depth: number M >= 1 of linear layers above the features.
        bias: "none", "free" (no decay; 0 is refused), or the decay lambda_b > 0 of |b|^2/2.
        widths: d_1 ... d_M >= 1, the feature dimension first; None for widths that do not bind. The rank of the fit is
            at most the smallest; the modes of largest gain survive, the others are zero.
        at_tie: "zero" or "active", the solution described for a mode whose two solutions are both global.

    Returns:
        Record of the minimiser; unique up to rotations between layers unless `gram_is_unique` is False.

    Raises:
        ValueError: if an argument is out of range; or if the bias is decayed with unequal class sizes, and depth > 1,
            or a width is below K, or the fit D - N mu (I + pp^T/lambda_b) of the module docstring is not positive
            semidefinite: these cases have no closed form.

    References:
        Derived here (module docstring). Setting of Dang et al. 2023; their published code takes a mode as active
        wherever f has a stationary point, which goes beyond the threshold for M >= 2.
    """
    depth = _checks.integer("depth", depth, minimum=1)
    num_classes = check_class_sizes(class_sizes)
    dtype = float_dtype(class_sizes, weight_decay, feature_decay, bias)
    check_decays(weight_decay, feature_decay, depth, dtype)
    widths = _check_widths(widths, depth)
    _checks.choice("at_tie", at_tie, ("zero", "active"))
    rank = min(num_classes, *widths) if widths else num_classes
    check_bias(bias, dtype=dtype)
    if not isinstance(bias, str):
        _check_decayed_bias(class_sizes, weight_decay, feature_decay, bias, depth, rank)
    record = _minimizer(
        as_float(class_sizes, dtype),
        jnp.broadcast_to(as_float(weight_decay, dtype), (depth,)),
        as_float(feature_decay, dtype),
        None if isinstance(bias, str) else as_float(bias, dtype),
        free=bias == "free" if isinstance(bias, str) else False,
        rank=rank,
        keep_ties=at_tie == "active",
    )
    # Outside of the compiled part, which depends on the widths through the rank alone.
    return replace(record, widths=widths)


def mse_ufm_representative(minimizer: MseUfmMinimizer, widths: Sequence[int] | None = None) -> UfmParameters:
    """Explicit weights, class features and bias of one global minimiser.

    The singular vectors between the layers are the coordinate axes: W_1 ... W_{M-1} are diagonal, W_M holds the modes'
    vectors times its singular values, mode i occupies coordinate i. All other minimisers with the same Gram matrices
    are rotations of this one between the layers. A batched record is refused: use `jax.vmap`.

    Args:
        minimizer: result of `mse_ufm_minimizer`.
        widths: d_1 ... d_M; those of the record, or K each, if not given.

    Returns:
        Parameters, in the record's dtype.

    Raises:
        ValueError: if widths are invalid or cannot hold the record's modes, or the record is batched.

    References:
        Derived here.
    """
    if np.ndim(minimizer.mode_vectors) != 2:
        batch = np.shape(minimizer.mode_vectors)[:-2]
        raise ArgumentError(f"Argument `minimizer` must be one record, but is a batch {batch} of them: use `jax.vmap`.")
    num_classes, num_modes = np.shape(minimizer.mode_vectors)
    depth, kept = minimizer.depth, min(minimizer.rank, num_modes)
    widths = _check_widths(widths, depth) or minimizer.widths or (num_classes,) * depth
    if min(widths) < kept:
        raise ArgumentError(f"Argument `widths` must be >= {kept}, the number of modes kept, but is {list(widths)}.")
    axes = [jnp.eye(kept, width, dtype=minimizer.loss.dtype) for width in widths]
    values = minimizer.layer_singular_values[:, :kept]
    outputs = [axis.T for axis in axes[1:]] + [minimizer.mode_vectors[:, :kept]]
    # Every entry is one product, so the precision of the matrix product does not matter.
    weights = tuple(
        jnp.matmul(out * value[None, :], axis, precision=HIGHEST)
        for out, value, axis in zip(outputs, values, axes, strict=True)
    )
    coordinates = minimizer.class_coordinates * minimizer.feature_singular_values[None, :]
    features = jnp.matmul(coordinates[:, :kept], axes[0], precision=HIGHEST)
    return UfmParameters(weights=weights, class_features=features, bias=minimizer.bias)


@partial(jax.jit, static_argnames=("free", "rank", "keep_ties"))
def _minimizer(sizes, weight_decay, feature_decay, bias_decay, *, free, rank, keep_ties) -> MseUfmMinimizer:
    depth = weight_decay.shape[0]
    modes = solve_modes(sizes, weight_decay, feature_decay, bias_decay, free=free, rank=rank, keep_ties=keep_ties)
    log_weights, log_features = jnp.log(weight_decay), jnp.log(feature_decay)
    # Half the logarithm of kappa z^(2/(M+1)), to which all factors are proportional.
    shared = (jnp.sum(log_weights) + log_features + 2 * modes.log_fit) / (2 * (depth + 1))
    layers = jnp.where(modes.active[None, :], jnp.exp(shared[None, :] - log_weights[:, None] / 2), 0.0)
    features = jnp.where(modes.active, jnp.exp(shared - log_features / 2), 0.0)
    product = jnp.prod(layers, axis=0)
    tied = jnp.any(modes.is_tie[:rank]) | _splits_equal_modes(modes, rank)
    record = MseUfmMinimizer(
        loss=modes.loss,
        trivial_loss=modes.trivial_loss,
        is_trivial=~jnp.any(modes.active),
        active=modes.active,
        active_classes=_row_sums(modes.left, modes.active.astype(sizes.dtype)) > 16 * jnp.finfo(sizes.dtype).eps,
        is_tie=modes.is_tie,
        gram_is_unique=~tied,
        threshold_ratios=jnp.exp(modes.log_beta) / threshold(depth),
        target_singular_values=modes.target,
        mode_x=modes.x,
        fitted_fraction=modes.fraction,
        layer_singular_values=layers,
        layer_norms=jnp.sum(layers**2, axis=1),
        feature_singular_values=features,
        feature_norm=jnp.sum(features**2),
        weight_gram=_sandwich(modes.left, product**2, modes.left),
        feature_gram=_sandwich(modes.right, features**2, modes.right),
        logits=_sandwich(modes.left, product * features, modes.right),
        bias=modes.bias,
        class_weight_norms=_safe_sqrt(_row_sums(modes.left, product**2)),
        class_feature_norms=_safe_sqrt(_row_sums(modes.right, features**2)),
        mode_vectors=modes.left,
        class_coordinates=modes.right,
        depth=depth,
        rank=rank,
        widths=None,
    )
    valid = all_counts(sizes) & all_positive(weight_decay, feature_decay, bias_decay)
    return nan_unless(valid & ~jnp.isnan(modes.loss), record)  # NaN: a decayed bias in an uncovered case


def _splits_equal_modes(modes: Modes, rank: int) -> jax.Array:
    """Whether a bottleneck keeps one and drops another of two modes of equal gain."""
    if rank >= modes.log_beta.shape[0]:
        return jnp.asarray(False)
    gap = jnp.abs(modes.log_beta[rank] - modes.log_beta[rank - 1])
    # Eigenvalues that are equal in exact arithmetic come out this close.
    return modes.active[rank - 1] & (gap <= 8 * TIE_SPACINGS * jnp.finfo(gap.dtype).eps)


def _sandwich(left, values, right) -> jax.Array:
    return jnp.matmul(left * values[None, :], right.T, precision=HIGHEST)


def _row_sums(vectors, values) -> jax.Array:
    return jnp.sum(vectors**2 * values[None, :], axis=1)


def _safe_sqrt(squares) -> jax.Array:
    # The derivative of a square root at 0 is infinite, and infinity times 0 is NaN.
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def _check_widths(widths: Sequence[int] | None, depth: int) -> tuple[int, ...] | None:
    if widths is None:
        return None
    widths = _checks.integers("widths", widths, minimum=1)
    if len(widths) != depth:
        raise ArgumentError(f"Argument `widths` must have one entry a layer, {depth} in all, but has {len(widths)}.")
    return widths


def _check_decayed_bias(class_sizes, weight_decay, feature_decay, bias, depth: int, rank: int) -> None:
    """Refuse the cases of a decayed bias with unequal class sizes that have no closed form."""
    if not _checks.is_concrete(class_sizes):
        return
    sizes = np.asarray(class_sizes).astype(np.float64)
    if (sizes == sizes[0]).all():
        return
    reason = ""
    if depth > 1:
        reason = f"depth {depth}"
    elif rank < sizes.size:
        reason = f"a width of {rank}, below the {sizes.size} classes"
    elif all(_checks.is_concrete(value) for value in (weight_decay, feature_decay, bias)):
        decays = [float(np.asarray(value).reshape(())) for value in (np.ravel(weight_decay)[0], feature_decay, bias)]
        scale, p = sizes.sum() * np.sqrt(decays[0] * decays[1]), np.sqrt(sizes / sizes.sum())
        fit = np.diag(np.sqrt(sizes) - scale) - scale / decays[2] * np.outer(p, p)
        reason = "" if np.linalg.eigvalsh(fit)[0] >= 0 else "decays so strong that a part of the classes collapses"
    if reason:
        raise ArgumentError(
            f"Argument `bias` must be 'none' or 'free' for unequal class sizes with {reason}, but is a decay: "
            "bias decay then couples the modes, and the minimiser has no closed form."
        )
