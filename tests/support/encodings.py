"""Precomputed layers of every encoding, written without a library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIZE, CHUNK, OFFSET = (13, 11, 5), (8, 6, 3), (2, -3, 7)  # x, y, z


def values(dtype: str, channels: int, *, smooth: bool = False, few: bool = False) -> np.ndarray:
    """Return voxels (channel, z, y, x): random ones, a smooth ramp, or blocks of few ids."""
    rng = np.random.default_rng(channels)
    shape = (channels, *SIZE[::-1])
    if smooth:
        ramp = np.indices(shape[1:]).sum(0) * 6.0
        return np.stack([(40 + 30 * c + ramp) % 200 if c % 2 else 30 + ramp for c in range(channels)]).astype(dtype)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    found = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if few:
        ids = rng.integers(0, info.max, (channels, 3, 4, 4), dtype=dtype, endpoint=True)
        found = ids.repeat(2, 1).repeat(3, 2).repeat(4, 3)[:, : shape[1], : shape[2], : shape[3]].copy()
    return found


def write(folder: Path, stored: np.ndarray, encoding: str, encode: Callable[[np.ndarray], bytes], **scale: object):
    """Write a layer by hand; `encode` returns the bytes of a chunk (channel, z, y, x)."""
    key = "8_8_40"
    (folder / key).mkdir(parents=True)
    info = {
        "type": "image", "data_type": stored.dtype.name, "num_channels": stored.shape[0],
        "scales": [{"key": key, "size": SIZE, "voxel_offset": OFFSET, "resolution": [8, 8, 40], "chunk_sizes": [CHUNK], "encoding": encoding, **scale}],
    }  # fmt: skip
    (folder / "info").write_text(json.dumps(info))
    for place in np.ndindex(*(-(-s // c) for s, c in zip(SIZE, CHUNK, strict=True))):
        spans = [(i * c, min((i + 1) * c, s)) for i, c, s in zip(place, CHUNK, SIZE, strict=True)]
        name = "_".join(f"{a + o}-{b + o}" for (a, b), o in zip(spans, OFFSET, strict=True))
        (folder / key / name).write_bytes(encode(stored[(slice(None), *(slice(a, b) for a, b in spans[::-1]))]))
