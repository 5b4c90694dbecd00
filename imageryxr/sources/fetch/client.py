"""Requests to web servers with timeouts, retries, a limit of concurrent requests and cancellation.

CloudVolume and caveclient make requests without timeouts, and retry a rejected token for minutes. Therefore all http
requests for volumes use this module. `transport` makes the connections. Every request runs in a daemon thread, so
Ctrl-C returns at once even if a server does not answer.
"""

from __future__ import annotations

import atexit
import http.client
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urljoin

from imageryxr.core.validate import check_bytes, check_number, check_whole
from imageryxr.errors import AddressError, AuthError, OptionError, ServerError
from imageryxr.sources.fetch.budget import FILE_REQUESTS, SERVICE_REQUESTS, RequestBudget
from imageryxr.sources.fetch.byte_ranges import ByteRange, file_size_message
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.disk_cache import VARIABLE, absolute_folder
from imageryxr.sources.fetch.policy import Access, Credential, is_cave_server
from imageryxr.sources.fetch.sockets import ProtocolError, RequestLimits, SlowError, StoppedError
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.traffic import count
from imageryxr.sources.fetch.transport import ConnectionPool, exchange
from imageryxr.sources.fetch.url import WebURL, parse_web_url
from imageryxr.sources.json_members import parse_json

_log = logging.getLogger(__name__)

LONGEST_WAIT = 30.0
# Largest size of metadata, and of the part that is read of an error response.
METADATA_BYTES, _NO_FILE_BYTES = 64 << 20, 1 << 20
# Largest size of a whole file that is accepted in response to a range request.
_WHOLE_BYTES = 256 << 20
_REDIRECTS = (301, 302, 303, 307, 308)


_SIZE = "a number of bytes, such as '256 MB', or 0"


