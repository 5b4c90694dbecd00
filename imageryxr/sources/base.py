"""The `Source` protocol, and helpers that every source shares."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox, format_triple, to_fraction
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_choice, check_counts, check_flag, check_whole, to_numbers, to_whole
from imageryxr.errors import (
    ChoiceError,
    ChunkReadError,
    Message,
    MipError,
    MissingChunkWarning,
    OptionError,
    Wording,
    param,
    warn,
)

LayerType = Literal["image", "segmentation"]
Missing = Literal["raise", "fill", "warn"] | None
Assume = Literal["center", "corner"]
Stale = Literal["raise", "update", "keep"]


_LEVEL_FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("grid", Grid, "a Grid, such as imageryxr.grid_of(array)"),
    ("encoding", str, "the name of an encoding, such as 'raw'"),
    ("dtype", str | None, "the name of a data type, such as 'uint8', or None"),
)


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a layer.

    Raises
    ------
    OptionError
        If a field is of another type, or a chunk has no voxels.
    """

    mip: int
    """Index in the layer's own list of levels, placeholders included. Usually 0 is the finest."""
    grid: Grid
    """Position, shape and resolution of its voxels."""
    chunks: Index3
    """Shape (z, y, x) of a stored chunk; the first one starts at index 0."""
    encoding: str = "raw"
    """Encoding of the chunks, as the format names it."""
    placeholder: bool = False
    """Whether the metadata list the level although it holds no data."""
    dtype: str | None = None
    """Data type of its voxels by name; None if it is that of the source."""

    def __post_init__(self) -> None:
        is_counts = type(self.chunks) is tuple and len(self.chunks) == 3 and all(type(n) is int for n in self.chunks)
        if not (is_counts and min(self.chunks) > 0):
            counts = check_counts("chunks", self.chunks, "three counts of voxels (z, y, x), such as (64, 64, 64)")
            object.__setattr__(self, "chunks", counts)
        if type(self.mip) is not int or self.mip < 0:
            object.__setattr__(self, "mip", check_whole("mip", self.mip))
        is_listed_only: Any = self.placeholder
        if type(is_listed_only) is not bool:
            object.__setattr__(self, "placeholder", check_flag("placeholder", is_listed_only))
        for name, kind, expected in _LEVEL_FIELDS:
            if not isinstance(getattr(self, name), kind):
                raise OptionError(param(name, getattr(self, name)), " must be ", expected)


