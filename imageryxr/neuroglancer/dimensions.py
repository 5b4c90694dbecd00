"""Dimensions and units of a Neuroglancer link, and where it puts the data of a layer along x, y and z."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imageryxr.core.bbox import Triple, tidy
from imageryxr.core.grid import Grid
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.validate import shown

AXES = "xyz"
_PREFIXES = {"": 0, "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "d": -1, "c": -2}
_PREFIXES |= {"m": -3, "u": -6, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24}


@dataclass(frozen=True)
class Placement:
    """How the coordinates that a source gives its voxels become those of the link, axis by axis (x, y, z)."""

    scale: Triple = (1.0, 1.0, 1.0)
    """Of the whole layer about 0."""
    voxel_size: tuple[float | None, float | None, float | None] = (None, None, None)
    """What the finest voxels measure in nm before that, where the link says so."""
    shift: Triple = (0.0, 0.0, 0.0)
    """Nanometres added last."""

    def place(self, grid: Grid, finest: Triple) -> Grid:
        """Return the grid of a level as the link places it.

        Parameters
        ----------
        grid : Grid
            As the source has it.
        finest : tuple of float
            Resolution (x, y, z) of the source's finest level.
        """
        if self == NATIVE:
            return grid
        resolution, offset = [], []
        for axis in range(3):
            asked = self.voxel_size[axis]
            factor = self.scale[axis] * (1.0 if asked is None else asked / finest[axis])
            size = float(f"{grid.resolution[axis] * factor:.12g}")
            resolution.append(size)
            offset.append(tidy(grid.voxel_offset[axis] + self.shift[axis] / size))
        return Grid(grid.shape, tuple(resolution), tuple(offset))  # type: ignore[arg-type]


NATIVE = Placement()


def read_dimensions(state: Mapping[str, Any], key: str = "dimensions") -> dict[str, tuple[float, str]]:
    """Return the dimensions of a state, name → (scale in nm, or as it stands for other units, and the unit)."""
    given = state.get(key)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or len(given) > 32:
        raise LinkError(f"{key}={shown(given)} is no object of dimensions, such as {{'x': [4e-9, 'm'], …}}")
    return {str(name): _dimension(value, f"{key}.{name}") for name, value in given.items()}


def _dimension(value: Any, what: str) -> tuple[float, str]:
    if isinstance(value, Mapping):
        return 1.0, ""  # named places along an axis
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[1], str):
        raise LinkError(f"{what}={shown(value)} is no scale and unit, such as [4e-9, 'm']")
    try:
        scale = math.nan if isinstance(value[0], bool) else float(value[0])
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not 1e-30 < scale < 1e30:
        raise LinkError(f"{what}={shown(value)}: the scale must be a number above 0")
    match = re.fullmatch(r"([YZEPTGMkhdcmuµnpfazy]?)m", value[1])
    if match is None:
        return scale, value[1]
    # Rounded where floats of metres cannot be exact: 4e-09 m are 4 nm.
    return float(f"{scale * 10.0 ** (_PREFIXES[match.group(1)] + 9):.12g}"), "nm"


def scale_of(scale: float, unit: str) -> float:
    """Return the scale of a dimension in nm of lengths, in s of times, or as it stands."""
    match = re.fullmatch(r"([YZEPTGMkhdcmuµnpfazy]?)s", unit)
    return scale if match is None else float(f"{scale * 10.0 ** _PREFIXES[match.group(1)]:.12g}")


def dimensions_of(dims: Mapping[str, tuple[float, str]]) -> Triple:
    """Return the scales (x, y, z) in nm.

    Raises
    ------
    LinkError
        If there is no such axis, or it has no unit of length.
    """
    out = []
    for axis in AXES:
        if axis not in dims:
            raise LinkError(f"the state has the dimensions {', '.join(dims)}; without x, y and z there is no picture")
        scale, unit = dims[axis]
        if unit != "nm" or not 1e-6 < scale < 1e12:
            raise LinkError(
                f"the dimension {axis} of the state has the scale {scale:g} {unit or ''}, which is no length; give "
                "metres, as [8e-9, 'm']"
            )
        out.append(scale)
    return out[0], out[1], out[2]
