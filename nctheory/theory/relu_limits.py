r"""L2. ReLU features of orthogonal clusters: structure that training does not erase.

Setting: f(x) = a^T relu(W x), readout a fixed, K = 2S clusters with mutually orthogonal means mu_k and no noise, S
clusters in each of two labels y = +1, -1; logistic loss, gradient descent on W from a small Gaussian start, no weight
decay.

**Decoupling.** Write z_jk = w_j . mu_k. A gradient step moves w_j by a multiple of a_j y_k mu_k from each cluster k on
which neuron j is active. The means are orthogonal, so the step along mu_k changes z_jk alone: each cluster has its own
dynamics, z_jk(t) = z_jk(0) + a_j y_k g_k(t) with one growing number g_k for all neurons with z_jk(0) > 0, until the
neuron dies (only possible for a_j y_k < 0). Neurons with z_jk(0) <= 0 stay silent on cluster k. Hence, exactly and at
any width,

    h_jk = 1[z_jk(0) > 0] max(0, z_jk(0) + a_j y_k g_k),     g_k fixed by the output f_k = sum_j a_j h_jk.

**Limit.** Late in training only A_k = {z_jk(0) > 0, a_j y_k > 0} is left, at height |a_j| g_k. Signs of z_jk(0) are
independent fair coins (orthogonal means, Gaussian start), so with |a_j| = 1/sqrt(m) and m -> infinity A_k holds m/4
neurons, two clusters of one label share m/8, clusters of different labels share none. With equal margins the Gram
matrix is, up to scale, 1 on the diagonal, 1/2 within a label, 0 across labels. Squared distances: 1 within, 2 across,
so

    q = 1/2.

Label means have squared norm (1 + (S-1)/2)/S = (S+1)/(2S); then tr Sigma_W = 1 - (S+1)/(2S) = (S-1)/(2S),
tr Sigma_B = (S+1)/(4S), and

    tr Sigma_W / tr Sigma_B = 2 (S-1)/(S+1):   2/3, 1, 6/5 for S = 2, 3, 4.

**Finite width.** Let n_k = |A_k| = (m/4)(1 + alpha_k), n_kl = |A_k n A_l| = (m/8)(1 + gamma_kl). At equal margins h_k
is 1[A_k]/n_k up to scale, so distances are proportional to (n_k + n_l - 2 n_kl)/(n_k n_l), with n_kl = 0 across labels.
Expanding, q = 1/2 (1 - mean gamma + mean alpha) + second order. With N = m/2 neurons of the right sign and coin spins
s_jk = +-1, alpha_k = mean_j s_jk and gamma_kl = mean_j (s_jk + s_jl + s_jk s_jl), so mean gamma - mean alpha averages,
over the N neurons of a label, (mean_k s_jk + mean_pairs s_jk s_jl), of variance 1/S + 2/(S(S-1)) = (S+1)/(S(S-1)). Two
labels:

    Var q = (S+1) / (4 S (S-1) m),     E q = 1/2 + (1 - 1/(2S))/m,     both to leading order in 1/m

(the mean collects E[gamma_kl (alpha_k + alpha_l)] = 2/N, E[1/(1+alpha)] - 1 = 1/N, E[mean alpha^2] = 1/(2NS) and
E[mean gamma mean alpha] = 1/(NS)). Training stops at a finite margin, where the start still shows: `relu_features`
accounts for both and has no gap.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import as_float, float_dtype

_ASSUMPTIONS = (
    "cluster means orthogonal and of equal norm, no noise",
    "two labels with equally many clusters, equally many samples a cluster",
    "readout fixed at +-1/sqrt(m), either sign equally likely",
    "first layer Gaussian at the start, its scale much smaller than what training adds",
    "logistic loss, no weight decay, training time to infinity, equal margins",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReluLimit:
    """Late-time geometry of ReLU features of orthogonal clusters.

    Attributes:
        same_label_cosine: cosine of two cluster features of one label.
        different_label_cosine: cosine across labels.
        ratio: q, same-label over different-label squared distance, at infinite width.
        coarse_ratio: tr Sigma_W / tr Sigma_B with respect to the labels, at infinite width.
        ratio_mean: expectation of q over initialisations at the given width, to order 1/width.
        ratio_std: standard deviation of q over initialisations at the given width, to leading order.
        gram: limiting Gram matrix of the 2S cluster features, unit diagonal, first S clusters in the first label.
        clusters_per_label: S.
        assumptions: what must hold.
    """

    same_label_cosine: Float[jax.Array, "..."]
    different_label_cosine: Float[jax.Array, "..."]
    ratio: Float[jax.Array, "..."]
    coarse_ratio: Float[jax.Array, "..."]
    ratio_mean: Float[jax.Array, "..."]
    ratio_std: Float[jax.Array, "..."]
    gram: Float[jax.Array, "... K K"]
    clusters_per_label: int = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def relu_limit(clusters_per_label: int, *, width: int | None = None) -> ReluLimit:
    """Limit of the fine structure of ReLU features: cosine 1/2 within a label, 0 across, whatever S.

    q = 1/2 and tr Sigma_W / tr Sigma_B = 2 (S-1)/(S+1). With S = 1 there is no pair within a label: q and the cosine
    within a label are NaN, the coarse ratio is 0.

    Args:
        clusters_per_label: S >= 1.
        width: number of features m >= 1 for the spread of q over initialisations; None means infinite width.

    Returns:
        Record in the default floating dtype.

    Raises:
        ValueError: if an argument is not an integer >= 1.

    References:
        Derived here (module docstring).
    """
    s = _checks.integer("clusters_per_label", clusters_per_label, minimum=1)
    inverse_width = 0.0 if width is None else 1 / _checks.integer("width", width, minimum=1)
    dtype = float_dtype()
    same = np.kron(np.eye(2), np.ones((s, s)))
    has_pairs = s > 1
    variance = (s + 1) / (4 * s * (s - 1)) * inverse_width if has_pairs else np.nan

    def number(value: float) -> jax.Array:
        return jnp.asarray(value, dtype)

    return ReluLimit(
        same_label_cosine=number(0.5 if has_pairs else np.nan),
        different_label_cosine=number(0.0),
        ratio=number(0.5 if has_pairs else np.nan),
        coarse_ratio=number(2 * (s - 1) / (s + 1)),
        ratio_mean=number(0.5 + (1 - 1 / (2 * s)) * inverse_width if has_pairs else np.nan),
        ratio_std=number(np.sqrt(variance)),
        gram=jnp.asarray((np.eye(2 * s) + same) / 2, dtype),
        clusters_per_label=s,
    )


def relu_features(
    initial_weight: Float[AnyArray, "m d"],
    readout: Float[AnyArray, " m"],
    means: Float[AnyArray, "K d"],
    labels: Int[AnyArray, " K"],
    *,
    margins: Float[AnyArray, " K"] | None = None,
) -> Float[jax.Array, "K m"]:
    """Features of orthogonal, noise-free clusters after training at one given initialisation, without any limit.

    h_jk = 1[z_jk > 0] max(0, z_jk + a_j y_k g_k), z = initial_weight @ means.T, with g_k >= 0 solving
    sum_j a_j y_k h_jk = margins[k]. Exact for gradient descent on the logistic loss without weight decay, for any
    width, any fixed readout, any number of clusters per label; margins are what the trained network shows.
    `margins=None` is the late-time limit h_jk = |a_j| 1[A_k] / sum_{A_k} a_j^2 at unit margin. A row is NaN where it is
    undefined: no active neuron of the right sign, or a margin below that of the start (training only raises it).

    Args:
        initial_weight: W(0) (units of features per unit of input).
        readout: a, fixed (dimensionless).
        means: mutually orthogonal cluster means (units of input).
        labels: label of each cluster: 1 for y = +1, 0 for y = -1.
        margins: y_k f_k of the trained network (units of output), or None for the limit.

    Returns:
        Cluster features, one row a cluster.

    Raises:
        ValueError: if shapes do not fit, labels are not 0 or 1, values are not finite, or the means are not orthogonal.

    References:
        Derived here (module docstring).
    """
    _checks.shape("initial_weight", initial_weight, ("m", "d"))
    m, d = jnp.shape(initial_weight)
    _checks.shape("readout", readout, (m,))
    _checks.shape("means", means, ("K", d))
    num_clusters = jnp.shape(means)[0]
    _checks.labels("labels", labels, num_classes=2, length=num_clusters)
    for name, value in (("initial_weight", initial_weight), ("readout", readout), ("means", means)):
        _checks.finite(name, value)
    if margins is not None:
        _checks.shape("margins", margins, (num_clusters,))
        _checks.finite("margins", margins)
    _check_orthogonal(means)
    dtype = float_dtype(initial_weight, readout, means)
    start = as_float(means, dtype) @ as_float(initial_weight, dtype).T
    signed = as_float(readout, dtype)[None, :] * (2 * as_float(labels, dtype) - 1)[:, None]
    if margins is None:
        return _limit_features(start, signed)
    return _features_at_margin(start, signed, as_float(margins, dtype))


def _check_orthogonal(means) -> None:
    if not _checks.is_concrete(means):
        return
    array = np.asarray(means).astype(np.float64)
    gram = array @ array.T
    off_diagonal = np.abs(gram - np.diag(np.diag(gram))).max(initial=0.0)
    if off_diagonal > 1e-5 * np.diag(gram).max(initial=0.0):
        raise ArgumentError(
            f"Argument `means` must have orthogonal rows, but two have an inner product of size {off_diagonal:g}."
        )


@jax.jit
def _limit_features(start, signed):
    grown = jnp.where((start > 0) & (signed > 0), signed, 0.0)
    return grown / jnp.sum(grown**2, axis=1)[:, None]


@jax.jit
def _features_at_margin(start, signed, margins):
    active = start > 0
    z = jnp.where(active, start, 0.0)

    def features(g):
        return jnp.where(active, jnp.maximum(z + signed * g[:, None], 0.0), 0.0)

    def newton(g):
        h = features(g)
        slope = jnp.sum(jnp.where(h > 0, signed, 0.0) ** 2, axis=1)
        return g + (margins - jnp.sum(signed * h, axis=1)) / slope

    def unfinished(state):
        g, previous, count = state
        return (count < 200) & jnp.any(g > previous)

    # The margin is concave, increasing and piecewise linear in g, so Newton from g = 0 rises to the root in finitely
    # many steps; it stops as soon as no entry rises any more (NaN compares false).
    g0 = jnp.zeros_like(margins)
    g, _, _ = jax.lax.while_loop(
        unfinished, lambda s: (jnp.maximum(newton(s[0]), s[0]), s[0], s[2] + 1), (newton(g0), g0, 0)
    )
    at_start = jnp.sum(signed * z, axis=1)
    slack = 64 * jnp.finfo(z.dtype).eps * (jnp.sum(jnp.abs(signed) * z, axis=1) + jnp.abs(margins))
    can_grow = jnp.any(active & (signed > 0), axis=1)
    defined = can_grow & (margins >= at_start - slack)
    return jnp.where(defined[:, None], features(jnp.maximum(g, 0.0)), jnp.nan)
