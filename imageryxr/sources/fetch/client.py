"""Requests to web servers with timeouts, retries, a limit of concurrent requests and cancellation.

CloudVolume and caveclient make requests without timeouts, and retry a rejected token for minutes. Therefore all http
requests for volumes use this module. `attempt` makes one request. Every request runs in a daemon thread, so Ctrl-C
returns at once even if a server does not answer.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from imageryxr.core.validate import parse_json
from imageryxr.errors import AddressError, AuthError, ServerError
from imageryxr.sources.fetch.attempt import Reply, Request, check_part, send_following_redirects
from imageryxr.sources.fetch.budget import FILE_REQUESTS, SERVICE_REQUESTS
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.policy import Credential, is_cave_server
from imageryxr.sources.fetch.sockets import ProtocolError, SlowError, Steps, StoppedError, Wait, run
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import WebURL, parse_web_url

_log = logging.getLogger(__name__)

# Longest wait before a retry, in seconds.
LONGEST_WAIT = 30.0
# Largest size of a metadata file in bytes.
METADATA_BYTES = 64 << 20


class LargeBodyError(ServerError):
    """A response whose body exceeds the limit of its request."""


def send_request(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Return the response to a request, of any status, after retries of transient errors; see `request_steps`."""
    return run(request_steps(method, url, connection, **options))


def request_steps(
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
) -> Steps[Reply]:
    """Return the response to a request, of any status, after retries of transient errors.

    Secrets must not be in `headers`; `credential` returns the Authorization header for the URL and for each redirect
    within its origin. `check` returns the problem of a response with status 200, such as a short body, which leads to a
    retry, or an empty string. `stop` cancels the request. Without `follow`, redirects are returned. `limit` is the
    largest body of a response with status 200 in bytes.

    With `part`, the response has status 206 and that range, even if the server ignores ranges; it is shorter if the
    file ends within the range. `width` is the number of simultaneous requests to the server, unless the connection
    states it. Default: 8 for CAVE's servers, 64 for others.
    """
    stop = stop or threading.Event()
    address = parse_web_url(url)
    width = connection.concurrency or width or default_width(address)
    sent = dict(headers or {})
    request = Request(method, address, connection, body, sent, credential, stop, follow, limit, part, width)
    problem, kind = "", ServerError
    for attempt in range(connection.retries + 1):
        pause = 0.0
        try:
            reply = yield from send_following_redirects(request)
            problem = (
                f"HTTP {reply.status} {server_message(reply, request.secret)}".strip()
                if _is_transient(reply.status)
                else ""
            )
            if not problem and reply.status in (200, 206, 416) and not reply.is_html:
                problem, reply = check_part(reply, part)
            if not problem and check is not None and reply.status in (200, 206) and not reply.is_html:
                problem = check(reply)
            if not problem:
                return reply
            pause = _retry_after(reply)
        except StoppedError:
            raise StoppedError(f"{address.public}: stopped") from None
        except AuthError:
            raise  # the credential has no valid token, so no request was sent
        except Exception as error:
            problem = _hide_secret(_error_message(error), request.secret)[:500]
            if not _is_retryable(error):
                kind = LargeBodyError if isinstance(error, TooLargeError) else ServerError
                break
        if attempt < connection.retries:
            pause = max(pause, connection.backoff * 2**attempt * random.uniform(0.75, 1.25))
            pause = min(pause, LONGEST_WAIT)
            again = (address.public, problem, pause, attempt + 2, connection.retries + 1)
            _log.info("%s: %s; retrying in %.1f s, attempt %d of %d", *again)
            yield Wait(pause, block=stop.wait)
            if stop.is_set():
                raise StoppedError(f"{address.public}: stopped")
    attempts = f" after {attempt + 1} attempts" if attempt else ""
    raise kind(f"the request to {address.public} failed{attempts}: {problem}")


def default_width(url: WebURL) -> int:
    """Return the default number of simultaneous requests to a server."""
    return SERVICE_REQUESTS if is_cave_server(url) else FILE_REQUESTS


def send_interruptible_request(method: str, url: str, connection: Connection, **options: Any) -> Reply:
    """Return the response to a request that Ctrl-C can interrupt; see `request_steps`."""
    return run_in_parallel(lambda _, stop: send_request(method, url, connection, stop=stop, **options), [None], 1)[0]


def _is_transient(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def _is_retryable(error: Exception) -> bool:
    if isinstance(error, ServerError | SlowError | ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(error, OSError)


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


def decompress_body(reply: Reply, limit: int = METADATA_BYTES) -> bytes:
    """Return a response body without its Content-Encoding, at most `limit` bytes.

    `ValueError` is raised if the body does not have the encoding in its headers, or is too large.
    """
    return decompress(reply.body, reply.headers.get("content-encoding", ""), limit)


def json_problem(reply: Reply) -> str:
    """Return the problem of a response that is not JSON, or an empty string."""
    try:
        parse_json(reply.body)
    except ValueError:
        return "the answer is not JSON"
    return ""


def request_service(
    method: str,
    url: str,
    connection: Connection,
    credential: Credential | None,
    *,
    body: bytes | None = None,
    kind: str = "application/json",
    check: Callable[[Reply], str] = json_problem,
) -> Reply:
    """Return the response of a service, of any status, with its body decompressed; see `client.send_request`.

    `kind` is the content type of the request body. `check` returns the problem of a response with status 200, which
    leads to a retry, or an empty string.
    """
    # Ids compress badly. Some proxies compress the answer anyway, so it is decompressed below.
    headers = {"Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = kind

    def check_body(reply: Reply) -> str:
        try:
            return check(reply._replace(body=decompress_body(reply)))
        except ValueError as error:
            return str(error)

    reply = send_interruptible_request(
        method,
        url,
        connection,
        body=body,
        headers=headers,
        credential=credential,
        check=check_body,
        width=SERVICE_REQUESTS,
    )
    try:
        return reply._replace(body=decompress_body(reply))
    except ValueError:  # the body of an error response is not needed
        return reply
