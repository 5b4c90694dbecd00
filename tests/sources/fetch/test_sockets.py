"""Connections to hosts with several addresses, and in forked children."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress

import pytest

from imageryxr.sources.fetch import ip_filter, sockets
from imageryxr.sources.fetch.sockets import RequestLimits, connect, run
from tests.support.source_suite import dead_url

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has the addresses 127.0.0.2 to 127.0.0.4 without configuration"
)


@contextmanager
def silent_port():
    """Yield a port of 127.0.0.2 and 127.0.0.3 whose connections are never accepted."""
    with ExitStack() as opened:
        port = 0
        for host in ("127.0.0.2", "127.0.0.3"):
            unresponsive = opened.enter_context(socket.socket())
            unresponsive.bind((host, port))
            unresponsive.listen(0)
            port = unresponsive.getsockname()[1]
            for _ in range(3):  # fill the queue of the socket
                one = opened.enter_context(socket.socket())
                one.setblocking(False)
                with suppress(BlockingIOError):
                    one.connect((host, port))
        yield port


def resolve_to(monkeypatch, *addresses):
    found = [ip_filter.Candidate(socket.AF_INET, address) for address in addresses]
    monkeypatch.setattr(ip_filter, "resolve", lambda host, port: list(found))


@needs_linux
def test_an_address_that_does_not_answer_does_not_delay_the_others(monkeypatch):
    monkeypatch.setattr(sockets, "ADDRESS_SECONDS", 0.01)
    with silent_port() as port, socket.create_server(("127.0.0.4", port)):
        dead = int(dead_url().rpartition(":")[2])
        places = [("127.0.0.2", port), ("127.0.0.1", dead), ("127.0.0.3", port), ("127.0.0.4", port)]
        resolve_to(monkeypatch, *places)
        limits = RequestLimits(20, threading.Event())
        before = len(os.listdir("/proc/self/fd"))
        with run(connect("four.example", port, limits, local=True)) as sock:
            assert sock.getpeername() == ("127.0.0.4", port)
        assert len(os.listdir("/proc/self/fd")) == before


@needs_linux
def test_a_host_without_an_address_that_answers_times_out(monkeypatch):
    monkeypatch.setattr(sockets, "ADDRESS_SECONDS", 0.01)
    with silent_port() as port:
        resolve_to(monkeypatch, ("127.0.0.2", port), ("127.0.0.3", port))
        with pytest.raises(TimeoutError):
            run(connect("silent.example", port, RequestLimits(0.2, threading.Event()), local=True))


def test_a_host_whose_addresses_all_refuse_is_an_error_at_once(monkeypatch):
    port = int(dead_url().rpartition(":")[2])
    resolve_to(monkeypatch, *[("127.0.0.1", port)] * 20)
    with pytest.raises(ConnectionRefusedError):
        run(connect("refused.example", port, RequestLimits(20, threading.Event()), local=True))


def test_ipv6_and_ipv4_addresses_are_tried_alternately():
    six, four = ([ip_filter.Candidate(family, (i,)) for i in range(3)] for family in (socket.AF_INET6, socket.AF_INET))
    turns = sockets._alternate_families(six + four[:1])
    assert turns == [six[0], four[0], six[1], six[2]]
    assert sockets._alternate_families(four + six) == [one for pair in zip(four, six, strict=True) for one in pair]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_closes_the_connections_of_its_parent():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        sock = run(connect("127.0.0.1", port, RequestLimits(20, threading.Event()), local=True))
        far, _ = listening.accept()
        far.settimeout(20)
        ended, end = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(end)
            os.read(ended, 1)
            os._exit(0)
        sock.sendall(b"the connection of the parent is open")
        assert far.recv(100)
        sock.close()
        assert far.recv(100) == b""  # the child does not keep the connection open
        far.close()
        os.close(end)
        os.waitpid(pid, 0)
        os.close(ended)
