"""Find other levels of the volume that an array was opened from, so that overviews can read a coarse level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.axis_mapping import GridMap
from imageryxr.core.bbox import IndexBox, Triple, tidy, to_fraction
from imageryxr.core.grid import Axis, Grid
from imageryxr.errors import GridError, LayerError
from imageryxr.graph.expr import Clipped, Expr, LevelLeaf, Mapped, Resampled, Shifted, Widened
from imageryxr.graph.labelled import Volume, label_array, lazy_array, stored_expr, volume_of
from imageryxr.graph.to_dask import to_dask
from imageryxr.sources.base import Level, dtype_of, levels_by_resolution


def levels_of(array: xr.DataArray) -> list[xr.DataArray]:
    """Return an array at every level of the volume that it was opened from, finest first; reads nothing.

    The levels have the same shift and scale as the array. They are complete even if the array is a crop. Voxel-wise
    operations on the array, such as a selection of ids, are applied to each level. If the array is not a voxel-wise
    function of one level of a source, only the array is returned.
    """
    return [make() for _, make in _level_makers(array)] or [array]


def _level_makers(array: xr.DataArray) -> list[tuple[Grid, Callable[[], xr.DataArray]]]:
    """Return the grid of each level of the volume, and a function that makes the array; none if there is no volume."""
    try:
        volume = volume_of(array)
    except (LayerError, GridError):
        return []
    found = _find_level(volume.expr, volume.grid)
    if found is None:
        return []
    leaf, placed = found
    own = leaf.source.levels[leaf.mip].grid
    makers = list[tuple[Grid, Callable[[], xr.DataArray]]]()
    for level in levels_by_resolution(leaf.source):
        if dtype_of(leaf.source, level.mip) == leaf.dtype:  # a level of another dtype has other values, such as means
            grid = _move_grid(level.grid, own, placed)
            makers.append((grid, partial(_array_at_level, array, volume, leaf, level, grid)))
    return makers


def level_grids(array: xr.DataArray) -> list[Grid]:
    """Return the grid of each level of the volume that an array was opened from, also of placeholders; maybe none.

    They are those of the source: messages suggest their voxels as units.
    """
    try:
        volume = volume_of(array)
    except (LayerError, GridError):
        return []
    found = _find_level(volume.expr, volume.grid)
    return [] if found is None else [level.grid for level in found[0].source.levels]


def first_resolution(array: xr.DataArray) -> Triple:
    """Return the resolution (x, y, z nm) of level 0 of the volume that an array was opened from, even a placeholder.

    Neuroglancer's default unit is the voxel of the level that is listed first, even if it is not the finest.
    """
    found = _find_level(volume_of(array).expr, grid_of(array))
    return grid_of(array).resolution if found is None else found[0].source.levels[0].grid.resolution


def coarsest_level_for(array: xr.DataArray, resolution: Triple) -> xr.DataArray:
    """Return the coarsest level of an array's volume that is at least as fine as ``resolution`` (x, y, z nm).

    If no level is fine enough along an axis, the finest resolution along that axis is required instead.
    """
    levels = _level_makers(array)
    if not levels:
        return array
    sizes = [grid.resolution for grid, _ in levels]
    wanted = [max(min(size[axis] for size in sizes), resolution[axis]) * (1 + 1e-6) for axis in range(3)]
    fine = [i for i, size in enumerate(sizes) if all(a <= b for a, b in zip(size, wanted, strict=True))]
    return levels[max(fine, default=0)][1]()


def placed_level(array: xr.DataArray) -> tuple[LevelLeaf, Grid] | None:
    """Return the level of a source that an array was read from, and the grid of that level at the array's coordinates.

    The array may be a crop of the level or resampled from it, and its coordinates may have been changed. Returns None
    if its values were computed, or are not a voxel-wise function of one level. Reads nothing.
    """
    expr = stored_expr(array)
    return None if expr is None else _find_level(expr, grid_of(array), through_resampling=True)


def _find_level(expr: Expr, grid: Grid, *, through_resampling: bool = False) -> tuple[LevelLeaf, Grid] | None:
    """Return the level of which an expression is a voxel-wise function, and its grid, given that of the expression."""
    while not isinstance(expr, LevelLeaf):
        if isinstance(expr, Shifted):
            grid = grid.crop(IndexBox.of_shape(grid.shape).shift(expr.by, -1))
        elif isinstance(expr, Resampled) and through_resampling:
            grid = _resampled_grid(expr.grid_map, grid)
        elif not isinstance(expr, Widened | Mapped) and not (isinstance(expr, Clipped) and through_resampling):
            return None
        expr = expr.child
    return expr, Grid(expr.bounds.shape, grid.resolution, grid.voxel_offset)


def _resampled_grid(grid_map: GridMap, target: Grid) -> Grid:
    """Return the grid that was resampled, given the grid of the result."""
    axes = []
    for along, axis in zip(grid_map.axes, target.axes, strict=True):
        size = to_fraction(axis.resolution) / along.scale
        # Voxel j of the result is at (a·j + b) / c voxels from the lower edge of the resampled voxel 0.
        place = (to_fraction(axis.offset) + Fraction(1, 2)) * along.scale - Fraction(along.b, along.c)
        axes.append(Axis(axis.size, float(size), tidy(place)))
    return Grid.from_axes(axes)


def _move_grid(level: Grid, own: Grid, placed: Grid) -> Grid:
    """Apply to ``level`` the shift and scale that map the grid ``own`` to ``placed``."""
    resolution, offset = [], []
    for axis in range(3):
        r, o = to_fraction(own.resolution[axis]), to_fraction(own.voxel_offset[axis])
        scale = to_fraction(placed.resolution[axis]) / r
        shift = to_fraction(placed.voxel_offset[axis]) * to_fraction(placed.resolution[axis]) - o * r * scale
        size = to_fraction(level.resolution[axis]) * scale
        resolution.append(float(size))
        offset.append(tidy(to_fraction(level.voxel_offset[axis]) + shift / size))
    return Grid(level.shape, tuple(resolution), tuple(offset))  # type: ignore[arg-type]


def _array_at_level(array: xr.DataArray, volume: Volume, leaf: LevelLeaf, level: Level, grid: Grid) -> xr.DataArray:
    expr = _replace_level(volume.expr, LevelLeaf(leaf.source, level.mip))
    attrs = {**array.attrs, "mip": level.mip, "resolution": grid.resolution, "voxel_offset": grid.voxel_offset}
    name = str(array.name) if array.name is not None else leaf.source.layer_type
    if isinstance(expr, LevelLeaf):
        return lazy_array(expr, grid, attrs, name)
    tail = "rgba" if expr.tail == (4,) else None
    return label_array(to_dask(expr, grid.shape, name=name), grid, attrs, name, tail=tail)


def _replace_level(expr: Expr, leaf: LevelLeaf) -> Expr:
    if isinstance(expr, Mapped):
        return replace(expr, child=_replace_level(expr.child, leaf))
    return leaf if isinstance(expr, LevelLeaf) else _replace_level(expr.inputs[0], leaf)
