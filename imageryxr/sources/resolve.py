"""From what people type to a `Source`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import numpy as np
import xarray as xr

from imageryxr.errors import LayerError, SourceError, SourceNotFoundError
from imageryxr.sources import memory, omezarr, precomputed
from imageryxr.sources.address import Address, parse_address
from imageryxr.sources.base import Assume, LayerType, Missing, Source, check_assume, check_missing, pick_index


def resolve_source(
    source: Any,
    layer_type: LayerType | None,
    *,
    missing: Missing = "raise",
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
) -> Source:
    """Return the source that an address, an array or a source stands for; reads metadata only.

    Parameters
    ----------
    source : str, path, array or Source
        See `imageryxr.open_image`. A `Source` keeps the options that it was made with.
    layer_type : {"image", "segmentation"} or None
        What it is opened as; None leaves it to the layer.
    missing, token, channel, time, assume
        See `imageryxr.open_image`.

    Raises
    ------
    SourceError, SourceNotFoundError, AuthError, LayerError, OptionError
        If it cannot be found or understood, or is of another kind than it is opened as.
    """
    check_missing(missing)
    check_assume(assume)
    if isinstance(source, str | os.PathLike):
        found = _open_address(parse_address(source), missing, token, channel, time, assume)
    elif isinstance(source, xr.Dataset | xr.DataTree):
        raise LayerError(
            f"a {type(source).__name__} may hold several layers; give one of its variables, such as obj['image']"
        )
    elif isinstance(source, Source) and not hasattr(source, "__array__"):
        found = source
    elif hasattr(source, "dtype") and hasattr(source, "shape"):
        pick_index("the array", "channel", 1, channel)
        pick_index("the array", "time", 1, time)
        found = memory.memory_source(source, _kind_of(source) or layer_type or _likely_kind(source))
    else:
        raise SourceError(
            f"source={source!r} ({type(source).__name__}) is no address; give a URL or a path, or a DataArray with "
            "coordinates in nm"
        )
    return _as_layer(found, layer_type)


def _kind_of(array: Any) -> LayerType | None:
    said = getattr(array, "attrs", {}).get("layer_type")
    return said if said in ("image", "segmentation") else None


def _likely_kind(array: Any) -> LayerType:
    return "segmentation" if array.dtype.kind in "iu" and array.dtype.itemsize > 2 else "image"


def _open_address(
    address: Address, missing: Missing, token: str | None, channel: int | None, time: int | None, assume: Assume
) -> Source:
    choices: dict[str, Any] = {"channel": channel, "time": time, "assume": assume}
    if address.format == "graphene":
        raise _graphene(address)
    if address.format == "zarr":
        return omezarr.open_omezarr(address, missing=missing, token=token, **choices)
    info = precomputed.fetch_info(address)
    if info is not None and "graph" in info:
        raise _graphene(address)
    if info is not None or address.format == "precomputed":
        found = precomputed.open_precomputed(address, missing=missing, channel=channel, info=info)
        pick_index(found.name, "time", 1, time)
        return found
    if address.protocol in omezarr.PROTOCOLS:
        with suppress(SourceNotFoundError):
            return omezarr.open_omezarr(address, missing=missing, token=token, **choices)
    path = address.local_path
    where = "there is no such folder" if path is not None and not path.exists() else (
        f"neither {address.public}/info (precomputed) nor {address.public}/zarr.json or {address.public}/.zattrs "
        "(OME-Zarr) is there, or may be read"
    )  # fmt: skip
    raise SourceNotFoundError(f"there is no volume at {address.public}: {where}; check the path")


def _graphene(address: Address) -> SourceError:
    return SourceError(
        f"graphene://{address.public} is a CAVE graphene segmentation, which this version does not read; open a "
        "materialised segmentation, precomputed://… or zarr://…, in its place"
    )


def _as_layer(source: Source, layer_type: LayerType | None) -> Source:
    wanted = layer_type or source.layer_type
    if wanted == "image" and source.layer_type == "segmentation":
        raise LayerError(f"{source.name} is a segmentation: open it with imageryxr.open_segmentation")
    if wanted == "segmentation" and np.dtype(source.dtype).kind not in "iu":
        mask = " (for a mask give array.astype('uint8'))" if np.dtype(source.dtype).kind == "b" else ""
        raise LayerError(
            f"{source.name} holds {source.dtype}, but ids are whole numbers{mask}; it is an image: open it with "
            "imageryxr.open_image"
        )
    if source.layer_type == wanted:
        return source
    found: Any = source
    if is_dataclass(found) and any(f.name == "layer_type" for f in fields(found)):
        return cast(Source, replace(found, layer_type=wanted))  # type: ignore[type-var]
    raise LayerError(f"{source.name} is a source of type {source.layer_type!r}, and was opened as {wanted!r}")
