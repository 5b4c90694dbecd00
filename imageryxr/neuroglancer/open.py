"""Open a Neuroglancer link as a DataTree of its layers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import xarray as xr

from imageryxr.core.array_labels import grid_of, plain_attrs
from imageryxr.core.bbox import Triple
from imageryxr.core.display import (
    DIMENSIONS,
    DISPLAY,
    LAYER,
    LAYER_ORDER,
    LINK_STATE,
    NM_PER_PIXEL,
    ORIENTATION,
    POSITION,
    UNOPENED,
    UNSUPPORTED,
)
from imageryxr.core.orientation import screen_dimensions
from imageryxr.core.validate import check_texts
from imageryxr.errors import (
    CodecError,
    GridError,
    ImageryError,
    LayerError,
    LinkError,
    LinkWarning,
    Message,
    OptionError,
    SourceError,
    SourceNotFoundError,
    param,
    warn,
)
from imageryxr.neuroglancer.annotation_layers import is_annotation_layer, open_annotation_layers
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.neuroglancer.navigation import NO_ROTATION
from imageryxr.neuroglancer.open_layers import LayerOptions, open_layers
from imageryxr.neuroglancer.state import LinkState, parse_state
from imageryxr.neuroglancer.state_layers import LinkLayer
from imageryxr.sources.base import Missing, check_missing
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.policy import Access


def open_neuroglancer(
    link: Any,
    *,
    layers: Iterable[str] | None = None,
    group: int | None = None,
    allow_local: bool = False,
    trusted_hosts: Collection[str] = (),
    missing: Missing | None = None,
    channel: int | Mapping[str, int] | None = None,
    time: int | Mapping[str, int] | None = None,
    max_state_size: int | str = "4 MB",
) -> xr.DataTree:
    """Open the images, segmentations and annotations of a Neuroglancer link with their display settings.

    Reads the state if the link is a URL, the metadata of each layer, and annotations. For graphene layers, the server
    reports whether the selected roots are current. Reads no voxels.

    Parameters
    ----------
    link : str, path, mapping or viewer state
        A link (``https://…/#!{…}``, ``https://…/#!middleauth+https://…/state/ID``), the URL of a state, the JSON state
        itself as text or parsed, a file that contains one of these, or a ``neuroglancer.ViewerState``.
    layers : iterable of str, optional
        Names of the layers to open; an error is raised if one of them cannot be opened. Default: all images,
        segmentations and annotations that can be opened. The data determine the type of a layer whose type the link
        omits.
    group : int, optional
        Layer group whose position, zoom, plane and layers are used, if the link shows several groups side by side.
        Groups are numbered from 0, from left to right and top to bottom. Default: the first. A link without groups is
        group 0.
    allow_local : bool, default False
        Whether the link may name files of this machine and servers on this machine or its network. Allow it only for
        links that you trust.
    trusted_hosts : collection of str, optional
        Hosts that may receive your CAVE token, besides those of CAVE and those that have their own token file.
    missing : {"fill", "raise", "warn"}, optional
        Value of a chunk that the store does not have: background, an error when it is read, or background with a
        warning. Default: background, as in the viewer. A chunk that is damaged, or to which access is denied, always
        raises an error.
    channel, time : int or mapping, optional
        Channel and time to open in layers that have several: one number for all such layers, or a dict layer name →
        number. Default: those that the link shows.
    max_state_size : int or str, default "4 MB"
        Maximum size of the link, or of the file or state that it names.

    Returns
    -------
    DataTree
        One child per layer, from bottom to top, named after the layer, with the variable ``image`` or ``segmentation``
        at its finest level. A layer of annotations is a Dataset as in `as_annotations`, with the attr ``color``, or
        ``color_column`` if a property gives the colours; if it has several types, the child has a child per type. Local
        and precomputed annotations are read. Of a precomputed layer with more than 1000 cells, which the link does not
        filter by segments, only the part around the position of the link is read; the attr ``annotation_region`` has
        its corners. Attrs of the tree: ``dimensions`` (nm per unit), ``position`` in these units, ``nm_per_pixel``,
        ``orientation``, ``display_dimensions`` if they are not x, y and z, ``unsupported_layers``, each with the
        ``reason`` why it was skipped, and ``unopened_layers``, which were not requested. Dicts and lists
        of dicts are JSON text (`json.loads` reads them), so that ``to_netcdf`` and ``to_zarr`` can store them. Attrs
        of the variables: ``contrast_limits``, ``opacity``, ``selected_ids``, ``colors``, … as `imageryxr.core.display`
        lists them; `overlay` uses them.
        A layer's ``timestamp`` in the link is in milliseconds since 1970 if it is above 1e11, otherwise in seconds.
        ``tree.imagery.view(size=(w, h))`` returns the region that the link shows.

    Raises
    ------
    LinkError
        If the link or state is invalid, or refers to this machine and ``allow_local`` is False.
    AuthError
        If the server of the state requires a token, or a token would be sent to an untrusted server.
    ImageryError
        If a layer named in ``layers`` cannot be opened, or if no layer of the link can be opened: the first error.
        Other layers that cannot be opened are skipped with a warning, as in the viewer.
    OptionError
        If a layer, the layer group, or the policy for missing chunks does not exist.

    Warns
    -----
    LinkWarning
        If the link has no layers. For each skipped layer, with the reason: it has no voxels, its transform rotates, its
        source is absent or unreachable, or its server requires a token. For shaders that are drawn as grey values, and
        for selected roots that are not current at the timestamp of their layer.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
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
    access = Access.of_link(allow_local, trusted_hosts)
    policy = check_missing("fill" if missing is None else missing)
    state = parse_state(load_state(link, access, max_state_size=max_state_size), group)
    options = LayerOptions(policy, channel, time, Connection(access=access))
    options.check_names(state.order)
    if not state.order:
        warn("the link has no layers, so the tree is empty; copy the address again with the layers shown", LinkWarning)
    names = None if layers is None else check_texts("layers", layers, "a list of names of layers, such as ['em']")
    chosen = _select_layers(state, names)
    opened, failed = open_layers(state, chosen, options)
    annotations, reasons = open_annotation_layers(state, names, options, _unit_of_link(state, opened))
    if reasons and names is not None:
        raise LinkError("; ".join(_layer_message(name, reason, "") for name, reason in reasons.items()))
    if failed and names is not None:
        raise _add_layer_name(
            *next(iter(failed.items())),
            Message("; omit this layer from ", param("layers", text="[…]"), " to open the others"),
        )
    errors: dict[str, ImageryError] = {o.name: o.error for o in state.skipped if o.error is not None}
    errors |= {name: error for name, error in failed.items() if not _is_unsupported(error)}
    if errors and not opened:
        raise _add_layer_name(*next(iter(errors.items())), "")
    unsupported = _unsupported_layers(state, failed, annotations, reasons)
    for entry in unsupported if names is None else ():
        warn(_layer_message(entry["name"], entry["reason"], " is left out"), LinkWarning)
    for message in undrawn_features(state, group_was_chosen=group is not None):
        warn(message, LinkWarning)
    return _build_tree(state, opened, unsupported, annotations)


def _is_unsupported(error: ImageryError) -> bool:
    """Return whether a layer exists but is of an unsupported kind, so that a retry would fail again."""
    unsupported = isinstance(error, LayerError | CodecError | GridError | SourceError)
    return unsupported and not isinstance(error, SourceNotFoundError)


def _add_layer_name(name: str, error: ImageryError, advice: str) -> ImageryError:
    """Return the error of a layer, with the layer's name added to the message."""
    error.args = (Message(_layer_message(name, error.message, ""), advice), *error.args[1:])
    return error


def _layer_message(name: str, message: str, what: str) -> str:
    prefix = f"the layer {name!r} of the link"
    return Message(f"{prefix}{what}: ", message) if what or not message.startswith(prefix) else message


def _unsupported_layers(
    state: LinkState, failed: Mapping[str, ImageryError], annotations: Collection[str], reasons: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return the layers of a link that cannot be opened, from bottom to top, with reason and JSON entry."""
    found = {
        o.name: {"type": o.type, "reason": reasons.get(o.name, o.reason), "json": o.raw}
        for o in state.skipped
        if o.name not in annotations
    }
    for layer in state.layers:
        if layer.name in failed:
            found[layer.name] = {"type": layer.kind, "reason": failed[layer.name].message, "json": layer.spec}
    return [{"name": name, **found[name]} for name in state.order if name in found]


def undrawn_features(state: LinkState, *, group_was_chosen: bool) -> list[str]:
    """Return messages about features of a link that a picture does not reproduce."""
    out: list[str] = []
    count, shown = len(state.groups), state.pose.display
    if count > 1 and not group_was_chosen:
        names = ", ".join(map(repr, state.shown_layers))
        others = (" for the other",) if count == 2 else (" to ", param("group", count - 1), " for the others")
        text = f"the link shows {count} groups of layers side by side; this is group 0 ({names}); give "
        out.append(Message(text, param("group", 1), *others))
    visible = {layer.name: layer for layer in state.layers if layer.visible}
    lowest = next((visible[name] for name in state.shown_layers if name in visible), None)
    if lowest is not None and lowest.kind == "image" and lowest.opacity == 0:
        text = "where no other layer covers it (opacity 0); here it is opaque, as any lowest image"
        out.append(f"the viewer hides the layer {lowest.name!r} of the link {text}")
    dims = screen_dimensions(shown)
    if dims is None:
        out.append(f"the link displays the dimensions {', '.join(shown)}; a picture shows x, y and z")
    elif len(shown) < 3 and (state.pose.orientation != NO_ROTATION or state.layout[:2] in ("xz", "yz")):
        out.append(f"the link displays only {' and '.join(shown)}, rotated; a picture shows a section of x, y and z")
    if state.pose.stretch:
        factors = ", ".join(f"{name} {factor:g} times" for name, factor in state.pose.stretch)
        out.append(f"the link stretches the display: {factors}; a picture has square pixels in nm")
    return out


def _select_layers(state: LinkState, requested: Collection[str] | None) -> list[LinkLayer]:
    if requested is None:
        return list(state.layers)
    available = {layer.name for layer in state.layers}
    available |= {layer.name for layer in state.skipped if is_annotation_layer(layer)}
    absent = [n for n in requested if n not in available]
    for skipped in (o for o in state.skipped if o.name in absent):
        raise OptionError(f"layers names {skipped.name!r}, which cannot be opened: {skipped.reason}") from skipped.error
    if absent:
        raise OptionError(
            f"layers names {absent[0]!r}, but the layers of the link are "
            f"{', '.join(repr(n) for n in state.order if n in available) or 'none that can be opened'}"
        )
    return [layer for layer in state.layers if layer.name in requested]


def _unit_of_link(state: LinkState, opened: Mapping[str, xr.DataArray]) -> Triple | None:
    """Return nm per unit (x, y, z) of positions, by default those of the first layer."""
    if state.pose.resolution is None and opened:
        return grid_of(next(iter(opened.values()))).resolution
    return state.pose.resolution


def _build_tree(
    state: LinkState,
    opened: Mapping[str, xr.DataArray],
    unsupported: list[dict[str, str]],
    annotations: Mapping[str, list[xr.Dataset]],
) -> xr.DataTree:
    pose, resolution = state.pose, _unit_of_link(state, opened)
    attrs: dict[str, Any] = {"title": state.title, "layout": state.layout}
    if resolution is not None:
        attrs[DIMENSIONS] = {axis: [size, "nm"] for axis, size in zip("xyz", resolution, strict=True)}
    if pose.position is not None:
        attrs[POSITION] = list(pose.position)
    if pose.nm_per_pixel is not None:
        attrs[NM_PER_PIXEL] = pose.nm_per_pixel
    display = screen_dimensions(pose.display)
    if display is not None and display != ("x", "y", "z"):
        attrs[DISPLAY] = list(display)
    failed = {entry["name"] for entry in unsupported}
    order = [
        *(n for n in state.shown_layers if n in state.order),
        *(n for n in state.order if n not in state.shown_layers),
    ]
    link = {"state": json.loads(state.rest or "{}"), "group": state.group, "order": list(state.order)}
    attrs |= {
        ORIENTATION: list(pose.orientation),
        LAYER_ORDER: order,
        UNSUPPORTED: unsupported,
        LINK_STATE: json.dumps(link),
    }
    unopened = [{"name": x.name, "json": x.spec} for x in state.layers if x.name not in {*opened, *failed}]
    attrs |= {UNOPENED: unopened} if unopened else {}
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=plain_attrs({k: v for k, v in attrs.items() if v != ""}))}
    for name in (n for n in order if n in opened):
        array, node = opened[name], _node_name(name, nodes)
        nodes[node] = array.to_dataset(name=array.attrs["layer_type"]).assign_attrs({LAYER: name})
    for name in (n for n in order if n in annotations):
        node, parts = _node_name(name, nodes), annotations[name]
        if len(parts) == 1:
            nodes[node] = parts[0]
        else:
            nodes |= {f"{node}/{part.attrs['annotation_type']}": part for part in parts}
    return xr.DataTree.from_dict(nodes)


def _node_name(name: str, taken: Collection[str]) -> str:
    safe = name.replace("/", "∕") if name not in (".", "..") else f"layer {name}"
    while f"/{safe}" in taken:
        safe += "′"
    return f"/{safe}"
