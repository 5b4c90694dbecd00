"""OME-Zarr images and labels (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3), read through zarr-python.

The format: https://ngff.openmicroscopy.org. Of several multiscales in a group the first one is opened. All metadata
are read here once, at opening, and travel with the source, so that a worker asks for chunks only.
"""

from __future__ import annotations

import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.boxes import DIMS, IndexBox
from imageryxr.errors import (
    AuthError,
    CodecError,
    ImageryError,
    MissingChunkError,
    MissingChunkWarning,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.grid import Grid
from imageryxr.sources import ngff
from imageryxr.sources.address import Address
from imageryxr.sources.base import (
    Assume,
    LayerType,
    Level,
    Missing,
    Source,
    check_assume,
    note_holes,
    plain,
    read_error,
    read_filled,
)
from imageryxr.sources.web import Connection
from imageryxr.sources.zarrstore import array_metadata, failures, fetch, fetch_json, open_array

PROTOCOLS = ("file", "http", "https", "s3", "gs")


@dataclass(frozen=True)
class ZarrLevel:
    """Where a level's array lies in the store, and how it is laid out."""

    path: str
    """Path of the array in the group."""
    metadata: str
    """What its ``zarr.json`` or ``.zarray`` says, without its attributes."""
    objects: tuple[int, ...]
    """Shape, along all axes, of one stored object: a chunk, or a shard."""


@dataclass(frozen=True)
class OmeZarrSource:
    """An OME-Zarr image or label with its metadata in hand."""

    url: str = field(repr=False)
    """Where the group lies, ``protocol://…``."""
    name: str
    """Its address without anything secret."""
    layer_type: LayerType
    """What it is opened as."""
    type: str
    """dtype of the voxels, by name."""
    levels: tuple[Level, ...]
    """Every dataset of the multiscale."""
    arrays: tuple[ZarrLevel, ...] = field(repr=False)
    """How each level is stored."""
    axes: tuple[str, ...]
    """Names of the axes as stored: z, y, x, c, t."""
    picks: tuple[tuple[str, int], ...]
    """The index chosen along each axis that is not space."""
    missing: Missing = "raise"
    """What to do about a chunk that the store does not have."""
    window: tuple[float, float] | None = None
    """The contrast limits that the file gives for the channel."""
    token: str | None = field(default=None, repr=False, compare=False)
    """What is sent to a web server as ``Authorization: Bearer``."""
    connection: Connection = field(default=Connection(), compare=False, repr=False)
    """How web servers are asked."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.type)
        return dtype

    @property
    def attrs(self) -> dict[str, Any]:
        """The contrast limits, where the file gives them."""
        return {} if self.window is None or self.layer_type != "image" else {"contrast_limits": self.window}

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the array's codecs are not there."""
        try:
            array_metadata(self.arrays[mip].metadata)
        except ValueError as error:
            codec = re.search(r"'+([^']+)'+", str(error))
            raise CodecError(
                f"{self.name} is stored with the codec {codec[1] if codec else '?'!r}, which zarr does not have here "
                f"({plain(error)}); install the package that brings it, e.g. pip install 'imageryxr[codecs]'"
            ) from error

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the array."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the array."""
        self.check(mip)
        where: dict[str, Any] = {**dict(self.picks), **dict(zip(DIMS, box.slices(), strict=True))}
        stored = self.arrays[mip]
        with failures(self.name, lambda error: read_error(self, mip, box, error)):
            array, absent = open_array(self.url, self.token, stored.path, stored.metadata, self.connection)
            values = np.asarray(array[tuple(where[axis] for axis in self.axes)])
        if absent:
            self._tell_holes(mip, box, absent)
        if "z" not in self.axes:
            values = values[np.newaxis]
        order = [axis for axis in ("z", *self.axes) if axis in DIMS][-3:]
        return np.ascontiguousarray(values.transpose([order.index(d) for d in DIMS]), dtype=self.dtype)

    def _tell_holes(self, mip: int, box: IndexBox, absent: dict[str, bool]) -> None:
        # zarr gives an object that the store does not have as its fill value, in silence.
        refused = [key for key, forbidden in absent.items() if forbidden]
        if refused and fetch(self.url, self.token, self._document, self.name, self.connection) is None:
            raise AuthError(f"{self.name} refused to be read (403: {refused[0]}); check the token or your rights")
        grid = self.levels[mip].grid
        holes = [str(grid.crop(self._hole(mip, key)).bbox) for key in sorted(absent)]
        shown = "; ".join(holes[:3]) + (f"; and {len(holes) - 3} more" if len(holes) > 3 else "")
        if self.missing == "raise":
            hint = (
                "a Zarr store may leave out chunks that hold only the fill value: missing='fill' takes them for that, "
                "'warn' also says which"
            )
            state = "refuses (403)" if refused else "does not have"
            cause = f"the store {state} {len(holes)} of the chunks it needs: {shown}"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint)
        note_holes(self, mip, holes)
        if self.missing == "warn":
            chunks_are = "chunk is" if len(holes) == 1 else "chunks are"
            warnings.warn(
                f"{self.name}, mip {mip}: {len(holes)} missing {chunks_are} filled with the fill value: {shown}",
                MissingChunkWarning,
                stacklevel=2,
            )

    @property
    def _document(self) -> str:
        return "zarr.json" if '"zarr_format": 3' in self.arrays[0].metadata else ".zattrs"

    def _hole(self, mip: int, key: str) -> IndexBox:
        level, stored = self.levels[mip], self.arrays[mip]
        index = [int(part) for part in re.split(r"[/.]", key.removeprefix(stored.path)) if part.isdigit()]
        place = dict(zip(self.axes, zip(index, stored.objects, strict=True), strict=True))
        (z, dz), (y, dy), (x, dx) = (place.get(dim, (0, 1)) for dim in DIMS)
        start = (z * dz, y * dy, x * dx)
        return IndexBox(start, (start[0] + dz, start[1] + dy, start[2] + dx)).clip(level.grid.box)

    def __dask_tokenize__(self) -> object:
        levels = [(astuple(lv.grid), lv.chunks) for lv in self.levels]
        stored = [astuple(a) for a in self.arrays]
        layout = (self.axes, self.picks, self.layer_type, self.type, self.window)
        return ("imageryxr.omezarr", self.url, levels, stored, layout, self.missing)


