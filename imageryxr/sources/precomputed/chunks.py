"""Read the chunks of precomputed layers: raw files on a disk directly, all others through the engine."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.errors import AuthError, ServerError
from imageryxr.sources.base import ALLOCATE, LayerType, Level, Missing, clean_message, is_html_page
from imageryxr.sources.codecs.chunk_decoder import EMPTY, HTML, DamagedChunkError, decode_chunk
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import Token, check_allowed, unsent_password_hint
from imageryxr.sources.fetch.buckets import BucketFolder, WebPlace, web_place
from imageryxr.sources.fetch.chunk_boxes import copy_cached, remember_box
from imageryxr.sources.fetch.client import send_interruptible_request
from imageryxr.sources.fetch.connection import DEFAULT_CONNECTION, Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, Use, cpu_count, read_objects
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import (
    DeniedError,
    LocalFolder,
    MemoryFolder,
    WebFolder,
    checksum_problem,
)
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import MIDDLEAUTH
from imageryxr.sources.precomputed import shards
from imageryxr.sources.precomputed.info import StoredChunk, info_levels, level_spans, stored_chunks

ChunkCallback = Callable[[npt.NDArray[Any]], None]


class AbsentChunkError(Exception):
    """A chunk that is not in the store; `PrecomputedSource` applies the policy ``missing``."""


SLICED = "compressed_segmentation"
"""The encoding of which a part of the slices of a chunk can be decoded."""
_BLOCK, _BLOCK_SHAPE = "compressed_segmentation_block_size", (8, 8, 8)
LARGE_BOX = 8 << 20
"""Size in bytes from which a box is copied in several threads."""
HEADERS = {"Accept-Encoding": "gzip, br, zstd"}


@dataclass(frozen=True)
class StoredLayer:
    """The address and the metadata of a precomputed layer."""

    url: str = field(repr=False)
    """Location ``protocol://…``; a web address may contain a password."""
    name: str
    """Address without secrets."""
    info_text: str = field(repr=False)
    """The ``info`` file as canonical JSON, which is cheap to hash, compare and pickle."""
    missing: Missing = None
    """Policy for missing chunks; None raises, like "raise"."""
    channel: int = 0
    """Index of the channel to read."""
    layer_type: LayerType = "image"
    """Kind of layer that it is opened as."""
    token: Token | None = field(default=None, compare=False)
    """Token for ``middleauth`` servers."""
    connection: Connection = field(default=DEFAULT_CONNECTION, compare=False, repr=False)
    """Options of requests to web servers."""
    stamp: str = field(default="", compare=False, repr=False)
    """Text that changes when the ``info`` file is written; part of the keys of cached chunks."""

    @cached_property
    def info(self) -> dict[str, Any]:
        """Content of the ``info`` file."""
        parsed: dict[str, Any] = json.loads(self.info_text)
        return parsed

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.info["data_type"])
        return dtype

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """All scales of the ``info``."""
        return info_levels(self.info)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # cached properties are computed again


def place_of(url: str, connection: Connection, token: Token | None) -> WebPlace | None:
    """Return the result of `web_place` for a folder, with the token as its credential for middleauth addresses."""
    place = web_place(url, connection)
    return place._replace(credential=token) if place is not None and url.startswith(MIDDLEAUTH) else place


def get_file(place: WebPlace, name: str, connection: Connection) -> Reply:
    """Return the response to a request for a small file of a folder."""
    return send_interruptible_request(
        "GET",
        f"{place.folder}/{name}",
        connection,
        headers={**HEADERS, **dict(place.headers)},
        credential=place.credential,
        check=checksum_problem,
    )


def read_box(
    source: StoredLayer,
    mip: int,
    box: IndexBox,
    missing_boxes: list[IndexBox] | None = None,
    on_chunk: ChunkCallback | None = None,
) -> npt.NDArray[Any]:
    """Return the voxels of a box inside a layer; its chunks are read in parallel.

    Parameters
    ----------
    source : PrecomputedSource
        The layer.
    mip, box
        Level and box to read.
    missing_boxes : list, optional
        List to which the boxes of missing chunks are appended; their voxels are 0. Without it a missing chunk raises.
    on_chunk : callable, optional
        Called with the part of each chunk in the box, in the thread that read the chunk; must not change the part.

    Raises
    ------
    AbsentChunkError
        If a chunk is missing.
    """
    level, scale, store = source.levels[mip], source.info["scales"][mip], store_of(source)
    # Only the slices that the box needs are decoded if the encoding permits it.
    axes = level_spans(level, box, int(scale.get(_BLOCK, _BLOCK_SHAPE)[2]) if level.encoding == SLICED else 0)
    name = (mip, source.channel, *((spans[0].low, spans[-1].high) for spans in axes))
    cached = copy_cached(store, source.connection, name, axes, box)
    if cached is not None:
        if on_chunk is not None:
            on_chunk(cached)
        return cached
    chunks, decode = stored_chunks(level, axes), _object_decoder(source, mip)
    out = ALLOCATE.get()(box.shape, source.dtype)

    def use(request: ObjectRequest, voxels: npt.NDArray[Any] | None) -> None:
        chunk: StoredChunk = request.tag
        if voxels is None:
            if missing_boxes is None:
                raise AbsentChunkError(request.key)
            missing_boxes.append(chunk.box)
            out[chunk.place] = 0
            return
        inside = voxels[chunk.taken]
        if on_chunk is not None:
            on_chunk(inside)
        out[chunk.place] = inside

    try:
        if scale.get("sharding") is None:
            requests = [_request(source, f"{scale['key']}/{chunk.name}", chunk, None) for chunk in chunks]
        else:
            requests = _shard_requests(source, mip, chunks, store, use)
        read_objects(store, requests, decode, use, source.connection)
        if len(requests) == len(chunks):
            remember_box(store, source.connection, name, requests)
    except DeniedError as error:
        check_reply(error.reply, source.name, source.url, source.token, source.connection.access)
        raise
    return out


