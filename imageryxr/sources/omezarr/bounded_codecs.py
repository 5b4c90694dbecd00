"""Zarr codecs with a limit of the decompressed size.

A few stored bytes may decompress to more than the memory of a machine, and numcodecs and zarr-python check the size
only after decompression. Therefore each compressor in the metadata for zarr-python is replaced with one that stops at a
limit, which follows from the shape of the chunk.
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

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import CodecError
from imageryxr.sources.codecs.frame_headers import declared_size
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.omezarr.codec_metadata import BOUNDED, codec_names

_NAMESPACE = "numcodecs."
_STREAMS = frozenset({"gzip", "zlib", "bz2", "lzma"})
"""Compressors that do not reliably state the decompressed size."""
_FRAMES = frozenset({"blosc", "zstd", "lz4"})
"""Compressors whose header states the decompressed size, which their decoder allocates."""
_COMPRESSORS = _STREAMS | _FRAMES
# Codecs whose output has about the size of their input.
_SIZE_KEEPING = {
    "bytes", "transpose", "sharding_indexed", "crc32", "crc32c", "adler32", "fletcher32", "shuffle", "jenkins_lookup3",
    "delta", "fixedscaleoffset", "quantize", "bitround", "astype", "packbits",
}  # fmt: skip
# The limit of a codec is the size of the voxels times a factor, because filters may store wider types, plus some bytes,
# because compressed data that are compressed again grow.
_FACTOR, _MORE = 8, 1 << 20
_PIECE = 1 << 20
_LZMA_DICTIONARY = 256 << 20


def bounded_metadata(text: str) -> dict[str, Any]:
    """Return checked metadata for zarr-python with a limit for every compressor; register the codecs that apply it."""
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
    """Raise `CodecError` if an array from a link has a codec whose output has no limit.

    Codecs of pictures and those of other packages allocate the size that their own headers state. Neuroglancer supports
    none of these codecs.
    """
    known = _COMPRESSORS | _SIZE_KEEPING
    for codec in codec_names(json.loads(text)) if access.from_link else ():
        if codec.removeprefix(_NAMESPACE) not in known:
            raise CodecError(
                f"{name} is stored with the codec {codec!r}, which may decompress to any size, so links cannot use it; "
                "if you trust the server, open this address directly"
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


def decompress_bounded(stored: Any, codec: dict[str, Any], limit: int) -> bytes:
    """Return decompressed data of at most ``limit`` bytes."""
    data = memoryview(stored).cast("B")
    name = codec["id"]
    if name in _FRAMES:
        size = declared_size(data, name)
        if size is not None and size > limit:
            raise TooLargeError(f"its {name} header states {size:,} bytes; the limit is {limit:,}")
        if size is not None:
            return _numcodecs_decoder(name)(data)
    if name == "lzma":
        return _decompress_streams(_lzma_decoder(codec, limit), data, name, limit)
    if name == "bz2":
        return _decompress_streams(bz2.BZ2Decompressor, data, name, limit)
    return decompress(data, "deflate" if name == "zlib" else name, limit)


@lru_cache(maxsize=64)
def _numcodecs_decoder(name: str) -> Callable[[Any], bytes]:
    import_package("numcodecs")
    from numcodecs.registry import get_codec

    decode: Callable[[Any], bytes] = get_codec({"id": name}).decode
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
    """Return the content of concatenated streams, like `bz2.decompress` and `lzma.decompress`."""
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
                raise TooLargeError(f"it decompresses from {name} to more than the limit of {limit:,} bytes")
            found.append(piece)
        given = unpacker.unused_data.lstrip(b"\0")
    return b"".join(found)


@lru_cache(maxsize=1)
def _register_bounded_codecs() -> None:
    """Register the bounded codec with numcodecs and zarr-python."""
    import asyncio

    import_package("numcodecs")
    from numcodecs.abc import Codec
    from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy
    from numcodecs.registry import register_codec as register_old

    import_package("zarr")
    from zarr.abc.codec import BytesBytesCodec
    from zarr.registry import register_codec as register_new

    class Bounded(Codec):  # type: ignore[misc]
        """A numcodecs compressor that decompresses up to a limit."""

        codec_id = BOUNDED

        def __init__(self, codec: dict[str, Any], limit: int) -> None:
            self.codec, self.limit = codec, limit

        def decode(self, buf: Any, out: Any = None) -> Any:
            return ndarray_copy(decompress_bounded(ensure_contiguous_ndarray(buf), self.codec, self.limit), out)

        def encode(self, buf: Any) -> Any:
            raise NotImplementedError("this codec only decodes")

    @dataclass(frozen=True)
    class BoundedBytes(BytesBytesCodec):
        """A Zarr 3 compressor that decompresses up to a limit."""

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
            found = await asyncio.to_thread(decompress_bounded, stored, self.codec, self.limit)
            return chunk_spec.prototype.buffer.from_bytes(found)

        def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: Any) -> int:
            raise NotImplementedError("the size of compressed data is unknown")  # as in the compressors of zarr-python

    register_old(Bounded)
    register_new(BOUNDED, BoundedBytes)
