"""Draw outside lines of any colour: each pixel blends the colours of all segments within the width of the lines.

Lines of different segments overlap, so each row has a list of *pieces*: a run of a segment in a row above (or below),
and the part of the limit that remains at this row. A piece that a nearer run of its segment covers completely is
dropped. Unless a boundary is flatter than one pixel per row, one piece per segment and run remains, whatever the width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import KernelTable, find_row
from imageryxr.kernels.fill import blend_pixel, blend_row
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import copy_values, make_run_buffers, run_ends

_NONE = np.uint64(0)


class Runs(NamedTuple):
    """The runs of a slice: the first run of each row; the start, stop, id (0 = not shown) and colour of each run."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    ids: NDArray[np.uint64]
    colors: NDArray[np.uint32]


def make_runs(height: int, width: int) -> Runs:
    """Return buffers for the runs of a slice."""
    n = 32 * height + width
    return Runs(
        np.empty(height + 1, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.uint64),
        np.empty(n, np.uint32),
    )


@compile_kernel
def cut_runs(
    flat: NDArray[Any],
    base: int,
    width: int,
    table: KernelTable,
    runs: Runs,
) -> Runs:
    """Cut the slice that begins at `base` into runs; return `runs`, enlarged if necessary."""
    rows, starts, stops, ids, colors = runs
    n = 0
    buffers = make_run_buffers(width)
    for y in range(rows.size - 1):
        rows[y] = n
        if n + width > ids.size:
            size = 2 * ids.size + width
            starts, stops = _enlarge(starts, size), _enlarge(stops, size)
            ids, colors = _enlarge(ids, size), _enlarge(colors, size)
        row = flat[base + y * width : base + (y + 1) * width]
        x = 0
        for k in range(run_ends(row, buffers)):
            end = buffers.ends[k]
            label = np.uint64(row[x])
            slot = find_row(table, label)
            if slot >= 0:
                starts[n], stops[n], ids[n], colors[n] = x, end, label, table.packed[slot]
                n += 1
            elif n > rows[y] and ids[n - 1] == _NONE:
                stops[n - 1] = end
            else:
                starts[n], stops[n], ids[n], colors[n] = x, end, _NONE, np.uint32(0)
                n += 1
            x = end
    rows[rows.size - 1] = n
    return Runs(rows, starts, stops, ids, colors)


@compile_kernel
def _enlarge(array: NDArray[Any], size: int) -> NDArray[Any]:
    out = np.empty(size, array.dtype)
    copy_values(array, out)
    return out


class Pieces(NamedTuple):
    """A list of pieces: their ids, spans (start, stop, remaining limit) and colours.

    A span covers ``remaining limit // step_x`` pixels on either side.
    """

    ids: NDArray[np.uint64]
    spans: NDArray[np.int64]
    colors: NDArray[np.uint32]


@compile_kernel
def _make_pieces(size: int) -> Pieces:
    return Pieces(np.empty(size, np.uint64), np.empty((size, 3), np.int64), np.empty(size, np.uint32))


@compile_kernel
def _copy_pieces(pieces: Pieces, first: int, count: int, to: Pieces) -> None:
    """Copy `count` pieces from the index `first` on to the front of a list."""
    for i in range(count):
        to.ids[i], to.colors[i] = pieces.ids[first + i], pieces.colors[first + i]
        for k in range(3):
            to.spans[i, k] = pieces.spans[first + i, k]


