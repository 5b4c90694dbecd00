"""Stored Zarr objects looked at before they are decoded: one that was cut short may decode to zeros, in silence.

Blosc does not compare the length that its header gives with what it was handed, and what a shard's index points at
beyond its end is taken for nothing. Other codecs tell by themselves.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from imageryxr.sources.base import is_page

_HEADER = 16
"""Bytes of a Blosc header, of which the last four hold the length of all."""
_LEFT_OUT = np.iinfo(np.uint64).max
"""Where a shard's index says that a chunk was left out."""


class DamagedObjectError(ValueError):
    """A stored object that is not whole; `OmeZarrSource` says of which box."""


class ZarrForm(NamedTuple):
    """How the objects of an array are made up."""

    is_blosc: bool
    """Whether a chunk is one Blosc frame."""
    chunks_in_shard: int
    """0 where an object is a chunk."""
    index_size: int
    """Bytes of a shard's index, 0 where that cannot be told."""
    index_first: bool
    """Whether it stands at the start of the shard, not at its end."""


@lru_cache(maxsize=1024)
def form_of(metadata: str) -> ZarrForm:
    """Return what an array's ``zarr.json`` or ``.zarray`` says of its objects."""
    document = json.loads(metadata)
    if document["zarr_format"] == 2:
        return ZarrForm((document.get("compressor") or {}).get("id") == "blosc", 0, 0, False)
    codecs = document["codecs"]
    if codecs[0]["name"] != "sharding_indexed":
        return ZarrForm(_ends_in_blosc(codecs), 0, 0, False)
    shard = codecs[0]["configuration"]
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    count = int(np.prod([-(-n // m) for n, m in zip(outer, shard["chunk_shape"], strict=True)]))
    size = _index_size(shard.get("index_codecs", []), count) if len(codecs) == 1 else 0
    return ZarrForm(_ends_in_blosc(shard["codecs"]), count, size, shard.get("index_location") == "start")


def check_object(form: ZarrForm, key: str, data: bytes | memoryview, asked: tuple[int | None, int | None]) -> None:
    """Raise unless an object, or a part of one, is whole as far as that can be told.

    Parameters
    ----------
    form : ZarrForm
        How the array's objects are made up.
    key : str
        The object's, for the message.
    data : bytes or memoryview
        What came.
    asked : tuple
        First byte and the one behind the last that were asked for; ``(None, n)`` stands for the last n, and
        ``(None, None)`` for all.

    Raises
    ------
    DamagedObjectError
        If it was cut short, or is a web page.
    """
    first, stop = asked
    problem = ""
    if len(data) == 0:
        problem = "it is empty (0 bytes)"
    elif is_page(data):
        problem = "it is a web page, such as servers send to ask for a login"
    elif stop is not None and len(data) != stop - (first or 0):
        problem = f"{stop - (first or 0)} bytes of it were asked for, and {len(data)} came"
    elif form.chunks_in_shard and asked == (None, None):
        problem = _shard_problem(form, data)
    elif form.is_blosc and not (form.chunks_in_shard and _is_index(form, asked)):
        problem = _blosc_problem(data)
    if problem:
        raise DamagedObjectError(f"the stored object {key} was cut short or overwritten: {problem}")


def _ends_in_blosc(codecs: list[dict[str, Any]]) -> bool:
    return bool(codecs) and codecs[-1]["name"] in ("blosc", "numcodecs.blosc")


def _index_size(codecs: list[dict[str, Any]], count: int) -> int:
    names = [codec["name"] for codec in codecs]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return 0
    is_little = (codecs[0].get("configuration") or {}).get("endian", "little") == "little"
    return 16 * count + 4 * (len(names) - 1) if is_little else 0


def _is_index(form: ZarrForm, asked: tuple[int | None, int | None]) -> bool:
    # Where the size of the index is not known, no part of a shard is taken for a chunk.
    return not form.index_size or asked == ((0 if form.index_first else None), form.index_size)


def _shard_problem(form: ZarrForm, data: bytes | memoryview) -> str:
    if not form.index_size:
        return ""
    if len(data) < form.index_size:
        return f"it holds {len(data)} bytes, less than its index takes"
    begin = 0 if form.index_first else len(data) - form.index_size
    index = np.frombuffer(data, "<u8", 2 * form.chunks_in_shard, begin).reshape(-1, 2)
    for offset, size in index[(index != _LEFT_OUT).any(axis=1)].tolist():
        if offset + size > len(data):
            return f"its index points at byte {offset + size} of {len(data)}"
        problem = _blosc_problem(data[offset : offset + size]) if form.is_blosc else ""
        if problem:
            return problem
    return ""


def _blosc_problem(frame: bytes | memoryview) -> str:
    if len(frame) < _HEADER:
        return f"a chunk of {len(frame)} bytes is shorter than the header of Blosc"
    said = int.from_bytes(frame[12:16], "little")
    return "" if said == len(frame) else f"a chunk holds {len(frame)} bytes, and {said} by its own header"
