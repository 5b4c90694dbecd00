"""Arrays of cutouts (cutout, z, y, x): recognize them, map functions over them, and compare their positions.

The coordinates z, y and x of cutouts are offsets from their centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT, grid_of
from imageryxr.core.bbox import DIMS, SNAP, Triple, snap_places
from imageryxr.core.grid import Grid, check_same_grid
from imageryxr.core.validate import name_array
from imageryxr.errors import GridMismatchError, LayerError
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume, is_dask, is_lazy
from imageryxr.graph.to_dask import check_query_planning

PHASE = "cutout_phase"
"""Attr of cutouts of a volume whose voxels do not lie at multiples of their size: the remainder (x, y, z) in voxels."""
BOUNDS = "cutout_bounds"
"""Attr of cutouts: the lower and the upper corner (x, y, z) in nm of the array that they were cut out of, 6 numbers."""

_CENTERS = tuple(f"center_{dim}" for dim in DIMS)
_Points = npt.NDArray[np.float64]
_AXES = ("cutout", "z", "y", "x", "tail")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def first_cutout(array: xr.DataArray) -> xr.DataArray:
    """Return the first cutout of an array; raise `LayerError` if the array has none."""
    if not array.sizes[CUTOUT]:
        raise LayerError(f"{name_array(array.name)} has no cutouts; select at least one")
    return array.isel({CUTOUT: 0}, drop=True)


def contains_cutouts(value: Any, *, singles: bool = False) -> bool:
    """Return whether an argument of a verb is, or contains, an array of cutouts (cutout, z, y, x).

    With ``singles``, a single cutout (z, y, x), which has lost the dim ``cutout``, also counts.
    """
    if isinstance(value, xr.DataArray):
        return {*DIMS} <= {*value.dims} and CUTOUT in (value.coords if singles else value.dims)
    if isinstance(value, xr.Dataset):  # a mapping, of which verbs of arrays accept no item by itself
        return False
    if isinstance(value, Mapping):
        return any(contains_cutouts(one, singles=singles) for one in value.values())
    if isinstance(value, list | tuple):
        return any(contains_cutouts(one, singles=singles) for one in value)
    return is_dataclass(value) and any(contains_cutouts(getattr(value, f.name), singles=singles) for f in fields(value))


def route_cutouts(
    apply: Callable[[Any, Any, Any], Any], *, singles: bool = False
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that passes a verb, its args and its kwargs to ``apply`` if they contain cutouts.

    With ``singles``, also if they contain one cutout without the dim ``cutout``.
    """

    def decorate(verb: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(verb)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if any(contains_cutouts(value, singles=singles) for value in (*args, *kwargs.values())):
                return cast("_R", apply(wrapper, args, kwargs))
            return verb(*args, **kwargs)

        return wrapper

    return decorate


def map_cutouts(
    function: Callable[..., Array],
    arrays: Sequence[xr.DataArray],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    rows: Array | None = None,
    name: str,
) -> da.Array | Array:
    """Return the results of a function of blocks that contain whole cutouts.

    Lazy, with one task per block, unless all arrays are in memory: then the function is called once.

    Parameters
    ----------
    function : callable
        Picklable function of a block of each array (cutout, z, y, x) and, if given, of ``rows``.
    arrays : sequence of arrays
        Arrays with equal lengths along their first axis, the cutouts.
    shape : tuple of int
        Shape of a result for one cutout: (z, y, x), or (z, y, x, channels).
    dtype : dtype
        Type of the result.
    rows : ndarray of shape (n, k), optional
        Values of each cutout.
    name : str
        Prefix of the array's name, which dask's dashboard displays.
    """
    if not any(is_dask(a) or is_lazy(a) for a in arrays):
        return function(*(a.values for a in arrays), *([] if rows is None else [rows]))
    check_query_planning()
    blocks = [as_blocks(a) for a in arrays]
    own = next(a for a in blocks if isinstance(a, da.Array)).chunks[0]
    parts: list[Any] = []
    for number, array in enumerate(blocks):
        whole = dict.fromkeys(range(1, array.ndim), -1)
        block = array.rechunk(whole) if isinstance(array, da.Array) else da.from_array(array, {0: own, **whole})
        parts += [block, ("cutout", *(f"{axis}{number}" for axis in _AXES[1 : array.ndim]))]
    if rows is not None:
        parts += [da.from_array(rows, (own, -1)), ("cutout", "column")]
    out = _AXES[: 1 + len(shape)]
    found: da.Array = da.blockwise(
        function,
        out,
        *parts,
        new_axes=dict(zip(out[1:], shape, strict=True)),
        dtype=dtype,
        meta=np.empty((0,) * len(out), dtype),
        concatenate=True,
        name=None,
        token=name,
    )
    return found


def as_blocks(array: xr.DataArray) -> Any:
    """Return the dask or numpy array of cutouts; arrays that are not loaded become dask arrays."""
    return array.chunk({CUTOUT: 8}).data if is_lazy(array) else array.data


# ---------------------------------------------------------------------------------------------------------
# positions


def centers_of(coords: Mapping[Any, Any]) -> _Points | None:
    """Return the centres (n, 3) of cutouts as (z, y, x) in nm, from their coordinates; None if there are none."""
    if not all(name in coords for name in _CENTERS):
        return None
    columns = [np.asarray(coords[name].values, np.float64).reshape(-1) for name in _CENTERS]
    return np.stack(columns, axis=1) if len({len(column) for column in columns}) == 1 else None


def central_voxels(centers: _Points, resolution: Triple) -> _Points:
    """Return the indexes (z, y, x) of the voxels that contain points in nm, counted from 0 nm."""
    found: _Points = np.floor(snap_places(centers / np.array(resolution[::-1], np.float64)))
    return found


def grid_in_volume(array: xr.DataArray) -> Grid | None:
    """Return the grid of an array, of a single cutout that of its voxels in the volume; None if it is unknown."""
    if CUTOUT not in array.coords:
        return grid_of(array)
    centers = centers_of(array.coords)
    return None if centers is None or len(centers) != 1 else next(grids_in_volume(array.expand_dims(CUTOUT)))


def grids_in_volume(array: xr.DataArray) -> Iterator[Grid]:
    """Iterate over the grids of cutouts, which have the dim ``cutout``, in their volume."""
    grid = grid_of(first_cutout(array))
    yield from (grid_at(grid.shape, grid.resolution, first) for first in first_voxels(array))


def grid_at(shape: tuple[int, ...], resolution: Triple, first: _Points) -> Grid:
    """Return the grid of voxels of which the first has the index (z, y, x) ``first``, counted from 0 nm."""
    (nz, ny, nx), (z, y, x) = shape[:3], first.tolist()
    return Grid((nz, ny, nx), resolution, (x, y, z))


def first_voxels(array: xr.DataArray) -> _Points:
    """Return the index (z, y, x) of the first voxel of each cutout of an array, counted from 0 nm."""
    centers = centers_of(array.coords)
    if centers is None:
        raise LayerError(
            f"{name_array(array.name, 'the cutouts')} lack the coordinates 'center_x', 'center_y' and 'center_z', "
            "which ix.cutouts sets"
        )
    grid = grid_of(first_cutout(array))
    # The middle of the voxel that contains the centre has the offset 0.
    starts = [round(float(axis.offset) + 0.5) for axis in grid.axes]
    voxels: _Points = central_voxels(centers, grid.resolution) + np.array(starts) + phase_of(array)[::-1]
    return voxels


def phase_of(array: xr.DataArray) -> _Points:
    """Return the remainder (x, y, z) in voxels that the attrs of cutouts state, by default 0; see `PHASE`."""
    return np.array(array.attrs.get(PHASE, (0, 0, 0)), np.float64)


@dataclass(frozen=True)
class Places:
    """The positions of the cutouts of an array."""

    centers: _Points
    resolution: Triple
    phase: tuple[float, ...] | None
    """The remainder (x, y, z) in voxels, see `PHASE`; None if it is unknown, because the array has lost its attrs."""

    @classmethod
    def of(cls, array: xr.DataArray, *, phases: bool = True) -> Places | None:
        """Return the positions of cutouts (cutout, z, y, x), with `phases` if requested; None without centres."""
        centers = centers_of(array.coords)
        if centers is None:
            return None
        phase = _phase_of(array.attrs) if phases else None
        return cls(centers, grid_of(first_cutout(array)).resolution, phase)

    def differ_from(self, other: Places) -> npt.NDArray[np.intp]:
        """Return the numbers of the cutouts whose voxels lie elsewhere than those of another array."""
        is_same = self.centers == other.centers
        if self.resolution == other.resolution:
            voxels = [central_voxels(one.centers, one.resolution) for one in (self, other)]
            is_same |= voxels[0] == voxels[1]
            if self.phase is not None and other.phase is not None:
                is_same &= np.isclose(self.phase, other.phase, atol=float(SNAP))[::-1]
        return np.flatnonzero(~is_same.all(axis=1))


def _phase_of(attrs: Mapping[Any, Any]) -> tuple[float, ...] | None:
    return tuple(map(float, attrs.get(PHASE, (0, 0, 0)))) if PHASE in attrs or "resolution" in attrs else None


def check_same_places(one: Places | None, other: Places | None, what: str) -> None:
    """Raise `GridMismatchError` if two arrays of equally many cutouts were cut out at different positions."""
    if one is None or other is None:
        return
    rows = one.differ_from(other)
    if not len(rows):
        return
    points = [f"({', '.join(f'{v:,.10g}' for v in place.centers[rows[0], ::-1])})" for place in (one, other)]
    advice = "cut both out of one Dataset, ix.cutouts(ix.align(image, segmentation), …), and select the same cutouts"
    if points[0] == points[1]:
        raise GridMismatchError(f"{what} were cut out of volumes whose voxels lie a part of a voxel apart; {advice}")
    raise GridMismatchError(
        f"{what} were cut out around different centres: cutout {rows[0]} around {points[0]} nm and {points[1]} nm; "
        f"{advice} of both"
    )


def check_same_cutouts(one: xr.DataArray, other: xr.DataArray, what: str, *, phases: bool = True) -> None:
    """Raise `GridMismatchError` unless two arrays have as many cutouts, at the same positions.

    ``what`` names the arrays in the message; with ``phases``, an offset of a part of a voxel is also an error.
    """
    counts = [array.sizes[CUTOUT] for array in (one, other)]
    if counts[0] != counts[1]:
        raise GridMismatchError(f"{what} have {counts[0]:,} and {counts[1]:,} cutouts; select the same cutouts of both")
    check_same_places(Places.of(one, phases=phases), Places.of(other, phases=phases), what)


def check_same_positions(one: Volume, other: Volume, what: str) -> None:
    """Raise `GridMismatchError` unless two volumes lie on one grid and, if they are cutouts, at one position."""
    check_same_grid(one.grid, other.grid, what)
    check_same_centers(one, other, what)


def check_same_centers(one: Volume, other: Volume, what: str) -> None:
    """Raise `GridMismatchError` if two volumes are single cutouts at different positions."""
    check_same_places(_places_of_volume(one), _places_of_volume(other), what)


def _places_of_volume(volume: Volume) -> Places | None:
    """Return the position of a single cutout; None for other arrays."""
    centers = centers_of({extra.name: extra.variable for extra in volume.extras if not extra.variable.dims})
    return None if centers is None else Places(centers, volume.grid.resolution, _phase_of(volume.attrs))