@compile_kernel
def _sort_runs(rows: NDArray[np.int64], ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort the shown runs of each row by id and position; return the start of each row, and the order."""
    height = rows.size - 1
    first = np.empty(height + 1, np.int64)
    order = np.empty(rows[height], np.int64)
    n = 0
    for y in range(height):
        first[y] = n
        for r in range(rows[y], rows[y + 1]):
            if ids[r] != _NONE:
                order[n] = r
                n += 1
        part = order[first[y] : n]
        copy_values(part[np.argsort(ids[part], kind="mergesort")], part)
    first[height] = n
    return first, order


@compile_kernel
def _blend_color(part: NDArray[np.uint32], color: np.uint32) -> None:
    """Blend `color` over pixels; runs of equal pixels are blended once."""
    if part.size == 0:
        return
    under = part[0]
    mixed = blend_pixel(under, color)
    for x in range(part.size):
        if part[x] != under:
            under = part[x]
            mixed = blend_pixel(under, color)
        part[x] = mixed


@compile_kernel
def _advance(
    pieces: Pieces,
    i: int,
    i_end: int,
    order: NDArray[np.int64],
    runs: Runs,
    limit: int,
    step_y: int,
    step_x: int,
    to: Pieces,
    n: int,
) -> int:
    """Advance pieces, sorted by id, by one row and add the runs `order` of that row; return the end of the new list."""
    from_ids, from_spans, from_colors = pieces
    to_ids, to_spans, to_colors = to
    starts, stops, ids, colors = runs.starts, runs.stops, runs.ids, runs.colors
    j, j_end = 0, order.size
    while i < i_end or j < j_end:
        old = j >= j_end or (i < i_end and from_ids[i] < ids[order[j]])
        key = from_ids[i] if old else ids[order[j]]
        j_next = j
        while j_next < j_end and ids[order[j_next]] == key:
            j_next += 1
        while i < i_end and from_ids[i] == key:
            rest = from_spans[i, 2] - step_y
            if rest >= 0:
                start, stop = from_spans[i, 0], from_spans[i, 1]
                # The runs of one row are disjoint, so only the last one that starts early enough can cover the piece.
                slack = (limit - rest) // step_x
                low, high = j, j_next
                while low < high:
                    middle = (low + high) // 2
                    if starts[order[middle]] <= start + slack:
                        low = middle + 1
                    else:
                        high = middle
                if low == j or stops[order[low - 1]] < stop - slack:
                    to_ids[n], to_colors[n] = key, from_colors[i]
                    to_spans[n, 0], to_spans[n, 1], to_spans[n, 2] = start, stop, rest
                    n += 1
            i += 1
        for k in range(j, j_next):
            r = order[k]
            to_ids[n], to_colors[n] = key, colors[r]
            to_spans[n, 0], to_spans[n, 1], to_spans[n, 2] = starts[r], stops[r], limit
            n += 1
        j = j_next
    return n


@compile_kernel
def _cover(
    key: np.uint64,
    color: np.uint32,
    covers: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    merge: bool,
    x_low: int,
    x_high: int,
    line: NDArray[np.uint32],
) -> None:
    """Blend `color` over the pixels of a row in the union of the ranges `covers` (k, 2), except those of `key`."""
    for i in range(1, covers.shape[0]):
        low, high = covers[i, 0], covers[i, 1]
        j = i
        while j > 0 and covers[j - 1, 0] > low:
            covers[j, 0], covers[j, 1] = covers[j - 1, 0], covers[j - 1, 1]
            j -= 1
        covers[j, 0], covers[j, 1] = low, high
    done = x_low
    r = -1
    for i in range(covers.shape[0]):
        low, high = max(covers[i, 0], done), min(covers[i, 1], x_high)
        if low >= high:
            continue
        done = high
        if r < 0:
            r, beyond = 0, starts.size
            while beyond - r > 1:
                middle = (r + beyond) // 2
                if starts[middle] <= low:
                    r = middle
                else:
                    beyond = middle
        while stops[r] <= low:
            r += 1
        while r < starts.size and starts[r] < high:
            if ids[r] != key and (not merge or ids[r] == _NONE):
                _blend_color(line[max(low, starts[r]) - x_low : min(high, stops[r]) - x_low], color)
            r += 1
        r -= 1


@compile_kernel
def _draw_row(
    above: Pieces,
    i: int,
    i_end: int,
    below: Pieces,
    j_end: int,
    runs: Runs,
    y: int,
    merge: bool,
    step_y: int,
    step_x: int,
    x_low: int,
    x_high: int,
    covers: NDArray[np.int64],
    line: NDArray[np.uint32],
) -> None:
    """Draw a row from the pieces of the rows above and of the row itself, and the pieces of the rows below."""
    f_ids, f_spans, f_colors = above
    b_ids, b_spans, b_colors = below
    low, high = runs.rows[y], runs.rows[y + 1]
    starts, stops, ids = runs.starts[low:high], runs.stops[low:high], runs.ids[low:high]
    j = 0
    while i < i_end or j < j_end:
        if j >= j_end or (i < i_end and f_ids[i] <= b_ids[j]):
            key, color = f_ids[i], f_colors[i]
        else:
            key, color = b_ids[j], b_colors[j]
        n = 0
        while i < i_end and f_ids[i] == key:
            width = f_spans[i, 2] // step_x
            covers[n, 0], covers[n, 1] = f_spans[i, 0] - width, f_spans[i, 1] + width
            n += 1
            i += 1
        while j < j_end and b_ids[j] == key:
            rest = b_spans[j, 2] - step_y
            if rest >= 0:
                width = rest // step_x
                covers[n, 0], covers[n, 1] = b_spans[j, 0] - width, b_spans[j, 1] + width
                n += 1
            j += 1
        if color >> np.uint32(24) != np.uint32(0):
            _cover(key, color, covers[:n], starts, stops, ids, merge, x_low, x_high, line)


@compile_kernel
def draw_outer(
    runs: Runs,
    limit: int,
    step_y: int,
    step_x: int,
    merge: bool,
    under: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> None:
    """Blend the outside lines of all shown segments over `out`."""
    rows = runs.rows
    first, order = _sort_runs(rows, runs.ids)
    if merge and first[-1] == rows[-1]:
        return  # merged lines are drawn on background only, and this slice has no background
    y_high, x_high = y_low + out.shape[0], x_low + out.shape[1]
    far = limit // step_y
    begin, end = max(0, y_low - far), min(rows.size - 1, y_high + far)
    # Rows are drawn in strips, so that the lists from above are stored for few rows at a time.
    depth = max(64, 4 * far)
    line = np.zeros(out.shape[1], np.uint32)
    lists = np.zeros(depth + 2, np.int64)
    size = 256
    above, below, spare = _make_pieces(size), _make_pieces(size), _make_pieces(size)
    covers = np.empty((2 * size, 2), np.int64)
    carried = 0
    top = begin
    while top < y_high:
        bottom = min(top + depth, y_high)
        # Downward pass: list k + 1 has the pieces of row top + k, and list 0 those of the row above the strip.
        lists[0], lists[1] = 0, carried
        for y in range(top, bottom):
            k = y - top
            here = order[first[y] : first[y + 1]]
            need = 2 * lists[k + 1] - lists[k] + here.size
            if need > above.ids.size:
                larger = _make_pieces(2 * need)
                _copy_pieces(above, 0, above.ids.size, larger)
                above = larger
            lists[k + 2] = _advance(
                above, lists[k], lists[k + 1], here, runs, limit, step_y, step_x, above, lists[k + 1]
            )
        # Upward pass, from the lowest row below the strip whose lines extend into the strip.
        n = 0
        for y in range(min(end, bottom + far) - 1, max(top, y_low) - 1, -1):
            full = first[y + 1] - first[y] == rows[y + 1] - rows[y]
            if y < bottom and not (merge and full):
                k = y - top + 1
                most = lists[k + 1] - lists[k] + n
                if most > covers.shape[0]:
                    covers = np.empty((2 * most, 2), np.int64)
                _draw_row(
                    above, lists[k], lists[k + 1], below, n, runs, y, merge, step_y, step_x, x_low, x_high, covers, line
                )
                blend_row(line, under, out[y - y_low])
                line[:] = 0
            here = order[first[y] : first[y + 1]]
            if n + here.size > spare.ids.size:
                spare = _make_pieces(2 * (n + here.size))
            n = _advance(below, 0, n, here, runs, limit, step_y, step_x, spare, 0)
            below, spare = spare, below
        carried = lists[bottom - top + 1] - lists[bottom - top]
        _copy_pieces(above, lists[bottom - top], carried, above)
        top = bottom
