"""Find the ids that touch each other, and give them colours that differ visibly."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import UInt8Array, UInt64Array, hash_rows
from imageryxr.errors import LayerError

#: Smallest CIELAB distance at which two adjacent areas look different, also half-transparent over grey.
MIN_DISTANCE = 30.0
#: Ids at most this many voxels apart count as touching, because membranes between cells are often background.
MAX_GAP = 3

Contacts = dict[int, set[int]]


def find_contacts(labels: npt.NDArray[Any]) -> Contacts:
    """Return the ids that each id touches, within the planes of the last two axes and between adjacent planes."""
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


# ---------------------------------------------------------------------------------------------------------
# CIELAB, in which distances approximate perceived colour differences


def lab_to_rgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert CIELAB (D65) to sRGB; colours outside the gamut of sRGB get values outside 0–1."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.95047, 1.0, 1.08883]
    linear = xyz @ np.array(
        [
            [3.2404542, -0.9692660, 0.0556434],
            [-1.5371385, 1.8760108, -0.2040259],
            [-0.4985314, 0.0415560, 1.0572252],
        ]
    )
    curved: npt.NDArray[np.float64] = 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)


def rgb_to_lab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB (0 to 255, shape (n, 3)) to CIELAB (D65)."""
    curved = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(curved <= 0.04045, curved / 12.92, ((curved + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [
            [0.4124564, 0.2126729, 0.0193339],
            [0.3575761, 0.7151522, 0.1191920],
            [0.1804375, 0.0721750, 0.9503041],
        ]
    )
    t = xyz / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
