"""Labels of xarray objects besides their grid: attributes, coordinates that users add, and variables of Datasets.

Attributes are converted to types that netCDF and Zarr files can store; nested values become JSON text. Verbs keep
coordinates such as a section name along z or a scalar time as xarray does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from imageryxr.core.bbox import DIMS
from imageryxr.core.grid import Grid

ArrayOrDataset = TypeVar("ArrayOrDataset", xr.DataArray, xr.Dataset)


def spatial_arrays(dataset: xr.Dataset) -> dict[Any, xr.DataArray]:
    """Return the variables of a Dataset that have z, y and x as dims or as scalar coordinates, by name."""
    return {name: v for name, v in dataset.data_vars.items() if {*DIMS} <= {*v.dims, *v.coords}}


# ---------------------------------------------------------------------------------------------------------
# attributes

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


# ---------------------------------------------------------------------------------------------------------
# coordinates


@dataclass(frozen=True)
class ExtraCoord:
    """A coordinate other than z, y and x, with the grid of its values."""

    name: Any
    variable: xr.Variable
    grid: Grid

    def reindex(self, grid: Grid) -> xr.Variable | None:
        """Return the coordinate on another grid; None if the voxels along one of its dims do not coincide."""
        found = self.variable
        for dim, mine, target in zip(DIMS, self.grid.axes, grid.axes, strict=True):
            if dim not in found.dims:
                continue
            start = target.shift_to(mine)
            if start is None:
                return None
            stop = start + target.size
            found = found.isel({dim: slice(max(start, 0), max(stop, 0))})
            around = (min(max(-start, 0), target.size), min(max(stop - mine.size, 0), target.size))
            if any(around):
                found = found.pad({dim: around})  # the same fill values as xarray's reindex
        return found


def extra_coords(array: xr.DataArray, grid: Grid) -> tuple[ExtraCoord, ...]:
    """Return the coordinates of an array that are not z, y or x themselves and have no other dims."""
    return tuple(
        ExtraCoord(name, coord.variable, grid)
        for name, coord in array.coords.items()
        if name not in (*DIMS, "rgba") and set(coord.dims) <= set(DIMS)
    )


def assign_extra_coords(array: xr.DataArray, grid: Grid, extras: Sequence[ExtraCoord]) -> xr.DataArray:
    """Assign the coordinates that fit the grid of an array; drop coordinates of one name with different values."""
    found: dict[Any, xr.Variable] = {}
    conflicts = set()
    for extra in extras:
        variable = extra.reindex(grid)
        if variable is None or extra.name in (*array.dims, array.name):
            continue
        if extra.name in found and not found[extra.name].equals(variable):
            conflicts.add(extra.name)
        found.setdefault(extra.name, variable)
    kept = {name: variable for name, variable in found.items() if name not in conflicts}
    return array.assign_coords(kept) if kept else array
