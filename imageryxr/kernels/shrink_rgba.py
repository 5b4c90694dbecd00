"""Bring colours to a coarser grid: each pixel counts for as much as it is opaque."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import LayerError
from imageryxr.kernels.axes import Overlap, OverlapParts, overlaps
from imageryxr.kernels.fill import unpack
from imageryxr.kernels.runs import compiled, frozen

__all__ = ["mean_rgba"]

_BYTE = np.uint32(0xFF)
_EIGHT, _SIXTEEN, _ALPHA = np.uint32(8), np.uint32(16), np.uint32(24)


@compiled
def _add_row(source: NDArray[np.uint32], weight: float, line: NDArray[np.float64]) -> None:
    """Add a row of pixels to sums of red, green and blue, each times alpha, and of alpha: the rows of `line`."""
    red, green, blue, opaque = line[0], line[1], line[2], line[3]
    for x in range(source.size):
        pixel = source[x]
        alpha = weight * np.float64(pixel >> _ALPHA)
        red[x] += alpha * np.float64(pixel & _BYTE)
        green[x] += alpha * np.float64(pixel >> _EIGHT & _BYTE)
        blue[x] += alpha * np.float64(pixel >> _SIXTEEN & _BYTE)
        opaque[x] += alpha


@compiled
def _along_row(line: NDArray[np.float64], along_x: OverlapParts, begin: int, sums: NDArray[np.float64]) -> None:
    """Add up what each output pixel covers of the rows of `line`."""
    first, offsets, weights = along_x
    red, green, blue, opaque = line[0], line[1], line[2], line[3]
    for x in range(first.size):
        low = offsets[x]
        at = first[x] - begin - low
        r, g, b, a = 0.0, 0.0, 0.0, 0.0
        for k in range(low, offsets[x + 1]):
            w = np.float64(weights[np.uint64(k)])
            here = np.uint64(at + k)
            r += w * red[here]
            g += w * green[here]
            b += w * blue[here]
            a += w * opaque[here]
        sums[0, x], sums[1, x], sums[2, x], sums[3, x] = r, g, b, a


@compiled
def _store_row(sums: NDArray[np.float64], totals: NDArray[np.float64], total: float, out: NDArray[np.uint32]) -> None:
    red, green, blue, opaque = sums[0], sums[1], sums[2], sums[3]
    for x in range(out.size):
        # where nothing is covered, or all of it is transparent, the sums are 0
        parts = max(opaque[x], 1.0)
        alpha = np.uint32(np.floor(opaque[x] / max(totals[x] * total, 1.0) + 0.5))
        r = np.uint32(np.floor(red[x] / parts + 0.5))
        g = np.uint32(np.floor(green[x] / parts + 0.5))
        b = np.uint32(np.floor(blue[x] / parts + 0.5))
        out[x] = alpha << _ALPHA | b << _SIXTEEN | g << _EIGHT | r


@compiled
def _mean_rgba(
    a: NDArray[np.uint32],
    along_z: OverlapParts,
    along_y: OverlapParts,
    along_x: OverlapParts,
    begin: int,
    end: int,
    out: NDArray[np.uint32],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    _, x_offsets, x_weights = along_x
    line = np.empty((4, end - begin), np.float64)
    sums = np.empty((4, out.shape[2]), np.float64)
    totals = np.zeros(out.shape[2], np.float64)
    for x in range(totals.size):
        for k in range(x_offsets[x], x_offsets[x + 1]):
            totals[x] += np.float64(x_weights[k])
    for z in range(z_first.size):
        for y in range(y_first.size):
            line[:] = 0.0
            total = 0.0
            for i in range(z_offsets[z], z_offsets[z + 1]):
                for j in range(y_offsets[y], y_offsets[y + 1]):
                    weight = np.float64(z_weights[i]) * np.float64(y_weights[j])
                    total += weight
                    source = a[z_first[z] + i - z_offsets[z], y_first[y] + j - y_offsets[y], begin:end]
                    _add_row(source, weight, line)
            _along_row(line, along_x, begin, sums)
            _store_row(sums, totals, total, out[z, y])


def mean_rgba(a: NDArray[np.uint8], axes: tuple[Overlap, Overlap, Overlap]) -> NDArray[np.uint8]:
    """Average the colours that each output pixel covers, weighted by their alpha and by the axes' weights.

    What is transparent has no colour to give. Sums are of whole numbers and exact while the weights of an output
    pixel add up to less than 2**36, and so is the rounding then.

    Parameters
    ----------
    a
        uint8 (z, y, x, 4), straight alpha.
    axes
        What each output pixel covers along z, y and x.

    Returns
    -------
    numpy.ndarray
        uint8 (z, y, x, 4), each value rounded to the nearest, a half up; (0, 0, 0, 0) where nothing is covered or all
        of it is transparent.

    Raises
    ------
    GridMismatchError
        A pixel is outside of `a`.
    OptionError
        A weight is not positive.
    LayerError
        `a` is not RGBA.
    """
    a = np.asarray(a)
    if a.dtype != np.uint8 or a.ndim != 4 or a.shape[-1] != 4:
        raise LayerError(f"colours must be uint8 (z, y, x, 4), got {a.dtype} of shape {a.shape}")
    packed = frozen(np.ascontiguousarray(a).view("<u4")[..., 0])
    z, y, x = overlaps(axes, packed.shape)
    count = np.diff(x[1])
    some = count > 0
    begin = int(x[0][some].min()) if some.any() else 0
    end = int((x[0] + count)[some].max()) if some.any() else 0
    out = np.empty((z[0].size, y[0].size, x[0].size), np.uint32)
    _mean_rgba(packed, z, y, x, begin, end, out)
    return unpack(out)
