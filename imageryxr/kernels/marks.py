"""Draw anti-aliased marks (discs, rings, crosses, squares, triangles, line segments, polygons) onto RGBA pictures.

The coverage of a pixel is computed from its distance to the edges of a mark: the length of the overlap of an interval
of one pixel around the pixel's centre with the mark, across the nearest edge. Positions are those of the whole picture,
so the result does not depend on the block in which a mark is drawn.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.mark_kinds import CROSS, DIAGONAL_CROSS, ELLIPSE, RING, SEGMENT, SQUARE, TRIANGLE
from imageryxr.kernels.jit import compile_kernel

_STRIP_PIXELS = 1 << 19
_SQRT_HALF = math.sqrt(0.5)


@compile_kernel
def _overlap(distance: float, half: float) -> float:
    """Return the fraction of a pixel that a stroke covers: `distance` to its centre line, `half` its width."""
    return max(0.0, min(distance + 0.5, half) - max(distance - 0.5, -half))


@compile_kernel
def _ellipse_distance(dx: float, dy: float, m: NDArray[np.float64]) -> float:
    """Return the signed distance to an ellipse with half axes m[4] and m[5], the first along (m[6], m[8]).

    The nearest point of an ellipse is approached along its evolute (C. C. Chou,
    "Simple method for distance to ellipse", 2007).
    """
    a, b = m[4], m[5]
    if a == b:
        return math.sqrt(dx * dx + dy * dy) - float(a)
    px, py = abs(dx * m[6] + dy * m[8]), abs(dy * m[6] - dx * m[8])
    tx, ty = _SQRT_HALF, _SQRT_HALF
    for _ in range(8):
        ex, ey = (a * a - b * b) * tx * tx * tx / a, (b * b - a * a) * ty * ty * ty / b
        rx, ry, qx, qy = a * tx - ex, b * ty - ey, px - ex, py - ey
        ratio = math.sqrt((rx * rx + ry * ry) / max(1e-18, qx * qx + qy * qy))
        tx = min(1.0, max(0.0, (qx * ratio + ex) / a))
        ty = min(1.0, max(0.0, (qy * ratio + ey) / b))
        length = max(1e-18, math.sqrt(tx * tx + ty * ty))
        tx, ty = tx / length, ty / length
    distance = math.sqrt((px - a * tx) ** 2 + (py - b * ty) ** 2)
    return -distance if (px / a) ** 2 + (py / b) ** 2 < 1.0 else distance


@compile_kernel
def _ellipse_depth(dx: float, dy: float, m: NDArray[np.float64]) -> float:
    """Return about half the thickness of an ellipse at a position along its longer axis."""
    a, b = m[4], m[5]
    along, across = dx * m[6] + dy * m[8], dy * m[6] - dx * m[8]
    if a == b:
        return float(a)
    share = along / a if a > b else across / b
    return float(min(a, b) * math.sqrt(max(0.0, 1.0 - share * share)))


@compile_kernel
def _disc_overlap(distance: float, radius: float) -> float:
    return max(0.0, min(distance + 0.5, 0.0) - max(distance - 0.5, -2.0 * radius))


@compile_kernel
def _triangle_overlap(dx: float, dy: float, rx: float, ry: float, grow: float) -> float:
    """Return the overlap with a triangle that points up, has width 2 rx, and its centroid at the origin."""
    height = math.sqrt(3.0) * ry
    length = math.sqrt(height * height + rx * rx)
    side = (abs(dx) * height - (dy + 2.0 / 3.0 * height) * rx) / length
    nearest = max(dy - height / 3.0, side)
    return max(0.0, min(1.0, 0.5 + grow - nearest))


@compile_kernel
def _segment_distance(px: float, py: float, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
    """Return the distance of a point to a segment, and the position of the nearest point, from 0 to 1."""
    ux, uy = x1 - x0, y1 - y0
    length = ux * ux + uy * uy
    t = 0.0
    if length > 0.0:
        t = min(1.0, max(0.0, ((px - x0) * ux + (py - y0) * uy) / length))
    ex, ey = px - (x0 + t * ux), py - (y0 + t * uy)
    return math.sqrt(ex * ex + ey * ey), t


@compile_kernel
def _polygon_distance(px: float, py: float, m: NDArray[np.float64]) -> float:
    """Return the signed distance to a convex polygon of m[4] vertices, from m[5] on."""
    count = int(m[4])
    nearest, left, right = 1e300, 0, 0
    for i in range(count):
        j = (i + 1) % count
        x0, y0, x1, y1 = m[5 + 2 * i], m[6 + 2 * i], m[5 + 2 * j], m[6 + 2 * j]
        d, _ = _segment_distance(px, py, x0, y0, x1, y1)
        nearest = min(nearest, d)
        side = (x1 - x0) * (py - y0) - (y1 - y0) * (px - x0)
        if side > 0.0:
            left += 1
        elif side < 0.0:
            right += 1
    # A polygon without area has no interior.
    return -nearest if (left == 0) != (right == 0) else nearest


@compile_kernel
def _coverage(kind: int, m: NDArray[np.float64], px: float, py: float, grow: float) -> tuple[float, float, float]:
    """Return the coverage of a pixel by a mark's stroke or body and by its interior, and the opacity from 0 to 1.

    The opacity is below 1 for the part of a segment that lies outside the slice.
    """
    dx, dy = px - m[0], py - m[1]
    if kind <= RING:
        d = _ellipse_distance(dx, dy, m)
        inside = _disc_overlap(d - grow, m[9] + grow)
        if kind == ELLIPSE:
            return inside, 0.0, 1.0
        # Outer minus inner: in the middle of a narrow ring, pixels overlap the stroke on both sides.
        half, depth = m[7] + grow, _ellipse_depth(dx, dy, m)
        hole = _disc_overlap(d + half, depth - half) if depth > half else 0.0
        return max(0.0, _disc_overlap(d - half, m[9] + half) - hole), inside, 1.0
    if kind == CROSS:
        across = _overlap(dx, m[4] + grow) * _overlap(dy, m[7] + grow)
        return max(across, _overlap(dx, m[7] + grow) * _overlap(dy, m[5] + grow)), 0.0, 1.0
    if kind == DIAGONAL_CROSS:
        rx, ry = m[4] * _SQRT_HALF, m[5] * _SQRT_HALF
        length = math.sqrt(rx * rx + ry * ry)
        ux, uy = rx / length, ry / length
        down = _overlap(dx * ux + dy * uy, length + grow) * _overlap(dx * uy - dy * ux, m[7] + grow)
        up = _overlap(dx * ux - dy * uy, length + grow) * _overlap(dx * uy + dy * ux, m[7] + grow)
        return max(down, up), 0.0, 1.0
    if kind == SQUARE:
        return _overlap(dx, m[4] + grow) * _overlap(dy, m[5] + grow), 0.0, 1.0
    if kind == TRIANGLE:
        return _triangle_overlap(dx, dy, m[4], m[5], grow), 0.0, 1.0
    if kind == SEGMENT:
        d, t = _segment_distance(px, py, m[4], m[5], m[6], m[7])
        fading = 1.0
        if m[11] > 0.0:
            fading = max(0.0, 1.0 - abs(m[9] + t * (m[10] - m[9])) / m[11])
        return _overlap(d, m[8] + grow), 0.0, fading
    d = _polygon_distance(px, py, m)
    return _overlap(abs(d), m[17] + grow), max(0.0, min(1.0, 0.5 - d)), 1.0


@compile_kernel
def _pixel_bounds(m: NDArray[np.float64], y0: int, x0: int, acc: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Return the first and last + 1 row and column of the pixels within the bounding box of a mark."""
    top, bottom = max(0, math.floor(m[1] - m[3]) - y0), min(acc.shape[0], math.ceil(m[1] + m[3]) + 1 - y0)
    left, right = max(0, math.floor(m[0] - m[2]) - x0), min(acc.shape[1], math.ceil(m[0] + m[2]) + 1 - x0)
    return top, bottom, left, right


