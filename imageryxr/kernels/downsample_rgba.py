"""Bring colours to a coarser grid: each pixel counts for as much as it is opaque."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import LayerError
from imageryxr.kernels.axis_weights import Overlap, OverlapParts, overlaps
from imageryxr.kernels.run_length import compiled, frozen

__all__ = ["mean_rgba"]


@compiled
def _add_row(
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
    opaque: NDArray[np.uint8],
    weight: float,
    line: NDArray[np.float64],
) -> None:
    """Add a row of pixels to sums of red, green and blue, each times alpha, and of alpha: the rows of `line`."""
    reds, greens, blues, alphas = line[0], line[1], line[2], line[3]
    for x in range(opaque.size):
        alpha = weight * np.float64(opaque[x])
        reds[x] += alpha * np.float64(red[x])
        greens[x] += alpha * np.float64(green[x])
        blues[x] += alpha * np.float64(blue[x])
        alphas[x] += alpha


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
def _store_row(
    sums: NDArray[np.float64],
    totals: NDArray[np.float64],
    total: float,
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
    opaque: NDArray[np.uint8],
) -> None:
    reds, greens, blues, alphas = sums[0], sums[1], sums[2], sums[3]
    for x in range(opaque.size):
        # where nothing is covered, or all of it is transparent, the sums are 0
        alpha = max(alphas[x], 1.0)
        red[x] = np.floor(reds[x] / alpha + 0.5)
        green[x] = np.floor(greens[x] / alpha + 0.5)
        blue[x] = np.floor(blues[x] / alpha + 0.5)
        opaque[x] = np.floor(alphas[x] / max(totals[x] * total, 1.0) + 0.5)


@compiled
def _mean_rgba(
    a: NDArray[np.uint8],
    along_z: OverlapParts,
    along_y: OverlapParts,
    along_x: OverlapParts,
    begin: int,
    end: int,
    out: NDArray[np.uint8],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    _, x_offsets, x_weights = along_x
    line = np.empty((4, end - begin), np.float64)
    sums = np.empty((4, out.shape[3]), np.float64)
    totals = np.zeros(out.shape[3], np.float64)
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
                    rows = a[:, z_first[z] + i - z_offsets[z], y_first[y] + j - y_offsets[y], begin:end]
                    _add_row(rows[0], rows[1], rows[2], rows[3], weight, line)
            _along_row(line, along_x, begin, sums)
            rows = out[:, z, y]
            _store_row(sums, totals, total, rows[0], rows[1], rows[2], rows[3])


def mean_rgba(a: NDArray[np.uint8], axes: tuple[Overlap, Overlap, Overlap]) -> NDArray[np.uint8]:
    """Average the colours that each output pixel covers, weighted by their alpha and by the axes' weights.

    What is transparent has no colour to give. Sums are of whole numbers and exact while the weights of an output
    pixel add up to less than 2**36, and so is the rounding then.

    Parameters
    ----------
    a
        uint8 (z, y, x, 4), straight alpha; taken as it is where each colour is a plane of its own in memory, as files
        have it, and copied so else.
    axes
        What each output pixel covers along z, y and x.

    Returns
    -------
    numpy.ndarray
        uint8 (z, y, x, 4), in planes, each value rounded to the nearest, a half up; (0, 0, 0, 0) where nothing is
        covered or all of it is transparent.

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
    planes = frozen(np.moveaxis(a, -1, 0))
    z, y, x = overlaps(axes, planes.shape[1:])
    count = np.diff(x[1])
    some = count > 0
    begin = int(x[0][some].min()) if some.any() else 0
    end = int((x[0] + count)[some].max()) if some.any() else 0
    out = np.empty((4, z[0].size, y[0].size, x[0].size), np.uint8)
    _mean_rgba(planes, z, y, x, begin, end, out)
    return np.moveaxis(out, 0, -1)
