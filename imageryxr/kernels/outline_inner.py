"""Draw inside lines: the pixels of a segment within a distance of a pixel with another label.

A shortest path to another label lies within the segment, and can be chosen to go along x first and then along y. The
distance of a pixel is therefore the minimum, over the pixels of its row, of their distance along y plus the distance to
them along x. One pass down and one pass up compute the distances along y. Shifts of 1, 2, 4, … pixels propagate them
along x. Pixels of other segments in the row can be included, because the end of the pixel's own run is nearer. All
operations work on whole rows, so that the cost depends neither on the number of segments nor, except for a logarithm,
on the width of the lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import KernelTable, find_row
from imageryxr.kernels.fill import blend_row
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import RunBuffers, copy_values, fill_run, make_run_buffers, run_ends

_CLEAR = np.uint32(0)
_ALPHA = np.uint32(24)


@compile_kernel
def _color_row(
    row: NDArray[Any],
    table: KernelTable,
    buffers: RunBuffers,
    colors: NDArray[np.uint32],
    shown: NDArray[np.uint8],
) -> bool:
    """Write the colour of each pixel and whether the pixel is shown; return whether any pixel is shown.

    The outputs have `PAD` extra values at their end.
    """
    x = 0
    some = False
    for k in range(run_ends(row, buffers)):
        end = buffers.ends[k]
        slot = find_row(table, np.uint64(row[x]))
        color = table.packed[slot] if slot >= 0 else _CLEAR
        color = color if color >> _ALPHA != _CLEAR else _CLEAR
        fill_run(colors, x, end, color)
        seen = np.uint8(slot >= 0)
        fill_run(shown, x, end, seen)
        some = some or slot >= 0
        x = end
    return some


@compile_kernel
def _mark_borders(
    one: NDArray[Any],
    other: NDArray[Any],
    one_shown: NDArray[np.uint8],
    other_shown: NDArray[np.uint8],
    merge: bool,
    out: NDArray[np.uint8],
) -> None:
    """Write 1 where two pixels belong to different segments, otherwise 0; hidden pixels count as one segment.

    With `merge`, all shown pixels are outlined as one segment.
    """
    if merge:
        for x in range(out.size):
            out[x] = one_shown[x] != other_shown[x]
    else:
        for x in range(out.size):
            out[x] = np.uint8(one[x] != other[x]) & (one_shown[x] | other_shown[x])


@compile_kernel
def _advance_distances(last: NDArray[Any], border: NDArray[np.uint8], step: int, cap: int, row: NDArray[Any]) -> None:
    """Compute the distances of a row from those of the previous row: `step` after a border, and at most `cap`."""
    number = row.dtype.type
    down, most = number(step), number(cap)
    for x in range(row.size):
        row[x] = down if border[x] else min(number(last[x] + down), most)


@compile_kernel
def _lower_beside_borders(border: NDArray[np.uint8], step: int, near: NDArray[Any]) -> None:
    """Reduce the distances of the pixels on both sides of borders within a row."""
    number = near.dtype.type
    across = number(step)
    left, right = near[: border.size], near[1:]
    for x in range(border.size):
        left[x] = min(left[x], across) if border[x] else left[x]
    for x in range(border.size):
        right[x] = min(right[x], across) if border[x] else right[x]


@compile_kernel
def _lower_along_row(near: NDArray[Any], to: NDArray[Any], shift: int, step: int) -> None:
    """Reduce each distance to at most `step` plus the distance of the pixel `shift` to the left or right."""
    number = near.dtype.type
    size = near.size
    if shift >= size:
        copy_values(near, to)
        return
    way = number(step)
    copy_values(near[:shift], to)
    left, middle = near[: size - shift], near[shift:]
    part = to[shift:]
    for x in range(part.size):
        part[x] = min(middle[x], number(left[x] + way))
    part = to[: size - shift]
    for x in range(part.size):
        part[x] = min(part[x], number(middle[x] + way))


@compile_kernel
def color_and_mark(
    flat: NDArray[Any],
    base: int,
    table: KernelTable,
    merge: bool,
    y_low: int,
    y_high: int,
    colors: NDArray[np.uint32],
    up: NDArray[np.uint8],
    right: NDArray[np.uint8],
) -> bool:
    """Write the colours and borders of the slice that begins at `base`; return whether any pixel is shown.

    `colors` is (rows, width + `PAD`). `up` (rows, width) marks borders to the row above, and `right` (rows, width - 1),
    between rows `y_low` and `y_high`, borders to the next pixel. Without shown pixels, borders are not written.
    """
    height, width = up.shape
    buffers = make_run_buffers(width)
    shown = np.empty(colors.shape, np.uint8)
    some = False
    for y in range(height):
        row = flat[base + y * width : base + (y + 1) * width]
        some |= _color_row(row, table, buffers, colors[y], shown[y])
    if not some:
        return False  # background only
    for y in range(height):
        here, before = base + y * width, base + (y - 1) * width
        row = flat[here : here + width]
        if y > 0:
            _mark_borders(row, flat[before:here], shown[y, :width], shown[y - 1, :width], merge, up[y])
        if y_low <= y < y_high:
            _mark_borders(row[1:], row[:-1], shown[y, 1:width], shown[y, : width - 1], merge, right[y])
    return True


@compile_kernel
def draw_inner(
    colors: NDArray[np.uint32],
    border: NDArray[np.uint8],
    beside: NDArray[np.uint8],
    above: NDArray[Any],
    limit: int,
    step_y: int,
    step_x: int,
    under: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> None:
    """Draw the pixels that have a colour and lie within `limit` of a border that `color_and_mark` has marked.

    `above` is a temporary array (rows, width). Its dtype is that of all distances and must be able to represent twice
    the limit plus two.
    """
    bottom, width = above.shape
    y_high, x_high = y_low + out.shape[0], x_low + out.shape[1]
    number = above.dtype.type
    # All distances beyond the limit have the same effect; limit + 1 keeps them small.
    cap = limit + 1
    above[0] = number(cap)
    for y in range(1, y_high):
        _advance_distances(above[y - 1], border[y], step_y, cap, above[y])
    below, lower = np.empty(width, above.dtype), np.empty(width, above.dtype)
    below[:] = number(cap)
    span = min(limit // step_x, width)
    near, other = np.empty(width, above.dtype), np.empty(width, above.dtype)
    line = np.empty(out.shape[1], np.uint32)
    for y in range(bottom - 1, y_low - 1, -1):
        if y + 1 < bottom:
            _advance_distances(below, border[y + 1], step_y, cap, lower)
            below, lower = lower, below
        if y >= y_high:
            continue
        up = above[y]
        for x in range(width):
            near[x] = min(up[x], below[x])
        _lower_beside_borders(beside[y], step_x, near)
        # Every distance within the span is a sum of shifts 1, 2, 4, …
        shift = 1
        while shift <= span:
            _lower_along_row(near, other, shift, min(shift * step_x, cap))
            near, other = other, near
            shift *= 2
        here_near, here_color = near[x_low:x_high], colors[y, x_low:x_high]
        most = number(cap)
        for x in range(line.size):
            line[x] = here_color[x] if here_near[x] < most else _CLEAR
        blend_row(line, under, out[y - y_low])
