"""Data of the benchmarks: generated cells and images, in memory and as precomputed layers on disk."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from scipy.spatial import cKDTree

RESOLUTION = (8, 8, 40)
OFFSET = (1024, 512, 100)
FIRST_ID = 864_691_135_617_152_361  # like ids of CAVE, which float64 cannot represent


@lru_cache(maxsize=8)
def cells(shape: tuple[int, int, int], count: int, seed: int = 1) -> NDArray[np.uint64]:
    """Return labels (z, y, x) of about `count` cells with wavy borders and thin clefts of background between them.

    Cells drift from slice to slice, like cells of tissue, and keep their ids.
    """
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    points = rng.uniform((0, 0), (height, width), (count, 2))
    drift = rng.normal(0, 1.5, (count, 2))
    wave = [zoom(rng.normal(0, 12, (height // 32 + 2, width // 32 + 2)), 32, order=1) for _ in range(2)]
    rows, columns = np.mgrid[:height, :width]
    at = np.stack([rows + wave[0][:height, :width], columns + wave[1][:height, :width]], -1).reshape(-1, 2)
    ids = FIRST_ID + rng.permutation(4 * count)[:count].astype(np.uint64)
    out = np.empty(shape, np.uint64)
    for z in range(depth):
        distance, nearest = cKDTree(points + z * drift).query(at, k=2 if count > 1 else 1)
        if count > 1:
            cleft = distance[:, 1] - distance[:, 0] < 1.5
            out[z] = np.where(cleft, np.uint64(0), ids[nearest[:, 0]]).reshape(height, width)
        else:
            out[z] = ids[nearest].reshape(height, width)
    return out


@lru_cache(maxsize=8)
def grey(shape: tuple[int, int, int], seed: int = 2) -> NDArray[np.uint8]:
    """Return an image (z, y, x) of noise that is smooth over a few voxels."""
    rng = np.random.default_rng(seed)
    plane = zoom(rng.normal(128, 40, (shape[1] // 4 + 2, shape[2] // 4 + 2)), 4, order=1)[: shape[1], : shape[2]]
    planes = [np.clip(np.roll(plane, (3 * z, 5 * z), (0, 1)), 0, 255) for z in range(shape[0])]
    return np.stack(planes).astype(np.uint8)


class Layers:
    """An image and a segmentation on disk, on one grid."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], count: int) -> None:
        self.shape, self.count = shape, count
        self.image, self.segmentation = f"precomputed://file://{folder}/image", f"precomputed://file://{folder}/seg"
        write_layer(self.image, grey(shape), "image", "jpeg")
        write_layer(self.segmentation, cells(shape, count), "segmentation", "compressed_segmentation")

    def labels(self) -> NDArray[np.uint64]:
        """Return the voxels of the segmentation."""
        return cells(self.shape, self.count)

    @property
    def corners(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The lower and the upper corner (x, y, z), in voxels."""
        return OFFSET, tuple(o + n for o, n in zip(OFFSET, self.shape[::-1], strict=True))


@lru_cache(maxsize=4)
def layers(shape: tuple[int, int, int], count: int) -> Layers:
    """Write an image (JPEG) and a segmentation (compressed_segmentation), in chunks of 128 x 128 x 16 voxels."""
    folder = Path(tempfile.mkdtemp(prefix="imageryxr-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Layers(folder, shape, count)


def write_layer(path: str, values: NDArray[Any], layer_type: str, encoding: str, compress: str | bool = "gzip") -> None:
    """Write an array (z, y, x) as a precomputed layer."""
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type=layer_type,
        data_type=str(values.dtype),
        encoding=encoding,
        resolution=RESOLUTION,
        voxel_offset=OFFSET,
        volume_size=values.shape[::-1],
        chunk_size=(128, 128, 16),
    )
    volume = CloudVolume(path, info=info, progress=False, compress=compress, non_aligned_writes=True)
    volume.commit_info()
    volume[:] = values.T[..., np.newaxis]
