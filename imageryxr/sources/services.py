"""Asking services that answer with JSON or plain numbers, and what comes compressed for the way."""

from __future__ import annotations

import json
from collections.abc import Callable

from imageryxr.sources.access import Credential
from imageryxr.sources.web import Connection, Reply, ask_once


def unpacked(reply: Reply) -> bytes:
    """Return a body as it was before it was compressed for the way.

    Raises
    ------
    ValueError
        If it is not what its headers say.
    """
    encoding = reply.headers.get("content-encoding", "").lower()
    if encoding in ("", "identity"):
        return reply.body
    try:
        return _unpack(reply.body, encoding)
    except Exception as error:
        raise ValueError(f"its {encoding} compression is broken ({type(error).__name__}: {error})") from error


def _unpack(body: bytes, encoding: str) -> bytes:
    from cloudfiles import compression

    # CloudFiles' own choice among codecs prints the names of files that it cannot read.
    found = compression.gunzip(body) if encoding == "gzip" else compression.decompress(body, encoding)
    return bytes(found)


def no_json(reply: Reply) -> str:
    """Tell what is wrong with an answer that should be JSON."""
    try:
        json.loads(reply.body)
    except ValueError:
        return "the answer is not JSON"
    return ""


def ask_service(
    method: str,
    url: str,
    connection: Connection,
    credential: Credential | None,
    *,
    body: bytes | None = None,
    kind: str = "application/json",
    check: Callable[[Reply], str] = no_json,
) -> Reply:
    """Make one request to a service, and return the answer whatever its status, its body unpacked.

    Parameters
    ----------
    method, url, connection
        See `imageryxr.sources.web.ask`.
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
            return check(reply._replace(body=unpacked(reply)))
        except ValueError as error:
            return str(error)

    reply = ask_once(method, url, connection, body=body, headers=headers, credential=credential, check=checked)
    try:
        return reply._replace(body=unpacked(reply))
    except ValueError:  # of a refusal, whose status tells enough
        return reply
