"""Downsample RGBA pictures to a coarser grid; pixels are weighted by their alpha."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import OverlapMap
from imageryxr.errors import LayerError
from imageryxr.kernels.axis_weights import OverlapParts, check_overlap_maps, covered_range
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input


@compile_kernel
def _add_row(
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
    opaque: NDArray[np.uint8],
    weight: float,
    line: NDArray[np.float64],
) -> None:
    """Add a row of pixels to the rows of `line`: sums of red, green and blue, each times alpha, and of alpha."""
    reds, greens, blues, alphas = line[0], line[1], line[2], line[3]
    for x in range(opaque.size):
        alpha = weight * np.float64(opaque[x])
        reds[x] += alpha * np.float64(red[x])
        greens[x] += alpha * np.float64(green[x])
        blues[x] += alpha * np.float64(blue[x])
        alphas[x] += alpha


@compile_kernel
def _along_row(line: NDArray[np.float64], along_x: OverlapParts, begin: int, sums: NDArray[np.float64]) -> None:
    """Write the weighted sums of `line` over the input pixels that each output pixel covers to `sums`."""
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


@compile_kernel
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
        # The sums are 0 if the pixel covers only transparent pixels.
        alpha = max(alphas[x], 1.0)
        red[x] = np.floor(reds[x] / alpha + 0.5)
        green[x] = np.floor(greens[x] / alpha + 0.5)
        blue[x] = np.floor(blues[x] / alpha + 0.5)
        opaque[x] = np.floor(alphas[x] / (totals[x] * total) + 0.5)


@compile_kernel
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


def mean_rgba(a: NDArray[np.uint8], axes: tuple[OverlapMap, OverlapMap, OverlapMap]) -> NDArray[np.uint8]:
    """Average the colours that each output pixel covers, weighted by their alpha and the weights of the axes (z, y, x).

    `a` is uint8 (z, y, x, 4) with straight alpha. It is not copied if each channel is contiguous in memory, as in the
    result. Values are rounded to nearest, halves up. Transparent pixels do not contribute to the colour; an output
    pixel that covers only these is (0, 0, 0, 0). Sums and rounding are exact while the weights of an output pixel add
    up to less than 2**36.
    """
    a = np.asarray(a)
    if a.dtype != np.uint8 or a.ndim != 4 or a.shape[-1] != 4:
        raise LayerError(f"colours must be uint8 (z, y, x, 4), got {a.dtype} of shape {a.shape}")
    planes = as_kernel_input(np.moveaxis(a, -1, 0))
    z, y, x = check_overlap_maps(axes, planes.shape[1:])
    begin, end = covered_range(x)
    out = np.empty((4, z[0].size, y[0].size, x[0].size), np.uint8)
    _mean_rgba(planes, z, y, x, begin, end, out)
    return np.moveaxis(out, 0, -1)
