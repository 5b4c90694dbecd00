"""One HTTP request and its response, over a direct connection or through the user's proxy.

`http_response` reads the response.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from imageryxr.core.lazy_import import import_package
from imageryxr.sources.fetch import ip_filter
from imageryxr.sources.fetch.http_response import OVERHEAD, Answer, BodyLimit, read_response, read_status
from imageryxr.sources.fetch.sockets import (
    NOT_READY,
    LimitedSocket,
    ProtocolError,
    RequestLimits,
    Steps,
    connect,
    is_idle,
    open_sockets,
    resolve,
)
from imageryxr.sources.fetch.url import WebURL, is_local_host, parse_web_url

# Limits of idle connections: those to one server, the servers that have any, and those to all servers. Each connection
# is an open file, and some systems permit only 256 open files per process.
_IDLE, _SERVERS, _MOST_IDLE = 64, 64, 128
# Paths that need no encoding and have no "." or "..", such as those of most chunks.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.~-]*)+")


@dataclass(slots=True)
class _PooledConnection:
    """A connection that can be reused."""

    sock: Any
    prefix: str = ""
    """Text before the path of a request: a proxy for plain http requires whole URLs."""
    headers: str = ""
    """Lines of further headers of each request."""
    is_public: bool = False
    """Whether the server has a public address."""


class ConnectionPool:
    """The idle connections of a process. Requests with different policies never share a connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[object, list[_PooledConnection]] = OrderedDict()

    def take(self, key: object) -> _PooledConnection | None:
        """Return an idle connection that its server has not closed."""
        while True:
            with self._lock:
                waiting = self._idle.get(key)
                connection = waiting.pop() if waiting else None
            if connection is None or is_idle(connection.sock):
                return connection
            connection.sock.close()

    def put(self, key: object, connection: _PooledConnection) -> None:
        """Keep a connection for the next request."""
        dropped = []
        with self._lock:
            self._idle.setdefault(key, []).append(connection)
            self._idle.move_to_end(key)
            dropped += self._idle[key][:-_IDLE]
            del self._idle[key][:-_IDLE]
            while len(self._idle) > _SERVERS or sum(map(len, self._idle.values())) > _MOST_IDLE:
                dropped += self._idle.popitem(last=False)[1]
        for old in dropped:
            old.sock.close()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for connection in [connection for waiting in idle.values() for connection in waiting]:
            connection.sock.close()


def exchange(
    pool: ConnectionPool,
    method: str,
    url: WebURL,
    headers: Mapping[str, str],
    body: bytes | None,
    limits: RequestLimits,
    body_limit: BodyLimit,
    *,
    local: bool,
) -> Steps[Answer]:
    """Return the response to one request, of any status.

    `body_limit` is that of `read_response`. `local` is whether the connection may go to addresses that are not public.

    Raises
    ------
    ServerError
        If the address is not allowed, or the request was stopped.
    OSError, TooLargeError
        If there was no valid response within the limits.
    """
    proxy = proxy_of(url)
    key = (url.origin, proxy, local)
    limits.budget = limits.received + OVERHEAD
    while True:
        used, received = pool.take(key), limits.received
        try:
            connection = used or (yield from _open_connection(url, proxy, limits, local=local))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                pool.close()  # too many open files: a retry can open a connection in place of an idle one
            raise
        connection.sock.limits = limits
        try:
            yield from connection.sock.send_steps(_message(connection, method, url, headers, body))
            answer, is_reusable = yield from read_response(connection.sock, method, limits, body_limit)
            break
        except BaseException as error:
            connection.sock.close()
            # The server may have closed the idle connection just before the request (RFC 9112, 9.3.1).
            was_closed = isinstance(error, ConnectionError | ProtocolError | ssl.SSLError)
            if not (used and was_closed and method == "GET" and limits.received == received):
                raise
    if is_reusable:
        pool.put(key, connection)
    else:
        connection.sock.close()  # unread bytes of this response must not be read as the next response
    return answer._replace(is_public=connection.is_public)


