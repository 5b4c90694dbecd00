"""Objects of a folder on a web server, by name: what a Zarr consists of."""

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

# What a URL's path may hold besides letters and digits: all else in the name of an object is percent-encoded.
_SAFE = "/!$&'()*+,;=:@-._~"


class ForbiddenObjectError(PermissionError):
    """An object that the server does not let be read (403): a bucket's answer for one that is not there, too."""


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
    """Return an object of a folder on a web server, or None where there is none.

    Parameters
    ----------
    folder, key : str
        Address of the folder, and the object's path in it.
    connection, credential
        How the server is asked.
    part : ByteRange, optional
        The part to return.
    limit : int, default 64 MB
        Bytes that the object may have, compressed for the way or not.
    stop : Event, optional
        Set when nobody waits for the object any more.

    Raises
    ------
    PermissionError
        If it may not be read: `ForbiddenObjectError` for a 403.
    ServerError, ValueError
        If it did not come, or is broken or too large.
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
        raise PermissionError(f"the request for {key} was sent on to {reply.redirected_to}, a login page?")
    if reply.status == 403:
        raise ForbiddenObjectError(f"HTTP 403: {key}")
    if reply.status == 401:
        raise PermissionError(f"HTTP 401: {key}")
    if reply.status != 404:
        raise ServerError(f"HTTP {reply.status} for {key}")


async def run_in_thread(work: Callable[[threading.Event], Any], outer: threading.Event | None = None) -> Any:
    """Return what a function returns, called in a thread of its own, which nothing waits for once it is cancelled.

    The function gets the event that ends its requests: ``outer``, or one that is set on cancellation.
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
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, daemon=True, name="imageryxr-zarr").start()
    try:
        return await done
    finally:
        stop.set()
