"""Place: boxes, grids, and all arithmetic between voxel indexes and nanometres.

The integer voxel index is the truth. Voxel ``i`` of an axis with offset ``o`` and resolution ``r`` (nm) covers
``[(o + i)·r, (o + i + 1)·r)`` and its coordinate is the centre, ``(o + i + 0.5)·r``, computed in
`Axis.centers` and nowhere else. Positions on two axes are compared as exact fractions, so that no result
hangs on the last bit of a float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.errors import BoxError, GridError, GridMismatchError, OutOfVolumeError

DIMS = ("z", "y", "x")

# Positions closer than this fraction of a voxel are one position: far above float noise at petavoxel
# coordinates (1e9 nm in float64 is good to 1e-7 nm), far below anything that a picture shows.
SNAP = Fraction(1, 1_000_000)

# Beyond any volume in any unit; ints larger than this overflow floats, and inf is no place.
_FARTHEST = 1e18

Triple = tuple[float, float, float]
Index3 = tuple[int, int, int]


@lru_cache(maxsize=4096)
def exact(value: float) -> Fraction:
    """Return the simple fraction that a float stands for: 4.04 is 101/25, 10.666666666666666 is 32/3."""
    if isinstance(value, int):
        return Fraction(value)
    simple = Fraction(value).limit_denominator(1_000_000)
    return simple if float(simple) == value else Fraction(repr(value))


def tidy(value: Any) -> int | float:
    """Return a plain Python number, an int where it is a whole one within `SNAP`."""
    number = float(value)
    whole = round(number)
    return whole if abs(number - whole) < SNAP else number


def _snapped(value: Fraction) -> Fraction:
    whole = round(value)
    return Fraction(whole) if abs(value - whole) < SNAP else value


def _numbers(value: Any, name: str, count: tuple[int, ...] = (3,)) -> tuple[int | float, ...]:
    try:
        items = [v.item() if isinstance(v, np.generic) else v for v in value]
    except TypeError:
        items = []
    allowed = " or ".join(str(c) for c in count)
    if len(items) not in count:
        raise BoxError(f"{name}={value!r} is not {allowed} numbers (x, y, z); write e.g. {name}=(4100, 2100, 110)")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float) or not -_FARTHEST < item < _FARTHEST:
            raise BoxError(f"{name}={value!r} holds {item!r}, which is not a finite number; give (x, y, z) numbers")
    return tuple(items)


def check_resolution(value: Any, name: str = "resolution") -> Triple:
    """Return a resolution (x, y, z nm) as floats, or raise `BoxError`."""
    numbers = _numbers(value, name)
    if min(numbers) <= 0:
        raise BoxError(f"{name}={value!r} must be positive: nanometres per unit as (x, y, z), e.g. (8, 8, 40)")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))


class IndexBox(NamedTuple):
    """A half-open box of voxel indexes, (z, y, x); it may reach outside any array."""

    start: Index3
    stop: Index3

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> IndexBox:
        """Return the box of an array of that shape, from index 0."""
        return cls((0, 0, 0), (int(shape[0]), int(shape[1]), int(shape[2])))

    @property
    def shape(self) -> Index3:
        """Voxels along (z, y, x), 0 where the box is empty."""
        (z0, y0, x0), (z1, y1, x1) = self
        return (max(0, z1 - z0), max(0, y1 - y0), max(0, x1 - x0))

    @property
    def voxels(self) -> int:
        """How many voxels the box holds."""
        return math.prod(self.shape)

    def shift(self, by: Sequence[int], sign: int = 1) -> IndexBox:
        """Return the box moved by ``sign * by`` voxels."""
        z, y, x = (sign * int(b) for b in by)
        (z0, y0, x0), (z1, y1, x1) = self
        return IndexBox((z0 + z, y0 + y, x0 + x), (z1 + z, y1 + y, x1 + x))

    def grow(self, by: Sequence[int]) -> IndexBox:
        """Return the box with ``by`` (z, y, x) voxels more on both sides of each axis."""
        z, y, x = by
        (z0, y0, x0), (z1, y1, x1) = self
        return IndexBox((z0 - z, y0 - y, x0 - x), (z1 + z, y1 + y, x1 + x))

    def clip(self, to: IndexBox) -> IndexBox:
        """Return what this box and another share; empty (stop == start) where they share nothing."""
        start = tuple(max(a, b) for a, b in zip(self.start, to.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, to.stop, strict=True))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return IndexBox(self.start, self.start)
        return IndexBox(start, stop)  # type: ignore[arg-type]

    def hull(self, other: IndexBox) -> IndexBox:
        """Return the smallest box around this one and another; an empty box adds nothing."""
        if not self.voxels or not other.voxels:
            return other if not self.voxels else self
        start = tuple(min(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(max(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return IndexBox(start, stop)  # type: ignore[arg-type]

    def contains(self, other: IndexBox) -> bool:
        """Tell whether another box lies wholly in this one."""
        return self.clip(other) == other

    def slices(self, within: IndexBox | None = None) -> tuple[slice, slice, slice]:
        """Return slices that cut this box out of an array that covers ``within`` (from index 0 if None)."""
        origin = within.start if within is not None else (0, 0, 0)
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))
        return (z, y, x)


def make_up(boxes: Collection[IndexBox], whole: IndexBox) -> bool:
    """Tell whether boxes within a whole cover all of it."""
    if sum(box.voxels for box in boxes) < whole.voxels:
        return False
    cuts = [sorted({e for box in boxes for e in (box.start[a], box.stop[a])}) for a in range(3)]
    if any(c[0] > lo or c[-1] < hi for c, lo, hi in zip(cuts, whole.start, whole.stop, strict=True)):
        return False
    covered = np.zeros([len(c) - 1 for c in cuts], bool)
    for box in boxes:
        at = tuple(slice(c.index(a), c.index(b)) for c, a, b in zip(cuts, box.start, box.stop, strict=True))
        covered[at] = True
    return bool(covered.all())


@dataclass(frozen=True, slots=True)
class BBox:
    """A box in space, from ``lo`` (inside) to ``hi`` (outside), as people give it: (x, y, z).

    A value; it reads nothing. A box selects the voxels whose centre lies in ``[lo, hi)``, at every mip.

    Parameters
    ----------
    lo, hi : sequence of 3 numbers
        Lower and upper corner (x, y, z), in units of ``resolution``; ``hi`` is exclusive.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z). ``(1, 1, 1)`` means that the numbers are nanometres; the resolution that
        Neuroglancer shows in its corner, such as ``(4, 4, 40)``, means that they are voxels of that size.

    Raises
    ------
    BoxError
        If a corner is not three finite numbers, or the box is empty or inverted.

    Examples
    --------
    >>> box = BBox((100, 200, 10), (612, 712, 11), resolution=(8, 8, 40))
    >>> box.lo_nm
    (800.0, 1600.0, 400.0)
    >>> box.size_nm
    (4096.0, 4096.0, 40.0)
    """

    lo: tuple[int | float, ...]
    hi: tuple[int | float, ...]
    resolution: Triple

    def __init__(self, lo: Sequence[float], hi: Sequence[float], *, resolution: Sequence[float] = (1, 1, 1)) -> None:
        lower, upper = _numbers(lo, "lo"), _numbers(hi, "hi")
        for name, a, b in zip("xyz", lower, upper, strict=True):
            if b < a:
                raise BoxError(
                    f"the box lo={lower}, hi={upper} is inverted along {name} ({a} > {b}); "
                    "give the lower corner first: BBox(lo, hi) with lo < hi on every axis"
                )
            if a == b:
                raise BoxError(
                    f"the box lo={lower}, hi={upper} is empty along {name} ({a} to {b}, and hi is exclusive); "
                    f"for one voxel write hi {name} = {a + 1}, or use BBox.around(center, size)"
                )
        object.__setattr__(self, "lo", lower)
        object.__setattr__(self, "hi", upper)
        object.__setattr__(self, "resolution", check_resolution(resolution))

    @classmethod
    def around(
        cls,
        center: Sequence[float],
        size: Sequence[float],
        *,
        resolution: Sequence[float] = (1, 1, 1),
        size_resolution: Sequence[float] | None = None,
    ) -> BBox:
        """Return the box of a given size around a point.

        The voxel that holds the centre is the middle one: for whole sizes ``lo = floor(center) - size // 2``,
        as ImageryClient's ``bounds_from_center``; for other sizes the box is ``center ± size / 2``.

        Parameters
        ----------
        center : sequence of 3 numbers
            The point (x, y, z), in units of ``resolution``; Neuroglancer's ``….5`` positions are taken as they are.
        size : sequence of 2 or 3 numbers
            Extent (x, y, z) in units of ``size_resolution``; 2 elements (x, y) mean one plane.
        resolution : sequence of 3 numbers, default (1, 1, 1)
            Nanometres per unit (x, y, z) of ``center``.
        size_resolution : sequence of 3 numbers, optional
            Nanometres per unit of ``size``; give the resolution of a level to get exactly that many of its
            voxels. Default: that of ``resolution``.

        Returns
        -------
        BBox
            In units of ``size_resolution``.

        Raises
        ------
        BoxError
            If a number is not finite or a size is not positive.

        Examples
        --------
        >>> BBox.around((5319, 8677, 1201), (400, 400), resolution=(6, 6, 30))
        BBox(lo=(5119, 8477, 1201), hi=(5519, 8877, 1202), resolution=(6.0, 6.0, 30.0))
        >>> BBox.around((100.5, 100.5, 7.5), (4, 4), resolution=(4, 4, 40), size_resolution=(8, 8, 40))
        BBox(lo=(48, 48, 7), hi=(52, 52, 8), resolution=(8.0, 8.0, 40.0))
        """
        point, extent = _numbers(center, "center"), _numbers(size, "size", (2, 3))
        extent = extent if len(extent) == 3 else (*extent, 1)
        if min(extent) <= 0:
            raise BoxError(f"size={size!r} must be positive along every axis, e.g. size=(512, 512)")
        unit = check_resolution(resolution)
        target = unit if size_resolution is None else check_resolution(size_resolution, "size_resolution")
        lo: list[int | float] = []
        hi: list[int | float] = []
        for c, s, u, t in zip(point, extent, unit, target, strict=True):
            place = _snapped(exact(c) * exact(u) / exact(t))
            if float(s).is_integer():
                low = math.floor(place) - int(s) // 2
                lo.append(low)
                hi.append(low + int(s))
            else:
                lo.append(tidy(place - exact(s) / 2))
                hi.append(tidy(place + exact(s) / 2))
        return cls(lo, hi, resolution=target)

    @property
    def lo_nm(self) -> Triple:
        """Lower corner (x, y, z) in nm."""
        return _float3(a for a, _ in self.edges())

    @property
    def hi_nm(self) -> Triple:
        """Upper corner (x, y, z) in nm, exclusive."""
        return _float3(b for _, b in self.edges())

    @property
    def size_nm(self) -> Triple:
        """Extent (x, y, z) in nm."""
        return _float3(b - a for a, b in self.edges())

    @property
    def center_nm(self) -> Triple:
        """Middle (x, y, z) in nm."""
        return _float3((a + b) / 2 for a, b in self.edges())

    def edges(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """Return the exact (lo, hi) in nm for x, y and z."""
        return tuple(
            (exact(a) * exact(r), exact(b) * exact(r))
            for a, b, r in zip(self.lo, self.hi, self.resolution, strict=True)
        )

    def intersection(self, other: BBox) -> BBox | None:
        """Return the part shared with another box, in nm, or None where they do not meet."""
        pairs = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.edges(), other.edges(), strict=True)]
        if any(b <= a for a, b in pairs):
            return None
        return BBox([float(a) for a, _ in pairs], [float(b) for _, b in pairs])

    def __str__(self) -> str:
        lo, hi = (", ".join(f"{v:,.6g}" if isinstance(v, float) else f"{v:,}" for v in c) for c in (self.lo, self.hi))
        unit = "nm" if self.resolution == (1.0, 1.0, 1.0) else f"voxels of {show_triple(self.resolution)} nm"
        return f"({lo}) to ({hi}) in {unit}"


def _float3(values: Iterator[Fraction]) -> Triple:
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def show_triple(values: Sequence[float]) -> str:
    """Return (x, y, z) numbers as people write resolutions: 8 × 8 × 40."""
    return " × ".join(f"{tidy(v):,}" if isinstance(tidy(v), int) else f"{v:g}" for v in values)


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
        length = _snapped((hi - lo) / r)
        if length < 1:
            middle = math.floor(_snapped((lo + hi) / 2 / r - o))
            return middle, middle + 1
        half = Fraction(1, 2)
        start = math.ceil(_snapped(lo / r - o - half))
        if length.denominator == 1:
            return start, start + int(length)
        return start, max(start + 1, math.ceil(_snapped(hi / r - o - half)))

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
        """Return the coordinates of the voxel centres, ``{"z", "y", "x"}``, float64 nm with ``units``."""
        return {
            dim: xr.Variable(dim, axis.centers(), {"units": "nm"}) for dim, axis in zip(DIMS, self.axes, strict=True)
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
            steps = _snapped(exact(mine.offset) - exact(theirs.offset))
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
    units = [(1.0, 1.0, 1.0), *(g.resolution for g in (grid, *others))]
    for unit in units:
        again = BBox(bbox.lo, bbox.hi, resolution=unit)
        if unit != bbox.resolution and again.intersection(grid.bbox):
            kind = "nanometres" if unit == units[0] else f"voxels of {show_triple(unit)} nm"
            given = tuple(tidy(u) for u in unit)
            return OutOfVolumeError(f"{message}. Its numbers fit if they are {kind}: give resolution={given}")
    size = tuple(tidy(r) for r in grid.resolution)
    hint = f"give corners inside it, in nm or with resolution={size}"
    return OutOfVolumeError(f"{message}; {hint} (points are x, y, z)")


# ---------------------------------------------------------------------------------------------------------
# arrays


def grid_of(da: xr.DataArray | xr.Dataset) -> Grid:
    """Return the grid that an array's coordinates describe; reads no voxel.

    The coordinates decide. The attributes ``resolution`` and ``voxel_offset`` only settle what they leave open:
    an axis with one voxel, and float noise.

    Parameters
    ----------
    da : DataArray or Dataset
        With dims z, y and x (any of them may have been dropped to a scalar coordinate) and coordinates in nm.

    Returns
    -------
    Grid

    Raises
    ------
    GridError
        If a coordinate is missing, descending or unevenly spaced, or an axis of one voxel has no resolution.

    Examples
    --------
    >>> grid = Grid((4, 8, 8), (4.04, 4.04, 40), (10, 20, 3))
    >>> array = xr.DataArray(np.zeros(grid.shape), coords=grid.coords(), dims=("z", "y", "x"))
    >>> grid_of(array) == grid
    True
    >>> grid_of(array.isel(x=slice(2, None, 2))).resolution
    (8.08, 4.04, 40.0)
    """
    attrs = _grid_attrs(da)
    hints = zip(DIMS, attrs["resolution"][::-1], attrs["voxel_offset"][::-1], strict=True)
    return Grid.from_axes([_axis_of(da, dim, resolution, offset) for dim, resolution, offset in hints])


def _grid_attrs(da: xr.DataArray | xr.Dataset) -> dict[str, tuple[Any, ...]]:
    holders: list[Mapping[Any, Any]] = [da.attrs]
    if isinstance(da, xr.Dataset):
        holders += [v.attrs for v in da.data_vars.values()]
    found: dict[str, tuple[Any, ...]] = {}
    for name in ("resolution", "voxel_offset"):
        # Attributes may be anybody's; those that make no sense decide nothing.
        values = next((h[name] for h in holders if name in h), None)
        try:
            numbers = tuple(float(v) for v in values)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            numbers = ()
        usable = len(numbers) == 3 and all(map(math.isfinite, numbers)) and (name != "resolution" or min(numbers) > 0)
        found[name] = numbers if usable else (None, None, None)
    return found


def _axis_of(da: xr.DataArray | xr.Dataset, dim: str, resolution: Any, offset: Any) -> Axis:
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
    if len(values) == 1:
        if resolution is None:
            raise GridError(
                f"the axis {dim!r} has one voxel, so its size in nm cannot be read from the coordinate; set "
                "array.attrs['resolution'] = (x, y, z) in nm"
            )
        return Axis(1, float(resolution), _offset(values[0], float(resolution), offset))
    steps = np.diff(values)
    step = float((values[-1] - values[0]) / (len(values) - 1))
    if step <= 0:
        raise GridError(
            f"the coordinate {dim!r} does not ascend ({values[0]:g} to {values[-1]:g}); use .sortby({dim!r})"
        )
    if np.abs(steps - step).max() > 1e-3 * step:
        raise GridError(
            f"the coordinate {dim!r} is not evenly spaced (steps from {steps.min():g} to {steps.max():g} nm), "
            "so its voxels form no grid; select with a slice, not with a list"
        )
    spacing = _spacing(values, step, resolution)
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
    if offset is not None and abs(place - float(offset)) < SNAP:
        return tidy(offset)
    # 1/3-voxel places come from downsampling by 3; a small denominator within float noise is what was meant.
    simple = Fraction(place).limit_denominator(1000)
    return tidy(simple) if abs(place - simple) < SNAP else place


def same_grid(a: Grid, b: Grid, what: str) -> None:
    """Raise `GridMismatchError` unless two grids are one, telling how they differ and what mends it."""
    if a.shape == b.shape and a.shift_to(b) == (0, 0, 0):
        return
    raise GridMismatchError(
        f"{what} do not lie on one grid: {a} against {b}; bring them together with "
        "imageryxr.align(image, segmentation) or imageryxr.regrid(array, like=other)"
    )


# ---------------------------------------------------------------------------------------------------------
# two axes


# The index of "no source voxel": the target voxel lies outside the volume.
OUTSIDE = -1


class NearestMap(NamedTuple):
    """For each target voxel the source voxel that holds its centre."""

    voxel: npt.NDArray[np.int64]

    def read_from(self, first: int) -> NearestMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return NearestMap(_rebased(self.voxel, first))


class LinearMap(NamedTuple):
    """For each target voxel the two source voxels around its centre, and the weight of the second."""

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]

    def read_from(self, first: int) -> LinearMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return LinearMap(_rebased(self.lower, first), _rebased(self.upper, first), self.weight)


class OverlapMap(NamedTuple):
    """For each target voxel the run of source voxels it covers, with whole-number weights (CSR)."""

    first: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]

    def read_from(self, first: int) -> OverlapMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return OverlapMap(_rebased(self.first, first), self.offsets, self.weights)


def _rebased(index: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    return np.where(index == _NOWHERE, OUTSIDE, index - first)


# Lengths are counted in at most about so many parts of a target voxel: three axes' product must fit int64. Ratios that
# people use need far fewer, so that their weights are exact.
_WEIGHTS = 1 << 18

# Source indexes may be negative before a read box is known, so "nowhere" is an index that no volume reaches.
_NOWHERE = -(2**62)


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Where the voxels of a target axis lie on a source axis, in exact whole numbers.

    The centre of target voxel ``j`` lies at ``(a·j + b) / c`` source voxels from the lower edge of source voxel
    0. Source indexes may be negative: ``valid`` ranges, half-open, say where data exist. A target voxel whose
    centre lies outside of them is outside the volume; one rule breaks ties, a centre on the edge between two voxels
    belongs to the upper one, as voxels are half-open.
    """

    a: int
    b: int
    c: int

    @classmethod
    def between(cls, target: Axis, source: Axis) -> AxisMap:
        """Return the map from a target axis to a source axis."""
        ratio = exact(target.resolution) / exact(source.resolution)
        shift = (exact(target.offset) + Fraction(1, 2)) * ratio - exact(source.offset)
        # Only places that are float noise need larger denominators than these, and int64 would not hold them.
        ratio, shift = ratio.limit_denominator(1_000_000), shift.limit_denominator(1_000_000)
        c = math.lcm(ratio.denominator, shift.denominator)
        return cls(int(ratio * c), int(shift * c), c)

    @property
    def scale(self) -> Fraction:
        """Source voxels per target voxel."""
        return Fraction(self.a, self.c)

    def first_at(self, edge: int) -> int:
        """Return the first target voxel whose centre lies at or above the lower edge of a source voxel."""
        return -((self.b - edge * self.c) // self.a)

    def reach(self, start: int, stop: int, method: str) -> tuple[int, int]:
        """Return the half-open source range that a method touches for target voxels start to stop."""
        low = Fraction(self.a * start + self.b, self.c)
        high = Fraction(self.a * (stop - 1) + self.b, self.c)
        half = Fraction(1, 2) if method == "linear" else self.scale / 2
        if method == "nearest":
            return math.floor(low), math.floor(high) + 1
        # Linear ends with the voxel above the last centre, unless that centre is a voxel's: then it has no weight.
        return math.floor(low - half), math.ceil(high - half) + 1 if method == "linear" else math.ceil(high + half)

    def _places(self, start: int, stop: int, shift: Fraction = Fraction(0)) -> tuple[npt.NDArray[np.int64], int, int]:
        # position of voxel j = base + numerator / denominator, numerators small enough for int64 because
        # the whole part at `start` is taken out first.
        c = math.lcm(self.c, shift.denominator)
        scale = c // self.c
        first = (self.a * start + self.b) * scale + int(shift * c)
        base, rest = divmod(first, c)
        return self.a * scale * np.arange(stop - start, dtype=np.int64) + rest, base, c

    def _inside(self, start: int, stop: int, valid: tuple[int, int]) -> npt.NDArray[np.bool_]:
        j = np.arange(start, stop)
        inside: npt.NDArray[np.bool_] = (j >= self.first_at(valid[0])) & (j < self.first_at(valid[1]))
        return inside

    def nearest(self, start: int, stop: int, valid: tuple[int, int]) -> NearestMap:
        """Return the source voxel that holds each centre."""
        numerator, base, c = self._places(start, stop)
        index = numerator // c + base
        return NearestMap(np.where(self._inside(start, stop, valid), index, _NOWHERE))

    def linear(self, start: int, stop: int, valid: tuple[int, int]) -> LinearMap:
        """Return the source voxels below and above each centre, clamped to the data at its edges."""
        numerator, base, c = self._places(start, stop, Fraction(-1, 2))
        lower, rest = np.divmod(numerator, c)
        lower += base
        last = valid[1] - 1
        inside = self._inside(start, stop, valid)
        below, above = (np.where(inside, np.clip(i, valid[0], last), _NOWHERE) for i in (lower, lower + 1))
        return LinearMap(below, above, rest / c)

    def overlap(self, start: int, stop: int, valid: tuple[int, int]) -> OverlapMap:
        """Return the source voxels that each target voxel covers, with weights that are lengths."""
        half = Fraction(self.a, 2 * self.c)
        numerator, base, c = self._places(start, stop, -half)
        length = int(self.scale * c)
        unit = max(1, length // _WEIGHTS)
        inside = self._inside(start, stop, valid)
        first, counts, weights = np.full(stop - start, _NOWHERE), np.zeros(stop - start, np.int64), []
        for j, (low, ok) in enumerate(zip(numerator.tolist(), inside.tolist(), strict=True)):
            if not ok:
                continue
            k0 = max(low // c, valid[0] - base)
            k1 = min(-(-(low + length) // c), valid[1] - base)
            first[j], counts[j] = k0 + base, k1 - k0
            parts = (min((k + 1) * c, low + length) - max(k * c, low) for k in range(k0, k1))
            weights += [max(1, (p + unit // 2) // unit) for p in parts]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return OverlapMap(first, offsets, np.array(weights, np.int64))
