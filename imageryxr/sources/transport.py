"""One exchange with a web server: sockets that keep a deadline, checked addresses, and a limit of what is received.

Python's own HTTP client parses the messages; it logs nothing. Its time limit counts from the last byte, so a server
that sends a byte now and then would hold it for ever. Here each system call waits for a moment only. Then the remaining
time, the stop event and the number of received bytes are checked, within a TLS handshake as well.
"""

from __future__ import annotations

import base64
import errno
import http.client
import os
import queue
import re
import selectors
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from imageryxr.errors import ServerError
from imageryxr.sources import guard
from imageryxr.sources.compression import TooLargeError
from imageryxr.sources.weburl import WebURL, parse_web_url

Result = TypeVar("Result")

# How often a waiting thread looks whether it should still wait.
GLANCE = 0.2
_PIECE = 1 << 20
# An answer may take this many times the timeout, and a body must come at this rate to have more than one.
PATIENCE, RATE = 5, 16_384
# Headers, sizes of chunks and trailers, beside the body.
_OVERHEAD = 1 << 20
_IDLE, _SERVERS = 64, 64
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, getattr(errno, "WSAEWOULDBLOCK", -1))

closing = threading.Event()
"""Set when Python ends: no exchange waits any longer."""


class StoppedError(ServerError):
    """The caller has gone."""


class FloodError(ServerError):
    """More bytes than an answer may have; no ValueError, which the HTTP client takes for a broken chunk."""


class SlowError(TimeoutError):
    """An answer that kept coming, and was not complete in its time: another request would be as slow."""


class ProtocolError(OSError):
    """An answer that is not HTTP, or was cut short."""


@dataclass(slots=True)
class Watch:
    """The limits of one exchange: seconds, bytes, and the event that ends it."""

    timeout: float
    stop: threading.Event
    budget: int = 0
    """Bytes that may come."""
    start: float = field(default_factory=time.monotonic)
    received: int = 0
    last: float = 0.0
    """When the last bytes came."""

    def moment(self) -> float:
        """Return for how many seconds the next system call may wait."""
        if self.stop.is_set() or closing.is_set():
            raise StoppedError("stopped")
        now = time.monotonic()
        allowed = min(PATIENCE * self.timeout, self.timeout + self.received / RATE)
        if now - self.start < allowed:
            return max(1e-3, min(GLANCE, self.start + allowed - now))
        if self.received and now - self.last < self.timeout / 2:
            raise SlowError(f"its answer was not complete within {allowed:.3g} s: {self.received:,} bytes came")
        raise TimeoutError("no answer within the timeout")

    def note(self, count: int) -> None:
        """Count bytes that came."""
        self.received += count
        self.last = time.monotonic()
        if self.received > self.budget:
            raise FloodError(f"it sends more than the {self.budget:,} bytes that its answer may have")


class _Watched:
    """A socket whose calls end at the deadline of its watch."""

    watch: Watch

    def _patiently(self: Any, call: Callable[[], Result]) -> Result:
        while True:
            self.settimeout(self.watch.moment())
            try:
                return call()
            except TimeoutError:
                continue  # the moment is over; `moment` raises if all of the time is

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        count: int = self._patiently(partial(super().recv_into, buffer, nbytes, flags))  # type: ignore[misc]
        self.watch.note(count)
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        found: bytes = self._patiently(partial(super().recv, size, flags))  # type: ignore[misc]
        self.watch.note(len(found))
        return found

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self._patiently(partial(super().send, view, flags)) :]  # type: ignore[misc]


class _Socket(_Watched, socket.socket):
    def dial(self, address: tuple[Any, ...]) -> None:
        self.setblocking(False)
        code = self.connect_ex(address)
        with selectors.DefaultSelector() as waiting:
            waiting.register(self, selectors.EVENT_WRITE)
            while code in _IN_PROGRESS:
                if waiting.select(self.watch.moment()):
                    code = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))


class _TLSSocket(_Watched, ssl.SSLSocket):  # type: ignore[misc]
    def do_handshake(self, block: bool = False) -> None:
        self._patiently(super().do_handshake)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


@dataclass(slots=True)
class _Line:
    """A connection that may be used again."""

    client: http.client.HTTPConnection
    prefix: str = ""
    """What stands before the path: a proxy for plain http takes whole URLs."""
    headers: dict[str, str] = field(default_factory=dict)


