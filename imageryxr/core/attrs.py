"""Attributes that any file can hold: numbers, strings and flat lists; what is nested becomes JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_INT64_MAX = 2**63 - 1


class LargeIds(list[int]):
    """A list of ids of which some need all 64 bits: numpy makes uint64 of it, where it makes floats of a plain list."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(list(self), np.uint64 if dtype is None else dtype)


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes as netCDF and Zarr files hold them: numbers, strings and flat lists of one of the two.

    Dicts and nested lists become their JSON text, which `decoded` reads. Booleans become 0 and 1, numpy scalars Python
    numbers.
    """
    return {name: _plain(value) for name, value in attrs.items()}


def decoded(attr: Any) -> Any:
    """Return an attribute as the dict or list that its JSON text describes; anything else as it is."""
    if isinstance(attr, str) and attr[:1] in ("{", "["):
        try:
            return json.loads(attr)
        except ValueError:
            return attr
    return attr


def listed(attr: Any) -> list[Any]:
    """Return a list attribute as a list: from a file it comes as an array, or as its only item."""
    return [] if attr is None else np.asarray(attr, dtype=object).ravel().tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return _plain_list(value)
    return _as_json(value) if isinstance(value, dict) else value


def _plain_list(value: Any) -> Any:
    kinds = {type(item) for item in value}
    if kinds == {int} and _INT64_MAX < max(value) < 2**64 and 0 <= min(value) <= _INT64_MAX:
        return LargeIds(value)
    if kinds <= {int, float} or kinds == {str}:
        return value
    if all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
        return _plain_list(type(value)(_plain(item) for item in value))
    return _as_json(value)


def _as_json(value: Any) -> Any:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return value  # an attribute of the caller's own
