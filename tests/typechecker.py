"""The run-time type checker of the tests: beartype, with an int accepted where a float is due (PEP 484).

Constructors are left out: JAX rebuilds registered records through them with placeholders and with batched leaves, so
their annotations hold only for records that users build; those are checked in `__post_init__`.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enforce the annotations of a function or method."""
    return function if function.__qualname__.endswith(".__init__") else _beartype(function)
