"""Values at points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.boxes import SNAP, check_resolution, show_triple, tidy
from imageryxr.errors import BoxError, OutOfVolumeError
from imageryxr.expr import Array, ArrayLeaf
from imageryxr.grid import Grid
from imageryxr.lazy import to_dask
from imageryxr.selection import Joint, values_at
from imageryxr.strides import Indexes
from imageryxr.volumes import RGBA, Volume, volume_of

Places = npt.NDArray[np.float64]


def sample_points(array: xr.DataArray, points: Any, *, resolution: Sequence[float] = (1, 1, 1)) -> xr.DataArray:
    """Return the values of an array at points: ids as ids, grey values as grey values, colours as colours.

    Computes: reads the storage chunks (or dask blocks) that hold a point, each of them once, whatever the number of
    points in it and however far apart they are. A point takes the value of the voxel that contains it; values are not
    interpolated.

    Parameters
    ----------
    array : DataArray
        Dims (z, y, x), or (z, y, x, rgba).
    points : array_like of shape (n, 3), DataFrame, Dataset or dict
        Points (x, y, z) in units of ``resolution``, in any order; a table has the columns ``x``, ``y`` and ``z``. One
        point may be given as three numbers.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z) of ``points``. ``(1, 1, 1)`` means that they are nanometres; the resolution that
        Neuroglancer shows, such as ``(4, 4, 40)``, means that they are voxels of that size.

    Returns
    -------
    DataArray
        In memory, dims (point,) or (point, rgba), of the dtype of ``array``, with the coordinates ``x``, ``y`` and
        ``z`` of the points in nm. A point outside the array has the value 0, as `crop` fills what lies outside.

    Raises
    ------
    BoxError
        If the points are not n times three finite numbers.
    OutOfVolumeError
        If there are points, and all of them lie outside the array.
    ChunkReadError
        If a chunk cannot be read.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> ids = ix.sample_points(seg, [(4300, 2300, 110), (4700, 2600, 130), (0, 0, 0)], resolution=(8, 8, 40))
    >>> ids.dims, ids.dtype, int(ids[2])
    (('point',), dtype('uint64'), 0)
    """
    tail = ("rgba",) if "rgba" in getattr(array, "dims", ()) else ()
    volume = volume_of(array, tail=tail)
    unit = check_resolution(resolution)
    places = _numbers(points)
    indexes = _indexes(places, unit, volume.grid)
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(indexes, volume.grid.shape, strict=True)], axis=0)
    if len(places) and not inside.any():
        raise _outside_error(places, unit, volume.grid, array.name)
    values = np.zeros((len(places), *volume.expr.tail), volume.expr.dtype)
    if inside.any():
        z, y, x = (i[inside].astype(np.int64) for i in indexes)
        values[inside] = _values(volume, z, y, x)
    coords: dict[str, Any] = {d: ("point", places[:, a] * unit[a], {"units": "nm"}) for a, d in enumerate("xyz")}
    colors = {"rgba": ("rgba", list(RGBA))} if tail else {}
    return xr.DataArray(values, {**coords, **colors}, ("point", *tail), array.name, dict(array.attrs))


def _numbers(points: Any) -> Places:
    """Return points as an array (n, 3)."""
    if isinstance(points, Mapping | xr.Dataset) or hasattr(points, "columns"):
        absent = [c for c in "xyz" if c not in points]
        if absent:
            names = list(map(str, getattr(points, "columns", points)))
            raise BoxError(
                f"the table of points has the columns {names} and lacks {absent}: name those of the positions x, y "
                "and z, e.g. table.rename(columns={'pt_x': 'x'}), or give an array of shape (n, 3)"
            )
        points = [np.asarray(points[c]) for c in "xyz"]
        if len({p.shape for p in points}) > 1 or points[0].ndim != 1:
            raise BoxError(f"x, y and z of points have shapes {[p.shape for p in points]}: give as many of each")
        points = np.stack(points, axis=1)
    try:
        rows = np.asarray(points)
        # a column of triples, as CAVE tables have
        rows = np.stack([np.asarray(row) for row in rows]) if rows.dtype == object and rows.ndim == 1 else rows
        found = rows.astype(np.float64) if rows.dtype.kind in "iufO" or not rows.size else None
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise BoxError(
            f"points={str(points)[:80]!r} are not numbers; give an array of shape (n, 3), each row (x, y, z)"
        )
    found = found.reshape(0, 3) if found.size == 0 else found[np.newaxis] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] != 3:
        raise BoxError(f"points have the shape {found.shape}; give (n, 3), each row (x, y, z)")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise BoxError(
            f"{len(bad)} of {len(found)} points are not finite, the first is row {bad[0]}, {found[bad[0]].tolist()}; "
            "leave those rows out, e.g. with table.dropna()"
        )
    return found


def _indexes(places: Places, unit: Sequence[float], grid: Grid) -> list[Places]:
    """Return the indexes (z, y, x) of the voxels that contain points; whole numbers, as floats."""
    found = []
    for axis, own in enumerate(grid.axes):
        along = 2 - axis
        place = places[:, along] * (unit[along] / own.resolution) - own.offset
        whole = np.rint(place)
        found.append(np.where(np.abs(place - whole) < float(SNAP), whole, np.floor(place)))
    return found


def _values(volume: Volume, z: Indexes, y: Indexes, x: Indexes) -> Array:
    expr = volume.expr
    if isinstance(expr, ArrayLeaf):
        return expr.array[z, y, x]
    if not volume.givens:
        return values_at(expr, [Joint((0, 1, 2), (z, y, x))])
    # blocks of other arrays may share what they are made of: all in one graph
    splits = volume.below_splits or volume.splits
    blocks = to_dask(expr, volume.grid.shape, givens=volume.givens, chunks=splits, name="points")
    found: Array = blocks.vindex[z, y, x].compute()
    return found


def _outside_error(places: Places, unit: Sequence[float], grid: Grid, name: Any) -> OutOfVolumeError:
    first = tuple(tidy(v) for v in places[0])
    named = "the array" if name is None else f"the array {name!r}"
    shown = "nm" if tuple(unit) == (1.0, 1.0, 1.0) else f"voxels of {show_triple(unit)} nm"
    message = (
        f"none of {len(places):,} points lies in {named}: the first is {first} in {shown}, and it covers {grid.bbox}"
    )
    units = {(1.0, 1.0, 1.0): "nanometres", grid.resolution: f"voxels of {show_triple(grid.resolution)} nm"}
    for other, meant in units.items():
        if other != tuple(unit) and _any_inside(places, other, grid):
            given = tuple(tidy(u) for u in other)
            return OutOfVolumeError(f"{message}. The numbers fit if they are {meant}: give resolution={given}")
    if _any_inside(places[:, ::-1], unit, grid):
        return OutOfVolumeError(f"{message}. The numbers fit the other way round: points are (x, y, z), not (z, y, x)")
    return OutOfVolumeError(f"{message}; give points inside it, and their unit as resolution=(x, y, z nm per unit)")


def _any_inside(places: Places, unit: Sequence[float], grid: Grid) -> bool:
    indexes = _indexes(places, unit, grid)
    return bool(np.all([(i >= 0) & (i < n) for i, n in zip(indexes, grid.shape, strict=True)], axis=0).any())
