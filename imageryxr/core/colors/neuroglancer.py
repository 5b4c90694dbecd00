"""Compute the colours that Neuroglancer gives segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import UInt8Array, UInt64Array
from imageryxr.errors import ColorError, param

MAX_SEED = 2**32 - 1


def _combine(state: npt.NDArray[np.uint32], word: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Update a hash with one 32-bit word, like a block of MurmurHash3."""

    def rotate(x: npt.NDArray[np.uint32], by: int) -> npt.NDArray[np.uint32]:
        return (x << np.uint32(by)) | (x >> np.uint32(32 - by))

    mixed = rotate(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return rotate(state ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def neuroglancer_colors(ids: UInt64Array, seed: int) -> UInt8Array:
    """Return the colours of ids by Neuroglancer's SegmentColorHash: hash the low word, then the high word."""
    ids = np.atleast_1d(ids)
    low, high = (ids & np.uint64(MAX_SEED)).astype(np.uint32), (ids >> np.uint64(32)).astype(np.uint32)
    mixed = _combine(_combine(np.full(low.shape, seed, dtype=np.uint32), low), high)
    hue = (mixed & np.uint32(0xFF)) / 255.0 * 6
    saturation = 0.5 + 0.5 * ((mixed >> np.uint32(8) & np.uint32(0xFF)) / 255.0)
    sextant = np.floor(hue)
    within = hue - sextant
    full, least = np.ones_like(hue), 1 - saturation
    falling, rising = 1 - saturation * within, 1 - saturation * (1 - within)
    sixth = sextant.astype(np.intp) % 6
    red = np.choose(sixth, [full, falling, least, least, rising, full])
    green = np.choose(sixth, [rising, full, full, falling, least, least])
    blue = np.choose(sixth, [least, least, rising, full, full, falling])
    rgb: UInt8Array = np.rint(255 * np.stack([red, green, blue], axis=-1)).astype(np.uint8)
    return rgb


def neuroglancer_seed(colors: Any) -> int | None:
    """Return the seed of Neuroglancer's colour hash that ``colors=`` requests, or None for other values of it."""
    if isinstance(colors, str):
        return 0 if colors == "neuroglancer" else None
    if not (isinstance(colors, (tuple, list)) and len(colors) == 2 and isinstance(colors[0], str)):
        return None
    name, seed = colors
    if name != "neuroglancer" and isinstance(seed, str):
        return None
    if name != "neuroglancer":
        raise ColorError(
            param("colors", colors), f": only 'neuroglancer' takes a seed. Write ('neuroglancer', 0) or {name!r}."
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ColorError(
            param("colors", colors),
            ": a seed is an integer from 0 to 2**32 - 1, like the layer's ",
            "'segmentColorSeed'. Write ('neuroglancer', 0) for the viewer's default ",
            "colours.",
        )
    return int(seed)
