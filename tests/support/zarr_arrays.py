"""Zarr arrays of many codecs, written by zarr-python and read with the engine of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numcodecs
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.fetch.object_stores import LocalFolder
from imageryxr.sources.omezarr import chunks
from imageryxr.sources.omezarr.array_metadata import layout_of
from tests.support.source_suite import noise

SHAPE, CHUNK = (13, 33, 29), (4, 8, 16)

ARRAYS = {
    "v2": {"zarr_format": 2},
    "v2 slash": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 fortran": {"zarr_format": 2, "order": "F"},
    "v2 no compressor": {"zarr_format": 2, "compressors": None},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">u2"},
    "v2 filter": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]},
    "v3": {},
    "v3 blosc": {"compressors": BloscCodec(cname="lz4")},
    "v3 gzip": {"compressors": GzipCodec()},
    "v3 checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3 raw": {"compressors": None},
    "v3 fill": {"fill_value": 7},
    "v3 transposed": {"filters": [TransposeCodec(order=(2, 0, 1))]},
    "v3 big-endian": {"serializer": BytesCodec(endian="big")},
    "v3 dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "sharded": {"shards": (8, 16, 32)},
    "sharded, one row": {"shards": (4, 8, 32)},
    "sharded, transposed": {"shards": (8, 16, 32), "filters": [TransposeCodec(order=(2, 0, 1))]},
}


def write(folder: Path, **options) -> zarr.Array:
    array = zarr.create_array(folder, shape=SHAPE, chunks=CHUNK, **{"dtype": "uint16", **options})
    array[:8, :, :20] = noise(SHAPE, "uint16")[:8, :, :20]  # the other chunks are missing
    return array


def metadata_of(folder: Path) -> str:
    name, version = ("zarr.json", 3) if (folder / "zarr.json").is_file() else (".zarray", 2)
    return layout_of(str(folder), json.loads((folder / name).read_text()), version).document


class RecordingFolder(LocalFolder):
    """A local folder that records requests."""

    requested: ClassVar[list] = []

    def get(self, key, part, limit, stop):
        self.requested.append((key, part))
        return super().get(key, part, limit, stop)


def read_slices(store, path: str, metadata: str, where: tuple[slice, ...]):
    """Read a box of an array with the axes z, y and x; return its voxels and its missing objects."""
    box = IndexBox(tuple(s.start for s in where), tuple(s.stop for s in where))
    return chunks.read_box(store, path, metadata, ("z", "y", "x"), box, ix.Connection())
