"""Neuroglancer precomputed layers, read through CloudVolume.

The format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed. CloudVolume fetches and
decodes; the metadata are read here once, at opening, and handed to every CloudVolume, so that a worker asks for
chunks only.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import (
    AuthError,
    ChunkReadError,
    CodecError,
    ImageryError,
    MissingChunkError,
    MissingChunkWarning,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.grid import Grid, Index3, IndexBox
from imageryxr.sources.address import Address, reads_anonymously
from imageryxr.sources.base import (
    LayerType,
    Level,
    Missing,
    Source,
    note_holes,
    pick_index,
    plain,
    read_error,
    read_filled,
)

# What each encoding needs beside CloudVolume itself: the module that decodes, and the package that brings it.
CODECS = {
    "jpeg": ("simplejpeg", "simplejpeg"),
    "png": ("pyspng", "pyspng-seunglab"),
    "compressed_segmentation": ("compressed_segmentation", "compressed-segmentation"),
    "compresso": ("compresso", "compresso"),
    "crackle": ("crackle", "crackle-codec"),
    "fpzip": ("fpzip", "fpzip"),
    "kempressed": ("fpzip", "fpzip"),
    "zfpc": ("zfpc", "zfpc"),
    "jxl": ("imagecodecs", "imagecodecs"),
    "jpegxl": ("imagecodecs", "imagecodecs"),
}


@dataclass(frozen=True)
class PrecomputedSource:
    """A precomputed layer with its ``info`` in hand."""

    url: str = field(repr=False)
    """Where it lies, ``protocol://…``; a web address may hold a password."""
    name: str
    """Its address without anything secret."""
    info_text: str = field(repr=False)
    """The ``info`` file as canonical JSON: text is hashed, compared and pickled for nothing."""
    missing: Missing = "raise"
    """What to do about a chunk that the store does not have."""
    channel: int = 0
    """Which channel is read."""
    layer_type: LayerType = "image"
    """What it is opened as."""

    @cached_property
    def info(self) -> dict[str, Any]:
        """The ``info`` file."""
        parsed: dict[str, Any] = json.loads(self.info_text)
        return parsed

    @property
    def declared_type(self) -> str | None:
        """What the layer says that it is, whatever it was opened as."""
        said = self.info.get("type")
        return None if said is None else str(said)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.info["data_type"])
        return dtype

    @property
    def attrs(self) -> dict[str, Any]:
        """Nothing: the format holds no contrast or colour."""
        return {}

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Every scale of the ``info``."""
        return tuple(_level(mip, scale) for mip, scale in enumerate(self.info["scales"]))

    def check(self, mip: int) -> None:
        """Raise `CodecError` if a level's encoding cannot be decoded here."""
        encoding = self.levels[mip].encoding
        module, package = CODECS.get(encoding, ("", ""))
        if module and find_spec(module) is None:
            raise CodecError(
                f"{self.name} is stored as {encoding!r}, which needs a package that is not installed; run "
                f"pip install {package}, or pip install 'imageryxr[codecs]' for all encodings"
            )

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the layer; one CloudVolume call."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the layer."""
        from cloudvolume.exceptions import EmptyVolumeException

        try:
            return self._download(mip, box)
        except EmptyVolumeException as error:
            if self.missing != "raise":
                return self._read_around_holes(mip, box)
            self._refuse_empty_file(mip, self._chunk_named(mip, str(error)))
            hint = "missing='fill' takes background for chunks that the store does not have, 'warn' says which"
            cause = f"the store has no chunk {error}, or does not let it be read"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint) from None

    def _download(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        from cloudvolume import Bbox
        from cloudvolume.exceptions import EmptyVolumeException

        offset = np.array(self.levels[mip].grid.voxel_offset)
        bounds = Bbox(np.array(box.start[::-1]) + offset, np.array(box.stop[::-1]) + offset)
        try:
            # CloudVolume gives (x, y, z, channel) in Fortran order: transposed it is C order without a copy.
            voxels = np.asarray(self._volume().download(bounds, mip=mip))
        except (EmptyVolumeException, ImageryError):
            raise
        except ImportError as error:
            raise CodecError(f"{self.name}: {error}; pip install 'imageryxr[codecs]' brings all encodings") from error
        except Exception as error:
            if status_of(error) in (401, 403):
                raise _refused(self.name, error) from error
            raise read_error(self, mip, box, error) from error
        return voxels.reshape(*box.shape[::-1], -1)[..., self.channel].T

    def _read_around_holes(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        from cloudvolume.exceptions import EmptyVolumeException

        level = self.levels[mip]
        out = np.zeros(box.shape, self.dtype)
        holes = []
        for chunk in _chunks_of(box, level.chunks):
            part = chunk.clip(box)
            try:
                out[part.slices(box)] = self._download(mip, part)
            except EmptyVolumeException:
                whole = chunk.clip(level.grid.box)
                self._refuse_empty_file(mip, whole)
                holes.append(str(level.grid.crop(whole).bbox))
        # CloudVolume takes 403 for 404, as buckets that may not be listed do: then the metadata are still readable.
        if holes and _is_web(self.url) and fetch_info(Address("precomputed", self.url)) is None:
            raise _refused(self.name, "403")
        note_holes(self, mip, holes)
        if holes and self.missing == "warn":
            shown = "; ".join(holes[:3]) + (f"; and {len(holes) - 3} more" if len(holes) > 3 else "")
            warnings.warn(
                f"{self.name}, mip {mip}: {len(holes)} missing chunks are filled with background: {shown}",
                MissingChunkWarning,
                stacklevel=2,
            )
        return out

    def _chunk_named(self, mip: int, name: str) -> IndexBox | None:
        # CloudVolume says which chunk is not there by the name of its file, in absolute voxels.
        found = re.search(r"(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)", name)
        if found is None:
            return None
        x0, x1, y0, y1, z0, z1 = map(int, found.groups())
        x, y, z = self.levels[mip].grid.voxel_offset
        return IndexBox((z0, y0, x0), (z1, y1, x1)).shift((z, y, x), -1)  # type: ignore[arg-type]

    def _refuse_empty_file(self, mip: int, chunk: IndexBox | None) -> None:
        # CloudVolume takes an object of zero bytes for a missing one; it was cut short, and is no background.
        if chunk is None or "sharding" in self.info["scales"][mip]:
            return
        x, y, z = self.levels[mip].grid.crop(chunk).voxel_offset
        sz, sy, sx = chunk.shape
        key = f"{self.info['scales'][mip]['key']}/{x}-{x + sx}_{y}-{y + sy}_{z}-{z + sz}"
        if _files(self.url).exists(key):
            raise read_error(self, mip, chunk, "the stored chunk is empty (0 bytes): it was cut short when written")

    def _volume(self) -> Any:
        return _open_volume(self.url, self.info_text, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # what is derived is derived again

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.precomputed", self.url, self.info_text, self.missing, self.channel, self.layer_type)


@lru_cache(maxsize=64)
def _open_volume(url: str, info_text: str, pid: int) -> Any:
    # One volume a process (a forked child gets its own), shared by its threads: CloudVolume is thread-safe while
    # mip is passed as an argument and neither its cache nor `parallel` is used.
    from cloudvolume import CloudVolume

    _renew_connections_in_forks()
    info = json.loads(info_text)
    real = next((i for i, scale in enumerate(info["scales"]) if not _is_placeholder(scale)), 0)
    return CloudVolume(
        f"precomputed://{url}",
        mip=real,  # CloudVolume prints a warning when it starts on a placeholder
        info=info,
        provenance={},
        bounded=False,  # it checks bounds at another mip than the one asked for; boxes are clipped here
        fill_missing=False,
        progress=False,
        parallel=1,
        cache=False,
        use_https=reads_anonymously(url),
    )


def _chunks_of(box: IndexBox, chunks: Index3) -> Iterator[IndexBox]:
    ranges = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, chunks, strict=True)]
    for z in ranges[0]:
        for y in ranges[1]:
            for x in ranges[2]:
                start = (z * chunks[0], y * chunks[1], x * chunks[2])
                yield IndexBox(start, (start[0] + chunks[0], start[1] + chunks[1], start[2] + chunks[2]))


def _is_placeholder(scale: dict[str, Any]) -> bool:
    return "placeholder" in str(scale.get("key", "")).lower()


def _level(mip: int, scale: dict[str, Any]) -> Level:
    x, y, z = scale["size"]
    cx, cy, cz = scale["chunk_sizes"][0]
    grid = Grid((z, y, x), tuple(scale["resolution"]), tuple(scale.get("voxel_offset", (0, 0, 0))))
    return Level(mip, grid, (cz, cy, cx), str(scale.get("encoding", "raw")), _is_placeholder(scale))


def _is_web(url: str) -> bool:
    return not url.startswith(("file://", "mem://"))


def _files(url: str) -> Any:
    from cloudfiles import CloudFiles

    return CloudFiles(url, progress=False, use_https=reads_anonymously(url))


@lru_cache(maxsize=1)
def _renew_connections_in_forks() -> None:
    # Its sockets belong to a class of cloudfiles: a forked child would read its parent's answers from them.
    from cloudfiles.interfaces import HttpInterface

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: setattr(HttpInterface, "adaptor", type(HttpInterface.adaptor)()))


