"""Asking web servers: timeouts, retries, a cap on requests at a time, and an end when somebody stops it.

CloudVolume and caveclient ask without timeouts, and retry a refused token for minutes; so what goes over http and
belongs to volumes goes through here. urllib3 makes the connections. Every request runs in a thread that nothing waits
for once its caller has gone: Ctrl-C returns at once, whatever a server does.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # registers its own end of Python before ours, below
import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

from imageryxr.errors import OptionError, ServerError
from imageryxr.sources.access import Access, Credential

Job = TypeVar("Job")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)

# How often a waiting thread looks whether it should still wait.
_GLANCE = 0.2
# A whole answer may take this many times as long as a server may stay silent.
_PATIENCE = 5
_PIECE = 1 << 20
LONGEST_WAIT = 30.0
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Connection:
    """How servers are asked: how long to wait, how often to try again, how many requests at a time.

    A value; it holds no connection. It travels with a source to every worker.

    Parameters
    ----------
    timeout : float, default 60
        Seconds that a server may stay silent; a whole answer may take five times as long.
    concurrency : int, default 8
        Requests at a time to one server, from all threads of a process together. Take less where a server throttles,
        and keep in mind that every worker process has its own.
    retries : int, default 5
        How often a request is made again that met 429, 5xx, a dropped connection or a body cut short. 401, 403 and
        404 are final. Each is logged at level INFO, by the loggers under ``imageryxr``.
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


class StoppedError(ServerError):
    """The caller has gone."""


def host_of(url: str) -> str:
    """Return a URL's host with its port: what is one server."""
    return urlsplit(url).netloc.rpartition("@")[2]


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

    Raises
    ------
    ServerError
        If there was no sensible answer.
    """
    stop = stop or threading.Event()
    request = _Request(method, url, connection, body, dict(headers or {}), credential, stop, follow)
    problem = ""
    for attempt in range(connection.retries + 1):
        pause = 0.0
        try:
            reply = _follow(request)
            problem = f"HTTP {reply.status} {said(reply, request.secret)}".strip() if _may_pass(reply.status) else ""
            if not problem and check is not None and reply.status == 200 and not reply.is_page:
                problem = check(reply)
            if not problem:
                return reply
            pause = _asked_to_wait(reply)
        except StoppedError:
            raise
        except Exception as error:
            problem = _plain_cause(error)
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


def in_parallel(work: Callable[[Job, threading.Event], Result], jobs: Sequence[Job], width: int) -> list[Result]:
    """Do jobs in up to ``width`` threads; the first error ends it.

    Whoever waits here can be interrupted: jobs that still run are told so by the event that they are given, those
    within them, too, and nothing waits for them.
    """
    outer: threading.Event | None = getattr(_within, "stop", None)
    stop, numbers = threading.Event(), count()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        _within.stop = stop
        while not stop.is_set() and (number := next(numbers)) < len(jobs):
            try:
                done.put((number, work(jobs[number], stop), None))
            except BaseException as error:
                done.put((number, None, error))
                return

    for _ in range(min(width, len(jobs))):
        threading.Thread(target=run, daemon=True, name="imageryxr-web").start()
    results: list[Any] = [None] * len(jobs)
    try:
        for _ in jobs:
            number, result, error = _take(done, outer)
            if error is not None:
                raise error
            results[number] = result
    finally:
        stop.set()
    return results


def ask_once(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Make one request, so that whoever waits for it can be interrupted; see `ask`."""
    return in_parallel(lambda _, stop: ask(method, url, connection, stop=stop, **options), [None], 1)[0]


@contextmanager
def stopped_by(event: threading.Event | None) -> Iterator[None]:
    """End the requests that this thread waits for when an event is set."""
    before = getattr(_within, "stop", None)
    _within.stop = event
    try:
        yield
    finally:
        _within.stop = before


def _take(done: queue.SimpleQueue[Any], outer: threading.Event | None) -> Any:
    while True:
        try:
            return done.get(timeout=_GLANCE)
        except queue.Empty:
            if _closing.is_set() or (outer is not None and outer.is_set()):
                raise StoppedError("nobody waits for this any more") from None


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
    secret: str = ""
    """What was sent in secret: error messages of the server do not show it."""