@dataclass(frozen=True, slots=True)
class Connection:
    """Options of requests to web servers: timeout, retries and concurrency.

    A Connection is a plain value without open sockets. It is pickled with a source for every worker.

    Parameters
    ----------
    timeout : float, default 60
        Seconds that a response may take, from the first byte sent to the last byte received, including redirects. Every
        16 kB received extend it by a second, up to five times the timeout. A response that is still arriving at that
        time is an error without a retry; a request to a silent server is retried.
    concurrency : int, optional
        Simultaneous requests to one server from all threads of a process; every worker process has its own limit.
        Default: 64 for object stores and file servers, 8 for CAVE services. If a server throttles (429, 503), the
        number halves and recovers gradually.
    retries : int, default 5
        Largest number of retries after transient errors: 429, 5xx, timeouts, dropped connections and truncated bodies.
        401, 403 and 404 are final. Each retry is logged at level INFO by the loggers under ``imageryxr``.
    backoff : float, default 0.25
        Seconds before the first retry; the wait doubles with each further retry. A Retry-After header takes precedence,
        up to 30 s.
    memory_cache : int or str, default "256 MB"
        Size of the process's cache of encoded chunks of remote volumes, which all arrays share; the largest size given
        in a process applies. 0 reads without the cache. Missing chunks and local files are never cached.
    disk_cache : path or False, optional
        Folder on this machine for encoded chunks and shard indexes of remote volumes, which processes share. An entry
        is used after the server has confirmed that the object did not change, or for as long as the server permitted.
        Default: the folder in the environment variable ``IMAGERYXR_DISK_CACHE``, if it is set. False reads without the
        cache. The folder must belong to the user, and others must not be able to write to it.
    disk_cache_size : int or str, default "20 GB"
        Size of that folder. The least recently used entries are dropped first.
    requester_pays : bool or str, default False
        Whether you pay for requests to buckets whose owner does not: True for ``s3://``; for ``gs://`` the id of the
        Google Cloud project to bill. The requests carry your credentials. Links never use it.

    Raises
    ------
    OptionError
        If a number is out of range, or `disk_cache` is not a folder of this machine.

    Examples
    --------
    >>> import imageryxr as ix
    >>> ix.Connection(timeout=10, concurrency=2)
    Connection(timeout=10, concurrency=2, retries=5, backoff=0.25, memory_cache='256 MB',
               disk_cache=None, disk_cache_size='20 GB', requester_pays=False)
    """

    timeout: float = 60.0
    concurrency: int | None = None
    retries: int = 5
    backoff: float = 0.25
    memory_cache: int | str = "256 MB"
    disk_cache: str | os.PathLike[str] | Literal[False] | None = None
    disk_cache_size: int | str = "20 GB"
    requester_pays: bool | str = False
    access: Access = field(default=Access(), repr=False, compare=False)
    """Servers that the requests may reach; set when a link is opened, not by callers."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0)):
            if name != "concurrency" or self.concurrency is not None:
                object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        for name, low in (("timeout", 1e-3), ("backoff", 0.0)):
            object.__setattr__(self, name, check_number(name, getattr(self, name), low, 1e6, unit="seconds"))
        if not isinstance(self.requester_pays, bool | str) or not re.fullmatch("[ -~]*", str(self.requester_pays)):
            raise OptionError(
                f"requester_pays={self.requester_pays!r} is neither True nor the id of a project; write "
                "requester_pays=True for s3://, or requester_pays='my-project' for gs://"
            )
        _ = self.cache_bytes, self.disk_cache_bytes
        if self.disk_cache is not None and self.disk_cache is not False:
            object.__setattr__(self, "disk_cache", absolute_folder(self.disk_cache))

    @property
    def cache_bytes(self) -> int:
        """Size of the memory cache in bytes."""
        return check_bytes("memory_cache", self.memory_cache, _SIZE, 0)

    @property
    def disk_cache_bytes(self) -> int:
        """Size of the disk cache in bytes."""
        return check_bytes("disk_cache_size", self.disk_cache_size, _SIZE, 0)

    @property
    def disk_folder(self) -> str | None:
        """Folder of the disk cache, or None."""
        folder = os.environ.get(VARIABLE) or None if self.disk_cache is None else self.disk_cache
        return absolute_folder(folder) if folder and self.disk_cache_bytes else None


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
    """Address of a redirect to another file name: a 404 from there does not mean that the requested file is missing."""

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


def send_request(
    method: str,
    url: str,
    connection: Connection,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    credential: Credential | None = None,
    check: Callable[[Reply], str] | None = None,
    stop: threading.Event | None = None,
    follow: bool = True,
    limit: int = METADATA_BYTES,
    part: ByteRange | None = None,
    width: int | None = None,
) -> Reply:
    """Return the response to a request, of any status, after retries of transient errors.

    Parameters
    ----------
    method, url
        Method and address of the request.
    connection : Connection
        Timeout, retries and concurrency.
    body, headers
        Request body and headers. Secrets must not be in `headers`; pass them as `credential`.
    credential : Credential, optional
        Returns the Authorization header for the URL and for each redirect within its origin.
    check : callable, optional
        Returns the problem of a response with status 200, such as a short body, or an empty string. A problem leads to
        a retry.
    stop : Event, optional
        Set to cancel the request.
    follow : bool
        Whether redirects are followed; otherwise they are returned.
    limit : int, default 64 MB
        Largest body of a response with status 200 in bytes.
    part : ByteRange, optional
        Range of the file to return. The response has status 206 and that range, even if the server ignores ranges; it
        is shorter if the file ends within the range.
    width : int, optional
        Simultaneous requests to the server, unless the connection states them. Default: 8 for CAVE's servers, 64 for
        others.

    Raises
    ------
    ServerError
        If all attempts fail.
    """
    stop = stop or threading.Event()
    width = connection.concurrency or width or default_width(parse_web_url(url))
    request = _Request(method, url, connection, body, dict(headers or {}), credential, stop, follow, limit, part, width)
    problem = ""
    for attempt in range(connection.retries + 1):
        pause = 0.0
        try:
            reply = _send_following_redirects(request)
            problem = (
                f"HTTP {reply.status} {server_message(reply, request.secret)}".strip()
                if _is_transient(reply.status)
                else ""
            )
            if not problem and reply.status in (200, 206, 416) and not reply.is_html:
                problem, reply = _check_part(reply, part)
            if not problem and check is not None and reply.status in (200, 206) and not reply.is_html:
                problem = check(reply)
            if not problem:
                return reply
            pause = _retry_after(reply)
        except StoppedError:
            raise StoppedError(f"{_public_url(url)}: stopped") from None
        except AuthError:
            raise  # a credential could not be made: no request was sent
        except Exception as error:
            problem = _hide_secret(_error_message(error), request.secret)[:500]
            if not _is_retryable(error):
                break
        if attempt < connection.retries:
            pause = max(pause, connection.backoff * 2**attempt * random.uniform(0.75, 1.25))
            pause = min(pause, LONGEST_WAIT)
            again = (_public_url(url), problem, pause, attempt + 2, connection.retries + 1)
            _log.info("%s: %s; retrying in %.1f s, attempt %d of %d", *again)
            if stop.wait(pause):
                raise StoppedError(f"{_public_url(url)}: stopped")
    attempts = f" after {attempt + 1} attempts" if attempt else ""
    raise ServerError(f"the request to {_public_url(url)} failed{attempts}: {problem}")


def default_width(url: WebURL) -> int:
    """Return the default number of simultaneous requests to a server."""
    return SERVICE_REQUESTS if is_cave_server(url) else FILE_REQUESTS


def request_slot(server: str, width: int, stop: threading.Event) -> AbstractContextManager[None]:
    """Return a context that waits until another client than this one may make a request to a server, and counts it."""
    return _state.budget(server).slot(width, stop, server)


def send_interruptible_request(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Return the response to a request that Ctrl-C can interrupt; see `send_request`."""
    return run_in_parallel(lambda _, stop: send_request(method, url, connection, stop=stop, **options), [None], 1)[0]


# ---------------------------------------------------------------------------------------------------------
# one attempt


@dataclass(slots=True)
class _Request:
    method: str
    url: str
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


