"""Bring blocks to another grid: gathers, linear interpolation, weighted means, majority labels.

Which input voxels make an output voxel, and with which weights, is decided elsewhere, per axis and
in integers. Here an output voxel depends on its own indices and weights alone, in a fixed order of arithmetic, so
that it comes out alike in every block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.lookup import as_labels
from imageryxr.kernels.runs import blank, compiled, frozen

__all__ = ["Lerp", "Overlap", "linear", "mean", "mode", "nearest"]


class Lerp(NamedTuple):
    """Linear interpolation along one axis: ``a[lower] + (a[upper] - a[lower]) * weight``.

    Attributes
    ----------
    lower, upper
        int64[n], the two input voxels of each output voxel; ``lower == -1`` lies outside and is filled. The upper
        one need not be in the array where its weight is 0.
    weight
        float64[n] in [0, 1); where it is 0 only the lower voxel counts.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]


class Overlap(NamedTuple):
    """Input voxels that each output voxel covers along one axis.

    Attributes
    ----------
    first
        int64[n], the first input voxel that output voxel i covers.
    offsets
        int64[n + 1]; it covers ``offsets[i + 1] - offsets[i]`` voxels; none lies outside and is filled.
    weights
        int64[offsets[n]], how much of each it covers, positive, in any unit common to the voxels of one i.
    """

    first: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.int64]


# Plain tuples: numba would compile anew for every kind of named one.
_LerpParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
_OverlapParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


# --- checks: a wrong index would read foreign memory ----------------------------------------------


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(array)
    if array.ndim != 3:
        raise GridMismatchError(f"an array must be (z, y, x), got shape {array.shape}")
    return array


def _indices(index: NDArray[np.int64], size: int, lowest: int) -> NDArray[np.int64]:
    index = frozen(np.asarray(index, np.int64))
    if index.ndim != 1 or (index.size and (index.min() < lowest or index.max() >= size)):
        raise GridMismatchError(f"indices must be 1-D and in [{lowest}, {size}), got {index}")
    return index


def _lerps(axes: tuple[Lerp, Lerp, Lerp], shape: tuple[int, ...]) -> list[_LerpParts]:
    parts = []
    for (lower, upper, weight), size in zip(axes, shape, strict=True):
        low = _indices(lower, size, -1)
        fraction = frozen(np.asarray(weight, np.float64))
        if not low.shape == np.shape(upper) == fraction.shape:
            raise GridMismatchError(f"lower {low.shape}, upper {np.shape(upper)} and weight {fraction.shape} differ")
        # What has no weight is not read, and need not be there.
        used = np.where(fraction == 0, low, upper)
        up = _indices(np.where(low < 0, 0, used) if size else np.zeros_like(low), max(size, 1), 0)
        parts.append((low, up, fraction))
    return parts


def _overlaps(axes: tuple[Overlap, Overlap, Overlap], shape: tuple[int, ...]) -> list[_OverlapParts]:
    parts = []
    for (first, offsets, weights), size in zip(axes, shape, strict=True):
        begin = frozen(np.asarray(first, np.int64))
        ends = frozen(np.asarray(offsets, np.int64))
        given = frozen(np.asarray(weights, np.int64))
        count = np.diff(ends)
        if ends.shape != (begin.size + 1,) or ends[0] != 0 or ends[-1] != given.size or (count < 0).any():
            raise GridMismatchError(f"offsets {ends} do not fit {begin.size} voxels and {given.size} weights")
        some = count > 0
        if (begin[some] < 0).any() or (begin[some] + count[some] > size).any():
            raise GridMismatchError(f"voxels {begin} and on for {count} are not all in [0, {size})")
        if (given <= 0).any():
            raise OptionError("overlap weights must be positive")
        parts.append((begin, ends, frozen(_reduced(ends, given))))
    return parts


