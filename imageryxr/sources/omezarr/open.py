"""Open OME-Zarr images and labels: find the metadata of the group and of its arrays, and check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from imageryxr.core.bbox import DIMS
from imageryxr.core.grid import Grid
from imageryxr.errors import (
    AuthError,
    ImageryError,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.sources.address import Address
from imageryxr.sources.base import (
    Assume,
    Level,
    MetadataFile,
    Missing,
    check_assume,
)
from imageryxr.sources.fetch.connection import Connection, to_connection
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.omezarr import metadata as ngff
from imageryxr.sources.omezarr import open
from imageryxr.sources.omezarr.array_metadata import Layout, layout_of
from imageryxr.sources.omezarr.source import OmeZarrSource, ZarrLevel
from imageryxr.sources.omezarr.stores import (
    GROUP_KEYS,
    GroupFiles,
    PendingFile,
    fetch_json,
    fetch_json_file,
    request_group,
    requested_metadata,
)
from imageryxr.sources.omezarr.transforms import grid_of_level, other_axes_of
from imageryxr.sources.omezarr.zip_store import find_archive

PROTOCOLS = ("file", "http", "https", "s3", "gs")


def open_omezarr(
    address: Address,
    *,
    missing: Missing = None,
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    connection: Connection | None = None,
    group: GroupFiles | None = None,
) -> OmeZarrSource:
    """Return the source of an OME-Zarr group; reads metadata only.

    Parameters
    ----------
    address : Address
        Address of the group with the ``multiscales``, in a folder, a bucket, on a web server or in a local zip archive.
    missing : {None, "raise", "fill", "warn"}
        Policy for missing objects (chunks or shards). None reads them as the fill value, by the specification. Chunks
        that are missing in the index of a shard are always read as the fill value. A 403 is an error with None and
        "raise"; with the other policies the object counts as missing if the metadata can be read.
    token : str, optional
        Sent to web servers as ``Authorization: Bearer``. It is never shown, but is pickled with the source.
    channel, time : int, optional
        Index of the channel and time to open, if there are several.
    assume : {"center", "corner"}
        Point of the first voxel that a translation refers to: its centre or its lower corner. A missing translation is
        0.
    connection : Connection, optional
        Options of requests to web servers.
    group : sequence of callable, optional
        Result of `request_group`, to use its answers. Default: the metadata of the group are requested.

    Raises
    ------
    SourceNotFoundError
        If there is no Zarr group.
    SourceError
        If the group is not an OME-Zarr image, or its metadata are not valid.
    OptionError
        If ``assume`` has another value.
    """
    check_assume(assume)
    name = address.zarr_name
    if address.protocol not in PROTOCOLS:
        raise SourceError(
            f"{name}: OME-Zarr is read from {', '.join(PROTOCOLS)}, not from {address.protocol}://; copy it there"
        )
    connection = to_connection(connection)
    picks = {"c": channel, "t": time}
    with requested_metadata(address, token, connection, group) as requested:
        ome, version, stamp = _ome_metadata(address, token, connection, requested.group)
        file = MetadataFile(ome, stamp)
        try:
            return _build_source(address, file, version, missing, token, picks, assume, connection, requested.arrays)
        except ImageryError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            raise SourceError(f"the OME metadata of {name} are not valid: {type(error).__name__}: {error}") from error


def _ome_metadata(
    address: Address, token: str | None, connection: Connection, group: GroupFiles | None
) -> tuple[dict[str, Any], int, str]:
    """Return the OME metadata of an image's group, the version of its Zarr format, and the stamp of the metadata."""
    name, path = address.zarr_name, address.local_path
    if path is not None and not path.is_dir() and find_archive(path) is None:
        raise SourceNotFoundError(f"there is no folder {path}, so no OME-Zarr at {name}; check the path")
    found: dict[int, dict[str, Any]] = {}
    denied: AuthError | None = None
    if path is not None:  # the second file is read only if it is needed
        group = [partial(fetch_json_file, address, token, key, connection) for key in GROUP_KEYS]
    for version, pending in zip((3, 2), group or request_group(address, token, connection), strict=True):
        try:
            file = pending()
        except AuthError as error:  # some servers send a login page for a file that does not exist
            denied, file = denied or error, None
        if file is None:
            continue
        document = file.content
        if version == 3 and document.get("node_type") == "array":
            raise SourceError(f"{name} {open.bare_array_message(address, document)}")
        found[version] = _ome_of(document.get("attributes") if version == 3 else document)
        if found[version].get("multiscales"):
            return found[version], version, file.stamp
    if denied is not None:
        raise denied
    array = fetch_json(address, token, ".zarray", connection) if not found.get(2) and 3 not in found else None
    if array is not None:
        raise SourceError(f"{name} {open.bare_array_message(address, array)}")
    if not found and fetch_json(address, token, ".zgroup", connection) is None:
        raise _not_found_error(address)
    ome = next((ome for ome in found.values() if ome), {})

    def below(group: str) -> dict[str, Any]:
        return _attributes(Address("zarr", f"{address.url}/{group}"), token, connection)

    raise SourceError(f"{name} {open.non_image_message(address, ome, below)}")


