"""One attempt at an HTTP request: redirects, limits of time, size and concurrency, and the requested byte range.

`client` repeats attempts; `transport` makes the connections.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote, urljoin

from imageryxr.core.fork import run_after_fork
from imageryxr.errors import ServerError
from imageryxr.sources.fetch.budget import RequestBudget, RequestBudgets, service_of
from imageryxr.sources.fetch.byte_ranges import ByteRange, file_size_message
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.sockets import RequestLimits, Steps
from imageryxr.sources.fetch.traffic import count
from imageryxr.sources.fetch.transport import ConnectionPool, exchange
from imageryxr.sources.fetch.url import WebURL, parse_web_url

# Number of bytes of an error response after which reading stops.
_ERROR_BYTES = 1 << 20
# Largest size of a whole file that is accepted in response to a range request.
_WHOLE_BYTES = 256 << 20
_REDIRECTS = (301, 302, 303, 307, 308)


class SecretText(str):
    """A secret string whose repr hides it, for tracebacks that show local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class Reply(NamedTuple):
    """The response of a server."""

    status: int
    headers: Mapping[str, str]
    """Headers by lower-case name."""
    body: bytes
    redirected_to: str = ""
    """Target of a redirect to another file name: a 404 from there does not mean that the requested file is missing."""

    def __repr__(self) -> str:
        return f"<HTTP {self.status}, {len(self.body)} bytes>"  # the body may repeat a secret of the request

    @property
    def is_html(self) -> bool:
        """Whether the body is HTML, such as a login page, instead of data."""
        return "text/html" in self.headers.get("content-type", "")

    @property
    def is_redirect(self) -> bool:
        """Whether the status is that of a redirect."""
        return self.status in _REDIRECTS


@dataclass(slots=True)
class Request:
    """The parameters of `client.request_steps`."""

    method: str
    url: WebURL
    connection: Connection
    body: bytes | None
    headers: dict[str, str]
    credential: Credential | None
    stop: threading.Event
    follow: bool
    limit: int
    part: ByteRange | None
    width: int
    secret: str = ""
    """Secret that was sent; it is removed from error messages of the server."""


def send_following_redirects(request: Request) -> Steps[Reply]:
    """Return the response to a request, of any status, without retries."""
    url, credential, method = request.url, request.credential, request.method
    name = _file_name(url)
    limits = RequestLimits(request.connection.timeout, request.stop)
    access = request.connection.access
    for _ in range(5):
        header = credential.header_for(_full_url(url), access) if credential is not None else None
        headers = request.headers if header is None else {**request.headers, "Authorization": SecretText(header)}
        request.secret = SecretText((header or request.secret).rpartition(" ")[2])
        reply, is_public = yield from _send_once(request, url, headers, limits, local=access.allow_local)
        if url is not request.url and _file_name(url) != name:
            reply = reply._replace(redirected_to=url.public)
        target = _redirect_target(url, reply) if request.follow else None
        if target is None:
            return reply
        is_same_server = target.origin == url.origin or (
            target.host == url.host and target.origin[0::2] == ("https", 443)
        )
        # A request body goes only to the same server, and only after 307, 308 or a redirect to https. Other redirects
        # lead to a login page.
        keeps_body = reply.status in (307, 308) or (target.path == url.path and target.scheme != url.scheme)
        if method != "GET" and not (is_same_server and keeps_body):
            return reply
        if is_public and not (access.from_link and access.allow_local):
            access = replace(access, allow_local=False)  # a public server must not redirect to a local address
        if not is_same_server:  # a secret is sent only to the server that it belongs to
            credential = None
        url = target
    raise ServerError(f"{url.public} redirects too often")


def _redirect_target(url: WebURL, reply: Reply) -> WebURL | None:
    """Return the target of a redirect, or None if the response is no redirect to a web address."""
    place = reply.headers.get("location", "") if reply.is_redirect else ""
    if not place:
        return None
    # Python decodes headers as Latin-1, but servers send UTF-8.
    place = quote(place.encode("latin-1", "replace"), safe="".join(map(chr, range(33, 127))))
    target = urljoin(_full_url(url), place)
    return parse_web_url(target) if target.startswith(("http://", "https://")) else None


