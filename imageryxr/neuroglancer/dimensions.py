"""Dimensions and units of a Neuroglancer state, and the placement of a layer along x, y and z."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imageryxr.core.bbox import Triple, tidy
from imageryxr.core.grid import Grid
from imageryxr.errors import LinkError, format_value
from imageryxr.neuroglancer.validate import as_number

AXES = "xyz"
_PREFIXES = {"": 0, "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "d": -1, "c": -2}
_PREFIXES |= {"m": -3, "u": -6, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24}


@dataclass(frozen=True)
class Placement:
    """Scale and shift that map a source's own coordinates to those of the link, per axis (x, y, z)."""

    scale: Triple = (1.0, 1.0, 1.0)
    """Factors applied about the origin."""
    voxel_size: tuple[float | None, float | None, float | None] = (None, None, None)
    """Size in nm of the finest voxels before scaling; None where the link does not override the source."""
    shift: Triple = (0.0, 0.0, 0.0)
    """Translation in nm, applied after scaling."""
    order: tuple[int, int, int] = (0, 1, 2)
    """For each of x, y and z, the axis of the source along it (0, 1, 2 for x, y, z)."""

    def place(self, grid: Grid, finest: Triple) -> Grid:
        """Return the grid of a level in the coordinates of the link.

        `grid` is the level's grid in the source, `finest` the resolution (x, y, z) of the source's finest level, both
        with axes in the placement's order.
        """
        if self == NATIVE:
            return grid
        resolution, offset = [], []
        for axis in range(3):
            override = self.voxel_size[axis]
            factor = self.scale[axis] * (1.0 if override is None else override / finest[axis])
            size = float(f"{grid.resolution[axis] * factor:.12g}")
            resolution.append(size)
            offset.append(tidy(grid.voxel_offset[axis] + self.shift[axis] / size))
        return Grid(grid.shape, tuple(resolution), tuple(offset))  # type: ignore[arg-type]


NATIVE = Placement()


def read_dimensions(state: Mapping[str, Any], key: str = "dimensions") -> dict[str, tuple[float, str]]:
    """Return the dimensions of a state: name → (scale, unit). Lengths are converted to nm, other units are kept."""
    entries = state.get(key)
    if entries is None:
        return {}
    if not isinstance(entries, Mapping) or len(entries) > 32:
        raise LinkError(
            f"{key}={format_value(entries)} is not an object of up to 32 dimensions, such as {{'x': [4e-9, 'm'], …}}"
        )
    return {str(name): _read_dimension(value, f"{key}.{name}") for name, value in entries.items()}


def _read_dimension(value: Any, what: str) -> tuple[float, str]:
    if isinstance(value, Mapping):
        return 1.0, ""  # an axis with named coordinates has no unit
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[1], str):
        raise LinkError(f"{what}={format_value(value)} is not a scale and a unit, such as [4e-9, 'm']")
    scale = as_number(value[0], f"{what}, its scale")
    if not scale > 1e-30:
        raise LinkError(f"{what}={format_value(value)}: the scale must be a number above 0")
    match = re.fullmatch(r"([YZEPTGMkhdcmuµnpfazy]?)m", value[1])
    if match is None:
        return scale, value[1]
    # Rounded because metres as floats are inexact: 4e-09 m must be exactly 4 nm.
    return float(f"{scale * 10.0 ** (_PREFIXES[match.group(1)] + 9):.12g}"), "nm"


def si_scale(scale: float, unit: str) -> float:
    """Return the scale of a dimension: in nm for lengths, in seconds for times, unchanged for other units."""
    match = re.fullmatch(r"([YZEPTGMkhdcmuµnpfazy]?)s", unit)
    return scale if match is None else float(f"{scale * 10.0 ** _PREFIXES[match.group(1)]:.12g}")


def spatial_scales(dims: Mapping[str, tuple[float, str]]) -> Triple:
    """Return the scales of x, y and z in nm.

    Raises `LinkError` if one of the axes is missing or its unit is not a length.
    """
    out = []
    for axis in AXES:
        if axis not in dims:
            raise LinkError(f"the state has the dimensions {', '.join(dims)}, but x, y and z are required")
        scale, unit = dims[axis]
        if unit != "nm" or not 1e-6 < scale < 1e12:
            raise LinkError(
                f"the dimension {axis} of the state has the scale {scale:g} {unit or ''}, which is not a length; use "
                "metres, as in [8e-9, 'm']"
            )
        out.append(scale)
    return out[0], out[1], out[2]
