"""The top level of a Neuroglancer state, from the attributes of what is shown: place, zoom, plane, layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.attrs import list_from_attr, parse_json_attr
from imageryxr.core.display import DIMENSIONS, DISPLAY, LINK_STATE, NM_PER_PIXEL, ORIENTATION, POSITION
from imageryxr.core.grid import grid_of
from imageryxr.core.orientation import quaternion_of_axes, screen_dimensions
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.dimensions import AXES, read_dimensions
from imageryxr.neuroglancer.layout import PANELS, layout_of_layers, read_groups, with_group
from imageryxr.neuroglancer.navigation import Pose, read_group_pose, read_pose, smallest_side
from imageryxr.ops.tree import dimensions_of, layers_of, position_of

#: What is written from the attributes, or is of an older form.
_OWN = {"dimensions", "position", "crossSectionScale", "crossSectionOrientation", "displayDimensions", "layout"}
_OLDER = {"navigation", "voxelSize", "crossSectionZoom"}


def state_of_tree(tree: xr.DataTree, names: Sequence[str]) -> dict[str, Any]:
    """Return the state of a tree but for its layers, whose names are given.

    Raises
    ------
    LinkError
        If an attribute cannot be written.
    """
    arrays = layers_of(tree)
    unit = dimensions_of(tree, arrays)
    attrs, point = tree.attrs, [float(v) for v in position_of(tree, arrays, unit)]
    link = link_of(attrs)
    rest, layout = link.get("state", {}), layout_of_layers(link.get("state", {}).get("layout"), names)
    groups = read_groups(layout)
    number = _group_number(read_groups(rest.get("layout")), groups, link.get("group", 0), names)
    if number is None:
        return _flat(attrs, unit, point)
    before = _pose_of(rest)
    state = {**_kept(rest, _OLDER | {"layout"}), **_place(attrs, unit, before.position or point, before)}
    if POSITION not in attrs and before.position is None:
        del state["position"]
    changes = _changes(attrs, unit, point, before, groups[number].viewer, state["dimensions"])
    if groups[number].panel != attrs.get("layout", groups[number].panel):
        changes["layout"] = _panel(attrs["layout"])
    return {**state, "layout": with_group(layout, number, changes)}


def _group_number(before: Sequence[Any], after: Sequence[Any], chosen: int, names: Sequence[str]) -> int | None:
    """Return which of the groups that are left is the chosen one; None where there is none."""
    kept = [i for i, group in enumerate(before) if any(name in names for name in group.layers)]
    return kept.index(chosen) if chosen in kept and len(kept) == len(after) else None


def _changes(
    attrs: Mapping[Any, Any], unit: Any, point: list[float], parent: Pose, viewer: Any, dimensions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a layer group has of its own, where the attributes say other than the group does."""
    dims = read_dimensions({"dimensions": dimensions})
    shown = read_group_pose(replace(parent, resolution=tuple(unit)), viewer, dims, dims)
    found: dict[str, Any] = {}
    if POSITION in attrs and not _same(point, shown.position):
        places = {**dict(shown.places), **dict(zip(AXES, point, strict=True))}
        found["position"] = [places.get(name, 0.5) for name in dims]
    turn = [float(v) for v in attrs.get(ORIENTATION, (0, 0, 0, 1))]
    if not _same(turn, shown.orientation):
        found["crossSectionOrientation"] = turn
    zoom = attrs.get(NM_PER_PIXEL)
    if zoom is not None and not _same([zoom], [shown.nm_per_pixel or 0]):
        side = smallest_side(tuple(unit), shown.display, shown.stretch)
        found["crossSectionScale"] = float(zoom) / (side or 1)
    wanted = tuple(list_from_attr(attrs.get(DISPLAY)) or AXES)
    if screen_dimensions(shown.display) not in (None, wanted):
        found["displayDimensions"] = list(wanted)
    return {key: {"link": "unlinked", "value": value} for key, value in found.items()}


def _same(one: Sequence[float], other: Sequence[float] | None) -> bool:
    return other is not None and bool(np.allclose(one, other, rtol=1e-9, atol=1e-9))


