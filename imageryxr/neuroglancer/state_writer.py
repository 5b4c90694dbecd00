"""Write the top level of a Neuroglancer state from attributes: position, zoom, orientation and layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import grid_of, list_from_attr, parse_json_attr
from imageryxr.core.display import DIMENSIONS, DISPLAY, LINK_STATE, NM_PER_PIXEL, ORIENTATION, POSITION
from imageryxr.core.grid import Grid
from imageryxr.core.orientation import quaternion_of_axes, screen_dimensions
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.dimensions import AXES, read_dimensions
from imageryxr.neuroglancer.layout import PANELS, prune_layout, read_groups, update_group
from imageryxr.neuroglancer.navigation import Pose, read_group_pose, read_pose, smallest_side
from imageryxr.ops.tree import dimensions_of, layers_of, position_of

#: Entries that are written from the attributes.
_WRITTEN_KEYS = {
    "dimensions",
    "position",
    "crossSectionScale",
    "crossSectionOrientation",
    "displayDimensions",
    "layout",
}
#: Entries of older states that the written entries replace.
_LEGACY_KEYS = {"navigation", "voxelSize", "crossSectionZoom"}


def state_of_tree(tree: xr.DataTree, names: Sequence[str]) -> dict[str, Any]:
    """Return the state of a tree without its layers; ``names`` are the names of the layers.

    Raises `LinkError` if an attribute cannot be written.
    """
    arrays = layers_of(tree)
    unit = dimensions_of(tree, arrays)
    attrs, point = tree.attrs, [float(v) for v in position_of(tree, arrays, unit)]
    link = saved_link(attrs)
    rest, layout = link.get("state", {}), prune_layout(link.get("state", {}).get("layout"), names)
    groups = read_groups(layout)
    number = _group_number(read_groups(rest.get("layout")), groups, link.get("group", 0), names)
    if number is None:
        return _single_viewer_state(attrs, unit, point)
    before = _read_pose_or_default(rest)
    state = {
        **_drop_keys(rest, _LEGACY_KEYS | {"layout"}),
        **_dimensions_and_position(attrs, unit, before.position or point, before),
    }
    if POSITION not in attrs and before.position is None:
        del state["position"]
    changes = _group_changes(attrs, unit, point, before, groups[number].viewer, state["dimensions"])
    if groups[number].panel != attrs.get("layout", groups[number].panel):
        changes["layout"] = _check_panel(attrs["layout"])
    return {**state, "layout": update_group(layout, number, changes)}


def _group_number(before: Sequence[Any], after: Sequence[Any], chosen: int, names: Sequence[str]) -> int | None:
    """Return the new number of the chosen group after groups were removed; None if it was removed."""
    kept = [i for i, group in enumerate(before) if any(name in names for name in group.layers)]
    return kept.index(chosen) if chosen in kept and len(kept) == len(after) else None


def _group_changes(
    attrs: Mapping[Any, Any], unit: Any, point: list[float], parent: Pose, viewer: Any, dimensions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return new settings for a group where the attributes differ from what the group shows."""
    dims = read_dimensions({"dimensions": dimensions})
    shown = read_group_pose(replace(parent, resolution=tuple(unit)), viewer, dims, dims)
    found: dict[str, Any] = {}
    if POSITION in attrs and not _is_close(point, shown.position):
        places = {**dict(shown.places), **dict(zip(AXES, point, strict=True))}
        found["position"] = [places.get(name, 0.5) for name in dims]
    orientation = [float(v) for v in attrs.get(ORIENTATION, (0, 0, 0, 1))]
    if not _is_close(orientation, shown.orientation):
        found["crossSectionOrientation"] = orientation
    zoom = attrs.get(NM_PER_PIXEL)
    if zoom is not None and not _is_close([zoom], [shown.nm_per_pixel or 0]):
        side = smallest_side(tuple(unit), shown.display, shown.stretch)
        found["crossSectionScale"] = float(zoom) / (side or 1)
    display = tuple(list_from_attr(attrs.get(DISPLAY)) or AXES)
    if screen_dimensions(shown.display) not in (None, display):
        found["displayDimensions"] = list(display)
    return {key: {"link": "unlinked", "value": value} for key, value in found.items()}


def _is_close(one: Sequence[float], other: Sequence[float] | None) -> bool:
    return other is not None and bool(np.allclose(one, other, rtol=1e-9, atol=1e-9))