@compile_kernel
def _blend_pixel(
    acc: NDArray[np.float32], j: int, i: int, red: float, green: float, blue: float, alpha: float, rest: float
) -> None:
    """Blend a premultiplied colour over a pixel, of which the fraction `rest` stays visible."""
    acc[j, i, 0] = red + rest * acc[j, i, 0]
    acc[j, i, 1] = green + rest * acc[j, i, 1]
    acc[j, i, 2] = blue + rest * acc[j, i, 2]
    acc[j, i, 3] = alpha + rest * acc[j, i, 3]


@compile_kernel
def _draw_disc(
    m: NDArray[np.float64],
    paint: NDArray[np.float64],
    y0: int,
    x0: int,
    acc: NDArray[np.float32],
) -> None:
    """Draw a disc without an edge, the most frequent mark; equals `_draw_mark` with fewer square roots."""
    top, bottom, left, right = _pixel_bounds(m, y0, x0, acc)
    radius, alpha = m[9], paint[3]
    outside, inside = (radius + 0.5) ** 2, (radius - 0.5) ** 2 if radius >= 0.5 else -1.0
    for j in range(top, bottom):
        dy = np.float64(y0 + j) + 0.5 - m[1]
        for i in range(left, right):
            dx = np.float64(x0 + i) + 0.5 - m[0]
            square = dx * dx + dy * dy
            if square >= outside:
                continue
            mine = alpha
            if square > inside:
                mine *= _disc_overlap(math.sqrt(square) - radius, radius)
            _blend_pixel(acc, j, i, mine * paint[0], mine * paint[1], mine * paint[2], mine, 1.0 - mine)