def _ome_of(attributes: Any) -> dict[str, Any]:
    members = attributes if isinstance(attributes, dict) else {}
    inner = members.get("ome", members)
    return inner if isinstance(inner, dict) else {}


def _attributes(address: Address, token: str | None, connection: Connection) -> dict[str, Any]:
    """Return the OME metadata of a group; an empty dict if there are none or they cannot be read."""
    with suppress(ImageryError):
        for key in GROUP_KEYS:
            with suppress(AuthError):  # as in `_ome_metadata`
                found = fetch_json(address, token, key, connection)
                if found is not None:
                    return _ome_of(found.get("attributes") if key == "zarr.json" else found)
    return {}


def _not_found_error(address: Address) -> SourceNotFoundError:
    packed = address.url.endswith((".zip", ".ozx"))
    advice = (
        "zip archives are read from local paths only: download it, or unpack it there" if packed else "check the path"
    )
    return SourceNotFoundError(
        f"there is no OME-Zarr at zarr://{address.public}: neither {address.public}/zarr.json (Zarr v3) nor "
        f"{address.public}/.zattrs (Zarr v2) exists or can be read; {advice}"
    )


def _build_source(
    address: Address,
    group: MetadataFile,
    version: int,
    missing: Missing,
    token: str | None,
    chosen: dict[str, int | None],
    assume: str,
    connection: Connection,
    requested: Mapping[str, PendingFile],
) -> OmeZarrSource:
    name, ome = address.zarr_name, group.content
    multiscale = ngff.first_multiscale(name, ome)
    paths = ngff.dataset_paths(name, multiscale)
    ngff.check_version(
        name, ome, multiscale, f"open a level and place it: {open.array_advice(address, paths[0], None)}"
    )
    axes = ngff.axes_of(name, multiscale)
    arrays = run_in_parallel(
        lambda path, stop: _array_layout(address, token, path, (version, len(axes.names)), connection, requested),
        paths,
        len(paths),
    )
    layouts = [layout for layout, _ in arrays]
    picks = ngff.picks_of(name, axes.names, layouts[0].shape, chosen)
    grids = [grid_of_level(name, multiscale, mip, lay.shape, axes, assume) for mip, lay in enumerate(layouts)]
    if "z" not in axes.names:  # a single slice must have the same thickness at all levels
        thickness = min(grid.resolution[2] for grid in grids)
        grids = [Grid(g.shape, (*g.resolution[:2], thickness), g.voxel_offset) for g in grids]
    finest = min(
        range(len(grids)), key=lambda i: grids[i].resolution[0] * grids[i].resolution[1] * grids[i].resolution[2]
    )
    dtype = layouts[finest].dtype
    return OmeZarrSource(
        url=address.url,
        name=name,
        layer_type="segmentation" if _is_label(address, ome, token, connection) else "image",
        type=dtype,
        levels=tuple(
            Level(mip, grid, _chunks(lay, axes.names), lay.encoding, dtype=None if lay.dtype == dtype else lay.dtype)
            for mip, (grid, lay) in enumerate(zip(grids, layouts, strict=True))
        ),
        arrays=tuple(
            ZarrLevel(path, lay.document, lay.objects, lay.has_separator, f"{group.stamp} {stamp}".strip())
            for path, (lay, stamp) in zip(paths, arrays, strict=True)
        ),
        axes=axes.names,
        picks=picks,
        others=other_axes_of(f"{name}: level 0", multiscale, axes),
        missing=missing,
        window=ngff.window_of(ome, dict(picks).get("c", 0)),
        token=token,
        connection=connection,
    )


def _chunks(layout: Layout, axes: tuple[str, ...]) -> tuple[int, int, int]:
    z, y, x = (layout.chunks[axes.index(d)] if d in axes else 1 for d in DIMS)
    return (z, y, x)


def _array_layout(
    address: Address,
    token: str | None,
    path: str,
    form: tuple[int, int],
    connection: Connection,
    requested: Mapping[str, PendingFile],
) -> tuple[Layout, str]:
    """Return the layout of the array of a level, and the stamp of its metadata."""
    version, count = form
    name, key = address.zarr_name, f"{path}/{'zarr.json' if version == 3 else '.zarray'}".lstrip("/")
    found = requested[key]() if key in requested else fetch_json_file(address, token, key, connection)
    if found is None:
        raise SourceError(f"{name} lists the level {path!r}, but there is no {address.public}/{key}")
    layout = layout_of(f"{name}/{path}", found.content, version)
    if len(layout.shape) != count:
        raise SourceError(f"{name}: the array {path!r} has {len(layout.shape)} axes, but the metadata list {count}")
    return layout, found.stamp


