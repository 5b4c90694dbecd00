"""Where arrays lie: grids of voxels, and the grid that an array's coordinates describe.

The integer voxel index is the truth. Voxel ``i`` of an axis with offset ``o`` and resolution ``r`` (nm) covers
``[(o + i)·r, (o + i + 1)·r)`` and its coordinate is the centre, ``(o + i + 0.5)·r``, computed in
`Axis.centers` and nowhere else.
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
    exact,
    show_triple,
    snapped,
    tidy,
)
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.errors import BoxError, GridError, GridMismatchError, OutOfVolumeError, UnitError


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid: ``size`` voxels of ``resolution`` nm, the first at index ``offset`` from 0 nm."""

    size: int
    resolution: float
    offset: int | float

    def centers(self) -> npt.NDArray[np.float64]:
        """Return the voxel centres in nm, float64: the one place where coordinates are made."""
        return np.asarray((self.offset + np.arange(self.size) + 0.5) * self.resolution, dtype=np.float64)

    def edges(self) -> tuple[Fraction, Fraction]:
        """Return the exact outer edges (lo, hi) in nm."""
        r, o = exact(self.resolution), exact(self.offset)
        return o * r, (o + self.size) * r

    def select(self, lo: Fraction, hi: Fraction) -> tuple[int, int]:
        """Return the half-open range of voxels whose centre lies in ``[lo, hi)`` nm, not clipped to the axis.

        A range thinner than a voxel takes the voxel that holds its middle. The count is rounded once, from
        the length: n voxels' worth is always n voxels.
        """
        r, o = exact(self.resolution), exact(self.offset)
        length = snapped((hi - lo) / r)
        if length < 1:
            middle = math.floor(snapped((lo + hi) / 2 / r - o))
            return middle, middle + 1
        half = Fraction(1, 2)
        start = math.ceil(snapped(lo / r - o - half))
        if length.denominator == 1:
            return start, start + int(length)
        return start, max(start + 1, math.ceil(snapped(hi / r - o - half)))

    def crop(self, start: int, stop: int) -> Axis:
        """Return the axis of voxels ``start`` to ``stop`` of this one."""
        return Axis(stop - start, self.resolution, tidy(self.offset + start))


@dataclass(frozen=True, slots=True)
class Grid:
    """Where an array lies: its shape, the size of its voxels, and the index of its first one.

    A value; it reads nothing.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels along (z, y, x), in the order of the array.
    resolution : tuple of 3 float
        Nanometres per voxel along (x, y, z).
    voxel_offset : tuple of 3 int or float
        Index (x, y, z) of the first voxel; its lower corner lies at ``voxel_offset * resolution`` nm. Whole
        numbers in precomputed layers; other formats may place a grid anywhere.

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
            offset = tuple(tidy(o) for o in self.voxel_offset)
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
        return cls(
            (z.size, y.size, x.size),
            (x.resolution, y.resolution, z.resolution),
            (x.offset, y.offset, z.offset),
        )

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The axes (z, y, x)."""
        (nz, ny, nx), (rx, ry, rz), (ox, oy, oz) = self.shape, self.resolution, self.voxel_offset
        return Axis(nz, rz, oz), Axis(ny, ry, oy), Axis(nx, rx, ox)

    @property
    def bbox(self) -> BBox:
        """The box that the voxels cover, in voxels of this grid."""
        hi = [o + n for o, n in zip(self.voxel_offset, reversed(self.shape), strict=True)]
        return BBox(self.voxel_offset, hi, resolution=self.resolution)

    @property
    def box(self) -> IndexBox:
        """The box of all indexes, from 0."""
        return IndexBox.of_shape(self.shape)

    def coords(self) -> dict[str, xr.Variable]:
        """Return the coordinates of the voxel centres, ``{"z", "y", "x"}``, float64 nm.

        Their attrs hold ``units`` and, for an axis that is cut down to one voxel, its ``resolution`` (nm).
        """
        return {
            dim: xr.Variable(dim, axis.centers(), {"units": "nm", "resolution": axis.resolution})
            for dim, axis in zip(DIMS, self.axes, strict=True)
        }

    def select(self, bbox: BBox) -> IndexBox:
        """Return the indexes of the voxels whose centre lies in a box, not clipped to this grid."""
        if not isinstance(bbox, BBox):
            raise BoxError(
                f"bbox={bbox!r} is not a BBox; write imageryxr.BBox(lo, hi, resolution=(x, y, z nm per unit))"
            )
        ranges = [axis.select(lo, hi) for axis, (lo, hi) in zip(self.axes, reversed(bbox.edges()), strict=True)]
        (z0, z1), (y0, y1), (x0, x1) = ranges
        return IndexBox((z0, y0, x0), (z1, y1, x1))

    def crop(self, box: IndexBox) -> Grid:
        """Return the grid of a box of indexes of this one; it may reach outside."""
        ranges = zip(self.axes, box.start, box.stop, strict=True)
        return Grid.from_axes([axis.crop(a, b) for axis, a, b in ranges])

    def shift_to(self, other: Grid) -> Index3 | None:
        """Return the index in ``other`` of this grid's first voxel, or None where the voxels do not coincide."""
        shift = []
        for mine, theirs in zip(self.axes, other.axes, strict=True):
            steps = snapped(exact(mine.offset) - exact(theirs.offset))
            if exact(mine.resolution) != exact(theirs.resolution) or steps.denominator != 1:
                return None
            shift.append(int(steps))
        return (shift[0], shift[1], shift[2])

    def __str__(self) -> str:
        return f"{show_triple(self.shape[::-1])} voxels of {show_triple(self.resolution)} nm at {self.voxel_offset}"


