"""Draw outlines of segments in each slice, in the plane of the last two axes.

A pixel is *shown* if the colour table contains its id; all other pixels are background. Distances are city-block
distances, ``|dy| * step_y + |dx| * step_x``. No line is drawn along the edge of the array, so that a block with a halo
of `halo_size` pixels has the same pixels as the whole picture, bit for bit.

Three kernels implement the same definition: `draw_inner` draws lines within segments, `draw_merged` opaque and merged
lines around segments, and `draw_outer` all other lines around segments.

Distances are integers: steps and limit are converted to a common denominator first, so that sums are exact.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, OptionError
from imageryxr.kernels.color_table import ColorTable, as_labels, kernel_table
from imageryxr.kernels.fill import ANY, BLANK, SOLID, fill_packed, pack_gray, unpack
from imageryxr.kernels.outline_inner import color_and_mark, draw_inner
from imageryxr.kernels.outline_merged import draw_merged
from imageryxr.kernels.outline_outer import cut_runs, draw_outer, make_runs
from imageryxr.kernels.run_length import PAD, is_blank

# Steps and limits are rounded to fractions with denominators up to this: 4.7 is 47 / 10.
_DENOMINATOR = 10_000


class _Metric(NamedTuple):
    """The width of lines and the size of a pixel, as integers in a common unit."""

    limit: int
    step_y: int
    step_x: int


def _fraction(value: float) -> Fraction:
    return Fraction(float(value)).limit_denominator(_DENOMINATOR)


def _integer_metric(limit: float, steps: tuple[float, float]) -> _Metric:
    if not math.isfinite(limit) or limit < 0:
        raise OptionError(f"the width of an outline must be a finite number of at least 0, got {limit}")
    if len(steps) != 2 or not all(math.isfinite(s) and s >= 1 / _DENOMINATOR for s in steps):
        raise OptionError(f"steps must be two positive numbers (y, x), got {steps}")
    y, x = _fraction(steps[0]), _fraction(steps[1])
    denominator = math.lcm(y.denominator, x.denominator)
    step_y, step_x = int(y * denominator), int(x * denominator)
    common = math.gcd(step_y, step_x)
    return _Metric(math.floor(_fraction(limit) * denominator / common), step_y // common, step_x // common)


def halo_size(limit: float, steps: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int]:
    """Return the halo, in pixels along y and x, that `paint` needs for a `limit` and `steps`.

    >>> halo_size(14.1, steps=(4.7, 8.0))
    (3, 1)
    """
    metric = _integer_metric(limit, steps)
    return metric.limit // metric.step_y, metric.limit // metric.step_x


def _inner_part(
    shape: tuple[int, ...], inner: tuple[slice, slice, slice] | None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the corner and shape of the inner part of a (z, y, x) block."""
    if len(shape) != 3:
        raise GridMismatchError(f"labels must be (z, y, x), got shape {shape}")
    bounds = [s.indices(n) for s, n in zip(inner or (slice(None),) * 3, shape, strict=True)]
    if any(step != 1 for _, _, step in bounds):
        raise OptionError(f"inner must be slices of step 1, got {inner}")
    z, y, x = ((low, max(0, high - low)) for low, high, _ in bounds)
    return (z[0], y[0], x[0]), (z[1], y[1], x[1])


