"""Neuroglancer's state, taken apart: where it looks, at which layers, and how they are shown.

Only what concerns images and segmentations in the cross sections is read, and all of that is checked: whatever a state
holds, the result is a `LinkState` or a `LinkError` that says which entry is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imageryxr.boxes import Triple
from imageryxr.colors.reading import RGBA, parse_color
from imageryxr.errors import ColorError, LinkError
from imageryxr.look import SegmentLook, joined_ids
from imageryxr.sources.address import FORMAT_NAMES
from imageryxr.sources.checks import as_list, as_mapping, as_number, as_numbers, as_positive, as_share, as_whole, shown
from imageryxr.sources.placement import NATIVE, Placement, dimensions_of, read_dimensions, read_transform
from imageryxr.sources.shaders import image_options

MAX_LAYERS = 500
KINDS = ("image", "segmentation")
AXES = "xyz"


@dataclass(frozen=True)
class LinkLayer:
    """An image or segmentation of a link."""

    name: str
    kind: str
    source: str
    """Address, as `imageryxr.open_image` takes it."""
    placement: Placement = NATIVE
    """Where the link puts the data, if not where they say themselves."""
    visible: bool = True
    look: SegmentLook = field(default_factory=SegmentLook)
    contrast: tuple[float, float] | None = None
    """Grey values shown black and white; between 0 and 1 where ``normalized``."""
    normalized: bool = False
    """Whether the contrast counts in parts of the range of the data type."""
    opacity: float = 0.5
    shader: str = ""
    plain_shader: bool = True
    """Whether the shader shows grey values, so that contrast limits tell all of it."""
    timestamp: float | None = None
    """Of a segmentation that changes in time: seconds since 1970. The link may have it in milliseconds."""
    raw_timestamp: str = ""
    """The same as it stands in the link."""
    equivalences: tuple[tuple[int, ...], ...] = ()
    """Sets of ids that are shown as one."""
    additive: bool = False
    """Whether an image is added to what lies below it."""
    linked: tuple[str, str] = ("", "")
    """Names of the layers whose selection, and whose colours, hold for this one, too."""
    raw: str = ""
    """The source as it stands in the link, as JSON."""
    volumes: int = 1
    """How many volumes the layer has, of which ``source`` is the first."""


@dataclass(frozen=True)
class LeftOut:
    """A layer of a link that is not opened, and why."""

    name: str
    type: str
    reason: str
    raw: str = field(default="", repr=False)
    """The layer as it stands in the link, as JSON."""


@dataclass(frozen=True)
class LinkState:
    """What a link shows."""

    resolution: Triple | None
    """Nanometres (x, y, z) per unit of ``position``; None where the link leaves it to its layers."""
    position: tuple[float, float, float] | None
    nm_per_pixel: float | None
    """Zoom of the cross sections."""
    orientation: tuple[float, float, float, float]
    """Quaternion (x, y, z, w) of the cross sections; (0, 0, 0, 1) looks along z."""
    layers: tuple[LinkLayer, ...]
    left_out: tuple[LeftOut, ...]
    order: tuple[str, ...]
    """Names of all layers, from bottom to top."""
    title: str = ""
    layout: str = ""


def parse_state(state: Mapping[str, Any]) -> LinkState:
    """Take a JSON state apart.

    Raises
    ------
    LinkError
        If an entry makes no sense; the message says which.
    """
    dims = read_dimensions(state)
    resolution, position, zoom, orientation = _pose(state, dims)
    layers: list[LinkLayer] = []
    left_out: list[LeftOut] = []
    order = []
    for name, spec in _named_layers(state.get("layers", [])):
        found = _layer(name, spec)
        order.append(name)
        if isinstance(found, LinkLayer):
            layers.append(found)
        else:
            left_out.append(found)
    title, layout = state.get("title"), state.get("layout")
    layout = layout.get("type") if isinstance(layout, Mapping) else layout
    return LinkState(
        resolution,
        position,
        zoom,
        orientation,
        _linked(layers),
        tuple(left_out),
        tuple(order),
        title if isinstance(title, str) else "",
        layout if isinstance(layout, str) else "",
    )


def _linked(layers: list[LinkLayer]) -> tuple[LinkLayer, ...]:
    """Give layers that share another one's selection or colours these."""
    named = {layer.name: layer for layer in layers if layer.kind == "segmentation"}
    out = []
    for layer in layers:
        selection, colors = (named.get(name, layer) for name in layer.linked)
        one = joined_ids(selection.equivalences)
        look = replace(
            layer.look,
            # The viewer does the same: of ids that are shown as one, any selects all.
            selected_ids=tuple(dict.fromkeys(one.get(i, i) for i in selection.look.selected_ids)),
            hidden_ids=tuple(dict.fromkeys(one.get(i, i) for i in selection.look.hidden_ids)),
            colors=colors.look.colors,
            color_seed=colors.look.color_seed,
            default_color=colors.look.default_color,
        )
        out.append(replace(layer, look=look, equivalences=selection.equivalences))
    return tuple(out)


