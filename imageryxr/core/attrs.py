"""Convert attributes to types that netCDF and Zarr files can store; nested values become JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_INT64_MAX = 2**63 - 1


class LargeIds(list[int]):
    """A list of ids above the int64 range that numpy converts to uint64; it converts a plain list to floats."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(list(self), np.uint64 if dtype is None else dtype)


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes in the types that netCDF and Zarr files can store: numbers, strings and flat lists of either.

    Dicts and nested lists become JSON text, which `parse_json_attr` parses. Booleans become 0 and 1. Numpy scalars
    become Python numbers.
    """
    return {name: _plain_value(value) for name, value in attrs.items()}


def parse_json_attr(attr: Any) -> Any:
    """Parse an attribute that is the JSON text of a dict or list; return any other value unchanged."""
    if isinstance(attr, str) and attr[:1] in ("{", "["):
        try:
            return json.loads(attr)
        except ValueError:
            return attr
    return attr


def list_from_attr(attr: Any) -> list[Any]:
    """Return a list attribute as a list; a file may return it as an array, or a list of one item as that item."""
    return [] if attr is None else np.asarray(attr, dtype=object).ravel().tolist()


def _plain_value(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return _plain_list(value)
    return _to_json(value) if isinstance(value, dict) else value


def _plain_list(value: Any) -> Any:
    kinds = {type(item) for item in value}
    if kinds == {int} and _INT64_MAX < max(value) < 2**64 and 0 <= min(value) <= _INT64_MAX:
        return LargeIds(value)
    if kinds <= {int, float} or kinds == {str}:
        return value
    if all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
        return _plain_list(type(value)(_plain_value(item) for item in value))
    return _to_json(value)


def _to_json(value: Any) -> Any:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return value  # the caller set an attribute that JSON cannot represent
