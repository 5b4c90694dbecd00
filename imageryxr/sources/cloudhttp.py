"""How CloudVolume reads over the web: which answers are final, and which are none.

By itself it asks seven times, over a quarter of a minute, whether a refusal was meant; it takes a login page that it
was sent on to, and which is not there, for a missing chunk; and it waits for an answer for ever.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from imageryxr.sources.base import plain

_VOXELS = re.compile(r"^(info|[0-9a-f]+\.shard|-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+)$")
_TIMEOUT = (15, 180)
"""Seconds to wait for a connection, and for each part of an answer."""
_MARK = "imageryxr-asked-for="


@lru_cache(maxsize=1)
def prepare_http() -> None:
    """Set up CloudFiles' access to web servers in this process and those forked from it; once.

    Only answers to requests for ``info`` files, chunks and shards are looked at, by their names.
    """
    from cloudfiles.interfaces import HttpInterface

    for name in ("get_file", "head", "exists"):
        getattr(HttpInterface, name).retry.retry = _is_worth_another_try
    HttpInterface.adaptor = _adaptor_class()()
    if hasattr(os, "register_at_fork"):
        # Its sockets belong to the class: a forked child would read its parent's answers from them.
        os.register_at_fork(after_in_child=lambda: setattr(HttpInterface, "adaptor", _adaptor_class()()))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason_of(error: BaseException) -> str:
    """Return in plain words why a server could not be asked."""
    from requests import exceptions

    host = urlsplit(getattr(getattr(error, "request", None), "url", None) or "").netloc.rpartition("@")[2]
    text = str(error)
    if isinstance(error, exceptions.ProxyError):
        return "the proxy that is set for the network does not answer"
    if isinstance(error, exceptions.SSLError):
        return f"the certificate of {host} is not trusted, or it does not speak TLS"
    if isinstance(error, exceptions.Timeout):
        return f"{host} did not answer in time"
    if isinstance(error, exceptions.ConnectionError) and host:
        if "NameResolution" in text or "getaddrinfo" in text:
            return f"the host {host} was not found; is the address right, and is there a network?"
        if "refused" in text:
            return f"nothing listens at {host}"
        return f"the connection to {host} failed"
    status = status_of(error)
    if status is not None:
        return f"the server answered {plain(error)}"
    return f"{type(error).__name__}: {plain(error)}"


def _is_worth_another_try(state: Any) -> bool:
    error = state.outcome.exception() if state.outcome.failed else None
    if error is None:
        return False
    status = status_of(error)
    if status is not None and 400 <= status < 500:
        return status in (408, 425, 429)
    # Somebody waits for the answer to the first request, and may have mistyped the address.
    is_opening = bool(state.args[1:]) and str(state.args[1]).endswith("info")
    return status is not None or not is_opening or state.attempt_number < 3


@lru_cache(maxsize=1)
def _adaptor_class() -> Any:
    from requests.adapters import HTTPAdapter

    class Adaptor(HTTPAdapter):
        """Connections that wait for a bounded time, and know when a request for voxels was sent elsewhere."""

        def send(self, request: Any, stream: bool = False, timeout: Any = None, *args: Any, **kwargs: Any) -> Any:
            url = urlsplit(request.url)
            name = url.path.rpartition("/")[2]
            moved = url.fragment.startswith(_MARK)
            asked = url.fragment.removeprefix(_MARK) if moved else name
            if not _VOXELS.match(asked):
                return super().send(request, stream, timeout, *args, **kwargs)
            response = super().send(request, stream, timeout or _TIMEOUT, *args, **kwargs)
            place = response.headers.get("location", "")
            if response.is_redirect and "#" not in place:
                response.headers["location"] = f"{place}#{_MARK}{asked}"  # never goes over the wire
            elif moved and name != asked and response.status_code in (403, 404):
                # A store that keeps voxels elsewhere has them there: what is not there is no place for them.
                response.status_code, response.url = 401, request.url.partition("#")[0]
                response.reason = f"the request was sent on to {url.scheme}://{url.netloc}{url.path}, a login page?"
            return response

    return Adaptor
