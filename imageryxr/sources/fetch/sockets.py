"""Sockets with a deadline and a byte limit that connect only to checked addresses.

Python's own timeout restarts with every received byte, so a server that sends single bytes could block a request
forever. Here no system call waits longer than a short time. Before each, the remaining time and the stop event are
checked, and after it the number of received bytes, also during a TLS handshake.

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
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from imageryxr.core.fork import run_after_fork
from imageryxr.core.lazy_import import import_package
from imageryxr.errors import ServerError
from imageryxr.sources.fetch import ip_filter

Result = TypeVar("Result")

# Interval at which a waiting thread checks its stop event.
POLL_SECONDS = 0.2
# Interval at which a thread that does the steps of many requests looks at what is not a socket.
SHORT_SECONDS = 0.004
# Longest duration of a response as a multiple of the timeout, and the bytes per second that extend the timeout.
PATIENCE, RATE = 5, 16_384
_NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, getattr(errno, "WSAEWOULDBLOCK", -1))

closing = threading.Event()
"""Set when Python exits; it stops all requests."""


class StoppedError(ServerError):
    """The request was stopped."""


class FloodError(ServerError):
    """More bytes than the limit of a response; not a ValueError, which the HTTP client treats as a damaged chunk."""


class SlowError(TimeoutError):
    """A response that was still arriving at its deadline: a retry would be as slow."""


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

    def note(self, count: int) -> None:
        """Count received bytes."""
        self.received += count
        self.last = time.monotonic()
        if self.received > self.budget:
            raise FloodError(f"its answer exceeds the limit of {self.budget:,} bytes")


class Wait(NamedTuple):
    """What the steps of a request wait for: a socket, or something else that is looked at again after some seconds."""

    seconds: float
    """Time after which the steps go on, whatever happened."""
    sock: Any = None
    is_write: bool = False
    """Whether the socket must be ready for writing instead of reading."""
    block: Callable[[float], object] = time.sleep
    """Function that waits for at most a number of seconds if there is no socket."""
    is_queue: bool = False
    """Whether other requests have to end first, so that further requests would wait as well."""


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


class _LimitedSocket:
    """A socket that does not block, whose steps end at the deadline of its limits."""

    limits: RequestLimits
    _is_idle = True
    """Whether nothing was received since the last request was sent: then the first call would not succeed."""

    def recv_steps(self: Any, size: int) -> Steps[bytes]:
        seconds = self.limits.wait_seconds()
        if self._is_idle:
            self._is_idle = False
            yield Wait(seconds, self)
        while True:
            try:
                found: bytes = super().recv(size)  # type: ignore[misc]
            except _NOT_READY as error:
                yield self._wait(error)
            else:
                self.limits.note(len(found))
                return found

    def send_steps(self: Any, data: bytes) -> Steps[None]:
        view = memoryview(data).cast("B")
        self._is_idle = True
        while view:
            self.limits.wait_seconds()
            try:
                view = view[super().send(view) :]  # type: ignore[misc]
            except _NOT_READY as error:
                yield self._wait(error, is_write=True)

    def _wait(self: Any, error: Exception, *, is_write: bool = False) -> Wait:
        # TLS may have to send before it can receive, and the reverse.
        if isinstance(error, ssl.SSLError):
            is_write = isinstance(error, ssl.SSLWantWriteError)
        return Wait(self.limits.wait_seconds(), self, is_write)

    # TLS through a TLS proxy calls these.
    def recv(self: Any, size: int, flags: int = 0) -> bytes:
        found: bytes = run(self.recv_steps(size))
        return found

    def sendall(self: Any, data: Any, flags: int = 0) -> None:
        run(self.send_steps(data))


class _Socket(_LimitedSocket, socket.socket):
    def connect_within_limits(self, address: tuple[Any, ...]) -> Steps[None]:
        self.setblocking(False)
        code = self.connect_ex(address)
        while code in _IN_PROGRESS:
            yield Wait(self.limits.wait_seconds(), self, is_write=True)
            if wait_until_ready(self, 0, is_write=True):
                code = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))


class _TLSSocket(_LimitedSocket, ssl.SSLSocket):  # type: ignore[misc]
    def handshake(self) -> Steps[None]:
        while True:
            try:
                self.do_handshake()
            except _NOT_READY as error:
                yield self._wait(error)
            else:
                return


def receive(sock: Any, size: int) -> Steps[bytes]:
    """Return received bytes; empty at the end of the connection."""
    found: bytes = (yield from sock.recv_steps(size)) if isinstance(sock, _LimitedSocket) else sock.recv(size)
    return found


def send(sock: Any, data: bytes) -> Steps[None]:
    """Send all bytes."""
    if isinstance(sock, _LimitedSocket):
        yield from sock.send_steps(data)
    else:
        sock.sendall(data)


def connect(host: str, port: int, limits: RequestLimits, *, local: bool) -> Steps[Any]:
    """Return a socket connected to a host; unless local addresses are allowed, its addresses are checked first."""
    found = yield from resolve(host, port, limits)
    if not local:
        ip_filter.check_candidates(host, found)
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for candidate in found:
        sock = _Socket(candidate.family, socket.SOCK_STREAM)
        sock.limits = limits
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield from sock.connect_within_limits(candidate.address)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            problem = error
        else:
            return sock
    raise problem


class _Lookups:
    """The names that are being resolved; all connections that need a name wait for one lookup."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[tuple[str, int], Future[list[ip_filter.Candidate]]] = {}