def _refused(name: str, error: object) -> AuthError:
    return AuthError(
        f"{name} refused to be read ({plain(error)}); check your rights, and that your credentials lie in "
        "~/.cloudvolume/secrets, where CloudVolume looks for them"
    )


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def fetch_info(address: Address) -> dict[str, Any] | None:
    """Return the ``info`` file at an address, or None where there is none; one request.

    Raises
    ------
    AuthError
        If the server asks for a token or refuses the one it got.
    SourceError
        If what came is no JSON object.
    ChunkReadError
        If the server did not answer.
    """
    path = address.local_path
    if path is not None and not path.is_dir():
        return None
    try:
        info = _files(address.url).get_json("info")
    except ValueError as error:
        raise SourceError(f"{address.public}/info is not JSON ({error}): a login page or a broken file?") from None
    except Exception as error:
        if status_of(error) in (401, 403):
            raise _refused(address.public, error) from error
        raise ChunkReadError(f"could not read {address.public}/info: {type(error).__name__}: {plain(error)}") from error
    if info is not None and not isinstance(info, dict):
        raise SourceError(f"{address.public}/info holds a {type(info).__name__}, not the JSON object of a layer")
    return info


def looks_precomputed(info: dict[str, Any] | None) -> bool:
    """Tell whether an ``info`` is that of a precomputed volume."""
    return info is not None and "scales" in info


