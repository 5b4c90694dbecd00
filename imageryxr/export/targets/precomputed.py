"""Neuroglancer precomputed layers as an export target, with CloudVolume's ``info`` and chunk encoders.

The format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed. CloudVolume does not write
the files, because it writes in place, so that a crash leaves incomplete chunks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox, format_triple
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_choice, check_flag, check_whole, list_choices
from imageryxr.errors import Message, OptionError, param, warn
from imageryxr.export.store.bucket import Place
from imageryxr.export.targets.base import ArrayInfo, check_layer_type, check_voxels, stored_dtype, target_root
from imageryxr.export.targets.pyramid import Pyramid, check_levels, pyramid
from imageryxr.graph.expr import Array

CHUNK: Index3 = (64, 64, 64)
ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")
# Uncompressed encodings, which gzip makes smaller.
ZIPPABLE = ("raw", "compressed_segmentation")
QUALITY = 85
# The types of Neuroglancer's specification. CloudVolume also writes int64, which TensorStore cannot open.
TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")


@dataclass(frozen=True)
class Precomputed(Pyramid):
    """A precomputed layer, written scale by scale."""

    codec: str
    """The encoding of chunks."""
    quality: int
    """JPEG quality."""
    gzip: bool = False
    """Whether chunks are gzipped. On a disk, only CloudVolume finds such chunks, whose names end in ``.gz``."""

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {
            "format": "precomputed",
            "levels": len(self.grids),
            "chunks": list(self.chunk),
            "encoding": self.codec,
            "quality": self.quality if self.codec == "jpeg" else None,
            "layer_type": self.layer.layer_type,
            **({"gzip": self.gzip} if self.codec in ZIPPABLE else {}),
        }

    def problems(self) -> list[str]:
        """Return an error for arrays whose offset is not a whole number of voxels."""
        offset = self.layer.grid.voxel_offset
        if all(isinstance(o, int) for o in offset):
            return []
        return [
            f"the array begins at voxel {offset}; a precomputed layer can only begin at whole voxels: move the array "
            f"to such a grid with regrid(array, {tuple(self.layer.grid.resolution)}), or export to .ome.zarr"
        ]

    def commit(self) -> dict[str, bytes]:
        """Return the ``info``."""
        return {"info": json.dumps(self._info(), indent=1).encode()}

    def _info(self) -> dict[str, Any]:
        from cloudvolume import CloudVolume

        z, y, x = self.layer.grid.shape
        info: dict[str, Any] = CloudVolume.create_new_info(
            num_channels=max(1, self.layer.channels),
            layer_type=self.layer.layer_type,
            data_type=str(stored_dtype(self.layer.dtype)),
            encoding=self.codec,
            resolution=[_number(r) for r in self.layer.grid.resolution],
            voxel_offset=[int(o) for o in self.layer.grid.voxel_offset],
            volume_size=[x, y, z],
            chunk_size=list(self.chunk[::-1]),
        )
        first = info["scales"][0]
        info["scales"] = [self._scale(first, grid) for grid in self.grids]
        return info

    def _scale(self, first: dict[str, Any], grid: Grid) -> dict[str, Any]:
        return {
            **first,
            "key": _key(grid),
            "resolution": [_number(r) for r in grid.resolution],
            "size": list(grid.shape[::-1]),
            "voxel_offset": [int(o) for o in grid.voxel_offset],
        }

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the chunks of a box."""
        return [self._file(stage, part) for part in self._parts(stage, box)]

    def _parts(self, stage: int, box: IndexBox) -> Iterator[IndexBox]:
        return (part.clip(self.grids[stage].box) for part in box.cells(self.chunk))

    def _file(self, stage: int, part: IndexBox) -> str:
        grid = self.grids[stage]
        lows = [int(o) for o in grid.voxel_offset]
        spans = zip(lows, part.start[::-1], part.stop[::-1], strict=True)
        name = "_".join(f"{o + a}-{o + b}" for o, a, b in spans)
        return f"{_key(grid)}/{name}{'.gz' if self.gzip else ''}"

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the chunks, encoded by CloudVolume."""
        from cloudvolume import chunks

        for part in self._parts(stage, box):
            voxels = values[part.slices(box)].astype(stored_dtype(self.layer.dtype), copy=False)
            if not self.layer.channels:
                voxels = voxels[..., np.newaxis]
            # CloudVolume's order is x, y, z, channel
            data = chunks.encode(
                np.asfortranarray(voxels.transpose(2, 1, 0, 3)),
                self.codec,
                block_size=(8, 8, 8),
                compression_params={"level": self.quality} if self.codec == "jpeg" else {},
            )
            # without a timestamp, so that equal voxels give equal bytes
            yield self._file(stage, part), gzip.compress(data, 5, mtime=0) if self.gzip else bytes(data)

    def decode(self, level: int, box: IndexBox, objects: Mapping[str, bytes], place: Place) -> Array:
        """Return the values of a box of a scale from its chunks."""
        from imageryxr.sources.codecs.chunk_decoder import decode_chunk

        count = max(1, self.layer.channels)
        dtype = stored_dtype(self.layer.dtype)
        out = np.moveaxis(np.empty((count, *box.shape), dtype), 0, -1)  # channels first in memory, as in chunks
        for part in self._parts(level, box):
            data = objects[self._file(level, part)]
            if self.gzip and data[:2] == b"\x1f\x8b":  # a bucket may already have decompressed the chunk
                data = gzip.decompress(data)
            depth, height, width = part.shape
            voxels = decode_chunk(data, self.codec, (width, height, depth, count), dtype, (8, 8, 8))
            inner = part.clip(box)
            out[inner.slices(box)] = voxels.transpose(2, 1, 0, 3)[inner.slices(part)]
        return out if self.layer.channels else out[..., 0]


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


@lru_cache(maxsize=256)
def _key(grid: Grid) -> str:
    return "_".join(str(_number(r)) for r in grid.resolution)


def precomputed(
    place: str,
    layer: ArrayInfo,
    *,
    chunks: Any = CHUNK,
    levels: int | None = None,
    encoding: str | None = None,
    quality: int | None = None,
    gzip: bool = False,
    layer_type: str | None = None,
) -> Precomputed:
    """Return the precomputed layer at a path or URL, or raise `OptionError`."""
    dtype = str(stored_dtype(layer.dtype))
    if dtype not in TYPES:
        instead = ": give array.astype('uint64') if no value is negative" if dtype == "int64" else ""
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as precomputed, which stores {', '.join(TYPES)}{instead}"
        )
    layer = check_layer_type(layer, layer_type)
    if encoding is None:
        encoding = (
            "compressed_segmentation" if layer.layer_type == "segmentation" and dtype in ("uint32", "uint64") else "raw"
        )
    fits = {
        "jpeg": dtype == "uint8" and not layer.channels,  # a JPEG has no alpha
        # the types that libspng writes
        "png": layer.channels <= 4 and dtype in (("uint8", "uint16") if layer.channels in (2, 4) else ("uint8",)),
        "compressed_segmentation": dtype in ("uint32", "uint64"),
        "raw": True,
    }
    able = [name for name in ENCODINGS if fits[name]]
    what = f"{dtype}{f' with {layer.channels} channels' if layer.channels else ''}"
    encoding = check_choice("encoding", encoding, able, expected=f"{list_choices(able)} for {what}")
    quality, gzip = _check_extras(encoding, quality, gzip)
    if encoding == "png" and layer.channels:
        warn(
            Message(
                "CloudVolume reads PNG chunks with their channels mixed up; Neuroglancer, ",
                "TensorStore and imageryxr read them correctly. Give ",
                param("encoding", "raw"),
                " if CloudVolume must read this layer",
            ),
        )
    z, y, x = check_voxels(chunks, "chunks")
    check_levels(levels)
    whole = all(isinstance(o, int) for o in layer.grid.voxel_offset)
    grids = pyramid(layer.grid, levels, 2 * max(z, y, x), whole_offsets=True) if whole else [layer.grid]
    if len({_key(g) for g in grids}) < len(grids):
        raise OptionError(f"levels of {format_triple(layer.grid.resolution)} nm would have equal names")
    root = target_root(place.partition("://")[2])
    return Precomputed(place, root, layer, tuple(grids), (z, y, x), encoding, quality, gzip)


def _check_extras(encoding: str, quality: Any, zipped: Any) -> tuple[int, bool]:
    """Return the quality and whether chunks are gzipped."""
    if quality is not None and encoding != "jpeg":
        raise OptionError(
            param("quality", quality),
            " is an option of JPEG, but ",
            param("encoding", encoding),
            " is lossless: leave ",
            param("quality"),
            " out, or give ",
            param("encoding", "jpeg"),
        )
    quality = QUALITY if quality is None else check_whole("quality", quality, 1, 100)
    zipped = check_flag("gzip", zipped, "True (smaller) or False (readable by all programs)")
    if zipped and encoding not in ZIPPABLE:
        raise OptionError(
            param("gzip", True), f" is for the encodings {' and '.join(ZIPPABLE)}; {encoding!r} is already compressed"
        )
    return quality, zipped
