"""Matrix factorisations that programs can run side by side on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array


def one_by_one(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Make `vmap` of a function of one matrix work on one matrix after the other on a CPU, elsewhere on all at once.

    On a CPU, JAX spreads a batch of LAPACK calls over the threads that also run programs and waits for them on one of
    these threads, so two programs with such batches, or one program with two of them at a time, can wait for each other
    for ever (JAX 0.10.2). Calls on single matrices use no other thread.

    Args:
        function: of one matrix, differentiable; returns an array or a tuple of arrays.

    Returns:
        The function with that batching rule, and with the derivative of the plain one.
    """
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def _(axis_size: int, in_batched: Any, matrices: Array) -> tuple[Any, Any]:
        loop = lambda each: jax.lax.map(single, each)  # noqa: E731
        found = jax.lax.platform_dependent(matrices, cpu=loop, default=jax.vmap(function))
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def safe(matrix: Array) -> Any:
        return single(matrix)

    @safe.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        # A function with a batching rule of its own cannot be differentiated; the plain one can.
        return jax.jvp(function, primals, tangents)

    return safe
