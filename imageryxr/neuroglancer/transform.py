"""Coordinate transforms of a layer in a Neuroglancer state, applied to the axes of its source.

The rules are those of Neuroglancer's ``coordinate_transform.ts``: output dimensions name the axes of the source by
position, unless input dimensions name them. The matrix acts on physical lengths, and its last column is in units of the
output dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from imageryxr.errors import LayerError, LinkError, format_value
from imageryxr.neuroglancer.dimensions import AXES, Placement, read_dimensions, si_scale
from imageryxr.neuroglancer.validate import as_list, as_number, as_numbers, as_whole

ROTATED_REASON = (
    "its transform rotates, shears or mirrors the data; only scaling, translation and exchange of axes are supported"
)
RENAMED_REASON = "its transform maps no axis of the data to x, y or z"

T = TypeVar("T")

Dimension = tuple[str, float, str]
"""Name, scale (nm for lengths), unit ("nm" for lengths)."""


@dataclass(frozen=True)
class AxisPlace:
    """Transform of a source axis other than x, y and z, such as time or channel."""

    name: str
    """Name of the axis in the viewer: ``t``, ``c'`` for a local dimension, or ``c^`` for a channel of the shader."""
    factor: float = 1.0
    shift: float = 0.0
    """In units of the output dimension."""
    output: float | None = None
    """Scale of the output dimension, if the link has one."""
    step: float | None = None
    """Scale of the source's axis, if the link has one."""

    def index(self, position: float, scale: float, step: float | None = None, start: float = 0.0) -> int:
        """Return the index along the source's axis at a position along the viewer's dimension of this name.

        `scale` is the scale of that dimension, `step` that of the source's axis, by default the same. Index 0 is at the
        position `start` along the source's axis, in steps.
        """
        size = self.step or step or scale
        place = position * scale - self.shift * (self.output or scale)
        found = place / (self.factor * size) - start + 1e-9 if self.factor * size else math.inf
        return math.floor(found) if math.isfinite(found) else -1