def _follow(request: _Request) -> Reply:
    url, credential, method = request.url, request.credential, request.method
    name = urlsplit(url).path.rpartition("/")[2]
    for _ in range(5):
        header = credential.header_for(url, request.connection.access) if credential is not None else None
        headers = request.headers if header is None else {**request.headers, "Authorization": Hidden(header)}
        request.secret = Hidden((header or request.secret).rpartition(" ")[2])
        reply = _once(request, url, headers)
        if urlsplit(url).path.rpartition("/")[2] != name:
            reply = reply._replace(sent_on=_shown(url))
        place = reply.headers.get("location", "")
        target = urljoin(url, place) if place else ""
        if not request.follow or not reply.went_elsewhere or not target.startswith(("http://", "https://")):
            return reply
        at_home = host_of(target) == host_of(url) and target.split(":")[0] in (url.split(":")[0], "https")
        # What was sent along goes nowhere else, and to the same server only where it says that it moved for good or
        # ill (307, 308), or wants https: else it is the way to a login.
        moved = reply.status in (307, 308) or target == url.replace("http://", "https://", 1)
        if method != "GET" and not (at_home and moved):
            return reply
        if not at_home:  # what is secret stays with the server that it is for
            credential = None
        url = target
    raise ServerError(f"{_shown(url)} sends round in circles")


def _once(request: _Request, url: str, headers: dict[str, str]) -> Reply:
    from urllib3 import Timeout

    connection, stop = request.connection, request.stop
    deadline = time.monotonic() + _PATIENCE * connection.timeout
    with _slot(host_of(url), connection.concurrency, stop):
        response = _connections(url).request(
            request.method,
            url,
            body=request.body,
            headers=headers,
            timeout=Timeout(connect=connection.timeout, read=connection.timeout),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            pieces = []
            while piece := response.read(_PIECE):
                pieces.append(piece)
                if stop.is_set():
                    raise StoppedError(f"{_shown(url)}: stopped")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not all came within {_PATIENCE * connection.timeout:g} s")
            found = {k.lower(): v for k, v in response.headers.itermerged()}
        except BaseException:
            response.close()  # what is left of the answer must not be taken for the next one
            raise
        response.release_conn()
    return Reply(int(response.status), found, b"".join(pieces))


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def _worth_retrying(error: Exception) -> bool:
    from urllib3.exceptions import HTTPError, LocationParseError, SSLError

    if isinstance(error, SSLError | LocationParseError | ServerError):
        return False
    return isinstance(error, HTTPError | OSError)


def _plain_cause(error: Exception) -> str:
    from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ReadTimeoutError

    if isinstance(error, NameResolutionError):
        return "its host was not found; is the address right, and is there a network?"
    if isinstance(error, NewConnectionError) and "refused" in str(error):
        return "nothing listens there (connection refused)"
    text = str(error).partition(": ")[2] if isinstance(error, NewConnectionError) else str(error)
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError) and not isinstance(error, NewConnectionError):
        return "no answer within the timeout"
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
        found = json.loads(reply.body)
        text = str(found.get("message") or found.get("error") or "") if isinstance(found, dict) else ""
    except ValueError:
        text = ""
    text = text.replace(secret, "<token>") if secret else text
    return f"({text[:200]})" if text else ""


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"


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
        self.managers: dict[str, Any] = {}


_held = _Held()
_closing = threading.Event()
_within = threading.local()  # the event of the jobs that a thread works for


def _renew() -> None:
    global _held
    _held = _Held()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
# Python joins the threads of pools, such as dask's, before it ends: those that wait here should not make it wait. What
# was registered last is called first, and so before concurrent.futures joins its threads.
getattr(threading, "_register_atexit", lambda function: None)(_closing.set)


@contextmanager
def _slot(host: str, limit: int, stop: threading.Event) -> Iterator[None]:
    with _held.lock:
        gate = _held.gates.setdefault(host, _Gate())
    with gate.free:
        while gate.busy >= limit:
            if stop.is_set():
                raise StoppedError(f"{host}: stopped")
            gate.free.wait(_GLANCE)
        gate.waits.append(stop)
    try:
        yield
    finally:
        with gate.free:
            gate.waits.remove(stop)
            gate.free.notify()


def _connections(url: str) -> Any:
    from urllib.request import getproxies, proxy_bypass

    from urllib3 import PoolManager, ProxyManager

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme, "")
    if proxy and proxy_bypass(parts.hostname or ""):
        proxy = ""
    with _held.lock:
        if proxy not in _held.managers:
            options: dict[str, Any] = {"num_pools": 64, "maxsize": 64, "ca_certs": _certificates()}
            _held.managers[proxy] = ProxyManager(proxy, **options) if proxy else PoolManager(**options)
        return _held.managers[proxy]


def _certificates() -> str:
    import certifi

    named = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return next((path for path in named if path and os.path.isfile(path)), certifi.where())
