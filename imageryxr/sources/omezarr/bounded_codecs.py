"""Codecs of Zarr arrays with a limit: a few stored bytes may decompress to more than a machine holds.

numcodecs and zarr-python decompress whatever a chunk holds before anything compares its size with the array's
metadata. So each compressor is replaced, in the form of the metadata that zarr-python gets, with one that ends at a
limit that follows from the shape of the chunk.
"""

from __future__ import annotations

import bz2
import json
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from imageryxr.errors import CodecError
from imageryxr.sources.codecs.frame_headers import declared_size
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.omezarr.codec_metadata import BOUNDED, codec_names

__all__ = ["bounded_metadata", "check_bounded"]

_NAMESPACE = "numcodecs."
_STREAMS = frozenset({"gzip", "zlib", "bz2", "lzma"})
"""Compressors that state nowhere, or where nothing can be trusted, how much comes out."""
_FRAMES = frozenset({"blosc", "zstd", "lz4"})
"""Compressors whose header states how much comes out, and whose decoder allocates just that."""
_COMPRESSORS = _STREAMS | _FRAMES
# Codecs that give about as many bytes as they take.
_EVEN = frozenset({"bytes", "transpose", "sharding_indexed", "crc32", "crc32c", "adler32", "fletcher32", "shuffle"}) | {
    "jenkins_lookup3", "delta", "fixedscaleoffset", "quantize", "bitround", "astype", "packbits",
}  # fmt: skip
# Filters may store wider types than that of the array, and what was compressed once more is no smaller.
_FACTOR, _MORE = 8, 1 << 20
_PIECE = 1 << 20
_LZMA_DICTIONARY = 256 << 20


def bounded_metadata(text: str) -> dict[str, Any]:
    """Return an array's metadata in which every compressor has a limit.

    Parameters
    ----------
    text : str
        The metadata as `imageryxr.sources.omezarr.array_metadata` gives them, JSON.

    Returns
    -------
    dict
        What zarr-python takes. The codecs that it names must have been registered: this function does so.
    """
    document: dict[str, Any] = json.loads(text)
    if document["zarr_format"] == 2:
        limit = _limit(document["chunks"], np.dtype(document["dtype"]).itemsize)
        codecs = [_bounded_v2(codec, limit) for codec in (document["compressor"], *(document["filters"] or ()))]
        document |= {"compressor": codecs[0], "filters": codecs[1:] or None}
    else:
        shape = document["chunk_grid"]["configuration"]["chunk_shape"]
        document["codecs"] = _bounded_v3(document["codecs"], shape, np.dtype(document["data_type"]).itemsize)
    if f'"{BOUNDED}"' in json.dumps(document):
        _register_bounded_codecs()
    return document


def check_bounded(name: str, text: str, access: Access) -> None:
    """Raise if an array of a link has a codec whose output has no limit.

    Pictures and the codecs of other packages allocate what their own headers say. Neuroglancer decodes none of them.

    Parameters
    ----------
    name : str
        What messages call the array.
    text : str
        Its metadata, JSON.
    access : Access
        Says whether a link named it.

    Raises
    ------
    CodecError
        If it has such a codec.
    """
    known = _COMPRESSORS | _EVEN
    for codec in codec_names(json.loads(text)) if access.from_link else ():
        if codec.removeprefix(_NAMESPACE) not in known:
            raise CodecError(
                f"{name} is stored with the codec {codec!r}, which may decompress to any size, so it is not read for a "
                "link; if you trust the server, open this address itself"
            )


def _limit(shape: list[int], item: int) -> int:
    return _FACTOR * math.prod(shape) * item + _MORE


def _bounded_v2(codec: dict[str, Any] | None, limit: int) -> dict[str, Any] | None:
    if codec is None or codec["id"].removeprefix(_NAMESPACE) not in _COMPRESSORS:
        return codec
    return {"id": BOUNDED, "codec": {**codec, "id": codec["id"].removeprefix(_NAMESPACE)}, "limit": limit}


