"""Place labels beside the marks of a slice, and draw them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imageryxr.core import mark_kinds
from imageryxr.core.colors import RGBA
from imageryxr.errors import warn
from imageryxr.render.figure.text import draw_text, text_extent

if TYPE_CHECKING:
    from imageryxr.render.mark_shapes import Shapes

# Distances of a label from its mark, in heights of the text. Those after the first are connected with a line.
_DISTANCES = (0.0, 0.9, 1.8, 2.8)
# Directions of a label (x, y) as seen from its mark, in order of preference.
_SIDES = ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1))
# After this many successive labels without room, the remaining marks of a slice get no label, to limit the time.
_MOST_FAILURES = 2000
_CELL = 64

Rect = tuple[int, int, int, int]


@dataclass(frozen=True)
class LabelStyle:
    """The size and the colour of labels."""

    size: int
    """Height of the text in pixels."""
    color: RGBA | None
    """None for the colour of the mark."""


@dataclass(frozen=True)
class Label:
    """A label at its place in a picture."""

    slice: int
    row: int
    column: int
    text: str
    size: int
    color: RGBA
    line: tuple[float, float, float, float] | None = None
    """The line (x, y, x, y) from the mark to the label."""
    opacity: float = 1.0

    def touches(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> bool:
        """Return whether the label is drawn in the box of pixels from ``low`` to below ``high``."""
        width, height = text_extent(self.text, self.size)
        top, left, bottom, right = self.row, self.column, self.row + height, self.column + width
        if self.line is not None:
            x0, y0, x1, y1 = self.line
            top, bottom = min(top, int(min(y0, y1)) - 3), max(bottom, int(max(y0, y1)) + 3)
            left, right = min(left, int(min(x0, x1)) - 3), max(right, int(max(x0, x1)) + 3)
        inside = low[0] <= self.slice < high[0]
        return inside and top < high[1] and bottom > low[1] and left < high[2] and right > low[2]


class _Occupied:
    """Rectangles (left, top, right, bottom) in a grid of cells, to find overlaps quickly."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[Rect]] = defaultdict(list)

    @staticmethod
    def _cells_of(rect: Rect) -> Iterator[tuple[int, int]]:
        for row in range(rect[1] // _CELL, rect[3] // _CELL + 1):
            for column in range(rect[0] // _CELL, rect[2] // _CELL + 1):
                yield row, column

    def add(self, rect: Rect) -> None:
        for cell in self._cells_of(rect):
            self._cells[cell].append(rect)

    def meets(self, rect: Rect) -> bool:
        left, top, right, bottom = rect
        return any(
            left < r and right > l and top < b and bottom > t
            for cell in self._cells_of(rect)
            for l, t, r, b in self._cells.get(cell, ())  # noqa: E741
        )


def place_labels(
    shapes: Shapes, texts: list[str], colors: list[list[int]], number: int, frame: tuple[int, int], style: LabelStyle
) -> tuple[Label, ...]:
    """Return the labels of a slice; no two overlap, and labels without room are omitted.

    A label lies beside its mark, on the first of eight sides where it covers neither another label nor a mark;
    otherwise further away, connected with a line. If every place covers a mark, the first that covers no label is used.
    """
    labels, marks = _Occupied(), _Occupied()
    boxes = _mark_boxes(shapes, frame)
    for box in boxes:
        marks.add(box)
    placed: list[Label] = []
    failures = 0
    for text, box, color, opacity in zip(texts, boxes, colors, shapes.fading.tolist(), strict=True):
        if not text or failures >= _MOST_FAILURES:
            continue
        width, height = text_extent(text, style.size)
        free = [p for p in _places(box, width, height, style.size, frame) if not labels.meets(p[0])]
        found = next((p for p in free if not marks.meets(p[0])), free[0] if free else None)
        if found is None:
            failures += 1
            continue
        failures = 0
        rect, is_near = found
        labels.add(rect)
        ink = style.color or (color[0], color[1], color[2], 255)
        line = None if is_near else _line(box, rect)
        placed.append(Label(number, rect[1], rect[0], text, style.size, ink, line, opacity))
    return tuple(placed)


def warn_left_out(left_out: int, wanted: int, number: int) -> None:
    """Warn about labels without room."""
    warn(
        f"{left_out:,} of {wanted:,} labels of slice {number} are omitted because there is no room for them; give a "
        "smaller label_size, label fewer annotations, or enlarge the picture"
    )


def _mark_boxes(shapes: Shapes, frame: tuple[int, int]) -> list[Rect]:
    """Return the rectangles of marks, within the frame."""
    x, y, wide, high = shapes.params[:, :4].T
    edges = np.stack([x - wide, y - high, x + wide, y + high], axis=1)
    limits = np.array([frame[1], frame[0], frame[1], frame[0]])
    clipped = np.clip(np.rint(edges), 0, limits).astype(np.int64)
    return [(box[0], box[1], box[2], box[3]) for box in clipped.tolist()]


def _places(box: Rect, width: int, height: int, size: int, frame: tuple[int, int]) -> Iterator[tuple[Rect, bool]]:
    """Yield the rectangles in which a label may lie, the best first, and whether each is beside the mark."""
    cx, cy = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    for distance in _DISTANCES:
        gap = round(distance * size)
        for sx, sy in _SIDES:
            left = cx - width // 2 if sx == 0 else box[2] + gap if sx > 0 else box[0] - gap - width
            # Diagonal places are raised by half a line, so that they remain beside the mark.
            top = cy - height // 2 + sy * ((box[3] - box[1] + height) // 2 + gap if sx == 0 else height // 2 + gap)
            rect = (left, top, left + width, top + height)
            if left >= 0 and top >= 0 and rect[2] <= frame[1] and rect[3] <= frame[0]:
                yield rect, distance == 0


def _line(box: Rect, rect: Rect) -> tuple[float, float, float, float]:
    """Return the line (x, y, x, y) from the centre of a mark to the nearest point of a label."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x, y, min(max(x, rect[0]), rect[2]), min(max(y, rect[1] + 1), rect[3] - 1)


@lru_cache(maxsize=1024)
def _text_tile(text: str, size: int, color: RGBA) -> npt.NDArray[np.uint8]:
    """Return the pixels of a text with its halo: uint8 (rows, columns, 4), straight alpha."""
    from PIL import Image

    canvas = Image.new("RGBA", text_extent(text, size), (0, 0, 0, 0))
    draw_text(canvas, (0, 0), text, size, color)
    tile: npt.NDArray[np.uint8] = np.asarray(canvas)
    return tile


def draw_labels(labels: list[Label], origin: tuple[int, int], out: npt.NDArray[np.uint8]) -> None:
    """Draw labels over a picture whose first pixel is at (row, column) ``origin``, in place."""
    from imageryxr.kernels import fill
    from imageryxr.kernels import marks as kernel

    lines = [label for label in labels if label.line is not None]
    if lines:
        params = np.zeros((len(lines), mark_kinds.COLUMNS))
        paints = np.zeros((len(lines), 10))
        for k, label in enumerate(lines):
            x0, y0, x1, y1 = label.line or (0.0, 0.0, 0.0, 0.0)
            params[k, :4] = (x0 + x1) / 2, (y0 + y1) / 2, abs(x1 - x0) / 2 + 3, abs(y1 - y0) / 2 + 3
            params[k, 4:9] = x0, y0, x1, y1, max(1.0, label.size / 14) / 2
            paints[k, :4] = (*label.color[:3], label.color[3] / 255 * label.opacity)
        kernel.draw_marks(np.full(len(lines), mark_kinds.SEGMENT), params, paints, origin, out)
    for label in labels:
        tile = _text_tile(label.text, label.size, label.color)
        top, left = label.row - origin[0], label.column - origin[1]
        rows = slice(max(0, top), min(out.shape[0], top + tile.shape[0]))
        columns = slice(max(0, left), min(out.shape[1], left + tile.shape[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            part = tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            if label.opacity < 1:
                part = np.rint(part * np.array([1, 1, 1, label.opacity])).astype(np.uint8)
            out[rows, columns] = fill.alpha_over(np.ascontiguousarray(out[rows, columns]), np.ascontiguousarray(part))
