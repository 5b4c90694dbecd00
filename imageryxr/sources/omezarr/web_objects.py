"""Requests for objects in a folder on a web server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from imageryxr.errors import ServerError
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import METADATA_BYTES, Connection, Reply, send_request
from imageryxr.sources.fetch.json_service import decompress_body
from imageryxr.sources.fetch.policy import Credential

# Characters, besides letters and digits, that are not percent-encoded in the path of a URL.
_SAFE = "/!$&'()*+,;=:@-._~"


class ForbiddenObjectError(PermissionError):
    """An object for which the server answers 403; buckets also answer 403 for missing objects."""


def fetch_object(
    folder: str,
    key: str,
    connection: Connection,
    credential: Credential | None,
    *,
    part: ByteRange | None = None,
    limit: int = METADATA_BYTES,
    stop: threading.Event | None = None,
) -> bytes | None:
    """Return an object in a folder on a web server, or None if it does not exist.

    Parameters
    ----------
    folder, key : str
        Address of the folder, and path of the object in it.
    connection, credential
        Options and credential of the request.
    part : ByteRange, optional
        Range to return.
    limit : int, default 64 MB
        Largest size of the object in bytes, before and after decompression.
    stop : Event, optional
        Set to cancel the request.

    Raises
    ------
    PermissionError
        If access is denied: `ForbiddenObjectError` for a 403.
    ServerError, ValueError
        If the request fails, or the object is damaged or too large.
    """
    url = f"{folder}/{quote(key, safe=_SAFE)}"
    headers = {"Accept-Encoding": "identity"}
    reply = send_request(
        "GET", url, connection, headers=headers, credential=credential, part=part, limit=limit, stop=stop
    )
    if reply.status in (200, 206):
        return reply.body if part is not None else decompress_body(reply, limit)
    _check_absent(reply, key)
    return None


def _check_absent(reply: Reply, key: str) -> None:
    if reply.redirected_to and reply.status in (403, 404):
        raise PermissionError(f"{key} was redirected to {reply.redirected_to}, which may be a login page")
    if reply.status == 403:
        raise ForbiddenObjectError(f"HTTP 403: {key}")
    if reply.status == 401:
        raise PermissionError(f"HTTP 401: {key}")
    if reply.status != 404:
        raise ServerError(f"HTTP {reply.status} for {key}")


async def run_in_thread(work: Callable[[threading.Event], Any], outer: threading.Event | None = None) -> Any:
    """Return the result of a function that runs in a new daemon thread, which is not joined on cancellation.

    The function receives the event that stops its requests: ``outer``, or one that is set on cancellation.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    stop = threading.Event()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result, problem = None, None
        try:
            result = work(outer or stop)
        except BaseException as error:
            problem = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, daemon=True, name="imageryxr-zarr").start()
    try:
        return await done
    finally:
        stop.set()
