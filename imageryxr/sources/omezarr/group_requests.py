"""Requests for the metadata of a remote group, before its layout is known.

The group names its arrays, so that their metadata would take a second round trip. Most images have few levels with the
usual names. Their metadata are requested together with those of the group, and those of other names afterwards.
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
"""Functions that return the ``zarr.json`` and the ``.zattrs`` of a group, None if it does not exist."""


class Requested(NamedTuple):
    """Metadata that were requested."""

    group: GroupFiles | None
    """None for a local group, whose files are read one by one."""
    arrays: Mapping[str, PendingFile]
    """Functions that return the metadata of arrays by key, None if they do not exist."""


def request_group(address: Address, token: str | None, connection: Connection) -> GroupFiles:
    """Request the ``zarr.json`` and the ``.zattrs`` of a group at once; functions return them or raise their error."""
    return run_all([partial(fetch_json_file, address, token, key, connection) for key in GROUP_KEYS])


@contextmanager
def requested_metadata(
    address: Address, token: str | None, connection: Connection, group: GroupFiles | None
) -> Iterator[Requested]:
    """Request the metadata of a group and of arrays with the usual names at once.

    The functions wait for their own answers only. Requests whose answers were not needed end with the context.

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
        arrays = []  # they would delay the requests that are needed
    calls = [partial(fetch_json_file, address, token, key, connection) for key in (*GROUP_KEYS, *arrays)]
    with start_all(calls) as files:
        yield Requested(files[: len(GROUP_KEYS)], dict(zip(arrays, files[len(GROUP_KEYS) :], strict=True)))
