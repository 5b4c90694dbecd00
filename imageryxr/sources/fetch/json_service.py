"""Asking services that answer with JSON or plain numbers, and what comes compressed for the way."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from imageryxr.sources.address import has_no_bucket_credentials
from imageryxr.sources.fetch.client import METADATA_BYTES, Connection, Reply, send_interruptible_request
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.url import MIDDLEAUTH
from imageryxr.sources.json_members import parse_json

_SAFE = "/!$&'()*+,;=:@-._~"


def decompress_body(reply: Reply, limit: int = METADATA_BYTES) -> bytes:
    """Return a body as it was before it was compressed for the way.

    Parameters
    ----------
    reply : Reply
        What a server answered.
    limit : int, default 64 MB
        Bytes that may come out.

    Raises
    ------
    ValueError
        If it is not what its headers say, or larger.
    """
    return decompress(reply.body, reply.headers.get("content-encoding", ""), limit)


def web_folder(url: str) -> str | None:
    """Return the http(s) address of a folder, or None where it is read in another way.

    Public buckets are read over https: their servers are resolved and checked as all others are. Buckets that the user
    has credentials for are read by their own clients.
    """
    plain = url.removeprefix(MIDDLEAUTH)
    if plain.startswith(("http://", "https://")):
        return plain
    if not has_no_bucket_credentials(url):
        return None
    scheme, _, place = url.partition("://")
    bucket, _, key = place.partition("/")
    if scheme == "gs":
        folder = f"https://storage.googleapis.com/{bucket}"
    elif "." in bucket:  # which no certificate of a bucket's own host fits
        folder = f"https://s3.amazonaws.com/{bucket}"
    else:
        folder = f"https://{bucket}.s3.amazonaws.com"
    return f"{folder}/{quote(key, safe=_SAFE)}" if key else folder


def json_problem(reply: Reply) -> str:
    """Tell what is wrong with an answer that should be JSON."""
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
    """Make one request to a service, and return the answer whatever its status, its body unpacked.

    Parameters
    ----------
    method, url, connection
        See `imageryxr.sources.fetch.client.ask`.
    credential : Credential, optional
        What the service is asked with, where it may have it.
    body, kind : bytes and str
        What to send along, and of which content type that is.
    check : callable
        Tells what is wrong with a 200; then it is tried again.

    Raises
    ------
    ServerError
        If there was no sensible answer.
    """
    # The numbers are not worth compressing. Proxies have been seen to do it all the same.
    headers = {"Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = kind

    def checked(reply: Reply) -> str:
        try:
            return check(reply._replace(body=decompress_body(reply)))
        except ValueError as error:
            return str(error)

    reply = send_interruptible_request(
        method, url, connection, body=body, headers=headers, credential=credential, check=checked
    )
    try:
        return reply._replace(body=decompress_body(reply))
    except ValueError:  # of a refusal, whose status tells enough
        return reply
