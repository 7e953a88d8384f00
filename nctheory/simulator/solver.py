"""Critical points of the unconstrained feature model to machine accuracy, from random starts, in batches.

L-BFGS in coordinates that change nothing but the speed: a class feature is multiplied by sqrt(n_k), which makes class
level a rotation of sample level, and every block by the square root of its decay, which makes all decays equal. Where
it stops short of the tolerance, damped Newton steps by conjugate gradients polish the point.

`optax.lbfgs` with its zoom line search was measured first, on the same problems (4 x 100 samples, width 64, float64,
squared error): 190 iterations at class level where this takes 30, and 1.4 s a seed at depth 3, because under `vmap`
every lane waits for the slowest line search of every iteration. Hence a loop of our own (`_lbfgs.py`).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory.simulator import _lbfgs
from nctheory.simulator.free_features import UfmParams, UfmProblem, average_classes, repeat_classes

STATUS = ("running", "converged", "evaluation limit", "stalled line search", "non-finite")
# Histories of the starts that run together on a CPU; beyond a second-level cache, a batch runs at memory speed.
_CPU_WORKING_SET_BYTES = 1 << 20
_NEWTON_STEPS, _CG_STEPS = 15, 300


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UfmMinimum:
    """Where the solver ended; every array has the batch axes of the starts in front.

    Attributes:
        params: the point, at the problem's own level; None if not kept.
        loss: objective there, decay included.
        gradient_norm: Euclidean norm of the gradient of the problem's own objective in its own coordinates (projected
            onto the feasible directions if features are non-negative), evaluated afresh at `params`.
        converged: whether `gradient_norm` is at most the tolerance. A critical point, not necessarily a minimum: see
            `hessian_spectrum`.
        status: what ended the L-BFGS phase, an index into `STATUS`.
        iterations: accepted L-BFGS steps.
        evaluations: evaluations of objective and gradient by L-BFGS.
        newton_steps: accepted steps of the polish, 0 where none was needed.
        finite: whether loss and gradient are finite.
    """

    params: UfmParams | None
    loss: Float[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    status: Int[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    evaluations: Int[Array, "*batch"]
    newton_steps: Int[Array, "*batch"]
    finite: Bool[Array, "*batch"]


def minimize(
    problem: UfmProblem,
    keys: Key[Array, " S"],
    *,
    tolerance: float | None = None,
    average: bool | None = None,
    memory: int = 5,
    max_evaluations: int = 10_000,
    keep_params: bool = True,
    batch_size: int | None = None,
) -> UfmMinimum:
    """Minimise from the starts `problem.init(key)`, one for every key.

    Starts are independent: entry i depends on its key alone (to rounding: a batch sums in another order). No start is
    dropped, whatever became of it: read `converged`. `solve` is the same for one key, pure, for `simulator.sweep`.

    Args:
        problem: the problem.
        keys: PRNG keys of the starts.
        tolerance: of the gradient norm (dimensionless); by default 1e-10 in float64 and 1e-5 in float32.
        average: whether the first move replaces the features of every class by their mean, after which the classes of
            K features are solved instead of N. That move cannot raise the objective where
            `problem.is_convex_in_features`, the default there; elsewhere it is refused.
        memory: pairs of the L-BFGS history.
        max_evaluations: evaluations of the objective after which a start gives up (rounded up to a multiple of memory).
        keep_params: whether to return the points.
        batch_size: starts that run together; by default what fits a CPU's cache, or all on an accelerator.

    Returns:
        Record with one entry for every key.

    Raises:
        ValueError: if a number is out of range, `keys` is no vector of keys, or `average` does not fit the problem.
    """
    if not hasattr(keys, "dtype") or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise ArgumentError(f"Argument `keys` must be a vector of PRNG keys, but is {keys!r}.")
    options = _options(problem, tolerance, average, memory, max_evaluations, keep_params)
    if batch_size is not None:
        _checks.integer("batch_size", batch_size, minimum=1)
    else:
        batch_size = _default_batch(problem, options, keys.shape[0])
    return _minimize_batch(problem, keys, options, min(batch_size, keys.shape[0]))


def solve(
    problem: UfmProblem,
    key: Key[Array, ""],
    *,
    tolerance: float | None = None,
    average: bool | None = None,
    memory: int = 5,
    max_evaluations: int = 10_000,
    keep_params: bool = False,
) -> UfmMinimum:
    """Minimise from one start; pure function of (problem, key), arguments as in `minimize`.

    Fits `simulator.sweep(solve, problems, seeds)`, or `functools.partial(solve, tolerance=...)`.

    Raises:
        ValueError: as `minimize`, or if `key` is not one PRNG key.
    """
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.ndim != 0:
        raise ArgumentError(f"Argument `key` must be a PRNG key, but is {key!r}.")
    options = _options(problem, tolerance, average, memory, max_evaluations, keep_params)
    return _solve(problem, problem.init(key), options)


def minimize_from(
    problem: UfmProblem,
    start: UfmParams,
    *,
    tolerance: float | None = None,
    average: bool = False,
    memory: int = 5,
    max_evaluations: int = 10_000,
) -> UfmMinimum:
    """Minimise from a given point, for instance one near a predicted minimiser; arguments as in `minimize`.

    By default the features are not averaged first.

    Raises:
        ValueError: as `minimize`, or if the start does not fit the problem.
    """
    start = jax.tree.map(jnp.asarray, start)
    jax.eval_shape(problem.objective, start)
    if problem.features == "nonnegative":
        _checks.real("start.features", start.features, minimum=0)
    return _solve_jit(problem, start, _options(problem, tolerance, average, memory, max_evaluations, True))


class _Options(NamedTuple):
    tolerance: float
    average: bool
    memory: int
    max_evaluations: int
    keep_params: bool


def _options(problem: UfmProblem, tolerance, average, memory, max_evaluations, keep_params) -> _Options:
    if tolerance is None:
        tolerance = 1e-10 if jax.dtypes.canonicalize_dtype(float) == np.float64 else 1e-5
    _checks.real("tolerance", tolerance, minimum=0, exclusive_minimum=True)
    can_average = problem.level == "sample" and problem.is_convex_in_features
    if average is None:
        average = can_average
    elif average and not can_average:
        raise ArgumentError(
            "Argument `average` must be False unless the problem is at sample level and convex in the features, "
            f"but is True for level {problem.level!r}, features {problem.features!r}, "
            f"activation {problem.activation!r}."
        )
    memory = _checks.integer("memory", memory, minimum=1)
    max_evaluations = _checks.integer("max_evaluations", max_evaluations, minimum=1)
    return _Options(float(tolerance), bool(average), memory, max_evaluations, bool(keep_params))


def _default_batch(problem: UfmProblem, options: _Options, num_starts: int) -> int:
    if jax.default_backend() != "cpu":
        return num_starts
    level = "class" if options.average else problem.level
    params = jax.eval_shape(replace(problem, level=level).init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return max(1, _CPU_WORKING_SET_BYTES // (size * (2 * options.memory + 8)))


@partial(jax.jit, static_argnames=("options", "batch_size"))
def _minimize_batch(problem: UfmProblem, keys, options: _Options, batch_size: int) -> UfmMinimum:
    def one(key):
        return _solve(problem, problem.init(key), options)

    return lax.map(one, keys, batch_size=None if batch_size == 1 else batch_size)


def _solve(problem: UfmProblem, start: UfmParams, options: _Options) -> UfmMinimum:
    inner = problem
    if options.average:
        inner, start = replace(problem, level="class"), average_classes(problem, start)
    to_vector, to_params, scale = _coordinates(inner, start)
    value_and_grad = jax.value_and_grad(lambda vector: inner.objective(to_params(vector)))
    lower = _lower_bounds(inner, start, to_vector)
    tolerance = jnp.asarray(options.tolerance, scale.dtype)
    state = _lbfgs.minimize(
        value_and_grad,
        to_vector(start),
        tolerance=tolerance,
        scale=scale,
        lower=lower,
        memory=options.memory,
        max_turns=options.max_evaluations,
    )
    needs_polish = (state.status != _lbfgs.CONVERGED) & (state.status != _lbfgs.NONFINITE)
    vector, newton_steps = _polish(value_and_grad, state.point, scale, lower, tolerance, needs_polish)
    params = to_params(vector)
    params = repeat_classes(inner, params) if options.average else params
    loss, gradient = jax.value_and_grad(problem.objective)(params)
    norm = _gradient_norm(problem, params, gradient)
    return UfmMinimum(
        params=params if options.keep_params else None,
        loss=loss,
        gradient_norm=norm,
        converged=norm <= tolerance,
        status=state.status,
        iterations=state.iterations,
        evaluations=state.turns,
        newton_steps=newton_steps,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
    )


_solve_jit = partial(jax.jit, static_argnames="options")(_solve)


def _coordinates(problem: UfmProblem, start: UfmParams):
    """Maps between parameters and the solver's vector, and the factor of its gradient back to sample level."""
    dtype = start.features.dtype
    decays = jnp.stack(problem.decays(dtype))
    # Constrained blocks have a fixed norm, hence no decay that would set their scale.
    is_set = decays > 0
    logs = jnp.log(jnp.where(is_set, decays, 1.0))
    mean = jnp.sum(logs) / jnp.maximum(jnp.sum(is_set.astype(dtype)), 1.0)
    factors = jnp.where(is_set, jnp.exp((logs - mean) / 2), 1.0)
    rows = jnp.sqrt(jnp.asarray(problem.row_weights, dtype))[:, None]

    def scaled(params: UfmParams, features: jax.Array, sign: int) -> UfmParams:
        weights = tuple(w * factors[m] ** sign for m, w in enumerate(params.weights))
        return replace(params, features=params.features * features**sign, weights=weights)

    ones = jax.tree.map(jnp.ones_like, start)
    scale = ravel_pytree(scaled(ones, jnp.broadcast_to(factors[-1], rows.shape), 1))[0]
    unravel = ravel_pytree(start)[1]
    return (
        lambda params: ravel_pytree(scaled(params, rows * factors[-1], 1))[0],
        lambda vector: scaled(unravel(vector), rows * factors[-1], -1),
        scale,
    )


