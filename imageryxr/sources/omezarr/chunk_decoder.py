"""Decode the chunks of Zarr arrays: the most frequent codecs directly, all others with zarr-python."""

from __future__ import annotations

import asyncio
import atexit
import math
import selectors
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.core.lazy_import import import_package
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata, decompress_bounded
from imageryxr.sources.omezarr.codec_metadata import BOUNDED
from imageryxr.sources.omezarr.object_check import DamagedObjectError

Coords = tuple[int, ...]


class _ReadySelector(selectors.DefaultSelector):
    """A selector that skips the system call unless it waits: decoding needs no files, so its callbacks are ready."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the events of files; none if the caller does not wait."""
        return [] if timeout is not None and timeout <= 0 else super().select(timeout)


class _InlineLoop(asyncio.SelectorEventLoop):
    """An event loop that runs functions in the calling thread, because the engine already decodes in threads."""

    def __init__(self) -> None:
        super().__init__(_ReadySelector())

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run a function and return a future with its result."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


_loops: deque[_InlineLoop] = deque()


def close_loops() -> None:
    """Close the event loops that no thread uses."""
    while _loops:
        _loops.pop().close()


atexit.register(close_loops)
run_after_fork(_loops.clear)  # the child must not change the parent's selectors


@dataclass(frozen=True)
class PlainChunk:
    """A chunk whose voxels are stored in one order, with at most one compressor."""

    shape: Coords
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    compressor: dict[str, Any] | None
    limit: int
    """Largest size in bytes after decompression."""

    def decode(self, body: bytes | memoryview) -> npt.NDArray[Any] | None:
        """Return the voxels, or None if their number is not that of the shape."""
        found = body if self.compressor is None else decompress_bounded(body, self.compressor, self.limit)
        voxels: npt.NDArray[Any] = np.frombuffer(found, np.uint8)
        if voxels.size != math.prod(self.shape) * self.dtype.itemsize:
            return None
        return voxels.view(self.dtype).reshape(self.shape, order=self.order)


@lru_cache(maxsize=256)
def plain_chunk(metadata: str) -> PlainChunk | None:
    """Return how chunks are decoded without zarr-python, or None if their codecs require zarr-python."""
    document = bounded_metadata(metadata)
    if document["zarr_format"] == 2:
        if document.get("filters") or np.dtype(document["dtype"]).kind not in "iuf":
            return None
        shape, dtype, order = document["chunks"], np.dtype(document["dtype"]), document.get("order", "C")
        rest = [] if document["compressor"] is None else [document["compressor"]]
    else:
        first, *rest = document["codecs"]
        endian = (first.get("configuration") or {}).get("endian", "little")
        if first["name"] != "bytes" or np.dtype(document["data_type"]).kind not in "iuf":
            return None
        shape, order = document["chunk_grid"]["configuration"]["chunk_shape"], "C"
        dtype = np.dtype(document["data_type"]).newbyteorder("<" if endian == "little" else ">")
        rest = [{"id": codec["name"], **(codec.get("configuration") or {})} for codec in rest]
    if len(rest) > 1 or any(codec["id"] != BOUNDED for codec in rest):
        return None
    compressor, limit = (rest[0]["codec"], rest[0]["limit"]) if rest else (None, 0)
    return PlainChunk(tuple(shape), dtype, order, compressor, limit)


def decode_chunk(array: Any, body: bytes | memoryview, plain: PlainChunk | None = None) -> npt.NDArray[Any]:
    """Return the voxels of a chunk of an array.

    The most frequent codecs are called directly, because zarr-python takes a millisecond per chunk for its tasks.
    """
    voxels = None if plain is None else plain.decode(body)
    return decode_with_zarr(array, body) if voxels is None else voxels


def decode_with_zarr(array: Any, body: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the voxels of a chunk of an array, decoded by zarr-python."""
    import_package("zarr")
    from zarr.core.array_spec import parse_array_config
    from zarr.core.buffer import default_buffer_prototype

    prototype = default_buffer_prototype()
    # In Zarr 2 the order of the voxels in a chunk belongs to the array, not to a codec.
    config = parse_array_config({"order": array.metadata.order if array.metadata.zarr_format == 2 else "C"})
    spec = array.metadata.get_chunk_spec((0,) * len(array.shape), config, prototype)
    stored = prototype.buffer.from_bytes(bytes(body))
    try:
        loop = _loops.pop()
    except IndexError:
        loop = _InlineLoop()
    try:
        decoded = list(loop.run_until_complete(array.codec_pipeline.decode([(stored, spec)])))
    finally:
        _loops.append(loop)
    found = decoded[0].as_numpy_array()
    if found.shape != spec.shape:
        raise DamagedObjectError(f"a chunk decodes to {found.shape} voxels instead of {spec.shape}")
    return cast(npt.NDArray[Any], found)
