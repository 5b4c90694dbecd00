"""Reuse of connections."""

from __future__ import annotations

import errno
import socket

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import attempt, client, sockets
from tests.support.hostile import HostileServer, reply

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
