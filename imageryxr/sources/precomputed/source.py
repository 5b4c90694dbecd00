"""Neuroglancer precomputed layers, read through CloudVolume.

The format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed. CloudVolume fetches and
decodes; the metadata are read here once, at opening, and handed to every CloudVolume, so that a worker asks for
chunks only. What comes over http is fetched in `chunks`, with timeouts, and decoded by CloudVolume; raw chunks in local
files need nothing of it.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import (
    ChunkReadError,
    CodecError,
    ImageryError,
    MissingChunkError,
    MissingChunkWarning,
    NoVolumeError,
    ServerError,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.sources.address import Address, has_no_bucket_credentials
from imageryxr.sources.base import (
    LayerType,
    Level,
    Missing,
    Source,
    clean_message,
    pick_index,
    read_error,
    read_filled,
    report_missing_chunks,
)
from imageryxr.sources.codecs.chunk_decoder import enable_chunk_checks
from imageryxr.sources.fetch.auth import Token
from imageryxr.sources.fetch.client import Connection
from imageryxr.sources.fetch.json_service import decompress_body, web_folder
from imageryxr.sources.json_members import parse_json
from imageryxr.sources.precomputed import chunks
from imageryxr.sources.precomputed.chunks import ChunkCallback
from imageryxr.sources.precomputed.info import (
    CODECS,
    ENCODINGS,
    checked_members,
    complete_info,
    info_level,
    info_problem,
    is_placeholder,
)
from imageryxr.sources.precomputed.raw_files import read_raw


@dataclass(frozen=True)
class PrecomputedSource:
    """A precomputed layer with its ``info`` in hand."""

    url: str = field(repr=False)
    """Where it lies, ``protocol://…``; a web address may hold a password."""
    name: str
    """Its address without anything secret."""
    info_text: str = field(repr=False)
    """The ``info`` file as canonical JSON: text is hashed, compared and pickled for nothing."""
    missing: Missing = None
    """What to do about a chunk that the store does not have; None raises, as "raise" does."""
    channel: int = 0
    """Which channel is read."""
    layer_type: LayerType = "image"
    """What it is opened as."""
    token: Token | None = field(default=None, compare=False)
    """What ``middleauth`` servers are asked with."""
    connection: Connection = field(default=Connection(), compare=False, repr=False)
    """How web servers are asked."""

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
        return tuple(info_level(mip, scale) for mip, scale in enumerate(self.info["scales"]))

    def check(self, mip: int) -> None:
        """Raise `CodecError` if a level's encoding is not known, or its package not installed."""
        encoding = self.levels[mip].encoding
        if encoding not in ENCODINGS:
            raise CodecError(
                f"{self.name} is stored as {encoding[:60]!r} at mip {mip}, which is none of {', '.join(ENCODINGS)}; if "
                "that is a new encoding, a newer cloud-volume and imageryxr may read it"
            )
        # Other decoders of PNG take 16-bit pictures of one or three channels for damaged.
        is_deep = encoding == "png" and self.dtype.itemsize > 1
        module, package = CODECS["jxl"] if is_deep else CODECS.get(encoding, ("", ""))
        if module and find_spec(module) is None:
            raise CodecError(
                f"{self.name} is stored as {encoding!r}, which needs a package that is not installed; run "
                f"pip install {package}, or pip install 'imageryxr[codecs]' for all encodings"
            )

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the layer; one CloudVolume call."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox, on_chunk: ChunkCallback | None = None) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the layer.

        ``on_chunk`` is called with the part of each chunk in the box, in the thread that fetched the chunk. It is not
        called for missing chunks.
        """
        from cloudvolume.exceptions import EmptyVolumeException

        try:
            return self._download(mip, box, on_chunk=on_chunk)
        except EmptyVolumeException as error:
            if self.missing not in (None, "raise"):
                return self._read_with_missing_chunks(mip, box, on_chunk)
            hint = "missing='fill' takes background for chunks that the store does not have, 'warn' says which"
            cause = f"the store has no chunk {error}, or does not let it be read"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint) from None

    def _is_on_web(self) -> bool:
        return web_folder(self.url) is not None

    def _download(
        self,
        mip: int,
        box: IndexBox,
        missing_boxes: list[IndexBox] | None = None,
        on_chunk: ChunkCallback | None = None,
    ) -> npt.NDArray[Any]:
        from cloudvolume.exceptions import EmptyVolumeException

        try:
            if self._is_on_web():
                return chunks.fetch_box(self, mip, box, missing_boxes, on_chunk)
            whole = read_raw(self, mip, box)
            if whole is None:
                whole = self._read_with_cloudvolume(mip, box)
            if on_chunk is not None:
                on_chunk(whole)
            return whole
        except ServerError as error:
            raise read_error(self, mip, box, error) from error
        except (EmptyVolumeException, ImageryError):
            raise
        except ImportError as error:
            raise CodecError(f"{self.name}: {error}; pip install 'imageryxr[codecs]' brings all encodings") from error
        except Exception as error:
            if status_of(error) in (401, 403):
                raise chunks.access_denied_error(self.name, error) from error
            raise read_error(self, mip, box, error) from error

    def _read_with_cloudvolume(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        from cloudvolume import Bbox

        offset = np.array(self.levels[mip].grid.voxel_offset)
        bounds = Bbox(np.array(box.start[::-1]) + offset, np.array(box.stop[::-1]) + offset)
        # CloudVolume gives (x, y, z, channel) in Fortran order: transposed it is C order without a copy.
        voxels = np.asarray(_open_volume(self.url, self.info_text, os.getpid()).download(bounds, mip=mip))
        return voxels.reshape(*box.shape[::-1], -1)[..., self.channel].T

    def _read_with_missing_chunks(self, mip: int, box: IndexBox, on_chunk: ChunkCallback | None) -> npt.NDArray[Any]:
        level = self.levels[mip]
        found: list[IndexBox] = []
        read = self._download if self._is_on_web() else self._read_each_chunk
        out = read(mip, box, found, on_chunk)
        boxes = [str(level.grid.crop(missing).bbox) for missing in sorted(found)]
        # CloudVolume takes 403 for 404, as buckets that may not be listed do: then the metadata are still readable.
        address = Address("precomputed", self.url)
        if boxes and _is_remote(self.url) and fetch_info(address, self.connection, self.token) is None:
            raise chunks.access_denied_error(self.name, "403")
        report_missing_chunks(self, mip, boxes)
        if boxes and self.missing == "warn":
            shown = "; ".join(boxes[:3]) + (f"; and {len(boxes) - 3} more" if len(boxes) > 3 else "")
            chunks_are = "chunk is" if len(boxes) == 1 else "chunks are"
            warnings.warn(
                f"{self.name}, mip {mip}: {len(boxes)} missing {chunks_are} filled with background: {shown}",
                MissingChunkWarning,
                stacklevel=2,
            )
        return out

    def _read_each_chunk(
        self, mip: int, box: IndexBox, missing_boxes: list[IndexBox], on_chunk: ChunkCallback | None
    ) -> npt.NDArray[Any]:
        from cloudvolume.exceptions import EmptyVolumeException

        level = self.levels[mip]
        out = np.zeros(box.shape, self.dtype)
        for chunk in chunks.chunks_of(box, level.chunks):
            part, whole = chunk.clip(box), chunk.clip(level.grid.box)
            try:
                out[part.slices(box)] = self._download(mip, part, on_chunk=on_chunk)
            except EmptyVolumeException:
                missing_boxes.append(whole)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # what is derived is derived again

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.precomputed", self.url, self.info_text, self.missing, self.channel, self.layer_type)


@lru_cache(maxsize=64)
def _open_volume(url: str, info_text: str, pid: int) -> Any:
    # One volume a process (a forked child gets its own), shared by its threads: CloudVolume is thread-safe while
    # mip is passed as an argument and neither its cache nor `parallel` is used.
    from cloudvolume import CloudVolume

    info = checked_members(json.loads(info_text))
    real = next((i for i, scale in enumerate(info["scales"]) if not is_placeholder(scale)), 0)
    volume = CloudVolume(
        f"precomputed://{url}",
        mip=real,  # CloudVolume prints a warning when it starts on a placeholder
        info=info,
        provenance={},
        bounded=False,  # it checks bounds at another mip than the one asked for; boxes are clipped here
        fill_missing=False,
        progress=False,
        parallel=1,
        cache=False,
        use_https=has_no_bucket_credentials(url),
    )
    return enable_chunk_checks(volume)


def _is_remote(url: str) -> bool:
    return not url.startswith(("file://", "mem://"))


def _cloud_files(url: str) -> Any:
    from cloudfiles import CloudFiles

    return CloudFiles(url, progress=False, use_https=has_no_bucket_credentials(url))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


_VOLUME = "neuroglancer_multiscale_volume"


def fetch_info(
    address: Address, connection: Connection | None = None, token: Token | None = None
) -> dict[str, Any] | None:
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
        info = _read_info(address, connection or Connection(), token)
    except ImageryError as error:
        if not isinstance(error, ServerError):
            raise
        raise ChunkReadError(f"could not read {address.public}/info: {error}") from error
    except ValueError as error:
        raise SourceError(f"{address.public}/info is not JSON ({error}): a login page or a broken file?") from None
    except Exception as error:
        if status_of(error) in (401, 403):
            raise chunks.access_denied_error(address.public, error) from error
        raise ChunkReadError(
            f"could not read {address.public}/info: {type(error).__name__}: {clean_message(error)}"
        ) from error
    if info is not None and not isinstance(info, dict):
        raise SourceError(f"{address.public}/info holds a {type(info).__name__}, not the JSON object of a layer")
    return info


def _read_info(address: Address, connection: Connection, token: Token | None) -> Any:
    if web_folder(address.url) is None:
        return _cloud_files(address.url).get_json("info")
    reply = chunks.get_file(address.url, "info", connection, token)
    if chunks.is_absent(reply, address.url):
        return None
    chunks.check_reply(reply, address.public, address.url, token, connection.access)
    return parse_json(decompress_body(reply))


def open_precomputed(
    address: Address,
    *,
    missing: Missing = None,
    channel: int | None = None,
    info: dict[str, Any] | None = None,
    token: Token | None = None,
    connection: Connection | None = None,
) -> PrecomputedSource:
    """Return the source of a precomputed layer; reads its ``info`` unless that is in hand, and no voxel.

    Raises
    ------
    SourceNotFoundError
        If there is no ``info`` file.
    SourceError
        If it is not that of a volume.
    """
    connection = connection or Connection()
    info = fetch_info(address, connection, token) if info is None else info
    name = f"precomputed://{address.public}"
    if info is None:
        raise SourceNotFoundError(
            f"there is no precomputed layer at {name}: no file {address.public}/info, or none that may be read; check "
            "the path, or name another format, e.g. zarr://…"
        )
    problem = info_problem(info)
    if problem:
        kind = SourceError if info.get("@type", _VOLUME) == _VOLUME else NoVolumeError
        raise kind(f"the info file of {name} is not that of a precomputed volume: {problem}")
    info = complete_info(info)
    number = pick_index(name, "channel", info["num_channels"], channel)
    layer_type: LayerType = "segmentation" if info["type"] == "segmentation" else "image"
    text = json.dumps(info, sort_keys=True)
    return PrecomputedSource(address.url, name, text, missing, number, layer_type, token, connection)


_: type[Source] = PrecomputedSource
