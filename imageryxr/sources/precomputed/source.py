"""Neuroglancer precomputed layers.

Format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed. The metadata are read once, when
the layer is opened, and pickled with the source, so that a worker requests chunks only. `chunks` reads the chunks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.core.validate import parse_json
from imageryxr.errors import (
    ChunkReadError,
    CodecError,
    ImageryError,
    Message,
    MissingChunkError,
    NoVolumeError,
    ServerError,
    SourceError,
    SourceNotFoundError,
    Wording,
    param,
)
from imageryxr.sources.address import Address
from imageryxr.sources.base import (
    LayerType,
    MetadataFile,
    Missing,
    Source,
    clean_message,
    opening_stamp,
    pick_index,
    read_error,
    read_filled,
    report_missing_chunks,
    stamp_of,
)
from imageryxr.sources.fetch.auth import Token
from imageryxr.sources.fetch.client import METADATA_BYTES, decompress_body
from imageryxr.sources.fetch.connection import DEFAULT_CONNECTION, Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.object_stores import DeniedError
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.precomputed import chunks
from imageryxr.sources.precomputed.chunks import ChunkCallback
from imageryxr.sources.precomputed.info import (
    CODECS,
    ENCODINGS,
    complete_info,
    info_problem,
)


@dataclass(frozen=True)
class PrecomputedSource(chunks.StoredLayer):
    """A precomputed layer, including its ``info``."""

    @property
    def declared_type(self) -> str | None:
        """Kind of layer that the ``info`` declares; `layer_type` may differ."""
        kind = self.info.get("type")
        return None if kind is None else str(kind)

    @property
    def attrs(self) -> dict[str, Any]:
        """Empty: the format has no contrast limits or colours."""
        return {}

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the encoding of a level is unknown, or its package is not installed."""
        encoding = self.levels[mip].encoding
        if encoding not in ENCODINGS:
            raise CodecError(
                f"{self.name} is stored as {encoding[:60]!r} at mip {mip}, but supported are {', '.join(ENCODINGS)}; "
                "if that is a new encoding, newer versions of cloud-volume and imageryxr may support it"
            )
        # Other PNG decoders reject 16-bit pictures of one or three channels.
        is_deep = encoding == "png" and self.dtype.itemsize > 1
        module, package = CODECS["jxl"] if is_deep else CODECS.get(encoding, ("", ""))
        if module and find_spec(module) is None:
            raise CodecError(
                f"{self.name} is stored as {encoding!r}, which needs a package that is not installed; run "
                f"pip install {package}, or pip install 'imageryxr[codecs]' for all encodings"
            )

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the layer."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox, on_chunk: ChunkCallback | None = None) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the layer.

        ``on_chunk`` is called with the part of each chunk in the box, in the thread that fetched the chunk. It is not
        called for missing chunks.
        """
        try:
            return self._download(mip, box, on_chunk=on_chunk)
        except chunks.AbsentChunkError as error:
            if self.missing not in (None, "raise"):
                return self._read_with_missing_chunks(mip, box, on_chunk)
            hint = Message(
                param("missing", "fill"),
                " fills missing chunks with background, ",
                Wording("'warn' also lists them", "--missing warn also lists them"),
            )
            cause = f"the store has no chunk {error}, or denies access to it"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint) from None

    def _download(
        self,
        mip: int,
        box: IndexBox,
        missing_boxes: list[IndexBox] | None = None,
        on_chunk: ChunkCallback | None = None,
    ) -> npt.NDArray[Any]:
        try:
            whole = chunks.read_raw(self, mip, box)
            if whole is None:
                return chunks.read_box(self, mip, box, missing_boxes, on_chunk)
            if on_chunk is not None:
                on_chunk(whole)
            return whole
        except ServerError as error:
            raise read_error(self, mip, box, error) from error
        except (chunks.AbsentChunkError, ImageryError):
            raise
        except ImportError as error:
            raise CodecError(f"{self.name}: {error}; pip install 'imageryxr[codecs]' installs all encodings") from error
        except Exception as error:
            raise read_error(self, mip, box, error) from error

    def _read_with_missing_chunks(self, mip: int, box: IndexBox, on_chunk: ChunkCallback | None) -> npt.NDArray[Any]:
        level = self.levels[mip]
        found: list[IndexBox] = []
        out = self._download(mip, box, found, on_chunk)
        boxes = [str(level.grid.crop(missing).bbox) for missing in sorted(found)]
        # Buckets without list permission answer 403 for missing objects, so a 403 counts as missing. If the metadata
        # cannot be read either, access was denied.
        address = Address("precomputed", self.url)
        if boxes and _is_remote(self.url) and fetch_info(address, self.connection, self.token) is None:
            raise chunks.access_denied_error(self.name, "403")
        report_missing_chunks(self, mip, boxes, "background")
        return out

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.precomputed", self.url, self.info_text, self.missing, self.channel, self.layer_type)


def _is_remote(url: str) -> bool:
    return not url.startswith(("file://", "mem://"))


_VOLUME = "neuroglancer_multiscale_volume"


def fetch_info(
    address: Address, connection: Connection = DEFAULT_CONNECTION, token: Token | None = None
) -> dict[str, Any] | None:
    """Return the content of the ``info`` file at an address, or None if there is none; see `fetch_info_file`."""
    found = fetch_info_file(address, connection, token)
    return None if found is None else found.content


def fetch_info_file(
    address: Address, connection: Connection = DEFAULT_CONNECTION, token: Token | None = None
) -> MetadataFile | None:
    """Return the ``info`` file at an address, or None if there is none; makes one request.

    Raises
    ------
    AuthError
        If the server requires a token or rejects the given one.
    SourceError
        If the file is not a JSON object.
    ChunkReadError
        If the request fails.
    """
    path = address.local_path
    if path is not None and not path.is_dir():
        return None
    try:
        info, stamp = _read_info(address, connection, token)
    except ImageryError as error:
        if not isinstance(error, ServerError):
            raise
        raise ChunkReadError(f"could not read {address.public}/info: {error}") from error
    except ValueError as error:
        raise SourceError(f"{address.public}/info is not JSON ({error}); it may be a login page or damaged") from None
    except Exception as error:
        raise ChunkReadError(
            f"could not read {address.public}/info: {type(error).__name__}: {clean_message(error)}"
        ) from error
    if info is not None and not isinstance(info, dict):
        raise SourceError(f"{address.public}/info contains a {type(info).__name__} instead of a JSON object")
    return None if info is None else MetadataFile(info, opening_stamp(address.url, stamp))


def _read_info(address: Address, connection: Connection, token: Token | None) -> tuple[Any, str]:
    """Return the parsed ``info`` file, None if there is none, and its stamp."""
    place = None if address.protocol in ("file", "mem") else chunks.place_of(address.url, connection, token)
    if place is None:
        return _read_stored_info(address.url, connection)
    reply = chunks.get_file(place, "info", connection)
    if chunks.is_absent(reply, address.url):
        return None, ""
    chunks.check_reply(reply, address.public, address.url, token, connection.access)
    return parse_json(decompress_body(reply)), stamp_of(reply.headers)


def _read_stored_info(url: str, connection: Connection) -> tuple[Any, str]:
    """Return the parsed ``info`` file in a local folder, a bucket or memory, and its stamp."""
    store = chunks.store_at(url, connection, None)
    try:
        found = run_in_parallel(lambda key, stop: store.get(key, None, METADATA_BYTES, stop), ["info"], 1)[0]
    except DeniedError as error:
        raise chunks.access_denied_error(Address("precomputed", url).public, f"HTTP {error.reply.status}") from error
    if found is None:
        return None, ""
    return parse_json(decompress(found.body, found.encoding, METADATA_BYTES)), found.stamp


def open_precomputed(
    address: Address,
    *,
    missing: Missing = None,
    channel: int | None = None,
    info: MetadataFile | None = None,
    token: Token | None = None,
    connection: Connection = DEFAULT_CONNECTION,
) -> PrecomputedSource:
    """Return the source of a precomputed layer; reads its ``info`` unless it is given, and no voxels.

    Raises
    ------
    SourceNotFoundError
        If there is no ``info`` file.
    SourceError
        If the ``info`` does not describe a volume.
    """
    file = fetch_info_file(address, connection, token) if info is None else info
    name = f"precomputed://{address.public}"
    if file is None:
        raise SourceNotFoundError(
            f"there is no precomputed layer at {name}: {address.public}/info does not exist or cannot be read; check "
            "the path, or name another format, e.g. zarr://…"
        )
    problem = info_problem(file.content)
    if problem:
        kind = SourceError if file.content.get("@type", _VOLUME) == _VOLUME else NoVolumeError
        raise kind(f"the info file of {name} does not describe a precomputed volume: {problem}")
    content = complete_info(file.content)
    number = pick_index(name, "channel", content["num_channels"], channel)
    layer_type: LayerType = "segmentation" if content["type"] == "segmentation" else "image"
    text = json.dumps(content, sort_keys=True)
    return PrecomputedSource(address.url, name, text, missing, number, layer_type, token, connection, file.stamp)


_: type[Source] = PrecomputedSource
