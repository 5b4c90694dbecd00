"""OME-Zarr images and labels (NGFF 0.4 to 0.6, on Zarr v2 and v3), read through zarr-python.

Format: https://ngff.openmicroscopy.org. If a group has several multiscales, the first one is opened. All metadata are
read once, when the image is opened, and pickled with the source, so that a worker requests chunks only.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.errors import (
    AuthError,
    ImageryError,
    Message,
    MissingChunkError,
    Wording,
    param,
)
from imageryxr.sources.base import (
    LayerType,
    Level,
    Missing,
    Source,
    dtype_of,
    list_boxes,
    read_error,
    read_filled,
    report_missing_chunks,
)
from imageryxr.sources.fetch.connection import DEFAULT_CONNECTION, Connection
from imageryxr.sources.omezarr.bounded_codecs import check_bounded
from imageryxr.sources.omezarr.codec_metadata import codec_error
from imageryxr.sources.omezarr.stores import (
    fetch,
    open_local_array,
    parse_array_metadata,
    remote_store,
    translate_errors,
)


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
    """Non-spatial axes as (name, scale, offset); scales of times are in seconds, offsets are indexes."""
    window: tuple[float, float] | None = None
    """Contrast limits of the channel in the metadata."""
    token: str | None = field(default=None, repr=False, compare=False)
    """Token for web servers, sent as ``Authorization: Bearer``."""
    connection: Connection = field(default=DEFAULT_CONNECTION, compare=False, repr=False)
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
            read = self._read_local if self.url.startswith("file://") else self._read_remote
            values, absent = read(stored, box)
        if absent:
            self._check_absent(mip, box, absent)
        return np.ascontiguousarray(values, dtype=dtype_of(self, mip))

    def _read_local(self, stored: ZarrLevel, box: IndexBox) -> tuple[npt.NDArray[Any], dict[str, bool]]:
        where: dict[str, Any] = {**dict(self.picks), **dict(zip(DIMS, box.slices(), strict=True))}
        array, absent = open_local_array(self.url, stored.path, stored.metadata)
        values = np.asarray(array[tuple(where[axis] for axis in self.axes)])
        if "z" not in self.axes:
            values = values[np.newaxis]
        order = [axis for axis in ("z", *self.axes) if axis in DIMS][-3:]
        return values.transpose([order.index(d) for d in DIMS]), absent

    def _read_remote(self, stored: ZarrLevel, box: IndexBox) -> tuple[npt.NDArray[Any], dict[str, bool]]:
        from imageryxr.sources.omezarr.chunks import read_box

        picks = dict(self.picks)
        store = remote_store(self.url, self.token, self.connection, stored.metadata, stored.stamp)
        axes = tuple(picks.get(axis, axis) for axis in self.axes)
        return read_box(store, stored.path, stored.metadata, axes, box, self.connection)

    def _check_absent(self, mip: int, box: IndexBox, absent: dict[str, bool]) -> None:
        """Apply the policy ``missing`` to objects that were not found and were read as the fill value."""
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
        # The default separator of a .zarray is '.', but some writers use '/' without stating it. Without this check
        # every chunk of such an array would be read as the fill value.
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


_: type[Source] = OmeZarrSource
