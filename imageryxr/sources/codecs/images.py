"""Decoding of chunks stored as PNG, JPEG or JPEG XL pictures, after comparing their headers with the metadata.

The pixels of a picture, row by row, are the voxels of a chunk in the order x, y, z, and its components are the
channels; width and height are arbitrary (Neuroglancer's ``precomputed/volume.rst``). A decoder allocates as many
pixels as the header states, so the header is checked first. Every part of a PNG has a checksum. All checksums are
verified here, because decoders skip those of parts that they do not need.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

PICTURE_ENCODINGS = frozenset({"png", "jpeg", "jxl", "jpegxl"})
Shape = tuple[int, int, int, int]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_PNG_PALETTE = 3
_JPEG_CHANNELS = {"Gray": 1, "YCbCr": 3, "RGB": 3}
_JXL_STREAM, _JXL_BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def picture_problem(stored: bytes, encoding: str, shape: Shape, dtype: np.dtype[Any]) -> str:
    """Return the problem in the header or the checksums of a picture, a clause after "the chunk is damaged:", or "".

    `stored` is the chunk without gzip or similar compression, `encoding` one of `PICTURE_ENCODINGS`, and `shape` the
    shape of the chunk (x, y, z, channel).
    """
    if encoding == "png":
        return _png_problem(stored, shape, dtype)
    return _jpeg_problem(stored, shape, dtype) if encoding == "jpeg" else _jxl_problem(stored, shape)


def decode_picture(stored: bytes, encoding: str, shape: Shape, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the voxels of a picture, 1-D in the order of a raw chunk: x fastest, then y, z and channel.

    Raises
    ------
    ImportError
        If the decoder is not installed.
    ValueError
        If the picture and the chunk differ in size or data type. Decoders also raise their own errors.
    """
    if encoding == "png":
        found = _decode_png(stored, dtype)
    elif encoding == "jpeg":
        import simplejpeg  # type: ignore[import-untyped]

        found = simplejpeg.decode_jpeg(stored, colorspace="GRAY" if shape[3] == 1 else "RGB")
    else:
        found = _decode_jxl(stored, shape[3])
    channels = found.shape[2] if found.ndim == 3 else 1
    if channels != shape[3] or found.size != math.prod(shape):
        raise ValueError(f"it holds {found.shape} pixels instead of voxels of shape {shape}")
    if found.dtype != dtype:
        raise ValueError(f"it decodes to {found.dtype} instead of {dtype}")
    return found.reshape(-1, channels).T.reshape(-1)  # a view if there is one channel


def _decode_png(stored: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    # pyspng decodes 16-bit pictures of one or three channels to twice the number of pixels.
    if dtype.itemsize > 1:
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(stored))
    import pyspng  # type: ignore[import-untyped]

    return np.asarray(pyspng.load(stored))


def _decode_jxl(stored: bytes, channels: int) -> npt.NDArray[Any]:
    import imagecodecs

    # Decode the first frame to find its size: the header does not state the number of frames.
    found = np.asarray(imagecodecs.jpegxl_decode(stored, index=0, numthreads=1))
    if found.ndim != 2 or channels == 1:
        return found
    # CloudVolume writes each channel as a frame. The decoder rejects an output array with another number of frames.
    frames = np.empty((channels, *found.shape), found.dtype)
    imagecodecs.jpegxl_decode(stored, numthreads=1, out=frames)
    return frames.transpose(1, 2, 0)


def _size_problem(width: int, height: int, shape: Shape) -> str:
    voxels = math.prod(shape[:3])
    if width * height == voxels:
        return ""
    return f"its header states {width} × {height} pixels instead of {voxels} voxels {shape[:3]}"


def _channel_problem(found: int, shape: Shape) -> str:
    return "" if found == shape[3] else f"its header states {found} components instead of {shape[3]} channels"


def _read_uint(stored: bytes, place: int, size: int) -> int:
    return int.from_bytes(stored[place : place + size], "big")


