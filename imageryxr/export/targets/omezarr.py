"""OME-Zarr as an export target: 0.5 (Zarr v3, with shards where asked for) and 0.4 (Zarr v2), a pyramid, units.

The format: https://ngff.openmicroscopy.org. The translation of a level is the centre of its first voxel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox, tidy
from imageryxr.core.grid import Grid
from imageryxr.errors import OptionError, TargetError
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place
from imageryxr.export.targets.base import ArrayInfo, refuse_fractions, three_counts
from imageryxr.export.targets.pyramid import Below, Pyramid, derived, derived_bytes, level_regions, pyramid
from imageryxr.export.targets.zarr_array import ZarrArray
from imageryxr.graph.expr import Array

CHUNK: Index3 = (16, 256, 256)
VERSIONS = ("0.5", "0.4")


@dataclass(frozen=True)
class OmeZarr(Pyramid):
    """An OME-Zarr image or label, written level by level."""

    grids: tuple[Grid, ...]
    """Where each level lies, finest first."""
    chunk: Index3
    shard: Index3 | None
    compressor: str
    version: str

    kind = "tree"
    suffixes = (".zarr",)
    encoding = 2.0

    def describe(self) -> dict[str, Any]:
        """Return version, layout and compression."""
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
    def plain(self) -> bool:
        """Where chunks are not compressed."""
        return self.compressor == "none"

    @property
    def granule(self) -> Index3:
        """A stored object: a chunk or a shard."""
        return self.stored(0)

    @property
    def later(self) -> tuple[Regions, ...]:
        """The coarser levels, each made from the one below."""
        return tuple(level_regions(g.shape, self.stored(i), self.coarse) for i, g in enumerate(self.grids) if i)

    def chunk_of(self, level: int) -> Index3:
        """Return the shape of a chunk of a level."""
        z, y, x = (min(c, n) for c, n in zip(self.chunk, self.grids[level].shape, strict=True))
        return z, y, x

    def stored(self, level: int) -> Index3:
        """Return the shape of a stored object of a level."""
        chunk = self.chunk_of(level)
        if self.shard is None:
            return chunk
        shape = self.grids[level].shape
        z, y, x = (
            min(s // c0 * c, -(-n // c) * c) for s, c0, c, n in zip(self.shard, self.chunk, chunk, shape, strict=True)
        )
        return z, y, x

    def array(self, level: int) -> ZarrArray:
        """Return how a level is stored."""
        return ZarrArray(
            self.grids[level].shape,
            self.layer.channels,
            _kept(self.layer.dtype),
            self.chunk_of(level),
            self.stored(level),
            self.shard is not None,
            self.compressor,
            self.version == "0.4",
        )

    def preamble(self) -> dict[str, bytes]:
        """Return the description of each array."""
        levels = range(len(self.grids))
        return {f"{level}/{k}": data for level in levels for k, data in self.array(level).description().items()}

    def commit(self) -> dict[str, bytes]:
        """Return the description of the group, without which nobody takes the arrays for an image."""
        ome = self._ome()
        if self.version == "0.4":
            return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(ome)}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the stored objects of a box, in C order."""
        return [f"{stage}/{key}" for key in self.array(stage).keys(box)]

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Encode the objects, one after the other."""
        for key, data in self.array(stage).encode(box, values):
            yield f"{stage}/{key}", data

    def derive(self, stage: int, box: IndexBox, place: Place) -> Array:
        """Make a box of a level from the level below."""
        held: dict[str, bytes] = {}
        return derived(
            self._below(stage),
            self.grids[stage],
            box,
            lambda need: self._load(stage - 1, need, place, held),
            layer_type=self.layer.layer_type,
            channels=self.layer.channels,
            dtype=_kept(self.layer.dtype),
        )

    def derived_bytes(self, stage: int, box: IndexBox) -> int:
        """Return what making a box of a level takes."""
        return derived_bytes(self._below(stage), self.grids[stage], box, self.layer.voxel_bytes)

    def _below(self, stage: int) -> Below:
        return Below(self.grids[stage - 1], self.stored(stage - 1), self.chunk_of(stage - 1))

    def _load(self, level: int, box: IndexBox, place: Place, held: dict[str, bytes]) -> Array:
        # zarr takes an object that is not there for background: so they are fetched here, and must be there
        array = self.array(level)
        keys = array.keys(box)
        for key in set(held) - set(keys):
            del held[key]  # only what several parts in a row need is kept
        for key in set(keys) - set(held):
            data = place.get(f"{level}/{key}")
            if data is None:
                raise TargetError(
                    f"{place.url}/{level}/{key} was written, and is not there any more: run the same call again"
                )
            held[key] = data
        return array.decode(box, held, f"{place.url}/{level}")

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
            return []  # a window that nobody gave would be taken for one that somebody did
        low, high = limits
        window = {"start": tidy(low), "end": tidy(high), "min": tidy(low), "max": tidy(high)}
        colors = {"gray": "FFFFFF"}
        if self.layer.channels in (3, 4):
            rgba = {"red": "FF0000", "green": "00FF00", "blue": "0000FF", "alpha": "FFFFFF"}
            colors = dict(list(rgba.items())[: self.layer.channels])
        elif self.layer.channels:
            colors = {f"channel {i}": "FFFFFF" for i in range(self.layer.channels)}
        return [{"label": n, "color": c, "active": n != "alpha", "window": window} for n, c in colors.items()]


def _kept(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _range_of(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    return {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}.get(str(dtype))


def ome_zarr(
    place: str,
    root: str,
    layer: ArrayInfo,
    *,
    chunks: Any = CHUNK,
    shards: Any = None,
    levels: int | None = None,
    compressor: str | None = "zstd",
    version: str = "0.5",
    layer_type: str | None = None,
) -> OmeZarr:
    """Return the OME-Zarr at a path or URL.

    Raises
    ------
    OptionError
        If the values cannot be stored so, or an option is none.
    """
    if layer.dtype.kind not in "uifb" or layer.dtype.itemsize > 8:
        raise OptionError(
            f"values of dtype {layer.dtype} cannot be stored as OME-Zarr; it holds whole and real numbers"
        )
    refuse_fractions(layer, layer_type)
    if str(version) not in VERSIONS:
        raise OptionError(f"version={version!r} must be '0.5' (Zarr v3) or '0.4' (Zarr v2), for readers that are older")
    asked = three_counts(chunks, "chunks")
    shape = layer.grid.shape
    chunk: Index3 = tuple(min(c, n) for c, n in zip(asked, shape, strict=True))  # type: ignore[assignment]
    shard = None if shards is None else _shard(three_counts(shards, "shards"), asked, chunk, str(version))
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 1):
        raise OptionError(f"levels={levels!r} must be a whole number from 1 (no pyramid), or None")
    grids = tuple(pyramid(layer.grid, levels, max(chunk)))
    if layer_type not in (None, "image", "segmentation"):
        raise OptionError(f"layer_type={layer_type!r} is neither 'image' nor 'segmentation'")
    if layer_type is not None:
        layer = ArrayInfo(layer.grid, layer.channels, layer.dtype, layer_type, layer.contrast)
    return OmeZarr(place, root, layer, grids, chunk, shard, _compressor(compressor), str(version))


def _shard(shards: Index3, asked: Index3, chunk: Index3, version: str) -> Index3:
    if version == "0.4":
        raise OptionError("shards=… needs version='0.5': Zarr v2 has none")
    if any(s % c for s, c in zip(shards, asked, strict=True)):
        raise OptionError(f"shards={shards} must be whole numbers of chunks={asked} along each axis")
    z, y, x = (s // a * c for s, a, c in zip(shards, asked, chunk, strict=True))
    return z, y, x


def _compressor(value: Any) -> str:
    name, _, level = str(value if value is not None else "none").lower().partition(":")
    top = {"zstd": 22, "lz4": 9, "gzip": 9, "none": 0}.get(name)
    if top is None or not (level or "0").isdigit() or int(level or 0) > top:
        raise OptionError(
            f"compressor={value!r} must be 'zstd', 'lz4', 'gzip' or None, with a level behind a colon where wanted, "
            "e.g. 'zstd:5'"
        )
    default = {"zstd": "1", "lz4": "5", "gzip": "5"}.get(name, "")
    return name if name == "none" else f"{name}:{level or default}"
