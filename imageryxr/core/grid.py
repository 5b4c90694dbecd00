"""Grids of voxels, and the grid that the coordinates of an array describe.

Grids are defined by integer voxel indexes. Voxel ``i`` of an axis with offset ``o`` and resolution ``r`` (nm) covers
``[(o + i)·r, (o + i + 1)·r)``. Its coordinate is its centre, ``(o + i + 0.5)·r``, and only `Axis.centers` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import (
    DIMS,
    SNAP,
    BBox,
    Index3,
    IndexBox,
    Triple,
    check_resolution,
    format_triple,
    snap,
    tidy,
    to_fraction,
)
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.core.validate import to_number, to_numbers
from imageryxr.errors import BoxError, GridError, UnitError, Wording, param


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid: ``size`` voxels of ``resolution`` nm, the first at index ``offset`` from 0 nm."""

    size: int
    resolution: float
    offset: int | float

    def centers(self) -> npt.NDArray[np.float64]:
        """Return the voxel centres in nm, float64; coordinates are computed only here."""
        return np.asarray((self.offset + np.arange(self.size) + 0.5) * self.resolution, dtype=np.float64)

    def edges(self) -> tuple[Fraction, Fraction]:
        """Return the exact outer edges (lo, hi) in nm."""
        r, o = to_fraction(self.resolution), to_fraction(self.offset)
        return o * r, (o + self.size) * r

    def select(self, lo: Fraction, hi: Fraction) -> tuple[int, int]:
        """Return the half-open range of voxels whose centre lies in ``[lo, hi)`` nm, not clipped to the axis.

        A range thinner than a voxel selects the voxel that contains its middle. The number of voxels is computed from
        the length of the range, so that a range of n voxel sizes always selects n voxels.
        """
        r, o = to_fraction(self.resolution), to_fraction(self.offset)
        length = snap((hi - lo) / r)
        if length < 1:
            middle = math.floor(snap((lo + hi) / 2 / r - o))
            return middle, middle + 1
        half = Fraction(1, 2)
        start = math.ceil(snap(lo / r - o - half))
        if length.denominator == 1:
            return start, start + int(length)
        return start, max(start + 1, math.ceil(snap(hi / r - o - half)))

    def crop(self, start: int, stop: int) -> Axis:
        """Return the axis of voxels ``start`` to ``stop`` of this one."""
        return Axis(stop - start, self.resolution, tidy(self.offset + start))

    def shift_to(self, other: Axis) -> int | None:
        """Return the index in ``other`` of this axis's first voxel, or None if the voxels do not coincide."""
        if to_fraction(self.resolution) != to_fraction(other.resolution):
            return None
        if isinstance(self.offset, int) and isinstance(other.offset, int):
            return self.offset - other.offset
        steps = snap(to_fraction(self.offset) - to_fraction(other.offset))
        return int(steps) if steps.denominator == 1 else None


