"""Boxes of chunks that were read before: they are copied from the memory cache without a look-up of each chunk."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imageryxr.sources.fetch import memory_cache
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, cache_key
from imageryxr.sources.fetch.traffic import count


class Span(Protocol):
    """A chunk along one axis."""

    @property
    def taken(self) -> slice:
        """The part of the decoded chunk that lies in the box."""

    @property
    def place(self) -> slice:
        """Where this part lies in the box."""


Axes = Sequence[Sequence[Span]]


def copy_cached(store: ObjectStore, connection: Connection, name: Hashable, axes: Axes, out: npt.NDArray[Any]) -> bool:
    """Copy a box whose chunks are all in the memory cache, decoded; return False if one is not.

    Parameters
    ----------
    store, connection
        As in `engine.read_objects`.
    name : Hashable
        What distinguishes the chunks of the box, and their decoded forms, from others of the store.
    axes : sequence of sequence of Span
        The chunks along each axis.
    out : ndarray
        Receives the voxels of the box.
    """
    if not connection.cache_bytes or store.identity is None:
        return False
    box = memory_cache.cache.get_box((store.identity, name))
    if box is None:
        return False
    from imageryxr.kernels.gather import chunk_table, gather

    if box.table is None:
        box.table = chunk_table(box.chunks, [len(spans) for spans in axes])
    parts = [[(s.taken.start, s.taken.stop, s.place.start) for s in spans] for spans in axes]
    gather(box.table, [np.array(spans, np.int64) for spans in parts], out)
    count(in_memory=len(box.chunks))
    return True


def remember_box(
    store: ObjectStore,
    connection: Connection,
    name: Hashable,
    requests: Iterable[ObjectRequest | None],
    blank: npt.NDArray[Any] | None = None,
) -> None:
    """Let `copy_cached` find a box that was read, if its chunks are in the memory cache.

    The requests are those of its chunks in C order; None stands for a chunk that equals ``blank``.
    """
    identity = store.identity if connection.cache_bytes else None
    if identity is not None:
        keys = [None if one is None else (cache_key(identity, one), one.form) for one in requests]
        memory_cache.cache.put_box((identity, name), keys, blank)