@runtime_checkable
class Source(Protocol):
    """A layer that can be read: an immutable value that contains all metadata, opened without reading a voxel.

    A source is small, picklable and safe to read from many threads. Two sources are equal, and have equal dask tokens,
    exactly if they describe the same voxels read with the same options. A worker on another machine needs only the
    unpickled source to read.
    """

    @property
    def name(self) -> str:
        """Address, without any token."""

    @property
    def layer_type(self) -> LayerType:
        """Kind of voxels: grey values or ids."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels, in native byte order."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels in the order of their mips, placeholders included."""

    @property
    def attrs(self) -> dict[str, Any]:
        """Further attributes from the metadata of the layer, such as ``contrast_limits``."""

    def check(self, mip: int) -> None:
        """Raise `CodecError` if reading a level requires a package that is not installed."""

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box of voxel indexes of a level, in C order (z, y, x).

        Voxels of the box outside the level are 0. A chunk that cannot be read raises `ChunkReadError`.
        """

    def __dask_tokenize__(self) -> object:
        """Return plain data that differ if the voxels or the options differ."""


ALLOCATE: ContextVar[Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]] = ContextVar(
    "imageryxr_allocate", default=np.empty
)
"""Function that returns the array to read into. Exports set one that returns a part of the buffer of a region."""


@contextmanager
def read_into(place: npt.NDArray[Any]) -> Iterator[None]:
    """Let the source that is read in this context use an array for its result, if shape and dtype agree."""
    left = [place]

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        fits = bool(left) and place.shape == shape and place.dtype == dtype
        return left.pop() if fits else np.empty(shape, dtype)

    before = ALLOCATE.set(allocate)
    try:
        yield
    finally:
        ALLOCATE.reset(before)


def read_filled(source: Any, mip: int, box: IndexBox) -> npt.NDArray[Any]:
    """Return the voxels of a box that may reach outside a level: 0 outside, `source.read_inside` inside."""
    inside = box.clip(source.levels[mip].grid.box)
    if inside == box and box.voxels:
        values = source.read_inside(mip, box)
        # an array that an export has provided may be a part of a larger one
        return values if ALLOCATE.get() is not np.empty else np.ascontiguousarray(values)
    out = np.zeros(box.shape, dtype_of(source, mip))
    if inside.voxels:
        out[inside.slices(box)] = source.read_inside(mip, inside)
    return out


def read_error(
    source: Source,
    mip: int,
    box: IndexBox,
    cause: object,
    *,
    kind: type[ChunkReadError] = ChunkReadError,
    hint: str = "",
) -> ChunkReadError:
    """Return the error for a box that could not be read; its message names source, level and box."""
    grid = source.levels[mip].grid
    where = f"{source.name}, mip {mip} ({format_triple(grid.resolution)} nm), box {grid.crop(box).bbox}"
    reason = clean_message(str(cause)) or type(cause).__name__
    return kind(f"could not read {where}: {reason}", *(("; ", hint) if hint else ()))


_MISSING_CHUNKS: ContextVar[set[str] | None] = ContextVar("imageryxr_missing_chunks", default=None)


@contextmanager
def record_missing_chunks() -> Iterator[set[str]]:
    """Collect the missing chunks that reads in this context fill with background."""
    found: set[str] = set()
    before = _MISSING_CHUNKS.set(found)
    try:
        yield found
    finally:
        _MISSING_CHUNKS.reset(before)


def report_missing_chunks(source: Any, mip: int, boxes: Sequence[str], filling: str) -> None:
    """Add filled chunks to the set of the enclosing `record_missing_chunks`, and warn if the policy is "warn"."""
    found = _MISSING_CHUNKS.get()
    if found is not None:
        found.update(f"{source.name}, mip {mip}, box {box}" for box in boxes)
    if boxes and source.missing == "warn":
        warn(
            f"{source.name}, mip {mip}: {len(boxes)} missing {'chunk is' if len(boxes) == 1 else 'chunks are'} filled "
            f"with {filling}: {list_boxes(boxes)}",
            MissingChunkWarning,
        )


def list_boxes(boxes: Sequence[str]) -> str:
    """Return the first boxes and the number of the others, for a message."""
    return "; ".join(boxes[:3]) + (f"; and {len(boxes) - 3} more" if len(boxes) > 3 else "")


def clean_message(text: object) -> str:
    """Return the message of another library on one line, without terminal colours, passwords or URL queries."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", str(text)).split()
    return re.sub(r"(https?://)[^/\s@]+@", r"\1", " ".join(map(_without_query, words)))


def _without_query(word: str) -> str:
    """Return a word of a message without the query of a URL in it."""
    url = re.search("https?://", word)
    if url is None:
        return word
    return word[: url.end()] + re.sub(r"\?[^'\")]+", "", word[url.end() :])


_PAGES = (b"<!doctype", b"<html>", b"<html ", b"<html\n", b"<html\r", b"<head>")


