"""Align an image and a segmentation that were cut out of their volumes around the same points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT, grid_of
from imageryxr.core.bbox import DIMS, Triple, check_resolution
from imageryxr.core.grid import Axis, Grid
from imageryxr.errors import BoxError, OptionError, format_value
from imageryxr.graph.cutout_arrays import (
    BOUNDS,
    PHASE,
    centers_of,
    central_voxels,
    check_same_cutouts,
    first_cutout,
    first_voxels,
    grid_at,
    map_cutouts,
    phase_of,
)
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import attrs_on_grid

_TARGETS = ("finest", "coarsest", "image", "segmentation")


def align_cutouts(
    image: xr.DataArray, segmentation: xr.DataArray, to: Any, regrid: Callable[..., xr.DataArray]
) -> xr.Dataset:
    """Return cutouts of two layers on one grid, by the position of each voxel in its volume; reads nothing.

    Parameters
    ----------
    image, segmentation : DataArray
        Cutouts (cutout, z, y, x) around the same centres.
    to : {"finest", "coarsest", "image", "segmentation"}, or three numbers
        The layer whose voxels the result has, along each axis; or a resolution (x, y, z) in nm.
    regrid : callable
        The verb that resamples a cutout in memory.
    """
    resolution = None if isinstance(to, str) and to in _TARGETS else _check_target(to)
    layers = {"image": image.transpose(CUTOUT, *DIMS), "segmentation": segmentation.transpose(CUTOUT, *DIMS)}
    own_firsts = {name: first_voxels(array) for name, array in layers.items()}
    grids = {name: grid_of(first_cutout(array)) for name, array in layers.items()}
    check_same_cutouts(layers["image"], layers["segmentation"], "the image and the segmentation", phases=False)
    picked = [_pick_layer(grids, axis, "finest" if resolution else to) for axis in range(3)]
    grid = Grid.from_axes([grids[name].axes[axis] for axis, name in enumerate(picked)])
    phase = [float(phase_of(layers[name])[2 - axis]) for axis, name in enumerate(picked)][::-1]
    if resolution is None or resolution == grid.resolution:
        firsts = np.stack([own_firsts[name][:, axis] for axis, name in enumerate(picked)], axis=1)
    else:
        grid, picked, phase = _resampled_axes(grid, resolution), [], []
        firsts = central_voxels(np.asarray(centers_of(image.coords)), resolution) - np.array(grid.shape) // 2
    coords: dict[Any, xr.Variable] = {n: c.variable for layer in layers.values() for n, c in layer.coords.items()}
    coords |= grid.coords()
    found = {}
    for name, array in layers.items():
        if set(picked) == {name}:
            data: Any = array.variable._data
        else:
            method = "linear" if name == "image" and array.dtype.kind != "b" else "nearest"
            own: dict[str, Any] = {"attrs": dict(array.attrs), "resolution": grids[name].resolution}
            run = partial(_resample_block, regrid=regrid, target=grid, method=method, **own)
            ranges = ranges_with_data(array)
            if ranges is None:
                ranges = np.tile([0, 0, 0, *grids[name].shape], (len(firsts), 1))
            rows = np.concatenate([own_firsts[name], firsts, ranges], axis=1)
            data = map_cutouts(run, [array], grid.shape, array.dtype, rows=rows, name=name)
        attrs = {n: v for n, v in attrs_on_grid(array.attrs, grid).items() if n != PHASE}
        found[name] = xr.Variable((CUTOUT, *DIMS), data, attrs | ({PHASE: phase} if any(phase) else {}))
    return xr.Dataset(found, coords)


def _check_target(to: Any) -> Triple:
    """Return a target resolution, or raise `OptionError`."""
    try:
        return check_resolution(to, "to")
    except BoxError:
        choices = ", ".join(map(repr, _TARGETS))
        raise OptionError(
            f"to={format_value(to)} cannot be used for cutouts; give {choices}, or a resolution (x, y, z) in nm, such "
            "as (8, 8, 40)"
        ) from None


def _resampled_axes(grid: Grid, resolution: Triple) -> Grid:
    """Return the offsets of cutouts of the same extent with other voxels."""
    axes = []
    for axis, new in zip(grid.axes, resolution[::-1], strict=True):
        count = max(1, round(axis.size * axis.resolution / new))
        axes.append(Axis(count, new, -(count // 2) - 0.5))
    return Grid.from_axes(axes)


def _pick_layer(grids: dict[str, Grid], axis: int, to: str) -> str:
    if to in grids:
        return to
    pick = min if to == "finest" else max
    return pick(grids, key=lambda name: grids[name].axes[axis].resolution)


def ranges_with_data(array: xr.DataArray) -> npt.NDArray[np.int64] | None:
    """Return the part of each cutout that its source covers: first voxel and end (z, y, x); None if it is unknown.

    Voxels outside are fill values.
    """
    if BOUNDS not in array.attrs or centers_of(array.coords) is None:
        return None
    grid, firsts = grid_of(first_cutout(array)), first_voxels(array)
    ends = np.reshape(array.attrs[BOUNDS], (2, 3)) / np.array(grid.resolution)
    # A voxel is inside if its centre is, as in a crop.
    found = [np.ceil(np.round(end[::-1] - firsts - 0.5, 6)).clip(0, grid.shape) for end in ends]
    return np.concatenate(found, axis=1).astype(np.int64)


def _resample_block(
    block: Array,
    rows: npt.NDArray[np.float64],
    *,
    regrid: Callable[..., xr.DataArray],
    attrs: dict[str, Any],
    resolution: Triple,
    target: Grid,
    method: str,
) -> Array:
    """Return the cutouts of a block, resampled to other voxels, each at its own position.

    A row has, each as (z, y, x), the first voxel of the cutout before and after resampling, and the first voxel and the
    end of the part with data.
    """
    out = np.zeros((len(block), *target.shape), block.dtype)
    for i, (values, row) in enumerate(zip(block, rows, strict=True)):
        before, after, start, stop = row.reshape(4, 3)
        part = values[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))]
        if part.size:
            coords = grid_at(part.shape, resolution, before + start).coords()
            array = xr.DataArray(part, coords, DIMS, None, attrs)
            out[i] = regrid(array, grid_at(target.shape, target.resolution, after), method=method).values
    return out


def map_placed_cutouts(
    array: xr.DataArray, draw: Callable[[Array, Grid], Array], tail: tuple[str, ...], name: str
) -> xr.DataArray:
    """Return the results of a function of the values of each cutout and its grid in the volume; lazy.

    Parameters
    ----------
    array : DataArray
        Cutouts.
    draw : callable
        Picklable function of the values (z, y, x, tail) of one cutout and their grid; returns values of this shape.
    tail : tuple of str
        Further dims of the array.
    name : str
        Prefix of the array's name, which dask's dashboard displays.
    """
    array = array.transpose(CUTOUT, *DIMS, *tail)
    run = partial(_draw_block, draw=draw, resolution=grid_of(first_cutout(array)).resolution)
    return array.copy(data=map_cutouts(run, [array], array.shape[1:], array.dtype, rows=first_voxels(array), name=name))


def _draw_block(
    block: Array, rows: npt.NDArray[np.float64], *, draw: Callable[[Array, Grid], Array], resolution: Triple
) -> Array:
    """Return the drawn pictures of a block; ``rows`` has the first voxel (z, y, x) of each."""
    out = np.empty(block.shape, block.dtype)
    for i, (values, first) in enumerate(zip(block, rows, strict=True)):
        out[i] = draw(values, grid_at(values.shape, resolution, first))
    return out