def outside_error(bbox: BBox, grid: Grid, what: str, others: Sequence[Grid] = ()) -> OutOfVolumeError:
    """Return the error for a box wholly outside a volume, with the likeliest repair.

    The usual cause is numbers in another unit: the box is tried again in every resolution at hand.
    """
    message = f"the box {bbox} lies wholly outside {what}, which covers {grid.bbox}"
    if bbox.resolution != grid.resolution:  # numbers of two units cannot be compared
        message += f", which is {_in_unit(grid.bbox, bbox.resolution)}"
    units = [(1.0, 1.0, 1.0), *(g.resolution for g in (grid, *others))]
    for unit in units:
        again = BBox(bbox.lo, bbox.hi, resolution=unit)
        if unit != bbox.resolution and again.intersection(grid.bbox):
            kind = "nanometres" if unit == units[0] else f"voxels of {show_triple(unit)} nm"
            given = tuple(tidy(u) for u in unit)
            return OutOfVolumeError(f"{message}. Its numbers fit if they are {kind}: give resolution={given}")
    repair = _turned(bbox, grid, units)
    if repair:
        return OutOfVolumeError(f"{message}. {repair}")
    size = tuple(tidy(r) for r in grid.resolution)
    own = bbox.resolution not in (units[0], grid.resolution)
    unit_hint = "in the unit of the box" if own else f"in nm or with resolution={size}"
    return OutOfVolumeError(f"{message}; give corners inside it, {unit_hint} (points are x, y, z)")


# A box may reach outside of its volume, but not so far that it can only be a slip of the hand: more than so many times
# its voxels, and more than any volume has; or so long that its coordinates alone would fill the memory.
_FAR_TIMES = 1000
_MOST_VOXELS = 2**50
_MOST_ALONG = 2**26


def refuse_far(box: IndexBox, bbox: BBox, grid: Grid, what: str) -> None:
    """Raise `BoxError` if a box of indexes reaches out far beyond its volume, before anything of its size is made."""
    far = box.voxels > _MOST_VOXELS and box.voxels > _FAR_TIMES * grid.box.voxels
    far |= any(n > _MOST_ALONG and n > 4 * own for n, own in zip(box.shape, grid.shape, strict=True))
    if far:
        raise BoxError(
            f"the box {bbox} would be {show_triple(box.shape[::-1])} voxels, and {what} has "
            f"{show_triple(grid.shape[::-1])}, which cover {grid.bbox}: a box may reach outside, where all is 0, but "
            "not so far; give corners near the volume, and check the zeros and the resolution (nm per unit)"
        )


def _turned(bbox: BBox, grid: Grid, units: Sequence[Triple]) -> str:
    """Return what to do about a box whose numbers were given as (z, y, x), as those of arrays are; else nothing."""
    for unit in (bbox.resolution, bbox.resolution[::-1], *units):
        if BBox(bbox.lo[::-1], bbox.hi[::-1], resolution=unit).intersection(grid.bbox):
            also = "" if unit == bbox.resolution else f", with resolution={tuple(tidy(u) for u in unit)}"
            return f"Its numbers fit the other way round{also}: points are (x, y, z), not (z, y, x)"
    return ""


