"""Folders of stored objects that `engine.read_objects` reads: on a web server, on a local disk or in memory.

Buckets are read as folders on web servers, or through `buckets.BucketFolder`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar
from urllib.parse import quote

import numpy as np

from imageryxr.core.fork import cached_property
from imageryxr.errors import ServerError
from imageryxr.sources.address import SAFE
from imageryxr.sources.base import stamp_of
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.budget import FILE_REQUESTS, SERVICE_REQUESTS
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import request_steps
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import TooLargeError
from imageryxr.sources.fetch.disk_reads import DiskPlace, disk_place
from imageryxr.sources.fetch.engine import cpu_count
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.policy import Credential, is_cave_server
from imageryxr.sources.fetch.sockets import Steps, run
from imageryxr.sources.fetch.url import parse_web_url
from imageryxr.sources.fetch.validators import validator_of

_PLAIN_KEY = re.compile("[A-Za-z0-9/._-]*")
_SUFFIXES = {"": "", ".gz": "gzip", ".br": "br", ".zstd": "zstd"}
_SALT = secrets.token_bytes(16)


class DeniedError(PermissionError):
    """A response that denies access to an object."""

    def __init__(self, key: str, reply: Reply) -> None:
        cause = "the server returned HTML" if reply.status in (200, 206) else f"HTTP {reply.status}"
        if reply.redirected_to:
            cause = f"redirected to {reply.redirected_to}, which may be a login page"
        super().__init__(f"{cause}: {key}")
        self.reply = reply


class ForbiddenObjectError(DeniedError):
    """An object for which the server answers 403; buckets also answer 403 for missing objects."""


@dataclass(frozen=True)
class WebFolder:
    """A folder on a web server."""

    folder: str = field(repr=False)
    """Its address, ``http(s)://…``."""
    connection: Connection
    """Options of requests."""
    credential: Credential | None = None
    """Credential for the server."""
    is_service: bool = False
    """Whether the server is a CAVE service, which accepts fewer requests at once than a file server."""
    version: str = ""
    """Text that changes if the objects change: the metadata of the layer and their stamp."""
    encodings: str = "gzip, br, zstd"
    """Accepted compressions of a whole object."""
    headers: tuple[tuple[str, str], ...] = ()
    """Further headers of each request."""
    is_403_missing: bool = False
    """Whether a response 403 means that the object is missing; buckets without list permission answer so."""
    can_interleave: ClassVar = True
    """Whether the store has the method `steps`, which never blocks."""

    @property
    def identity(self) -> Hashable:
        """Key in the memory cache: address, metadata, access, and a digest of the credential."""
        access = self.connection.access
        header = getattr(self.credential, "identity", None)  # a token of Google changes every hour
        if header is None and self.credential is not None:
            header = self.credential.header_for(f"{self.folder}/", access)
        secret = hashlib.blake2b((header or "").encode(), key=_SALT).hexdigest()
        return (self.folder, secret, access.allow_local, access.from_link, self.version)

    @cached_property
    def width(self) -> int:
        """Number of simultaneous requests."""
        is_service = self.is_service or _is_service(self.folder)
        return self.connection.concurrency or (SERVICE_REQUESTS if is_service else FILE_REQUESTS)

    @cached_property
    def disk_place(self) -> DiskPlace | None:
        """Where the objects are cached on a disk; see `ObjectStore`."""
        address, access = parse_web_url(self.folder), self.connection.access
        if "?" in address.path:  # the query may contain a signature
            return None
        options = (access.allow_local, access.from_link, self.encodings)
        return disk_place(self.connection, self.version, address.public, *options)

    def get(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event | None, known: Stored | None = None
    ) -> Stored | None:
        """Return an object or a range of it, or None if it does not exist; see `ConditionalStore`."""
        return run(self.steps(key, part, limit, stop, known))

    def steps(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event | None, known: Stored | None = None
    ) -> Steps[Stored | None]:
        """Return the steps of `get`, which may wait."""
        condition = {} if known is None or known.validator is None else known.validator.headers
        reply = yield from request_steps(
            "GET",
            f"{self.folder}/{key if _PLAIN_KEY.fullmatch(key) else quote(key, safe=SAFE)}",
            self.connection,
            headers={
                "Accept-Encoding": "identity" if part is not None else self.encodings,
                **dict(self.headers),
                **condition,
            },
            credential=self.credential,
            check=checksum_problem if part is None else None,
            part=part,
            limit=limit,
            stop=stop,
            width=self.width,
        )
        if reply.redirected_to and reply.status in (403, 404):
            raise DeniedError(key, reply)
        if reply.status == 404 or (reply.status == 403 and self.is_403_missing):
            return None
        if reply.status == 304 and condition:
            return known
        if reply.status in (401, 403) or (reply.is_html and reply.status in (200, 206)):
            raise (ForbiddenObjectError if reply.status == 403 else DeniedError)(key, reply)
        if reply.status not in (200, 206):
            raise ServerError(f"HTTP {reply.status} for {key}")
        encoding = "" if part is not None else reply.headers.get("content-encoding", "")
        is_part, is_public = part is not None, self.credential is None
        is_kept = self.disk_place is not None
        validator = validator_of(reply.headers, is_part=is_part, is_public=is_public) if is_kept else None
        return Stored(reply.body, encoding, stamp_of(reply.headers), validator)


