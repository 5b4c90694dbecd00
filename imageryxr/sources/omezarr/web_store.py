"""A Zarr store for a folder on a web server.

zarr-python's own web stores follow redirects to any server and resolve names a second time. This store uses
`send_request`, with checked addresses, deadlines, retries, limited concurrency and credentials. Importing this module
imports zarr-python.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import Connection
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.threads import current_stop_event
from imageryxr.sources.omezarr.web_objects import fetch_object, run_in_thread


class WebStore(Store):
    """Read-only objects in a folder on a web server."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, folder: str, connection: Connection, credential: Credential | None, limit: int) -> None:
        super().__init__(read_only=True)
        self.stop = current_stop_event()
        self.folder, self.connection, self.credential, self.limit = folder, connection, credential, limit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WebStore) and self.folder == other.folder

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object or a range of it; None if it does not exist."""
        part, options = _part_of(byte_range), (self.connection, self.credential)
        if part is not None and (part.size or 0) > self.limit:
            raise ValueError(f"the request for {part.size:,} bytes of {key} exceeds the limit of {self.limit:,}")
        body = await run_in_thread(
            lambda stop: fetch_object(self.folder, key, *options, part=part, limit=self.limit, stop=stop), self.stop
        )
        return None if body is None else prototype.buffer.from_bytes(body)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return ranges of objects."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Return whether an object exists; fetches it, because many servers deny HEAD requests."""
        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Raise NotImplementedError: the store is read-only."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Raise NotImplementedError: the store is read-only."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Raise NotImplementedError: web servers cannot list objects."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Raise NotImplementedError: web servers cannot list objects."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Raise NotImplementedError: web servers cannot list objects."""
        raise NotImplementedError


def _part_of(request: ByteRequest | None) -> ByteRange | None:
    if isinstance(request, RangeByteRequest):
        return ByteRange(request.start, request.end)
    if isinstance(request, OffsetByteRequest):
        return ByteRange(request.offset)
    return ByteRange(suffix=request.suffix) if isinstance(request, SuffixByteRequest) else None
