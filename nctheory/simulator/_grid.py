"""Grids: the conditions of a sweep as variations of one configuration."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from nctheory._errors import ArgumentError


@dataclass(frozen=True)
class Grid:
    """Conditions of a sweep: configurations and, for each, the fields that were varied.

    Attributes:
        configs: one configuration a condition.
        conditions: the varied fields, by dotted name.
    """

    configs: tuple[Any, ...]
    conditions: tuple[Mapping[str, Any], ...]


def grid(config: Any, **axes: Sequence[Any]) -> Grid:
    """Cartesian product over fields of a configuration; the last axis varies fastest.

    Args:
        config: the configuration that holds everything else.
        axes: values by field name; `__` reaches into nested fields, `model__init_std=[0.1, 1.0]`.

    Returns:
        The grid. Without axes, its one condition is `config` itself.

    Raises:
        ValueError: if a field does not exist or an axis has no values.
    """
    configs, conditions = [], []
    for name, values in axes.items():
        if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not len(values):
            raise ArgumentError(f"Argument `{name}` must list at least one value, but is {values!r}.")
    for values in product(*axes.values()):
        changed = config
        for name, value in zip(axes, values, strict=True):
            changed = _replace(changed, name.split("__"), value, name)
        configs.append(changed)
        conditions.append({name.replace("__", "."): value for name, value in zip(axes, values, strict=True)})
    return Grid(tuple(configs), tuple(conditions))


def as_grid(configs: Any) -> Grid:
    """A configuration, or a sequence of them, as a grid."""
    if isinstance(configs, list | tuple):
        if not configs:
            raise ArgumentError("Argument `configs` must hold at least one configuration, but is empty.")
        return Grid(tuple(configs), tuple({"condition": i} for i in range(len(configs))))
    return Grid((configs,), ({},))


def _replace(config: Any, path: Sequence[str], value: Any, name: str) -> Any:
    fields = list(getattr(config, "__dataclass_fields__", ()))
    if path[0] not in fields:
        raise ArgumentError(f"Argument `{name}` must name a field of {type(config).__name__}, one of {fields}.")
    new = value if len(path) == 1 else _replace(getattr(config, path[0]), path[1:], value, name)
    return dataclasses.replace(config, **{path[0]: new})
