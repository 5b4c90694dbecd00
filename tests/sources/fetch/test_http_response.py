"""Parsing of HTTP responses."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from imageryxr.sources.fetch.http_response import read_response
from imageryxr.sources.fetch.sockets import (
    ProtocolError,
    RequestLimits,
    _Socket,
    is_idle,
    resolve,
    run,
    wait_until_ready,
)

LIMIT = 1000


@contextmanager
def receiving_socket(*pieces: bytes, close: bool = True):
    """Yield a socket that receives each piece in a separate packet."""
    near, far = socket.socketpair()
    sock = _Socket(near.family, near.type, fileno=near.detach())
    sock.setblocking(False)
    sock.limits = RequestLimits(5, threading.Event(), 1 << 20)

    def send() -> None:
        for piece in pieces:
            far.sendall(piece)
        if close:
            far.close()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sock
    finally:
        sender.join()
        sock.close()
        far.close()


def read(*pieces: bytes, method: str = "GET", close: bool = True):
    with receiving_socket(*pieces, close=close) as sock:
        return run(read_response(sock, method, sock.limits, lambda status, headers: (LIMIT, False)))


OK = b"HTTP/1.1 200 OK\r\n"
BODIES = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", True),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nDigest: x\r\n\r\n", True),
    "until it closes": (OK + b"\r\nhello", False),
    "closes": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello", True),
    "a continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", True),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", True),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", True),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_response_is_parsed_alike_in_packets_of_any_size(name):
    message, is_reusable = BODIES[name]
    for pieces in ([message], [bytes([byte]) for byte in message], [message[:20], message[20:]]):
        answer, reusable = read(*pieces)
        assert answer.body == (b"hello" if name not in ("no body", "not modified") else b"")
        assert (answer.status, reusable) == (304 if name == "not modified" else 200, is_reusable)


@pytest.mark.parametrize("cut", [5, 10])
def test_a_connection_with_bytes_after_the_body_is_not_reused(cut):
    head = OK + b"Content-Length: 5\r\n\r\n"
    pieces = [head + b"hello HTTP"[:cut], b"hello HTTP"[cut:]]
    with receiving_socket(*filter(None, pieces), close=False) as sock:
        answer, reusable = run(read_response(sock, "GET", sock.limits, lambda status, headers: (LIMIT, False)))
        assert answer.body == b"hello"
        # The bytes after the body may arrive when the response has been read.
        assert not reusable or (wait_until_ready(sock, 5) and not is_idle(sock))


def test_headers_are_merged_and_lower_case():
    head = OK + b"X-A: 1\r\nx-a:  2 \r\nEmpty:\r\nFolded: a\r\n  b\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"
    found = read(head)[0].headers
    assert found == {"x-a": "1, 2", "empty": "", "folded": "a b", "content-length": "0"}


@pytest.mark.parametrize(
    "message",
    [
        b"", b"HTTP/1.1 200", OK, b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 099 No\r\n\r\n", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n",
        b"<html>", OK + b"no colon\r\n\r\n", OK + b"name : value\r\n\r\n", OK + b": value\r\n\r\n",
        OK + b"name: a\rb\r\n\r\n", OK + b"name: a\0b\r\n\r\n", OK + b" folded: first\r\n\r\n",
        OK + b"Content-Length: 6\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhell\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5 5\r\nhello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
        OK + b"a: " + b"b" * 70_000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_an_invalid_response_is_an_error(message):
    with pytest.raises(ProtocolError):
        read(message)


def test_a_response_to_head_has_no_body():
    answer, reusable = read(OK + b"Content-Length: 5\r\n\r\n", method="HEAD", close=False)
    assert (answer.body, reusable) == (b"", True)


def test_a_tls_connection_with_unread_decrypted_bytes_is_not_idle():
    with receiving_socket(close=False) as sock:
        assert is_idle(sock)
        sock.pending = lambda: 1  # TLS sockets have this method
        assert not is_idle(sock)


def test_a_host_name_is_resolved_again_after_a_thread_failed_to_start(monkeypatch):
    limits = RequestLimits(5, threading.Event())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="new thread"):
            run(resolve("localhost", 80, limits))
    assert run(resolve("localhost", 80, limits))