# ---------------------------------------------------------------------------------------------------------
# where it looks


def _pose(state: Mapping[str, Any], dims: dict[str, tuple[float, str]]) -> tuple[Any, Any, Any, Any]:
    """Read the place in either form: ``dimensions`` and ``position``, or the older ``navigation``."""
    navigation = as_mapping(state.get("navigation"), "navigation")
    pose = as_mapping(navigation.get("pose"), "navigation.pose")
    place = pose.get("position", navigation.get("position"))
    place = {"voxelCoordinates": place} if isinstance(place, list) else as_mapping(place, "navigation.position")
    resolution = dimensions_of(dims) if dims else None
    size = place.get("voxelSize", navigation.get("voxelSize"))
    if resolution is None and size is not None:
        x, y, z = (as_positive(s, "navigation.voxelSize") for s in as_list(size, "navigation.voxelSize", 3))
        resolution = (x, y, z)
    position = None
    if state.get("position") is not None:
        position = _position(state["position"], dims)
    elif place.get("voxelCoordinates") is not None:
        position = as_numbers(place["voxelCoordinates"], "navigation.pose.position.voxelCoordinates", 3)
    elif place.get("spatialCoordinates") is not None and resolution is not None:
        nm = as_numbers(place["spatialCoordinates"], "navigation.pose.position.spatialCoordinates", 3)
        position = tuple(n / r for n, r in zip(nm, resolution, strict=True))
    return resolution, position, _zoom(state, navigation, resolution), _orientation(state, pose, navigation)


def _position(value: Any, dims: dict[str, tuple[float, str]]) -> tuple[float, float, float]:
    names = list(dims) or list(AXES)
    numbers = as_list(value, "position", None)
    found = {name: as_number(n, f"position[{i}]") for i, (name, n) in enumerate(zip(names, numbers, strict=False))}
    missing = [axis for axis in AXES if axis not in found]
    if missing:
        raise LinkError(f"position={shown(value)} has no {missing[0]}; it counts along {', '.join(names)}")
    return found["x"], found["y"], found["z"]


def _zoom(state: Mapping[str, Any], navigation: Mapping[str, Any], resolution: Triple | None) -> float | None:
    scale = state.get("crossSectionScale")
    if scale is not None and resolution is not None:
        # One unit of it is the smallest voxel side on the screen.
        return as_positive(scale, "crossSectionScale") * min(resolution)
    zoom = navigation.get("zoomFactor")
    return None if zoom is None else as_positive(zoom, "navigation.zoomFactor")


def _orientation(*places: Mapping[str, Any]) -> tuple[float, float, float, float]:
    for place, key in zip(places, ("crossSectionOrientation", "orientation", "orientation"), strict=True):
        if place.get(key) is not None:
            x, y, z, w = as_numbers(place[key], key, 4)
            length = math.sqrt(x * x + y * y + z * z + w * w)
            if not 1e-6 < length < math.inf:
                raise LinkError(f"{key}={shown(place[key])} is no rotation; it is a quaternion (x, y, z, w)")
            return x / length, y / length, z / length, w / length
    return 0.0, 0.0, 0.0, 1.0


# ---------------------------------------------------------------------------------------------------------
# layers


