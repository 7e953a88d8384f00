"""Values of a checkpoint by name: leaves of a state, what a callback returned, what two descriptions differ in."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nctheory._errors import ArgumentError

_KINDS = "biufcSU"


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, in the pytree's order."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, value in arrays.items():
        array = np.ascontiguousarray(np.asarray(value))
        found.update(f"{name} {array.dtype} {array.shape};".encode())
        found.update(array.data.cast("B") if array.size else b"")
    return found.hexdigest()


def flat_returned(value: Any, where: str = "") -> dict[str, np.ndarray]:
    """Arrays of a callback's value by path: nested dictionaries and records are taken apart.

    Raises:
        ValueError: naming the entry that is no numeric, boolean or text array.
    """
    if value is None:
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        found = {}
        for name, each in value.items():
            if not isinstance(name, str) or "/" in name or not name:
                raise ArgumentError(f"Argument `on_checkpoint` must return names without '/', but has {name!r}.")
            found |= flat_returned(each, f"{where}/{name}" if where else name)
        return found
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS or not where:
        raise ArgumentError(
            f"Argument `on_checkpoint` must return None or a dictionary of numeric or text arrays, but "
            f"{where or 'its value'} is of type {type(value).__name__} and dtype {array.dtype}."
        )
    return {where: array}


def nested_returned(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Undo `flat_returned`: dictionaries of arrays."""
    found: dict[str, Any] = {}
    for path, array in flat.items():
        *above, name = path.split("/")
        inner = found
        for each in above:
            inner = inner.setdefault(each, {})
        inner[name] = array
    return found


def differences(stored: Any, given: Any, where: str = "") -> list[str]:
    """Entries in which two JSON-like values differ, by their paths."""
    if isinstance(stored, dict) and isinstance(given, dict):
        names = sorted(stored.keys() | given.keys())
        return [
            each
            for name in names
            for each in differences(
                stored.get(name, "absent"), given.get(name, "absent"), f"{where}.{name}" if where else name
            )
        ]
    return [] if stored == given else [f"{where} (stored {stored!r}, given {given!r})"]
