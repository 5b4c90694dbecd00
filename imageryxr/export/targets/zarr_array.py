"""Encoding and decoding of the stored objects of a Zarr array, one chunk or shard at a time.

Zarr v3: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html; v2:
https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Channels are the first axis, and each chunk has all of them.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import floordiv
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.lazy_import import import_package
from imageryxr.errors import TargetError
from imageryxr.graph.expr import Array
from imageryxr.sources.omezarr.object_check import ObjectFormat, check_object, object_format


def _encode_zstd(level: int, chunk: Array) -> Any:
    import_package("numcodecs")
    from numcodecs.zstd import Zstd

    return Zstd(level).encode(chunk)


def _decode_zstd(data: bytes) -> Any:
    import_package("numcodecs")
    from numcodecs.zstd import Zstd

    return Zstd().decode(data)


def _encode_gzip(level: int, chunk: Array) -> Any:
    # without a timestamp, so that equal voxels give equal bytes
    return gzip.compress(chunk.data, level, mtime=0)


# Compressors with a direct encoder and decoder. The others go through zarr.
DIRECT: dict[str, tuple[Callable[[int, Array], Any], Callable[[bytes], Any]]] = {
    "zstd": (_encode_zstd, _decode_zstd),
    "gzip": (_encode_gzip, gzip.decompress),
    "none": (lambda _, chunk: chunk.tobytes(), lambda data: data),
}


@dataclass(frozen=True)
class ZarrArray:
    """The layout of a stored array. Names of objects are relative to the array."""

    shape: Index3
    channels: int
    """Size of the channel axis; 0 without such an axis."""
    dtype: np.dtype[Any]
    chunk: Index3
    object_shape: Index3
    """Voxels of an object: a chunk, or a shard of whole chunks."""
    sharded: bool
    compressor: str
    """The name, with the level after a colon."""
    old: bool
    """Whether the format is Zarr v2."""

    @property
    def _lead(self) -> tuple[int, ...]:
        return (self.channels,) if self.channels else ()

    @property
    def _is_direct(self) -> bool:
        """Whether chunks are encoded without zarr, whose single event loop thread would limit all workers."""
        return not self.sharded and self.compressor.partition(":")[0] in DIRECT

    @property
    def _stored_dtype(self) -> np.dtype[Any]:
        return self.dtype if self.old else self.dtype.newbyteorder("<")

    def description(self) -> dict[str, bytes]:
        """Return the metadata files of the array."""
        return {name: buffer.to_bytes() for name, buffer in self._metadata().to_buffer_dict(_prototype()).items()}

    def keys(self, box: IndexBox) -> list[str]:
        """Return the names of the objects that a box touches, in C order."""
        lead = f"{'' if self.old else 'c/'}{'0/' if self.channels else ''}"
        indices = (map(floordiv, cell.start, self.object_shape) for cell in box.cells(self.object_shape))
        return [lead + "/".join(map(str, index)) for index in indices]

    def _objects(self, box: IndexBox) -> Iterator[tuple[str, IndexBox]]:
        """Iterate over the objects that a box touches, with their boxes, which may extend beyond the array."""
        return zip(self.keys(box), box.cells(self.object_shape), strict=True)

    def encode(self, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the encoded objects of a box, which must cover whole objects up to the edge of the array."""
        for key, whole in self._objects(box):
            part = whole.clip(box)
            yield key, self._encode_object(key, part, values[part.slices(box)])

    def _encode_object(self, key: str, box: IndexBox, values: Array) -> bytes:
        if not self._is_direct:
            return self._encode_with_zarr(key, box, values)
        chunk = np.empty((*self._lead, *self.chunk), self._stored_dtype)
        if values.shape[:3] != self.chunk:
            chunk[...] = 0
        z, y, x = box.shape
        chunk[..., :z, :y, :x] = np.moveaxis(values, -1, 0) if self.channels else values
        name, _, strength = self.compressor.partition(":")
        data: bytes = DIRECT[name][0](int(strength or 0), chunk)
        return data

    def _encode_with_zarr(self, key: str, box: IndexBox, values: Array) -> bytes:
        import_package("zarr")
        from zarr.core.buffer import Buffer

        written: dict[str, Buffer] = {}
        array = self._open_array(written)
        if self.channels:
            array[(slice(None), *box.slices())] = np.moveaxis(values, -1, 0)
        else:
            array[box.slices()] = values.astype(self.dtype, copy=False)
        if list(written) != [key]:
            raise TargetError(f"zarr wrote {sorted(written)} instead of {key}; please report this bug")
        data: bytes = written[key].to_bytes()
        has_timestamps = self.sharded and self.compressor.startswith("gzip")
        return _without_timestamps(data, self.object_shape, self.chunk) if has_timestamps else data

    def decode(self, box: IndexBox, objects: Mapping[str, bytes], where: str) -> Array:
        """Return the values of a box from all objects that it touches, with channels first in memory.

        Raises `TargetError` if an object is damaged; the message names ``where``, the folder of the array.
        """
        out = np.empty((*self._lead, *box.shape), self.dtype)
        for key, whole in self._objects(box):
            part = whole.clip(box)
            try:
                self._decode_into(out[(..., *part.slices(box))], key, objects[key], whole, part)
            except Exception as error:
                raise TargetError(
                    f"{where}/{key} is damaged ({type(error).__name__}: {error}): remove it and run the same call "
                    "again, which restores it"
                ) from error
        return np.moveaxis(out, 0, -1) if self.channels else out

    def _decode_into(self, out: Array, key: str, data: bytes, whole: IndexBox, part: IndexBox) -> None:
        if not self._is_direct:
            check_object(_object_format(self), key, data, (None, None))  # Blosc does not check sizes
            array = self._open_array({key: _prototype().buffer.from_bytes(data)})
            # decoding into `out` avoids a second copy in memory
            selection = (*(slice(None) for _ in self._lead), *part.slices())
            array.get_basic_selection(selection, out=_prototype().nd_buffer.from_numpy_array(out))
            return
        decode = DIRECT[self.compressor.partition(":")[0]][1]
        chunk = np.frombuffer(decode(data), self._stored_dtype).reshape(*self._lead, *self.chunk)
        out[...] = chunk[(..., *part.slices(whole))]

    def _open_array(self, objects: dict[str, Any]) -> Any:
        import zarr
        from zarr.storage import MemoryStore, StorePath

        # Empty chunks are written, so that a missing chunk is always an error.
        config: Any = {"order": "C", "write_empty_chunks": True}
        return zarr.Array(zarr.AsyncArray(self._metadata(), StorePath(MemoryStore(objects)), config))

    def _metadata(self) -> Any:
        return _array_metadata(
            (*self._lead, *self.shape),
            (*self._lead, *self.chunk),
            (*self._lead, *self.object_shape) if self.sharded else None,
            str(self.dtype),
            self.compressor,
            self.old,
        )


