"""Sockets with a deadline and a byte limit that connect only to checked addresses.

Python's own timeout restarts with every received byte, so a server that sends single bytes could block a request
forever. Here every system call waits for a short time only. The remaining time and the stop event are checked before
each call, and the number of received bytes after it, also during a TLS handshake.

Functions that wait are generators (`Steps`). `run` does their steps in the calling thread; `lanes` does those of many
requests in one thread.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from imageryxr.core.fork import run_after_fork
from imageryxr.errors import ServerError
from imageryxr.sources.fetch import ip_filter

Result = TypeVar("Result")

# Interval at which a waiting thread checks its stop event.
POLL_SECONDS = 0.2
# Interval at which a thread that runs many requests checks those that wait for something other than a socket.
SHORT_SECONDS = 0.004
# Longest duration of a response as a multiple of the timeout, and the bytes per second that extend the timeout.
PATIENCE, RATE = 5, 16_384
# Time after which the next address of a host is tried, and the largest number of addresses that are tried at once.
ADDRESS_SECONDS, _MOST_RACING = 0.25, 6
NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, getattr(errno, "WSAEWOULDBLOCK", -1))

closing = threading.Event()
"""Set when Python exits; it stops all requests."""


class StoppedError(ServerError):
    """The request was stopped."""


class FloodError(ServerError):
    """The server sent more bytes than the limit of the response; the request is not retried."""


class SlowError(TimeoutError):
    """A response that was still arriving at its deadline; it is not retried, because a retry would be as slow."""


class ProtocolError(OSError):
    """A response that is not valid HTTP, or was truncated."""


@dataclass(slots=True)
class RequestLimits:
    """The limits of one request: seconds, bytes, and the stop event."""

    timeout: float
    stop: threading.Event
    budget: int = 0
    """Largest number of bytes to receive."""
    start: float = field(default_factory=time.monotonic)
    received: int = 0
    last: float = 0.0
    """Time at which the last bytes were received."""

    def wait_seconds(self) -> float:
        """Return the number of seconds that the next system call may wait."""
        if self.stop.is_set() or closing.is_set():
            raise StoppedError("stopped")
        now = time.monotonic()
        allowed = min(PATIENCE * self.timeout, self.timeout + self.received / RATE)
        if now - self.start < allowed:
            return max(1e-3, min(POLL_SECONDS, self.start + allowed - now))
        if self.received and now - self.last < self.timeout / 2:
            raise SlowError(f"its answer was not complete within {allowed:.3g} s: {self.received:,} bytes arrived")
        raise TimeoutError("no answer within the timeout")

    def count_received(self, count: int) -> None:
        """Count received bytes, and raise above the limit."""
        self.received += count
        self.last = time.monotonic()
        if self.received > self.budget:
            raise FloodError(f"its answer exceeds the limit of {self.budget:,} bytes")


class Wait(NamedTuple):
    """The condition that a request waits for: a socket, or anything else that is checked again after some seconds."""

    seconds: float
    """Longest wait, after which the steps go on."""
    sock: Any = None
    is_write: bool = False
    """Whether the socket must be ready for writing instead of reading."""
    block: Callable[[float], object] = time.sleep
    """Function that waits for at most that number of seconds if there is no socket."""
    is_queue: bool = False
    """Whether the request waits for others to end, so that it is useless to start further requests."""


Steps = Generator[Wait, None, Result]
"""A function that yields whenever it waits, so that one thread can do the steps of many requests."""


def run(steps: Steps[Result]) -> Result:
    """Do all steps in this thread, and return their result."""
    try:
        while True:
            wait = next(steps)
            if wait.sock is None:
                wait.block(wait.seconds)
            else:
                wait_until_ready(wait.sock, wait.seconds, is_write=wait.is_write)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()  # if it was interrupted


class LimitedSocket:
    """A non-blocking socket, whose steps raise at the deadline of its limits."""

    limits: RequestLimits
    _is_idle = True
    """Whether nothing was received since the last request was sent. Then trying `recv` at once would be useless."""

    def recv_steps(self: Any, size: int) -> Steps[bytes]:
        """Return received bytes; empty at the end of the connection."""
        seconds = self.limits.wait_seconds()
        if self._is_idle:
            self._is_idle = False
            yield Wait(seconds, self)
        while True:
            try:
                found: bytes = super().recv(size)  # type: ignore[misc]
            except NOT_READY as error:
                yield self.wait_for(error)
            else:
                self.limits.count_received(len(found))
                return found

    def send_steps(self: Any, data: bytes) -> Steps[None]:
        """Send all bytes."""
        view = memoryview(data).cast("B")
        self._is_idle = True
        while view:
            self.limits.wait_seconds()
            try:
                view = view[super().send(view) :]  # type: ignore[misc]
            except NOT_READY as error:
                yield self.wait_for(error, is_write=True)

    def wait_for(self: Any, error: Exception, *, is_write: bool = False) -> Wait:
        """Return the `Wait` after a system call that would have blocked: until the socket can be read, or written."""
        # TLS may have to send before it can receive, and the reverse.
        if isinstance(error, ssl.SSLError):
            is_write = isinstance(error, ssl.SSLWantWriteError)
        return Wait(self.limits.wait_seconds(), self, is_write)


class _Socket(LimitedSocket, socket.socket):
    pass


open_sockets: WeakSet[Any] = WeakSet()
"""The connections of this process."""


@run_after_fork
def _close_after_fork() -> None:
    # The sockets belong to the parent. While the child has a socket open, the server does not notice that the parent
    # has closed it.
    for sock in list(open_sockets):
        sock.close()


def connect(host: str, port: int, limits: RequestLimits, *, local: bool) -> Steps[Any]:
    """Return a socket connected to a host; unless local addresses are allowed, its addresses are checked first.

    If an address does not answer at once, the next one is tried in parallel, of the other family if there is one (RFC
    8305): some networks discard packets to IPv6 addresses.
    """
    found = yield from resolve(host, port, limits)
    if not local:
        ip_filter.check_candidates(host, found)
    waiting, racing = _alternate_families(found), list[_Socket]()
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    due = 0.0
    try:
        while waiting or racing:
            seconds = limits.wait_seconds()
            if waiting and (not racing or time.monotonic() >= due) and len(racing) < _MOST_RACING:
                due = time.monotonic() + ADDRESS_SECONDS
                try:
                    racing.append(_begin_connection(waiting.pop(0), limits))
                except OSError as error:
                    problem = error
                    continue
            if len(racing) == 1:
                until_next = max(1e-3, due - time.monotonic()) if waiting else seconds
                yield Wait(min(seconds, until_next), racing[0], is_write=True)
            else:
                yield Wait(SHORT_SECONDS)
            for sock in [sock for sock in racing if wait_until_ready(sock, 0, is_write=True)]:
                racing.remove(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return sock
                sock.close()
                problem, due = OSError(code, os.strerror(code)), 0.0
    finally:
        for sock in racing:
            sock.close()
    raise problem


def _alternate_families(found: list[ip_filter.Candidate]) -> list[ip_filter.Candidate]:
    """Return addresses in an order in which IPv6 and IPv4 alternate."""
    groups = [[one for one in found if (one.family == found[0].family) == same] for same in (True, False)]
    return [one for pair in zip_longest(*groups) for one in pair if one is not None]


def _begin_connection(candidate: ip_filter.Candidate, limits: RequestLimits) -> _Socket:
    sock = _Socket(candidate.family, socket.SOCK_STREAM)
    sock.limits = limits
    open_sockets.add(sock)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        code = sock.connect_ex(candidate.address)
        if code and code not in _IN_PROGRESS:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


class _Lookups:
    """The names that are being resolved; connections to the same host wait for one lookup."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[tuple[str, int], Future[list[ip_filter.Candidate]]] = {}