def open_precomputed(
    address: Address, *, missing: Missing = "raise", channel: int | None = None, info: dict[str, Any] | None = None
) -> PrecomputedSource:
    """Return the source of a precomputed layer; reads its ``info`` unless that is in hand, and no voxel.

    Raises
    ------
    SourceNotFoundError
        If there is no ``info`` file.
    SourceError
        If it is not that of a volume.
    """
    info = fetch_info(address) if info is None else info
    name = f"precomputed://{address.public}"
    if info is None:
        raise SourceNotFoundError(
            f"there is no precomputed layer at {name}: no file {address.public}/info, or none that may be read; check "
            "the path, or name another format, e.g. zarr://…"
        )
    problem = _problem(info)
    if problem:
        raise SourceError(f"the info file of {name} is not that of a precomputed volume: {problem}")
    number = pick_index(name, "channel", int(info.get("num_channels", 1)), channel)
    kind: LayerType = "segmentation" if info.get("type") == "segmentation" else "image"
    return PrecomputedSource(address.url, name, json.dumps(info, sort_keys=True), missing, number, kind)


def _problem(info: dict[str, Any]) -> str:
    kind = str(info.get("@type", "neuroglancer_multiscale_volume"))
    if kind != "neuroglancer_multiscale_volume":
        what = next((word for word in ("skeleton", "mesh", "annotation", "properties") if word in kind), None)
        said = {"mesh": "meshes", "properties": "properties of segments"}.get(what or "", f"{what}s")
        return f"its @type is {kind!r}" + (f", so it holds {said}; give the volume they belong to" if what else "")
    absent = [key for key in ("data_type", "scales") if not info.get(key)]
    if absent:
        return f"it lacks {' and '.join(absent)}"
    try:
        for mip, scale in enumerate(info["scales"]):
            absent = [key for key in ("key", "size", "resolution", "chunk_sizes") if key not in scale]
            if absent:
                return f"scale {mip} lacks {' and '.join(absent)}"
            _level(mip, scale)
        if np.dtype(info["data_type"]).kind not in "iuf" or int(info.get("num_channels", 1)) < 1:
            return f"data_type {info['data_type']!r} with {info.get('num_channels', 1)} channels"
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        return str(error)
    return ""


_: type[Source] = PrecomputedSource
