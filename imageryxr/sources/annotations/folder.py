"""Bytes of the small files and shards of a folder of annotations or skeletons, local or remote.

All bytes of annotations and skeletons are read here, with the timeouts, retries and credentials of `sources.fetch`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from imageryxr.errors import ChunkReadError, ImageryError, ServerError, SourceError, SourceNotFoundError
from imageryxr.sources.address import Address, parse_address
from imageryxr.sources.base import clean_message
from imageryxr.sources.fetch.auth import Token, find_token
from imageryxr.sources.fetch.connection import DEFAULT_CONNECTION, Connection, to_connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, read_objects
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import DeniedError, WebFolder
from imageryxr.sources.fetch.url import MIDDLEAUTH, parse_web_url
from imageryxr.sources.precomputed import chunks, shards
from imageryxr.sources.precomputed.source import fetch_info_file

Parsed = TypeVar("Parsed")

MOST_BYTES = 1 << 30
"""Largest size in bytes of a file, compressed or not."""
# Memory in bytes that is reserved for a file while it is read.
_FILE_MEMORY = 1 << 20
_BUCKET_HOSTS = re.compile(r"https://(storage\.googleapis\.com|[^/]*\.amazonaws\.com)/")


@dataclass(frozen=True)
class AnnotationFolder:
    """A folder of annotations or skeletons."""

    url: str = field(repr=False)
    """Location ``protocol://…``; a web address may contain a password."""
    name: str
    """Address without secrets, for messages."""
    token: Token | None = None
    """Token for ``middleauth`` servers."""
    connection: Connection = field(default=DEFAULT_CONNECTION, repr=False)
    stamp: str = field(default="", compare=False, repr=False)
    """Text that changes when the ``info`` file is written; part of the keys of cached indexes."""

    def child(self, key: str) -> AnnotationFolder:
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
            raise SourceError(
                f"the info of {self.name} names the folder {key!r}, which lies outside its server or bucket"
            )
        location = joined if scheme == "file" else f"{host}/{joined}".removesuffix("/.")
        return replace(self, url=f"{scheme}://{location}", name=f"{self.name}/{key}")

    def read(self, keys: Sequence[str], parse: Callable[[str, bytes], Parsed]) -> dict[str, Parsed]:
        """Return the parsed files at keys; files that do not exist are omitted.

        Parameters
        ----------
        keys : sequence of str
            Names of files, which are requested in parallel.
        parse : callable
            Returns the content of a file from its key and bytes, or raises an error. Files that are parsed without an
            error enter the disk cache.

        Raises
        ------
        AuthError
            If access is denied.
        ChunkReadError
            If a file cannot be read.
        """
        with self._errors():
            requests = [ObjectRequest(key, MOST_BYTES, _FILE_MEMORY, tag=key) for key in keys]
            return self._read(self._store(), requests, parse)

    def read_ids(
        self, sharding: dict[str, Any] | None, ids: Sequence[int], parse: Callable[[int, bytes], Parsed]
    ) -> dict[int, Parsed]:
        """Return the parsed entries for ids; ids that do not occur are omitted.

        The entries are in shards, or without `sharding` in one file for each id.
        """
        if sharding is not None:
            return self.read_sharded(sharding, ids, parse)
        found = self.read([str(number) for number in ids], lambda key, body: parse(int(key), body))
        return {int(key): content for key, content in found.items()}

    def read_sharded(
        self, sharding: dict[str, Any], ids: Sequence[int], parse: Callable[[int, bytes], Parsed]
    ) -> dict[int, Parsed]:
        """Return the parsed entries of the shards for ids; ids that do not occur are omitted. See `read`."""
        with self._errors():
            store = self._store()
            where = shards.fetch_shards(store, "", sharding, ids)
            requests = []
            for number, place in ((number, where(number, MOST_BYTES)) for number in ids):
                if place is None:
                    continue
                name, start, stop = place
                requests.append(ObjectRequest(name, MOST_BYTES, 4 * (stop - start), (start, stop), number))
            return self._read(
                store, requests, lambda number, body: parse(number, shards.decompress_chunk(sharding, body, MOST_BYTES))
            )

    def _read(
        self, store: ObjectStore, requests: Sequence[ObjectRequest], parse: Callable[[Any, bytes], Parsed]
    ) -> dict[Any, Parsed]:
        found: dict[Any, Parsed] = {}

        def decode(request: ObjectRequest, stored: Stored) -> Any:
            body = bytes(stored.body)
            return parse(request.tag, decompress(body, stored.encoding, MOST_BYTES) if stored.encoding else body)

        def use(request: ObjectRequest, content: Any) -> None:
            if content is not None:
                found[request.tag] = content

        read_objects(store, requests, decode, use, replace(self.connection, memory_cache=0))
        return {request.tag: found[request.tag] for request in requests if request.tag in found}

    def _store(self) -> ObjectStore:
        """Return the store of the files, from which the engine reads."""
        url, connection = self.url, self.connection
        is_web = not url.startswith(("file://", "mem://"))
        place = chunks.place_of(url, connection, self.token) if is_web else None
        if place is None:
            return chunks.store_at(url, connection, self.token, self.stamp)
        is_service = url.startswith(MIDDLEAUTH)
        return WebFolder(
            place.folder,
            connection,
            place.credential,
            is_service,
            self.stamp,
            headers=place.headers,
            is_403_missing=not is_service and _BUCKET_HOSTS.match(place.folder) is not None,
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DeniedError as error:
            chunks.check_reply(error.reply, self.name, self.url, self.token, self.connection.access)
            raise
        except ServerError as error:
            raise ChunkReadError(f"could not read {self.name}: {error}") from error
        except ImageryError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            raise ChunkReadError(f"could not read {self.name}: {clean_message(error)}") from error


def open_folder(
    source: str | os.PathLike[str], token: str | Token | None, connection: Connection | None
) -> tuple[AnnotationFolder, dict[str, Any]]:
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
            f"{address.public} is given with the format {address.format}, but annotations and skeletons are read from "
            "precomputed folders; write precomputed://…"
        )
    address.check_path()
    connection = to_connection(connection)
    login = None
    if address.url.startswith(MIDDLEAUTH):
        login = find_token(parse_web_url(address.url).netloc, given=token)
    return read_info(AnnotationFolder(address.url, f"precomputed://{address.public}", login, connection))


def read_info(folder: AnnotationFolder) -> tuple[AnnotationFolder, dict[str, Any]]:
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
