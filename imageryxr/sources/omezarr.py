"""OME-Zarr images and labels (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3), read through zarr-python.

The format: https://ngff.openmicroscopy.org. Of several multiscales in a group the first one is opened.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import (
    AuthError,
    ChunkReadError,
    CodecError,
    ImageryWarning,
    MissingChunkError,
    MissingChunkWarning,
    OptionError,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.grid import DIMS, Grid, Index3, IndexBox, tidy
from imageryxr.sources.address import Address
from imageryxr.sources.base import LayerType, Level, Missing, Source, read_error, read_filled

# Nanometres per unit, by the names that NGFF takes from UDUNITS.
UNITS = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "micron": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}


@dataclass(frozen=True)
class ZarrLevel:
    """Where a level's array lies in the store, and how it is laid out."""

    path: str
    """Path of the array in the group."""
    shape: tuple[int, ...]
    """All axes, as stored."""
    objects: tuple[int, ...]
    """Shape of one stored object: a chunk, or a shard."""
    chunks: tuple[int, ...]
    """Shape of a chunk."""


@dataclass(frozen=True)
class OmeZarrSource:
    """An OME-Zarr image or label with its metadata in hand."""

    url: str
    """Where the group lies, ``protocol://…``."""
    name: str
    """Its address without anything secret."""
    layer_type: LayerType
    """What it is opened as."""
    type: str
    """dtype of the voxels, by name."""
    levels: tuple[Level, ...]
    """Every dataset of the multiscale."""
    arrays: tuple[ZarrLevel, ...]
    """How each level is stored."""
    axes: tuple[str, ...]
    """Names of the axes as stored: z, y, x, c, t."""
    picks: tuple[tuple[str, int], ...]
    """The index chosen along each axis that is not space."""
    missing: Missing = "raise"
    """What to do about a chunk that the store does not have."""
    window: tuple[float, float] | None = None
    """The contrast limits that the file gives for the channel."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.type)
        return dtype

    @property
    def attrs(self) -> dict[str, Any]:
        """The contrast limits, where the file gives them."""
        return {} if self.window is None or self.layer_type != "image" else {"contrast_limits": self.window}

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the array's codecs are not there."""
        try:
            _open_array(self.url, self.arrays[mip].path, os.getpid())
        except ValueError as error:
            raise CodecError(f"{self.name} cannot be decoded here: {error}; install the codec that it names") from error

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the array."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the array."""
        spans = dict(zip(DIMS, box.slices(), strict=True))
        picks = dict(self.picks)
        key = tuple(spans[a] if a in spans else picks[a] for a in self.axes if a in spans or a in picks)
        try:
            values = np.asarray(_open_array(self.url, self.arrays[mip].path, os.getpid())[key])
        except FileNotFoundError as error:
            raise read_error(self, mip, box, error, kind=MissingChunkError) from error
        except Exception as error:
            raise read_error(self, mip, box, error) from error
        stored = [a for a in self.axes if a in DIMS]
        if "z" not in stored:
            values, stored = values[np.newaxis], ["z", *stored]
        values = np.ascontiguousarray(values.transpose([stored.index(d) for d in DIMS]), dtype=self.dtype)
        if self.missing != "fill":
            self._find_holes(mip, box, values)
        return values

    def _find_holes(self, mip: int, box: IndexBox, values: npt.NDArray[Any]) -> None:
        # zarr gives an absent object as its fill value, in silence. Only a part without any other value can be one.
        array = self.arrays[mip]
        sizes: Index3 = self.levels[mip].grid.shape
        chunk = [array.objects[self.axes.index(d)] if d in self.axes else 1 for d in DIMS]
        ranges = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, chunk, strict=True)]
        holes = []
        for index in product(*ranges):
            start = tuple(i * c for i, c in zip(index, chunk, strict=True))
            stop = tuple(min(a + c, n) for a, c, n in zip(start, chunk, sizes, strict=True))
            whole = IndexBox(start, stop)  # type: ignore[arg-type]
            part = values[whole.clip(box).slices(box)]
            if (part == part.flat[0]).all() and not self._exists(mip, index):
                holes.append(whole)
        if not holes:
            return
        grid = self.levels[mip].grid
        shown = "; ".join(str(grid.crop(h).bbox) for h in holes[:3]) + ("; …" if len(holes) > 3 else "")
        if self.missing == "raise":
            hint = (
                "a Zarr store may leave out chunks that hold only the fill value: missing='fill' takes them for that, "
                "'warn' also says which"
            )
            cause = f"the store has no object for {len(holes)} chunks: {shown}"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint)
        warnings.warn(
            f"{self.name}, mip {mip}: {len(holes)} missing chunks are filled with the fill value: {shown}",
            MissingChunkWarning,
            stacklevel=2,
        )

    def _exists(self, mip: int, index: tuple[int, ...]) -> bool:
        from zarr.core.sync import sync

        where = dict(zip(DIMS, index, strict=True))
        picks = dict(self.picks)
        objects = self.arrays[mip].objects
        coords = tuple(where[a] if a in where else picks[a] // objects[i] for i, a in enumerate(self.axes))
        array = _open_array(self.url, self.arrays[mip].path, os.getpid())
        key = array.metadata.encode_chunk_key(coords)
        return bool(sync((array.store_path / key).exists()))

    def __dask_tokenize__(self) -> object:
        levels = [(str(lv.grid), lv.chunks) for lv in self.levels]
        return ("imageryxr.omezarr", self.url, self.layer_type, self.type, levels, self.picks, self.missing)


@lru_cache(maxsize=256)
def _open_array(url: str, path: str, pid: int) -> Any:
    import zarr

    return zarr.open_array(_store(url), path=path, mode="r")


def _store(url: str) -> Any:
    from zarr.storage import LocalStore, ObjectStore

    if url.startswith("file://"):
        return LocalStore(url.removeprefix("file://"), read_only=True)
    from obstore.store import from_url

    options: dict[str, Any] = {}
    if url.startswith("http://"):
        options["client_options"] = {"allow_http": True}
    if url.startswith("s3://") and not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
        options["skip_signature"] = True
    return ObjectStore(from_url(url, **options), read_only=True)


def open_omezarr(
    address: Address,
    *,
    missing: Missing = "raise",
    channel: int | None = None,
    time: int | None = None,
    assume: str = "center",
) -> OmeZarrSource:
    """Return the source of an OME-Zarr group; reads metadata only.

    Parameters
    ----------
    address : Address
        Of the group that holds the ``multiscales``.
    missing : {"raise", "fill", "warn"}
        What to do about a chunk that the store does not have. A shard that is there counts as there.
    channel, time : int, optional
        Which to open, where there are several.
    assume : {"center", "corner"}
        What a translation is the place of: the centre of the first voxel, or its lower corner.

    Raises
    ------
    SourceNotFoundError
        If there is no Zarr group.
    SourceError
        If it is no OME-Zarr image, or its metadata make no sense.
    OptionError
        If ``assume`` is neither.
    """
    if assume not in ("center", "corner"):
        raise OptionError(f"assume={assume!r} must be 'center' or 'corner': what a translation is the place of")
    group = _group(address)
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    name = f"zarr://{address.public}"
    if not ome.get("multiscales"):
        raise SourceError(
            f"{name} is a Zarr group without OME metadata (no 'multiscales'); give the group of an image, such as "
            f"{name}/0, or open its arrays with xarray.open_zarr and place them with imageryxr.Grid"
        )
    multiscale = ome["multiscales"][0]
    axes, factors = _axes(name, multiscale)
    arrays = [group[d["path"]] for d in multiscale["datasets"]]
    picks = _picks(name, axes, arrays[0].shape, {"c": channel, "t": time})
    levels = tuple(
        _level(name, mip, array, axes, factors, _placed(multiscale, mip, len(axes)), assume)
        for mip, array in enumerate(arrays)
    )
    stored = tuple(
        ZarrLevel(d["path"], a.shape, tuple(a.shards or a.chunks), tuple(a.chunks))
        for d, a in zip(multiscale["datasets"], arrays, strict=True)
    )
    is_label = "image-label" in ome or "/labels/" in address.url
    kind: LayerType = "segmentation" if is_label else "image"
    dtype = "uint8" if arrays[0].dtype == np.bool_ else arrays[0].dtype.newbyteorder("=").name
    window = _window(ome, dict(picks).get("c", 0))
    return OmeZarrSource(address.url, name, kind, dtype, levels, stored, axes, picks, missing, window)


def _group(address: Address) -> Any:
    import zarr
    from zarr.errors import GroupNotFoundError

    name = f"zarr://{address.public}"
    path = address.local_path
    if path is not None and not path.is_dir():
        raise SourceNotFoundError(f"there is no folder {path}, so no OME-Zarr at {name}; check the path")
    try:
        return zarr.open_group(_store(address.url), mode="r")
    except (GroupNotFoundError, FileNotFoundError):
        raise SourceNotFoundError(
            f"there is no OME-Zarr group at {name}: neither zarr.json nor .zgroup; check the path"
        ) from None
    except PermissionError as error:
        raise AuthError(f"{name} refused to be read ({error}); check your rights") from error
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SourceError(f"the metadata of {name} make no sense: {error}") from error
    except Exception as error:
        raise ChunkReadError(f"could not read the metadata of {name}: {type(error).__name__}: {error}") from error


def _axes(name: str, multiscale: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, float]]:
    entries = [{"name": a} if isinstance(a, str) else a for a in multiscale.get("axes", [])]
    names = tuple(str(a["name"]) for a in entries)
    if not {"y", "x"} <= set(names) or set(names) - {"z", "y", "x", "c", "t"}:
        raise SourceError(f"{name} has axes {names}; understood are z, y and x (z may be absent), c and t")
    factors = {}
    for axis in entries:
        if axis["name"] not in DIMS:
            continue
        unit = axis.get("unit")
        if unit is None:
            warnings.warn(f"{name}: axis {axis['name']} has no unit; taken as nanometer", ImageryWarning, stacklevel=2)
        elif unit not in UNITS:
            raise SourceError(f"{name}: axis {axis['name']} has unit {unit!r}; understood are {', '.join(UNITS)}")
        factors[str(axis["name"])] = UNITS[unit or "nanometer"]
    return names, factors


