"""Records of deep_relu.py, which explains the model and the symbols."""

from dataclasses import dataclass, field

import jax
from jaxtyping import Bool, Float

from nctheory.theory.mse_ufm import MseUfmMinimizer

_MODEL = (
    "features are free parameters, one vector a sample",
    "equal class sizes, one-hot targets, loss |outputs - targets|^2/(2N)",
    "ReLU after all layers but the last, no bias",
    "decays are coefficients of squared norms over 2; feature decay summed over all samples",
    "no width binds: at least num_classes each for collapse, the widths of `srg_parameters` for graphs",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepReluCollapse:
    """Collapsed solution of the deep ReLU model: that of the linear network, in the non-negative orthant.

    Attributes:
        loss: its loss.
        trivial_loss: loss at zero, 1/2.
        is_trivial: whether the best collapsed solution is zero.
        condition: n lambda_1 ... lambda_L lambda_H K^(L+1) L^(2L)/(L-1)^(L-1); not trivial iff < 1.
        minimizer: record of the linear network; `mse_ufm_representative` of it has no negative entry, so it is a point
            of the ReLU network with the same loss. The following are copied from it (see `MseUfmMinimizer`).
        active: modes that are not zero; one a class.
        active_classes: classes that are not zero.
        layer_singular_values: of W_1 ... W_L, one row a layer, one column a mode.
        layer_norms: |W_1|_F^2 ... |W_L|_F^2.
        feature_singular_values: of the matrix H of all samples.
        feature_norm: |H|_F^2 over all samples.
        weight_gram: A A^T, A = W_L ... W_1, which here acts on the features as the ReLU network does.
        feature_gram: Gram matrix of the class features.
        logits: outputs, one column a class.
        bias: zero.
        is_minimum: whether this is known to be the global minimum of the ReLU network: L = 1 (no ReLU acts) by proof,
            K = 2 by publication (Sukenik et al. 2023). False means unknown or wrong, see `srg_solution`.
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    condition: Float[jax.Array, "..."]
    minimizer: MseUfmMinimizer
    active: Bool[jax.Array, "... K"]
    active_classes: Bool[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... L K"]
    layer_norms: Float[jax.Array, "... L"]
    feature_singular_values: Float[jax.Array, "... K"]
    feature_norm: Float[jax.Array, "..."]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    logits: Float[jax.Array, "... K K"]
    bias: Float[jax.Array, "... K"]
    is_minimum: bool = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_MODEL)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SrgSolution:
    """Best solution of strongly-regular-graph structure (docstring of deep_relu.py).

    Modes are the K singular directions of the last layer, those of its eigenspaces of dimension 1, r-1, r(r-3)/2 in
    this order; all other layers and the features carry the first r of them. `srg_parameters` makes a representative.

    Attributes:
        loss: its loss, 1/2 if zero is better.
        trivial_loss: loss at zero, 1/2.
        is_trivial: whether zero is better than the structure; then all norms are 0, `shape` and `ridge` NaN.
        collapse_loss: loss of the collapsed solution.
        ratio: loss/collapse_loss, below 1 where the graph wins.
        beats_collapse: whether it is strictly lower, beyond rounding.
        is_complement: branch of the solution, "complement" or "line".
        shape: s in [-1, 1]; -1 is the recipe (exact zeros after ReLU).
        pre_activation: (D, E, F), last hidden pre-activation on the diagonal, for edges that meet, for disjoint edges,
            up to scale.
        last_layer_eigenvalues: of V = W_L up to scale, on the eigenspaces of dimension 1, r-1, r(r-3)/2.
        ridge: mu = K T/S.
        penalty: T, common value of all lambda_l |W_l|_F^2 and lambda_H |H|_F^2.
        layer_norms: |W_1|_F^2 ... |W_L|_F^2.
        feature_norm: |H|_F^2 over all samples.
        active: modes that are not zero.
        active_classes: classes that are not zero: all or none.
        layer_singular_values: of W_1 ... W_L, one row a layer, one column a mode; zero from column r on but for W_L.
        feature_singular_values: of the matrix H of all samples.
        weight_gram: W_L W_L^T of the last layer alone; with ReLU between them the product of the layers is no map.
        feature_gram: Gram matrix of the class features.
        logits: outputs of the network, one column a class.
        bias: zero.
        samples_per_class: n.
        num_vertices: r.
        features: "free" or "nonnegative".
        assumptions: what must hold.
    """

    loss: Float[jax.Array, "..."]
    trivial_loss: Float[jax.Array, "..."]
    is_trivial: Bool[jax.Array, "..."]
    collapse_loss: Float[jax.Array, "..."]
    ratio: Float[jax.Array, "..."]
    beats_collapse: Bool[jax.Array, "..."]
    is_complement: Bool[jax.Array, "..."]
    shape: Float[jax.Array, "..."]
    pre_activation: Float[jax.Array, "... 3"]
    last_layer_eigenvalues: Float[jax.Array, "... 3"]
    ridge: Float[jax.Array, "..."]
    penalty: Float[jax.Array, "..."]
    layer_norms: Float[jax.Array, "... L"]
    feature_norm: Float[jax.Array, "..."]
    active: Bool[jax.Array, "... K"]
    active_classes: Bool[jax.Array, "... K"]
    layer_singular_values: Float[jax.Array, "... L K"]
    feature_singular_values: Float[jax.Array, "... K"]
    weight_gram: Float[jax.Array, "... K K"]
    feature_gram: Float[jax.Array, "... K K"]
    logits: Float[jax.Array, "... K K"]
    bias: Float[jax.Array, "... K"]
    samples_per_class: Float[jax.Array, "..."]
    num_vertices: int = field(metadata={"static": True})
    features: str = field(metadata={"static": True})
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_MODEL)
