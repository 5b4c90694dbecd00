"""Expressions: the lazy descriptions of arrays.

An `Expr` defines how the voxels of any index box are computed from other expressions, down to leaves that read a
source. It is a small picklable value. A dask block is one call of `evaluate.evaluate` on its box. So an overlay of a
regridded segmentation has one task per block, however many verbs produced it; a halo is a larger read from the source,
not a graph of neighbouring blocks; and voxels that several branches need are read once.

Index 0 is the first voxel of the array that an expression describes. An expression can be evaluated on any box, also
one that is outside the array: its values are 0 outside ``bounds`` only. So a crop can use the data beyond its border.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.axis_mapping import AxisMap, GridMap
from imageryxr.core.bbox import Index3, IndexBox, Splits
from imageryxr.core.fork import cached_property
from imageryxr.sources.base import Source, dtype_of

Array = npt.NDArray[Any]


class Expr(ABC):
    """Definition of the voxels of any index box, in terms of other expressions.

    Subclasses are frozen dataclasses. Unless they override it, an expression has the type of its first input, data
    where any input has data, and needs the same box of each input.
    """

    lead: tuple[int, ...] = ()
    """Sizes of the axes before (z, y, x)."""
    tail: tuple[int, ...] = ()
    """Sizes of the axes after (z, y, x)."""

    @cached_property
    def inputs(self) -> tuple[Expr, ...]:
        """The expressions that this one is computed from: its fields that are expressions, or tuples of these."""
        return tuple(child for own in self._input_fields().values() for child in own)

    def _input_fields(self) -> dict[str, tuple[Expr, ...]]:
        """Return the expressions in each field that holds an expression or a tuple of expressions, by field name."""
        values = {name: value if isinstance(value, tuple) else (value,) for name, value in self.__getstate__().items()}
        return {name: value for name, value in values.items() if value and isinstance(value[0], Expr)}

    def map_inputs(self, function: Callable[[Expr], Expr]) -> Expr:
        """Return the expression with ``function(child)`` in place of each input; itself if no input changes."""
        changes: dict[str, Any] = {}
        for name, own in self._input_fields().items():
            new = tuple(map(function, own))
            if any(a is not b for a, b in zip(new, own, strict=True)):
                changes[name] = new if isinstance(getattr(self, name), tuple) else new[0]
        return replace(self, **changes) if changes else self  # type: ignore[type-var]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.inputs[0].dtype

    @cached_property
    def bounds(self) -> IndexBox:
        """The box that has data; values outside of it are 0."""
        return reduce(IndexBox.hull, [child.bounds for child in self.inputs])

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box of each input that is required to compute ``box``, which lies within ``bounds``."""
        return (box,) * len(self.inputs)

    def pieces(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the parts of a box that are computed separately, so that voxels between them need not be read."""
        return (box,)

    def cores(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box of each input at the position of ``box``: `needs` without halos."""
        return self.needs(box)

    def leaf_cores(self, box: IndexBox) -> dict[Leaf, IndexBox]:
        """Return the box of each leaf at the position of ``box``, without halos."""
        found = {self: box} if isinstance(self, Leaf) else {}
        for child, core in zip(self.inputs, self.cores(box), strict=True):
            for leaf, part in child.leaf_cores(core).items():
                found[leaf] = found[leaf].hull(part) if leaf in found else part
        return found

    @abstractmethod
    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the values of a box within ``bounds``, given the values of the inputs in the boxes of `needs`."""

    @property
    def density(self) -> float:
        """Number of voxels in memory per computed voxel, at most."""
        return max([1.0, *(child.density for child in self.inputs)])

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the edges of storage chunks between start and stop; None if nothing is stored in chunks.

        With several inputs, these are the edges of the largest chunks, which the other inputs usually share.
        """
        found = [e for e in (child.edges(axis, start, stop) for child in self.inputs) if e is not None]
        return min(found, key=len) if found else None

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties, since every task of a graph contains its expression.
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def __dask_tokenize__(self) -> object:
        from dask.base import normalize_token

        return (f"imageryxr.{type(self).__name__}", tuple(map(normalize_token, self.__getstate__().values())))


class Leaf(Expr):
    """An expression that reads voxels, instead of computing them from inputs."""

    inputs = ()

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

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return dtype_of(self.source, self.mip)

    @cached_property
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

    @cached_property
    def bounds(self) -> IndexBox:
        """The whole array."""
        return IndexBox.of_shape(self.array.shape[len(self.lead) :])

    def read(self, box: IndexBox) -> Array:
        """Return a view of the box."""
        return self.array[spatial_index(self, box.slices())]


@dataclass(frozen=True)
class DaskLeaf(Leaf):
    """A dask array that imageryxr did not build; the scheduler passes its blocks to the tasks."""

    name: str
    """The name of the dask array, which identifies its content."""
    type: str
    shape: Index3
    splits: Splits
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
        """Raise `AssertionError`: the blocks must be passed to `evaluate`."""
        raise AssertionError(f"the blocks of {self.name} were not passed to the task")

    def edges(self, axis: int, start: int, stop: int) -> list[int]:
        """Return the distinct block edges; empty blocks add none."""
        return sorted({int(e) for e in np.cumsum(self.splits[axis]) if start < e < stop})


@dataclass(frozen=True)
class SameValues(Expr):
    """Base of expressions that keep the values of a child and change only indexes or bounds."""

    child: Expr
    lead: tuple[int, ...] = field(init=False)
    tail: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lead", self.child.lead)
        object.__setattr__(self, "tail", self.child.tail)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the child's values."""
        return arrays[0]


@dataclass(frozen=True)
class Shifted(SameValues):
    """The child with another origin: index ``i`` here is index ``i + by`` of the child."""

    by: Index3

    @cached_property
    def bounds(self) -> IndexBox:
        """The child's bounds, in the indexes of this expression."""
        return self.child.bounds.shift(self.by, -1)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the box in the child's indexes."""
        return (box.shift(self.by),)

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the child's chunk edges, in the indexes of this expression."""
        by = self.by[axis]
        found = self.child.edges(axis, start + by, stop + by)
        return None if found is None else [e - by for e in found]


@dataclass(frozen=True)
class Widened(SameValues):
    """The child with larger bounds, padded with background, as for a box that extends beyond a volume."""

    box: IndexBox

    @property
    def bounds(self) -> IndexBox:
        """The wider box."""
        return self.box


@dataclass(frozen=True)
class Clipped(SameValues):
    """The child with smaller bounds: values outside of a box are 0."""

    box: IndexBox

    @cached_property
    def bounds(self) -> IndexBox:
        """The part of the box within the child's bounds."""
        return self.child.bounds.clip(self.box)


@dataclass(frozen=True)
class Mapped(Expr):
    """A function of one child, voxel by voxel, that maps 0 to 0."""

    child: Expr
    function: Callable[[Array], Array]
    """A picklable function of a block, which may add axes before or after (z, y, x)."""
    type: str
    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the results."""
        return np.dtype(self.type)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the function's result."""
        return self.function(arrays[0])


@dataclass(frozen=True)
class Resampled(Expr):
    """The child, resampled onto another grid."""

    child: Expr
    grid_map: GridMap
    """Map from the indexes of this grid to those of the child's grid."""
    method: str

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the child in native byte order, which the kernels return."""
        return self.child.dtype.newbyteorder("=")

    @cached_property
    def bounds(self) -> IndexBox:
        """The voxels whose centre lies within the child's bounds."""
        return self.box_from_child(self.child.bounds)

    def box_from_child(self, box: IndexBox) -> IndexBox:
        """Return the voxels whose centre lies within a box of the child."""
        return self.grid_map.target_box(box)

    @property
    def density(self) -> float:
        """The number of child voxels per voxel: downsampling reads all voxels within a new one."""
        return max(1.0, self.child.density * self.grid_map.scale)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the child's box that the method reads, within the child's bounds."""
        return (self.grid_map.source_box(box, self.method).clip(self.child.bounds),)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the resampled values."""
        from imageryxr.kernels import downsample, interpolate

        (need,) = self.needs(box)
        maps, valid = self.grid_map.relative_to(need.start).axes, self.child.bounds.shift(need.start, -1)
        if self.method == "nearest":
            return interpolate.resample_nearest(arrays[0], *map(AxisMap.nearest, maps, box.start, box.stop))
        axes = list(zip(maps, box.start, box.stop, zip(valid.start, valid.stop, strict=True), strict=True))
        if self.method == "linear":
            lines = [m.linear(a, b, inside) for m, a, b, inside in axes]
            return interpolate.resample_linear(arrays[0], (lines[0], lines[1], lines[2]))
        runs = [m.overlap(a, b, inside) for m, a, b, inside in axes]
        kernel = downsample.mode if self.method == "mode" else downsample.mean
        return kernel(arrays[0], (runs[0], runs[1], runs[2]))

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the child's chunk edges, in the indexes of this grid."""
        along = self.grid_map.axes[axis]
        found = self.child.edges(axis, *along.source_range(start, stop, "nearest"))
        return None if found is None else along.target_edges(found, start, stop)


def replace_leaves(expr: Expr, swap: Callable[[Leaf], Expr]) -> Expr:
    """Return an expression with each leaf replaced by ``swap(leaf)``, which is called once per distinct leaf."""
    made: dict[Expr, Expr] = {}

    def new(expr: Expr) -> Expr:
        if expr not in made:
            made[expr] = swap(expr) if isinstance(expr, Leaf) else expr.map_inputs(new)
        return made[expr]

    return new(expr)


def spatial_index(expr: Expr, slices: tuple[slice, slice, slice]) -> tuple[slice, ...]:
    """Return the index of slices (z, y, x) in an array with the axes of an expression."""
    return (slice(None),) * len(expr.lead) + slices


def shift_expr(expr: Expr, by: Sequence[int]) -> Expr:
    """Return an expression whose index 0 is index ``by`` of ``expr``; nested shifts are merged."""
    z, y, x = (int(b) for b in by)
    if isinstance(expr, Shifted):
        z, y, x = z + expr.by[0], y + expr.by[1], x + expr.by[2]
        expr = expr.child
    return expr if (z, y, x) == (0, 0, 0) else Shifted(expr, (z, y, x))


def view_expr(expr: Expr, own: IndexBox, box: IndexBox) -> Expr:
    """Return the expression of a box of an array, which occupies the box ``own`` of ``expr``.

    Index 0 is the start of ``box``, and all of ``box`` is in bounds. On the sides where ``box`` is within ``own``,
    halos can read the data beyond ``own``; on the sides where it extends beyond ``own``, the data end with ``own``.
    """
    moved = shift_expr(clip_to_array(expr, own, box), box.start)
    return widen_to(moved, box.shift(box.start, -1))


def clip_to_array(expr: Expr, own: IndexBox, box: IndexBox) -> Expr:
    """Return an expression clipped to the array ``own``, on the sides where ``box`` extends beyond it."""
    bounds = expr.bounds
    start = tuple(o if w < o else min(b, o) for w, o, b in zip(box.start, own.start, bounds.start, strict=True))
    stop = tuple(o if w > o else max(b, o) for w, o, b in zip(box.stop, own.stop, bounds.stop, strict=True))
    return clip_to_box(expr, IndexBox(start, stop))  # type: ignore[arg-type]


def clip_to_box(expr: Expr, box: IndexBox) -> Expr:
    """Return an expression whose values outside of a box are 0; halos of its inputs can read the data beyond."""
    return expr if box.contains(expr.bounds) else Clipped(expr, box)


def widen_to(expr: Expr, box: IndexBox) -> Expr:
    """Return an expression whose bounds include a box; values are 0 where ``expr`` has no data."""
    return expr if expr.bounds.contains(box) else Widened(expr, expr.bounds.hull(box))
