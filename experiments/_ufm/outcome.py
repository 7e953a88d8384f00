"""How the search for a minimum from one start ended: what the records of all such searches begin with."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from nctheory.simulator.solver import UfmMinimum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """Objective and gradient where one start ended; `finite` refers to both, `status` indexes `solver.STATUS`."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    converged: Bool[Array, ""]
    status: Int[Array, ""]
    evaluations: Int[Array, ""]
    finite: Bool[Array, ""]


# Definitions of what every record stores in the same sense.
EFFORT_WORDS = {
    "status": "how L-BFGS ended, an index into solver.STATUS",
    "evaluations": "evaluations of loss and gradient by L-BFGS",
}


def outcome(found: UfmMinimum, **measured_otherwise: Any) -> dict[str, Any]:
    """Arguments of a record that extends `Outcome`: as the solver says, but for what was measured otherwise."""
    return {name: getattr(found, name) for name in Outcome.__dataclass_fields__} | measured_otherwise
