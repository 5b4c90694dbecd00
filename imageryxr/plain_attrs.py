"""Attributes that any file can hold: numbers, strings and flat lists; what is nested becomes JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes as netCDF and Zarr files hold them.

    Dicts, and lists of anything but numbers and strings, become their JSON text, which `decoded` reads; booleans become
    0 and 1, numpy scalars Python numbers. A list of lists of numbers stays: HDF5 and Zarr hold it.
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


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        return value.item()
    nested = isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value)
    if isinstance(value, dict) or (nested and not _is_matrix(value)):
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return value  # an attribute of the caller's own
    return value


def _is_matrix(rows: Any) -> bool:
    return all(isinstance(row, list | tuple) and all(isinstance(v, int | float) for v in row) for row in rows) and (
        len({len(row) for row in rows}) == 1 and len(rows[0]) == len(rows)
    )
