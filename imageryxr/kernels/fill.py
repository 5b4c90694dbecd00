"""Fill segments with colours, map images to grey, and blend pictures.

RGBA is uint8 with straight alpha in the last axis. In kernels, a pixel is one uint32 with red in the lowest byte
("packed").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.color_table import ColorTable, KernelTable, as_labels, find_row, kernel_table
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import (
    PAD,
    as_kernel_input,
    copy_values,
    fill_run,
    make_padded,
    make_run_buffers,
    run_ends,
)

_GRAY = np.uint32(0x010101)
_OPAQUE = np.uint32(0xFF000000)
_BYTE, _FULL, _HALF = np.uint32(0xFF), np.uint32(255), np.uint32(128)
_EIGHT, _SIXTEEN, _ALPHA = np.uint32(8), np.uint32(16), np.uint32(24)


@compile_kernel
def _blend_row_over_gray(image: NDArray[np.uint8], line: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """Blend a row of colours over opaque grey: (grey * (255 - a) + color * a) / 255, rounded to nearest."""
    for i in range(out.size):
        color, gray = line[i], np.uint32(image[i])
        alpha = color >> _ALPHA
        rest = _FULL - alpha
        # (t + (t >> 8)) >> 8 is (t - 128) / 255, rounded to nearest, for t - 128 up to 255 * 255.
        red = (color & _BYTE) * alpha + gray * rest + _HALF
        green = ((color >> _EIGHT) & _BYTE) * alpha + gray * rest + _HALF
        blue = ((color >> _SIXTEEN) & _BYTE) * alpha + gray * rest + _HALF
        red = (red + (red >> _EIGHT)) >> _EIGHT
        green = (green + (green >> _EIGHT)) >> _EIGHT
        blue = (blue + (blue >> _EIGHT)) >> _EIGHT
        out[i] = red | (green << _EIGHT) | (blue << _SIXTEEN) | _OPAQUE


@compile_kernel
def _fill(
    flat: NDArray[Any],
    shape: tuple[int, int, int],
    corner: tuple[int, int, int],
    image: NDArray[np.uint8] | None,
    table: KernelTable,
    out: NDArray[np.uint32],
    size: tuple[int, int, int],
) -> None:
    """Write the colour of each pixel, or blend it over the image; `out` has `PAD` extra values at its end.

    Whole rows are blended, which vectorizes better than runs.
    """
    depth, height, width = size
    line = np.empty(width + PAD, np.uint32)
    buffers = make_run_buffers(width)
    for z in range(depth):
        for y in range(height):
            begin = ((corner[0] + z) * shape[1] + corner[1] + y) * shape[2] + corner[2]
            base = (z * height + y) * width
            row = flat[begin : begin + width]
            start = 0
            for k in range(run_ends(row, buffers)):
                end = buffers.ends[k]
                slot = find_row(table, np.uint64(row[start]))
                color = table.packed[slot] if slot >= 0 else np.uint32(0)
                if image is None:
                    fill_run(out, base + start, base + end, color)
                else:
                    fill_run(line, start, end, color)
                start = end
            if image is not None:
                _blend_row_over_gray(image[base : base + width], line[:width], out[base : base + width])


def _as_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise LayerError(f"the image under a fill must be uint8, got {image.dtype}; map it with to_uint8")
    return as_kernel_input(image)


def fill_packed(
    labels: NDArray[Any],
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    image: NDArray[np.uint8] | None,
    table: ColorTable,
) -> NDArray[np.uint32]:
    """Fill the part of `labels` (z, y, x) with a given corner and shape; return packed pixels.

    With an image, of that shape, the result is opaque: the colour is blended over the grey by its alpha and rounded to
    nearest. Without an image it is the colour with its alpha, or 0 for ids that are not drawn.
    """
    ids, kernel_colors = as_labels(labels), kernel_table(table)
    out = make_padded(math.prod(shape), np.uint32)
    under = None if image is None else _as_image(image).reshape(-1)
    _fill(ids.reshape(-1), ids.shape, corner, under, kernel_colors, out, shape)
    return out[: math.prod(shape)].reshape(shape)


def unpack(packed: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return packed pixels (...,) as uint8 (..., 4), without a copy on a little-endian machine."""
    return packed.astype("<u4", copy=False).view(np.uint8).reshape((*packed.shape, 4))


@compile_kernel
def _gray(flat: NDArray[np.uint8], out: NDArray[np.uint32]) -> None:
    for i in range(out.size):
        out[i] = np.uint32(flat[i]) * _GRAY | _OPAQUE


