"""OME-Zarr as an export target: version 0.5 (Zarr v3, optionally with shards) and 0.4 (Zarr v2).

The format: https://ngff.openmicroscopy.org. The translation of a level is the centre of its first voxel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox, tidy
from imageryxr.errors import OptionError, Wording, param
from imageryxr.export.store.bucket import Place
from imageryxr.export.targets.base import ArrayInfo, check_layer_type, check_voxels, stored_dtype, target_root
from imageryxr.export.targets.pyramid import Pyramid, check_levels, pyramid
from imageryxr.export.targets.zarr_array import ZarrArray
from imageryxr.graph.expr import Array

CHUNK: Index3 = (16, 256, 256)
VERSIONS = ("0.5", "0.4")


@dataclass(frozen=True)
class OmeZarr(Pyramid):
    """An OME-Zarr image or label, written level by level."""

    shard: Index3 | None
    compressor: str
    version: str

    def describe(self) -> dict[str, Any]:
        """Return the format and its options."""
        return {
            "format": f"OME-Zarr {self.version}",
            "levels": len(self.grids),
            "chunks": list(self.chunk),
            "shards": None if self.shard is None else list(self.shard),
            "compressor": self.compressor,
            "layer_type": self.layer.layer_type,
            "contrast": self.layer.contrast,
        }

    @property
    def is_uncompressed(self) -> bool:
        """Whether chunks are uncompressed."""
        return self.compressor == "none"

    def chunk_shape(self, level: int) -> Index3:
        """Return the shape of a chunk of a level."""
        z, y, x = (min(c, n) for c, n in zip(self.chunk, self.grids[level].shape, strict=True))
        return z, y, x

    def object_shape(self, level: int) -> Index3:
        """Return the shape of a stored object of a level."""
        chunk = self.chunk_shape(level)
        if self.shard is None:
            return chunk
        shape = self.grids[level].shape
        z, y, x = (
            min(s // c0 * c, -(-n // c) * c) for s, c0, c, n in zip(self.shard, self.chunk, chunk, shape, strict=True)
        )
        return z, y, x

    def array(self, level: int) -> ZarrArray:
        """Return the array of a level."""
        return ZarrArray(
            self.grids[level].shape,
            self.layer.channels,
            stored_dtype(self.layer.dtype),
            self.chunk_shape(level),
            self.object_shape(level),
            self.shard is not None,
            self.compressor,
            self.version == "0.4",
        )

    def preamble(self) -> dict[str, bytes]:
        """Return the metadata of each array."""
        levels = range(len(self.grids))
        return {f"{level}/{k}": data for level in levels for k, data in self.array(level).description().items()}

    def commit(self) -> dict[str, bytes]:
        """Return the metadata of the group, without which readers do not find the image."""
        ome = self._ome()
        if self.version == "0.4":
            return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(ome)}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the stored objects of a box, in C order."""
        return [f"{stage}/{key}" for key in self.array(stage).keys(box)]

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Iterate over the encoded objects."""
        for key, data in self.array(stage).encode(box, values):
            yield f"{stage}/{key}", data

    def decode(self, level: int, box: IndexBox, objects: Mapping[str, bytes], place: Place) -> Array:
        """Return the values of a box of a level from its stored objects."""
        # zarr reads a missing object as background, so objects are read here, where a missing one is an error
        inside = {key.removeprefix(f"{level}/"): data for key, data in objects.items()}
        return self.array(level).decode(box, inside, f"{place.url}/{level}")

    def _ome(self) -> dict[str, Any]:
        axes: list[dict[str, str]] = [{"name": d, "type": "space", "unit": "nanometer"} for d in ("z", "y", "x")]
        lead = [1.0] if self.layer.channels else []
        if self.layer.channels:
            axes.insert(0, {"name": "c", "type": "channel"})
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*lead, *(a.resolution for a in grid.axes)]},
                    {
                        "type": "translation",
                        "translation": [*(0.0 for _ in lead), *(float(a.centers()[0]) for a in grid.axes)],
                    },
                ],
            }
            for level, grid in enumerate(self.grids)
        ]
        name = self.root.rstrip("/").rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome")
        multiscale: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
        version = {"version": self.version}
        old = self.version == "0.4"
        ome: dict[str, Any] = {"multiscales": [{**version, **multiscale} if old else multiscale]}
        if not old:
            ome = {**version, **ome}
        if self.layer.layer_type == "segmentation":
            ome["image-label"] = version
        else:
            channels = self._channels()
            if channels:
                ome["omero"] = {"channels": channels}
        return ome

    def _channels(self) -> list[dict[str, Any]]:
        limits = self.layer.contrast or _range_of(self.layer.dtype)
        if limits is None:
            return []  # readers could not distinguish guessed contrast limits from those that the user chose
        low, high = limits
        window = {"start": tidy(low), "end": tidy(high), "min": tidy(low), "max": tidy(high)}
        colors = {"gray": "FFFFFF"}
        if self.layer.channels in (3, 4):
            rgba = {"red": "FF0000", "green": "00FF00", "blue": "0000FF", "alpha": "FFFFFF"}
            colors = dict(list(rgba.items())[: self.layer.channels])
        elif self.layer.channels:
            colors = {f"channel {i}": "FFFFFF" for i in range(self.layer.channels)}
        return [{"label": n, "color": c, "active": n != "alpha", "window": window} for n, c in colors.items()]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _range_of(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    return {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}.get(str(dtype))


def ome_zarr(
    place: str,
    layer: ArrayInfo,
    *,
    chunks: Any = CHUNK,
    shards: Any = None,
    levels: int | None = None,
    compressor: str | None = "zstd",
    version: str = "0.5",
    layer_type: str | None = None,
) -> OmeZarr:
    """Return the OME-Zarr at a path or URL, or raise `OptionError`."""
    if layer.dtype.kind not in "uifb" or layer.dtype.itemsize > 8:
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as OME-Zarr, which stores integers and floats"
        )
    layer = check_layer_type(layer, layer_type)
    if str(version) not in VERSIONS:
        raise OptionError(param("version", version), " must be '0.5' (Zarr v3), or '0.4' (Zarr v2) for older readers")
    requested = check_voxels(chunks, "chunks")
    shape = layer.grid.shape
    chunk: Index3 = tuple(min(c, n) for c, n in zip(requested, shape, strict=True))  # type: ignore[assignment]
    shard = None if shards is None else _shard_shape(check_voxels(shards, "shards"), requested, chunk, str(version))
    check_levels(levels)
    grids = tuple(pyramid(layer.grid, levels, max(chunk)))
    return OmeZarr(place, target_root(place), layer, grids, chunk, shard, check_compressor(compressor), str(version))


def _shard_shape(shards: Index3, requested: Index3, chunk: Index3, version: str) -> Index3:
    if version == "0.4":
        raise OptionError(param("shards", ...), " needs ", param("version", "0.5"), ", because Zarr v2 has no shards")
    if any(s % c for s, c in zip(shards, requested, strict=True)):
        raise OptionError(
            param("shards", shards),
            " must be multiples of ",
            param("chunks", requested),
            " along each axis",
        )
    z, y, x = (s // a * c for s, a, c in zip(shards, requested, chunk, strict=True))
    return z, y, x


def check_compressor(value: Any) -> str:
    """Return the name and level of a compressor, such as "zstd:1", or "none"."""
    name, _, level = str(value if value is not None else "none").lower().partition(":")
    top = {"zstd": 22, "lz4": 9, "gzip": 9, "none": 0}.get(name)
    if top is None or not (level or "0").isdigit() or int(level or 0) > top:
        raise OptionError(
            param("compressor", value),
            " must be 'zstd', 'lz4', 'gzip'",
            Wording(" or None", " or 'none'"),
            ", optionally with a level after a colon, e.g. 'zstd:5'",
        )
    default = {"zstd": "1", "lz4": "5", "gzip": "5"}.get(name, "")
    return name if name == "none" else f"{name}:{level or default}"