def _draw_outlines(
    labels: NDArray[Any],
    table: ColorTable,
    metric: _Metric,
    side: str,
    merge: bool,
    corner: tuple[int, int, int],
    under: int,
    out: NDArray[np.uint32],
) -> None:
    """Draw the outlines of `labels` (with halo) over `out`, the part of the block that begins at `corner`."""
    if side not in ("out", "in"):
        raise OptionError(f'side must be "out" or "in", got {side!r}')
    ids, kernel_colors = as_labels(labels), kernel_table(table)
    _, height, width = ids.shape
    if out.size == 0 or kernel_colors.packed.size == 0:
        return
    # No two pixels of a block are farther apart than this, so a larger limit has the same result.
    limit = min(metric.limit, metric.step_y * height + metric.step_x * width)
    step_y, step_x = min(metric.step_y, limit + 1), min(metric.step_x, limit + 1)
    flat, y, x = ids.reshape(-1), corner[1], corner[2]
    for z in range(out.shape[0]):
        base = (corner[0] + z) * height * width
        if side == "in":
            y_high = y + out.shape[1]
            rows = min(height, y_high + limit // step_y)
            colors = np.empty((rows, width + PAD), np.uint32)
            up, right = np.empty((rows, width), np.uint8), np.empty((rows, width - 1), np.uint8)
            if color_and_mark(flat, base, kernel_colors, merge, y, y_high, colors, up, right):
                distances = np.empty((rows, width), _distance_dtype(limit))
                draw_inner(colors, up, right, distances, limit, step_y, step_x, under, y, x, out[z])
            continue
        opaque = merge and step_y == step_x and bool((table.rgba[:, 3] == 255).all())
        if opaque and draw_merged(flat, base, height, width, kernel_colors, limit // step_y, y, x, out[z]):
            continue
        runs = cut_runs(flat, base, width, kernel_colors, make_runs(height, width))
        draw_outer(runs, limit, step_y, step_x, merge, under, y, x, out[z])


def _distance_dtype(limit: int) -> type[np.signedinteger[Any] | np.unsignedinteger[Any]]:
    """Return the smallest integer dtype that can represent twice the limit plus two."""
    return next(t for t in (np.uint8, np.int16, np.int32, np.int64) if 2 * limit + 2 <= np.iinfo(t).max)


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
    """Fill segments and draw their outlines over an image, in each slice independently, without intermediate pictures.

    The result equals the fill, with the lines of one segment after the other blended over it by `alpha_over`, bit for
    bit.

    Parameters
    ----------
    labels
        Ids (z, y, x), any integer dtype, with a halo of at least `halo_size` pixels along y and x wherever the picture
        continues. No line is drawn along the edge of the array.
    image
        uint8 with the shape of the *inner* part; the result is opaque. None for a transparent background.
    fill_table, outline_table
        The colours of ids, from `build_color_table`. Ids that a table does not contain are background. None: no fill,
        or no lines.
    limit
        Width of the lines in the unit of `steps`; pixels with the default steps.
    steps
        Size of a pixel along y and x, for example in nm; rounded to fractions with denominators up to 10,000.
    side : {"out", "in"}
        "in": a pixel of a shown id is drawn in its colour if a pixel with another label lies within `limit`. "out": a
        pixel is drawn in the colours of all other shown ids that have a pixel within `limit`, blended in the order of
        the ids as in `alpha_over`.
    merge
        Treat all shown segments as one body, without lines where they touch: with "in", only pixels that are not shown
        cause lines; with "out", lines are drawn only on such pixels.
    inner
        The part to return, as slices of (z, y, x). The default is all of `labels`.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of the inner part and 4, straight alpha; (0, 0, 0, 0) for pixels without any colour.

    Raises
    ------
    OptionError
        If the value of an option is invalid.
    LayerError
        If `labels` are not integers.
    GridMismatchError
        If `labels` are not (z, y, x), or the image has another shape.

    Examples
    --------
    >>> from imageryxr.kernels.color_table import build_color_table
    >>> table = build_color_table([7], np.array([[255, 0, 0, 255]], np.uint8))
    >>> labels = np.array([[[0, 0, 0, 7, 7, 7]]])
    >>> paint(labels, None, None, table, limit=2)[0, 0, :, 3]
    array([  0, 255, 255,   0,   0,   0], dtype=uint8)
    >>> paint(labels, None, None, table, limit=1, side="in")[0, 0, :, 3]
    array([  0,   0,   0, 255,   0,   0], dtype=uint8)
    """
    labels = as_labels(labels)
    corner, shape = _inner_part(labels.shape, inner)
    if image is not None and image.shape != shape:
        raise GridMismatchError(
            f"image {image.shape} and the inner part of the labels {shape} must have the same shape"
        )
    if is_blank(labels.reshape(-1)):
        fill_table, outline_table = None, None  # background is never shown
    if fill_table is not None:
        out = fill_packed(labels, corner, shape, image, fill_table)
    elif image is not None:
        out = pack_gray(image)
    else:
        out = np.zeros(shape, np.uint32)
    if outline_table is not None:
        under = SOLID if image is not None else BLANK if fill_table is None else ANY
        _draw_outlines(labels, outline_table, _integer_metric(limit, steps), side, merge, corner, under, out)
    return unpack(out)
