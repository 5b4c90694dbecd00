"""Marks of annotations on a picture: a table with an index, and the expression that draws it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.graph.evaluate import TableExpr
from imageryxr.graph.expr import Array, Expr
from imageryxr.render.mark_labels import Label, LabelStyle, draw_labels, place_labels, warn_left_out
from imageryxr.render.mark_shapes import MarkTable, slice_shapes
from imageryxr.render.paint import RgbaExpr

Floats = npt.NDArray[np.float64]

# Rows per group of the index: a query compares the box of each group, then the rows of the groups that it touches.
_GROUP = 64


@dataclass(frozen=True, eq=False)
class Marks(MarkTable):
    """Annotations on a picture, with their labels and an index.

    The table is sorted into groups of nearby marks once, when it is first drawn.
    """

    texts: npt.NDArray[Any] | None = None
    """The label of each mark; empty strings for none."""
    labels: LabelStyle | None = None
    placed: tuple[Label, ...] | None = None
    """The labels of the slices of a part of the table; None for a whole table."""
    cache: dict[int, tuple[Label, ...]] = field(default_factory=dict, repr=False)
    """The labels of each slice, once they are placed."""
    warned: list[int] = field(default_factory=list, repr=False)
    """The first slice in which labels found no room."""

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.kind, self.style, self.start, self.extent, self.color, self.size, self.texts, self.labels)
        return (Marks, (*parts, self.placed))

    @cached_property
    def token(self) -> str:
        """A hash of the content."""
        from dask.base import tokenize

        texts = None if self.texts is None else self.texts.tolist()
        parts = (self.kind, self.style, self.start, self.extent, self.color, self.size, texts, self.labels, self.placed)
        return str(tokenize(*parts))

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.Marks", self.token)

    @cached_property
    def _index(self) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
        """The rows in groups of neighbours, and the lower and upper corner of the box of each group."""
        low, high = self.corners()
        order = np.argsort(_morton_codes(self.start), kind="stable")
        starts = np.arange(0, len(order), _GROUP)
        lows = np.minimum.reduceat(low[order], starts, axis=0)
        highs = np.maximum.reduceat(high[order], starts, axis=0)
        return order, lows, highs

    def corners(self, rows: Any = slice(None)) -> tuple[Floats, Floats]:
        """Return the lower and upper corners of the boxes in which marks are drawn."""
        size = self.size if len(self.size) == 1 else self.size[rows]
        return self.style.boxes(self.kind, self.start[rows], self.extent[rows] if len(self.extent) else None, size)

    def rows_in(self, low: Floats, high: Floats) -> npt.NDArray[np.int64]:
        """Return the rows that may be drawn within a box (slice, row, column), in drawing order."""
        if not len(self):
            return np.empty(0, np.int64)
        if len(self) <= 4 * _GROUP:
            rows = np.arange(len(self))
        else:
            order, lows, highs = self._index
            groups = np.flatnonzero((lows <= high).all(axis=1) & (highs >= low).all(axis=1))
            rows = (groups[:, np.newaxis] * _GROUP + np.arange(_GROUP)).ravel()
            rows = np.sort(order[rows[rows < len(order)]])
        lo, hi = self.corners(rows)
        found: npt.NDArray[np.int64] = rows[(lo <= high).all(axis=1) & (hi >= low).all(axis=1)]
        return found

    def take(self, rows: npt.NDArray[np.int64]) -> Marks:
        """Return some of the marks, without labels."""
        color = self.color if len(self.color) == 1 else self.color[rows]
        size = self.size if len(self.size) == 1 else self.size[rows]
        extent = self.extent[rows] if len(self.extent) else self.extent
        parts: dict[str, Any] = {"color": color, "size": size, "extent": extent, "texts": None, "labels": None}
        return replace(self, start=self.start[rows], placed=(), cache={}, **parts)

    def within(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> Marks:
        """Return the marks and labels that are drawn in the box of pixels from ``low`` to below ``high``."""
        part = self.take(self.rows_in(np.array(low, np.float64), np.array(high, np.float64)))
        return replace(part, placed=self.labels_in(low, high))

    def labels_in(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> tuple[Label, ...]:
        """Return the labels that are drawn in a box of pixels."""
        if self.placed is not None:
            slices: list[tuple[Label, ...]] = [self.placed]
        elif self.texts is None or self.labels is None:
            return ()
        else:
            slices = [self._slice_labels(number) for number in range(low[0], high[0])]
        return tuple(label for labels in slices for label in labels if label.touches(low, high))

    def _slice_labels(self, number: int) -> tuple[Label, ...]:
        """Return the labels of a slice, placed with regard to all marks of the whole slice."""
        if number not in self.cache:
            assert self.texts is not None
            assert self.labels is not None
            frame = self.style.frame
            shown = self.rows_in(np.array([number, 0.0, 0.0]), np.array([number + 1.0, *map(float, frame)]))
            shapes, rows = slice_shapes(self.take(shown), number)
            used = shown[rows]
            colors = self.color[used] if len(self.color) > 1 else np.repeat(self.color, len(used), axis=0)
            texts = np.where(shapes.fading > 0, self.texts[used], "").tolist()
            placed = place_labels(shapes, texts, colors.tolist(), number, frame, self.labels)
            wanted = sum(map(bool, texts))
            if len(placed) < wanted and not self.warned:
                self.warned.append(number)
                warn_left_out(wanted - len(placed), wanted, number)
            self.cache[number] = placed
        return self.cache[number]


@dataclass(frozen=True, eq=False)
class Annotated(TableExpr, RgbaExpr):
    """A picture with marks drawn over it."""

    child: Expr
    marks: Marks
    axis: int
    """The axis across the slices: 0 for z, 1 for y, 2 for x."""

    def restrict(self, box: IndexBox) -> Annotated:
        """Return the picture with only the marks that a box needs."""
        return replace(self, marks=self.marks.within(*self._box_by_slices(box)))

    def _box_by_slices(self, box: IndexBox) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return the corners of a box as (slice, row, column)."""
        order = [self.axis, *(axis for axis in range(3) if axis != self.axis)]
        low, high = ([corner[axis] for axis in order] for corner in box)
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the picture with the marks of the box."""
        from imageryxr.kernels import marks as kernel

        low, high = self._box_by_slices(box)
        part = self.marks.within(low, high)
        if not len(part) and not part.placed:
            return arrays[0]
        out = np.array(arrays[0], order="C")
        slices = np.moveaxis(out, self.axis, 0)
        bottom, top = (corner[:, 0] for corner in part.corners())
        for number in range(low[0], high[0]):
            found, _ = slice_shapes(part.take(np.flatnonzero((bottom <= number + 1) & (top >= number))), number)
            labels = [label for label in part.placed or () if label.slice == number]
            if not len(found.kinds) and not labels:
                continue
            plane = np.ascontiguousarray(slices[number - low[0]])
            kernel.draw_marks(found.kinds, found.params, found.paints, (low[1], low[2]), plane)
            draw_labels(labels, (low[1], low[2]), plane)
            slices[number - low[0]] = plane
        return out


def _morton_codes(places: Floats) -> npt.NDArray[np.int64]:
    """Return numbers whose order keeps neighbours together: the interleaved bits of the coordinates."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = ((places - low) * (1023.0 / np.maximum(high - low, 1e-9))).astype(np.int64)
    codes = np.zeros(len(places), np.int64)
    for axis in range(3):
        bits = scaled[:, axis]
        bits = (bits | (bits << 16)) & 0x030000FF
        bits = (bits | (bits << 8)) & 0x0300F00F
        bits = (bits | (bits << 4)) & 0x030C30C3
        bits = (bits | (bits << 2)) & 0x09249249
        codes |= bits << axis
    return codes
