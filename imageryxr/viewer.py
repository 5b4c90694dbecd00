"""Neuroglancer links, both ways: from a link to arrays that look like the viewer, and back to a link."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.errors import (
    AddressError,
    CodecError,
    GridError,
    ImageryError,
    LayerError,
    LinkError,
    LinkWarning,
    OptionError,
    SegmentError,
    ServerError,
    SourceError,
    SourceNotFoundError,
    StaleRootError,
)
from imageryxr.expr import Array, Mapped
from imageryxr.frames import screen_dimensions
from imageryxr.grid import Grid, grid_of
from imageryxr.levels import first_resolution
from imageryxr.link_sources import shown_source
from imageryxr.look import (
    CONTRAST_LIMITS,
    DIMENSIONS,
    DISPLAY,
    EQUIVALENCES,
    LAYER,
    LAYER_ORDER,
    LINK_LAYER,
    LINK_SOURCE,
    LINK_STATE,
    LINK_TIMESTAMP,
    NM_PER_PIXEL,
    OPACITY,
    ORIENTATION,
    POSITION,
    SHADER,
    UNSUPPORTED,
    VISIBLE,
    joined_ids,
)
from imageryxr.opening import open_image, open_segmentation
from imageryxr.sources.access import Access, lies_locally
from imageryxr.sources.address import WEB_PROTOCOLS, parse_address
from imageryxr.sources.base import Source
from imageryxr.sources.graphene import GrapheneSource, with_ids
from imageryxr.sources.links import check_trusted, state_of
from imageryxr.sources.navigation import NO_TURN
from imageryxr.sources.neuroglancer import LinkLayer, LinkState, parse_state
from imageryxr.sources.placement import NATIVE
from imageryxr.sources.web import Connection
from imageryxr.volumes import placed, result, volume_of


def open_neuroglancer(
    link: Any,
    *,
    layers: Iterable[str] | None = None,
    group: int | None = None,
    allow_local: bool = False,
    trusted_hosts: Collection[str] = (),
    max_state_size: int | str = "4 MB",
) -> xr.DataTree:
    """Open the images and segmentations of a Neuroglancer link, as it shows them.

    Reads metadata only: that of the state, where the link only names it, that of each layer, and of a graphene layer
    whether the roots that are selected are current.

    Parameters
    ----------
    link : str, path, mapping or viewer state
        A link (``https://…/#!{…}``, ``https://…/#!middleauth+https://…/state/ID``), the URL of a state, the JSON state
        itself as text or parsed, a file that holds either, or a ``neuroglancer.ViewerState``.
    layers : iterable of str, optional
        Names of the layers to open. Default: all images and segmentations.
    group : int, optional
        Of a link that shows several groups of layers side by side, the one to look at, counted from 0 from left to
        right and top to bottom: its position, zoom, plane and layers. Default: the first.
    allow_local : bool, default False
        Whether the link may name files of this machine and servers on it or in its network. A link from somebody else
        should not.
    trusted_hosts : collection of str, optional
        Hosts that may be sent your CAVE token, besides CAVE's own and those with a token file of their own.
    max_state_size : int or str, default "4 MB"
        How many bytes the link, or the file or state that it names, may have: more than any that people share.

    Returns
    -------
    DataTree
        A child per layer, named as it, from bottom to top, with the variable ``image`` or ``segmentation`` at its
        finest level. Attrs of the tree: ``dimensions`` (nm per unit), ``position`` in these units, ``nm_per_pixel``,
        ``orientation``, ``display_dimensions`` where the screen has other dimensions than x, y and z,
        ``unsupported_layers``. Attrs of the variables: ``contrast_limits``, ``opacity``,
        ``selected_ids``, ``colors``, … as `imageryxr.look` lists them, which `overlay` follows.
        A layer's ``timestamp`` in the link may be milliseconds since 1970, as viewers write it, or seconds: above
        1e11 it is milliseconds. ``tree.imagery.view(size=(w, h))`` gives what the link shows.

    Raises
    ------
    LinkError
        If the link or state cannot be understood, or leads to this machine and may not.
    AuthError
        If a server asks for a token, or a token would go to a server that is not trusted.
    SourceNotFoundError, SourceError
        If a visible layer cannot be opened; ``layers=`` names those to open.

    Warns
    -----
    LinkWarning
        Of layers that are left out (annotations, meshes, transforms that rotate, …), of shaders that are drawn as
        grey values, and of selected roots that are not current at the instant of their layer.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> state = {
    ...     "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
    ...     "position": [4600.5, 2560.5, 130.5],
    ...     "layers": [
    ...         {"type": "image", "name": "em", "source": sample.image},
    ...         {"type": "segmentation", "name": "cells", "source": sample.segmentation},
    ...     ],
    ... }
    >>> tree = ix.open_neuroglancer(state, allow_local=True)
    >>> list(tree.children)
    ['em', 'cells']
    >>> ds = tree.imagery.view(size=(256, 200))
    >>> ds.sizes
    Frozen({'z': 1, 'y': 200, 'x': 256})
    >>> ds.imagery.overlay().sizes["rgba"]
    4
    """
    limits: dict[str, Any] = {"allow_local": allow_local, "trusted_hosts": trusted_hosts}
    state = parse_state(state_of(link, **limits, max_state_size=max_state_size), group)
    chosen = _chosen(state, layers)
    for layer in chosen:
        check_source(layer, **limits)
    opened: dict[str, xr.DataArray] = {}
    unsupported = [{"name": o.name, "type": o.type, "reason": o.reason} for o in state.left_out]
    connection = Connection(access=Access(allow_local, tuple(trusted_hosts), from_link=True))
    for layer in chosen:
        array = _open_layer(layer, state, connection)
        if isinstance(array, str):
            unsupported.append({"name": layer.name, "type": layer.kind, "reason": array})
        else:
            opened[layer.name] = array
    # Somebody who says which layers to open knows of the others.
    for entry in unsupported if layers is None else [u for u in unsupported if u["name"] in {c.name for c in chosen}]:
        _warn(f"the layer {entry['name']!r} of the link is left out: {entry['reason']}")
    for message in undrawn_of(state, asked=group is not None):
        _warn(message)
    return _tree(state, opened, unsupported)


def undrawn_of(state: LinkState, *, asked: bool) -> list[str]:
    """Return what a link shows that a picture does not; ``asked`` says that the caller chose a layer group."""
    out = []
    count, shown = len(state.groups), state.pose.display
    if count > 1 and not asked:
        names = ", ".join(map(repr, state.shown))
        others = "group=1" if count == 2 else f"group=1 to group={count - 1}"
        out.append(
            f"the link shows {count} groups of layers side by side; group 0 ({names}) is looked at here, {others} the "
            "others"
        )
    dims = screen_dimensions(shown)
    if dims is None:
        out.append(f"the link's screen shows the dimensions {', '.join(shown)}; a picture shows x, y and z")
    elif len(shown) < 3 and (state.orientation != NO_TURN or state.layout[:2] in ("xz", "yz")):
        out.append(
            f"the link's screen shows only {' and '.join(shown)}, turned; a picture shows a section of all three"
        )
    if state.pose.stretch:
        factors = ", ".join(f"{name} {factor:g} times" for name, factor in state.pose.stretch)
        out.append(f"the link's screen is stretched along {factors}; a picture has square pixels in nm")
    return out


def _warn(message: str) -> None:
    warnings.warn(message, LinkWarning, stacklevel=3)


def _chosen(state: LinkState, names: Iterable[str] | None) -> list[LinkLayer]:
    if names is None:
        return list(state.layers)
    wanted = [names] if isinstance(names, str) else list(names)
    have = {layer.name: layer for layer in state.layers}
    absent = [n for n in wanted if n not in have]
    if absent:
        raise OptionError(
            f"layers names {absent[0]!r}, and the link has {', '.join(map(repr, have)) or 'none to open'}"
        )
    return [layer for layer in state.layers if layer.name in wanted]


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
    if lies_locally(address) and not allow_local:
        raise LinkError(
            f"{what} leads to {address.public}, on this machine or its network, where a link from elsewhere should not "
            "reach; if it is your own, give allow_local=True"
        )
    if address.format == "graphene" or address.protocol.startswith("middleauth"):
        if address.protocol not in WEB_PROTOCOLS:
            return
        check_trusted(address.url, what, Access(allow_local, tuple(trusted_hosts), from_link=True))


# ---------------------------------------------------------------------------------------------------------
# layers


def _open_layer(layer: LinkLayer, state: LinkState, connection: Connection) -> xr.DataArray | str:
    """Open a layer and give it its place and look; or return why it cannot be drawn."""
    try:
        array = _opened(layer, state, connection)
    except ImageryError as error:
        not_there = isinstance(error, SourceNotFoundError)
        undrawn = isinstance(error, LayerError | CodecError | GridError | SourceError) and not not_there
        if undrawn or not layer.visible:
            return str(error)
        error.args = (f"the layer {layer.name!r} of the link: {error}; to open others only, give layers=[…]",)
        raise
    if layer.volumes > 1:
        _warn(f"the layer {layer.name!r} of the link has {layer.volumes} volumes; the first one is drawn, no other")
    for note in layer.undrawn:
        _warn(f"the layer {layer.name!r} of the link looks different in the viewer: {note}")
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
    return array.assign_attrs({**attrs, **_look(layer, array.dtype)})


def _opened(layer: LinkLayer, state: LinkState, connection: Connection) -> xr.DataArray:
    when: dict[str, Any] = {"timestamp": layer.timestamp} if "graphene" in layer.source else {}
    source, placement = shown_source(layer, state, connection=connection, **when)
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
        with_ids(source, selected, "raise")
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
    return moved.assign_attrs(placed(array.attrs, grid))


def _joined(seg: xr.DataArray, sets: Sequence[Sequence[int]]) -> xr.DataArray:
    """Give ids that the viewer shows as one the smallest of them, as it does."""
    pairs = joined_ids(sets)
    if not pairs:
        return seg
    volume = volume_of(seg)
    packed = np.array(list(pairs), np.uint64).tobytes(), np.array(list(pairs.values()), np.uint64).tobytes()
    expr = Mapped(volume.expr, partial(_relabel, packed=packed), "uint64")
    return result(expr, volume.grid, volume, attrs=volume.attrs, name="segmentation")


def _relabel(labels: Array, packed: tuple[bytes, bytes]) -> Array:
    from imageryxr.kernels import idsets

    ids, values = (np.frombuffer(p, np.uint64) for p in packed)
    return idsets.remap(labels, ids, values, missing="keep")


def _look(layer: LinkLayer, dtype: np.dtype[Any]) -> dict[str, Any]:
    if layer.kind == "segmentation":
        return layer.look.attrs()
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


def _tree(state: LinkState, opened: Mapping[str, xr.DataArray], unsupported: list[dict[str, str]]) -> xr.DataTree:
    resolution = state.resolution
    if resolution is None and opened:
        resolution = grid_of(next(iter(opened.values()))).resolution
    attrs: dict[str, Any] = {"title": state.title, "layout": state.layout}
    if resolution is not None:
        attrs[DIMENSIONS] = {axis: [size, "nm"] for axis, size in zip("xyz", resolution, strict=True)}
    if state.position is not None:
        attrs[POSITION] = list(state.position)
    if state.nm_per_pixel is not None:
        attrs[NM_PER_PIXEL] = state.nm_per_pixel
    display = screen_dimensions(state.pose.display)
    if display is not None and display != ("x", "y", "z"):
        attrs[DISPLAY] = list(display)
    raw = {o.name: o.raw for o in state.left_out}
    order = [*(n for n in state.shown if n in state.order), *(n for n in state.order if n not in state.shown)]
    link = {"state": json.loads(state.rest or "{}"), "group": state.group, "order": list(state.order)}
    attrs |= {
        ORIENTATION: list(state.orientation),
        LAYER_ORDER: order,
        UNSUPPORTED: [{**entry, "json": raw.get(entry["name"], "")} for entry in unsupported],
        LINK_STATE: json.dumps(link),
    }
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs={k: v for k, v in attrs.items() if v != ""})}
    for name in (n for n in order if n in opened):
        array, node = opened[name], _node_name(name, nodes)
        nodes[node] = array.to_dataset(name=array.attrs["layer_type"]).assign_attrs({LAYER: name})
    return xr.DataTree.from_dict(nodes)


def _node_name(name: str, taken: Collection[str]) -> str:
    safe = name.replace("/", "∕") if name not in (".", "..") else f"layer {name}"
    while f"/{safe}" in taken:
        safe += "′"
    return f"/{safe}"
