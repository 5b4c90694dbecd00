"""Resolution of addresses, arrays and sources to a `Source`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import layer_type_of_dtype
from imageryxr.core.validate import check_flag
from imageryxr.errors import (
    AuthError,
    ImageryError,
    LayerError,
    OptionError,
    SourceError,
    SourceNotFoundError,
    Wording,
    param,
)
from imageryxr.sources import memory
from imageryxr.sources.address import WEB_PROTOCOLS, Address, parse_address
from imageryxr.sources.base import Assume, LayerType, Missing, Source, check_assume, check_missing, pick_index
from imageryxr.sources.cave import graphene
from imageryxr.sources.fetch.auth import Token, find_token, unsent_token_reason
from imageryxr.sources.fetch.connection import Connection, to_connection
from imageryxr.sources.fetch.policy import Access, can_receive
from imageryxr.sources.fetch.threads import run_all
from imageryxr.sources.fetch.url import MIDDLEAUTH, parse_web_url
from imageryxr.sources.omezarr.open import PROTOCOLS as ZARR_PROTOCOLS
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.omezarr.stores import fetch_json, request_group
from imageryxr.sources.omezarr.zip_store import find_archive
from imageryxr.sources.other_formats import format_problem
from imageryxr.sources.precomputed import source as precomputed


def resolve_source(
    source: Any,
    layer_type: LayerType | None,
    *,
    missing: Missing = None,
    token: str | Token | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    agglomerate: bool = True,
    timestamp: Any = None,
    connection: Connection | None = None,
) -> Source:
    """Return the source of an address or an array, or a given source itself; reads metadata only.

    Parameters
    ----------
    source : str, path, array or Source
        See `imageryxr.open_image`. A `Source` keeps its own options.
    layer_type : {"image", "segmentation"} or None
        Kind of layer to open; None uses the layer's own.
    missing, token, channel, time, assume, connection
        See `imageryxr.open_image`.
    agglomerate, timestamp
        See `imageryxr.open_segmentation`.

    Raises
    ------
    SourceError, SourceNotFoundError, AuthError, LayerError, OptionError
        If the source is not found or not valid, or is of another kind than ``layer_type``.
    """
    check_missing(missing)
    check_assume(assume)
    check_flag("agglomerate", agglomerate, "True (root ids) or False (supervoxels)")
    if isinstance(source, str | os.PathLike):
        choices = {"channel": channel, "time": time, "assume": assume}
        graph_options = {"agglomerate": agglomerate, "timestamp": timestamp}
        address = parse_address(source)
        found = _open_address(address, missing, token, choices, graph_options, to_connection(connection))
    elif isinstance(source, xr.Dataset | xr.DataTree):
        raise LayerError(
            f"a {type(source).__name__} may hold several layers; give one of its variables, such as obj['image']"
        )
    elif isinstance(source, Source) and not hasattr(source, "__array__"):
        found = source
        if timestamp is not None and isinstance(source, graphene.GrapheneSource):
            raise OptionError(
                f"{source.name} is already open at {source.instant}; give its address to open it at another timestamp"
            )
        if not agglomerate and isinstance(source, graphene.GrapheneSource):
            found = source.without_agglomeration()
    elif hasattr(source, "dtype") and hasattr(source, "shape"):
        pick_index("the array", "channel", 1, channel)
        pick_index("the array", "time", 1, time)
        found = memory.memory_source(
            source, _declared_layer_type(source) or layer_type or layer_type_of_dtype(source.dtype)
        )
    else:
        layers = [n for n in ("image", "segmentation") if isinstance(getattr(source, n, None), str)]
        advice = f"give one of its layers, e.g. sample.{layers[0]}" if layers else (
            "give a URL or a path, or a DataArray with coordinates in nm"
        )  # fmt: skip
        shown = repr(source).splitlines()[0][:80]
        raise SourceError(param("source", text=shown), f" ({type(source).__name__}) is not an address; {advice}")
    if timestamp is not None and not isinstance(found, graphene.GrapheneSource):
        raise OptionError(
            param("timestamp", timestamp),
            f": {found.name} does not change in time, so there is no state to select; leave ",
            param("timestamp"),
            " out",
        )
    return _with_layer_type(found, layer_type)


def is_graphene_address(address: str) -> bool:
    """Return whether an address names the graphene format; makes no request."""
    return parse_address(address).format == "graphene"


def _declared_layer_type(array: Any) -> LayerType | None:
    layer_type = getattr(array, "attrs", {}).get("layer_type")
    return layer_type if layer_type in ("image", "segmentation") else None


def _open_address(
    address: Address,
    missing: Missing,
    token: str | Token | None,
    choices: dict[str, Any],
    graph_options: dict[str, Any],
    connection: Connection,
) -> Source:
    address.check_path()
    path = address.local_path
    shown = str(path or address.public)
    if path is None or not os.path.exists(path / "info"):
        problem = format_problem(shown)
        if problem and (path is None or find_archive(path) is None):
            raise SourceError(f"{shown} {problem}")
    if address.format == "graphene":
        return _open_graphene(address, missing, token, choices, graph_options, connection)
    # A server of a Zarr receives only a token that the caller gave, and never a stored CAVE token.
    plain_token = _zarr_token(address, token, connection)
    if address.format == "zarr":
        return _open_zarr(address, missing, plain_token, choices, connection)
    login = None
    if address.url.startswith(MIDDLEAUTH):
        login = find_token(parse_web_url(address.url).netloc, given=token)
    read_info: Any = partial(precomputed.fetch_info_file, address, connection, login)
    open_zarr: Any = partial(
        open_omezarr, address, missing=missing, token=plain_token, connection=connection, **choices
    )
    can_be_zarr = address.format != "precomputed" and address.protocol in ZARR_PROTOCOLS
    if can_be_zarr and path is None:
        # The requests for both formats run in parallel, so they take the time of one.
        fetch_group: Any = partial(request_group, address, plain_token, connection)
        read_info, fetch_group = run_all([read_info, fetch_group])
        open_zarr = partial(open_zarr, group=fetch_group())
    try:
        info = read_info()
    except AuthError:
        with suppress(ImageryError):  # some servers send a login page for a file that does not exist
            if can_be_zarr:
                return cast(Source, open_zarr())
        raise
    if info is not None and "graph" in info.content:
        _check_graph(address, token, connection.access)
        return _open_graphene(address, missing, token, choices, graph_options, connection)
    if info is not None or address.format == "precomputed":
        found = precomputed.open_precomputed(
            address, missing=missing, channel=choices["channel"], info=info, token=login, connection=connection
        )
        pick_index(found.name, "time", 1, choices["time"])
        return found
    if can_be_zarr:
        with suppress(SourceNotFoundError):
            return cast(Source, open_zarr())
    raise _not_found_error(address)


def _not_found_error(address: Address) -> SourceNotFoundError:
    path = address.local_path
    where = "there is no such folder" if path is not None and not path.exists() else (
        f"none of {address.public}/info (precomputed), {address.public}/zarr.json and {address.public}/.zattrs "
        "(OME-Zarr) exists or can be read"
    )  # fmt: skip
    below = _child_volumes(path)
    if below:
        advice = f"its folders {' and '.join(below)} are volumes: give {address.public}/{below[0]}"
    elif path is not None and _is_volume(path.parent):
        advice = f"the folder above it is a volume: give {address.public.rstrip('/').rpartition('/')[0]}"
    else:
        advice = "check the path"
    return SourceNotFoundError(f"there is no volume at {address.public}: {where}; {advice}")


def _child_volumes(path: Path | None) -> list[str]:
    """Return the names of the volumes in a local folder, among its first 50 folders."""
    try:
        folders = sorted(p for p in path.iterdir() if p.is_dir())[:50] if path is not None else []
    except OSError:
        return []
    return [p.name for p in folders if _is_volume(p)]


def _is_volume(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("info", "zarr.json", ".zattrs"))


def _check_graph(address: Address, token: str | Token | None, access: Access) -> None:
    """Raise unless the server of an ``info`` that describes a graph may receive the CAVE token."""
    if address.protocol not in WEB_PROTOCOLS or can_receive(address.url, access, given_for=(), is_cave_token=True):
        return
    # The address does not name the graphene format, so only a token= argument shows that the caller trusts the server.
    credential = find_token(parse_web_url(address.url).netloc, given=token)
    named = access if token is not None else replace(access, from_link=True)
    if credential is None or credential.header_for(address.url, named) is None:
        raise SourceError(
            f"the info at {address.public} describes a graphene segmentation, and opening it would send your CAVE "
            f"token to its server; if you trust {parse_web_url(address.url).netloc}, open graphene://{address.public} "
            "with token=…, or store its token in ~/.cloudvolume/secrets"
        )


def _open_zarr(
    address: Address, missing: Missing, token: str | None, choices: dict[str, Any], connection: Connection
) -> Source:
    try:
        return open_omezarr(address, missing=missing, token=token, connection=connection, **choices)
    except SourceError as error:
        other = {2: 3, 3: 2}.get(address.version or 0)
        keys = {2: (".zattrs", ".zgroup", ".zarray"), 3: ("zarr.json",)}.get(other or 0, ())
        either = replace(address, version=None, separator=None)
        if any(fetch_json(either, token, key, connection) is not None for key in keys):
            raise SourceError(
                f"there is no Zarr v{address.version} image at {address.public}, but Zarr v{other}; write "
                f"zarr{other}:// instead of zarr{address.version}://, or zarr:// for either version"
            ) from error
        raise


def _zarr_token(address: Address, token: str | Token | None, connection: Connection) -> str | None:
    """Return the token that the caller gave for a Zarr on a web server."""
    if not isinstance(token, str) or address.protocol not in WEB_PROTOCOLS:
        return token if isinstance(token, str) else None
    server = parse_web_url(address.url)
    credential = find_token(server.netloc, given=token)
    if credential is None or credential.header_for(address.url, connection.access) is None:
        raise AuthError(
            f"the token from token= is not sent to {address.public}: {unsent_token_reason(server, connection.access)}"
        )
    return token


def _open_graphene(
    address: Address,
    missing: Missing,
    token: str | Token | None,
    choices: dict[str, Any],
    graph_options: dict[str, Any],
    connection: Connection,
) -> graphene.GrapheneSource:
    found = graphene.open_graphene(address, missing=missing, token=token, connection=connection, **graph_options)
    pick_index(found.name, "channel", 1, choices["channel"])
    pick_index(found.name, "time", 1, choices["time"])
    return found


def _with_layer_type(source: Source, layer_type: LayerType | None) -> Source:
    # Values that cannot be ids are an image, even if the metadata declare a segmentation.
    holds_ids = np.dtype(source.dtype).kind in "iu"
    wanted = layer_type or (source.layer_type if holds_ids else "image")
    if wanted == "image" and source.layer_type == "segmentation" and holds_ids:
        raise LayerError(
            f"{source.name} is a segmentation: open it with ", Wording("imageryxr.open_segmentation", "--segmentation")
        )
    if wanted == "segmentation" and not holds_ids:
        mask = " (for a mask give array.astype('uint8'))" if np.dtype(source.dtype).kind == "b" else ""
        raise LayerError(
            f"{source.name} holds {source.dtype}, but ids are integers{mask}; it is an image: open it with ",
            Wording("imageryxr.open_image", "--image"),
        )
    if source.layer_type == wanted:
        return source
    found: Any = source
    if is_dataclass(found) and any(f.name == "layer_type" for f in fields(found)):
        return cast(Source, replace(found, layer_type=wanted))  # type: ignore[type-var]
    raise LayerError(f"{source.name} is a source of type {source.layer_type!r} and cannot be opened as {wanted!r}")
