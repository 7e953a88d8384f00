r"""Lazy training in the limit of infinite width: squared error, the neural tangent kernel fixed.

Training minimises |f(X) - Y|_F^2 / (2N) over N samples. For parameters p, df(x)/dt = -(eta/N) sum_i T(x, x_i) (f(x_i) -
y_i), T = sum_p df/dp df/dp the tangent kernel, which at infinite width never moves and acts on each output alone. With
f_0 the function at the start and T = Q diag(l) Q^T on the training samples,

    f_t(x) = f_0(x) + B_t(x) (Y - f_0(X)),    B_t(x) = T(x, X) T^-1 (I - exp(-T s/N)) = T(x, X) Q diag(g(l)) Q^T,

s = eta t, g(l) = (1 - exp(-l s/N)) / l, which has the limit s/N at l = 0: no inverse is needed. n steps of gradient
descent of size eta, s = n eta, have (1 - eta l/N)^n in place of the exponential, exactly. f_0 is Gaussian with mean 0
and covariance S (NNGP), so f_t is Gaussian over initialisations with mean B_t Y and, J = I - B_t restricted to columns
X, covariance J S J^T.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, as_float, float_dtype
from nctheory.theory.kernel_collapse import eigh

_ASSUMPTIONS = (
    "all widths infinite, NTK parameterisation",
    "|f - y|^2/(2N) on the full set, no weight decay, plain gradient flow or gradient descent",
)
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelPredictions:
    """Outputs of infinitely wide networks under lazy training, at P points of which the first N are trained on.

    Attributes:
        mean: outputs, from `initial` on; over initialisations where `initial` is 0.
        response: B_t, dimensionless: outputs are initial + response (targets - initial[:N]).
        variance: of an output over initialisations; NaN where no NNGP was given.
        assumptions: what must hold.
    """

    mean: Float[jax.Array, "... T P C"]
    response: Float[jax.Array, "... T P N"]
    variance: Float[jax.Array, "... T P"]
    assumptions: tuple[str, ...] = field(metadata={"static": True}, default=_ASSUMPTIONS)


def kernel_predictions(
    ntk: Float[AnyArray, "P P"],
    targets: Float[AnyArray, "N C"],
    times: Float[AnyArray, " T"],
    *,
    learning_rate: Scalar | None = None,
    initial: Float[AnyArray, "P C"] | None = None,
    nngp: Float[AnyArray, "P P"] | None = None,
) -> KernelPredictions:
    """Outputs of infinitely wide networks after lazy training on squared error.

    f_t = f_0 + T(., X) T^-1 (I - exp(-T s/N)) (Y - f_0(X)), s the learning rate times the number of steps (module
    docstring). s = 0 gives `initial`; s -> inf interpolates the targets in every direction in which the kernel is
    positive. With `learning_rate`, the exponential is (1 - eta l/N)^(s/eta), gradient descent itself; that diverges if
    eta times the largest eigenvalue of T/N exceeds 2.

    Args:
        ntk: tangent kernel of P points, the N training samples first, then others; symmetric, positive semidefinite.
        targets: of the N training samples (units of output).
        times: s >= 0, finite: learning rate times steps.
        learning_rate: size of a step, > 0; None means gradient flow. Every time has to be a multiple of it, to within
            rounding in the dtypes given and a quarter of a step (not checked under tracing).
        initial: outputs of one network at the start; None means 0, the mean over initialisations.
        nngp: covariance of initial outputs at the P points, for `variance`.

    Returns:
        The record, in the widest dtype of the arguments.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or an option is out of range.

    References:
        Jacot, Gabriel and Hongler 2018 (constant kernel, least squares); response, steps and variance: derived here.
    """
    size, num_outputs = _check_shapes(ntk, targets, times, initial, nngp)
    dtype = float_dtype(ntk, targets, *(each for each in (initial, nngp) if each is not None))
    steps, rate = as_float(times, dtype), None
    if learning_rate is not None:
        _checks.real("learning_rate", learning_rate, minimum=0.0, exclusive_minimum=True)
        rate = as_float(learning_rate, dtype)
        steps = _whole_steps(steps, rate, times, learning_rate)
    start = jnp.zeros((size, num_outputs), dtype) if initial is None else as_float(initial, dtype)
    spread = jnp.full((size, size), jnp.nan, dtype) if nngp is None else as_float(nngp, dtype)
    return _predict(as_float(ntk, dtype), as_float(targets, dtype), steps, rate, start, spread)


def _check_shapes(ntk, targets, times, initial, nngp) -> tuple[int, int]:
    """Check all arrays; return the number of points and of outputs."""
    _checks.shape("ntk", ntk, ("P", "P"))
    size = jnp.shape(ntk)[0]
    _checks.shape("ntk", ntk, (size, size))
    _checks.shape("targets", targets, ("N", "C"))
    num_train, num_outputs = jnp.shape(targets)
    if not 1 <= num_train <= size:
        raise ArgumentError(f"Argument `targets` must have 1 to {size} rows, one a point, but has {num_train}.")
    _checks.shape("times", times, ("T",))
    _checks.real("times", times, minimum=0.0)
    wanted = (("initial", initial, (size, num_outputs)), ("nngp", nngp, (size, size)))
    for name, value, shape in (("ntk", ntk, (size, size)), ("targets", targets, ("N", "C")), *wanted):
        if value is not None:
            _checks.shape(name, value, shape)
            _checks.finite(name, value)
    return size, num_outputs


def _whole_steps(times, rate, given, given_rate):
    """Numbers of steps, from the arguments as they were given where these can be read."""
    if not (_checks.is_concrete(given) and _checks.is_concrete(given_rate)):
        return jnp.round(times / rate)
    # On the host in float64: a float32 quotient above 2^23 is a whole number whatever it divides.
    steps = np.asarray(given, np.float64) / float(given_rate)
    nearest = np.round(steps)
    # As many digits as a product of a step and a number of steps has in the coarser of the two dtypes.
    eps = max(_eps(given), _eps(given_rate))
    if np.any(np.abs(steps - nearest) > np.minimum(8 * eps * np.maximum(nearest, 1), 0.25)):
        raise ArgumentError(f"Argument `times` must hold multiples of `learning_rate`, but is {given}.")
    return as_float(nearest, times.dtype)


def _eps(value) -> float:
    dtype = getattr(value, "dtype", np.dtype(np.float64))
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


@jax.jit
def _predict(ntk, targets, steps, rate, initial, nngp) -> KernelPredictions:
    """`steps` counts updates, or is the time itself where `rate` is None."""
    count = targets.shape[0]
    values, vectors = eigh(ntk[:count, :count])
    values = jnp.maximum(values, 0.0) / count
    against = jnp.matmul(ntk[:, :count], vectors, precision=_HIGHEST)

    def at(step):
        gains = _gains(values, step, rate) / count
        response = jnp.matmul(against * gains[None, :], vectors.T, precision=_HIGHEST)
        mean = initial + jnp.matmul(response, targets - initial[:count], precision=_HIGHEST)
        left = jnp.eye(ntk.shape[0], dtype=ntk.dtype).at[:, :count].add(-response)
        return mean, response, jnp.sum(jnp.matmul(left, nngp, precision=_HIGHEST) * left, axis=1)

    return KernelPredictions(*jax.lax.map(at, steps))


def _gains(values, step, rate):
    """(1 - decay) / l with its limit at l = 0, decay = exp(-l s) or (1 - eta l)^n."""
    positive = values > 0
    safe = jnp.where(positive, values, 1.0)
    if rate is None:
        return jnp.where(positive, -jnp.expm1(-safe * step) / safe, step)
    # log1p keeps the digits of small eta l; beyond eta l = 1 the factor is negative and alternates.
    product = rate * safe
    log_size = jnp.where(product < 1, jnp.log1p(-jnp.minimum(product, 0.5)), 0.0)
    log_size = jnp.where(product > 0.5, jnp.log(jnp.abs(1 - product)), log_size)
    alternates = (product > 1) & (jnp.mod(step, 2.0) == 1)
    # n log 0 is NaN for no steps at all.
    exponent = jnp.where(step == 0, 0.0, step * log_size)
    shrunk = jnp.where(alternates, 1 + jnp.exp(exponent), -jnp.expm1(exponent))
    return jnp.where(positive, shrunk / safe, rate * step)
