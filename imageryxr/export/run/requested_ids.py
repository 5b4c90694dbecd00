"""Requested ids that do not occur in the data: regions return which ids they contain, and the export combines them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.graph.expr import Expr, Resampled
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.selection import Strided
from imageryxr.ops.segment_ids import RequestedIds, RequestsIds

SeenBits = tuple[tuple[str, bytes], ...]
"""Per set of requested ids: the start of its digest, and one bit per id that is set if the id occurs."""
FoundPlaces = dict[str, tuple[int, ...]]
"""Per set of requested ids: the start of its digest, and the indices of some of its ids."""


def pack_seen(seen: dict[bytes, npt.NDArray[np.bool_]]) -> SeenBits:
    """Return the ids that a region contains in the form that is sent with its outcome."""
    return tuple((_short_digest(packed), np.packbits(found).tobytes()) for packed, found in seen.items())


def _short_digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[:16]


def _fully_read_nodes(expr: Expr, box: IndexBox) -> Iterator[tuple[Expr, IndexBox]]:
    """Yield the expressions below one whose voxels are all read for a box, each with its box.

    An oblique plane reads few voxels of its input, and a coarser grid skips voxels; what lies below them is left out.
    """
    box = box.clip(expr.bounds)
    if not box.voxels:
        return
    yield expr, box
    skips = isinstance(expr, Resampled) and any(along.scale > 1 for along in expr.grid_map.axes)
    if skips or isinstance(expr, PlaneSlice | Strided):
        return
    for child, need in zip(expr.inputs, expr.needs(box), strict=True):
        yield from _fully_read_nodes(child, need)


class IdTracker:
    """Records which requested ids the regions of an export contain.

    Sets of ids that were requested of a larger box than the exported one are ignored.
    """

    def __init__(self, expr: Expr, box: IndexBox) -> None:
        self._ids: dict[str, RequestedIds] = {}
        self._found: dict[str, npt.NDArray[np.bool_]] = {}
        self._unseen = False
        for node, part in _fully_read_nodes(expr, box):
            request = node.request() if isinstance(node, RequestsIds) else None
            if request is not None and part.contains(request[1]):
                requested, name = request[0], _short_digest(request[0].packed)
                self._ids[name] = requested
                self._found[name] = np.zeros(len(requested.array), np.bool_)

    def record(self, region: SeenBits | None) -> FoundPlaces | None:
        """Record the ids of a region; return the indices of those that no earlier region contained.

        `region` is None if parts of the region were made by an earlier run, so that its ids are unknown. The result
        is then None.
        """
        if region is None or not self._ids:
            self._unseen |= region is None
            return None
        new = {}
        for name, bits in region:
            if name in self._found:
                found = self._found[name]
                here = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(found)).astype(np.bool_)
                new[name] = tuple(np.flatnonzero(here & ~found).tolist())
                found |= here
        return {name: places for name, places in new.items() if places}

    def resume(self, ids: dict[str, set[int]], known: bool) -> None:
        """Record the ids of regions that an earlier run has made; `known` states that they are complete."""
        self._unseen |= not known
        for name, places in ids.items():
            if name in self._found and max(places, default=0) < len(self._found[name]):
                self._found[name][list(places)] = True

    def absent(self) -> tuple[int, ...]:
        """Return the requested ids that no region contains, ascending; empty if the ids of a region are unknown."""
        return tuple(sorted(set(self._absent(self._ids))))

    def _absent(self, names: Iterable[str]) -> list[int]:
        return [] if self._unseen else [i for n in names for i in self._ids[n].array[~self._found[n]].tolist()]

    def warn(self) -> None:
        """Warn of the requested ids that no region contains."""
        for name, requested in self._ids.items():
            absent = self._absent([name])
            if absent:
                warn(requested.missing_message(absent), MissingIdsWarning)
