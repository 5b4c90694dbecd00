"""Read raw chunks in files on a disk directly."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.sources.base import ALLOCATE, is_html_page
from imageryxr.sources.fetch.engine import cpu_count
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.precomputed.chunks import StoredLayer
from imageryxr.sources.precomputed.info import StoredChunk, level_spans, stored_chunks

LARGE_BOX = 8 << 20
"""Size in bytes from which a box is copied in several threads."""


def read_raw(source: StoredLayer, mip: int, box: IndexBox) -> npt.NDArray[Any] | None:
    """Return the voxels of a box of raw chunks in local files, or None if `read_box` must read it.

    Copying raw chunks takes most of the time. Therefore only the slices of the box are read of each file, into one
    buffer, and copied once, into the result; large boxes in several threads. `read_box` reads layers that are remote,
    encoded or sharded, and boxes with compressed, missing or damaged chunks, for which it raises the error.
    """
    level, scale = source.levels[mip], source.info["scales"][mip]
    if not source.url.startswith("file://") or level.encoding != "raw" or "sharding" in scale:
        return None
    channels, dtype = int(source.info.get("num_channels", 1)), source.dtype.newbyteorder("<")
    folder = f"{source.url.removeprefix('file://').rstrip('/')}/{scale['key']}"
    chunks, out = stored_chunks(level, level_spans(level, box)), ALLOCATE.get()(box.shape, source.dtype)

    def copy(some: list[StoredChunk], stop: threading.Event) -> bool:
        stored = np.empty(0, np.uint8)
        for chunk in some:
            # x varies fastest, then y, z and the channel
            (depth, *plane), (taken, *inside) = chunk.shape, chunk.taken
            step = math.prod(plane) * dtype.itemsize
            try:
                with open(f"{folder}/{chunk.name}", "rb", buffering=0) as file:
                    # The size is checked before memory of that size is allocated.
                    is_whole = os.fstat(file.fileno()).st_size == channels * depth * step
                    if stop.is_set() or not is_whole or is_html_page(file.read(256)):
                        return False
                    size = (taken.stop - taken.start) * step
                    stored = stored if len(stored) >= size else np.empty(size, np.uint8)
                    file.seek((source.channel * depth + taken.start) * step)
                    if file.readinto(stored[:size].data) != size:
                        return False
            except OSError:
                return False
            out[chunk.place] = stored[:size].view(dtype).reshape(-1, *plane)[(slice(None), *inside)]
        return True

    width = min(len(chunks), cpu_count()) if out.nbytes >= LARGE_BOX else 1
    if width == 1:
        return out if copy(chunks, threading.Event()) else None
    return out if all(run_in_parallel(copy, [chunks[i::width] for i in range(width)], width)) else None
