"""Ids that were asked for and are nowhere: each region tells which it has, wherever it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.graph.expr import Expr, Resampled
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.strides import Strided
from imageryxr.ops.labels import RequestedIds

Told = tuple[tuple[str, bytes], ...]
"""Of each set of ids, by the start of its digest, a bit an id: whether it was there."""
Found = tuple[tuple[str, tuple[int, ...]], ...]
"""Of each set of ids, the places of some."""


def told(seen: dict[bytes, npt.NDArray[np.bool_]]) -> Told:
    """Return what travels with a region of what it has seen."""
    return tuple((_name(packed), np.packbits(found).tobytes()) for packed, found in seen.items())


def _name(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[:16]


def _wholly_read(expr: Expr, box: IndexBox) -> Iterator[tuple[Expr, IndexBox]]:
    """Return all that is made on the way to a box of which every voxel is, however the box is cut.

    A plane at an angle passes most of them by, and a coarser grid those between two of its own voxels.
    """
    box = box.clip(expr.bounds)
    if not box.voxels:
        return
    yield expr, box
    if isinstance(expr, PlaneSlice | Strided) or (isinstance(expr, Resampled) and any(m.scale > 1 for m in expr.maps)):
        return
    for child, need in zip(expr.inputs, expr.needs(box), strict=True):
        yield from _wholly_read(child, need)


class Asked:
    """Which of the ids that were asked for the regions of an export have.

    Parameters
    ----------
    expr : Expr
        What is exported.
    box : IndexBox
        All of it. Nothing is said of ids that were asked of more than that.
    """

    def __init__(self, expr: Expr, box: IndexBox) -> None:
        self._ids: dict[str, RequestedIds] = {}
        self._found: dict[str, npt.NDArray[np.bool_]] = {}
        self._unseen = False
        for node, part in _wholly_read(expr, box):
            asks, whole = getattr(node, "requested", None), getattr(node, "whole", None)
            if isinstance(asks, RequestedIds) and isinstance(whole, IndexBox) and part.contains(whole):
                self._ids[_name(asks.packed)] = asks
                self._found[_name(asks.packed)] = np.zeros(len(asks.array), np.bool_)

    def note(self, region: Told | None) -> Found | None:
        """Note what a region has; return the places of ids that none before it had, None if that is not known.

        It is not if parts of the region were made before, which is told by None.
        """
        if region is None or not self._ids:
            self._unseen |= region is None
            return None
        new = []
        for name, bits in region:
            if name in self._found:
                found = self._found[name]
                here = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(found)).astype(np.bool_)
                new.append((name, tuple(np.flatnonzero(here & ~found).tolist())))
                found |= here
        return tuple((name, places) for name, places in new if places)

    def resume(self, ids: dict[str, set[int]], known: bool) -> None:
        """Note what regions have that were made before, if it is known of all of them."""
        self._unseen |= not known
        for name, places in ids.items():
            if name in self._found and max(places, default=0) < len(self._found[name]):
                self._found[name][list(places)] = True

    def absent(self) -> tuple[int, ...]:
        """Return the ids that no region has, ascending; none if not all of them are known."""
        return tuple(sorted(set(self._absent(self._ids))))

    def _absent(self, names: Iterable[str]) -> list[int]:
        return [] if self._unseen else [i for n in names for i in self._ids[n].array[~self._found[n]].tolist()]

    def warn(self) -> None:
        """Warn of them."""
        for name, asks in self._ids.items():
            absent = self._absent([name])
            if absent:
                warn(asks.missing_message(absent), MissingIdsWarning)