def _placed(multiscale: dict[str, Any], mip: int, count: int) -> tuple[list[float], list[float]]:
    scale, translation = [1.0] * count, [0.0] * count
    own = multiscale["datasets"][mip].get("coordinateTransformations", [])
    for step in [*own, *multiscale.get("coordinateTransformations", [])]:
        if step.get("type") == "scale":
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, step["scale"], strict=True)]
        elif step.get("type") == "translation":
            translation = [a + b for a, b in zip(translation, step["translation"], strict=True)]
    return scale, translation


def _level(
    name: str, mip: int, array: Any, axes: tuple[str, ...], factors: dict[str, float], place: Any, assume: str
) -> Level:
    shape: list[int] = []
    resolution: list[float] = []
    offset: list[int | float] = []
    chunks: list[int] = []
    for dim in DIMS:
        if dim not in axes:
            shape, resolution, offset, chunks = [1], [factors["x"]], [0], [1]
            continue
        i = axes.index(dim)
        step, first = place[0][i] * factors[dim], place[1][i] * factors[dim]
        if step <= 0:
            raise SourceError(f"{name}: level {mip} has a scale of {step} nm along {dim}, which is not positive")
        shape.append(int(array.shape[i]))
        # 1e-9 of a nanometre is float noise of unit conversion
        resolution.append(round(step, 9))
        offset.append(tidy(first / step - (0.5 if assume == "center" else 0)))
        chunks.append(int((array.shards or array.chunks)[i]))
    grid = Grid(tuple(shape), tuple(resolution[::-1]), tuple(offset[::-1]))  # type: ignore[arg-type]
    codec = ", ".join(type(c).__name__.removesuffix("Codec").lower() for c in getattr(array, "compressors", ()))
    return Level(mip, grid, (chunks[0], chunks[1], chunks[2]), codec or "raw")


def _picks(
    name: str, axes: tuple[str, ...], shape: tuple[int, ...], asked: dict[str, int | None]
) -> tuple[tuple[str, int], ...]:
    words = {"c": "channel", "t": "time"}
    picks = []
    for axis, value in asked.items():
        count = shape[axes.index(axis)] if axis in axes else 1
        if value is None and count > 1:
            word = words[axis]
            raise SourceError(f"{name} has {count} along {axis}; choose one with {word}=0 to {word}={count - 1}")
        if not 0 <= (value or 0) < count:
            raise SourceError(f"{name} has no {words[axis]}={value}: there are {count}, from 0")
        if axis in axes:
            picks.append((axis, value or 0))
    return tuple(picks)


def _window(ome: dict[str, Any], channel: int) -> tuple[float, float] | None:
    channels = ome.get("omero", {}).get("channels", [])
    window = channels[channel].get("window", {}) if channel < len(channels) else {}
    if "start" not in window or "end" not in window or window["start"] == window["end"]:
        return None
    return (float(window["start"]), float(window["end"]))


_: type[Source] = OmeZarrSource
