"""Outside lines that are opaque: of all segments within reach of a pixel only the one with the highest id is seen.

So each pixel needs one number, the highest rank within a diamond around it, where ids are ranked by their order. A
diamond of radius j + k is covered by those of radius k around the four pixels j to its left, right, above and
below, if j is at most k: radii double from step to step, and the cost grows with neither the number of segments nor,
but for a logarithm, the width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import home, slot_of
from imageryxr.kernels.run_length import PAD, Scratch, compiled, run_ends, scratch, spread

__all__ = ["topmost"]

_NONE = np.uint64(0)
_ONE = np.uint64(1)
_MOST = 65_535  # ranks are uint16, and 0 is no segment


@compiled
def _number(
    flat: NDArray[Any],
    base: int,
    height: int,
    width: int,
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    room: Scratch,
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return the shown ids of a slice in ascending order, and their colours; at most one more than have a rank."""
    known = np.zeros(1024, np.uint64)
    ids, colors = np.empty(1024, np.uint64), np.empty(1024, np.uint32)
    n = 0
    for y in range(height):
        row = flat[base + y * width : base + (y + 1) * width]
        x = 0
        for k in range(run_ends(row, room)):
            label = np.uint64(row[x])
            x = room.ends[k]
            if label == _NONE:
                continue
            at = _place(known, label)
            if known[at] == label:
                continue
            slot = slot_of(keys, slots, -1, explicit, fallback, label)
            if slot < 0:
                continue
            known[at] = label
            ids[n], colors[n] = label, packed[slot]
            n += 1
            if n > _MOST:
                return ids[:n], colors[:n]
            if 2 * n >= known.size:
                known = np.zeros(2 * known.size, np.uint64)
                more_ids, more_colors = np.empty(known.size, np.uint64), np.empty(known.size, np.uint32)
                more_ids[:n], more_colors[:n] = ids[:n], colors[:n]
                ids, colors = more_ids, more_colors
                for i in range(n):
                    known[_place(known, ids[i])] = ids[i]
    order = np.argsort(ids[:n])
    return ids[:n][order], colors[:n][order]


@compiled
def _place(known: NDArray[np.uint64], label: np.uint64) -> np.uint64:
    """Return where `label` is in an open-addressing table, or the empty place where it belongs."""
    mask = np.uint64(known.size - 1)
    at = home(label, known.size)
    while known[at] != _NONE and known[at] != label:
        at = (at + _ONE) & mask
    return at


@compiled
def _rank(
    flat: NDArray[Any], base: int, height: int, width: int, ids: NDArray[np.uint64], margin: int, room: Scratch
) -> NDArray[np.uint16]:
    """Return the rank of each pixel, from 1, with a margin all around; 0 for what is not shown and in the margin."""
    known = np.zeros(1024, np.uint64)
    while known.size < 2 * ids.size:
        known = np.zeros(2 * known.size, np.uint64)
    ranks = np.zeros(known.size, np.uint16)
    for i in range(ids.size):
        at = _place(known, ids[i])
        known[at], ranks[at] = ids[i], i + 1
    out = np.zeros((height + 2 * margin, width + 2 * margin + PAD), np.uint16)
    for y in range(height):
        row = flat[base + y * width : base + (y + 1) * width]
        to = out[margin + y]
        x = 0
        for k in range(run_ends(row, room)):
            end = room.ends[k]
            label = np.uint64(row[x])
            rank = ranks[_place(known, label)] if label != _NONE else np.uint16(0)
            spread(to, margin + x, margin + end, rank)
            x = end
        to[margin + width :] = 0
    return out


@compiled
def _wider(ranks: NDArray[np.uint16], j: int, middle: bool, to: NDArray[np.uint16]) -> None:
    """Write the highest of the four ranks `j` pixels away, and of that in the middle where asked for."""
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


@compiled
def topmost(
    flat: NDArray[Any],
    base: int,
    height: int,
    width: int,
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    radius: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> bool:
    """Draw merged, opaque outside lines of `radius` pixels into `out`; False, and nothing, if there are too many ids.

    The slice (height, width) of labels begins at `base`; `out` is its part that begins at (y_low, x_low).
    """
    room = scratch(width)
    ids, colors = _number(flat, base, height, width, keys, slots, packed, explicit, fallback, room)
    if ids.size > _MOST:
        return False
    if ids.size == 0 or radius == 0:
        return True
    # Pixels around the slice count, too: the way to a pixel at the edge leads over some of them.
    own = _rank(flat, base, height, width, ids, radius, room)
    near, other = own.copy(), np.empty_like(own)
    k = 0
    while k < radius:
        j = min(max(k, 1), radius - k)
        _wider(near, j, k == 0, other)
        near, other = other, near
        k += j
    palette = np.zeros(ids.size + 1, np.uint32)
    palette[1:] = colors
    for y in range(out.shape[0]):
        at, left = radius + y_low + y, radius + x_low
        line, covered = near[at, left : left + out.shape[1]], own[at, left : left + out.shape[1]]
        row = out[y]
        for x in range(row.size):
            rank = line[x]
            if covered[x] == 0 and rank != 0:
                row[x] = palette[rank]
    return True
