"""Draw merged, opaque outside lines: of all segments within the width of a line, only the highest id is visible.

Ids are ranked by their order, and each pixel needs the highest rank within a diamond around it. If j is at most k, the
diamonds of radius k around the four pixels j to the left, right, above and below cover a diamond of radius j + k. The
radius therefore doubles from step to step, and the cost depends neither on the number of segments nor, except for a
logarithm, on the width of the lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import KernelTable, find_place, find_row
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.relabel import find_distinct_ids
from imageryxr.kernels.run_length import PAD, RunBuffers, copy_values, fill_run, make_run_buffers, run_ends

_NONE = np.uint64(0)
_MAX_RANK = 65_535  # ranks are uint16; 0 means no segment


@compile_kernel
def _collect_ids(slice_: NDArray[Any], width: int, table: KernelTable) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return the shown ids of a slice in ascending order, and their colours."""
    ids = np.sort(find_distinct_ids(slice_, width))
    colors = np.empty(ids.size, np.uint32)
    n = 0
    for i in range(ids.size):
        row = find_row(table, ids[i])
        if row >= 0:
            ids[n], colors[n] = ids[i], table.packed[row]
            n += 1
    return ids[:n], colors[:n]


@compile_kernel
def _rank_pixels(
    flat: NDArray[Any], base: int, height: int, width: int, ids: NDArray[np.uint64], margin: int, buffers: RunBuffers
) -> NDArray[np.uint16]:
    """Return the rank of each pixel, from 1, with a margin all around; 0 for pixels that are not shown."""
    known = np.zeros(1024, np.uint64)
    while known.size < 2 * ids.size:
        known = np.zeros(2 * known.size, np.uint64)
    ranks = np.zeros(known.size, np.uint16)
    for i in range(ids.size):
        at = find_place(known, ids[i])
        known[at], ranks[at] = ids[i], i + 1
    out = np.zeros((height + 2 * margin, width + 2 * margin + PAD), np.uint16)
    for y in range(height):
        row = flat[base + y * width : base + (y + 1) * width]
        to = out[margin + y]
        x = 0
        for k in range(run_ends(row, buffers)):
            end = buffers.ends[k]
            label = np.uint64(row[x])
            rank = ranks[find_place(known, label)] if label != _NONE else np.uint16(0)
            fill_run(to, margin + x, margin + end, rank)
            x = end
        to[margin + width :] = 0
    return out


@compile_kernel
def _widen(ranks: NDArray[np.uint16], j: int, middle: bool, to: NDArray[np.uint16]) -> None:
    """Write the maximum of the four ranks `j` pixels away, and of the pixel's own rank if `middle` is True."""
    height, width = ranks.shape
    blank = np.zeros(width, np.uint16)
    for y in range(height):
        row, out = ranks[y], to[y]
        above = ranks[y - j] if y >= j else blank
        below = ranks[y + j] if y + j < height else blank
        for x in range(width):
            out[x] = max(above[x], below[x])
        if middle:
            for x in range(width):
                out[x] = max(out[x], row[x])
        if j < width:
            part, other = out[j:], row[: width - j]
            for x in range(part.size):
                part[x] = max(part[x], other[x])
            part, other = out[: width - j], row[j:]
            for x in range(part.size):
                part[x] = max(part[x], other[x])


@compile_kernel
def draw_merged(
    flat: NDArray[Any],
    base: int,
    height: int,
    width: int,
    table: KernelTable,
    radius: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> bool:
    """Draw merged, opaque outside lines of `radius` pixels into `out`; return False if there are too many ids.

    The slice (height, width) of labels begins at `base`; `out` is its part that begins at (y_low, x_low).
    """
    buffers = make_run_buffers(width)
    ids, colors = _collect_ids(flat[base : base + height * width], width, table)
    if ids.size > _MAX_RANK:
        return False
    if ids.size == 0 or radius == 0:
        return True
    # The margin is needed because the diamonds of the intermediate steps extend beyond the slice.
    own = _rank_pixels(flat, base, height, width, ids, radius, buffers)
    near, other = own.copy(), np.empty_like(own)
    k = 0
    while k < radius:
        j = min(max(k, 1), radius - k)
        _widen(near, j, k == 0, other)
        near, other = other, near
        k += j
    palette = np.zeros(ids.size + 1, np.uint32)
    copy_values(colors, palette[1:])
    for y in range(out.shape[0]):
        at, left = radius + y_low + y, radius + x_low
        line, covered = near[at, left : left + out.shape[1]], own[at, left : left + out.shape[1]]
        row = out[y]
        for x in range(row.size):
            rank = line[x]
            if covered[x] == 0 and rank != 0:
                row[x] = palette[rank]
    return True
