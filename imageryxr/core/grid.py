"""Grids of voxels, and checks of boxes and arrays on them, which explain mismatches.

Grids are defined by integer voxel indexes. Voxel ``i`` of an axis with offset ``o`` and resolution ``r`` (nm) covers
``[(o + i)·r, (o + i + 1)·r)``. Its coordinate is its centre, ``(o + i + 0.5)·r``, and only `Axis.centers` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
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
from imageryxr.core.validate import to_number, to_whole
from imageryxr.errors import (
    BoxError,
    GridError,
    GridMismatchError,
    Message,
    OutOfVolumeError,
    format_value,
    param,
    warn,
)

# Resolutions between these need no further check.
_LEAST_NM, _MOST_NM = 1e-6, 1e12


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
        return Axis(stop - start, self.resolution, self.offset + start)

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
    voxel_offset : tuple of 3 int or float, default (0, 0, 0)
        Index (x, y, z) of the first voxel. Its lower corner lies at ``voxel_offset * resolution`` nm. Offsets are
        integers in precomputed layers, but not necessarily in other formats.

    Raises
    ------
    GridError
        If the shape is not three positive integers, or the offset not three finite numbers.
    BoxError
        If the resolution is not three positive numbers.

    Examples
    --------
    >>> import imageryxr as ix
    >>> grid = ix.Grid((1, 2, 3), (8, 8, 40), (100, 200, 10))
    >>> grid.coords()["x"].values
    array([804., 812., 820.])
    >>> print(grid.bbox)
    (100, 200, 10) to (103, 202, 11) in voxels of 8 × 8 × 40 nm
    """

    shape: Index3
    resolution: Triple
    voxel_offset: tuple[int | float, int | float, int | float] = (0, 0, 0)

    def __post_init__(self) -> None:
        try:
            shape = tuple(n if type(n) is int else to_whole(n) or 0 for n in self.shape)
        except TypeError:
            shape = ()
        if len(shape) != 3 or not 1 <= min(shape) <= max(shape) < 2**63:
            raise GridError(f"shape={format_value(self.shape)} is not three positive counts of voxels (z, y, x)")
        try:
            numbers = [o if type(o) is int and -(2**63) < o < 2**63 else to_number(o) for o in self.voxel_offset]
        except TypeError:
            numbers = []
        offset = tuple(o if type(o) is int else tidy(o) for o in numbers if o is not None)
        if not len(numbers) == len(offset) == 3:
            raise GridError(f"voxel_offset={format_value(self.voxel_offset)} is not three finite numbers (x, y, z)")
        object.__setattr__(self, "shape", shape)
        if not _is_checked(self.resolution):
            object.__setattr__(self, "resolution", check_resolution(self.resolution))
        object.__setattr__(self, "voxel_offset", offset)

    @classmethod
    def from_axes(cls, axes: Sequence[Axis]) -> Grid:
        """Return the grid of three axes (z, y, x)."""
        try:
            z, y, x = axes
            shape, resolution = (z.size, y.size, x.size), (x.resolution, y.resolution, z.resolution)
        except (AttributeError, TypeError, ValueError):
            raise GridError(f"{format_value(axes)} is not three axes (z, y, x), as Grid.axes returns them") from None
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
        if not isinstance(box, IndexBox):
            raise BoxError(f"{format_value(box)} is not a box of indexes; crop takes what Grid.select(bbox) returns")
        ranges = zip(self.axes, box.start, box.stop, strict=True)
        return Grid.from_axes([axis.crop(a, b) for axis, a, b in ranges])

    def shift_to(self, other: Grid) -> Index3 | None:
        """Return the index in ``other`` of this grid's first voxel, or None if the voxels do not coincide."""
        if not isinstance(other, Grid):
            raise GridError(f"{format_value(other)} is not a Grid; imageryxr.grid_of(array) returns that of an array")
        z, y, x = (mine.shift_to(theirs) for mine, theirs in zip(self.axes, other.axes, strict=True))
        return None if z is None or y is None or x is None else (z, y, x)

    def __str__(self) -> str:
        return f"{format_triple(self.shape[::-1])} voxels of {format_triple(self.resolution)} nm at {self.voxel_offset}"


