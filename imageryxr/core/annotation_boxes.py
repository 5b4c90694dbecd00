"""The test whether annotations meet a box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import ENDS, RADII, annotation_type_of, stack_axes
from imageryxr.core.bbox import DIMS, SNAP, BBox

Floats = npt.NDArray[np.float64]


def annotations_in_box(annotations: xr.Dataset, bbox: BBox) -> npt.NDArray[np.bool_]:
    """Return which annotations meet a box: points in ``[lo, hi)``, and lines, boxes and ellipsoids that overlap it.

    The result is bool (n,). Neighbouring boxes never contain the same point. Positions within 1e-6 nm of a border lie
    on it, so that the result does not depend on the rounding of positions.
    """
    kind = annotation_type_of(annotations)
    start = stack_axes(annotations, DIMS)
    if kind == "point":
        return points_in_box(start[:, ::-1], bbox)
    lo, hi = (corner[::-1] for corner in _borders(bbox))
    if kind == "ellipsoid":
        return _ellipsoids_in_box(start, stack_axes(annotations, RADII), lo, hi)
    end = stack_axes(annotations, ENDS)
    if kind == "box":
        return np.asarray(((np.maximum(start, end) >= lo) & (np.minimum(start, end) < hi)).all(axis=1))
    return _lines_in_box(start, end, lo, hi)


def points_in_box(points: Floats, bbox: BBox) -> npt.NDArray[np.bool_]:
    """Return which points (x, y, z) in nm lie in a box, as in `annotations_in_box`; NaN lies in none."""
    lo, hi = _borders(bbox)
    return np.asarray(((points >= lo) & (points < hi)).all(axis=1))


def _borders(bbox: BBox) -> tuple[Floats, Floats]:
    # Both borders move down, so that a position on a border is above it, whatever its rounding.
    return np.array(bbox.lo_nm) - float(SNAP), np.array(bbox.hi_nm) - float(SNAP)


def _lines_in_box(start: Floats, end: Floats, lo: Floats, hi: Floats) -> npt.NDArray[np.bool_]:
    """Return which lines pass through a box, by the interval of each line that lies between each pair of faces."""
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        to_lo, to_hi = (lo - start) / step, (hi - start) / step
    is_level = step == 0
    is_between = (start >= lo) & (start < hi)
    enters = np.where(is_level, np.where(is_between, 0.0, 2.0), np.minimum(to_lo, to_hi)).max(axis=1)
    leaves = np.where(is_level, 1.0, np.maximum(to_lo, to_hi)).min(axis=1)
    # A line that only touches the upper face is outside: there its interval is a single position at an end.
    enters, leaves = np.maximum(enters, 0.0), np.minimum(leaves, 1.0)
    middle = start + step * ((enters + leaves) / 2)[:, np.newaxis]
    touches_hi = (enters == leaves) & (middle >= hi).any(axis=1)
    return np.asarray((enters <= leaves) & ~touches_hi)


def _ellipsoids_in_box(center: Floats, radii: Floats, lo: Floats, hi: Floats) -> npt.NDArray[np.bool_]:
    """Return which ellipsoids meet a box: the nearest point of the box, in units of the radii, is within 1."""
    gap = center - np.clip(center, lo, hi)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(gap == 0, 0.0, np.abs(gap) / radii)
    return np.asarray((share**2).sum(axis=1) <= 1)