@dataclass(frozen=True)
class Transform:
    """A coordinate transform of a state; by default, the identity."""

    outputs: tuple[Dimension, ...] = ()
    inputs: tuple[Dimension, ...] | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None
    """One row per output dimension: a factor per input dimension, then the translation."""
    source_rank: int = 0

    def apply(self, axes: Sequence[str]) -> tuple[Placement, dict[str, AxisPlace]]:
        """Return the placement of a source along x, y and z, and the transforms of its other axes, by name.

        `axes` are Neuroglancer's names of the source's axes, in the source's order (``c'`` for a channel of OME-Zarr).
        Raises `LayerError` if the transformed axes cannot be drawn.
        """
        at, names = self._shown_axes(axes)
        if self.is_ignored(axes):
            return Transform().apply(axes)
        scale, size, shift = [1.0] * 3, list[float | None]([None] * 3), [0.0] * 3
        order = [-1] * 3
        for number, axis in enumerate(AXES):
            if axis not in names:
                continue
            factors, shift[number] = self._row(at, names.index(axis))
            used = [j for j, factor in enumerate(factors) if abs(factor) > 1e-9]
            if len(used) != 1 or factors[used[0]] < 0:
                raise LayerError(ROTATED_REASON)
            own = used[0]
            scale[number], size[number] = factors[own], self._size(at[own], in_source=own < len(axes))
            if own < len(axes):
                order[number] = AXES.find(axes[own])
                if order[number] < 0:  # an axis of time or channels is shown along x, y or z
                    raise LayerError(RENAMED_REASON)
        if not self._complete(order, axes):
            raise LayerError(RENAMED_REASON)
        placement = Placement(_triple(scale), _triple(size), _triple(shift), _triple(order))
        others = {axis: self._other(at, i, names[i]) for i, axis in enumerate(axes) if axis not in AXES}
        return placement, others

    def is_ignored(self, axes: Sequence[str]) -> bool:
        """Return whether the viewer ignores the transform for a source, because two axes would have the same name."""
        _, names = self._shown_axes(axes)
        return len(set(names)) < len(names)

    def _shown_axes(self, axes: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return the number of the transform's dimension, or -1, and the name of each axis in the viewer."""
        at = [*self._positions(axes), *range(self.source_rank, len(self.outputs))]
        return at, [axes[i] if place < 0 else self.outputs[place][0] for i, place in enumerate(at)]

    @staticmethod
    def _complete(order: list[int], axes: Sequence[str]) -> bool:
        """Fill the entries of axes that the source lacks; return False unless each of its axes is used exactly once."""
        used = [i for i in order if i >= 0]
        if len(set(used)) < len(used) or any(axis in axes and i not in used for i, axis in enumerate(AXES)):
            return False
        free = [i for i in range(3) if i not in used]
        for number in range(3):
            if order[number] < 0:
                order[number] = number if number in free else free[0]
                free.remove(order[number])
        return True

    def _size(self, place: int, *, in_source: bool) -> float | None:
        """Return the size of a voxel in nm along a source axis (`in_source`) or an added axis, or None."""
        dimensions = self.inputs if in_source or self.inputs is not None else self.outputs
        if place < 0 or dimensions is None:
            return None
        _, value, unit = dimensions[place]
        return value if unit == "nm" else None

    def _positions(self, axes: Sequence[str]) -> list[int]:
        """Return the number of the transform's dimension for each axis of the source, -1 for none."""
        inputs = list(axes) if self.inputs is None else [name for name, _, _ in self.inputs]
        found = [inputs.index(axis) if axis in inputs else -1 for axis in axes]
        return [-1 if i >= self.source_rank else i for i in found]

    def _row(self, at: Sequence[int], row: int) -> tuple[list[float], float]:
        """Return the factors and the translation of an output axis, in nm, or in its own unit if that is no length."""
        place = at[row]
        if place < 0 or self.matrix is None:
            return [float(j == row) for j in range(len(at))], 0.0
        factors = [0.0 if i < 0 else self.matrix[place][i] for i in at]
        _, value, unit = self.outputs[place]
        return factors, self.matrix[place][-1] * (value if unit == "nm" else 1.0)

    def _other(self, at: Sequence[int], row: int, name: str) -> AxisPlace:
        place = at[row]
        if place < 0:
            return AxisPlace(name)
        factors, _ = self._row(at, row)
        shift = 0.0 if self.matrix is None else self.matrix[place][-1]
        step = None if self.inputs is None else si_scale(*self.inputs[place][1:])
        return AxisPlace(name, factors[row] or 1.0, shift, si_scale(*self.outputs[place][1:]), step)


def _triple(values: Sequence[T]) -> tuple[T, T, T]:
    x, y, z = values
    return x, y, z


def read_transform(transform: Any, where: str) -> Transform:
    """Return the transform of a source; the identity if it has none.

    Raises `LinkError` if it is invalid.
    """
    if transform is None:
        return Transform()
    if isinstance(transform, list):
        return read_older_transform(transform, where)
    if not isinstance(transform, Mapping):
        raise LinkError(f"{where}.transform={format_value(transform)} must be an object with a matrix")
    matrix = transform.get("matrix")
    outputs = _read_dimension_list(transform, "outputDimensions")
    inputs = _read_dimension_list(transform, "inputDimensions")
    if not outputs and (matrix is not None or inputs):
        outputs = inputs or tuple((axis, 1.0, "nm") for axis in AXES)
    if inputs and len(inputs) != len(outputs):
        raise LinkError(
            f"{where}.transform has {len(inputs)} inputDimensions and {len(outputs)} outputDimensions; the numbers "
            "must be equal"
        )
    rows = None if matrix is None else _read_matrix(matrix, len(outputs), where)
    rank = transform.get("sourceRank")
    rank = len(outputs) if rank is None else as_whole(rank, f"{where}.transform.sourceRank", len(outputs))
    return Transform(outputs, inputs or None, rows, rank)


def read_older_transform(transform: Any, where: str) -> Transform:
    """Return a transform of the older form, in nm: 12 or 16 numbers, a matrix, or translation, rotation and scale.

    Raises `LinkError` if it is invalid.
    """
    what = f"{where}.transform"
    if isinstance(transform, Mapping):
        rows = _compose_matrix(transform, what)
    elif isinstance(transform, list) and len(transform) in (12, 16) and not isinstance(transform[0], list):
        rows = _read_matrix([transform[i : i + 4] for i in range(0, len(transform), 4)], 3, where)
    else:
        rows = _read_matrix(transform, 3, where)
    return Transform(tuple((axis, 1.0, "nm") for axis in AXES), None, rows, 3)


def _compose_matrix(transform: Mapping[str, Any], what: str) -> tuple[tuple[float, ...], ...]:
    """Return the matrix that scales, then rotates, then translates."""
    move = _read_vector(transform, "translation", (0.0, 0.0, 0.0), what)
    scale = _read_vector(transform, "scale", (1.0, 1.0, 1.0), what)
    x, y, z, w = _read_vector(transform, "rotation", (0.0, 0.0, 0.0, 1.0), what)
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not length > 1e-9:
        raise LinkError(f"{what}.rotation={format_value(transform.get('rotation'))} is not a quaternion (x, y, z, w)")
    x, y, z, w = x / length, y / length, z / length, w / length
    turn = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return tuple((*(t * s for t, s in zip(row, scale, strict=True)), m) for row, m in zip(turn, move, strict=True))


def _read_vector(transform: Mapping[str, Any], key: str, default: tuple[float, ...], what: str) -> tuple[float, ...]:
    value = transform.get(key)
    if value is None:
        return default
    found: tuple[float, ...] = as_numbers(as_list(value, f"{what}.{key}", len(default)), f"{what}.{key}", len(default))
    return found


def _read_dimension_list(transform: Mapping[str, Any], key: str) -> tuple[Dimension, ...]:
    return tuple((name, scale, unit) for name, (scale, unit) in read_dimensions(transform, key).items())


def _read_matrix(matrix: Any, rank: int, where: str) -> tuple[tuple[float, ...], ...]:
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) not in (rank, rank + 1) or any(not isinstance(r, list) or len(r) != rank + 1 for r in rows):
        raise LinkError(f"{where}.transform.matrix must have {rank} × {rank + 1} numbers")
    return tuple(tuple(as_number(v, f"{where}.transform.matrix") for v in row) for row in rows[:rank])
