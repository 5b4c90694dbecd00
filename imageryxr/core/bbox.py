"""Boxes of voxel indexes and boxes in space.

Positions are compared as exact fractions, so that no result depends on the last bit of a float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import to_items, to_number, to_numbers
from imageryxr.errors import BoxError, Wording, format_value, param

DIMS = ("z", "y", "x")

# Positions closer than this fraction of a voxel are equal. This is far above float noise at petavoxel coordinates
# (float64 resolves 1e-7 nm at 1e9 nm) and far below what a picture shows.
SNAP = Fraction(1, 1_000_000)

# Larger than any volume in any unit. The limit excludes infinity and ints that overflow floats.
_FARTHEST = 1e18

# Far below the size of an atom. Division by smaller units could overflow floats.
_SMALLEST_UNIT = 1e-9

Triple = tuple[float, float, float]
Index3 = tuple[int, int, int]
Splits = tuple[tuple[int, ...], ...]
"""Sizes or starts of blocks along each axis."""


@lru_cache(maxsize=4096)
def to_fraction(value: float) -> Fraction:
    """Return the simplest fraction that rounds to a float: 4.04 is 101/25, 10.666666666666666 is 32/3."""
    if isinstance(value, int):
        return Fraction(value)
    fraction = Fraction(value)
    # Far from 0 several fractions round to the same float; the smallest denominator wins: 2147483654.3 is in tenths.
    for most in (1_000_000,) if abs(value) < 1000 else (1, 10, 100, 1000, 10_000, 100_000, 1_000_000):
        simple = fraction.limit_denominator(most)
        if float(simple) == value:
            return simple
    return Fraction(repr(value))


def tidy(value: Any) -> int | float:
    """Return a plain Python number: an int if the value is within `SNAP` of one, otherwise a float."""
    number = float(value)
    whole = round(number)
    return whole if abs(number - whole) < SNAP else number


def snap(value: Fraction) -> Fraction:
    """Round a position to the nearest integer if it lies within `SNAP` of it; otherwise return it unchanged."""
    whole = round(value)
    return Fraction(whole) if abs(value - whole) < SNAP else value


def snap_places(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round positions to the nearest integer if they lie within `SNAP` of it, as `snap` does."""
    whole = np.rint(places)
    return np.where(np.abs(places - whole) < float(SNAP), whole, places)


def check_point(value: Any, name: str, count: tuple[int, ...] = (3,)) -> tuple[int | float, ...]:
    """Return the numbers (x, y, z) of a point, size or direction; raise `BoxError` if they are not finite numbers."""
    numbers = tuple(to_numbers(value))
    if len(numbers) in count and -_FARTHEST < min(numbers) <= max(numbers) < _FARTHEST:
        return numbers
    items = to_items(value)
    allowed = " or ".join(str(c) for c in count)
    if len(items) not in count:
        if to_number(value) is not None and name.endswith("resolution"):
            raise BoxError(
                param(name, value),
                " is one number, but voxels have a size along each of x, y and z; write ",
                *(param(name, (value,) * 3), " for cubic voxels, or e.g. ", param(name, (8, 8, 40))),
            )
        example = "(8, 8, 40)" if name.endswith("resolution") else "(512, 512)" if 2 in count else "(4100, 2100, 110)"
        raise BoxError(
            param(name, value), f" is not {allowed} numbers (x, y, z); write e.g. ", param(name, text=str(example))
        )
    wrong = next(item for item in items if not -_FARTHEST < (to_numbers([item]) or [math.inf])[0] < _FARTHEST)
    fault = "not a finite number" if to_number(wrong) is None else f"not between -{_FARTHEST:g} and {_FARTHEST:g}"
    raise BoxError(
        *(param(name, value), f" contains {format_value(wrong)}, which is {fault}; give "),
        "(x, y, z) numbers",
    )


def check_resolution(value: Any, name: str = "resolution") -> Triple:
    """Return a resolution (x, y, z in nm) as floats; raise `BoxError` if it is invalid."""
    numbers = check_point(value, name)
    if min(numbers) <= 0:
        raise BoxError(param(name, value), " must be positive: nanometres per unit as (x, y, z), e.g. (8, 8, 40)")
    if min(numbers) < _SMALLEST_UNIT:
        raise BoxError(
            *(param(name, value), " is too small for a voxel size; give nanometres per unit as (x, y, z), "),
            "e.g. (8, 8, 40)",
        )
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))


