"""Find the ids that touch each other, and give them colours that differ visibly."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import UInt8Array, UInt64Array, hash_rows
from imageryxr.core.colors.lab import rgb_to_lab
from imageryxr.errors import LayerError

#: Smallest CIELAB distance at which two adjacent areas look different, also half-transparent over grey.
MIN_DISTANCE = 30.0
#: Ids at most this many voxels apart count as touching, because membranes between cells are often background.
MAX_GAP = 3

Contacts = dict[int, set[int]]


def find_contacts(labels: npt.NDArray[Any]) -> Contacts:
    """Return the ids that each id touches, within the planes of the last two axes and between adjacent planes.

    Parameters
    ----------
    labels : integer array, at least 2-D
        The last two axes are rows and columns.
    """
    if labels.ndim < 2 or labels.dtype.kind not in "iu":
        raise LayerError(
            f"distinct=True needs a segmentation, to find the ids that touch; this is {labels.dtype} of shape "
            f"{labels.shape}. Give the array, such as palette(ds.segmentation, distinct=True)"
        )
    planes = labels.reshape(-1, *labels.shape[-2:]).astype(np.uint64, copy=False)
    pairs: set[tuple[int, int]] = set()
    for number, plane in enumerate(planes):
        for step in range(1, MAX_GAP + 1):
            pairs |= _contact_pairs(plane[step:], plane[:-step]) | _contact_pairs(plane[:, step:], plane[:, :-step])
        if number and labels.ndim > 2:
            pairs |= _contact_pairs(plane, planes[number - 1])
    out: Contacts = {}
    for a, b in pairs:
        out.setdefault(a, set()).add(b)
        out.setdefault(b, set()).add(a)
    return out


def _contact_pairs(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> set[tuple[int, int]]:
    here = (a != b) & (a != 0) & (b != 0)
    both = np.stack([np.minimum(a[here], b[here]), np.maximum(a[here], b[here])], axis=1)
    return set(map(tuple, np.unique(both, axis=0).tolist()))


def separate_neighbors(ids: UInt64Array, colors: UInt8Array, contacts: Contacts, table: UInt8Array) -> UInt8Array:
    """Replace colours that are too similar to those of neighbours by others from a table.

    The ids are processed in a fixed order. An id whose colour is too similar to that of a processed neighbour takes the
    first colour of the table, counted from a row that depends on its hash, that differs from the colours of all its
    neighbours. If there is none, only processed neighbours count. If there is still none, it takes the colour with the
    largest distance to its most similar processed neighbour.
    """
    place = {int(i): n for n, i in enumerate(ids.tolist())}
    lab, candidates = rgb_to_lab(colors), rgb_to_lab(table)
    out = np.array(colors)
    settled: set[int] = set()
    start = hash_rows(ids, len(table))
    for own in _coloring_order(ids.tolist(), contacts):
        n = place[own]
        near = [place[i] for i in sorted(contacts.get(own, ())) if i in place]
        before = [m for m in near if m in settled]
        if before and np.linalg.norm(lab[before] - lab[n], axis=1).min() < MIN_DISTANCE:
            turned = np.roll(np.arange(len(table)), -int(start[n]))
            least = np.linalg.norm(candidates[turned][:, None] - lab[near][None], axis=2).min(axis=1)
            free = least >= MIN_DISTANCE
            if not free.any():
                # Neighbours that are processed later can still change their colour.
                least = np.linalg.norm(candidates[turned][:, None] - lab[before][None], axis=2).min(axis=1)
                free = least >= min(MIN_DISTANCE, least.max())
            pick = turned[int(np.argmax(free))]
            out[n], lab[n] = table[pick], candidates[pick]
        settled.add(n)
    return out


def _coloring_order(ids: list[int], contacts: Contacts) -> list[int]:
    """Order ids so that each has few neighbours before it, which keeps the number of colours small.

    The order is built from its end: remove the id with the fewest remaining neighbours (the smallest such id), repeat.
    In a planar graph that number is at most five.
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