def _png_problem(stored: bytes, shape: Shape, dtype: np.dtype[Any]) -> str:
    if dtype.name not in ("uint8", "uint16"):
        return f"PNG holds uint8 and uint16, not {dtype}"
    if stored[:8] != _PNG:
        return "it does not begin as a PNG picture"
    place = 8
    names: list[bytes] = []
    while place < len(stored) and (not names or names[-1] != b"IEND"):
        length, name, end = (
            _read_uint(stored, place, 4),
            stored[place + 4 : place + 8],
            place + 12 + _read_uint(stored, place, 4),
        )
        if end > len(stored):
            return "it ends within a part of the PNG picture"
        if zlib.crc32(stored[place + 4 : end - 4]) != _read_uint(stored, end - 4, 4):
            return f"the part {name.decode('latin-1')!r} of the PNG picture does not match its checksum"
        if not names and (name != b"IHDR" or length != 13):
            return "it does not begin as a PNG picture"
        names.append(name)
        place = end
    if names[-1:] != [b"IEND"] or b"IDAT" not in names:
        return "the PNG picture ends before its last part"
    width, height, depth, color = _read_uint(stored, 16, 4), _read_uint(stored, 20, 4), stored[24], stored[25]
    if color == _PNG_PALETTE:  # the decoder replaces indexes with the colours of the palette
        channels, depth = (4 if b"tRNS" in names else 3), 8
    elif color in _PNG_CHANNELS:
        channels = _PNG_CHANNELS[color]
    else:
        return f"its header states colour type {color}, which PNG does not define"
    if depth != 8 * dtype.itemsize:
        return f"its header states {depth} bits per component instead of {dtype}"
    return _size_problem(width, height, shape) or _channel_problem(channels, shape)


def _jpeg_problem(stored: bytes, shape: Shape, dtype: np.dtype[Any]) -> str:
    if dtype.name != "uint8":
        return f"JPEG holds uint8, not {dtype}"
    if shape[3] not in (1, 3):
        return f"JPEG holds 1 or 3 channels, not {shape[3]}"
    import simplejpeg

    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(stored)
    except ValueError as error:
        return f"its JPEG header cannot be read ({error})"
    return _size_problem(width, height, shape) or _channel_problem(_JPEG_CHANNELS.get(color, 4), shape)


def _jxl_problem(stored: bytes, shape: Shape) -> str:
    if stored.startswith(_JXL_BOXES):
        head, problem = _jxl_boxes(stored)
        if problem:
            return problem
    else:
        head = stored[:16]
    if not head.startswith(_JXL_STREAM):
        return "it does not begin as a JPEG XL picture"
    return _size_problem(*_jxl_size(int.from_bytes(head[2:], "little")), shape)


def _jxl_boxes(stored: bytes) -> tuple[bytes, str]:
    """Return the start of the codestream in a file of boxes, and the problem in the lengths of the boxes, or ""."""
    place, head = 0, b""
    while place < len(stored):
        length, kind, begin = _read_uint(stored, place, 4), stored[place + 4 : place + 8], place + 8
        if length == 1:
            length, begin = _read_uint(stored, place + 8, 8), place + 16
        end = place + length if length else len(stored)
        if end > len(stored) or end < begin:
            return head, "it ends within a box of the JPEG XL picture"
        if kind == b"jxlc":
            head += stored[begin : min(end, begin + 16)]
        elif kind == b"jxlp":
            head += stored[begin + 4 : min(end, begin + 20)]
        place = end
    return head, ""


def _jxl_size(bits: int) -> tuple[int, int]:
    """Return width and height from the bits after the signature (ISO/IEC 18181-1, SizeHeader)."""

    def take(count: int) -> int:
        nonlocal bits
        found = bits & (1 << count) - 1
        bits >>= count
        return found

    def number() -> int:
        return 8 * (1 + take(5)) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    is_small = take(1) == 1
    height = number()
    ratio = _JXL_RATIOS[take(3)]
    width = number() if ratio is None else height * ratio[0] // ratio[1]
    return width, height