@lru_cache(maxsize=256)
def _is_service(folder: str) -> bool:
    return is_cave_server(parse_web_url(folder))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk of this machine; files may have the suffix of their compression, as CloudFiles writes them."""

    path: str

    @property
    def identity(self) -> None:
        """None: the operating system caches local files."""

    @property
    def disk_place(self) -> None:
        """None: the files are on a disk."""

    @property
    def width(self) -> int:
        """Number of threads: one per core."""
        return cpu_count()

    def get(self, key: str, part: ByteRange | None, limit: int, stop: threading.Event | None) -> Stored | None:
        """Return a file or a range of it, or None if it does not exist; see `ObjectStore`."""
        for suffix, encoding in _SUFFIXES.items() if part is None else {"": ""}.items():
            try:
                with open(f"{self.path}/{key}{suffix}", "rb", buffering=0 if part is None else -1) as file:
                    size = os.fstat(file.fileno()).st_size
                    if part is None:
                        if size > limit:
                            raise TooLargeError(f"the file {key} has {size:,} bytes; the limit is {limit:,}")
                        return Stored(file.readall(), encoding)  # type: ignore[attr-defined]
                    file.seek(part.start if part.suffix is None else max(0, size - part.suffix))
                    return Stored(file.read(part.size if part.size is not None else -1))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return None


class MemoryFolder(LocalFolder):
    """A folder in the memory of this process, whose address ``mem://…`` is `path`, as CloudFiles keeps it."""

    def get(self, key: str, part: ByteRange | None, limit: int, stop: threading.Event | None) -> Stored | None:
        """Return an object or a range of it, or None if it does not exist; see `ObjectStore`."""
        from cloudfiles import CloudFiles

        start, end = (None, None) if part is None else (part.start, part.stop)
        found = CloudFiles(self.path, progress=False).get([{"path": key, "start": start, "end": end}], raw=True)[0]
        if found["error"] is not None:
            raise found["error"]
        body, encoding = found["content"], str(found["compress"] or "")
        if body is None:
            return None
        if isinstance(body, np.ndarray):
            # CloudVolume keeps the voxels of a raw chunk as an array, uncompressed whatever the name states.
            whole, encoding = body.tobytes("F"), ""
            body = whole if part is None else part.cut(whole)
        if len(body) > limit:
            raise TooLargeError(f"{key} has {len(body):,} bytes; the limit is {limit:,}")
        return Stored(body, encoding if part is None else "")


def checksum_problem(reply: Reply) -> str:
    """Return the problem of a body that differs from the MD5 in its headers, which Google's servers send."""
    hashes = reply.headers.get("x-goog-hash")
    if not hashes:
        return ""
    sums = dict(part.strip().split("=", 1) for part in hashes.split(",") if "=" in part)
    if reply.status != 200 or "md5" not in sums or not _is_body_as_stored(reply.headers):
        return ""
    found = base64.b64encode(hashlib.md5(reply.body, usedforsecurity=False).digest()).decode()
    return "" if found == sums["md5"] else "the body does not match its checksum"


def _is_body_as_stored(headers: Mapping[str, str]) -> bool:
    # A server may decompress an object before it sends it. The checksum is that of the compressed object.
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    return stored == headers.get("content-encoding", "identity")
