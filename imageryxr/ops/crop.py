"""Crop arrays to boxes in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from imageryxr.core.array_labels import ArrayOrDataset, grid_of
from imageryxr.core.bbox import DIMS, BBox, IndexBox
from imageryxr.core.grid import Grid, check_extent, out_of_volume_error
from imageryxr.core.validate import name_array
from imageryxr.errors import LayerError, OptionError, param
from imageryxr.graph.labelled import attrs_on_grid, crop_volume, label_result, volume_of
from imageryxr.ops.multiscale import level_grids


def crop(
    obj: ArrayOrDataset,
    bbox: BBox | None = None,
    *,
    center: Sequence[float] | None = None,
    size: Sequence[float] | None = None,
    resolution: Sequence[float] | None = None,
) -> ArrayOrDataset:
    """Crop an array to a box: the voxels whose centre lies in ``[lo, hi)``.

    Lazy: reads nothing. A lazily indexed array becomes a dask array whose blocks follow the storage chunks; a numpy
    array remains one. Later operations on the result can read the data beyond its border, so that an outline of a crop
    equals the crop of an outline.

    Parameters
    ----------
    obj : DataArray or Dataset
        Array with dims z, y, x and coordinates in nm. Other dims, such as ``rgba``, are not cropped.
    bbox : BBox, optional
        The box (x, y, z). Values outside the array are 0. A box thinner than a voxel selects the voxel that contains
        its centre.
    center, size, resolution : sequences of numbers, optional
        Instead of ``bbox``: a box of ``size`` voxels of ``obj`` around a point, as in `em.imagery.around`.
        ``resolution`` is nm per unit of ``center``; default: the voxel size of ``obj``.

    Returns
    -------
    DataArray or Dataset
        The part of ``obj`` within the box; a box with the extent of n voxels has n voxels. The coordinates and
        `grid_of` give the start of the box; ``attrs["voxel_offset"]`` remains that of the whole level, so that
        neighbouring crops can be combined.

    Raises
    ------
    OptionError
        If neither a box nor a centre and size are given, or both.
    OutOfVolumeError
        If the box lies wholly outside; the message suggests another unit if the box lies inside with that unit.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> box = ix.BBox.around((4300, 2200, 120), (64, 48), resolution=(8, 8, 40))
    >>> ix.crop(em, box).shape
    (1, 48, 64)
    """
    if not isinstance(obj, xr.DataArray | xr.Dataset):
        raise LayerError(f"crop takes a DataArray or a Dataset, not a {type(obj).__name__}; open a volume first")
    box = _box_of(obj, bbox, center, size, resolution)
    if isinstance(obj, xr.Dataset):
        parts = {name: crop_array(v, box) if "x" in v.coords else v for name, v in obj.data_vars.items()}
        return xr.Dataset(parts, attrs=obj.attrs)
    return crop_array(obj, box)


def _box_of(obj: xr.DataArray | xr.Dataset, bbox: BBox | None, center: Any, size: Any, resolution: Any) -> BBox:
    given = [n for n, v in (("center", center), ("size", size), ("resolution", resolution)) if v is not None]
    if bbox is not None and not given:
        return bbox
    if bbox is None and center is not None and size is not None:
        return box_around(obj, center, size, resolution=resolution)
    raise OptionError(
        f"crop was given {' and '.join([*(['bbox'] if bbox is not None else []), *given]) or 'no box'}; ",
        "give either a BBox, or ",
        param("center", text="(x, y, z)"),
        " and ",
        param("size", text="(width, height)"),
        " in voxels of the array",
    )


def box_around(
    obj: xr.DataArray | xr.Dataset,
    center: Sequence[float],
    size: Sequence[float],
    *,
    resolution: Sequence[float] | None = None,
    size_resolution: Sequence[float] | None = None,
) -> BBox:
    """Return a box of a given size around a point, in the voxels of an array.

    Reads nothing.

    Parameters
    ----------
    obj : DataArray or Dataset
        Array with dims z, y, x and coordinates in a length unit.
    center : sequence of 3 numbers
        The point (x, y, z), in units of ``resolution``.
    size : sequence of 2 or 3 numbers
        Extent (x, y, z) in units of ``size_resolution``; 2 numbers (x, y) mean one plane.
    resolution : (x, y, z), optional
        Nanometres per unit of ``center``. Default: the voxel size of ``obj``, so that ``center`` is in voxels of its
        level, as in Neuroglancer.
    size_resolution : (x, y, z), optional
        Nanometres per unit of ``size``. Default: the voxel size of ``obj``.

    Returns
    -------
    BBox
        See `BBox.around`.

    Raises
    ------
    BoxError
        If a number is not finite or a size is not positive.
    GridError
        If the coordinates do not form a grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> em.imagery.around((4300, 2200, 120), (64, 48))
    BBox(lo=(4268, 2176, 120), hi=(4332, 2224, 121), resolution=(8.0, 8.0, 40.0))
    """
    own = grid_of(obj).resolution
    unit = own if resolution is None else resolution
    return BBox.around(
        center, size, resolution=unit, size_resolution=own if size_resolution is None else size_resolution
    )


def crop_array(
    array: xr.DataArray,
    bbox: BBox,
    *,
    outside_ok: bool = False,
    what: str = "",
    others: Sequence[Grid] = (),
    chunks: Any = None,
) -> xr.DataArray:
    """Return the part of an array within a box in space, filled with 0 where the box extends beyond the array.

    Raises `OutOfVolumeError` if the box lies wholly outside the array, unless ``outside_ok``; the error names the array
    as ``what``, and may suggest the unit of ``others``, by default of the levels of the volume.
    """
    grid, what = grid_of(array), what or name_array(array.name)
    box = grid.select(bbox)
    if not outside_ok and not box.clip(grid.box).voxels:
        raise out_of_volume_error(bbox, grid, what, others or level_grids(array))
    check_extent(box, bbox, grid, what)
    box = _keep_dropped_planes(box, array)
    tail = "rgba" if "rgba" in array.dims else None
    if set(array.dims) - {*DIMS, "rgba"}:
        return _crop_with_isel(array, grid, box)
    part = crop_volume(volume_of(array, tail=(tail,) if tail else ()), box)
    name = str(array.name) if array.name is not None else "crop"
    return label_result(part.expr, part.grid, part, attrs=part.attrs, name=name, tail=tail, chunks=chunks)


def _keep_dropped_planes(box: IndexBox, array: xr.DataArray) -> IndexBox:
    # The caller has selected one plane along a dropped dim, which is kept whatever the size of the box.
    ends = [(a, b) if d in array.dims else (0, 1) for d, a, b in zip(DIMS, box.start, box.stop, strict=True)]
    (z0, z1), (y0, y1), (x0, x1) = ends
    return IndexBox((z0, y0, x0), (z1, y1, x1))


def _crop_with_isel(array: xr.DataArray, grid: Grid, box: IndexBox) -> xr.DataArray:
    # Arrays with other dims (such as one mask per segment) have no expression, so xarray crops and pads them.
    inside, target = box.clip(grid.box), grid.crop(box)
    part = array.isel({d: s for d, s in zip(DIMS, inside.slices(), strict=True) if d in array.dims})
    missing = zip(DIMS, box.start, inside.start, inside.stop, box.stop, strict=True)
    around = {d: (i - a, b - j) for d, a, i, j, b in missing if d in array.dims}
    if any(map(any, around.values())):
        part = part.pad(around, mode="constant", constant_values=array.dtype.type(0))
        part = part.assign_coords({d: c for d, c in target.coords().items() if d in array.dims})
    return part.assign_attrs(attrs_on_grid(array.attrs, target))