# ---------------------------------------------------------------------------------------------------------
# checks


def _is_checked(resolution: Any) -> bool:
    """Return whether a resolution has the form that `check_resolution` returns, as the resolution of a crop does."""
    is_triple = type(resolution) is tuple and len(resolution) == 3
    return is_triple and all(type(r) is float and _LEAST_NM <= r <= _MOST_NM for r in resolution)


def check_same_grid(a: Grid, b: Grid, what: str) -> None:
    """Raise `GridMismatchError` with the difference and a correction unless two grids are equal."""
    if a.shape == b.shape and a.shift_to(b) == (0, 0, 0):
        return
    steps = [abs(to_fraction(m) - to_fraction(n)) for m, n in zip(a.voxel_offset, b.voxel_offset, strict=True)]
    half = a.resolution == b.resolution and all(abs(step % 1 - Fraction(1, 2)) < SNAP for step in steps[:2])
    corner = param("assume", "corner")
    hint = Message("they are half a voxel apart, so if one is an OME-Zarr, open it with ", corner, "; or ")
    raise GridMismatchError(
        f"{what} do not lie on one grid: {a} against {b}; ",
        hint if half else "",
        "align them with imageryxr.align(image, segmentation) or imageryxr.regrid(array, like=other)",
    )


def out_of_volume_error(bbox: BBox, grid: Grid, what: str, others: Sequence[Grid] = ()) -> OutOfVolumeError:
    """Return the error for a box entirely outside a volume, with the most likely correction.

    The usual cause is numbers in another unit, so the message suggests a resolution in which the box would fit.
    """
    message = f"the box {bbox} lies wholly outside {what}, which covers {grid.bbox}"
    if bbox.resolution != grid.resolution:  # state both boxes in the same unit
        message += f", which is {_convert_unit(grid.bbox, bbox.resolution)}"
    units = [(1.0, 1.0, 1.0), *(g.resolution for g in (grid, *others))]
    for is_whole in (True, False):  # a unit in which the whole box fits is likelier than one in which a part does
        repair = _other_unit_hint(bbox, grid, units, is_whole) or _reversed_axes_hint(bbox, grid, units, is_whole)
        if repair:
            return OutOfVolumeError(f"{message}. ", repair)
    size = tuple(tidy(r) for r in grid.resolution)
    is_other_unit = bbox.resolution not in (units[0], grid.resolution)
    unit_hint = Message("in nm or with ", param("resolution", size)) if not is_other_unit else "in the unit of the box"
    return OutOfVolumeError(f"{message}; give corners inside it, ", unit_hint, " (points are x, y, z)")


# A box may extend beyond its volume, within limits: it must not have both more voxels than any real volume and this
# many times the voxels of its own volume, nor be so long that its coordinates alone would fill the memory.
_MAX_RATIO = 1000
_MAX_VOXELS = 2**50
_MAX_LENGTH = 2**26


def check_extent(box: IndexBox, bbox: BBox, grid: Grid, what: str) -> None:
    """Raise `BoxError` if a box is implausibly larger than its volume, before anything of that size is allocated."""
    is_too_large = box.voxels > _MAX_VOXELS and box.voxels > _MAX_RATIO * grid.box.voxels
    if is_too_large or _is_too_long(box.shape, grid):
        raise BoxError(
            f"the box {bbox} would be {format_triple(box.shape[::-1])} voxels, and {what} has "
            f"{format_triple(grid.shape[::-1])}, which cover {grid.bbox}: a box may extend beyond the volume, but not "
            "so far; give corners near the volume, and check the zeros and the resolution (nm per unit)"
        )