def _lower_bounds(problem: UfmProblem, start: UfmParams, to_vector: Any) -> jax.Array | None:
    if problem.features != "nonnegative":
        return None
    free = jax.tree.map(lambda leaf: jnp.full_like(leaf, -jnp.inf), start)
    return to_vector(replace(free, features=jnp.zeros_like(start.features)))


def _gradient_norm(problem: UfmProblem, params: UfmParams, gradient: UfmParams) -> jax.Array:
    if problem.features == "nonnegative":
        held = (params.features <= 0) & (gradient.features > 0)
        gradient = replace(gradient, features=jnp.where(held, 0.0, gradient.features))
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), jnp.zeros((), params.features.dtype)))


def gradient_norm(problem: UfmProblem, params: UfmParams) -> Float[Array, ""]:
    """Euclidean norm of the gradient at a point; for non-negative features of its feasible part.

    Args:
        problem: the problem.
        params: the point.

    Returns:
        The norm, dimensionless; 0 at a critical point.

    Raises:
        ValueError: if the point does not fit the problem.
    """
    params = jax.tree.map(jnp.asarray, params)
    return _gradient_norm(problem, params, jax.grad(problem.objective)(params))


def _polish(value_and_grad, vector, scale, lower, tolerance, needs_polish):
    """Newton steps for the equation gradient = 0, each kept only if it lowers the gradient norm at no higher value."""

    def masked_gradient(point):
        value, gradient = value_and_grad(point)
        return value, _lbfgs.free_mask(point, gradient, lower) * gradient

    def norm(gradient):
        return jnp.sqrt(jnp.sum((scale * gradient) ** 2))

    def body(carry):
        point, value, gradient, steps, _ = carry
        free = _lbfgs.free_mask(point, gradient, lower)
        curvature = jax.linearize(lambda p: value_and_grad(p)[1], point)[1]
        move = _conjugate_gradients(lambda v: free * curvature(free * v), -gradient, _CG_STEPS)
        trial = point + move if lower is None else jnp.maximum(point + move, lower)
        new_value, new_gradient = masked_gradient(trial)
        noise = 100 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        better = (norm(new_gradient) < 0.9 * norm(gradient)) & (new_value <= value + noise)
        chosen = jnp.where(better, trial, point), jnp.where(better, new_value, value)
        return *chosen, jnp.where(better, new_gradient, gradient), steps + better.astype(jnp.int32), better

    def goes_on(carry):
        _, _, gradient, steps, better = carry
        return better & (steps < _NEWTON_STEPS) & (norm(gradient) > tolerance)

    value, gradient = masked_gradient(vector)
    vector, *_, steps, _ = lax.while_loop(
        goes_on, body, (vector, value, gradient, jnp.zeros((), jnp.int32), needs_polish)
    )
    return vector, steps


def _conjugate_gradients(product, target, max_steps: int):
    """Solve product(v) = target; stops at flat or negative curvature, where only the steps so far are sound."""

    def body(carry):
        solution, residual, direction, square, count, _ = carry
        image = product(direction)
        curvature = jnp.sum(direction * image)
        is_sound = curvature > 0
        step = jnp.where(is_sound, square / jnp.where(is_sound, curvature, 1.0), 0.0)
        solution, residual = solution + step * direction, residual - step * image
        new_square = jnp.sum(residual**2)
        direction = residual + new_square / square * direction
        return solution, residual, direction, new_square, count + 1, is_sound

    def goes_on(carry):
        _, _, _, square, count, is_sound = carry
        return is_sound & (count < max_steps) & (square > 1e-16 * start)

    start = jnp.sum(target**2)
    first = (jnp.zeros_like(target), target, target, start, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return lax.while_loop(goes_on, body, first)[0]
