"""Reading of precomputed chunks over http, with timeouts and retries; CloudVolume's codecs decode them."""

from __future__ import annotations

import base64
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.errors import AuthError, ServerError
from imageryxr.sources.base import Level, clean_message
from imageryxr.sources.codecs.chunk_decoder import decode_chunk
from imageryxr.sources.fetch.auth import Token, check_allowed, find_password, unsent_password_hint
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import Connection, Reply, send_interruptible_request, send_request
from imageryxr.sources.fetch.json_service import decompress_body, web_folder
from imageryxr.sources.fetch.policy import Access, Credential
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import MIDDLEAUTH
from imageryxr.sources.precomputed import shards

ChunkCallback = Callable[[npt.NDArray[Any]], None]

HEADERS = {"Accept-Encoding": "gzip, br, zstd"}


class StoredLayer(Protocol):
    """The properties of a precomputed layer that reading its chunks requires."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def url(self) -> str:
        """Location of the layer."""

    @property
    def info(self) -> dict[str, Any]:
        """Content of the ``info`` file."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""

    @property
    def channel(self) -> int:
        """Index of the channel to read."""

    @property
    def token(self) -> Token | None:
        """Token for ``middleauth`` servers."""

    @property
    def connection(self) -> Connection:
        """Options of requests."""


def credential_of(url: str, token: Token | None) -> Credential | None:
    """Return the credential for the files of a folder: the token for middleauth addresses, else a stored password."""
    return token if url.startswith(MIDDLEAUTH) else find_password(web_folder(url) or "")


def get_file(url: str, name: str, connection: Connection, token: Token | None) -> Reply:
    """Return the response to a request for a small file of a folder."""
    folder = web_folder(url)
    return send_interruptible_request(
        "GET",
        f"{folder}/{name}",
        connection,
        headers=HEADERS,
        credential=credential_of(url, token),
        check=_checksum_problem,
    )


def fetch_box(
    source: StoredLayer,
    mip: int,
    box: IndexBox,
    missing_boxes: list[IndexBox] | None = None,
    on_chunk: ChunkCallback | None = None,
) -> npt.NDArray[Any]:
    """Return the voxels of a box inside a layer; the chunks of a box are requested in parallel.

    Parameters
    ----------
    source : PrecomputedSource
        A layer on a web server.
    mip, box
        Level and box to read.
    missing_boxes : list, optional
        The boxes of missing chunks are appended to it, and their voxels are 0. Without it a missing chunk raises.
    on_chunk : callable, optional
        Called with the part of each chunk in the box, in the thread that fetched the chunk.

    Raises
    ------
    EmptyVolumeException
        CloudVolume's exception for a missing chunk.
    """
    if "sharding" in source.info["scales"][mip]:
        return _fetch_sharded(source, mip, box, missing_boxes, on_chunk)
    from cloudvolume.exceptions import EmptyVolumeException

    level, scale = source.levels[mip], source.info["scales"][mip]
    folder = web_folder(source.url)
    options: dict[str, Any] = {"headers": HEADERS, "credential": credential_of(source.url, source.token)}
    decode = make_chunk_decoder(source, mip)
    out = np.zeros(box.shape, source.dtype)

    def fetch(chunk: IndexBox, stop: threading.Event) -> None:
        whole = chunk.clip(level.grid.box)
        key = f"{scale['key']}/{chunk_name(level.grid.voxel_offset, whole)}"
        most = chunk_limit(whole.shape, source)
        reply = send_request(
            "GET", f"{folder}/{key}", source.connection, check=_checksum_problem, stop=stop, limit=most, **options
        )
        if is_absent(reply, source.url):
            if missing_boxes is None:
                raise EmptyVolumeException(key)
            missing_boxes.append(whole)
            return
        check_reply(reply, source.name, source.url, source.token, source.connection.access)
        if not reply.body:
            raise ValueError(f"the stored chunk {key} is empty (0 bytes): it was truncated when written")
        part = whole.clip(box)
        voxels = decode(decompress_body(reply, most), whole.shape)[part.slices(whole)]
        if on_chunk is not None:
            on_chunk(voxels)
        out[part.slices(box)] = voxels

    run_in_parallel(fetch, list(chunks_of(box, level.chunks)), source.connection.concurrency)
    return out