def _message(
    connection: _PooledConnection, method: str, url: WebURL, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {connection.prefix}{_request_target(url)} HTTP/1.1", f"Host: {url.netloc}"]
    if "User-Agent" not in headers:
        lines.append("User-Agent: imageryxr")
    if "Accept-Encoding" not in headers:
        lines.append("Accept-Encoding: identity")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None or method != "GET":
        lines.append(f"Content-Length: {len(body or b'')}")
    text = "\r\n".join(lines)
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1:
        raise ValueError("a header contains a line break")
    return f"{text}\r\n{connection.headers}\r\n".encode("latin-1") + (body or b"")


def _request_target(url: WebURL) -> str:
    """Return the percent-encoded path and query for the request line, without ``..``."""
    if _PLAIN_PATH.fullmatch(url.path):
        return url.path
    import_package("urllib3")
    from urllib3.util import parse_url

    path = url.path if url.path.startswith("/") else f"/{url.path}"
    return parse_url(f"{url.scheme}://{url.netloc}{path}").request_uri


# ---------------------------------------------------------------------------------------------------------
# new connections


def _open_connection(url: WebURL, proxy: str, limits: RequestLimits, *, local: bool) -> Steps[_PooledConnection]:
    if not proxy:
        sock = yield from connect(url.host, url.port, limits, local=local)
        is_public = ip_filter.is_public(str(sock.getpeername()[0]))
        if url.scheme == "https":
            sock = yield from secure(sock, url.host, limits)
        return _PooledConnection(sock, is_public=is_public)
    if not local:
        yield from _check_behind_proxy(url, limits)
    to = parse_web_url(proxy if "://" in proxy else f"http://{proxy}")
    secret = ""
    if to.userinfo:
        secret = f"Proxy-Authorization: Basic {base64.b64encode(unquote(to.userinfo).encode()).decode()}\r\n"
    # The user configured the proxy, so its address may be local.
    between = yield from connect(to.host, to.port, limits, local=True)
    if to.scheme == "https":
        between = yield from secure(between, to.host, limits)
    # The proxy does not state the address of the server, so only the name of the server is known.
    is_public = not is_local_host(url.host)
    if url.scheme == "http":
        return _PooledConnection(between, f"http://{url.netloc}", secret, is_public)
    yield from _tunnel(between, url, secret)
    sock = yield from secure(between, url.host, limits)
    return _PooledConnection(sock, is_public=is_public)


def _check_behind_proxy(url: WebURL, limits: RequestLimits) -> Steps[None]:
    # The proxy resolves the name. The addresses are checked only if this machine can resolve the name.
    ip_filter.check_host_name(url.host)
    try:
        found = yield from resolve(url.host, url.port, limits)
    except OSError:
        return
    ip_filter.check_candidates(url.host, found)


_PROXY_SECONDS = 10


def proxy_of(url: WebURL) -> str:
    """Return the proxy for requests to a URL that the environment or the system names, or an empty string."""
    own, get = f"{url.scheme}_proxy", os.environ.get
    variables = [get(own), get(own.upper())]
    if any(variables):
        variables += [get("no_proxy"), get("NO_PROXY"), get("REQUEST_METHOD")]
    return _find_proxy(url.scheme, url.host, tuple(variables), int(time.monotonic() / _PROXY_SECONDS))


@lru_cache(maxsize=256)
def _find_proxy(scheme: str, host: str, variables: tuple[str | None, ...], moment: int) -> str:
    # Cached, because urllib reads the whole environment or the settings of the system, which takes longer than the
    # rest of a request. `moment` limits the age of a cached result.
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get(scheme, "")
    return "" if not proxy or proxy_bypass(host) else proxy


def _tunnel(sock: Any, url: WebURL, secret: str) -> Steps[None]:
    host = f"[{url.host}]" if ":" in url.host else url.host
    place = f"{host}:{url.port}"
    try:
        yield from sock.send_steps(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{secret}\r\n".encode("ascii"))
        status = yield from read_status(sock)
        if status // 100 != 2:
            raise ProtocolError(f"the proxy denied the connection (HTTP {status})")
    except BaseException:
        sock.close()
        raise


_PIECE = 1 << 16


class _TLSSocket(LimitedSocket, ssl.SSLSocket):
    def handshake(self) -> Steps[None]:
        while True:
            try:
                self.do_handshake()
            except NOT_READY as error:
                yield self.wait_for(error)
            else:
                return


class _InnerTLS:
    """TLS inside the TLS connection to a proxy."""

    def __init__(self, sock: _TLSSocket, context: ssl.SSLContext, host: str) -> None:
        self._sock, self._received, self._sent = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname=host)
        self.fileno, self.close = sock.fileno, sock.close

    def pending(self) -> int:
        return self._tls.pending() + self._received.pending

    def handshake(self) -> Steps[None]:
        yield from self._do(self._tls.do_handshake)

    def recv_steps(self, size: int) -> Steps[bytes]:
        try:
            found: bytes = yield from self._do(self._tls.read, size)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return found

    def send_steps(self, data: bytes) -> Steps[None]:
        yield from self._do(self._tls.write, data)

    def _do(self, call: Callable[..., Any], *arguments: Any) -> Steps[Any]:
        while True:
            try:
                found, is_done = call(*arguments), True
            except ssl.SSLWantReadError:
                found, is_done = None, False
            if self._sent.pending:
                yield from self._sock.send_steps(self._sent.read())
            if is_done:
                return found
            received = yield from self._sock.recv_steps(_PIECE)
            if received:
                self._received.write(received)
            else:
                self._received.write_eof()

    @property
    def limits(self) -> RequestLimits:
        """The limits of the running request."""
        return self._sock.limits

    @limits.setter
    def limits(self, limits: RequestLimits) -> None:
        self._sock.limits = limits


def secure(sock: Any, host: str, limits: RequestLimits) -> Steps[Any]:
    """Return a TLS socket over a connected socket, after verifying the certificate of the host."""
    try:
        context = _tls_context(_certificates())
        if isinstance(sock, _TLSSocket):
            sock = _InnerTLS(sock, context, host)
        else:
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            open_sockets.add(sock)
        sock.limits = limits
        yield from sock.handshake()
    except BaseException:
        sock.close()
        raise
    return sock


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
