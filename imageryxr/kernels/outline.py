"""Outlines of segments, slice by slice, in the plane of the last two axes.

A pixel is *shown* if the colour table knows its id; an id that is not shown counts as background. Distance is
the city-block metric ``|dy| * step_y + |dx| * step_x``. Nothing is known beyond the edge of the array, so the
edge makes no line, and a block read with a halo of `reach` pixels gives the pixels of the whole picture, bit
for bit.

A slice is first cut into runs of equal ids along x, and everything else works on runs, so that the cost of a
slice is that of its boundaries:

* Inside lines need the distance to the nearest other label. A shortest path to it runs within the own
  label and may be taken along x first and then along y, so the distance is the least, over the pixels of the row, of
  their distance along y plus the way to them. Distances along y come from a pass down and a pass up; they are
  spread along x by shifts of 1, 2, 4, … pixels. Pixels of other runs need not be told apart, for the end of
  the own run is nearer than they are.
* Outside lines of different segments overlap, so each row has a list of *pieces*: a run of a segment in some
  row above (or below), and how much of the limit is left on the way to this row. A piece that lies within the
  reach of a nearer run of its segment adds nothing and is dropped; where a boundary is not flatter than one
  pixel per row, one piece per segment and run is left, whatever the width.

Distances are integers: steps and limit are scaled to a common denominator once, so that no sum is rounded.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, OptionError
from imageryxr.kernels.fill import fill_packed, gray_packed, over, over_opaque, unpack
from imageryxr.kernels.lookup import ColorTable, as_labels, compiled, find_end, ready, slot_of

__all__ = ["outline", "paint", "reach"]

# Steps and limits are taken to be multiples of 1 / n for some n up to this: 4.7 means 47 / 10.
_DENOMINATOR = 10_000
_NONE = np.uint64(0)


class _Metric(NamedTuple):
    """Limit and steps as integers of one unit."""

    limit: int
    step_y: int
    step_x: int


def _fraction(value: float) -> Fraction:
    return Fraction(float(value)).limit_denominator(_DENOMINATOR)


def _metric(limit: float, steps: tuple[float, float]) -> _Metric:
    if not math.isfinite(limit) or limit < 0:
        raise OptionError(f"the width of an outline must be a finite number of at least 0, got {limit}")
    if len(steps) != 2 or not all(math.isfinite(s) and s >= 1 / _DENOMINATOR for s in steps):
        raise OptionError(f"steps must be two positive numbers (y, x), got {steps}")
    y, x = _fraction(steps[0]), _fraction(steps[1])
    denominator = math.lcm(y.denominator, x.denominator)
    step_y, step_x = int(y * denominator), int(x * denominator)
    common = math.gcd(step_y, step_x)
    return _Metric(math.floor(_fraction(limit) * denominator / common), step_y // common, step_x // common)


def reach(limit: float, steps: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int]:
    """Return how many pixels in y and in x an outline depends on: the halo that `outline` needs.

    Parameters
    ----------
    limit, steps
        As in `outline`.

    Examples
    --------
    >>> reach(10)
    (10, 10)
    >>> reach(14.1, steps=(4.7, 8.0))
    (3, 1)
    """
    metric = _metric(limit, steps)
    return metric.limit // metric.step_y, metric.limit // metric.step_x


# --- runs -----------------------------------------------------------------------------------------


class _Runs(NamedTuple):
    """The runs of a slice: where each row's begin; start, stop, id (0 = not shown) and colour of each."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    ids: NDArray[np.uint64]
    colors: NDArray[np.uint32]


def _room(height: int, width: int) -> _Runs:
    """Return room for the runs of a slice; `_runs` makes more where it must."""
    n = 32 * height + width
    return _Runs(
        np.empty(height + 1, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.uint64),
        np.empty(n, np.uint32),
    )