def open_omezarr(
    address: Address,
    *,
    missing: Missing = "raise",
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
    connection: Connection | None = None,
) -> OmeZarrSource:
    """Return the source of an OME-Zarr group; reads metadata only.

    Parameters
    ----------
    address : Address
        Of the group that holds the ``multiscales``.
    missing : {"raise", "fill", "warn"}
        What to do about an object (a chunk, or a shard) that the store does not have. What a shard's own index
        leaves out was left out on purpose, and is read as the fill value. A 403 counts as missing as long as the
        metadata can be read.
    token : str, optional
        Sent to web servers as ``Authorization: Bearer``. It is not shown, but it is pickled with the source.
    channel, time : int, optional
        Which to open, where there are several.
    assume : {"center", "corner"}
        What a translation is the place of: the centre of the first voxel, or its lower corner. No translation is one
        of 0.
    connection : Connection, optional
        How web servers are asked.

    Raises
    ------
    SourceNotFoundError
        If there is no Zarr group.
    SourceError
        If it is no OME-Zarr image, or its metadata make no sense.
    OptionError
        If ``assume`` is neither.
    """
    check_assume(assume)
    name = address.zarr_name
    if address.protocol not in PROTOCOLS:
        raise SourceError(f"{name}: OME-Zarr is read from {', '.join(PROTOCOLS)}, not from {address.protocol}://")
    connection = connection or Connection()
    ome, version = _ome_metadata(address, token, connection)
    try:
        return _parsed(address, ome, version, missing, token, {"c": channel, "t": time}, assume, connection)
    except ImageryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise SourceError(f"the OME metadata of {name} make no sense: {type(error).__name__}: {error}") from error


