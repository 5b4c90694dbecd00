"""Layers written by CloudVolume."""

from __future__ import annotations

import numpy as np
from cloudvolume import CloudVolume


def write_layer(path, kind, levels, dtype="uint8", encoding="raw", chunk=(16, 16, 8), data=None):
    """Write a precomputed layer; levels is a list of (size, resolution, offset), all x, y, z."""
    rng = np.random.default_rng(1)
    size, resolution, offset = levels[0]
    info = CloudVolume.create_new_info(1, kind, dtype, encoding, resolution, offset, size, chunk_size=chunk)
    for size, resolution, offset in levels[1:]:
        scale = dict(info["scales"][0], resolution=resolution, voxel_offset=offset, size=size)
        scale["key"] = "_".join(map(str, resolution))
        info["scales"].append(scale)
    written = []
    for mip, (size, _, _) in enumerate(levels):
        volume = CloudVolume(f"file://{path}", mip=mip, info=info, progress=False)
        volume.commit_info()
        top = np.iinfo(dtype).max
        voxels = rng.integers(1, top, size, dtype=dtype, endpoint=True) if data is None else data[mip]
        volume[:, :, :] = voxels[..., np.newaxis]
        written.append(voxels.T)
    return written
