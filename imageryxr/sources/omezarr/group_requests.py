"""Requests for the metadata of a remote group, before its layout is known.

The metadata of a group name its arrays, so the metadata of the arrays would take a second round trip. Most images have
few levels with the usual names. The metadata of arrays with these names are requested together with those of the
group, and the metadata of other arrays afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from imageryxr.sources.address import Address
from imageryxr.sources.base import MetadataFile
from imageryxr.sources.fetch.budget import FILE_REQUESTS
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.threads import run_all, start_all
from imageryxr.sources.omezarr.stores import fetch_json_file

GROUP_KEYS = ("zarr.json", ".zattrs")
USUAL_LEVELS = ("0", "1", "2", "s0", "s1", "s2")
"""Names of arrays that are requested before the group names them."""
_ARRAY_KEYS = ("zarr.json", ".zarray")

PendingFile = Callable[[], MetadataFile | None]
"""Function that waits for a requested file; returns None if it does not exist, and raises the error of the request."""
GroupFiles = Sequence[PendingFile]
"""Functions that return the ``zarr.json`` and the ``.zattrs`` of a group; None for a file that does not exist."""


class Requested(NamedTuple):
    """Pending requests for the metadata of a group and its arrays."""

    group: GroupFiles | None
    """None for a local group, whose files are read one by one."""
    arrays: Mapping[str, PendingFile]
    """Functions by key that return the metadata of an array; None if the file does not exist."""


def request_group(address: Address, token: str | None, connection: Connection) -> GroupFiles:
    """Request the ``zarr.json`` and the ``.zattrs`` of a group in parallel; return a function for each file."""
    return run_all([partial(fetch_json_file, address, token, key, connection) for key in GROUP_KEYS])


@contextmanager
def requested_metadata(
    address: Address, token: str | None, connection: Connection, group: GroupFiles | None
) -> Iterator[Requested]:
    """Request the metadata of a group and of arrays with the usual names in parallel.

    Each function waits for its own request only. Requests that still run at the end of the context are stopped.

    Parameters
    ----------
    address, token, connection
        See `fetch_json_file`.
    group : sequence of callable or None
        Result of `request_group`; then nothing else is requested.
    """
    if group is not None or address.local_path is not None:
        yield Requested(group, {})
        return
    arrays = [f"{level}/{key}" for level in USUAL_LEVELS for key in _ARRAY_KEYS]
    if (connection.concurrency or FILE_REQUESTS) < len(GROUP_KEYS) + len(arrays):
        arrays = []  # with so few requests at once, these would delay the requests for the group
    calls = [partial(fetch_json_file, address, token, key, connection) for key in (*GROUP_KEYS, *arrays)]
    with start_all(calls) as files:
        yield Requested(files[: len(GROUP_KEYS)], dict(zip(arrays, files[len(GROUP_KEYS) :], strict=True)))
