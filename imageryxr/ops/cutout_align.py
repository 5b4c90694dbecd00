"""Align an image and a segmentation that were cut out of their volumes around the same points."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS, Index3, Triple
from imageryxr.core.grid import Grid
from imageryxr.errors import LayerError, OptionError
from imageryxr.graph.cutout_arrays import (
    PHASE,
    centers_of,
    central_voxels,
    check_same_cutouts,
    first_cutout,
    map_cutouts,
)
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import attrs_on_grid, is_dask, is_lazy

CUTOUT = "cutout"
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
    to : {"finest", "coarsest", "image", "segmentation"}
        The layer whose voxels the result has, along each axis.
    regrid : callable
        The verb that resamples a cutout in memory.
    """
    if to not in _TARGETS:
        raise OptionError(f"to={to!r} cannot be used for cutouts; give one of {', '.join(map(repr, _TARGETS))}")
    layers = {"image": image.transpose(CUTOUT, *DIMS), "segmentation": segmentation.transpose(CUTOUT, *DIMS)}
    places = {name: _Placement.of(array) for name, array in layers.items()}
    check_same_cutouts(layers["image"], layers["segmentation"], "the image and the segmentation", phases=False)
    picked = [_pick_layer(places, axis, to) for axis in range(3)]
    grid = Grid.from_axes([places[name].grid.axes[axis] for axis, name in enumerate(picked)])
    firsts = np.stack([places[name].firsts[:, axis] for axis, name in enumerate(picked)], axis=1)
    phase = [float(_phase(layers[name])[2 - axis]) for axis, name in enumerate(picked)][::-1]
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
            rows = np.concatenate([own.firsts, firsts], axis=1)
            if is_dask(array) or is_lazy(array):
                blocks = array.chunk({CUTOUT: 8}).data if is_lazy(array) else array.data
                data = map_cutouts(run, [blocks], grid.shape, array.dtype, rows=rows, name=name)
            else:
                data = run(array.values, rows)
        attrs = {n: v for n, v in attrs_on_grid(array.attrs, grid).items() if n != PHASE}
        found[name] = xr.Variable((CUTOUT, *DIMS), data, attrs | ({PHASE: phase} if any(phase) else {}))
    return xr.Dataset(found, coords)


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
        return cls(grid, central_voxels(centers, grid.resolution) + np.array(starts) + _phase(array)[::-1])


def _phase(array: xr.DataArray) -> npt.NDArray[np.float64]:
    return np.array(array.attrs.get(PHASE, (0, 0, 0)), np.float64)


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
        """Return the resampled cutouts; ``rows`` has the first voxels before and after, each (z, y, x)."""
        out = np.empty((len(block), *self.shape), block.dtype)
        for i, (values, row) in enumerate(zip(block, rows, strict=True)):
            z, y, x, new_z, new_y, new_x = (float(v) for v in row)
            own = Grid(values.shape, self.resolution, (x, y, z))
            array = xr.DataArray(values, own.coords(), DIMS, None, self.attrs)
            out[i] = self.regrid(array, Grid(self.shape, self.target, (new_x, new_y, new_z)), method=self.method).values
        return out


def accepts_placed_cutouts(verb: Callable[P, xr.DataArray]) -> Callable[P, xr.DataArray]:
    """Return a verb of a picture that also draws cutouts of pictures, each at its position in the volume."""

    @functools.wraps(verb)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> xr.DataArray:
        bound = inspect.signature(verb).bind(*args, **kwargs)
        picture, *_ = bound.arguments.values()
        options = dict(list(bound.arguments.items())[1:])
        if isinstance(picture, xr.DataArray) and CUTOUT in picture.coords and {*DIMS} <= {*picture.dims}:
            if CUTOUT not in picture.dims:
                return _draw_placed(picture.expand_dims(CUTOUT), functools.partial(wrapper, **options)).isel(
                    {CUTOUT: 0}
                )
        else:
            return verb(*args, **kwargs)
        return _draw_placed(picture, functools.partial(wrapper, **options))

    return wrapper


def _draw_placed(picture: xr.DataArray, draw: Callable[[xr.DataArray], xr.DataArray]) -> xr.DataArray:
    tail = tuple(str(dim) for dim in picture.dims if dim not in (CUTOUT, *DIMS))
    array = picture.transpose(CUTOUT, *DIMS, *tail)
    place = _Placement.of(array)
    run = _PlacedDrawing(draw, dict(array.attrs), place.grid.resolution, tail)
    template = run.draw_one(np.zeros(array.shape[1:], array.dtype), place.firsts[0])
    if is_dask(array) or is_lazy(array):
        blocks = array.chunk({CUTOUT: 8}).data if is_lazy(array) else array.data
        data: Any = map_cutouts(run, [blocks], array.shape[1:], array.dtype, rows=place.firsts, name="annotate")
    else:
        data = run(array.values, place.firsts)
    return array.copy(data=data).assign_attrs(template.attrs).rename(template.name)


@dataclass(frozen=True)
class _PlacedDrawing:
    """Function that draws on the pictures of a block, each at its own position."""

    draw: Callable[[xr.DataArray], xr.DataArray]
    attrs: dict[str, Any]
    resolution: Triple
    tail: tuple[str, ...]

    def __call__(self, block: Array, rows: npt.NDArray[np.float64]) -> Array:
        """Return the drawn pictures; ``rows`` has the first voxel (z, y, x) of each."""
        return np.stack([self.draw_one(values, row).values for values, row in zip(block, rows, strict=True)])

    def draw_one(self, values: Array, first: npt.NDArray[np.float64]) -> xr.DataArray:
        """Return one drawn picture."""
        z, y, x = (float(v) for v in first)
        grid = Grid((values.shape[0], values.shape[1], values.shape[2]), self.resolution, (x, y, z))
        array = xr.DataArray(values, grid.coords(), (*DIMS, *self.tail), None, self.attrs)
        return self.draw(array.assign_coords(rgba=list("rgba")) if "rgba" in self.tail else array)
