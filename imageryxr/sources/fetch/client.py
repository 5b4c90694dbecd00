"""Asking web servers: timeouts, retries, a cap on requests at a time, and an end when somebody stops it.

CloudVolume and caveclient ask without timeouts, and retry a refused token for minutes; so what goes over http and
belongs to volumes goes through here. `transport` makes the connections. Every request runs in a thread that nothing
waits for once its caller has gone: Ctrl-C returns at once, whatever a server does.
"""

from __future__ import annotations

import atexit
import http.client
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

from imageryxr.errors import AddressError, OptionError, ServerError
from imageryxr.sources.fetch.byte_ranges import ByteRange, file_size_message
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.policy import Access, Credential
from imageryxr.sources.fetch.sockets import POLL_SECONDS, ProtocolError, RequestLimits, SlowError, StoppedError
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.transport import ConnectionPool, exchange
from imageryxr.sources.fetch.url import WebURL, parse_web_url
from imageryxr.sources.json_members import parse_json

_log = logging.getLogger(__name__)

LONGEST_WAIT = 30.0
# Bytes that metadata may have, and what is read of an answer that is no file, such as an error page.
METADATA_BYTES, _NO_FILE_BYTES = 64 << 20, 1 << 20
# Bytes of a whole file that a server sends where a part of it was requested.
_WHOLE_BYTES = 256 << 20
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Connection:
    """How servers are asked: how long to wait, how often to try again, how many requests at a time.

    A value; it holds no connection. It travels with a source to every worker.

    Parameters
    ----------
    timeout : float, default 60
        Seconds that an answer may take, from the first byte sent to the last one received, with redirects. Each 16 kB
        that came add a second, up to five times as long. An answer that keeps coming and is not complete by then is an
        error at once; a server that is silent is tried again.
    concurrency : int, default 8
        Requests at a time to one server, from all threads of a process together. Take less where a server throttles,
        and keep in mind that every worker process has its own.
    retries : int, default 5
        How often a request is made again that met 429, 5xx, silence, a dropped connection or a body cut short. 401,
        403 and 404 are final. Each is logged at level INFO, by the loggers under ``imageryxr``.
    backoff : float, default 0.25
        Seconds before the first retry; each further wait is twice as long. A server's Retry-After counts, up to 30 s.

    Raises
    ------
    OptionError
        If a number makes no sense.

    Examples
    --------
    >>> import imageryxr as ix
    >>> ix.Connection(timeout=10, concurrency=2)
    Connection(timeout=10, concurrency=2, retries=5, backoff=0.25)
    """

    timeout: float = 60.0
    concurrency: int = 8
    retries: int = 5
    backoff: float = 0.25
    access: Access = field(default=Access(), repr=False, compare=False)
    """What the requests may reach; set where a link is opened, not by callers."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r} is not a whole number from {least} on; write e.g. {name}=8")
        for name, low in (("timeout", 1e-3), ("backoff", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < 1e6:
                raise OptionError(f"{name}={value!r} is not a number of seconds; write e.g. {name}=60")


class SecretText(str):
    """What a header says in secret: tracebacks that show local variables do not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    redirected_to: str = ""
    """Where the request was sent on to, if that has another file name: what is not there is no missing file."""

    def __repr__(self) -> str:
        return f"<HTTP {self.status}, {len(self.body)} bytes>"  # a server may have repeated what is secret

    @property
    def is_html(self) -> bool:
        """Whether it is a page for people, such as a login, where data were asked for."""
        return "text/html" in self.headers.get("content-type", "")

    @property
    def is_redirect(self) -> bool:
        """Whether it sends to another place."""
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
) -> Reply:
    """Make a request, again where that may help, and return the answer whatever its status.

    Parameters
    ----------
    method, url
        What to ask.
    connection : Connection
        How.
    body, headers
        What to send along. Secrets are no headers: they are given as `credential`.
    credential : Credential, optional
        Decides for the URL, and again for each redirect within its origin, which Authorization header is sent.
    check : callable, optional
        Tells what is wrong with a 200, such as a body too short; then it is tried again.
    stop : Event, optional
        Set when nobody waits for the answer any more.
    follow : bool
        Whether redirects are followed; otherwise they are the answer.
    limit : int, default 64 MB
        Bytes that the body of a 200 may have: reading ends there.
    part : ByteRange, optional
        The part of the file to get. The answer is a 206 with that part, whatever the server does with ranges; it is
        shorter where the file ends.

    Raises
    ------
    ServerError
        If there was no sensible answer.
    """
    stop = stop or threading.Event()
    request = _Request(method, url, connection, body, dict(headers or {}), credential, stop, follow, limit, part)
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
        except Exception as error:
            problem = _hide_secret(_error_message(error), request.secret)[:500]
            if not _is_retryable(error):
                break
        if attempt < connection.retries:
            pause = max(pause, connection.backoff * 2**attempt * random.uniform(0.75, 1.25))
            pause = min(pause, LONGEST_WAIT)
            again = (_public_url(url), problem, pause, attempt + 2, connection.retries + 1)
            _log.info("%s: %s; asking again in %.1f s, try %d of %d", *again)
            if stop.wait(pause):
                raise StoppedError(f"{_public_url(url)}: stopped")
    tries = "" if connection.retries == 0 else f", after {attempt + 1} tries" if attempt else ""
    raise ServerError(f"{_public_url(url)} did not give what was asked for{tries}: {problem}")


