"""Open the layers of a Neuroglancer link one by one, so that a layer that fails does not affect the others."""

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

from imageryxr.core.array_labels import grid_of, plain_attrs
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
from imageryxr.errors import (
    AddressError,
    ChoiceError,
    ImageryError,
    LayerError,
    LinkError,
    LinkWarning,
    Message,
    NoVolumeError,
    OptionError,
    SegmentError,
    ServerError,
    StaleRootError,
    Wording,
    param,
    warn,
)
from imageryxr.graph.expr import Array, Mapped
from imageryxr.graph.labelled import attrs_on_grid, label_result, volume_of
from imageryxr.neuroglancer.dimensions import NATIVE, Placement
from imageryxr.neuroglancer.fetch import check_trusted
from imageryxr.neuroglancer.layer_sources import resolve_layer_source
from imageryxr.neuroglancer.shader_controls import type_range
from imageryxr.neuroglancer.shader_limits import find_grey_limits
from imageryxr.neuroglancer.shaders import strip_comments
from imageryxr.neuroglancer.state import LinkState
from imageryxr.neuroglancer.state_layers import LinkLayer
from imageryxr.ops.multiscale import first_resolution
from imageryxr.ops.open import open_image, open_segmentation
from imageryxr.sources.address import WEB_PROTOCOLS, parse_address
from imageryxr.sources.base import Missing, Source
from imageryxr.sources.cave.graphene import GrapheneSource, resolve_root_ids
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.policy import Access, is_local_address
from imageryxr.sources.fetch.threads import current_stop_event, stop_on
from imageryxr.sources.transposed import TransposedSource

LINK_SECONDS, LAYER_SECONDS = 300, 90
"""Time limits for opening all layers of a link and each single layer."""

Choice = int | Mapping[str, int] | None


@dataclass(frozen=True)
class LayerOptions:
    """Options for opening the layers of a link."""

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
                    f"{what} names the layer {absent[0]!r}, but the layers of the link are "
                    f"{', '.join(map(repr, names))}"
                )


def open_layers(
    state: LinkState, chosen: Sequence[LinkLayer], options: LayerOptions
) -> tuple[dict[str, xr.DataArray], dict[str, ImageryError]]:
    """Return the opened layers of a link by name, and the errors of those that failed.

    Raises `ChoiceError` if a layer does not have the requested channel or time.
    """
    opened: dict[str, xr.DataArray] = {}
    failed: dict[str, ImageryError] = {}
    began = time.monotonic()
    for layer in chosen:
        try:
            with limit_time(began):
                opened[layer.name] = _open_layer(layer, state, options)
        except ImageryError as error:
            failed[layer.name] = error
            if isinstance(error, ChoiceError) and _choice_for(getattr(options, error.what), layer.name) is not None:
                raise
    return opened, failed


@contextmanager
def limit_time(began: float) -> Iterator[None]:
    """Stop the requests for a layer after a time limit, because a link may name hundreds of servers that never respond.

    `began` is the time (`time.monotonic`) at which the first layer of the link was opened. Raises `ServerError` if the
    time limit is exceeded.
    """
    if current_stop_event() is not None:  # the caller limits the time
        yield
        return
    seconds = min(LAYER_SECONDS, began + LINK_SECONDS - time.monotonic())
    late = Message(
        f"its servers did not respond in time ({LAYER_SECONDS} s for a layer, {LINK_SECONDS} s for a link); ",
        "open only this layer with ",
        param("layers", text="[…]"),
        ", or by its address",
    )
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


def _choice_for(choice: Choice, name: str) -> int | None:
    return choice.get(name) if isinstance(choice, Mapping) else choice


def check_source(layer: LinkLayer, access: Access) -> None:
    """Raise an error unless a layer of a link may be opened.

    Raises `LinkError` if the source is on this machine or its network and `access` does not allow that, and `AuthError`
    if the source requires the user's token and its server is not trusted.
    """
    what = f"the layer {layer.name!r} of the link"
    try:
        address = parse_address(layer.source)
    except AddressError:
        return  # opening the layer raises an error about its address
    if is_local_address(address) and not access.allow_local:
        raise LinkError(
            f"{what} refers to {address.public}, on this machine or its network, which links may not access ",
            "by default; if you trust the link, give ",
            param("allow_local", True),
        )
    takes_token = address.format == "graphene" or address.protocol.startswith("middleauth")
    if takes_token and address.protocol in WEB_PROTOCOLS:
        check_trusted(address.url, what, access)