def _in_unit(bbox: BBox, unit: Triple) -> BBox:
    """Return a box in another unit."""
    ends = zip(bbox.edges(), unit, strict=True)
    lo, hi = zip(*((tidy(a / exact(u)), tidy(b / exact(u))) for (a, b), u in ends), strict=True)
    return BBox(lo, hi, resolution=unit)


# ---------------------------------------------------------------------------------------------------------
# arrays


def grid_of(da: xr.DataArray | xr.Dataset) -> Grid:
    """Return the grid that an array's coordinates describe; reads no voxel.

    The coordinates decide. Their attrs ``units`` may name any unit of length; without it they are nanometres. Stated
    sizes (``attrs["resolution"]`` of the array, in nm, and of each coordinate, in its own unit) settle what the
    coordinates leave open, an axis with one voxel and float noise, and only where another axis agrees with them: after
    a stride or `xarray.DataArray.coarsen` they describe the array as it was before. A scalar coordinate, as
    ``isel(z=5)`` leaves it, keeps its size.

    Parameters
    ----------
    da : DataArray or Dataset
        With dims z, y and x (any of them may have been dropped to a scalar coordinate) and coordinates of length.

    Returns
    -------
    Grid

    Raises
    ------
    GridError
        If a coordinate is missing, descending or unevenly spaced, or nothing states the size of an axis of one voxel.
    UnitError
        If a coordinate has units that are no known unit of length.

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
    places = {dim: _centers(da, dim) for dim in DIMS}
    sizes = _stated_sizes(da, places)
    offsets = dict(zip(DIMS, _triple(da, "voxel_offset")[::-1], strict=True))
    return Grid.from_axes([_axis_of(dim, places[dim], sizes[dim], offsets[dim]) for dim in DIMS])


def _centers(da: xr.DataArray | xr.Dataset, dim: str) -> npt.NDArray[np.float64]:
    """Return the centres along an axis in nm."""
    if dim not in da.coords:
        raise GridError(
            f"the array has no coordinate {dim!r} (it has {sorted(map(str, da.coords))}); give it one in nm: "
            "imageryxr.open_image(array) with attrs resolution and voxel_offset, or "
            "array.assign_coords(imageryxr.Grid(shape, resolution, voxel_offset).coords())"
        )
    try:
        values = np.atleast_1d(np.asarray(da[dim].values, dtype=np.float64))
    except (TypeError, ValueError):
        raise GridError(f"the coordinate {dim!r} holds {da[dim].dtype} values; a grid needs numbers in nm") from None
    if len(values) == 0:
        raise GridError(
            f"the array is empty: it has no voxel along {dim!r} (sizes {dict(da.sizes)}); a selection by coordinate "
            "takes nm, so numbers of voxels select elsewhere: crop with BBox(lo, hi, resolution=(x, y, z)) for those"
        )
    if not np.isfinite(values).all():
        raise GridError(f"the coordinate {dim!r} holds values that are not finite: {values[:4]}…")
    _check_even(dim, values)
    unit = _unit(da, dim)
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
            "so its voxels form no grid; select with a slice, not with a list"
        )


def _unit(da: xr.DataArray | xr.Dataset, dim: str) -> float:
    """Return the nanometres of one unit of a coordinate."""
    stated = da[dim].attrs.get("units", da[dim].attrs.get("unit"))
    if not has_unit(stated):
        return 1.0
    try:
        return length_in_nm(stated)
    except UnitError as error:
        raise UnitError(
            f"the coordinate {dim!r} has units={str(stated)[:60]!r}: {error}; set array[{dim!r}].attrs['units'] to the "
            "unit of its numbers"
        ) from None


def _triple(da: xr.DataArray | xr.Dataset, name: str) -> tuple[Any, Any, Any]:
    """Return an attribute (x, y, z) of an array, or of a Dataset's first variable that has it; else None for each."""
    holders: list[Mapping[Any, Any]] = [da.attrs]
    if isinstance(da, xr.Dataset):
        holders += [v.attrs for v in da.data_vars.values()]
    # Attributes may be anybody's; those that make no sense decide nothing.
    values = next((h[name] for h in holders if name in h), None)
    try:
        numbers = tuple(float(v) for v in values)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        numbers = ()
    usable = len(numbers) == 3 and all(map(math.isfinite, numbers)) and (name != "resolution" or min(numbers) > 0)
    return (numbers[0], numbers[1], numbers[2]) if usable else (None, None, None)