def is_html_page(data: bytes | memoryview) -> bool:
    """Return whether bytes are HTML: some servers send a login page with the status 200."""
    return bytes(data[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES)


def dtype_of(source: Source, mip: int) -> np.dtype[Any]:
    """Return the data type of a level, in native byte order."""
    own = source.levels[mip].dtype
    dtype: np.dtype[Any] = source.dtype if own is None else np.dtype(own)
    return dtype


def levels_by_resolution(source: Source) -> list[Level]:
    """Return the levels without placeholders, finest first; levels of equal voxel size keep the layer's order."""
    real = [level for level in source.levels if not level.placeholder]
    return sorted(real, key=lambda level: math.prod(map(to_fraction, level.grid.resolution)))


def default_level(source: Source) -> Level:
    """Return the finest level that is not a placeholder."""
    levels = levels_by_resolution(source)
    if not levels:
        raise MipError(f"every level of {source.name} is a placeholder, so there are no voxels to open")
    return levels[0]


def find_level(source: Source, mip: Any) -> Level:
    """Return the level with a mip number or a resolution (x, y, z nm); None selects the default level.

    Raises
    ------
    MipError
        If the level does not exist or is a placeholder; the message lists the existing levels.
    """
    if mip is None:
        return default_level(source)
    real = [level for level in source.levels if not level.placeholder]
    have = ", ".join(f"{lv.mip} ({format_triple(lv.grid.resolution)} nm)" for lv in real)
    number = to_whole(mip)
    if number is not None:
        found = [lv for lv in source.levels if lv.mip == number]
        if found and found[0].placeholder:
            raise MipError(
                param("mip", number),
                f" of {source.name} is a placeholder without voxels; open one of mip {have}",
            )
    else:
        found = [lv for lv in real if _is_same_resolution(lv.grid.resolution, mip)]
    if not found:
        raise MipError(
            f"{source.name} has no level ", param("mip", mip), f"; open one of mip {have}, by its number or resolution"
        )
    return found[0]


def _is_same_resolution(resolution: tuple[float, ...], given: Any) -> bool:
    """Return whether a resolution equals the given one, of any type, within rounding errors."""
    values = to_numbers(given)
    return len(values) == 3 and all(abs(a - b) <= 1e-6 * a for a, b in zip(resolution, values, strict=True))


def pick_index(name: str, what: Literal["channel", "time"], count: int, index: int | None) -> int:
    """Return the index of the channel or time to read; None selects the only one.

    Raises
    ------
    ChoiceError
        If the index is out of range, or None although there are several channels or times.
    """
    if index is None and count == 1:
        return 0
    number = to_whole(index)
    if number is not None and 0 <= number < count:
        return number
    choices = Message(param(what, 0), *((" to ", param(what, count - 1)) if count > 1 else (", or nothing",)))
    if index is None:
        raise ChoiceError(Message(f"{name} has {count} {what}s; choose one with ", choices), what, count)
    have = f"its {what}s are 0 to {count - 1}" if count > 1 else f"it has one {what}"
    raise ChoiceError(Message(f"{name} has no ", param(what, index), f": {have}; give ", choices), what, count)


_MISSING = Message(
    "'raise' (an error), 'fill' (background), 'warn' (background and a warning)",
    Wording(", or None (", "; leave it out for the rule of the format ("),
    "the fill value in Zarr, an error in precomputed)",
)


def check_missing(missing: Any) -> Missing:
    """Return the policy for missing chunks, or raise `OptionError`."""
    policy: Missing = check_choice("missing", missing, ("raise", "fill", "warn", None), expected=_MISSING)
    return policy


def check_assume(assume: Any) -> Assume:
    """Return the point of the first voxel that an OME-Zarr translation refers to, or raise `OptionError`."""
    expected = "'center' or 'corner': the point of the first voxel that an OME-Zarr translation refers to"
    place: Assume = check_choice("assume", assume, ("center", "corner"), expected=expected)
    return place


def check_stale(stale: Any) -> Stale:
    """Return the policy for root ids that are not current, or raise `OptionError`."""
    expected = (
        "'raise' (an error that names the successors), 'update' (use the successors) or 'keep' (draw the root as it "
        "was when it was current)"
    )
    chosen: Stale = check_choice("stale", stale, ("raise", "update", "keep"), expected=expected)
    return chosen


def level_attrs(source: Source, level: Level) -> dict[str, Any]:
    """Return the attributes of an opened level, without secrets."""
    x, y, z = level.grid.resolution
    return {
        "source": source.name,
        "layer_type": source.layer_type,
        "mip": level.mip,
        "resolution": (x, y, z),
        "voxel_offset": level.grid.voxel_offset,
        **source.attrs,
    }


# --- stamps of metadata files ---------------------------------------------------------------------
# The keys of cached chunks and shard indexes contain the stamp of the metadata that were read when the volume was
# opened, so that a volume that is opened again after it was rewritten shows its new voxels.


class MetadataFile(NamedTuple):
    """A JSON object that describes a volume."""

    content: dict[str, Any]
    stamp: str = ""
    """Text that changes when the file is written; see `opening_stamp`."""


_UNIQUE = "unique-"


def stamp_of(headers: Mapping[str, str]) -> str:
    """Return the ETag and Last-Modified of a response, by lower-case name, or an empty string if it has neither.

    Both are needed: the ETag of some buckets is a checksum, which stays the same when equal bytes are written again,
    and Last-Modified has a resolution of a second.
    """
    return " ".join(headers[name] for name in ("etag", "last-modified") if headers.get(name))


def opening_stamp(url: str, stamp: str) -> str:
    """Return the stamp of a volume's metadata for the keys of the memory cache.

    If the server sends no stamp, a unique one is made, so that a volume that is opened again does not use the chunks
    that an earlier opening cached. The chunks of local folders are not cached and need no stamp.
    """
    return "" if url.startswith(("file://", "mem://")) else stamp or f"{_UNIQUE}{secrets.token_hex(8)}"


def stable_version(version: str) -> str:
    """Return the version of a volume for the keys of the disk cache: without its stamp if `opening_stamp` made it.

    No later opening would find the entries of a stamp that is unique to one opening.
    """
    return version.partition(" ")[2] if version.startswith(_UNIQUE) else version