class Lines:
    """The connections of a process. Those of different policies are never shared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[object, list[_Line]] = OrderedDict()

    def take(self, key: object) -> _Line | None:
        """Return an idle connection that its server has not closed."""
        while True:
            with self._lock:
                waiting = self._idle.get(key)
                line = waiting.pop() if waiting else None
            if line is None or _is_quiet(line.client.sock):
                return line
            line.client.close()

    def put(self, key: object, line: _Line) -> None:
        """Keep a connection for the next request."""
        dropped = []
        with self._lock:
            self._idle.setdefault(key, []).append(line)
            self._idle.move_to_end(key)
            dropped += self._idle[key][:-_IDLE]
            del self._idle[key][:-_IDLE]
            while len(self._idle) > _SERVERS:
                dropped += self._idle.popitem(last=False)[1]
        for old in dropped:
            old.client.close()

    def close(self) -> None:
        """Close all idle connections; without a lock, which a thread may hold that a forked child does not have."""
        for line in [line for waiting in self._idle.values() for line in waiting]:
            line.client.close()
        self._idle.clear()


def exchange(
    lines: Lines,
    method: str,
    url: WebURL,
    headers: Mapping[str, str],
    body: bytes | None,
    watch: Watch,
    limit: Callable[[int, Mapping[str, str]], tuple[int, bool]],
    *,
    local: bool,
) -> Answer:
    """Make one request and return the answer, whatever its status.

    Parameters
    ----------
    lines : Lines
        Connections to use again.
    method, url, headers, body
        What to send.
    watch : Watch
        When to end.
    limit : callable
        Returns, for a status and headers, the bytes that the body may have, and whether a longer body is cut off
        without an error.
    local : bool
        Whether the connection may go to addresses that are not public.

    Raises
    ------
    ServerError
        If the connection may not be made, or the caller stopped.
    OSError, http.client.HTTPException, TooLargeError
        If there was no sensible answer within the watch.
    """
    proxy = _proxy_of(url)
    key = (url.origin, proxy, local)
    watch.budget = watch.received + _OVERHEAD
    line = lines.take(key) or _open_line(url, proxy, watch, local=local)
    _rewatch(line.client.sock, watch)
    try:
        sent = {"Host": url.netloc, "User-Agent": "imageryxr", **line.headers, **headers}
        line.client.request(method, line.prefix + _target(url), body, sent)
        response = line.client.getresponse()
        answer, is_complete = _read(response, watch, limit)
    except BaseException:
        line.client.close()
        raise
    if is_complete and line.client.sock is not None:
        lines.put(key, line)
    else:
        response.close()
        line.client.close()  # what is left of the answer must not be taken for the next one
    return answer


def _read(
    response: http.client.HTTPResponse, watch: Watch, limit: Callable[[int, Mapping[str, str]], tuple[int, bool]]
) -> tuple[Answer, bool]:
    status, found = response.status, {k.lower(): v for k, v in _merged(response.headers).items()}
    _check_framing(status, response.headers)
    most, is_cut = limit(status, found)
    if not is_cut and response.length is not None and response.length > most:
        raise TooLargeError(f"its body has {response.length:,} bytes, and what was requested at most {most:,}")
    # The sizes of chunks come on top of the body.
    watch.budget = watch.received + 2 * most + _OVERHEAD
    pieces, size = [], 0
    while size <= most and (piece := response.read(min(_PIECE, most + 1 - size))):
        pieces.append(piece)
        size += len(piece)
    whole = b"".join(pieces)
    if size > most:
        if not is_cut:
            raise TooLargeError(f"its body has more than {most:,} bytes, the most that what was requested can have")
        return Answer(status, found, whole[:most]), False
    if response.length:
        raise ProtocolError(f"its body was cut short: {response.length:,} bytes are missing")
    return Answer(status, found, whole), response.isclosed() and not response.will_close


def _check_framing(status: int, headers: http.client.HTTPMessage) -> None:
    if 100 <= status < 200:
        raise ProtocolError(f"it answered HTTP {status}, which is none of the answers to a request")
    encodings = headers.get_all("transfer-encoding", [])
    if [e.strip().lower() for e in encodings] not in ([], ["chunked"]):
        raise ProtocolError("its transfer encoding is not known")
    lengths = {length.strip() for length in headers.get_all("content-length", [])}
    if not encodings and (len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths)):
        raise ProtocolError("its Content-Length makes no sense")


def _merged(headers: http.client.HTTPMessage) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else str(value)
    return found


def _target(url: WebURL) -> str:
    """Return the path and query as they are sent: percent-encoded where needed, and without ``..``."""
    from urllib3.util import parse_url

    path = url.path if url.path.startswith("/") else f"/{url.path}"
    return parse_url(f"{url.scheme}://{url.netloc}{path}").request_uri


# ---------------------------------------------------------------------------------------------------------
# new connections


def _open_line(url: WebURL, proxy: str, watch: Watch, *, local: bool) -> _Line:
    line = _Line(http.client.HTTPConnection("server"))
    line.client.auto_open = 0
    if not proxy:
        sock = _connected(url.host, url.port, watch, local=local)
        line.client.sock = _secured(sock, url.host, watch) if url.scheme == "https" else sock
        return line
    if not local:
        _check_behind_proxy(url, watch)
    to = parse_web_url(proxy if "://" in proxy else f"http://{proxy}")
    secret = {}
    if to.userinfo:
        secret["Proxy-Authorization"] = "Basic " + base64.b64encode(unquote(to.userinfo).encode()).decode()
    # The user's own proxy is where the user's network ends: its address may be a local one.
    between: Any = _connected(to.host, to.port, watch, local=True)
    if to.scheme == "https":
        between = _secured(between, to.host, watch)
    if url.scheme == "https":
        _tunnel(between, url, secret)
        between = _secured(between, url.host, watch)
    else:
        line.prefix, line.headers = f"http://{url.netloc}", secret
    line.client.sock = between
    return line


def _check_behind_proxy(url: WebURL, watch: Watch) -> None:
    # The proxy resolves the name. What this machine makes of it is checked, if it makes anything of it.
    guard.check_name(url.host)
    try:
        found = _resolved(url.host, url.port, watch)
    except OSError:
        return
    guard.check_candidates(url.host, found)


def _proxy_of(url: WebURL) -> str:
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get(url.scheme, "")
    return "" if not proxy or proxy_bypass(url.host) else proxy


def _connected(host: str, port: int, watch: Watch, *, local: bool) -> _Socket:
    found = _resolved(host, port, watch)
    if not local:
        guard.check_candidates(host, found)
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for candidate in found:
        sock = _Socket(candidate.family, socket.SOCK_STREAM)
        sock.watch = watch
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.dial(candidate.address)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            problem = error
        else:
            return sock
    raise problem


def _resolved(host: str, port: int, watch: Watch) -> list[guard.Candidate]:
    # The system's resolver has no deadline, and whoever owns a name may make it wait.
    done: queue.SimpleQueue[list[guard.Candidate] | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(guard.resolve(host, port))
        except BaseException as error:
            done.put(error)

    threading.Thread(target=work, daemon=True, name="imageryxr-resolve").start()
    while True:
        try:
            found = done.get(timeout=watch.moment())
        except queue.Empty:
            continue
        if isinstance(found, BaseException):
            raise found
        return found


def _secured(sock: Any, host: str, watch: Watch) -> Any:
    context = _tls_context(_certificates())
    try:
        if isinstance(sock, ssl.SSLSocket):
            from urllib3.util.ssltransport import SSLTransport

            return SSLTransport(sock, context, server_hostname=host)
        found: Any = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        sock = found
        found.watch = watch
        found.do_handshake()
    except BaseException:
        sock.close()
        raise
    return found


def _tunnel(sock: Any, url: WebURL, secret: dict[str, str]) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    place = f"{host}:{url.port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}", *(f"{name}: {value}" for name, value in secret.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    answer = http.client.HTTPResponse(sock, method="CONNECT")
    answer.begin()
    if answer.status // 100 != 2:
        sock.close()
        raise ProtocolError(f"the proxy refused to connect to it (HTTP {answer.status})")


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


def _rewatch(sock: Any, watch: Watch) -> None:
    while sock is not None:  # TLS within the TLS of a proxy wraps one socket in another
        sock.watch = watch
        sock = getattr(sock, "socket", None)


def _is_quiet(sock: Any) -> bool:
    """Return whether nothing came on an idle connection: neither its end nor bytes that belong to no request."""
    if sock is None or sock.fileno() < 0:
        return False
    with selectors.DefaultSelector() as waiting:
        waiting.register(sock, selectors.EVENT_READ)
        return not waiting.select(0)
