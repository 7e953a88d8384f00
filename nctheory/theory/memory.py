r"""L1. What a linear feature map remembers of its initial weights: an exact law, not an asymptotic one.

Setting: features h(x) = W x with W (m d) trained, outputs f(x) = A h(x) (plus any bias) with a readout A (C m) that
stays fixed. Any data, any loss that sees W only through f, any batches.

**Where the weights can go.** By the chain rule each gradient of the loss is A^T (dL/df) x^T summed over samples: its
columns lie in the row space of A. Weight decay only rescales W. So gradient descent and SGD, with or without momentum,
give W(t) = s_t W(0) + A^T V(t), where s_t is a number that depends on the step size, the decay and the momentum alone.

**Distance of two feature means.** Let delta = x_A - x_B (means of inputs; W is linear, so feature means map to feature
means), u = W(0) delta, Df = f_A - f_B = A (h_A - h_B), and P = A^T (A A^T)^+ A, the projector on the row space of A.
Then h_A - h_B = s_t u + A^T V delta, and its two orthogonal parts are

    (I - P)(h_A - h_B) = s_t (I - P) u                  because (I - P) A^T = 0,
    P (h_A - h_B)      = A^T (A A^T)^+ Df               because P = A^T (A A^T)^+ A.

By Pythagoras

    |h_A - h_B|^2 = s_t^2 ( |u|^2 - (A u)^T (A A^T)^+ (A u) ) + Df^T (A A^T)^+ Df:

the memory that the readout cannot see, plus exactly what the output shows. For C = 1 and |a| = 1 this is
s^2 |u|^2 + 2 s (a.u) D + D^2 with D = Df - s a.u, as inserting D shows.

**Limits.** No weight decay: s_t = 1, the memory is frozen while Df grows with the margin, so the ratio of same-label to
different-label distances goes to 0 although nothing is forgotten. With decay the memory fades like s_t^2. Setting
`factor=1` in `memory_distance` while training with decay gives the predictor that ignores forgetting.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray
from nctheory.theory._common import Scalar, as_float, float_dtype


def memory_factor(
    num_steps: int | np.integer | Int[AnyArray, "*steps"],
    *,
    learning_rate: Scalar,
    weight_decay: Scalar,
    momentum: Scalar = 0.0,
) -> Float[jax.Array, "*steps"]:
    """Factor s_t that multiplies the initial weights after t steps of (stochastic) gradient descent.

    The update is v <- momentum v + g + weight_decay W, W <- W - learning_rate v, started at v = 0. Orthogonally to the
    readout the loss gradient g vanishes, hence with e = learning_rate * weight_decay

        s_0 = 1,  s_1 = 1 - e,  s_{t+1} = (1 + momentum - e) s_t - momentum s_{t-1}.

    Solved in closed form (two real roots, a double root, or a complex pair); without momentum s_t = (1 - e)^t. The law
    needs coupled weight decay, added to the gradient, and a constant step size. Limit: s_t = 1 without decay.

    Args:
        num_steps: t >= 0, integer or an array of integers (steps).
        learning_rate: step size (dimensionless), >= 0.
        weight_decay: coefficient lambda of (lambda/2)|W|^2 (dimensionless), >= 0.
        momentum: heavy-ball coefficient in [0, 1).

    Returns:
        s_t, same shape as `num_steps`; it may be negative, and it diverges when e > 2 (1 + momentum).

    Raises:
        ValueError: if a concrete argument is out of range.

    References:
        Derived here (module docstring).
    """
    _checks.real("num_steps", num_steps, minimum=0.0)
    _checks.real("learning_rate", learning_rate, minimum=0.0)
    _checks.real("weight_decay", weight_decay, minimum=0.0)
    _checks.real("momentum", momentum, minimum=0.0, maximum=1.0, exclusive_maximum=True)
    dtype = float_dtype(learning_rate, weight_decay, momentum)
    steps, beta = as_float(num_steps, dtype), as_float(momentum, dtype)
    return _memory_factor(steps, as_float(learning_rate, dtype) * as_float(weight_decay, dtype), beta)


@jax.jit
def _memory_factor(t, e, beta):
    # Roots of r^2 - trace r + beta. For a negative trace the recursion is solved for (-1)^t s_t, whose trace is
    # positive.
    trace, gap_sum = 1 + beta - e, 1 - beta + e
    flip = trace < 0
    # (1 - beta + e)^2 - 4 e equals trace^2 - 4 beta; factored, it is exact where it vanishes.
    root_e = jnp.sqrt(e)
    disc = (gap_sum - 2 * root_e) * (gap_sum + 2 * root_e)
    tiny = jnp.finfo(disc.dtype).tiny
    real_root = jnp.where(disc > 0, jnp.sqrt(jnp.where(disc > 0, disc, 1.0)), 0.0)
    imag_root = jnp.sqrt(jnp.where(disc < 0, -disc, 1.0))

    # Real roots. log1p of the small distance 1 - r keeps float32 right when e is far below its resolution at 1.
    distance = 2 * e / (gap_sum + real_root)
    large = jnp.maximum((jnp.abs(trace) + real_root) / 2, tiny)
    log_large = jnp.where(flip, jnp.log(large), jnp.log1p(-jnp.where(flip, 0.0, jnp.minimum(distance, 1.0))))
    first_minus_large = jnp.where(
        flip,
        -(1 - e) - large,
        4 * e * beta / ((gap_sum + real_root) * jnp.maximum(trace + real_root, tiny)),
    )
    # The second root contributes (s_1 - r) (r^t - r'^t)/(r - r'); `geometric` is that quotient over r^(t-1).
    log_ratio = jnp.minimum(jnp.log(jnp.maximum(beta, tiny)) - 2 * jnp.log(large), 0.0)
    safe_ratio = jnp.where(log_ratio < 0, log_ratio, -1.0)
    geometric = jnp.where(log_ratio < 0, jnp.expm1(t * safe_ratio) / jnp.expm1(safe_ratio), t)
    power = jnp.where(t > 0, jnp.exp(jnp.where(t > 0, t, 1.0) * log_large), 1.0)
    real_case = power * (1 + first_minus_large / large * geometric)
    real_case = real_case * jnp.where(flip & (jnp.mod(t, 2) == 1), -1.0, 1.0)

    # Complex pair: modulus sqrt(beta), angle theta.
    theta = jnp.arctan2(imag_root, trace)
    wave = jnp.cos(t * theta) + (1 - e - beta) / imag_root * jnp.sin(t * theta)
    complex_case = jnp.exp(t * jnp.log(jnp.maximum(beta, tiny)) / 2) * wave
    return jnp.where(disc < 0, complex_case, real_case)


def memory_half_life(*, learning_rate: Scalar, weight_decay: Scalar) -> Float[jax.Array, ""]:
    """Number of steps after which the squared memory s_t^2 has halved, for gradient descent without momentum.

    t = ln 2 / (-2 ln |1 - e|), e = learning_rate * weight_decay; for small e this is ln 2 / (2 e). Not rounded to whole
    steps. Infinite without weight decay, and also for e >= 2, where the memory never shrinks; 0 for e = 1.

    Args:
        learning_rate: step size (dimensionless), >= 0.
        weight_decay: coefficient lambda of (lambda/2)|W|^2 (dimensionless), >= 0.

    Returns:
        Half-life in steps, in [0, inf].

    Raises:
        ValueError: if a concrete argument is negative or not finite.

    References:
        Derived here.
    """
    _checks.real("learning_rate", learning_rate, minimum=0.0)
    _checks.real("weight_decay", weight_decay, minimum=0.0)
    dtype = float_dtype(learning_rate, weight_decay)
    e = as_float(learning_rate, dtype) * as_float(weight_decay, dtype)
    shrinks = (e > 0) & (e < 2)
    # |1 - e| = 1 - min(e, 2 - e), so log1p stays exact at both ends.
    safe = jnp.where(shrinks, jnp.minimum(e, 2 - e), 0.5)
    return jnp.where(shrinks, jnp.log(jnp.asarray(2.0, dtype)) / (-2 * jnp.log1p(-safe)), jnp.inf)


def memory_distance(
    initial_weight: Float[AnyArray, "m d"],
    readout: Float[AnyArray, "C m"] | Float[AnyArray, " m"],
    mean_difference: Float[AnyArray, "*P d"],
    output_difference: float | Float[AnyArray, "..."],
    *,
    factor: Scalar,
) -> Float[jax.Array, "*P"]:
    """Squared distance of two feature means of a linear feature map under a fixed readout, at any time of training.

    |h_A - h_B|^2 = s^2 |(I - P) u|^2 + Df^T (A A^T)^+ Df with u = W(0) delta and P the projector on the row space of A:
    memory the readout cannot see plus what the output shows. Holds for every loss and every data set, per seed. Only
    the part of Df in the range of A counts (a trained Df has no other). Singular values of A below max(C, m) * eps
    times the largest count as zero; A = 0 leaves s^2 |u|^2.

    Args:
        initial_weight: W(0), features are W x (units of features per unit of input).
        readout: A, fixed during training; one axis for a scalar output.
        mean_difference: x_A - x_B, one pair (d,) or P pairs (P d) (units of input).
        output_difference: Df = f_A - f_B of the trained network for the same pairs: shape of the pairs, followed by C
            if `readout` has two axes (units of output).
        factor: s_t from `memory_factor` (dimensionless); 1 ignores forgetting. Several times: vmap.

    Returns:
        Squared distance(s), >= 0, in squared units of features.

    Raises:
        ValueError: if shapes do not fit or a concrete array is not finite.

    References:
        Derived here (module docstring).
    """
    m, d = _matrix_shape("initial_weight", initial_weight)
    if jnp.ndim(readout) not in (1, 2):
        raise ArgumentError(f"Argument `readout` must have shape (C, m) or (m,), but has shape {jnp.shape(readout)}.")
    _checks.shape("readout", readout, ("C", m) if jnp.ndim(readout) == 2 else (m,))
    pairs = jnp.shape(mean_difference)[:-1]
    if len(pairs) > 1:
        raise ArgumentError(
            f"Argument `mean_difference` must have shape (d,) or (P, d), but has shape {jnp.shape(mean_difference)}."
        )
    _checks.shape("mean_difference", mean_difference, (*pairs, d))
    _checks.shape("output_difference", output_difference, (*pairs, *jnp.shape(readout)[:-1]))
    for name, value in (
        ("initial_weight", initial_weight),
        ("readout", readout),
        ("mean_difference", mean_difference),
        ("output_difference", output_difference),
    ):
        _checks.finite(name, value)
    _checks.real("factor", factor)
    dtype = float_dtype(initial_weight, readout, mean_difference, output_difference)
    weight, head, delta, shown = (
        as_float(x, dtype) for x in (initial_weight, readout, mean_difference, output_difference)
    )
    head = head.reshape(-1, m)
    delta, shown = delta.reshape(-1, d), shown.reshape(-1, head.shape[0])
    return _memory_distance(weight, head, delta, shown, as_float(factor, dtype)).reshape(pairs)


@jax.jit
def _memory_distance(weight, head, delta, shown, factor):
    left, scale, right = jnp.linalg.svd(head, full_matrices=False)
    cutoff = max(head.shape) * jnp.finfo(head.dtype).eps * scale[0]
    kept = scale > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, scale, 1.0), 0.0)
    u = delta @ weight.T
    # Subtracting the projection itself, not its squared norm: no cancellation when the readout sees nearly all of u.
    hidden = u - jnp.where(kept[None, :], u @ right.T, 0.0) @ right
    seen = (shown @ left) * inverse[None, :]
    return factor**2 * jnp.sum(hidden**2, axis=-1) + jnp.sum(seen**2, axis=-1)


def _matrix_shape(name: str, value) -> tuple[int, int]:
    _checks.shape(name, value, ("m", "d"))
    rows, columns = jnp.shape(value)
    return rows, columns


def expected_initial_distance(
    mean_difference: Float[AnyArray, "*P d"], *, init_std: Scalar, width: int
) -> Float[jax.Array, "*P"]:
    """Expected squared distance of two feature means at initialisation, identity activation.

    E|W(0) delta|^2 = init_std^2 * width * |delta|^2 for W(0) (width d) with independent entries of mean 0 and standard
    deviation `init_std` (any distribution). Its relative standard deviation over Gaussian W(0) is sqrt(2 / width).

    Args:
        mean_difference: delta = x_A - x_B, one pair (d,) or several (P d) (units of input).
        init_std: standard deviation of the entries of W(0), >= 0.
        width: number of features m, >= 1.

    Returns:
        Expected squared distance(s) in squared units of features.

    Raises:
        ValueError: if an argument is out of range or not finite.

    References:
        Derived here.
    """
    width = _checks.integer("width", width, minimum=1)
    _checks.real("init_std", init_std, minimum=0.0)
    _checks.finite("mean_difference", mean_difference)
    dtype = float_dtype(mean_difference, init_std)
    delta = as_float(mean_difference, dtype)
    return as_float(init_std, dtype) ** 2 * width * jnp.sum(delta**2, axis=-1)
