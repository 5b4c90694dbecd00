"""Write the source of a layer, with the transform that shows it at the coordinates of its array."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS, to_fraction
from imageryxr.core.display import LAYER, LINK_SOURCE
from imageryxr.core.grid import Axis, Grid
from imageryxr.errors import AddressError, GridError, LayerError, LinkError, LinkWarning, warn
from imageryxr.neuroglancer.dimensions import AXES
from imageryxr.neuroglancer.layer_sources import viewer_axes
from imageryxr.neuroglancer.state_layers import has_known_axes, read_source, read_source_transform
from imageryxr.neuroglancer.transform import Transform
from imageryxr.ops.multiscale import placed_level
from imageryxr.sources.address import parse_address
from imageryxr.sources.base import Source
from imageryxr.sources.fetch.policy import is_local_address
from imageryxr.sources.transposed import TransposedSource

_TOLERANCE = 1e-3
"""Displacement in voxels below which an array is at the place of its source; coordinates may be rounded."""


@dataclass(frozen=True)
class Move:
    """A change of the coordinates of a layer: ``new = factor * old + shift`` in nm, per axis (x, y, z)."""

    factor: tuple[float, float, float]
    shift: tuple[float, float, float]

    def is_none(self, axis: int) -> bool:
        """Return whether the coordinates along an axis stay the same."""
        return self.factor[axis] == 1 and self.shift[axis] == 0


def write_source(name: str, array: xr.DataArray, rest: dict[str, Any], *, allow_local: bool) -> Any:
    """Return the entry ``source`` of a layer, and remove an older ``transform`` from `rest` if it is part of the entry.

    `rest` are the entries of the layer in its link that have no attrs of their own. Warns if the layer is not shown at
    the coordinates of its array.

    Raises `LinkError` if the viewer cannot open the source.
    """
    spec = _stored_spec(name, array, allow_local)
    entries = spec if isinstance(spec, list) else [spec]
    try:
        found = placed_level(array) if "plane_axes" not in array.attrs else None
        if found is None:
            _check_place(array)
            return spec
        leaf, placed = found
        move = _find_move(array, leaf.source, leaf.mip, placed, _opened_transform(entries, array, rest))
        if move is None:
            return spec
        moved = [_move_entry(entry, rest, leaf.source, move) for entry in entries]
    except (GridError, LayerError) as error:
        warn(
            f"the link shows the layer {name!r} where its source is stored, which may not be where its array is: "
            f"{error}",
            LinkWarning,
        )
        return spec
    rest.pop("transform", None)
    return moved if isinstance(spec, list) else moved[0]


def _stored_spec(name: str, array: xr.DataArray, allow_local: bool) -> Any:
    """Return the source as in the link that the array was opened from, or its address as the viewer writes it."""
    source = array.attrs.get("source")
    if not isinstance(source, str) or "://" not in source:
        raise LinkError(
            f"the layer {name!r} is an array in memory, which a viewer cannot open (attrs['source'] is {source!r}); "
            "export it to precomputed:// or OME-Zarr first"
        )
    address = parse_address(source)
    if is_local_address(address) and not allow_local:
        raise LinkError(
            f"the layer {name!r} is at {address.public}, on this machine or its network, which other people cannot "
            "reach; to make the link anyway, give allow_local=True"
        )
    raw = array.attrs.get(LINK_SOURCE)
    if raw:
        return json.loads(raw)
    if address.format == "zarr":
        return address.zarr_name
    if address.format == "graphene" and LAYER not in array.attrs and address.protocol in ("http", "https"):
        return f"graphene://middleauth+{address.public}"  # with middleauth the viewer requests a token
    return f"{address.format}://{address.public}" if address.format else address.public


# ---------------------------------------------------------------------------------------------------------
# the place of an array


def _opened_transform(entries: Sequence[Any], array: xr.DataArray, rest: Mapping[str, Any]) -> Transform:
    """Return the transform of the entry that an array was opened from."""
    own = _public_address(array.attrs["source"])
    matching = [entry for entry in entries if _public_address(read_source(entry, "source")[0]) == own]
    return _transform_of((matching or entries)[0], rest)


def _public_address(url: str) -> str:
    try:
        return parse_address(url).public
    except AddressError:
        return url


def _transform_of(entry: Any, rest: Mapping[str, Any]) -> Transform:
    _, item = read_source(entry, "source")
    spec = {"source": entry, "transform": rest.get("transform")}
    return read_source_transform(spec, item, "the layer")[0]


def _find_move(array: xr.DataArray, source: Source, mip: int, placed: Grid, transform: Transform) -> Move | None:
    """Return the change from the place of a level in the viewer to its place by the array's coordinates, or None."""
    stored = source.levels[mip].grid
    placement, _ = transform.apply(_axes_of(source))
    shown = placement.place(stored, source.levels[0].grid.resolution)
    own, factors, shifts = grid_of(array), [], []
    for new, old, part in zip(placed.axes, shown.axes, own.axes, strict=True):
        factor, shift = _axis_move(new, old, part)
        factors.append(factor)
        shifts.append(shift)
    move = Move((factors[2], factors[1], factors[0]), (shifts[2], shifts[1], shifts[0]))
    return None if all(map(move.is_none, range(3))) else move


