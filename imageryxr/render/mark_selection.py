"""Select the annotations that a picture can contain, so that later steps process only these of a large table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import DIM, ENDS, RADII, stack_axes
from imageryxr.core.bbox import DIMS, SNAP, Triple, tidy
from imageryxr.core.grid import Grid
from imageryxr.errors import Message, Part, Wording, warn
from imageryxr.render.mark_shapes import MarkStyle

Floats = npt.NDArray[np.float64]

# Largest number of annotations that are compared with a picture to check their unit.
_MOST_TESTED = 100_000
# The largest number of slices between an annotation and a picture at which a wrong unit is reported.
_NEAR = 100


def rows_near_picture(
    annotations: xr.Dataset, grid: Grid, style: MarkStyle, order: list[int], sizes: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64] | None:
    """Return the rows of annotations that may be drawn on the grid of a picture, or None for all.

    ``order`` are the axes of the picture in the order (slice, row, column); ``sizes`` those of the markers.
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
    kind = annotations.attrs.get("annotation_type", "point")

    def column(name: str) -> Floats:
        values = np.asarray(annotations.variables[name].values, np.float64)
        return values if rows is None else values[rows]

    start = column(DIMS[axis])
    if kind == "point":
        return start, start
    other = column((RADII if kind == "ellipsoid" else ENDS)[axis])
    if kind == "ellipsoid":
        return start - other, start + other
    return np.minimum(start, other), np.maximum(start, other)


def _picture_box(grid: Grid, style: MarkStyle, order: list[int], size: float) -> tuple[Floats, Floats]:
    """Return the corners (x, y, z) in nm of the box in which annotations may have marks on a picture."""
    reach = style.boxes("point", np.zeros((1, 3)), None, np.array([size]))[1][0]
    spacing = np.array(style.spacing)
    offset = np.array(grid.voxel_offset[::-1], np.float64)[order]
    shape = np.array(grid.shape, np.float64)[order]
    pixels = np.array(list(product(*zip(offset - reach, offset + shape + reach, strict=True))))
    corners = (pixels * spacing) @ np.array(style.directions)
    noise = float(SNAP) * (1 + spacing.max())
    return corners.min(axis=0) - noise, corners.max(axis=0) + noise


def warn_other_unit(annotations: xr.Dataset, grid: Grid, style: MarkStyle, order: list[int]) -> None:
    """Warn if no annotation of a picture without any would lie in it as given, but some would in another unit.

    Annotations may lie elsewhere for good reasons, so a warning is issued only if a common mistake explains it:
    positions in voxels, positions in nm that were multiplied by a resolution, or reversed axes. If some lie within the
    rows and columns of the picture, only voxels of the picture are tried, and some must lie in its slices: with more
    corrections, a few of the annotations of a whole volume would fit by chance.
    """
    turned = np.array(style.directions)
    if np.abs(turned[:, ::-1] - np.eye(3)[order]).max() > 1e-9:
        return  # the resolution of an oblique plane is not that of the volume
    places = stack_axes(annotations, ("x", "y", "z"))[:_MOST_TESTED]
    offset = np.array(grid.voxel_offset[::-1], np.float64)[order]
    shape = np.array(grid.shape, np.float64)[order]

    def index(positions: Floats) -> Floats:
        return np.asarray(positions @ turned.T / style.spacing - offset)

    own = index(places)
    has_place = ((own.max(axis=0) >= 0) & (own.min(axis=0) < shape))[1:].all()
    for turn, factors, advice in islice(_usual_mistakes(grid.resolution), 1 if has_place else None):
        found = index(places[:, ::turn] * factors)
        is_inside = (found >= 0) & (found < shape)
        is_near = found[:, 0].max() >= -_NEAR and found[:, 0].min() < shape[0] + _NEAR
        if is_inside.all(axis=1).any() if has_place else is_near and is_inside[:, 1:].all(axis=1).any():
            warn(
                Message(
                    f"none of {len(places):,} annotations lies in the picture, "
                    f"which covers {grid.bbox}; the first is at {tuple(tidy(v) for v in places[0])} nm. They fit ",
                    *advice,
                )
            )
            return


def _usual_mistakes(resolution: Triple) -> Iterator[tuple[int, Floats, tuple[Part, ...]]]:
    """Yield the corrections of usual mistakes: an axis step, factors for (x, y, z), and the options to type."""
    x, y, z = resolution
    for level in range(6):
        unit = np.array([x / 2**level, y / 2**level, z])
        name = _resolution(unit)
        yield 1, unit, ("in voxels: give ", name)
        yield 1, 1 / unit, ("if positions in nm were multiplied by ", name, ": leave it out")
        yield 1, unit / unit[::-1], ("if the resolution is (x, y, z): give ", name)
        yield -1, unit / unit[::-1], ("in the order (z, y, x): give positions (x, y, z)",)
        yield -1, unit, ("in voxels and the order (z, y, x): give positions (x, y, z) and ", name)
    yield -1, np.ones(3), ("in the order (z, y, x): give positions (x, y, z)",)
    yield 1, np.full(3, 1000.0), ("in micrometres: give ", _resolution(np.full(3, 1000.0)))


def _resolution(unit: Floats) -> Wording:
    numbers = [tidy(value) for value in unit.tolist()]
    return Wording(f"resolution={tuple(numbers)}", f"--points-resolution {','.join(map(str, numbers))}")
