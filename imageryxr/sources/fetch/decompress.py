"""Decompression with a size limit: a few bytes may decompress to more than the memory of a machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

# Bytes of input between two checks of the output size.
_STEP = 1 << 14
_PIECE = 1 << 20
# Largest number of concatenated streams: even an empty stream takes time.
_MEMBERS = 100_000
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
#: Supported values of Content-Encoding and Accept-Encoding.
ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd")


class TooLargeError(ValueError):
    """Data that exceed the largest size of the requested object."""


def decompress(body: bytes | memoryview, encoding: str, limit: int) -> bytes:
    """Return the decompressed bytes of a whole stream; raise `ValueError` if it is damaged or the encoding is unknown.

    Concatenated gzip members or zstd frames are joined, as their formats specify. `encoding` is that of
    ``Content-Encoding``: ``gzip``, ``deflate``, ``br``, ``zstd``, ``identity``, or several of them in the order in
    which they were applied, ``"br, gzip"``. Decompression stops with `TooLargeError` when a stage exceeds `limit`
    bytes.
    """
    names = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    if len(names) > 3:
        raise ValueError(f"it is compressed {len(names)} times; at most 3 are supported")
    found = bytes(body) if not isinstance(body, bytes) else body
    for name in reversed(names):
        if name == "identity":
            continue
        if name not in ENCODINGS:
            raise ValueError(f"its compression {name!r} is unknown; supported are {', '.join(ENCODINGS)}")
        try:
            found = _join_pieces(_UNPACK[name](found, limit), name, limit)
        except TooLargeError:
            raise
        except Exception as error:
            raise ValueError(f"its {name} stream is damaged ({type(error).__name__}: {error})") from None
    return found


def _join_pieces(pieces: Iterator[bytes], name: str, limit: int) -> bytes:
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooLargeError(f"it decompresses from {name} to more than the limit of {limit:,} bytes")
        found.append(piece)
    return b"".join(found)


def _gzip(body: bytes, limit: int) -> Iterator[bytes]:
    place = 0
    for _ in range(_MEMBERS):
        unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
        place = yield from _inflate(unpacker, body, place, limit)
        # Another member may follow, or padding with zeros.
        while place < len(body) and not body[place]:
            place += 1
        if place == len(body):
            return
    raise ValueError(f"it has more than {_MEMBERS:,} members")


def _deflate(body: bytes, limit: int) -> Iterator[bytes]:
    # Some servers send a raw deflate stream without the zlib header that "deflate" implies.
    bare = len(body) < 2 or body[0] & 15 != 8 or (body[0] << 8 | body[1]) % 31
    yield from _inflate(zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS), body, 0, limit)


def _inflate(unpacker: Any, body: bytes, place: int, limit: int) -> Generator[bytes, None, int]:
    """Yield the content of one stream, and return the offset of its end."""
    view = memoryview(body)
    while not unpacker.eof:
        given = unpacker.unconsumed_tail
        if not given:
            given = view[place : place + _STEP]
            place += len(given)
        piece = unpacker.decompress(given, min(limit + 1, _PIECE))
        if not piece and not given:
            raise ValueError("it was truncated")
        yield piece
    return place - len(unpacker.unused_data)


def _brotli(body: bytes, limit: int) -> Iterator[bytes]:
    import brotli

    unpacker: Any = brotli.Decompressor()
    place = 0
    while not unpacker.is_finished():
        waiting = not unpacker.can_accept_more_data()
        given = b"" if waiting else body[place : place + _STEP]
        place += len(given)
        piece = unpacker.process(given, output_buffer_limit=min(limit + 1, _PIECE))
        if not piece and not given and not waiting:
            raise ValueError("it was truncated")
        yield piece


def _zstd(body: bytes, limit: int) -> Iterator[bytes]:
    import zstandard

    # A frame may request a window of 2 GB; a window larger than the limit is never needed.
    window = max(1 << 20, min(1 << (limit + 1).bit_length(), 1 << 27))
    view, place = memoryview(body), 0
    for _ in range(_MEMBERS):
        stop = _end_of_frame(view, place)
        unpacker = zstandard.ZstdDecompressor(max_window_size=window)
        with unpacker.stream_reader(view[place:stop], closefd=False) as reader:
            while piece := reader.read(min(limit + 1, _PIECE)):
                yield piece
        place = stop
        if place == len(body):
            return
    raise ValueError(f"it has more than {_MEMBERS:,} frames")


def _end_of_frame(body: memoryview, place: int) -> int:
    """Return the offset of the end of a zstd frame; the library does not report a truncated frame."""
    import zstandard

    head = bytes(body[place : place + 18])
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # a skippable frame with its length
        stop = place + 8 + int.from_bytes(head[4:8], "little")
    elif len(head) < 6:
        raise ValueError("it was truncated")
    else:
        stop, is_last = place + zstandard.frame_header_size(head), False
        while not is_last and stop < len(body):
            header = int.from_bytes(body[stop : stop + 3], "little")
            stop += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
            is_last = bool(header & 1)
        stop += 4 * (head[4] >> 2 & 1)  # its checksum
        if not is_last:
            raise ValueError("it was truncated")
    if stop > len(body):
        raise ValueError("it was truncated")
    return stop


_UNPACK: dict[str, Callable[[bytes, int], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