_lookups = _Lookups()


@run_after_fork
def _reset_after_fork() -> None:
    global _lookups
    _lookups = _Lookups()  # the child does not have the threads that look up


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
            except BaseException:  # such as no further threads: a later connection looks the name up again
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
    # A later connection resolves the name again, so that it never uses an address that is out of date.
    with lookups.lock:
        del lookups.running[host, port]
    problem = outcome.exception()
    if problem is not None:
        found.set_exception(problem)
    else:
        found.set_result(outcome.result())


def secure(sock: Any, host: str, limits: RequestLimits) -> Steps[Any]:
    """Return a TLS socket over a connected socket, after verifying the certificate of the host."""
    context = _tls_context(_certificates())
    try:
        if isinstance(sock, ssl.SSLSocket):
            import_package("urllib3")
            from urllib3.util.ssltransport import SSLTransport

            return SSLTransport(sock, context, server_hostname=host)
        found: Any = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        sock = found
        found.limits = limits
        yield from found.handshake()
    except BaseException:
        sock.close()
        raise
    return found


@lru_cache(maxsize=4)
def _tls_context(certificates: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates)
    context.sslsocket_class = _TLSSocket
    context.set_alpn_protocols(["http/1.1"])
    return context


def _certificates() -> str:
    import certifi

    named = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return next((path for path in named if path and os.path.isfile(path)), certifi.where())


def set_limits(sock: Any, limits: RequestLimits) -> None:
    """Set the limits of the next request on a reused connection."""
    while sock is not None:  # TLS through a TLS proxy wraps one socket in another
        sock.limits = limits
        sock = getattr(sock, "socket", None)


def is_idle(sock: Any) -> bool:
    """Return whether an idle connection is open and has no unread bytes."""
    if sock is None or sock.fileno() < 0:
        return False
    # TLS decrypts whole records, whose rest is no longer in the socket.
    tls = getattr(sock, "sslobj", sock)
    if hasattr(tls, "pending") and tls.pending():
        return False
    return not wait_until_ready(sock, 0)


def wait_until_ready(sock: Any, seconds: float, *, is_write: bool = False) -> bool:
    """Wait for a number of seconds, and return whether a socket can be read, or written."""
    if hasattr(select, "poll"):  # a selector makes four system calls instead of one
        waiting = select.poll()
        waiting.register(sock.fileno(), select.POLLOUT if is_write else select.POLLIN)  # and errors
        return bool(waiting.poll(seconds * 1000))
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE if is_write else selectors.EVENT_READ)
        return bool(selector.select(seconds))
