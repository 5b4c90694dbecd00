"""Fast reading of raw chunks from local files.

Raw chunks need no decoding, so copying them takes most of the time. This module reads each file into one buffer and
copies it once, into the result.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.sources.base import is_html_page
from imageryxr.sources.precomputed.chunk_grid import stored_chunks
from imageryxr.sources.precomputed.chunks import StoredLayer


def read_raw(source: StoredLayer, mip: int, box: IndexBox) -> npt.NDArray[Any] | None:
    """Return the voxels of a box inside a layer, or None if `chunks.read_box` must read it.

    `chunks.read_box` reads layers that are remote, encoded or sharded, and boxes with compressed, missing or damaged
    chunks, for which it raises the error.
    """
    level, scale = source.levels[mip], source.info["scales"][mip]
    if not source.url.startswith("file://") or level.encoding != "raw" or "sharding" in scale:
        return None
    channels, dtype = int(source.info.get("num_channels", 1)), source.dtype.newbyteorder("<")
    folder = f"{source.url.removeprefix('file://').rstrip('/')}/{scale['key']}"
    out: npt.NDArray[Any] | None = None
    stored = np.empty(0, np.uint8)
    for chunk in stored_chunks(level, box):
        size = math.prod(chunk.shape) * channels * dtype.itemsize
        path = f"{folder}/{chunk.name}"
        if not _has_size(path, size):  # checked before memory of that size is allocated
            return None
        if len(stored) != size + 1:
            stored = np.empty(size + 1, np.uint8)
        if not _read_into(stored, path):
            return None
        out = np.empty(box.shape, source.dtype) if out is None else out
        # x varies fastest, then y, z and the channel
        voxels = stored[:size].view(dtype).reshape(channels, *chunk.shape)[source.channel]
        out[chunk.place] = voxels[chunk.taken]
    return out


def _has_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def _read_into(stored: npt.NDArray[np.uint8], path: str) -> bool:
    """Read a file into an array that is one byte longer; return whether the length is right and it is not HTML."""
    try:
        with open(path, "rb", buffering=0) as file:
            length = file.readinto(stored.data)
    except OSError:
        return False
    return length == len(stored) - 1 and not is_html_page(stored[:256].data)
