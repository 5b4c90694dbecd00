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
from imageryxr.sources.fetch.byte_ranges import ByteRange, beyond
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.policy import Access, Credential
from imageryxr.sources.fetch.sockets import GLANCE, ProtocolError, SlowError, StoppedError, Watch
from imageryxr.sources.fetch.threads import in_parallel as in_parallel
from imageryxr.sources.fetch.threads import stopped_by as stopped_by
from imageryxr.sources.fetch.transport import Lines, exchange
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


class Hidden(str):
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
    sent_on: str = ""
    """Where the request was sent on to, if that has another file name: what is not there is no missing file."""

    def __repr__(self) -> str:
        return f"<HTTP {self.status}, {len(self.body)} bytes>"  # a server may have repeated what is secret

    @property
    def is_page(self) -> bool:
        """Whether it is a page for people, such as a login, where data were asked for."""
        return "text/html" in self.headers.get("content-type", "")

    @property
    def went_elsewhere(self) -> bool:
        """Whether it sends to another place."""
        return self.status in _REDIRECTS


def ask(
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
            reply = _follow(request)
            problem = f"HTTP {reply.status} {said(reply, request.secret)}".strip() if _may_pass(reply.status) else ""
            if not problem and reply.status in (200, 206, 416) and not reply.is_page:
                problem, reply = _checked_part(reply, part)
            if not problem and check is not None and reply.status in (200, 206) and not reply.is_page:
                problem = check(reply)
            if not problem:
                return reply
            pause = _asked_to_wait(reply)
        except StoppedError:
            raise StoppedError(f"{_shown(url)}: stopped") from None
        except Exception as error:
            problem = _hidden(_plain_cause(error), request.secret)[:500]
            if not _worth_retrying(error):
                break
        if attempt < connection.retries:
            pause = max(pause, connection.backoff * 2**attempt * random.uniform(0.75, 1.25))
            pause = min(pause, LONGEST_WAIT)
            again = (_shown(url), problem, pause, attempt + 2, connection.retries + 1)
            _log.info("%s: %s; asking again in %.1f s, try %d of %d", *again)
            if stop.wait(pause):
                raise StoppedError(f"{_shown(url)}: stopped")
    tries = "" if connection.retries == 0 else f", after {attempt + 1} tries" if attempt else ""
    raise ServerError(f"{_shown(url)} did not give what was asked for{tries}: {problem}")


def ask_once(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Make one request, so that whoever waits for it can be interrupted; see `ask`."""
    return in_parallel(lambda _, stop: ask(method, url, connection, stop=stop, **options), [None], 1)[0]


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


def _follow(request: _Request) -> Reply:
    url, credential, method = parse_web_url(request.url), request.credential, request.method
    name = _file_name(url)
    watch = Watch(request.connection.timeout, request.stop)
    access = request.connection.access
    for _ in range(5):
        header = credential.header_for(_full(url), access) if credential is not None else None
        headers = request.headers if header is None else {**request.headers, "Authorization": Hidden(header)}
        request.secret = Hidden((header or request.secret).rpartition(" ")[2])
        reply, is_public = _once(request, url, headers, watch, local=access.allow_local)
        if _file_name(url) != name:
            reply = reply._replace(sent_on=url.public)
        target = _target(url, reply) if request.follow else None
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


def _target(url: WebURL, reply: Reply) -> WebURL | None:
    """Return where an answer sends to, or None if it is no redirect to a web address."""
    place = reply.headers.get("location", "")
    if not reply.went_elsewhere or not place:
        return None
    # Headers are read as Latin-1; what is sent there beyond ASCII is UTF-8.
    place = quote(place.encode("latin-1", "replace"), safe="".join(map(chr, range(33, 127))))
    target = urljoin(_full(url), place)
    return parse_web_url(target) if target.startswith(("http://", "https://")) else None


def _once(request: _Request, url: WebURL, headers: dict[str, str], watch: Watch, *, local: bool) -> tuple[Reply, bool]:
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
    with _slot(url.netloc, connection.concurrency, request.stop):
        watch.start += time.monotonic() - waited
        answer = exchange(_held.lines, request.method, url, headers, request.body, watch, limit, local=local)
    return Reply(answer.status, answer.headers, answer.body), answer.is_public


def _limit_of_whole(part: ByteRange, headers: Mapping[str, str]) -> tuple[int, bool]:
    # What follows the part is not read. Where the place of the part is not known, or is far in the file, all must come.
    is_plain = headers.get("content-encoding", "identity").lower() == "identity"
    if is_plain and part.stop is not None and part.suffix is None and part.stop <= _WHOLE_BYTES:
        return part.stop, True
    return _WHOLE_BYTES, False


def _checked_part(reply: Reply, part: ByteRange | None) -> tuple[str, Reply]:
    """Return what is wrong with an answer to a request for a part of a file, or for a whole one, and the part."""
    if part is None:
        return ("a part of the file came, and all of it was requested" if reply.status == 206 else ""), reply
    if reply.status == 416:
        raise ServerError(f"the bytes {part.header.partition('=')[2]} were requested, and {beyond(reply.headers)}")
    if reply.status == 206:
        return part.problem(reply.headers, len(reply.body)), reply
    encoding = reply.headers.get("content-encoding", "")
    try:
        whole = decompress(reply.body, encoding, _WHOLE_BYTES) if encoding else reply.body
    except ValueError as error:
        return f"the server sent all of a compressed file where a part was requested: {error}", reply
    headers = {k: v for k, v in reply.headers.items() if k != "content-encoding"}
    return "", reply._replace(status=206, headers=headers, body=part.cut(whole))


def _full(url: WebURL) -> str:
    return f"{url.scheme}://{url.netloc}{url.path}"


def _file_name(url: WebURL) -> str:
    return url.path.partition("?")[0].partition("#")[0].rpartition("/")[2]


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def _worth_retrying(error: Exception) -> bool:
    if isinstance(error, ServerError | SlowError | ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(error, OSError | http.client.HTTPException)


def _plain_cause(error: Exception) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its host was not found; is the address right, and is there a network?"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, ServerError | AddressError | TimeoutError | TooLargeError | ProtocolError):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _asked_to_wait(reply: Reply) -> float:
    said = reply.headers.get("retry-after", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time()) if said else 0.0
    except (TypeError, ValueError):
        return 0.0


def said(reply: Reply, secret: str = "") -> str:
    """Return what a server said of its refusal, in brackets and without a secret that it may repeat."""
    try:
        found = parse_json(reply.body)
        text = str(found.get("message") or found.get("error") or "") if isinstance(found, dict) else ""
    except ValueError:
        text = ""
    text = _hidden(text, secret)
    return f"({text[:200]})" if text else ""


def _hidden(text: str, secret: str) -> str:
    return text.replace(secret, "<token>") if secret else text


def _shown(url: str) -> str:
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


class _Held:
    """All that a process holds; a forked child has none of it, since sockets and locks are its parent's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gates: dict[str, _Gate] = {}
        self.lines = Lines()


_held = _Held()


def _renew() -> None:
    global _held
    _held.lines.close()
    _held = _Held()


atexit.register(lambda: _held.lines.close())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def _slot(host: str, limit: int, stop: threading.Event) -> Iterator[None]:
    with _held.lock:
        gate = _held.gates.setdefault(host, _Gate())
    with gate.free:
        while gate.busy >= limit:
            if stop.is_set():
                raise StoppedError(f"{host}: stopped")
            gate.free.wait(GLANCE)
        gate.waits.append(stop)
    try:
        yield
    finally:
        with gate.free:
            gate.waits.remove(stop)
            gate.free.notify()
