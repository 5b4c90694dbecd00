"""Warn about grids half a voxel apart: an OME-Zarr whose translation is a corner, opened as if it were a centre."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageryxr.core.bbox import SNAP, to_fraction
from imageryxr.core.grid import Grid
from imageryxr.errors import Message, param, warn

_ASSUME = "writers differ in whether the translation is the centre or the corner of a voxel"


def warn_half_voxel(first: Grid, first_attrs: Mapping[str, Any], second: Grid, second_attrs: Mapping[str, Any]) -> None:
    """Warn if one of two arrays is an OME-Zarr on a grid half a voxel from the grid of the other.

    According to the specification, an OME-Zarr without a translation has the centre of its first voxel at 0, while
    precomputed has the corner there. Many writers of OME-Zarr mean the corner.
    """
    for own, attrs, other in ((first, first_attrs, second), (second, second_attrs, first)):
        source = str(attrs.get("source", ""))
        if source.startswith("zarr") and _has_offset(own, 0.5) and _has_offset(other, 0):
            half = " × ".join(f"{r / 2:g}" for r in own.resolution)
            warn(
                Message(
                    f"the grid of {source} is exactly half a voxel ({half} nm) away from the grid of the ",
                    f"other layer: {_ASSUME}. If they should share a grid, open it with ",
                    param("assume", "corner"),
                )
            )
            return


def _has_offset(grid: Grid, part: float) -> bool:
    """Return whether a grid has a given fractional offset along x and y, and along z the same or none."""
    x, y, z = (to_fraction(o) % 1 for o in grid.voxel_offset)
    return all(abs(v - to_fraction(part)) < SNAP for v in (x, y)) and min(abs(z - to_fraction(part)), z) < SNAP
