"""HTTP responses: the status line, the headers and the framing of the body, read from a socket.

Python's `http.client` parses headers as an e-mail message, which takes longer than the rest of a request. This parser
accepts only what RFC 9112 permits: a response that two parsers could read differently is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from imageryxr.sources.fetch.decompress import TooLargeError
from imageryxr.sources.fetch.sockets import ProtocolError, RequestLimits, Steps

_RECEIVED, _PIECE = 1 << 16, 1 << 20
# Largest size of the headers, of the line with the size of a chunk, and of trailers.
_HEAD, _LINE = 1 << 16, 1 << 12
# Bytes allowed for headers, chunk sizes and trailers in addition to the body.
OVERHEAD = 1 << 20
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.([0-9]) ([0-9]{3})(?: [^\r\n]*)?")
_FIELDS = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*(?:\r?\n|\Z))*")
_FOLD = re.compile(r"\r?\n[ \t]+")
_LENGTH = re.compile("[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")

BodyLimit = Callable[[int, Mapping[str, str]], tuple[int, bool]]


class Answer(NamedTuple):
    """A response of a server."""

    status: int
    headers: dict[str, str]
    """Headers by lower-case name."""
    body: bytes
    is_public: bool = False
    """Whether the server has a public address."""


class _Head(NamedTuple):
    status: int
    headers: dict[str, str]
    minor: int
    """1 for HTTP/1.1."""


class _Incoming:
    """The bytes that arrive on a socket, and a buffer of those that were received but not yet used."""

    __slots__ = ("data", "place", "sock")

    def __init__(self, sock: Any) -> None:
        self.sock, self.data, self.place = sock, b"", 0

    def receive(self) -> Steps[bool]:
        """Receive more bytes; return False at the end of the connection."""
        more = yield from self.sock.recv_steps(_RECEIVED)
        self.data, self.place = self.data[self.place :] + more, 0
        return bool(more)

    def take(self, most: int) -> Steps[bytes]:
        """Return at least one and at most ``most`` bytes; none at the end of the connection."""
        if self.place == len(self.data):
            found: bytes = yield from self.sock.recv_steps(min(most, _PIECE))
            return found
        piece = self.data[self.place : self.place + most]
        self.place += len(piece)
        return piece

    def line(self) -> Steps[bytes]:
        """Return the next line, including its line break."""
        while (end := self.data.find(b"\n", self.place)) < 0:
            if len(self.data) - self.place > _LINE or not (yield from self.receive()):
                raise ProtocolError("its chunked body was truncated or is not valid")
        line = self.data[self.place : end + 1]
        self.place = end + 1
        return line


def read_response(sock: Any, method: str, limits: RequestLimits, body_limit: BodyLimit) -> Steps[tuple[Answer, bool]]:
    """Return the response to a request that was sent, and whether the connection can be used again.

    `body_limit` returns, for a status and headers, the largest size of the body, and whether a longer body is cut off
    instead of causing an error.

    Raises
    ------
    OSError, TooLargeError, ServerError
        If there was no valid response within the limits.
    """
    source = _Incoming(sock)
    head = yield from _read_head(source)
    while 100 <= head.status < 200 and head.status != 101:  # such as 103 Early Hints
        head = yield from _read_head(source)
    length, is_chunked = _framing(method, head)
    most, is_cut = body_limit(head.status, head.headers)
    if not is_cut and length is not None and length > most:
        raise TooLargeError(f"its body has {length:,} bytes; the limit for this request is {most:,}")
    # With chunked encoding the sizes of the chunks are received in addition to the body.
    limits.budget = limits.received + 2 * most + OVERHEAD
    body = yield from (_read_chunks(source, most) if is_chunked else _read_body(source, length, most))
    if len(body) > most:
        if not is_cut:
            raise TooLargeError(f"its body has more than {most:,} bytes, the limit for this request")
        return Answer(head.status, head.headers, body[:most]), False
    is_whole = is_chunked or length is not None
    is_reusable = is_whole and _is_persistent(head) and source.place == len(source.data)
    return Answer(head.status, head.headers, body), is_reusable


def read_status(sock: Any) -> Steps[int]:
    """Return the status of a response without a body, such as that of a proxy to CONNECT."""
    source = _Incoming(sock)
    status = (yield from _read_head(source)).status
    if source.place != len(source.data):
        raise ProtocolError("the proxy sent data after its answer")
    return status


def _read_head(source: _Incoming) -> Steps[_Head]:
    while (end := _END_OF_HEAD.search(source.data, source.place)) is None:
        waiting = source.data[source.place :]
        if not b"HTTP/1.".startswith(waiting[:7]):
            raise ProtocolError("its answer is not HTTP")
        if len(waiting) > _HEAD:
            raise ProtocolError(f"its headers have more than {_HEAD:,} bytes")
        if not (yield from source.receive()):
            raise ProtocolError("it closed the connection within the headers" if waiting else _NO_ANSWER)
    if end.start() - source.place > _HEAD:
        raise ProtocolError(f"its headers have more than {_HEAD:,} bytes")
    text = source.data[source.place : end.start()].decode("latin-1")
    source.place = end.end()
    return _parse_head(text)


_NO_ANSWER = "it closed the connection without an answer"


def _parse_head(text: str) -> _Head:
    first, _, rest = text.partition("\n")
    found = _STATUS.fullmatch(first.removesuffix("\r"))
    if found is None:
        raise ProtocolError("its answer is not HTTP")
    if "\n " in rest or "\n\t" in rest:  # obsolete, but valid
        rest = _FOLD.sub(" ", rest)
    if _FIELDS.fullmatch(rest) is None:
        raise ProtocolError("its headers are not valid")
    headers: dict[str, str] = {}
    for line in rest.split("\n"):
        name, _, value = line.partition(":")
        if name:
            name, value = name.lower(), value.strip(" \t\r")
            if name in headers and (name, value) != ("content-length", headers[name]):
                value = f"{headers[name]}, {value}"
            headers[name] = value
    return _Head(int(found[2]), headers, int(found[1]))


def _framing(method: str, head: _Head) -> tuple[int | None, bool]:
    """Return the length of the body, None if it is not stated, and whether the body is chunked."""
    if head.status < 200:
        raise ProtocolError(f"it answered HTTP {head.status}, which is not a final status")
    encoding, stated = head.headers.get("transfer-encoding"), head.headers.get("content-length")
    if encoding is not None and encoding.lower() != "chunked":
        raise ProtocolError("its transfer encoding is unknown")
    if stated is not None and encoding is None and _LENGTH.fullmatch(stated) is None:
        raise ProtocolError("its Content-Length is not valid")  # or there are several different ones
    if method == "HEAD" or head.status in (204, 304):
        return 0, False
    if encoding is not None:
        return None, True
    return (None if stated is None else int(stated)), False


def _is_persistent(head: _Head) -> bool:
    options = head.headers.get("connection", "").lower()
    return "close" not in options and (head.minor >= 1 or "keep-alive" in options)


def _read_body(source: _Incoming, length: int | None, most: int) -> Steps[bytes]:
    """Return a body of a stated length, or one that ends with the connection; at most one byte more than `most`."""
    wanted = most + 1 if length is None else min(length, most + 1)
    pieces = []
    while wanted > 0:
        piece = yield from source.take(wanted)
        if not piece:
            if length is not None:
                raise ProtocolError(f"its body was truncated: {wanted:,} bytes are missing")
            break
        pieces.append(piece)
        wanted -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_chunks(source: _Incoming, most: int) -> Steps[bytes]:
    """Return a chunked body; at most one byte more than `most`."""
    body = bytearray()  # a list of small pieces would take many times the memory of the body
    while True:
        found = _CHUNK_SIZE.fullmatch((yield from source.line()))
        if found is None:
            raise ProtocolError("the size of a chunk of its body is not a non-negative number")
        left = int(found[1], 16)
        if not left:
            break
        while left:
            piece = yield from source.take(min(left, most + 1 - len(body)))
            if not piece:
                raise ProtocolError("its chunked body was truncated")
            body += piece
            left -= len(piece)
            if len(body) > most:
                return bytes(body)
        if (yield from source.line()) != b"\r\n":  # after a lost byte, "\r" would be data and "\n" the end
            raise ProtocolError("a chunk of its body is longer than its stated size")
    left = _HEAD
    while (line := (yield from source.line())) not in (b"\r\n", b"\n"):  # trailers
        left -= len(line)
        if left < 0:
            raise ProtocolError("its trailers are too long")
    return bytes(body)
