"""Options of requests to web servers."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from imageryxr.core.validate import check_bytes, check_number, check_whole
from imageryxr.errors import OptionError, format_value
from imageryxr.sources.fetch.disk_cache import VARIABLE, absolute_folder
from imageryxr.sources.fetch.policy import Access

_SIZE = "a number of bytes, such as '256 MB', or 0"


@dataclass(frozen=True, slots=True)
class Connection:
    """Options of requests to web servers: timeout, retries and concurrency.

    A Connection is a plain value without open sockets. It is pickled with a source for every worker.

    Parameters
    ----------
    timeout : float, default 60
        Seconds that a response may take, from the first byte sent to the last byte received, including redirects. Every
        16 kB received extend it by a second, up to five times the timeout. A response that is still arriving at that
        time is an error without a retry; a request to a silent server is retried.
    concurrency : int, optional
        Simultaneous requests to one server, or to one bucket of a store, from all threads of a process; every worker
        process has its own limit. Default: 64 for object stores and file servers, 8 for CAVE services. A process makes
        at most 512 requests at once to all servers, whatever the concurrency. If a server throttles (429, 503), its
        number halves and recovers gradually.
    retries : int, default 5
        Largest number of retries after transient errors: 429, 5xx, timeouts, dropped connections and truncated bodies.
        401, 403 and 404 are final. Each retry is logged at level INFO by the loggers under ``imageryxr``.
    backoff : float, default 0.25
        Seconds before the first retry; the wait doubles with each further retry. A Retry-After header takes precedence,
        up to 30 s.
    memory_cache : int or str, default "256 MB"
        Size of the process's cache of encoded chunks of remote volumes, which all arrays share; the largest size given
        in a process applies. 0 reads without the cache. Missing chunks and local files are never cached.
    disk_cache : path or False, optional
        Folder on this machine for encoded chunks, shard indexes and annotations of remote layers, which processes
        share. An entry is used after the server has confirmed that the object did not change, or for as long as the
        server permitted.
        Default: the folder in the environment variable ``IMAGERYXR_DISK_CACHE``, if it is set. False reads without the
        cache. The folder must belong to the user, and others must not be able to write to it.
    disk_cache_size : int or str, default "20 GB"
        Size of that folder. The least recently used entries are dropped first.
    requester_pays : bool or str, default False
        Whether you pay for requests to buckets whose owner does not: True for ``s3://``; for ``gs://`` the id of the
        Google Cloud project to bill. The requests carry your credentials. Links never use it.

    Raises
    ------
    OptionError
        If a number is out of range, or `disk_cache` is not a folder of this machine.

    Examples
    --------
    >>> import imageryxr as ix
    >>> ix.Connection(timeout=10, concurrency=2)
    Connection(timeout=10, concurrency=2, retries=5, backoff=0.25, memory_cache='256 MB',
               disk_cache=None, disk_cache_size='20 GB', requester_pays=False)
    """

    timeout: float = 60.0
    concurrency: int | None = None
    retries: int = 5
    backoff: float = 0.25
    memory_cache: int | str = "256 MB"
    disk_cache: str | os.PathLike[str] | Literal[False] | None = None
    disk_cache_size: int | str = "20 GB"
    requester_pays: bool | str = False
    access: Access = field(default=Access(), repr=False, compare=False)
    """Servers that the requests may reach; set when a link is opened, not by callers."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0)):
            if name != "concurrency" or self.concurrency is not None:
                object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        for name, low in (("timeout", 1e-3), ("backoff", 0.0)):
            object.__setattr__(self, name, check_number(name, getattr(self, name), low, 1e6, unit="seconds"))
        if not isinstance(self.requester_pays, bool | str) or not re.fullmatch("[ -~]*", str(self.requester_pays)):
            raise OptionError(
                f"requester_pays={format_value(self.requester_pays)} is neither True nor the id of a project; write "
                "requester_pays=True for s3://, or requester_pays='my-project' for gs://"
            )
        _ = self.cache_bytes, self.disk_cache_bytes
        if self.disk_cache is not None and self.disk_cache is not False:
            object.__setattr__(self, "disk_cache", absolute_folder(self.disk_cache))

    @property
    def cache_bytes(self) -> int:
        """Size of the memory cache in bytes."""
        return check_bytes("memory_cache", self.memory_cache, _SIZE, 0)

    @property
    def disk_cache_bytes(self) -> int:
        """Size of the disk cache in bytes."""
        return check_bytes("disk_cache_size", self.disk_cache_size, _SIZE, 0)

    @property
    def disk_folder(self) -> str | None:
        """Folder of the disk cache, or None."""
        folder = os.environ.get(VARIABLE) or None if self.disk_cache is None else self.disk_cache
        return absolute_folder(folder) if folder and self.disk_cache_bytes else None


DEFAULT_CONNECTION = Connection()
"""The options of requests for which the caller gives none."""


def to_connection(value: Any) -> Connection:
    """Return the options of requests that a caller gave; the default ones for None.

    Raises
    ------
    OptionError
        If the value is neither a `Connection` nor None.
    """
    if value is None or isinstance(value, Connection):
        return value or DEFAULT_CONNECTION
    known = ", ".join(f"{name}={given!r}" for name, given in value.items()) if isinstance(value, dict) else "timeout=30"
    raise OptionError(
        f"connection={format_value(value)} is of type {type(value).__name__}; write "
        f"connection=imageryxr.Connection({known})"
    )
