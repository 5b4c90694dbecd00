"""The camera of a Neuroglancer state: position, zoom, orientation and display dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from imageryxr.core.bbox import Triple
from imageryxr.errors import LinkError, format_value
from imageryxr.neuroglancer.dimensions import AXES, spatial_scales
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_numbers, as_positive

Dimensions = Mapping[str, tuple[float, str]]
Quaternion = tuple[float, float, float, float]
NO_ROTATION: Quaternion = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Pose:
    """Position, zoom and orientation of a viewer's cross sections."""

    resolution: Triple | None = None
    """Nanometres (x, y, z) per unit of ``position``; None if the state does not define them."""
    position: tuple[float, float, float] | None = None
    places: tuple[tuple[str, float], ...] = ()
    """Position along the other dimensions, such as ``t``, by name."""
    nm_per_pixel: float | None = None
    orientation: Quaternion = NO_ROTATION
    """Quaternion (x, y, z, w) of the cross sections, in display dimensions."""
    display: tuple[str, ...] = ("x", "y", "z")
    """At most three dimensions, which the screen shows as its x, y and z."""
    stretch: tuple[tuple[str, float], ...] = ()
    """Dimensions that the viewer stretches, with their factors."""


def read_pose(state: Mapping[str, Any], dims: Dimensions, referenced: Dimensions | None = None) -> Pose:
    """Read the pose of a state from ``dimensions`` and ``position``, or from the older ``navigation``.

    `dims` are the dimensions of the state. `referenced` are the dimensions that at least one layer has, by default all;
    the viewer ignores the others. Raises `LinkError` if an entry is invalid.
    """
    navigation = as_mapping(state.get("navigation"), "navigation")
    pose = as_mapping(navigation.get("pose"), "navigation.pose")
    place = pose.get("position", navigation.get("position"))
    place = {"voxelCoordinates": place} if isinstance(place, list) else as_mapping(place, "navigation.position")
    resolution = spatial_scales(dims) if dims else None
    size = place.get("voxelSize", navigation.get("voxelSize", state.get("voxelSize")))
    if resolution is None and size is not None:
        x, y, z = (as_positive(s, "navigation.voxelSize") for s in as_list(size, "navigation.voxelSize", 3))
        resolution = (x, y, z)
    position, places = _read_any_position(state, place, dims, resolution)
    used = dims if referenced is None else referenced
    stretch = _read_stretch(state.get("relativeDisplayScales"), used)
    display = read_display(state.get("displayDimensions"), used)
    zoom = _read_zoom(state, navigation, smallest_side(resolution, display, stretch))
    return Pose(resolution, position, places, zoom, _first_orientation(state, pose, navigation), display, stretch)


def _read_any_position(
    state: Mapping[str, Any], place: Mapping[str, Any], dims: Dimensions, resolution: Triple | None
) -> tuple[Any, tuple[tuple[str, float], ...]]:
    if state.get("position") is not None:
        return read_position(state["position"], dims)
    if place.get("voxelCoordinates") is not None:
        return as_numbers(place["voxelCoordinates"], "navigation.pose.position.voxelCoordinates", 3), ()
    if place.get("spatialCoordinates") is not None and resolution is not None:
        nm = as_numbers(place["spatialCoordinates"], "navigation.pose.position.spatialCoordinates", 3)
        return tuple(n / r for n, r in zip(nm, resolution, strict=True)), ()
    return None, ()


def read_position(value: Any, dims: Dimensions) -> tuple[Any, tuple[tuple[str, float], ...]]:
    """Return the point (x, y, z) of a position, and its coordinates along the other dimensions.

    Raises `LinkError` if it is invalid.
    """
    names = list(dims) or list(AXES)
    numbers = as_list(value, "position", None)
    found = {name: as_number(n, f"position[{i}]") for i, (name, n) in enumerate(zip(names, numbers, strict=False))}
    missing = [axis for axis in AXES if axis not in found]
    if missing:
        raise LinkError(f"position={format_value(value)} has no {missing[0]}; its dimensions are {', '.join(names)}")
    others = tuple((name, v) for name, v in found.items() if name not in AXES)
    return (found["x"], found["y"], found["z"]), others


