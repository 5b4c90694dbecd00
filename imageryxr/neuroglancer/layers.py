"""Layers of a Neuroglancer link: each is opened for itself, so that one that cannot be does not end the link."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.attrs import plain_attrs
from imageryxr.core.display import (
    CONTRAST_LIMITS,
    EQUIVALENCES,
    LAYER,
    LINK_LAYER,
    LINK_SOURCE,
    LINK_TIMESTAMP,
    OPACITY,
    SHADER,
    VISIBLE,
    merge_equivalences,
)
from imageryxr.core.grid import Grid, grid_of
from imageryxr.errors import (
    AddressError,
    ChoiceError,
    ImageryError,
    LayerError,
    LinkError,
    LinkWarning,
    NoVolumeError,
    OptionError,
    SegmentError,
    ServerError,
    StaleRootError,
    warn,
)
from imageryxr.graph.expr import Array, Mapped
from imageryxr.graph.labelled import attrs_on_grid, label_result, volume_of
from imageryxr.neuroglancer.dimensions import NATIVE, Placement
from imageryxr.neuroglancer.fetch import check_trusted
from imageryxr.neuroglancer.layer_sources import shown_source
from imageryxr.neuroglancer.state import LinkLayer, LinkState
from imageryxr.ops.multiscale import first_resolution
from imageryxr.ops.open import open_image, open_segmentation
from imageryxr.sources.address import WEB_PROTOCOLS, parse_address
from imageryxr.sources.base import Missing, Source
from imageryxr.sources.cave.graphene import GrapheneSource, resolve_root_ids
from imageryxr.sources.fetch.client import Connection
from imageryxr.sources.fetch.policy import Access, is_local_address
from imageryxr.sources.fetch.threads import current_stop_event, stop_on

LINK_SECONDS, LAYER_SECONDS = 300, 90
"""How long all layers of a link, and each of them, may take to be opened."""

Choice = int | Mapping[str, int] | None


@dataclass(frozen=True)
class LayerOptions:
    """How the layers of a link are opened."""

    allow_local: bool = False
    trusted_hosts: tuple[str, ...] = ()
    missing: Missing = "fill"
    channel: Choice = None
    time: Choice = None
    connection: Connection = field(default_factory=Connection)

    def check_names(self, names: Collection[str]) -> None:
        """Raise `OptionError` if a channel or time is chosen for a layer that the link does not have."""
        for what, choice in (("channel", self.channel), ("time", self.time)):
            absent = [n for n in choice if n not in names] if isinstance(choice, Mapping) else []
            if absent:
                raise OptionError(
                    f"{what} names the layer {absent[0]!r}, and the link has {', '.join(map(repr, names))}"
                )


def open_layers(
    state: LinkState, chosen: Sequence[LinkLayer], options: LayerOptions
) -> tuple[dict[str, xr.DataArray], dict[str, ImageryError]]:
    """Return the layers of a link that can be drawn, by name, and the errors of the others.

    Raises
    ------
    ChoiceError
        If a layer does not have the channel or time that was asked for.
    """
    opened: dict[str, xr.DataArray] = {}
    failed: dict[str, ImageryError] = {}
    began = time.monotonic()
    for layer in chosen:
        try:
            with limited_time(began):
                opened[layer.name] = _open_layer(layer, state, options)
        except ImageryError as error:
            failed[layer.name] = error
            chose = isinstance(error, ChoiceError) and _chosen(getattr(options, error.what), layer.name) is not None
            if chose:
                raise
    return opened, failed


@contextmanager
def limited_time(began: float) -> Iterator[None]:
    """End the requests for a layer after some time: a link may name hundreds of servers that never answer.

    Parameters
    ----------
    began : float
        When the first layer of the link was opened, by `time.monotonic`.

    Raises
    ------
    ServerError
        If the time was over.
    """
    if current_stop_event() is not None:  # the caller ends it
        yield
        return
    seconds = min(LAYER_SECONDS, began + LINK_SECONDS - time.monotonic())
    late = f"its servers did not answer in the time that a link has ({LINK_SECONDS} s, {LAYER_SECONDS} for a layer)"
    late = f"{late}; open it alone with layers=[…], or by its address"
    if seconds <= 0:
        raise ServerError(late)
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.daemon = True
    timer.start()
    try:
        with stop_on(over):
            yield
    except ImageryError as error:
        if over.is_set():
            raise ServerError(late) from error
        raise
    finally:
        timer.cancel()


def _warn(message: str) -> None:
    warn(message, LinkWarning)


def _chosen(choice: Choice, name: str) -> int | None:
    return choice.get(name) if isinstance(choice, Mapping) else choice


def check_source(layer: LinkLayer, *, allow_local: bool, trusted_hosts: Collection[str]) -> None:
    """Raise unless a layer of a link may be opened.

    Raises
    ------
    LinkError
        If it lies on this machine or in its network.
    AuthError
        If opening it would send a token to a server that is not trusted.
    """
    what = f"the layer {layer.name!r} of the link"
    try:
        address = parse_address(layer.source)
    except AddressError:
        return  # opening the layer says what is wrong with its address
    if is_local_address(address) and not allow_local:
        raise LinkError(
            f"{what} leads to {address.public}, on this machine or its network, where a link from elsewhere should not "
            "reach; if it is your own, give allow_local=True"
        )
    if address.format == "graphene" or address.protocol.startswith("middleauth"):
        if address.protocol not in WEB_PROTOCOLS:
            return
        check_trusted(address.url, what, Access(allow_local, tuple(trusted_hosts), from_link=True))


# ---------------------------------------------------------------------------------------------------------
# one layer


def _open_layer(layer: LinkLayer, state: LinkState, options: LayerOptions) -> xr.DataArray:
    """Open a layer and give it its place and look."""
    what = f"the layer {layer.name!r} of the link"
    layer, source, placement = _volume(layer, state, options)
    if layer.kind == "auto":
        layer = replace(layer, kind=source.layer_type)
    array = _labelled(layer, source, placement)
    for note in layer.undrawn:
        _warn(f"{what} looks different in the viewer: {note}")
    apart = layer.name not in state.shown
    attrs: dict[str, Any] = {LAYER: layer.name, VISIBLE: layer.visible and not apart}
    rest = json.loads(layer.rest or "{}") | ({"visible": True} if layer.visible and apart else {})
    if rest:
        attrs[LINK_LAYER] = json.dumps(rest)
    if layer.raw:
        attrs[LINK_SOURCE] = layer.raw
    if layer.raw_timestamp:
        attrs[LINK_TIMESTAMP] = layer.raw_timestamp
    if layer.equivalences:
        attrs[EQUIVALENCES] = [list(group) for group in layer.equivalences]
    return array.assign_attrs(plain_attrs({**attrs, **_look(layer, array.dtype)}))


def _volume(layer: LinkLayer, state: LinkState, options: LayerOptions) -> tuple[LinkLayer, Source, Placement]:
    """Return the first source of a layer that is a volume: meshes, skeletons and properties may stand before it."""
    what = f"the layer {layer.name!r} of the link"
    found: list[tuple[LinkLayer, Source, Placement]] = []
    errors: list[tuple[LinkLayer, ImageryError]] = []
    own = ("source", "transform", "timestamp", "raw_timestamp")
    for one in (layer, *(replace(layer, **{key: getattr(o, key) for key in own}) for o in layer.others)):
        try:
            check_source(one, allow_local=options.allow_local, trusted_hosts=options.trusted_hosts)
            found.append((one, *_source(one, state, options)))
        except ImageryError as error:
            errors.append((one, error))
    if not found:
        raise next((e for _, e in errors if not isinstance(e, NoVolumeError)), errors[0][1])
    if len(found) > 1:
        _warn(f"{what} has {len(found)} volumes; the first one is drawn, no other")
    for _, reason in errors:
        if not isinstance(reason, NoVolumeError):
            _warn(f"{what} has another source, which cannot be opened: {reason}")
    return found[0]


def _source(layer: LinkLayer, state: LinkState, options: LayerOptions) -> tuple[Source, Placement]:
    """Return the source of a layer; a choice of channel or time for all layers concerns those that have several."""
    given: dict[str, Any] = {"connection": options.connection, "missing": options.missing}
    if "graphene" in layer.source:
        given["timestamp"] = layer.timestamp
    picks = {what: _chosen(getattr(options, what), layer.name) for what in ("channel", "time")}
    while True:
        try:
            return shown_source(layer, state, **given, **picks)
        except ChoiceError as error:
            if error.count > 1 or picks[error.what] is None or isinstance(getattr(options, error.what), Mapping):
                raise
            picks[error.what] = None


def _labelled(layer: LinkLayer, source: Source, placement: Placement) -> xr.DataArray:
    if layer.kind == "segmentation":
        array = open_segmentation(source)
        _warn_of_stale(layer, source)
    elif source.layer_type == "segmentation":
        raise LayerError("it is a segmentation, shown as an image")
    else:
        array = open_image(source)
    if placement != NATIVE:
        array = _placed(array, placement.place(grid_of(array), first_resolution(array)))
    return _joined(array, layer.equivalences)


def _warn_of_stale(layer: LinkLayer, source: Source) -> None:
    """Ask a graph whether what a link selects is current at the layer's instant: nothing else has a voxel to colour."""
    selected = [i for i in layer.look.selected_ids if i]
    if not isinstance(source, GrapheneSource) or not selected:
        return
    what = f"the layer {layer.name!r} of the link"
    try:
        resolve_root_ids(source, selected, "raise")
    except StaleRootError as error:
        one = len(error.successors) == 1
        now = "; ".join(
            f"{root} is {', '.join(map(str, new[:10]))} then"
            if new
            else f"{root} has no successor that the graph tells"
            for root, new in list(error.successors.items())[:5]
        )
        rest = "" if len(error.successors) <= 5 else f"; and {len(error.successors) - 5} more"
        which, them, was = ("a root that is", "it", "it was") if one else (
            f"{len(error.successors)} roots that are", "them", "they were"
        )  # fmt: skip
        _warn(
            f"{what} selects {which} not current at {source.instant}, and nothing is coloured for {them}: {now}{rest}. "
            f"Select these latest roots, or draw what {was}: open_segmentation({source.name!r}, ids=[…], stale='keep')"
        )
    except SegmentError as error:
        _warn(f"{what} selects what has no voxel to colour: {error}")
    except ServerError as error:
        _warn(f"{what}: its graph does not tell whether the roots that are selected are current ({error})")


