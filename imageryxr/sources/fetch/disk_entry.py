"""Files of the disk cache: a checksum of the rest of the file, a header in JSON, and the bytes from the server."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct

from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.validators import Validator

FORMAT = "imageryxr-chunks-1"
"""Folder of the entries in the folder that the user named, and the first bytes of each entry."""
_MAGIC = FORMAT.encode() + b"\n"
_DIGEST, _HEADER_LIMIT = 32, 4096


def entry_name(*key: object) -> str:
    """Return the file name of the entry for a key, which must be convertible to JSON and contain no secrets."""
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=20).hexdigest()


def make_entry(name: str, stored: Stored) -> list[bytes | memoryview] | None:
    """Return the content of an entry's file in parts, or None if the object must not be stored."""
    if stored.validator is None:
        return None
    header = {"name": name, "encoding": stored.encoding, **stored.validator._asdict()}
    text = json.dumps(header).encode()
    if len(text) > _HEADER_LIMIT:
        return None
    start = struct.pack("<IQ", len(text), len(stored.body)) + text
    digest = hashlib.blake2b(start, digest_size=_DIGEST)
    digest.update(stored.body)
    return [_MAGIC + digest.digest() + start, stored.body]


def read_entry(file: int, name: str, limit: int) -> Stored | None:
    """Return the object in an open file, or None if the file is damaged or the object has more bytes than the limit."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size > limit + _HEADER_LIMIT + 128:
        return None
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return None
    with os.fdopen(os.dup(file), "rb") as opened:
        whole = memoryview(opened.read(found.st_size + 1))
    digest, start = len(_MAGIC), len(_MAGIC) + _DIGEST
    content = whole[start:]
    if whole[:digest] != _MAGIC or hashlib.blake2b(content, digest_size=_DIGEST).digest() != whole[digest:start]:
        return None
    size, length = struct.unpack_from("<IQ", content)
    header, body = json.loads(bytes(content[12 : 12 + size])), content[12 + size :]
    if header.pop("name") != name or len(body) != length or length > limit:
        return None
    return Stored(bytes(body), header.pop("encoding"), validator=Validator(**header))
