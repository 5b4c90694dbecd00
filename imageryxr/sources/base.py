"""What every source owes: the `Source` contract, and the parts of it that all sources share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox, format_triple, tidy, to_fraction
from imageryxr.core.grid import Grid
from imageryxr.errors import ChoiceError, ChunkReadError, MipError, OptionError

LayerType = Literal["image", "segmentation"]
Missing = Literal["raise", "fill", "warn"] | None
Assume = Literal["center", "corner"]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a layer."""

    mip: int
    """Its number: its place in the layer's own list, where placeholders count. Mostly 0 is the finest."""
    grid: Grid
    """Where its voxels lie."""
    chunks: Index3
    """Shape (z, y, x) of a stored chunk; the first one starts at index 0."""
    encoding: str = "raw"
    """How chunks are stored, in the format's own word."""
    placeholder: bool = False
    """Whether the level is announced but holds no data."""
    dtype: str | None = None
    """Type of its voxels by name, where it is not that of the source."""


@runtime_checkable
class Source(Protocol):
    """A layer that can be read: a value with its metadata in hand, opened without touching a voxel.

    A source is picklable and small, safe to read from many threads, and equal to another, with an equal dask
    token, exactly if they describe the same voxels read under the same options. Reading never needs anything but the
    source itself: a worker on another machine unpickles it and reads.
    """

    @property
    def name(self) -> str:
        """Its address, without any token."""

    @property
    def layer_type(self) -> LayerType:
        """Whether the voxels are grey values or ids."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its voxels, in native byte order."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every level, by mip, placeholders included."""

    @property
    def attrs(self) -> dict[str, Any]:
        """What the layer says of itself beyond place and type, such as ``contrast_limits``."""

    def check(self, mip: int) -> None:
        """Raise, before anything is read, if a level cannot be read here for want of a package."""

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box of indexes of a level, C order (z, y, x).

        The box may reach outside the level, partly or wholly; there the value is 0. A chunk that cannot be
        read raises `ChunkReadError`.
        """

    def __dask_tokenize__(self) -> object:
        """Return plain data that differ where the voxels or the options do."""


def read_filled(source: Any, mip: int, box: IndexBox) -> npt.NDArray[Any]:
    """Read a box that may reach outside a level: 0 there, `source.read_inside` for the rest."""
    inside = box.clip(source.levels[mip].grid.box)
    if inside == box and box.voxels:
        return np.ascontiguousarray(source.read_inside(mip, box))
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
    """Return the error for a box that could not be read, naming source, level and box."""
    grid = source.levels[mip].grid
    where = f"{source.name}, mip {mip} ({format_triple(grid.resolution)} nm), box {grid.crop(box).bbox}"
    reason = clean_message(str(cause)) or type(cause).__name__
    return kind(f"could not read {where}: {reason}{'; ' + hint if hint else ''}")


_MISSING_CHUNKS: ContextVar[set[str] | None] = ContextVar("imageryxr_holes", default=None)


@contextmanager
def record_missing_chunks() -> Iterator[set[str]]:
    """Collect, in this thread, which chunks are filled with background because the store does not have them."""
    found: set[str] = set()
    before = _MISSING_CHUNKS.set(found)
    try:
        yield found
    finally:
        _MISSING_CHUNKS.reset(before)


def report_missing_chunks(source: Source, mip: int, boxes: Sequence[str]) -> None:
    """Tell whoever records of chunks that are filled with background."""
    found = _MISSING_CHUNKS.get()
    if found is not None:
        found.update(f"{source.name}, mip {mip}, box {box}" for box in boxes)


def clean_message(text: object) -> str:
    """Return a client's message on one line, without terminal colours, and without what a URL holds in secret."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", str(text)).split()
    return re.sub(r"(https?://)[^/\s@]+@", r"\1", " ".join(map(_without_query, words)))


def _without_query(word: str) -> str:
    """Return a word of a message without the queries of the URLs in it."""
    url = re.search("https?://", word)
    if url is None:
        return word
    return word[: url.end()] + re.sub(r"\?[^'\")]+", "", word[url.end() :])


_PAGES = (b"<!doctype", b"<html>", b"<html ", b"<html\n", b"<html\r", b"<head>")