def _ome_metadata(address: Address, token: str | None, connection: Connection) -> tuple[dict[str, Any], int]:
    name, path = address.zarr_name, address.local_path
    if path is not None and not path.is_dir():
        raise SourceNotFoundError(f"there is no folder {path}, so no OME-Zarr at {name}; check the path")
    document = fetch_json(address, token, "zarr.json", connection)
    version = 2 if document is None else 3
    if document is not None:
        attributes, is_array = document.get("attributes") or {}, document.get("node_type") == "array"
    else:
        attributes = fetch_json(address, token, ".zattrs", connection)
        is_array = not attributes and fetch(address.url, token, ".zarray", name, connection) is not None
        if attributes is None and not is_array and fetch(address.url, token, ".zgroup", name, connection) is None:
            raise SourceNotFoundError(
                f"there is no OME-Zarr at {name}: neither {address.public}/zarr.json (Zarr v3) nor "
                f"{address.public}/.zattrs (Zarr v2) is there, or may be read; check the path"
            )
    ome = (attributes or {}).get("ome", attributes or {})
    if not is_array and isinstance(ome, dict) and ome.get("multiscales"):
        return ome, version
    raise SourceError(f"{name} {ngff.no_image(name, ome if isinstance(ome, dict) else {}, is_array)}")


def _parsed(
    address: Address,
    ome: dict[str, Any],
    version: int,
    missing: Missing,
    token: str | None,
    asked: dict[str, int | None],
    assume: str,
    connection: Connection,
) -> OmeZarrSource:
    name, multiscale = address.zarr_name, ome["multiscales"][0]
    axes, factors = ngff.axes_of(name, multiscale)
    paths = [str(d["path"]) for d in multiscale["datasets"]]
    with ThreadPoolExecutor(8) as pool:
        documents = list(pool.map(lambda path: _array_document(address, token, path, version, connection), paths))
    layouts = [ngff.layout_of(name, path, d, len(axes)) for path, d in zip(paths, documents, strict=True)]
    types = {layout.dtype for layout in layouts}
    if len(types) > 1:
        raise SourceError(
            f"the levels of {name} differ in type ({', '.join(sorted(types))}), so they are not one image"
        )
    picks = ngff.picks_of(name, axes, layouts[0].shape, asked)
    levels: list[Level] = []
    arrays = []
    for mip, layout in enumerate(layouts):
        grid = ngff.grid_of_level(name, multiscale, mip, layout.shape, axes, factors, assume)
        if levels and "z" not in axes:
            grid = Grid(grid.shape, (*grid.resolution[:2], levels[0].grid.resolution[2]), grid.voxel_offset)
        own = [layout.chunks[axes.index(d)] if d in axes else 1 for d in DIMS]
        levels.append(Level(mip, grid, (own[0], own[1], own[2]), layout.encoding))
        document = {k: v for k, v in documents[mip].items() if k != "attributes"}
        arrays.append(ZarrLevel(paths[mip], json.dumps(document, sort_keys=True), layout.objects))
    is_label = "image-label" in ome or address.url.split("/")[-2:-1] == ["labels"]
    return OmeZarrSource(
        url=address.url,
        name=name,
        layer_type="segmentation" if is_label else "image",
        type=types.pop(),
        levels=tuple(levels),
        arrays=tuple(arrays),
        axes=axes,
        picks=picks,
        missing=missing,
        window=ngff.window_of(ome, dict(picks).get("c", 0)),
        token=token,
        connection=connection,
    )


def _array_document(
    address: Address, token: str | None, path: str, version: int, connection: Connection
) -> dict[str, Any]:
    key = f"{path}/{'zarr.json' if version == 3 else '.zarray'}"
    found = fetch_json(address, token, key, connection)
    if found is None:
        raise SourceError(f"zarr://{address.public} lists the level {path!r}, but there is no {address.public}/{key}")
    return found


_: type[Source] = OmeZarrSource
