"""Read the layers of a Neuroglancer state: their sources, transforms and display settings.

Only entries that affect images and segmentations in the cross sections are read, and all of these are validated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imageryxr.core.display import SegmentDisplay
from imageryxr.errors import LayerError, LinkError, format_value
from imageryxr.neuroglancer.dimensions import AXES, read_dimensions
from imageryxr.neuroglancer.linked_segments import (
    LayerSegments,
    SegmentSettings,
    combine_linked_segments,
    read_segments,
)
from imageryxr.neuroglancer.navigation import Dimensions
from imageryxr.neuroglancer.shaders import displayed_channel, image_options
from imageryxr.neuroglancer.transform import Transform, read_older_transform, read_transform
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_positive
from imageryxr.sources.address import FORMAT_NAMES

MAX_LAYERS = 500
#: Layers usually have at most four sources: a volume, meshes, skeletons and properties.
MAX_SOURCES = 16
#: The source of a layer of kind "auto" determines its type, as in the viewer.
KINDS = ("image", "segmentation", "auto")
#: Entries of a layer that are written back from the attributes of its array. All others are written back unchanged.
READ_KEYS = {
    *("name", "type", "source", "visible", "timestamp", "opacity", "shader"),
    *("segments", "hiddenSegments", "equivalences", "ignoreNullVisibleSet"),
    *("segmentColors", "colorSeed", "segmentDefaultColor", "selectedAlpha", "notSelectedAlpha", "saturation"),
}


@dataclass(frozen=True)
class LinkLayer:
    """An image or segmentation of a link."""

    name: str
    kind: str
    source: str
    """Address, as `imageryxr.open_image` takes it."""
    transform: Transform = field(default_factory=Transform)
    """Transform of the data."""
    position: tuple[tuple[str, float], ...] = ()
    """Coordinates along the layer's local dimensions, by name, or by "0'", "1'", … if they have no names."""
    local_dimensions: Dimensions = field(default_factory=dict)
    visible: bool = True
    look: SegmentDisplay = field(default_factory=SegmentDisplay)
    contrast: tuple[float, float] | None = None
    """Grey values shown as black and white; from 0 to 1 if ``normalized``."""
    normalized: bool = False
    """Whether the contrast is a fraction of the range of the data type."""
    opacity: float = 0.5
    shader: str = ""
    controls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Settings of the shader's controls."""
    channel: int = 0
    """Channel that the shader shows."""
    timestamp: float | None = None
    """Timestamp of a graphene segmentation in seconds since 1970."""
    raw_timestamp: str = ""
    """The timestamp as written in the link, in seconds or milliseconds."""
    equivalences: tuple[tuple[int, ...], ...] = ()
    """Sets of ids that are shown as one segment."""
    additive: bool = False
    """Whether the viewer blends the image additively with the layers below it."""
    entry: SegmentSettings | None = field(default=None, repr=False)
    """Segment settings of the layer itself, without those of linked layers."""
    undrawn: tuple[str, ...] = ()
    """Messages about features of the layer that a picture does not reproduce."""
    raw: str = ""
    """The source as written in the link, as JSON."""
    others: tuple[LinkLayer, ...] = field(default=(), repr=False)
    """The same layer with each of its other sources: meshes, skeletons or further volumes."""
    rest: str = field(default="", repr=False, compare=False)
    """All entries of the layer that are not in `READ_KEYS`, as JSON."""
    spec: str = field(default="", repr=False, compare=False)
    """The whole layer as written in the link, as JSON."""


@dataclass(frozen=True)
class SkippedLayer:
    """A layer of a link that cannot be opened, and the reason."""

    name: str
    type: str
    reason: str
    raw: str = field(default="", repr=False)
    """The layer as written in the link, as JSON."""
    entry: SegmentSettings | None = field(default=None, repr=False)
    """Segment settings of a segmentation, which linked layers share."""
    error: LinkError | None = field(default=None, repr=False, compare=False)
    """The error, if an entry of the layer is invalid."""


