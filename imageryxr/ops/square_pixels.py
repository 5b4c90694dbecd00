"""Resample slices of anisotropic voxels to square pixels, at the finer of the two resolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.axis_mapping import GridMap
from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.grid import Axis, Grid
from imageryxr.core.validate import check_axis
from imageryxr.graph.expr import Array, Expr, Resampled
from imageryxr.graph.labelled import BoxReader, box_reader, label_array


def square_reader(read: BoxReader, across: str, layer_type: str) -> BoxReader:
    """Return a reader that resamples slices perpendicular to an axis to square pixels.

    Segmentations are resampled with "nearest", images and RGBA with "linear".
    """
    across = check_axis(across)
    volume = read.volume
    plane = [a for a in range(3) if a != DIMS.index(across)]
    finest = min(volume.grid.axes[a].resolution for a in plane)
    axes = [_refine_axis(axis, finest) if i in plane else axis for i, axis in enumerate(volume.grid.axes)]
    grid = Grid.from_axes(axes)
    if grid == volume.grid:
        return read
    grid_map = GridMap.from_grids(grid, volume.grid)
    method = "nearest" if layer_type == "segmentation" and not read.tail else "linear"
    expr: Expr = Resampled(volume.expr, grid_map, method)
    if read.tail:
        expr = ResampledColors(volume.expr, grid_map, "linear", tail=read.tail)
    return replace(read, volume=replace(volume, expr=expr, grid=grid, splits=None))


def square_pixels(picture: xr.DataArray, across: str) -> xr.DataArray:
    """Resample an RGBA picture (z, y, x, rgba) to square pixels in slices perpendicular to an axis; computes."""
    read = square_reader(box_reader(picture), across, "image")
    volume = read.volume
    return label_array(read(volume.grid.box), volume.grid, volume.attrs, str(volume.name or "picture"), tail="rgba")


def _refine_axis(axis: Axis, resolution: float) -> Axis:
    if axis.resolution == resolution:
        return axis
    # Cover the same extent, from the same lower edge.
    low, high = axis.edges()
    first = Axis(1, resolution, 0)
    start, stop = first.select(low, high)
    return Axis(stop - start, resolution, start)


@dataclass(frozen=True)
class ResampledColors(Resampled):
    """RGBA on another grid; colours are weighted by alpha, so that transparent pixels do not contribute colour."""

    tail: tuple[int, ...] = (4,)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the resampled colours."""
        values = arrays[0]
        alpha = values[..., 3].astype(np.float32)

        def resample(plane: Array) -> Array:
            return super(ResampledColors, self).apply(box, np.ascontiguousarray(plane))

        weight = resample(alpha)
        safe = np.where(weight > 0, weight, 1)
        planes: list[Any] = [np.floor(resample(values[..., i] * alpha) / safe + 0.5) for i in range(3)]
        out: Array = np.clip(np.stack([*planes, np.floor(weight + 0.5)], axis=-1), 0, 255).astype(np.uint8)
        return out
