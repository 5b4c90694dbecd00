"""Requests to services that answer with JSON or binary numbers, and decompression of response bodies."""

from __future__ import annotations

from collections.abc import Callable

from imageryxr.core.validate import parse_json
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.budget import SERVICE_REQUESTS
from imageryxr.sources.fetch.client import METADATA_BYTES, send_interruptible_request
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.policy import Credential


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