@dataclass(frozen=True, slots=True)
class Grid:
    """The position of an array in space: its shape, the size of its voxels and the index of its first voxel.

    Creating a grid reads no data.

    Parameters
    ----------
    shape : tuple of 3 int
        Number of voxels along (z, y, x), in the order of the array.
    resolution : tuple of 3 float
        Nanometres per voxel along (x, y, z).
    voxel_offset : tuple of 3 int or float
        Index (x, y, z) of the first voxel. Its lower corner lies at ``voxel_offset * resolution`` nm. Offsets are
        integers in precomputed layers, but not necessarily in other formats.

    Raises
    ------
    GridError
        If a size or resolution is not positive.

    Examples
    --------
    >>> grid = Grid((1, 2, 3), (8, 8, 40), (100, 200, 10))
    >>> grid.coords()["x"].values
    array([804., 812., 820.])
    >>> print(grid.bbox)
    (100, 200, 10) to (103, 202, 11) in voxels of 8 × 8 × 40 nm
    """

    shape: Index3
    resolution: Triple
    voxel_offset: tuple[int | float, int | float, int | float]

    def __post_init__(self) -> None:
        try:
            shape = tuple(index(n) for n in self.shape)
        except TypeError:
            shape = ()
        if len(shape) != 3 or min(shape) < 1:
            raise GridError(f"shape={self.shape!r} is not three positive counts of voxels (z, y, x)")
        try:
            offset = tuple(o if type(o) is int else tidy(o) for o in self.voxel_offset)
        except (TypeError, ValueError, OverflowError):
            offset = ()
        if len(offset) != 3 or not all(map(math.isfinite, offset)):
            raise GridError(f"voxel_offset={self.voxel_offset!r} is not three finite numbers (x, y, z)")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "resolution", check_resolution(self.resolution))
        object.__setattr__(self, "voxel_offset", offset)

    @classmethod
    def from_axes(cls, axes: Sequence[Axis]) -> Grid:
        """Return the grid of three axes (z, y, x)."""
        z, y, x = axes
        shape, resolution = (z.size, y.size, x.size), (x.resolution, y.resolution, z.resolution)
        return cls(shape, resolution, (x.offset, y.offset, z.offset))

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The axes (z, y, x)."""
        (nz, ny, nx), (rx, ry, rz), (ox, oy, oz) = self.shape, self.resolution, self.voxel_offset
        return Axis(nz, rz, oz), Axis(ny, ry, oy), Axis(nx, rx, ox)

    @property
    def bbox(self) -> BBox:
        """The box that the grid covers, in voxels of this grid."""
        hi = [o + n for o, n in zip(self.voxel_offset, reversed(self.shape), strict=True)]
        return BBox(self.voxel_offset, hi, resolution=self.resolution)

    @property
    def box(self) -> IndexBox:
        """The box of all voxel indexes, from 0."""
        return IndexBox((0, 0, 0), self.shape)

    def coords(self) -> dict[str, xr.Variable]:
        """Return the coordinates of the voxel centres, ``{"z", "y", "x"}``, float64 nm.

        Their attrs are ``units`` and ``resolution`` (nm), which keeps the voxel size of an axis cropped to one voxel.
        """
        return {
            dim: xr.Variable(dim, axis.centers(), {"units": "nm", "resolution": axis.resolution})
            for dim, axis in zip(DIMS, self.axes, strict=True)
        }

    def select(self, bbox: BBox) -> IndexBox:
        """Return the box of indexes of the voxels whose centre lies in a box, not clipped to this grid."""
        if not isinstance(bbox, BBox):
            raise BoxError(
                param("bbox", bbox), " is not a BBox; write imageryxr.BBox(lo, hi, resolution=(x, y, z nm per unit))"
            )
        ranges = [axis.select(lo, hi) for axis, (lo, hi) in zip(self.axes, reversed(bbox.edges()), strict=True)]
        (z0, z1), (y0, y1), (x0, x1) = ranges
        return IndexBox((z0, y0, x0), (z1, y1, x1))

    def crop(self, box: IndexBox) -> Grid:
        """Return the part of this grid that a box of indexes selects; the box may extend beyond the grid."""
        ranges = zip(self.axes, box.start, box.stop, strict=True)
        return Grid.from_axes([axis.crop(a, b) for axis, a, b in ranges])

    def shift_to(self, other: Grid) -> Index3 | None:
        """Return the index in ``other`` of this grid's first voxel, or None if the voxels do not coincide."""
        z, y, x = (mine.shift_to(theirs) for mine, theirs in zip(self.axes, other.axes, strict=True))
        return None if z is None or y is None or x is None else (z, y, x)

    def __str__(self) -> str:
        return f"{format_triple(self.shape[::-1])} voxels of {format_triple(self.resolution)} nm at {self.voxel_offset}"


def grid_of(da: xr.DataArray | xr.Dataset) -> Grid:
    """Return the grid that the coordinates of an array describe, without reading voxels.

    The ``units`` attribute of a coordinate may name any unit of length; the default is nanometres. The spacing of the
    coordinates determines the voxel size. ``attrs["resolution"]`` of the array (nm) and of each coordinate (in the unit
    of that coordinate) determine the size of an axis with one voxel and remove float noise, but only if they agree with
    the spacing of another axis: after a stride or `xarray.DataArray.coarsen` they describe the previous array. A scalar
    coordinate, such as ``isel(z=5)`` leaves, keeps its size.

    Parameters
    ----------
    da : DataArray or Dataset
        With dims z, y and x and coordinates in units of length. Any of the dims may be a scalar coordinate.

    Returns
    -------
    Grid

    Raises
    ------
    GridError
        If a coordinate is missing, descending or unevenly spaced, or the size of an axis with one voxel is unknown.
    UnitError
        If the units of a coordinate are not a known unit of length.

    Examples
    --------
    >>> grid = Grid((4, 8, 8), (4.04, 4.04, 40), (10, 20, 3))
    >>> array = xr.DataArray(np.zeros(grid.shape), coords=grid.coords(), dims=("z", "y", "x"))
    >>> grid_of(array) == grid
    True
    >>> grid_of(array.isel(x=slice(2, None, 2))).resolution
    (8.08, 4.04, 40.0)
    >>> grid_of(array.isel(z=[2])).resolution
    (4.04, 4.04, 40.0)
    """
    coords, shape = da.coords.variables, da.sizes  # da[dim] would copy the coordinate and its attributes
    centers = {dim: _centers(coords, dim, shape) for dim in DIMS}
    sizes = _stated_sizes(da, centers)
    offsets = dict(zip(DIMS, _triple_attr(da, "voxel_offset")[::-1], strict=True))
    return Grid.from_axes([_make_axis(dim, centers[dim], sizes[dim], offsets[dim]) for dim in DIMS])