def _send_following_redirects(request: _Request) -> Reply:
    url, credential, method = parse_web_url(request.url), request.credential, request.method
    name = _file_name(url)
    limits = RequestLimits(request.connection.timeout, request.stop)
    access = request.connection.access
    for _ in range(5):
        header = credential.header_for(_full_url(url), access) if credential is not None else None
        headers = request.headers if header is None else {**request.headers, "Authorization": SecretText(header)}
        request.secret = SecretText((header or request.secret).rpartition(" ")[2])
        reply, is_public = _send_once(request, url, headers, limits, local=access.allow_local)
        if _file_name(url) != name:
            reply = reply._replace(redirected_to=url.public)
        target = _redirect_target(url, reply) if request.follow else None
        if target is None:
            return reply
        at_home = target.origin == url.origin or (target.host == url.host and target.origin[0::2] == ("https", 443))
        # A request body goes only to the same server, and only after 307, 308 or a redirect to https. Other redirects
        # lead to a login page.
        moved = reply.status in (307, 308) or (target.path == url.path and target.scheme != url.scheme)
        if method != "GET" and not (at_home and moved):
            return reply
        if is_public and not (access.from_link and access.allow_local):
            access = replace(access, allow_local=False)  # a public server must not redirect to a local address
        if not at_home:  # a secret is sent only to the server that it belongs to
            credential = None
        url = target
    raise ServerError(f"{url.public} redirects too often")


def _redirect_target(url: WebURL, reply: Reply) -> WebURL | None:
    """Return the target of a redirect, or None if the response is no redirect to a web address."""
    place = reply.headers.get("location", "")
    if not reply.is_redirect or not place:
        return None
    # Python decodes headers as Latin-1, but servers send UTF-8.
    place = quote(place.encode("latin-1", "replace"), safe="".join(map(chr, range(33, 127))))
    target = urljoin(_full_url(url), place)
    return parse_web_url(target) if target.startswith(("http://", "https://")) else None


def _send_once(
    request: _Request, url: WebURL, headers: dict[str, str], limits: RequestLimits, *, local: bool
) -> tuple[Reply, bool]:
    """Return the response to one request without redirects, and whether it came from a public address."""
    part = request.part
    if part is not None:
        headers = {**headers, "Range": part.header, "Accept-Encoding": "identity"}

    def limit(status: int, found: Mapping[str, str]) -> tuple[int, bool]:
        if status == 206:
            return (request.limit if part is None or part.size is None else part.size), False
        if status != 200:
            return _NO_FILE_BYTES, True
        return (request.limit, False) if part is None else _limit_of_whole(part, found)

    waited, budget = time.monotonic(), _state.budget(url.netloc)
    with budget.slot(request.width, request.stop, url.netloc):
        began = time.monotonic()
        limits.start += began - waited
        count(requests=1)
        answer = exchange(_state.connections, request.method, url, headers, request.body, limits, limit, local=local)
    budget.record(answer.status, request.width, began)
    count(received=len(answer.body))
    return Reply(answer.status, answer.headers, answer.body), answer.is_public


def _limit_of_whole(part: ByteRange, headers: Mapping[str, str]) -> tuple[int, bool]:
    # Bytes after the range are not read. If the offset of the range is unknown or large, the whole file must be read.
    is_plain = headers.get("content-encoding", "identity").lower() == "identity"
    if is_plain and part.stop is not None and part.suffix is None and part.stop <= _WHOLE_BYTES:
        return part.stop, True
    return _WHOLE_BYTES, False


def _check_part(reply: Reply, part: ByteRange | None) -> tuple[str, Reply]:
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


def _is_transient(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def _is_retryable(error: Exception) -> bool:
    if isinstance(error, ServerError | SlowError | ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(error, OSError | http.client.HTTPException)


def _error_message(error: Exception) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its host was not found; check the address and the network"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused; no server listens at that address"
    if isinstance(error, ServerError | AddressError | TimeoutError | TooLargeError | ProtocolError):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _retry_after(reply: Reply) -> float:
    header = reply.headers.get("retry-after", "")
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time()) if header else 0.0
    except (TypeError, ValueError):
        return 0.0


def server_message(reply: Reply, secret: str = "") -> str:
    """Return the message in an error response, in brackets and without a secret that the server may repeat."""
    try:
        found = parse_json(reply.body)
        text = str(found.get("message") or found.get("error") or "") if isinstance(found, dict) else ""
    except ValueError:
        text = ""
    text = _hide_secret(text, secret)
    return f"({text[:200]})" if text else ""


def _hide_secret(text: str, secret: str) -> str:
    return text.replace(secret, "<token>") if secret else text


def _public_url(url: str) -> str:
    return parse_web_url(url).public


# ---------------------------------------------------------------------------------------------------------
# state of a process: idle connections, and the number of requests to each server


class _ProcessState:
    """State of a process; a forked child starts with a new one, because sockets and locks belong to its parent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.budgets: dict[str, RequestBudget] = {}
        self.connections = ConnectionPool()

    def budget(self, host: str) -> RequestBudget:
        """Return the budget of requests to a server."""
        with self.lock:
            return self.budgets.setdefault(host, RequestBudget())


_state = _ProcessState()


def _reset_after_fork() -> None:
    global _state
    _state.connections.close()
    _state = _ProcessState()


atexit.register(lambda: _state.connections.close())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
