"""Make the crop in this folder from the FIB-25 training sample.

Usage: ``python make_crop.py fib25_medulla_250.npz``. The archive holds ``em`` and ``supervoxels``, both of shape
(z, y, x) = (250, 250, 250), and ``sv_to_body``, rows of (supervoxel id, body id).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

import imageryxr as ix

HERE = Path(__file__).parent
NM = (10, 10, 10)
FIRST, SLICES = 16, 72


def label(values: np.ndarray, layer_type: str) -> xr.DataArray:
    """Return the slices of the crop as a labelled array at their place in the sample."""
    part = values[FIRST : FIRST + SLICES]
    grid = ix.Grid(part.shape, NM, (0, 0, FIRST))
    return xr.DataArray(part, dims=("z", "y", "x"), coords=grid.coords(), attrs={"layer_type": layer_type})


def main(archive: str) -> None:
    """Write ``image`` and ``segmentation.ome.zarr`` beside this file."""
    with np.load(archive) as sample:
        supervoxels, table = sample["supervoxels"], sample["sv_to_body"]
        image = label(sample["em"], "image")
    bodies = np.zeros(int(supervoxels.max()) + 1, np.uint64)
    bodies[table[:, 0].astype(np.intp)] = table[:, 1]
    segmentation = label(bodies[supervoxels], "segmentation")

    chunks = (36, 125, 125)
    ix.export(
        image, f"precomputed://{HERE}/image", chunks=chunks, levels=3, encoding="jpeg", quality=75, overwrite=True
    )
    target = HERE / "segmentation.ome.zarr"
    ix.export(segmentation, target, chunks=chunks, levels=3, compressor="zstd:19", overwrite=True)
    for bookkeeping in HERE.glob("*.manifest.*"):
        bookkeeping.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