class IndexBox(NamedTuple):
    """A half-open box of voxel indexes (z, y, x), which may extend beyond an array."""

    start: Index3
    stop: Index3

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> IndexBox:
        """Return the box of a whole array of a given shape, from index 0."""
        return cls((0, 0, 0), (int(shape[0]), int(shape[1]), int(shape[2])))

    @property
    def shape(self) -> Index3:
        """Number of voxels along (z, y, x); 0 along an empty axis."""
        (z0, y0, x0), (z1, y1, x1) = self
        return (max(0, z1 - z0), max(0, y1 - y0), max(0, x1 - x0))

    @property
    def voxels(self) -> int:
        """Number of voxels in the box."""
        z, y, x = self.shape
        return z * y * x

    def shift(self, by: Sequence[int], sign: int = 1) -> IndexBox:
        """Return the box moved by ``sign * by`` voxels."""
        z, y, x = (sign * int(b) for b in by)
        (z0, y0, x0), (z1, y1, x1) = self
        return IndexBox((z0 + z, y0 + y, x0 + x), (z1 + z, y1 + y, x1 + x))

    def grow(self, by: Sequence[int]) -> IndexBox:
        """Return the box extended by ``by`` (z, y, x) voxels on both sides of each axis."""
        z, y, x = by
        (z0, y0, x0), (z1, y1, x1) = self
        return IndexBox((z0 - z, y0 - y, x0 - x), (z1 + z, y1 + y, x1 + x))

    def clip(self, to: IndexBox) -> IndexBox:
        """Return the intersection with another box; empty (stop == start) if they are disjoint."""
        # No loop over the axes: every block of every expression calls this dozens of times.
        (z0, y0, x0), (z1, y1, x1) = self
        (low_z, low_y, low_x), (high_z, high_y, high_x) = to
        start = (max(z0, low_z), max(y0, low_y), max(x0, low_x))
        stop = (min(z1, high_z), min(y1, high_y), min(x1, high_x))
        if stop[0] <= start[0] or stop[1] <= start[1] or stop[2] <= start[2]:
            return IndexBox(self.start, self.start)
        return IndexBox(start, stop)

    def hull(self, other: IndexBox) -> IndexBox:
        """Return the smallest box that contains this one and another; empty boxes are ignored."""
        if not self.voxels or not other.voxels:
            return other if not self.voxels else self
        (z0, y0, x0), (z1, y1, x1) = self
        (other_z0, other_y0, other_x0), (other_z1, other_y1, other_x1) = other
        start = (min(z0, other_z0), min(y0, other_y0), min(x0, other_x0))
        return IndexBox(start, (max(z1, other_z1), max(y1, other_y1), max(x1, other_x1)))

    def contains(self, other: IndexBox) -> bool:
        """Return whether another box, which is not empty, lies entirely within this one."""
        # No loop over the axes: a block of a strided array compares thousands of boxes.
        (z0, y0, x0), (z1, y1, x1) = self
        (low_z, low_y, low_x), (high_z, high_y, high_x) = other
        return z0 <= low_z < high_z <= z1 and y0 <= low_y < high_y <= y1 and x0 <= low_x < high_x <= x1

    def touches(self, other: IndexBox) -> bool:
        """Return whether no gap separates two boxes: they overlap, or share a face, an edge or a corner."""
        (z0, y0, x0), (z1, y1, x1) = self
        (low_z, low_y, low_x), (high_z, high_y, high_x) = other
        return z0 <= high_z and low_z <= z1 and y0 <= high_y and low_y <= y1 and x0 <= high_x and low_x <= x1

    def with_axis(self, axis: int, start: int, stop: int) -> IndexBox:
        """Return the box with another range of indexes along an axis: a slab of it, if the range lies inside."""
        low, high = list(self.start), list(self.stop)
        low[axis], high[axis] = start, stop
        return IndexBox((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    def round_out(self, size: Index3) -> IndexBox:
        """Return the smallest box that contains this one and whose edges are multiples of a size."""
        (z0, y0, x0), (z1, y1, x1) = self
        z, y, x = size
        return IndexBox((z0 - z0 % z, y0 - y0 % y, x0 - x0 % x), (z1 + -z1 % z, y1 + -y1 % y, x1 + -x1 % x))

    def cells(self, size: Index3) -> Iterator[IndexBox]:
        """Iterate, in C order, over the boxes of a size at multiples of the size that overlap this box."""
        whole = self.round_out(size)
        for z, y, x in product(*map(range, whole.start, whole.stop, size)):
            yield IndexBox((z, y, x), (z + size[0], y + size[1], x + size[2]))

    def slices(self, within: IndexBox | None = None) -> tuple[slice, slice, slice]:
        """Return slices that select this box in an array that covers ``within`` (from index 0 if None)."""
        origin = within.start if within is not None else (0, 0, 0)
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))
        return (z, y, x)


