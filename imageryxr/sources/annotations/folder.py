"""Bytes of the small files and shards of a folder of annotations or skeletons, local or remote.

All bytes of annotations and skeletons are read here, with the timeouts, retries and credentials of `sources.fetch`.
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ChunkReadError, ImageryError, ServerError, SourceError, SourceNotFoundError
from imageryxr.sources.address import Address, parse_address
from imageryxr.sources.base import clean_message, is_html_page
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import Token, find_token
from imageryxr.sources.fetch.buckets import WebPlace
from imageryxr.sources.fetch.budget import FILE_REQUESTS, SERVICE_REQUESTS
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import send_request
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, read_objects
from imageryxr.sources.fetch.json_service import decompress_body
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import MIDDLEAUTH, parse_web_url
from imageryxr.sources.precomputed import chunks, shards
from imageryxr.sources.precomputed.source import fetch_info_file

MOST_BYTES = 1 << 30
"""Largest size in bytes of a file, compressed or not."""
_BUCKET_HOSTS = re.compile(r"https://(storage\.googleapis\.com|[^/]*\.amazonaws\.com)/")


@dataclass(frozen=True)
class Folder:
    """A folder of files, whose ``info`` was read from `url`."""

    url: str = field(repr=False)
    """Location ``protocol://…``; a web address may contain a password."""
    name: str
    """Address without secrets, for messages."""
    token: Token | None = None
    """Token for ``middleauth`` servers."""
    connection: Connection = field(default=Connection(), repr=False)
    stamp: str = field(default="", compare=False, repr=False)
    """Text that changes when the ``info`` file is written; part of the keys of cached indexes."""

    def child(self, key: str) -> Folder:
        """Return the folder at a relative path, which may contain "..".

        Raises
        ------
        SourceError
            If the path leads out of the server or bucket.
        """
        scheme, _, place = self.url.partition("://")
        host, _, path = place.partition("/") if scheme != "file" else ("", "/", place)
        joined = posixpath.normpath(posixpath.join(path or ".", key))
        if joined.startswith("..") or posixpath.normpath(key).count("..") > len([p for p in path.split("/") if p]):
            raise SourceError(f"{self.name} names the folder {key!r}, which lies outside its server or bucket")
        location = joined if scheme == "file" else f"{host}/{joined}".removesuffix("/.")
        return replace(self, url=f"{scheme}://{location}", name=f"{self.name}/{key}")

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the contents of files, None for each that does not exist; files are requested in parallel.

        Raises
        ------
        AuthError
            If access is denied.
        ChunkReadError
            If a file cannot be read.
        """
        with self._errors():
            if self._place is not None:
                return run_in_parallel(self._request, list(keys), _FolderStore(self).width)
            if self.url.startswith("file://"):
                return [self._read_file(key, 0, None) for key in keys]
            store = self._bucket
            return run_in_parallel(lambda key, stop: _whole(store, key, stop), list(keys), store.width)

    def read_sharded(self, sharding: dict[str, Any], ids: Sequence[int]) -> dict[int, bytes]:
        """Return the contents of the shards for ids; ids that do not occur are omitted.

        Raises
        ------
        AuthError
            If access is denied.
        ChunkReadError
            If a shard cannot be read or is damaged.
        """
        with self._errors():
            store = _FolderStore(self)
            where = shards.fetch_shards(store, "", sharding, ids)
            requests = []
            for number, place in ((number, where(number)) for number in ids):
                if place is None:
                    continue
                name, start, stop = place
                if stop - start > MOST_BYTES:
                    raise ValueError(f"{name} is damaged: its index states an entry of {stop - start:,} bytes")
                requests.append(ObjectRequest(name, MOST_BYTES, 4 * (stop - start), (start, stop), number))
            found: dict[int, bytes] = {}

            def decode(request: ObjectRequest, stored: Stored) -> npt.NDArray[np.uint8]:
                body = shards.decompress_chunk(sharding, bytes(stored.body), MOST_BYTES)
                return np.frombuffer(body, np.uint8)

            def use(request: ObjectRequest, data: npt.NDArray[np.uint8] | None) -> None:
                if data is not None:
                    found[request.tag] = data.tobytes()

            read_objects(store, requests, decode, use, replace(self.connection, memory_cache=0))
            return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            raise ChunkReadError(f"could not read {self.name}: {error}") from error
        except ImageryError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            raise ChunkReadError(f"could not read {self.name}: {clean_message(error)}") from error

    def _version(self) -> str:
        """Return the key under which indexes of shards are cached; that of a local folder changes with its files."""
        if not self.url.startswith("file://"):
            return f"{self.url} {self.stamp}"
        files = sorted(Path(self.url.removeprefix("file://")).glob("*.shard"))
        return f"{self.url}#{hash(tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files))}"

    # --- web servers ---

    @property
    def _place(self) -> WebPlace | None:
        if self.url.startswith(("file://", "mem://")):
            return None
        return chunks.place_of(self.url, self.connection, self.token)

    def _request(self, key: str, stop: threading.Event, part: ByteRange | None = None) -> bytes | None:
        place = self._place
        assert place is not None
        reply = send_request(
            "GET",
            f"{place.folder}/{quote(key)}",
            self.connection,
            headers={**(chunks.HEADERS if part is None else {}), **dict(place.headers)},
            width=SERVICE_REQUESTS if self.url.startswith(MIDDLEAUTH) else None,
            credential=place.credential,
            stop=stop,
            limit=MOST_BYTES,
            part=part,
        )
        if self._is_absent(reply):
            return None
        chunks.check_reply(reply, self.name, self.url, self.token, self.connection.access)
        return reply.body if part is not None else decompress_body(reply, MOST_BYTES)

    def _is_absent(self, reply: Reply) -> bool:
        # Only buckets answer 403 for missing objects. Elsewhere a file that may not be read is an error.
        is_bucket = self._place is not None and _BUCKET_HOSTS.match(self._place.folder) is not None
        return not reply.redirected_to and (reply.status == 404 or (reply.status == 403 and is_bucket))

    # --- local files, and buckets that obstore reads ---

    @property
    def _bucket(self) -> ObjectStore:
        return chunks.store_at(self.url, self.connection, self.token)

    def _read_file(self, key: str, start: int, stop: int | None) -> bytes | None:
        path = Path(self.url.removeprefix("file://"), key)
        for suffix, encoding in (("", ""), (".gz", "gzip"), (".br", "br")):
            try:
                with open(f"{path}{suffix}", "rb") as file:
                    if not encoding and stop is not None:
                        file.seek(start)
                        return file.read(stop - start)
                    body = file.read(MOST_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                continue
            whole = decompress(body, encoding, MOST_BYTES) if encoding else body
            if is_html_page(whole):
                raise ValueError(f"{key} contains HTML instead of data")
            return whole if stop is None else whole[start:stop]
        return None


class _FolderStore:
    """The files of a folder, for the engine."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        is_service = folder.url.startswith(MIDDLEAUTH)
        self.width = folder.connection.concurrency or (SERVICE_REQUESTS if is_service else FILE_REQUESTS)

    @cached_property
    def identity(self) -> str:
        """Key of the cached indexes of shards."""
        return self.folder._version()

    @property
    def disk_place(self) -> None:
        """None: annotations are not cached on a disk."""

    def get(self, key: str, part: ByteRange | None, limit: int, stop: threading.Event) -> Stored | None:
        """Return a file or a range of it, or None if it does not exist."""
        if self.folder.url.startswith("file://"):
            body = self.folder._read_file(key, 0 if part is None else part.start, None if part is None else part.stop)
        elif self.folder._place is not None:
            body = self.folder._request(key, stop, part)
        else:
            return self.folder._bucket.get(key, part, limit, stop)
        return None if body is None else Stored(body)


