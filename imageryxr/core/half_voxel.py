"""Grids half a voxel apart: an OME-Zarr that places corners, opened as one that places centres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageryxr.core.bbox import SNAP, exact
from imageryxr.core.grid import Grid
from imageryxr.errors import warn

_ASSUME = "whether its translation is the place of a voxel's centre or corner differs between writers"


def warn_half_voxel(first: Grid, first_attrs: Mapping[str, Any], second: Grid, second_attrs: Mapping[str, Any]) -> None:
    """Warn if one of two arrays is an OME-Zarr whose voxels begin half a voxel beside whole numbers of voxels.

    By its specification an OME-Zarr without a translation has the centre of its first voxel at 0, while precomputed
    has the corner there. Many writers mean the corner.
    """
    for own, attrs, other in ((first, first_attrs, second), (second, second_attrs, first)):
        source = str(attrs.get("source", ""))
        if source.startswith("zarr") and _begins_at(own, 0.5) and _begins_at(other, 0):
            half = " × ".join(f"{r / 2:g}" for r in own.resolution)
            warn(
                f"{source} lies exactly half a voxel ({half} nm) beside the grid of the other layer: {_ASSUME}. If it "
                "should lie on that grid, open it with assume='corner'"
            )
            return


def _begins_at(grid: Grid, part: float) -> bool:
    """Return whether a grid begins at that fraction of a voxel along x and y, and along z there or at a whole one."""
    x, y, z = (exact(o) % 1 for o in grid.voxel_offset)
    return all(abs(v - exact(part)) < SNAP for v in (x, y)) and min(abs(z - exact(part)), z) < SNAP