def check_target_length(target: Grid, own: Grid) -> None:
    """Raise `GridError` if an array resampled to a grid would be so long that its coordinates would fill the memory."""
    if _is_too_long(target.shape, own):
        raise GridError(
            f"the target grid, {target}, is too long: the array has {own}; give larger voxels, and check the "
            "resolution of the array and of the target (nm)"
        )


def _is_too_long(shape: Index3, grid: Grid) -> bool:
    return any(n > _MAX_LENGTH and n > 4 * own for n, own in zip(shape, grid.shape, strict=True))


def _fits(bbox: BBox, grid: Grid, is_whole: bool) -> bool:
    """Return whether a box overlaps a grid; with `is_whole`, whether it lies wholly in the grid."""
    if not is_whole:
        return bbox.intersection(grid.bbox) is not None
    return all(a <= lo and hi <= b for (lo, hi), (a, b) in zip(bbox.edges(), grid.bbox.edges(), strict=True))


def _other_unit_hint(bbox: BBox, grid: Grid, units: Sequence[Triple], is_whole: bool) -> str:
    """Return a hint if a box would fit with its corners read in another unit, otherwise an empty string."""
    for unit in units:
        if unit != bbox.resolution and _fits(BBox(bbox.lo, bbox.hi, resolution=unit), grid, is_whole):
            kind = "nanometres" if unit == units[0] else f"voxels of {format_triple(unit)} nm"
            given = tuple(tidy(u) for u in unit)
            return Message(f"Its numbers fit if they are {kind}: give ", param("resolution", given))
    return ""


def _reversed_axes_hint(bbox: BBox, grid: Grid, units: Sequence[Triple], is_whole: bool) -> str:
    """Return a hint if a box would fit with its corners read as (z, y, x), otherwise an empty string."""
    for unit in (bbox.resolution, bbox.resolution[::-1], *units):
        if _fits(BBox(bbox.lo[::-1], bbox.hi[::-1], resolution=unit), grid, is_whole):
            also = Message(", with ", param("resolution", tuple(tidy(u) for u in unit)))
            changes = () if unit == bbox.resolution else (also,)
            return Message("Its numbers fit the other way round", *changes, ": points are (x, y, z), not (z, y, x)")
    return ""


def _convert_unit(bbox: BBox, unit: Triple) -> BBox:
    """Return the same box in another unit."""
    ends = zip(bbox.edges(), unit, strict=True)
    lo, hi = zip(*((tidy(a / to_fraction(u)), tidy(b / to_fraction(u))) for (a, b), u in ends), strict=True)
    return BBox(lo, hi, resolution=unit)


_TRANSLATION = "writers differ in whether the translation is the centre or the corner of a voxel"


def warn_half_voxel(first: Grid, first_attrs: Mapping[str, Any], second: Grid, second_attrs: Mapping[str, Any]) -> None:
    """Warn if one of two arrays is an OME-Zarr on a grid half a voxel from the grid of the other.

    According to the specification, an OME-Zarr without a translation has the centre of its first voxel at 0, while
    precomputed has the corner there. Many writers of OME-Zarr mean the corner.
    """
    for own, attrs, other in ((first, first_attrs, second), (second, second_attrs, first)):
        source = str(attrs.get("source", ""))
        if source.startswith("zarr") and _has_offset(own, 0.5) and _has_offset(other, 0):
            half = " × ".join(f"{r / 2:g}" for r in own.resolution)
            warn(
                Message(
                    f"the grid of {source} is exactly half a voxel ({half} nm) away from the grid of the ",
                    f"other layer: {_TRANSLATION}. If they should share a grid, open it with ",
                    param("assume", "corner"),
                )
            )
            return


def _has_offset(grid: Grid, part: float) -> bool:
    """Return whether a grid has a given fractional offset along x and y, and along z the same or none."""
    x, y, z = (to_fraction(o) % 1 for o in grid.voxel_offset)
    return all(abs(v - to_fraction(part)) < SNAP for v in (x, y)) and min(abs(z - to_fraction(part)), z) < SNAP
