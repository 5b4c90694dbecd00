"""Align an image and a segmentation that were cut out of their volumes around the same points."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS, Index3, Triple, check_resolution
from imageryxr.core.grid import Axis, Grid
from imageryxr.errors import BoxError, LayerError, OptionError, format_value
from imageryxr.graph.cutout_arrays import (
    BOUNDS,
    CUTOUT,
    PHASE,
    centers_of,
    central_voxels,
    check_same_cutouts,
    first_cutout,
    map_cutouts,
)
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import attrs_on_grid

P = ParamSpec("P")
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
    places = {name: _Placement.of(array) for name, array in layers.items()}
    check_same_cutouts(layers["image"], layers["segmentation"], "the image and the segmentation", phases=False)
    picked = [_pick_layer(places, axis, "finest" if resolution else to) for axis in range(3)]
    grid = Grid.from_axes([places[name].grid.axes[axis] for axis, name in enumerate(picked)])
    phase = [float(_phase(layers[name])[2 - axis]) for axis, name in enumerate(picked)][::-1]
    if resolution is None or resolution == grid.resolution:
        firsts = np.stack([places[name].firsts[:, axis] for axis, name in enumerate(picked)], axis=1)
    else:
        grid, picked, phase = _resampled_axes(grid, resolution), [], []
        firsts = central_voxels(places["image"].centers, resolution) - np.array(grid.shape) // 2
    coords: dict[Any, xr.Variable] = {n: c.variable for layer in layers.values() for n, c in layer.coords.items()}
    coords |= grid.coords()
    found = {}
    for name, array in layers.items():
        own = places[name]
        if set(picked) == {name}:
            data: Any = array.variable._data
        else:
            method = "linear" if name == "image" and array.dtype.kind != "b" else "nearest"
            run = _Resampling(regrid, dict(array.attrs), own.grid.resolution, grid.shape, grid.resolution, method)
            ranges = ranges_with_data(array)
            if ranges is None:
                ranges = np.tile([0, 0, 0, *own.grid.shape], (len(firsts), 1))
            rows = np.concatenate([own.firsts, firsts, ranges], axis=1)
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


def _pick_layer(places: dict[str, _Placement], axis: int, to: str) -> str:
    if to in places:
        return to
    pick = min if to == "finest" else max
    return pick(places, key=lambda name: places[name].grid.axes[axis].resolution)


@dataclass(frozen=True)
class _Placement:
    """The positions of the cutouts of a layer in its volume."""

    grid: Grid
    """The grid of the offsets from the centres."""
    firsts: npt.NDArray[np.float64]
    """Index (z, y, x) of the first voxel of each cutout, counted from 0 nm."""
    centers: npt.NDArray[np.float64]
    """The centres (z, y, x) in nm."""

    @classmethod
    def of(cls, array: xr.DataArray) -> _Placement:
        """Return the positions of an array of cutouts."""
        centers = centers_of(array.coords)
        if centers is None:
            raise LayerError(
                f"the cutouts {array.name!r} lack the coordinates 'center_x', 'center_y' and 'center_z', which "
                "ix.cutouts sets"
            )
        grid = grid_of(first_cutout(array))
        # The middle of the voxel that contains the centre has the offset 0.
        starts = [round(float(own.offset) + 0.5) for own in grid.axes]
        firsts = central_voxels(centers, grid.resolution) + np.array(starts) + _phase(array)[::-1]
        return cls(grid, firsts, centers)


def _phase(array: xr.DataArray) -> npt.NDArray[np.float64]:
    return np.array(array.attrs.get(PHASE, (0, 0, 0)), np.float64)


def ranges_with_data(array: xr.DataArray) -> npt.NDArray[np.int64] | None:
    """Return the part of each cutout that its source covers: first voxel and end (z, y, x); None if it is unknown.

    Voxels outside are fill values.
    """
    if BOUNDS not in array.attrs or centers_of(array.coords) is None:
        return None
    array = array.transpose(CUTOUT, *DIMS, ...)
    place = _Placement.of(array)
    spacing = np.array(place.grid.resolution)
    ends = np.reshape(array.attrs[BOUNDS], (2, 3)) / spacing
    # A voxel is inside if its centre is, as in a crop.
    found = [np.ceil(np.round(end[::-1] - place.firsts - 0.5, 6)).clip(0, place.grid.shape) for end in ends]
    return np.concatenate(found, axis=1).astype(np.int64)


def first_voxels(array: xr.DataArray) -> npt.NDArray[np.float64]:
    """Return the index (z, y, x) of the first voxel of each cutout (cutout, z, y, x), counted from 0 nm."""
    return _Placement.of(array).firsts


@dataclass(frozen=True)
class _Resampling:
    """Function that resamples the cutouts of a block, each at its own position."""

    regrid: Callable[..., xr.DataArray]
    attrs: dict[str, Any]
    resolution: Triple
    shape: Index3
    target: Triple
    method: str

    def __call__(self, block: Array, rows: npt.NDArray[np.float64]) -> Array:
        """Return the resampled cutouts.

        ``rows`` has the first voxels before and after, and the first voxel and the end of the part with data, each
        (z, y, x).
        """
        out = np.zeros((len(block), *self.shape), block.dtype)
        for i, (values, row) in enumerate(zip(block, rows, strict=True)):
            before, after, start, stop = row.reshape(4, 3)
            part = values[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))]
            if not part.size:
                continue
            own = _grid_at(part.shape, self.resolution, before + start)
            array = xr.DataArray(part, own.coords(), DIMS, None, self.attrs)
            out[i] = self.regrid(array, _grid_at(self.shape, self.target, after), method=self.method).values
        return out


def accepts_single_cutouts(verb: Callable[P, xr.DataArray]) -> Callable[P, xr.DataArray]:
    """Return a verb of pictures of cutouts that also draws one of them, without the dim ``cutout``."""

    @functools.wraps(verb)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> xr.DataArray:
        bound = inspect.signature(verb).bind(*args, **kwargs)
        name, picture = next(iter(bound.arguments.items()))
        is_cutout = isinstance(picture, xr.DataArray) and CUTOUT in picture.coords and {*DIMS} <= {*picture.dims}
        if not is_cutout or CUTOUT in picture.dims:
            return verb(*args, **kwargs)
        bound.arguments[name] = picture.expand_dims(CUTOUT)
        return verb(*bound.args, **bound.kwargs).isel({CUTOUT: 0})

    return wrapper


def map_placed_cutouts(
    array: xr.DataArray, draw: Callable[[Array, Grid], Array], tail: tuple[str, ...], name: str
) -> xr.DataArray:
    """Return cutouts that a function of the values and the grid in the volume has changed; lazy.

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
    place = _Placement.of(array)
    run = _PlacedDrawing(draw, place.grid.resolution)
    return array.copy(data=map_cutouts(run, [array], array.shape[1:], array.dtype, rows=place.firsts, name=name))


def grids_in_volume(array: xr.DataArray) -> Iterator[Grid]:
    """Iterate over the grids of cutouts (cutout, z, y, x) in their volume."""
    place = _Placement.of(array.transpose(CUTOUT, *DIMS, ...))
    yield from (_grid_at(place.grid.shape, place.grid.resolution, first) for first in place.firsts)


def _grid_at(shape: Index3, resolution: Triple, first: npt.NDArray[np.float64]) -> Grid:
    z, y, x = (float(v) for v in first)
    return Grid(shape, resolution, (x, y, z))


@dataclass(frozen=True)
class _PlacedDrawing:
    """Function that draws on the pictures of a block, each at its own position."""

    draw: Callable[[Array, Grid], Array]
    resolution: Triple

    def __call__(self, block: Array, rows: npt.NDArray[np.float64]) -> Array:
        """Return the drawn pictures; ``rows`` has the first voxel (z, y, x) of each."""
        out = np.empty(block.shape, block.dtype)
        for i, (values, first) in enumerate(zip(block, rows, strict=True)):
            z, y, x = values.shape[:3]
            out[i] = self.draw(values, _grid_at((z, y, x), self.resolution, first))
        return out