def read_display(value: Any, dims: Dimensions) -> tuple[str, ...]:
    """Return the display dimensions of a state, without unknown ones; by default its first three dimensions.

    Raises `LinkError` if the value is not a list of at most three different names.
    """
    names = [name for name in dims if not name.endswith(("'", "^"))] or list(AXES)
    if value is None:
        return tuple(names[:3])
    requested = as_list(value, "displayDimensions", None)
    if len(requested) > 3 or any(not isinstance(n, str) for n in requested) or len(set(requested)) < len(requested):
        raise LinkError(
            f"displayDimensions={format_value(value)} must be up to three different names, such as ['x', 'y', 'z']"
        )
    found = [name for name in requested if name in names] if dims else []
    return tuple(found or names[:3])


def _read_stretch(value: Any, dims: Dimensions) -> tuple[tuple[str, float], ...]:
    factors = as_mapping(value, "relativeDisplayScales")
    read = [(name, as_positive(factors[name], f"relativeDisplayScales.{name}")) for name in dims if name in factors]
    return tuple((name, factor) for name, factor in read if factor != 1)


def smallest_side(
    resolution: Triple | None, display: tuple[str, ...], stretch: tuple[tuple[str, float], ...]
) -> float | None:
    """Return the smallest displayed side of a voxel in nm, the unit of ``crossSectionScale``."""
    if resolution is None:
        return None
    size, factors = dict(zip(AXES, resolution, strict=True)), dict(stretch)
    return min((size[a] * factors.get(a, 1.0) for a in display if a in size), default=min(resolution))


def _read_zoom(state: Mapping[str, Any], navigation: Mapping[str, Any], side: float | None) -> float | None:
    scale = state.get("crossSectionScale")
    if scale is not None and side is not None:
        return as_positive(scale, "crossSectionScale") * side
    zoom = navigation.get("zoomFactor")
    return None if zoom is None else as_positive(zoom, "navigation.zoomFactor")


def _first_orientation(*places: Mapping[str, Any]) -> Quaternion:
    for place, key in zip(places, ("crossSectionOrientation", "orientation", "orientation"), strict=True):
        if place.get(key) is not None:
            return read_orientation(place[key], key)
    return NO_ROTATION


def read_orientation(value: Any, key: str) -> Quaternion:
    """Return a quaternion (x, y, z, w), normalized to length 1; raise `LinkError` if the value is not a quaternion."""
    x, y, z, w = as_numbers(value, key, 4)
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not 1e-6 < length < math.inf:
        raise LinkError(f"{key}={format_value(value)} is not a rotation; give a quaternion (x, y, z, w)")
    return x / length, y / length, z / length, w / length


def read_group_pose(parent: Pose, viewer: Mapping[str, Any], dims: Dimensions, referenced: Dimensions) -> Pose:
    """Return the pose of a layer group: that of the whole state, except for the group's own settings.

    The ``value`` of a setting applies if its ``link`` is "unlinked" or "relative". A "linked" setting follows the whole
    state.

    Raises `LinkError` if an entry is invalid.
    """
    out = parent
    stretch, display = _unlinked_value(viewer, "dimensionRenderScales"), _unlinked_value(viewer, "displayDimensions")
    if stretch is not None:
        out = replace(out, stretch=_read_stretch(stretch, referenced))
    if display is not None:
        out = replace(out, display=read_display(display, referenced))
    position = _unlinked_value(viewer, "position")
    if isinstance(position, Mapping):  # as older versions of Neuroglancer write it
        position = position.get("voxelCoordinates")
    if position is not None:
        point, places = read_position(position, dims)
        out = replace(out, position=point, places=places)
    turn = _unlinked_value(viewer, "crossSectionOrientation")
    if turn is not None:
        out = replace(out, orientation=read_orientation(turn, "crossSectionOrientation"))
    zoom, scale = _unlinked_value(viewer, "crossSectionZoom"), _unlinked_value(viewer, "crossSectionScale")
    side = smallest_side(out.resolution, out.display, out.stretch)
    if scale is not None and side is not None:
        out = replace(out, nm_per_pixel=as_positive(scale, "crossSectionScale") * side)
    elif zoom is not None:
        out = replace(out, nm_per_pixel=as_positive(zoom, "crossSectionZoom"))
    return out


def _unlinked_value(viewer: Mapping[str, Any], key: str) -> Any:
    """Return a group's own value of a setting; None if it follows the whole state."""
    setting = viewer.get(key)
    if not isinstance(setting, Mapping):
        return setting
    if "value" not in setting and "link" not in setting:
        return setting if key == "position" and setting else None
    return None if setting.get("link") == "linked" else setting.get("value")
