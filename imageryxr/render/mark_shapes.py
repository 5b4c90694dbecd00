"""The shapes that annotations have in one slice: markers, and sections of lines, boxes and ellipsoids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.core import mark_kinds
from imageryxr.core.annotations import AnnotationType
from imageryxr.core.bbox import SNAP, snap_places
from imageryxr.core.colors import RGBA

Floats = npt.NDArray[np.float64]
Marker: TypeAlias = Literal["circle", "ring", "cross", "x", "square", "triangle"]

_KINDS: dict[str, int] = {
    "circle": mark_kinds.ELLIPSE,
    "ring": mark_kinds.RING,
    "cross": mark_kinds.CROSS,
    "x": mark_kinds.DIAGONAL_CROSS,
    "square": mark_kinds.SQUARE,
    "triangle": mark_kinds.TRIANGLE,
}
# Replaces a radius of 0, for which the kernel has no ellipse; the mark is invisible.
_LEAST_RADIUS = 1e-3
# Relative tolerance of distances, because positions in voxels times the size of a voxel have rounding errors.
_NOISE = 1e-9


@dataclass(frozen=True)
class MarkStyle:
    """The style of marks, and the geometry of the picture on which they are drawn."""

    marker: Marker
    unit: Literal["px", "nm"]
    width: float
    """Width of strokes in pixels."""
    edge: RGBA | None
    edge_width: float
    depth: float | None
    """Greatest distance from the centre of the slice in nm; None for the slice itself."""
    fade: bool
    fill: float
    """Opacity of the interior of boxes and ellipsoids, relative to that of their outline."""
    spacing: tuple[float, float, float]
    """Size of a voxel along (slice, row, column) in nm."""
    directions: tuple[tuple[float, float, float], ...]
    """Directions (x, y, z) of the axes (slice, row, column)."""
    frame: tuple[int, int]
    """Rows and columns of a slice."""

    def slab(self, number: int) -> tuple[float, float]:
        """Return the range along the slice axis, in voxels, in which marks are drawn in a slice."""
        if self.depth is None:
            return float(number), float(number + 1)
        reach = self.depth / self.spacing[0] * (1 + _NOISE)
        return number + 0.5 - reach, number + 0.5 + reach

    def radii(self, size: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return half the sizes of markers in pixels, along columns and rows."""
        half = size.astype(np.float64) / 2
        if self.unit == "px":
            return half, half
        return half / self.spacing[2], half / self.spacing[1]

    def boxes(self, kind: str, start: Floats, extent: Floats | None, size: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the lower and upper corners (slice, row, column) of the boxes in which marks are drawn."""
        low, high = start.copy(), start.copy()
        margin = self.width / 2 + self.edge_width + 1.0
        if kind == "line" and extent is not None:
            low, high = np.minimum(start, extent), np.maximum(start, extent)
        elif kind == "point":
            rx, ry = self.radii(size)
            reach = np.stack(np.broadcast_arrays(0.0, 1.2 * ry, 1.2 * rx), axis=-1)
            low, high = start - reach, start + reach
        elif extent is not None:
            turned = np.array(self.directions)
            reach = extent @ np.abs(turned).T if kind == "box" else np.sqrt(extent**2 @ (turned**2).T)
            low, high = start - reach / self.spacing, start + reach / self.spacing
        deep = 0.5 if self.depth is None else max(0.0, self.depth / self.spacing[0] * (1 + _NOISE) - 0.5)
        around = np.array([deep if self.depth is not None else float(SNAP), margin, margin])
        return low - around, high + around


@dataclass(frozen=True)
class Shapes:
    """Arguments of the kernel that draws marks."""

    kinds: npt.NDArray[np.int64]
    params: Floats
    paints: Floats
    fading: Floats
    """Opacity of each mark due to its distance, from 0 to 1; for a line, the opacity at its nearest position."""


@dataclass(frozen=True, eq=False)
class MarkTable:
    """Annotations in the pixels of a picture, in drawing order.

    Positions are (slice, row, column) of the whole picture, in voxels from the lower edge of its first voxel.
    """

    kind: AnnotationType
    style: MarkStyle
    start: Floats
    """Float64 (n, 3): points, first ends of lines, centres of boxes and ellipsoids."""
    extent: Floats
    """Float64 (n, 3): second ends of lines in pixels; half sizes of boxes and radii of ellipsoids in nm, (x, y, z);
    (0, 3) for points."""
    color: npt.NDArray[np.uint8]
    """Uint8 (n, 4), or (1, 4) if all marks have one colour."""
    size: npt.NDArray[np.float32]
    """Float32 (n,), or (1,) if all marks have one size."""

    def __len__(self) -> int:
        return len(self.start)


def slice_shapes(marks: MarkTable, number: int) -> tuple[Shapes, npt.NDArray[np.int64]]:
    """Return the shapes of marks in a slice, and the row of each."""
    make = {"point": _points, "line": _lines, "box": _boxes, "ellipsoid": _ellipsoids}[marks.kind]
    if not len(marks):
        rows, kinds, params = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, mark_kinds.COLUMNS))
        distance = np.empty(0)
    else:
        rows, kinds, params, distance = make(marks, number)
    style = marks.style
    paints = np.zeros((len(rows), 10))
    colors = marks.color[rows] if len(marks.color) > 1 else marks.color
    paints[:, :4] = colors
    paints[:, 3] /= 255
    edge = style.edge or (0, 0, 0, 0)
    paints[:, 4:8] = edge
    paints[:, 7] = edge[3] / 255 * paints[:, 3]
    paints[:, 8] = style.edge_width if style.edge else 0.0
    paints[:, 9] = style.fill
    fading = np.ones(len(rows))
    if style.fade and style.depth:
        fading = np.clip(1 - distance / style.depth, 0, 1)
        if marks.kind != "line":  # the kernel fades a line along its length
            paints[:, (3, 7)] *= fading[:, np.newaxis]
    return Shapes(kinds, params, paints, fading), rows


def _meets(bottom: Floats, top: Floats, style: MarkStyle, number: int) -> npt.NDArray[np.bool_]:
    """Return which intervals along the slice axis a slice shows.

    Intervals and slices are half-open, as boxes are: what is exactly as thick as a slice lies in one slice, and a
    position on the border of two slices in the upper one. With a depth, both ends count.
    """
    low, high = style.slab(number)
    if style.depth is not None:
        return np.asarray((top >= low) & (bottom <= high))
    return np.asarray((bottom < high) & ((top > low) | ((top == bottom) & (top >= low))))


_Made = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, Floats]


def _points(marks: MarkTable, number: int) -> _Made:
    style, across = marks.style, marks.start[:, 0]
    rows = np.flatnonzero(_meets(across, across, style, number))
    size = marks.size[rows] if len(marks.size) > 1 else np.repeat(marks.size, len(rows))
    rx, ry = style.radii(size)
    rx, ry = np.maximum(rx, _LEAST_RADIUS), np.maximum(ry, _LEAST_RADIUS)
    params = np.zeros((len(rows), mark_kinds.COLUMNS))
    params[:, 0], params[:, 1] = marks.start[rows, 2], marks.start[rows, 1]
    kind = _KINDS[style.marker]
    stroke = style.width / 2 if kind in (mark_kinds.CROSS, mark_kinds.DIAGONAL_CROSS, mark_kinds.RING) else 0.0
    margin = style.edge_width + 1.0 + stroke
    params[:, 2], params[:, 3] = 1.2 * rx + margin, 1.2 * ry + margin
    if kind in (mark_kinds.ELLIPSE, mark_kinds.RING):
        if kind == mark_kinds.RING:  # the size is that of the outer edge
            rx, ry = np.maximum(rx - stroke, _LEAST_RADIUS), np.maximum(ry - stroke, _LEAST_RADIUS)
        params[:, 4], params[:, 5], params[:, 6] = rx, ry, 1.0
        params[:, 9] = np.minimum(rx, ry)
    else:
        params[:, 4], params[:, 5] = rx, ry
    params[:, 7] = stroke
    distance = np.abs(across[rows] - (number + 0.5)) * style.spacing[0]
    return rows, np.full(len(rows), kind), params, distance


def _lines(marks: MarkTable, number: int) -> _Made:
    style = marks.style
    low, high = style.slab(number)
    a, b = marks.start, marks.extent
    za, zb = a[:, 0], b[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, last = (low - za) / (zb - za), (high - za) / (zb - za)
    flat = za == zb
    t0 = np.where(flat, 0.0, np.clip(np.minimum(first, last), 0, 1))
    t1 = np.where(flat, 1.0, np.clip(np.maximum(first, last), 0, 1))
    least, most = np.minimum(za, zb), np.maximum(za, zb)
    rows = np.flatnonzero(_meets(least, most, style, number))
    a, b, t0, t1 = a[rows], b[rows], t0[rows, np.newaxis], t1[rows, np.newaxis]
    # An end that is not cut keeps its exact position.
    p, q = np.where(t0 == 0, a, a + t0 * (b - a)), np.where(t1 == 1, b, a + t1 * (b - a))
    params = np.zeros((len(rows), mark_kinds.COLUMNS))
    params[:, (4, 5)], params[:, (6, 7)] = p[:, (2, 1)], q[:, (2, 1)]
    params[:, 8] = style.width / 2
    params[:, (0, 1)] = (p[:, (2, 1)] + q[:, (2, 1)]) / 2
    margin = style.width / 2 + style.edge_width + 1.0
    params[:, (2, 3)] = np.abs(p[:, (2, 1)] - q[:, (2, 1)]) / 2 + margin
    params[:, 9] = (p[:, 0] - number - 0.5) * style.spacing[0]
    params[:, 10] = (q[:, 0] - number - 0.5) * style.spacing[0]
    params[:, 11] = style.depth if style.fade and style.depth else 0.0
    nearest = np.where(params[:, 9] * params[:, 10] <= 0, 0.0, np.abs(params[:, 9:11]).min(axis=1))
    return rows, np.full(len(rows), mark_kinds.SEGMENT), params, nearest


def _section(marks: MarkTable, number: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return the rows of solids in a slice, where along the slice axis each is cut, and its distance in nm.

    A solid is cut at the centre of the slice. If it does not reach the centre, it is cut at the nearest position within
    the slice. With a depth, it is cut where it is nearest to its own centre.
    """
    style = marks.style
    low, high = style.slab(number)
    deep = np.array(style.directions[0])
    along = np.abs(deep) @ marks.extent.T if marks.kind == "box" else np.sqrt(deep**2 @ marks.extent.T**2)
    reach, center = along / style.spacing[0], marks.start[:, 0]
    bottom, top = center - reach, center + reach
    middle = number + 0.5
    nearest = np.clip(center, low, high)
    at = nearest if style.depth is not None else np.where((bottom <= middle) & (middle <= top), middle, nearest)
    at = np.clip(at, bottom, top)
    distance = np.maximum(0.0, np.maximum(bottom - middle, middle - top)) * style.spacing[0]
    rows = np.flatnonzero(_meets(snap_places(bottom), snap_places(top), style, number))
    return rows, at[rows], distance[rows]


def _ellipsoids(marks: MarkTable, number: int) -> _Made:
    style = marks.style
    rows, at, distance = _section(marks, number)
    turned = np.array(style.directions)
    radii = np.maximum(marks.extent[rows], _LEAST_RADIUS)
    # The quadratic form in (slice, row, column) and nm; then that of the section, after completing the square.
    form = np.einsum("ij,nj,kj->nik", turned, radii**-2.0, turned)
    w = (at - marks.start[rows, 0]) * style.spacing[0]
    inner = form[:, 1:, 1:]
    shift = -np.linalg.solve(inner, form[:, 1:, :1])[:, :, 0] * w[:, np.newaxis]
    left = 1 - w**2 * (form[:, 0, 0] - np.einsum("ni,nij,nj->n", form[:, 0, 1:], np.linalg.inv(inner), form[:, 0, 1:]))
    matrix = inner / np.maximum(left, 1e-12)[:, np.newaxis, np.newaxis]
    step = np.array(style.spacing[1:])
    matrix = matrix * step[:, np.newaxis] * step
    center = marks.start[rows, 1:] + shift / step
    reach = np.sqrt(np.maximum(np.linalg.inv(matrix), 0))  # the diagonal is the half size of the bounding box
    stroke = style.width / 2
    margin = stroke + style.edge_width + 1.0
    params = np.zeros((len(rows), mark_kinds.COLUMNS))
    params[:, 0], params[:, 1] = center[:, 1], center[:, 0]
    params[:, 2], params[:, 3] = reach[:, 1, 1] + margin, reach[:, 0, 0] + margin
    values, vectors = np.linalg.eigh(matrix)
    half = values**-0.5
    params[:, 4], params[:, 5] = half[:, 0], half[:, 1]
    params[:, 6], params[:, 8] = vectors[:, 1, 0], vectors[:, 0, 0]
    params[:, 7], params[:, 9] = stroke, half[:, 1]
    return rows, np.full(len(rows), mark_kinds.RING), params, distance


def _boxes(marks: MarkTable, number: int) -> _Made:
    style = marks.style
    rows, at, distance = _section(marks, number)
    params = np.zeros((len(rows), mark_kinds.COLUMNS))
    stroke = style.width / 2
    margin = stroke + style.edge_width + 1.0
    kept = []
    for k, (row, z) in enumerate(zip(rows.tolist(), at.tolist(), strict=True)):
        corners = _section_of_box(marks, row, z)
        if not len(corners):
            continue
        kept.append(k)
        low, high = corners.min(axis=0), corners.max(axis=0)
        params[k, :2] = (low + high)[::-1] / 2
        params[k, 2:4] = (high - low)[::-1] / 2 + margin
        params[k, 4] = len(corners)
        params[k, 5 : 5 + 2 * len(corners)] = corners[:, ::-1].ravel()
        params[k, 17] = stroke
    return rows[kept], np.full(len(kept), mark_kinds.POLYGON), params[kept], distance[kept]


# The corners of a box, and its edges: pairs of corners that differ along one axis.
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2]