def _send_once(
    request: Request, url: WebURL, headers: dict[str, str], limits: RequestLimits, *, local: bool
) -> Steps[tuple[Reply, bool]]:
    """Return the response to one request, redirects included, and whether it came from a public address."""
    part = request.part
    if part is not None:
        headers = {**headers, "Range": part.header, "Accept-Encoding": "identity"}

    def limit(status: int, found: Mapping[str, str]) -> tuple[int, bool]:
        if status == 206:
            return (request.limit if part is None or part.size is None else part.size), False
        if status != 200:
            return _ERROR_BYTES, True
        return (request.limit, False) if part is None else _limit_of_whole(part, found)

    waited, from_link, stop = time.monotonic(), request.connection.access.from_link, request.stop
    budgets, connections = _state.budgets, _state.connections
    budget = yield from budgets.acquire(service_of(url), request.width, stop, url.netloc, from_link=from_link)
    try:
        began = time.monotonic()
        limits.start += began - waited
        count(requests=1)
        answer = yield from exchange(
            connections, request.method, url, headers, request.body, limits, limit, local=local
        )
    finally:
        budgets.release(budget, stop)
    budget.record(answer.status, request.width, began)
    count(received=len(answer.body))
    return Reply(answer.status, answer.headers, answer.body), answer.is_public


def _limit_of_whole(part: ByteRange, headers: Mapping[str, str]) -> tuple[int, bool]:
    # Reading stops after the range. If the offset of the range is unknown or large, the whole file must be read.
    is_plain = headers.get("content-encoding", "identity").lower() == "identity"
    if is_plain and part.stop is not None and part.suffix is None and part.stop <= _WHOLE_BYTES:
        return part.stop, True
    return _WHOLE_BYTES, False


def check_part(reply: Reply, part: ByteRange | None) -> tuple[str, Reply]:
    """Return the problem of a response with respect to the requested range, and the response with only that range."""
    if part is None:
        return ("the server returned only a part of the file" if reply.status == 206 else ""), reply
    if reply.status == 416:
        raise ServerError(
            f"bytes {part.header.partition('=')[2]} were requested, but {file_size_message(reply.headers)}"
        )
    if reply.status == 206:
        return part.problem(reply.headers, len(reply.body)), reply
    encoding = reply.headers.get("content-encoding", "")
    try:
        whole = decompress(reply.body, encoding, _WHOLE_BYTES) if encoding else reply.body
    except ValueError as error:
        return f"the server returned a whole compressed file instead of a range: {error}", reply
    headers = {k: v for k, v in reply.headers.items() if k != "content-encoding"}
    return "", reply._replace(status=206, headers=headers, body=part.cut(whole))


def _full_url(url: WebURL) -> str:
    return f"{url.scheme}://{url.netloc}{url.path}"


def _file_name(url: WebURL) -> str:
    return url.path.partition("?")[0].partition("#")[0].rpartition("/")[2]


def request_slot(
    service: str, width: int, stop: threading.Event, *, from_link: bool
) -> AbstractContextManager[RequestBudget]:
    """Return a context in which another HTTP client may make one request, within the limits of `RequestBudgets`."""
    return _state.budgets.slot(service, width, stop, service, from_link=from_link)


# ---------------------------------------------------------------------------------------------------------
# state of a process: idle connections, and running requests


class _ProcessState:
    """State of a process; a forked child starts with a new one, because sockets and locks belong to its parent."""

    def __init__(self) -> None:
        self.budgets = RequestBudgets()
        self.connections = ConnectionPool()


_state = _ProcessState()


@run_after_fork
def _reset_after_fork() -> None:
    global _state
    _state = _ProcessState()


atexit.register(lambda: _state.connections.close())
