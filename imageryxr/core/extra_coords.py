"""Coordinates of a caller's own, such as a section name along z or a scalar time: verbs keep them as xarray does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from imageryxr.core.bbox import DIMS, exact, snapped
from imageryxr.core.grid import Axis, Grid


@dataclass(frozen=True)
class ExtraCoord:
    """A coordinate besides z, y and x, and the grid that its values belong to."""

    name: Any
    variable: xr.Variable
    grid: Grid

    def on(self, grid: Grid) -> xr.Variable | None:
        """Return the coordinate on another grid; None where the voxels along one of its dims are others."""
        found = self.variable
        for dim, mine, target in zip(DIMS, self.grid.axes, grid.axes, strict=True):
            if dim not in found.dims:
                continue
            start = _shift(target, mine)
            if start is None:
                return None
            stop = start + target.size
            found = found.isel({dim: slice(max(start, 0), max(stop, 0))})
            around = (min(max(-start, 0), target.size), min(max(stop - mine.size, 0), target.size))
            if any(around):
                found = found.pad({dim: around})  # filled as xarray's reindex fills
        return found


def extra_coords(array: xr.DataArray, grid: Grid) -> tuple[ExtraCoord, ...]:
    """Return the coordinates of an array that are neither an index of z, y, x nor along a dim of its own."""
    return tuple(
        ExtraCoord(name, coord.variable, grid)
        for name, coord in array.coords.items()
        if name not in (*DIMS, "rgba") and set(coord.dims) <= set(DIMS)
    )


def with_extra_coords(array: xr.DataArray, grid: Grid, extras: Sequence[ExtraCoord]) -> xr.DataArray:
    """Return an array with the coordinates that still fit its grid; those that contradict each other are dropped."""
    found: dict[Any, xr.Variable] = {}
    conflicts = set()
    for extra in extras:
        variable = extra.on(grid)
        if variable is None or extra.name in (*array.dims, array.name):
            continue
        if extra.name in found and not found[extra.name].equals(variable):
            conflicts.add(extra.name)
        found.setdefault(extra.name, variable)
    kept = {name: variable for name, variable in found.items() if name not in conflicts}
    return array.assign_coords(kept) if kept else array


def _shift(target: Axis, source: Axis) -> int | None:
    """Return the index in a source axis of a target axis's first voxel; None where their voxels differ."""
    steps = snapped(exact(target.offset) - exact(source.offset))
    if exact(target.resolution) != exact(source.resolution) or steps.denominator != 1:
        return None
    return int(steps)