def named_layers(layers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the layers with unique names, from a list or, as older versions wrote it, an object with them by name."""
    if isinstance(layers, Mapping):
        layers = [_add_name(name, spec) for name, spec in layers.items()]
    if not isinstance(layers, list):
        raise LinkError(f"layers={format_value(layers)} is not a list of layers")
    if len(layers) > MAX_LAYERS:
        raise LinkError(f"the state has {len(layers)} layers; the maximum is {MAX_LAYERS}")
    out: dict[str, Mapping[str, Any]] = {}
    primes: dict[str, int] = {}  # by name, the number of prime symbols that were appended last
    for number, spec in enumerate(layers):
        if isinstance(spec, str):
            spec = {"source": spec}
        name = spec.get("name") if isinstance(spec, Mapping) else None
        name = name if isinstance(name, str) and name else f"layer {number}"
        while name in out:
            base = name.rstrip("′")
            primes[base] = primes.get(base, 0) + 1
            name = base + "′" * primes[base]
        out[name] = spec
    return list(out.items())


def _add_name(name: str, spec: Any) -> Any:
    spec = {"source": spec} if isinstance(spec, str) else spec
    return {"name": name, **spec} if isinstance(spec, Mapping) else spec


def read_layer_or_skip(name: str, spec: Any) -> LinkLayer | SkippedLayer:
    """Return a layer, or a skipped layer if one of its entries is invalid."""
    try:
        return _read_layer(name, as_mapping(spec, f"layers[{name.removeprefix('layer ')}]"))
    except LinkError as error:
        kind = spec.get("type") if isinstance(spec, Mapping) else None
        kind = kind if isinstance(kind, str) else ""
        return SkippedLayer(name, kind, str(error), public_json(spec) if isinstance(spec, Mapping) else "", error=error)


def _read_layer(name: str, spec: Mapping[str, Any]) -> LinkLayer | SkippedLayer:
    where = f"layers[{name!r}]"
    kind = spec.get("type")
    raw = spec.get("source")
    urls = _list_sources(raw, where)
    kind = "auto" if kind is None else kind
    same = {"segmentation_with_graph": "segmentation", "new": "auto", "pointAnnotation": "annotation"}
    kind = same.get(kind, kind) if isinstance(kind, str) else format_value(kind)
    volumes = [(url, item) for url, item in urls if _is_volume(url)]
    drawn = [(url, item) for url, item in volumes if kind in KINDS and _is_enabled(item, where)]
    if kind not in KINDS:
        reason = f"layers of type {kind!r} have no voxels"
    elif not volumes:
        addresses = ", ".join(format_value(url) for url, _ in urls) or "empty"
        formats = ", ".join(sorted({f"{f}://" for f in FORMAT_NAMES}))
        reason = f"its source is {addresses}; the supported formats are {formats}"
    elif not drawn:
        reason = "its source has the voxels disabled (subsources)"
    elif len(drawn) > MAX_SOURCES:
        raise LinkError(f"{where} has {len(drawn)} sources; the maximum is {MAX_SOURCES}")
    else:
        options = _read_layer_options(name, kind, spec, where)
        found = [_layer_of_source(url, item, spec, where, options) for url, item in drawn]
        drawable = [layer for layer in found if isinstance(layer, LinkLayer)]
        if drawable:
            return replace(drawable[0], others=tuple(drawable[1:]), spec=public_json(spec))
        reason = str(found[0])
    return SkippedLayer(name, kind, reason, public_json(spec), _read_segments_or_none(spec, where, kind))


def _read_layer_options(name: str, kind: str, spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options of a layer besides its source, as fields of `LinkLayer`."""
    raw = spec.get("source")
    visible = spec.get("visible", True) is not False and not spec.get("archived")
    both: dict[str, Any] = {"name": name, "kind": kind, "visible": visible}
    # A "middleauth" address must be written back unchanged, because it makes the viewer request a token.
    both["raw"] = "" if isinstance(raw, str) and "middleauth" not in raw else public_json(raw)
    both["rest"] = public_json({k: v for k, v in spec.items() if k not in READ_KEYS})
    both |= _read_local_position(spec, where)
    if kind != "segmentation":
        both |= {"channel": displayed_channel(spec), **image_options(spec, where)}
    return both if kind == "image" else {**both, "entry": read_segments(spec, where)}


def _layer_of_source(
    url: str, item: Mapping[str, Any], spec: Mapping[str, Any], where: str, options: dict[str, Any]
) -> LinkLayer | str:
    """Return a layer with one of its sources, or the reason why that source cannot be drawn."""
    transform, note = read_source_transform(spec, item, where)
    if has_known_axes(url):
        try:
            transform.apply(AXES)
        except LayerError as error:
            return str(error)
    when = {} if options["kind"] == "image" else _read_timestamp(spec, where, item)
    return LinkLayer(source=url, transform=transform, undrawn=note, **options, **when)


def _read_segments_or_none(spec: Mapping[str, Any], where: str, kind: str) -> SegmentSettings | None:
    """Return the segment settings of a skipped layer; None if they are invalid or the layer has no segments."""
    try:
        return read_segments(spec, where) if kind in ("segmentation", "auto") else None
    except LinkError:
        return None


def read_source_transform(
    spec: Mapping[str, Any], item: Mapping[str, Any], where: str
) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform of a source, and messages about transforms that the viewer ignores.

    The older form is an entry of the layer; the viewer reads it only if the source is just an address.
    """
    transform = item.get("transform")
    if transform is None and isinstance(spec.get("source"), str) and spec.get("transform") is not None:
        return read_older_transform(spec["transform"], where), ()
    if isinstance(transform, Mapping) and not {"outputDimensions", "inputDimensions", "matrix"} & set(transform):
        notes = ("its transform has no outputDimensions and is ignored, as in the viewer",) if transform else ()
        return Transform(), notes
    return read_transform(transform, where), ()


def _read_local_position(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the local dimensions of a layer and the position along them, as fields of `LinkLayer`."""
    dims = read_dimensions(spec, "localDimensions")
    position = spec.get("localPosition")
    values = [] if position is None else as_list(position, f"{where}.localPosition", None)
    names = list(dims) if len(dims) == len(values) else [f"{i}'" for i in range(len(values))]
    numbers = [as_number(v, f"{where}.localPosition") for v in values]
    return {"position": tuple(zip(names, numbers, strict=True)), "local_dimensions": dims}


def public_json(value: Any) -> str:
    """Return a value as JSON, without user names and passwords in its URLs."""
    try:
        text = json.dumps(value, default=format_value)
    except (TypeError, ValueError):  # a state built in Python may contain values that JSON does not support
        return ""
    return re.sub(r"(://)[^/\s@\"\\]+@", r"\1", text)


def _list_sources(source: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    items = source if isinstance(source, list) else [] if source is None else [source]
    return [read_source(item, where) for item in items]


def read_source(item: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Return the address of a source of a layer, and its entry in the state."""
    entry = {"url": item} if isinstance(item, str) else as_mapping(item, f"{where}.source")
    url = entry.get("url")
    if not isinstance(url, str):
        raise LinkError(f"{where}.source has no url: {format_value(item)}")
    return url.strip(), entry


def has_known_axes(url: str) -> bool:
    """Return whether the format of a source has the axes x, y and z in this order; those of Zarr vary."""
    return "zarr" not in url and any(f"{name}:" in url for name in ("precomputed", "graphene"))


def _is_volume(url: str) -> bool:
    scheme = url.split("://")[0] if "://" in url else ""
    pipe = url.partition("|")[2].split(":")[0] if "|" in url else None
    if pipe is not None:
        return pipe in FORMAT_NAMES
    return scheme in FORMAT_NAMES or scheme in ("", "http", "https", "gs", "s3", "file", "mem", "middleauth+https")


def _is_enabled(source: Mapping[str, Any], where: str) -> bool:
    """Return whether the voxels of a source are enabled; bounds and meshes have their own switches."""
    enabled = as_mapping(source.get("subsources"), f"{where}.source.subsources").get("default")
    enabled = enabled.get("enabled") if isinstance(enabled, Mapping) else enabled
    return enabled is True or (enabled is None and source.get("enableDefaultSubsources") is not False)


def _read_timestamp(spec: Mapping[str, Any], where: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the timestamp of a graphene segmentation, as fields of `LinkLayer`."""
    stamp = spec.get("timestamp", as_mapping(source.get("state"), f"{where}.source.state").get("timestamp"))
    when = _parse_timestamp(stamp, f"{where}.timestamp")
    return {"timestamp": when, "raw_timestamp": "" if when is None else str(stamp)}


def _parse_timestamp(value: Any, what: str) -> float | None:
    """Return seconds since 1970 from milliseconds, or from the seconds that older viewers wrote."""
    if value is None or value == "":
        return None
    number = as_positive(value, what)
    return number / 1000 if number > 1e11 else number  # 1e11 is the year 1973 in milliseconds, 5138 in seconds


def resolve_segments(layers: Sequence[LinkLayer | SkippedLayer]) -> tuple[LinkLayer, ...]:
    """Return the layers to open; segmentations include the segments and colours of linked and skipped layers."""
    combined = combine_linked_segments({layer.name: layer.entry for layer in layers if layer.entry is not None})
    opened = [layer for layer in layers if isinstance(layer, LinkLayer)]
    return tuple(_set_segments(layer, combined[layer.name]) if layer.name in combined else layer for layer in opened)


def _set_segments(layer: LinkLayer, segments: LayerSegments) -> LinkLayer:
    undrawn = list(layer.undrawn)
    if segments.shows_zero:
        undrawn.append("it colours the background, id 0 (hideSegmentZero)")
    if '"segmentPropertyColors":' in layer.rest:
        undrawn.append("it colours segments by a property (segmentPropertyColors)")
    joined = segments.equivalences or "graphene" in layer.source
    if layer.entry is not None and layer.entry.base_coloring and joined:
        undrawn.append("it colours the parts of a joined segment differently (baseSegmentColoring)")
    return replace(layer, look=segments.look, equivalences=segments.equivalences, undrawn=tuple(undrawn))
