"""Neuroglancer links, both ways: from a link to arrays that look like the viewer, and back to a link."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import xarray as xr

from imageryxr.core.attrs import plain_attrs
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
from imageryxr.core.grid import grid_of
from imageryxr.core.orientation import screen_dimensions
from imageryxr.errors import (
    CodecError,
    GridError,
    ImageryError,
    LayerError,
    LinkWarning,
    OptionError,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.neuroglancer.fetch import state_of
from imageryxr.neuroglancer.layers import LayerOptions, open_layers
from imageryxr.neuroglancer.navigation import NO_TURN
from imageryxr.neuroglancer.state import LinkLayer, LinkState, parse_state
from imageryxr.sources.base import Missing, check_missing
from imageryxr.sources.fetch.client import Connection
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
    """Open the images and segmentations of a Neuroglancer link, as it shows them.

    Reads metadata only: that of the state, where the link only names it, that of each layer, and of a graphene layer
    whether the roots that are selected are current.

    Parameters
    ----------
    link : str, path, mapping or viewer state
        A link (``https://…/#!{…}``, ``https://…/#!middleauth+https://…/state/ID``), the URL of a state, the JSON state
        itself as text or parsed, a file that holds either, or a ``neuroglancer.ViewerState``.
    layers : iterable of str, optional
        Names of the layers to open; it is an error if one of them cannot be. Default: all images and segmentations
        that can be opened. Of a layer without a type, the data decide.
    group : int, optional
        Of a link that shows several groups of layers side by side, the one to look at, counted from 0 from left to
        right and top to bottom: its position, zoom, plane and layers. Default: the first. Of a link without groups,
        0 is the whole.
    allow_local : bool, default False
        Whether the link may name files of this machine and servers on it or in its network. A link from somebody else
        should not.
    trusted_hosts : collection of str, optional
        Hosts that may be sent your CAVE token, besides CAVE's own and those with a token file of their own.
    missing : {"fill", "raise", "warn"}, optional
        What a chunk that the store does not have is: background, an error when it is read, or background with a
        warning. Default: background, as the viewer draws it. A chunk that the server refuses or that is damaged is
        an error.
    channel, time : int or mapping, optional
        Which to open of the layers that have several, for all such layers or by the name of the layer. Default: those
        that the link shows.
    max_state_size : int or str, default "4 MB"
        How many bytes the link, or the file or state that it names, may have: more than any that people share.

    Returns
    -------
    DataTree
        A child per layer, named as it, from bottom to top, with the variable ``image`` or ``segmentation`` at its
        finest level. Attrs of the tree: ``dimensions`` (nm per unit), ``position`` in these units, ``nm_per_pixel``,
        ``orientation``, ``display_dimensions`` where the screen has other dimensions than x, y and z,
        ``unsupported_layers``, each with the ``reason`` why it is left out, and ``unopened_layers``, which were not
        asked for. Dicts and lists of dicts are JSON text (`json.loads` reads them), so that ``to_netcdf`` and
        ``to_zarr`` store them. Attrs of the variables: ``contrast_limits``, ``opacity``, ``selected_ids``, ``colors``,
        … as `imageryxr.core.display` lists them, which `overlay` follows.
        A layer's ``timestamp`` in the link may be milliseconds since 1970, as viewers write it, or seconds: above
        1e11 it is milliseconds. ``tree.imagery.view(size=(w, h))`` gives what the link shows.

    Raises
    ------
    LinkError
        If the link or state cannot be understood, or leads to this machine and may not.
    AuthError
        If the server of the state asks for a token, or a token would go to a server that is not trusted.
    ImageryError
        If a layer named in ``layers`` cannot be opened, or none of the link can be found or reached: the first error.
        Any other layer that cannot be opened is left out with a warning, as the viewer goes on without it.
    OptionError
        If there is no such layer, layer group, or policy for missing chunks.

    Warns
    -----
    LinkWarning
        Of each layer that is left out, with the reason: it holds no voxels, its transform rotates, its source is not
        there or not reachable, or its server asks for a token. Of shaders that are drawn as grey values, and of
        selected roots that are not current at the instant of their layer.

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
    connection = Connection(access=Access(allow_local, tuple(trusted_hosts), from_link=True))
    options = LayerOptions(
        allow_local, tuple(trusted_hosts), check_missing(missing or "fill"), channel, time, connection
    )
    options.check_names(state.order)
    chosen = _chosen(state, layers)
    opened, failed = open_layers(state, chosen, options)
    if failed and layers is not None:
        raise _of_layer(*next(iter(failed.items())), "; leave it out of layers=[…] to open the others")
    errors: dict[str, ImageryError] = {o.name: o.error for o in state.left_out if o.error is not None}
    errors |= {name: error for name, error in failed.items() if not _is_undrawn(error)}
    if errors and not opened:
        raise _of_layer(*next(iter(errors.items())), "")
    unsupported = _left_out(state, failed)
    for entry in unsupported if layers is None else ():
        _warn(_with_name(entry["name"], entry["reason"], " is left out"))
    for message in undrawn_of(state, asked=group is not None):
        _warn(message)
    return _tree(state, opened, unsupported)


def _is_undrawn(error: ImageryError) -> bool:
    """Return whether a layer is there and is of a kind that is not drawn, so that nothing can be done about it."""
    undrawn = isinstance(error, LayerError | CodecError | GridError | SourceError)
    return undrawn and not isinstance(error, SourceNotFoundError)


def _of_layer(name: str, error: ImageryError, advice: str) -> ImageryError:
    """Return the error of a layer with its name in the message."""
    error.args = (_with_name(name, str(error), "") + advice, *error.args[1:])
    return error


def _with_name(name: str, message: str, what: str) -> str:
    prefix = f"the layer {name!r} of the link"
    return f"{prefix}{what}: {message}" if what or not message.startswith(prefix) else message


def _left_out(state: LinkState, failed: Mapping[str, ImageryError]) -> list[dict[str, str]]:
    """List the layers of a link that are not opened, from bottom to top, each as it stands in the link."""
    found = {o.name: {"type": o.type, "reason": o.reason, "json": o.raw} for o in state.left_out}
    for layer in state.layers:
        if layer.name in failed:
            found[layer.name] = {"type": layer.kind, "reason": str(failed[layer.name]), "json": layer.spec}
    return [{"name": name, **found[name]} for name in state.order if name in found]


def undrawn_of(state: LinkState, *, asked: bool) -> list[str]:
    """Return what a link shows that a picture does not; ``asked`` says that the caller chose a layer group."""
    out = []
    count, shown = len(state.groups), state.pose.display
    if count > 1 and not asked:
        names = ", ".join(map(repr, state.shown))
        others = "group=1 for the other" if count == 2 else f"group=1 to group={count - 1} for the others"
        out.append(f"the link shows {count} groups of layers side by side; this is group 0 ({names}); give {others}")
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
    for out in (o for o in state.left_out if o.name in absent):
        raise OptionError(f"layers names {out.name!r}, which cannot be opened: {out.reason}") from out.error
    if absent:
        raise OptionError(
            f"layers names {absent[0]!r}, and the link has {', '.join(map(repr, have)) or 'none to open'}"
        )
    return [layer for layer in state.layers if layer.name in wanted]


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
    failed = {entry["name"] for entry in unsupported}
    order = [*(n for n in state.shown if n in state.order), *(n for n in state.order if n not in state.shown)]
    link = {"state": json.loads(state.rest or "{}"), "group": state.group, "order": list(state.order)}
    attrs |= {
        ORIENTATION: list(state.orientation),
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
    return xr.DataTree.from_dict(nodes)


def _node_name(name: str, taken: Collection[str]) -> str:
    safe = name.replace("/", "∕") if name not in (".", "..") else f"layer {name}"
    while f"/{safe}" in taken:
        safe += "′"
    return f"/{safe}"
