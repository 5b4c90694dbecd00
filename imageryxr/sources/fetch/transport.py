"""One HTTP request and its response, over a direct connection or through the user's proxy.

Python's own HTTP client parses the messages, because it is strict and logs nothing.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from imageryxr.core.lazy_import import import_package
from imageryxr.sources.fetch import ip_filter
from imageryxr.sources.fetch.decompress import TooLargeError
from imageryxr.sources.fetch.sockets import ProtocolError, RequestLimits, connect, is_idle, resolve, secure, set_limits
from imageryxr.sources.fetch.url import WebURL, is_local_host, parse_web_url

_PIECE = 1 << 20
# Bytes allowed for headers, chunk sizes and trailers in addition to the body.
_OVERHEAD = 1 << 20
# Largest number of idle connections to a server, of servers, and of idle connections: each is an open file, of which
# many systems permit 1024.
_IDLE, _SERVERS, _MOST_IDLE = 64, 64, 256
# Paths that need no encoding and have no "." or "..", such as those of most chunks.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.~-]*)+")


class Answer(NamedTuple):
    """A response of a server."""

    status: int
    headers: dict[str, str]
    """Headers by lower-case name."""
    body: bytes
    is_public: bool = False
    """Whether the server has a public address."""


@dataclass(slots=True)
class _PooledConnection:
    """A connection that can be reused."""

    client: http.client.HTTPConnection
    prefix: str = ""
    """Text before the path of a request: a proxy for plain http requires whole URLs."""
    headers: dict[str, str] = field(default_factory=dict)


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
            if connection is None or is_idle(connection.client.sock):
                return connection
            connection.client.close()

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
            old.client.close()

    def close(self) -> None:
        """Close all idle connections, without the lock: in a forked child a missing thread may hold it."""
        for connection in [connection for waiting in self._idle.values() for connection in waiting]:
            connection.client.close()
        self._idle.clear()


def exchange(
    pool: ConnectionPool,
    method: str,
    url: WebURL,
    headers: Mapping[str, str],
    body: bytes | None,
    limits: RequestLimits,
    body_limit: Callable[[int, Mapping[str, str]], tuple[int, bool]],
    *,
    local: bool,
) -> Answer:
    """Return the response to one request, of any status.

    `body_limit` returns, for a status and headers, the largest size of the body, and whether a longer body is truncated
    without an error. `local` is whether the connection may go to addresses that are not public.

    Raises
    ------
    ServerError
        If the address is not allowed, or the request was stopped.
    OSError, http.client.HTTPException, TooLargeError
        If there was no valid response within the limits.
    """
    proxy = _proxy_of(url)
    key = (url.origin, proxy, local)
    limits.budget = limits.received + _OVERHEAD
    connection = pool.take(key) or _open_connection(url, proxy, limits, local=local)
    set_limits(connection.client.sock, limits)
    try:
        sent = {"Host": url.netloc, "User-Agent": "imageryxr", **connection.headers, **headers}
        connection.client.request(method, connection.prefix + _request_target(url), body, sent)
        response = connection.client.getresponse()
        answer, is_complete = _read(response, limits, body_limit)
        answer = answer._replace(is_public=_is_public(connection, url, proxy))
    except BaseException:
        connection.client.close()
        raise
    if is_complete and connection.client.sock is not None:
        pool.put(key, connection)
    else:
        response.close()
        connection.client.close()  # the rest of this response must not be read as the next one
    return answer


def _read(
    response: http.client.HTTPResponse,
    limits: RequestLimits,
    body_limit: Callable[[int, Mapping[str, str]], tuple[int, bool]],
) -> tuple[Answer, bool]:
    status, found = response.status, {k.lower(): v for k, v in _merge_headers(response.headers).items()}
    _check_framing(status, response.headers)
    most, is_cut = body_limit(status, found)
    if not is_cut and response.length is not None and response.length > most:
        raise TooLargeError(f"its body has {response.length:,} bytes; the limit for this request is {most:,}")
    # With chunked encoding the sizes of the chunks are received in addition to the body.
    limits.budget = limits.received + 2 * most + _OVERHEAD
    pieces, size = [], 0
    while size <= most and (piece := response.read(min(_PIECE, most + 1 - size))):
        pieces.append(piece)
        size += len(piece)
    whole = b"".join(pieces)
    if size > most:
        if not is_cut:
            raise TooLargeError(f"its body has more than {most:,} bytes, the limit for this request")
        return Answer(status, found, whole[:most]), False
    if response.length:
        raise ProtocolError(f"its body was truncated: {response.length:,} bytes are missing")
    return Answer(status, found, whole), response.isclosed() and not response.will_close


def _check_framing(status: int, headers: http.client.HTTPMessage) -> None:
    if 100 <= status < 200:
        raise ProtocolError(f"it answered HTTP {status}, which is not a final status")
    encodings = headers.get_all("transfer-encoding", [])
    if [e.strip().lower() for e in encodings] not in ([], ["chunked"]):
        raise ProtocolError("its transfer encoding is unknown")
    lengths = {length.strip() for length in headers.get_all("content-length", [])}
    if not encodings and (len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths)):
        raise ProtocolError("its Content-Length is not valid")


def _merge_headers(headers: http.client.HTTPMessage) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else str(value)
    return found


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


def _open_connection(url: WebURL, proxy: str, limits: RequestLimits, *, local: bool) -> _PooledConnection:
    connection = _PooledConnection(http.client.HTTPConnection("server"))
    connection.client.auto_open = 0
    if not proxy:
        sock = connect(url.host, url.port, limits, local=local)
        connection.client.sock = secure(sock, url.host, limits) if url.scheme == "https" else sock
        return connection
    if not local:
        _check_behind_proxy(url, limits)
    to = parse_web_url(proxy if "://" in proxy else f"http://{proxy}")
    secret = {}
    if to.userinfo:
        secret["Proxy-Authorization"] = "Basic " + base64.b64encode(unquote(to.userinfo).encode()).decode()
    # The user configured the proxy, so its address may be local.
    between: Any = connect(to.host, to.port, limits, local=True)
    if to.scheme == "https":
        between = secure(between, to.host, limits)
    if url.scheme == "https":
        _tunnel(between, url, secret)
        between = secure(between, url.host, limits)
    else:
        connection.prefix, connection.headers = f"http://{url.netloc}", secret
    connection.client.sock = between
    return connection


def _is_public(connection: _PooledConnection, url: WebURL, proxy: str) -> bool:
    if proxy or connection.client.sock is None:  # behind a proxy only the name of the server is known
        return not is_local_host(url.host)
    return ip_filter.is_public(str(connection.client.sock.getpeername()[0]))


def _check_behind_proxy(url: WebURL, limits: RequestLimits) -> None:
    # The proxy resolves the name. The addresses are checked only if this machine can resolve the name.
    ip_filter.check_host_name(url.host)
    try:
        found = resolve(url.host, url.port, limits)
    except OSError:
        return
    ip_filter.check_candidates(url.host, found)


_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD")
_PROXY_SECONDS = 10


def _proxy_of(url: WebURL) -> str:
    variables = (os.environ.get(name) for low in _PROXY_VARIABLES for name in (low, low.upper()))
    return _find_proxy(url.scheme, url.host, tuple(variables), int(time.monotonic() / _PROXY_SECONDS))


@lru_cache(maxsize=256)
def _find_proxy(scheme: str, host: str, variables: tuple[str | None, ...], moment: int) -> str:
    # urllib reads the whole environment, or the settings of the system, which takes longer than the rest of a request.
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get(scheme, "")
    return "" if not proxy or proxy_bypass(host) else proxy


def _tunnel(sock: Any, url: WebURL, secret: dict[str, str]) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    place = f"{host}:{url.port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}", *(f"{name}: {value}" for name, value in secret.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    answer = http.client.HTTPResponse(sock, method="CONNECT")
    answer.begin()
    if answer.status // 100 != 2:
        sock.close()
        raise ProtocolError(f"the proxy denied the connection (HTTP {answer.status})")
