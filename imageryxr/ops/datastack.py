"""Open CAVE datastacks as trees, and build boxes in the units of their viewer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import BBox
from imageryxr.core.grid import Grid
from imageryxr.errors import LayerError, OptionError, param
from imageryxr.ops.align import Target, align
from imageryxr.ops.labels import select_ids
from imageryxr.ops.open import Chunks, Mip, check_requested_ids, open_level
from imageryxr.sources.base import Missing, Stale, check_missing, check_stale
from imageryxr.sources.cave import datastack
from imageryxr.sources.fetch.connection import Connection, to_connection
from imageryxr.sources.resolve import is_graphene_address, resolve_source

Unit = Sequence[float] | Literal["viewer", "image", "segmentation"]


def open_datastack(
    client_or_name: Any,
    *,
    timestamp: datetime | str | float | None = None,
    version: int | None = None,
    server_address: str | None = None,
    token: str | None = None,
    ids: Iterable[int] | None = None,
    stale: Stale = "raise",
    agglomerate: bool = True,
    image_mip: Mip = None,
    segmentation_mip: Mip = None,
    bbox: BBox | None = None,
    chunks: Chunks = None,
    missing: Missing = None,
    connection: Connection | None = None,
) -> xr.DataTree:
    """Open the image and the segmentation of a CAVE datastack, at one fixed instant.

    Reads metadata only. The arrays are lazily indexed, as in `open_image` and `open_segmentation`.

    Parameters
    ----------
    client_or_name : str or CAVEclient
        Name of the datastack, or a client for it. The server, the token and the version default to those of the client:
        ``client.version`` or ``client.timestamp``, otherwise the version that ``client.materialize`` is set to.
    timestamp : datetime, str or float, optional
        The instant: a datetime, ISO 8601, `numpy.datetime64` or seconds since 1970. Without a time zone it is
        interpreted as UTC, with a warning. Default: the instant of the version, or the time of this call.
    version : int, optional
        A materialization version; its timestamp is used. Requires a graphene segmentation.
    server_address : str, optional
        The info service. Default: that of the client, the one that caveclient has stored for this datastack, or CAVE's
        global one.
    token : str, optional
        Default: that of the client, the variable ``CAVE_TOKEN``, or the files in ``~/.cloudvolume/secrets``. A token
        given here is sent to workers, hidden from logs; any other is looked up on the worker.
    ids : iterable of int, optional
        Keep these segments only; all others become 0.
    stale : {"raise", "update", "keep"}, default "raise"
        How to handle ids that are not current at the instant, as in `open_segmentation`.
    agglomerate : bool, default True
        Whether to return root ids; False returns supervoxels.
    image_mip, segmentation_mip : int or (x, y, z), optional
        Levels, by number or by resolution in nm. Default: the levels with the smallest voxels.
    bbox : BBox, optional
        Open this box only, as dask arrays.
    chunks : int, tuple, dict or "auto", optional
        Make dask blocks, as in `open_image`.
    missing : {None, "raise", "fill", "warn"}, default None
        How to handle missing chunks, as in `open_image`.
    connection : Connection, optional
        Timeouts, retries and concurrent requests.

    Returns
    -------
    DataTree
        Children ``image`` and ``segmentation``, each with one variable of that name, dims (z, y, x). Attrs
        ``datastack``, ``server_address``, ``viewer_resolution`` (x, y, z nm), ``image_source``,
        ``segmentation_source``, and for a graphene segmentation ``timestamp`` (UTC) and, if known, ``version``.

    Raises
    ------
    SourceNotFoundError
        If there is no such datastack, version or table.
    AuthError
        If the token is missing or invalid, lacks permission, or its owner has not accepted the terms of service; each
        case is a subclass.
    TimestampError
        If the instant is before the first state of the graph or in the future.
    SegmentError, StaleRootError
        If an id is not a root, or is not current at the instant.
    MipError
        If a layer has no such level.
    OptionError
        If both ``version`` and ``timestamp`` are given, or the segmentation has no versions.
    ServerError
        If a server does not respond.

    Examples
    --------
    >>> import imageryxr as ix
    >>> tree = ix.open_datastack("minnie65_public", version=1078)  # doctest: +SKIP
    >>> box = tree.imagery.around((240640, 207872, 21360), (1024, 1024))  # doctest: +SKIP
    >>> tree.imagery.align(bbox=box).imagery.overlay(alpha=0.3)  # doctest: +SKIP
    """
    if version is not None and timestamp is not None:
        raise OptionError("version=", " and ", "timestamp=", " both define the instant; give only one of them")
    check_missing(missing)
    check_stale(stale)
    connection = to_connection(connection)
    stack = datastack.find_datastack(
        client_or_name, server_address=server_address, version=version, token=token, connection=connection
    )
    has_versions = is_graphene_address(stack.segmentation_source)
    if version is not None and not has_versions:
        raise OptionError(
            param("version", text=f"{version}"),
            f": the segmentation of {stack.name} ({stack.segmentation_source}) is static and has no versions; omit ",
            param("version"),
        )
    when = stack.instant if timestamp is None and has_versions else timestamp
    options: dict[str, Any] = {"missing": missing, "token": stack.token}
    image = resolve_source(stack.image_source, "image", connection=stack.connection_to("image", connection), **options)
    segmentation_connection = stack.connection_to("segmentation", connection)
    segmentation = resolve_source(
        stack.segmentation_source,
        "segmentation",
        agglomerate=agglomerate,
        timestamp=when,
        connection=segmentation_connection,
        **options,
    )
    outside_ok = missing == "fill"
    segmentation, requested = check_requested_ids(segmentation, ids, stale)
    labels = open_level(segmentation, segmentation_mip, bbox, chunks, outside_ok=outside_ok)
    layers = {
        "image": open_level(image, image_mip, bbox, chunks, outside_ok=outside_ok),
        "segmentation": labels if requested is None else select_ids(labels, requested),
    }
    attrs = _tree_attrs(stack, layers, version if timestamp is None else None)
    children = {f"/{name}": array.to_dataset(name=name) for name, array in layers.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **children})


def _tree_attrs(stack: datastack.Datastack, layers: dict[str, xr.DataArray], version: int | None) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "datastack": stack.name,
        "server_address": stack.server,
        "image_source": layers["image"].attrs["source"],
        "segmentation_source": layers["segmentation"].attrs["source"],
    }
    if stack.viewer_resolution is not None:
        attrs["viewer_resolution"] = stack.viewer_resolution
    if "timestamp" in layers["segmentation"].attrs:
        attrs["timestamp"] = layers["segmentation"].attrs["timestamp"]
        opened = version if version is not None else stack.version
        if opened is not None and stack.instant is not None and stack.instant.iso == attrs["timestamp"]:
            attrs["version"] = opened
    return attrs


def resolution_of(tree: xr.DataTree, resolution: Unit = "viewer") -> tuple[float, float, float]:
    """Return the resolution (x, y, z nm) that a name such as "viewer" has in a tree; numbers are returned unchanged.

    Reads nothing.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_datastack`.
    resolution : {"viewer", "image", "segmentation"} or (x, y, z)
        "viewer" is the resolution of the datastack's viewer, the unit of positions copied from it; "image" and
        "segmentation" are the resolutions of these layers as opened.

    Returns
    -------
    tuple of 3 float
        nm per unit.

    Raises
    ------
    OptionError
        If the name is unknown, or the tree has no such resolution.
    """
    if not isinstance(resolution, str):
        x, y, z = (float(v) for v in BBox((0, 0, 0), (1, 1, 1), resolution=resolution).resolution)
        return (x, y, z)
    tree = tree.root
    if resolution == "viewer" and "viewer_resolution" in tree.attrs:
        x, y, z = (float(v) for v in tree.attrs["viewer_resolution"])
        return (x, y, z)
    if resolution in ("image", "segmentation") and resolution in tree.children:
        return grid_of(_layer(tree, resolution)).resolution
    words = [*(["'viewer'"] if "viewer_resolution" in tree.attrs else []), *(f"{c!r}" for c in tree.children)]
    raise OptionError(
        param("resolution", resolution),
        f" is not defined in this tree; give one of {', '.join(words)}, or (x, y, z) nm per unit",
    )


def bbox(tree: xr.DataTree, lo: Sequence[float], hi: Sequence[float], *, resolution: Unit = "viewer") -> BBox:
    """Return the box between two corners, in the units of a datastack's viewer.

    Reads nothing.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_datastack`.
    lo, hi : sequence of 3 numbers
        Corners (x, y, z), the upper one exclusive.
    resolution : {"viewer", "image", "segmentation"} or (x, y, z), default "viewer"
        The unit of the corners, see `resolution_of`.

    Returns
    -------
    BBox
        Box for `crop`, `align` and the ``bbox`` parameter of the functions that open layers.

    Raises
    ------
    BoxError
        As in `BBox`.
    OptionError
        If the tree does not define the unit.
    """
    return BBox(lo, hi, resolution=resolution_of(tree, resolution))


def around(
    tree: xr.DataTree,
    center: Sequence[float],
    size: Sequence[float],
    *,
    resolution: Unit = "viewer",
    size_resolution: Unit | None = None,
) -> BBox:
    """Return a box of a given size around a point, in the units of a datastack's viewer.

    Reads nothing.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_datastack`.
    center, size
        As in `BBox.around`.
    resolution : {"viewer", "image", "segmentation"} or (x, y, z), default "viewer"
        The unit of ``center``, see `resolution_of`.
    size_resolution : {"viewer", "image", "segmentation"} or (x, y, z), optional
        The unit of ``size``; use "image" for an exact number of image pixels. Default: ``resolution``.

    Returns
    -------
    BBox
        See `BBox.around`.

    Raises
    ------
    BoxError
        As in `BBox.around`.
    OptionError
        If the tree does not define a unit.
    """
    unit = None if size_resolution is None else resolution_of(tree, size_resolution)
    return BBox.around(center, size, resolution=resolution_of(tree, resolution), size_resolution=unit)


def align_tree(
    tree: xr.DataTree, *, to: Target | Grid | tuple[float, float, float] = "finest", bbox: BBox | None = None
) -> xr.Dataset:
    """Align the image and the segmentation of a tree on one grid.

    Lazy: reads nothing.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_datastack`.
    to, bbox
        As in `align`.

    Returns
    -------
    Dataset
        Variables ``image`` and ``segmentation``, with the attrs of the tree.

    Raises
    ------
    LayerError
        If the tree has no image or no segmentation.
    """
    dataset = align(_layer(tree, "image"), _layer(tree, "segmentation"), to=to, bbox=bbox)
    return dataset.assign_attrs({**tree.attrs, **dataset.attrs})


def _layer(tree: xr.DataTree, name: str) -> xr.DataArray:
    if name not in tree.children or name not in tree[name].data_vars:
        raise LayerError(f"the tree has no {name} (it has {', '.join(tree.children) or 'nothing'}); see open_datastack")
    found = tree[name][name]
    assert isinstance(found, xr.DataArray)
    return found