def pack_gray(image: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Convert a uint8 image to packed, opaque grey pixels."""
    under = _as_image(image)
    out = np.empty(image.shape, np.uint32)
    _gray(under.reshape(-1), out.reshape(-1))
    return out


def gray_to_rgba(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a uint8 image of any shape to opaque grey, uint8 (..., 4)."""
    return unpack(pack_gray(np.asarray(image)))


@compile_kernel
def _apply_contrast(flat: NDArray[Any], lo: float, hi: float, out: NDArray[np.uint8]) -> None:
    span = hi - lo
    for i in range(flat.size):
        value = np.float64(flat[i])
        scaled = (value - lo) / span * 255.0 if span != 0.0 else (255.0 if value > lo else 0.0)
        # A comparison with NaN is false, so NaN becomes 0.
        scaled = scaled if scaled > 0.0 else 0.0
        scaled = scaled if scaled < 255.0 else 255.0
        out[i] = np.uint8(np.int32(scaled + 0.5))


@compile_kernel
def _map_values(flat: NDArray[Any], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for i in range(flat.size):
        out[i] = table[flat[i]]


def to_uint8(image: NDArray[Any], lo: float, hi: float) -> NDArray[np.uint8]:
    """Map the values of an image between two finite contrast limits to 0 … 255.

    The result is ``clip((v - lo) / (hi - lo) * 255, 0, 255)`` in float64, rounded with halves up. With ``lo > hi`` the
    picture is inverted. With ``lo == hi`` it is a step: 255 above the limit, otherwise 0. NaN becomes 0, and infinities
    become 0 or 255.
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
    flat = as_kernel_input(image).reshape(-1)
    out = np.empty(image.shape, np.uint8)
    if flat.dtype.itemsize <= 2 and flat.size > 1 << (8 * flat.dtype.itemsize):
        # More pixels than possible values: map each value once. The bits of a value are its index in the table.
        bits = np.arange(1 << (8 * flat.dtype.itemsize), dtype=f"u{flat.dtype.itemsize}")
        table = np.empty(bits.size, np.uint8)
        _apply_contrast(as_kernel_input(bits.view(flat.dtype)), lo, hi, table)
        _map_values(flat.view(bits.dtype), as_kernel_input(table), out.reshape(-1))
    else:
        _apply_contrast(flat, lo, hi, out.reshape(-1))
    return out


@compile_kernel
def blend_pixel(bottom: np.uint32, top: np.uint32) -> np.uint32:
    """Blend one packed pixel over another as `alpha_over` does."""
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


@compile_kernel
def blend_opaque_pixel(bottom: np.uint32, top: np.uint32) -> np.uint32:
    """Blend a packed pixel over an opaque one, without a division; equals `blend_pixel`."""
    source = np.int64(top >> np.uint32(24))
    rest = 255 - source
    pixel = np.int64(255) << 24
    for shift in (0, 8, 16):
        upper = np.int64(top >> np.uint32(shift)) & 255
        lower = np.int64(bottom >> np.uint32(shift)) & 255
        t = upper * source + lower * rest + 128
        pixel |= ((t + (t >> 8)) >> 8) << shift
    return np.uint32(pixel)


# The picture below outlines is transparent, opaque or mixed. The first two are blended without branches.
BLANK, SOLID, ANY = 0, 1, 2


@compile_kernel
def blend_row(line: NDArray[np.uint32], under: int, out: NDArray[np.uint32]) -> None:
    """Blend a row over the row `out` of a picture; `under` is `BLANK`, `SOLID` or `ANY`."""
    if under == BLANK:
        copy_values(line, out)
    elif under == SOLID:
        for x in range(out.size):
            out[x] = blend_opaque_pixel(out[x], line[x])
    else:
        for x in range(out.size):
            if line[x] != np.uint32(0):
                out[x] = blend_pixel(out[x], line[x])


@compile_kernel
def _alpha_over(bottom: NDArray[np.uint32], top: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    full = np.uint32(255)
    for i in range(out.size):
        if bottom[i] >> np.uint32(24) == full:
            out[i] = blend_opaque_pixel(bottom[i], top[i])
        else:
            out[i] = blend_pixel(bottom[i], top[i])


def _as_packed(rgba: NDArray[np.uint8]) -> NDArray[np.uint32]:
    if rgba.dtype != np.uint8 or rgba.ndim == 0 or rgba.shape[-1] != 4:
        raise LayerError(f"RGBA must be uint8 of shape (..., 4), got {rgba.dtype} of shape {rgba.shape}")
    flat = as_kernel_input(rgba).reshape(-1)
    return as_kernel_input(flat.view("<u4").astype(np.uint32, copy=False))


def alpha_over(bottom: NDArray[np.uint8], top: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend one picture over another by the alpha of the upper one; all are uint8 (..., 4) with straight alpha.

    With alphas s (top) and d (bottom) the result has alpha ``s + d * (255 - s) / 255``, and its colour is the mean of
    both colours with the weights ``s`` and ``d * (255 - s) / 255``. Alpha and colour are computed exactly and rounded
    to nearest, halves up. Where the top is transparent, the result equals the bottom, bit for bit.
    """
    bottom, top = np.asarray(bottom), np.asarray(top)
    lower, upper = _as_packed(bottom), _as_packed(top)
    if bottom.shape != top.shape:
        raise GridMismatchError(f"pictures {bottom.shape} and {top.shape} must have the same shape")
    out = np.empty(lower.shape, np.uint32)
    _alpha_over(lower, upper, out)
    return unpack(out.reshape(bottom.shape[:-1]))