def is_covered_by(boxes: Collection[IndexBox], whole: IndexBox) -> bool:
    """Return whether boxes within ``whole`` together cover all of it."""
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


def block_starts(chunks: Sequence[Sequence[int]]) -> Splits:
    """Return the starts of blocks along each axis, followed by the end of the last block."""
    return tuple((0, *accumulate(sizes)) for sizes in chunks)


def block_box(starts: Sequence[Sequence[int]], idx: Sequence[int]) -> IndexBox:
    """Return the box (z, y, x) of a block, from the result of `block_starts`."""
    (z0, z1), (y0, y1), (x0, x1) = ((int(s[i]), int(s[i + 1])) for s, i in zip(starts, idx, strict=True))
    return IndexBox((z0, y0, x0), (z1, y1, x1))


@dataclass(frozen=True, slots=True)
class BBox:
    """A box in space, from ``lo`` (inclusive) to ``hi`` (exclusive), in the order (x, y, z).

    A box selects the voxels whose centre lies in ``[lo, hi)``, at every mip. Creating one reads no data.

    Parameters
    ----------
    lo, hi : sequence of 3 numbers
        Lower and upper corner (x, y, z), in units of ``resolution``; ``hi`` is exclusive.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z). With ``(1, 1, 1)`` the numbers are nanometres; with the resolution that
        Neuroglancer shows in its corner, such as ``(4, 4, 40)``, they are voxels of that size.

    Raises
    ------
    BoxError
        If a corner is not three finite numbers, the resolution is not three positive numbers, or the box is empty or
        inverted.

    Examples
    --------
    >>> import imageryxr as ix
    >>> box = ix.BBox((100, 200, 10), (612, 712, 11), resolution=(8, 8, 40))
    >>> box.lo_nm
    (800.0, 1600.0, 400.0)
    >>> box.size_nm
    (4096.0, 4096.0, 40.0)
    """

    lo: tuple[int | float, ...]
    hi: tuple[int | float, ...]
    resolution: Triple

    def __init__(self, lo: Sequence[float], hi: Sequence[float], *, resolution: Sequence[float] = (1, 1, 1)) -> None:
        lower, upper = check_point(lo, "lo"), check_point(hi, "hi")
        for name, a, b in zip("xyz", lower, upper, strict=True):
            if b < a:
                raise BoxError(
                    *("the box ", param("lo", lower), Wording(", ", " "), param("hi", upper)),
                    f" is inverted along {name} ({a} > {b}); give the lower corner first",
                    Wording(": BBox(lo, hi) with lo < hi on every axis", ""),
                )
            if a == b:
                raise BoxError(
                    *("the box ", param("lo", lower), Wording(", ", " "), param("hi", upper)),
                    f" is empty along {name} ({a} to {b}, and hi is exclusive); for one voxel write hi ",
                    f"{name} = {a + 1}",
                    Wording(", or use BBox.around(center, size)", ", or give --center and --size"),
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

        The voxel that contains the centre is the middle one. For integer sizes ``lo = floor(center) - size // 2``, as
        in ImageryClient's ``bounds_from_center``. For other sizes the box is ``center ± size / 2``.

        Parameters
        ----------
        center : sequence of 3 numbers
            The point (x, y, z), in units of ``resolution``. Neuroglancer's ``….5`` positions need no conversion.
        size : sequence of 2 or 3 numbers
            Extent (x, y, z) in units of ``size_resolution``. Two elements (x, y) select one plane.
        resolution : sequence of 3 numbers, default (1, 1, 1)
            Nanometres per unit (x, y, z) of ``center``.
        size_resolution : sequence of 3 numbers, optional
            Nanometres per unit of ``size``. With the resolution of a level, ``size`` counts voxels of that level.
            The default is ``resolution``.

        Returns
        -------
        BBox
            The box in units of ``size_resolution``.

        Raises
        ------
        BoxError
            If a number is not finite, or a size or resolution is not positive.

        Examples
        --------
        >>> import imageryxr as ix
        >>> ix.BBox.around((5319, 8677, 1201), (400, 400), resolution=(6, 6, 30))
        BBox(lo=(5119, 8477, 1201), hi=(5519, 8877, 1202), resolution=(6.0, 6.0, 30.0))
        >>> ix.BBox.around((100.5, 100.5, 7.5), (4, 4), resolution=(4, 4, 40), size_resolution=(8, 8, 40))
        BBox(lo=(48, 48, 7), hi=(52, 52, 8), resolution=(8.0, 8.0, 40.0))
        """
        point, extent = check_point(center, "center"), check_point(size, "size", (2, 3))
        extent = extent if len(extent) == 3 else (*extent, 1)
        if min(extent) <= 0:
            raise BoxError(param("size", size), " must be positive along every axis, e.g. ", param("size", (512, 512)))
        unit = check_resolution(resolution)
        target = unit if size_resolution is None else check_resolution(size_resolution, "size_resolution")
        lo: list[int | float] = []
        hi: list[int | float] = []
        for c, s, u, t in zip(point, extent, unit, target, strict=True):
            place = snap(to_fraction(c) * to_fraction(u) / to_fraction(t))
            if float(s).is_integer():
                low = math.floor(place) - int(s) // 2
                lo.append(low)
                hi.append(low + int(s))
            else:
                lo.append(tidy(place - to_fraction(s) / 2))
                hi.append(tidy(place + to_fraction(s) / 2))
        return cls(lo, hi, resolution=target)

    @property
    def lo_nm(self) -> Triple:
        """Lower corner (x, y, z) in nm."""
        return _to_triple(a for a, _ in self.edges())

    @property
    def hi_nm(self) -> Triple:
        """Upper corner (x, y, z) in nm, exclusive."""
        return _to_triple(b for _, b in self.edges())

    @property
    def size_nm(self) -> Triple:
        """Extent (x, y, z) in nm."""
        return _to_triple(b - a for a, b in self.edges())

    @property
    def center_nm(self) -> Triple:
        """Centre (x, y, z) in nm."""
        return _to_triple((a + b) / 2 for a, b in self.edges())

    def edges(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """Return the exact (lo, hi) in nm along x, y and z."""
        return tuple(
            (to_fraction(a) * to_fraction(r), to_fraction(b) * to_fraction(r))
            for a, b, r in zip(self.lo, self.hi, self.resolution, strict=True)
        )

    def intersection(self, other: BBox) -> BBox | None:
        """Return the intersection with another box, in nm, or None if they do not overlap."""
        if not isinstance(other, BBox):
            raise BoxError(f"{format_value(other)} is not a BBox; write imageryxr.BBox(lo, hi, resolution=(x, y, z))")
        pairs = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.edges(), other.edges(), strict=True)]
        if any(b <= a for a, b in pairs):
            return None
        return BBox([float(a) for a, _ in pairs], [float(b) for _, b in pairs])

    def __str__(self) -> str:
        lo, hi = (", ".join(f"{v:,.6g}" if isinstance(v, float) else f"{v:,}" for v in c) for c in (self.lo, self.hi))
        unit = "nm" if self.resolution == (1.0, 1.0, 1.0) else f"voxels of {format_triple(self.resolution)} nm"
        return f"({lo}) to ({hi}) in {unit}"


def _to_triple(values: Iterator[Fraction]) -> Triple:
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def format_triple(values: Sequence[float]) -> str:
    """Return three numbers as text, such as 8 × 8 × 40."""
    return " × ".join(f"{tidy(v):,}" if isinstance(tidy(v), int) else f"{v:g}" for v in values)
