"""Stamps of metadata files, so that a volume that is opened again after it was rewritten shows its new voxels.

The keys of cached chunks and shard indexes contain the stamp of the metadata that were read when the volume was opened.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple


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

    If the server sends no stamp, it is unique, so that a volume that is opened again shares no chunks with an earlier
    opening. The chunks of local folders are not cached and need no stamp.
    """
    return "" if url.startswith(("file://", "mem://")) else stamp or f"{_UNIQUE}{secrets.token_hex(8)}"


def stable_version(version: str) -> str:
    """Return text that begins with a stamp, without it if it is unique: such a key would never be found on a disk."""
    return version.partition(" ")[2] if version.startswith(_UNIQUE) else version