def _whole(store: ObjectStore, key: str, stop: threading.Event) -> bytes | None:
    found = store.get(key, None, MOST_BYTES, stop)
    return None if found is None else decompress(found.body, found.encoding, MOST_BYTES)


def open_folder(
    source: str | os.PathLike[str], token: str | Token | None, connection: Connection | None
) -> tuple[Folder, dict[str, Any]]:
    """Return the folder at an address, and the content of its ``info`` file; makes one request.

    Raises
    ------
    AddressError, SourceError
        If the address names another format than precomputed.
    SourceNotFoundError
        If there is no ``info`` file.
    AuthError, ChunkReadError
        If it cannot be read.
    """
    address = parse_address(source)
    if address.format not in (None, "precomputed"):
        raise SourceError(
            f"{address.public} is given as {address.format}, but annotations and skeletons are read from precomputed "
            "folders; write precomputed://…"
        )
    connection = connection or Connection()
    login = None
    if address.url.startswith(MIDDLEAUTH):
        login = find_token(parse_web_url(address.url).netloc, given=token)
    return read_info(Folder(address.url, f"precomputed://{address.public}", login, connection))


def read_info(folder: Folder) -> tuple[Folder, dict[str, Any]]:
    """Return a folder with the stamp of its ``info`` file, and the content of the file.

    Raises
    ------
    SourceNotFoundError
        If there is none.
    """
    info = fetch_info_file(Address("precomputed", folder.url), folder.connection, folder.token)
    if info is None:
        raise SourceNotFoundError(f"there is no {folder.name}/info, or it cannot be read; check the address")
    return replace(folder, stamp=info.stamp), info.content