def _named_layers(layers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """List the layers of the newer form, a list, and of the older one, an object by name."""
    if isinstance(layers, Mapping):
        layers = [{"name": name, **as_mapping(spec, f"layers.{name}")} for name, spec in layers.items()]
    if not isinstance(layers, list):
        raise LinkError(f"layers={shown(layers)} is no list of layers")
    if len(layers) > MAX_LAYERS:
        raise LinkError(f"the state has {len(layers)} layers; more than {MAX_LAYERS} are not opened")
    out: dict[str, Mapping[str, Any]] = {}
    primes: dict[str, int] = {}  # how many of a name there are
    for number, spec in enumerate(layers):
        if isinstance(spec, str):
            spec = {"source": spec}
        spec = as_mapping(spec, f"layers[{number}]")
        name = spec.get("name", f"layer {number}")
        name = name if isinstance(name, str) and name else f"layer {number}"
        while name in out:
            base = name.rstrip("′")
            primes[base] = primes.get(base, 0) + 1
            name = base + "′" * primes[base]
        out[name] = spec
    return list(out.items())


def _layer(name: str, spec: Mapping[str, Any]) -> LinkLayer | LeftOut:
    where = f"layers[{name!r}]"
    kind = spec.get("type")
    raw = spec.get("source")
    urls = _sources(raw, where)
    if kind is None:
        kind = "segmentation" if "segments" in spec else "image"
    kind = {"segmentation_with_graph": "segmentation"}.get(kind, kind) if isinstance(kind, str) else shown(kind)
    spare = _public(spec)
    if kind not in KINDS:
        return LeftOut(name, kind, f"layers of type {kind!r} hold no voxels", spare)
    volumes = [(url, item) for url, item in urls if _is_volume(url)]
    drawn = [(url, item) for url, item in volumes if _is_switched_on(item, where)]
    if volumes and not drawn:
        return LeftOut(name, kind, "the voxels of its source are switched off (subsources)", spare)
    volumes = drawn
    if not volumes:
        given = ", ".join(shown(url) for url, _ in urls) or "nothing"
        formats = ", ".join(sorted({f"{f}://" for f in FORMAT_NAMES}))
        return LeftOut(name, kind, f"its source is {given}, and {formats} are read", spare)
    url, item = volumes[0]
    placement = read_transform(item.get("transform", spec.get("transform")), where, native="zarr" not in url)
    if isinstance(placement, str):
        return LeftOut(name, kind, placement, spare)
    visible = spec.get("visible", True) is not False and not spec.get("archived")
    both: dict[str, Any] = {"name": name, "kind": kind, "source": url, "placement": placement, "visible": visible}
    # The older form, beside the source, is one that newer viewers do not read.
    if "transform" in spec and "transform" not in item and placement != NATIVE:
        raw = [{"url": url, "transform": placement.transform()}]
    both |= {"raw": "" if isinstance(raw, str) else _public(raw), "volumes": len(volumes)}
    if kind == "image":
        return LinkLayer(**both, **image_options(spec, where))
    return LinkLayer(**both, **_segmentation(spec, where, item))


def _public(value: Any) -> str:
    """Return JSON without the names and passwords that URLs in it may hold."""
    try:
        text = json.dumps(value, default=shown)
    except (TypeError, ValueError):  # what a parsed state from somewhere else may hold, and JSON cannot
        return ""
    return re.sub(r"(://)[^/\s@\"\\]+@", r"\1", text)


def _sources(source: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    items = source if isinstance(source, list) else [] if source is None else [source]
    out: list[tuple[str, Mapping[str, Any]]] = []
    for item in items:
        entry = {"url": item} if isinstance(item, str) else as_mapping(item, f"{where}.source")
        url = entry.get("url")
        if not isinstance(url, str):
            raise LinkError(f"{where}.source has no url, but {shown(item)}")
        out.append((url.strip(), entry))
    return out


def _is_volume(url: str) -> bool:
    scheme = url.split("://")[0] if "://" in url else ""
    pipe = url.partition("|")[2].split(":")[0] if "|" in url else None
    if pipe is not None:
        return pipe in FORMAT_NAMES
    return scheme in FORMAT_NAMES or scheme in ("", "http", "https", "gs", "s3", "file", "mem", "middleauth+https")


def _is_switched_on(source: Mapping[str, Any], where: str) -> bool:
    """Whether the viewer shows the voxels of a source, besides bounds, meshes and the like."""
    said = as_mapping(source.get("subsources"), f"{where}.source.subsources").get("default")
    said = said.get("enabled") if isinstance(said, Mapping) else said
    return said is True or (said is None and source.get("enableDefaultSubsources") is not False)


def _segmentation(spec: Mapping[str, Any], where: str, source: Mapping[str, Any]) -> dict[str, Any]:
    selected, hidden = _segments(spec, where)
    default = spec.get("segmentDefaultColor")
    look = SegmentLook(
        selected_ids=tuple(selected),
        hidden_ids=tuple(hidden),
        colors=_segment_colors(spec.get("segmentColors"), where),
        color_seed=as_whole(spec.get("colorSeed", 0), f"{where}.colorSeed", 2**32 - 1),
        default_color=None if default is None else _color(default, f"{where}.segmentDefaultColor"),
        selected_alpha=as_share(spec.get("selectedAlpha", 0.5), f"{where}.selectedAlpha"),
        rest_alpha=as_share(spec.get("notSelectedAlpha", 0.0), f"{where}.notSelectedAlpha"),
        saturation=as_share(spec.get("saturation", 1.0), f"{where}.saturation"),
        all_if_none_selected=spec.get("ignoreNullVisibleSet", True) is not False,
    )
    sets = spec.get("equivalences") or []
    groups = [
        tuple(as_whole(i, f"{where}.equivalences", 2**64 - 1) for i in as_list(group, f"{where}.equivalences", None))
        for group in as_list(sets, f"{where}.equivalences", None)
    ]
    stamp = spec.get("timestamp", as_mapping(source.get("state"), f"{where}.source.state").get("timestamp"))
    when = _timestamp(stamp, f"{where}.timestamp")
    said = "" if when is None else str(stamp)
    group = spec.get("linkedSegmentationGroup")
    group = group if isinstance(group, str) else ""
    shared = spec.get("linkedSegmentationColorGroup", group)
    linked = (group, shared if isinstance(shared, str) else "")
    return {"look": look, "equivalences": tuple(groups), "timestamp": when, "raw_timestamp": said, "linked": linked}


def _segments(spec: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    selected: dict[int, None] = {}
    hidden: dict[int, None] = {}
    for item in as_list(spec.get("segments") or [], f"{where}.segments", None):
        off = isinstance(item, str) and item.startswith("!")
        number = as_whole(item[1:] if off else item, f"{where}.segments", 2**64 - 1)
        (hidden if off else selected)[number] = None
    for item in as_list(spec.get("hiddenSegments") or [], f"{where}.hiddenSegments", None):
        hidden[as_whole(item, f"{where}.hiddenSegments", 2**64 - 1)] = None
    return [i for i in selected if i], [i for i in hidden if i and i not in selected]


def _segment_colors(value: Any, where: str) -> dict[int, RGBA]:
    colors = as_mapping(value, f"{where}.segmentColors")
    out = {}
    for key, color in colors.items():
        number = as_whole(key, f"{where}.segmentColors", 2**64 - 1)
        if number:
            r, g, b, _ = _color(color, f"{where}.segmentColors[{key}]")
            out[number] = (r, g, b, 255)  # the viewer does not read an alpha here
    return out


def _color(value: Any, what: str) -> RGBA:
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*rgba?\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?:,\s*([\d.]+)\s*)?\)\s*", value)
        try:
            if parts is None:
                return parse_color(value)
            r, g, b = (int(p) for p in parts.groups()[:3])
            return parse_color((r, g, b, round(255 * float(parts.group(4) or 1))))
        except (ColorError, ValueError):
            pass
    raise LinkError(f"{what}={shown(value)} is no colour")


def _timestamp(value: Any, what: str) -> float | None:
    """Return seconds since 1970: viewers write milliseconds, older ones wrote seconds, and no instant can be both."""
    if value is None or value == "":
        return None
    number = as_positive(value, what)
    return number / 1000 if number > 1e11 else number  # 1973 in the one, the year 5138 in the other
