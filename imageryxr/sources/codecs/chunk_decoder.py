"""Decoding of precomputed chunks with checks before and after.

The decoders of several encodings do not check the stored bytes: they read beyond the end of a truncated chunk, and
then return wrong ids or crash the process. Therefore chunks are checked first, and encodings that no check makes safe
are decoded in another process (see `isolated`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.sources.base import clean_message, is_html_page
from imageryxr.sources.codecs.images import PICTURE_ENCODINGS, decode_picture, picture_problem
from imageryxr.sources.codecs.isolated import ISOLATED_ENCODINGS, DecoderStartError, decode_in_process
from imageryxr.sources.codecs.stream_lengths import stream_problem

EMPTY = "it is empty (0 bytes): it was truncated when written"
HTML = "it is HTML, such as a login page"


class DamagedChunkError(ValueError):
    """A stored chunk that contradicts the metadata of its layer; `PrecomputedSource` adds the box to the message."""


def decode_chunk(
    stored: Any,
    encoding: str,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[Any],
    block: Any = None,
) -> npt.NDArray[Any]:
    """Return the voxels (x, y, z, channel) of a stored chunk.

    `stored` is the chunk without gzip or similar compression, `encoding` and `dtype` those of the ``info``, `shape` the
    shape of the chunk (x, y, z, channel), and `block` the voxels (x, y, z) of a block of compressed_segmentation.

    Raises
    ------
    DamagedChunkError
        If a check finds that the chunk contradicts the other arguments.
    ImportError
        If the codec is not installed.
    DecoderStartError
        If the decoder process cannot be started.
    """
    problem = _chunk_problem(stored, encoding, shape, dtype)
    if problem:
        raise DamagedChunkError(problem)
    try:
        if encoding == "compressed_segmentation":
            from imageryxr.kernels.compressed_segmentation import decode_slices

            parts = [decode_slices(stored, shape, dtype, block, c, (0, shape[2])).T for c in range(shape[3])]
            return np.stack(parts, axis=-1)
        if encoding in ISOLATED_ENCODINGS:
            return _decode_isolated(stored, encoding, shape, dtype)
        if encoding in PICTURE_ENCODINGS:
            return decode_picture(stored, encoding, shape, dtype).reshape(shape, order="F")
        return np.frombuffer(stored, dtype).reshape(shape, order="F")
    except (ImportError, DecoderStartError, DamagedChunkError):
        raise
    except Exception as error:
        raise DamagedChunkError(
            f"it cannot be decoded as {encoding} ({clean_message(error) or type(error).__name__})"
        ) from error


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


def _chunk_problem(stored: Any, encoding: str, shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> str:
    if len(stored) == 0:
        return EMPTY
    if is_html_page(stored):
        return HTML
    if encoding == "raw":
        expected = math.prod(shape) * dtype.itemsize
        return "" if len(stored) == expected else f"it holds {len(stored)} bytes instead of {expected}"
    if encoding in PICTURE_ENCODINGS:
        return picture_problem(stored, encoding, shape, dtype)
    if encoding in ISOLATED_ENCODINGS or encoding == "compressed_segmentation":
        return stream_problem(stored, encoding, shape)
    return f"its encoding {encoding!r} is not one that imageryxr decodes"
