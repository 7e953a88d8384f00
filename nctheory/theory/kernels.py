r"""ReLU features at initialisation: the arc-cosine kernel and the distances it implies.

h(x) = relu(W x), W (m d) with independent Gaussian entries of standard deviation omega. For one neuron, w.x and w.x'
are jointly Gaussian with standard deviations omega|x|, omega|x'| and correlation cos t, t the angle of x and x'. In the
plane of x and x', w has uniform direction phi and E[radius^2] = 2 omega^2; both inputs are active on an arc of length
pi - t:

    E[relu(w.x) relu(w.x')] = (2 omega^2 |x||x'| / (2 pi)) * int_{t - pi/2}^{pi/2} cos(phi) cos(phi - t) dphi
                            = omega^2 |x||x'| (sin t + (pi - t) cos t) / (2 pi).

This is Cho and Saul's arc-cosine kernel of degree 1 (theirs, with a factor 2 in front of the integral, over 2).
Expected squared distances of cluster means follow by averaging the kernel over pairs of samples.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, as_float, float_dtype
from nctheory.theory.geometry import GramStructure, fine_structure_from_gram

_ASSUMPTIONS = (
    "first layer Gaussian, independent entries, no bias",
    "expectation over initialisations for the given inputs; ratios are ratios of expectations",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReluInitialStructure:
    """Expected structure of ReLU features at initialisation.

    Attributes:
        structure: expected distances; its ratios (q, s, coarse ratio) are ratios of expectations.
        feature_gram: expected inner products of the features of all samples.
        assumptions: what must hold.
    """

    structure: GramStructure
    feature_gram: Float[jax.Array, "... N N"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


@jax.custom_jvp
def _arc_cosine(c):
    """Return sin t + (pi - t) cos t for c = cos t."""
    c = jnp.clip(c, -1.0, 1.0)
    return jnp.sqrt((1 - c) * (1 + c)) + (jnp.pi - jnp.arccos(c)) * c


@_arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    # d/dc = pi - t: finite everywhere, while the derivatives of sqrt and arccos are not.
    (c,), (dc,) = primals, tangents
    return _arc_cosine(c), (jnp.pi - jnp.arccos(jnp.clip(c, -1.0, 1.0))) * dc


def relu_kernel(
    x: Float[AnyArray, "n d"], x2: Float[AnyArray, "n2 d"], *, init_std: Scalar, width: int
) -> Float[jax.Array, "n n2"]:
    """Expected inner product of ReLU features of two inputs at initialisation.

    E[h(x).h(x')] = width * init_std^2 |x||x'| (sin t + (pi - t) cos t) / (2 pi), t the angle of x and x'. Equal inputs:
    width * init_std^2 |x|^2 / 2; opposite ones: 0; orthogonal ones: width * init_std^2 |x||x'| / (2 pi). A zero input
    gives 0, and gradients are finite everywhere (0 with respect to a zero input, where the kernel has a kink).

    Args:
        x: inputs, one a row (units of input).
        x2: inputs to compare with, one a row (units of input).
        init_std: standard deviation omega of the Gaussian entries of W(0), >= 0.
        width: number of features m, >= 1.

    Returns:
        Expected inner products in squared units of features.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or an option is out of range.

    References:
        Cho and Saul 2009, arc-cosine kernel of degree 1; factor 1/2 as explained in the module docstring.
    """
    _checks.shape("x", x, ("n", "d"))
    _checks.shape("x2", x2, ("n2", jnp.shape(x)[1]))
    _checks.finite("x", x)
    _checks.finite("x2", x2)
    _checks.real("init_std", init_std, minimum=0.0)
    width = _checks.integer("width", width, minimum=1)
    dtype = float_dtype(x, x2, init_std)
    return _relu_kernel(as_float(x, dtype), as_float(x2, dtype), as_float(init_std, dtype), width)


def _normalise(x):
    """Split rows into length and direction; a zero row has length 0, direction 0 and a zero gradient."""
    squared = jnp.sum(x**2, axis=1)
    positive = squared > 0
    length = jnp.sqrt(jnp.where(positive, squared, 1.0))
    return jnp.where(positive, length, 0.0), x / length[:, None]


@partial(jax.jit, static_argnames="width")
def _relu_kernel(x, x2, init_std, width):
    length, direction = _normalise(x)
    length2, direction2 = _normalise(x2)
    shape = _arc_cosine(direction @ direction2.T)
    return width * init_std**2 / (2 * jnp.pi) * length[:, None] * length2[None, :] * shape


def expected_relu_distances(
    inputs: Float[AnyArray, "N d"],
    labels: Int[AnyArray, " N"],
    fine_labels: Int[AnyArray, " N"] | None = None,
    *,
    num_classes: int,
    num_fine: int | None = None,
    init_std: Scalar,
    width: int,
) -> ReluInitialStructure:
    """Expected squared distances of cluster feature means, q and s, of a ReLU layer at initialisation.

    E|h_A - h_B|^2 = k_AA + k_BB - 2 k_AB, k_AB the kernel averaged over all pairs of samples of A and B (a sample with
    itself included, as in the mean of features). Exact for the given samples at any width. q is E d_same / E d_diff,
    not the expectation of q, from which it differs by O(1/width). Orthogonal inputs of equal norm, noise-free: q = 1.
    Costs O(N^2) memory.

    Args:
        inputs: samples, or cluster means if `fine_labels` is None (units of input).
        labels: training label of each row, 0..num_classes-1.
        fine_labels: cluster of each row, 0..num_fine-1; None makes each row its own cluster.
        num_classes: number of labels, >= 1.
        num_fine: number of clusters, required with `fine_labels`.
        init_std: standard deviation omega of the Gaussian entries of W(0), >= 0; 0 makes the ratios NaN.
        width: number of features m, >= 1.

    Returns:
        Record with expected distances and the expected Gram matrix.

    Raises:
        ValueError: as `relu_kernel` and `fine_structure_from_gram`.

    References:
        Kernel: Cho and Saul 2009. Averages: derived here.
    """
    _checks.shape("inputs", inputs, ("N", "d"))
    _checks.finite("inputs", inputs)
    gram = relu_kernel(inputs, inputs, init_std=init_std, width=width)
    structure = fine_structure_from_gram(gram, labels, fine_labels, num_classes=num_classes, num_fine=num_fine)
    return ReluInitialStructure(structure=structure, feature_gram=gram)
