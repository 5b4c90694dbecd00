"""Timestamps and boxes in the tissue of the CAVE deployment."""

from __future__ import annotations

from datetime import UTC, datetime

import imageryxr as ix
from tests.support.cave_server import (
    EM_SIZE,
    OFFSET,
    SPLIT,
)

HASTY = ix.Connection(timeout=20, retries=2, backoff=0.001)


NOW = SPLIT + 1e6


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def voxels(lo, hi) -> ix.BBox:
    """Return the box from one index (x, y, z) in the tissue to another."""
    corner = [[o + i for o, i in zip(OFFSET, c, strict=True)] for c in (lo, hi)]
    return ix.BBox(*corner, resolution=EM_SIZE)


BOX = voxels((3, 5, 7), (90, 70, 20))


PART = (slice(7, 20), slice(5, 70), slice(3, 90))