def state_of_dataset(dataset: xr.Dataset, first: xr.DataArray) -> dict[str, Any]:
    """Return the state of a Dataset but for its layers, the first of which is given.

    Raises
    ------
    LinkError
        If an attribute cannot be written.
    """
    if "plane_axes" in first.attrs:
        return _of_plane(dataset, first)
    grid = grid_of(first)
    said = parse_json_attr(dataset.attrs.get(DIMENSIONS))
    unit = tuple(said[axis][0] for axis in AXES) if said else grid.resolution
    # The middle voxel is that of `BBox.around`; the point inside of it that a link named is kept.
    index = [o + n // 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    point = [(i + 0.5) * r / u for i, r, u in zip(index, grid.resolution, unit, strict=True)]
    named = dataset.attrs.get(POSITION)
    steps = [r / u / 2 for r, u in zip(grid.resolution, unit, strict=True)]
    if named is not None and all(abs(a - b) <= s + 1e-9 for a, b, s in zip(named, point, steps, strict=True)):
        point = [float(v) for v in named]
    return _flat(dataset.attrs, unit, point)


def _of_plane(dataset: xr.Dataset, first: xr.DataArray) -> dict[str, Any]:
    """Return the state of a picture that `imageryxr.plane` cut: its coordinates are those of the volume, turned."""
    grid, axes = grid_of(first), np.reshape(parse_json_attr(first.attrs["plane_axes"]), (3, 3))
    said = parse_json_attr(dataset.attrs.get(DIMENSIONS))
    unit = tuple(said[axis][0] for axis in AXES) if said else grid.resolution
    middle = [
        (o + n // 2 + 0.5) * r for o, n, r in zip(grid.voxel_offset, grid.shape[::-1], grid.resolution, strict=True)
    ]
    point = [nm / u for nm, u in zip(axes.T @ middle, unit, strict=True)]
    zoom = dataset.attrs.get(NM_PER_PIXEL, grid.resolution[0])
    turned = {ORIENTATION: quaternion_of_axes(axes), NM_PER_PIXEL: zoom, "layout": "xy", DISPLAY: list(AXES)}
    return _flat({**dataset.attrs, **turned}, unit, point)


def link_of(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what a link said beside what the attributes hold, by ``state``, ``group`` and ``order``."""
    try:
        found = json.loads(attrs.get(LINK_STATE) or "{}")
    except (TypeError, ValueError):
        raise LinkError(f"attrs[{LINK_STATE!r}] is no JSON; it is what open_neuroglancer left there") from None
    return found if isinstance(found, dict) and isinstance(found.get("state", {}), dict) else {}


def _flat(attrs: Mapping[Any, Any], unit: Any, point: list[float]) -> dict[str, Any]:
    """Return the state of a single viewer."""
    rest = link_of(attrs).get("state", {})
    state = {**_kept(rest, _OLDER | _OWN), **_place(attrs, unit, point, _pose_of(rest))}
    turned = [float(v) for v in attrs.get(ORIENTATION, (0, 0, 0, 1))]
    zoom = attrs.get(NM_PER_PIXEL)
    if zoom is not None:
        side = smallest_side(tuple(unit), tuple(list_from_attr(attrs.get(DISPLAY)) or AXES), _pose_of(rest).stretch)
        state["crossSectionScale"] = float(zoom) / (side or min(unit))
    if turned != [0, 0, 0, 1]:
        state["crossSectionOrientation"] = turned
    display = _display(attrs, rest, state["dimensions"])
    if display is not None:
        state["displayDimensions"] = display
    panel, layout = _panel(attrs.get("layout", "xy")), rest.get("layout")
    whole = isinstance(layout, Mapping) and layout.get("type") == panel
    return {**state, "layout": layout if whole else panel}


def _pose_of(rest: Mapping[str, Any]) -> Pose:
    try:
        return read_pose(rest, read_dimensions(rest))
    except LinkError:
        return Pose()


def _kept(rest: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    return {key: value for key, value in rest.items() if key not in without}


def _place(attrs: Mapping[Any, Any], unit: Any, point: Sequence[float], before: Pose) -> dict[str, Any]:
    """Return dimensions, in the order of the link, and the position along them."""
    rest = link_of(attrs).get("state", {})
    sizes = {axis: [float(f"{u * 1e-9:.12g}"), "m"] for axis, u in zip(AXES, unit, strict=True)}
    given = rest.get("dimensions") if before.resolution is not None else None
    if not isinstance(given, Mapping):
        return {"dimensions": sizes, "position": [float(v) for v in point]}
    same = before.resolution is not None and _same(before.resolution, list(unit))
    dims = {name: (value if same or name not in sizes else sizes[name]) for name, value in given.items()}
    places = {**dict(before.places), **dict(zip(AXES, map(float, point), strict=True))}
    if any(name not in places for name in dims):
        # The viewer takes a position along all dimensions, or none.
        return {"dimensions": dims, **({"position": [places.get(n, 0.5) for n in dims]} if POSITION in attrs else {})}
    return {"dimensions": dims, "position": [places[name] for name in dims]}


def _display(attrs: Mapping[Any, Any], rest: Mapping[str, Any], dims: Mapping[str, Any]) -> Any:
    """Return the display dimensions to write, if any: those of the link where they show what the attributes say."""
    wanted = tuple(list_from_attr(attrs.get(DISPLAY)) or AXES)
    given = rest.get("displayDimensions")
    names = [name for name in dims if not name.endswith(("'", "^"))][:3]
    before = given if isinstance(given, list) else names
    if screen_dimensions(before) in (None, wanted):
        return given
    return None if screen_dimensions(names) == wanted else list(wanted)


def _panel(layout: Any) -> str:
    if layout in PANELS:
        return str(layout)
    raise LinkError(f"attrs['layout']={layout!r} is no layout of the viewer; it has {', '.join(PANELS)}")