def _is_label(address: Address, ome: dict[str, Any], token: str | None, connection: Connection) -> bool:
    """Return whether an image contains labels, by its own metadata or by the list in a parent folder "labels"."""
    if "image-label" in ome:
        return True
    above, found, label = address.url.rpartition("/labels/")
    if not found:
        return False
    listed = _attributes(Address("zarr", f"{above}/labels"), token, connection).get("labels")
    return isinstance(listed, list) and label in [str(entry).strip("/") for entry in listed]


Attributes = Callable[[str], dict[str, Any]]
"""Function that returns the OME metadata of the subgroup at a path; an empty dict if it has none."""


def non_image_message(address: Address, ome: dict[str, Any], attributes: Attributes) -> str:
    """Return the content of a group without an image, and the addresses that open it, as the end of a sentence.

    The sentence starts with the name of the group. `attributes` reads the metadata of a subgroup.
    """
    name = f"zarr://{address.public}"
    if isinstance(ome.get("plate"), dict):
        wells = _paths(ome["plate"].get("wells"))
        well = wells[0] if wells else "A/1"
        fields = _paths(_member(attributes(well), "well", "images")) or ["0"]
        return f"is a plate of many images; give one of them, such as {name}/{well}/{fields[0]}"
    if isinstance(ome.get("labels"), list):
        found = [str(label) for label in ome["labels"] if isinstance(label, str)]
        return f"lists the labels of an image; give one of them: {_addresses(name, found) or name + '/NAME'}"
    if isinstance(ome.get("well"), dict):
        fields = _paths(ome["well"].get("images")) or ["0"]
        return f"is a well with {len(fields)} images; give one of them: {_addresses(name, fields)}"
    if "bioformats2raw.layout" in ome:
        series = attributes("OME").get("series")
        images = [s for s in series if isinstance(s, str)] if isinstance(series, list) else ["0"]
        return f"holds the images of a bioformats2raw folder; give one of them: {_addresses(name, images)}"
    below = child_images(address, attributes)
    if below:
        return f"is a Zarr group without OME metadata, which holds images; give one of them: {_addresses(name, below)}"
    # `child_images` has found that no group in a local folder is an image.
    image = "" if address.local_path is not None else f"give the group of an image, such as {name}/0; "
    return (
        f"is a Zarr group without OME metadata (no 'multiscales'); {image}open a group that xarray wrote, such as "
        f"cutouts, with xarray.open_zarr; or open one of its arrays: "
        f"{array_advice(address, 'ARRAY', None)}"
    )


def child_images(address: Address, attributes: Attributes) -> list[str]:
    """Return the names of the images in a local folder, among its first 50 folders."""
    path = address.local_path
    try:
        children = sorted(p.name for p in path.iterdir() if p.is_dir())[:50] if path is not None else []
    except OSError:
        return []
    return [child for child in children if attributes(child).get("multiscales")]


def bare_array_message(address: Address, document: dict[str, Any]) -> str:
    """Return how to open a Zarr array without OME metadata, as the end of a sentence that starts with its name."""
    above = f"zarr://{address.public}".rpartition("/")[0]
    shape = document.get("shape")
    count = len(shape) if isinstance(shape, list) else None
    return (
        f"is a bare Zarr array without a position; give its parent group if that has OME metadata ({above}), or "
        f"add coordinates: {array_advice(address, '', count)}"
    )


def array_advice(address: Address, path: str, count: int | None) -> str:
    """Return code that opens the array at a path of a group and adds coordinates; the code reads no voxels.

    `count` is the number of its axes, if known.
    """
    place = f"{address.public.removeprefix('file://')}/{path}".rstrip("/")
    if address.local_path is not None:
        opened = f"dask.array.from_zarr({place!r})"
    else:
        store = f"zarr.storage.ObjectStore(obstore.store.from_url({place!r}), read_only=True)"
        opened = f"dask.array.from_zarr(zarr.open_array({store}, mode='r'))"
    index = f"[{', '.join(['0'] * (count - 3))}]" if count is not None and count > 3 else ""
    return (
        f"array = {opened}{index}; em = xarray.DataArray(array, dims=('z', 'y', 'x'), "
        "coords=imageryxr.Grid(array.shape, (8, 8, 40), (0, 0, 0)).coords()), with the size of a voxel (x, y, z nm) "
        "in place of (8, 8, 40)"
    )


def _paths(entries: Any) -> list[str]:
    found = entries if isinstance(entries, list) else []
    return [e["path"].strip("/") for e in found if isinstance(e, dict) and isinstance(e.get("path"), str)]


def _member(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _addresses(name: str, paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(f"{name}/{path[:80]}" for path in paths[:5]) + more