def is_html_page(data: bytes | memoryview) -> bool:
    """Tell whether stored bytes are a web page: a login page that came with the status of success."""
    return bytes(data[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES)


def dtype_of(source: Source, mip: int) -> np.dtype[Any]:
    """Return the type of a level's voxels, in native byte order."""
    own = source.levels[mip].dtype
    dtype: np.dtype[Any] = source.dtype if own is None else np.dtype(own)
    return dtype


def levels_by_resolution(source: Source) -> list[Level]:
    """Return the levels that hold voxels, from the smallest voxels to the largest; equal ones in the layer's order."""
    real = [level for level in source.levels if not level.placeholder]
    return sorted(real, key=lambda level: math.prod(map(to_fraction, level.grid.resolution)))


def default_level(source: Source) -> Level:
    """Return the level with the smallest voxels that is not a placeholder."""
    levels = levels_by_resolution(source)
    if not levels:
        raise MipError(f"every level of {source.name} is a placeholder: there are no voxels to open")
    return levels[0]


def find_level(source: Source, mip: Any) -> Level:
    """Return the level of a mip number or a resolution (x, y, z nm), or the default one for None.

    Raises
    ------
    MipError
        If there is no such level, or it is a placeholder; the message lists those that exist.
    """
    if mip is None:
        return default_level(source)
    real = [level for level in source.levels if not level.placeholder]
    have = ", ".join(f"{lv.mip} ({format_triple(lv.grid.resolution)} nm)" for lv in real)
    if isinstance(mip, int | np.integer) and not isinstance(mip, bool):
        found = [lv for lv in source.levels if lv.mip == mip]
        if found and found[0].placeholder:
            raise MipError(f"mip={mip} of {source.name} is a placeholder without voxels; open one of mip {have}")
    else:
        found = [lv for lv in real if is_same_resolution(lv.grid.resolution, mip)]
    if not found:
        given = f"mip={mip!r}"
        raise MipError(f"{source.name} has no level {given}; open one of mip {have}")
    return found[0]


def is_same_resolution(resolution: tuple[float, ...], given: Any) -> bool:
    """Tell whether a resolution is the given one, within float noise."""
    try:
        values = [float(v) for v in given]
    except (TypeError, ValueError):
        raise MipError(f"mip={given!r} is neither a level's number nor a resolution (x, y, z) in nm") from None
    return len(values) == 3 and all(abs(a - b) <= 1e-6 * a for a, b in zip(resolution, values, strict=True))


def pick_index(name: str, what: Literal["channel", "time"], count: int, index: int | None) -> int:
    """Return which of several channels or times to read; None will do where there is one.

    Raises
    ------
    ChoiceError
        If there are several and none was chosen, or there is no such one.
    """
    choices = f"{what}=0" + (f" to {what}={count - 1}" if count > 1 else ", or nothing")
    if index is None and count > 1:
        raise ChoiceError(f"{name} has {count} {what}s; choose one with {choices}", what, count)
    number = 0 if index is None else index
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < count:
        have = f"its {what}s are 0 to {count - 1}" if count > 1 else f"it has one {what}"
        raise ChoiceError(f"{name} has no {what}={index!r}: {have}; give {choices}", what, count)
    return int(number)


def check_missing(missing: Any) -> Missing:
    """Return the policy for missing chunks, or raise `OptionError`."""
    if missing not in ("raise", "fill", "warn", None):
        raise OptionError(
            f"missing={missing!r} is not a policy; None follows the format (the fill value in Zarr, an error in "
            "precomputed), 'raise' stops at a chunk that the store does not have, 'fill' takes background for it, "
            "'warn' does that and says so"
        )
    policy: Missing = missing
    return policy


def check_assume(assume: Any) -> Assume:
    """Return what an OME-Zarr translation is taken as the place of, or raise `OptionError`."""
    if assume not in ("center", "corner"):
        raise OptionError(
            f"assume={assume!r} is neither 'center' nor 'corner': whether an OME-Zarr translation is the place of the "
            "centre of the first voxel, or of its lower corner"
        )
    place: Assume = assume
    return place


def level_attrs(source: Source, level: Level) -> dict[str, Any]:
    """Return the attributes of an opened level: what DESIGN calls for, nothing secret."""
    x, y, z = level.grid.resolution
    return {
        "source": source.name,
        "layer_type": source.layer_type,
        "mip": level.mip,
        "resolution": (x, y, z),
        "voxel_offset": tuple(tidy(o) for o in level.grid.voxel_offset),
        **source.attrs,
    }