def state_of_dataset(dataset: xr.Dataset, first: xr.DataArray) -> dict[str, Any]:
    """Return the state of a Dataset without its layers; ``first`` is its first layer.

    Raises `LinkError` if an attribute cannot be written.
    """
    if "plane_axes" in first.attrs:
        return _state_of_plane(dataset, first)
    grid = grid_of(first)
    unit = _unit(dataset, grid)
    # The middle voxel is defined as in `BBox.around`. A link's position is kept if it lies within that voxel.
    index = [o + n // 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    point = [(i + 0.5) * r / u for i, r, u in zip(index, grid.resolution, unit, strict=True)]
    position = dataset.attrs.get(POSITION)
    steps = [r / u / 2 for r, u in zip(grid.resolution, unit, strict=True)]
    if position is not None and all(abs(a - b) <= s + 1e-9 for a, b, s in zip(position, point, steps, strict=True)):
        point = [float(v) for v in position]
    return _single_viewer_state(dataset.attrs, unit, point)


def _state_of_plane(dataset: xr.Dataset, first: xr.DataArray) -> dict[str, Any]:
    """Return the state of an oblique plane cut by `imageryxr.plane`, whose coordinates are rotated."""
    grid, axes = grid_of(first), np.reshape(parse_json_attr(first.attrs["plane_axes"]), (3, 3))
    unit = _unit(dataset, grid)
    middle = [
        (o + n // 2 + 0.5) * r for o, n, r in zip(grid.voxel_offset, grid.shape[::-1], grid.resolution, strict=True)
    ]
    point = [nm / u for nm, u in zip(axes.T @ middle, unit, strict=True)]
    zoom = dataset.attrs.get(NM_PER_PIXEL, grid.resolution[0])
    rotated = {ORIENTATION: quaternion_of_axes(axes), NM_PER_PIXEL: zoom, "layout": "xy", DISPLAY: list(AXES)}
    return _single_viewer_state({**dataset.attrs, **rotated}, unit, point)


def _unit(dataset: xr.Dataset, grid: Grid) -> Any:
    """Return the nm (x, y, z) per unit of position, from the attributes or the grid."""
    dimensions = parse_json_attr(dataset.attrs.get(DIMENSIONS))
    return tuple(dimensions[axis][0] for axis in AXES) if dimensions else grid.resolution


def saved_link(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the entries ``state``, ``group`` and ``order`` of the link that the attributes come from."""
    try:
        found = json.loads(attrs.get(LINK_STATE) or "{}")
    except (TypeError, ValueError):
        raise LinkError(f"attrs[{LINK_STATE!r}] is not the JSON that open_neuroglancer wrote; delete it") from None
    return found if isinstance(found, dict) and isinstance(found.get("state", {}), dict) else {}


def _single_viewer_state(attrs: Mapping[Any, Any], unit: Any, point: list[float]) -> dict[str, Any]:
    """Return the state of a single viewer."""
    rest = saved_link(attrs).get("state", {})
    state = {
        **_drop_keys(rest, _LEGACY_KEYS | _WRITTEN_KEYS),
        **_dimensions_and_position(attrs, unit, point, _read_pose_or_default(rest)),
    }
    orientation = [float(v) for v in attrs.get(ORIENTATION, (0, 0, 0, 1))]
    zoom = attrs.get(NM_PER_PIXEL)
    if zoom is not None:
        side = smallest_side(
            tuple(unit), tuple(list_from_attr(attrs.get(DISPLAY)) or AXES), _read_pose_or_default(rest).stretch
        )
        state["crossSectionScale"] = float(zoom) / (side or min(unit))
    if orientation != [0, 0, 0, 1]:
        state["crossSectionOrientation"] = orientation
    display = _display_dimensions(attrs, rest, state["dimensions"])
    if display is not None:
        state["displayDimensions"] = display
    panel, layout = _check_panel(attrs.get("layout", "xy")), rest.get("layout")
    is_same = isinstance(layout, Mapping) and layout.get("type") == panel
    return {**state, "layout": layout if is_same else panel}


def _read_pose_or_default(rest: Mapping[str, Any]) -> Pose:
    try:
        return read_pose(rest, read_dimensions(rest))
    except LinkError:
        return Pose()


def _drop_keys(rest: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    return {key: value for key, value in rest.items() if key not in without}


def _dimensions_and_position(
    attrs: Mapping[Any, Any], unit: Any, point: Sequence[float], before: Pose
) -> dict[str, Any]:
    """Return the dimensions, in the order of the link, and the position along them."""
    rest = saved_link(attrs).get("state", {})
    sizes = {axis: [float(f"{u * 1e-9:.12g}"), "m"] for axis, u in zip(AXES, unit, strict=True)}
    saved = rest.get("dimensions") if before.resolution is not None else None
    if not isinstance(saved, Mapping):
        return {"dimensions": sizes, "position": [float(v) for v in point]}
    is_same = before.resolution is not None and _is_close(before.resolution, list(unit))
    dims = {name: (value if is_same or name not in sizes else sizes[name]) for name, value in saved.items()}
    places = {**dict(before.places), **dict(zip(AXES, map(float, point), strict=True))}
    if any(name not in places for name in dims):
        # The viewer requires a position along all dimensions, or none at all.
        return {"dimensions": dims, **({"position": [places.get(n, 0.5) for n in dims]} if POSITION in attrs else {})}
    return {"dimensions": dims, "position": [places[name] for name in dims]}


def _display_dimensions(attrs: Mapping[Any, Any], rest: Mapping[str, Any], dims: Mapping[str, Any]) -> Any:
    """Return the display dimensions to write, or None; those of the link are kept if they match the attributes."""
    display = tuple(list_from_attr(attrs.get(DISPLAY)) or AXES)
    saved = rest.get("displayDimensions")
    defaults = [name for name in dims if not name.endswith(("'", "^"))][:3]
    before = saved if isinstance(saved, list) else defaults
    if screen_dimensions(before) in (None, display):
        return saved
    return None if screen_dimensions(defaults) == display else list(display)


def _check_panel(layout: Any) -> str:
    if layout in PANELS:
        return str(layout)
    raise LinkError(f"attrs['layout']={layout!r} is not a layout of the viewer; choose one of {', '.join(PANELS)}")
