"""Open volumes as labelled, lazy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

import xarray as xr

from imageryxr.core.bbox import BBox
from imageryxr.errors import LayerError, Message, Wording, warn
from imageryxr.graph.labelled import as_dask, is_lazy, level_array
from imageryxr.ops.crop import crop_array
from imageryxr.ops.labels import select_ids
from imageryxr.ops.segment_ids import id_array
from imageryxr.sources.base import (
    LayerType,
    Level,
    Missing,
    Source,
    Stale,
    check_stale,
    dtype_of,
    find_level,
    level_attrs,
)
from imageryxr.sources.cave.graphene import GrapheneSource, resolve_root_ids
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.resolve import resolve_source


class ArrayInMemory(Protocol):
    """An array of NumPy, dask, Zarr or another library."""

    def __array__(self) -> Any:
        """Return the values."""


SourceLike = str | os.PathLike[str] | xr.DataArray | Source | ArrayInMemory
Chunks = int | str | tuple[Any, ...] | Mapping[Any, Any] | None
Mip = int | tuple[float, float, float] | None
Assume = Literal["center", "corner"]


def open_image(
    source: SourceLike,
    *,
    mip: Mip = None,
    bbox: BBox | None = None,
    chunks: Chunks = None,
    missing: Missing = None,
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    connection: Connection | None = None,
) -> xr.DataArray:
    """Open a level of an image as a labelled array, dims (z, y, x) with coordinates in nanometres.

    Reads metadata only. The array is lazily indexed, as in `xarray.open_dataset`: voxels are read when it is computed,
    and only in the selected box. With ``bbox`` or ``chunks`` it is a dask array.

    Parameters
    ----------
    source : str, path, DataArray or Source
        ``precomputed://…`` (on ``gs://``, ``s3://``, ``https://``, ``file://`` or a local path), ``zarr://…`` for
        OME-Zarr, or a URL or path of either without a prefix. Or an array in memory, a DataArray with coordinates in
        nm.
    mip : int or (x, y, z), optional
        The level, by number or by resolution in nm. Default: the level with the smallest voxels, except placeholders.
    bbox : BBox, optional
        Open this box only, as a dask array whose blocks follow the storage chunks. Values outside the volume are 0.
    chunks : int, tuple, dict or "auto", optional
        Make dask blocks: ``"auto"`` for several whole storage chunks, about 4 million voxels per block, or sizes as
        dask takes them. For a part of a large volume, prefer ``bbox``: dask is slow to slice millions of blocks.
    missing : {None, "raise", "fill", "warn"}, default None
        How to handle missing chunks. None follows the format: in Zarr they have the fill value, by the specification;
        in precomputed they raise `MissingChunkError`. "raise" raises that error for all formats. "fill" returns the
        fill value, which is 0 in precomputed, and "warn" does the same with a warning; the reports of exports list
        these chunks. Use "fill" for precomputed layers that do not store empty chunks. A request that fails or is
        denied is always an error.
    token : str, optional
        Token for web servers of an OME-Zarr, for CAVE's graph servers, and for addresses that begin with
        ``middleauth+``. Default for the latter two: the variable ``CAVE_TOKEN``, or the files in
        ``~/.cloudvolume/secrets`` that caveclient and CloudVolume use. Tokens never appear in attrs, reprs or messages.
    channel, time : int, optional
        The channel and the time point to open, if the source has several.
    assume : {"center", "corner"}, default "center"
        The meaning of an OME-Zarr translation: the centre of the first voxel, as in current writers, or its lower
        corner, as in some older writers.
    connection : Connection, optional
        Timeouts, retries and concurrent requests for servers of precomputed and graphene layers.

    Returns
    -------
    DataArray
        Dims (z, y, x), with the stored dtype; attrs ``source``, ``resolution`` and ``voxel_offset`` (x, y, z), ``mip``,
        ``layer_type`` and, if known, ``contrast_limits``.

    Raises
    ------
    SourceNotFoundError, SourceError, AuthError
        If there is no volume at the address, it has an unknown format, or access is denied.
    MipError
        If there is no such level; the message lists the levels.
    OutOfVolumeError
        If ``bbox`` lies wholly outside the volume, unless ``missing="fill"``.
    LayerError
        If the source is a segmentation.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> em.dims, em.dtype, em.attrs["resolution"]
    (('z', 'y', 'x'), dtype('uint8'), (8.0, 8.0, 40.0))
    """
    choices = {"token": token, "channel": channel, "time": time, "assume": assume, "connection": connection}
    layer, bbox = _resolve(source, "image", bbox, missing, **choices)
    return open_level(layer, mip, bbox, chunks, outside_ok=missing == "fill")


def open_segmentation(
    source: SourceLike,
    *,
    mip: Mip = None,
    bbox: BBox | None = None,
    chunks: Chunks = None,
    ids: Iterable[int] | None = None,
    agglomerate: bool = True,
    timestamp: datetime | str | float | None = None,
    stale: Stale = "raise",
    missing: Missing = None,
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    connection: Connection | None = None,
) -> xr.DataArray:
    """Open a level of a segmentation as a labelled array of ids, dims (z, y, x) with coordinates in nanometres.

    Reads metadata only; the array is lazy, as in `open_image`.

    Parameters
    ----------
    source : str, path, DataArray or Source
        As in `open_image`, or ``graphene://https://HOST/segmentation/table/TABLE``. Ids may have any integer type up
        to uint64, which is kept.
    mip, bbox, chunks, missing, token, channel, time, assume, connection
        As in `open_image`.
    ids : iterable of int, optional
        Keep these ids only; all others become 0. See `select_ids`.
    agglomerate : bool, default True
        For graphene layers: whether to return root ids (True) or supervoxels (False).
    timestamp : datetime, str or float, optional
        For graphene layers: the instant of the root ids, the same on every worker. A datetime, ISO 8601,
        `numpy.datetime64` or seconds since 1970; without a time zone it is interpreted as UTC, with a warning.
        Default: the time of this call. Supervoxels do not depend on it; static sources do not accept it.
    stale : {"raise", "update", "keep"}, default "raise"
        How to handle ``ids`` of a graphene layer that are not current at its instant. "raise" raises an error that
        lists the current ids of the same object; "update" replaces an old id by these; "keep" shows the old object as
        it was when its id was current, to compare states. If kept objects overlap other requested ones, the objects of
        that instant have priority, then those closest to it in time. The attr ``stale_ids`` lists the old ids.

    Returns
    -------
    DataArray
        Dims (z, y, x), integer ids, 0 is background.

    Raises
    ------
    LayerError
        If the values of the source are floats.
    OptionError
        If a timestamp is given for a static source.
    TimestampError
        If the timestamp is before the first state of the graph, or in the future.
    SegmentError, StaleRootError
        If an id is not a root of the graph, or is not current at the instant.
    ServerError
        If the graph server does not respond.
    ImageryError
        As in `open_image`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation, mip=1)
    >>> seg.dtype, seg.attrs["resolution"]
    (dtype('uint64'), (32.0, 32.0, 40.0))
    """
    choices: dict[str, Any] = {"token": token, "channel": channel, "time": time, "assume": assume}
    graphene: dict[str, Any] = {"agglomerate": agglomerate, "timestamp": timestamp, "connection": connection}
    check_stale(stale)
    layer, bbox = _resolve(source, "segmentation", bbox, missing, **choices, **graphene)
    layer, requested = check_requested_ids(layer, ids, stale)
    labels = open_level(layer, mip, bbox, chunks, outside_ok=missing == "fill")
    return labels if requested is None else select_ids(labels, requested)


def open_multiscale(
    source: SourceLike,
    *,
    bbox: BBox | None = None,
    chunks: Chunks = None,
    agglomerate: bool = True,
    timestamp: datetime | str | float | None = None,
    missing: Missing = None,
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    connection: Connection | None = None,
) -> xr.DataTree:
    """Open every level of a layer as a tree, one child per level.

    Reads metadata only. Each level keeps its own offset, even if levels are half a voxel apart. Placeholder levels are
    omitted.

    Parameters
    ----------
    source, bbox, chunks, missing, token, channel, time, assume, connection
        As in `open_image`; every level is cropped to ``bbox``.
    agglomerate, timestamp
        As in `open_segmentation`; all levels have the same instant.

    Returns
    -------
    DataTree
        Children ``"/0"``, ``"/1"``, … by mip, each with one variable, ``image`` or ``segmentation``, according to the
        type of the layer.

    Raises
    ------
    ImageryError
        As in `open_image`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> tree = ix.open_multiscale(ix.sample("sample").image)
    >>> list(tree.children)
    ['0', '1', '2']
    >>> tree["1/image"].attrs["resolution"]
    (16.0, 16.0, 40.0)
    """
    choices: dict[str, Any] = {"token": token, "channel": channel, "time": time, "assume": assume}
    graphene: dict[str, Any] = {"agglomerate": agglomerate, "timestamp": timestamp, "connection": connection}
    layer = resolve_source(source, None, missing=missing, **choices, **graphene)
    levels = _openable_levels(layer)
    children = {str(lv.mip): open_level(layer, lv.mip, bbox, chunks).to_dataset() for lv in levels}
    first = level_attrs(layer, find_level(layer, None))
    attrs = {key: first[key] for key in first if key not in ("mip", "resolution", "voxel_offset")}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **{f"/{k}": v for k, v in children.items()}})


def _openable_levels(layer: Source) -> list[Level]:
    """Return the levels without placeholders and, for a segmentation, without levels that are not integers."""
    levels = [level for level in layer.levels if not level.placeholder]
    if layer.layer_type == "image":
        return levels
    wrong = [level for level in levels if dtype_of(layer, level.mip).kind not in "iu"]
    if wrong and len(wrong) < len(levels):
        mips = ", ".join(str(level.mip) for level in wrong)
        warn(f"{layer.name}: mip {mips} is omitted, because ids cannot have its dtype {dtype_of(layer, wrong[0].mip)}")
    return [level for level in levels if level not in wrong] or levels


def check_requested_ids(layer: Source, ids: Iterable[int] | None, stale: Stale) -> tuple[Source, list[int] | None]:
    """Return a source and its requested ids, or None for all; ids of a graphene source are checked on its server."""
    if ids is None:
        return layer, None
    requested = id_array(ids).tolist()
    return resolve_root_ids(layer, requested, stale) if isinstance(layer, GrapheneSource) else (layer, requested)


def _resolve(
    source: SourceLike, layer_type: LayerType, bbox: BBox | None, missing: Missing, **choices: Any
) -> tuple[Source, BBox | None]:
    """Return a source, and the box that remains to be cropped."""
    if isinstance(source, xr.DataArray) and is_lazy(source):
        # A lazily indexed array is converted to a dask array of the box; this reads nothing.
        source, bbox = as_dask(source if bbox is None else crop_array(source, bbox, outside_ok=missing == "fill")), None
    layer = resolve_source(source, layer_type, missing=missing, **choices)
    if layer_type == "segmentation" and getattr(layer, "declared_type", None) == "image":
        warn(
            Message(
                f"{layer.name} is declared an image, but its {layer.dtype} values are opened as ids; open it with ",
                Wording("imageryxr.open_image", "--image"),
                " if they are grey values",
            )
        )
    return layer, bbox


def open_level(
    layer: Source, mip: Mip, bbox: BBox | None = None, chunks: Any = None, *, outside_ok: bool = False
) -> xr.DataArray:
    """Return a level of a source, or a box of it, as a labelled array; reads nothing."""
    level = find_level(layer, mip)
    layer.check(level.mip)
    dtype = dtype_of(layer, level.mip)
    if layer.layer_type == "segmentation" and dtype.kind not in "iu":
        raise LayerError(
            f"mip {level.mip} of {layer.name} has dtype {dtype}, but ids are whole numbers; open another level, ",
            "or open this one with ",
            Wording("imageryxr.open_image", "--image"),
        )
    if bbox is None:
        return level_array(layer, level, chunks)
    others = [lv.grid for lv in layer.levels]
    array = level_array(layer, level)
    return crop_array(array, bbox, outside_ok=outside_ok, what=layer.name, others=others, chunks=chunks)
