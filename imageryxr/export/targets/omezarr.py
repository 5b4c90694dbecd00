"""OME-Zarr as an export target: 0.5 (Zarr v3, with shards where asked for) and 0.4 (Zarr v2), a pyramid, units.

The format: https://ngff.openmicroscopy.org. The translation of a level is the centre of its first voxel.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from imageryxr.boxes import Index3, IndexBox, tidy
from imageryxr.errors import OptionError, TargetError
from imageryxr.export.regions import Regions
from imageryxr.export.storage import Place
from imageryxr.export.targets.base import Layer, refuse_fractions, three_counts
from imageryxr.export.targets.pyramid import Below, Pyramid, derived, derived_bytes, level_regions, pyramid
from imageryxr.expr import Array
from imageryxr.grid import Grid

CHUNK: Index3 = (16, 256, 256)
VERSIONS = ("0.5", "0.4")


def _zstd(level: int, chunk: Array) -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level).encode(chunk)


def _gzip(level: int, chunk: Array) -> Any:
    # without the time, so that the same voxels are the same bytes whenever they are written
    return gzip.compress(chunk.data, level, mtime=0)


# Of these the chunk's bytes are one call away; of the others zarr knows the settings.
DIRECT: dict[str, Callable[[int, Array], Any]] = {
    "zstd": _zstd,
    "gzip": _gzip,
    "none": lambda _, chunk: chunk.tobytes(),
}


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

    def preamble(self) -> dict[str, bytes]:
        """Return the description of each array."""
        files = {}
        for level in range(len(self.grids)):
            for name, buffer in self._metadata(level).to_buffer_dict(_prototype()).items():
                files[f"{level}/{name}"] = buffer.to_bytes()
        return files

    def commit(self) -> dict[str, bytes]:
        """Return the description of the group, without which nobody takes the arrays for an image."""
        ome = self._ome()
        if self.version == "0.4":
            return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(ome)}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return the stored objects of a box, in C order."""
        sizes = self.stored(stage)
        ranges = [range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, sizes, strict=True)]
        lead = f"{stage}/{'c/' if self.version != '0.4' else ''}{'0/' if self.layer.channels else ''}"
        return [f"{lead}{z}/{y}/{x}" for z in ranges[0] for y in ranges[1] for x in ranges[2]]

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Let zarr encode the objects, one after the other."""
        size = self.stored(stage)
        for key, start in zip(self.keys(stage, box), _starts(box, size), strict=True):
            stop = tuple(min(a + s, b) for a, s, b in zip(start, size, box.stop, strict=True))
            part = IndexBox(start, stop)  # type: ignore[arg-type]
            yield key, self._object(stage, key, part, values[part.slices(box)])

    def _object(self, level: int, key: str, box: IndexBox, values: Array) -> bytes:
        name, _, strength = self.compressor.partition(":")
        if self.shard is not None or name not in DIRECT:
            return self._by_zarr(level, key, box, values)
        # What zarr would make of it, without its one thread that all workers would wait for.
        lead = (self.layer.channels,) if self.layer.channels else ()
        whole = (*lead, *self.chunk_of(level))
        dtype = _kept(self.layer.dtype)
        chunk = np.empty(whole, dtype if self.version == "0.4" else dtype.newbyteorder("<"))
        if values.shape[:3] != whole[-3:]:
            chunk[...] = 0
        z, y, x = box.shape
        chunk[..., :z, :y, :x] = np.moveaxis(values, -1, 0) if lead else values
        data: bytes = DIRECT[name](int(strength or 0), chunk)
        return data

    def _by_zarr(self, level: int, key: str, box: IndexBox, values: Array) -> bytes:
        from zarr.core.buffer import Buffer
        from zarr.storage import MemoryStore

        held: dict[str, Buffer] = {}
        array = self._array(level, MemoryStore(held))
        if self.layer.channels:
            array[(slice(None), *box.slices())] = np.moveaxis(values, -1, 0)
        else:
            array[box.slices()] = values.astype(_kept(self.layer.dtype), copy=False)
        if list(held) != [key]:
            raise TargetError(f"zarr wrote {sorted(held)} where {key} was expected; report this as a fault")
        data: bytes = held[key].to_bytes()
        timed = self.shard is not None and self.compressor.startswith("gzip")
        return _timeless(data, self.stored(level), self.chunk_of(level)) if timed else data

    def derive(self, stage: int, box: IndexBox, place: Place) -> Array:
        """Make a box of a level from the level below."""
        held: dict[str, Any] = {}
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

    def _load(self, level: int, box: IndexBox, place: Place, held: dict[str, Any]) -> Array:
        from zarr.storage import MemoryStore

        # zarr takes an object that is not there for background: so they are fetched here, and must be there
        keys = self.keys(level, box)
        for key in set(held) - set(keys):
            del held[key]  # only what several parts in a row need is kept
        for key in set(keys) - set(held):
            data = place.get(key)
            if data is None:
                raise TargetError(f"{place.url}/{key} was written, and is not there any more: run the same call again")
            held[key] = _prototype().buffer.from_bytes(data)
        array = self._array(level, MemoryStore(dict(held)))
        if self.layer.channels:
            return np.moveaxis(np.asarray(array[(slice(None), *box.slices())]), 0, -1)
        return np.asarray(array[box.slices()])

    def _array(self, level: int, store: Any) -> Any:
        import zarr
        from zarr.storage import StorePath

        # An absent chunk could be black or lost: every chunk is written, so that absence is a fault.
        config: Any = {"order": "C", "write_empty_chunks": True}
        return zarr.Array(zarr.AsyncArray(self._metadata(level), StorePath(store, str(level)), config))

    def _metadata(self, level: int) -> Any:
        lead = (self.layer.channels,) if self.layer.channels else ()
        shard = None if self.shard is None else (*lead, *self.stored(level))
        return _array_metadata(
            (*lead, *self.grids[level].shape),
            (*lead, *self.chunk_of(level)),
            shard,
            str(_kept(self.layer.dtype)),
            self.compressor,
            self.version,
        )

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


def _starts(box: IndexBox, size: Index3) -> Iterator[Index3]:
    for z in range(box.start[0], box.stop[0], size[0]):
        for y in range(box.start[1], box.stop[1], size[1]):
            for x in range(box.start[2], box.stop[2], size[2]):
                yield z, y, x


def _timeless(shard: bytes, stored: Index3, chunk: Index3) -> bytes:
    """Return a shard of gzipped chunks without the time that each says it was written at, in its bytes 4 to 8.

    The index is the end of the shard: offset and size of each chunk, and a checksum of these
    (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html).
    """
    count = math.prod(s // c for s, c in zip(stored, chunk, strict=True))
    index = np.frombuffer(shard[-16 * count - 4 : -4], "<u8").reshape(count, 2)
    out = bytearray(shard)
    for offset in index[index[:, 0] != 2**64 - 1, 0]:
        out[int(offset) + 4 : int(offset) + 8] = bytes(4)
    return bytes(out)


def _kept(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _range_of(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    return {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}.get(str(dtype))


def _prototype() -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype()


@lru_cache(maxsize=256)
def _array_metadata(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    dtype: str,
    compressor: str,
    version: str,
) -> Any:
    import zarr
    from zarr.storage import MemoryStore

    old = version == "0.4"
    names = ("c", "z", "y", "x") if len(shape) == 4 else ("z", "y", "x")
    layout: dict[str, Any] = {"shards": shards, "dimension_names": names, "zarr_format": 3}
    if old:
        layout = {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    codec = _codec(compressor, old)
    array = zarr.create_array(
        MemoryStore(), shape=shape, chunks=chunks, dtype=dtype, fill_value=0, compressors=codec, **layout
    )
    return array.metadata


def _codec(compressor: str, old: bool) -> Any:
    name, _, level = compressor.partition(":")
    if name == "none":
        return None
    if old:
        import numcodecs

        kinds: dict[str, Any] = {
            "zstd": lambda n: numcodecs.Zstd(n),
            "gzip": lambda n: numcodecs.GZip(n),
            "lz4": lambda n: numcodecs.Blosc("lz4", n),
        }
        return [kinds[name](int(level))]
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    made: dict[str, Any] = {
        "zstd": lambda n: ZstdCodec(level=n),
        "gzip": lambda n: GzipCodec(level=n),
        "lz4": lambda n: BloscCodec(cname="lz4", clevel=n),
    }
    return [made[name](int(level))]


def ome_zarr(
    place: str,
    root: str,
    layer: Layer,
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
        layer = Layer(layer.grid, layer.channels, layer.dtype, layer_type, layer.contrast)
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