@lru_cache(maxsize=64)
def _object_format(array: ZarrArray) -> ObjectFormat:
    return object_format(array.description()[".zarray" if array.old else "zarr.json"].decode())


def _without_timestamps(shard: bytes, stored: Index3, chunk: Index3) -> bytes:
    """Return a shard of gzipped chunks with their timestamps, bytes 4 to 8 of each chunk, set to 0.

    The index at the end of the shard has the offset and size of each chunk, and a checksum of these
    (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html).
    """
    count = math.prod(s // c for s, c in zip(stored, chunk, strict=True))
    index = np.frombuffer(shard[-16 * count - 4 : -4], "<u8").reshape(count, 2)
    out = bytearray(shard)
    for offset in index[index[:, 0] != 2**64 - 1, 0]:
        out[int(offset) + 4 : int(offset) + 8] = bytes(4)
    return bytes(out)


def _prototype() -> Any:
    import_package("zarr")
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype()


@lru_cache(maxsize=256)
def _array_metadata(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    dtype: str,
    compressor: str,
    old: bool,
) -> Any:
    import zarr
    from zarr.storage import MemoryStore

    names = ("c", "z", "y", "x") if len(shape) == 4 else ("z", "y", "x")
    layout: dict[str, Any] = {"shards": shards, "dimension_names": names, "zarr_format": 3}
    if old:
        layout = {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    codec = zarr_codec(compressor, old)
    array = zarr.create_array(
        MemoryStore(), shape=shape, chunks=chunks, dtype=dtype, fill_value=0, compressors=codec, **layout
    )
    return array.metadata


def zarr_codec(compressor: str, old: bool = False) -> Any:
    """Return the codec of a compressor such as "zstd:1", or None for "none"; `old` selects the codecs of Zarr v2."""
    name, _, level = compressor.partition(":")
    if name == "none":
        return None
    codec = "blosc" if name == "lz4" else name
    settings: dict[str, Any] = {"cname": "lz4", "clevel": int(level)} if name == "lz4" else {"level": int(level)}
    if old:
        import numcodecs

        return [numcodecs.get_codec({"id": codec, **settings})]
    import_package("zarr")
    from zarr.registry import get_codec_class

    return [get_codec_class(codec).from_dict({"name": codec, "configuration": settings})]
