"""The annotations that a picture can contain, found before any other work is done on a large table."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import DIM, ENDS, RADII, annotation_type_of
from imageryxr.core.bbox import DIMS, SNAP
from imageryxr.core.grid import Grid
from imageryxr.render.mark_shapes import MarkStyle

Floats = npt.NDArray[np.float64]


def rows_near_picture(
    annotations: xr.Dataset, grid: Grid, style: MarkStyle, order: list[int], sizes: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64] | None:
    """Return the rows of annotations that may be drawn on a picture, or None for all.

    Parameters
    ----------
    annotations : Dataset
        Dataset of annotations.
    grid : Grid
        Grid of the picture.
    style : MarkStyle
        Style of the marks.
    order : list of int
        Axes of the picture in the order (slice, row, column).
    sizes : numpy.ndarray
        Float32, sizes of the markers.
    """
    count = annotations.sizes[DIM]
    low, high = _picture_box(grid, style, order, float(sizes.max(initial=0)))
    rows: npt.NDArray[np.int64] | None = None
    for axis in range(3):
        least, most = _interval(annotations, axis, rows)
        inside = (most >= low[2 - axis]) & (least <= high[2 - axis])
        rows = np.flatnonzero(inside) if rows is None else rows[inside]
    return None if rows is None or len(rows) == count else rows


def _interval(annotations: xr.Dataset, axis: int, rows: npt.NDArray[np.int64] | None) -> tuple[Floats, Floats]:
    """Return the least and the greatest coordinate of annotations along z, y or x."""
    kind = annotation_type_of(annotations)

    def column(name: str) -> Floats:
        values = np.asarray(annotations[name].values, np.float64)
        return values if rows is None else values[rows]

    start = column(DIMS[axis])
    if kind == "point":
        return start, start
    other = column((RADII if kind == "ellipsoid" else ENDS)[axis])
    if kind == "ellipsoid":
        return start - other, start + other
    return np.minimum(start, other), np.maximum(start, other)


def _picture_box(grid: Grid, style: MarkStyle, order: list[int], size: float) -> tuple[Floats, Floats]:
    """Return the corners (x, y, z) in nm of a box that contains a picture and all marks that reach into it."""
    reach = style.boxes("point", np.zeros((1, 3)), None, np.array([size]))[1][0]
    spacing = np.array(style.spacing)
    offset = np.array(grid.voxel_offset[::-1], np.float64)[order]
    shape = np.array(grid.shape, np.float64)[order]
    pixels = np.array(list(product(*zip(offset - reach, offset + shape + reach, strict=True))))
    corners = (pixels * spacing) @ np.array(style.directions)
    noise = float(SNAP) * (1 + spacing.max())
    return corners.min(axis=0) - noise, corners.max(axis=0) + noise