def _bounded_v3(codecs: list[dict[str, Any]], shape: list[int], item: int) -> list[dict[str, Any]]:
    limit, found = _limit(shape, item), []
    for codec in codecs:
        name, options = codec["name"], codec.get("configuration") or {}
        bare = name.removeprefix(_NAMESPACE)
        if name == "sharding_indexed":
            inner = options["chunk_shape"]
            chunks = math.prod(n // m for n, m in zip(shape, inner, strict=True))
            more = {
                "codecs": _bounded_v3(options["codecs"], inner, item),
                "index_codecs": _bounded_v3(options["index_codecs"], [chunks], 16),
            }
            found.append({"name": name, "configuration": {**options, **more}})
        elif bare in _COMPRESSORS:
            given = {**options, "id": bare} if bare in _STREAMS else {"id": bare}
            found.append({"name": BOUNDED, "configuration": {"codec": given, "limit": limit}})
        else:
            if name == "transpose":
                shape = [shape[i] for i in options["order"]]
            found.append(codec)
    return found


def _decompress(stored: Any, codec: dict[str, Any], limit: int) -> bytes:
    """Return what a compressor gives, of at most so many bytes."""
    data = memoryview(stored).cast("B")
    name = codec["id"]
    if name in _FRAMES:
        size = declared_size(data, name)
        if size is not None and size > limit:
            raise TooLargeError(f"its {name} header says {size:,} bytes, and it may have {limit:,}")
        if size is not None:
            return _numcodecs_decoder(json.dumps({"id": name}))(data)
    if name == "lzma":
        return _decompress_streams(_lzma_decoder(codec, limit), data, name, limit)
    if name == "bz2":
        return _decompress_streams(bz2.BZ2Decompressor, data, name, limit)
    return decompress(data, "deflate" if name == "zlib" else name, limit)


@lru_cache(maxsize=64)
def _numcodecs_decoder(config: str) -> Callable[[Any], bytes]:
    from numcodecs.registry import get_codec

    decode: Callable[[Any], bytes] = get_codec(json.loads(config)).decode
    return decode


def _lzma_decoder(codec: dict[str, Any], limit: int) -> Callable[[], Any]:
    form = codec.get("format", lzma.FORMAT_XZ)
    if form != lzma.FORMAT_RAW:
        return lambda: lzma.LZMADecompressor(form, memlimit=_LZMA_DICTIONARY + (64 << 20))
    filters = codec.get("filters")
    for entry in filters or ():
        size = entry.get("dict_size", 0) if isinstance(entry, dict) else 0
        if not isinstance(size, int) or size > max(limit, _LZMA_DICTIONARY):
            raise TooLargeError(f"its lzma filter has a dictionary of {size} bytes")
    return lambda: lzma.LZMADecompressor(form, filters=filters)


def _decompress_streams(make: Callable[[], Any], data: memoryview, name: str, limit: int) -> bytes:
    """Return what streams in a row hold, as `bz2.decompress` and `lzma.decompress` do."""
    found, size, given = [], 0, bytes(data)
    while given:
        unpacker = make()
        while not unpacker.eof:
            piece = unpacker.decompress(given, max_length=min(limit + 1, _PIECE))
            given = b""
            if not piece and unpacker.needs_input and not unpacker.eof:
                raise ValueError(f"its {name} stream was truncated")
            size += len(piece)
            if size > limit:
                raise TooLargeError(f"it unpacks from {name} to more than the {limit:,} bytes that it may have")
            found.append(piece)
        given = unpacker.unused_data.lstrip(b"\0")
    return b"".join(found)


@lru_cache(maxsize=1)
def _register_bounded_codecs() -> None:
    """Register the codec with numcodecs and zarr-python, in the ways that they have for it."""
    import asyncio

    from numcodecs.abc import Codec
    from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy
    from numcodecs.registry import register_codec as register_old
    from zarr.abc.codec import BytesBytesCodec
    from zarr.registry import register_codec as register_new

    class Bounded(Codec):  # type: ignore[misc]
        """A compressor of numcodecs that decompresses up to a limit."""

        codec_id = BOUNDED

        def __init__(self, codec: dict[str, Any], limit: int) -> None:
            self.codec, self.limit = codec, limit

        def decode(self, buf: Any, out: Any = None) -> Any:
            return ndarray_copy(_decompress(ensure_contiguous_ndarray(buf), self.codec, self.limit), out)

        def encode(self, buf: Any) -> Any:
            raise NotImplementedError

    @dataclass(frozen=True)
    class BoundedBytes(BytesBytesCodec):
        """The same for Zarr 3."""

        codec: Any
        limit: int
        is_fixed_size = False

        @classmethod
        def from_dict(cls, data: dict[str, Any]) -> Any:
            return cls(**data["configuration"])

        def to_dict(self) -> dict[str, Any]:
            return {"name": BOUNDED, "configuration": {"codec": self.codec, "limit": self.limit}}

        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            stored = chunk_bytes.as_numpy_array()
            found = await asyncio.to_thread(_decompress, stored, self.codec, self.limit)
            return chunk_spec.prototype.buffer.from_bytes(found)

        def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: Any) -> int:
            raise NotImplementedError

    register_old(Bounded)
    register_new(BOUNDED, BoundedBytes)