# ---------------------------------------------------------------------------------------------------------
# one layer


def _open_layer(layer: LinkLayer, state: LinkState, options: LayerOptions) -> xr.DataArray:
    """Return a layer with the placement and display attributes of the link."""
    what = f"the layer {layer.name!r} of the link"
    layer, source, placement = _first_volume(layer, state, options)
    if layer.kind == "auto":
        layer = replace(layer, kind=source.layer_type)
    array = _open_array(layer, source, placement)
    for note in layer.undrawn:
        _warn(f"{what} is drawn differently from the viewer: {note}")
    in_other_group = layer.name not in state.shown_layers
    attrs: dict[str, Any] = {LAYER: layer.name, VISIBLE: layer.visible and not in_other_group}
    rest = json.loads(layer.rest or "{}") | ({"visible": True} if layer.visible and in_other_group else {})
    if rest:
        attrs[LINK_LAYER] = json.dumps(rest)
    if layer.raw:
        attrs[LINK_SOURCE] = layer.raw
    if layer.raw_timestamp:
        attrs[LINK_TIMESTAMP] = layer.raw_timestamp
    if layer.equivalences:
        attrs[EQUIVALENCES] = [list(group) for group in layer.equivalences]
    return array.assign_attrs(plain_attrs({**attrs, **_display_attrs(layer, array.dtype)}))


def _first_volume(layer: LinkLayer, state: LinkState, options: LayerOptions) -> tuple[LinkLayer, Source, Placement]:
    """Return the first source of a layer that is a volume; meshes, skeletons and properties are skipped."""
    what = f"the layer {layer.name!r} of the link"
    found: list[tuple[LinkLayer, Source, Placement]] = []
    errors: list[tuple[LinkLayer, ImageryError]] = []
    own = ("source", "transform", "timestamp", "raw_timestamp")
    for one in (layer, *(replace(layer, **{key: getattr(o, key) for key in own}) for o in layer.others)):
        try:
            check_source(one, options.connection.access)
            found.append((one, *_resolve_source(one, state, options)))
        except ImageryError as error:
            errors.append((one, error))
    if not found:
        raise next((e for _, e in errors if not isinstance(e, NoVolumeError)), errors[0][1])
    if len(found) > 1:
        _warn(f"{what} has {len(found)} volumes; only the first one is opened")
    for _, reason in errors:
        if not isinstance(reason, NoVolumeError):
            _warn(f"another source of {what} cannot be opened: {reason}")
    return found[0]


def _resolve_source(layer: LinkLayer, state: LinkState, options: LayerOptions) -> tuple[Source, Placement]:
    """Return the source of a layer; a channel or time given for all layers is ignored if this layer has only one."""
    source_options: dict[str, Any] = {"connection": options.connection, "missing": options.missing}
    if "graphene" in layer.source:
        source_options["timestamp"] = layer.timestamp
    picks = {what: _choice_for(getattr(options, what), layer.name) for what in ("channel", "time")}
    while True:
        try:
            return resolve_layer_source(layer, state, **source_options, **picks)
        except ChoiceError as error:
            if error.count > 1 or picks[error.what] is None or isinstance(getattr(options, error.what), Mapping):
                raise
            picks[error.what] = None


def _open_array(layer: LinkLayer, source: Source, placement: Placement) -> xr.DataArray:
    if layer.kind == "segmentation":
        array = open_segmentation(source)
        _warn_of_stale_roots(layer, source)
    elif source.layer_type == "segmentation":
        raise LayerError(
            "the link shows it as an image, but its source is a segmentation; open it by its address with ",
            Wording("imageryxr.open_segmentation", "--segmentation"),
        )
    else:
        array = open_image(source)
    if placement != NATIVE:
        grid = placement.place(grid_of(array), first_resolution(array))
        array = array.assign_coords(grid.coords()).assign_attrs(attrs_on_grid(array.attrs, grid))
    return _join_equivalent_ids(array, layer.equivalences)


