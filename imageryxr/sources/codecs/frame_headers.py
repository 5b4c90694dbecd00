"""Comparison of the headers of compressed frames with the metadata of their array.

The headers of Blosc, LZ4 and Zstandard state how many bytes a frame decompresses to. A decoder allocates that much and
does not check the rest of the header, so a header that contradicts the metadata is an error before decoding.

Formats: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst, RFC 8878 (Zstandard), and the LZ4 of
numcodecs: four bytes with the decompressed size, and an LZ4 block.
"""

from __future__ import annotations

from collections.abc import Callable

_BLOSC_HEADER = 16
_BLOSC_MEMCPY = 2
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK = 128 << 10
"""Largest size in bytes of a Zstandard block, whatever the window."""


def frame_problem(frame: bytes | memoryview, codec: str, size: int, item_sizes: tuple[int, ...]) -> str:
    """Return the problem in the header of a compressed frame, a clause after "the chunk is damaged:", or "".

    Frames of Blosc, LZ4 and Zstandard are checked; those of other codecs have no problem. `size` is the decompressed
    size according to the metadata, 0 if unknown. `item_sizes` are the item sizes that a Blosc header may state; if it
    is empty, any may occur.
    """
    check = _CHECKS.get(codec)
    return "" if check is None else check(memoryview(frame), size, item_sizes)


def declared_size(frame: bytes | memoryview, codec: str) -> int | None:
    """Return the decompressed size that the header of a frame states, or None if it states none.

    Parameters
    ----------
    frame : bytes or memoryview
        The stored frame.
    codec : str
        Codec of the frame: ``"blosc"``, ``"lz4"`` or ``"zstd"``.
    """
    head = memoryview(frame)
    if codec != "zstd":
        return _read_uint(head, 4 if codec == "blosc" else 0, 4)
    begin, count = _zstd_size_field(head)
    return _read_uint(head, begin, count) + (256 if count == 2 else 0) if count else None


def _zstd_size_field(frame: memoryview) -> tuple[int, int]:
    """Return the offset and the length of the content size in the header of a Zstandard frame."""
    flags = frame[4] if len(frame) > 4 else 0
    is_single, dictionary = flags >> 5 & 1, (0, 1, 2, 4)[flags & 3]
    return 6 - is_single + dictionary, (is_single, 2, 4, 8)[flags >> 6]


def _read_uint(frame: memoryview, start: int, count: int) -> int:
    return int.from_bytes(frame[start : start + count], "little")


def _size_problem(found: int, size: int, name: str) -> str:
    if found == size or not size:
        return ""
    return f"its {name} header states {found} decompressed bytes instead of {size}"


def _blosc_problem(frame: memoryview, size: int, item_sizes: tuple[int, ...]) -> str:
    if len(frame) < _BLOSC_HEADER:
        return f"it has {len(frame)} bytes, fewer than a Blosc header"
    version, flags, item = frame[0], frame[2], frame[3]
    found, block, length = (_read_uint(frame, place, 4) for place in (4, 8, 12))
    if length > len(frame) or any(frame[length:]):  # some writers pad a frame with zeros
        return f"it has {len(frame)} bytes, but its Blosc header states {length}"
    if version not in (1, 2) or length < _BLOSC_HEADER:
        return f"it does not start with the header of a Blosc frame (version {version}, {length} bytes)"
    problem = _size_problem(found, size, "Blosc")
    if problem or not found:
        return problem
    if flags & _BLOSC_MEMCPY:
        stored = length - _BLOSC_HEADER
        return "" if stored == found else f"its Blosc header states {found} stored bytes, but there are {stored}"
    if item_sizes and item not in item_sizes:
        return f"its Blosc header states items of {item} bytes instead of {max(item_sizes)}"
    if not 0 < block <= max(found, item):
        return f"its Blosc header states blocks of {block} bytes in a chunk of {found}"
    first = _BLOSC_HEADER + 4 * -(-found // block)  # end of the table of block offsets
    if first > length:
        return f"its Blosc header states {-(-found // block)} blocks, whose table does not fit into {length} bytes"
    starts = frame[_BLOSC_HEADER:first].cast("B")
    places = [_read_uint(starts, place, 4) for place in range(0, len(starts), 4)]
    return (
        "" if all(first <= place < length for place in places) else "a block of its Blosc frame lies outside the frame"
    )


def _lz4_problem(frame: memoryview, size: int, _: tuple[int, ...]) -> str:
    if len(frame) < 5:
        return f"it has {len(frame)} bytes, fewer than an LZ4 header"
    return _size_problem(_read_uint(frame, 0, 4), size, "LZ4")


def _zstd_problem(frame: memoryview, size: int, _: tuple[int, ...]) -> str:
    if len(frame) < 9 or bytes(frame[:4]) != _ZSTD_MAGIC:
        return "it does not start with the header of a Zstandard frame"
    flags = frame[4]
    begin, count = _zstd_size_field(frame)
    if count:
        problem = _size_problem(_read_uint(frame, begin, count) + (256 if count == 2 else 0), size, "Zstandard")
        if problem:
            return problem
    return _zstd_blocks_problem(frame, begin + count, 4 * (flags >> 2 & 1), size)


def _zstd_blocks_problem(frame: memoryview, place: int, checksum: int, size: int) -> str:
    """Return the problem in the headers of the blocks of a frame, whose uncompressed blocks must fit into the chunk."""
    known = 0
    is_last = False
    while not is_last:
        if place + 3 > len(frame):
            return "its Zstandard frame ends before its last block"
        head = _read_uint(frame, place, 3)
        is_last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == 3 or length > _ZSTD_BLOCK:
            return "a block of its Zstandard frame has an invalid header"
        known += length if kind < 2 else 0
        place += 3 + (1 if kind == 1 else length)
    if size and known > size:
        return f"its Zstandard frame decompresses to more than {known} bytes instead of {size}"
    return "" if place + checksum <= len(frame) else "its Zstandard frame ends within its last block"


_CHECKS: dict[str, Callable[[memoryview, int, tuple[int, ...]], str]] = {
    "blosc": _blosc_problem,
    "lz4": _lz4_problem,
    "zstd": _zstd_problem,
}
