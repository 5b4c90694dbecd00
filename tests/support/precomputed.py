"""Precomputed layers that tests write."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.precomputed.source import open_precomputed
from tests.support.source_suite import SourceSuite, noise

CHUNK = (16, 16, 8)


def scale(grid: Grid, encoding: str = "raw", key: str | None = None) -> dict:
    """Return a scale of an ``info`` file, written from the format's specification."""
    (nz, ny, nx), offset = grid.shape, [int(o) for o in grid.voxel_offset]
    key = key or "_".join(f"{r:g}" for r in grid.resolution)
    found = {"key": key, "size": [nx, ny, nz], "resolution": list(grid.resolution), "voxel_offset": offset}
    found |= {"chunk_sizes": [list(CHUNK)], "encoding": encoding}
    if encoding == "compressed_segmentation":
        found["compressed_segmentation_block_size"] = [8, 8, 8]
    return found


def write_layer(
    folder: Path,
    values: list[np.ndarray],
    grids: list[Grid],
    *,
    kind: str = "image",
    encoding: str = "raw",
    compress: bool = True,
) -> dict:
    """Write levels (z, y, x) or (c, z, y, x) with CloudVolume; return the ``info``."""
    from cloudvolume import CloudVolume

    channels = values[0].shape[0] if values[0].ndim == 4 else 1
    scales = [scale(grid, encoding) for grid in grids]
    info = {"type": kind, "data_type": str(values[0].dtype), "num_channels": channels, "scales": scales}
    for mip, voxels in enumerate(values):
        volume = CloudVolume(f"precomputed://file://{folder}", mip=mip, info=info, compress=compress, bounded=True)
        volume.commit_info()
        volume[:, :, :] = voxels.T if voxels.ndim == 4 else voxels.T[..., None]
    return info


def open_layer(folder: Path, **options):
    return open_precomputed(parse_address(f"precomputed://{folder}"), **options)


class Layers(SourceSuite):
    """The source suite for a stored layer; subclasses define its voxels."""

    GRIDS = (Grid((19, 35, 37), (4.04, 4.04, 40), (-21, 5, 3)), Grid((19, 18, 19), (8.08, 8.08, 40), (-11, 2, 3)))
    KIND, DTYPE, ENCODING = "image", "uint8", "raw"

    def write(self, folder):
        write_layer(folder, self.truth(), self.grids(), kind=self.KIND, encoding=self.ENCODING)

    def open(self, folder):
        return open_layer(folder)

    def grids(self):
        return list(self.GRIDS)

    def truth(self):
        return [noise(g.shape, self.DTYPE, mip) for mip, g in enumerate(self.GRIDS)]

    def open_without_voxels(self, folder, empty):
        shutil.copy(folder / "info", empty / "info")
        return self.open(empty)

    def others(self, folder):
        copy = folder.parent / f"{folder.name}-copy"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        return [open_layer(folder, missing="fill"), open_layer(folder, missing="warn"), self.open(copy)]