def _request(source: StoredLayer, key: str, chunk: StoredChunk, span: tuple[int, int] | None) -> ObjectRequest:
    limit, memory = _byte_limits(chunk.shape, int(source.info.get("num_channels", 1)) * source.dtype.itemsize)
    return ObjectRequest(key, limit, memory, span, chunk, (source.channel, *chunk.slices))


@lru_cache(maxsize=1024)
def _byte_limits(shape: Index3, voxel_size: int) -> tuple[int, int]:
    """Return the largest size in bytes of a stored chunk, and the memory that reading the chunk takes.

    A stored chunk may have four times the size of its voxels plus 1 MB: encoded noise is larger than the voxels, in
    compressed_segmentation up to three times. The stored chunk and its voxels are in memory at the same time.
    """
    size = math.prod(shape) * voxel_size
    return 4 * size + (1 << 20), 2 * size


def _shard_requests(
    source: StoredLayer, mip: int, chunks: list[StoredChunk], store: ObjectStore, use: Use
) -> list[ObjectRequest]:
    """Return the requests for the chunks that their shards contain; pass the missing chunks to ``use``."""
    level, scale = source.levels[mip], source.info["scales"][mip]
    points = [tuple(a // c for a, c in zip(chunk.box.start, level.chunks, strict=True)) for chunk in chunks]
    ids = shards.chunk_ids(points, level.grid.shape, level.chunks)  # type: ignore[arg-type]
    where = shards.fetch_shards(store, scale["key"], scale["sharding"], ids)
    found = []
    for number, chunk in zip(ids, chunks, strict=True):
        alone = _request(source, f"{scale['key']}/{chunk.name}", chunk, None)
        place = where(number, alone.limit)
        if place is None:
            use(alone, None)
        else:
            found.append(alone._replace(key=place[0], span=place[1:]))
    return found


def store_of(source: StoredLayer) -> ObjectStore:
    """Return the store of the chunks of a layer."""
    return store_at(source.url, source.connection, source.token, f"{source.stamp} {source.info_text}")


def store_at(url: str, connection: Connection, token: Token | None, version: str = "") -> ObjectStore:
    """Return the store of a folder; ``version`` is text that changes if its objects change."""
    if url.startswith("file://"):
        return LocalFolder(url.removeprefix("file://").rstrip("/"))
    if url.startswith("mem://"):
        return MemoryFolder(url)
    place = place_of(url, connection, token)
    if place is None:
        return BucketFolder(url, connection, version, is_403_missing=True)
    is_service = url.startswith(MIDDLEAUTH)
    # Servers that check tokens do not answer 403 for missing objects.
    return WebFolder(
        place.folder,
        connection,
        place.credential,
        is_service,
        version,
        headers=place.headers,
        is_403_missing=not is_service,
    )


def check_reply(reply: Reply, name: str, url: str, token: Token | None, access: Access) -> None:
    """Raise unless the response of a web server contains the requested file.

    Raises
    ------
    AuthError
        If access was denied.
    ServerError
        If the response has any other status.
    """
    if url.startswith(MIDDLEAUTH):
        check_allowed(reply, name, url, token, access)
    if reply.redirected_to and reply.status in (403, 404):
        raise access_denied_error(name, f"redirected to {reply.redirected_to}, which may be a login page")
    if reply.status in (401, 403) or reply.is_html:
        raise access_denied_error(name, "the server returned HTML" if reply.status == 200 else f"HTTP {reply.status}")
    if reply.status not in (200, 206):
        raise ServerError(f"HTTP {reply.status}")


def access_denied_error(name: str, error: object) -> AuthError:
    """Return the error for a source to which access was denied."""
    return AuthError(
        f"access to {name} was denied ({clean_message(error)}); check your permissions, and that your credentials are "
        f"in ~/.cloudvolume/secrets, where CloudVolume expects them{unsent_password_hint()}"
    )


def _object_decoder(source: StoredLayer, mip: int) -> Callable[[ObjectRequest, Stored], npt.NDArray[Any]]:
    """Return a function that decodes a stored object to the voxels (z, y, x) of its chunk."""
    level, sharding = source.levels[mip], source.info["scales"][mip].get("sharding")
    decode_voxels = _chunk_decoder(source, mip)

    def decode(request: ObjectRequest, stored: Stored) -> npt.NDArray[Any]:
        chunk: StoredChunk = request.tag
        body = bytes(stored.body)
        try:
            if not body:
                raise ValueError(EMPTY)
            if stored.encoding:
                body = decompress(body, stored.encoding, request.limit)
            if sharding is not None:
                body = shards.decompress_chunk(sharding, body, request.limit)
            return decode_voxels(body, chunk)
        except ValueError as error:
            problem = HTML if is_html_page(body) else error
            offset = [int(o) for o in level.grid.voxel_offset]
            lo, hi = (tuple(o + i for o, i in zip(offset, c[::-1], strict=True)) for c in chunk.box)
            raise DamagedChunkError(
                f"the stored chunk {chunk.name}, box {lo} to {hi}, is damaged: {problem}"
            ) from error

    return decode


def _chunk_decoder(source: StoredLayer, mip: int) -> Callable[[bytes, StoredChunk], npt.NDArray[Any]]:
    """Return a function that decodes the bytes of a chunk to voxels (z, y, x), or raises `ValueError`."""
    scale, channels = source.info["scales"][mip], int(source.info.get("num_channels", 1))
    encoding, block = source.levels[mip].encoding, tuple(scale.get(_BLOCK, _BLOCK_SHAPE))

    def decode(body: bytes, chunk: StoredChunk) -> npt.NDArray[Any]:
        z, y, x = chunk.shape
        whole = (x, y, z, channels)
        if encoding == SLICED:
            from imageryxr.kernels.compressed_segmentation import decode_slices

            return decode_slices(body, whole, source.dtype, block, source.channel, chunk.slices)
        found = decode_chunk(body, encoding, whole, source.dtype)
        # The transpose of (x, y, z, channel) in Fortran order is in C order without a copy.
        return found.reshape(whole)[..., source.channel].T

    return decode


def is_absent(reply: Reply, url: str) -> bool:
    """Return whether a response means that a file is missing, and not that access was denied."""
    # Buckets also answer 403 for missing objects; servers that check tokens do not.
    return not reply.redirected_to and (reply.status == 404 or (reply.status == 403 and not url.startswith(MIDDLEAUTH)))


def read_raw(source: StoredLayer, mip: int, box: IndexBox) -> npt.NDArray[Any] | None:
    """Return the voxels of a box of raw chunks in local files, or None if `read_box` must read it.

    Copying takes most of the time. Therefore only the slices of the box are read from each file, into one buffer, and
    copied once, into the result. Large boxes are copied in several threads. None is returned for layers that are
    remote, encoded or sharded, and for boxes with compressed, missing or damaged chunks: `read_box` raises their error.
    """
    level, scale = source.levels[mip], source.info["scales"][mip]
    if not source.url.startswith("file://") or level.encoding != "raw" or "sharding" in scale:
        return None
    channels, dtype = int(source.info.get("num_channels", 1)), source.dtype.newbyteorder("<")
    folder = f"{source.url.removeprefix('file://').rstrip('/')}/{scale['key']}"
    chunks, out = stored_chunks(level, level_spans(level, box)), ALLOCATE.get()(box.shape, source.dtype)

    def copy(some: list[StoredChunk], stop: threading.Event) -> bool:
        stored = np.empty(0, np.uint8)
        for chunk in some:
            # x varies fastest, then y, z and the channel
            (depth, *plane), (taken, *inside) = chunk.shape, chunk.taken
            step = math.prod(plane) * dtype.itemsize
            try:
                with open(f"{folder}/{chunk.name}", "rb", buffering=0) as file:
                    # The size is checked before memory of that size is allocated.
                    is_whole = os.fstat(file.fileno()).st_size == channels * depth * step
                    if stop.is_set() or not is_whole or is_html_page(file.read(256)):
                        return False
                    size = (taken.stop - taken.start) * step
                    stored = stored if len(stored) >= size else np.empty(size, np.uint8)
                    file.seek((source.channel * depth + taken.start) * step)
                    if file.readinto(stored[:size].data) != size:
                        return False
            except OSError:
                return False
            out[chunk.place] = stored[:size].view(dtype).reshape(-1, *plane)[(slice(None), *inside)]
        return True

    width = min(len(chunks), cpu_count()) if out.nbytes >= LARGE_BOX else 1
    if width == 1:
        return out if copy(chunks, threading.Event()) else None
    return out if all(run_in_parallel(copy, [chunks[i::width] for i in range(width)], width)) else None
