"""Decoding of precomputed chunks with checks before and after.

The decoders of several encodings trust the stored bytes: they read beyond the end of a truncated chunk, which returns
wrong ids or crashes the process. Therefore chunks are checked first, and encodings that no check makes safe are decoded
in another process (see `isolated`). CloudVolume passes every stored chunk to one function. This module wraps that
function, for volumes that `enable_chunk_checks` marked only.
"""

from __future__ import annotations

import itertools
import math
import warnings
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ImageryWarning
from imageryxr.sources.base import clean_message, is_html_page
from imageryxr.sources.codecs.images import PICTURE_ENCODINGS, decode_picture, picture_problem
from imageryxr.sources.codecs.isolated import ISOLATED_ENCODINGS, DecoderStartError, decode_in_process
from imageryxr.sources.codecs.stream_lengths import stream_problem

_EMPTY = "it is empty (0 bytes): it was truncated when written"
_MARK = "watched_by_imageryxr"


class DamagedChunkError(ValueError):
    """A stored chunk that contradicts the metadata of its layer; `PrecomputedSource` adds the box."""


def enable_chunk_checks(volume: Any) -> Any:
    """Check every chunk of a CloudVolume when it is decoded; return the volume.

    A damaged chunk then raises `DamagedChunkError`. Without this, CloudVolume prints an error and raises another, reads
    beyond the end of the chunk, or treats an empty chunk as missing.
    """
    _wrap_decoding()
    _wrap_shards()
    setattr(volume.image.meta, _MARK, True)
    return volume


@lru_cache(maxsize=1)
def _wrap_decoding() -> None:
    from cloudvolume.datasource.precomputed.image import rx

    inner = getattr(rx, "_decode_helper", None)
    if inner is None:
        _warn_unknown_version()
        return

    def helper(decoder: Any, meta: Any, where: Any, content: Any, *args: Any, **kwargs: Any) -> Any:
        # CloudVolume prints exceptions raised within its function, and treats empty chunks as missing.
        failures: list[DamagedChunkError | ImportError | DecoderStartError] = []

        def quiet(stored: Any, *, encoding: str, shape: Any, dtype: Any, block_size: Any, **options: Any) -> Any:
            x, y, z, channels = (int(n) for n in shape)
            layout = (encoding, (x, y, z, channels), np.dtype(dtype), block_size)
            try:
                return decode_chunk(stored, *layout, decoder=decoder, **options)
            except (DamagedChunkError, ImportError, DecoderStartError) as error:
                failures.append(error)

        if not hasattr(meta, _MARK) or isinstance(content, np.ndarray):
            return inner(decoder, meta, where, content, *args, **kwargs)
        if content is not None and len(content) == 0:
            raise _damaged_chunk_error(where, _EMPTY)
        found = inner(quiet, meta, where, content, *args, **kwargs)
        if failures:
            raise (
                _damaged_chunk_error(where, failures[0]) if isinstance(failures[0], DamagedChunkError) else failures[0]
            )
        return found

    rx._decode_helper = helper


@lru_cache(maxsize=1)
def _wrap_shards() -> None:
    from cloudvolume import cacheservice
    from cloudvolume.datasource.precomputed import sharding

    if not (hasattr(sharding, "CloudFiles") and hasattr(cacheservice, "CloudFiles")) or not hasattr(
        sharding.ShardReader, "decode_index"
    ):
        _warn_unknown_version()
        return
    inner = sharding.ShardReader.decode_index

    def decode_index(self: Any, binary: Any, filename: str = "Shard") -> Any:
        # CloudVolume treats an empty shard as missing.
        if binary is not None and len(binary) == 0:
            raise DamagedChunkError(f"the shard {filename} is empty (0 bytes), so it was truncated when written")
        return inner(self, binary, filename)

    class WholeRanges(sharding.CloudFiles):  # type: ignore[misc]
        """CloudFiles that raises if a byte range is incomplete, as it is in a truncated shard."""

        def get(self, paths: Any, *args: Any, **kwargs: Any) -> Any:
            found = super().get(paths, *args, **kwargs)
            for answer in found if isinstance(found, list) else ():
                start, end = answer["byte_range"]
                content = answer["content"]
                if content is not None and end is not None and len(content) != end - (start or 0):
                    cause = "the server returned HTML" if is_html_page(content) else "it was truncated or overwritten"
                    raise DamagedChunkError(
                        f"the shard {answer['path']} returned {len(content)} bytes instead of {end - (start or 0)}: "
                        f"{cause}"
                    )
            return found

    stock = sharding.compression

    def decompress(content: Any, encoding: Any, filename: str = "N/A") -> Any:
        # CloudVolume's own function prints the name of a shard whose gzip stream is damaged.
        if encoding == "gzip" and len(content) == 0:
            raise DamagedChunkError(f"the shard {filename} ends before its index: it was truncated or overwritten")
        gunzip = getattr(stock, "gunzip", None)
        return gunzip(content) if encoding == "gzip" and gunzip else stock.decompress(content, encoding, filename)

    sharding.compression = SimpleNamespace(**{**vars(stock), "decompress": decompress})
    # CloudVolume reads chunks through one module and indexes through the other.
    sharding.CloudFiles = cacheservice.CloudFiles = WholeRanges
    sharding.ShardReader.decode_index = decode_index


def _warn_unknown_version() -> None:
    warnings.warn(
        "imageryxr does not support the chunk decoding of this release of CloudVolume, so damaged chunks may go "
        "unnoticed; pip install 'cloud-volume<13', or a newer imageryxr",
        ImageryWarning,
        stacklevel=2,
    )