def _centers(coords: Mapping[Any, xr.Variable], dim: str, sizes: Mapping[Any, int]) -> npt.NDArray[np.float64]:
    """Return the voxel centres along an axis in nm."""
    if dim not in coords:
        raise GridError(
            f"the array has no coordinate {dim!r} (it has {sorted(map(str, coords))}); give it one in nm: ",
            "imageryxr.open_image(array) with attrs resolution and voxel_offset, or ",
            "array.assign_coords(imageryxr.Grid(shape, resolution, voxel_offset).coords())",
        )
    try:
        values = np.atleast_1d(np.asarray(coords[dim].values, dtype=np.float64))
    except (TypeError, ValueError):
        raise GridError(f"the coordinate {dim!r} has {coords[dim].dtype} values; a grid needs numbers in nm") from None
    if len(values) == 0:
        raise GridError(
            f"the array is empty: it has no voxel along {dim!r} (sizes {dict(sizes)}); a selection by ",
            "coordinate takes nm; to select by voxel numbers, ",
            Wording("crop with BBox(lo, hi, resolution=(x, y, z))", "give --resolution x,y,z"),
        )
    if not np.isfinite(values).all():
        raise GridError(f"the coordinate {dim!r} has values that are not finite: {values[:4]}…")
    _check_even(dim, values)
    unit = _nm_per_unit(coords, dim)
    return values if unit == 1 else values * unit


def _check_even(dim: str, values: npt.NDArray[np.float64]) -> None:
    if len(values) == 1:
        return
    steps, step = np.diff(values), float((values[-1] - values[0]) / (len(values) - 1))
    if step <= 0:
        raise GridError(
            f"the coordinate {dim!r} does not ascend ({values[0]:g} to {values[-1]:g}); use .sortby({dim!r})"
        )
    if np.abs(steps - step).max() > 1e-3 * step:
        raise GridError(
            f"the coordinate {dim!r} is not evenly spaced (steps from {steps.min():g} to {steps.max():g}), "
            "so its voxels do not form a grid; select with a slice, not with a list"
        )


def _nm_per_unit(coords: Mapping[Any, xr.Variable], dim: str) -> float:
    """Return the number of nanometres per unit of a coordinate."""
    stated = coords[dim].attrs.get("units", coords[dim].attrs.get("unit"))
    if stated == "nm" or not has_unit(stated):  # `Grid.coords` states nm
        return 1.0
    try:
        return length_in_nm(stated)
    except UnitError as error:
        raise UnitError(
            f"the coordinate {dim!r} has units={str(stated)[:60]!r}: {error}; set array[{dim!r}].attrs['units'] to the "
            "unit of its numbers"
        ) from None


def _triple_attr(da: xr.DataArray | xr.Dataset, name: str) -> tuple[Any, Any, Any]:
    """Return an (x, y, z) attribute of an array, or of the first variable of a Dataset that has it; default Nones."""
    holders: list[Mapping[Any, Any]] = [da.attrs]
    if isinstance(da, xr.Dataset):
        holders += [v.attrs for v in da.data_vars.values()]
    # Another program may have set the attribute, so invalid values are ignored.
    values = next((h[name] for h in holders if name in h), None)
    numbers = [float(n) for n in to_numbers(values)]
    usable = len(numbers) == 3 and (name != "resolution" or min(numbers) > 0)
    return (numbers[0], numbers[1], numbers[2]) if usable else (None, None, None)


