"""OME-Zarr images and labels (NGFF 0.4 to 0.6, on Zarr v2 and v3), read through zarr-python.

Format: https://ngff.openmicroscopy.org. If a group has several multiscales, the first one is opened. All metadata are
read once, when the image is opened, and pickled with the source, so that a worker requests chunks only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import (
    AuthError,
    ImageryError,
    Message,
    MissingChunkError,
    SourceError,
    SourceNotFoundError,
    Wording,
    param,
)
from imageryxr.sources.address import Address
from imageryxr.sources.base import (
    Assume,
    LayerType,
    Level,
    Missing,
    Source,
    check_assume,
    dtype_of,
    list_boxes,
    read_error,
    read_filled,
    report_missing_chunks,
)
from imageryxr.sources.fetch.connection import Connection, to_connection
from imageryxr.sources.fetch.stamps import MetadataFile
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.omezarr import groups
from imageryxr.sources.omezarr import metadata as ngff
from imageryxr.sources.omezarr.array_metadata import Layout, layout_of
from imageryxr.sources.omezarr.bounded_codecs import check_bounded
from imageryxr.sources.omezarr.codec_metadata import codec_error
from imageryxr.sources.omezarr.group_requests import GROUP_KEYS, Ask, GroupFiles, request_group, requested_metadata
from imageryxr.sources.omezarr.stores import (
    fetch,
    fetch_json,
    fetch_json_file,
    open_local_array,
    parse_array_metadata,
    remote_store,
    translate_errors,
)
from imageryxr.sources.omezarr.transforms import grid_of_level, other_axes_of
from imageryxr.sources.omezarr.zip_store import find_archive

PROTOCOLS = ("file", "http", "https", "s3", "gs")


@dataclass(frozen=True)
class ZarrLevel:
    """The array of a level: its path and layout in the store."""

    path: str
    """Path of the array in the group."""
    metadata: str
    """Checked ``zarr.json`` or ``.zarray`` without attributes, in the form of zarr-python."""
    objects: tuple[int, ...]
    """Shape along all axes of a stored object, which is a chunk or a shard."""
    has_separator: bool = True
    """Whether the metadata state the separator of the indexes in chunk names."""
    stamp: str = field(default="", compare=False, repr=False)
    """Text that changes when the metadata of the group or array are written; part of the keys of cached chunks."""


@dataclass(frozen=True)
class OmeZarrSource:
    """An OME-Zarr image or label, including its metadata."""

    url: str = field(repr=False)
    """Location of the group, ``protocol://…``."""
    name: str
    """Address without secrets."""
    layer_type: LayerType
    """Kind of layer that it is opened as."""
    type: str
    """Name of the data type of the voxels."""
    levels: tuple[Level, ...]
    """All datasets of the multiscale."""
    arrays: tuple[ZarrLevel, ...] = field(repr=False)
    """Array of each level."""
    axes: tuple[str, ...]
    """Names of the axes as stored: z, y, x, c, t."""
    picks: tuple[tuple[str, int], ...]
    """Selected index along each non-spatial axis."""
    missing: Missing = None
    """Policy for missing chunks; None reads them as the fill value."""
    others: tuple[tuple[str, float, float], ...] = field(default=(), compare=False, repr=False)
    """Non-spatial axes as (name, scale, offset): the scale in seconds for times, the offset of index 0 in indexes."""
    window: tuple[float, float] | None = None
    """Contrast limits of the channel in the metadata."""
    token: str | None = field(default=None, repr=False, compare=False)
    """Token for web servers, sent as ``Authorization: Bearer``."""
    connection: Connection = field(default=Connection(), compare=False, repr=False)
    """Options of requests to web servers."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.type)
        return dtype

    @property
    def attrs(self) -> dict[str, Any]:
        """Contrast limits, if the metadata contain them."""
        return {} if self.window is None or self.layer_type != "image" else {"contrast_limits": self.window}

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the codecs of the array are not registered or cannot be used."""
        text = self.arrays[mip].metadata
        try:
            parse_array_metadata(text)
        except ImageryError:
            raise
        except Exception as error:
            raise codec_error(self.name, text, error) from error
        check_bounded(self.name, text, self.connection.access)

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the array."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the array."""
        self.check(mip)
        stored = self.arrays[mip]
        with translate_errors(self.name, lambda error: read_error(self, mip, box, error)):
            if self.url.startswith("file://"):
                where: dict[str, Any] = {**dict(self.picks), **dict(zip(DIMS, box.slices(), strict=True))}
                array, absent = open_local_array(self.url, stored.path, stored.metadata)
                values = np.asarray(array[tuple(where[axis] for axis in self.axes)])
            else:
                values, absent = self._read_remote(stored, box)
        if absent:
            self._check_absent(mip, box, absent)
        if "z" not in self.axes:
            values = values[np.newaxis]
        order = [axis for axis in ("z", *self.axes) if axis in DIMS][-3:]
        return np.ascontiguousarray(values.transpose([order.index(d) for d in DIMS]), dtype=dtype_of(self, mip))

    def _read_remote(self, stored: ZarrLevel, box: IndexBox) -> tuple[npt.NDArray[Any], dict[str, bool]]:
        from imageryxr.sources.omezarr.chunks import read_slices

        picks = {axis: slice(index, index + 1) for axis, index in self.picks}
        where = {**picks, **dict(zip(DIMS, box.slices(), strict=True))}
        store = remote_store(self.url, self.token, self.connection, stored.metadata, stored.stamp)
        slices = tuple(where[axis] for axis in self.axes)
        values, absent = read_slices(store, stored.path, stored.metadata, slices, self.connection)
        return values[tuple(0 if axis in picks else slice(None) for axis in self.axes)], absent

    def _check_absent(self, mip: int, box: IndexBox, absent: dict[str, bool]) -> None:
        """Apply the policy ``missing`` to objects that zarr-python has read as the fill value."""
        forbidden_keys = [key for key, forbidden in absent.items() if forbidden]
        if forbidden_keys and fetch(self.url, self.token, self._document, self.name, self.connection) is None:
            raise AuthError(
                f"access to {self.name} was denied (HTTP 403: {forbidden_keys[0]}); check the token and your "
                "permissions"
            )
        self._check_separator(mip, box, min(absent))
        if self.missing is None and not forbidden_keys:
            return  # by the specification, a missing object holds the fill value
        grid = self.levels[mip].grid
        keys = forbidden_keys if self.missing is None else absent
        boxes = [str(grid.crop(self._missing_box(mip, key)).bbox) for key in sorted(keys)]
        if self.missing is None or self.missing == "raise":
            hint = Message(
                "a Zarr store may leave out chunks that hold only the fill value: ",
                param("missing", "fill"),
                " reads missing chunks as the fill value, ",
                Wording("'warn' also lists them", "--missing warn also lists them"),
            )
            state = "denies access (HTTP 403) to" if forbidden_keys else "does not have"
            cause = f"the store {state} {len(boxes)} of the chunks it needs: {list_boxes(boxes)}"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint)
        report_missing_chunks(self, mip, boxes, "the fill value")

    def _check_separator(self, mip: int, box: IndexBox, key: str) -> None:
        # The default separator of a .zarray is '.', but some writers use '/' without stating it. Then every chunk would
        # be read as the fill value.
        stored = self.arrays[mip]
        if stored.has_separator:
            return
        other = f"{key.removesuffix(key.split('/')[-1])}{key.split('/')[-1].replace('.', '/')}"
        if other != key and fetch(self.url, self.token, other, self.name, self.connection) is not None:
            cause = (
                f"its .zarray has no dimension_separator, so the default '.' applies, but its chunks are stored with "
                f"'/' ({other}); append #dimension_separator=/ to the address, or add the member to the .zarray"
            )
            raise read_error(self, mip, box, cause)

    @property
    def _document(self) -> str:
        return "zarr.json" if '"zarr_format": 3' in self.arrays[0].metadata else ".zattrs"

    def _missing_box(self, mip: int, key: str) -> IndexBox:
        level, stored = self.levels[mip], self.arrays[mip]
        index = [int(part) for part in re.split(r"[/.]", key.removeprefix(stored.path)) if part.isdigit()]
        place = dict(zip(self.axes, zip(index, stored.objects, strict=True), strict=True))
        (z, dz), (y, dy), (x, dx) = (place.get(dim, (0, 1)) for dim in DIMS)
        start = (z * dz, y * dy, x * dx)
        return IndexBox(start, (start[0] + dz, start[1] + dy, start[2] + dx)).clip(level.grid.box)

    def __dask_tokenize__(self) -> object:
        levels = [(astuple(lv.grid), lv.chunks, lv.dtype) for lv in self.levels]
        stored = [(a.path, a.metadata, a.objects, a.has_separator) for a in self.arrays]
        layout = (self.axes, self.picks, self.layer_type, self.type, self.window)
        return ("imageryxr.omezarr", self.url, levels, stored, layout, self.missing)


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
        Result of `request_group`; by default the metadata of the group are requested.

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
        raise SourceError(f"{name}: OME-Zarr is supported on {', '.join(PROTOCOLS)}, not on {address.protocol}://")
    connection = to_connection(connection)
    picks = {"c": channel, "t": time}
    with requested_metadata(address, token, connection, group) as asked:
        ome, version, stamp = _ome_metadata(address, token, connection, asked.group)
        file = MetadataFile(ome, stamp)
        try:
            return _build_source(address, file, version, missing, token, picks, assume, connection, asked.arrays)
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
    for version, ask in zip((3, 2), group or request_group(address, token, connection), strict=True):
        try:
            file = ask()
        except AuthError as error:  # some servers send a page for a file that does not exist
            denied, file = denied or error, None
        if file is None:
            continue
        document = file.content
        if version == 3 and document.get("node_type") == "array":
            raise SourceError(f"{name} {groups.bare_array_message(address, document)}")
        found[version] = _ome_of(document.get("attributes") if version == 3 else document)
        if found[version].get("multiscales"):
            return found[version], version, file.stamp
    if denied is not None:
        raise denied
    array = fetch_json(address, token, ".zarray", connection) if not found.get(2) and 3 not in found else None
    if array is not None:
        raise SourceError(f"{name} {groups.bare_array_message(address, array)}")
    if not found and fetch_json(address, token, ".zgroup", connection) is None:
        raise _not_found_error(address)
    ome = next((ome for ome in found.values() if ome), {})

    def below(group: str) -> dict[str, Any]:
        return _attributes(Address("zarr", f"{address.url}/{group}"), token, connection)

    raise SourceError(f"{name} {groups.non_image_message(address, ome, below)}")


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
    requested: dict[str, int | None],
    assume: str,
    connection: Connection,
    asked: Mapping[str, Ask],
) -> OmeZarrSource:
    name, ome = address.zarr_name, group.content
    multiscale = ngff.first_multiscale(name, ome)
    paths = ngff.dataset_paths(name, multiscale)
    ngff.check_version(
        name, ome, multiscale, f"open a level and place it: {groups.array_advice(address, paths[0], None)}"
    )
    axes = ngff.axes_of(name, multiscale)
    arrays = run_in_parallel(
        lambda path, stop: _array_layout(address, token, path, (version, len(axes.names)), connection, asked),
        paths,
        len(paths),
    )
    layouts = [layout for layout, _ in arrays]
    picks = ngff.picks_of(name, axes.names, layouts[0].shape, requested)
    grids = [grid_of_level(name, multiscale, mip, lay.shape, axes, assume) for mip, lay in enumerate(layouts)]
    if "z" not in axes.names:  # a single slice has the same thickness at all levels
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
    asked: Mapping[str, Ask],
) -> tuple[Layout, str]:
    """Return the layout of the array of a level, and the stamp of its metadata."""
    version, count = form
    name, key = address.zarr_name, f"{path}/{'zarr.json' if version == 3 else '.zarray'}".lstrip("/")
    found = asked[key]() if key in asked else fetch_json_file(address, token, key, connection)
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


_: type[Source] = OmeZarrSource
