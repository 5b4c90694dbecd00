"""Inside lines: the pixels of a segment that lie within reach of another label.

A shortest path to another label runs within the own one and may be taken along x first and then along y, so the
distance is the least, over the pixels of the row, of their distance along y plus the way to them. Distances along y
come from a pass down and a pass up; they are spread along x by shifts of 1, 2, 4, … pixels. Pixels of other segments
need not be told apart, for the end of the own run is nearer than they are. All of it is done by whole rows, so the
cost grows neither with the number of segments nor, but for a logarithm, with the width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import slot_of
from imageryxr.kernels.fill import over_row
from imageryxr.kernels.run_length import PAD, Scratch, compiled, run_ends, scratch, spread

__all__ = ["inside"]

_CLEAR = np.uint32(0)
_ALPHA = np.uint32(24)


@compiled
def _paint_row(
    row: NDArray[Any],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    room: Scratch,
    colors: NDArray[np.uint32],
    shown: NDArray[np.uint8],
) -> bool:
    """Write the colour of each pixel and whether it is shown, with `PAD` values of room; tell if any is shown."""
    x = 0
    some = False
    for k in range(run_ends(row, room)):
        end = room.ends[k]
        slot = slot_of(keys, slots, -1, explicit, fallback, np.uint64(row[x]))
        color = packed[slot] if slot >= 0 else _CLEAR
        color = color if color >> _ALPHA != _CLEAR else _CLEAR
        spread(colors, x, end, color)
        seen = np.uint8(slot >= 0)
        spread(shown, x, end, seen)
        some = some or slot >= 0
        x = end
    return some


@compiled
def _borders(
    one: NDArray[Any],
    other: NDArray[Any],
    one_shown: NDArray[np.uint8],
    other_shown: NDArray[np.uint8],
    merge: bool,
    out: NDArray[np.uint8],
) -> None:
    """Write 1 where a line must be drawn between two pixels, else 0. What is not shown is background, all of it."""
    if merge:
        for x in range(out.size):
            out[x] = one_shown[x] != other_shown[x]
    else:
        for x in range(out.size):
            out[x] = np.uint8(one[x] != other[x]) & (one_shown[x] | other_shown[x])


@compiled
def _further(last: NDArray[Any], border: NDArray[np.uint8], step: int, cap: int, row: NDArray[Any]) -> None:
    """Write distances one row on from those of the last row: `step` behind a border; beyond the limit all are `cap`."""
    number = row.dtype.type
    down, most = number(step), number(cap)
    for x in range(row.size):
        row[x] = down if border[x] else min(number(last[x] + down), most)


@compiled
def _beside(border: NDArray[np.uint8], step: int, near: NDArray[Any]) -> None:
    """Lower the distances of the pixels on both sides of borders within a row."""
    number = near.dtype.type
    across = number(step)
    left, right = near[: border.size], near[1:]
    for x in range(border.size):
        left[x] = min(left[x], across) if border[x] else left[x]
    for x in range(border.size):
        right[x] = min(right[x], across) if border[x] else right[x]


@compiled
def _spread_along(near: NDArray[Any], to: NDArray[Any], shift: int, step: int) -> None:
    """Lower each distance by way of the pixels `shift` to either side, which are `step` away."""
    number = near.dtype.type
    size = near.size
    if shift >= size:
        to[:] = near
        return
    way = number(step)
    to[:shift] = near[:shift]
    left, middle = near[: size - shift], near[shift:]
    part = to[shift:]
    for x in range(part.size):
        part[x] = min(middle[x], number(left[x] + way))
    part = to[: size - shift]
    for x in range(part.size):
        part[x] = min(part[x], number(middle[x] + way))


@compiled
def inside(
    flat: NDArray[Any],
    base: int,
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    above: NDArray[Any],
    limit: int,
    step_y: int,
    step_x: int,
    merge: bool,
    under: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> None:
    """Draw the pixels of shown ids that lie within `limit` of another label, in the slice that begins at `base`.

    `above` is (y, x) scratch of the slice's size; its dtype is that of all distances and must hold twice the limit
    and two more.
    """
    height, width = above.shape
    y_high, x_high = y_low + out.shape[0], x_low + out.shape[1]
    far = limit // step_y
    bottom = min(height, y_high + far)
    room = scratch(width)
    colors, shown = np.empty((bottom, width + PAD), np.uint32), np.empty((bottom, width + PAD), np.uint8)
    some = False
    for y in range(bottom):
        row = flat[base + y * width : base + (y + 1) * width]
        some |= _paint_row(row, keys, slots, packed, explicit, fallback, room, colors[y], shown[y])
    if not some:
        return  # background only
    number = above.dtype.type
    # Distances beyond the limit are all alike; one more than the limit keeps them small.
    cap = limit + 1
    border = np.empty((bottom, width), np.uint8)
    for y in range(bottom):
        if y == 0:
            above[0] = number(cap)
            continue
        here, before = base + y * width, base + (y - 1) * width
        _borders(
            flat[here : here + width], flat[before:here], shown[y, :width], shown[y - 1, :width], merge, border[y]
        )  # fmt: skip
        if y < y_high:
            _further(above[y - 1], border[y], step_y, cap, above[y])
    below, lower = np.full(width, cap, above.dtype), np.empty(width, above.dtype)
    span = min(limit // step_x, width)
    near, other = np.empty(width, above.dtype), np.empty(width, above.dtype)
    beside = np.empty(max(0, width - 1), np.uint8)
    line = np.empty(out.shape[1], np.uint32)
    for y in range(bottom - 1, y_low - 1, -1):
        if y + 1 < bottom:
            _further(below, border[y + 1], step_y, cap, lower)
            below, lower = lower, below
        if y >= y_high:
            continue
        up = above[y]
        for x in range(width):
            near[x] = min(up[x], below[x])
        row = flat[base + y * width : base + (y + 1) * width]
        _borders(row[1:], row[:-1], shown[y, 1:width], shown[y, : width - 1], merge, beside)
        _beside(beside, step_x, near)
        # Shifts by 1, 2, 4, … and their sums reach every pixel within the span.
        shift = 1
        while shift <= span:
            _spread_along(near, other, shift, min(shift * step_x, cap))
            near, other = other, near
            shift *= 2
        here_near, here_color = near[x_low:x_high], colors[y, x_low:x_high]
        most = number(cap)
        for x in range(line.size):
            line[x] = here_color[x] if here_near[x] < most else _CLEAR
        over_row(line, under, out[y - y_low])
