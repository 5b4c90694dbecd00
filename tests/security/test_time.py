"""Every request ends at its deadline."""

from __future__ import annotations

import socket
import threading
import time

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import client
from imageryxr.sources.fetch.sockets import StoppedError
from tests.support.hostile import HostileServer, reply
from tests.support.slow import slow_except

ONCE = ix.Connection(timeout=0.5, retries=0)
OK = b"HTTP/1.1 200 OK\r\n"
LONG = 100_000


def slow_status(server, sock, _):
    server.drip(sock, OK * LONG, 0.1)


def slow_headers(server, sock, _):
    sock.sendall(OK)
    server.drip(sock, b"x: y\r\n" * LONG, 0.1)


def slow_lines(server, sock, _):
    sock.sendall(OK)
    while not server.stopped.wait(0.05):
        sock.sendall(b"x: y\r\n")


def slow_body(server, sock, _):
    sock.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    server.drip(sock, b"x" * LONG, 0.1)


def slow_body_without_length(server, sock, _):
    sock.sendall(OK + b"\r\n")
    server.drip(sock, b"x" * LONG, 0.1)


def slow_chunks(server, sock, _):
    sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    server.drip(sock, b"1\r\nx\r\n" * LONG, 0.1)


def slow_size_of_a_chunk(server, sock, _):
    sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    server.drip(sock, b"0" * LONG, 0.1)


def slow_trailers(server, sock, _):
    sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    server.drip(sock, b"a: b\r\n" * LONG, 0.1)


def slow_continues(server, sock, _):
    while not server.stopped.wait(0.05):
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def fast_continues(server, sock, _):
    while not server.stopped.is_set():
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def fast_headers(server, sock, _):
    sock.sendall(OK)
    while not server.stopped.is_set():
        sock.sendall(b"x: " + b"y" * 60000 + b"\r\n")


def one_endless_header(server, sock, _):
    sock.sendall(OK + b"x: ")
    while not server.stopped.is_set():
        sock.sendall(b"y" * 60000)


def fast_trailers(server, sock, _):
    sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    while not server.stopped.is_set():
        sock.sendall(b"a: b\r\n" * 1000)


def slow_error(server, sock, _):
    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n")
    server.drip(sock, b"x" * 1000, 0.1)


def silence(server, sock, _):
    server.stopped.wait()


def redirects(server, sock, head):
    server.stopped.wait(0.3)
    return reply(sock, status="302 Found", Location=f"/{len(server.requests)}")


WAYS = [value for value in list(globals().values()) if getattr(value, "__module__", "") == __name__]


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("way", slow_except(WAYS, slow_headers, slow_body, silence), ids=lambda way: way.__name__)
def test_a_response_ends_at_its_deadline(way):
    with HostileServer(lambda sock, head: way(server, sock, head)) as server:
        began = time.monotonic()
        with pytest.raises(ix.errors.ServerError):
            client.send_interruptible_request("GET", server.url + "/info", ONCE)
        # At most five times the timeout, and only while many bytes arrive.
        assert time.monotonic() - began < (8 if way.__name__.startswith("fast") else 4)
        assert len(server.requests) == 1 or way is redirects


@pytest.mark.slow
def test_a_slow_answer_is_not_retried():
    with HostileServer(lambda sock, head: slow_body(server, sock, head)) as server:
        with pytest.raises(ix.errors.ServerError, match="not complete within 1 s"):
            client.send_interruptible_request("GET", server.url, ix.Connection(timeout=1, retries=5, backoff=0))
        assert len(server.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.0, 0.1])
def test_a_handshake_ends_at_its_deadline(step):
    def greet(sock: socket.socket) -> None:
        # The header of a TLS record of 16 kB, whose content follows byte by byte.
        for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 1000:
            if stop.wait(step or 60):
                return
            sock.sendall(bytes([byte]))

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            sock, _ = listening.accept()
            with sock:
                greet(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(ix.errors.ServerError, match="no answer within the timeout"):
            client.send_interruptible_request("GET", f"https://127.0.0.1:{listening.getsockname()[1]}/", ONCE)
        assert time.monotonic() - began < 4
        stop.set()


@pytest.mark.slow
def test_slow_name_resolution_times_out(monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: stop.wait(60))
    began = time.monotonic()
    with pytest.raises(ix.errors.ServerError, match="no answer within the timeout"):
        client.send_interruptible_request("GET", "http://slow.example/", ONCE)
    assert time.monotonic() - began < 4
    stop.set()


@pytest.mark.parametrize("way", [silence, slow_body, slow_headers], ids=lambda way: way.__name__)
def test_a_request_ends_when_its_stop_event_is_set(way):
    stop, patient = threading.Event(), ix.Connection(timeout=60, retries=0)
    problems: list[BaseException] = []

    def work():
        try:
            client.send_request("GET", server.url, patient, stop=stop)
        except BaseException as error:
            problems.append(error)

    with HostileServer(lambda sock, head: way(server, sock, head)) as server:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
    assert [type(problem) for problem in problems] == [StoppedError]


@pytest.mark.slow
def test_a_large_body_may_take_longer_than_the_timeout():
    def answer(sock, head):
        sock.sendall(OK + b"Content-Length: 600000\r\n\r\n")
        for _ in range(6):
            sock.sendall(b"x" * 100_000)
            server.stopped.wait(0.15)
        return True

    with HostileServer(answer) as server:
        assert len(client.send_interruptible_request("GET", server.url, ONCE).body) == 600_000
