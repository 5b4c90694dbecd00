"""Neuroglancer's state, taken apart: where it looks, at which layers, and how they are shown.

Only what concerns images and segmentations in the cross sections is read, and all of that is checked: whatever a state
holds, the result is a `LinkState` or a `LinkError` that says which entry is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imageryxr.core.bbox import Triple
from imageryxr.core.display import SegmentDisplay
from imageryxr.errors import LinkError, OptionError
from imageryxr.neuroglancer.dimensions import AXES, NATIVE, Placement, read_dimensions
from imageryxr.neuroglancer.layout import LayerGroup, read_groups, read_panel
from imageryxr.neuroglancer.linked_segments import SegmentEntry, ShownSegments, read_segments, shown_segments
from imageryxr.neuroglancer.navigation import Dimensions, Pose, Quaternion, read_group_pose, read_pose
from imageryxr.neuroglancer.shader_channel import shown_channel
from imageryxr.neuroglancer.shaders import image_options
from imageryxr.neuroglancer.transform import Transform, read_older_transform, read_transform
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_number, as_positive, shown
from imageryxr.sources.address import FORMAT_NAMES

MAX_LAYERS = 500
#: More sources than a layer has: a volume, meshes, skeletons, properties.
MAX_SOURCES = 16
#: Of "auto", the data decide which of the two it is, as in the viewer.
KINDS = ("image", "segmentation", "auto")
#: What of a layer is read and written back from the attributes of its array. The rest of it goes back as it came.
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
    transform: Transform | None = None
    """How the link moves and scales the data, if it does."""
    position: tuple[tuple[str, float], ...] = ()
    """Places along dimensions that are the layer's alone, by name, or by "0'", "1'", … where it has no names."""
    local_dimensions: Dimensions = field(default_factory=dict)
    visible: bool = True
    look: SegmentDisplay = field(default_factory=SegmentDisplay)
    contrast: tuple[float, float] | None = None
    """Grey values shown black and white; between 0 and 1 where ``normalized``."""
    normalized: bool = False
    """Whether the contrast counts in parts of the range of the data type."""
    opacity: float = 0.5
    shader: str = ""
    plain_shader: bool = True
    """Whether the shader shows grey values, so that contrast limits tell all of it."""
    channel: int = 0
    """Which channel its shader shows, of those that are given to it."""
    timestamp: float | None = None
    """Of a segmentation that changes in time: seconds since 1970. The link may have it in milliseconds."""
    raw_timestamp: str = ""
    """The same as it stands in the link."""
    equivalences: tuple[tuple[int, ...], ...] = ()
    """Sets of ids that are shown as one."""
    additive: bool = False
    """Whether an image is added to what lies below it."""
    entry: SegmentEntry | None = field(default=None, repr=False)
    """What the layer itself says of its segments."""
    undrawn: tuple[str, ...] = ()
    """What the viewer shows of the layer and a picture does not."""
    raw: str = ""
    """The source as it stands in the link, as JSON."""
    others: tuple[LinkLayer, ...] = field(default=(), repr=False)
    """The same layer with its other sources: meshes, skeletons, or volumes of which the viewer draws more than one."""
    rest: str = field(default="", repr=False, compare=False)
    """What else the link says of the layer, as JSON."""
    spec: str = field(default="", repr=False, compare=False)
    """The layer as it stands in the link, as JSON."""

    @property
    def placement(self) -> Placement:
        """Where the link puts data whose axes are x, y and z in this order, as of all formats but Zarr."""
        found = (self.transform or Transform()).applied(AXES)
        return NATIVE if isinstance(found, str) else found.placement


@dataclass(frozen=True)
class LeftOut:
    """A layer of a link that is not opened, and why."""

    name: str
    type: str
    reason: str
    raw: str = field(default="", repr=False)
    """The layer as it stands in the link, as JSON."""
    entry: SegmentEntry | None = field(default=None, repr=False)
    """What a segmentation says of its segments, which layers that are linked to it share."""
    error: LinkError | None = field(default=None, repr=False, compare=False)
    """The error, where an entry of it makes no sense."""