def _damaged_chunk_error(where: Any, problem: object) -> DamagedChunkError:
    from cloudvolume import Bbox

    box = Bbox.create(where)
    lo, hi = (tuple(int(v) for v in corner) for corner in (box.minpt, box.maxpt))
    return DamagedChunkError(f"the stored chunk {box.to_filename()}, box {lo} to {hi}, is damaged: {problem}")


def decode_chunk(
    stored: Any,
    encoding: str,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[Any],
    block: Any = None,
    *,
    decoder: Any = None,
    **options: Any,
) -> npt.NDArray[Any]:
    """Return the voxels (x, y, z, channel) of a stored chunk, decoded by CloudVolume's codecs.

    Parameters
    ----------
    stored : bytes
        The chunk, without gzip or similar compression.
    encoding : str
        Encoding as named in the ``info``.
    shape : tuple of int
        Shape of the chunk (x, y, z, channel).
    dtype : numpy.dtype
        Data type of the layer.
    block : sequence of int, optional
        Voxels (x, y, z) of a block of compressed_segmentation.
    decoder : callable, optional
        Function that decodes after the check; None selects ``cloudvolume.chunks.decode``.
    **options
        Passed to the decoder.

    Raises
    ------
    DamagedChunkError
        If a check finds that the chunk contradicts the other arguments.
    ImportError
        If the codec is not installed.
    DecoderStartError
        If the decoder process cannot be started.
    """
    named, problem = encoding, _chunk_problem(stored, encoding, shape, dtype, block)
    if problem:
        raise DamagedChunkError(problem)
    try:
        if encoding in ISOLATED_ENCODINGS:
            # The steps below, including CloudVolume's reading of a single voxel, treat decoded voxels as raw ones.
            stored, encoding = _decode_isolated(stored, encoding, shape, dtype), "raw"
        elif encoding in PICTURE_ENCODINGS:
            stored, encoding = decode_picture(stored, encoding, shape, dtype), "raw"
        elif encoding == "compressed_segmentation" and shape[3] > 1:
            stored, encoding = _decode_channels(stored, shape, dtype, block), "raw"
        found = _decoder(decoder)(stored, encoding=encoding, shape=shape, dtype=dtype, block_size=block, **options)
    except (ImportError, DecoderStartError, DamagedChunkError):
        raise
    except Exception as error:
        raise DamagedChunkError(
            f"it cannot be decoded as {named} ({clean_message(error) or type(error).__name__})"
        ) from error
    # CloudVolume returns a single voxel with its channels on the first axis.
    if found.shape == (shape[3], 1, 1, 1):
        found = found.reshape(1, 1, 1, -1)
    if found.shape not in (shape, shape[:3], (1, 1, 1, shape[3]), (1, 1, 1, 1)):
        raise DamagedChunkError(f"it decodes to {found.shape} voxels instead of {shape}")
    if found.dtype != dtype:
        raise DamagedChunkError(f"it decodes to {found.dtype} instead of {dtype}")
    return np.asarray(found)


def _decoder(given: Any) -> Any:
    if given is not None:
        return given
    from cloudvolume import chunks

    return chunks.decode


def _decode_isolated(
    stored: Any, encoding: str, shape: tuple[int, int, int, int], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    found = decode_in_process(stored, encoding, math.prod(shape) * max(dtype.itemsize, 4))
    # compresso and crackle store three axes, and zfpc drops trailing axes of length 1.
    if found.shape + (1,) * (4 - found.ndim) != shape:
        raise DamagedChunkError(f"it decodes to {found.shape} voxels instead of {shape}")
    if found.dtype != dtype:
        raise DamagedChunkError(f"it decodes to {found.dtype} instead of {dtype}")
    return found.reshape(shape, order="F")


def _decode_channels(
    stored: bytes, shape: tuple[int, int, int, int], dtype: np.dtype[Any], block: tuple[int, int, int]
) -> bytes:
    """Return the raw voxels of a compressed_segmentation with several channels; the decoder supports only one."""
    from cloudvolume import chunks

    begins = [*np.frombuffer(stored, "<u4", shape[3]).tolist(), len(stored) // 4]
    found = []
    for begin, end in itertools.pairwise(begins):
        alone = b"\1\0\0\0" + stored[4 * begin : 4 * end]  # the header of one channel: its data begin after one word
        one = chunks.decode(alone, "compressed_segmentation", shape=(*shape[:3], 1), dtype=dtype, block_size=block)
        found.append(np.asarray(one).tobytes("F"))
    return b"".join(found)


def _chunk_problem(
    stored: Any, encoding: str, shape: tuple[int, int, int, int], dtype: np.dtype[Any], block: Any
) -> str:
    if len(stored) == 0:
        return _EMPTY
    if is_html_page(stored):
        return "it is HTML, such as a login page"
    if encoding == "raw":
        expected = math.prod(shape) * dtype.itemsize
        return "" if len(stored) == expected else f"it holds {len(stored)} bytes instead of {expected}"
    if encoding == "compressed_segmentation":
        if dtype.name not in ("uint32", "uint64"):
            return f"compressed_segmentation holds uint32 and uint64, not {dtype}"
        from imageryxr.kernels.compressed_segmentation import segmentation_problem

        x, y, z = (int(b) for b in block)
        return segmentation_problem(stored, shape, dtype.itemsize, (x, y, z))
    if encoding in PICTURE_ENCODINGS:
        return picture_problem(stored, encoding, shape, dtype)
    return stream_problem(stored, encoding, shape)
