"""Pixels out of labels and images: segments filled with colours, contrast, alpha.

RGBA is uint8 with straight alpha in the last axis; kernels hold a pixel as one uint32, red in the lowest
byte.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.color_table import ColorTable, as_labels, ready, slot_of
from imageryxr.kernels.run_length import PAD, compiled, frozen, padded, run_ends, scratch, spread

__all__ = ["alpha_over", "fill", "gray_to_rgba", "over", "to_uint8"]

_GRAY = np.uint32(0x010101)
_OPAQUE = np.uint32(0xFF000000)
_BYTE, _FULL, _HALF = np.uint32(0xFF), np.uint32(255), np.uint32(128)
_EIGHT, _SIXTEEN, _ALPHA = np.uint32(8), np.uint32(16), np.uint32(24)


@compiled
def _gray_row(image: NDArray[np.uint8], out: NDArray[np.uint32]) -> None:
    for i in range(out.size):
        out[i] = np.uint32(image[i]) * _GRAY | _OPAQUE


@compiled
def _blend_row(image: NDArray[np.uint8], line: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """Lay a row of colours over opaque grey: (grey * (255 - a) + color * a) / 255, to the nearest."""
    for i in range(out.size):
        color, gray = line[i], np.uint32(image[i])
        alpha = color >> _ALPHA
        rest = _FULL - alpha
        # (t + (t >> 8)) >> 8 is (t - 128) / 255 to the nearest for t - 128 up to 255 * 255.
        red = (color & _BYTE) * alpha + gray * rest + _HALF
        green = ((color >> _EIGHT) & _BYTE) * alpha + gray * rest + _HALF
        blue = ((color >> _SIXTEEN) & _BYTE) * alpha + gray * rest + _HALF
        red = (red + (red >> _EIGHT)) >> _EIGHT
        green = (green + (green >> _EIGHT)) >> _EIGHT
        blue = (blue + (blue >> _EIGHT)) >> _EIGHT
        out[i] = red | (green << _EIGHT) | (blue << _SIXTEEN) | _OPAQUE


@compiled
def _fill_alone(
    flat: NDArray[Any],
    shape: tuple[int, int, int],
    corner: tuple[int, int, int],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    out: NDArray[np.uint32],
    size: tuple[int, int, int],
) -> None:
    """Write the colour of each pixel; `out` has `PAD` values of room behind it."""
    depth, height, width = size
    room = scratch(width)
    for z in range(depth):
        for y in range(height):
            begin = ((corner[0] + z) * shape[1] + corner[1] + y) * shape[2] + corner[2]
            base = (z * height + y) * width
            row = flat[begin : begin + width]
            start = 0
            for k in range(run_ends(row, room)):
                end = room.ends[k]
                slot = slot_of(keys, slots, -1, explicit, fallback, np.uint64(row[start]))
                color = packed[slot] if slot >= 0 else np.uint32(0)
                spread(out, base + start, base + end, color)
                start = end


@compiled
def _fill_over(
    flat: NDArray[Any],
    shape: tuple[int, int, int],
    corner: tuple[int, int, int],
    image: NDArray[np.uint8],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    packed: NDArray[np.uint32],
    explicit: int,
    fallback: int,
    out: NDArray[np.uint32],
    size: tuple[int, int, int],
) -> None:
    """Lay the colour of each pixel over the image, by rows: blended as a whole, a row has no scalar ends."""
    depth, height, width = size
    line = np.empty(width + PAD, np.uint32)
    room = scratch(width)
    for z in range(depth):
        for y in range(height):
            begin = ((corner[0] + z) * shape[1] + corner[1] + y) * shape[2] + corner[2]
            base = (z * height + y) * width
            row = flat[begin : begin + width]
            start = 0
            for k in range(run_ends(row, room)):
                end = room.ends[k]
                slot = slot_of(keys, slots, -1, explicit, fallback, np.uint64(row[start]))
                color = packed[slot] if slot >= 0 else np.uint32(0)
                spread(line, start, end, color)
                start = end
            _blend_row(image[base : base + width], line[:width], out[base : base + width])


def _as_image(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise LayerError(f"the image under a fill must be uint8, got {image.dtype}; map it with to_uint8")
    if image.shape != shape:
        raise GridMismatchError(f"image {image.shape} and labels {shape} must have one shape")
    return frozen(image)


def fill_packed(
    labels: NDArray[Any],
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    image: NDArray[np.uint8] | None,
    table: ColorTable,
) -> NDArray[np.uint32]:
    """Fill the part of `labels` (z, y, x) that begins at `corner` and has `shape`; packed pixels."""
    ids, look = as_labels(labels), ready(table)
    out = padded(math.prod(shape), np.uint32)
    if image is None:
        _fill_alone(ids.reshape(-1), ids.shape, corner, *look, out, shape)
    else:
        under = _as_image(image, shape).reshape(-1)
        _fill_over(ids.reshape(-1), ids.shape, corner, frozen(under), *look, out, shape)
    return out[: math.prod(shape)].reshape(shape)


def unpack(packed: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return packed pixels (...,) as uint8 (..., 4), without a copy on a little-endian machine."""
    return packed.astype("<u4", copy=False).view(np.uint8).reshape((*packed.shape, 4))