@compile_kernel
def _draw_mark(
    kind: int,
    m: NDArray[np.float64],
    paint: NDArray[np.float64],
    y0: int,
    x0: int,
    acc: NDArray[np.float32],
) -> None:
    """Blend one mark over premultiplied colours."""
    top, bottom, left, right = _pixel_bounds(m, y0, x0, acc)
    has_edge = paint[8] > 0.0 and paint[7] > 0.0
    for j in range(top, bottom):
        py = np.float64(y0 + j) + 0.5
        for i in range(left, right):
            px = np.float64(x0 + i) + 0.5
            body, inside, fading = _coverage(kind, m, px, py, 0.0)
            whole = body
            if has_edge:
                whole = max(body, _coverage(kind, m, px, py, paint[8])[0])
            if whole <= 0.0 and inside <= 0.0:
                continue
            own = body * paint[3]
            edge = (whole - body) * paint[7]
            fill = inside * paint[9] * paint[3] * (1.0 - own - edge)
            mine, rim = (own + fill) * fading, edge * fading
            red, green, blue = mine * paint[0] + rim * paint[4], mine * paint[1] + rim * paint[5], mine * paint[2]
            _blend_pixel(acc, j, i, red, green, blue + rim * paint[6], mine + rim, 1.0 - mine - rim)


@compile_kernel
def _blend(acc: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Blend premultiplied colours over straight ones; pixels that no mark covers are unchanged."""
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            a = np.float64(acc[j, i, 3])
            if a <= 0.0:
                continue
            below = np.float64(out[j, i, 3]) / 255.0 * (1.0 - a)
            total = a + below
            for c in range(3):
                value = (np.float64(acc[j, i, c]) + below * np.float64(out[j, i, c])) / total
                out[j, i, c] = np.uint8(min(255.0, math.floor(value + 0.5)))
            out[j, i, 3] = np.uint8(min(255.0, math.floor(total * 255.0 + 0.5)))


@compile_kernel
def _draw_strip(
    kinds: NDArray[np.int64],
    params: NDArray[np.float64],
    paints: NDArray[np.float64],
    y0: int,
    x0: int,
    acc: NDArray[np.float32],
) -> None:
    for k in range(kinds.size):
        m = params[k]
        if m[1] + m[3] + 1.0 >= y0 and m[1] - m[3] - 1.0 <= y0 + acc.shape[0]:
            if kinds[k] == ELLIPSE and m[4] == m[5] and not (paints[k, 8] > 0.0 and paints[k, 7] > 0.0):
                _draw_disc(m, paints[k], y0, x0, acc)
            else:
                _draw_mark(kinds[k], m, paints[k], y0, x0, acc)


def draw_marks(
    kinds: NDArray[np.int64],
    params: NDArray[np.float64],
    paints: NDArray[np.float64],
    origin: tuple[int, int],
    out: NDArray[np.uint8],
) -> None:
    """Draw marks over a picture, in order, in place.

    Parameters
    ----------
    kinds
        int64 (n,), the kind of each mark.
    params
        float64 (n, `COLUMNS`), in pixels of the whole picture, in which the centre of the first pixel is 0.5. Columns 0
        to 3: centre x, y, half width and half height of the bounding box. ``ELLIPSE`` and ``RING``: 4 and 5 the half
        axes, 6 and 8 the direction (x, y) of the first, 7 half the stroke of a ring, 9 the smaller half axis. Crosses,
        ``SQUARE``, ``TRIANGLE``: 4 and 5 half the size along x and y, 7 half the stroke. ``SEGMENT``: 4 to 7 the ends,
        8 half the stroke, 9 and 10 the distances of the ends from the slice, 11 the distance at which the segment has
        faded (0: it does not fade). ``POLYGON``, convex: 4 the number of vertices, from 5 the vertices, 17 half the
        stroke.
    paints
        float64 (n, 10): red, green, blue (0 to 255), alpha (0 to 1); the same of the edge around the mark; width of the
        edge in pixels; opacity of the interior of rings and polygons, relative to alpha.
    origin
        Row and column of the first pixel of ``out`` in the whole picture.
    out
        uint8 (rows, columns, 4), straight alpha, C order.
    """
    if not len(kinds):
        return
    rows = max(1, _STRIP_PIXELS // max(1, out.shape[1]))
    for start in range(0, out.shape[0], rows):
        part = out[start : start + rows]
        acc = np.zeros((*part.shape[:2], 4), np.float32)
        _draw_strip(kinds, params, paints, origin[0] + start, origin[1], acc)
        _blend(acc, part)