def _warn_of_stale_roots(layer: LinkLayer, source: Source) -> None:
    """Warn if selected roots are not current at the layer's timestamp: such roots have no voxels to colour."""
    selected = [i for i in layer.look.selected_ids if i]
    source = source.inner if isinstance(source, TransposedSource) else source
    if not isinstance(source, GrapheneSource) or not selected:
        return
    what = f"the layer {layer.name!r} of the link"
    try:
        resolve_root_ids(source, selected, "raise")
    except StaleRootError as error:
        count = len(error.successors)
        latest = "; ".join(
            f"{root} became {', '.join(map(str, new[:10]))}" if new else f"{root} has no known successor"
            for root, new in list(error.successors.items())[:5]
        )
        rest = "" if count <= 5 else f"; and {count - 5} more"
        which = "a root that is" if count == 1 else f"{count} roots that are"
        _warn(
            f"{what} selects {which} not current at {source.instant} and cannot be coloured: {latest}{rest}. Select "
            f"the latest roots, or draw the old ones with open_segmentation({source.name!r}, ids=[…], stale='keep')"
        )
    except SegmentError as error:
        _warn(f"{what} selects ids that have no voxels: {error}")
    except ServerError as error:
        _warn(f"{what}: the graph server did not report whether the selected roots are current ({error})")


def _join_equivalent_ids(seg: xr.DataArray, sets: Sequence[Sequence[int]]) -> xr.DataArray:
    """Return a segmentation in which each set of equivalent ids is replaced by its smallest id, as in the viewer."""
    pairs = merge_equivalences(sets)
    if not pairs:
        return seg
    volume = volume_of(seg)
    packed = np.array(list(pairs), np.uint64).tobytes(), np.array(list(pairs.values()), np.uint64).tobytes()
    expr = Mapped(volume.expr, partial(_relabel, packed=packed), "uint64")
    return label_result(expr, volume.grid, volume, attrs=volume.attrs, name="segmentation")


def _relabel(labels: Array, packed: tuple[bytes, bytes]) -> Array:
    import fastremap

    table = dict(zip(*(np.frombuffer(p, np.uint64).tolist() for p in packed), strict=True))
    found: Array = fastremap.remap(labels.astype(np.uint64), table, preserve_missing_labels=True)
    return found


def _display_attrs(layer: LinkLayer, dtype: np.dtype[Any]) -> dict[str, Any]:
    if layer.kind == "segmentation":
        return layer.look.to_attrs()
    out: dict[str, Any] = {OPACITY: layer.opacity}
    limits = displayed_limits(layer.contrast, normalized=layer.normalized, dtype=dtype)
    stated = type_range(dtype) if limits is None else limits
    shown = find_grey_limits(strip_comments(layer.shader), layer.controls, dtype, stated)
    if shown is not None and shown != stated:
        limits = shown
    if limits is not None:
        out[CONTRAST_LIMITS] = limits
    if layer.shader:
        out[SHADER] = layer.shader
    if layer.additive:
        _warn(
            f"the viewer blends the layer {layer.name!r} of the link additively; here it is drawn over the layers below"
        )
    if shown is None:
        _warn(f"the layer {layer.name!r} of the link has a custom shader, which is drawn as grey values")
    return out


def displayed_limits(
    contrast: tuple[float, float] | None, *, normalized: bool, dtype: np.dtype[Any]
) -> tuple[float, float] | None:
    """Return the grey values that the viewer shows as black and white; None if it shows uint8 values unchanged.

    If `normalized`, the limits in `contrast` are fractions of the range of the data type.
    """
    low, top = type_range(dtype)
    if contrast is not None and normalized:
        return contrast[0] * top, contrast[1] * top
    # The viewer's default is the whole range of the data type.
    return (low, top) if contrast is None and dtype != np.uint8 else contrast
