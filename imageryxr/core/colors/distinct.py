"""Neighbours told apart: which ids touch, and colours that differ between those that do."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import UInt8Array, UInt64Array, hash_rows
from imageryxr.core.colors.lab import rgb_to_lab
from imageryxr.errors import LayerError

#: Distance in CIELAB from which on two areas side by side are seen as of two colours, half transparent over grey too.
APART = 30.0
#: Ids touch that come as near as this, in voxels: membranes between cells are often background.
REACH = 3

Contacts = dict[int, set[int]]


def touching(labels: npt.NDArray[Any]) -> Contacts:
    """Return for each id those that it touches, within the planes of the last two axes and across them.

    Parameters
    ----------
    labels : integer array, at least 2-D
        The last two axes are rows and columns.
    """
    if labels.ndim < 2 or labels.dtype.kind not in "iu":
        raise LayerError(
            f"distinct=True needs a segmentation, of which it sees what touches; this is {labels.dtype} of shape "
            f"{labels.shape}. Give the array, such as palette(ds.segmentation, distinct=True)"
        )
    planes = labels.reshape(-1, *labels.shape[-2:]).astype(np.uint64, copy=False)
    pairs: set[tuple[int, int]] = set()
    for number, plane in enumerate(planes):
        for step in range(1, REACH + 1):
            pairs |= _pairs(plane[step:], plane[:-step]) | _pairs(plane[:, step:], plane[:, :-step])
        if number and labels.ndim > 2:
            pairs |= _pairs(plane, planes[number - 1])
    out: Contacts = {}
    for a, b in pairs:
        out.setdefault(a, set()).add(b)
        out.setdefault(b, set()).add(a)
    return out


def _pairs(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    here = (a != b) & (a != 0) & (b != 0)
    both = np.stack([np.minimum(a[here], b[here]), np.maximum(a[here], b[here])], axis=1)
    return set(map(tuple, np.unique(both, axis=0).tolist()))


def set_apart(ids: UInt64Array, colors: UInt8Array, contacts: Contacts, table: UInt8Array) -> UInt8Array:
    """Exchange colours that are too near to those of neighbours for others of a table; the rest stay as they are.

    Each id that stands too near to one settled before it takes the first colour that is far from all its neighbours,
    counted through the table from a place that its hash gives. Where no colour is, it looks at those settled only, and
    at last takes the one farthest from its nearest neighbour.
    """
    place = {int(i): n for n, i in enumerate(ids.tolist())}
    lab, candidates = rgb_to_lab(colors), rgb_to_lab(table)
    out = np.array(colors)
    settled: set[int] = set()
    start = hash_rows(ids, len(table))
    for own in _order(ids.tolist(), contacts):
        n = place[own]
        near = [place[i] for i in sorted(contacts.get(own, ())) if i in place]
        before = [m for m in near if m in settled]
        if before and np.linalg.norm(lab[before] - lab[n], axis=1).min() < APART:
            turned = np.roll(np.arange(len(table)), -int(start[n]))
            least = np.linalg.norm(candidates[turned][:, None] - lab[near][None], axis=2).min(axis=1)
            free = least >= APART
            if not free.any():
                # Those that come later can still make room.
                least = np.linalg.norm(candidates[turned][:, None] - lab[before][None], axis=2).min(axis=1)
                free = least >= min(APART, least.max())
            pick = turned[int(np.argmax(free))]
            out[n], lab[n] = table[pick], candidates[pick]
        settled.add(n)
    return out


def _order(ids: list[int], contacts: Contacts) -> list[int]:
    """Order ids so that each has few neighbours before it, which lets a handful of colours do.

    Taken from the end: the id with the fewest neighbours among those left, of equals the smallest. In a plane that is
    five at most.
    """
    left = {i: set(contacts.get(i, ())) for i in ids}
    for i in left:
        left[i] &= left.keys()
    heap = [(len(near), i) for i, near in left.items()]
    heapq.heapify(heap)
    out: list[int] = []
    while heap:
        count, i = heapq.heappop(heap)
        if i not in left or count != len(left[i]):
            continue
        for j in left.pop(i):
            left[j].discard(i)
            heapq.heappush(heap, (len(left[j]), j))
        out.append(i)
    return out[::-1]