def _stated_sizes(
    da: xr.DataArray | xr.Dataset, centers: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, float | None]:
    """Return the voxel size (nm) along each axis according to the attributes; None if missing or outdated.

    The attributes of the array take precedence over those of the coordinates, which users do not set.
    """
    array_sizes = dict(zip(DIMS, _triple_attr(da, "resolution")[::-1], strict=True))
    coords = da.coords.variables
    coord_sizes = {dim: _size_attr(coords, dim) for dim in DIMS}
    trusted: dict[str, float | None] = dict.fromkeys(DIMS)
    for stated in (coord_sizes, array_sizes):
        if not _is_outdated(stated, centers):
            trusted.update({dim: size for dim, size in stated.items() if size is not None})
    offsets = dict(zip(DIMS, _triple_attr(da, "voxel_offset")[::-1], strict=True))
    for dim, values in centers.items():
        if trusted[dim] is None and coords[dim].ndim == 0:
            # Only a selection of one voxel leaves a scalar coordinate, so no stride or mean can have changed its size.
            trusted[dim] = coord_sizes[dim] or array_sizes[dim]
        size = trusted[dim]
        if (
            len(values) == 1
            and size is not None
            and size == coord_sizes[dim]
            and _is_between_voxels(values[0], size, offsets[dim])
        ):
            trusted[dim] = None
    return trusted


def _size_attr(coords: Mapping[Any, xr.Variable], dim: str) -> float | None:
    value = to_number(coords[dim].attrs.get("resolution"))
    if value is None:
        return None
    size = float(value) * _nm_per_unit(coords, dim)
    return size if math.isfinite(size) and size > 0 else None


def _is_outdated(stated: Mapping[str, Any], centers: Mapping[str, npt.NDArray[np.float64]]) -> bool:
    """Return whether the stated sizes disagree with the spacing of every axis that has several voxels."""
    agree = []
    for dim, values in centers.items():
        if len(values) > 1 and stated[dim] is not None:
            step = float(values[-1] - values[0]) / (len(values) - 1)
            agree.append(abs(step - stated[dim]) <= 1e-3 * max(step, stated[dim]))
    return bool(agree) and not any(agree)


def _is_between_voxels(center: float, size: float, offset: Any) -> bool:
    """Return whether a centre lies on the edge between two voxels, as the mean of an even number of centres does."""
    if offset is None:
        return False
    steps = center / size - 0.5 - float(offset)
    return abs(steps - math.floor(steps) - 0.5) < max(1e-3, 4 * float(np.spacing(abs(steps))))


def _make_axis(dim: str, values: npt.NDArray[np.float64], size: float | None, offset: Any) -> Axis:
    if len(values) == 1:
        if size is None:
            raise GridError(
                f"the axis {dim!r} has one voxel, and nothing states its size in nm: the coordinate is one number, and "
                "attrs['resolution'] is absent or describes the array before it was coarsened, strided or averaged; "
                "set it with array.assign_attrs(resolution=(x, y, z)) in nm, e.g. (8, 8, 160) for the mean of four "
                "sections of 40 nm"
            )
        return Axis(1, size, _offset(values[0], size, offset))
    step = float((values[-1] - values[0]) / (len(values) - 1))
    spacing = _spacing(values, step, size)
    return Axis(len(values), spacing, _offset(values[0], spacing, offset))


def _spacing(values: npt.NDArray[np.float64], step: float, resolution: Any) -> float:
    # Choose the simplest spacing that reproduces the first and the last coordinate: within float64 noise, or, for
    # rounded coordinates, within a tolerance that moves no voxel.
    noise = 4 * np.finfo(float).eps * (float(np.abs(values).max()) / (len(values) - 1) + step)
    if resolution is not None and abs(float(resolution) - step) <= noise:
        return float(resolution)
    candidates = [] if resolution is None else [float(resolution)]
    candidates += [float(f"{step:.{digits}g}") for digits in range(1, 7)]
    candidates += [float(Fraction(step).limit_denominator(most)) for most in (10, 100, 1000)]
    candidates += [float(f"{step:.{digits}g}") for digits in range(7, 15)]
    near = [c for slack in (noise, 1e-6 * step / len(values)) for c in candidates if abs(c - step) <= slack]
    return near[0] if near else step


def _offset(first: float, resolution: float, offset: Any) -> int | float:
    place = first / resolution - 0.5
    # A float64 coordinate beyond 2**31 voxels is noisier than `SNAP`.
    noise = max(float(SNAP), 4 * float(np.spacing(abs(place))))
    if offset is not None and abs(place - float(offset)) < noise:
        return int(offset) if float(offset).is_integer() else tidy(offset)
    # Downsampling by 3 gives offsets in thirds of a voxel; a small denominator within float noise is the exact value.
    simple = Fraction(place).limit_denominator(1000)
    return tidy(simple) if abs(place - simple) < noise else place