def fill(labels: NDArray[Any], image: NDArray[np.uint8] | None, table: ColorTable) -> NDArray[np.uint8]:
    """Fill segments with colours, over an image or by themselves.

    Parameters
    ----------
    labels
        Ids (z, y, x), any integer dtype; any other shape serves as well.
    image
        uint8 of the same shape, shown as opaque grey under the colours; None for no image.
    table
        The colour of each id, see `build_table`.

    Returns
    -------
    numpy.ndarray
        uint8 (z, y, x, 4). With an image, opaque: the colour laid over the grey by its alpha, to the nearest
        integer. Without, the colour itself with its alpha, and (0, 0, 0, 0) where an id is not shown.

    Raises
    ------
    LayerError
        `labels` are no integers or `image` is not uint8.
    GridMismatchError
        `image` and `labels` differ in shape.
    """
    labels = np.asarray(labels)
    if image is not None and image.shape != labels.shape:
        raise GridMismatchError(f"image {image.shape} and labels {labels.shape} must have one shape")
    width = labels.shape[-1] if labels.ndim and labels.size else labels.size
    rows = (1, labels.size // max(1, width), width)
    flat = np.ascontiguousarray(labels).reshape(rows)
    under = None if image is None else np.ascontiguousarray(image).reshape(rows)
    return unpack(fill_packed(flat, (0, 0, 0), rows, under, table).reshape(labels.shape))


@compiled
def _gray(flat: NDArray[np.uint8], out: NDArray[np.uint32]) -> None:
    _gray_row(flat, out)


def gray_packed(image: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return an uint8 image as opaque grey pixels, packed as uint32."""
    under = _as_image(image, image.shape)
    out = np.empty(image.shape, np.uint32)
    _gray(under.reshape(-1), out.reshape(-1))
    return out


def gray_to_rgba(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image as opaque grey.

    Parameters
    ----------
    image
        uint8, any shape.

    Returns
    -------
    numpy.ndarray
        uint8 (..., 4), alpha 255.

    Raises
    ------
    LayerError
        `image` is not uint8; see `to_uint8`.
    """
    return unpack(gray_packed(np.asarray(image)))


@compiled
def _contrast(flat: NDArray[Any], lo: float, hi: float, out: NDArray[np.uint8]) -> None:
    span = hi - lo
    for i in range(flat.size):
        value = np.float64(flat[i])
        scaled = (value - lo) / span * 255.0 if span != 0.0 else (255.0 if value > lo else 0.0)
        # A comparison with NaN is false, so NaN ends as 0.
        scaled = scaled if scaled > 0.0 else 0.0
        scaled = scaled if scaled < 255.0 else 255.0
        out[i] = np.uint8(np.int32(scaled + 0.5))


@compiled
def _take(flat: NDArray[Any], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for i in range(flat.size):
        out[i] = table[flat[i]]


def to_uint8(image: NDArray[Any], lo: float, hi: float) -> NDArray[np.uint8]:
    """Map values between two contrast limits to 0 … 255.

    The result is ``clip((v - lo) / (hi - lo) * 255, 0, 255)`` in float64, a half rounded up. With ``lo > hi``
    the picture is inverted; with ``lo == hi`` it is a step: 255 above the limit, 0 at it and below. NaN is 0,
    an infinity is one of the ends.

    Parameters
    ----------
    image
        Any shape, any integer or float dtype; values in the unit of `lo` and `hi`.
    lo, hi
        The values shown black and white; finite.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of `image`.

    Raises
    ------
    OptionError
        A limit is not a finite number, or they lie farther apart than one.
    LayerError
        `image` is complex or not numeric.
    """
    lo, hi = float(lo), float(hi)
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise OptionError(f"contrast limits must be finite numbers, got ({lo}, {hi})")
    if not math.isfinite(hi - lo):
        raise OptionError(f"contrast limits lie too far apart for float64, got ({lo}, {hi})")
    image = np.asarray(image)
    if image.dtype.kind not in "biuf":
        raise LayerError(f"an image must be of integers or floats, got {image.dtype}")
    if image.dtype == np.bool_:
        image = image.view(np.uint8)
    if image.dtype.str[1:] not in ("u1", "u2", "u4", "i2", "f4", "f8"):
        image = image.astype(np.float64)
    flat = frozen(image).reshape(-1)
    out = np.empty(image.shape, np.uint8)
    if flat.dtype.itemsize <= 2 and flat.size > 1 << (8 * flat.dtype.itemsize):
        # More pixels than values: map each value once. A signed one is found by its bits.
        bits = np.arange(1 << (8 * flat.dtype.itemsize), dtype=f"u{flat.dtype.itemsize}")
        table = np.empty(bits.size, np.uint8)
        _contrast(frozen(bits.view(flat.dtype)), lo, hi, table)
        _take(flat.view(bits.dtype), frozen(table), out.reshape(-1))
    else:
        _contrast(flat, lo, hi, out.reshape(-1))
    return out


@compiled
def over(bottom: np.uint32, top: np.uint32) -> np.uint32:
    """Lay one packed pixel over another (compiled; the rule is told at `alpha_over`)."""
    source = np.int64(top >> np.uint32(24))
    target = np.int64(bottom >> np.uint32(24))
    if source == 0:
        return bottom
    if source == 255 or target == 0:
        return top
    rest = target * (255 - source)
    source *= 255
    whole = source + rest
    pixel = np.int64((whole + 127) // 255) << 24
    for shift in (0, 8, 16):
        upper = np.int64(top >> np.uint32(shift)) & 255
        lower = np.int64(bottom >> np.uint32(shift)) & 255
        pixel |= ((2 * (upper * source + lower * rest) + whole) // (2 * whole)) << shift
    return np.uint32(pixel)


@compiled
def over_opaque(bottom: np.uint32, top: np.uint32) -> np.uint32:
    """Do what `over` does where `bottom` is opaque, without a division."""
    source = np.int64(top >> np.uint32(24))
    rest = 255 - source
    pixel = np.int64(255) << 24
    for shift in (0, 8, 16):
        upper = np.int64(top >> np.uint32(shift)) & 255
        lower = np.int64(bottom >> np.uint32(shift)) & 255
        t = upper * source + lower * rest + 128
        pixel |= ((t + (t >> 8)) >> 8) << shift
    return np.uint32(pixel)


# What is known of a picture that lines are laid over, so that most of it is drawn without branches.
BLANK, SOLID, ANY = 0, 1, 2


@compiled
def over_row(line: NDArray[np.uint32], under: int, out: NDArray[np.uint32]) -> None:
    """Lay a row over the row `out` of a picture, which is blank, opaque or anything (compiled)."""
    if under == BLANK:
        out[:] = line
    elif under == SOLID:
        for x in range(out.size):
            out[x] = over_opaque(out[x], line[x])
    else:
        for x in range(out.size):
            if line[x] != np.uint32(0):
                out[x] = over(out[x], line[x])


@compiled
def _alpha_over(bottom: NDArray[np.uint32], top: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    full = np.uint32(255)
    for i in range(out.size):
        if bottom[i] >> np.uint32(24) == full:
            out[i] = over_opaque(bottom[i], top[i])
        else:
            out[i] = over(bottom[i], top[i])


def _as_packed(rgba: NDArray[np.uint8]) -> NDArray[np.uint32]:
    if rgba.dtype != np.uint8 or rgba.ndim == 0 or rgba.shape[-1] != 4:
        raise LayerError(f"RGBA must be uint8 of shape (..., 4), got {rgba.dtype} of shape {rgba.shape}")
    flat = frozen(rgba).reshape(-1)
    return frozen(flat.view("<u4").astype(np.uint32, copy=False))


def alpha_over(bottom: NDArray[np.uint8], top: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay one picture over another by the alpha of the upper one.

    With alphas s (top) and d (bottom) the result has alpha ``s + d * (255 - s) / 255`` and the mean of the
    colours weighted ``s`` and ``d * (255 - s) / 255``. Both are exact fractions rounded to the nearest
    integer, a half up. Where the top is fully transparent the bottom keeps its bits.

    Parameters
    ----------
    bottom, top
        uint8 (..., 4), straight alpha, of one shape.

    Returns
    -------
    numpy.ndarray
        uint8 (..., 4), straight alpha.

    Raises
    ------
    LayerError
        One of them is not uint8 (..., 4).
    GridMismatchError
        They differ in shape.
    """
    bottom, top = np.asarray(bottom), np.asarray(top)
    lower, upper = _as_packed(bottom), _as_packed(top)
    if bottom.shape != top.shape:
        raise GridMismatchError(f"pictures {bottom.shape} and {top.shape} must have one shape")
    out = np.empty(lower.shape, np.uint32)
    _alpha_over(lower, upper, out)
    return unpack(out.reshape(bottom.shape[:-1]))
