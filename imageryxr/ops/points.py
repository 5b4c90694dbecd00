"""Sample the values of an array at points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotation_values import as_triples
from imageryxr.core.annotations import DIM, annotation_centers, annotation_type_of
from imageryxr.core.array_labels import ArrayOrDataset, spatial_arrays
from imageryxr.core.bbox import Triple, check_resolution, format_triple, snap_places, tidy
from imageryxr.core.grid import Grid
from imageryxr.core.validate import name_array
from imageryxr.errors import BoxError, OutOfVolumeError, format_value, warn
from imageryxr.graph.expr import Array, ArrayLeaf
from imageryxr.graph.labelled import RGBA, Volume, volume_of
from imageryxr.graph.selection import AxisGroup, Indexes, read_selection
from imageryxr.graph.to_dask import to_dask
from imageryxr.ops.annotation_tables import check_in_nm, length_of, position_columns
from imageryxr.ops.multiscale import level_grids

Places = npt.NDArray[np.float64]


def sample_points(obj: ArrayOrDataset, points: Any, *, resolution: Sequence[float] = (1, 1, 1)) -> ArrayOrDataset:
    """Return the values of an array, or of each layer of a Dataset, at points.

    Computes: reads each storage chunk (or dask block) that contains points once, and no others. A point has the value
    of the voxel that contains it; values are not interpolated.

    Parameters
    ----------
    obj : DataArray or Dataset
        Array with dims (z, y, x) or (z, y, x, rgba), or a Dataset, of which variables with these dims are sampled.
    points : array_like of shape (n, 3), Series, DataFrame, Dataset or dict
        Points (x, y, z) in units of ``resolution``, in any order; lines and boxes of `as_annotations` are sampled in
        their middle. A table must have the columns ``x``, ``y`` and ``z``,
        or exactly one column of triples, such as ``pt_position`` of a CAVE table (also as text, "[1 2 3]", from a CSV
        file), or three columns ``pt_position_x``, ``…_y`` and ``…_z``. If there are several, give one of them:
        ``table["pre_pt_position"]``. A single point can be given as three numbers.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z) of ``points``. ``(1, 1, 1)`` means that points are in nanometres; the resolution
        that Neuroglancer shows, such as ``(4, 4, 40)``, means that points are in voxels of that size.

    Returns
    -------
    DataArray or Dataset
        Values in memory, dims (point,) or (point, rgba), with the dtype of ``obj`` and the coordinates ``x``, ``y`` and
        ``z`` of the points in nm. A point outside the array has the value 0, as in `crop`. For a Dataset, a variable
        per layer.

    Raises
    ------
    BoxError
        If the points are not finite numbers of shape (n, 3).
    OutOfVolumeError
        If all points lie outside the array, or outside every layer of a Dataset.
    LayerError
        If no variable of a Dataset has the dims z, y and x.
    ChunkReadError
        If a chunk cannot be read.

    Warns
    -----
    ImageryWarning
        If more than half of the points lie outside, but more of them would lie inside in another unit or order.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> ids = ix.sample_points(seg, [(4300, 2300, 110), (4700, 2600, 130), (0, 0, 0)], resolution=(8, 8, 40))
    >>> ids.dims, ids.dtype, int(ids[2])
    (('point',), dtype('uint64'), 0)
    """
    unit = check_resolution(resolution)
    if isinstance(points, xr.Dataset) and DIM in points.dims:
        annotation_type_of(points)
        check_in_nm(unit)
        points = annotation_centers(points)
    places = _points_array(points)
    layers: Mapping[Any, Any] = spatial_arrays(obj) if isinstance(obj, xr.Dataset) else {None: obj}
    volumes = {name: volume_of(array, tail=_tail_dims(array)) for name, array in layers.items()}
    inside = {name: _count_inside(places, unit, volume.grid) for name, volume in volumes.items()}
    if len(places) > 2 * max(inside.values(), default=0):
        name = max(inside, key=inside.__getitem__)
        grid, levels = volumes[name].grid, level_grids(layers[name])
        message = _outside_message(places, unit, grid, layers[name].name, inside[name])
        advice = _unit_advice(places, unit, grid, levels, inside[name])
        if not inside[name]:
            default = "; give points inside the array, in units of resolution=(x, y, z nm per unit)"
            raise OutOfVolumeError(message + (advice or default))
        if advice:
            warn(message + advice)
    values = {name: _sample_volume(volume, places, unit) for name, volume in volumes.items()}
    return xr.Dataset(values, attrs=obj.attrs) if isinstance(obj, xr.Dataset) else values[None]


def _tail_dims(array: Any) -> tuple[str, ...]:
    return ("rgba",) if "rgba" in getattr(array, "dims", ()) else ()


def _sample_volume(volume: Volume, places: Places, unit: Triple) -> xr.DataArray:
    """Return the values at points in nm per ``unit``, 0 where they lie outside."""
    indexes = _voxel_indexes(places, unit, volume.grid)
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(indexes, volume.grid.shape, strict=True)], axis=0)
    values = np.zeros((len(places), *volume.expr.tail), volume.expr.dtype)
    if inside.any():
        z, y, x = (i[inside].astype(np.int64) for i in indexes)
        values[inside] = _read_voxels(volume, z, y, x)
    coords: dict[str, Any] = {d: ("point", places[:, a] * unit[a], {"units": "nm"}) for a, d in enumerate("xyz")}
    tail = ("rgba",) if volume.expr.tail else ()
    colors = {"rgba": ("rgba", list(RGBA))} if tail else {}
    return xr.DataArray(values, {**coords, **colors}, ("point", *tail), volume.name, dict(volume.attrs))


def _points_array(points: Any) -> Places:
    """Return points as an array (n, 3)."""
    if isinstance(points, Mapping | xr.Dataset) or hasattr(points, "columns"):
        points = _table_positions(points)
    found = as_triples(points)
    if found is None:
        try:
            rows = np.asarray(points)
            found = rows.astype(np.float64) if rows.dtype.kind in "iufO" or not rows.size else None
        except (TypeError, ValueError, OverflowError):
            found = None
    if found is None:
        raise BoxError(
            f"points={format_value(points)} are not numbers; give an array of shape (n, 3), each row (x, y, z)"
        )
    found = found.reshape(0, 3) if found.size == 0 else found[np.newaxis] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] != 3:
        raise BoxError(f"points have the shape {found.shape}; give (n, 3), each row (x, y, z)")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise BoxError(
            f"{len(bad)} of {len(found)} points are not finite, the first is row {bad[0]}, {found[bad[0]].tolist()}; "
            "remove these rows, e.g. with table.dropna()"
        )
    return found * length_of(points)


def _scaled(values: npt.NDArray[Any], factor: float) -> npt.NDArray[Any]:
    return values if factor == 1 else values * factor


def _table_positions(table: Any) -> Any:
    """Return the positions of a table: its columns x, y and z, or its only column of triples."""
    absent = [c for c in "xyz" if c not in table]
    if not absent:
        points = [_scaled(np.asarray(table[c]), length_of(table[c])) for c in "xyz"]
        if len({p.shape for p in points}) > 1 or points[0].ndim != 1:
            raise BoxError(f"x, y and z of points have shapes {[p.shape for p in points]}: give lists of equal length")
        return np.stack(points, axis=1)
    names = list(getattr(table, "columns", table))
    found = position_columns(table, names)
    given = [name if name in names else [f"{name}_{axis}" for axis in "xyz"] for name in found]
    if len(given) == 1:
        return table[found[0]] if found[0] in names else np.stack([np.asarray(table[c]) for c in given[0]], axis=1)
    message = f"the table of points has the columns {list(map(str, names))}"
    if given:
        advice = f"give one of them, table[{given[0]!r}]" if found[0] in names else f"give table[{given[0]}].to_numpy()"
        raise BoxError(f"{message}, {len(given)} of which are positions: {advice}")
    raise BoxError(
        f"{message} and lacks {absent}: rename the columns of the positions to x, y and z, e.g. "
        "table.rename(columns={'pt_x': 'x'}), or give an array of shape (n, 3)"
    )


def _voxel_indexes(places: Places, unit: Sequence[float], grid: Grid) -> list[Places]:
    """Return the indexes (z, y, x) of the voxels that contain points, as floats with integer values."""
    found = []
    for axis, own in enumerate(grid.axes):
        along = 2 - axis
        found.append(np.floor(snap_places(places[:, along] * (unit[along] / own.resolution) - own.offset)))
    return found


def _read_voxels(volume: Volume, z: Indexes, y: Indexes, x: Indexes) -> Array:
    expr = volume.expr
    if isinstance(expr, ArrayLeaf):
        return expr.array[z, y, x]
    if not volume.dask_inputs:
        return read_selection(expr, [AxisGroup((0, 1, 2), (z, y, x))])
    # Blocks may share inputs, which are read once if all blocks are computed in one graph.
    splits = volume.below_splits or volume.splits
    blocks = to_dask(expr, volume.grid.shape, dask_inputs=volume.dask_inputs, chunks=splits, name="points")
    found: Array = blocks.vindex[z, y, x].compute()
    return found


def _outside_message(places: Places, unit: Triple, grid: Grid, name: Any, inside: int) -> str:
    first = tuple(tidy(v) for v in places[~_is_inside(places, unit, grid)][0])
    shown = "nm" if unit == (1.0, 1.0, 1.0) else f"voxels of {format_triple(unit)} nm"
    covered = f"the array covers {grid.bbox}"
    if not inside:
        return f"none of {len(places):,} points lies in {name_array(name)}: the first is {first} in {shown}; {covered}"
    return (
        f"{len(places) - inside:,} of {len(places):,} points lie outside of {name_array(name)} and have the value 0: "
        f"the first of them is {first} in {shown}; {covered}"
    )


def _unit_advice(places: Places, unit: Triple, grid: Grid, levels: Sequence[Grid], inside: int) -> str:
    """Return the unit or the order in which more points than `inside` lie in an array; "" if there is none."""
    best, advice = inside, ""
    for other in dict.fromkeys([(1.0, 1.0, 1.0), grid.resolution, *(level.resolution for level in levels)]):
        count = _count_inside(places, other, grid)
        if other != unit and count > best:
            meant = "nanometres" if other == (1.0, 1.0, 1.0) else f"voxels of {format_triple(other)} nm"
            given = tuple(tidy(u) for u in other)
            best, advice = count, f". The points are inside if they are in {meant}: give resolution={given}"
    if _count_inside(places[:, ::-1], unit, grid) > best:
        advice = ". Read as (z, y, x), the points are inside: give their numbers in the order (x, y, z)"
    return advice


def _count_inside(places: Places, unit: Sequence[float], grid: Grid) -> int:
    return int(np.count_nonzero(_is_inside(places, unit, grid)))


def _is_inside(places: Places, unit: Sequence[float], grid: Grid) -> npt.NDArray[np.bool_]:
    indexes = _voxel_indexes(places, unit, grid)
    inside: npt.NDArray[np.bool_] = np.all(
        [(i >= 0) & (i < n) for i, n in zip(indexes, grid.shape, strict=True)], axis=0
    )
    return inside
