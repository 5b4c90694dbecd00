"""Coordinates that users add, such as a section name along z or a scalar time; verbs keep them as xarray does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from imageryxr.core.bbox import DIMS
from imageryxr.core.grid import Grid


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