@compiled
def _runs(
    flat: NDArray[Any],
    base: int,
    width: int,
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    colors: NDArray[np.uint32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint32]]:
    """Cut the slice that begins at `base` into runs."""
    n = 0
    for y in range(rows.size - 1):
        rows[y] = n
        if n + width > ids.size:
            room = 2 * ids.size + width
            starts, stops = _grown(starts, room), _grown(stops, room)
            ids, colors = _grown(ids, room), _grown(colors, room)
        begin = base + y * width
        x = 0
        while x < width:
            end = find_end(flat, begin + x, begin + width) - begin
            label = np.uint64(flat[begin + x])
            slot = slot_of(keys, slots, -1, explicit, fallback, label)
            if slot >= 0:
                starts[n], stops[n], ids[n], colors[n] = x, end, label, packed[slot]
                n += 1
            elif n > rows[y] and ids[n - 1] == _NONE:
                stops[n - 1] = end
            else:
                starts[n], stops[n], ids[n], colors[n] = x, end, _NONE, np.uint32(0)
                n += 1
            x = end
    rows[rows.size - 1] = n
    return rows, starts, stops, ids, colors


@compiled
def _grown(array: NDArray[Any], room: int) -> NDArray[Any]:
    out = np.empty(room, array.dtype)
    out[: array.size] = array
    return out


