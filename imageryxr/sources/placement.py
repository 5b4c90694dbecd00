"""Where a Neuroglancer link puts the data of a layer: dimensions, units, and transforms that keep axes apart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imageryxr.boxes import Triple, tidy
from imageryxr.errors import LinkError
from imageryxr.grid import Grid
from imageryxr.sources.checks import shown

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

    def transform(self) -> dict[str, Any]:
        """Return the placement as Neuroglancer's newer links have it."""
        dims = {axis: [1e-9, "m"] for axis in AXES}
        rows = [[self.scale[i] * (i == j) for j in range(3)] + [self.shift[i]] for i in range(3)]
        return {"outputDimensions": dims, "matrix": rows}


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
                f"the dimension {axis} of the state has the scale {scale:g} {unit or ''}, which is no length"
            )
        out.append(scale)
    return out[0], out[1], out[2]


def read_transform(transform: Any, where: str, *, native: bool = True) -> Placement | str:
    """Return the placement that a transform stands for, or why it cannot be drawn.

    ``native`` says that the source's own axes are x, y and z, in this order, as of all formats but Zarr.
    """
    if transform is None:
        return NATIVE
    if isinstance(transform, list):
        return _from_matrix(transform, (1.0, 1.0, 1.0), (None, None, None), list(AXES), where)  # older: 4 × 4, in nm
    if not isinstance(transform, Mapping):
        raise LinkError(f"{where}.transform={shown(transform)} is no transform")
    outputs = read_dimensions(transform, "outputDimensions")
    inputs = read_dimensions(transform, "inputDimensions")
    sizes = [inputs[a][0] if inputs.get(a, (0, ""))[1] == "nm" else None for a in AXES]
    if not inputs and outputs and native and list(outputs)[:3] != list(AXES):
        return "its transform exchanges or renames axes"
    if not inputs and outputs:
        inputs = dict.fromkeys(outputs, (0.0, ""))
    units = [outputs[a][0] if outputs.get(a, (0, ""))[1] == "nm" else 1.0 for a in AXES]
    voxels = (sizes[0], sizes[1], sizes[2])
    matrix = transform.get("matrix")
    if matrix is None:
        return Placement(voxel_size=voxels)
    if outputs and list(outputs)[: len(inputs)] != list(inputs):
        return "its transform exchanges or renames axes"
    return _from_matrix(matrix, (units[0], units[1], units[2]), voxels, list(outputs) or list(AXES), where)


def _from_matrix(matrix: Any, units: Triple, voxels: Any, names: list[str], where: str) -> Placement | str:
    rank = len(names)
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) not in (rank, rank + 1) or any(not isinstance(r, list) or len(r) != rank + 1 for r in rows):
        raise LinkError(f"{where}.transform has no matrix of {rank} × {rank + 1} numbers")
    try:
        values = [[float(v) for v in row] for row in rows[:rank]]
    except (TypeError, ValueError, OverflowError):
        values = [[math.nan] * (rank + 1)] * rank
    if not all(abs(v) < 1e15 for row in values for v in row):
        raise LinkError(f"{where}.transform has entries that are no numbers")
    scale, shift = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
    for i, name in enumerate(names):
        others = [abs(v) for j, v in enumerate(values[i][:rank]) if j != i]
        if name not in AXES:
            continue
        axis = AXES.index(name)
        if max(others, default=0.0) > 1e-9 or values[i][i] <= 1e-9:
            return "its transform rotates, shears or mirrors; only scaling and moving along the axes is drawn"
        scale[axis], shift[axis] = values[i][i], values[i][rank] * units[axis]
    return Placement((scale[0], scale[1], scale[2]), voxels, (shift[0], shift[1], shift[2]))