def _section_of_box(marks: MarkTable, row: int, z: float) -> Floats:
    """Return the corners (row, column) of the section of a box, in order around it."""
    style = marks.style
    turned = np.array(style.directions)
    corners = marks.start[row] + (_CORNERS * marks.extent[row]) @ turned.T / style.spacing
    if np.abs(np.abs(turned).max(axis=1) - 1).max() < 1e-12:  # the picture's axes are those of the box
        low, high = corners.min(axis=0)[1:], corners.max(axis=0)[1:]
        return np.array([[low[0], low[1]], [low[0], high[1]], [high[0], high[1]], [high[0], low[1]]])
    points = []
    for i, j in _EDGES:
        a, b = corners[i], corners[j]
        if min(a[0], b[0]) <= z <= max(a[0], b[0]):
            t = 0.0 if a[0] == b[0] else (z - a[0]) / (b[0] - a[0])
            points.append(a[1:] + t * (b[1:] - a[1:]))
    return _hull(np.array(points)) if points else np.empty((0, 2))


def _hull(points: Floats) -> Floats:
    """Return the distinct points, which are corners of a convex polygon, in order around it."""
    middle = points.mean(axis=0)
    order = sorted(points.tolist(), key=lambda p: math.atan2(p[0] - middle[0], p[1] - middle[1]))
    kept = [order[0], *(b for a, b in pairwise(order) if math.dist(a, b) > 1e-9)]
    if len(kept) > 1 and math.dist(kept[0], kept[-1]) <= 1e-9:
        kept.pop()
    return np.array(kept[: mark_kinds.MOST_VERTICES])
