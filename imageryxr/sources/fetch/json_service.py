"""Requests to services that answer with JSON or binary numbers, and decompression of response bodies."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from imageryxr.sources.address import has_no_bucket_credentials
from imageryxr.sources.fetch.budget import SERVICE_REQUESTS
from imageryxr.sources.fetch.client import METADATA_BYTES, Connection, Reply, send_interruptible_request
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.url import MIDDLEAUTH
from imageryxr.sources.json_members import parse_json

_SAFE = "/!$&'()*+,;=:@-._~"


def decompress_body(reply: Reply, limit: int = METADATA_BYTES) -> bytes:
    """Return a response body without its Content-Encoding.

    Parameters
    ----------
    reply : Reply
        Response of a server.
    limit : int, default 64 MB
        Largest decompressed size in bytes.

    Raises
    ------
    ValueError
        If the body contradicts its headers or is too large.
    """
    return decompress(reply.body, reply.headers.get("content-encoding", ""), limit)


def web_folder(url: str) -> str | None:
    """Return the http(s) address of a folder, or None if it is not read over http(s).

    Public buckets are read over https, with the same checks as other servers. Buckets with stored credentials are read
    by their own clients.
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
    elif "." in bucket:  # the certificate of amazonaws.com does not cover host names with a further dot
        folder = f"https://s3.amazonaws.com/{bucket}"
    else:
        folder = f"https://{bucket}.s3.amazonaws.com"
    return f"{folder}/{quote(key, safe=_SAFE)}" if key else folder


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
    """Return the response of a service, of any status, with its body decompressed.

    Parameters
    ----------
    method, url, connection
        See `imageryxr.sources.fetch.client.send_request`.
    credential : Credential, optional
        Sent only if its policy allows the server to receive it.
    body, kind : bytes and str
        Request body and its content type.
    check : callable
        Returns the problem of a response with status 200, or an empty string. A problem leads to a retry.

    Raises
    ------
    ServerError
        If all attempts fail.
    """
    # Numbers compress badly. Some proxies compress them anyway.
    headers = {"Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = kind

    def checked(reply: Reply) -> str:
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
        check=checked,
        width=SERVICE_REQUESTS,
    )
    try:
        return reply._replace(body=decompress_body(reply))
    except ValueError:  # the body of an error response is not needed
        return reply
