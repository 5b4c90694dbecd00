"""Recipes for voxels: what a lazy array is made of, before any block of it exists.

An `Expr` says how the voxels of any index box follow from other expressions, down to leaves that read a source. It is
a small picklable value. A dask block is one call of `evaluation.evaluate` on its box, so an overlay of a regridded
segmentation is one task a block, however many verbs led to it; a halo is a larger box asked of the source, not a graph
of neighbours; and what several branches need of one leaf is read once.

Index 0 is the first voxel of the array that an expression stands for, but an expression may be asked for any box: where
``bounds`` ends, its values are 0. That is how a crop still knows the data beyond its border.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.axis_mapping import AxisMap
from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.sources.base import Source, dtype_of

Array = npt.NDArray[Any]


class Expr(ABC):
    """How the voxels of any index box follow from others."""

    lead: tuple[int, ...] = ()
    """Sizes of the axes before (z, y, x)."""
    tail: tuple[int, ...] = ()
    """Sizes of the axes behind (z, y, x)."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @property
    @abstractmethod
    def bounds(self) -> IndexBox:
        """Where there are data; outside, values are 0."""

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The expressions that this one is made of."""
        return ()

    @abstractmethod
    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box wanted of each input to make a box, which lies within ``bounds``."""

    def pieces(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the parts of a box that are made apart, since what lies between them need not be read."""
        return (box,)

    def cores(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box of each input that lies where a box does: `needs` without halos."""
        return self.needs(box)

    @abstractmethod
    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the values of a box within ``bounds``, from the inputs' values of the boxes that `needs` gave."""

    @property
    def density(self) -> float:
        """How many voxels are in hand at once, at the most, for each one that is made."""
        return max([1.0, *(child.density for child in self.inputs)])

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return where storage chunks end between start and stop; None if nothing is stored in chunks.

        Of several inputs the one with the largest chunks decides: its edges are most often the others' too.
        """
        found = [e for e in (child.edges(axis, start, stop) for child in self.inputs) if e is not None]
        return min(found, key=len) if found else None

    def __dask_tokenize__(self) -> object:
        from dask.base import normalize_token

        values = tuple(normalize_token(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return (f"imageryxr.{type(self).__name__}", values)


class Leaf(Expr):
    """An expression that reads."""

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return nothing: a leaf has no inputs."""
        return ()

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the values of a box."""
        return self.read(box)

    @abstractmethod
    def read(self, box: IndexBox) -> Array:
        """Return the values of a box within ``bounds``."""


@dataclass(frozen=True)
class LevelLeaf(Leaf):
    """A level of a source."""

    source: Source
    mip: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return dtype_of(self.source, self.mip)

    @property
    def bounds(self) -> IndexBox:
        """The whole level."""
        return self.source.levels[self.mip].grid.box

    def read(self, box: IndexBox) -> Array:
        """Read a box from the source, in one call."""
        return self.source.read(self.mip, box)

    def edges(self, axis: int, start: int, stop: int) -> list[int]:
        """Return the storage chunk edges."""
        chunk = self.source.levels[self.mip].chunks[axis]
        return list(range((start // chunk + 1) * chunk, stop, chunk))


@dataclass(frozen=True, eq=False)
class ArrayLeaf(Leaf):
    """Values in memory."""

    array: Array
    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array."""
        return self.array.dtype

    @property
    def bounds(self) -> IndexBox:
        """The whole array."""
        return IndexBox.of_shape(self.array.shape[len(self.lead) :])

    def read(self, box: IndexBox) -> Array:
        """Return a view of the box."""
        return self.array[spatial_index(self, box.slices())]


@dataclass(frozen=True)
class DaskLeaf(Leaf):
    """Blocks of a dask array that imageryxr did not build: the scheduler hands them in."""

    name: str
    """The dask array's name, which stands for its content."""
    type: str
    shape: Index3
    splits: tuple[tuple[int, ...], ...]
    """Block sizes along z, y and x."""
    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the dask array."""
        return np.dtype(self.type)

    @property
    def bounds(self) -> IndexBox:
        """The whole dask array."""
        return IndexBox.of_shape(self.shape)

    def read(self, box: IndexBox) -> Array:
        """Refuse: these values are handed in with the task."""
        raise AssertionError(f"the blocks of {self.name} were not handed in")

    def edges(self, axis: int, start: int, stop: int) -> list[int]:
        """Return the block edges, of blocks without a voxel none of their own."""
        return sorted({int(e) for e in np.cumsum(self.splits[axis]) if start < e < stop})


@dataclass(frozen=True)
class SameValues(Expr):
    """The values of a child as they are; only places differ."""

    child: Expr
    lead: tuple[int, ...] = field(init=False)
    tail: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lead", self.child.lead)
        object.__setattr__(self, "tail", self.child.tail)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the child."""
        return self.child.dtype

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The child."""
        return (self.child,)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the same box."""
        return (box,)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the child's values."""
        return arrays[0]


@dataclass(frozen=True)
class Shifted(SameValues):
    """The same values, counted from another voxel: index ``i`` here is ``i + by`` there."""

    by: Index3

    @property
    def bounds(self) -> IndexBox:
        """The child's bounds, counted from here."""
        return self.child.bounds.shift(self.by, -1)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box as the child counts."""
        return (box.shift(self.by),)

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the child's chunk edges, counted from here."""
        by = self.by[axis]
        found = self.child.edges(axis, start + by, stop + by)
        return None if found is None else [e - by for e in found]


@dataclass(frozen=True)
class Widened(SameValues):
    """The same values, with the background around the child counted as data: a box that reaches outside a volume."""

    box: IndexBox

    @property
    def bounds(self) -> IndexBox:
        """The wider box."""
        return self.box


@dataclass(frozen=True)
class Clipped(SameValues):
    """The same values, of which only those in a box are known: an array that is seen from outside of it."""

    box: IndexBox

    @property
    def bounds(self) -> IndexBox:
        """The part of the box where the child has data."""
        return self.child.bounds.clip(self.box)


@dataclass(frozen=True)
class Mapped(Expr):
    """A function of one child, voxel by voxel, with 0 for 0 outside the bounds."""

    child: Expr
    function: Callable[[Array], Array]
    """A picklable function of a block, which may add axes before or behind."""
    type: str
    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the results."""
        return np.dtype(self.type)

    @property
    def bounds(self) -> IndexBox:
        """The child's bounds."""
        return self.child.bounds

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The child."""
        return (self.child,)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the same box."""
        return (box,)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the function's result."""
        return self.function(arrays[0])


@dataclass(frozen=True)
class Resampled(Expr):
    """A child on another grid."""

    child: Expr
    maps: tuple[AxisMap, AxisMap, AxisMap]
    """From the indexes here to those of the child, for z, y and x."""
    method: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the child: resampling keeps it."""
        return self.child.dtype

    @property
    def bounds(self) -> IndexBox:
        """The voxels whose centre lies within the child's bounds."""
        return self.mapped(self.child.bounds)

    def mapped(self, box: IndexBox) -> IndexBox:
        """Return the voxels whose centre lies within a box of the child's."""
        start = tuple(m.first_voxel_at(e) for m, e in zip(self.maps, box.start, strict=True))
        stop = tuple(m.first_voxel_at(e) for m, e in zip(self.maps, box.stop, strict=True))
        return IndexBox(start, stop)  # type: ignore[arg-type]

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The child."""
        return (self.child,)

    @property
    def density(self) -> float:
        """Shrinking takes all voxels that lie within a new one."""
        return max(1.0, self.child.density * float(math.prod(m.scale for m in self.maps)))

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the child's box that the method touches, within its bounds."""
        reach = [m.source_range(a, b, self.method) for m, a, b in zip(self.maps, box.start, box.stop, strict=True)]
        (z0, z1), (y0, y1), (x0, x1) = reach
        return (IndexBox((z0, y0, x0), (z1, y1, x1)).clip(self.child.bounds),)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the resampled values."""
        from imageryxr.kernels import downsample, interpolate

        (need,), bounds = self.needs(box), self.child.bounds
        axes = zip(self.maps, box.start, box.stop, bounds.start, bounds.stop, need.start, strict=True)
        if self.method == "nearest":
            indexes = [m.nearest(a, b, (lo, hi)).relative_to(first).voxel for m, a, b, lo, hi, first in axes]
            return interpolate.resample_nearest(arrays[0], *indexes)
        if self.method == "linear":
            z, y, x = (m.linear(a, b, (lo, hi)).relative_to(first) for m, a, b, lo, hi, first in axes)
            return interpolate.resample_linear(arrays[0], (z, y, x))
        runs = [m.overlap(a, b, (lo, hi)).relative_to(first) for m, a, b, lo, hi, first in axes]
        kernel = downsample.mode if self.method == "mode" else downsample.mean
        return kernel(arrays[0], (runs[0], runs[1], runs[2]))

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the child's chunk edges, as they fall here."""
        m = self.maps[axis]
        found = self.child.edges(axis, *m.source_range(start, stop, "nearest"))
        if found is None:
            return None
        return sorted({e for e in map(m.first_voxel_at, found) if start < e < stop})


def is_plain(expr: Expr) -> bool:
    """Tell whether the values are those of a leaf, with nothing done to them."""
    return isinstance(expr, Leaf) or (isinstance(expr, SameValues) and is_plain(expr.child))


def replace_leaves(expr: Expr, swap: Callable[[Leaf], Expr]) -> Expr:
    """Return an expression with others in place of its leaves; of each leaf it asks once, however often it is there."""
    made: dict[Expr, Expr] = {}

    def changed(value: Any) -> Any:
        return tuple(map(new, value)) if isinstance(value, tuple) else new(value)

    def new(expr: Expr) -> Expr:
        if expr not in made:
            children = {
                name: changed(value)
                for name, value in vars(expr).items()
                if isinstance(value, Expr) or (isinstance(value, tuple) and value and isinstance(value[0], Expr))
            }
            made[expr] = swap(expr) if isinstance(expr, Leaf) else replace(expr, **children)  # type: ignore[type-var]
        return made[expr]

    return new(expr)


def spatial_index(expr: Expr, slices: tuple[slice, slice, slice]) -> tuple[slice, ...]:
    """Return an index that cuts slices (z, y, x) out of an array with the axes of an expression."""
    return (slice(None),) * len(expr.lead) + slices


def shift_expr(expr: Expr, by: Sequence[int]) -> Expr:
    """Return an expression counted from another voxel, without piling shift on shift."""
    z, y, x = (int(b) for b in by)
    if isinstance(expr, Shifted):
        z, y, x = z + expr.by[0], y + expr.by[1], x + expr.by[2]
        expr = expr.child
    return expr if (z, y, x) == (0, 0, 0) else Shifted(expr, (z, y, x))


def view_expr(expr: Expr, own: IndexBox, box: IndexBox) -> Expr:
    """Return the expression of a box of an array that shows the box ``own`` of another.

    It is counted from the start of ``box``, all of which is in bounds. What lies beyond ``own`` stays known to halos
    where ``box`` stays within it; where ``box`` reaches out, the array ends.
    """
    moved = shift_expr(clip_to_array(expr, own, box), box.start)
    return widen_to(moved, IndexBox.of_shape(box.shape))


def clip_to_array(expr: Expr, own: IndexBox, box: IndexBox) -> Expr:
    """Return an expression that ends where the array ``own`` does, on the sides where ``box`` reaches beyond it."""
    bounds = expr.bounds
    start = tuple(o if w < o else min(b, o) for w, o, b in zip(box.start, own.start, bounds.start, strict=True))
    stop = tuple(o if w > o else max(b, o) for w, o, b in zip(box.stop, own.stop, bounds.stop, strict=True))
    kept = IndexBox(start, stop)  # type: ignore[arg-type]
    return expr if kept.contains(bounds) else Clipped(expr, kept)


def widen_to(expr: Expr, box: IndexBox) -> Expr:
    """Return an expression with a box in bounds: where it has no data there is background."""
    return expr if expr.bounds.contains(box) else Widened(expr, expr.bounds.hull(box))
