"""From what people type to a `Source`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from imageryxr.errors import LayerError, SourceError, SourceNotFoundError
from imageryxr.sources import memory, omezarr, precomputed
from imageryxr.sources.address import Address, parse_address
from imageryxr.sources.base import LayerType, Missing, Source


def resolve_source(
    source: Any,
    layer_type: LayerType | None,
    *,
    missing: Missing = "raise",
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: str = "center",
) -> Source:
    """Return the source that an address, an array or a source stands for; reads metadata only.

    Parameters
    ----------
    source : str, path, array or Source
        See `imageryxr.open_image`.
    layer_type : {"image", "segmentation"} or None
        What it is opened as; None leaves it to the layer.
    missing, token, channel, time, assume
        See `imageryxr.open_image`.

    Raises
    ------
    SourceError, SourceNotFoundError, AuthError, LayerError
        If it cannot be found or understood, or is of another kind than it is opened as.
    """
    if isinstance(source, str | os.PathLike):
        found = _open_address(parse_address(source), missing, channel, time, assume)
    elif hasattr(source, "dtype") and not isinstance(source, Source):
        found = memory.memory_source(source, layer_type or _kind_of(source))
    elif isinstance(source, Source):
        found = source
    else:
        raise SourceError(
            f"source={source!r} ({type(source).__name__}) is no address; give a URL or a path, or a DataArray with "
            "coordinates in nm"
        )
    return _as_layer(found, layer_type)


def _kind_of(array: Any) -> LayerType:
    said = getattr(array, "attrs", {}).get("layer_type")
    if said in ("image", "segmentation"):
        kind: LayerType = said
        return kind
    return "segmentation" if array.dtype.kind in "iu" and array.dtype.itemsize > 2 else "image"


def _open_address(address: Address, missing: Missing, channel: int | None, time: int | None, assume: str) -> Source:
    if address.format == "graphene":
        raise SourceError(f"graphene://{address.public}: this version does not read CAVE's graphene segmentations")
    if address.format == "precomputed":
        return precomputed.open_precomputed(address, missing=missing, channel=channel)
    if address.format == "zarr":
        return omezarr.open_omezarr(address, missing=missing, channel=channel, time=time, assume=assume)
    info = precomputed.fetch_info(address)
    if info is not None:
        return precomputed.open_precomputed(address, missing=missing, channel=channel, info=info)
    try:
        return omezarr.open_omezarr(address, missing=missing, channel=channel, time=time, assume=assume)
    except SourceNotFoundError:
        raise SourceNotFoundError(
            f"there is no volume at {address.public}: neither {address.public}/info (precomputed) nor zarr.json or "
            ".zattrs there (OME-Zarr); check the path"
        ) from None


def _as_layer(source: Source, layer_type: LayerType | None) -> Source:
    if layer_type is None:
        return source
    if layer_type == "image" and source.layer_type == "segmentation":
        raise LayerError(f"{source.name} is a segmentation: open it with imageryxr.open_segmentation")
    if layer_type == "segmentation" and np.dtype(source.dtype).kind not in "iu":
        raise LayerError(
            f"{source.name} holds {source.dtype}, but ids are whole numbers; it is an image: open it with "
            "imageryxr.open_image"
        )
    if source.layer_type != layer_type:
        return replace(source, layer_type=layer_type)  # type: ignore[type-var]
    return source