@compiled
def _reduced(offsets: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide the weights of each output voxel by their common divisor, which keeps sums small and exact."""
    out = np.empty(weights.size, np.int64)
    for i in range(offsets.size - 1):
        common = np.int64(0)
        for k in range(offsets[i], offsets[i + 1]):
            other = weights[k]
            while other != 0:
                common, other = other, common % other
        for k in range(offsets[i], offsets[i + 1]):
            out[k] = weights[k] // common
    return out


# --- nearest --------------------------------------------------------------------------------------


@compiled
def _nearest(
    a: NDArray[Any],
    iz: NDArray[np.int64],
    iy: NDArray[np.int64],
    ix: NDArray[np.int64],
    straight: bool,
    fill: NDArray[Any],
    out: NDArray[Any],
) -> None:
    width = ix.size
    for z in range(iz.size):
        for y in range(iy.size):
            row = out[z, y]
            if iz[z] < 0 or iy[y] < 0:
                row[:] = fill[0]
            elif y > 0 and iy[y] == iy[y - 1]:
                row[:] = out[z, y - 1]
            elif z > 0 and iz[z] == iz[z - 1]:
                row[:] = out[z - 1, y]
            elif straight:
                row[:] = a[iz[z], iy[y], ix[0] : ix[0] + width]
            else:
                line = a[iz[z], iy[y]]
                for x in range(width):
                    at = ix[x]
                    # An unsigned index, or numba adds a test for negative ones.
                    row[x] = line[np.uint64(at)] if at >= 0 else fill[0]


def nearest(
    a: NDArray[Any], iz: NDArray[np.int64], iy: NDArray[np.int64], ix: NDArray[np.int64], fill: Any = 0
) -> NDArray[Any]:
    """Gather voxels: ``out[z, y, x] = a[iz[z], iy[y], ix[x]]``.

    Parameters
    ----------
    a
        Array (z, y, x), any dtype of 1, 2, 4 or 8 bytes.
    iz, iy, ix
        int64[n] per axis, voxels of `a`; -1 for none.
    fill
        The value where there is none.

    Returns
    -------
    numpy.ndarray
        The dtype of `a` (in native byte order), shape (len(iz), len(iy), len(ix)).

    Raises
    ------
    GridMismatchError
        `a` is not (z, y, x), or an index is outside it.
    LayerError
        The dtype has another size.
    """
    a = _volume(a)
    if a.dtype.itemsize not in (1, 2, 4, 8) or a.dtype.kind not in "biufcmM":
        raise LayerError(f"cannot gather voxels of dtype {a.dtype}")
    z, y, x = (_indices(i, n, -1) for i, n in zip((iz, iy, ix), a.shape, strict=True))
    # Bits are moved, so that dtypes of one size share one kernel.
    bits = np.dtype(f"u{a.dtype.itemsize}")
    dtype = a.dtype.newbyteorder("=")
    out = np.empty((z.size, y.size, x.size), dtype)
    straight = x.size > 0 and bool(x[0] >= 0) and bool((np.diff(x) == 1).all())
    filling = frozen(np.array([fill], dtype)).view(bits)
    _nearest(frozen(a).view(bits), z, y, x, straight, filling, out.view(bits))
    return out


# --- linear ---------------------------------------------------------------------------------------


def _arithmetic(a: NDArray[Any]) -> NDArray[Any]:
    """Return an image in a dtype that the kernels compute with: bools as 0 and 1, half floats widened."""
    if a.dtype.kind not in "biuf" or a.dtype.itemsize > 8:
        raise LayerError(f"an image must be of integers or floats, got {a.dtype}")
    if a.dtype.kind == "b":
        return frozen(a).view(np.uint8)
    return frozen(a.astype(np.float32)) if a.dtype == np.float16 else frozen(a)


def _like(out: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return out.view(np.bool_) if dtype.kind == "b" else out.astype(dtype.newbyteorder("="), copy=False)


def _half(dtype: np.dtype[Any]) -> float:
    """Return what is added before rounding down: a half, and more than the error of interpolating to one.

    Weights such as thirds are no floats, so that a half may come out as a little less. Beyond 32 bits that is lost.
    """
    return 0.5 if dtype.kind == "f" or dtype.itemsize > 4 else 0.5 + 2.0 ** (8 * dtype.itemsize - 46)


def _top(dtype: np.dtype[Any]) -> tuple[bool, float, float]:
    """Return whether values are rounded, and between which floats they must be to fit."""
    if dtype.kind == "f":
        return False, 0.0, 0.0
    info = np.iinfo(dtype)
    highest = float(info.max)
    # The largest 64-bit integers round up to a float that no longer fits.
    return True, float(info.min), highest if int(highest) <= info.max else float(np.nextafter(highest, 0))


@compiled
def _store(
    value: NDArray[np.float64], half: float, integer: bool, lowest: float, highest: float, out: NDArray[Any]
) -> None:
    if integer:
        for x in range(out.size):
            out[x] = min(max(np.floor(value[x] + half), lowest), highest)
    else:
        for x in range(out.size):
            out[x] = value[x]


@compiled
def _linear(
    a: NDArray[Any],
    along_z: _LerpParts,
    along_y: _LerpParts,
    along_x: _LerpParts,
    begin: int,
    end: int,
    fill: NDArray[Any],
    half: float,
    integer: bool,
    lowest: float,
    highest: float,
    out: NDArray[Any],
) -> None:
    z_lower, z_upper, z_weight = along_z
    y_lower, y_upper, y_weight = along_y
    x_lower, x_upper, x_weight = along_x
    line = np.empty(end - begin, np.float64)
    below = np.empty(end - begin, np.float64)
    value = np.empty(x_lower.size, np.float64)
    for z in range(z_lower.size):
        for y in range(y_lower.size):
            row = out[z, y]
            if z_lower[z] < 0 or y_lower[y] < 0:
                row[:] = fill[0]
                continue
            # z, then y, then x: one order for every voxel.
            _mix(a, z_lower[z], z_upper[z], z_weight[z], y_lower[y], begin, end, line)
            v = y_weight[y]
            if v != 0.0:
                _mix(a, z_lower[z], z_upper[z], z_weight[z], y_upper[y], begin, end, below)
                for x in range(line.size):
                    line[x] = line[x] + (below[x] - line[x]) * v
            outside = False
            for x in range(value.size):
                low = x_lower[x]
                if low < 0:
                    outside = True
                    value[x] = 0.0
                    continue
                left = line[np.uint64(low - begin)]
                w = x_weight[x]
                value[x] = left if w == 0.0 else left + (line[np.uint64(x_upper[x] - begin)] - left) * w
            _store(value, half, integer, lowest, highest, row)
            if outside:
                for x in range(value.size):
                    if x_lower[x] < 0:
                        row[x] = fill[0]


@compiled
def _mix(
    a: NDArray[Any],
    lower: int,
    upper: int,
    weight: float,
    y: int,
    begin: int,
    end: int,
    line: NDArray[np.float64],
) -> None:
    near = a[lower, y, begin:end]
    if weight == 0.0:
        for x in range(line.size):
            line[x] = np.float64(near[x])
    else:
        far = a[upper, y, begin:end]
        for x in range(line.size):
            line[x] = np.float64(near[x]) + (np.float64(far[x]) - np.float64(near[x])) * weight


def linear(a: NDArray[Any], axes: tuple[Lerp, Lerp, Lerp], fill: Any = 0) -> NDArray[Any]:
    """Interpolate linearly along z, then y, then x, in float64.

    Parameters
    ----------
    a
        Image (z, y, x), any integer or float dtype. 64-bit integers beyond 2**53 lose their last bits.
    axes
        How to interpolate along z, y and x.
    fill
        The value of voxels outside.

    Returns
    -------
    numpy.ndarray
        The dtype of `a`; integers rounded to the nearest, a half up (of up to 32 bits; of wider ones a half
        may be missed where its weights are no floats). NaN spreads to the voxels that use it.

    Raises
    ------
    GridMismatchError
        `a` is not (z, y, x), or an index is outside it.
    LayerError
        `a` is not numeric.
    """
    a = _volume(a)
    work = _arithmetic(a)
    z, y, x = _lerps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    used = x[0] >= 0
    begin, end = 0, 0
    if used.any():
        begin = int(min(x[0][used].min(), x[1][used].min()))
        end = int(max(x[0].max(), x[1][used].max())) + 1
    filling = frozen(np.array([fill], work.dtype))
    _linear(work, z, y, x, begin, end, filling, _half(work.dtype), *_top(work.dtype), out)
    return _like(out, a.dtype)


# --- mean -----------------------------------------------------------------------------------------


@compiled
def _mean(
    a: NDArray[Any],
    along_z: _OverlapParts,
    along_y: _OverlapParts,
    along_x: _OverlapParts,
    begin: int,
    end: int,
    fill: NDArray[Any],
    integer: bool,
    lowest: float,
    highest: float,
    out: NDArray[Any],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    x_first, x_offsets, x_weights = along_x
    line = np.empty(end - begin, np.float64)
    value = np.empty(x_first.size, np.float64)
    x_totals = np.zeros(x_first.size, np.float64)
    outside = False
    for x in range(x_first.size):
        for k in range(x_offsets[x], x_offsets[x + 1]):
            x_totals[x] += np.float64(x_weights[k])
        outside = outside or x_totals[x] == 0.0
    for z in range(z_first.size):
        for y in range(y_first.size):
            row = out[z, y]
            line[:] = 0.0
            total = 0.0
            for i in range(z_offsets[z], z_offsets[z + 1]):
                for j in range(y_offsets[y], y_offsets[y + 1]):
                    w = np.float64(z_weights[i]) * np.float64(y_weights[j])
                    total += w
                    source = a[z_first[z] + i - z_offsets[z], y_first[y] + j - y_offsets[y], begin:end]
                    for x in range(line.size):
                        line[x] += w * np.float64(source[x])
            if total == 0.0:
                row[:] = fill[0]
                continue
            for x in range(value.size):
                low = x_offsets[x]
                at = x_first[x] - begin - low
                s = 0.0
                for k in range(low, x_offsets[x + 1]):
                    s += np.float64(x_weights[np.uint64(k)]) * line[np.uint64(at + k)]
                value[x] = s
            for x in range(value.size):
                value[x] = value[x] / (x_totals[x] * total) if x_totals[x] > 0.0 else 0.0
            _store(value, 0.5, integer, lowest, highest, row)
            if outside:
                for x in range(value.size):
                    if x_totals[x] == 0.0:
                        row[x] = fill[0]


def mean(a: NDArray[Any], axes: tuple[Overlap, Overlap, Overlap], fill: Any = 0) -> NDArray[Any]:
    """Average the voxels that each output voxel covers, weighted by the product of the axes' weights.

    Sums are float64 of integer products, so integer images come out exactly rounded while a weighted sum
    stays below 2**50, as any sum of 32-bit values over less than 2**18 units of weight does.

    Parameters
    ----------
    a
        Image (z, y, x), any integer or float dtype.
    axes
        What each output voxel covers along z, y and x.
    fill
        The value of voxels that cover nothing.

    Returns
    -------
    numpy.ndarray
        The dtype of `a`; integers rounded to the nearest, a half up. NaN spreads to the voxels that cover it.

    Raises
    ------
    GridMismatchError
        `a` is not (z, y, x), or a voxel is outside it.
    OptionError
        A weight is not positive.
    LayerError
        `a` is not numeric.
    """
    a = _volume(a)
    work = _arithmetic(a)
    z, y, x = _overlaps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    begin, end = 0, 0
    count = np.diff(x[1])
    if (count > 0).any():
        begin = int(x[0][count > 0].min())
        end = int((x[0] + count)[count > 0].max())
    filling = frozen(np.array([fill], work.dtype))
    _mean(work, z, y, x, begin, end, filling, *_top(work.dtype), out)
    return _like(out, a.dtype)


# --- mode -----------------------------------------------------------------------------------------


@compiled
def _mode(
    a: NDArray[Any],
    along_z: _OverlapParts,
    along_y: _OverlapParts,
    along_x: _OverlapParts,
    places: int,
    fill: NDArray[Any],
    out: NDArray[Any],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    x_first, x_offsets, x_weights = along_x
    labels = np.empty(places, a.dtype)
    sums = np.empty(places, np.int64)
    for z in range(z_first.size):
        z_count = z_offsets[z + 1] - z_offsets[z]
        for y in range(y_first.size):
            y_count = y_offsets[y + 1] - y_offsets[y]
            row = out[z, y]
            for x in range(x_first.size):
                x_low = x_offsets[x]
                x_count = x_offsets[x + 1] - x_low
                if z_count == 0 or y_count == 0 or x_count == 0:
                    row[x] = fill[0]
                    continue
                n = 0
                last = 0
                for i in range(z_count):
                    for j in range(y_count):
                        w = z_weights[z_offsets[z] + i] * y_weights[y_offsets[y] + j]
                        source = a[z_first[z] + i, y_first[y] + j]
                        for k in range(x_count):
                            label = source[np.uint64(x_first[x] + k)]
                            if n == 0 or labels[last] != label:
                                last = 0
                                while last < n and labels[last] != label:
                                    last += 1
                                if last == n:
                                    labels[n] = label
                                    sums[n] = 0
                                    n += 1
                            sums[last] += w * x_weights[np.uint64(x_low + k)]
                best = 0
                for i in range(1, n):
                    if (
                        sums[i] > sums[best]
                        or (sums[i] == sums[best] and labels[i] != 0 and labels[best] > labels[i])
                        or (sums[i] == sums[best] and labels[best] == 0)
                    ):
                        best = i
                row[x] = labels[best]


def mode(labels: NDArray[Any], axes: tuple[Overlap, Overlap, Overlap], fill: int = 0) -> NDArray[Any]:
    """Take the label that each output voxel covers most of, by the product of the axes' weights.

    Of labels that it covers equally the smallest wins, compared as uint64, save that 0 loses against any id.

    Parameters
    ----------
    labels
        Ids (z, y, x), any integer dtype.
    axes
        What each output voxel covers along z, y and x.
    fill
        The label of voxels that cover nothing.

    Returns
    -------
    numpy.ndarray
        The dtype of `labels` (in native byte order).

    Raises
    ------
    GridMismatchError
        `labels` is not (z, y, x), or a voxel is outside it.
    OptionError
        A weight is not positive, or the weights are too large to be summed exactly.
    LayerError
        `labels` are no integers.
    """
    labels = _volume(labels)
    work = as_labels(labels)
    z, y, x = _overlaps(axes, labels.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    places, most = 1, 1
    for _, offsets, weights in (z, y, x):
        count = np.diff(offsets)
        places *= int(count.max(initial=0))
        most *= int(weights.max(initial=0)) * int(count.max(initial=0))
    if most >= 2**63:
        raise OptionError(f"overlap weights add up to {most}, which does not fit int64; use a coarser unit")
    if not fill and blank(work.reshape(-1)):
        return np.zeros(out.shape, labels.dtype.newbyteorder("="))
    filling = as_labels(np.array([fill], labels.dtype.newbyteorder("="))).astype(work.dtype)
    _mode(work, z, y, x, places, frozen(filling), out)
    return out.astype(labels.dtype.newbyteorder("="), copy=False)