@dataclass(frozen=True)
class LinkState:
    """What a link shows."""

    pose: Pose
    """Where it looks; of several layer groups, where the chosen one does."""
    layers: tuple[LinkLayer, ...]
    left_out: tuple[LeftOut, ...]
    order: tuple[str, ...]
    """Names of all layers, from bottom to top."""
    title: str = ""
    layout: str = ""
    """Layout of the viewer, or of the chosen group."""
    dimensions: Dimensions = field(default_factory=dict)
    groups: tuple[LayerGroup, ...] = ()
    """Groups of layers side by side, where there are any."""
    group: int = 0
    """The chosen one."""
    rest: str = field(default="", repr=False, compare=False)
    """The state without its layers, as JSON."""

    @property
    def resolution(self) -> Triple | None:
        """Nanometres (x, y, z) per unit of ``position``; None where the link leaves it to its layers."""
        return self.pose.resolution

    @property
    def position(self) -> tuple[float, float, float] | None:
        """The point (x, y, z) that the link looks at."""
        return self.pose.position

    @property
    def nm_per_pixel(self) -> float | None:
        """Zoom of the cross sections."""
        return self.pose.nm_per_pixel

    @property
    def orientation(self) -> Quaternion:
        """Quaternion (x, y, z, w) of the cross sections; (0, 0, 0, 1) looks along z."""
        return self.pose.orientation

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the layers that the viewer, or the chosen group, has, from bottom to top."""
        return self.groups[self.group].layers if self.groups else self.order


def parse_state(state: Mapping[str, Any], group: int | None = None) -> LinkState:
    """Take a JSON state apart.

    Parameters
    ----------
    state : mapping
        As Neuroglancer writes it.
    group : int, optional
        Which of several layer groups to look at, counted from 0. Default: the first. A link without groups is group 0.

    Raises
    ------
    LinkError
        If an entry makes no sense; the message says which.
    OptionError
        If there is no such group.
    """
    dims = read_dimensions(state)
    named = _named_layers(state.get("layers", []))
    found = [_readable(name, spec) for name, spec in named]
    names = tuple(name for name, _ in named)
    groups = read_groups(state.get("layout"))
    number = _chosen_group(groups, group)
    used = _referenced(dims, found, state)
    pose = read_pose(state, dims, used)
    if groups:
        pose = read_group_pose(pose, groups[number].viewer, dims, used)
    title = state.get("title")
    return LinkState(
        pose,
        _with_segments(found),
        tuple(layer for layer in found if isinstance(layer, LeftOut)),
        names,
        title if isinstance(title, str) else "",
        groups[number].panel if groups else "" if state.get("layout") is None else read_panel(state["layout"]),
        dims,
        groups,
        number,
        _public({k: v for k, v in state.items() if k not in ("layers", "title")}),
    )


def _chosen_group(groups: Sequence[LayerGroup], asked: int | None) -> int:
    count = len(groups)
    if asked is None:
        return 0
    # a link without groups is one group
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < max(count, 1):
        have = f"its layer groups are 0 to {count - 1}" if count else "it has no layer groups: leave group out"
        raise OptionError(f"group={asked!r}: the link has no such group; {have}")
    return asked


def _referenced(dims: Dimensions, layers: Sequence[LinkLayer | LeftOut], state: Mapping[str, Any]) -> Dimensions:
    """Return the dimensions that a layer has: the viewer drops the others, so that they are not on the screen."""
    if any(isinstance(layer, LinkLayer) and not _has_known_axes(layer.source) for layer in layers) or not layers:
        return dims
    named = set(re.findall(r'"([^"]+)":', _public(_outputs(state.get("layers")))))
    return {name: value for name, value in dims.items() if name in AXES or name in named}


def _has_known_axes(url: str) -> bool:
    return "zarr" not in url and any(f"{name}:" in url for name in ("precomputed", "graphene"))


def _outputs(layers: Any) -> list[Any]:
    """Return the output dimensions that the sources of layers have."""
    specs = layers.values() if isinstance(layers, Mapping) else layers if isinstance(layers, list) else []
    sources = [spec.get("source") for spec in specs if isinstance(spec, Mapping)]
    items = [item for source in sources for item in (source if isinstance(source, list) else [source])]
    transforms = [item.get("transform") for item in items if isinstance(item, Mapping)]
    return [t.get("outputDimensions") for t in transforms if isinstance(t, Mapping)]


def _with_segments(layers: Sequence[LinkLayer | LeftOut]) -> tuple[LinkLayer, ...]:
    """Return the layers to open, segmentations with what they share with others, those that are left out included."""
    shown = shown_segments({layer.name: layer.entry for layer in layers if layer.entry is not None})
    opened = [layer for layer in layers if isinstance(layer, LinkLayer)]
    return tuple(_showing(layer, shown[layer.name]) if layer.name in shown else layer for layer in opened)


def _showing(layer: LinkLayer, segments: ShownSegments) -> LinkLayer:
    undrawn = list(layer.undrawn)
    if segments.shows_zero:
        undrawn.append("it gives the background, id 0, a colour (hideSegmentZero)")
    joined = segments.equivalences or "graphene" in layer.source
    if layer.entry is not None and layer.entry.base_coloring and joined:
        undrawn.append("it gives the parts of a joined segment colours of their own (baseSegmentColoring)")
    return replace(layer, look=segments.look, equivalences=segments.equivalences, undrawn=tuple(undrawn))


# ---------------------------------------------------------------------------------------------------------
# layers


def _named_layers(layers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """List the layers of the newer form, a list, and of the older one, an object by name."""
    if isinstance(layers, Mapping):
        layers = [_named(name, spec) for name, spec in layers.items()]
    if not isinstance(layers, list):
        raise LinkError(f"layers={shown(layers)} is no list of layers")
    if len(layers) > MAX_LAYERS:
        raise LinkError(f"the state has {len(layers)} layers; more than {MAX_LAYERS} are not opened")
    out: dict[str, Mapping[str, Any]] = {}
    primes: dict[str, int] = {}  # how many of a name there are
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


def _named(name: str, spec: Any) -> Any:
    spec = {"source": spec} if isinstance(spec, str) else spec
    return {"name": name, **spec} if isinstance(spec, Mapping) else spec


def _readable(name: str, spec: Any) -> LinkLayer | LeftOut:
    """Return a layer; one whose entries make no sense is left out, so that it does not end the whole link."""
    try:
        return _layer(name, as_mapping(spec, f"layers[{name.removeprefix('layer ')}]"))
    except LinkError as error:
        kind = spec.get("type") if isinstance(spec, Mapping) else None
        kind = kind if isinstance(kind, str) else ""
        return LeftOut(name, kind, str(error), _public(spec) if isinstance(spec, Mapping) else "", error=error)


def _layer(name: str, spec: Mapping[str, Any]) -> LinkLayer | LeftOut:
    where = f"layers[{name!r}]"
    kind = spec.get("type")
    raw = spec.get("source")
    urls = _sources(raw, where)
    kind = "auto" if kind is None else kind
    same = {"segmentation_with_graph": "segmentation", "new": "auto"}
    kind = same.get(kind, kind) if isinstance(kind, str) else shown(kind)
    spare = _public(spec)
    if kind not in KINDS:
        return LeftOut(name, kind, f"layers of type {kind!r} hold no voxels", spare)
    volumes = [(url, item) for url, item in urls if _is_volume(url)]
    drawn = [(url, item) for url, item in volumes if _is_switched_on(item, where)]
    if volumes and not drawn:
        off = "the voxels of its source are switched off (subsources)"
        return LeftOut(name, kind, off, spare, _entry(spec, where, kind))
    volumes = drawn
    if not volumes:
        given = ", ".join(shown(url) for url, _ in urls) or "nothing"
        formats = ", ".join(sorted({f"{f}://" for f in FORMAT_NAMES}))
        reason = f"its source is {given}, and {formats} are read"
        return LeftOut(name, kind, reason, spare, _entry(spec, where, kind))
    if len(volumes) > MAX_SOURCES:
        raise LinkError(f"{where} has {len(volumes)} sources; more than {MAX_SOURCES} are not opened")
    options = _layer_options(name, kind, spec, where)
    found = [_of_source(url, item, spec, where, options) for url, item in volumes]
    drawable = [layer for layer in found if isinstance(layer, LinkLayer)]
    if not drawable:
        return LeftOut(name, kind, str(found[0]), spare, _entry(spec, where, kind))
    return replace(drawable[0], others=tuple(drawable[1:]), spec=spare)


def _layer_options(name: str, kind: str, spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a layer says besides its source, as `LinkLayer` has it."""
    raw = spec.get("source")
    visible = spec.get("visible", True) is not False and not spec.get("archived")
    both: dict[str, Any] = {"name": name, "kind": kind, "visible": visible}
    # An address by which the viewer gets a token is more than the place of the data.
    both["raw"] = "" if isinstance(raw, str) and "middleauth" not in raw else _public(raw)
    both["rest"] = _public({k: v for k, v in spec.items() if k not in READ_KEYS})
    both |= _local_position(spec, where)
    if kind != "segmentation":
        both |= {"channel": shown_channel(spec), **image_options(spec, where)}
    return both if kind == "image" else {**both, "entry": read_segments(spec, where)}