_lookups = _Lookups()


@run_after_fork
def _reset_after_fork() -> None:
    global _lookups
    _lookups = _Lookups()  # the threads that resolve names do not exist in the child


def resolve(host: str, port: int, limits: RequestLimits) -> Steps[list[ip_filter.Candidate]]:
    """Return the addresses of a host within the limits of a request."""
    if ip_filter.is_numeric(host):
        return ip_filter.resolve(host, port)
    lookups = _lookups
    with lookups.lock:
        found = lookups.running.get((host, port))
        if found is None:
            found = lookups.running[host, port] = Future()
            # The system's resolver has no deadline, and the owner of a domain can delay it.
            work, name = partial(_look_up, lookups, found, host, port), "imageryxr-resolve"
            try:
                threading.Thread(target=work, daemon=True, name=name).start()
            except BaseException:  # such as no further threads; a later connection must look the name up again
                del lookups.running[host, port]
                raise
    while not found.done():
        limits.wait_seconds()
        yield Wait(SHORT_SECONDS, block=lambda _: wait([found], POLL_SECONDS))
    return found.result()


def _look_up(lookups: _Lookups, found: Future[list[ip_filter.Candidate]], host: str, port: int) -> None:
    outcome: Future[list[ip_filter.Candidate]] = Future()
    try:
        outcome.set_result(ip_filter.resolve(host, port))
    except BaseException as error:
        outcome.set_exception(error)
    # Results are not kept: a later connection must not use an address that is out of date.
    with lookups.lock:
        del lookups.running[host, port]
    problem = outcome.exception()
    if problem is not None:
        found.set_exception(problem)
    else:
        found.set_result(outcome.result())


def is_idle(sock: Any) -> bool:
    """Return whether an idle connection is open and has no unread bytes."""
    if sock is None or sock.fileno() < 0:
        return False
    # TLS decrypts whole records, so unread bytes may no longer be in the socket.
    if hasattr(sock, "pending") and sock.pending():
        return False
    return not wait_until_ready(sock, 0)


def wait_until_ready(sock: Any, seconds: float, *, is_write: bool = False) -> bool:
    """Wait at most some seconds until a socket can be read, or with `is_write` written; return whether it can."""
    if hasattr(select, "poll"):  # a selector makes four system calls instead of one
        waiting = select.poll()
        waiting.register(sock.fileno(), select.POLLOUT if is_write else select.POLLIN)  # and errors
        return bool(waiting.poll(seconds * 1000))
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE if is_write else selectors.EVENT_READ)
        return bool(selector.select(seconds))
