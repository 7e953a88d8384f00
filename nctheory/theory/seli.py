r"""Cross-entropy with vanishing weight decay and unequal classes: SELI, the simplex-encoded-labels interpolation.

As the decays vanish at a fixed ratio, the direction of the minimiser solves the max-margin problem

    min over W, H of (1/2)(|W|_F^2 + |H|_F^2)   subject to   (w_{y_i} - w_c) . h_i >= 1 for all i and c != y_i,

equivalently (see `free_features`) min |Z|_* over logits Z = W H with these margins.

**Candidate.** Zhat = Y - 11^T/K (K N), column e_{y_i} - 1/K: every margin is exactly 1. With D = diag(n_k) and
C = I - 11^T/K, Zhat Zhat^T = C D C. For a thin SVD Zhat = V S U^T with K - 1 modes the balanced factorisation has
W W^T = V S V^T = (C D C)^{1/2}, Gram matrix of the class features C ((C D C)^{1/2})^+ C, and value |Zhat|_* =
tr (C D C)^{1/2}; features of one class agree.

**Certificate.** Let B = V U^T, of spectral norm 1, with column B_k = ((C D C)^{1/2})^+ C e_k for every sample of class
k. Its columns sum to zero. If its off-label entries B_ck are <= 0, then for any feasible Z

    |Z|_* >= <B, Z> = sum_i sum_{c != y_i} (-B_{c,y_i}) (Z_{y_i,i} - Z_{c,i}) >= sum_i sum_{c != y_i} (-B_{c,y_i})
           = <B, Zhat> = |Zhat|_*,

so Zhat is optimal. If they are < 0, every optimal Z has all margins equal to 1, Z = Zhat + 1 c^T, and the smallest
nuclear norm forces 1^T Z = 0: Zhat is the only one. The condition is checked for the sizes at hand, not assumed.

**STEP imbalance** (K_A classes of size n_A, K_B of size n_B): C D C has eigenvalue n_A on differences of majority
classes, n_B on differences of minority classes, and (n_A/K_A + n_B/K_B)/(1/K_A + 1/K_B) on the direction between.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nctheory.frames import _hyperplane_basis
from nctheory.theory._common import all_counts, as_float, float_dtype, nan_unless
from nctheory.theory._cross_entropy import ClassSizes, check_class_sizes

_HIGHEST = jax.lax.Precision.HIGHEST
_ASSUMPTIONS = (
    "features are free parameters, one vector a sample; one linear layer, no bias",
    "cross-entropy with weight and feature decay both vanishing at a fixed ratio (lambda_W = lambda_H for the scale)",
    "feature dimension >= num_classes - 1",
    "optimal where `is_certified`; elsewhere a candidate only",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SeliGeometry:
    """SELI: the max-margin solution with free features; vectors up to a rotation of the feature space.

    Attributes:
        loss: |Zhat|_* = minimum of (|W|^2 + |H|^2)/2 under margins >= 1, where certified: the objective of the
            max-margin problem. The cross-entropy itself tends to 0.
        singular_values: of the K N logits Zhat, decreasing (K - 1 of them).
        logits: I - 11^T/K, one column a class.
        weight_gram: W W^T.
        feature_gram: Gram matrix of the K class features.
        class_weight_norms: lengths of the rows of W.
        class_feature_norms: lengths of the class features.
        weight_cosines: between rows of W.
        feature_cosines: between class features.
        dual_slack: largest off-label entry of the dual matrix V U^T; the solution is optimal if it is <= 0 and unique
            if it is < 0.
        is_certified: whether `dual_slack` <= 0, up to rounding of the entries.
        weight: one representative W.
        class_features: the class features that go with `weight`, one a row.
        active: modes that are not zero: all K - 1.
        active_classes: classes that are not zero: all.
        layer_singular_values: of W, one row.
        layer_norms: |W|_F^2, one entry; equal to `loss`.
        feature_singular_values: of the matrix H of all samples.
        feature_norm: |H|_F^2 over all samples; equal to `loss`.
        bias: zero, there is none.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    singular_values: Float[jax.Array, "... K-1"]
    logits: Float[jax.Array, "... K K"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    class_weight_norms: Float[jax.Array, "... K"]
    class_feature_norms: Float[jax.Array, "... K"]
    weight_cosines: Float[jax.Array, "... K K"]
    feature_cosines: Float[jax.Array, "... K K"]
    dual_slack: Float[jax.Array, "..."]
    is_certified: Bool[jax.Array, "..."]
    weight: Float[jax.Array, "... K K-1"]
    class_features: Float[jax.Array, "... K K-1"]
    active: Bool[jax.Array, "... K-1"]
    active_classes: Bool[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... 1 K-1"]
    layer_norms: Float[jax.Array, "... 1"]
    feature_singular_values: Float[jax.Array, "... K-1"]
    feature_norm: Float[jax.Array, "..."]
    bias: Float[jax.Array, "... K"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)

    @property
    def value(self) -> Float[jax.Array, "..."]:
        """The nuclear norm |Zhat|_*, another name of `loss`."""
        return self.loss


def seli(class_sizes: ClassSizes) -> SeliGeometry:
    """SELI geometry of unregularised cross-entropy for given class sizes, with its optimality certificate.

    Logits Zhat = Y - 11^T/K; W W^T = (C D C)^{1/2}, feature Gram = C ((C D C)^{1/2})^+ C, value tr (C D C)^{1/2}, with
    D = diag(n_k), C = I - 11^T/K. Limits: equal sizes give a simplex ETF, W W^T = sqrt(n) C and feature Gram
    C/sqrt(n). Only the limit of vanishing decay: at finite decay the geometry depends on it (`ce_ufm_convex`). NaN
    where a traced class size is below 1; where the certificate fails `is_certified` says so.

    Args:
        class_sizes: n_1..n_K, whole numbers >= 1 (samples), K >= 2; may be traced.

    Returns:
        Record of the geometry.

    Raises:
        ValueError: if the class sizes are not at least 2 whole numbers >= 1.

    References:
        Thrampoulidis et al. (2022), definition of SELI; values and certificate derived here (module docstring).
    """
    check_class_sizes(class_sizes)
    # Eigenvalues are not available in half precision.
    return _seli(as_float(class_sizes, np.promote_types(float_dtype(class_sizes), np.float32)))


@jax.jit
def _seli(sizes) -> SeliGeometry:
    k = sizes.shape[0]
    basis = jnp.asarray(_hyperplane_basis(k), sizes.dtype)
    inner = jnp.matmul(basis.T, sizes[:, None] * basis, precision=_HIGHEST)
    # By Courant-Fischer no eigenvalue lies below the smallest class.
    squares, vectors = jnp.linalg.eigh(inner)
    modes = jnp.matmul(basis, vectors[:, ::-1], precision=_HIGHEST)
    values = jnp.sqrt(jnp.maximum(squares[::-1], jnp.min(sizes)))
    weight = modes * jnp.sqrt(values)[None, :]
    features = modes / jnp.sqrt(values)[None, :]
    weight_gram = jnp.matmul(weight, weight.T, precision=_HIGHEST)
    # The class features' Gram matrix is also the dual matrix V U^T, taken at one sample of each class.
    feature_gram = jnp.matmul(features, features.T, precision=_HIGHEST)
    weight_norms, feature_norms = jnp.sqrt(jnp.diagonal(weight_gram)), jnp.sqrt(jnp.diagonal(feature_gram))
    off_label = jnp.where(jnp.eye(k, dtype=bool), -jnp.inf, feature_gram)
    slack = jnp.max(off_label)
    value, roots = jnp.sum(values), jnp.sqrt(values)
    record = SeliGeometry(
        loss=value,
        singular_values=values,
        logits=jnp.eye(k, dtype=sizes.dtype) - 1 / k,
        weight_gram=weight_gram,
        feature_gram=feature_gram,
        class_weight_norms=weight_norms,
        class_feature_norms=feature_norms,
        weight_cosines=weight_gram / (weight_norms[:, None] * weight_norms[None, :]),
        feature_cosines=feature_gram / (feature_norms[:, None] * feature_norms[None, :]),
        dual_slack=slack,
        is_certified=slack <= k * jnp.finfo(sizes.dtype).eps * jnp.max(feature_gram),
        weight=weight,
        class_features=features,
        active=jnp.ones(k - 1, bool),
        active_classes=jnp.ones(k, bool),
        layer_singular_values=roots[None, :],
        layer_norms=value[None],
        feature_singular_values=roots,
        feature_norm=value,
        bias=jnp.zeros(k, sizes.dtype),
    )
    return nan_unless(all_counts(sizes), record)