def _stated_sizes(
    da: xr.DataArray | xr.Dataset, places: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, float | None]:
    """Return the voxel size (nm) along each axis as attributes state it; None where none does, or it is outdated.

    The attributes of the array go before those of the coordinates: these are never set by hand.
    """
    own = dict(zip(DIMS, _triple(da, "resolution")[::-1], strict=True))
    kept = {dim: _size_attr(da, dim) for dim in DIMS}
    trusted: dict[str, float | None] = dict.fromkeys(DIMS)
    for stated in (kept, own):
        if not _outdated(stated, places):
            trusted.update({dim: size for dim, size in stated.items() if size is not None})
    offsets = dict(zip(DIMS, _triple(da, "voxel_offset")[::-1], strict=True))
    for dim, values in places.items():
        if trusted[dim] is None and da[dim].ndim == 0:
            # Only the selection of one voxel leaves a scalar coordinate: no stride or mean can have outdated its size.
            trusted[dim] = kept[dim] or own[dim]
        size = trusted[dim]
        if (
            len(values) == 1
            and size is not None
            and size == kept[dim]
            and _between_voxels(values[0], size, offsets[dim])
        ):
            trusted[dim] = None
    return trusted


def _size_attr(da: xr.DataArray | xr.Dataset, dim: str) -> float | None:
    value = da[dim].attrs.get("resolution")
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    size = float(value) * _unit(da, dim)
    return size if math.isfinite(size) and size > 0 else None


def _outdated(stated: Mapping[str, Any], places: Mapping[str, npt.NDArray[np.float64]]) -> bool:
    """Return whether stated sizes contradict the spacing of the axes with several voxels, and agree with none."""
    agree = []
    for dim, values in places.items():
        if len(values) > 1 and stated[dim] is not None:
            step = float(values[-1] - values[0]) / (len(values) - 1)
            agree.append(abs(step - stated[dim]) <= 1e-3 * max(step, stated[dim]))
    return bool(agree) and not any(agree)


def _between_voxels(center: float, size: float, offset: Any) -> bool:
    """Return whether a centre lies on the edge between two voxels: it is the mean of an even number of centres."""
    if offset is None:
        return False
    steps = center / size - 0.5 - float(offset)
    return abs(steps - math.floor(steps) - 0.5) < max(1e-3, 4 * float(np.spacing(abs(steps))))


def _axis_of(dim: str, values: npt.NDArray[np.float64], size: float | None, offset: Any) -> Axis:
    if len(values) == 1:
        if size is None:
            raise GridError(
                f"the axis {dim!r} has one voxel, and nothing states its size in nm: the coordinate is one number, and "
                "attrs['resolution'] is absent or describes the array before it was coarsened, strided or averaged; "
                "give it: array.assign_attrs(resolution=(x, y, z)) in nm, e.g. (8, 8, 160) after four sections of 40 nm"
            )
        return Axis(1, size, _offset(values[0], size, offset))
    step = float((values[-1] - values[0]) / (len(values) - 1))
    spacing = _spacing(values, step, size)
    return Axis(len(values), spacing, _offset(values[0], spacing, offset))


def _spacing(values: npt.NDArray[np.float64], step: float, resolution: Any) -> float:
    # The tidiest number that explains the last coordinate as well as the first is the one that was meant: within the
    # noise of float64, or, for coordinates that somebody rounded, within what moves no voxel.
    noise = 4 * np.finfo(float).eps * (float(np.abs(values).max()) / (len(values) - 1) + step)
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
        return tidy(offset)
    # 1/3-voxel places come from downsampling by 3; a small denominator within float noise is what was meant.
    simple = Fraction(place).limit_denominator(1000)
    return tidy(simple) if abs(place - simple) < noise else place


def same_grid(a: Grid, b: Grid, what: str) -> None:
    """Raise `GridMismatchError` unless two grids are one, telling how they differ and what mends it."""
    if a.shape == b.shape and a.shift_to(b) == (0, 0, 0):
        return
    steps = [abs(exact(m) - exact(n)) for m, n in zip(a.voxel_offset, b.voxel_offset, strict=True)]
    half = a.resolution == b.resolution and all(abs(step % 1 - Fraction(1, 2)) < SNAP for step in steps[:2])
    hint = "they are half a voxel apart, so if one is an OME-Zarr, open it with assume='corner'; or " if half else ""
    raise GridMismatchError(
        f"{what} do not lie on one grid: {a} against {b}; {hint}bring them together with "
        "imageryxr.align(image, segmentation) or imageryxr.regrid(array, like=other)"
    )
