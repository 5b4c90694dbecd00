"""Where a Neuroglancer state looks: position, zoom, turn, and which dimensions lie across and down the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from imageryxr.core.bbox import Triple
from imageryxr.errors import LinkError
from imageryxr.neuroglancer.dimensions import AXES, dimensions_of
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_numbers, as_positive, shown

Dimensions = Mapping[str, tuple[float, str]]
Quaternion = tuple[float, float, float, float]
NO_TURN: Quaternion = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Pose:
    """Where the cross sections of a viewer lie."""

    resolution: Triple | None = None
    """Nanometres (x, y, z) per unit of ``position``; None where the state leaves it to its layers."""
    position: tuple[float, float, float] | None = None
    places: tuple[tuple[str, float], ...] = ()
    """Position along the other dimensions, such as ``t``, by name."""
    nm_per_pixel: float | None = None
    orientation: Quaternion = NO_TURN
    """Quaternion (x, y, z, w) of the cross sections, in the dimensions of the screen."""
    display: tuple[str, ...] = ("x", "y", "z")
    """The dimensions that the screen calls x, y and z; at most three."""
    stretch: tuple[tuple[str, float], ...] = ()
    """Dimensions that are drawn longer than they are, and by which factor."""


def read_pose(state: Mapping[str, Any], dims: Dimensions, referenced: Dimensions | None = None) -> Pose:
    """Read where a state looks, in either form: ``dimensions`` and ``position``, or the older ``navigation``.

    Parameters
    ----------
    state : mapping
        A JSON state.
    dims : mapping
        Its dimensions, as `read_dimensions` returns them.
    referenced : mapping, optional
        Those of them that a layer has; the viewer drops the others. Default: all.

    Raises
    ------
    LinkError
        If an entry makes no sense.
    """
    navigation = as_mapping(state.get("navigation"), "navigation")
    pose = as_mapping(navigation.get("pose"), "navigation.pose")
    place = pose.get("position", navigation.get("position"))
    place = {"voxelCoordinates": place} if isinstance(place, list) else as_mapping(place, "navigation.position")
    resolution = dimensions_of(dims) if dims else None
    size = place.get("voxelSize", navigation.get("voxelSize", state.get("voxelSize")))
    if resolution is None and size is not None:
        x, y, z = (as_positive(s, "navigation.voxelSize") for s in as_list(size, "navigation.voxelSize", 3))
        resolution = (x, y, z)
    position, places = _position(state, place, dims, resolution)
    used = dims if referenced is None else referenced
    stretch = _stretch(state.get("relativeDisplayScales"), used)
    display = read_display(state.get("displayDimensions"), used)
    zoom = _zoom(state, navigation, smallest_side(resolution, display, stretch))
    return Pose(resolution, position, places, zoom, _orientation(state, pose, navigation), display, stretch)


def _position(
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
    """Return the point (x, y, z) of a position, and the place along every other dimension.

    Raises
    ------
    LinkError
        If it makes no sense.
    """
    names = list(dims) or list(AXES)
    numbers = as_list(value, "position", None)
    found = {name: as_number(n, f"position[{i}]") for i, (name, n) in enumerate(zip(names, numbers, strict=False))}
    missing = [axis for axis in AXES if axis not in found]
    if missing:
        raise LinkError(f"position={shown(value)} has no {missing[0]}; it counts along {', '.join(names)}")
    others = tuple((name, v) for name, v in found.items() if name not in AXES)
    return (found["x"], found["y"], found["z"]), others


def read_display(value: Any, dims: Dimensions) -> tuple[str, ...]:
    """Return the dimensions of the screen: those given, of those that there are; default the first three.

    Raises
    ------
    LinkError
        If it is no list of at most three names.
    """
    names = [name for name in dims if not name.endswith(("'", "^"))] or list(AXES)
    if value is None:
        return tuple(names[:3])
    given = as_list(value, "displayDimensions", None)
    if len(given) > 3 or any(not isinstance(n, str) for n in given) or len(set(given)) < len(given):
        raise LinkError(
            f"displayDimensions={shown(value)} are not up to three different names, such as ['x', 'y', 'z']"
        )
    found = [name for name in given if name in names] if dims else []
    return tuple(found or names[:3])


def _stretch(value: Any, dims: Dimensions) -> tuple[tuple[str, float], ...]:
    factors = as_mapping(value, "relativeDisplayScales")
    read = [(name, as_positive(factors[name], f"relativeDisplayScales.{name}")) for name in dims if name in factors]
    return tuple((name, factor) for name, factor in read if factor != 1)


def smallest_side(
    resolution: Triple | None, display: tuple[str, ...], stretch: tuple[tuple[str, float], ...]
) -> float | None:
    """Return the smallest side in nm of a voxel on the screen, which is the unit of ``crossSectionScale``."""
    if resolution is None:
        return None
    size, factors = dict(zip(AXES, resolution, strict=True)), dict(stretch)
    return min((size[a] * factors.get(a, 1.0) for a in display if a in size), default=min(resolution))


def _zoom(state: Mapping[str, Any], navigation: Mapping[str, Any], side: float | None) -> float | None:
    scale = state.get("crossSectionScale")
    if scale is not None and side is not None:
        return as_positive(scale, "crossSectionScale") * side
    zoom = navigation.get("zoomFactor")
    return None if zoom is None else as_positive(zoom, "navigation.zoomFactor")


def _orientation(*places: Mapping[str, Any]) -> Quaternion:
    for place, key in zip(places, ("crossSectionOrientation", "orientation", "orientation"), strict=True):
        if place.get(key) is not None:
            return read_orientation(place[key], key)
    return NO_TURN


def read_orientation(value: Any, key: str) -> Quaternion:
    """Return a quaternion (x, y, z, w) of length 1.

    Raises
    ------
    LinkError
        If it is none.
    """
    x, y, z, w = as_numbers(value, key, 4)
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not 1e-6 < length < math.inf:
        raise LinkError(f"{key}={shown(value)} is no rotation; it is a quaternion (x, y, z, w)")
    return x / length, y / length, z / length, w / length


def read_group_pose(parent: Pose, viewer: Mapping[str, Any], dims: Dimensions, referenced: Dimensions) -> Pose:
    """Return where a layer group looks: at what the whole state does, but for what it has of its own.

    ``value`` is where the group looks if its ``link`` is "unlinked" or "relative"; "linked", it looks where the whole
    state does.

    Raises
    ------
    LinkError
        If an entry makes no sense.
    """
    out = parent
    stretch, display = _own(viewer, "dimensionRenderScales"), _own(viewer, "displayDimensions")
    if stretch is not None:
        out = replace(out, stretch=_stretch(stretch, referenced))
    if display is not None:
        out = replace(out, display=read_display(display, referenced))
    position = _own(viewer, "position")
    if isinstance(position, Mapping):  # an older form
        position = position.get("voxelCoordinates")
    if position is not None:
        point, places = read_position(position, dims)
        out = replace(out, position=point, places=places)
    turn = _own(viewer, "crossSectionOrientation")
    if turn is not None:
        out = replace(out, orientation=read_orientation(turn, "crossSectionOrientation"))
    zoom, scale = _own(viewer, "crossSectionZoom"), _own(viewer, "crossSectionScale")
    side = smallest_side(out.resolution, out.display, out.stretch)
    if scale is not None and side is not None:
        out = replace(out, nm_per_pixel=as_positive(scale, "crossSectionScale") * side)
    elif zoom is not None:
        out = replace(out, nm_per_pixel=as_positive(zoom, "crossSectionZoom"))
    return out


def _own(viewer: Mapping[str, Any], key: str) -> Any:
    """Return what a group has of its own under a key, None where it follows the whole state."""
    given = viewer.get(key)
    if not isinstance(given, Mapping):
        return given
    if "value" not in given and "link" not in given:
        return given if key == "position" and given else None
    return None if given.get("link") == "linked" else given.get("value")