def _placed(array: xr.DataArray, grid: Grid) -> xr.DataArray:
    moved = array.assign_coords(grid.coords())
    return moved.assign_attrs(attrs_on_grid(array.attrs, grid))


def _joined(seg: xr.DataArray, sets: Sequence[Sequence[int]]) -> xr.DataArray:
    """Give ids that the viewer shows as one the smallest of them, as it does."""
    pairs = merge_equivalences(sets)
    if not pairs:
        return seg
    volume = volume_of(seg)
    packed = np.array(list(pairs), np.uint64).tobytes(), np.array(list(pairs.values()), np.uint64).tobytes()
    expr = Mapped(volume.expr, partial(_relabel, packed=packed), "uint64")
    return label_result(expr, volume.grid, volume, attrs=volume.attrs, name="segmentation")


def _relabel(labels: Array, packed: tuple[bytes, bytes]) -> Array:
    from imageryxr.kernels import isin

    ids, values = (np.frombuffer(p, np.uint64) for p in packed)
    return isin.remap(labels, ids, values, missing="keep")


def _look(layer: LinkLayer, dtype: np.dtype[Any]) -> dict[str, Any]:
    if layer.kind == "segmentation":
        return layer.look.to_attrs()
    out: dict[str, Any] = {OPACITY: layer.opacity}
    limits = limits_of(layer.contrast, normalized=layer.normalized, dtype=dtype)
    if limits is not None:
        out[CONTRAST_LIMITS] = limits
    if layer.shader:
        out[SHADER] = layer.shader
    if layer.additive:
        _warn(
            f"the layer {layer.name!r} of the link is added to those below it in the viewer, and drawn over them here"
        )
    if not layer.plain_shader:
        _warn(f"the layer {layer.name!r} of the link has a shader of its own, and is drawn as grey values")
    return out


def limits_of(
    contrast: tuple[float, float] | None, *, normalized: bool, dtype: np.dtype[Any]
) -> tuple[float, float] | None:
    """Return the grey values that a shader shows black and white; None where it shows those of uint8 as they are."""
    top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    if contrast is not None and normalized:
        return contrast[0] * top, contrast[1] * top
    # What the viewer shows before a range is set.
    return (0.0, top) if contrast is None and dtype != np.uint8 else contrast
