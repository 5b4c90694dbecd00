"""Decoding of precomputed chunks with checks before and after.

The decoders of several encodings do not check the stored bytes: they read beyond the end of a truncated chunk, and
then return wrong ids or crash the process. Therefore chunks are checked first, and encodings that no check makes safe
are decoded in another process (see `isolated`).

The headers of compresso, crackle and zfpc state the lengths of the parts of a stream, whose sum must equal the length
of the stream. fpzip and kempressed state no length: `decoder_process` detects truncation by decoding. For all encodings
the shape in the header must be that of the chunk, because a decoder allocates the memory that the header requests.

Formats: https://github.com/seung-lab/compresso (``compresso.hpp``), https://github.com/seung-lab/crackle
(README, "Stream Format"), https://github.com/seung-lab/zfpc (README), https://zfp.readthedocs.io (the header),
https://github.com/LLNL/fpzip (the header).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.sources.base import clean_message, is_html_page
from imageryxr.sources.codecs.images import PICTURE_ENCODINGS, decode_picture, picture_problem
from imageryxr.sources.codecs.isolated import ISOLATED_ENCODINGS, DecoderStartError, decode_in_process

_TRUNCATED = "it ends within its header"
_WORD = 0xFFFFFFFF
_ZFPC_FLOAT32 = 3


def stream_problem(stored: bytes, encoding: str, shape: tuple[int, int, int, int]) -> str:
    """Return the problem with the length or shape of an encoded chunk, a clause after "the chunk is damaged:", or "".

    `stored` is the chunk without gzip or similar compression, and `shape` its shape (x, y, z, channel). Encodings
    without a check have no problem.
    """
    check = _CHECKS.get(encoding)
    return "" if check is None else check(stored, shape)


def _read_uint(stored: bytes, start: int, size: int) -> int:
    return int.from_bytes(stored[start : start + size], "little")


def _length_problem(found: int, expected: int) -> str:
    if found == expected:
        return ""
    return f"it holds {found} bytes, but its header states {expected}"


def _shape_problem(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return "" if found == shape else f"its header states {found} voxels instead of {shape}"


def _compresso_problem(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 36:
        return _TRUNCATED
    version, width = stored[4], stored[5]
    if stored[:4] != b"cpso" or version > 1 or width not in (1, 2, 4, 8) or 0 in stored[12:15]:
        return "it does not start with the header of compresso"
    size = tuple(_read_uint(stored, place, 2) for place in (6, 8, 10))
    step = tuple(stored[12:15])
    problem = _shape_problem((*size, 1), shape)
    if problem:
        return problem
    window = next((w for w in (2, 4, 8) if math.prod(step) <= 8 * w), 0)
    if not window:
        return f"its header states windows of {step} voxels; the maximum is 64"
    ids, values, places = _read_uint(stored, 15, 8), _read_uint(stored, 23, 4), _read_uint(stored, 27, 8)
    begin = 36 + (ids + places) * width + values * window
    # Version 1 ends with an index: two numbers per slice, each wide enough for twice the voxels of a slice.
    index = 2 * size[2] * next(w for w in (1, 2, 4, 8) if 2 * size[0] * size[1] < 1 << 8 * w) if version else 0
    runs = len(stored) - begin - index
    if runs < 0 or runs % window:
        return f"it holds {len(stored)} bytes, but its header states {begin + index} plus a multiple of {window}"
    # The header does not state the number of runs, so missing ones are found by counting the windows of all runs.
    codes = np.frombuffer(stored, f"<u{window}", runs // window, begin)
    count = int(np.where(codes & 1, codes >> 1, 1).astype(np.uint64).sum())
    blocks = math.prod(-(-s // b) for s, b in zip(size, step, strict=True))
    # Releases before 3.0 wrote one extra window after a run of maximum length.
    longest = codes == np.iinfo(codes.dtype).max
    spare = int((longest[:-1] & (codes[1:] == 0)).sum())
    return "" if blocks <= count <= blocks + spare else f"its runs hold {count} windows, but its header states {blocks}"


def _crackle_problem(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 29:
        return _TRUNCATED
    version = stored[4]
    if stored[:4] != b"crkl" or version > 1:
        return "it does not start with the header of crackle"
    size = tuple(_read_uint(stored, place, 4) for place in (7, 11, 15))
    problem = _shape_problem((*size, 1), shape)
    if problem:
        return problem
    order = (_read_uint(stored, 5, 2) >> 9) & 15
    head, labels = (29, _read_uint(stored, 20, 8)) if version else (24, _read_uint(stored, 20, 4))
    index = 4 * (size[2] + version)
    model = (4**order * 5 + 7) // 8 if order else 0  # 5 bits per row, rounded up to bytes
    sums = 4 * (size[2] + 1) if version else 0
    if len(stored) < head + index:
        return "it ends within the index of its slices"
    codes = int(np.frombuffer(stored, "<u4", size[2], head).sum(dtype=np.uint64))
    problem = _length_problem(len(stored), head + index + labels + model + codes + sums)
    return problem or (_crackle_checksum_problem(stored, head + index, labels, len(stored) - sums) if version else "")


def _crackle_checksum_problem(stored: bytes, begin: int, labels: int, sums: int) -> str:
    """Return the problem in the checksums of index and ids; the decoder verifies only those of header and slices."""
    from google_crc32c import value

    if value(stored[29 : begin - 4]) != _read_uint(stored, begin - 4, 4):
        return "the index of its slices does not match its checksum"
    return (
        ""
        if value(stored[begin : begin + labels]) == _read_uint(stored, sums, 4)
        else "its ids do not match their checksum"
    )


def _zfpc_problem(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 23:
        return _TRUNCATED
    if stored[:5] != b"zfpc\0":
        return "it does not start with the header of zfpc"
    if stored[5] & 7 != _ZFPC_FLOAT32:  # the decoder converts all types to float32, which loses precision
        return "its header states another type than float32"
    size = tuple(_read_uint(stored, place, 4) for place in (6, 10, 14, 18))
    problem = _shape_problem(tuple(s or 1 for s in size), shape)
    if problem:
        return problem
    apart = [s for axis, s in enumerate(size) if s > 1 and not stored[22] >> axis & 1]
    streams = math.prod(apart)
    if len(stored) < 23 + 8 * (1 + streams):
        return "it ends within the index of its streams"
    begin, *lengths = np.frombuffer(stored, "<u8", 1 + streams, 23).tolist()
    if begin != 23 + 8 * (1 + streams):
        return f"its streams start at byte {begin}, which is not the end of its index"
    problem = _length_problem(len(stored), begin + sum(lengths))
    voxels = math.prod(shape)
    for length in () if problem else lengths:
        if _zfp_voxels(stored[begin : begin + min(length, 11)]) * streams != voxels:
            return f"the header of one of its {streams} streams does not state {voxels // streams} voxels"
        begin += length
    return problem


def _zfp_voxels(head: bytes) -> int:
    """Return the number of voxels in the header of a zfp stream; 0 if it is not a zfp stream."""
    if len(head) < 11 or head[:3] != b"zfp":
        return 0
    about = _read_uint(head, 4, 7)
    axes = (about >> 2 & 3) + 1
    bits = 48 // axes
    return math.prod((about >> 4 + axis * bits & (1 << bits) - 1) + 1 for axis in range(axes))


class _RangeDecoder:
    """The range decoder of fpzip for uniformly distributed numbers; fpzip encodes the numbers of its header so."""

    def __init__(self, stored: bytes) -> None:
        self.stored, self.place = stored, 0
        self.low, self.range, self.code = 0, _WORD, 0
        self._shift(4)

    def _shift(self, count: int) -> None:
        for _ in range(count):
            self.code = (self.code << 8 | self.stored[self.place]) & _WORD
            self.low = self.low << 8 & _WORD
            self.place += 1

    def number(self, bits: int) -> int:
        """Return the next number of at most 16 bits; raises IndexError at the end of the stream."""
        self.range >>= bits
        found = ((self.code - self.low) & _WORD) // self.range
        self.low = (self.low + found * self.range) & _WORD
        while not (self.low ^ (self.low + self.range)) >> 24 & 0xFF:
            self._shift(1)
            self.range = self.range << 8 & _WORD
        if not self.range >> 16:
            self._shift(2)
            self.range = -self.low & _WORD
        return found


def _fpzip_problem(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    try:
        coder = _RangeDecoder(stored)
        if bytes(coder.number(8) & 0xFF for _ in range(4)) != b"fpz\0":
            return "it does not start with the header of fpzip"
        for bits in (16, 8, 1, 7):  # skip the version, the type and the precision, which the decoder checks
            coder.number(bits)
        size = tuple(coder.number(16) | coder.number(16) << 16 for _ in range(4))
    except IndexError:
        return _TRUNCATED
    return _shape_problem(size, shape)


def _kempressed_problem(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    x, y, z, channels = shape
    return _fpzip_problem(stored, (x, y, channels, z))  # the axis order of CloudVolume


_CHECKS: dict[str, Callable[[bytes, tuple[int, int, int, int]], str]] = {
    "compresso": _compresso_problem,
    "crackle": _crackle_problem,
    "zfpc": _zfpc_problem,
    "fpzip": _fpzip_problem,
    "kempressed": _kempressed_problem,
}


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