def _axis_move(new: Axis, old: Axis, part: Axis) -> tuple[float, float]:
    """Return the factor and shift from an axis to another, which need to be exact along the axis of the array."""
    ratio = to_fraction(new.resolution) / to_fraction(old.resolution)
    if abs(ratio - 1) * part.size < _TOLERANCE:
        ratio = Fraction(1)
    lo, hi = part.edges()
    middle = (lo + hi) / 2
    index = middle / to_fraction(new.resolution) - to_fraction(new.offset)  # voxels from the start of the level
    before = (to_fraction(old.offset) + index) * to_fraction(old.resolution)
    shift = middle - before * ratio
    if ratio == 1 and abs(shift) < _TOLERANCE * old.resolution:
        return 1.0, 0.0
    return float(ratio), float(f"{float(shift):.12g}")


def _check_place(array: xr.DataArray) -> None:
    """Raise `LayerError` if the coordinates of a computed array contradict its attributes, which describe its level."""
    grid, attrs = grid_of(array), array.attrs
    try:
        level = Grid(grid.shape, tuple(attrs["resolution"]), tuple(attrs["voxel_offset"]))
    except (KeyError, TypeError, GridError):
        return
    for dim, axis, stored in zip(DIMS, grid.axes, level.axes, strict=True):
        ratio = axis.resolution / stored.resolution
        edge, center = axis.offset * ratio - stored.offset, (axis.offset + 0.5) * ratio - 0.5 - stored.offset
        is_aligned = any(abs(place - round(place)) < _TOLERANCE for place in (edge, center))
        if not is_aligned or abs(ratio - round(ratio)) * axis.size > _TOLERANCE:
            raise LayerError(
                f"its coordinates along {dim} are not those of the voxels of its source, but its values were computed, "
                "so that their place in the source is unknown; change the coordinates of the lazy array before "
                ".compute() or .load()"
            )


# ---------------------------------------------------------------------------------------------------------
# transforms


def _axes_of(source: Source) -> tuple[str, ...]:
    return viewer_axes(source.inner if isinstance(source, TransposedSource) else source)


def _move_entry(entry: Any, rest: Mapping[str, Any], source: Source, move: Move) -> Any:
    """Return a source of a layer, moved; meshes and further sources of the layer move with the volume."""
    url, item = read_source(entry, "source")
    if url.startswith("local://"):
        return entry
    transform = _transform_of(entry, rest)
    if not transform.outputs or transform.is_ignored(_axes_of(source)):
        return {**item, "transform": _new_transform(url, source, move)}
    raw = item.get("transform")
    written = dict(raw) if isinstance(raw, Mapping) and raw.get("outputDimensions") else _written_dimensions(transform)
    rows = [
        list(row) for row in transform.matrix or np.eye(len(transform.outputs), len(transform.outputs) + 1).tolist()
    ]
    names = [name for name, _, _ in transform.outputs]
    for number, axis in enumerate(AXES):
        if axis in names:
            row, (_, scale, _) = names.index(axis), transform.outputs[names.index(axis)]
            factor, shift = move.factor[number], move.shift[number] / scale
            rows[row] = [*(value * factor for value in rows[row][:-1]), rows[row][-1] * factor + shift]
        elif not move.is_none(number):
            raise LayerError(f"its transform has no output dimension {axis}; add one, and copy the link again")
    return {**item, "transform": {**written, "matrix": [[_plain(value) for value in row] for row in rows]}}


def _new_transform(url: str, source: Source, move: Move) -> dict[str, Any]:
    """Return the transform of a source without one."""
    axes = AXES if has_known_axes(url) else [axis for axis in _axes_of(source) if axis in AXES]
    finest = dict(zip(AXES, source.levels[0].grid.resolution, strict=True))
    for number, axis in enumerate(AXES):
        if axis not in axes and not move.is_none(number):
            raise LayerError(f"its source has no axis {axis} to be moved")
    dims = {axis: [_in_metres(finest[axis]), "m"] for axis in axes}
    rows = []
    for row, axis in enumerate(axes):
        number = AXES.index(axis)
        factors = [move.factor[number] if i == row else 0 for i in range(len(axes))]
        rows.append([*map(_plain, factors), _plain(move.shift[number] / finest[axis])])
    # The order of the axes of a Zarr varies, and others may be between them, so they are named.
    inputs = {} if has_known_axes(url) else {"inputDimensions": dims}
    return {"matrix": rows, "outputDimensions": dims, **inputs}


def _written_dimensions(transform: Transform) -> dict[str, Any]:
    outputs = {
        name: [_in_metres(size), "m"] if unit == "nm" else [size, unit] for name, size, unit in transform.outputs
    }
    return {"outputDimensions": outputs}


def _in_metres(nm: float) -> float:
    return float(f"{nm * 1e-9:.12g}")


def _plain(value: float) -> int | float:
    """Return a number of a matrix in the shortest form that is exact to 15 digits."""
    short = float(f"{value:.15g}")
    return int(short) if short.is_integer() else short