@compiled
def _order(rows: NDArray[np.int64], ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort the shown runs of each row by id, and by place among equal ids; where each row's begin."""
    height = rows.size - 1
    first = np.empty(height + 1, np.int64)
    order = np.empty(rows[height], np.int64)
    spare = np.empty(rows[height], np.int64)
    n = 0
    for y in range(height):
        first[y] = n
        for r in range(rows[y], rows[y + 1]):
            if ids[r] != _NONE:
                order[n] = r
                n += 1
        _sort(order[first[y] : n], spare, ids)
    first[height] = n
    return first, order


@compiled
def _sort(part: NDArray[np.int64], spare: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
    """Stable merge sort of `part` by `keys[part]`, on sorted stretches of 16."""
    size = part.size
    for low in range(0, size, 16):
        for i in range(low + 1, min(low + 16, size)):
            item = part[i]
            j = i
            while j > low and keys[part[j - 1]] > keys[item]:
                part[j] = part[j - 1]
                j -= 1
            part[j] = item
    width = 16
    while width < size:
        for low in range(0, size, 2 * width):
            middle, high = min(low + width, size), min(low + 2 * width, size)
            i, j = low, middle
            for k in range(low, high):
                if i < middle and (j >= high or keys[part[i]] <= keys[part[j]]):
                    spare[k] = part[i]
                    i += 1
                else:
                    spare[k] = part[j]
                    j += 1
        part[:] = spare[:size]
        width *= 2


# --- drawing --------------------------------------------------------------------------------------

# What is known of the picture under the lines, so that most of it can be drawn without branches.
_BLANK, _OPAQUE, _ANY = 0, 1, 2


@compiled
def _draw(line: NDArray[np.uint32], under: int, out: NDArray[np.uint32]) -> None:
    """Lay a row of lines over a row of the picture."""
    if under == _BLANK:
        out[:] = line
    elif under == _OPAQUE:
        for x in range(out.size):
            out[x] = over_opaque(out[x], line[x])
    else:
        for x in range(out.size):
            if line[x] != np.uint32(0):
                out[x] = over(out[x], line[x])


@compiled
def _lay(part: NDArray[np.uint32], color: np.uint32) -> None:
    """Lay `color` over pixels that are mostly like their neighbours."""
    x = 0
    while x < part.size:
        end = find_end(part, x, part.size)
        part[x:end] = over(part[x], color)
        x = end


# --- inside lines ---------------------------------------------------------------------------------


@compiled
def _touch(
    near: NDArray[Any],
    y: int,
    beside: int,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    merge: bool,
    step: int,
) -> None:
    """Set `near` of row `y` to `step` where the pixel of the row `beside` has another label."""
    r, k = rows[y], rows[beside]
    low = 0
    while r < rows[y + 1]:
        high = min(stops[r], stops[k])
        if ids[r] != ids[k] and not (merge and ids[r] != _NONE and ids[k] != _NONE):
            near[low:high] = step
        if stops[r] == high:
            r += 1
        if stops[k] == high:
            k += 1
        low = high


@compiled
def _inside(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    colors: NDArray[np.uint32],
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
    """Draw the pixels of shown runs that lie within `limit` of another label; `above` is (y, x) scratch.

    Its dtype is that of all distances and must hold twice the limit.
    """
    number = above.dtype.type
    height, width = above.shape
    y_high, x_high = y_low + out.shape[0], x_low + out.shape[1]
    # Distances beyond the limit are all alike; one more than the limit keeps them small.
    cap, down = number(limit + 1), number(step_y)
    for y in range(y_high):
        row = above[y]
        if y == 0:
            row[:] = cap
        else:
            last = above[y - 1]
            for x in range(width):
                row[x] = min(number(last[x] + down), cap)
            _touch(row, y, y - 1, rows, starts, stops, ids, merge, step_y)
    below = np.full(width, cap, above.dtype)
    span = min(limit // step_x, width)
    near, other = np.empty(width, above.dtype), np.empty(width, above.dtype)
    line = np.zeros(out.shape[1], np.uint32)
    for y in range(min(height, y_high + limit // step_y) - 1, y_low - 1, -1):
        if y + 1 < height:
            for x in range(width):
                below[x] = min(number(below[x] + down), cap)
            _touch(below, y, y + 1, rows, starts, stops, ids, merge, step_y)
        if y >= y_high:
            continue
        row = above[y]
        for x in range(width):
            near[x] = min(row[x], below[x])
        for r in range(rows[y] + 1, rows[y + 1]):
            if not (merge and ids[r - 1] != _NONE and ids[r] != _NONE):
                near[starts[r]] = min(near[starts[r]], number(step_x))
                near[starts[r] - 1] = min(near[starts[r] - 1], number(step_x))
        # Shifts by 1, 2, 4, … and their sums reach every pixel within the span.
        shift = 1
        while shift <= span:
            _spread(near, other, shift, number(min(shift * step_x, limit + 1)))
            near, other = other, near
            shift *= 2
        for r in range(rows[y], rows[y + 1]):
            low, high = max(starts[r], x_low), min(stops[r], x_high)
            color = colors[r] if colors[r] >> np.uint32(24) != np.uint32(0) else np.uint32(0)
            if low < high:
                here, part = near[low:high], line[low - x_low : high - x_low]
                for x in range(here.size):
                    part[x] = color if here[x] < cap else np.uint32(0)
        _draw(line, under, out[y - y_low])


@compiled
def _spread(near: NDArray[Any], to: NDArray[Any], shift: int, step: int) -> None:
    """Lower each distance by way of the pixels `shift` to either side, which are `step` away.

    That these may be of another run does no harm: its near end is nearer than they are.
    """
    number = near.dtype.type
    size = near.size
    if shift >= size:
        to[:] = near
        return
    to[:shift] = near[:shift]
    left, middle = near[: size - shift], near[shift:]
    part = to[shift:]
    for x in range(part.size):
        part[x] = min(middle[x], number(left[x] + step))
    part = to[: size - shift]
    for x in range(part.size):
        part[x] = min(part[x], number(middle[x] + step))


# --- outside lines --------------------------------------------------------------------------------


@compiled
def _advance(
    from_ids: NDArray[np.uint64],
    from_spans: NDArray[np.int64],
    from_colors: NDArray[np.uint32],
    i: int,
    i_end: int,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    colors: NDArray[np.uint32],
    limit: int,
    step_y: int,
    step_x: int,
    to_ids: NDArray[np.uint64],
    to_spans: NDArray[np.int64],
    to_colors: NDArray[np.uint32],
    n: int,
) -> int:
    """Bring pieces one row further and add the runs `order` of that row; return where the new list ends.

    Pieces are (id, start, stop, rest of the limit, colour), sorted by id. A span (start, stop, rest) covers
    ``rest // step_x`` pixels on either side.
    """
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
                # The runs of one row are disjoint, so only the last that starts in time can hold the piece.
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


@compiled
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
    """Lay `color` over the pixels of a row that the union of `covers` (k, 2) holds, save those of `key`."""
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
                _lay(line[max(low, starts[r]) - x_low : min(high, stops[r]) - x_low], color)
            r += 1
        r -= 1


@compiled
def _draw_row(
    f_ids: NDArray[np.uint64],
    f_spans: NDArray[np.int64],
    f_colors: NDArray[np.uint32],
    i: int,
    i_end: int,
    b_ids: NDArray[np.uint64],
    b_spans: NDArray[np.int64],
    b_colors: NDArray[np.uint32],
    j_end: int,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    merge: bool,
    step_y: int,
    step_x: int,
    x_low: int,
    x_high: int,
    covers: NDArray[np.int64],
    line: NDArray[np.uint32],
) -> None:
    """Draw a row: pieces from above and from the row itself, and pieces that came up to the row below."""
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


@compiled
def _outside(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    ids: NDArray[np.uint64],
    colors: NDArray[np.uint32],
    limit: int,
    step_y: int,
    step_x: int,
    merge: bool,
    under: int,
    y_low: int,
    x_low: int,
    out: NDArray[np.uint32],
) -> None:
    """Lay the outside lines of all shown segments over `out`."""
    first, order = _order(rows, ids)
    if merge and first[-1] == rows[-1]:
        return  # no background to draw on
    y_high, x_high = y_low + out.shape[0], x_low + out.shape[1]
    far = limit // step_y
    begin, end = max(0, y_low - far), min(rows.size - 1, y_high + far)
    # Rows are drawn in strips, so that the lists from above are kept for few rows at a time.
    depth = max(64, 4 * far)
    line = np.zeros(out.shape[1], np.uint32)
    lists = np.zeros(depth + 2, np.int64)
    room = 256
    # Pieces that came from above, pieces that came from below, and the latter one row on.
    f_ids, f_spans, f_colors = _pieces(room)
    b_ids, b_spans, b_colors = _pieces(room)
    c_ids, c_spans, c_colors = _pieces(room)
    covers = np.empty((2 * room, 2), np.int64)
    carried = 0
    top = begin
    while top < y_high:
        bottom = min(top + depth, y_high)
        # Down: list k + 1 is that of row top + k, list 0 that of the row above the strip.
        lists[0], lists[1] = 0, carried
        for y in range(top, bottom):
            k = y - top
            here = order[first[y] : first[y + 1]]
            need = 2 * lists[k + 1] - lists[k] + here.size
            if need > f_ids.size:
                f_ids, f_colors = _grown(f_ids, 2 * need), _grown(f_colors, 2 * need)
                f_spans = _grown_spans(f_spans, 2 * need)
            lists[k + 2] = _advance(
                f_ids, f_spans, f_colors, lists[k], lists[k + 1], here, starts, stops, ids, colors,
                limit, step_y, step_x, f_ids, f_spans, f_colors, lists[k + 1],
            )  # fmt: skip
        # Up, from as far below the strip as lines reach.
        n = 0
        for y in range(min(end, bottom + far) - 1, max(top, y_low) - 1, -1):
            full = first[y + 1] - first[y] == rows[y + 1] - rows[y]
            if y < bottom and not (merge and full):
                k = y - top + 1
                most = lists[k + 1] - lists[k] + n
                if most > covers.shape[0]:
                    covers = np.empty((2 * most, 2), np.int64)
                low, high = rows[y], rows[y + 1]
                _draw_row(
                    f_ids, f_spans, f_colors, lists[k], lists[k + 1], b_ids, b_spans, b_colors, n,
                    starts[low:high], stops[low:high], ids[low:high], merge, step_y, step_x,
                    x_low, x_high, covers, line,
                )  # fmt: skip
                _draw(line, under, out[y - y_low])
                line[:] = 0
            here = order[first[y] : first[y + 1]]
            if n + here.size > c_ids.size:
                need = 2 * (n + here.size)
                c_ids, c_spans, c_colors = _pieces(need)
            n = _advance(
                b_ids, b_spans, b_colors, 0, n, here, starts, stops, ids, colors,
                limit, step_y, step_x, c_ids, c_spans, c_colors, 0,
            )  # fmt: skip
            b_ids, c_ids = c_ids, b_ids
            b_spans, c_spans = c_spans, b_spans
            b_colors, c_colors = c_colors, b_colors
        carried = lists[bottom - top + 1] - lists[bottom - top]
        last = lists[bottom - top]
        f_ids[:carried] = f_ids[last : last + carried].copy()
        f_spans[:carried] = f_spans[last : last + carried].copy()
        f_colors[:carried] = f_colors[last : last + carried].copy()
        top = bottom


@compiled
def _pieces(room: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
    return np.empty(room, np.uint64), np.empty((room, 3), np.int64), np.empty(room, np.uint32)


@compiled
def _grown_spans(array: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    out = np.empty((room, 3), np.int64)
    out[: array.shape[0]] = array
    return out


# --- the functions --------------------------------------------------------------------------------


def _part(
    shape: tuple[int, ...], inner: tuple[slice, slice, slice] | None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return corner and shape of the inner part of a (z, y, x) block."""
    if len(shape) != 3:
        raise GridMismatchError(f"labels must be (z, y, x), got shape {shape}")
    bounds = [s.indices(n) for s, n in zip(inner or (slice(None),) * 3, shape, strict=True)]
    if any(step != 1 for _, _, step in bounds):
        raise OptionError(f"inner must be slices of step 1, got {inner}")
    z, y, x = ((low, max(0, high - low)) for low, high, _ in bounds)
    return (z[0], y[0], x[0]), (z[1], y[1], x[1])


def _line(
    labels: NDArray[Any],
    table: ColorTable,
    metric: _Metric,
    side: str,
    merge: bool,
    corner: tuple[int, int, int],
    under: int,
    out: NDArray[np.uint32],
) -> None:
    """Lay the outlines of `labels` (with halo) over `out`, the part that begins at `corner`."""
    if side not in ("out", "in"):
        raise OptionError(f'side must be "out" or "in", got {side!r}')
    ids, look = as_labels(labels), ready(table)
    _, height, width = ids.shape
    if out.size == 0 or look.packed.size == 0:
        return
    # No two pixels of a block are farther apart than this, so larger numbers make no difference.
    limit = min(metric.limit, metric.step_y * height + metric.step_x * width)
    step_y, step_x = min(metric.step_y, limit + 1), min(metric.step_x, limit + 1)
    flat = ids.reshape(-1)
    runs = _room(height, width)
    numbers = np.int16 if limit < 2**13 else np.int32 if limit < 2**29 else np.int64
    above = np.empty((height, width), numbers) if side == "in" else None
    for z in range(out.shape[0]):
        runs = _Runs(*_runs(flat, (corner[0] + z) * height * width, width, *look, *runs))
        if above is not None:
            _inside(*runs, above, limit, step_y, step_x, merge, under, corner[1], corner[2], out[z])
        else:
            _outside(*runs, limit, step_y, step_x, merge, under, corner[1], corner[2], out[z])


def outline(
    labels: NDArray[Any],
    table: ColorTable,
    *,
    limit: float,
    steps: tuple[float, float] = (1.0, 1.0),
    side: Literal["out", "in"] = "out",
    merge: bool = True,
    inner: tuple[slice, slice, slice] | None = None,
) -> NDArray[np.uint8]:
    """Draw the outlines of segments, each slice by itself.

    Parameters
    ----------
    labels
        Ids (z, y, x), any integer dtype, with a halo of at least `reach` pixels in y and x wherever the
        picture goes on. The edge of the array makes no line.
    table
        The colour of each id, see `build_table`; ids that it does not know count as background.
    limit
        Width of the lines, in the unit of `steps`: pixels with the default steps.
    steps
        Size of a pixel in y and in x, for instance in nm. Read as fractions with denominators up to 10,000.
    side : {"out", "in"}
        "in": a pixel of a shown id is drawn in its colour if another label lies within `limit`. "out": a
        pixel is drawn in the colour of every other shown id that has a pixel within `limit`, laid over each
        other as by `alpha_over` in the order of their ids.
    merge
        Treat all shown segments as one body, so that no line is drawn where they touch: "in" heeds only
        pixels that are not shown, "out" draws only on such pixels.
    inner
        The part to return, as slices of (z, y, x); all of `labels` by default.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of the inner part and 4, straight alpha; (0, 0, 0, 0) where there is no line.

    Raises
    ------
    OptionError
        An option is outside its values.
    LayerError
        `labels` are no integers.
    GridMismatchError
        `labels` are not (z, y, x).

    Examples
    --------
    >>> from imageryxr.kernels.lookup import build_table
    >>> table = build_table([7], np.array([[255, 0, 0, 255]], np.uint8))
    >>> labels = np.array([[[0, 0, 0, 7, 7, 7]]])
    >>> outline(labels, table, limit=2)[0, 0, :, 3]
    array([  0, 255, 255,   0,   0,   0], dtype=uint8)
    >>> outline(labels, table, limit=1, side="in")[0, 0, :, 3]
    array([  0,   0,   0, 255,   0,   0], dtype=uint8)
    """
    labels = np.asarray(labels)
    corner, shape = _part(labels.shape, inner)
    out = np.zeros(shape, np.uint32)
    _line(labels, table, _metric(limit, steps), side, merge, corner, _BLANK, out)
    return unpack(out)


def paint(
    labels: NDArray[Any],
    image: NDArray[np.uint8] | None,
    fill_table: ColorTable | None,
    outline_table: ColorTable | None,
    *,
    limit: float = 0.0,
    steps: tuple[float, float] = (1.0, 1.0),
    side: Literal["out", "in"] = "out",
    merge: bool = True,
    inner: tuple[slice, slice, slice] | None = None,
) -> NDArray[np.uint8]:
    """Fill segments and draw their outlines over an image, without a picture in between.

    Equals ``alpha_over(fill(labels[inner], image, fill_table), outline(labels, outline_table, …))`` bit for
    bit.

    Parameters
    ----------
    labels
        Ids (z, y, x) with a halo, as in `outline`.
    image
        uint8, the shape of the *inner* part, or None for no image.
    fill_table
        Colours of the fill, or None for no fill.
    outline_table
        Colours of the lines, or None for no lines.
    limit, steps, side, merge, inner
        As in `outline`.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of the inner part and 4, straight alpha; opaque where there is an image.

    Raises
    ------
    OptionError
        An option is outside its values.
    LayerError
        `labels` are no integers or `image` is not uint8.
    GridMismatchError
        `labels` are not (z, y, x), or `image` has not the shape of the inner part.
    """
    labels = as_labels(labels)
    corner, shape = _part(labels.shape, inner)
    if image is not None and image.shape != shape:
        raise GridMismatchError(f"image {image.shape} and the inner part of the labels {shape} must agree")
    if fill_table is not None:
        out = fill_packed(labels, corner, shape, image, fill_table)
    elif image is not None:
        out = gray_packed(image)
    else:
        out = np.zeros(shape, np.uint32)
    if outline_table is not None:
        under = _OPAQUE if image is not None else _BLANK if fill_table is None else _ANY
        _line(labels, outline_table, _metric(limit, steps), side, merge, corner, under, out)
    return unpack(out)