def send_interruptible_request(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Make one request, so that whoever waits for it can be interrupted; see `send_request`."""
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
    secret: str = ""
    """What was sent in secret: error messages of the server do not show it."""


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
        # What was sent along goes nowhere else, and to the same server only where it says that it moved for good or
        # ill (307, 308), or wants https: else it is the way to a login.
        moved = reply.status in (307, 308) or (target.path == url.path and target.scheme != url.scheme)
        if method != "GET" and not (at_home and moved):
            return reply
        if is_public and not (access.from_link and access.allow_local):
            access = replace(access, allow_local=False)  # a server elsewhere may not lead to this machine
        if not at_home:  # what is secret stays with the server that it is for
            credential = None
        url = target
    raise ServerError(f"{url.public} sends round in circles")


def _redirect_target(url: WebURL, reply: Reply) -> WebURL | None:
    """Return where an answer sends to, or None if it is no redirect to a web address."""
    place = reply.headers.get("location", "")
    if not reply.is_redirect or not place:
        return None
    # Headers are read as Latin-1; what is sent there beyond ASCII is UTF-8.
    place = quote(place.encode("latin-1", "replace"), safe="".join(map(chr, range(33, 127))))
    target = urljoin(_full_url(url), place)
    return parse_web_url(target) if target.startswith(("http://", "https://")) else None


def _send_once(
    request: _Request, url: WebURL, headers: dict[str, str], limits: RequestLimits, *, local: bool
) -> tuple[Reply, bool]:
    """Make one request; return the answer, and whether it came from the public internet."""
    connection, part = request.connection, request.part
    if part is not None:
        headers = {**headers, "Range": part.header, "Accept-Encoding": "identity"}

    def limit(status: int, found: Mapping[str, str]) -> tuple[int, bool]:
        if status == 206:
            return (request.limit if part is None or part.size is None else part.size), False
        if status != 200:
            return _NO_FILE_BYTES, True
        return (request.limit, False) if part is None else _limit_of_whole(part, found)

    waited = time.monotonic()
    with _request_slot(url.netloc, connection.concurrency, request.stop):
        limits.start += time.monotonic() - waited
        answer = exchange(_state.connections, request.method, url, headers, request.body, limits, limit, local=local)
    return Reply(answer.status, answer.headers, answer.body), answer.is_public


def _limit_of_whole(part: ByteRange, headers: Mapping[str, str]) -> tuple[int, bool]:
    # What follows the part is not read. Where the place of the part is not known, or is far in the file, all must come.
    is_plain = headers.get("content-encoding", "identity").lower() == "identity"
    if is_plain and part.stop is not None and part.suffix is None and part.stop <= _WHOLE_BYTES:
        return part.stop, True
    return _WHOLE_BYTES, False


def _check_part(reply: Reply, part: ByteRange | None) -> tuple[str, Reply]:
    """Return what is wrong with an answer to a request for a part of a file, or for a whole one, and the part."""
    if part is None:
        return ("a part of the file came, and all of it was requested" if reply.status == 206 else ""), reply
    if reply.status == 416:
        raise ServerError(
            f"the bytes {part.header.partition('=')[2]} were requested, and {file_size_message(reply.headers)}"
        )
    if reply.status == 206:
        return part.problem(reply.headers, len(reply.body)), reply
    encoding = reply.headers.get("content-encoding", "")
    try:
        whole = decompress(reply.body, encoding, _WHOLE_BYTES) if encoding else reply.body
    except ValueError as error:
        return f"the server sent all of a compressed file where a part was requested: {error}", reply
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
        return "its host was not found; is the address right, and is there a network?"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, ServerError | AddressError | TimeoutError | TooLargeError | ProtocolError):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _retry_after(reply: Reply) -> float:
    server_message = reply.headers.get("retry-after", "")
    if server_message.isdecimal():
        return float(server_message)
    try:
        return max(0.0, parsedate_to_datetime(server_message).timestamp() - time.time()) if server_message else 0.0
    except (TypeError, ValueError):
        return 0.0


def server_message(reply: Reply, secret: str = "") -> str:
    """Return what a server said of its refusal, in brackets and without a secret that it may repeat."""
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
# what a process holds: connections, and how many of them are in use


class _Gate:
    """Counts the requests to one server."""

    def __init__(self) -> None:
        self.free = threading.Condition()
        self.waits: list[threading.Event] = []

    @property
    def busy(self) -> int:
        """Requests that somebody waits for: those that were given up hang on until they time out, and do not count."""
        return sum(not stop.is_set() for stop in self.waits)


class _ProcessState:
    """All that a process holds; a forked child has none of it, since sockets and locks are its parent's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gates: dict[str, _Gate] = {}
        self.connections = ConnectionPool()


_state = _ProcessState()


def _reset_after_fork() -> None:
    global _state
    _state.connections.close()
    _state = _ProcessState()


atexit.register(lambda: _state.connections.close())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@contextmanager
def _request_slot(host: str, limit: int, stop: threading.Event) -> Iterator[None]:
    with _state.lock:
        gate = _state.gates.setdefault(host, _Gate())
    with gate.free:
        while gate.busy >= limit:
            if stop.is_set():
                raise StoppedError(f"{host}: stopped")
            gate.free.wait(POLL_SECONDS)
        gate.waits.append(stop)
    try:
        yield
    finally:
        with gate.free:
            gate.waits.remove(stop)
            gate.free.notify()
