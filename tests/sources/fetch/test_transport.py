"""Reuse of connections."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import attempt, client, engine, sockets
from imageryxr.sources.fetch.object_stores import WebFolder
from tests.support.hostile import HostileServer, reply
from tests.support.recorder import certificate, own_connections

ONCE = ix.Connection(timeout=10, retries=0)


def closing_server():
    """Return a server that answers the first request on each connection and closes the connection at the second."""

    def answer(sock, head):
        count[sock] = count.get(sock, 0) + 1
        return reply(sock, b"hello") if count[sock] < 2 else None

    count: dict[socket.socket, int] = {}
    return HostileServer(answer)


def test_a_reused_connection_that_the_server_closes_is_replaced():
    with closing_server() as server:
        for _ in range(3):
            assert client.send_request("GET", f"{server.url}/x", ONCE).body == b"hello"
        assert server.connections == 3


def test_a_post_request_on_a_closed_connection_is_not_sent_again():
    with closing_server() as server:
        assert client.send_request("POST", f"{server.url}/x", ONCE, body=b"").status == 200
        with pytest.raises(ix.errors.ServerError, match="without an answer"):
            client.send_request("POST", f"{server.url}/x", ONCE, body=b"")


def test_a_new_connection_that_is_closed_without_an_answer_is_an_error():
    with HostileServer(lambda sock, head: None) as server:
        with pytest.raises(ix.errors.ServerError, match="without an answer"):
            client.send_request("GET", f"{server.url}/x", ONCE)
        assert server.connections == 1


def test_idle_connections_are_closed_if_too_many_files_are_open(monkeypatch):
    with (
        HostileServer(lambda sock, head: reply(sock, b"a")) as one,
        HostileServer(lambda sock, head: reply(sock, b"b")) as two,
    ):
        client.send_request("GET", f"{one.url}/x", ONCE)
        begin = sockets._begin_connection

        def begin_if_none_is_idle(candidate, limits):
            if attempt._state.connections._idle:
                raise OSError(errno.EMFILE, "Too many open files")
            return begin(candidate, limits)

        monkeypatch.setattr(sockets, "_begin_connection", begin_if_none_is_idle)
        hasty = ix.Connection(timeout=10, retries=1, backoff=0)
        assert client.send_request("GET", f"{two.url}/x", hasty).body == b"b"


BODY = b"hello" * 20_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("keys"), "localhost", "target.localhost")


@pytest.fixture
def context(keys, monkeypatch):
    """Return the TLS context of a server, whose certificate this process trusts."""
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(keys[0]))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*keys)
    with own_connections(monkeypatch):
        yield made


class InnerServer:
    """The server end of TLS within another TLS connection."""

    def __init__(self, outer, context):
        self.outer, self.received, self.sent = outer, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.sent, server_side=True)

    def do(self, call, *arguments):
        while True:
            try:
                found, is_done = call(*arguments), True
            except ssl.SSLWantReadError:
                found, is_done = None, False
            self.outer.sendall(self.sent.read())
            if is_done:
                return found
            self.received.write(self.outer.recv(65536) or self.received.write_eof() or b"")

    def recv(self, size):
        return self.do(self.tls.read, size)

    def sendall(self, data):
        self.do(self.tls.write, data)


@contextmanager
def tls_server(context, *, stalls_at=None, is_proxy=False, ended=None):
    """Yield the port of a TLS server or proxy and its CONNECT requests; one handshake stalls until `ended` is set."""

    def serve(sock, number):
        if number == stalls_at and not is_proxy:
            ended.wait(20)
        with suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as secure:
            far = secure
            if is_proxy:
                connects.append(secure.recv(65536))
                secure.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                if number == stalls_at:
                    ended.wait(20)
                far = InnerServer(secure, context)
                far.do(far.tls.do_handshake)
            while far.recv(65536):
                far.sendall(ANSWER)

    def accept():
        with suppress(OSError):
            for number in range(1000):
                threading.Thread(target=serve, args=(listening.accept()[0], number), daemon=True).start()

    connects: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], connects
        listening.shutdown(socket.SHUT_RDWR)


def read_until_others_ended(url, ended):
    """Read 20 objects; the handshake of one of them stalls until the others have been read."""
    found = {}

    def use(request, body):
        found[request.key] = body
        if len(found) == 19:
            ended.set()

    connection = ix.Connection(timeout=15, retries=0, memory_cache=0, concurrency=4)
    requests = [engine.ObjectRequest(str(number), 1 << 20, 100) for number in range(20)]
    engine.read_objects(WebFolder(url, connection), requests, lambda _, stored: bytes(stored.body), use, connection)
    assert ended.is_set()
    assert list(found.values()) == [BODY] * 20


def test_a_handshake_that_stalls_does_not_delay_other_requests(context):
    ended = threading.Event()
    with tls_server(context, stalls_at=1, ended=ended) as (port, _):
        read_until_others_ended(f"https://localhost:{port}", ended)


@pytest.mark.parametrize("is_redirected", [False, True])
def test_a_handshake_that_stalls_behind_a_tls_proxy_does_not_delay_other_requests(context, monkeypatch, is_redirected):
    target, ended = "https://target.localhost:9", threading.Event()

    def redirect(sock, head):
        return reply(sock, status="302 Found", Location=target + head.split()[1])

    with (
        tls_server(context, stalls_at=1, is_proxy=True, ended=ended) as (port, connects),
        HostileServer(redirect) as plain,
    ):
        monkeypatch.setenv("https_proxy", f"https://localhost:{port}")
        monkeypatch.setenv("no_proxy", "")
        read_until_others_ended(plain.url if is_redirected else target, ended)
    assert all(head.startswith(b"CONNECT target.localhost:9 HTTP/1.1\r\n") for head in connects)


def test_a_connection_through_a_tls_proxy_is_reused_and_its_certificate_verified(context, monkeypatch):
    with tls_server(context, is_proxy=True) as (port, connects):
        monkeypatch.setenv("https_proxy", f"https://localhost:{port}")
        monkeypatch.setenv("no_proxy", "")
        hasty = ix.Connection(timeout=10, retries=0)
        for _ in range(3):
            assert client.send_interruptible_request("GET", "https://target.localhost:9/x", hasty).body == BODY
        assert len(connects) == 1
        with pytest.raises(ix.errors.ServerError, match="certificate verify failed"):
            client.send_interruptible_request("GET", "https://other.localhost:9/x", hasty)