def _of_source(
    url: str, item: Mapping[str, Any], spec: Mapping[str, Any], where: str, options: dict[str, Any]
) -> LinkLayer | str:
    """Return a layer with one of its sources, or why that cannot be drawn."""
    transform, note = _transform(spec, item, where)
    placed = (transform or Transform()).applied(AXES) if _has_known_axes(url) else None
    if isinstance(placed, str):
        return placed
    when = {} if options["kind"] == "image" else _instant(spec, where, item)
    return LinkLayer(source=url, transform=transform, undrawn=note, **options, **when)


def _entry(spec: Mapping[str, Any], where: str, kind: str) -> SegmentEntry | None:
    """Return what a layer that is left out says of its segments; nothing where that makes no sense."""
    try:
        return read_segments(spec, where) if kind != "image" else None
    except LinkError:
        return None


def _transform(
    spec: Mapping[str, Any], item: Mapping[str, Any], where: str
) -> tuple[Transform | None, tuple[str, ...]]:
    """Return the transform of a source, and what of it the viewer does not read.

    The older form lies beside the source, where the viewer reads it only if the source is no more than an address.
    """
    given = item.get("transform")
    if given is None and isinstance(spec.get("source"), str) and spec.get("transform") is not None:
        return read_older_transform(spec["transform"], where), ()
    if isinstance(given, Mapping) and not {"outputDimensions", "inputDimensions", "matrix"} & set(given):
        return None, ("its transform has no outputDimensions, and is ignored as in the viewer",) if given else ()
    return read_transform(given, where), ()


def _local_position(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return where a layer lies along the dimensions that are its alone."""
    dims = read_dimensions(spec, "localDimensions")
    given = spec.get("localPosition")
    listed = [] if given is None else as_list(given, f"{where}.localPosition", None)
    names = list(dims) if len(dims) == len(listed) else [f"{i}'" for i in range(len(listed))]
    numbers = [as_number(v, f"{where}.localPosition") for v in listed]
    return {"position": tuple(zip(names, numbers, strict=True)), "local_dimensions": dims}


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


def _instant(spec: Mapping[str, Any], where: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the instant of a segmentation that changes in time."""
    stamp = spec.get("timestamp", as_mapping(source.get("state"), f"{where}.source.state").get("timestamp"))
    when = _timestamp(stamp, f"{where}.timestamp")
    return {"timestamp": when, "raw_timestamp": "" if when is None else str(stamp)}


def _timestamp(value: Any, what: str) -> float | None:
    """Return seconds since 1970: viewers write milliseconds, older ones wrote seconds, and no instant can be both."""
    if value is None or value == "":
        return None
    number = as_positive(value, what)
    return number / 1000 if number > 1e11 else number  # 1973 in the one, the year 5138 in the other
