r"""Infinitely wide MLPs: the NNGP and the neural tangent kernel of every layer, for erf and ReLU.

An MLP of L hidden layers in NTK parameterisation, every entry of every W and b drawn from N(0, 1) and trained:

    z^1 = (w/sqrt(d)) W^1 x + s b^1,   h^l = phi(z^l),   z^(l+1) = (w/sqrt(n_l)) W^(l+1) h^l + s b^(l+1),   f = z^(L+1),

w `weight_std`, s `bias_std` (0: no biases). Let the widths n_1, then n_2, ... go to infinity. Given h^l the neurons of
z^(l+1) are independent and Gaussian over the draw of W^(l+1), b^(l+1), and the products that their covariance averages
concentrate by the law of large numbers. With F^0 = x.x'/d and F^l = lim h^l.h'^l / n_l,

    S^l = w^2 F^(l-1) + s^2    (covariance of a neuron of z^l),         F^l = E phi(u) phi(v),   (u, v) ~ N(0, S^l).

**NTK.** T^l(x, x') = sum over parameters of dz^l_i(x)/dp dz^l_i(x')/dp. Layer l's own W and b give w^2 F^(l-1) + s^2
= S^l. Earlier parameters enter through (w^2/n) sum_jk W_ij W_ik phi'(z_j) phi'(z'_k) <dz_j, dz'_k>; the inner product
tends to delta_jk T^(l-1), and W_ij^2 averages to 1:

    T^1 = S^1,    T^l = S^l + w^2 T^(l-1) D^(l-1),    D^l = E phi'(u) phi'(v),   (u, v) ~ N(0, S^l).

**The two expectations**, variances a, b and covariance c of (u, v):

* ReLU, t the angle with cos t = c / sqrt(ab): E phi phi = sqrt(ab) (sin t + (pi - t) cos t) / (2 pi), the arc-cosine
  kernel of degree 1 over 2 (see `kernels`). phi' is 1 where both are active, an arc of length pi - t of 2 pi:
  E phi' phi' = (pi - t) / (2 pi).
* erf: E phi' phi' = (4/pi) E exp(-u^2 - v^2) = (4/pi) det(I + 2 S)^(-1/2), a Gaussian integral, and det(I + 2 S) =
  1 + 2a + 2b + 4 (ab - c^2) =: D. Now d/dc E phi(u) phi(v) = E phi'(u) phi'(v) (Price's theorem), and E phi phi = 0 at
  c = 0; integrating, E phi phi = (2/pi) arcsin(2c / sqrt((1 + 2a)(1 + 2b))) = (2/pi) arctan2(2c, sqrt(D)).

The variances (1 + 2a), (1 + 2b) belong to one sample each: the matrix of their products is an outer product. A sum over
samples in its place, a dot product, gives a kernel that depends on who else is in the data set.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, as_float, float_dtype, nan_unless
from nctheory.theory.kernels import _arc_cosine

_ASSUMPTIONS = (
    "all widths infinite",
    "NTK parameterisation, every weight and bias drawn from N(0, 1)",
    "for the NTK: every weight and bias is trained",
)
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkKernels:
    """Kernels of an infinitely wide MLP; entry l of the first axis belongs to layer l = 0..L.

    Attributes:
        features: l = 0: x.x'/d; l >= 1: limit of h^l.h'^l / n_l, the Gram matrix of the features of hidden layer l.
        nngp: covariance of a neuron of the pre-activations z^(l+1) that layer l feeds; the last one is that of an
            output. w^2 features + s^2.
        ntk: neural tangent kernel of a neuron of z^(l+1); the last one is that of an output.
        assumptions: what must hold.
    """

    features: Float[jax.Array, "... layers N M"]
    nngp: Float[jax.Array, "... layers N M"]
    ntk: Float[jax.Array, "... layers N M"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def kernel_layers(
    x: Float[AnyArray, "N d"],
    x2: Float[AnyArray, "M d"] | None = None,
    *,
    depth: int,
    activation: str,
    weight_std: Scalar,
    bias_std: Scalar = 0.0,
) -> NetworkKernels:
    """Feature kernel, NNGP and NTK of an MLP at every layer, widths infinite.

    S^l = w^2 F^(l-1) + s^2, F^l = E phi phi, T^l = S^l + w^2 T^(l-1) E phi' phi' (module docstring). ReLU without
    biases and with w^2 = 2 keeps every |h|^2 / n at |x|^2 / d; without biases a zero input gives 0 throughout. erf
    features stay below 1 in size.

    Gradients are finite everywhere. The NTK of ReLU has a kink at angles 0 and pi, where E phi' phi' counts as
    constant. Near these angles a rounding of the cosine moves the angle by its square root: E phi' phi' of two equal
    rows errs by 1e-8 (float64) or 1e-4 (float32); of a row with itself, x2 None, it is exact.

    Args:
        x: inputs, one a row (units of input); |x|^2 / d near 1 keeps all layers of order 1.
        x2: inputs to compare with; None means `x` itself, and kernels come out symmetric.
        depth: number L of hidden layers, >= 1.
        activation: "erf" or "relu".
        weight_std: w > 0, dimensionless.
        bias_std: s >= 0, in the units of pre-activations; 0 means no biases.

    Returns:
        Kernels in the widest dtype of the inputs, layer axis of length L + 1 first; NaN where, under a transformation,
        a standard deviation is out of range.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or an option is out of range.

    References:
        erf: Williams 1997. ReLU: Cho and Saul 2009 (degrees 0 and 1, halved). NTK recursion: Jacot, Gabriel and
        Hongler 2018; here with w and s written out, and derived in the module docstring.
    """
    _checks.shape("x", x, ("N", "d"))
    if 0 in jnp.shape(x):
        raise ArgumentError(f"Argument `x` must have no empty axis, but has shape {jnp.shape(x)}.")
    _checks.finite("x", x)
    if x2 is not None:
        _checks.shape("x2", x2, ("M", jnp.shape(x)[1]))
        if 0 in jnp.shape(x2):
            raise ArgumentError(f"Argument `x2` must have at least 1 row, but has shape {jnp.shape(x2)}.")
        _checks.finite("x2", x2)
    depth = _checks.integer("depth", depth, minimum=1)
    _checks.choice("activation", activation, EXPECTATIONS)
    _checks.real("weight_std", weight_std, minimum=0.0, exclusive_minimum=True)
    _checks.real("bias_std", bias_std, minimum=0.0)
    dtype = float_dtype(x) if x2 is None else float_dtype(x, x2)
    other = None if x2 is None else as_float(x2, dtype)
    w, s = as_float(weight_std, dtype), as_float(bias_std, dtype)
    return _kernel_layers(as_float(x, dtype), other, w, s, depth, activation)


@partial(jax.jit, static_argnames=("depth", "activation"))
def _kernel_layers(x, x2, weight_std, bias_std, depth, activation) -> NetworkKernels:
    expectations = EXPECTATIONS[activation]
    # Entries that compare a sample with itself, where the angle is 0 exactly.
    itself = jnp.eye(x.shape[0], dtype=bool) if x2 is None else jnp.zeros((x.shape[0], x2.shape[0]), dtype=bool)
    rows = jnp.sum(x**2, axis=1) / x.shape[1]
    columns = rows if x2 is None else jnp.sum(x2**2, axis=1) / x.shape[1]
    cross = jnp.matmul(x, (x if x2 is None else x2).T, precision=_HIGHEST) / x.shape[1]
    kernel = jnp.where(itself, rows[:, None], cross)

    def enter(*moments):
        return tuple(weight_std**2 * each + bias_std**2 for each in moments)

    a, b, c = enter(rows, columns, kernel)
    features, nngp, ntk = [kernel], [c], [c]
    for _ in range(depth):
        kernel, slopes = expectations(a, b, c, itself)
        a, b, c = enter(_mean_square(a, expectations), _mean_square(b, expectations), kernel)
        features.append(kernel)
        nngp.append(c)
        ntk.append(c + weight_std**2 * ntk[-1] * slopes)
    valid = jnp.isfinite(weight_std) & (weight_std > 0) & jnp.isfinite(bias_std) & (bias_std >= 0)
    return nan_unless(valid, NetworkKernels(jnp.stack(features), jnp.stack(nngp), jnp.stack(ntk)))


def _mean_square(variance, expectations):
    """E phi(u)^2 for every variance of u."""
    column = variance[:, None]
    return expectations(variance, jnp.ones_like(variance[:1]), column, jnp.ones_like(column, dtype=bool))[0][:, 0]


def _relu_expectations(a, b, c, itself):
    """E phi(u) phi(v) and E phi'(u) phi'(v) of ReLU; where `itself`, v is u, whatever b and c."""
    root = _safe_sqrt(a)
    scale = jnp.where(itself, a[:, None], root[:, None] * _safe_sqrt(b)[None, :])
    positive = (scale > 0) & ~itself
    cosine = jnp.where(itself, 1.0, jnp.where(positive, c, 0.0) / jnp.where(positive, scale, 1.0))
    return scale * _arc_cosine(cosine) / (2 * jnp.pi), _pi_minus_angle(cosine) / (2 * jnp.pi)


def _erf_expectations(a, b, c, itself):
    """E phi(u) phi(v) and E phi'(u) phi'(v) of erf; where `itself`, v is u, whatever b and c."""
    left, right = a[:, None], jnp.where(itself, a[:, None], b[None, :])
    # ab - c^2 >= 0 is a difference of near equals for near equal samples; as a part of D its rounding is harmless.
    gap = jnp.where(itself, 0.0, jnp.maximum(left * right - c**2, 0.0))
    root = jnp.sqrt(1 + 2 * left + 2 * right + 4 * gap)
    return (2 / jnp.pi) * jnp.arctan2(2 * c, root), (4 / jnp.pi) / root


EXPECTATIONS = {"erf": _erf_expectations, "relu": _relu_expectations}


def _safe_sqrt(values):
    """Square root with gradient 0 at 0."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1.0)), 0.0)


@jax.custom_jvp
def _pi_minus_angle(cosine):
    """Return pi - t for cos t = cosine."""
    return jnp.pi - jnp.arccos(jnp.clip(cosine, -1.0, 1.0))


@_pi_minus_angle.defjvp
def _pi_minus_angle_jvp(primals, tangents):
    # 1/sin t, and 0 at the kinks t = 0 and t = pi, where one-sided derivatives differ in sign.
    (cosine,), (change,) = primals, tangents
    square = (1 - cosine) * (1 + cosine)
    smooth = square > 0
    return _pi_minus_angle(cosine), jnp.where(smooth, change / jnp.sqrt(jnp.where(smooth, square, 1.0)), 0.0)
