"""Neuroglancer precomputed layers, read through CloudVolume.

The format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed. CloudVolume fetches and
decodes; the metadata are read here once, at opening, and handed to every CloudVolume, so that a worker asks for
chunks only.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
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
from imageryxr.sources.address import Address
from imageryxr.sources.base import LayerType, Level, Missing, Source, read_error, read_filled

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

    url: str
    """Where it lies, ``protocol://…``."""
    name: str
    """Its address without anything secret."""
    info_text: str
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
            if self.missing == "raise":
                hint = "missing='fill' takes background for chunks that the store does not have, 'warn' says which"
                cause = f"the store has no chunk {error}"
                raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint) from None
            return self._read_around_holes(mip, box)

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
                raise AuthError(f"{self.name} refused to be read ({error}); check the token or your rights") from error
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
                self._refuse_empty_file(mip, chunk.clip(level.grid.box))
                holes.append(str(level.grid.crop(chunk.clip(level.grid.box)).bbox))
        if self.missing == "warn":
            shown = "; ".join(holes[:3]) + (f"; and {len(holes) - 3} more" if len(holes) > 3 else "")
            warnings.warn(
                f"{self.name}, mip {mip}: {len(holes)} missing chunks are filled with background: {shown}",
                MissingChunkWarning,
                stacklevel=2,
            )
        return out

    def _refuse_empty_file(self, mip: int, chunk: IndexBox) -> None:
        # CloudVolume takes an object of zero bytes for a missing one; it was cut short, and is no background.
        from cloudfiles import CloudFiles

        x, y, z = self.levels[mip].grid.crop(chunk).voxel_offset
        sz, sy, sx = chunk.shape
        key = f"{self.info['scales'][mip]['key']}/{x}-{x + sx}_{y}-{y + sy}_{z}-{z + sz}"
        if "sharding" not in self.info["scales"][mip] and CloudFiles(self.url).exists(key):
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


def reads_anonymously(url: str) -> bool:
    """Tell whether a bucket is best read over plain https: nobody left credentials for it."""
    from cloudvolume.secrets import CLOUD_VOLUME_DIR

    if not url.startswith(("gs://", "s3://")):
        return False
    kind = "google" if url.startswith("gs://") else "aws"
    folder = os.path.join(CLOUD_VOLUME_DIR, "secrets")
    variables = {"google": ["GOOGLE_APPLICATION_CREDENTIALS"], "aws": ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"]}[kind]
    stored = os.path.isdir(folder) and any(name.endswith(f"{kind}-secret.json") for name in os.listdir(folder))
    return not stored and not any(name in os.environ for name in variables)


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
    from cloudfiles import CloudFiles

    path = address.local_path
    if path is not None and not path.is_dir():
        return None
    try:
        info = CloudFiles(address.url, progress=False).get_json("info")
    except ValueError as error:
        raise SourceError(f"{address.public}/info is not JSON ({error}): a login page or a broken file?") from None
    except Exception as error:
        if status_of(error) in (401, 403):
            raise AuthError(f"{address.public} refused to be read ({error}); check the token or your rights") from error
        raise ChunkReadError(f"could not read {address.public}/info: {type(error).__name__}: {error}") from error
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
            f"there is no precomputed layer at {name}: no file {address.public}/info; check the path, "
            "or name another format, e.g. zarr://…"
        )
    problem = _problem(info)
    if problem:
        raise SourceError(f"the info file of {name} is not that of a precomputed volume: {problem}")
    number = _pick_channel(name, int(info.get("num_channels", 1)), channel)
    kind: LayerType = "segmentation" if info.get("type") == "segmentation" else "image"
    return PrecomputedSource(address.url, name, json.dumps(info, sort_keys=True), missing, number, kind)


def _problem(info: dict[str, Any]) -> str:
    if info.get("@type", "neuroglancer_multiscale_volume") != "neuroglancer_multiscale_volume":
        return f"its @type is {info['@type']!r}"
    absent = [key for key in ("data_type", "scales") if not info.get(key)]
    if absent:
        return f"it lacks {' and '.join(absent)}"
    for mip, scale in enumerate(info["scales"]):
        absent = [key for key in ("key", "size", "resolution", "chunk_sizes") if key not in scale]
        if absent:
            return f"scale {mip} lacks {' and '.join(absent)}"
    try:
        np.dtype(info["data_type"])
        [_level(mip, scale) for mip, scale in enumerate(info["scales"])]
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _pick_channel(name: str, count: int, channel: int | None) -> int:
    if channel is None and count > 1:
        raise SourceError(f"{name} has {count} channels; choose one with channel=0 to channel={count - 1}")
    number = channel or 0
    if not 0 <= number < count:
        raise SourceError(f"{name} has no channel={channel!r}: its channels are 0 to {count - 1}")
    return number


_: type[Source] = PrecomputedSource
