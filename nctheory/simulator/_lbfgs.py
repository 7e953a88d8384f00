"""L-BFGS as one flat state machine: every turn of the loop evaluates the objective once, in every lane of a `vmap`.

A line search inside an L-BFGS loop (as in `optax.lbfgs`) makes every lane of a batch wait for the slowest search of
every iteration. Here a turn evaluates one trial point; a lane that accepts it takes its next direction in the same
turn, the others shrink or grow their step. The history has one slot a turn, at a position that all lanes share, so that
writing it stays in place under `vmap`; a rejected trial leaves an empty slot. Directions come from inner products
(2 x memory of them), so that the history is read twice a turn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

RUNNING, CONVERGED, TURN_LIMIT, STALLED, NONFINITE = range(5)
_DECREASE, _CURVATURE, _MAX_TRIALS = 1e-4, 0.9, 30
_HIGHEST = lax.Precision.HIGHEST


class State(NamedTuple):
    """Where a lane stands; `value` and `gradient` belong to the accepted `point`."""

    point: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    slope: jax.Array
    step: jax.Array
    low: jax.Array
    low_slope: jax.Array
    high: jax.Array
    trials: jax.Array
    pairs: jax.Array
    cross: jax.Array
    squares: jax.Array
    valid: jax.Array
    status: jax.Array
    iterations: jax.Array
    turns: jax.Array


def minimize(
    value_and_grad: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    *,
    tolerance: jax.Array,
    scale: jax.Array,
    lower: jax.Array | None,
    memory: int,
    max_turns: int,
) -> State:
    """Minimise over a flat vector until |scale * projected gradient| <= tolerance.

    Args:
        value_and_grad: objective and gradient at a point.
        start: the first point, inside the bounds.
        tolerance: of the gradient norm.
        scale: factor that turns the gradient into the one that the tolerance is meant for.
        lower: lower bounds, -inf where there is none; None for no bounds at all.
        memory: pairs that directions are built from, and turns between two looks at the stopping rule.
        max_turns: evaluations after which a lane gives up.

    Returns:
        The last state; its status is never RUNNING.
    """
    turn = _make_turn(value_and_grad, tolerance, scale, lower, memory)
    state = _first_state(value_and_grad, start, tolerance, scale, lower, memory)

    def block(state: State) -> State:
        return lax.fori_loop(0, memory, lambda slot, s: turn(slot, s), state)

    state = lax.while_loop(lambda s: (s.status == RUNNING) & (s.turns < max_turns), block, state)
    return state._replace(status=jnp.where(state.status == RUNNING, TURN_LIMIT, state.status))


def _first_state(value_and_grad, start, tolerance, scale, lower, memory: int) -> State:
    value, gradient = value_and_grad(start)
    dtype = start.dtype
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    free = free_mask(start, gradient, lower)
    direction = -free * gradient
    norm = jnp.sqrt(jnp.sum(direction**2))
    status = jnp.where(jnp.sqrt(jnp.sum((scale * direction) ** 2)) <= tolerance, CONVERGED, RUNNING)
    return State(
        point=start,
        value=value,
        gradient=gradient,
        direction=direction,
        slope=-(norm**2),
        step=_first_step(norm),
        low=zero,
        low_slope=-(norm**2),
        high=jnp.full((), jnp.inf, dtype),
        trials=none,
        pairs=jnp.zeros((2 * memory, start.size), dtype),
        cross=jnp.zeros((memory, memory), dtype),
        squares=jnp.zeros((memory, memory), dtype),
        valid=jnp.zeros(memory, dtype),
        status=jnp.where(jnp.isfinite(norm + value), status, NONFINITE),
        iterations=none,
        turns=none,
    )


def _first_step(norm: jax.Array) -> jax.Array:
    return 1 / jnp.maximum(norm, jnp.asarray(1e-30, norm.dtype))


def free_mask(point: jax.Array, gradient: jax.Array, lower: jax.Array | None) -> Any:
    """Mask of the coordinates that may move: not those at their bound that the gradient holds there."""
    if lower is None:
        return jnp.ones((), point.dtype)
    return ((point > lower) | (gradient < 0)).astype(point.dtype)


def _make_turn(value_and_grad, tolerance, scale, lower, memory: int):
    def turn(slot: jax.Array, state: State) -> State:
        trial = state.point + state.step * state.direction
        if lower is not None:
            trial = jnp.maximum(trial, lower)
        value, gradient = value_and_grad(trial)
        moved = trial - state.point
        search = _judge(state, value, gradient, moved, has_bounds=lower is not None)
        accepted = search.accepted & (state.status == RUNNING)
        point = jnp.where(accepted, trial, state.point)
        new_gradient = jnp.where(accepted, gradient, state.gradient)
        free = free_mask(point, new_gradient, lower)
        (pairs, cross, squares, valid), proposal = _update_memory(
            slot, state, accepted, moved, gradient, new_gradient, free, memory
        )
        way = _choose_way(state, accepted, new_gradient, free, proposal, valid, search.step)
        is_running = state.status == RUNNING
        status = jnp.where(way.stalled, STALLED, RUNNING)
        status = jnp.where(jnp.sqrt(jnp.sum((scale * way.steepest) ** 2)) <= tolerance, CONVERGED, status)
        return State(
            point=point,
            value=jnp.where(accepted, value, state.value),
            gradient=new_gradient,
            direction=way.direction,
            slope=way.slope,
            step=way.step,
            low=jnp.where(way.renewed, 0.0, search.low),
            low_slope=jnp.where(way.renewed, way.slope, search.low_slope),
            high=jnp.where(way.renewed, jnp.inf, search.high),
            trials=jnp.where(way.renewed, 0, state.trials + 1),
            pairs=pairs,
            cross=cross,
            squares=squares,
            valid=way.valid,
            status=jnp.where(is_running, status, state.status),
            iterations=state.iterations + accepted.astype(jnp.int32),
            turns=state.turns + is_running.astype(jnp.int32),
        )

    return turn


class _Way(NamedTuple):
    """Where the next trial goes; `renewed` where that is a new direction."""

    direction: jax.Array
    slope: jax.Array
    step: jax.Array
    steepest: jax.Array
    valid: jax.Array
    renewed: jax.Array
    stalled: jax.Array


def _choose_way(state: State, accepted, gradient, free, proposal, valid, next_step) -> _Way:
    """Next direction and step: from the history, along the gradient, or on with the present search."""
    # A search that fails on a direction from the history starts over along the gradient; there it has stalled.
    failed = ~accepted & (state.trials + 1 >= _MAX_TRIALS)
    had_history = jnp.any(state.valid > 0)
    steepest = -free * gradient
    norm = jnp.sqrt(jnp.sum(steepest**2))
    slope = jnp.sum(proposal * gradient)
    is_descent = slope < -1e-10 * norm * jnp.sqrt(jnp.sum(proposal**2))
    use_steepest = failed | ~is_descent
    valid = jnp.where(failed | (accepted & ~is_descent), jnp.zeros_like(valid), valid)
    renewed = accepted | failed
    is_first = use_steepest | ~jnp.any(valid > 0)
    return _Way(
        direction=jnp.where(renewed, jnp.where(use_steepest, steepest, proposal), state.direction),
        slope=jnp.where(renewed, jnp.where(use_steepest, -(norm**2), slope), state.slope),
        step=jnp.where(renewed, jnp.where(is_first, _first_step(norm), 1.0), next_step),
        steepest=steepest,
        valid=valid,
        renewed=renewed,
        stalled=failed & ~had_history,
    )


class _Search(NamedTuple):
    accepted: jax.Array
    step: jax.Array
    low: jax.Array
    low_slope: jax.Array
    high: jax.Array


def _judge(state: State, value, gradient, moved, *, has_bounds: bool) -> _Search:
    """Weak Wolfe conditions, with the approximate form of the first where values have no digits left to compare."""
    slope = jnp.sum(gradient * state.direction)
    expected = jnp.sum(state.gradient * moved) if has_bounds else state.step * state.slope
    noise = 100 * jnp.finfo(value.dtype).eps * jnp.abs(state.value)
    decreased = value <= state.value + _DECREASE * expected
    decreased |= (value <= state.value + noise) & (slope <= (2 * _DECREASE - 1) * state.slope)
    is_finite = jnp.isfinite(value) & jnp.isfinite(slope)
    decreased &= is_finite
    # With bounds the path bends, its slope is not that of the direction, and longer steps are not looked for.
    curved = jnp.ones((), bool) if has_bounds else slope >= _CURVATURE * state.slope
    low = jnp.where(decreased, state.step, state.low)
    low_slope = jnp.where(decreased, slope, state.low_slope)
    high = jnp.where(decreased, state.high, state.step)
    width = high - state.low
    # Secant on the slopes: the minimiser of the quadratic through both ends.
    secant = state.low_slope / (state.low_slope - slope)
    share = jnp.clip(jnp.where(jnp.isfinite(secant) & (secant > 0), secant, 0.5), 0.1, 0.6)
    shrunk = state.low + jnp.where(is_finite, share, 0.1) * width
    grown = jnp.where(jnp.isfinite(high), (low + high) / 2, 4 * state.step)
    return _Search(decreased & curved, jnp.where(decreased, grown, shrunk), low, low_slope, high)


def _update_memory(slot, state: State, accepted, moved, gradient, new_gradient, free, memory: int):
    """Write the pair of this turn (zero if rejected) and return the history with the next direction."""
    change = gradient - state.gradient
    product = jnp.sum(moved * change)
    eps = jnp.finfo(moved.dtype).eps
    is_good = accepted & (product > eps * jnp.sum(change**2)) & (product > 0)
    keep = is_good.astype(moved.dtype)
    moved = jnp.where(is_good, moved, 0.0)
    change = jnp.where(is_good, change, 0.0)
    pairs = lax.dynamic_update_slice(state.pairs, moved[None, :], (slot, jnp.zeros_like(slot)))
    pairs = lax.dynamic_update_slice(pairs, change[None, :], (slot + memory, jnp.zeros_like(slot)))
    valid = lax.dynamic_update_slice(state.valid, keep[None], (slot,))
    masked = free * new_gradient
    inner = jnp.matmul(pairs, jnp.stack([masked, moved, change], axis=1), precision=_HIGHEST)
    cross = lax.dynamic_update_slice(state.cross, inner[memory:, 1][None, :], (slot, jnp.zeros_like(slot)))
    cross = lax.dynamic_update_slice(cross, inner[:memory, 2][:, None], (jnp.zeros_like(slot), slot))
    squares = lax.dynamic_update_slice(state.squares, inner[memory:, 2][None, :], (slot, jnp.zeros_like(slot)))
    squares = lax.dynamic_update_slice(squares, inner[memory:, 2][:, None], (jnp.zeros_like(slot), slot))
    gamma, of_moves, of_changes = _coefficients(slot, cross, squares, valid, inner[:memory, 0], inner[memory:, 0])
    combined = jnp.matmul(jnp.concatenate([of_moves, of_changes])[None, :], pairs, precision=_HIGHEST)[0]
    return (pairs, cross, squares, valid), -free * (gamma * masked + combined)


def _coefficients(slot, cross, squares, valid, moves_g, changes_g):
    """Two-loop recursion on inner products: H g = gamma g + sum_j (move coefficient) s_j + (change coefficient) y_j."""
    memory = valid.shape[0]
    # Chronological order, oldest first: the slot after the newest is the oldest.
    order = (jnp.arange(memory, dtype=slot.dtype) + slot + 1) % memory
    cross, squares = cross[order][:, order], squares[order][:, order]
    valid, moves_g, changes_g = valid[order], moves_g[order], changes_g[order]
    diagonal = jnp.diagonal(cross)
    rho = jnp.where(valid > 0, 1 / jnp.where(valid > 0, diagonal, 1.0), 0.0)

    def newest_first(count, alphas):
        i = memory - 1 - count
        return alphas.at[i].set(rho[i] * (moves_g[i] - jnp.sum(cross[i] * alphas)))

    alphas = lax.fori_loop(0, memory, newest_first, jnp.zeros_like(rho))
    newest = jnp.max(jnp.where(valid > 0, jnp.arange(memory, dtype=jnp.int32), -1))
    is_newest = jnp.arange(memory, dtype=jnp.int32) == newest
    square = jnp.sum(jnp.where(is_newest, jnp.diagonal(squares), 0.0))
    gamma = jnp.where(
        newest >= 0, jnp.sum(jnp.where(is_newest, diagonal, 0.0)) / jnp.where(newest >= 0, square, 1.0), 1.0
    )
    pulled = gamma * (changes_g - jnp.sum(squares * alphas[None, :], axis=1))

    def oldest_first(i, weights):
        return weights.at[i].set(alphas[i] - rho[i] * (pulled[i] + jnp.sum(cross[:, i] * weights)))

    weights = lax.fori_loop(0, memory, oldest_first, jnp.zeros_like(rho))
    back = (jnp.arange(memory, dtype=slot.dtype) - slot - 1) % memory
    return gamma, weights[back], (-gamma * alphas)[back]