def _fetch_sharded(
    source: StoredLayer, mip: int, box: IndexBox, missing_boxes: list[IndexBox] | None, on_chunk: ChunkCallback | None
) -> npt.NDArray[Any]:
    from cloudvolume.exceptions import EmptyVolumeException

    level, scale = source.levels[mip], source.info["scales"][mip]
    sharding, get = scale["sharding"], _byte_ranges(source, mip)
    parts = list(chunks_of(box, level.chunks))
    points = [tuple(a // c for a, c in zip(p.start, level.chunks, strict=True)) for p in parts]
    ids = shards.chunk_ids(points, level.grid.shape, level.chunks)  # type: ignore[arg-type]
    where = shards.fetch_shards(f"{source.url}/{scale['key']}", sharding, ids, get, source.connection)
    places, wanted = {i: where(i) for i in ids}, dict(zip(ids, parts, strict=True))
    for number, place in places.items():
        whole = wanted[number].clip(level.grid.box)
        most = chunk_limit(whole.shape, source)
        if place is not None and place[2] - place[1] > most:
            size = place[2] - place[1]
            raise ValueError(f"the index of {place[0]} states a chunk of {size:,} bytes; the limit is {most:,}")
        if place is not None:
            continue
        if missing_boxes is None:
            raise EmptyVolumeException(f"{scale['key']}/{chunk_name(level.grid.voxel_offset, whole)}")
        missing_boxes.append(whole)
    decode, out = make_chunk_decoder(source, mip), np.zeros(box.shape, source.dtype)

    def fetch(bundle: tuple[str, int, int, list[tuple[int, int, int]]], stop: threading.Event) -> None:
        name, first, last, inside = bundle
        body = get(name, first, last, stop)
        if body is None or len(body) != last - first:
            raise ValueError(f"{name} ends before byte {last}, although its index lists chunks up to there")
        for number, start, end in inside:
            whole = wanted[number].clip(level.grid.box)
            stored = shards.decompress_chunk(
                sharding, body[start - first : end - first], chunk_limit(whole.shape, source)
            )
            voxels = decode(stored, whole.shape)
            part = whole.clip(box)
            if on_chunk is not None:
                on_chunk(voxels[part.slices(whole)])
            out[part.slices(box)] = voxels[part.slices(whole)]

    run_in_parallel(fetch, shards.group_ranges(places), source.connection.concurrency)
    return out


def _byte_ranges(source: StoredLayer, mip: int) -> shards.GetBytes:
    folder = f"{web_folder(source.url)}/{source.info['scales'][mip]['key']}"
    credential = credential_of(source.url, source.token)

    def get(name: str, start: int, stop: int, stopped: threading.Event) -> bytes | None:
        part, url = ByteRange(start, stop), f"{folder}/{name}"
        reply = send_request("GET", url, source.connection, credential=credential, stop=stopped, part=part)
        if is_absent(reply, source.url):
            return None
        check_reply(reply, source.name, source.url, source.token, source.connection.access)
        return reply.body

    return get


def chunk_limit(shape: Index3, source: StoredLayer) -> int:
    """Return the largest size in bytes of a stored chunk, compressed or not.

    It is four times the size of the voxels plus 1 MB, because encoded noise is larger than the voxels, in
    compressed_segmentation up to three times.
    """
    voxels = math.prod(shape) * int(source.info.get("num_channels", 1))
    return 4 * voxels * source.dtype.itemsize + (1 << 20)


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


def make_chunk_decoder(source: StoredLayer, mip: int) -> Callable[[bytes, Index3], npt.NDArray[Any]]:
    """Return a function that decodes the bytes of a chunk to voxels (z, y, x), or raises `DamagedChunkError`."""
    scale, channels = source.info["scales"][mip], int(source.info.get("num_channels", 1))
    encoding = source.levels[mip].encoding
    block = scale.get("compressed_segmentation_block_size", (8, 8, 8))

    def decode(body: bytes, shape: Index3) -> npt.NDArray[Any]:
        z, y, x = shape
        whole = (x, y, z, channels)
        found = decode_chunk(body, encoding, whole, source.dtype, block)
        # The transpose of (x, y, z, channel) in Fortran order is in C order without a copy.
        return found.reshape(whole)[..., source.channel].T

    return decode


def chunk_name(offset: tuple[float, ...], chunk: IndexBox) -> str:
    """Return the file name of a chunk, which contains its position in absolute voxels."""
    spans = zip(offset, chunk.start[::-1], chunk.stop[::-1], strict=True)
    return "_".join(f"{int(o) + a}-{int(o) + b}" for o, a, b in spans)


def chunks_of(box: IndexBox, chunks: Index3) -> Iterator[IndexBox]:
    """Yield the boxes of all chunks that overlap a box."""
    ranges = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, chunks, strict=True)]
    for z in ranges[0]:
        for y in ranges[1]:
            for x in ranges[2]:
                start = (z * chunks[0], y * chunks[1], x * chunks[2])
                yield IndexBox(start, (start[0] + chunks[0], start[1] + chunks[1], start[2] + chunks[2]))


def is_absent(reply: Reply, url: str) -> bool:
    """Return whether a response means that a file is missing, and not that access is denied."""
    # Buckets also answer 403 for missing objects; servers that check tokens do not.
    return not reply.redirected_to and (reply.status == 404 or (reply.status == 403 and not url.startswith(MIDDLEAUTH)))


def _checksum_problem(reply: Reply) -> str:
    """Return the problem of a body that differs from the MD5 in its headers, which Google's servers send."""
    sums = dict(part.strip().split("=", 1) for part in reply.headers.get("x-goog-hash", "").split(",") if "=" in part)
    if "md5" not in sums or not _is_body_as_stored(reply.headers):
        return ""
    found = base64.b64encode(hashlib.md5(reply.body, usedforsecurity=False).digest()).decode()
    return "" if found == sums["md5"] else "the body does not match its checksum"


def _is_body_as_stored(headers: Mapping[str, str]) -> bool:
    # A server may decompress an object before it sends it. The checksum is that of the compressed object.
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    return stored == headers.get("content-encoding", "identity")
